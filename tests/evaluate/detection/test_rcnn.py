"""R-CNN on the paper's tower: every setting on what is built, warps, hard negatives, and from command to table."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from sklearn.svm import LinearSVC
from torch import nn
from torchvision.transforms.v2 import functional as TF

from context_pred.cli import main
from context_pred.errors import InvalidInputError
from context_pred.evaluate import published, sources, trained
from context_pred.evaluate.detection import defaults, mining, rcnn, read, rescaling, settings_of, windows
from context_pred.evaluate.detection.boxes import BoxedImage
from context_pred.evaluate.detection.mining import SvmOptions
from context_pred.evaluate.detection.rcnn import Settings, pooled
from context_pred.evaluate.detection.windows import WindowExamples
from context_pred.evaluate.job import Job
from context_pred.ranks import Ranks
from context_pred.training import keys

Marked = Any
VARIANT = "voc07-rcnn"
SMALL = {
    "size": 163, "width": 16, "channels": 8, "images": 2, "windows": 8, "steps": 2, "start_images": 2,
    "start_windows": 8, "search": "single", "search_width": 80, "smallest_box": 8, "proposals": 12,
}  # fmt: skip


def job_of(marked: Marked, out: Path, **settings: Any) -> Job:
    source = sources.find("random:contextnet")
    return Job(source, read(marked.own()), out, (), Settings(**settings), 0, 1, "cpu", progress=False, variant=VARIANT)


def test_everything_is_as_published(marked: Marked, tmp_path: Path) -> None:
    job = job_of(marked, tmp_path)
    settings = job.settings
    model = rcnn.built(job, 20)
    with torch.no_grad():
        x = model.pool5(model.eval().tower(torch.zeros(1, 3, 227, 227)))
        assert x.shape == (1, 256, 7, 7)
        x = model.conv6(x)
        assert x.shape == (1, 4096, 5, 5)
        x = model.conv6b(x)
        assert x.shape == (1, 1024, 5, 5)
        assert model.pool6(x).shape == (1, 1024, 2, 2)
        assert model(torch.zeros(1, 3, 227, 227)).shape == (1, 21)
    assert (model.fc7.in_features, model.fc7.out_features) == (4096, 4096)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in model.modules())
    assert torch.equal(model.tower.conv1.weight, job.source.model.backbone.conv1.weight)
    norm: Any = job.source.model.backbone.bn6
    torch.testing.assert_close(model.conv6.weight, job.source.model.backbone.fc6.weight / (1 + norm.eps) ** 0.5)
    examples = WindowExamples(job.data.train, [np.zeros((1, 4), np.float32)] * 2, 8)
    work = rcnn.work_of(job, model, examples)
    assert work.images == 16
    rates = work.rates(1)
    assert rates.steps == 70_000
    steps = (0, 19_999, 20_000, 40_000, 60_000)
    assert [rates.rate(step) for step in steps] == pytest.approx([1e-3, 1e-3, 1e-4, 1e-5, 1e-6])
    groups = {
        (group["multiplier"], group["weight_decay"], group["momentum"], len(group["params"]))
        for group in work.optimizer(model).param_groups
    }
    assert groups == {(1.0, 5e-4, 0.9, 8), (2.0, 0.0, 0.9, 8), (10.0, 5e-4, 0.9, 1), (20.0, 0.0, 0.9, 1)}
    assert (settings.windows, settings.foreground, settings.foreground_overlap) == (128, 0.25, 0.5)
    assert (settings.size, settings.padding, settings.nms) == (227, 16, 0.3)
    assert (settings.cost, settings.positive_weight, settings.bias_scale) == (0.001, 2.0, 10.0)
    assert (settings.negative_overlap, settings.hard, settings.easy, settings.retrain) == (0.3, -1.0001, -1.2, 2000)
    assert settings.norm == 20
    assert settings_of(VARIANT) is Settings
    assert defaults(VARIANT, {"steps": "700"}) == {"milestones": (200, 400, 600)}


def test_the_map_before_fc7() -> None:
    assert pooled(227) == 2
    assert pooled(163) == 1
    assert pooled(rcnn._smallest()) == 1
    assert pooled(rcnn._smallest() - 1) == 0


def test_enlarged_boxes_are_rcnns() -> None:
    # rcnn_im_crop.m by hand, x: box 11 … 60 from 1 (50 px): half 25, centre 36, 25 · 227 / 195 = 29.103; 7 … 65.
    found = windows.enlarged(torch.tensor([[10.0, 10, 59, 59]]), 227, 16)
    assert found.tolist() == [[6, 6, 65, 65]]


def test_a_warp_is_the_resized_crop_and_outside_is_the_mean() -> None:
    image = TF.gaussian_blur(torch.randn(3, 90, 120, generator=torch.Generator().manual_seed(0)), [9, 9])
    box = torch.tensor([[30.0, 20, 79, 69]])
    edges = windows.enlarged(box, 64, 8).int()[0].tolist()
    assert min(edges) >= 0
    crop = image[:, edges[1] : edges[3], edges[0] : edges[2]]
    expected = TF.resize(crop, [64, 64], antialias=False)
    found = windows.warped(image, box, 64, 8)[0]
    torch.testing.assert_close(found[:, 2:-2, 2:-2], expected[:, 2:-2, 2:-2], atol=1e-4, rtol=1e-4)
    flipped = windows.warped(image, box, 64, 8, torch.tensor([True]))[0]
    torch.testing.assert_close(flipped, found.flip(-1), atol=1e-4, rtol=1e-4)
    corner = windows.warped(torch.ones(3, 90, 120), torch.tensor([[0.0, 0, 49, 49]]), 64, 8)[0]
    assert corner[:, :8].abs().max() == 0
    assert corner[:, :, :8].abs().max() == 0
    assert corner[:, 9:, 9:].min() > 1 - 1e-5


def test_windows_are_a_quarter_objects(marked: Marked) -> None:
    data = read(marked.own())
    image = data.train[0]
    away = np.array([[0, 0, 5, 5]], np.float32)
    examples = WindowExamples(data.train, [np.concatenate([image.boxes, away])] * 2, 40)
    one = examples.example(0, keys.generator(0))
    assert one.labels.shape == (40,)
    assert (one.labels[:10] > 0).all()
    assert (one.labels[10:] == 0).all()
    assert torch.equal(one.boxes[10:], torch.from_numpy(away).expand(30, 4))
    by_box = {tuple(box): int(label) + 1 for box, label in zip(image.boxes.tolist(), image.labels, strict=True)}
    assert [by_box[tuple(box)] for box in one.boxes[:10].tolist()] == one.labels[:10].tolist()
    assert 0 < int(one.flip.sum()) < 40
    nothing = image.chosen(np.zeros(len(image), bool))
    only_background = dataclasses.replace(examples, images=(nothing,)).example(0, keys.generator(0))
    assert only_background.labels.tolist() == [0] * 40


def test_channels_are_rescaled_on_windows(marked: Marked, tmp_path: Path) -> None:
    job = job_of(marked, tmp_path, equalize=False, **SMALL | {"start_windows": 4})
    model = rcnn.built(job, 3)
    boxes = [np.concatenate([image.boxes, [[0, 0, 20, 20]]]).astype(np.float32) for image in job.data.train]
    examples = WindowExamples(job.data.train, boxes, 4)
    assert rcnn.start(job, model, examples) == {"rescaled": True, "rates equal to within": None}
    objective = rcnn.Objective(job.preprocessing, torch.device("cpu"), job.settings)
    sampled = WindowExamples(job.data.train, boxes, 4, flip=0.0)
    order = torch.randperm(2, generator=keys.generator(0, 5)).tolist()
    batch = [sampled.example(k, keys.generator(keys.seed(0, 6), 0, k)) for k in order]
    model.eval()
    for layer in (model.tower.conv1, model.tower.conv4, model.conv6, model.fc7):
        mean, std = rescaling.moments(layer, lambda cuts: model.features(objective.windows(cuts)), [batch])
        assert mean.abs().max() < 1e-3
        assert (std - 1).abs().max() < 1e-2
    rates = rescaling.rates(model, model.layers, lambda cuts: model.features(objective.windows(cuts)), [batch], 0)
    assert rates[0] > 100 * rates[1:].max()  # why layers are made to learn at one rate, too
    equal = dataclasses.replace(job, settings=dataclasses.replace(job.settings, equalize=True))
    left = rcnn.start(equal, model, examples)["rates equal to within"]
    assert left < 0.05
    seed = keys.seed(0, 8)  # the gradient of another random direction is another, of so few windows
    rates = rescaling.rates(model, model.layers, lambda cuts: model.features(objective.windows(cuts)), [batch], seed)
    assert rates.max() / rates.min() < 1.2


def images_with(count: int) -> list[BoxedImage]:
    """Each 100 px wide with one object, of class 0 or 1, at x 0 … 9."""
    box = np.array([[0, 0, 9, 9]], np.float32)
    return [
        BoxedImage(
            Path(f"{k}.jpg"), (100, 10), box, np.array([k % 2]), np.zeros(1, bool), np.zeros(1, bool), np.full(1, 81.0),
            number=k,
        )
        for k in range(count)
    ]  # fmt: skip


def boxes_of(count: int) -> list[Any]:
    row = np.array([[x, 0, x + 9, 9] for x in range(0, 91, 3)], np.float32)
    return [row] * count


class Toy:
    """Features that tell where a window lies and what its image shows, with noise of the image's own."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, image: BoxedImage, boxes: Any) -> Any:
        self.calls += 1
        noise = np.random.default_rng(image.number).normal(size=(len(boxes), 6)) * 0.3
        near = np.exp(-boxes[:, :1] / 8)
        shows = np.array([[1.0, 0.0], [0.0, 1.0]])[image.number % 2]
        known = np.concatenate([3 * near * shows, near, boxes[:, :1] / 100], 1)
        return np.concatenate([known, noise], 1).astype(np.float32)


