"""The look at a corpus before the first step."""

from __future__ import annotations

import io
import json
import shutil
import tarfile
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from context_pred.data.collection import Files, collect
from context_pred.patches import GridPatchSampler
from context_pred.pretrain.check import check
from context_pred.pretrain.prepare import ImageOptions, Preparation

PREPARATION = Preparation(ImageOptions(resize=100), GridPatchSampler(60, 16))


def image(path: Path, width: int, height: int, mode: str = "RGB") -> Path:
    Image.new(mode, (width, height)).save(path)
    return path


def test_sizes_kinds_and_what_is_wrong(tmp_path: Path) -> None:
    for number in range(1, 22):
        image(tmp_path / f"{number:02}.png", 100 + 10 * number, 90 + 10 * number)
    image(tmp_path / "grey.jpg", 300, 300, "L")
    image(tmp_path / "small.jpg", 25, 50)
    image(tmp_path / "deep.png", 300, 300, "I;16")
    (tmp_path / "cut.jpg").write_bytes((tmp_path / "grey.jpg").read_bytes()[:100])
    (tmp_path / "notes.txt").write_text("only words")
    (tmp_path / "empty.jpg").touch()
    found = check(collect(tmp_path), PREPARATION)
    assert (found.images, found.looked_at) == (27, 27)
    assert found.short_side == (25, 100, 210, 300, 300)
    assert found.long_side == (50, 110, 220, 300, 310)
    assert found.formats == {"PNG": 22, "JPEG": 2}
    assert found.grey == 2
    reasons = {Path(name).name: reason for name, reason in found.unreadable}
    assert sorted(reasons) == ["cut.jpg", "empty.jpg", "notes.txt"]
    assert reasons["empty.jpg"] == "empty file"
    assert reasons["notes.txt"].startswith("not an image")
    assert found.too_small == 1
    assert found.enlarged == (4, 4)
    text = str(found)
    sides = "shorter side 25 … 300 px, in the middle 210"
    for part in ("27 images", "headers of all", "22 PNG", "2 of them grey", sides, "3 cannot be read",
                 "empty.jpg: empty file", "1 are smaller", "up to 4.0 times"):  # fmt: skip
        assert part in text, text
    assert json.loads(json.dumps(found.to_dict()))["too_small"] == 1


def test_large_corpora_are_looked_at_evenly(tmp_path: Path) -> None:
    good, bad = image(tmp_path / "a.png", 200, 200), tmp_path / "missing.png"
    found = check(Files([good] * 500 + [bad] * 500), PREPARATION, at_most=100)
    assert (found.images, found.looked_at, len(found.unreadable)) == (1000, 100, 50)
    assert found.unreadable[0] == (str(bad), "no such file")
    assert "1,000 images; a look at the headers of 100 of them" in str(found)
    assert "and 45 more" in str(found)


def test_many_small_images_call_for_smaller_patches(tmp_path: Path) -> None:
    path = image(tmp_path / "a.png", 40, 40)
    assert "choose a recipe of smaller patches" in str(check(Files([path] * 3), PREPARATION))
    assert "choose a recipe" not in str(check(Files([image(tmp_path / "b.png", 90, 90)] * 3), PREPARATION))


def test_nothing_can_be_read(tmp_path: Path) -> None:
    found = check(Files([tmp_path / "missing.png"]), PREPARATION)
    assert found.short_side == found.long_side == ()
    assert (found.too_small, found.enlarged, found.grey, found.formats) == (0, (1.0, 1.0), 0, {})
    assert "1 image;" in str(found)
    assert "missing.png: no such file" in str(found)


def test_shards_are_checked_too(tmp_path: Path, photos: Path) -> None:
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for path in sorted(photos.glob("*.jpg"))[:4]:
            tar.add(path, path.name)
        info = tarfile.TarInfo("bad.jpg")
        info.size = 4
        tar.addfile(info, io.BytesIO(b"junk"))
    found = check(collect(tmp_path / "a.tar"), PREPARATION)
    assert found.formats == {"JPEG": 4}
    assert [name for name, _ in found.unreadable] == [f"{tmp_path}/a.tar/bad.jpg"]


def test_a_hundred_thousand_files_take_seconds(tmp_path: Path, photos: Path) -> None:
    shutil.copy(photos / "koala.jpg", tmp_path / "a.jpg")
    collection = Files([tmp_path / "a.jpg"] * 100_000)
    start = time.process_time()
    found = check(collection, PREPARATION)
    assert time.process_time() - start < 5
    assert (found.images, found.looked_at, found.formats) == (100_000, 2000, {"JPEG": 2000})


@pytest.mark.filterwarnings("error")
def test_headers_only(tmp_path: Path) -> None:
    """A photograph of 24 megapixels that is damaged behind its header is looked at in no time, and passes."""
    file = io.BytesIO()
    Image.fromarray(np.zeros((4000, 6000), np.uint8)).save(file, "JPEG")
    (tmp_path / "a.jpg").write_bytes(file.getvalue()[:2000])
    start = time.process_time()
    found = check(Files([tmp_path / "a.jpg"] * 20), PREPARATION)
    assert time.process_time() - start < 1
    assert found.short_side == (4000,) * 5
    assert not found.unreadable
