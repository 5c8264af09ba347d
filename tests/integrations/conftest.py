"""The shipped model, one of random weights that was trained on BGR, and small photographs of two kinds."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image

import context_pred
from context_pred import ContextPredictionModel

NAME = "resnet18_1xb64-coslr-300k"

KINDS = {
    "flower": ("flower_orange", "flower_red", "flower_yellow", "dandelions"),
    "animal": ("koala", "moose", "panda", "polar_bear"),
}


@pytest.fixture(scope="session")
def shipped() -> ContextPredictionModel:
    return context_pred.load_pretrained(NAME)


@pytest.fixture(scope="session")
def bgr() -> ContextPredictionModel:
    """A model that takes BGR, its mean and standard deviation far from ImageNet's."""
    torch.manual_seed(0)
    model = ContextPredictionModel("resnet18", pair_layers=False).eval()
    model.card = model.card.replace(channel_order="bgr", mean=(0.3, 0.45, 0.6), std=(0.1, 0.2, 0.4))
    return model


@pytest.fixture(scope="session")
def kinds(tmp_path_factory: pytest.TempPathFactory, photos: Path) -> Path:
    """A folder a kind, four small photographs each."""
    folder = tmp_path_factory.mktemp("kinds")
    for kind, names in KINDS.items():
        (folder / kind).mkdir()
        for name in names:
            with Image.open(photos / f"{name}.jpg") as image:
                image.reduce(2).save(folder / kind / f"{name}.jpg", quality=95)
    return folder