def detectors(folder: Path, toy: Any, count: int = 12, **options: Any) -> mining.Detectors:
    return mining.train_detectors(
        images_with(count), boxes_of(count), 3, toy, SvmOptions(**{"at_once": 3, "retrain": 20} | options), kept=folder,
        ranks=Ranks(),
    )  # fmt: skip


def test_hard_negatives_stand_for_all_negatives(tmp_path: Path) -> None:
    found = detectors(tmp_path, Toy(), easy=-1e9, hard=-1e9, cost=0.1)
    toy, images, boxes = Toy(), images_with(12), boxes_of(12)
    positives = np.concatenate([toy(image, image.boxes) for image in images if image.number % 2 == 0])
    scale = _scale(images, boxes)
    away = [
        toy(image, one)[one[:, 0] >= 6] if image.number % 2 == 0 else toy(image, one)
        for image, one in zip(images, boxes, strict=True)
    ]
    assert found.negatives[0] == sum(map(len, away))
    rows = np.concatenate([positives, *away]) * scale
    labels = np.repeat([1, -1], [len(positives), sum(map(len, away))])
    options: dict[str, Any] = {"intercept_scaling": 10, "class_weight": {1: 2, -1: 1}, "tol": 1e-6, "max_iter": 10**6}
    svm = LinearSVC(C=0.1, loss="hinge", dual=True, **options)
    expected = svm.fit(rows, labels).decision_function(rows)
    scores = found.scores(rows / np.float32(scale))[:, 0]
    assert np.corrcoef(expected, scores)[0, 1] > 0.98  # liblinear stops at a tolerance of .1


