"""Whole runs on real photographs with a small recipe: what they leave behind, and what decides it."""

from __future__ import annotations

import json
import os
import shutil
import signal
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from processes import free_port, in_ranks

import context_pred
from context_pred.errors import ImageError, InvalidInputError, TrainingDivergedError
from context_pred.pretrain import read_recipe, run
from context_pred.training.checkpoints import read_checkpoint

RECIPE = "resnet18_1xb64-coslr-300k"
SMALL = {
    "batch.images": "8",
    "batch.per_device": "4",
    "optimizer.learning_rate": "1e-3",
    "schedule.images": "32",
    "schedule.warmup_images": "0",
    "run.precision": "float32",
    "run.held_out": "0",
    "run.checkpoint_every": "2",
}


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Fifteen small JPEG files of the photographs."""
    folder = tmp_path_factory.mktemp("images")
    photos = sorted((Path(__file__).parents[2] / "docs" / "photos").glob("*.jpg"))[:15]
    for number, path in enumerate(photos):
        with Image.open(path) as image:
            image.thumbnail((220, 220))
            image.save(folder / f"{number:02}.jpg", quality=90)
    return folder


@pytest.fixture(scope="module")
def finished(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run that held some images out."""
    out = tmp_path_factory.mktemp("runs") / "run"
    done = run(images, RECIPE, out=out, settings={**SMALL, "run.held_out": "0.3"}, workers=0, progress=False)
    assert done.model == out / "model"
    assert done.held_out is not None
    return out


def weights(out: Path, step: int = 4) -> dict[str, torch.Tensor]:
    state: dict[str, torch.Tensor] = read_checkpoint(out / "checkpoints" / f"step-{step:08}.pt")["model"]
    return state


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


def trained(images: Path | list[Path], out: Path, *, workers: int = 0, **more: object) -> dict[str, torch.Tensor]:
    run(images, RECIPE, out=out, settings=SMALL, workers=workers, progress=False, **more)  # type: ignore[arg-type]
    return weights(out)


def test_what_a_finished_run_leaves(finished: Path):
    names = {path.name for path in finished.iterdir()} - {"tensorboard"}
    assert names == {
        "recipe.toml", "run.json", "log.jsonl", "damaged.jsonl", "checkpoints", "result.json", "samples.safetensors",
        "report.html", "model",
    }  # fmt: skip
    assert read_recipe(finished).batch.images == 8
    about = json.loads((finished / "run.json").read_text())
    result = json.loads((finished / "result.json").read_text())
    assert about["count"] + about["held_out_count"] == 15
    assert result["held_out"]["images"] == about["held_out_count"] > 0
    assert result["training"]["pairs"] == 40 * about["count"]
    assert result["steps"] == 4
    last = json.loads((finished / "log.jsonl").read_text().splitlines()[-1])
    assert result["images_seen"] == last["images"] > 16


def test_the_finished_run_is_a_model_of_the_zoo(finished: Path, images: Path):
    model = context_pred.load_pretrained(finished / "model")
    card = model.card
    assert (card.name, card.recipe, card.backbone) == (RECIPE, RECIPE, "resnet18")
    assert card.patch_sampler == read_recipe(finished).make_sampler().to_config()
    assert [metric.benchmark for metric in card.metrics] == ["Pretext accuracy"] * 2
    for key, value in weights(finished).items():
        torch.testing.assert_close(model.state_dict()[key], value, rtol=0, atol=0)
    with Image.open(images / "00.jpg") as image:
        assert model.features(model.transform(image)[None])["feature5"].shape == (1, 512, 7, 7)


def test_a_finished_run_can_be_finished_again(finished: Path, images: Path, tmp_path: Path):
    again = tmp_path / "again"
    shutil.copytree(finished, again)
    shutil.rmtree(again / "model")
    settings = {**SMALL, "run.held_out": "0.3"}
    done = run(images, RECIPE, out=again, settings=settings, workers=0, progress=False, resume=True)
    assert done.steps == 4
    assert same(weights(again), weights(finished))
    digest = [json.loads((out / "model" / "card.json").read_text())["sha256"] for out in (again, finished)]
    assert digest[0] == digest[1]


