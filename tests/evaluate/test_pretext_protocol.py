"""The pretext protocol: agreement with the audit's way, grey, boxes, refusals, two ranks."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image
from processes import in_ranks

from context_pred import ContextPredictionModel, RandomPairSampler, evaluate
from context_pred.cli import main
from context_pred.errors import ImageError, InvalidInputError
from context_pred.evaluate import Result, pretext_accuracy, published
from context_pred.evaluate.pretext_accuracy import DataOptions, Questions, Settings, _within, read
from context_pred.geometry import as_trained, papers
from context_pred.patches import GridPatchSampler, PatchDraw
from context_pred.patches.layout import OFFSETS

Mini = Any
SHIPPED = "resnet18_1xb64-coslr-300k"


class Oracle(ContextPredictionModel):
    """A model that reads the place of each patch from the colours of the image, and so knows every answer but some."""

    def __init__(self, wrong: float = 0.0) -> None:
        super().__init__("resnet18")
        config = {"type": "GridPatchSampler", "preset": "openmmlab-0.x", "crop": 60, "patch": 16, "grayscale": 0.0}
        self.card = self.card.replace(patch_sampler={**config, "normalize": False})
        self.wrong = wrong

    def forward(self, pairs: Any, *_: Any) -> torch.Tensor:  # type: ignore[override]
        place = pairs.patches.float().mean((2, 3))[:, :2]
        away = (place[pairs.neighbor] - place[pairs.center]).sign()
        near = (place[pairs.neighbor] - place[pairs.center]).abs() < 20
        steps = torch.where(near, torch.zeros_like(away), away)
        offsets = torch.tensor([[dx, dy] for dy, dx in OFFSETS], dtype=steps.dtype)
        logits = -(steps[:, None] - offsets).abs().sum(2)
        if self.wrong:
            logits[: int(self.wrong * len(logits))] = 0
            logits[: int(self.wrong * len(logits)), 0] = 1
        return logits


def ramp(folder: Path, name: str, size: tuple[int, int] = (72, 72)) -> Path:
    """Write an image whose red grows from left to right and whose green grows from top to bottom."""
    folder.mkdir(parents=True, exist_ok=True)
    width, height = size
    red, green = np.meshgrid(np.linspace(0, 255, width), np.linspace(0, 255, height))
    path = folder / f"{name}.png"
    Image.fromarray(np.stack([red, green, 0 * red], 2).astype(np.uint8)).save(path)
    return path


def run(model: Any, data: Any, out: Path, **settings: Any) -> Result:
    options = {"device": "cpu", "workers": 1, "progress": False}
    return evaluate.run("pretext", model, data, out=out, settings=settings, **options)  # type: ignore[arg-type]


def figures(result: Result) -> dict[Any, float]:
    return {(m.metric, m.at.get("position")): m.value for m in result.measured}


@pytest.fixture
def few(tmp_path: Path, photos: Path) -> Path:
    """Twelve photographs."""
    (tmp_path / "few").mkdir()
    for path in sorted(photos.glob("*.jpg"))[:12]:
        (tmp_path / "few" / path.name).symlink_to(path)
    return tmp_path / "few"


@pytest.fixture
def ramps(tmp_path: Path) -> Path:
    for number in range(5):
        ramp(tmp_path / "ramps", str(number))
    return tmp_path / "ramps"


@pytest.mark.parametrize("geometry", ["model", "paper"])
def test_a_model_that_knows_every_place_is_always_right(ramps: Path, tmp_path: Path, geometry: str) -> None:
    result = run(Oracle(), ramps, tmp_path / "out", geometry=geometry, size=72 if geometry == "model" else 0)
    found = figures(result)
    assert found[("accuracy", None)] == 1.0
    assert {position for _, position in found} == {None, *pretext_accuracy.POSITIONS}
    assert set(found.values()) == {1.0}


def test_positions_are_told_apart(ramps: Path, tmp_path: Path) -> None:
    """Every guess is up left: only pairs that lie there are right."""
    found = figures(run(Oracle(wrong=1.0), ramps, tmp_path / "out", size=72))
    assert found.pop(("accuracy", "up left")) == 1.0
    assert found.pop(("accuracy", None)) == pytest.approx(1 / 8)
    assert set(found.values()) == {0.0}


def test_command_prints_the_table_with_interval_and_published_figures(few: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    arguments = ["evaluate", "pretext", "--model", SHIPPED, "--data", few, "--out", out, "--no-progress",
                 "--device", "cpu", "--workers", 1, "--set", "draws=2"]  # fmt: skip
    outcome = CliRunner().invoke(main, list(map(str, arguments)), prog_name="context-pred")
    assert outcome.exit_code == 0, outcome.output
    record = json.loads((out / "result.json").read_text())
    whole = next(m for m in record["measured"] if m["metric"] == "accuracy" and not m["at"])
    details = record["details"]["accuracy"]
    count = record["ran_on"]["data"]["test"]
    assert (details["images"], details["pairs"]) == (count, count * 2 * 40)
    assert details["low"] < whole["value"] == details["accuracy"] < details["high"]
    assert whole["value"] > 0.2  # it was trained; chance is 0.125
    weights = np.array(details["confusion"]).sum(1)
    by_position = [m["value"] for m in record["measured"] if "position" in m["at"]]
    assert np.average(by_position, weights=weights) == pytest.approx(whole["value"])
    for text in ("38.40", "40.30", "95 % interval over whole images", "down right", "chance is 12.5 %"):
        assert text in outcome.stdout
    assert (out / "plot.png").is_file()


def test_it_agrees_with_the_audit(few: Path, tmp_path: Path) -> None:
    from context_pred.pretrain import audit

    asked = audit.run(SHIPPED, few, out=tmp_path / "audit", device="cpu", progress=False)
    audited = {t.name: t.result for t in asked.treatments}
    for geometry, name in (("model", "as_trained"), ("paper", "paper")):
        result = run(SHIPPED, few, tmp_path / geometry, geometry=geometry, draws=3)
        details = result.details["accuracy"]
        assert details["low"] < audited[name].high
        assert audited[name].low < details["high"]


def test_settings_reach_the_draws(few: Path) -> None:
    data = read(few, DataOptions())
    sampler = GridPatchSampler(crop=60, patch=16, pairs="adjacent", grayscale=0.5)

    def asked(settings: Settings, seed: int = 0) -> Any:
        geometry = papers(sampler) if settings.geometry == "paper" else as_trained(sampler, settings.size or None)
        assert geometry is not None
        questions = Questions(data, geometry, sampler, settings, 3)
        return questions.example(0, torch.Generator().manual_seed(seed))

    one = asked(Settings(pairs=60, draws=3))
    assert [len(draw.position) for draw in one.draws] == [20, 20, 20]
    uneven = asked(Settings(pairs=62, draws=3))  # 62 at most, not three times 21
    assert [len(draw.position) for draw in uneven.draws] == [20, 21, 21]
    assert [min(p.shape[1:]) for p in one.pixels] == [round(60 * 292 / 255)] * 3
    assert [min(p.shape[1:]) for p in asked(Settings(size=100)).pixels] == [100] * 5
    assert len({tuple(draw.boxes.flatten().tolist()) for draw in one.draws}) == 3
    paper = asked(Settings(geometry="paper"))
    scale = (16 / 96) ** 2
    assert all(149_000 * scale < p.shape[1] * p.shape[2] < 451_000 * scale for p in paper.pixels)
    boxes = paper.draws[0].boxes
    gap = (boxes[paper.draws[0].neighbor] - boxes[paper.draws[0].center]).abs()[:, :2].amax(1) - 16
    assert 8 - 2 <= gap.min() <= gap.max() <= 8 + 2  # half a patch, and 7/96 of it as jitter for each of the two
    for geometry in ("model", "paper"):
        for grey, share in (("none", 0.0), ("all", 1.0), ("model", 0.5)):
            settings = Settings(geometry=geometry, grey=grey, draws=5)  # type: ignore[arg-type]
            turned = [bool(draw.grayscale) for seed in range(12) for draw in asked(settings, seed).draws]
            assert np.mean(turned) == pytest.approx(share, abs=0.0 if share in (0, 1) else 0.2)


def test_only_pairs_within_one_box_count_as_inside() -> None:
    patches = torch.tensor([[0, 0, 10, 10], [12, 0, 22, 10], [30, 30, 40, 40], [45, 30, 55, 40]])
    none = torch.zeros(4, dtype=torch.int64)
    draw = PatchDraw(patches, none, torch.tensor([0, 1, 2, 3]), torch.tensor([1, 2, 3, 2]), torch.tensor([0, 1, 2, 3]))
    boxes = torch.tensor([[0.0, 0, 22, 10], [30.0, 30, 44, 40], [11.0, 0, 60, 60]])
    assert _within(draw, boxes, 0).tolist() == [True, True, True, True]
    assert _within(draw, boxes[:2], 0).tolist() == [True, False, False, False]
    assert _within(draw, boxes[:2], 11).tolist() == [False] * 4  # a shorter side of 10 px is too small
    assert _within(draw, boxes[:0], 0).tolist() == [False] * 4


def voc(root: Path, box: tuple[int, int, int, int]) -> Path:
    """A folder in VOC's layout, four images of 144 px, one box each."""
    for number in range(4):
        ramp(root / "JPEGImages", f"{number}", (144, 144)).rename(root / "JPEGImages" / f"{number}.jpg")
        names = ("xmin", "ymin", "xmax", "ymax")
        corners = "".join(f"<{name}>{v}</{name}>" for name, v in zip(names, box, strict=True))
        (root / "Annotations").mkdir(exist_ok=True)
        (root / "Annotations" / f"{number}.xml").write_text(
            f"<annotation><size><width>144</width><height>144</height><depth>3</depth></size>"
            f"<object><name>cup</name><difficult>0</difficult><bndbox>{corners}</bndbox></object></annotation>"
        )
    lists = root / "ImageSets" / "Main"
    lists.mkdir(parents=True)
    (lists / "trainval.txt").write_text("0\n1\n")
    (lists / "test.txt").write_text("2\n3\n")
    return root