def _scale(images: list[BoxedImage], boxes: list[Any]) -> float:
    norms = [np.linalg.norm(Toy()(image, one), axis=1) for image, one in zip(images, boxes, strict=True)]
    return 20 / float(np.mean(np.concatenate(norms)))


def test_features_are_scaled_to_a_mean_norm_of_20(tmp_path: Path) -> None:
    count = 6
    positives, scale = mining._positives(
        images_with(count), boxes_of(count), 2, Toy(), SvmOptions(), tmp_path, Ranks(), 0, False
    )
    norms = [
        # the noise of a row depends on how many rows there are with it, so the measured windows come with their object
        np.linalg.norm(Toy()(image, np.concatenate([image.boxes, one]))[1:], axis=1) for image, one in
        zip(images_with(count), boxes_of(count), strict=True)
    ]  # fmt: skip
    assert scale * np.mean(np.concatenate(norms)) == pytest.approx(20, rel=0.05)
    assert [len(rows) for rows in positives] == [3, 3]


def test_easy_negatives_are_forgotten_and_a_class_without_objects_has_no_svm(tmp_path: Path) -> None:
    everything = detectors(tmp_path / "all", Toy(), easy=-1e9, hard=-1e9)
    few = detectors(tmp_path / "few", Toy())
    assert 0 < few.negatives[0] < everything.negatives[0]
    assert few.positives == (6, 6, 0)
    assert few.negatives[2] == 0
    assert np.isnan(few.weights[2]).all()
    assert np.isfinite(few.weights[:2]).all()


def test_the_svms_tell_the_classes_and_the_places_apart(tmp_path: Path) -> None:
    found = detectors(tmp_path, Toy(), count=24, cost=0.1)
    image, boxes = images_with(24)[0], boxes_of(1)[0]
    scores = found.scores(Toy()(image, boxes))
    assert scores[:, 0].argmax() <= 1
    assert scores[0, 0] > scores[0, 1]


