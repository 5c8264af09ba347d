"""Downloads: good, cut off, corrupt, refused, slow, concurrent, killed; and disks that refuse."""

from __future__ import annotations

import hashlib
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from context_pred.errors import DigestError, DownloadError, StorageError
from context_pred.zoo.download import UnreachableError, _retry_after, download, fill

DATA = random.Random(0).randbytes(3_000_000)
SHA256 = hashlib.sha256(DATA).hexdigest()
ROOT = Path(__file__).resolve().parents[2]


def fetch(server: Any, folder: Path, sha256: str = SHA256, **options: Any) -> Path:
    server.files["/file.pth"] = DATA
    file = folder / "new" / "file.pth"
    defaults: dict[str, Any] = {"progress": False, "backoff": 0.01, "timeout": (2, 0.3)}
    assert download(f"{server.url}/file.pth", file, sha256=sha256, **{**defaults, **options}) == SHA256
    return file


def left_over(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.rglob("*") if path.is_file())


@pytest.mark.parametrize(
    ("faults", "gets"),
    [
        ([], 1),
        (["slow"], 1),
        (["cut"], 2),
        (["cut", "cut", "cut", "cut", "cut"], 6),  # each brings new bytes, so the tries begin anew
        (["stall"], 2),
        (["500", "503"], 3),
        (["429"], 2),
        (["408"], 2),
        (["cut", "whole"], 2),  # a server without range requests
        (["cut", "shifted"], 3),
        (["cut", "500", "cut", "429"], 5),
    ],
)
@pytest.mark.parametrize("published", [8, 64])
def test_the_file_arrives_whole_whatever_happens_on_the_way(
    server: Any, tmp_path: Path, faults: list[str], gets: int, published: int
) -> None:
    server.faults = list(faults)
    file = fetch(server, tmp_path, SHA256[:published])
    assert file.read_bytes() == DATA
    assert left_over(tmp_path) == ["file.pth"]
    assert len(server.gets) == gets


def test_what_a_stopped_download_left_is_continued(server: Any, tmp_path: Path) -> None:
    (tmp_path / "new").mkdir()
    (tmp_path / "new" / "file.pth.part").write_bytes(DATA[:1_000_000])
    assert fetch(server, tmp_path).read_bytes() == DATA
    assert server.gets == [("GET", "/file.pth", "bytes=1000000-")]


@pytest.mark.parametrize("length", [2_000_000, len(DATA), len(DATA) + 10])
def test_bytes_of_another_file_left_behind_are_thrown_away(server: Any, tmp_path: Path, length: int) -> None:
    (tmp_path / "new").mkdir()
    (tmp_path / "new" / "file.pth.part").write_bytes(bytes(length))
    assert fetch(server, tmp_path).read_bytes() == DATA
    assert left_over(tmp_path) == ["file.pth"]


def test_a_part_that_is_complete_costs_no_second_transfer(server: Any, tmp_path: Path) -> None:
    (tmp_path / "new").mkdir()
    (tmp_path / "new" / "file.pth.part").write_bytes(DATA)
    assert fetch(server, tmp_path).read_bytes() == DATA
    assert server.gets == [("GET", "/file.pth", f"bytes={len(DATA)}-")]


def test_a_finished_file_is_trusted_by_its_digest_alone(server: Any, tmp_path: Path) -> None:
    file = fetch(server, tmp_path)
    fetch(server, tmp_path)
    assert len(server.gets) == 1
    file.write_bytes(DATA[:-1] + b"?")
    fetch(server, tmp_path)
    assert file.read_bytes() == DATA
    assert len(server.gets) == 2


@pytest.mark.parametrize("fault", ["wrong"])
def test_wrong_bytes_are_refused_and_nothing_is_kept(server: Any, tmp_path: Path, fault: str) -> None:
    server.faults = [fault]
    with pytest.raises(DigestError, match=f"should begin with {SHA256}"):
        fetch(server, tmp_path)
    assert left_over(tmp_path) == []


@pytest.mark.parametrize("status", ["401", "403", "404", "410"])
def test_a_refusal_is_not_asked_again(server: Any, tmp_path: Path, status: str) -> None:
    server.faults = [status]
    with pytest.raises(DownloadError, match=rf"file\.pth: HTTP {status}") as error:
        fetch(server, tmp_path)
    assert not isinstance(error.value, UnreachableError)
    assert len(server.gets) == 1


