"""The page on this machine: an index, a temporary folder, a port, and an end without leftovers."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from context_pred.errors import InvalidInputError, StorageError

from .uploads import Limits

if TYPE_CHECKING:
    import gradio as gr
    import uvicorn

LOOPBACK = ("127.0.0.1", "localhost")
_PORTS = 100
_SESSIONS = 200  # whose photographs and features are remembered, some 20 MB each
_GRACE = 2  # seconds that open connections have when the server ends


@contextlib.contextmanager
def temporary_folder() -> Iterator[Path]:
    """Make a folder that is removed at the end; Gradio is told by GRADIO_TEMP_DIR to keep uploads in it."""
    try:
        made = tempfile.TemporaryDirectory(prefix="context-pred-", ignore_cleanup_errors=True)
    except OSError as error:
        raise StorageError(f"No temporary folder can be made: {error.strerror or error}.") from error
    import gradio.routes as routes

    with made as name:
        before, known = os.environ.get("GRADIO_TEMP_DIR"), getattr(routes, "DEFAULT_TEMP_DIR", None)
        os.environ["GRADIO_TEMP_DIR"] = str(Path(name) / "uploads")  # the only folder that is served
        # Gradio read the variable when it was imported, and makes a folder there for every page.
        setattr(routes, "DEFAULT_TEMP_DIR", os.environ["GRADIO_TEMP_DIR"])  # noqa: B010 - none of its public names
        try:
            yield Path(name)
        finally:
            setattr(routes, "DEFAULT_TEMP_DIR", known)  # noqa: B010
            if before is None:
                del os.environ["GRADIO_TEMP_DIR"]
            else:
                os.environ["GRADIO_TEMP_DIR"] = before


def bound(host: str, port: int) -> socket.socket:
    """Take a port; 0 takes any free one.

    Raises:
        InvalidInputError: the port is taken (the error names a free one), or the host is not this machine's.
    """
    if not 0 <= port < 2**16:
        raise InvalidInputError(f"port={port}; accepted: 0 (any free one) … 65535.")
    try:
        return _listening(host, port)
    except OSError as error:
        for free in range(port + 1, min(port + _PORTS, 2**16)):
            with contextlib.suppress(OSError), _listening(host, free):
                raise InvalidInputError(
                    f"Port {port} of {host} cannot be taken ({error.strerror or error}); {free} is free: --port {free}."
                ) from error
        raise InvalidInputError(
            f"Host {host!r} cannot be listened on ({error.strerror or error}); accepted: 127.0.0.1 (this machine "
            "alone), 0.0.0.0 (every network it is in), or one of its addresses."
        ) from error


def _listening(host: str, port: int) -> socket.socket:
    family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
    return socket.create_server((host, port), family=family)


def server_of(blocks: gr.Blocks, limits: Limits, host: str) -> uvicorn.Server:
    """Put a page behind a web server that serves nothing else, and no file but what was uploaded."""
    import gradio as gr
    import uvicorn
    from fastapi import FastAPI
    from starlette.middleware.trustedhost import TrustedHostMiddleware

    blocks.state_session_capacity = _SESSIONS
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    gr.mount_gradio_app(
        app,
        blocks,
        path="/",
        footer_links=[],
        run_history=False,
        allowed_paths=[],
        max_file_size=limits.bytes,
        enable_monitoring=False,
        ssr_mode=False,
        pwa=False,
        mcp_server=False,
        show_error=False,
    )
    blocks.has_launched = True  # else Gradio takes paths from clients without asking whether they were uploaded
    app.add_middleware(NoErrands)
    if host in LOOPBACK:
        # A page elsewhere whose name is made to point here must not be answered.
        app.add_middleware(TrustedHostMiddleware, allowed_hosts=[*LOOPBACK])
    config = uvicorn.Config(app, log_level="critical", timeout_graceful_shutdown=_GRACE, access_log=False)
    return uvicorn.Server(config)


class NoErrands:
    """Refuse what would make the server fetch something elsewhere: Gradio's proxy, and files named by an address.

    Gradio's cutter of screen recordings too, which this page has no use for and which keeps what it is sent.
    """

    def __init__(self, app: Callable[..., Any]) -> None:
        self.app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Answer 403, or pass on."""
        path = scope.get("path", "")
        if "/proxy=" in path or "/file=http" in path or path.endswith("/process_recording"):
            from starlette.responses import PlainTextResponse

            refusal = PlainTextResponse("This server fetches nothing and cuts no recordings.", status_code=403)
            await refusal(scope, receive, send)
        else:
            await self.app(scope, receive, send)


@contextlib.contextmanager
def sigterm_as_ctrl_c() -> Iterator[None]:
    """Take SIGTERM for Ctrl-C, so that what is temporary is removed then too; only the main thread can."""

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def address(taken: socket.socket) -> str:
    """Return where a browser on this machine finds the page."""
    host, port = taken.getsockname()[:2]
    if host in ("0.0.0.0", "::"):
        host = "127.0.0.1" if host == "0.0.0.0" else "::1"
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def run_until_stopped(server: uvicorn.Server, taken: socket.socket, started: Callable[[], None]) -> None:
    """Serve until Ctrl-C, and come back from it."""

    def when_up() -> None:
        while not server.started and not server.should_exit:
            time.sleep(0.05)
        if server.started:
            started()

    threading.Thread(target=when_up, daemon=True).start()
    try:
        with contextlib.suppress(KeyboardInterrupt):
            server.run(sockets=[taken])
    finally:
        server.should_exit = True