def test_a_folder_that_is_not_empty_is_refused_with_both_cures(finished: Path, images: Path, tmp_path: Path):
    with pytest.raises(InvalidInputError, match=r"is not empty.*--resume.*--overwrite"):
        trained(images, finished)
    (tmp_path / "thesis.txt").write_text("mine")
    for how in ({"resume": True}, {"overwrite": True}):
        with pytest.raises(InvalidInputError, match="holds no run"):
            trained(images, tmp_path, **how)
    assert (tmp_path / "thesis.txt").read_text() == "mine"


def test_overwriting_removes_the_run_and_nothing_else(finished: Path, images: Path, tmp_path: Path):
    out = tmp_path / "run"
    shutil.copytree(finished, out)
    (out / "notes.txt").write_text("mine")
    trained(images, out, overwrite=True)
    assert (out / "notes.txt").read_text() == "mine"
    assert json.loads((out / "run.json").read_text())["held_out_count"] == 0


def test_resuming_another_recipe_or_other_images_is_refused(images: Path, tmp_path: Path):
    out = tmp_path / "run"
    trained(images, out, resume=True)  # begins, since there is nothing yet
    other = {**SMALL, "optimizer.learning_rate": "2e-3", "run.keep": "5"}
    with pytest.raises(InvalidInputError, match=r"optimizer.learning_rate was 0.001 and is 0.002\. Resume"):
        run(images, RECIPE, out=out, settings=other, workers=0, progress=False, resume=True)
    with pytest.raises(InvalidInputError, match="other images"):
        run(sorted(images.iterdir())[:9], RECIPE, out=out, settings=SMALL, workers=0, progress=False, resume=True)


@pytest.mark.parametrize("workers", [2])
def test_workers_change_nothing(images: Path, tmp_path: Path, workers: int):
    assert same(trained(images, tmp_path / "none"), trained(images, tmp_path / "some", workers=workers))


