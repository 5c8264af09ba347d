"""Mask R-CNN FPN: every setting of METHOD C11 on what is really built, and the row from command to table."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from torch import nn

from context_pred.backbones import build_backbone
from context_pred.cli import main
from context_pred.data.transforms import EvalTransform
from context_pred.errors import InvalidInputError, StoppedError
from context_pred.evaluate import _run, sources, trained
from context_pred.evaluate.detection import defaults, fpn, work
from context_pred.evaluate.detection.average_precision import Detections
from context_pred.evaluate.detection.boxes import read
from context_pred.evaluate.detection.examples import DetectionExamples, collate, run_lengths
from context_pred.evaluate.job import Job

Marked = Any

SMALL = {
    "short_sides": "64", "batch": 2, "epochs": 1, "rois": 8, "proposals_before": 30, "proposals": 20, "channels": 16,
    "box_features": 32, "test_proposals_before": 30, "test_proposals": 12, "score": 0.0, "detections": 5,
}  # fmt: skip


def run(data: Path, out: Path, **more: Any) -> Any:
    options = {"device": "cpu", "workers": 1, "progress": False}
    return _run.run("detection", "random:resnet18", data, out=out, settings=SMALL | more, **options)


@pytest.fixture
def captured(marked: Marked, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """What the row gives to the training, with METHOD's settings and a ResNet-50."""
    given: list[trained.Training] = []

    def stop(job: Job, training: trained.Training) -> None:
        given.append(training)
        raise StoppedError("enough")

    monkeypatch.setattr(work, "train", stop)
    data, source = read(marked.coco()), sources.find("random:resnet50")
    source.model.backbone.requires_grad_(False)  # nothing stays frozen
    with pytest.raises(StoppedError):
        fpn.run(Job(source, data, tmp_path, (), fpn.Settings(), 0, 1, "cpu", progress=False))
    return given[0]


def test_every_setting_of_the_model_that_is_built(captured: trained.Training) -> None:
    model: Any = captured.model
    body, rpn, heads = model.body, model.rpn, model.roi_heads
    assert body.layers == ["feature2", "feature3", "feature4", "feature5"]
    assert all(p.requires_grad for p in model.parameters())
    for k, block in enumerate((*body.pyramid.inner_blocks, *body.pyramid.layer_blocks)):
        convolution, norm = block  # and no activation
        assert convolution.out_channels == 256
        assert convolution.kernel_size == ((1, 1) if k < 4 else (3, 3))
        assert convolution.bias is None
        assert isinstance(norm, nn.BatchNorm2d)
    assert [block[0].in_channels for block in body.pyramid.inner_blocks] == [256, 512, 1024, 2048]
    with torch.no_grad():
        maps = model.eval().body(torch.zeros(1, 3, 128, 192))
    assert [tuple(one.shape) for one in maps.values()] == [
        (1, 256, 32, 48), (1, 256, 16, 24), (1, 256, 8, 12), (1, 256, 4, 6), (1, 256, 2, 3)
    ]  # fmt: skip
    # proposals
    assert not [m for m in rpn.modules() if isinstance(m, nn.BatchNorm2d)]
    assert rpn.head.conv[0][0].out_channels == 256
    assert rpn.head.cls_logits.out_channels == 3
    assert (rpn.anchor_generator.scales, rpn.anchor_generator.ratios) == ((8,), (0.5, 1.0, 2.0))
    assert rpn.anchor_generator.strides == (4, 8, 16, 32, 64)
    assert rpn.allowed_border == -1
    matcher = rpn.proposal_matcher
    assert (matcher.high_threshold, matcher.low_threshold, matcher.least) == (0.7, 0.3, 0.3)
    assert (rpn.fg_bg_sampler.batch_size_per_image, rpn.fg_bg_sampler.positive_fraction) == (256, 0.5)
    assert rpn._pre_nms_top_n == {"training": 2000, "testing": 1000}
    assert rpn._post_nms_top_n == {"training": 1000, "testing": 1000}
    assert rpn.nms_thresh == 0.7
    # the box head: four convolutions and a linear layer
    pool = heads.box_roi_pool
    assert (pool.size, pool.strides, pool.sampling_ratio, pool.aligned, pool.finest) == (7, (4, 8, 16, 32), 0, True, 56)
    convolutions = [m for m in heads.box_head.modules() if isinstance(m, nn.Conv2d)]
    assert [(c.out_channels, c.kernel_size, c.bias) for c in convolutions] == [(256, (3, 3), None)] * 4
    assert len([m for m in heads.box_head.modules() if isinstance(m, nn.BatchNorm2d)]) == 4
    assert len([m for m in heads.box_head.modules() if isinstance(m, nn.ReLU)]) == 5
    linear = [m for m in heads.box_head.modules() if isinstance(m, nn.Linear)]
    assert [(one.in_features, one.out_features) for one in linear] == [(256 * 49, 1024)]
    assert linear[0].weight.abs().max().item() == pytest.approx((6 / (256 * 49 + 1024)) ** 0.5, rel=1e-3)  # Xavier's
    last = heads.draw[1]
    assert not any(one.bias.any() for one in (*linear, last.conv5_mask, last.mask_fcn_logits))
    assert heads.box_predictor.bbox_pred.out_features == 4 * 2
    assert heads.box_coder.weights == pytest.approx((10, 10, 5, 5))
    matcher = heads.proposal_matcher
    assert (matcher.high_threshold, matcher.low_threshold, matcher.least) == (0.5, 0.5, 0.5)
    assert (heads.fg_bg_sampler.batch_size_per_image, heads.fg_bg_sampler.positive_fraction) == (512, 0.25)
    assert (heads.score_thresh, heads.nms_thresh, heads.detections_per_img) == (0.05, 0.5, 100)
    # the mask head
    pool = heads.draw_pool
    assert (pool.size, pool.strides, pool.sampling_ratio, pool.aligned) == (14, (4, 8, 16, 32), 0, True)
    convolutions = [m for m in heads.draw[0].modules() if isinstance(m, nn.Conv2d)]
    assert [(c.out_channels, c.kernel_size, c.bias) for c in convolutions] == [(256, (3, 3), None)] * 4
    assert len([m for m in heads.draw[0].modules() if isinstance(m, nn.BatchNorm2d)]) == 4
    with torch.no_grad():
        assert heads.draw(torch.zeros(1, 256, 14, 14)).shape == (1, 2, 28, 28)
    assert fpn.Settings().mask_threshold == 0.5
    assert captured.sync_batch_norm is True
    assert model.pad_to == 32
    assert model.mean.flatten().tolist() == pytest.approx([123.675, 116.28, 103.53])