def test_a_server_that_only_fails_is_given_up(server: Any, tmp_path: Path) -> None:
    server.faults = ["500"] * 20
    with pytest.raises(DownloadError, match=r"HTTP 500 .*given up after 3 tries") as error:
        fetch(server, tmp_path, attempts=3)
    assert not isinstance(error.value, UnreachableError)
    assert len(server.gets) == 3


def test_a_server_that_only_stalls_is_given_up_and_its_bytes_are_kept(server: Any, tmp_path: Path) -> None:
    server.files["/file.pth"] = DATA
    (tmp_path / "new").mkdir()
    (tmp_path / "new" / "file.pth.part").write_bytes(DATA[:-1])
    server.faults = ["stall"] * 20  # half of one byte is none
    with pytest.raises(DownloadError, match="given up after 2 tries"):
        fetch(server, tmp_path, attempts=2)
    assert left_over(tmp_path) == ["file.pth.part"]


def test_retry_after_is_obeyed(server: Any, tmp_path: Path) -> None:
    server.faults, server.extra = ["429"], {"Retry-After": "1"}
    start = time.monotonic()
    fetch(server, tmp_path)
    assert 0.9 < time.monotonic() - start < 5


def test_a_pause_beyond_patience_is_an_error(server: Any, tmp_path: Path) -> None:
    server.faults, server.extra = ["429"], {"Retry-After": "86400"}
    with pytest.raises(DownloadError, match=r"HTTP 429 .*pause of 86400 s"):
        fetch(server, tmp_path)


@pytest.mark.parametrize(
    ("value", "seconds"),
    [("7", 7), ("Thu, 01 Jan 1970 00:00:00 GMT", 0), (None, None), ("soon", None), ("-3", None)],
)
def test_retry_after_is_read(value: str | None, seconds: float | None) -> None:
    assert _retry_after(value) == seconds


def test_no_server_at_all_is_told_apart(tmp_path: Path) -> None:
    with pytest.raises(UnreachableError, match="given up after 2 tries"):
        download("http://127.0.0.1:9/file.pth", tmp_path / "file.pth", sha256="00", progress=False, backoff=0.01)


@pytest.mark.parametrize("url", ["ftp://127.0.0.1/file", "file.pth", "http://"])
def test_an_address_that_is_none(tmp_path: Path, url: str) -> None:
    with pytest.raises(DownloadError):
        download(url, tmp_path / "file.pth", sha256="00", progress=False)


def test_progress_goes_to_stderr_and_can_be_silenced(
    server: Any, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    fetch(server, tmp_path / "quiet")
    assert capfd.readouterr() == ("", "")
    fetch(server, tmp_path / "loud", progress=True)
    out, err = capfd.readouterr()
    assert out == ""
    assert "file.pth" in err
    assert "3.00M" in err


# Disks that refuse


def test_a_full_disk(server: Any, tmp_path: Path) -> None:
    if not os.path.exists("/dev/full"):
        pytest.skip("this system has no /dev/full")
    (tmp_path / "new").mkdir()
    (tmp_path / "new" / "file.pth.part").symlink_to("/dev/full")
    with pytest.raises(StorageError, match=r"disk is full: free some space, or choose another folder with cache_dir="):
        fetch(server, tmp_path)


def test_a_file_that_is_larger_than_the_disk_is_not_begun(
    server: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import shutil

    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10, 9, 1))  # type: ignore[attr-defined]
    with pytest.raises(StorageError, match=r"3 MB are needed, 0 MB are free"):
        fetch(server, tmp_path)
    assert left_over(tmp_path) == []


def test_a_folder_that_cannot_be_made(server: Any, tmp_path: Path) -> None:
    (tmp_path / "new").write_text("a file in the way")
    with pytest.raises(StorageError, match=r"Cannot write .*file"):
        fetch(server, tmp_path)
    with pytest.raises(StorageError, match="Cannot write"):
        fill(tmp_path / "new" / "model", lambda folder: None)


def test_a_read_only_folder(server: Any, tmp_path: Path, as_ordinary_user: Any) -> None:
    fetch(server, tmp_path / "before")
    (tmp_path / "closed").mkdir(mode=0o555)
    with as_ordinary_user():
        with pytest.raises(StorageError, match="you may not write there"):
            fetch(server, tmp_path / "closed")
        with pytest.raises(StorageError, match="you may not write there"):
            fill(tmp_path / "closed" / "model", lambda folder: None)


