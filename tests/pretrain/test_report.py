"""The report: one page, whole, that holds the figures of the run's files and nothing that is not escaped."""

from __future__ import annotations

import base64
import dataclasses
import io
import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from context_pred.data.collection import collect
from context_pred.data.images import open_image
from context_pred.errors import InvalidInputError, StorageError
from context_pred.markup import duration, element, escaped, joined, picture
from context_pred.patches import GridPatchSampler
from context_pred.patches.layout import POSITIONS
from context_pred.pretext import PretextResult, Tally
from context_pred.pretrain import report
from context_pred.pretrain.check import check
from context_pred.pretrain.prepare import Preparation
from context_pred.pretrain.recipe import read_recipe
from context_pred.pretrain.report import charts
from context_pred.pretrain.report.sections import rate_text
from context_pred.training.progress import Progress

VOID = {"br", "img", "meta"}
EVIL = "<script>alert(\"1\")</script> & 'ü' \udce9\u202egpj.jpg"


class Page(HTMLParser):
    """A page taken apart; one that is not well-formed is an error."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.texts: list[str] = []
        self.feed(text)
        self.close()
        assert not self.open, f"never closed: {self.open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        names = [name for name, _ in attrs]
        assert len(names) == len(set(names)), f"twice the same attribute: {attrs}"
        self.tags.append((tag, {name: value or "" for name, value in attrs}))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.texts.append(data.replace("\N{NO-BREAK SPACE}", " "))

    def named(self, tag: str, class_: str = "") -> list[dict[str, str]]:
        return [attrs for name, attrs in self.tags if name == tag and class_ in attrs.get("class", "")]

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.texts).split())


def measured(seed: int, strength: float) -> PretextResult:
    generator = torch.Generator().manual_seed(seed)
    tally = Tally()
    position = torch.arange(8).repeat(30)
    logits = torch.randn(240, 8, generator=generator) + strength * torch.eye(8)[position]
    tally.add(logits, position, torch.arange(30).repeat_interleave(8))
    return tally.result()


def sampled(photos: Path) -> dict[str, torch.Tensor]:
    sampler = GridPatchSampler(crop=96, patch=24, normalize=False)
    images = [torch.from_numpy(np.array(open_image(path))).permute(2, 0, 1) for path in sorted(photos.glob("*.jpg"))]
    generator = torch.Generator().manual_seed(0)
    pairs = [sampler.cut(i[None], sampler.draw([(i.shape[1], i.shape[2])], generator)) for i in images[:10]]
    picked = [k % 8 for k in range(len(pairs))]
    logits = torch.randn(len(pairs), 8, generator=generator)
    return {
        "neighbors": torch.stack([p.patches[p.neighbor[k]] for p, k in zip(pairs, picked, strict=True)]),
        "centers": torch.stack([p.patches[p.center[k]] for p, k in zip(pairs, picked, strict=True)]),
        "position": torch.stack([p.position[k] for p, k in zip(pairs, picked, strict=True)]),
        "probabilities": logits.softmax(1),
    }


@pytest.fixture
def run(tmp_path: Path, finished: Path) -> Path:
    """A copy of a finished run's folder."""
    return Path(shutil.copytree(finished, tmp_path / "run"))


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, photos: Path) -> Path:
    """A finished run's folder, made by what makes the real ones, but for the training itself."""
    folder = tmp_path_factory.mktemp("finished") / "run"
    recipe = read_recipe("resnet18_1xb64-coslr-300k")
    with Progress(folder, total_steps=24, start_step=0, images_per_step=64, bar=False, every=2) as progress:
        for step in range(1, 25):
            progress.step(step, step / 8, 0.03, 2.1 - step / 50, 0.1 + step / 100, 64, 0.0)
            if step % 8 == 0:
                progress.held_out(step, measured(step, step / 16))
    (folder / "recipe.toml").write_text(recipe.to_toml(), encoding="utf-8")
    corpus = check(collect(str(photos / "*.jpg")), Preparation(recipe.images, recipe.make_sampler(), 3))
    about = {
        "command": "context-pred pretrain photos --recipe resnet18_1xb64-coslr-300k --out run",
        "versions": {"context-pred": "0.1.0", "torch": "2.15.0"},
        "device": "NVIDIA H100",
        "cpu": "A processor of 3 GHz",
        "world_size": 8,
        "workers": 11,
        "images": "photos",
        "count": 4321,
        "check": dataclasses.replace(corpus, unreadable=((EVIL, "is no image"),)).to_dict(),
        "held_out_count": 432,
        "started": "2026-01-02T03:04:05+0000",
        "init": None,
        "resumed": [{"step": 16, "at": "2026-01-03T00:00:00+0000", "world_size": 8}],
        "notes": ["The learning rate was doubled & halved."],
    }
    (folder / "run.json").write_text(json.dumps(about), encoding="utf-8")
    bad = [{"image": f"{k}-{EVIL}", "reason": f"cut off <{k}>"} for k in range(130)]
    (folder / "damaged.jsonl").write_text("".join(json.dumps(row) + "\n" for row in bad))
    result = {
        "held_out": measured(24, 1.5).to_dict(),
        "training": measured(25, 3.0).to_dict(),
        "seconds": 7384.0,
        "images_seen": 1536,
        "steps": 24,
    }
    (folder / "result.json").write_text(json.dumps(result))
    save_file(sampled(photos), folder / "samples.safetensors")
    return folder


