"""Discovery from the command to the page: what is written, what is kept, what is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from browser import WIDTHS, open_page
from click.testing import CliRunner
from PIL import Image

import context_pred
from context_pred.cli import main
from context_pred.discover import mining, objects, page
from context_pred.discover.mining import Matches, Search
from context_pred.discover.objects import Selection
from context_pred.discover.patches import Patches
from context_pred.errors import ContextPredError, InvalidInputError, UnknownNameError
from context_pred.model import ContextPredictionModel
from context_pred.pictures import COLORS

SEARCH = Search(constellations=200, photographs=6)
QUIET: dict[str, Any] = {"sides": (4.0,), "search": SEARCH, "progress": False, "device": "cpu"}


@pytest.fixture(scope="module")
def model() -> ContextPredictionModel:
    return context_pred.load_pretrained("resnet18_1xb64-coslr-300k")


@pytest.fixture(scope="module")
def folder(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classes: six photographs with one object pasted, six with another, at random places and sizes."""
    root = tmp_path_factory.mktemp("composed")
    rng = np.random.default_rng(0)
    files = sorted(photos.glob("*.jpg"))
    for number in range(12):
        name = ("quartered", "ringed")[number % 2]
        with Image.open(files[number]) as opened:
            photo = opened.convert("RGB").resize((300, 260))
        y, x = np.mgrid[:140, :140]
        waves = np.where(y < 70, np.where(x < 70, x, y), np.where(x < 70, x + y, x - y)) // 9 % 2 * 255
        quartered = waves[..., None] * np.array([1, 0.2, 0.2])
        ringed = (np.hypot(x - 70, y - 70) // 9 % 2 * 255)[..., None] * np.array([0.1, 1, 0.3])
        paste = Image.fromarray((quartered if name == "quartered" else ringed).astype(np.uint8))
        side = int(rng.integers(125, 150))
        photo.paste(paste.resize((side, side)), (int(rng.integers(0, 300 - side)), int(rng.integers(0, 260 - side))))
        (root / name).mkdir(exist_ok=True)
        photo.save(root / name / f"{number}.png")
    return root


@pytest.fixture(scope="module")
def found(folder: Path, model: ContextPredictionModel, tmp_path_factory: pytest.TempPathFactory) -> objects.Discovery:
    out = tmp_path_factory.mktemp("discovered") / "out"
    return objects.run(folder, out=out, model=model, labels="folders", selection=Selection(least=4), **QUIET)


def test_what_was_pasted_is_found(found: objects.Discovery) -> None:
    best = {cluster.label: cluster for cluster in reversed(found.clusters[:4]) if (cluster.purity or 0) >= 0.8}
    assert set(best) == {"quartered", "ringed"}
    for cluster in best.values():
        assert cluster.verified >= 4
        assert cluster.path == cluster.members[0].path
        assert cluster.boxes == cluster.members[0].boxes
    assert found.curve is not None
    assert 0.3 < found.curve.area() <= 1


def test_the_page_and_the_json_say_the_same(found: objects.Discovery, folder: Path) -> None:
    record = json.loads(found.json.read_text())
    assert [one["verified"] for one in record["clusters"]] == [one.verified for one in found.clusters]
    assert record["photographs"] == 12
    assert record["constellations"] == 200
    assert record["purity-coverage"]["area"] == pytest.approx(found.curve.area(), abs=1e-6)  # type: ignore[union-attr]
    written = found.page.read_text()
    for number, cluster in enumerate(found.clusters, 1):
        assert f'id="cluster-{number}"' in written
        for place, member in enumerate(cluster.members, 1):
            picture = found.page.parent / "pictures" / f"{number:04d}-{place:02d}.jpg"
            assert picture.is_file()
            assert picture.name in written
            with Image.open(member.path) as image:
                inside = np.array(member.boxes)
                assert inside.min() >= 0
                assert (inside[:, 2] <= image.width + 0.1).all()
                assert (inside[:, 3] <= image.height + 0.1).all()


def test_the_patches_are_drawn_in_place(found: objects.Discovery) -> None:
    cluster = found.clusters[0]
    with Image.open(found.page.parent / "pictures" / "0001-01.jpg") as drawn, Image.open(cluster.path) as original:
        scale = drawn.width / original.width
        change = np.abs(np.asarray(drawn, int) - np.asarray(original.convert("RGB").resize(drawn.size), int)).sum(2)
    x1, y1, x2, _y2 = (round(value * scale) for value in cluster.boxes[0])
    assert change[y1 + 1, x1 + 4 : x2 - 4].mean() > 3 * np.median(change)


def test_corners_that_match_one_patch_are_all_seen(tmp_path: Path) -> None:
    Image.new("RGB", (page.SIDE, page.SIDE), "white").save(tmp_path / "a.png")
    one, other = (20.0, 20.0, 60.0, 60.0), (60.0, 60.0, 100.0, 100.0)
    member = objects.Member(str(tmp_path / "a.png"), (one, one, other, one), (40.0, 40.0, 40.0), 0.5, 0.5)
    seen = np.asarray(page._drawn(member))[40, 20:34].tolist()
    assert [seen[place + 1] for place in (0, 4, 8)] == [list(COLORS[corner]) for corner in (0, 1, 3)]


def test_another_selection_needs_no_second_search(
    folder: Path, model: ContextPredictionModel, found: objects.Discovery, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mining._Finder, "find", lambda *_: pytest.fail("it was searched again"))
    out = found.page.parent
    fewer = objects.run(folder, out=out, model=model, selection=Selection(least=4, clusters=2), **QUIET)
    assert len(fewer.clusters) == 2
    assert fewer.curve is None
    assert "purity" not in json.loads(fewer.json.read_text())["clusters"][0]
    with pytest.raises(InvalidInputError, match="other settings"):
        objects.run(folder, out=out, model=model, **{**QUIET, "search": Search(constellations=100)})
    assert fewer.page.is_file()


def test_only_some_labels(folder: Path, model: ContextPredictionModel, tmp_path: Path) -> None:
    some = objects.run(folder, out=tmp_path / "out", model=model, labels="folders", label_only=["ringed"], **QUIET)
    assert some.photographs == 6
    with pytest.raises(UnknownNameError, match=r"ringd.*ringed"):
        objects.run(folder, out=tmp_path / "b", model=model, labels="folders", label_only=["ringd"], **QUIET)
    with pytest.raises(InvalidInputError, match="no labels"):
        objects.run(folder, out=tmp_path / "b", model=model, label_only=["ringed"], **QUIET)
    assert not (tmp_path / "b").exists()


def test_the_command(folder: Path, tmp_path: Path) -> None:
    command = ["discover", str(folder), "--out", str(tmp_path / "out"),
               "--layer", "feature1", "--side", "4", "--constellations", "60", "--labels", "folders"]  # fmt: skip
    done = CliRunner().invoke(main, command)
    assert done.exit_code == 0, done.output
    assert "60 constellations, 12 photographs" in done.output
    assert "purity-coverage curve" in done.output
    refused = CliRunner().invoke(main, [*command, "--fresh", "2"])
    assert refused.exit_code == 2
    assert "fresh=2" in refused.output


def test_one_photograph_or_none(folder: Path, model: ContextPredictionModel, tmp_path: Path) -> None:
    (tmp_path / "one").mkdir()
    shutil.copy(next(folder.glob("ringed/*.png")), tmp_path / "one")
    with pytest.raises(InvalidInputError, match="two photographs or more"):
        objects.run(tmp_path / "one", out=tmp_path / "out", model=model, **QUIET)
    with pytest.raises(ContextPredError, match="none"):
        objects.run(tmp_path / "none", out=tmp_path / "out", model=model, **QUIET)
    (tmp_path / "one" / "bomb.pgm").write_bytes(b"P5 40000 40000 255\n")
    with pytest.raises(InvalidInputError, match="two photographs or more"):
        objects.run(tmp_path / "one", out=tmp_path / "out2", model=model, **QUIET)


def test_out_among_the_photographs_is_not_taken_for_one(
    folder: Path, model: ContextPredictionModel, tmp_path: Path
) -> None:
    for photo in sorted(folder.glob("*/*.png"))[:3]:
        shutil.copy(photo, tmp_path)
    for _ in range(2):
        assert objects.run(tmp_path, out=tmp_path / "out", model=model, **QUIET).photographs == 3
    with pytest.raises(InvalidInputError, match="choose another out"):
        objects.run(tmp_path, out=tmp_path, model=model, **QUIET)


def test_damaged_patches_are_made_anew_when_told_to(
    folder: Path, model: ContextPredictionModel, tmp_path: Path
) -> None:
    objects.run(folder, out=tmp_path / "out", model=model, **QUIET)
    file = tmp_path / "out" / "patches" / "patches.safetensors"
    whole = file.read_bytes()
    file.write_bytes(whole[:1000])
    with pytest.raises(InvalidInputError, match=r"cut off.*--overwrite"):
        objects.run(folder, out=tmp_path / "out", model=model, **QUIET)
    objects.run(folder, out=tmp_path / "out", model=model, overwrite=True, **QUIET)
    assert file.read_bytes() == whole


def test_clusters_are_the_best_verified_that_are_new(folder: Path, found: objects.Discovery) -> None:
    images = np.array([[0, 1, 2, 3], [0, 1, 2, -1], [3, 4, 5, -1], [5, -1, -1, -1]])
    near = np.where(images >= 0, 0.5, 0).astype(np.float32)
    starts = np.arange(7)
    boxes = np.tile(np.array([[0, 0, 8, 8]], np.float32), (6, 1))
    names = tuple(f"{k}.png" for k in range(6))
    patches = Patches(Path(), names, np.zeros((6, 2), int), starts, boxes, boxes, None, {}, {})  # type: ignore[arg-type]
    rows = np.array([[0] * 4, [1] * 4, [3] * 4, [5] * 4])
    matches = Matches(rows, images, np.zeros((4, 4, 4), int), near, np.zeros((4, 4), np.float32))
    labels = tuple(frozenset({"a" if k < 3 else "b"}) for k in range(6))
    taken = objects.select(patches, matches, Selection(members=3, least=2, fresh=0.6), labels)
    # The first takes 0, 1, 2; the second shows nothing new, the third does; then the second again, shown twice.
    assert [cluster.place for cluster in taken] == [0, 2, 1]
    assert [cluster.purity for cluster in taken] == [1.0, 1.0, 1.0]
    assert [len(cluster.members) for cluster in taken] == [3, 3, 3]
    alone = objects.select(patches, matches, Selection(members=3, least=1 + 3, fresh=0.0), labels)
    assert [cluster.verified for cluster in alone] == [4]


def test_a_name_that_is_no_utf8_is_written_so_that_it_can_be_read(
    folder: Path, model: ContextPredictionModel, tmp_path: Path
) -> None:
    (tmp_path / "in").mkdir()
    for number, photo in enumerate(sorted(folder.glob("ringed/*.png"))[:2]):
        shutil.copy(photo, tmp_path / "in" / ("\udcff.png" if number else "ü.png"))
    found = objects.run(tmp_path / "in", out=tmp_path / "out", model=model, selection=Selection(least=2), **QUIET)
    record = json.loads(found.json.read_text())
    there = {member["path"] for cluster in record["clusters"] for member in cluster["members"]}
    assert there == {str(path) for path in (tmp_path / "in").iterdir()}
    assert "ü.png" in found.json.read_text()


def test_one_file_counts_once_and_is_labelled_by_the_folder_of_its_link(
    folder: Path, model: ContextPredictionModel, tmp_path: Path
) -> None:
    store = sorted(folder.glob("ringed/*.png"))[:4]
    for number, photo in enumerate(store):
        link = tmp_path / "in" / ("even", "odd")[number % 2] / photo.name
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(photo)
    (tmp_path / "in" / "zz.png").symlink_to(store[0])
    options = {"labels": "folders", "selection": Selection(least=2)}
    found = objects.run(tmp_path / "in", out=tmp_path / "out", model=model, **options, **QUIET)  # type: ignore[arg-type]
    assert found.photographs == 4
    assert {cluster.label for cluster in found.clusters} <= {"even", "odd"}


def test_pictures_of_somebody_else_stay(folder: Path, model: ContextPredictionModel, tmp_path: Path) -> None:
    mine = tmp_path / "out" / "pictures" / "holiday.jpg"
    mine.parent.mkdir(parents=True)
    mine.write_bytes(b"mine")
    with pytest.raises(InvalidInputError, match=r"holiday\.jpg would be lost.*another out"):
        objects.run(folder, out=tmp_path / "out", model=model, **QUIET)
    assert mine.read_bytes() == b"mine"
    assert not (tmp_path / "out" / "patches").exists()


def test_a_page_of_somebody_else_stays(folder: Path, model: ContextPredictionModel, tmp_path: Path) -> None:
    mine = tmp_path / "out" / "index.html"
    mine.parent.mkdir()
    mine.write_text("my site")
    with pytest.raises(InvalidInputError, match=r"index\.html would be lost.*another out"):
        objects.run(folder, out=tmp_path / "out", model=model, **QUIET)
    assert mine.read_text() == "my site"


@pytest.mark.parametrize(("name", "value"), [("members", 2.5), ("least", "5"), ("clusters", True), ("fresh", "all")])
def test_a_selection_of_what_is_no_number_is_refused(name: str, value: object) -> None:
    with pytest.raises(InvalidInputError, match=name):
        Selection(**{name: value})  # type: ignore[arg-type]


def test_small_photographs_are_enlarged_so_that_the_frames_do_not_cover_them(tmp_path: Path) -> None:
    Image.new("RGB", (32, 16), (250, 250, 250)).save(tmp_path / "tiny.png")
    box = (8.0, 4.0, 16.0, 12.0)
    drawn = page._drawn(objects.Member(str(tmp_path / "tiny.png"), (box,) * 4, (12.0, 8.0, 8.0), 1.0, 0.0))
    assert drawn.size == (page.SIDE, page.SIDE // 2)
    assert drawn.getpixel((135, 90)) == (250, 250, 250)


def test_mistakes_are_told_before_the_work(folder: Path, model: ContextPredictionModel, tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match="nowhere"):
        objects.run(folder, out=tmp_path / "out", model=model, labels="nowhere", **QUIET)
    assert not (tmp_path / "out").exists()


def test_nothing_that_recurs_is_told_with_what_to_do(
    folder: Path, model: ContextPredictionModel, tmp_path: Path
) -> None:
    found = objects.run(folder, out=tmp_path / "out", model=model, selection=Selection(least=99), **QUIET)
    for text in (str(found), found.page.read_text()):
        assert "as a cluster needs, 99; with --least one may ask for fewer" in text
    assert "--least" not in page.nothing(2)


@pytest.mark.browser
@pytest.mark.parametrize("width", WIDTHS)
def test_the_page_in_a_browser(found: objects.Discovery, width: int) -> None:
    with open_page(width, found.page) as opened:
        opened.page.locator(".row img").first.wait_for()
        assert opened.errors == []
        assert opened.overflow() == 0
        assert all(address.startswith("file://") for address in opened.requests)
        opened.page.keyboard.press("Tab")
        assert opened.focused() == "Cluster 1"
        opened.page.keyboard.press("Tab")
        assert opened.page.evaluate("document.activeElement.tagName") == "A"
        loaded = opened.page.evaluate("document.querySelector('.row img').naturalWidth")
        assert loaded > 0
