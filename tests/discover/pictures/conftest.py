"""A tiny model with its pair layers, six photographs, and files that are none."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import pytest
import torch
from PIL import Image

from context_pred.card import Card
from context_pred.model import ContextPredictionModel

NAMES = ("koala", "panda", "moose", "polar_bear", "opera_sydney", "flower_red")
SAMPLER = {"type": "GridPatchSampler", "crop": 60, "patch": 16, "grayscale": 0.0, "pairs": "adjacent"}


@pytest.fixture(scope="session")
def model() -> ContextPredictionModel:
    torch.manual_seed(0)
    card = Card("tiny-input", "resnet18", resize=64, crop=56, neck_channels=32, patch_sampler=SAMPLER)
    return ContextPredictionModel.from_card(card)


@pytest.fixture(scope="session")
def backbone_only() -> ContextPredictionModel:
    torch.manual_seed(0)
    return ContextPredictionModel.from_card(Card("no-pairs", "resnet18", pair_layers=False, patch_sampler=SAMPLER))


@pytest.fixture
def folder(photos: Path, tmp_path: Path) -> Path:
    """Six photographs in two folders, of several shapes."""
    for k, name in enumerate(NAMES):
        place = tmp_path / "photos" / ("animals" if k < 4 else "others")
        place.mkdir(parents=True, exist_ok=True)
        with Image.open(photos / f"{name}.jpg") as image:
            image.convert("RGB").resize((120 + 6 * k, 100)).save(place / f"{name}.png")
    return tmp_path / "photos"


@pytest.fixture
def bomb(tmp_path: Path) -> Path:
    """A PNG file that promises 1,600,000,000 pixels."""
    header = struct.pack(">IIBBBBB", 40_000, 40_000, 8, 2, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(b"\0")), (b"IEND", b"")]
    body = b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks
    )
    (tmp_path / "bomb.png").write_bytes(b"\x89PNG\r\n\x1a\n" + body)
    return tmp_path / "bomb.png"
