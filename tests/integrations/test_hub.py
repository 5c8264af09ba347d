"""torch.hub on the clone: its list, its help, a model by its own name and by the general entry."""

from __future__ import annotations

import importlib.util
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

import context_pred
from context_pred.errors import UnknownNameError

NAME = "resnet18_1xb64-coslr-300k"


def test_entry_points_and_their_help(root: Path):
    """What torch.hub.list and torch.hub.help show; the two themselves take no folder, but download from GitHub."""
    spec = importlib.util.spec_from_file_location("hubconf", root / "hubconf.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    names = [name for name in dir(module) if callable(getattr(module, name)) and not name.startswith("_")]
    assert {"context_pred", "resnet18_1xb64_coslr_300k", "resnet50_8xb64_steplr_70e_20220225"} <= set(names)
    assert len(names) == 1 + len(context_pred.list_models())
    assert all(find_spec(package) for package in module.dependencies)
    assert "ImageNet" in module.resnet50_8xb64_steplr_70e.__doc__
    assert "load_pretrained" in module.resnet50_8xb64_steplr_70e.__doc__


@pytest.mark.parametrize("entry", [("resnet18_1xb64_coslr_300k",), ("context_pred", NAME)])
def test_a_model(root: Path, shipped, entry):
    model = torch.hub.load(str(root), *entry, source="local")
    x = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(model.embed(x), shipped.embed(x))


def test_random_weights_and_options(root: Path, shipped):
    model = torch.hub.load(str(root), "resnet18_1xb64_coslr_300k", source="local", pretrained=False)
    assert not torch.equal(model.backbone.conv1.weight, shipped.backbone.conv1.weight)
    grey = torch.hub.load(str(root), "resnet18_1xb64_coslr_300k", source="local", in_channels=1)
    assert grey.backbone.conv1.weight.shape == (64, 1, 7, 7)


def test_an_unknown_model(root: Path):
    with pytest.raises(UnknownNameError, match="Did you mean"):
        torch.hub.load(str(root), "context_pred", "resnet18_1xb64-coslr-30k", source="local")
