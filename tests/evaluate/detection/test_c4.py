"""Faster R-CNN C4: every setting of METHOD C10 on what is really built, and the row from command to table."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from click.testing import Result as Outcome
from PIL import Image
from processes import in_ranks
from torch import nn
from torchvision.models.resnet import Bottleneck

from context_pred.backbones import build_backbone
from context_pred.cli import main
from context_pred.data.transforms import EvalTransform
from context_pred.errors import InvalidInputError, StoppedError, UnknownNameError
from context_pred.evaluate import _run, sources, trained
from context_pred.evaluate.detection import c4, defaults, settings_of, work
from context_pred.evaluate.detection.boxes import read
from context_pred.evaluate.job import Job
from context_pred.model import ContextPredictionModel
from context_pred.training.loop import StopRequest

Marked = Any

SMALL = {
    "short_sides": "64", "batch": 2, "steps": 3, "rois": 8, "roi_size": 4, "anchor_scales": "1,2,4",
    "proposals_before": 60, "proposals": 20, "test_proposals_before": 60, "test_proposals": 12, "score": 0.0,
}  # fmt: skip


def small(**more: object) -> dict[str, object]:
    return SMALL | more


def arguments(data: Path, out: Path, settings: dict[str, object], *more: object) -> list[str]:
    chosen = [part for key, value in settings.items() for part in ("--set", f"{key}={value}")]
    common = ["evaluate", "detection", "--data", data, "--out", out, "--no-progress", "--device", "cpu", "--workers", 1]
    return [str(one) for one in (*common, "--model", "random:resnet18", *chosen, *more)]


def call(data: Path, out: Path, settings: dict[str, object], *more: object) -> Outcome:
    return CliRunner().invoke(main, arguments(data, out, settings, *more), prog_name="context-pred")


def run(data: Path, out: Path, settings: dict[str, Any], **more: Any) -> Any:
    options = {"device": "cpu", "workers": 1, "progress": False} | more
    return _run.run("detection", "random:resnet18", data, out=out, settings=settings, **options)


@pytest.fixture
def in_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trained, "usual_workers", lambda device: 0)


@pytest.fixture
def captured(marked: Marked, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """What the row gives to the training, with METHOD's settings and a ResNet-50."""
    given: list[trained.Training] = []

    def stop(job: Job, training: trained.Training) -> None:
        given.append(training)
        raise StoppedError("enough")

    monkeypatch.setattr(work, "train", stop)
    settings, source = c4.Settings(), sources.find("random:resnet50")
    source.model.backbone.requires_grad_(False)  # nothing stays frozen
    job = Job(source, read(marked.voc()), tmp_path, (), settings, 0, 1, "cpu", progress=False)
    with pytest.raises(StoppedError):
        c4.run(job)
    return given[0]


