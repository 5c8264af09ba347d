"""The corpus script: Qt resource files, what is left out, and a split that keeps one photograph on one side."""

from __future__ import annotations

import importlib
import io
import json
import struct
import sys
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

SCRIPT = Path(__file__).parents[2] / "weights" / "corpus.py"
sys.path.insert(0, str(SCRIPT.parent))
corpus = importlib.import_module("corpus")
qres_file = importlib.import_module("qres")
sys.path.remove(str(SCRIPT.parent))


def qres(files: dict[str, bytes], *, version: int = 3, packed: bool = False) -> bytes:
    """A Qt resource file as Qt's `rcc` writes it: breadth first, children of a folder in one run."""
    root: dict = {}
    for path, content in files.items():
        *folders, name = path.strip("/").split("/")
        folder = root
        for part in folders:
            folder = folder.setdefault(part, {})
        folder[name] = content
    names, data, nodes = b"", b"", []
    queue = [("", root)]
    while queue:
        name, node = queue.pop(0)
        name_offset = len(names)
        names += struct.pack(">HI", len(name), 0) + name.encode("utf-16-be")
        if isinstance(node, dict):
            first = len(nodes) + 1 + len(queue)
            nodes.append(struct.pack(">IHII", name_offset, 2, len(node), first))
            queue += node.items()
        else:
            block = struct.pack(">I", len(node)) + zlib.compress(node) if packed else node
            nodes.append(struct.pack(">IHHHI", name_offset, int(packed), 0, 0, len(data)))
            data += struct.pack(">I", len(block)) + block
    tree = b"".join(node + (b"\0" * 8 if version >= 2 else b"") for node in nodes)
    start = 20 + (4 if version >= 3 else 0)
    header = b"qres" + struct.pack(">4I", version, start, start + len(tree), start + len(tree) + len(data))
    return header + (b"\0" * 4 if version >= 3 else b"") + tree + data + names


FILES = {"/a/one.webp": b"first", "/a/b/två.png": b"second" * 50, "/c.txt": b"", "/a/b/x/deep.jpg": b"\0\xff"}


@pytest.mark.parametrize("version", [1, 2, 3])
@pytest.mark.parametrize("packed", [False, True])
def test_qres_gives_every_file_back(version: int, packed: bool) -> None:
    assert dict(qres_file.read_qres(qres(FILES, version=version, packed=packed))) == FILES


