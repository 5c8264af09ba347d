"""Tar shards: which images they hold, and the bytes of each, read where they lie."""

from __future__ import annotations

import gzip
import io
import os
import pickle
import tarfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from context_pred.data import collection as collections
from context_pred.data import shards
from context_pred.data.collection import Collection, collect
from context_pred.errors import ImageError, InvalidInputError

Members = Sequence[tuple[str, bytes]]


def write(path: Path, members: Members, kind: int = tarfile.USTAR_FORMAT) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=kind) as tar:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


def content(collection: Collection) -> dict[str, bytes]:
    return {name: collection.read(i) for i, name in enumerate(collection.names)}  # type: ignore[misc]


SAMPLES = [
    ("0001.jpg", b"one"), ("0001.json", b"{}"), ("0001.cls", b"3"), ("0001.txt", b"a dog"),
    ("0002.PNG", b"two" * 1000), ("0002.json", b"{}"), ("0003.webp", b""),
]  # fmt: skip


def test_images_are_known_by_their_ending_in_the_order_of_the_shard(tmp_path: Path) -> None:
    shard = write(tmp_path / "a.tar", SAMPLES)
    expected = {f"{shard}/0001.jpg": b"one", f"{shard}/0002.PNG": b"two" * 1000, f"{shard}/0003.webp": b""}
    assert content(collect(shard)) == expected
    assert list(collect(shard).names) == list(expected)
    assert content(collect(str(shard))) == expected


@pytest.mark.parametrize("kind", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_long_and_foreign_names_in_every_format(tmp_path: Path, kind: int) -> None:
    long = "/".join(["a folder of many letters"] * (4 if kind == tarfile.USTAR_FORMAT else 12))
    names = [f"{long}/1.jpg", "ünïcödé/日本.jpg", "./here.jpg", "plain.jpg"]
    shard = write(tmp_path / "a.tar", [(name, name.encode()) for name in names], kind)
    expected = {f"{shard}/{name.removeprefix('./')}": name.encode() for name in names}
    assert content(collect(shard)) == expected


def test_hidden_files_links_folders_and_masks_are_passed_over(tmp_path: Path) -> None:
    shard = tmp_path / "a.tar"
    with tarfile.open(shard, "w") as tar:
        for name, kind in (
            ("folder.jpg", tarfile.DIRTYPE),
            ("link.jpg", tarfile.SYMTYPE),
            ("hard.jpg", tarfile.LNKTYPE),
        ):
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, "a.jpg"
            tar.addfile(info)
        for name in ("._a.jpg", "x/._b.jpg", ".cache/c.jpg", "a.jpg", "a.mask.png", "b.mask.png", "IMG.2021.01.jpg"):
            info = tarfile.TarInfo(name)
            info.size = 1
            tar.addfile(info, io.BytesIO(b"x"))
    assert list(collect(shard).names) == [f"{shard}/{name}" for name in ("a.jpg", "b.mask.png", "IMG.2021.01.jpg")]


def test_equal_names_are_different_images(tmp_path: Path) -> None:
    shard = write(tmp_path / "a.tar", [("1.jpg", b"first"), ("1.jpg", b"second")])
    collection = collect(shard)
    assert [collection.read(i) for i in range(2)] == [b"first", b"second"]


def test_a_folder_of_shards(tmp_path: Path) -> None:
    for number in (10, 9):
        write(tmp_path / f"data-{number}.tar", [(f"{number}.jpg", b"x")])
    (tmp_path / "data-9.json").write_text("{}")
    (tmp_path / "loose.jpg").write_bytes(b"y")
    collection = collect(tmp_path)
    assert [os.path.relpath(name, tmp_path) for name in collection.names] == [
        "data-9.tar/9.jpg", "data-10.tar/10.jpg", "loose.jpg",
    ]  # fmt: skip
    assert [collection.read(i) for i in range(3)] == [b"x", b"x", tmp_path / "loose.jpg"]


def test_patterns_lists_and_sequences_of_shards(tmp_path: Path) -> None:
    for number in range(8, 12):
        write(tmp_path / f"data-{number:03d}.tar", [(f"{number}.jpg", str(number).encode())])
    every = [b"8", b"9", b"10", b"11"]
    (tmp_path / "shards.txt").write_text("".join(f"data-{number:03d}.tar\n" for number in range(8, 12)))
    for source in (
        f"{tmp_path}/data-{{008..011}}.tar",
        f"{tmp_path}/*.tar",
        tmp_path / "shards.txt",
        [f"{tmp_path}/data-{{008..010}}.tar", tmp_path / "data-011.tar"],
    ):
        assert list(content(collect(source)).values()) == every, source


def test_a_pattern_of_two_ranges_makes_every_combination(tmp_path: Path) -> None:
    for first in (1, 2):
        for second in ("09", "10"):
            write(tmp_path / f"{first}" / f"{second}.tar", [("x.jpg", f"{first}{second}".encode())])
    assert list(content(collect(f"{tmp_path}/{{1..2}}/{{09..10}}.tar")).values()) == [b"109", b"110", b"209", b"210"]


def test_a_file_with_braces_in_its_name_is_itself(tmp_path: Path) -> None:
    (tmp_path / "a{1..2}.jpg").write_bytes(b"x")
    assert list(collect(f"{tmp_path}/a{{1..2}}.jpg").names) == [f"{tmp_path}/a{{1..2}}.jpg"]


def test_what_is_wrong_with_a_shard_is_said(tmp_path: Path) -> None:
    good = write(tmp_path / "good" / "0.tar", SAMPLES)
    data = good.read_bytes()
    bad = tmp_path / "bad"
    bad.mkdir()
    (bad / "packed.tar.gz").write_bytes(gzip.compress(data))
    (bad / "packed.tar").write_bytes(gzip.compress(data))
    (bad / "inside.tar").write_bytes(data[: 512 + 2])  # within the first image
    (bad / "header.tar").write_bytes(data[: 1024 + 200])  # within the second header
    (bad / "no.tar").write_bytes(b"this is no tar file, only text" * 100)
    (bad / "none.tar").write_bytes(b"")
    damaged = bytearray(data)
    damaged[1024 + 20] ^= 0xFF  # a letter of the second name, so that the header's checksum is wrong
    (bad / "checksum.tar").write_bytes(bytes(damaged))
    write(bad / "empty.tar", [])
    write(bad / "text.tar", [("1.json", b"{}"), ("2.json", b"{}"), ("2.txt", b"")])
    table = [
        (bad / "packed.tar.gz", r"compressed \(gzip\).*plain \.tar"),
        (bad / "packed.tar", r"compressed \(gzip\)"),
        (bad / "inside.tar", "cut off"),
        (bad / "header.tar", "cut off.*after 1,024 of 1,224 bytes"),
        (bad / "checksum.tar", "damaged"),
        (bad / "no.tar", "no tar file"),
        (bad / "none.tar", "empty file"),
        (bad / "empty.tar", "holds no files at all"),
        (bad / "text.tar", r"holds \.json \(2\), \.txt \(1\).*known by their ending"),
        (f"{tmp_path}/good/{{0..12}}.tar", r"13 shards, and 12 of them are not there: .*1\.tar.*and 9 more"),
        (f"{tmp_path}/good/{{3..1}}.tar", "runs backwards"),
        (f"{tmp_path}/good/{{1..3}}.jpg", r"names end in \.tar"),
        (tmp_path / "gone.tar", "no file or folder"),
        ([tmp_path / "gone.tar"], "No such file"),
    ]
    for source, message in table:
        with pytest.raises(InvalidInputError, match=message):
            collect(source)


def test_a_shard_that_becomes_shorter_is_an_image_error(tmp_path: Path) -> None:
    shard = write(tmp_path / "a.tar", SAMPLES)
    collection = collect(shard)
    shard.write_bytes(shard.read_bytes()[:600])
    with pytest.raises(ImageError, match=r"0002\.PNG: .*shorter"):
        collection.read(1)
    gone = collect(write(tmp_path / "b.tar", SAMPLES))
    (tmp_path / "b.tar").unlink()
    with pytest.raises(ImageError, match=r"b\.tar/0001\.jpg: No such file"):
        gone.read(0)


def test_another_process_and_many_threads_read_the_same(tmp_path: Path) -> None:
    shards_ = [
        write(tmp_path / f"{n}.tar", [(f"{n}-{k}.jpg", f"{n} {k} ".encode() * 999) for k in range(20)])
        for n in range(9)
    ]
    collection = collect(shards_)
    expected = [f"{n} {k} ".encode() * 999 for n in range(9) for k in range(20)]
    assert collection.read(0) == expected[0]  # a shard is open when the collection is copied
    copied = pickle.loads(pickle.dumps(collection))
    assert list(copied.names) == list(collection.names)
    with ThreadPoolExecutor(8) as pool:
        order = [(7 * i) % 180 for i in range(180)] * 3
        assert list(pool.map(copied.read, order)) == [expected[i] for i in order]
    child = os.fork()
    if child == 0:
        os._exit(0 if [collection.read(i) for i in range(180)] == expected else 1)
    assert [collection.read(i) for i in reversed(range(180))] == expected[::-1]
    assert os.waitpid(child, 0)[1] == 0


def test_more_shards_than_may_be_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shards, "_OPEN_AT_ONCE", 2)
    collection = collect([write(tmp_path / f"{n}.tar", [("x.jpg", str(n).encode())]) for n in range(5)])
    before = len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 0
    assert [collection.read(i) for i in (0, 1, 2, 3, 4, 0, 2)] == [b"0", b"1", b"2", b"3", b"4", b"0", b"2"]
    if before:
        assert len(os.listdir("/proc/self/fd")) - before <= 2


