"""Fine-tuning with few labels: the settings as built, which images have labels, the grid, resuming, ranks."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from processes import in_ranks
from torch.nn import functional as F

from context_pred.cli import main
from context_pred.errors import ImageError, InvalidInputError, StoppedError, TrainingDivergedError
from context_pred.evaluate import Result, labelled, semi_supervised, settings, sources
from context_pred.evaluate import run as run_protocol
from context_pred.evaluate.job import Job
from context_pred.training.loop import StopRequest

Mini = Any
SMALL: dict[str, Any] = {"size": 32, "epochs": 2, "batch": 4, "labels": "50%", "learning_rates": [0.01]}
COMMAND = [
    "--no-progress", "--device", "cpu", "--workers", 1, "--set", "size=32", "--set", "epochs=1", "--set", "batch=4",
    "--set", "learning_rates=0.01",
]  # fmt: skip


def call(data: Path, out: Path, *more: object, model: str = "random:resnet18") -> Any:
    arguments = ["evaluate", "semi-supervised", "--data", data, "--out", out, "--model", model, *COMMAND, *more]
    return CliRunner().invoke(main, [str(a) for a in arguments], prog_name="context-pred")


def run(model: Any, data: Any, out: Path, given: dict[str, Any] | None = None, **more: Any) -> Result:
    options = {"device": "cpu", "workers": 1, "progress": False} | more
    return run_protocol("semi-supervised", model, data, out=out, settings=SMALL | (given or {}), **options)


def of(**given: Any) -> semi_supervised.Settings:
    values = semi_supervised.defaults(None, given) | given
    found: semi_supervised.Settings = settings.part("semi-supervised", semi_supervised.Settings, values)
    return found


def job_of(source: sources.Source, out: Path, options: semi_supervised.Settings, data: Any) -> Job:
    return Job(source, data, out, (), options, 0, workers=1, device="cpu", progress=False)


# The settings ------------------------------------------------------------------------------------------------------


def test_every_number_of_the_protocol_is_the_published_one() -> None:
    """METHOD C9."""
    assert vars(of()) == {
        "labels": "1%,10%", "learning_rates": (0.1, 0.01, 0.001), "head_multipliers": (1.0, 10.0, 100.0),
        "epochs": 20, "milestones": (12, 16), "factor": 0.2, "batch": 256, "per_device": 0, "momentum": 0.9,
        "nesterov": False, "weight_decay": 5e-4, "init_std": 0.01, "size": 224, "resize": 0, "resampling": "pillow",
        "scale": (0.08, 1.0), "ratio": (3 / 4, 4 / 3), "flip": 0.5, "precision": "float32",
    }  # fmt: skip


def test_milestones_keep_their_share_of_other_epochs_unless_given() -> None:
    assert of(epochs="5").milestones == (3, 4)
    assert of(epochs=5, milestones=[2]).milestones == (2,)


def test_what_is_built_for_a_resnet_50(mini: Mini, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """METHOD C9 on the model, the optimiser, the schedule and the images of each of the nine trainings."""
    works: list[Any] = []
    figures = iter(np.linspace(0.1, 0.9, 9))
    monkeypatch.setattr(semi_supervised, "train", lambda job, work: works.append(work))
    monkeypatch.setattr(semi_supervised, "accuracies", lambda *_: {"semi-supervised": (next(figures), 0.95)})
    source = sources.find("random:resnet50")
    source.model.backbone.requires_grad_(False)
    job = job_of(source, tmp_path, of(labels="50%"), labelled.read(mini.imagenet_flat()))
    result = semi_supervised.run(job)
    assert len(works) == 9
    assert len({work.name for work in works}) == 9
    pairs = [(rate, head) for rate in (0.1, 0.01, 0.001) for head in (1.0, 10.0, 100.0)]
    backbones = []
    for work, (rate, multiplier) in zip(works, pairs, strict=True):
        model = work.model
        backbones.append(model.backbone)
        body, head = work.optimizer(model).param_groups
        assert {id(p) for p in body["params"]} == {id(p) for p in model.backbone.parameters()}
        assert {id(p) for p in head["params"]} == {id(p) for p in model.fc.parameters()}
        assert (body["multiplier"], head["multiplier"]) == (1.0, multiplier)
        for group in (body, head):
            assert (group["momentum"], group["nesterov"], group["weight_decay"]) == (0.9, False, 5e-4)
        rates = work.rates(50)
        assert rates.steps == 20 * 50
        at = [rates.rate(step) for step in (0, 599, 600, 799, 800, 999)]
        assert at == pytest.approx([rate, rate, rate / 5, rate / 5, rate / 25, rate / 25])
        assert (work.images, work.per_device, work.sync_batch_norm, work.whole_epochs) == (256, 0, True, True)
        assert all(p.requires_grad for p in model.parameters())
        assert (model.fc.in_features, model.fc.out_features, model.layer) == (2048, 3, "feature5")
        assert model.fc.weight.std().item() == pytest.approx(0.01, rel=0.05)
        assert not model.fc.bias.any()
        names = [type(t).__name__ for t in work.examples.augmentation._transform.transforms]
        assert names == ["RandomResizedCrop", "RandomHorizontalFlip", "ToImage", "ToPureTensor"]
        assert (work.examples.augmentation.size, work.examples.augmentation.lighting) == (224, 0.0)
    assert len({id(one) for one in [*backbones, source.model.backbone]}) == 10
    assert not any(p.requires_grad for p in source.model.backbone.parameters())
    assert job.record["transform"] | {"mean": 0, "std": 0} == {
        "size": 224, "resize": 256, "squash": False, "resampling": "pillow", "channel_order": "rgb", "mean": 0, "std": 0
    }  # fmt: skip
    assert [(m.metric, m.value, dict(m.at)) for m in result.measured] == [
        ("top-1", 0.9, {"labels": "50 %"}), ("top-5", 0.95, {"labels": "50 %"})
    ]  # fmt: skip
    assert "best with learning_rate 0.001, head × 100, of 9 tried" in result.details["notes"][0]
    assert [row["top-1"] for row in result.details["grid"]] == pytest.approx(np.linspace(0.1, 0.9, 9))


def test_the_classifier_is_the_mean_over_positions_and_a_line(mini: Mini, tmp_path: Path) -> None:
    job = job_of(sources.find("random:resnet18"), tmp_path, of(size=32), labelled.read(mini.imagenet_flat()))
    model, images = semi_supervised.make(job).eval(), torch.randn(2, 3, 64, 64)
    maps = job.source.model.backbone.eval()(images)["feature5"]
    expected = F.linear(maps.mean((2, 3)), model.fc.weight, model.fc.bias)
    torch.testing.assert_close(model(images), expected)


# Which images have labels ------------------------------------------------------------------------------------------

CLASSES = np.repeat([0, 1, 2], [200, 40, 3])


def sets(*which: str, seed: int = 0, files: list[Path] | None = None) -> dict[str, np.ndarray]:
    found = semi_supervised.labelled(files or [Path(f"{k}.jpg") for k in range(243)], CLASSES, which, seed)
    return {shown: images for shown, _, images in found}


def test_a_share_of_every_class_is_drawn_and_larger_ones_hold_smaller_ones() -> None:
    found = sets("1%", "10%", "100%")
    assert {shown: np.bincount(CLASSES[images]).tolist() for shown, images in found.items()} == {
        "1 %": [2, 1, 1], "10 %": [20, 4, 1], "100 %": [200, 40, 3]
    }  # fmt: skip
    assert set(found["1 %"]) < set(found["10 %"])
    assert all(len(set(images)) == len(images) for images in found.values())
    np.testing.assert_array_equal(found["10 %"], sets("10%")["10 %"])
    assert set(found["10 %"]) != set(sets("10%", seed=1)["10 %"])


LISTS = {
    "mmselfsup": ["n01/n01_4.JPEG 0", "n02/n02_7.JPEG 1"],
    "simclr": ["n01_4.JPEG", "n02_7.JPEG"],
    "paths": ["train/n01/n01_4.JPEG", "./train/n02/n02_7.JPEG,1"],
    "twice": ["n01_4.JPEG", "n02_7.JPEG", "n01_4.JPEG"],
}


@pytest.mark.parametrize("kind", LISTS)
def test_published_lists_are_found_among_the_training_images(tmp_path: Path, kind: str) -> None:
    files = [Path("data/train") / name / f"{name}_{k}.JPEG" for name in ("n01", "n02") for k in range(100)]
    (tmp_path / "1percent.txt").write_text("\n".join(LISTS[kind]) + "\n")
    assert {k: v.tolist() for k, v in sets(str(tmp_path / "1percent.txt"), files=files).items()} == {"1 %": [4, 107]}


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        (["n01/9.jpg"], "no training image"),
        (["0.jpg"], "could be 2 of the training images"),
        (["n09/0.jpg"], "could be 2"),
        ([], "lists nothing"),
    ],
)
def test_lists_that_name_nothing_or_several(tmp_path: Path, lines: list[str], words: str) -> None:
    files = [Path("train") / name / f"{k}.jpg" for name in ("n01", "n02") for k in range(2)]
    (tmp_path / "list.txt").write_text("\n".join(lines))
    with pytest.raises(InvalidInputError, match=words):
        sets(str(tmp_path / "list.txt"), files=files)


@pytest.mark.parametrize(
    "wrong", [{"nesterov": True, "momentum": 0.0}, {"milestones": (0,)}, {"factor": 0.0}, {"weight_decay": -1.0}]
)
def test_numbers_out_of_range(wrong: dict[str, Any]) -> None:
    with pytest.raises(InvalidInputError, match=next(iter(wrong))):
        semi_supervised.Settings(**wrong)


def test_two_sets_of_the_same_share_are_told_apart(tmp_path: Path) -> None:
    files = [Path(f"{k}.jpg") for k in range(100)]
    (tmp_path / "fixed.txt").write_text("7.jpg\n")
    found = semi_supervised.labelled(files, np.zeros(100, np.int64), ["1%", str(tmp_path / "fixed.txt")], 0)
    assert [shown for shown, *_ in found] == ["1 %", "1 % (fixed)"]


# From the command --------------------------------------------------------------------------------------------------


def test_from_the_command_to_the_table(mini: Mini, tmp_path: Path) -> None:
    outcome = call(mini.imagenet_flat(), tmp_path / "out")
    assert outcome.exit_code == 0, outcome.output
    record = json.loads((tmp_path / "out" / "result.json").read_text())
    assert [(m["metric"], m["layer"], m["at"]) for m in record["measured"]] == [
        (metric, None, {"labels": shown}) for shown in ("1 %", "10 %") for metric in ("top-1", "top-5")
    ]
    assert len(record["details"]["grid"]) == 6
    rows = [line for line in outcome.stdout.splitlines() if line.startswith("| ")]
    assert "16.48 [1]" in rows[2]
    assert "40.37 [1]" in rows[2]
    assert "53.86 [1]" in rows[3]
    assert outcome.stdout.strip() in (tmp_path / "out" / "result.md").read_text()
    assert "chosen on the test images" in outcome.stdout
    folders = sorted(path.name for path in (tmp_path / "out" / "seed-0").iterdir())
    assert folders[:2] == ["10pct-lr0.01-head1", "10pct-lr0.01-head10"]
    assert not list((tmp_path / "out").glob("**/*.pt"))


def test_it_learns_what_it_is_shown(mini: Mini, tmp_path: Path) -> None:
    data = labelled.read(mini.folders("train", "test"))
    same = labelled.LabelledImages("same", "folder", data.classes, data.train, data.train)
    still = {"scale": [1, 1], "ratio": [1, 1], "flip": 0.0}
    whole = still | {"labels": "100%", "epochs": 40, "milestones": [20], "batch": 6, "size": 64, "resize": 64}
    result = run("random:resnet18", same, tmp_path / "out", whole | {"head_multipliers": [1]})
    assert [m.value for m in result.measured] == [1.0, 1.0]


def test_stopped_and_called_again_it_ends_as_if_never_stopped(
    mini: Mini, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped in the second training of the grid; the first is not trained again."""
    data = mini.folders("train", "test", each=4)
    given = {"head_multipliers": [1, 10]}
    straight = run("random:resnet18", data, tmp_path / "straight", given)
    calls = iter([False] * 4 + [False, True])
    with monkeypatch.context() as patched:
        patched.setattr(StopRequest, "asked", lambda self: next(calls))
        with pytest.raises(StoppedError, match=r"Stopped at step 2 of 4 of 50pct-lr0\.01-head10"):
            run("random:resnet18", data, tmp_path / "stopped", given)
    names: list[str] = []
    train = semi_supervised.train
    monkeypatch.setattr(semi_supervised, "train", lambda job, work: (names.append(work.name), train(job, work)))
    resumed = run("random:resnet18", data, tmp_path / "stopped", given)
    assert names == ["50pct-lr0.01-head10"]
    assert resumed.measured == straight.measured
    assert resumed.details["grid"] == straight.details["grid"]