def test_boxes_give_a_figure_of_their_own(tmp_path: Path) -> None:
    folder = voc(tmp_path / "cups", (1, 1, 80, 144))
    result = run(Oracle(), folder, tmp_path / "out", size=72, draws=20, pairs=400)
    found = figures(result)
    assert found[("accuracy", None)] == found[("accuracy inside boxes", None)] == 1.0
    inside, everywhere = (result.details[key]["pairs"] for key in ("accuracy_inside_boxes", "accuracy"))
    assert 0 < inside < everywhere / 2
    assert result.ran_on["data"]["kind"] == "boxes"
    assert "4 boxes." in str(result)
    assert len(read(folder, DataOptions(split="test")).photographs) == 2
    assert read(folder, DataOptions(layout="images")).boxes is None
    small = voc(tmp_path / "small", (1, 1, 9, 9))
    assert "No pair lay within a box; more pairs and more draws" in str(
        run(Oracle(), small, tmp_path / "small-out", size=72)
    )


def test_boxes_are_scaled_with_their_image(tmp_path: Path) -> None:
    folder = voc(tmp_path / "cups", (1, 1, 72, 144))
    data = read(folder, DataOptions())
    sampler = GridPatchSampler(crop=60, patch=16, pairs="adjacent")
    questions = Questions(data, as_trained(sampler, 72), sampler, Settings(draws=20, pairs=800), 3)
    one = questions.example(0, torch.Generator())
    assert isinstance(one, pretext_accuracy.Asked)
    right = [draw.boxes[ends, 2].max().item() for draw, inside in zip(one.draws, one.inside, strict=True)
             for ends in torch.stack([draw.neighbor[inside], draw.center[inside]], 1)]  # fmt: skip
    assert right
    assert max(right) <= 36  # the box ends in the middle of the image, as it was scaled
    assert sum(int((~inside).sum()) for inside in one.inside) > 0