def test_every_setting_of_the_model_that_is_built(captured: trained.Training) -> None:
    model: Any = captured.model
    body, rpn, heads = model.body, model.rpn, model.roi_heads
    # the backbone up to stride 16, and its last stage as the head, with one batch norm more
    assert [name for name, _ in body.named_children()] == ["stem", "layer1", "layer2", "layer3"]
    assert [len(stage) for stage in (body.layer1, body.layer2, body.layer3)] == [3, 4, 6]
    assert isinstance(heads.box_head.layer4[0], Bottleneck)
    assert heads.box_head.layer4[0].conv2.stride == (2, 2)
    assert heads.box_head.norm.num_features == 2048
    assert heads.box_head.norm.weight.eq(1).all()
    assert heads.box_head.norm.bias.eq(0).all()
    x = torch.zeros(1, 1024, 14, 14)
    with torch.no_grad():
        assert heads.box_head.eval().layer4(x).shape == (1, 2048, 7, 7)
        assert heads.box_head(x).shape == (1, 2048)
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    assert len(norms) == 53 + 1
    assert all(p.requires_grad for p in model.parameters())
    assert captured.sync_batch_norm is True
    # proposals
    assert (rpn.head.conv[0][0].in_channels, rpn.head.conv[0][0].out_channels) == (1024, 1024)
    assert rpn.head.conv[0][0].kernel_size == (3, 3)
    assert len(rpn.head.conv) == 1
    assert rpn.head.cls_logits.out_channels == 15
    assert rpn.head.bbox_pred.out_channels == 60
    assert rpn.anchor_generator.strides == (16,)
    sides = (rpn.anchor_generator.shapes(16)[:, 2:] - rpn.anchor_generator.shapes(16)[:, :2]).prod(1).sqrt()
    assert sides.reshape(3, 5)[1].round(decimals=3).tolist() == [32, 64, 128, 256, 512]
    assert rpn.anchor_generator.ratios == (0.5, 1.0, 2.0)
    matcher = rpn.proposal_matcher
    assert (matcher.high_threshold, matcher.low_threshold, matcher.least) == (0.7, 0.3, 0.3)
    assert (rpn.fg_bg_sampler.batch_size_per_image, rpn.fg_bg_sampler.positive_fraction) == (256, 0.5)
    assert rpn.allowed_border == 0
    assert rpn.box_coder.weights == (1, 1, 1, 1)
    assert rpn._pre_nms_top_n == {"training": 12_000, "testing": 6000}
    assert rpn._post_nms_top_n == {"training": 2000, "testing": 1000}
    assert (rpn.nms_thresh, rpn.score_thresh) == (0.7, 0.0)
    # the head
    pool = heads.box_roi_pool
    assert (pool.size, pool.strides, pool.sampling_ratio, pool.aligned) == (14, (16,), 0, True)
    assert (heads.box_predictor.cls_score.out_features, heads.box_predictor.bbox_pred.out_features) == (21, 80)
    assert heads.box_coder.weights == pytest.approx((10, 10, 5, 5))
    matcher = heads.proposal_matcher
    assert (matcher.high_threshold, matcher.low_threshold, matcher.least) == (0.5, 0.5, None)
    assert (heads.fg_bg_sampler.batch_size_per_image, heads.fg_bg_sampler.positive_fraction) == (512, 0.25)
    assert (heads.score_thresh, heads.nms_thresh, heads.detections_per_img) == (0.05, 0.5, 100)
    # images
    assert model.pad_to == 32
    assert model.mean.flatten().tolist() == pytest.approx([123.675, 116.28, 103.53])
    assert model.std.flatten().tolist() == pytest.approx([58.395, 57.12, 57.375])
    assert not model.flipped


def test_every_setting_of_the_data_and_of_the_optimiser_that_are_built(captured: trained.Training) -> None:
    examples: Any = captured.examples
    assert examples.short_sides == tuple(range(480, 801, 32))
    assert (examples.max_side, examples.flip, examples.antialias, examples.train) == (1333, 0.5, False, True)
    assert c4.Settings().test_short_side == 800
    assert (captured.images, captured.per_device) == (16, 0)
    optimizer: Any = captured.optimizer(captured.model)
    assert type(optimizer) is torch.optim.SGD
    assert sum(len(group["params"]) for group in optimizer.param_groups) == len(list(captured.model.parameters()))
    for group in optimizer.param_groups:
        assert (group["lr"], group["momentum"], group["weight_decay"], group["nesterov"]) == (0.02, 0.9, 1e-4, False)
    rates = captured.rates(1)
    assert rates.steps == 24_000
    assert rates.rate(0) == pytest.approx(0.02 * 0.001)
    assert rates.rate(50) == pytest.approx(0.02 * (1 - 0.5 * 0.999))
    edges = [100, 17_999, 18_000, 21_999, 22_000, 23_999]
    assert [rates.rate(step) for step in edges] == pytest.approx([0.02, 0.02, 0.002, 0.002, 0.0002, 0.0002])
    assert captured.evaluate_every == 2000
    assert c4.Settings().form == "11-point"