def test_a_run_stopped_by_sigterm_saves_and_goes_on(images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    whole = trained(images, tmp_path / "whole")
    out = tmp_path / "stopped"
    save = context_pred.training.checkpoints.Checkpoints.save

    def and_then_sigterm(self, step, state, **options):  # type: ignore[no-untyped-def]
        path = save(self, step, state, **options)
        os.kill(os.getpid(), signal.SIGTERM)  # arrives during step 3
        return path

    with monkeypatch.context() as patch:
        patch.setattr(context_pred.training.checkpoints.Checkpoints, "save", and_then_sigterm)
        handler = signal.getsignal(signal.SIGTERM)
        done = run(images, RECIPE, out=out, settings=SMALL, workers=0, progress=False)
        assert signal.getsignal(signal.SIGTERM) is handler
    assert (done.model, done.steps) == (None, 3)
    assert "--resume" in str(done)
    assert same(trained(images, out, resume=True), whole)


def test_damaged_images_are_skipped_and_listed(images: Path, tmp_path: Path):
    folder = tmp_path / "images"
    shutil.copytree(images, folder)
    (folder / "03.jpg").write_bytes((images / "03.jpg").read_bytes()[:2000])
    (folder / "07.jpg").write_text("no image")
    out = tmp_path / "run"
    done = run(folder, RECIPE, out=out, settings=SMALL, workers=0, progress=False)
    listed = [json.loads(line)["image"] for line in (out / "damaged.jsonl").read_text().splitlines()]
    assert [Path(name).name for name in listed] == ["03.jpg", "07.jpg"]
    assert (done.damaged, done.steps) == (2, 4)


def test_too_many_damaged_images_stop_the_run(images: Path, tmp_path: Path):
    folder = tmp_path / "images"
    shutil.copytree(images, folder)
    for number in range(8):
        (folder / f"{number:02}.jpg").write_text("no image")
    with pytest.raises(ImageError, match=r"\d of the 15 images are damaged.*run.damaged_share"):
        trained(folder, tmp_path / "run")
    listed = {Path(json.loads(line)["image"]).name for line in (tmp_path / "run" / "damaged.jsonl").open()}
    assert {f"{number:02}.jpg" for number in range(8)} == listed


def test_a_run_that_met_damaged_images_goes_on(images: Path, tmp_path: Path):
    folder = tmp_path / "images"
    shutil.copytree(images, folder)
    for number in (1, 2, 3):
        (folder / f"{number:02}.jpg").write_text("no image")
    settings = {**SMALL, "run.damaged_share": "0.21", "schedule.images": "64"}
    common = {"recipe": RECIPE, "settings": settings, "workers": 0, "progress": False}
    run(folder, out=tmp_path / "whole", **common)  # type: ignore[arg-type]
    parts = tmp_path / "parts"
    shutil.copytree(tmp_path / "whole", parts)
    for name in ("step-00000006.pt", "step-00000008.pt"):
        (parts / "checkpoints" / name).unlink(missing_ok=True)
    with (parts / "damaged.jsonl").open("a") as file:
        file.write('{"image": "cut o')
    done = run(folder, out=parts, resume=True, **common)  # type: ignore[arg-type]
    assert (done.steps, done.damaged) == (8, 3)
    assert same(weights(parts, 8), weights(tmp_path / "whole", 8))


def test_damaged_held_out_images_are_listed_and_not_measured(images: Path, tmp_path: Path):
    held_out = tmp_path / "held out"
    held_out.mkdir()
    for number in (0, 1, 2):
        shutil.copy(images / f"{number:02}.jpg", held_out)
    (held_out / "00b.jpg").write_text("no image")
    done = run(images, RECIPE, out=tmp_path / "run", held_out=held_out, settings=SMALL, workers=0, progress=False)
    assert done.held_out is not None
    assert (done.held_out.images, done.held_out.pairs, done.damaged) == (3, 120, 1)
    assert "00b.jpg" in (tmp_path / "run" / "damaged.jsonl").read_text()
    for path in held_out.iterdir():
        path.write_text("no image")
    with pytest.raises(ImageError, match=r"None of the held-out images can be read; .*00\.jpg"):
        run(images, RECIPE, out=tmp_path / "none", held_out=held_out, settings=SMALL, workers=0, progress=False)


def test_divergence_stops_with_what_to_try(images: Path, tmp_path: Path):
    settings = {**SMALL, "optimizer.kind": "sgd", "optimizer.learning_rate": "1e30"}
    with pytest.raises(TrainingDivergedError, match="Training diverged at step 2 with learning rate"):
        run(images, RECIPE, out=tmp_path / "run", settings=settings, workers=0, progress=False)


def test_starting_from_another_model(finished: Path, images: Path, tmp_path: Path):
    settings = {**SMALL, "optimizer.learning_rate": "1e-12", "schedule.images": "8"}
    run(images, RECIPE, out=tmp_path / "run", settings=settings, init=finished / "model", workers=0, progress=False)
    begun, given = weights(tmp_path / "run", 1), weights(finished)
    for key in given:
        if not key.endswith(("running_mean", "running_var", "num_batches_tracked")):
            torch.testing.assert_close(begun[key], given[key], rtol=0, atol=1e-9)
    about = json.loads((tmp_path / "run" / "run.json").read_text())
    assert about["init"]["taken"] == ["backbone", "neck", "head"]

    # Gone on with, it still tells where it started from; from elsewhere it did not.
    def resumed(init: Path | None) -> tuple[str, ...]:
        done = run(
            images, RECIPE, out=tmp_path / "run", settings=settings, init=init, resume=True, workers=0, progress=False
        )
        assert done.model is not None
        return context_pred.load_pretrained(done.model).card.notes

    assert resumed(None)[1:] == resumed(finished / "model")[1:]
    assert any(note.startswith("Started from") for note in resumed(None))
    with pytest.raises(InvalidInputError, match=r"did not start from .*Leave --init away"):
        resumed(tmp_path / "run" / "model")


def test_a_run_that_was_killed_while_its_folder_was_made_begins(images: Path, tmp_path: Path):
    out = tmp_path / "run"
    out.mkdir()
    (out / ".recipe.toml.abcd").write_text("half of it")
    trained(images, out, resume=True)
    assert (out / "model" / "model.safetensors").is_file()


def test_one_image_in_the_last_micro_batch(images: Path, tmp_path: Path):
    """Batch norm cannot train on one value: said beforehand, and no matter where the length is in images."""
    files = sorted(images.iterdir())[:9]
    small = {key: value for key, value in SMALL.items() if key != "schedule.images"}
    center = {**small, "sampler.pairs": "center", "batch.per_device": "8"}
    done = run(
        files, RECIPE, out=tmp_path / "images", settings={**center, "schedule.images": "16"}, workers=0, progress=False
    )
    assert json.loads((tmp_path / "images" / "result.json").read_text())["images_seen"] == 16
    assert done.steps == 2
    recipe = read_recipe(RECIPE).override(center)
    recipe = replace(recipe, schedule=replace(recipe.schedule, images=None, epochs=1))
    with pytest.raises(InvalidInputError, match="9 images in micro-batches of 8: the smallest would hold one image"):
        run(files, recipe, out=tmp_path / "epochs", workers=0, progress=False)


def test_what_cannot_be_run(images: Path, tmp_path: Path):
    out = tmp_path / "run"
    with pytest.raises(InvalidInputError, match="lies in the folder of images"):
        run(images, RECIPE, out=images / "run", settings=SMALL, progress=False)
    with pytest.raises(InvalidInputError, match="Did you mean"):
        run(images, "resnet18_1xb64-coslr-300", out=out, progress=False)
    with pytest.raises(InvalidInputError, match="No images"):
        run(tmp_path / "nothing", RECIPE, out=out, progress=False)
    with pytest.raises(InvalidInputError, match="given twice"):
        run(images, RECIPE, out=out, batch_size=64, settings={"batch.images": "64"}, progress=False)
    assert not out.exists()


# The runs one after the other, each with a port of its own for its processes to meet at.
SCRIPT = """
import json, os, sys
from context_pred.pretrain import run
for port, options in json.loads(sys.argv[1]):
    os.environ["MASTER_PORT"] = port
    run(**options)
"""


def in_two_processes(*runs: dict[str, object]) -> None:
    """Make the runs as two ranks on this machine; fail where one of them does."""
    work = json.dumps([(free_port(), options) for options in runs])
    for process in in_ranks([work], program=("-c", SCRIPT)):
        assert process.code == 0, process.errors


@pytest.mark.usefixtures("one_thread")  # as each of the two has: other kernels round differently, and a ReLU may turn
def test_two_processes_train_what_one_does(images: Path, tmp_path: Path):
    """Same global batch, an image damaged: 20 steps in double precision, and the first gradient in single precision."""
    folder = tmp_path / "images"
    shutil.copytree(images, folder)
    (folder / "05.jpg").write_text("no image")
    small = {**SMALL, "model.dropout": "0.0", "model.neck_channels": "64"}
    double = {
        **small,
        "schedule.images": "160",
        "run.precision": "float64",
        "run.checkpoint_every": "20",
        "run.held_out": "0.2",
    }
    # Without momentum and decay and at rate 1, a step's change of the weights is its gradient.
    plain = {"optimizer.kind": "sgd", "optimizer.momentum": "0.0", "optimizer.weight_decay": "0.0"}
    single = {**small, **plain, "optimizer.learning_rate": "1.0", "schedule.images": "8"}
    still = {**single, "optimizer.learning_rate": "1e-30"}
    common = {"images": str(folder), "recipe": RECIPE, "workers": 0, "progress": False}
    runs = {"double": double, "single": single}
    in_two_processes(
        *({**common, "settings": settings, "out": str(tmp_path / f"two {name}")} for name, settings in runs.items())
    )
    for name, settings in {**runs, "still": still}.items():
        run(**common, settings=settings, out=tmp_path / f"one {name}")  # type: ignore[arg-type]

    one, other = weights(tmp_path / "one double", 20), weights(tmp_path / "two double", 20)
    assert one.keys() == other.keys()
    for key, value in one.items():
        torch.testing.assert_close(other[key], value, rtol=1e-9, atol=1e-9)
    damaged = [(tmp_path / out / "damaged.jsonl").read_text() for out in ("one double", "two double")]
    assert damaged[0] == damaged[1] != ""
    results = [
        json.loads((tmp_path / out / "result.json").read_text())["held_out"] for out in ("one double", "two double")
    ]
    assert results[0]["confusion"] == results[1]["confusion"]
    assert results[0]["loss"] == pytest.approx(results[1]["loss"], rel=1e-9)

    begun, one, other = (weights(tmp_path / out, 1) for out in ("one still", "one single", "two single"))
    learnt = [key for key in begun if "running" not in key and "tracked" not in key]
    gradients = [torch.cat([(state[key] - begun[key]).flatten() for key in learnt]) for state in (one, other)]
    assert gradients[0].norm() > 1e-3
    assert (gradients[0] - gradients[1]).norm() <= 1e-5 * gradients[0].norm()
