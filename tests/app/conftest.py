"""What the page's tests share: a tiny model and six small photographs."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image

from context_pred.card import Card
from context_pred.model import ContextPredictionModel

NAMES = ("koala", "panda", "moose", "polar_bear", "opera_sydney", "flower_red")
SAMPLER = {"type": "GridPatchSampler", "crop": 105, "patch": 32, "grayscale": 1.0}


@pytest.fixture(scope="session")
def tiny() -> ContextPredictionModel:
    """A ResNet-18 with random weights that takes small images; its sampler would turn every photograph grey."""
    torch.manual_seed(0)
    card = Card("tiny", "resnet18", resize=64, crop=56, patch_sampler=SAMPLER)
    return ContextPredictionModel.from_card(card).eval()


@pytest.fixture(scope="session")
def collection(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of six photographs, 180 px wide."""
    folder = tmp_path_factory.mktemp("collection")
    for name in NAMES:
        with Image.open(photos / f"{name}.jpg") as image:
            small = image.convert("RGB")
            small.resize((180, 180 * small.height // small.width)).save(folder / f"{name}.png")
    return folder