def made(run: Path) -> tuple[Page, str]:
    text = report.write(run).read_text(encoding="utf-8")
    return Page(text), text


class TestWhole:
    def test_it_needs_no_network_and_no_script(self, run: Path) -> None:
        page, text = made(run)
        assert report.write(run) == run / "report.html"
        assert text.startswith('<!DOCTYPE html>\n<html lang="en">')
        names = {name for name, _ in page.tags}
        assert not names & {"script", "link", "iframe", "object", "embed", "base", "form"}
        assert not [attrs for _, attrs in page.tags if any(name.startswith("on") for name in attrs)]
        for _, attrs in page.tags:
            for name in ("src", "href", "srcset", "xlink:href", "action", "data", "poster", "background"):
                assert attrs.get(name, "#").startswith(("#", "data:image/png;base64,"))
        assert "http://" not in text
        assert "https://" not in text
        assert "url(" not in text
        assert "@import" not in text
        assert "prefers-color-scheme: dark" in text

    def test_links_and_colours_lead_somewhere(self, run: Path) -> None:
        page, text = made(run)
        assert {attrs["href"] for attrs in page.named("a")} == {
            f"#{attrs['id']}" for _, attrs in page.tags if "id" in attrs
        }
        used, light = set(re.findall(r"var\(--(\w+)\)", text)), text.index("@media")
        assert used == set(re.findall(r"--(\w+):", text[:light]))

    def test_names_are_escaped_and_what_cannot_be_shown_is_spelt_out(self, run: Path) -> None:
        page, text = made(run)
        shown = EVIL.replace("\udce9", r"\udce9").replace("\u202e", r"\u202e")
        assert text.count(escaped(EVIL)) >= 101  # the check's one, a hundred damaged ones
        assert shown in page.text
        assert "cut off <0>" in page.text
        assert "\u202e" not in text

    def test_it_holds_the_figures_of_the_files(self, run: Path) -> None:
        page, _ = made(run)
        figures = json.loads((run / "result.json").read_text())
        for result in (figures["held_out"], figures["training"]):
            assert f"{100 * result['accuracy']:.1f} %" in page.text
            assert f"{100 * result['low']:.1f} … {100 * result['high']:.1f} %" in page.text
        for text in (
            "ResNet-18 on a CPU (resnet18_1xb64-coslr-300k)",
            "Finished after 24 steps, begun 2026-01-02 03:04:05+0000",
            "1,536 images seen, 3.0 epochs",
            "2 h 3 min",
            "240 pairs of 30 held-out images",
            "chance 12.5 %",
            "it overfits",
            "4,321 images",
            "432 images",
            "19, of which the headers of 19 were read",
            "19 JPEG",
            "context-pred pretrain photos --recipe resnet18_1xb64-coslr-300k --out run",
            "NVIDIA H100",
            "A processor of 3 GHz",
            "context-pred 0.1.0, torch 2.15.0",
            "from step 16 (2026-01-03T00:00:00+0000)",
            "The learning rate was doubled & halved.",
            "130 images could not be used",
            "Damaged: the first 100",
            "12 of the 15 lines of log.jsonl",
            "images/s in the median",
        ):
            assert text in page.text
        assert " ".join((run / "recipe.toml").read_text().split()) in page.text
        assert "missing" not in page.text

    def test_writing_it_again_changes_nothing_but_the_file(self, run: Path) -> None:
        first = made(run)[1]
        assert made(run)[1] == first
        assert not [path for path in run.iterdir() if path.name.startswith(".")]

    def test_a_report_of_a_long_run_stays_small(self, run: Path) -> None:
        lines = (run / "log.jsonl").read_text().splitlines()
        row = json.loads(lines[0])
        rows = [{**row, "step": 50 * k, "loss": 2 + (k % 7) / 100} for k in range(1, 20_001)]
        (run / "log.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        page, text = made(run)
        assert len(text) < 1_000_000
        assert len(page.named("polyline")[0]["points"].split()) == 500


class TestSections:
    def test_curves_have_a_point_a_row_inside_the_chart(self, run: Path) -> None:
        page, _ = made(run)
        curves = page.named("polyline")
        assert len(curves) == 5  # loss, accuracy, learning rate, images/s, waiting
        for curve in curves:
            places = [tuple(map(float, point.split(","))) for point in curve["points"].split()]
            assert len(places) == (15 if curve is curves[2] else 12)
            assert all(0 <= x <= charts.WIDTH and 0 <= y <= charts.HEIGHT for x, y in places)
        loss, accuracy = ([float(point.split(",")[1]) for point in curve["points"].split()] for curve in curves[:2])
        assert loss == sorted(loss)  # falling: down the page
        assert accuracy == sorted(accuracy, reverse=True)
        assert len(page.named("circle", "dot b")) == 2 * (
            3 + 1
        )  # three evaluations and the legend, in loss and accuracy
        assert len(page.named("line", "bar b")) == 3
        assert len(page.named("line", "mark")) == 4  # chance in two charts and their legends
        last = measured(24, 1.5)
        assert f"step 24: {100 * last.accuracy:.1f} % ({100 * last.low:.1f} … {100 * last.high:.1f} %)" in page.text

    def test_the_confusion_is_by_rows_in_percent(self, run: Path) -> None:
        _, text = made(run)
        confusion = json.loads((run / "result.json").read_text())["held_out"]["confusion"]
        body = text[text.index('class="confusion"') :]
        for position, counts in enumerate(confusion):
            for said, number in enumerate(counts):
                title = f"{number:,} of {sum(counts):,}: lies {POSITIONS[position]}, placed {POSITIONS[said]}"
                cell = body[body.index(title) :]
                assert cell[: cell.index("<")].endswith(f">{100 * number / sum(counts):.1f}")

    def test_accuracy_by_position_stands_where_it_lies(self, run: Path) -> None:
        _, text = made(run)
        share = json.loads((run / "result.json").read_text())["held_out"]["by_position"]
        grid = text[text.index("<title>Accuracy by position") :]
        places = re.findall(r'<text x="([\d.]+)" y="([\d.]+)"[^>]*>([\d.]+)\N{NO-BREAK SPACE}%', grid)[:8]
        assert [float(value) for *_, value in places] == [round(100 * value, 1) for value in share]
        assert sorted(places, key=lambda place: (float(place[1]), float(place[0]))) == places

    def test_pairs_are_shown_as_they_are(self, run: Path, photos: Path) -> None:
        page, _ = made(run)
        samples = sampled(photos)
        right = samples["probabilities"].argmax(1) == samples["position"]
        order = [*right.nonzero().flatten().tolist(), *(~right).nonzero().flatten().tolist()]
        assert f"Placed wrong: {int((~right).sum())} of 10" in page.text
        images = page.named("img")
        assert len(images) == 20
        for k, (center, neighbor) in zip(order, zip(images[::2], images[1::2], strict=True), strict=True):
            for attrs, name in ((center, "centers"), (neighbor, "neighbors")):
                data = base64.b64decode(attrs["src"].removeprefix("data:image/png;base64,"))
                pixels = np.array(Image.open(io.BytesIO(data))).transpose(2, 0, 1)
                np.testing.assert_array_equal(pixels, samples[name][k].numpy())
            # The neighbour lies on the side of the centre that its position says.
            (x1, y1), (x2, y2) = (map(int, re.findall(r"(\d+)px", attrs["style"])) for attrs in (center, neighbor))
            dy, dx = charts.OFFSETS[int(samples["position"][k])]
            assert (np.sign(y2 - y1), np.sign(x2 - x1)) == (dy, dx)
            assert neighbor["alt"] == f"neighbour, {POSITIONS[int(samples['position'][k])]}"
        assert len(page.named("rect", "truth")) == 10

    def test_waiting_for_data_is_said(self, run: Path) -> None:
        assert "Images came as fast as they were needed" in made(run)[0].text
        rows = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
        slow = [{**row, "waiting": 0.4} if "waiting" in row else row for row in rows]
        (run / "log.jsonl").write_text("".join(json.dumps(row) + "\n" for row in slow))
        text = made(run)[0].text
        assert "The network waited for images" in text
        assert "40.0 % of the training time" in text

    def test_no_better_than_chance_is_said(self, run: Path) -> None:
        values = json.loads((run / "result.json").read_text())
        (run / "result.json").write_text(json.dumps({**values, "held_out": measured(3, 0.0).to_dict()}))
        assert "no better than chance (12.5 %)" in made(run)[0].text

    def test_where_it_started_from_is_told_with_what_was_not_taken(self, run: Path) -> None:
        init = {"source": "a-model", "sha256": "ab12", "taken": ["backbone"], "tensors": 3, "channel_order": "rgb",
                "left_out": [["head", "it has <9> classes"]], "notes": ["A note."]}  # fmt: skip
        about = json.loads((run / "run.json").read_text())
        (run / "run.json").write_text(json.dumps({**about, "init": init}))
        text = made(run)[0].text
        assert "a-model (SHA-256 ab12): backbone not taken: head, since it has <9> classes A note." in text


class TestStopped:
    def test_a_run_that_was_stopped_gets_a_report(self, run: Path) -> None:
        for name in ("result.json", "samples.safetensors", "damaged.jsonl"):
            (run / name).unlink()
        page, _ = made(run)
        for text in (
            "Not finished: 24 steps recorded",
            "result.json is missing, and with it the accuracy at the end.",
            "samples.safetensors is missing",
            "No pairs were sampled",
            f"{100 * measured(24, 1.5).accuracy:.1f} % held-out accuracy",  # the log's last
        ):
            assert text in page.text
        assert "damaged.jsonl is missing" not in page.text
        assert len(page.named("table", "confusion")) == 1

    @pytest.mark.parametrize("name", [*report.FILES])
    @pytest.mark.parametrize("content", [None, b"", b"{", b"\xff\x00\xfe"])
    def test_any_file_may_be_missing_or_torn(self, run: Path, name: str, content: bytes | None) -> None:
        path = run / name
        path.unlink()
        if content is not None:
            path.write_bytes(content)
        page, _ = made(run)
        assert len(page.named("section")) == 6
        if content == b"\xff\x00\xfe" and name != "log.jsonl":  # a log's bad lines are passed over
            assert f"{name} cannot be read" in page.text

    @pytest.mark.parametrize("name", [*report.FILES])
    def test_any_file_alone_gives_a_report(self, run: Path, name: str) -> None:
        for other in report.FILES:
            if other != name:
                (run / other).unlink()
        page, _ = made(run)
        assert page.text.count(" is missing, and with it") >= 4

    def test_a_run_before_its_first_row(self, run: Path) -> None:
        for name in ("result.json", "samples.safetensors", "damaged.jsonl"):
            (run / name).unlink()
        (run / "log.jsonl").write_text("")
        page, _ = made(run)
        assert "No step was recorded." in page.text
        assert "no held-out accuracy was measured" in page.text

    def test_only_evaluations(self, run: Path) -> None:
        row = {"step": 0, "epoch": 0.0, "images": 0, "seconds": 1.5, "held_out": measured(1, 0.5).to_dict()}
        (run / "log.jsonl").write_text(json.dumps(row) + "\n")
        assert "No speed was recorded." in made(run)[0].text

    def test_no_run_is_a_clear_error(self, tmp_path: Path) -> None:
        (tmp_path / "notes.txt").write_text("")
        with pytest.raises(InvalidInputError, match=r"holds no pretraining run: none of recipe\.toml, run\.json"):
            report.write(tmp_path)
        with pytest.raises(InvalidInputError, match="is no folder"):
            report.write(tmp_path / "notes.txt")
        with pytest.raises(InvalidInputError, match="is no folder"):
            report.write(tmp_path / "nowhere")

    def test_where_it_cannot_be_written_the_error_says_so(self, run: Path) -> None:
        (run / "report.html").mkdir()
        with pytest.raises(StorageError, match=r"report\.html"):
            report.write(run)


class TestPieces:
    @pytest.mark.parametrize(
        ("low", "high"),
        [
            *((0, 1), (0.1, 0.9), (1.6, 2.1), (0, 4650), (1e-6, 3e-5), (0, 1e9), (-1, 1), (2e-30, 5e-30)),
            *((3, 3), (0, 0), (-2, -2), (1e-30, 1e-30), (1e9, 1e9 + 1e-7)),
        ],
    )
    def test_ticks_hold_the_values_and_are_few_and_even(self, low: float, high: float) -> None:
        found = charts.ticks(low, high)
        assert found[0] <= low + 1e-9 * abs(low)
        assert found[-1] >= high - 1e-9 * abs(high)
        assert 2 <= len(found) <= 8
        np.testing.assert_allclose(np.diff(found), found[1] - found[0], rtol=1e-6)

    @pytest.mark.parametrize(
        "points", [[(0.0, 0.0)], [(5.0, 2.0)], [(1.0, 3.0), (2.0, 3.0)], [(0.0, 1e-12), (9.0, 1e12)]]
    )
    def test_a_chart_of_few_or_strange_points_is_drawn(self, points: list[tuple[float, float]]) -> None:
        chart = charts.line_chart("<A>", [charts.Series("one", points)], show=str)
        assert chart is not None
        assert "nan" not in Page(chart).text
        assert "&lt;A&gt;" in chart

    def test_a_chart_of_nothing_is_none(self) -> None:
        assert charts.line_chart("A", [charts.Series("one", [])], show=str, mark=(1.0, "chance")) is None

    def test_text_is_escaped_unless_it_is_markup(self) -> None:
        inner = element("b", "<i>")
        assert element("p", inner, "&", None, [1, 2.5], title='"') == '<p title="&quot;"><b>&lt;i&gt;</b>&amp;12.5</p>'
        assert joined("<", inner) == "&lt;<b>&lt;i&gt;</b>"
        assert escaped("a\nb\tc\x00\x1b\x7fü\u3000") == "a\nb\tc\\x00\\x1b\\x7fü\u3000"

    @pytest.mark.parametrize(
        ("seconds", "text"),
        [(0.25, "0.2 s"), (59.4, "59.4 s"), (60, "1 min"), (61, "1 min 1 s"), (3600, "1 h"), (7384, "2 h 3 min"),
         (90_000, "1 d 1 h"), (86_400 * 3 + 59, "3 d")],
    )  # fmt: skip
    def test_times(self, seconds: float, text: str) -> None:
        assert duration(seconds).replace("\N{NO-BREAK SPACE}", " ") == text

    @pytest.mark.parametrize(
        ("rate", "text"),
        [(0, "0"), (0.2, "0.2"), (1e-3, "0.001"), (1.25e-4, "1.25e-4"), (9.17e-8, "9.17e-8"), (1e-5, "1e-5")],
    )
    def test_learning_rates(self, rate: float, text: str) -> None:
        assert rate_text(rate) == text

    @pytest.mark.parametrize(("channels", "mode"), [(1, "L"), (3, "RGB"), (5, "L")])
    def test_patches_of_any_channels(self, channels: int, mode: str) -> None:
        pixels = np.random.default_rng(0).integers(0, 256, (channels, 20, 20), dtype=np.uint8)
        attrs: dict[str, Any] = Page(picture(pixels, "a", 52)).named("img")[0]
        image = Image.open(io.BytesIO(base64.b64decode(attrs["src"].partition(",")[2])))
        assert (image.mode, image.size) == (mode, (20, 20))

    def test_large_patches_are_made_smaller(self) -> None:
        attrs: dict[str, Any] = Page(picture(np.zeros((3, 300, 300), np.uint8), "a", 52)).named("img")[0]
        image = Image.open(io.BytesIO(base64.b64decode(attrs["src"].partition(",")[2])))
        assert image.size == (104, 104)
        assert attrs["width"] == "52"
