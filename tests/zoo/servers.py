"""HTTP servers on the loopback for the tests: plain files, with faults on demand, and the Hub's routes."""

from __future__ import annotations

import hashlib
import re
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self
from urllib.parse import unquote, urlsplit


class QuietServer(ThreadingHTTPServer):
    """A client that hangs up in the middle, as several tests want, is no news."""

    def handle_error(self, request: Any, client_address: Any) -> None:
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


class FileServer:
    """Serves ``files`` (path → bytes) with range requests; each entry of ``faults`` spoils one GET, in turn.

    Faults: "cut" (half of the body, then the connection closes), "stall" (half of the body, then silence), "slow" (the
    body in small pieces), "wrong" (other bytes of the same length), "whole" (a range request gets the whole file),
    "shifted" (a range request gets another range), or a status such as "404" or "429" (headers in ``extra``).
    """

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.faults: list[str] = []
        self.extra: dict[str, str] = {}
        self.log: list[tuple[str, str, str]] = []
        self.lock = threading.Lock()
        self.stalled = threading.Event()
        owner = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                owner.answer(self)

            def do_HEAD(self) -> None:
                owner.answer(self)

            def log_message(self, *_: Any) -> None:
                pass

        self.httpd = QuietServer(("127.0.0.1", 0), Handler)
        self.httpd.daemon_threads = True
        self.thread = threading.Thread(target=self.httpd.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)

    def __enter__(self) -> Self:
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stalled.set()
        self.httpd.shutdown()
        self.httpd.server_close()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.httpd.server_port}"

    @property
    def gets(self) -> list[tuple[str, str, str]]:
        """(method, path, Range) of every GET so far."""
        return [entry for entry in self.log if entry[0] == "GET"]

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        path = unquote(urlsplit(request.path).path)
        with self.lock:
            self.log.append((request.command, path, request.headers.get("Range", "")))
            fault = self.faults.pop(0) if self.faults and request.command == "GET" else ""
        self.respond(request, path, fault)

    def respond(self, request: BaseHTTPRequestHandler, path: str, fault: str) -> None:
        if fault.isdigit():
            send(request, int(fault), b"an error page", self.extra)
        elif path not in self.files:
            send(request, 404, b"no such file")
        else:
            self.send_file(request, self.files[path], {}, fault)

    def send_file(self, request: BaseHTTPRequestHandler, data: bytes, headers: dict[str, str], fault: str) -> None:
        status, body = 200, data if fault != "wrong" else bytes(len(data))
        wanted = re.fullmatch(r"bytes=(\d+)-", request.headers.get("Range", ""))
        if wanted and fault != "whole":
            start = int(wanted[1]) // (2 if fault == "shifted" else 1)
            if start >= len(data):
                send(request, 416, b"", {"Content-Range": f"bytes */{len(data)}"})
                return
            status, body = 206, body[start:]
            headers = {**headers, "Content-Range": f"bytes {start}-{len(data) - 1}/{len(data)}"}
        if fault in ("cut", "stall"):
            send(request, status, body[: len(body) // 2], headers, length=len(body))
            if fault == "stall":
                self.stalled.wait(30)
            request.close_connection = True
            return
        send(request, status, body, headers, piece=max(1, len(body) // 10) if fault == "slow" else 0)


class HubServer(FileServer):
    """Speaks the Hub's routes for models: ``repositories[name][revision] = (commit, {file: bytes})``.

    Large files (.safetensors) are answered as the Hub does: a redirect to a content address, with digest and size of
    the linked file in the headers. ``token`` makes every repository private; ``status`` makes the Hub fail.
    """

    def __init__(self) -> None:
        super().__init__()
        self.repositories: dict[str, dict[str, tuple[str, dict[str, bytes]]]] = {}
        self.token = ""
        self.status = 0

    @property
    def cdn(self) -> str:
        """The content addresses' host: another one than the Hub's own, as in reality."""
        return self.url.replace("127.0.0.1", "localhost")

    def add(self, name: str, files: dict[str, bytes], branch: str = "main") -> str:
        """Put files into a repository; return the commit."""
        text = repr((name, sorted((key, hashlib.sha256(value).hexdigest()) for key, value in files.items())))
        commit = hashlib.sha1(text.encode()).hexdigest()
        revisions = self.repositories.setdefault(name, {})
        revisions[branch] = revisions[commit] = (commit, files)
        return commit

    def respond(self, request: BaseHTTPRequestHandler, path: str, fault: str) -> None:
        if path in self.files:  # a content address
            self.send_file(request, self.files[path], {"ETag": f'"{path.rpartition("/")[2]}"'}, fault)
            return
        if self.status:
            send(request, self.status, b"the Hub is down")
            return
        route = re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path)
        private = self.token and request.headers.get("Authorization") != f"Bearer {self.token}"
        repository = None if route is None or private else self.repositories.get(route[1])
        if route is None or repository is None:
            send(request, 401 if private else 404, b"", {"X-Error-Code": "RepoNotFound"})
        elif route[2] not in repository:
            send(request, 404, b"", {"X-Error-Code": "RevisionNotFound"})
        else:
            commit, files = repository[route[2]]
            self.send_entry(request, commit, files.get(route[3]), route[3], fault)

    def send_entry(
        self, request: BaseHTTPRequestHandler, commit: str, data: bytes | None, name: str, fault: str
    ) -> None:
        headers = {"X-Repo-Commit": commit}
        if data is None:
            send(request, 404, b"", {**headers, "X-Error-Code": "EntryNotFound"})
        elif name.endswith(".safetensors"):
            digest = hashlib.sha256(data).hexdigest()
            self.files[f"/cdn/{digest}"] = data
            linked = {"X-Linked-ETag": f'"{digest}"', "X-Linked-Size": str(len(data))}
            send(request, 302, b"", {**headers, **linked, "Location": f"{self.cdn}/cdn/{digest}"})
        else:
            digest = hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
            self.send_file(request, data, {**headers, "ETag": f'"{digest}"'}, fault)


def send(
    request: BaseHTTPRequestHandler,
    status: int,
    body: bytes,
    headers: dict[str, str] | None = None,
    *,
    length: int | None = None,
    piece: int = 0,
) -> None:
    """Write one answer; ``length`` promises another length than the body's, ``piece`` sends so many bytes at a time."""
    request.send_response(status)
    for name, value in {**(headers or {}), "Content-Length": str(len(body) if length is None else length)}.items():
        request.send_header(name, value)
    request.end_headers()
    if request.command == "HEAD":
        return
    step = piece or max(1, len(body))
    try:
        for start in range(0, len(body), step):
            request.wfile.write(body[start : start + step])
            request.wfile.flush()
            if piece:
                time.sleep(0.02)
    except OSError:  # the client has gone
        request.close_connection = True
