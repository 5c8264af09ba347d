"""Fast R-CNN on the paper's tower: every setting on what is built, regions and targets, and from command to table."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from processes import in_ranks
from torch import nn

from context_pred.cli import main
from context_pred.data.transforms import EvalTransform
from context_pred.errors import InvalidInputError
from context_pred.evaluate import run as run_protocol
from context_pred.evaluate import sources, trained
from context_pred.evaluate.detection import defaults, fast_rcnn, read, regions, settings_of
from context_pred.evaluate.detection.fast_rcnn import FastRCNN, Objective, Settings
from context_pred.evaluate.detection.regions import Examples, Loaded
from context_pred.evaluate.job import Job
from context_pred.training import keys
from context_pred.training.loop import StopRequest

Marked = Any
VARIANT = "voc07-fast-rcnn"
SMALL = {
    "short_side": 64, "long_side": 96, "width": 16, "steps": 4, "rois": 16, "start_images": 2, "start_samples": 60,
    "search": "single", "search_width": 80, "smallest_box": 8, "score": 0.0,
}  # fmt: skip


def job_of(marked: Marked, out: Path, model: str = "random:contextnet", **settings: Any) -> Job:
    source = sources.find(model)
    return Job(source, read(marked.own()), out, (), Settings(**settings), 0, 1, "cpu", progress=False, variant=VARIANT)


def test_everything_is_as_published(marked: Marked, tmp_path: Path) -> None:
    job = job_of(marked, tmp_path)
    settings = job.settings
    model = fast_rcnn.built(job, 20)
    assert [(layer.in_features, layer.out_features) for layer in (model.fc6, model.fc7, model.score, model.shift)] == [
        (256 * 36, 4096), (4096, 4096), (4096, 21), (4096, 84)
    ]  # fmt: skip
    assert model.pool == 6
    assert model.tower.stride == 16
    assert model.tower.pool.padding == 1
    assert model.dropout.p == 0.5
    assert abs(float(model.score.weight.detach().std()) - 0.01) < 1e-3
    assert abs(float(model.shift.weight.detach().std()) - 0.001) < 1e-4
    assert [name for name, p in model.named_parameters() if not p.requires_grad] == [
        "tower.conv1.weight", "tower.conv1.bias"
    ]  # fmt: skip
    assert not any(isinstance(module, nn.BatchNorm2d) for module in model.modules())
    proposals = [np.zeros((1, 4), np.float32)] * 2
    work = fast_rcnn.work_of(job, model, Examples(job.data.train, proposals, settings, training=True))
    assert work.images == 2
    rates = work.rates(7)
    assert rates.steps == 40_000
    assert [rates.rate(step) for step in (0, 29_999, 30_000, 39_999)] == pytest.approx([1e-3, 1e-3, 1e-4, 1e-4])
    optimizer = work.optimizer(model)
    groups = {
        (group["multiplier"], group["weight_decay"], group["momentum"], len(group["params"]))
        for group in optimizer.param_groups
    }
    assert groups == {(1.0, 5e-4, 0.9, 8), (2.0, 0.0, 0.9, 8)}
    assert isinstance(optimizer, torch.optim.SGD)
    assert (settings.rois, settings.foreground, settings.foreground_overlap, settings.flip) == (128, 0.25, 0.5, 0.5)
    assert (settings.background_overlap, settings.box_std) == ((0.1, 0.5), (0.1, 0.1, 0.2, 0.2))
    assert (settings.short_side, settings.long_side, settings.nms, settings.score) == (600, 1000, 0.3, 0.05)
    assert settings_of(VARIANT) is Settings
    assert defaults(VARIANT, {"steps": "400"}) == {"milestones": (300,)}


def test_preprocessing_of_the_tower_is_its_mean_pixel_alone() -> None:
    transform = sources.find("random:contextnet").model.transform
    assert len(set(transform.std)) == 1
    assert transform.std[0] == pytest.approx(1 / 255)


def test_rois_are_drawn_by_their_overlap() -> None:
    objects = np.array([[0, 0, 99, 99], [200, 200, 299, 299]], np.float32)
    shifts = np.arange(0, 100, dtype=np.float32)
    boxes = np.stack([shifts, 0 * shifts, shifts + 99, 0 * shifts + 99], 1)
    boxes = np.concatenate([boxes, boxes + 200, boxes + 1000])
    settings = Settings()
    chosen, labels, matched = regions.drawn(
        boxes, objects, np.array([4, 7]), settings, torch.Generator().manual_seed(0)
    )
    table = regions.overlaps(boxes[chosen], objects)
    best = table.max(1)
    assert len(chosen) == 64
    assert (labels[:16] > 0).all()
    assert (labels[16:] == 0).all()
    assert (best[:16] >= 0.5).all()
    assert ((best[16:] >= 0.1) & (best[16:] < 0.5)).all()
    assert set(labels[:16].tolist()) == {5, 8}
    assert ((labels[:16] == 5).numpy() == (chosen[:16] < 100)).all()
    assert (table[np.arange(16), matched[:16]] == best[:16]).all()
    assert len(set(chosen.tolist())) == 64


def test_an_image_without_objects_gives_background_alone(marked: Marked) -> None:
    marked.own()
    marked.annotated("blood", "b", [])
    data = read(marked.root / "blood")
    assert len(data.train[1]) == 0
    proposals = np.array([[0, 0, 9, 9], [5, 5, 30, 20]], np.float32)
    one = Examples(data.train, [proposals] * 2, Settings(**SMALL), training=True).example(
        1, torch.Generator().manual_seed(0)
    )
    assert (len(one.rois), one.labels.tolist(), one.targets.tolist()) == (2, [0, 0], [[0.0] * 4] * 2)


def test_targets_are_shifts_in_sides_of_the_roi_divided_by_the_std() -> None:
    rois = np.array([[10, 20, 29, 59], [3, 0, 14, 9]], np.float32)  # 20 × 40, 12 × 10
    objects = np.array([[14, 24, 53, 43], [0, 0, 9, 9]], np.float32)  # 40 × 20
    found = regions.targets(rois, objects, torch.tensor([3, 0]), Settings())
    dx, dy = (34 - 20) / 20, (34 - 40) / 40
    expected = [dx / 0.1, dy / 0.1, np.log(2) / 0.2, np.log(0.5) / 0.2]
    torch.testing.assert_close(found[0], torch.tensor(expected, dtype=torch.float32))
    assert found[1].tolist() == [0, 0, 0, 0]


def test_mirrored_boxes_lie_on_the_mirrored_pixels() -> None:
    pixels = torch.zeros(1, 6, 10)
    pixels[0, 2:4, 1:5] = 1
    box = np.array([[1, 2, 4, 3]], np.float32)
    x1, y1, x2, y2 = regions.mirrored(box, pixels)[0].astype(int)
    other = pixels.flip(-1)
    assert other[0, y1 : y2 + 1, x1 : x2 + 1].sum() == other.sum() == 8


@pytest.mark.parametrize(("size", "expected"), [((500, 375), 1.6), ((1000, 300), 1.0), ((300, 1000), 1.0)])
def test_short_side_600_long_side_1000(size: tuple[int, int], expected: float) -> None:
    assert regions.scale_of(torch.zeros(3, size[1], size[0]), Settings()) == pytest.approx(expected)


def test_example_keeps_rois_on_what_they_show(marked: Marked) -> None:
    data = read(marked.own())
    settings = dataclasses.replace(Settings(), short_side=64, long_side=96, rois=8, foreground=1.0, flip=1.0)
    examples = Examples(data.train, [image.boxes for image in data.train], settings, training=True)
    one = examples.example(0, keys.generator(0))
    assert one.pixels.dtype == torch.uint8
    assert min(one.pixels.shape[1:]) == 64
    width = one.pixels.shape[2] / one.scale
    expected = {(round(width - 1 - x2), round(y1)) for _, y1, x2, _ in data.train[0].boxes.tolist()}
    assert {(round(x / one.scale), round(y / one.scale)) for x, y, *_ in one.rois.tolist()} == expected
    assert (one.labels > 0).all()
    assert one.targets.abs().max() < 1e-3  # each is an object itself
    again = examples.example(0, keys.generator(0))
    assert torch.equal(one.rois, again.rois)


def test_loss_is_softmax_over_all_and_smooth_l1_of_the_right_class_over_the_foreground() -> None:
    class Fixed(nn.Module):
        def forward(self, images: torch.Tensor, rois: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            scores = torch.tensor([[0.0, 2.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 0.0], [0.0, 0.0, 3.0]])
            shifts = torch.zeros(4, 3, 4)
            shifts[0, 1] = torch.tensor([0.5, 0.0, 0.0, 3.0])
            shifts[0, 2] = 99
            shifts[1] = 99
            return scores, shifts

    pixels = torch.zeros(3, 32, 32, dtype=torch.uint8)
    labels, rois = torch.tensor([1, 0]), torch.zeros(2, 4)
    batch = [
        Loaded(pixels, rois, labels, torch.zeros(2, 4), 1.0),
        Loaded(pixels, rois, labels * 0, torch.zeros(2, 4), 1.0),
    ]
    objective = Objective(EvalTransform(), torch.device("cpu"))
    loss, hits, asked = objective(Fixed(), batch, torch.Generator())
    e = np.exp
    softmax = [np.log(e(2) + 2) - 2, np.log(e(1) + 2) - 1, np.log(3), np.log(e(3) + 2)]
    expected = sum(softmax) / 4 + (0.5 * 0.5**2 + 2.5) / 4
    assert float(loss) == pytest.approx(expected, rel=1e-5)
    assert (int(hits), asked) == (3, 4)


def test_images_are_padded_with_the_mean_and_rois_know_their_image() -> None:
    transform = EvalTransform()
    one = Loaded(
        torch.full((3, 32, 40), 255, dtype=torch.uint8), torch.ones(2, 4), torch.zeros(2), torch.zeros(2, 4), 1.0
    )
    two = dataclasses.replace(one, pixels=one.pixels[:, :20, : 50 - 10], rois=torch.ones(1, 4))
    images, rois = regions.packed([one, two], transform, torch.device("cpu"))
    assert images.shape == (2, 3, 32, 40)
    assert images[1, :, 20:].abs().max() == 0
    assert rois[:, 0].tolist() == [0, 0, 1]
    torch.testing.assert_close(images[0], transform.normalize(one.pixels))


class Answers(nn.Module):
    """Says what it is told of each RoI."""

    def __init__(self, scores: torch.Tensor, shifts: torch.Tensor) -> None:
        super().__init__()
        self.scores, self.shifts = scores, shifts

    def forward(self, images: torch.Tensor, rois: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return self.scores, self.shifts


def test_detections_are_moved_clipped_thinned_and_thresholded() -> None:
    rois = torch.tensor([[0.0, 0, 39, 39], [2, 0, 41, 39], [100, 100, 139, 139], [180, 180, 199, 199]])
    scores = torch.tensor([[0.1, 0.8, 0.1], [0.2, 0.7, 0.1], [0.06, 0.04, 0.9], [0.5, 0.45, 0.05]]).log()
    shifts = torch.zeros(4, 3, 4)
    shifts[2, 2] = torch.tensor([1.0, 0, 0, 0])  # a tenth of its width to the right
    shifts[3, 1] = torch.tensor([5.0, 0, 0, 0])  # out of the image by half
    one = Loaded(torch.zeros(3, 100, 100, dtype=torch.uint8), rois / 2, torch.zeros(0), torch.zeros(0, 4), 0.5)
    settings = Settings()
    (found,) = fast_rcnn.detect(
        Answers(scores, shifts), [one], EvalTransform(), [(200, 200)], settings, torch.device("cpu")
    )
    by_score = sorted(zip(found.scores.tolist(), found.labels.tolist(), found.boxes.round().tolist(), strict=True))[
        ::-1
    ]
    assert [(round(score, 2), label) for score, label, _ in by_score] == [
        (0.9, 1), (0.8, 0), (0.45, 0), (0.1, 1), (0.1, 1)
    ][: len(by_score)]  # fmt: skip
    assert by_score[0][2] == [104, 100, 143, 139]
    assert by_score[1][2] == [0, 0, 39, 39]  # its neighbour at .7 is gone
    assert by_score[2][2] == [190, 180, 199, 199]


def test_start_is_kmeans_of_what_is_new(marked: Marked, tmp_path: Path) -> None:
    job = job_of(marked, tmp_path, **SMALL)
    model = fast_rcnn.built(job, 3)
    assert len(fast_rcnn.new_layers(job, model)) == 7  # random weights: row K-means-rescale
    own = dataclasses.replace(job, source=dataclasses.replace(job.source, kind="network"))
    assert fast_rcnn.new_layers(own, model) == [model.fc6, model.fc7]
    boxes = [np.concatenate([image.boxes] * 30) for image in job.data.train]
    before = model.tower.conv3.weight.clone()
    found = fast_rcnn.start(own, model, Examples(job.data.train, boxes, job.settings, training=True))
    assert found["k-means"] == ["fc6", "fc7"]
    assert found["gaussian for want of patches"] == []
    assert found["rates equal to within"] < 0.1
    change = model.tower.conv3.weight / before
    torch.testing.assert_close(change, change.flatten()[0].expand_as(change))  # conv3 is only scaled


@pytest.fixture
def in_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trained, "usual_workers", lambda device: 0)


def call(data: Path, out: Path, *more: object, settings: dict[str, Any] = SMALL) -> Any:
    options = [part for key, value in settings.items() for part in ("--set", f"{key}={value}")]
    arguments = ["evaluate", "detection", "--variant", VARIANT, "--model", "random:contextnet", "--data", data]
    arguments += ["--out", out, "--no-progress", "--device", "cpu", "--workers", 1, *options, *more]
    return CliRunner().invoke(main, [str(a) for a in arguments], prog_name="context-pred")


@pytest.mark.usefixtures("in_process")
def test_from_command_to_table(marked: Marked, tmp_path: Path) -> None:
    out = tmp_path / "out"
    outcome = call(marked.voc(), out)
    assert outcome.exit_code == 0, outcome.output
    record = json.loads((out / "result.json").read_text())
    metrics = {(m["metric"], m["at"].get("class")) for m in record["measured"]}
    assert metrics == {("mAP", None), ("mAP (area)", None), ("AP", "cat"), ("AP", "dog")}
    assert "51.10" in outcome.stdout
    assert "45.60: K-means" in outcome.stdout
    assert "Of these VOC2007 alone was used: 4 images to learn from, 3 to test with." in outcome.stdout
    assert {name: record["ran_on"]["data"][name] for name in ("kind", "train", "test")} == {
        "kind": "voc2007", "train": 4, "test": 3
    }  # fmt: skip
    assert "VOC2007 has 5,011 and 4,952 images, and these are 4 and 3" in outcome.stdout
    assert "short_side = 64" in outcome.stdout
    assert "No weights of the paper's tower come with this library" in outcome.stdout
    assert "shorter side 64 px" in record["ran_on"]["images"]
    assert "Start: k-means of conv1, conv2, conv3, conv4, conv5, fc6, fc7;" in outcome.stdout
    assert (out / "plot.png").is_file()


@pytest.mark.usefixtures("in_process")
def test_stopped_and_called_again_it_ends_the_same(marked: Marked, tmp_path: Path, monkeypatch: Any) -> None:
    data = marked.own()
    straight = call(data, tmp_path / "straight")
    assert straight.exit_code == 0, straight.output
    calls = iter([False, True])
    with monkeypatch.context() as patched:
        patched.setattr(StopRequest, "asked", lambda self: next(calls))
        stopped = call(data, tmp_path / "stopped")
    assert "Stopped at step 2 of 4" in stopped.output
    monkeypatch.setattr(fast_rcnn, "start", lambda *_: pytest.fail("the start was kept"))
    resumed = call(data, tmp_path / "stopped")
    assert resumed.exit_code == 0, resumed.output
    table = [(tmp_path / name / "result.md").read_text().split("Published:")[0] for name in ("straight", "stopped")]
    assert table[0] == table[1]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rois": 15}, "multiple of images, 2"),
        ({"background_overlap": "0.5,0.1"}, "background_overlap"),
        ({"background_overlap": "0.1,0.6"}, "at most foreground_overlap"),
        ({"short_side": 16}, "32 px"),
        ({"score": 2}, "share from 0 to 1"),
        ({"steps": 0}, "1 or more"),
        ({"frozen": 6}, "0 … 5"),
        ({"learning_rate": 0}, "learning_rate"),
        ({"proposals_train": "nowhere.mat"}, "nowhere.mat are missing"),
        ({"shortside": 600}, "short_side"),
    ],
)
def test_bad_settings_are_refused(marked: Marked, tmp_path: Path, settings: dict[str, Any], message: str) -> None:
    outcome = call(marked.own(), tmp_path / "out", settings=SMALL | settings)
    assert outcome.exit_code != 0
    assert message in outcome.output


def test_other_backbones_and_layouts_are_refused(marked: Marked, tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match="accepted: contextnet, contextnet-paper"):
        run_protocol("detection", "random:resnet18", marked.own(), out=tmp_path / "a", variant=VARIANT, device="cpu")
    with pytest.raises(InvalidInputError, match="in COCO's"):
        run_protocol("detection", "random:contextnet", marked.coco(), out=tmp_path / "b", variant=VARIANT, device="cpu")
    folder = marked.voc(years=("2007",), test=False)
    with pytest.raises(InvalidInputError, match=r"VOCtest_06-Nov-2007\.tar"):
        run_protocol("detection", "random:contextnet", folder, out=tmp_path / "c", variant=VARIANT, device="cpu")


@pytest.mark.slow
@pytest.mark.parametrize("variant", [VARIANT, "voc07-rcnn"])
def test_two_ranks_come_to_one_table(marked: Marked, tmp_path: Path, variant: str) -> None:
    own = SMALL if variant == VARIANT else {
        "size": 163, "width": 16, "channels": 8, "images": 2, "windows": 8, "steps": 2, "start_images": 2,
        "search": "single", "search_width": 80, "smallest_box": 8, "proposals": 10,
    }  # fmt: skip
    options = [part for key, value in own.items() for part in ("--set", f"{key}={value}")]
    arguments = ["evaluate", "detection", "--variant", variant, "--model", "random:contextnet", "--data", marked.own()]
    arguments += ["--out", tmp_path / "out", "--no-progress", "--device", "cpu", "--workers", 1, *options]
    outcomes = in_ranks(arguments)
    assert [process.code for process in outcomes] == [0, 0], outcomes
    record = json.loads((tmp_path / "out" / "result.json").read_text())
    assert record["ran_on"]["processes"] == 2
    assert {m["metric"] for m in record["measured"]} == {"mAP", "mAP (area)", "AP"}


def test_model_runs_without_any_roi() -> None:
    settings = Settings(**SMALL)
    from context_pred.backbones import ContextNetBackbone
    from context_pred.evaluate.detection.tower import Tower

    model = FastRCNN(Tower(ContextNetBackbone()), 2, settings)
    pixels = torch.zeros(3, 64, 64, dtype=torch.uint8)
    nothing = Loaded(pixels, torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64), torch.zeros(0, 4), 1.0)
    loss, hits, asked = Objective(EvalTransform(), torch.device("cpu"))(model, [nothing], torch.Generator())
    assert (float(loss.detach()), int(hits), asked) == (0.0, 0, 0)