@pytest.mark.parametrize(
    ("blob", "says"),
    [
        (b"", "not a Qt resource file"),
        (b"RIFF" + b"\0" * 40, "not a Qt resource file"),
        (qres(FILES)[:18], "damaged"),  # inside the header
        (qres(FILES)[:60], "damaged"),  # inside the tree
        (qres(FILES)[:-3], "damaged"),  # inside the last name
        (qres({"/a.txt": b"text" * 9}, packed=True).replace(b"\x78\x9c", b"\0\0"), "damaged"),  # no zlib stream
        (b"qres" + struct.pack(">5I", 3, 24, 24, 24, 0) + struct.pack(">IHII", 0, 2, 1, 0) + b"\0" * 8, "damaged"),
    ],
)
def test_damaged_qres_is_a_value_error(blob: bytes, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        list(qres_file.read_qres(blob))


def photograph(seed: int, size: tuple[int, int] = (240, 200)) -> Image.Image:
    """Smooth random colours with a sensor's noise."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (6, 7, 3), dtype=np.uint8)).resize(size, Image.Resampling.BICUBIC)
    noisy = np.asarray(coarse, np.int16) + rng.integers(-6, 7, (size[1], size[0], 3))
    return Image.fromarray(noisy.clip(0, 255).astype(np.uint8))


def chart() -> Image.Image:
    image = Image.new("RGB", (300, 200), "white")
    image.paste((200, 30, 30), (40, 60, 80, 190))
    image.paste((30, 30, 200), (120, 20, 160, 190))
    return image


def test_rules_on_pixels() -> None:
    flat = Image.fromarray(np.random.default_rng(0).integers(100, 110, (200, 200, 3), dtype=np.uint8))
    assert corpus.why_not(photograph(0)) == ""
    assert corpus.why_not(flat) == "nearly flat"
    assert corpus.why_not(chart()) == "plain ground, drawing or screenshot"


def test_transparency_counts_only_where_pixels_show_through() -> None:
    opaque = photograph(0).convert("RGBA")
    cut_out = opaque.copy()
    cut_out.putpixel((3, 3), (0, 0, 0, 254))
    assert not corpus.has_transparency(opaque)
    assert not corpus.has_transparency(photograph(0))
    assert corpus.has_transparency(cut_out)


def test_series_of_takes_and_shapes() -> None:
    def series(path: str) -> str:
        return str(corpus.series(corpus.Picture("free", "p", path)))

    assert series("a/graf1.png") == series("a/graf3.png")
    assert series("a/aloeL.jpg") == series("a/aloeR.jpg")
    assert series("usr/wallpapers/Path/contents/1x1.jpg") == series("usr/wallpapers/Path/dark/2x1.png")
    assert series("a/koala.jpg") != series("a/koa.jpg")
    grocery = [corpus.Picture("grocery", "g", f"Apple_{i}.jpg") for i in (1, 2)]
    assert corpus.series(grocery[0]) != corpus.series(grocery[1])


def test_fingerprint_knows_a_picture_in_another_size() -> None:
    prints = [corpus.fingerprint(photograph(seed, (480, 400))) for seed in range(6)]
    prints += [corpus.fingerprint(photograph(seed, (480, 400)).resize((240, 200))) for seed in range(6)]
    groups = corpus.group_alike(prints, [str(i) for i in range(12)], corpus.SAME_PICTURE)
    assert groups[:6] == groups[6:]
    assert len(set(groups)) == 6


def jpeg(image: Image.Image, quality: int = 90) -> bytes:
    out = io.BytesIO()
    image.save(out, "JPEG", quality=quality)
    return out.getvalue()


def webp(image: Image.Image) -> bytes:
    out = io.BytesIO()
    image.save(out, "WEBP", quality=90, method=0)
    return out.getvalue()


@pytest.fixture
def sources(tmp_path: Path) -> Path:
    """Forty shop photographs (lists included), and a Debian package with one resource file."""
    shop = tmp_path / "shop" / "dataset"
    (shop / "train").mkdir(parents=True)
    for i in range(40):
        (shop / "train" / f"Apple_{i:03}.jpg").write_bytes(jpeg(photograph(i)))
    lines = [f"train/Apple_{i:03}.jpg, 3, 7\n" for i in range(40)]
    (shop / "train.txt").write_text("".join(lines[:30]))
    (shop / "val.txt").write_text("".join(lines[30:38]))
    (shop / "test.txt").write_text("".join(lines[38:]))
    cut_out = photograph(53).convert("RGBA")
    cut_out.putalpha(100)
    pictures = {f"/r/subject{chr(97 + i)}.webp": photograph(100 + i, (500, 400)) for i in range(20)}
    pictures |= {
        "/r/again.webp": photograph(100, (500, 400)).resize((400, 320)),
        "/r/cut.webp": cut_out,
        "/r/drawn.webp": chart(),
        "/r/small.webp": photograph(51, (140, 300)),
    }
    rcc = tmp_path / "debs/gcompris-qt-data/usr/share/gcompris-qt/rcc"
    rcc.mkdir(parents=True)
    (rcc / "some.rcc").write_bytes(qres({name: webp(image) for name, image in pictures.items()}))
    wardrobe = tmp_path / "clothing" / "images"
    wardrobe.mkdir(parents=True)
    for i in range(30):
        (wardrobe / f"a{i}.jpg").write_bytes(jpeg(photograph(200 + i)))
    for i in range(12):  # each looks like one of the shop, its name sorts before all others
        (wardrobe / f"0{i}.jpg").write_bytes(jpeg(photograph(i).resize((300, 250)), quality=70))
    (tmp_path / "clothing" / "images.csv").write_text("image,sender_id,label,kids\n")
    return tmp_path


@pytest.fixture
def run(sources: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., dict]:
    """Runs the script's command line in this process on the sources; returns corpus.json."""

    def call(out: Path, *more: str) -> dict:
        command = ["corpus", "--debian", sources / "debs", "--grocery", sources / "shop", "--out", out]
        monkeypatch.setattr(sys, "argv", [*map(str, command), "--workers", "1", *more])
        corpus.main()
        return json.loads((out / "corpus.json").read_text())

    return call


def test_whole_build(sources: Path, run: Callable[..., dict]) -> None:
    made = run(sources / "out", "--held-out", "0.3")
    assert sum(made["counts"].values()) == len(made["files"]) == 58
    assert {r["source"].split("/")[-1] for r in made["files"] if r["origin"] == "GroceryStoreDataset"} == {
        f"Apple_{i:03}.jpg" for i in range(38)
    }
    for part in ("train", "heldout"):
        assert len(list((sources / "out" / part).rglob("*.jpg"))) == sum(r["split"] == part for r in made["files"])
        assert made["counts"][f"{part}/grocery"] > 0
    for record in made["files"]:
        with Image.open(sources / "out" / record["path"]) as image:
            assert (image.mode, list(image.size)) == ("RGB", record["size"])
            assert min(image.size) == min(352, min(record["original_size"]))
    left_out = {reason.split(": ")[1] for reason in made["left_out"]}
    assert left_out == {"transparency", "small", "copy of another", "plain ground, drawing or screenshot"}
    # A shop photograph of its own needs no change: its bytes stay.
    kept = next(r for r in made["files"] if r["origin"] == "GroceryStoreDataset")
    original = sources / "shop" / kept["source"].split(":")[1]
    assert (sources / "out" / kept["path"]).read_bytes() == original.read_bytes()


def test_same_seed_same_corpus_and_exclusion_takes_copies_along(sources: Path, run: Callable[..., dict]) -> None:
    first = run(sources / "one")
    assert run(sources / "two")["digest"] == first["digest"]
    assert run(sources / "other", "--seed", "1")["digest"] != first["digest"]
    excludes = sources / "excludes.txt"
    excludes.write_text("# shown\ngcompris-qt-data:usr/share/gcompris-qt/rcc/some.rcc:/r/subjecta.webp\n")
    made = run(sources / "three", "--exclude", str(excludes))
    assert {source.split("/")[-1] for source in made["excluded"]} == {"subjecta.webp", "again.webp"}
    assert len(made["files"]) == len(first["files"]) - 1
    sides = {r["source"]: r["split"] for r in first["files"]}
    assert all(sides[r["source"]] == r["split"] for r in made["files"])


def test_clothing_joins_and_moves_no_other_photograph(sources: Path, run: Callable[..., dict]) -> None:
    before = run(sources / "without", "--held-out", "0.3")
    after = run(sources / "with", "--held-out", "0.3", "--clothing", str(sources / "clothing"))
    sides = {r["source"]: r["split"] for r in after["files"]}
    assert sides.items() >= {r["source"]: r["split"] for r in before["files"]}.items()
    assert after["origins"]["clothing-dataset"]["files"] == len(sides) - len(before["files"]) == 42
    assert min(after["counts"]["train/clothing"], after["counts"]["heldout/clothing"]) > 0
    for i in range(12):
        assert (
            sides[f"clothing-dataset:images/0{i}.jpg"] == sides[f"GroceryStoreDataset:dataset/train/Apple_{i:03}.jpg"]
        )


def test_look_alikes_fall_on_one_side() -> None:
    def looked(name: str, seed: int, size: tuple[int, int]) -> object:
        picture = corpus.Picture("free", "p", name)
        return corpus.Looked(
            picture, "", b"", size, size, corpus.fingerprint(photograph(seed, (480, 400)).resize(size))
        )

    one = [looked(f"{chr(97 + i // 26)}{chr(97 + i % 26)}x.jpg", i, (480, 400)) for i in range(40)]
    two = [looked(f"z{chr(97 + i // 26)}{chr(97 + i % 26)}x.jpg", i, (300, 250)) for i in range(40)]
    held = corpus.split([*one, *two], seed=0, share=0.5)
    assert held[:40] == held[40:]
    assert 8 < sum(held[:40]) < 32
