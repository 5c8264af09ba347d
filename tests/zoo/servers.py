"""HTTP servers on the loopback for the tests: plain files, with faults on demand, and the Hub's routes."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import sys
import threading
import time
from collections.abc import Callable
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

            def do_POST(self) -> None:
                owner.answer(self)

            def do_PUT(self) -> None:
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


class WritableHub(HubServer):
    """The Hub's write routes too, as huggingface-hub 2.4 calls them where Xet is switched off.

    whoami, repos/create, models (with blobs), validate-yaml, preupload, the LFS batch with its PUT and verify, and the
    commit as NDJSON. Not spoken is Xet, whose protocol lies within the compiled hf-xet: with HF_HUB_DISABLE_XET=1 the
    client sends large files by LFS instead, which the Hub takes as well.

    ``users``: token → (name, organisations); who is not of a namespace gets 403 there. ``refuse``: a part of a path →
    status. ``meanwhile`` is called before a commit is looked at.
    """

    def __init__(self) -> None:
        super().__init__()
        self.users: dict[str, tuple[str, list[str]]] = {"hf_writer": ("writer", ["lab"])}
        self.refuse: dict[str, int] = {}
        self.private: set[str] = set()
        self.commits: list[dict[str, Any]] = []
        self.large: dict[str, bytes] = {}
        self.meanwhile: Callable[[], None] = lambda: None

    def wrote(self) -> list[str]:
        """Paths of the requests so far that change something."""
        return [path for method, path, _ in self.log if method in ("POST", "PUT") and "validate-yaml" not in path]

    def head(self, name: str) -> tuple[str, dict[str, bytes]]:
        return self.repositories[name]["main"]

    def commit(self, name: str, files: dict[str, bytes]) -> str:
        """Put a commit on top of the main branch; return its 40 digits."""
        parent, before = self.repositories.get(name, {}).get("main", ("", {}))
        after = {**before, **files}
        text = repr((parent, sorted((key, hashlib.sha256(value).hexdigest()) for key, value in after.items())))
        digits = hashlib.sha1(text.encode()).hexdigest()
        revisions = self.repositories.setdefault(name, {})
        revisions["main"] = revisions[digits] = (digits, after)
        return digits

    def respond(self, request: BaseHTTPRequestHandler, path: str, fault: str) -> None:
        body = _body(request)
        user = self.users.get(request.headers.get("Authorization", "").removeprefix("Bearer "))
        refused = next((status for part, status in self.refuse.items() if part in path), 0)
        put = re.fullmatch(r"/lfs/([0-9a-f]{64})", path)
        route = re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/(revision|preupload|commit)/([^/]+))?", path)
        batch = re.fullmatch(r"/([^/]+/[^/]+)\.git/info/lfs/objects/(batch|verify)", path)
        if refused:
            answer(request, refused, {"error": "refused by the test"})
        elif put and request.command == "PUT":
            right = hashlib.sha256(body).hexdigest() == put[1]
            self.large.update({put[1]: body} if right else {})
            answer(request, 200 if right else 400, {})
        elif user is None and (path.startswith("/api/") or batch):
            answer(request, 401, {"error": "Invalid credentials in Authorization header"})
        elif path == "/api/whoami-v2":
            answer(request, 200, {"type": "user", "name": user[0], "orgs": [{"name": name} for name in user[1]]})
        elif path == "/api/validate-yaml":
            self.validate(request, json.loads(body)["content"])
        elif path == "/api/repos/create":
            self.create(request, user, json.loads(body))
        elif batch:
            self.batch(request, batch[1], batch[2], json.loads(body))
        elif route:
            self.model(request, user, route[1], route[2] or "revision", route[3] or "main", body)
        elif path.partition("/resolve/")[0].strip("/") in self.private and user is None:
            send(request, 401, b"", {"X-Error-Code": "RepoNotFound"})
        else:
            super().respond(request, path, fault)

    def validate(self, request: BaseHTTPRequestHandler, content: str) -> None:
        from huggingface_hub import ModelCard

        try:
            wrong = "" if ModelCard(content).data.license else "license is missing"
        except ValueError as error:
            wrong = str(error)
        answer(request, 400 if wrong else 200, {"errors": [{"message": wrong}] if wrong else [], "warnings": []})

    def create(self, request: BaseHTTPRequestHandler, user: tuple[str, list[str]], wanted: dict[str, Any]) -> None:
        name = f"{wanted['organization']}/{wanted['name']}"
        url = {"url": f"{self.url}/{name}"}
        if wanted["organization"] not in (user[0], *user[1]):
            answer(request, 403, {"error": "You don't have the rights to create a model under this namespace"})
        elif name in self.repositories:
            answer(request, 409, {**url, "error": "You already created this model repo"})
        else:
            self.private.update({name} if wanted.get("visibility") == "private" else ())
            self.commit(name, {".gitattributes": b"*.safetensors filter=lfs diff=lfs merge=lfs -text\n"})
            answer(request, 200, url)

    def batch(self, request: BaseHTTPRequestHandler, name: str, what: str, wanted: dict[str, Any]) -> None:
        if what == "verify":
            answer(request, 200 if len(self.large.get(wanted["oid"], b"")) == wanted["size"] else 404, {})
            return
        objects = []
        for one in wanted["objects"]:
            actions = {
                "upload": {"href": f"{self.url}/lfs/{one['oid']}"},
                "verify": {"href": f"{self.url}/{name}.git/info/lfs/objects/verify"},
            }
            objects.append({**one, "authenticated": True, **({} if one["oid"] in self.large else {"actions": actions})})
        answer(request, 200, {"transfer": "basic", "objects": objects})

    def model(
        self, request: BaseHTTPRequestHandler, user: tuple[str, list[str]], name: str, what: str, at: str, body: bytes
    ) -> None:
        if name not in self.repositories:
            answer(request, 404, {"error": "Repository not found"}, {"X-Error-Code": "RepoNotFound"})
        elif at not in self.repositories[name]:
            answer(request, 404, {"error": "Invalid rev id"}, {"X-Error-Code": "RevisionNotFound"})
        elif what != "revision" and name.partition("/")[0] not in (user[0], *user[1]):
            answer(request, 403, {"error": "no rights to write to this repository"})
        elif what == "commit":
            self.take(request, name, [json.loads(line) for line in body.splitlines()])
        elif what == "preupload":
            files = self.head(name)[1]
            modes = [
                {
                    "path": one["path"],
                    "uploadMode": "lfs" if one["path"].endswith(".safetensors") else "regular",
                    "shouldIgnore": False,
                    "oid": blob(one["path"], files[one["path"]])["oid"] if one["path"] in files else None,
                }
                for one in json.loads(body)["files"]
            ]
            answer(request, 200, {"files": modes})
        else:
            commit, files = self.repositories[name][at]
            siblings = [{"rfilename": path, **blob(path, data)} for path, data in files.items()]
            told = {"id": name, "sha": commit, "private": name in self.private, "siblings": siblings, "tags": []}
            answer(request, 200, told)

    def take(self, request: BaseHTTPRequestHandler, name: str, lines: list[dict[str, Any]]) -> None:
        self.meanwhile()
        header = lines[0]["value"]
        if header.get("parentCommit", self.head(name)[0]) != self.head(name)[0]:
            answer(request, 412, {"error": "A commit has happened since. Please refresh and try again."})
            return
        files = {}
        for line in lines[1:]:
            value = line["value"]
            whole = self.large.get(value["oid"]) if line["key"] == "lfsFile" else base64.b64decode(value["content"])
            if whole is None:
                answer(request, 400, {"error": f"LFS object {value['oid']} was not uploaded"})
                return
            files[value["path"]] = whole
        commit = self.commit(name, files)
        self.commits.append({"repository": name, "commit": commit, "files": sorted(files), **header})
        answer(request, 200, {"success": True, "commitOid": commit, "commitUrl": f"{self.url}/{name}/commit/{commit}"})


def blob(path: str, data: bytes) -> dict[str, Any]:
    """What the Hub tells of a file: git's SHA-1, a large one's SHA-256; ``oid`` is what the client compares."""
    sha1, sha256 = (hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest(), hashlib.sha256(data).hexdigest())
    told = {"size": len(data), "blobId": sha1, "oid": sha1}
    if path.endswith(".safetensors"):
        told |= {"oid": sha256, "lfs": {"size": len(data), "sha256": sha256, "pointerSize": 134}}
    return told


def _body(request: BaseHTTPRequestHandler) -> bytes:
    """Read the body of a request, of a known length or in chunks."""
    if request.headers.get("Transfer-Encoding", "") != "chunked":
        return request.rfile.read(int(request.headers.get("Content-Length", 0)))
    parts = []
    while size := int(request.rfile.readline().partition(b";")[0], 16):
        parts.append(request.rfile.read(size))
        request.rfile.readline()
    request.rfile.readline()
    return b"".join(parts)


def answer(
    request: BaseHTTPRequestHandler, status: int, told: dict[str, Any], headers: dict[str, str] | None = None
) -> None:
    """Write one answer in JSON."""
    body = json.dumps(told).encode()
    send(request, status, body, {"Content-Type": "application/json", **(headers or {})})


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