def test_weights_of_the_backbone_are_in_the_detector_and_its_source_is_untouched() -> None:
    backbone = build_backbone("resnet18")
    before = {name: value.clone() for name, value in backbone.state_dict().items()}
    model: Any = c4.build(backbone, 3, c4.Settings(), EvalTransform(), "resnet18")
    assert torch.equal(model.body.stem[0].weight, before["conv1.weight"])
    assert torch.equal(model.body.layer3[1].conv2.weight, before["layer3.1.conv2.weight"])
    assert torch.equal(model.roi_heads.box_head.layer4[0].conv1.weight, before["layer4.0.conv1.weight"])
    assert model.rpn.head.conv[0][0].in_channels == 256
    assert model.roi_heads.box_head.norm.num_features == 512
    assert model.roi_heads.box_predictor.bbox_pred.out_features == 12
    assert all(m.num_batches_tracked == 0 for m in model.modules() if isinstance(m, nn.BatchNorm2d))


def test_what_follows_from_the_settings_given() -> None:
    row = "voc0712-c4"
    assert defaults(row, {}) == {}
    small = defaults(row, {"steps": "240", "batch": "4", "short_sides": "240,272"})
    assert small == {
        "milestones": (180, 220), "warmup_steps": 24, "learning_rate": 0.005, "test_short_side": 272, "max_side": 453,
    }  # fmt: skip
    assert defaults(row, {"version": "1.x"}) == {"allowed_border": -1}
    assert defaults(row, {"short_sides": "wide"}) == {}
    assert settings_of(row) is c4.Settings


def test_caffes_normalisation_of_1x() -> None:
    transform = c4.Settings(normalization="caffe").transform(EvalTransform())
    assert transform.channel_order == "bgr"
    assert [255 * value for value in transform.mean] == pytest.approx([103.53, 116.28, 123.675])
    assert [255 * value for value in transform.std] == pytest.approx([1, 1, 1])


@pytest.mark.parametrize(
    "wrong",
    [
        {"flip": 2.0}, {"batch": 0}, {"short_sides": ()}, {"rpn_negative": 0.9}, {"learning_rate": 0.0},
        {"anchor_scales": (0.0,)}, {"allowed_border": -2}, {"steps": 0}, {"precision": "float16x"},
    ],
    ids=str,
)  # fmt: skip
def test_settings_out_of_their_range(wrong: dict[str, Any]) -> None:
    with pytest.raises(InvalidInputError, match=next(iter(wrong))):
        c4.Settings(**wrong)


def test_command_prints_the_table_and_writes_what_was_found(marked: Marked, tmp_path: Path) -> None:
    out = tmp_path / "out"
    outcome = call(marked.voc(), out, small(evaluate_every=2))
    assert outcome.exit_code == 0, outcome.output
    record = json.loads((out / "result.json").read_text())
    assert record["variant"] == "voc0712-c4"
    names = [(m["metric"], m["at"].get("class")) for m in record["measured"]]
    assert names == [
        ("AP50", None),
        ("AP", None),
        ("AP75", None),
        ("AP50 (area)", None),
        ("AP50", "cat"),
        ("AP50", "dog"),
    ]
    assert all(0 <= m["value"] <= 1 for m in record["measured"])
    details = record["details"]
    assert details["AP50, rounded as mmdetection logs it"] == round(record["measured"][0]["value"], 3)
    assert [row["step"] for row in details["on the way"]] == [2]
    found = json.loads((out / "seed-0" / "detections.json").read_text())
    assert [image["file_name"] for image in found["images"]] == ["000101.jpg", "000102.jpg", "000103.jpg"]
    assert {"image_id", "category_id", "bbox", "score"} == set(found["annotations"][0])
    assert "79.70" in outcome.stdout
    assert "VOC 2007+2012 trainval 6 images" in outcome.stdout
    assert record["ran_on"]["images"].startswith("shorter side 64 px")
    assert (out / "plot.png").read_bytes().startswith(b"\x89PNG")


def test_own_classes(marked: Marked, tmp_path: Path) -> None:
    result = run(marked.own(), tmp_path / "out", small(steps=1, short_sides=[48, 64], test_batch=2))
    assert {m.at["class"] for m in result.measured if m.at} == {"Platelets", "RBC"}
    assert result.ran_on["data"]["classes"] == 3