def test_an_interrupted_pass_goes_on(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(mining, "KEEP_EVERY", 0.0)
    straight = detectors(tmp_path / "straight", Toy())

    class Breaks(Toy):
        def __call__(self, image: BoxedImage, boxes: Any) -> Any:
            if self.calls == 12 + 5:  # 12 images' objects, then the pass
                raise KeyboardInterrupt
            return super().__call__(image, boxes)

    with pytest.raises(KeyboardInterrupt):
        detectors(tmp_path / "broken", Breaks())
    toy = Toy()
    resumed = detectors(tmp_path / "broken", toy)
    assert toy.calls == 12 - 4
    np.testing.assert_array_equal(straight.weights, resumed.weights)
    np.testing.assert_array_equal(straight.biases, resumed.biases)
    toy = Toy()
    again = detectors(tmp_path / "broken", toy)
    assert toy.calls == 0
    np.testing.assert_array_equal(again.weights, resumed.weights)


def test_detections_are_the_best_of_each_class_thinned() -> None:
    boxes = torch.tensor([[0.0, 0, 9, 9], [1, 0, 10, 9], [50, 0, 59, 9]])
    scores = torch.tensor([[0.5, float("nan")], [0.9, float("nan")], [-2.0, float("nan")]])
    found = rcnn.detections_of(boxes, scores, Settings())
    assert found.scores.tolist() == pytest.approx([0.9, -2.0])
    assert found.labels.tolist() == [0, 0]
    np.testing.assert_array_equal(found.boxes, boxes[[1, 2]])
    both = scores.nan_to_num(0.1)
    assert len(rcnn.detections_of(boxes, both, Settings(detections=1)).scores) == 2
    assert len(rcnn.detections_of(boxes[:0], both[:0], Settings()).scores) == 0


@pytest.fixture
def in_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trained, "usual_workers", lambda device: 0)


def call(data: Path, out: Path, *more: object, settings: dict[str, Any] = SMALL) -> Any:
    options = [part for key, value in settings.items() for part in ("--set", f"{key}={value}")]
    arguments = ["evaluate", "detection", "--variant", VARIANT, "--model", "random:contextnet", "--data", data]
    arguments += ["--out", out, "--no-progress", "--device", "cpu", "--workers", 1, *options, *more]
    return CliRunner().invoke(main, [str(a) for a in arguments], prog_name="context-pred")


@pytest.mark.usefixtures("in_process")
def test_from_command_to_table_and_on_after_an_interruption(marked: Marked, tmp_path: Path, monkeypatch: Any) -> None:
    out, data = tmp_path / "out", marked.voc(years=("2007",))

    def stopped(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(mining, "_mine", stopped)
        assert call(data, out).exit_code != 0
    monkeypatch.setattr(rcnn, "start", lambda *_: pytest.fail("the start was kept"))
    monkeypatch.setattr(rcnn.Objective, "__call__", lambda *_: pytest.fail("the fine-tuning was kept"))
    outcome = call(data, out)
    assert outcome.exit_code == 0, outcome.output
    record = json.loads((out / "result.json").read_text())
    metrics = {(m["metric"], m["at"].get("class")) for m in record["measured"]}
    assert metrics == {("mAP", None), ("mAP (area)", None), ("AP", "cat"), ("AP", "dog")}
    assert "46.30" in outcome.stdout
    assert "45.70" in outcome.stdout
    assert "Start: channels rescaled; rates of all layers equal to within" in outcome.stdout
    assert "windows warped to 163 × 163 px" in record["ran_on"]["images"]
    assert record["details"]["positives"]["cat"] == 3
    assert (out / "plot.png").is_file()
    assert json.loads((out / "seed-0" / "detections.json").read_text())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"windows": 7}, "multiple of images, 2"),
        ({"size": 100}, f"{rcnn._smallest()} px or more"),
        ({"cost": 0}, "cost = 0"),
        ({"negative_overlap": 0}, "negative_overlap"),
        ({"hard": -2}, "easy at most hard"),
        ({"foreground": 1.5}, "share from 0 to 1"),
        ({"output_rate": 0}, "output_rate"),
        ({"window": 8}, "windows"),
    ],
)
def test_bad_settings_are_refused(marked: Marked, tmp_path: Path, settings: dict[str, Any], message: str) -> None:
    outcome = call(marked.own(), tmp_path / "out", settings=SMALL | settings)
    assert outcome.exit_code != 0
    assert message in outcome.output


def test_no_object_at_all_is_refused(marked: Marked, tmp_path: Path) -> None:
    job = job_of(marked, tmp_path)
    empty = tuple(image.chosen(np.zeros(len(image), bool)) for image in job.data.train)
    with pytest.raises(InvalidInputError, match="nothing to learn"):
        rcnn.run(dataclasses.replace(job, data=dataclasses.replace(job.data, train=empty)))


def test_published_values_by_class_average_to_the_published_mean() -> None:
    for variant, sources_of in (("voc07-fast-rcnn", 1), (VARIANT, 2)):
        figures = published.figures("detection", variant)
        by_source: dict[str, list[float]] = {}
        for figure in figures:
            if figure.metric == "AP":
                by_source.setdefault(figure.source, []).append(figure.value)
        assert len(by_source) == sources_of
        for source, values in by_source.items():
            mean = next(f.value for f in figures if f.metric == "mAP" and f.source == source)
            assert len(values) == 20
            assert np.mean(values) == pytest.approx(mean, abs=6e-4)