def test_images_are_chosen_at_random_and_seeds_give_spreads(few: Path, tmp_path: Path) -> None:
    settings = {"images": 4, "draws": 1}
    result = evaluate.run(
        "pretext", SHIPPED, few, out=tmp_path / "out", settings=settings, seeds=(0, 1), device="cpu", workers=1,
        progress=False,
    )  # fmt: skip
    assert [part["details"]["accuracy"]["images"] for part in result.details["by_seed"]] == [4, 4]
    assert result.measured[0].spread is not None


def test_backbones_alone_pixels_and_sizes_too_small_are_refused(ramps: Path, tmp_path: Path) -> None:
    for model in ("random:resnet18", "hog", ContextPredictionModel("resnet18", pair_layers=False)):
        with pytest.raises(InvalidInputError, match="a backbone alone, without the neck and head"):
            run(model, ramps, tmp_path / "out")
    with pytest.raises(InvalidInputError, match=r"size = 20: accepted.*60 px or more"):
        run(Oracle(), ramps, tmp_path / "out", size=20)
    with pytest.raises(InvalidInputError, match=r"pairs = 2, draws = 5"):
        run(Oracle(), ramps, tmp_path / "out", pairs=2)
    with pytest.raises(InvalidInputError, match="Did you mean 'boxes'"):
        run(Oracle(), ramps, tmp_path / "out", layout="boxs")


