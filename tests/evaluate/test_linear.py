"""Linear classifiers on frozen layers: the settings as built, the figures, resuming, ranks, stored features."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import growth
import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image
from processes import in_ranks
from torch.nn import functional as F
from torchvision.transforms.v2.functional import center_crop, pil_to_tensor

from context_pred.cli import main
from context_pred.errors import ImageError, InvalidInputError, StoppedError, StorageError, TrainingDivergedError
from context_pred.evaluate import Result, feature_batches, labelled, linear, settings, sources
from context_pred.evaluate import run as run_protocol
from context_pred.evaluate.augment import TestImages
from context_pred.evaluate.feature_batches import FeatureRows
from context_pred.evaluate.heads import Frozen, Heads, SumOfLosses, accuracies, ahead
from context_pred.evaluate.job import Job
from context_pred.ranks import Ranks
from context_pred.training import checkpoints
from context_pred.training.loop import StopRequest
from context_pred.training.order import Order

Mini = Any
SMALL: dict[str, Any] = {"size": 32, "epochs": 2, "batch": 4, "evaluate_every": 1}
COMMAND = ["--no-progress", "--device", "cpu", "--workers", 1] + [
    word for key, value in SMALL.items() for word in ("--set", f"{key}={value}")
]
LAYERS = [f"feature{k}" for k in range(1, 6)]
STILL = {"crop": "window", "resize": 32, "flip": 0.0, "jitter": (0.0, 0.0, 0.0, 0.0), "lighting": 0.0}
"""Training images are the test's: nothing is drawn."""


def call(data: Path, out: Path, *more: object) -> Any:
    arguments = ["evaluate", "linear", "--data", data, "--out", out, *COMMAND, *more]
    return CliRunner().invoke(main, [str(a) for a in arguments], prog_name="context-pred")


def run(model: Any, data: Any, out: Path, given: dict[str, Any] | None = None, **more: Any) -> Result:
    options = {"device": "cpu", "workers": 1, "progress": False} | more
    return run_protocol("linear", model, data, out=out, settings=SMALL | (given or {}), **options)


def of_row(variant: str = "imagenet", **given: Any) -> linear.Settings:
    found: linear.Settings = settings.part("linear", linear.Settings, {**linear.defaults(variant, given), **given})
    return found


def job_of(source: sources.Source, out: Path, options: linear.Settings, data: Any = None) -> Job:
    layers = source.layers[-1:] if options.pool == "gap" else source.layers
    return Job(source, data, out, layers, options, 0, workers=1, device="cpu", progress=False)


# The settings ------------------------------------------------------------------------------------------------------

COMMON = {
    "version": "0.x", "augment": "auto", "factor": 0.1, "batch": 256, "per_device": 0, "momentum": 0.9,
    "init_std": 0.01, "norm_momentum": 0.1, "size": 224, "resize": 0, "resampling": "pillow", "flip": 0.5,
    "scale": (0.08, 1.0), "ratio": (3 / 4, 4 / 3), "lighting_on": "float", "memory": "1GB", "precision": "float32",
}  # fmt: skip
HEADS = {"pool": "grid", "learning_rate": 0.01, "nesterov": True, "weight_decay": 1e-4, "norm": True}
PLAIN = {"jitter": (0.0, 0.0, 0.0, 0.0), "lighting": 0.0}
ROWS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "imagenet": ({}, HEADS | {"epochs": 90, "milestones": (30, 60), "crop": "resized", "evaluate_every": 10,
                              "jitter": (0.4, 0.4, 0.4, 0.0), "lighting": 0.1}),
    "places205": ({}, HEADS | PLAIN | {"epochs": 28, "milestones": (7, 14, 21), "crop": "window",
                                       "evaluate_every": 10}),
    "inat18": ({}, HEADS | PLAIN | {"epochs": 84, "milestones": (24, 48, 72), "crop": "resized",
                                    "evaluate_every": 10}),
    "imagenet gap": ({"pool": "gap"}, PLAIN | {"pool": "gap", "learning_rate": 30.0, "nesterov": False, "norm": False,
                     "weight_decay": 0.0, "epochs": 100, "milestones": (60, 80), "crop": "resized",
                     "evaluate_every": 1}),
    "imagenet 1.x": ({"version": "1.x"}, HEADS | {"version": "1.x", "epochs": 90, "milestones": (60, 80),
                     "crop": "resized", "evaluate_every": 1, "jitter": (0.4, 0.4, 0.4, 0.0), "lighting": 0.1,
                     "resampling": "bicubic", "lighting_on": "uint8"}),
}  # fmt: skip


