"""The report: published figures beside measured ones, and only where they belong."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import context_pred
from context_pred.evaluate import Measurement, Result
from context_pred.evaluate.published import _FIGURES, figures
from context_pred.evaluate.report import text, to_dict, write

FIRST, SECOND, THIRD = (f"resnet50_8xb64-steplr-70e.{date}" for date in ("20211213", "20220225", "20220825"))


def result(file: str, kind: str = "imagenet", at: dict[str, Any] | None = None, train: int = 1_281_167) -> Result:
    ran_on = {
        "model": "resnet50_8xb64-steplr-70e",
        "file": file,
        "data": {"name": "data", "kind": kind, "train": train, "test": 50_000, "notes": []},
    }
    one = Measurement("top-1", 0.3871, "feature5", at or {"pool": "gap"})
    return Result("linear", "imagenet", (one,), figures("linear", "imagenet"), one, ran_on)


@pytest.mark.parametrize(("file", "value"), [(FIRST, "39.65"), (SECOND, "38.78"), (THIRD, "40.40")])
def test_the_figure_beside_is_the_one_of_the_file_measured(file: str, value: str) -> None:
    row = next(line for line in text(result(file)).splitlines() if line.startswith("| feature5"))
    assert row.split("|")[-2].strip() == f"{value} [1]"


def test_of_other_weights_all_figures_stand_beside_with_their_files() -> None:
    shown = text(result(""))
    row = next(line for line in shown.splitlines() if line.startswith("| feature5"))
    assert [cell.split()[0] for cell in row.split("|")[-2].split(" / ")] == ["39.65", "38.78", "40.40", "38.83"]
    for number, file in ((1, FIRST), (2, SECOND), (3, THIRD)):
        assert any(line.startswith(f"- [{number}] ") and file in line for line in shown.splitlines())


def test_other_data_or_other_weights_are_not_to_be_held_against() -> None:
    assert "not to be held against" not in text(result(SECOND))
    assert "this one is on data" in text(result(SECOND, kind="list"))
    assert "ImageNet-1k has 1,281,167 and 50,000 images, and these are 12 and 50,000" in text(result(SECOND, train=12))
    assert "they are of a ResNet-50" in text(result(""))


def test_changed_settings_and_the_papers_own_network_are_said() -> None:
    one = result(SECOND)
    ran_on = {**one.ran_on, "settings": {"size": 32, "epochs": 2, "scale": (0.1, 1.0)}}
    assert "not to be held against" not in text(replace(one, ran_on={**ran_on, "other_settings": []}))
    shown = text(replace(one, ran_on={**ran_on, "other_settings": ["size", "scale"]}))
    assert "against this run: the protocol's settings were changed: size = 32, scale = 0.1 1." in shown
    data = {"kind": "voc2007", "name": "VOC2007", "train": 5011, "test": 4952, "notes": []}
    paper = replace(one, protocol="detection", variant="voc07-fast-rcnn", published=figures("detection", "voc07-rcnn"))
    assert "they are of the paper's own network" in text(replace(paper, ran_on={**ran_on, "data": data}))


def test_figures_of_random_and_supervised_networks_are_listed_and_never_stand_beside() -> None:
    shown = text(result(""))
    table = [line for line in shown.splitlines() if line.startswith("|")]
    assert not any("74.12" in line or "4.35" in line for line in table)
    assert "74.12 (feature5, pool = gap): ImageNet supervised, ImageNet-1k, OpenSelfSup" in shown


def test_json_keeps_every_field(tmp_path: Path) -> None:
    write(result(FIRST), tmp_path)
    record = json.loads((tmp_path / "result.json").read_text())
    assert record == json.loads(json.dumps(to_dict(result(FIRST))))
    assert record["best"]["value"] == 0.3871
    assert sorted(path.name for path in tmp_path.iterdir()) == ["plot.png", "result.json", "result.md"]


def test_the_axis_of_the_plot_names_measured_and_published_values(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from matplotlib.axes import Axes

    from context_pred.evaluate.plot import draw

    asked: list[list[str]] = []
    monkeypatch.setattr(Axes, "set_xticks", lambda panel, ticks, labels: asked.append(list(labels)))
    measured = tuple(Measurement("top-1", 0.3, "feature5", {"k": k}) for k in (1, 20))
    draw(Result("knn", None, measured, figures("knn"), ran_on={}), tmp_path / "plot.png")
    shares = tuple(Measurement("top-1", 0.3, None, {"labels": share}) for share in ("1 %", "10 %"))
    draw(Result("semi-supervised", None, shares, figures("semi-supervised"), ran_on={}), tmp_path / "plot.png")
    assert asked == [["1", "10", "20", "100", "200"], ["labels 1 %", "labels 10 %"]]


def test_the_plot_says_what_hollow_points_are_on_whichever_layer_they_stand(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from matplotlib.figure import Figure

    from context_pred.evaluate.plot import draw

    named: list[str] = []
    monkeypatch.setattr(Figure, "legend", lambda figure, handles, labels, **_: named.extend(labels))
    layers = [f"feature{number}" for number in range(1, 6)]
    measured = tuple(Measurement("mAP", 0.3, layer, {"k": k}) for layer in layers for k in (1, 2))
    draw(Result("low-shot-svm", None, measured, figures("low-shot-svm"), ran_on={}), tmp_path / "plot.png")
    assert named.count("published (VOC2007)") == 1
    assert set(layers) < set(named)


def test_published_figures_are_those_of_the_cards() -> None:
    """The cards were written from the same sources on their own; a slip in either shows here."""
    ours = {f"{100 * f.value:.2f}" for key in _FIGURES for f in _FIGURES[key] if f.of == "relative location"}
    by_file: dict[str, set[str]] = {
        file: {f"{100 * f.value:.2f}" for key in _FIGURES for f in _FIGURES[key] if f.file == file}
        for file in (FIRST, SECOND, THIRD)
    }
    for name in (FIRST, SECOND, THIRD):
        for metric in context_pred.model_info(name).metrics:
            value = f"{float(metric.value):.2f}"
            assert value in (by_file[metric.measured_on] if metric.measured_on else ours), metric
        assert len(by_file[name]) == len({m.value for m in context_pred.model_info(name).metrics if m.measured_on})


def test_every_row_of_low_shot_has_eight_figures() -> None:
    rows: dict[tuple[str, str], list[float]] = {}
    for figure in figures("low-shot-svm"):
        rows.setdefault((figure.source, figure.of), []).append(float(figure.at["k"]))
    assert len(rows) == 4
    assert all(ks == [1, 2, 4, 8, 16, 32, 64, 96] for ks in rows.values())


def test_an_option_that_is_not_set_does_not_read_as_a_folder() -> None:
    one = result(FIRST)
    said = text(replace(one, ran_on={**one.ran_on, "settings": {"drawn": "", "k": (1, 2)}}))
    assert "Settings: drawn = '', k = 1 2." in said


def test_figures_of_other_models_are_told_in_a_line_a_source() -> None:
    shown = text(result(FIRST)).splitlines()
    random = [line for line in shown if "random initialisation" in line]
    assert random == [
        "- top-1 11.37 (feature1), 16.21 (feature2), 13.47 (feature3), 9.07 (feature4), 6.54 (feature5), "
        "4.35 (feature5, pool = gap): random initialisation, ImageNet-1k, OpenSelfSup"
    ]


def test_metrics_of_one_figure_each_share_a_panel(tmp_path: Path) -> None:
    from PIL import Image

    from context_pred.evaluate.plot import draw

    metrics = ("box AP", "box AP50", "box AP75", "mask AP", "mask AP50", "mask AP75")
    measured = tuple(Measurement(metric, 0.1, None) for metric in metrics)
    draw(Result("detection", "coco-fpn", measured, figures("detection", "coco-fpn"), ran_on={}), tmp_path / "plot.png")
    with Image.open(tmp_path / "plot.png") as plot:
        assert plot.width < 1000


@pytest.mark.filterwarnings("error")
def test_a_script_that_the_font_lacks_is_no_warning(tmp_path: Path) -> None:
    from context_pred.evaluate.plot import draw

    measured = (Measurement("mIoU", 0.5, None), Measurement("IoU", 0.5, None, {"class": "猫"}))
    draw(Result("segmentation", None, measured, ran_on={}), tmp_path / "plot.png")
