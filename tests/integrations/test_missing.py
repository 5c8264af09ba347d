"""An adapter whose library is not installed says which line installs it."""

from __future__ import annotations

import importlib
import sys

import pytest

from context_pred.errors import InvalidInputError

NEEDS = {"timm": "timm.models", "sklearn": "sklearn.base", "datasets": "datasets", "transformers": "transformers",
         "lightning": "lightning"}  # fmt: skip


@pytest.mark.parametrize("extra", NEEDS)
def test_the_line_is_named(extra, monkeypatch):
    monkeypatch.delitem(sys.modules, f"context_pred.integrations.{extra}", raising=False)
    monkeypatch.setitem(sys.modules, NEEDS[extra], None)
    with pytest.raises(InvalidInputError) as caught:
        importlib.import_module(f"context_pred.integrations.{extra}")
    assert f'pip install "context-pred[{extra}]"' in str(caught.value)