def test_every_setting_of_the_data_and_of_the_optimiser_that_are_built(captured: trained.Training) -> None:
    examples: Any = captured.examples
    assert examples.short_sides == (640, 672, 704, 736, 768, 800)
    assert (examples.max_side, examples.flip, examples.masks, examples.train) == (1333, 0.5, True, True)
    assert fpn.Settings().test_short_side == 800
    assert (captured.images, captured.per_device) == (16, 0)
    optimizer: Any = captured.optimizer(captured.model)
    assert type(optimizer) is torch.optim.SGD
    for group in optimizer.param_groups:
        assert (group["lr"], group["momentum"], group["weight_decay"], group["nesterov"]) == (0.02, 0.9, 1e-4, False)
    rates = captured.rates(7330)  # steps an epoch of COCO
    assert rates.steps == 12 * 7330
    assert rates.rate(0) == pytest.approx(0.02 * 0.001)
    assert rates.rate(999) < rates.rate(1000) == 0.02
    edges = [8 * 7330 - 1, 8 * 7330, 11 * 7330 - 1, 11 * 7330]
    assert [rates.rate(step) for step in edges] == pytest.approx([0.02, 0.002, 0.002, 0.0002])
    short = captured.rates(10)  # a small set: the warm-up is a tenth of the run
    assert short.rate(11) < short.rate(12) == 0.02
    assert defaults("coco-fpn", {"version": "1.x"}) == {"warmup_steps": 500}
    assert defaults("coco-fpn", {"epochs": "6"}) == {"milestones": (4, 6)}