def test_ten_thousand_members_are_indexed_in_a_second(tmp_path: Path) -> None:
    shard = write(tmp_path / "a.tar", [(f"{n:06d}.jpg", b"x") for n in range(10_000)])
    start = time.process_time()
    collection = collect(shard)
    assert time.process_time() - start < 2
    assert len(collection) == 10_000
    assert collection.names[9_999] == f"{shard}/009999.jpg"


def test_the_endings_are_pillow_s_and_heic_s() -> None:
    assert {".jpg", ".jpeg", ".png", ".tif", ".tiff", ".webp", ".bmp", ".gif", ".heic"} <= shards.image_suffixes()
    assert not {".json", ".txt", ".cls", ".npy", ".mp4", ".mpg", ".h5", ".pdf", ""} & shards.image_suffixes()


def test_numbering_goes_through_shards_and_files(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(b"a")
    shard = write(tmp_path / "b.tar", [("1.jpg", b"1"), ("2.jpg", b"2")])
    mixed = collect([tmp_path / "a.jpg", shard, tmp_path / "a.jpg"])
    assert isinstance(mixed, collections.Collection)
    assert [mixed.read(i) for i in range(4)] == [tmp_path / "a.jpg", b"1", b"2", tmp_path / "a.jpg"]
    part = mixed.subset([2, 0])
    assert [part.read(i) for i in range(2)] == [b"2", tmp_path / "a.jpg"]
    assert list(part.names) == [f"{shard}/2.jpg", f"{tmp_path}/a.jpg"]
