"""What the tests of the zoo share: servers on the loopback, caches of their own, and a registry with small models."""

from __future__ import annotations

import hashlib
import importlib.util
import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

NOBODY = 65534

SPEC = importlib.util.spec_from_file_location("zoo_test_servers", Path(__file__).with_name("servers.py"))
assert SPEC is not None
assert SPEC.loader is not None
servers: Any = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(servers)


@pytest.fixture
def server() -> Iterator[Any]:
    """A server of files that misbehaves on demand."""
    with servers.FileServer() as running:
        yield running


@pytest.fixture
def hub() -> Iterator[Any]:
    """A server that speaks the Hub's routes, those that write too."""
    with servers.WritableHub() as running:
        yield running


@pytest.fixture
def caches(tmp_path: Path, hub: Any, monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """Empty caches, and the Hub's client turned to the server on the loopback (it reads the environment at import)."""
    from huggingface_hub import constants

    paths = SimpleNamespace(hub=tmp_path / "cache" / "hub", assets=tmp_path / "cache" / "assets")
    paths.zoo = paths.assets / "context_pred"
    monkeypatch.setattr(constants, "ENDPOINT", hub.url)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", hub.url + "/{repo_id}/resolve/{revision}/{filename}")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(paths.hub))
    monkeypatch.setattr(constants, "HF_ASSETS_CACHE", str(paths.assets))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    return paths


@pytest.fixture
def offline(caches: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    """What HF_HUB_OFFLINE=1 does."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)


@pytest.fixture
def registry_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty registry; a card written into it is a model of the zoo."""
    from context_pred import card

    folder = tmp_path / "weights"
    folder.mkdir()
    monkeypatch.setattr(card, "weights_folder", lambda: folder)
    return folder


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """A ResNet-18 with pair layers, half precision: ``state``, as a 1.x checkpoint ``pth``, and as ``safetensors``."""
    import torch

    from context_pred.model import ContextPredictionModel
    from context_pred.weights_file import write_weights

    folder = tmp_path_factory.mktemp("tiny")
    torch.manual_seed(0)
    model = ContextPredictionModel("resnet18", neck_channels=16)
    state = {k: v.half() if v.is_floating_point() else v for k, v in model.state_dict().items()}
    state["head.fc_cls.bias"] = torch.arange(8).half()
    pth, safetensors = folder / "tiny.pth", folder / "tiny.safetensors"
    checkpoint = {"meta": {"mmengine_version": "0.1.0"}, "state_dict": state, "message_hub": {}}
    torch.save(checkpoint, pth, _use_new_zipfile_serialization=False)
    write_weights(state, safetensors)
    result = SimpleNamespace(state=state, pth=pth.read_bytes(), safetensors=safetensors.read_bytes())
    result.pth_sha256 = hashlib.sha256(result.pth).hexdigest()
    result.sha256 = hashlib.sha256(result.safetensors).hexdigest()
    return result


@pytest.fixture
def as_ordinary_user(tmp_path: Path) -> Callable[[], AbstractContextManager[None]]:
    """A context in which file permissions hold: root, who may write everywhere, becomes nobody for the time being."""

    @contextmanager
    def ordinary() -> Iterator[None]:
        if os.geteuid() != 0:
            yield
            return
        for path in [*tmp_path.rglob("*"), tmp_path]:
            os.chown(path, NOBODY, NOBODY)
        closed = [parent for parent in tmp_path.parents if not parent.stat().st_mode & 0o001]
        for parent in closed:
            parent.chmod(0o711)
        os.seteuid(NOBODY)
        try:
            yield
        finally:
            os.seteuid(0)
            for parent in closed:
                parent.chmod(0o700)

    return ordinary
