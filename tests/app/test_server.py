"""The server: how it starts and ends, what it refuses, and what it leaves behind."""

from __future__ import annotations

import http.client
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from click.testing import CliRunner
from served import serving

from context_pred import app
from context_pred.app import Limits
from context_pred.cli import main
from context_pred.discover.index import NeighborIndex
from context_pred.errors import ContextPredError, InvalidInputError
from context_pred.model import ContextPredictionModel

pytest.importorskip("gradio", reason='gradio is not installed: pip install "context-pred[app]"')
LIMITS = Limits(megabytes=0.5)


@pytest.fixture(scope="module")
def served(tiny: ContextPredictionModel, collection: Path) -> Iterator[tuple[str, Path]]:
    with serving(tiny, LIMITS, images=collection, seed=0, device="cpu") as (url, folder):
        yield url, folder


def status(url: str, **headers: str) -> int:
    """Ask for an address as it is written, without a client that tidies it."""
    parts = urlsplit(url)
    connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=20)
    try:
        connection.request("GET", url.removeprefix(f"{parts.scheme}://{parts.netloc}"), headers=headers)
        return connection.getresponse().status
    finally:
        connection.close()


def post(url: str, body: bytes, kind: str) -> tuple[int, bytes]:
    request = urllib.request.Request(url, body, {"Content-Type": kind})
    try:
        with urllib.request.urlopen(request, timeout=20) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as error:
        return error.code, error.read()


def uploaded(url: str, content: bytes, name: str = "a.png") -> tuple[int, bytes]:
    border = uuid.uuid4().hex
    head = f'--{border}\r\nContent-Disposition: form-data; name="files"; filename="{name}"\r\n\r\n'
    body = head.encode() + content + f"\r\n--{border}--\r\n".encode()
    return post(f"{url}/gradio_api/upload", body, f"multipart/form-data; boundary={border}")


def test_the_page_is_served(served: tuple[str, Path]) -> None:
    url, _ = served
    assert status(url) == 200
    with urllib.request.urlopen(f"{url}/config") as answer:
        config = json.load(answer)
    assert config["title"] == "context-pred"
    assert config["analytics_enabled"] is False
    assert config["stylesheets"] == []


@pytest.mark.parametrize(
    "path",
    [
        "/gradio_api/file=/etc/passwd",
        "/file=/etc/passwd",
        "/gradio_api/file=../../../../../../etc/passwd",
        "/gradio_api/file=%2Fetc%2Fpasswd",
        "/gradio_api/file=pyproject.toml",
        "/gradio_api/file={index}",
        "/gradio_api/file=https://example.com/a.png",
        "/gradio_api/proxy=https://example.com/a.png",
        "/gradio_api/process_recording",  # 405 where it is not refused
        "/static/../../../../../../../etc/passwd",
        "/assets/..%2f..%2f..%2f..%2f..%2fetc/passwd",
    ],
)
def test_no_file_but_uploads_is_served(served: tuple[str, Path], path: str) -> None:
    url, folder = served
    assert (folder / "index" / "whole" / "index.json").is_file()
    assert status(url + path.format(index=folder / "index" / "whole" / "index.json")) in (403, 404)


def test_an_upload_lies_in_the_servers_own_folder(served: tuple[str, Path]) -> None:
    url, folder = served
    code, answer = uploaded(url, b"some bytes", name="../../../outside.png")
    assert code == 200
    (path,) = json.loads(answer)
    assert Path(path).is_relative_to(folder / "uploads")
    assert Path(path).read_bytes() == b"some bytes"
    assert status(f"{url}/gradio_api/file={path}") == 200


def test_an_upload_that_is_too_large_is_refused(served: tuple[str, Path]) -> None:
    url, _ = served
    code, answer = uploaded(url, bytes(LIMITS.bytes + 1))
    assert code == 413
    assert b"maximum allowed size" in answer
    assert uploaded(url, bytes(LIMITS.bytes - 1))[0] == 200