# Many processes

CHILD = """
import os, sys
from pathlib import Path
import filelock, requests, tqdm  # before the fork, so that the processes really race
from context_pred.zoo.download import download, fill
url, sha256, folder, processes = sys.argv[1:]
children = []
for _ in range(int(processes) - 1):
    pid = os.fork()
    if pid == 0:
        children = []
        break
    children.append(pid)
def make(new):
    download(url, Path(folder).parent / ".downloads" / "file.pth", sha256=sha256, progress=False)
    Path(Path(folder).parent / ".downloads" / "file.pth").rename(new / "file.pth")
fill(Path(folder), make)
assert (Path(folder) / "file.pth").stat().st_size == 3_000_000
assert "torch" not in sys.modules
assert all(os.waitpid(pid, 0)[1] == 0 for pid in children)
"""


def child(server: Any, folder: Path, processes: int = 1) -> subprocess.Popen[str]:
    server.files["/file.pth"] = DATA
    arguments = [sys.executable, "-c", CHILD, f"{server.url}/file.pth", SHA256, str(folder), str(processes)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(arguments, env=environment, stderr=subprocess.PIPE, text=True)


def test_32_processes_download_once(server: Any, tmp_path: Path) -> None:
    parent = child(server, tmp_path / "model", processes=32)
    assert parent.communicate() == (None, "")
    assert parent.returncode == 0
    assert len(server.gets) == 1
    assert (tmp_path / "model" / "file.pth").read_bytes() == DATA


def test_a_killed_downloader_leaves_nothing_but_a_start(server: Any, tmp_path: Path) -> None:
    server.faults = ["stall"]
    first = child(server, tmp_path / "model")
    part = tmp_path / ".downloads" / "file.pth.part"
    until = time.monotonic() + 20
    while not (part.exists() and part.stat().st_size) and time.monotonic() < until:
        time.sleep(0.02)
    second = child(server, tmp_path / "model")  # waits for the first one's lock
    first.send_signal(signal.SIGKILL)
    first.communicate()
    assert not (tmp_path / "model").exists() or second.poll() is not None
    assert second.communicate() == (None, "")
    assert second.returncode == 0
    assert (tmp_path / "model" / "file.pth").read_bytes() == DATA
    assert [range_ != "" for _, _, range_ in server.gets] == [False, True]
    assert sorted(p.name for p in tmp_path.iterdir()) == [".downloads", ".locks", "model"]


# Folders


def test_a_folder_is_made_once_and_replaced_only_if_it_will_not_do(tmp_path: Path) -> None:
    made = []

    def make(new: Path) -> None:
        made.append(new)
        (new / "file").write_text(str(len(made)))

    folder = tmp_path / "cache" / "model"
    for _ in range(3):
        assert fill(folder, make) == folder
    assert len(made) == 1
    fill(folder, make, lambda found: (found / "file").is_file() and (found / "file").read_text() == "2")
    assert len(made) == 2
    assert (folder / "file").read_text() == "2"
    assert sorted(p.name for p in folder.parent.iterdir()) == [".locks", "model"]


def test_a_failed_making_leaves_nothing_and_what_was_there_stands(tmp_path: Path) -> None:
    folder = tmp_path / "model"

    def fail(new: Path) -> None:
        (new / "half").write_text("")
        raise DownloadError("no")

    with pytest.raises(DownloadError):
        fill(folder, fail)
    assert not folder.exists()
    fill(folder, lambda new: (new / "file").touch())
    with pytest.raises(DownloadError):
        fill(folder, fail, lambda found: False)
    assert left_over(folder) == ["file"]
    assert sorted(p.name for p in tmp_path.iterdir()) == [".locks", "model"]


def test_remains_of_killed_processes_are_swept_up(tmp_path: Path) -> None:
    (tmp_path / ".model.abcd" / "model").mkdir(parents=True)
    (tmp_path / ".model-2.abcd").mkdir()  # another model's
    fill(tmp_path / "model", lambda new: None)
    assert sorted(p.name for p in tmp_path.iterdir()) == [".locks", ".model-2.abcd", "model"]
