"""The command: what it prints, and how it fails."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from click.testing import CliRunner, Result

import context_pred
from context_pred.cli import main
from context_pred.zoo.registry import shipped

SHIPPED = shipped()[0].name


def call(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(a) for a in arguments], prog_name="context-pred")


def commands(group: click.Group, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    for name, command in group.commands.items():
        if isinstance(command, click.Group):
            yield from commands(command, (*path, name))
        else:
            yield (*path, name), command


COMMANDS = dict(commands(main))


def test_the_commands_are_the_promised_ones() -> None:
    names = {" ".join(path) for path in COMMANDS}
    zoo = {f"zoo {name}" for name in ("pull", "verify", "convert", "results", "export", "publish", "pin")}
    picture = {"picture features", "picture pretext", "picture map", "picture similarity"}
    assert names == {
        "models",
        "extract",
        "neighbors",
        "discover",
        "serve",
        "pretrain",
        "audit",
        "evaluate",
        *picture,
        *zoo,
    }


def test_version() -> None:
    result = call("--version")
    assert (result.exit_code, result.output) == (0, f"context-pred, version {context_pred.__version__}\n")


@pytest.mark.parametrize("path", COMMANDS, ids=" ".join)
def test_help_ends_with_one_example_that_parses(path: tuple[str, ...]) -> None:
    result = call(*path, "--help")
    assert result.exit_code == 0
    heading, line = result.output.rstrip().splitlines()[-2:]
    assert heading.strip() == "Example:"
    words = shlex.split(line)
    assert words[: len(path) + 1] == ["context-pred", *path]
    context = COMMANDS[path].make_context(path[-1], words[len(path) + 1 :])
    assert context.params


@pytest.mark.parametrize("path", COMMANDS, ids=" ".join)
def test_every_option_and_the_command_itself_say_what_they_do(path: tuple[str, ...]) -> None:
    assert COMMANDS[path].help
    for parameter in COMMANDS[path].params:
        assert isinstance(parameter, click.Argument) or parameter.help, parameter.name


# Mistakes: one line on stderr, exit status 2, nothing on stdout.


def fails(result: Result, *words: str) -> None:
    assert result.exit_code == 2, result.output
    assert isinstance(result.exception, SystemExit), repr(result.exception)
    assert result.stdout == ""
    line = result.stderr.removesuffix("\n")
    assert "\n" not in line
    assert line.startswith("Error: ")
    for word in words:
        assert word in line


def test_unknown_model(photos: Path, tmp_path: Path) -> None:
    mistyped = SHIPPED.replace("resnet", "resnt")
    fails(call("extract", photos, "--model", mistyped, "--out", tmp_path / "f.safetensors"), mistyped, f"'{SHIPPED}'")
    fails(call("models", mistyped), mistyped, SHIPPED)


def test_pattern_without_a_match() -> None:
    fails(call("models", "vit*"), "vit*")


def test_unknown_layer(photos: Path, tmp_path: Path) -> None:
    result = call("extract", photos, "--layer", "layer3", "--no-progress", "--out", tmp_path / "f.safetensors")
    fails(result, "layer3", "feature4")
    assert list(tmp_path.iterdir()) == []


def test_empty_folder(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    fails(call("extract", tmp_path / "empty", "--out", tmp_path / "f.safetensors"), "empty")


def test_path_that_is_not_there(photos: Path, tmp_path: Path) -> None:
    fails(
        call("extract", photos, "--model", tmp_path / "nowhere.pth", "--out", tmp_path / "f.safetensors"), "nowhere.pth"
    )


def test_text_called_safetensors(photos: Path, tmp_path: Path) -> None:
    (tmp_path / "no.safetensors").write_text("nothing of the kind\n")
    fails(
        call("extract", photos, "--model", tmp_path / "no.safetensors", "--out", tmp_path / "f.safetensors"),
        "no.safetensors",
    )


def test_hub_id_without_a_revision() -> None:
    fails(call("zoo", "pull", "hf-hub:owner/name"), "revision", "hf-hub:owner/name@")


@pytest.mark.parametrize(
    "arguments",
    [
        ["extract"],
        ["extract", "photos"],
        ["extract", "photos", "--out", "f.safetensors", "--pool", "max"],
        ["extract", "photos", "--out", "f.safetensors", "--background", "300", "0", "0"],
        ["extract", "photos", "--out", "f.safetensors", "--shard-rows", "0"],
        ["neighbors", "photos", "--out", "out"],
        ["zoo", "fetch"],
        ["models", "--yaml"],
    ],
    ids=" ".join,
)
def test_usage_errors_exit_with_2(arguments: list[str]) -> None:
    result = call(*arguments)
    assert result.exit_code == 2
    assert result.stderr.splitlines()[-1].startswith("Error: ")


# models


def test_models_lists_every_name() -> None:
    result = call("models")
    assert result.exit_code == 0
    assert [line.split()[0] for line in result.output.splitlines()] == ["name", *context_pred.list_models()]


def test_models_with_a_pattern() -> None:
    result = call("models", "resnet50*")
    names = [line.split()[0] for line in result.output.splitlines()[1:]]
    assert names == context_pred.list_models("resnet50*") != []


def test_models_as_json_are_the_cards() -> None:
    cards = json.loads(call("models", "--json").output)
    names = [name for name in context_pred.list_models() if context_pred.model_info(name).name == name]
    assert sorted(card["name"] for card in cards) == sorted(names)
    for card in cards:
        assert context_pred.Card.from_dict(card) == context_pred.model_info(card["name"])


def test_models_shows_one_card() -> None:
    card = context_pred.model_info(SHIPPED)
    shown = dict(line.split(maxsplit=1) for line in call("models", SHIPPED).output.splitlines() if line)
    assert shown["name"] == card.name
    assert shown["sha256"] == card.sha256
    assert shown["backbone"] == card.backbone


def test_a_card_with_published_numbers_shows_each() -> None:
    name = "resnet50_8xb64-steplr-70e.20220825"
    result = call("models", name)
    assert result.exit_code == 0
    for metric in context_pred.model_info(name).metrics:
        assert re.search(
            rf"^{re.escape(metric.benchmark)} .*\b{re.escape(metric.value)}\b", result.output, re.MULTILINE
        )


# extract and neighbors, on real photographs with the shipped model


@pytest.fixture(scope="module")
def three(tmp_path_factory: pytest.TempPathFactory, photos: Path) -> Path:
    folder = tmp_path_factory.mktemp("three")
    for name in ("flower_red.jpg", "flower_yellow.jpg", "gate_berlin.jpg"):
        shutil.copy(photos / name, folder)
    return folder


def test_extract_writes_every_layer_in_the_order_of_the_index(three: Path, tmp_path: Path) -> None:
    from context_pred import extract

    out = tmp_path / "features.safetensors"
    layers = ["--layer", "feature2", "--layer", "feature5"]
    result = call("extract", three, *layers, "--dtype", "float16", "--workers", 0, "--no-progress", "--out", out)
    assert result.exit_code == 0, result.output
    paths, features = extract.load(out)
    assert [Path(path).name for path in paths] == ["flower_red.jpg", "flower_yellow.jpg", "gate_berlin.jpg"]
    info = context_pred.load_pretrained(SHIPPED).feature_info
    assert {name: array.shape for name, array in features.items()} == {
        name: (3, info[name].channels) for name in ("feature2", "feature5")
    }


def test_extract_lists_what_is_no_image_and_strict_stops_there(three: Path, tmp_path: Path) -> None:
    folder = tmp_path / "mixed"
    shutil.copytree(three, folder)
    (folder / "broken.jpg").write_bytes((three / "gate_berlin.jpg").read_bytes()[:300])
    arguments = ("extract", folder, "--workers", 0, "--no-progress", "--out")
    result = call(*arguments, tmp_path / "f.safetensors")
    assert result.exit_code == 0
    assert "broken.jpg" in result.output
    index = [json.loads(line) for line in (tmp_path / "f.index.jsonl").read_text().splitlines()]
    assert [Path(row["path"]).name for row in index if "error" in row] == ["broken.jpg"]
    fails(call(*arguments, tmp_path / "g.safetensors", "--strict"), "broken.jpg")


def test_extract_takes_several_files(three: Path, tmp_path: Path) -> None:
    from context_pred import extract

    files = [three / "gate_berlin.jpg", three / "flower_red.jpg"]
    result = call("extract", *files, "--workers", 0, "--no-progress", "--out", tmp_path / "f.safetensors")
    assert result.exit_code == 0, result.output
    assert [Path(path) for path in extract.load(tmp_path / "f.safetensors")[0]] == files


def test_neighbors_draws_a_picture(three: Path, tmp_path: Path) -> None:
    from PIL import Image

    result = call("neighbors", three, three, "-k", 2, "--workers", 0, "--no-progress", "--out", tmp_path / "out")
    assert result.exit_code == 0, result.output
    with Image.open(tmp_path / "out" / "neighbors.png") as picture:
        assert picture.format == "PNG"


# zoo


def test_zoo_pull_prints_where_the_shipped_model_lies() -> None:
    result = call("zoo", "pull", SHIPPED)
    assert result.exit_code == 0
    assert context_pred.Card.read(Path(result.output.strip()) / "card.json").name == SHIPPED


def test_zoo_convert_and_verify_a_torchvision_state_dict(tmp_path: Path) -> None:
    import torch
    from torchvision.models import resnet18

    torch.save(resnet18(weights=None).state_dict(), tmp_path / "somebody.pth")
    out = tmp_path / "converted"
    result = call("zoo", "convert", tmp_path / "somebody.pth", out, "--name", "somebody")
    assert (result.exit_code, result.output) == (0, f"{out}\n")
    assert context_pred.load_pretrained(out).card.name == "somebody"
    assert call("zoo", "verify", out).exit_code == 0
    fails(call("zoo", "convert", tmp_path / "somebody.pth", out), "--overwrite")

    weights = bytearray((out / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (out / "model.safetensors").write_bytes(weights)
    damaged = call("zoo", "verify", out)
    assert damaged.exit_code == 1
    assert "NOT OK" in damaged.stdout


def test_the_command_runs_as_a_module() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "context_pred.cli", "zoo", "verify", SHIPPED], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert SHIPPED in done.stdout


def test_an_evaluation_that_was_stopped_has_not_ended_well(monkeypatch: pytest.MonkeyPatch) -> None:
    from context_pred import evaluate
    from context_pred.errors import StoppedError

    def stopped(*_: object, **__: object) -> None:
        raise StoppedError("Stopped at step 5 of 12 of line, with a checkpoint.")

    monkeypatch.setattr(evaluate, "run", stopped)
    result = CliRunner().invoke(main, ["evaluate", "knn", "--data", "photos", "--out", "knn"])
    assert result.exit_code == 130
    assert result.stderr == "Stopped at step 5 of 12 of line, with a checkpoint.\n"