def test_random_weights_with_pair_layers_and_the_authors_sampler_are_measured(tmp_path: Path, ramps: Path) -> None:
    torch.manual_seed(0)
    model = ContextPredictionModel("resnet18")
    sampler = {"type": "RandomPairSampler", **RandomPairSampler(patch=16, gap=8, jitter=1).to_config()}
    model.card = model.card.replace(patch_sampler=sampler)
    result = run(model, ramps, tmp_path / "out", draws=1, geometry="paper")
    assert 0.0 < result.measured[0].value < 0.5
    grey = ContextPredictionModel("resnet18", in_channels=1)
    small = {"type": "GridPatchSampler", "preset": "openmmlab-0.x", "crop": 60, "patch": 16}
    grey.card = grey.card.replace(patch_sampler=small)
    assert run(grey, ramps, tmp_path / "grey", draws=1).measured


def test_damaged_images_are_named_or_left_out(ramps: Path, tmp_path: Path) -> None:
    (ramps / "1.png").write_bytes(b"\x89PNG nothing")
    (ramps / "3.png").write_text("words")
    with pytest.raises(ImageError, match=r"2 of the images.*1\.png.*3\.png.*skip_damaged"):
        run(Oracle(), ramps, tmp_path / "out", size=72)
    result = run(Oracle(), ramps, tmp_path / "skip", size=72, skip_damaged=True)
    assert result.details["accuracy"]["images"] == 3
    assert "2 damaged images were left out" in str(result)


def test_two_ranks_count_every_image_once(few: Path, tmp_path: Path) -> None:
    alone = run(SHIPPED, few, tmp_path / "alone", draws=1)
    code = (
        "import sys; from context_pred import evaluate\n"
        f"evaluate.run('pretext', {SHIPPED!r}, sys.argv[1], out=sys.argv[2], settings={{'draws': 1}}, device='cpu',"
        " workers=1, progress=False)"
    )
    ended = in_ranks([few, tmp_path / "out"], program=("-c", code))
    assert [process.code for process in ended] == [0, 0], ended
    record = json.loads((tmp_path / "out" / "result.json").read_text())
    assert record["details"]["accuracy"]["confusion"] == alone.details["accuracy"]["confusion"]
    assert record["details"]["accuracy"]["images"] == alone.details["accuracy"]["images"]


def test_published_figures_are_the_papers() -> None:
    found = [(p.metric, round(100 * p.value, 1), p.data) for p in published.figures("pretext")]
    assert found == [
        ("accuracy", 38.4, "VOC2007"), ("accuracy", 39.5, "ImageNet-1k"), ("accuracy", 40.3, "ImageNet-1k"),
        ("accuracy inside boxes", 39.2, "VOC2007"), ("accuracy inside boxes", 45.6, "VOC2007"),
    ]  # fmt: skip


def test_the_positions_names_are_those_of_the_layout() -> None:
    down, right = {-1: "up ", 0: "", 1: "down "}, {-1: "left", 0: "", 1: "right"}
    assert tuple((down[dy] + right[dx]).strip() for dy, dx in OFFSETS) == pretext_accuracy.POSITIONS