def test_test_images_are_opened_once_before_the_first_training(
    mini: Mini, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = mini.folders("train", "test")
    opened: list[Job] = []
    monkeypatch.setattr(semi_supervised, "check_tests", opened.append)
    for _ in range(2):
        run("random:resnet18", data, tmp_path / "out", {"head_multipliers": [1, 10], "epochs": 1})
    assert len(opened) == 1
    monkeypatch.undo()
    (data / "test" / "cat" / "1.jpg").write_text("words")
    with pytest.raises(ImageError, match=r"test/cat/1\.jpg"):
        run("random:resnet18", data, tmp_path / "damaged")


def test_a_setting_that_diverges_is_told_and_the_others_count(
    mini: Mini, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = mini.folders("train", "test")
    result = run("random:resnet18", data, tmp_path / "out", {"learning_rates": [1e30, 0.001], "head_multipliers": [1]})
    assert result.details["grid"][0] == {
        "labels": "50 %", "learning_rate": 1e30, "head_multiplier": 1.0, "diverged": True
    }  # fmt: skip
    assert result.measured[0].value == result.details["grid"][1]["top-1"]
    monkeypatch.setattr(semi_supervised, "train", lambda *_: pytest.fail("both are known"))
    assert run(
        "random:resnet18", data, tmp_path / "out", {"learning_rates": [1e30, 0.001], "head_multipliers": [1]}
    ).details["grid"] == result.details["grid"]  # fmt: skip
    monkeypatch.undo()
    with pytest.raises(TrainingDivergedError, match="Every training with 50 % of the labels diverged"):
        run("random:resnet18", data, tmp_path / "none", {"learning_rates": [1e30], "head_multipliers": [1]})


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--set", "labels=0%"], "labels = '0%'"),
        (["--set", "labels=ten%"], "labels = 'ten%'"),
        (["--set", "labels="], "labels"),
        (["--set", "labels=nowhere.txt"], "nowhere.txt"),
        (["--set", "head_multipliers=1,1"], "head_multipliers"),
        (["--set", "learning_rates=0"], "learning_rates"),
        (["--set", "batch=0"], "batch = 0"),
        (["--set", "weight_decay=-1"], "weight_decay"),
        (["--layer", "feature5"], "uses the whole backbone"),
        (["--variant", "imagenet"], "no variants"),
        (["--model", "pixels"], "trains a network"),
    ],
    ids=lambda more: " ".join(more) if isinstance(more, list) else "",
)
def test_mistakes_are_one_line(mini: Mini, tmp_path: Path, more: list[str], words: str) -> None:
    outcome = call(mini.folders("train", "test"), tmp_path / "out", *more)
    assert outcome.exit_code == 2
    assert words in outcome.stderr.splitlines()[-1]


def test_a_step_of_one_image_with_a_map_of_one_cell(mini: Mini, tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match=r"size = 32, batch = 4: a step of one image with a map of 1 × 1"):
        run("random:resnet18", mini.folders("train", "test", each=3), tmp_path / "out", {"labels": "100%"})


@pytest.mark.slow
def test_two_processes_share_a_training(mini: Mini, tmp_path: Path) -> None:
    data = mini.folders("train", "test", each=4)
    arguments = ["evaluate", "semi-supervised", "--data", data, "--out", tmp_path / "two", "--model",
                 "random:resnet18", *COMMAND, "--set", "labels=100%"]  # fmt: skip
    ended = in_ranks(arguments)
    assert [process.code for process in ended] == [0, 0], ended
    two = json.loads((tmp_path / "two" / "result.json").read_text())
    assert two["ran_on"]["processes"] == 2
    assert "Batch norm saw the batch in 2 parts" in " ".join(two["details"]["notes"])
    assert len(two["details"]["grid"]) == 3