def handler(url: str, field: str, event: str) -> tuple[int, int]:
    """Find what is called when a file is given to a field: its number, and how many inputs it takes."""
    with urllib.request.urlopen(f"{url}/config") as answer:
        config = json.load(answer)
    (own,) = (part["id"] for part in config["components"] if part["props"].get("elem_id") == field)
    (found,) = (one for one in config["dependencies"] if [own, event] in one["targets"])
    return found["id"], len(found["inputs"])


@pytest.mark.parametrize("path", ["/etc/passwd", "https://example.com/a.png"])
def test_a_client_cannot_name_a_file_it_has_not_uploaded(
    served: tuple[str, Path], path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    fetched = []
    monkeypatch.setattr("gradio.processing_utils.async_ssrf_protected_download", lambda url, **_: fetched.append(url))
    url, _ = served
    number, count = handler(url, "neighbors-upload", "upload")
    file = {"path": path, "orig_name": "a.png", "meta": {"_type": "gradio.FileData"}}
    call = {"fn_index": number, "data": [file, *["Whole images"] * (count - 1)], "session_hash": "s1"}
    code, _ = post(f"{url}/gradio_api/queue/join?", json.dumps(call).encode(), "application/json")
    assert code == 200
    with urllib.request.urlopen(f"{url}/gradio_api/queue/data?session_hash=s1", timeout=20) as stream:
        lines = [json.loads(line[5:]) for line in stream if line.startswith(b"data:")]
    (done,) = (line for line in lines if line["msg"] == "process_completed")
    assert done["success"] is False
    assert "root:" not in json.dumps(done)
    assert fetched == []


def test_another_hosts_name_is_not_answered(served: tuple[str, Path]) -> None:
    url, _ = served
    assert status(url, Host="example.com") == 400
    assert status(url, Host="localhost") == 200


def test_a_port_that_is_taken_is_told_with_a_free_one(tmp_path: Path) -> None:
    from context_pred.app.server import bound

    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(InvalidInputError, match=f"Port {port} of 127.0.0.1 cannot be taken") as caught:
            bound("127.0.0.1", port)
        free = int(str(caught.value).split("--port ")[1].rstrip("."))
        bound("127.0.0.1", free).close()
        result = CliRunner().invoke(main, ["serve", "--no-open", "--port", str(port)], prog_name="context-pred")
    assert result.exit_code == 2
    assert result.stderr.startswith(f"Error: Port {port}")
    assert result.stderr.count("\n") == 1


@pytest.mark.parametrize(("host", "port"), [("127.0.0.1", -1), ("127.0.0.1", 70_000), ("203.0.113.7", 0)])
def test_what_cannot_be_listened_on(host: str, port: int) -> None:
    from context_pred.app.server import bound

    with pytest.raises(InvalidInputError, match="accepted"):
        bound(host, port)


def settings() -> tuple[object, ...]:
    return os.environ.get("GRADIO_TEMP_DIR"), signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_it_ends_cleanly_and_leaves_nothing(
    tiny: ContextPredictionModel,
    collection: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    number: signal.Signals,
) -> None:
    temporary, working = tmp_path / "temporary", tmp_path / "working"
    temporary.mkdir()
    working.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(temporary))
    monkeypatch.setattr("gradio.routes.DEFAULT_TEMP_DIR", str(temporary / "gradio"))  # as read before ours was set
    monkeypatch.chdir(working)
    before = settings()
    seen = []

    def say(url: str) -> None:
        try:
            assert uploaded(url, b"bytes")[0] == 200
            seen.append([path.name for path in temporary.iterdir()])
        finally:
            os.kill(os.getpid(), number)

    app.serve(collection, model=tiny, port=0, open_browser=False, device="cpu", progress=False, say=say)
    assert len(seen) == 1
    assert seen[0][0].startswith("context-pred-")
    assert list(temporary.iterdir()) == list(working.iterdir()) == []
    assert settings() == before