@pytest.mark.parametrize("row", ROWS)
def test_every_number_of_the_protocol_is_the_published_one(row: str) -> None:
    given, expected = ROWS[row]
    assert vars(of_row(row.split()[0], **given)) == COMMON | expected


def test_layers_of_each_version() -> None:
    assert linear.usual_layers(of_row()) == "all"
    assert linear.usual_layers(of_row(pool="gap")) == "last"
    assert linear.usual_layers(of_row(version="1.x")) == "all but first"


def test_milestones_keep_their_share_of_other_epochs_unless_given() -> None:
    assert of_row(epochs="30").milestones == (10, 20)
    assert of_row("places205", epochs=8).milestones == (2, 4, 6)
    assert of_row(epochs=1).milestones == (1,)  # never reached
    assert of_row(epochs=30, milestones="5,6").milestones == (5, 6)


@pytest.mark.parametrize("variant", ["places205", "inat18"])
def test_the_rows_that_do_not_run_in_version_1_are_refused(variant: str) -> None:
    with pytest.raises(InvalidInputError, match=r"mmselfsup 1\.x's file for it does not run; accepted is '0\.x'"):
        of_row(variant, version="1.x")


@pytest.fixture
def captured(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What ``linear`` asks to be trained, in place of training it."""
    found: dict[str, Any] = {}

    def train(job: Job, work: Any) -> None:
        found.update(job=job, work=work)
        work.rates(1)

    monkeypatch.setattr(linear, "train", train)
    monkeypatch.setattr(linear, "accuracies", lambda outputs, names, ranks: dict.fromkeys(names, (0.5, 0.75)))
    return found


def test_what_is_built_for_a_resnet_50(mini: Mini, tmp_path: Path, captured: dict[str, Any]) -> None:
    """METHOD C2 and C4 on the modules, the optimiser, the schedule and the images actually made."""
    source = sources.find("random:resnet50")
    data = labelled.read(mini.imagenet_flat())
    linear.run(job_of(source, tmp_path, of_row(), data))
    work = captured["work"]
    heads: Heads = work.model
    assert heads.layers == tuple(LAYERS)
    assert [head.fc.in_features for head in heads.heads] == [9216, 9216, 8192, 9216, 8192]
    for head, channels in zip(heads.heads, (64, 256, 512, 1024, 2048), strict=True):
        assert (type(head.norm), head.norm.num_features, head.norm.momentum) == (torch.nn.BatchNorm2d, channels, 0.1)
        assert not head.norm.affine
        assert head.norm.weight is None
        assert head.fc.weight.std().item() == pytest.approx(0.01, rel=0.02)
        assert not head.fc.bias.any()
    optimizer = work.optimizer(heads)
    (group,) = optimizer.param_groups
    assert type(optimizer) is torch.optim.SGD
    assert (group["lr"], group["momentum"], group["nesterov"], group["weight_decay"]) == (0.01, 0.9, True, 1e-4)
    assert {id(p) for p in group["params"]} == {id(p) for head in heads.heads for p in head.fc.parameters()}
    assert (work.images, work.per_device, work.sync_batch_norm, work.whole_epochs) == (256, 0, True, True)
    assert work.evaluate_epochs == 10
    rates = work.rates(5005)
    assert rates.steps == 90 * 5005
    at = [0, 30 * 5005 - 1, 30 * 5005, 60 * 5005 - 1, 60 * 5005, 90 * 5005 - 1]
    assert [rates.rate(step) for step in at] == pytest.approx([0.01, 0.01, 0.001, 0.001, 0.0001, 0.0001])
    names = [type(t).__name__ for t in work.examples.augmentation._transform.transforms]
    assert names == ["RandomResizedCrop", "RandomHorizontalFlip", "ColorJitter", "ToImage", "ToPureTensor"]
    crop, flip, jitter = work.examples.augmentation._transform.transforms[:3]
    assert (tuple(crop.size), crop.scale, crop.ratio) == ((224, 224), (0.08, 1.0), (3 / 4, 4 / 3))
    assert (crop.interpolation.value, crop.antialias, flip.p) == ("bilinear", True, 0.5)
    assert (jitter.brightness, jitter.contrast, jitter.saturation, jitter.hue) == (*[(0.6, 1.4)] * 3, None)
    assert work.examples.augmentation.lighting == 0.1
    assert captured["job"].record["transform"] | {"mean": 0, "std": 0} == {
        "size": 224, "resize": 256, "squash": False, "resampling": "pillow", "channel_order": "rgb", "mean": 0, "std": 0
    }  # fmt: skip
    backbone = source.model.backbone
    assert not {id(p) for p in backbone.parameters()} & {id(p) for p in heads.parameters()}


def test_what_is_built_for_the_mean_over_positions(mini: Mini, tmp_path: Path, captured: dict[str, Any]) -> None:
    """METHOD C5."""
    source = sources.find("random:resnet50")
    linear.run(job_of(source, tmp_path, of_row(pool="gap"), labelled.read(mini.imagenet_flat())))
    work = captured["work"]
    (head,) = work.model.heads
    assert head.norm is None
    assert (head.fc.in_features, work.model.layers) == (2048, ("feature5",))
    assert head.fc.weight.std().item() == pytest.approx(0.01, rel=0.05)
    (group,) = work.optimizer(work.model).param_groups
    assert (group["lr"], group["momentum"], group["nesterov"], group["weight_decay"]) == (30.0, 0.9, False, 0.0)
    rates = work.rates(10)
    assert (rates.steps, rates.rate(0), rates.rate(600), rates.rate(800)) == (1000, 30.0, 3.0, pytest.approx(0.3))
    assert work.examples.augmentation.jitter == (0.0, 0.0, 0.0, 0.0)
    assert work.examples.augmentation.lighting == 0.0


def test_places_images_are_windows(mini: Mini, tmp_path: Path, captured: dict[str, Any]) -> None:
    """METHOD C6."""
    source = sources.find("random:resnet18")
    linear.run(job_of(source, tmp_path, of_row("places205"), labelled.read(mini.places())))
    augmentation = captured["work"].examples.augmentation
    names = [type(t).__name__ for t in augmentation._transform.transforms]
    assert names == ["RandomCrop", "RandomHorizontalFlip", "ToImage", "ToPureTensor"]
    assert (augmentation.resize, augmentation.size, augmentation.lighting) == (256, 224, 0.0)


# The parts ---------------------------------------------------------------------------------------------------------


def test_the_backbone_is_frozen_and_left_as_it_is() -> None:
    backbone = sources.find("random:resnet18").model.backbone.train()
    before = {key: value.clone() for key, value in backbone.state_dict().items()}
    frozen = Frozen(backbone, ("feature2", "feature5"), "grid", torch.device("cpu"))
    images = torch.randn(4, 3, 32, 32, requires_grad=True)
    maps = frozen(images)
    assert not any(one.requires_grad for one in maps.values())
    assert not any(p.requires_grad for p in frozen.backbone.parameters())
    assert not frozen.backbone.training
    assert backbone.training
    assert all(torch.equal(before[key], value) for key, value in backbone.state_dict().items())
    assert {layer: tuple(one.shape) for layer, one in maps.items()} == {
        "feature2": (4, 64, 6, 6), "feature5": (4, 512, 2, 2)
    }  # fmt: skip
    assert frozen.shapes(3, 32) == {"feature2": (64, 6, 6), "feature5": (512, 2, 2)}
    with torch.no_grad():
        plain = backbone.eval()(images)["feature2"]
    torch.testing.assert_close(maps["feature2"], F.adaptive_avg_pool2d(plain, 6), rtol=1e-4, atol=1e-4)


def test_the_loss_is_the_sum_over_layers() -> None:
    heads = Heads({"a": (3, 2, 2), "b": (5,)}, 4, norm_momentum=0.1, init_std=0.5, seed=0).train()
    maps, classes = {"a": torch.randn(6, 3, 2, 2), "b": torch.randn(6, 5)}, torch.tensor([0, 1, 2, 3, 0, 1])
    loss, hits, asked = SumOfLosses(lambda batch: batch)(heads, (maps, classes), torch.Generator())
    expected, right = 0.0, 0
    for name, head in zip("ab", heads.heads, strict=True):
        one = maps[name].flatten(2) if name == "a" else maps[name][..., None]
        normal = (one - one.mean((0, 2), keepdim=True)) / (one.var((0, 2), unbiased=False, keepdim=True) + 1e-5).sqrt()
        logits = normal.flatten(1) @ head.fc.weight.T + head.fc.bias
        expected += F.cross_entropy(logits, classes).item()
        right += int((logits.argmax(1) == classes).sum())
    assert loss.item() == pytest.approx(expected, rel=1e-5)
    assert (int(hits), asked) == (right, 12)


def test_one_value_a_channel_has_no_variance_and_is_taken_as_in_a_test() -> None:
    heads = Heads({"hog": (7, 1, 1)}, 3, norm_momentum=0.1, init_std=0.5, seed=0).train()
    heads({"hog": torch.randn(8, 7, 1, 1)})
    norm, one = heads.heads[0].norm, torch.randn(1, 7, 1, 1)
    mean = norm.running_mean.clone()
    got = heads({"hog": one})["hog"]
    assert torch.equal(norm.running_mean, mean)
    torch.testing.assert_close(got, heads.eval()({"hog": one})["hog"])


def test_a_layers_weights_do_not_depend_on_the_others() -> None:
    options: dict[str, Any] = {"norm_momentum": 0.1, "init_std": 0.01, "seed": 3}
    both, one = Heads({"a": (3,), "b": (5,)}, 4, **options), Heads({"b": (5,)}, 4, **options)
    assert torch.equal(both.heads[1].fc.weight, one.heads[0].fc.weight)
    assert not torch.equal(one.heads[0].fc.weight, Heads({"b": (5,)}, 4, **options | {"seed": 4}).heads[0].fc.weight)


def test_equal_outputs_go_to_the_lower_class_and_no_numbers_to_nobody() -> None:
    logits = torch.tensor([[1.0, 2.0, 2.0], [0.0, 0.0, 0.0], [3.0, 1.0, 2.0]])
    assert ahead(logits, torch.tensor([2, 0, 1])).tolist() == [1, 0, 2]
    with pytest.raises(TrainingDivergedError, match="no numbers"):
        ahead(torch.tensor([[0.0, float("nan")]]), torch.tensor([0]))


def test_top_1_and_top_5_by_hand() -> None:
    logits = torch.eye(8)[torch.tensor([0, 1, 2, 3])] * 2 + torch.arange(8) / 10
    outputs = iter([({"a": logits[:3]}, torch.tensor([0, 7, 0])), ({"a": logits[3:]}, torch.tensor([4]))])
    # 0 right; 7 second; 0 behind all others; 4 behind 3, 7, 6, 5
    assert accuracies(outputs, ("a",), Ranks()) == {"a": (0.25, 0.75)}


# Stored features ---------------------------------------------------------------------------------------------------


def test_rows_are_read_in_any_order_without_the_mapping(tmp_path: Path) -> None:
    whole = np.random.default_rng(0).random((9, 2, 3), np.float32)
    np.save(tmp_path / "rows.npy", whole)
    mapped = np.load(tmp_path / "rows.npy", mmap_mode="r")
    order = np.array([8, 0, 3, 3])
    for array in (mapped, whole):
        np.testing.assert_array_equal(feature_batches.read(array, order), whole[order])
    np.testing.assert_array_equal(feature_batches.read(mapped[2:], np.array([1])), whole[[3]])  # no whole file
    np.testing.assert_array_equal(feature_batches.read(mapped.astype(np.float16), order), whole[order].astype("f2"))
    with (tmp_path / "rows.npy").open("r+b") as file:
        file.truncate(200)
    with pytest.raises(StorageError, match="shorter"):
        feature_batches.read(mapped, order)
    (tmp_path / "rows.npy").unlink()
    with pytest.raises(StorageError, match=r"rows\.npy cannot be read"):
        feature_batches.read(mapped, order)


def features_of(count: int, values: int, classes: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    labels = np.arange(count) % classes
    centres = np.random.default_rng(99).normal(size=(classes, values))
    return (centres[labels] + generator.normal(size=(count, values))).astype(np.float32), labels


def test_heads_on_stored_features_learn_what_a_plain_loop_learns(tmp_path: Path) -> None:
    rows, labels = features_of(21, 6, 3)
    options = of_row(epochs=4, batch=8, milestones=(2,), learning_rate=0.1)
    job = job_of(sources.find("pixels"), tmp_path, options, Classes(3))
    made = FeatureRows({"pixels": rows}, labels)
    curve = linear.fit(linear.of_features(job, made, made), options)
    trained = checkpoints.read_checkpoint(next((tmp_path / "linear" / "checkpoints").glob("step-*.pt")))["model"]

    (head,) = Heads({"pixels": (6,)}, 3, norm_momentum=0.1, init_std=0.01, seed=0).train().heads
    sgd = torch.optim.SGD(head.parameters(), 0.1, 0.9, weight_decay=1e-4, nesterov=True)
    order = Order(21, 8, 8, 0)
    for step in range(4 * order.steps_per_epoch):
        chosen = [image for _, image in order.micro_batch(step, 0)]
        sgd.param_groups[0]["lr"] = 0.1 if step < 2 * order.steps_per_epoch else 0.01
        sgd.zero_grad()
        F.cross_entropy(head(torch.from_numpy(rows[chosen])), torch.from_numpy(labels[chosen])).backward()
        sgd.step()
    for key, value in head.state_dict().items():
        torch.testing.assert_close(trained[f"heads.0.{key}"], value, rtol=1e-5, atol=1e-6)
    right = head.eval()(torch.from_numpy(rows)).argmax(1).numpy() == labels
    assert curve[-1]["layers"]["pixels"]["top-1"] == pytest.approx(right.mean())
    assert right.mean() > 0.8


class Classes:
    """Data of which only the classes and the labels matter."""

    def __init__(self, count: int) -> None:
        self.classes = tuple(map(str, range(count)))
        self.train = self.test = SimpleNamespace(single=np.arange(count))

    def every_file(self) -> tuple[Path, ...]:
        return ()


@pytest.mark.slow
@pytest.mark.skipif(not growth.STATUS.exists(), reason="tells its memory another way")
def test_memory_stays_within_the_bound_with_features_of_four_times_it(tmp_path: Path) -> None:
    """In a process of its own: what the resident memory grows by while 160 MB of features are learned from twice."""
    rows = np.lib.format.open_memmap(tmp_path / "rows.npy", "w+", np.float32, (4000, 10_000))
    for start in range(0, 4000, 400):
        rows[start : start + 400] = np.random.default_rng(start).random((400, 10_000), np.float32)
    rows.flush()
    del rows
    code = """
import sys
from pathlib import Path
import numpy as np, torch
sys.path[:0] = sys.argv[2:]
from growth import growth
from test_linear import Classes, FeatureRows, job_of, linear, of_row, sources
torch.set_num_threads(1)
def learn(rows, out):
    count = len(rows)
    options = of_row(epochs=2, batch=256, memory="40MB")
    job = job_of(sources.find("pixels"), Path(out), options, Classes(10))
    made = FeatureRows({"pixels": rows}, np.arange(count) % 10)
    linear.fit(linear.of_features(job, made, made), options)
rows = np.load(sys.argv[1] + "/rows.npy", mmap_mode="r")
learn(np.zeros((40, 10_000), np.float32), sys.argv[1] + "/warm")
print(growth(lambda: learn(rows, sys.argv[1] + "/run")))
"""
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path), str(Path(__file__).parent), str(Path(growth.__file__).parent)],
        # What is freed goes back to the system at once: glibc keeps some of it at times, which is not held by anything.
        env={**os.environ, "MALLOC_MMAP_THRESHOLD_": "1000000"}, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert int(done.stdout) < 40, done.stdout


# From the command --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("build", "variant"),
    [("imagenet_flat", "imagenet"), ("places", "places205"), ("inat", "inat18"), ("lists", "imagenet")],
)
def test_from_the_command_to_the_table(mini: Mini, tmp_path: Path, build: str, variant: str) -> None:
    outcome = call(getattr(mini, build)(), tmp_path / "out", "--model", "random:resnet18")
    assert outcome.exit_code == 0, outcome.output
    record = json.loads((tmp_path / "out" / "result.json").read_text())
    assert record["variant"] == variant
    assert [(m["metric"], m["layer"]) for m in record["measured"]] == [
        (metric, layer) for layer in LAYERS for metric in ("top-1", "top-5")
    ]
    best = max(m["value"] for m in record["measured"] if m["metric"] == "top-1")
    assert (record["best"]["metric"], record["best"]["value"]) == ("top-1", best)
    assert [entry["epoch"] for entry in record["details"]["curve"]] == [1, 2]
    assert record["ran_on"]["settings"]["crop"] == ("window" if variant == "places205" else "resized")
    assert record["ran_on"]["transform"]["size"] == 32
    assert outcome.stdout.strip() in (tmp_path / "out" / "result.md").read_text()
    assert ("51.20 [1]" in outcome.stdout) == (variant == "imagenet")
    assert ("45.97 [1]" in outcome.stdout) == (variant == "places205")


def test_the_mean_over_positions_stands_beside_its_published_figures(mini: Mini, tmp_path: Path) -> None:
    outcome = call(mini.imagenet_flat(), tmp_path / "out", "--model", "random:resnet18", "--pool", "gap")
    assert outcome.exit_code == 0, outcome.output
    (row,) = [line for line in outcome.stdout.splitlines() if line.startswith("| feature5 | gap")]
    assert "39.65 [1] / 38.78 [2] / 40.40 [3] / 38.83 [4]" in row


def test_a_missing_piece_is_named_with_its_archive(mini: Mini, tmp_path: Path) -> None:
    data = mini.places()
    (data / "trainvalsplit_places205" / "val_places205.csv").unlink()
    outcome = call(data, tmp_path / "out", "--model", "random:resnet18")
    assert outcome.exit_code == 2
    assert "val_places205.csv is missing; it is published in trainvalsplit_places205.tar.gz" in outcome.stderr


def test_version_1_leaves_the_stem_out_and_resizes_bicubically(mini: Mini, tmp_path: Path) -> None:
    data = mini.folders("train", "test")
    result = run("random:resnet18", data, tmp_path / "out", {"version": "1.x", "epochs": 1})
    assert [m.layer for m in result.measured[::2]] == LAYERS[1:]
    assert result.ran_on["transform"]["resampling"] == "bicubic"
    read, own = labelled.read(data), sources.find("random:resnet18").model.transform
    cuts = [
        TestImages(read.test.files, read.test.single, of_row(size=32, resampling=kind).preprocessing().transform(own))
        for kind in ("bicubic", "pillow")
    ]
    with Image.open(read.test.files[0]) as image:
        small = image.resize([int(37 * side / min(image.size)) for side in image.size], Image.Resampling.BICUBIC)
    one, other = (cut.example(0, torch.Generator())[0] for cut in cuts)
    assert torch.equal(one, pil_to_tensor(center_crop(small, [32, 32])))
    assert not torch.equal(one, other)


def test_stored_features_give_what_images_that_are_not_augmented_give(mini: Mini, tmp_path: Path) -> None:
    data = mini.folders("train", "test", each=3)
    still = STILL | {"epochs": 3, "norm_momentum": 0.5}
    full = run("random:resnet18", data, tmp_path / "full", still)
    stored = run("random:resnet18", data, tmp_path / "none", still | {"augment": "none"})
    assert [m.value for m in full.measured] == pytest.approx([m.value for m in stored.measured])
    one, other = (heads_in(tmp_path / name) for name in ("full", "none"))
    for key, value in one.items():
        torch.testing.assert_close(value, other[key], rtol=1e-3, atol=1e-4)
    assert "Heads trained on stored features" in str(stored)
    assert "Heads trained on stored features" not in str(full)


def heads_in(out: Path) -> dict[str, torch.Tensor]:
    paths = list((out / "seed-0" / "linear" / "checkpoints").glob("step-*.pt"))
    found: dict[str, torch.Tensor] = checkpoints.read_checkpoint(paths[0])["model"]
    return found


@pytest.mark.parametrize("model", ["pixels", "hog"])
def test_pixels_and_hog_are_stored(mini: Mini, tmp_path: Path, model: str) -> None:
    data = mini.folders("train", "test", each=3)  # nine images: the last batch of an epoch is one
    result = run(model, data, tmp_path / "out", {"epochs": 3})
    assert [(m.metric, m.layer) for m in result.measured] == [("top-1", model), ("top-5", model)]
    with pytest.raises(InvalidInputError, match="augment = 'full' with model"):
        run(model, data, tmp_path / "full", {"augment": "full"})


def test_a_batch_that_does_not_fit_into_the_memory_is_refused(mini: Mini, tmp_path: Path) -> None:
    outcome = call(mini.folders("train", "test"), tmp_path / "out", "--model", "pixels", "--memory", "100KB")
    assert outcome.exit_code == 2
    assert "a batch of 4 images with 1 layers needs 147,456" in outcome.stderr


def test_stopped_and_called_again_it_ends_as_if_never_stopped(
    mini: Mini, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = mini.folders("train", "test", each=3)
    straight = run("random:resnet18", data, tmp_path / "straight", {"epochs": 3})
    calls = iter([False] * 4 + [True])
    with monkeypatch.context() as patched:
        patched.setattr(StopRequest, "asked", lambda self: next(calls))
        with pytest.raises(StoppedError, match="Stopped at step 5 of 9 of linear"):
            run("random:resnet18", data, tmp_path / "stopped", {"epochs": 3})
    resumed = run("random:resnet18", data, tmp_path / "stopped", {"epochs": 3})
    assert resumed.measured == straight.measured
    assert resumed.details["curve"] == straight.details["curve"]
    one, other = (heads_in(tmp_path / name) for name in ("straight", "stopped"))
    assert all(torch.equal(value, other[key]) for key, value in one.items())
    monkeypatch.setattr(linear, "train", lambda *_: pytest.fail("it came to its end before"))
    assert run("random:resnet18", data, tmp_path / "stopped", {"epochs": 3}).measured == straight.measured


def test_seeds_give_means_and_spreads(mini: Mini, tmp_path: Path) -> None:
    data = mini.folders("train", "test", each=3)
    result = run("random:resnet18", data, tmp_path / "out", {"augment": "none"}, seeds=(0, 1), layers="feature2")
    assert {m.count for m in result.measured} == {2}
    assert "over 2 seeds" in str(result)


def test_damaged_images_are_found_before_the_training(mini: Mini, tmp_path: Path) -> None:
    data = mini.folders("train", "test", each=3)
    (data / "train" / "cat" / "1.jpg").write_text("words")
    result = run("random:resnet18", data, tmp_path / "out", {"skip_damaged": True, "epochs": 1}, layers="feature1")
    assert result.ran_on["data"]["train"] == 8
    assert "1 damaged images were left out" in str(result)


def test_missing_training_images_are_all_told_before_the_training(
    mini: Mini, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = mini.lists()
    train = data / "dataset" / "train.txt"
    train.write_text(train.read_text() + "gone/1.jpg, 0, 0\ngone/2.jpg, 1, 0\n")
    monkeypatch.setattr(linear, "train", lambda *_: pytest.fail("too early"))
    with pytest.raises(ImageError, match=r"2 of the images.*gone/1\.jpg \(no such file\).*gone/2\.jpg"):
        run("random:resnet18", data, tmp_path / "out", layers="feature1")


def test_a_damaged_test_image_is_told_before_the_training(
    mini: Mini, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = mini.folders("train", "test")
    (data / "test" / "cat" / "1.jpg").write_text("words")
    monkeypatch.setattr(linear, "train", lambda *_: pytest.fail("too early"))
    with pytest.raises(ImageError, match=r"1 of the images.*test/cat/1\.jpg .*--set skip_damaged=true"):
        run("random:resnet18", data, tmp_path / "out", layers="feature1")


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--set", "epochs=0"], "epochs = 0"),
        (["--set", "per_device=3"], "per_device = 3"),
        (["--set", "learning_rate=0"], "learning_rate = 0"),
        (["--set", "scale=0,1"], "scale"),
        (["--set", "momentum=0"], "nesterov"),
        (["--set", "momentum=1"], "momentum = 1"),
        (["--set", "milestones=-1,2"], "milestones = [-1, 2]"),
        (["--set", "factor=-1"], "factor = -1"),
        (["--set", "norm_momentum=-1"], "norm_momentum = -1"),
        (["--set", "resize=16"], "resize = 16"),
        (["--set", "memory=lots"], "memory"),
        (["--set", "resampling=opencv"], "resampling"),
        (["--variant", "cifar"], "imagenet"),
        (["--pool", "max"], "grid"),
        (["--layer", "feature9"], "feature9"),
    ],
    ids=lambda more: " ".join(map(str, more)) if isinstance(more, list) else "",
)
def test_mistakes_are_one_line(mini: Mini, tmp_path: Path, more: list[str], words: str) -> None:
    outcome = call(mini.folders("train", "test"), tmp_path / "out", "--model", "random:resnet18", *more)
    assert outcome.exit_code == 2
    assert words in outcome.stderr.splitlines()[-1]


@pytest.mark.slow
def test_two_processes_learn_what_one_does(mini: Mini, tmp_path: Path) -> None:
    """Without batch norm, which on a CPU sees one process's part of the batch."""
    data = mini.folders("train", "test", each=4)
    one = run("random:resnet18", data, tmp_path / "one", {"pool": "gap", "learning_rate": 0.1})
    command = ["evaluate", "linear", "--data", data, "--model", "random:resnet18", *COMMAND, "--pool", "gap"]
    outcomes = in_ranks([*command, "--set", "learning_rate=0.1", "--out", tmp_path / "two"])
    assert [process.code for process in outcomes] == [0, 0], outcomes
    two = json.loads((tmp_path / "two" / "result.json").read_text())
    assert [m.value for m in one.measured] == [m["value"] for m in two["measured"]]
    assert two["ran_on"]["processes"] == 2
    for key, value in heads_in(tmp_path / "one").items():
        torch.testing.assert_close(heads_in(tmp_path / "two")[key], value, rtol=1e-4, atol=1e-5)


def test_batch_norm_in_parts_is_said(tmp_path: Path, captured: dict[str, Any], mini: Mini) -> None:
    job = job_of(sources.find("random:resnet18"), tmp_path, of_row(size=32), labelled.read(mini.imagenet_flat()))
    assert linear.run(job).details["notes"] == []
    shared: Any = SimpleNamespace(count=2, rank=0, lead=lambda work: work(), gather=lambda item: [item])
    notes = linear.run(dataclasses.replace(job, out=tmp_path / "two", ranks=shared)).details["notes"]
    assert notes == ["Batch norm saw the batch in 2 parts, one a process, not whole."]