@pytest.mark.usefixtures("in_process")
def test_stopped_and_called_again_it_ends_with_the_same_figures(
    marked: Marked, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, settings = marked.voc(), small(evaluate_every=1, checkpoint_every=1)
    straight = run(data, tmp_path / "straight", settings)
    calls = iter([False, True])
    with monkeypatch.context() as patched:
        patched.setattr(StopRequest, "asked", lambda self: next(calls))
        outcome = call(data, tmp_path / "stopped", settings)
    assert "Stopped at step 2 of 3 of detector, with a checkpoint" in outcome.stderr
    resumed = run(data, tmp_path / "stopped", settings)
    assert resumed.measured == straight.measured
    found = [(tmp_path / name / "seed-0" / "detections.json").read_bytes() for name in ("straight", "stopped")]
    assert found[0] == found[1]
    assert resumed.details["on the way"] == straight.details["on the way"]
    assert len(straight.details["on the way"]) == 2


def test_two_ranks_are_one_process_with_as_many_micro_batches(marked: Marked, tmp_path: Path) -> None:
    data = marked.voc()
    ended = in_ranks(arguments(data, tmp_path / "two", small(steps=2, batch=2)))
    assert [process.code for process in ended] == [0, 0], ended
    one = run(data, tmp_path / "one", small(steps=2, batch=2, per_device=1))
    both = json.loads((tmp_path / "two" / "result.json").read_text())
    assert [m["value"] for m in both["measured"]] == pytest.approx([m.value for m in one.measured], abs=1e-4)
    found = [json.loads((tmp_path / name / "seed-0" / "detections.json").read_text()) for name in ("one", "two")]
    numbers = [[(*one["bbox"], one["score"]) for one in record["annotations"]] for record in found]
    assert len(numbers[0]) > 10
    np.testing.assert_allclose(*numbers, atol=0.01)
    assert "batch norm of each process" in (tmp_path / "two" / "result.md").read_text()


def test_bad_input(marked: Marked, tmp_path: Path) -> None:
    data = marked.own()
    grey = ContextPredictionModel("resnet18", pair_layers=False, in_channels=1)
    with pytest.raises(InvalidInputError, match="takes 1 channels; detection needs RGB"):
        _run.run("detection", grey, data, out=tmp_path / "grey", progress=False)
    with pytest.raises(InvalidInputError, match=r"random:contextnet is no ResNet.*layer1 … layer4.*resnet18"):
        _run.run("detection", "random:contextnet", data, out=tmp_path / "a", settings=small(), device="cpu")
    with pytest.raises(InvalidInputError, match="detection trains a network"):
        _run.run("detection", "pixels", data, out=tmp_path / "b", settings=small(), device="cpu")
    with pytest.raises(UnknownNameError, match="'voc0712-c4'"):
        run(data, tmp_path / "c", small(), variant="voc0712")
    with pytest.raises(UnknownNameError, match="'short_sides'"):
        run(data, tmp_path / "d", {"short_side": 64})
    only_2007 = marked.voc(years=("2007",))
    with pytest.raises(InvalidInputError, match=r"VOC2012 is missing.*--set years=2007"):
        run(only_2007, tmp_path / "e", small())
    (data / "JPEGImages" / "a.jpg").write_text("words")
    outcome = call(data, tmp_path / "f", small(steps=1))
    assert outcome.exit_code == 2
    assert "1 of the images cannot be opened: " in outcome.stderr.splitlines()[-1]
    assert "a.jpg (not an image" in outcome.stderr
    assert "--set skip_damaged=true" in outcome.stderr
    left = run(data, tmp_path / "g", small(steps=1, skip_damaged=True))
    assert "1 damaged images were left out" in str(left)


def test_damaged_test_images_are_named_before_the_training(marked: Marked, tmp_path: Path) -> None:
    data = marked.own()
    (data / "JPEGImages" / "c.jpg").write_text("words")
    outcome = call(data, tmp_path / "out", small(steps=1))
    assert "c.jpg (not an image" in outcome.stderr
    assert not (tmp_path / "out" / "seed-0").exists()


def test_images_without_boxes_are_background(marked: Marked, tmp_path: Path) -> None:
    data = marked.own()
    marked.annotated("blood", "b", [])
    result = run(data, tmp_path / "out", small(steps=2, batch=2))
    assert result.ran_on["data"]["train"] == 2
    for name in "ab":
        marked.annotated("blood", name, [])
    with pytest.raises(InvalidInputError, match="no boxes to learn from"):
        run(data, tmp_path / "none", small())


def test_torchvisions_resnets_are_taken_apart_where_their_stages_are_whole() -> None:
    from torchvision.models import resnet18
    from torchvision.models._utils import IntermediateLayerGetter

    from context_pred.evaluate.sources import FeatureMaps

    network = resnet18(weights=None)
    maps = FeatureMaps(IntermediateLayerGetter(network, {f"layer{k}": f"feature{k + 1}" for k in range(1, 5)}), "r18")
    stem, stages, channels = c4.split(maps.backbone, "r18")
    assert (stem[0], stages[3], channels) == (network.conv1, network.layer4, [64, 128, 256, 512])


def test_timms_resnets_are_taken_apart_too() -> None:
    timm = pytest.importorskip("timm")
    from context_pred.evaluate.sources import FeatureMaps

    made = FeatureMaps(timm.create_model("resnet18", features_only=True), "timm resnet18")
    model = c4.build(made.backbone, 2, c4.Settings(), made.transform, "timm resnet18")
    model.eval()
    with torch.inference_mode():
        (found,) = model([torch.zeros(3, 64, 96, dtype=torch.uint8)])
    assert set(found) == {"boxes", "scores", "labels"}


@pytest.mark.slow
def test_it_learns_to_find_squares(tmp_path: Path) -> None:
    root = tmp_path / "squares"
    rng = np.random.default_rng(0)
    names = {"trainval": range(24), "test": range(24, 36)}
    for part in ("JPEGImages", "Annotations", "ImageSets/Main"):
        (root / part).mkdir(parents=True)
    for split, numbers in names.items():
        for number in numbers:
            pixels = rng.integers(90, 160, (64, 80, 3)).astype(np.uint8)
            marks = []
            for kind, color in (("red", (220, 30, 30)), ("blue", (30, 30, 220))):
                x, y = int(rng.integers(0, 20)) + 40 * (kind == "blue"), int(rng.integers(0, 40))
                pixels[y : y + 20, x : x + 20] = color
                box = f"<xmin>{x + 1}</xmin><ymin>{y + 1}</ymin><xmax>{x + 20}</xmax><ymax>{y + 20}</ymax>"
                marks.append(f"<object><name>{kind}</name><bndbox>{box}</bndbox></object>")
            Image.fromarray(pixels).save(root / "JPEGImages" / f"{number}.png")
            (root / "Annotations" / f"{number}.xml").write_text(f"<annotation>{''.join(marks)}</annotation>")
        (root / "ImageSets" / "Main" / f"{split}.txt").write_text("\n".join(map(str, numbers)))
    settings = {
        "short_sides": [64], "batch": 4, "steps": 80, "learning_rate": 0.02, "rois": 16, "roi_size": 4,
        "anchor_scales": [1.0, 2.0], "proposals_before": 200, "proposals": 60, "test_proposals": 30,
    }  # fmt: skip
    result = run(root, tmp_path / "out", settings)
    assert next(m.value for m in result.measured if m.metric == "AP50" and not m.at) > 0.8


def test_other_boxes_are_other_data(marked: Marked, tmp_path: Path) -> None:
    data, out = marked.own(), tmp_path / "out"
    run(data, out, small(steps=1))
    assert run(data, out, small(steps=1)).measured  # from its last checkpoint
    marked.annotated("blood", "b", [("RBC", (0.2, 0.2, 0.8, 0.8), False)])
    with pytest.raises(InvalidInputError, match="other data or another length"):
        run(data, out, small(steps=1))