def test_an_index_that_does_not_fit_is_refused_at_the_start(
    tiny: ContextPredictionModel, collection: Path, tmp_path: Path
) -> None:
    NeighborIndex.build(
        collection, tiny, out=tmp_path / "index", layer="feature2", device="cpu", workers=0, progress=False
    )
    assert app.build(tiny, index=tmp_path / "index", device="cpu")
    other = ContextPredictionModel.from_card(tiny.card).eval()
    with pytest.raises(InvalidInputError, match="another model"):
        app.build(other, index=tmp_path / "index", device="cpu")
    result = CliRunner().invoke(main, ["serve", "--no-open", "--port", "0", "--index", str(tmp_path / "index")])
    assert (result.exit_code, result.stderr.count("\n")) == (2, 1)
    assert "another model" in result.stderr
    for part in (tmp_path / "index").rglob("*.npy"):
        part.write_bytes(part.read_bytes()[:100])
    with pytest.raises(ContextPredError, match="damaged"):
        app.build(tiny, index=tmp_path / "index", device="cpu")
    with pytest.raises(ContextPredError):
        app.build(tiny, index=tmp_path / "none", device="cpu")


def test_a_page_without_a_collection_or_a_head_says_so(tiny: ContextPredictionModel) -> None:
    alone = ContextPredictionModel.from_card(tiny.card.replace(pair_layers=False)).eval()
    values = [str(one["props"].get("value")) for one in app.build(alone, device="cpu").get_config_file()["components"]]
    assert any("context-pred serve IMAGES" in value for value in values)
    assert any("backbone alone" in value for value in values)


def test_building_leaves_the_model_as_it_is(tiny: ContextPredictionModel) -> None:
    tiny.train()
    try:
        app.build(tiny, device="cpu")
        assert tiny.training
    finally:
        tiny.eval()


@pytest.mark.parametrize("options", [{}, {"index": "photos.index", "images": "photos"}])
def test_patches_are_those_of_images(tiny: ContextPredictionModel, options: dict[str, str]) -> None:
    with pytest.raises(InvalidInputError, match="give images, and no index"):
        app.build(tiny, patches=True, **options)  # type: ignore[arg-type]


def test_a_space_launches_it_itself(tiny: ContextPredictionModel, collection: Path) -> None:
    page = app.build(tiny, images=collection, device="cpu")
    page.launch(prevent_thread_lock=True, quiet=True, inbrowser=False, max_file_size=1000, enable_monitoring=False)
    try:
        url = str(page.local_url).rstrip("/")
        assert status(f"{url}/") == 200
        assert status(f"{url}/gradio_api/file=/etc/passwd") == 403
        assert uploaded(url, bytes(2000))[0] == 413
    finally:
        page.close(verbose=False)


def test_without_gradio_the_error_names_the_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gradio", None)
    with pytest.raises(InvalidInputError, match=r'pip install "context-pred\[app\]"'):
        app.build()


@pytest.mark.slow
def test_the_command_ends_with_ctrl_c(collection: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "context_pred.cli", "serve", str(collection), "--port", "0", "--no-open"]
    environment = os.environ | {"TMPDIR": str(tmp_path), "HF_HUB_OFFLINE": "1"}
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment) as run:
        assert run.stdout is not None
        line = run.stdout.readline()
        assert line.startswith("http://127.0.0.1:")
        assert status(line.split()[0]) == 200
        run.send_signal(signal.SIGINT)
        started = time.monotonic()
        assert run.wait(timeout=30) == 0
        assert time.monotonic() - started < 15
        assert "Traceback" not in run.stderr.read()  # type: ignore[union-attr]
    shutil.rmtree(tmp_path / "torchinductor_root", ignore_errors=True)
    assert [path for path in tmp_path.iterdir() if path.name.startswith("context-pred-")] == []
