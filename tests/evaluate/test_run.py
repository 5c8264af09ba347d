"""From command to table: what is written, kept, gone on with and refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from click.testing import Result as Outcome

from context_pred import evaluate
from context_pred.backbones import build_backbone
from context_pred.cli import main
from context_pred.errors import ImageError, InvalidInputError
from context_pred.evaluate import Measurement, Result, features, sources
from context_pred.evaluate import run as run_protocol
from context_pred.evaluate._run import merge

Mini = Any
SMALL = ["--no-progress", "--device", "cpu", "--workers", 1, "--set", "size=32", "--set", "k=1,3"]


def call(protocol: str, data: Path, out: Path, *more: object) -> Outcome:
    arguments = ["evaluate", protocol, "--data", data, "--out", out, *SMALL, *more]
    return CliRunner().invoke(main, [str(a) for a in arguments], prog_name="context-pred")


def run(model: Any, data: Any, out: Path, settings: dict[str, Any] | None = None, **more: Any) -> Result:
    options = {"device": "cpu", "workers": 1, "progress": False} | more
    return run_protocol("knn", model, data, out=out, settings={"size": 32, "k": [1, 3]} | (settings or {}), **options)


def test_command_prints_the_table_and_writes_everything(mini: Mini, tmp_path: Path) -> None:
    out = tmp_path / "out"
    outcome = call("knn", mini.folders("train", "test"), out, "--model", "random:resnet18")
    assert outcome.exit_code == 0, outcome.output
    record = json.loads((out / "result.json").read_text())
    assert {(m["metric"], m["layer"], m["at"]["k"]) for m in record["measured"]} == {
        (metric, "feature5", k) for metric in ("top-1", "top-5") for k in (1, 3)
    }
    assert outcome.stdout.strip() in (out / "result.md").read_text()
    assert (out / "plot.png").read_bytes().startswith(b"\x89PNG")
    ran = record["ran_on"]
    assert ran["data"] | {"notes": 0} == {
        "name": "mini", "kind": "folder", "path": str(mini.root), "train": 6, "test": 6, "classes": 3, "notes": 0
    }  # fmt: skip
    assert ran["transform"]["size"] == 32
    assert ran["transform"]["channel_order"] == "rgb"
    assert ran["seeds"] == [0]
    assert {"python", "torch", "context-pred"} <= set(ran["versions"])
    assert len(ran["digest"]) == 64
    assert ran["settings"]["temperature"] == 0.07
    assert "| feature5 | 1 " in outcome.stdout
    assert ran["other_settings"] == ["size"]
    assert "; the protocol's settings were changed: size = 32." in outcome.stdout


BUILDERS = {
    "imagenet": lambda mini: mini.imagenet_flat(),
    "places205": lambda mini: mini.places(),
    "inat18": lambda mini: mini.inat(),
    "list": lambda mini: mini.lists(),
    "folder": lambda mini: mini.folders("train", "test"),
    "single": lambda mini: mini.folders("", each=3),
}


@pytest.mark.parametrize("layout", BUILDERS)
def test_knn_runs_on_every_layout_of_one_class_an_image(mini: Mini, tmp_path: Path, layout: str) -> None:
    outcome = call("knn", BUILDERS[layout](mini), tmp_path / "out", "--model", "pixels")
    assert outcome.exit_code == 0, outcome.output
    record = json.loads((tmp_path / "out" / "result.json").read_text())
    assert record["ran_on"]["data"]["kind"] == layout
    assert all(note in outcome.stdout for note in record["ran_on"]["data"]["notes"])


def test_knn_refuses_images_of_several_classes(mini: Mini, tmp_path: Path) -> None:
    outcome = call("knn", mini.voc(), tmp_path / "out", "--model", "pixels")
    assert outcome.exit_code == 2
    assert "this protocol needs one class an image" in outcome.stderr


def test_images_seen_before_are_their_own_nearest_neighbours(mini: Mini, tmp_path: Path) -> None:
    data = evaluate.labelled.read(mini.folders("train", "test"))
    same = evaluate.LabelledImages("same", "folder", data.classes, data.train, data.train)
    result = run("pixels", same, tmp_path / "out")
    assert next(m.value for m in result.measured if m.metric == "top-1" and m.at["k"] == 1) == 1.0


def test_the_same_command_goes_on_and_another_is_refused(mini: Mini, tmp_path: Path) -> None:
    data, out = mini.folders("train", "test"), tmp_path / "out"
    first = run("pixels", data, out)
    files = {path: path.stat().st_mtime_ns for path in (out / "features").iterdir()}
    again = run("pixels", data, out)
    assert {path: path.stat().st_mtime_ns for path in (out / "features").iterdir()} == files
    assert first.measured == again.measured
    with pytest.raises(
        InvalidInputError, match=r"holds another evaluation: k was \[1, 3\] and is \[2\]\. .*--overwrite"
    ):
        run("pixels", data, out, {"k": [2]})
    changed = run("pixels", data, out, {"k": [2]}, overwrite=True)
    assert {m.at["k"] for m in changed.measured} == {2}


def test_more_seeds_of_the_same_run_give_means_and_spreads(mini: Mini, tmp_path: Path) -> None:
    data, out = mini.folders("train", "test", each=4), tmp_path / "out"
    one = run("random:resnet18", data, out)
    assert all(m.spread is None for m in one.measured)
    three = run("random:resnet18", data, out, seeds=(0, 1, 2))
    assert three.ran_on["seeds"] == [0, 1, 2]
    values = [[m["value"] for m in seed["measured"]] for seed in three.details["by_seed"]]
    assert values[0] == [m.value for m in one.measured]
    for m, column in zip(three.measured, np.transpose(values), strict=True):
        assert m.count == 3
        assert m.value == pytest.approx(column.mean())
        assert m.spread == pytest.approx(column.std(ddof=1))
        assert (m.low, m.high) == (column.min(), column.max())
    assert "± " in str(three)
    assert "over 3 seeds" in str(three)


def test_seeds_without_anything_to_draw_run_once(mini: Mini, tmp_path: Path) -> None:
    result = run("pixels", mini.folders("train", "test"), tmp_path / "out", seeds=(4, 5))
    assert result.ran_on["seeds"] == [4]
    assert "seed 4 alone was run" in str(result)


def test_features_can_be_shared_and_are_not_mixed_up(mini: Mini, tmp_path: Path) -> None:
    data, shared = mini.folders("train", "test"), tmp_path / "shared"
    model = "random:resnet18"
    run(model, data, tmp_path / "a", features=shared, layers=["feature2", "feature5"])
    before = {path: path.stat().st_mtime_ns for path in shared.iterdir()}
    run(model, data, tmp_path / "b", {"k": [2]}, features=shared, layers="feature2")
    assert {path: path.stat().st_mtime_ns for path in shared.iterdir()} == before
    run(model, data, tmp_path / "c", {"size": 48}, features=shared, layers="feature2")
    mini.photo("test", "bird", "0.jpg")  # another photograph under the same name
    run(model, data, tmp_path / "d", features=shared, layers="feature2")
    counts = {name: len(list(shared.glob(f"{name}-*.safetensors"))) for name in ("train", "test")}
    assert counts == {"train": 2, "test": 3}


@pytest.mark.parametrize("how", ["cut", "emptied", "overwritten"])
def test_features_whose_file_is_damaged_are_computed_anew(
    mini: Mini, tmp_path: Path, caplog: pytest.LogCaptureFixture, how: str
) -> None:
    data, kept = mini.folders("train", "test"), tmp_path / "kept"
    first = run("random:resnet18", data, tmp_path / "out", features=kept)
    path = next(kept.glob("train-*.safetensors"))
    content = path.read_bytes()
    path.write_bytes({"cut": content[: len(content) // 2], "emptied": b"", "overwritten": b"x" * len(content)}[how])
    assert run("random:resnet18", data, tmp_path / "out", features=kept).measured == first.measured
    assert f"{path} is damaged; its features are computed anew." in caplog.text
    assert path.read_bytes() == content


def test_features_of_another_device_have_a_file_of_their_own(tmp_path: Path) -> None:
    source = sources.find("pixels")
    transform = features.Preprocessing(32).transform(source.model.transform)
    places = [
        features._place(tmp_path, "train", source, [tmp_path], "pixels", ["pixels"], transform, "none", device)
        for device in ("cpu", "cuda", "cpu")
    ]
    assert places[0] == places[2] != places[1]


def test_a_damaged_image_is_an_error_that_names_it(mini: Mini, tmp_path: Path) -> None:
    data = mini.folders("train", "test")
    (data / "train" / "cat" / "0.jpg").write_bytes(b"\xff\xd8 nothing")
    (data / "test" / "dog" / "1.jpg").write_text("words")
    with pytest.raises(ImageError, match=r"1 of the images.*train/cat/0\.jpg .*--set skip_damaged=true"):
        run("pixels", data, tmp_path / "out")


def test_damaged_images_are_left_out_on_demand_and_labels_stay_beside_features(
    mini: Mini, another: Callable[[str], Mini], tmp_path: Path
) -> None:
    data = mini.folders("train", "test", each=3)
    clean = another("clean").folders("train", "test", each=3)
    for file in ("train/cat/1.jpg", "test/bird/0.jpg"):
        (data / file).write_text("words")
        (clean / file).unlink()
    result = run("random:resnet18", data, tmp_path / "out", {"skip_damaged": True})
    expected = run("random:resnet18", clean, tmp_path / "expected")
    assert [m.value for m in result.measured] == [m.value for m in expected.measured]
    assert (result.ran_on["data"]["train"], result.ran_on["data"]["test"]) == (8, 8)
    assert "1 damaged images were left out" in str(result)
    assert "train/cat/1.jpg" in (tmp_path / "out" / "result.md").read_text()


def test_a_run_that_failed_leaves_a_folder_that_another_may_take(mini: Mini, tmp_path: Path) -> None:
    data, out = mini.folders("train", "test"), tmp_path / "out"
    with pytest.raises(InvalidInputError, match=r"k = \[50\], but there are 6 images.*as --set k=1,5"):
        run("pixels", data, out, {"k": [50]})
    assert run("pixels", data, out).measured


def test_out_that_is_not_ours_or_lies_in_the_data(mini: Mini, tmp_path: Path) -> None:
    data = mini.folders("train", "test")
    (tmp_path / "mine" / "features").mkdir(parents=True)
    (tmp_path / "mine" / "features" / "note.txt").write_text("keep me")
    with pytest.raises(InvalidInputError, match="holds files, and no evaluation"):
        run("pixels", data, tmp_path / "mine")
    run("pixels", data, tmp_path / "mine", overwrite=True)
    assert (tmp_path / "mine" / "features" / "note.txt").read_text() == "keep me"
    with pytest.raises(InvalidInputError, match="lies within the data"):
        run("pixels", data, data / "out")
    (tmp_path / "file").touch()
    with pytest.raises(InvalidInputError, match="is a file"):
        run("pixels", data, tmp_path / "file")


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--model", "hgo"], ["'hog'"]),
        (["--set", "temprature=1"], ["'temperature'", "skip_damaged"]),
        (["--set", "k"], ["KEY=VALUE"]),
        (["--set", "k=none"], ["--set k=none: accepted are numbers", "as 1,2"]),
        (["--model", "pixels", "--layer", "feature9"], ["feature9", "pixels"]),
        (["--model", "pixels", "--variant", "imagenet"], ["no variants"]),
        (["--model", "pixels", "--set", "k=700"], ["6 images to learn from"]),
        (["--model", "pixels", "--device", "gpu"], ["device='gpu'"]),
        (["--model", "pixels", "--set", "memory=10KB"], ["memory"]),
    ],
    ids=lambda more: " ".join(map(str, more)),
)
def test_mistakes_are_one_line_and_exit_with_2(mini: Mini, tmp_path: Path, more: list[str], words: list[str]) -> None:
    outcome = call("knn", mini.folders("train", "test"), tmp_path / "out", *more)
    assert outcome.exit_code == 2
    assert outcome.stdout == ""
    for word in words:
        assert word in outcome.stderr.splitlines()[-1]


def test_unknown_protocol_and_missing_data(mini: Mini, tmp_path: Path) -> None:
    assert "Did you mean 'knn'" in call("knnn", tmp_path, tmp_path / "out").stderr
    assert "is no folder" in call("knn", tmp_path / "nowhere", tmp_path / "out", "--model", "pixels").stderr


def test_data_of_another_kind_is_refused(mini: Mini, tmp_path: Path) -> None:
    for protocol, data, kind in (("knn", None, "LabelledImages"), ("pretext", mini, "PretextImages")):
        with pytest.raises(InvalidInputError, match=f"{type(data).__name__}; {protocol} takes a path or {kind}"):
            run_protocol(protocol, "pixels", data, out=tmp_path / "out", progress=False)  # type: ignore[arg-type]


def test_matplotlib_is_asked_for_before_anything_is_computed(
    mini: Mini, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "matplotlib.figure", None)
    with pytest.raises(InvalidInputError, match=r"needs matplotlib, .*context-pred\[eval\]"):
        run("pixels", mini.folders("train", "test"), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_merging_takes_the_best_of_the_means() -> None:
    def result(*values: float) -> Result:
        measured = tuple(Measurement("mAP", v, f"feature{k}") for k, v in enumerate(values))
        return Result("svm", None, measured, best=max(measured, key=lambda m: m.value))

    merged = merge([result(0.5, 0.1), result(0.2, 0.4), result(0.1, 0.4)], (0, 1, 2))
    assert merged.best is not None
    assert (merged.best.layer, merged.best.value) == ("feature1", pytest.approx(0.3))


def test_settings_that_are_not_the_rows_own_are_named() -> None:
    from context_pred.evaluate import linear
    from context_pred.evaluate._run import _other_settings

    def other(**given: Any) -> tuple[str, ...]:
        chosen = linear.Settings(**linear.defaults("imagenet", given) | given)
        return _other_settings("linear", linear, linear.Settings, chosen, "imagenet", given)

    assert other() == other(pool="gap") == other(pool="gap", version="1.x") == other(memory="2GB") == ()
    assert other(epochs=30, batch=64) == ("epochs", "milestones", "batch")
    assert other(pool="gap", learning_rate=1.0) == ("learning_rate",)
    assert other(version="1.x") == ("version", "milestones", "resampling", "lighting_on")


def test_variants_of_a_protocol_follow_the_data_or_the_choice() -> None:
    from context_pred.evaluate._run import _variant

    module = SimpleNamespace(VARIANTS=("imagenet", "places205"))
    data: Any = SimpleNamespace(kind="places205")
    assert _variant("linear", module, None, data) == "places205"
    assert _variant("linear", module, "imagenet", data) == "imagenet"
    assert _variant("linear", module, None, SimpleNamespace(kind="list")) == "imagenet"  # type: ignore[arg-type]
    with pytest.raises(InvalidInputError, match="'places205'"):
        _variant("linear", module, "places", data)


def test_a_network_given_from_python_is_said_to_be(mini: Mini, tmp_path: Path) -> None:
    from context_pred.evaluate import FeatureMaps

    maps = FeatureMaps(build_backbone("resnet18"), "my network")
    said = str(run(maps, mini.folders("train", "test"), tmp_path / "out"))
    assert "The model was given from Python; in the command 'my network' stands for it." in said
    assert "given from Python" not in str(run("pixels", mini.root, tmp_path / "pixels"))


def test_features_are_not_kept_where_they_would_become_a_class(mini: Mini, tmp_path: Path) -> None:
    data = mini.folders("", each=3)
    with pytest.raises(InvalidInputError, match=r"features='.*feat' lies within the data"):
        run("pixels", data, tmp_path / "out", features=data / "feat")
    mini.folders("train", "test")
    run("pixels", data, tmp_path / "out", features=data / "feat")


def test_images_that_are_learned_from_and_asked_are_told(mini: Mini, tmp_path: Path) -> None:
    data = mini.lists()
    said = str(run("pixels", data, tmp_path / "out", {"lists": "train.txt+test.txt,test.txt"}))
    assert "3 files are listed twice; figures on images that were learned from say little." in said
    assert "listed twice" not in str(run("pixels", data, tmp_path / "usual"))