def test_command_prints_boxes_and_masks_beside_the_published(marked: Marked, tmp_path: Path) -> None:
    out = tmp_path / "out"
    chosen = [part for key, value in SMALL.items() for part in ("--set", f"{key}={value}")]
    chosen += ["--set", "precision=bfloat16"]
    common = ["evaluate", "detection", "--data", marked.coco(), "--out", out, "--device", "cpu", "--workers", 1]
    arguments = [str(one) for one in (*common, "--no-progress", "--model", "random:resnet18", *chosen)]
    outcome = CliRunner().invoke(main, arguments, prog_name="context-pred")
    assert outcome.exit_code == 0, outcome.output
    record = json.loads((out / "result.json").read_text())
    assert record["variant"] == "coco-fpn"  # as the data's layout shows
    names = [f"{kind} {metric}" for kind in ("box", "mask") for metric in ("AP", "AP50", "AP75")]
    assert [m["metric"] for m in record["measured"]] == names
    for number in ("37.50", "56.20", "41.30", "33.70", "53.30", "36.10"):
        assert number in outcome.stdout
    found = json.loads((out / "seed-0" / "detections.json").read_text())
    assert {image["id"] for image in found["images"]} == {10, 20, 30}
    assert {"segmentation", "bbox", "score", "image_id", "category_id"} == set(found["annotations"][0])
    assert {one["category_id"] for one in found["annotations"]} <= {3, 90}


def test_nothing_found(marked: Marked, tmp_path: Path) -> None:
    result = run(marked.coco(), tmp_path / "out", score=1.0)
    assert [m.value for m in result.measured] == [0.0] * 6


def test_perfect_detections_have_perfect_figures(marked: Marked) -> None:
    data = read(marked.coco())
    found = []
    for image in data.test:
        keep = ~image.crowd
        masks = tuple(run_lengths(one, image.size[1], image.size[0]) for one in image.chosen(keep).outlines)
        found.append(Detections(image.boxes[keep], np.ones(keep.sum(), np.float32), image.labels[keep], masks))
    assert fpn.figures(data, found) == pytest.approx(dict.fromkeys(fpn.figures(data, found), 1.0))
    assert len(fpn.figures(data, found)) == 6


def test_bad_input(marked: Marked, tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match=r"boxes without outlines.*--variant voc0712-c4"):
        _run.run("detection", "random:resnet18", marked.own(), out=tmp_path / "a", variant="coco-fpn", device="cpu")
    path = marked.coco() / "annotations" / "instances_val2017.json"
    record = json.loads(path.read_text())
    for one, outline in zip(record["annotations"], ([], None), strict=False):
        one["segmentation"] = outline
    path.write_text(json.dumps(record))
    with pytest.raises(InvalidInputError, match=r"boxes without outlines.*val2017/000000000001\.jpg.*voc0712-c4"):
        _run.run("detection", "random:resnet18", marked.root / "coco", out=tmp_path / "c", device="cpu")
    with pytest.raises(InvalidInputError, match=r"random:contextnet has maps of strides .*needs 4, 8, 16, 32"):
        _run.run("detection", "random:contextnet", marked.coco(), out=tmp_path / "b", device="cpu")


def test_c4_runs_on_cocos_layout_too(marked: Marked, tmp_path: Path) -> None:
    settings = {"short_sides": "64", "steps": 1, "batch": 2, "rois": 8, "roi_size": 4, "test_proposals": 8}
    result = _run.run(
        "detection", "random:resnet18", marked.coco(), out=tmp_path / "out", variant="voc0712-c4", settings=settings,
        device="cpu", workers=1, progress=False,
    )  # fmt: skip
    assert {m.at["class"] for m in result.measured if m.at} == {"car", "toothbrush"}


def test_it_learns_masks(marked: Marked) -> None:
    """On one batch the losses fall, the masks' with them."""
    data = read(marked.coco())
    settings = fpn.Settings(rois=16, proposals_before=50, proposals=20, channels=32, box_features=64)
    with trained.seeded(0):
        model: Any = fpn.build(build_backbone("resnet18"), 2, settings, EvalTransform(), "resnet18")
    examples = DetectionExamples(data.train, (64,), 128, masks=True)
    batch = collate([examples.example(k, torch.Generator().manual_seed(k)) for k in range(3)])
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    losses = []
    with trained.seeded(1):
        for _ in range(16):
            optimizer.zero_grad()
            every = model.train()(*batch)
            torch.stack(list(every.values())).sum().backward()
            optimizer.step()
            losses.append({name: value.item() for name, value in every.items()})
    assert set(losses[0]) == {"loss_objectness", "loss_rpn_box_reg", "loss_classifier", "loss_box", "loss_mask"}
    assert losses[-1]["loss_mask"] < 0.6 * losses[0]["loss_mask"]
    assert sum(losses[-1].values()) < 0.6 * sum(losses[0].values())
