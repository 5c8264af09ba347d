"""The local page behind a server in a thread, for tests."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest


@contextmanager
def serving(model: Any, limits: Any, **options: Any) -> Iterator[tuple[str, Path]]:
    """Serve a page from a thread; yields its address and the temporary folder."""
    pytest.importorskip("gradio", reason='gradio is not installed: pip install "context-pred[app]"')
    from context_pred.app import build
    from context_pred.app.server import address, bound, server_of, temporary_folder

    with temporary_folder() as folder, bound("127.0.0.1", 0) as taken:
        page = build(model, folder=folder / "index", limits=limits, **options)
        server = server_of(page, limits, "127.0.0.1")
        thread = threading.Thread(target=server.run, kwargs={"sockets": [taken]}, daemon=True)
        thread.start()
        while not server.started:
            assert thread.is_alive()
            time.sleep(0.02)
        try:
            yield address(taken), folder
        finally:
            server.should_exit = True
            thread.join(timeout=10)
