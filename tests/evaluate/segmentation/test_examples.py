"""The augmentation of METHOD C12, step by step."""

from __future__ import annotations

import dataclasses
from typing import Any

import cv2
import numpy as np
import pytest
import torch

from context_pred.data.transforms import EvalTransform
from context_pred.evaluate.segmentation import Settings
from context_pred.evaluate.segmentation.examples import (
    Draws,
    TrainingExamples,
    WholeExamples,
    distorted,
    fitted,
    load,
)
from context_pred.evaluate.segmentation.label_maps import DataOptions
from context_pred.evaluate.segmentation.layouts import read

Maps = Any
PLAIN = {"ratio": (1.0, 1.0), "flip": 0.0, "distortion": 0.0, "largest_share": 1.0}


def examples(maps: Maps, **settings: Any) -> TrainingExamples:
    data = read(maps.camvid(), DataOptions(ignore=(3,)))
    made = Settings(**{"scale": (64, 48), "crop": 32, **PLAIN, **settings})
    return TrainingExamples(data.train, data.coding, made.augmentation, EvalTransform())


def changed(found: TrainingExamples, **options: Any) -> TrainingExamples:
    return dataclasses.replace(found, augmentation=dataclasses.replace(found.augmentation, **options))


def one(found: TrainingExamples, seed: int = 0, image: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    return found.example(image, torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(
    ("size", "scale", "expected"),
    [
        ((375, 500), (2048, 512), (512, 683)),  # mmcv.imrescale: int(500 · 512 / 375 + .5)
        ((500, 375), (2048, 512), (683, 512)),
        ((100, 1000), (2048, 512), (205, 2048)),
        ((1024, 2048), (2049, 1025), (1025, 2049)),
        ((360, 480), (480, 360), (360, 480)),
    ],
)
def test_images_are_fitted_as_mmcv_fits_them(size: Any, scale: Any, expected: Any) -> None:
    assert fitted(size, scale) == expected


def test_a_crop_is_a_crop_of_both_and_what_is_missing_is_padded(maps: Maps) -> None:
    found = examples(maps)
    pixels, labels = load(found.pairs[0], found.coding)
    image, truth = one(found)
    places = [
        (top, left)
        for top in range(17)
        for left in range(33)
        if np.array_equal(labels[top : top + 32, left : left + 32], truth.numpy())
        and torch.equal(
            found.transform.normalize(torch.from_numpy(pixels[top : top + 32, left : left + 32]).permute(2, 0, 1)),
            image,
        )
    ]
    assert len(places) == 1
    padded = changed(found, crop=56)
    image, truth = one(padded)
    assert (image.shape, truth.dtype) == ((3, 56, 56), torch.uint8)
    assert image[:, 48:].abs().max() == 0
    assert truth[48:].min() == 255
    assert image[:, :48].abs().min(0).values.max() > 0


def test_flips_scales_and_crops_are_drawn_and_repeat_with_their_generator(maps: Maps) -> None:
    found = examples(maps, ratio=(0.5, 2.0), flip=0.5, distortion=0.5)
    first, again, other = one(found, 1), one(found, 1), one(found, 2)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not torch.equal(first[0], other[0])
    straight = one(changed(found, ratio=(1.0, 1.0), crop=64, flip=0.0, distortion=0.0))
    mirrored = one(changed(found, ratio=(1.0, 1.0), crop=64, flip=1.0, distortion=0.0))
    assert torch.equal(mirrored[1][:48], straight[1][:48].flip(1))
    assert torch.equal(mirrored[0][:, :48], straight[0][:, :48].flip(2))
    twice = one(changed(found, ratio=(2.0, 2.0), crop=128))
    assert torch.equal(twice[0].abs().amax((0, 2)) == 0, torch.arange(128) >= 96)


def test_crops_of_a_single_class_are_drawn_again(maps: Maps) -> None:
    found = examples(maps, crop=16, crop_tries=50, largest_share=0.75)
    labels = np.zeros((48, 64), np.uint8)
    labels[:, 48:] = 1
    maps.labels(labels, "trainannot", "000.png")
    shares = []
    for seed in range(20):
        counts = np.bincount(one(found, seed)[1].numpy().ravel(), minlength=256)[:255]
        shares.append(counts.max() / counts.sum())
    assert max(shares) < 0.75
    loose = changed(found, crop_tries=0)
    assert max((one(loose, seed)[1] == 0).float().mean().item() for seed in range(20)) == 1.0


def test_distortion_stays_within_its_ranges_and_leaves_grey_grey() -> None:
    grey = np.full((8, 8, 3), 120, np.uint8)
    options = dataclasses.replace(Settings(distortion=1.0).augmentation)
    levels = set()
    for seed in range(200):
        found = distorted(grey, options, Draws(torch.Generator().manual_seed(seed)))
        assert (found == found[:1, :1, :1]).all()  # hue and saturation of grey change nothing
        levels.add(int(found[0, 0, 0]))
    assert min(levels) >= int(0.5 * (120 - 32)) - 1
    assert max(levels) <= 1.5 * (120 + 32)
    assert max(levels) - min(levels) > 100
    none = dataclasses.replace(options, distortion=0.0)
    assert (distorted(grey, none, Draws(torch.Generator())) == grey).all()


def test_hue_and_saturation_are_opencvs() -> None:
    color = np.full((4, 4, 3), (200, 80, 40), np.uint8)
    plain = {"brightness": 0.0, "contrast": (1.0, 1.0), "distortion": 1.0}
    turned = Settings(**plain, saturation=(1.0, 1.0), hue=18).augmentation
    hues = set()
    start = int(cv2.cvtColor(color, cv2.COLOR_RGB2HSV)[0, 0, 0])
    for seed in range(200):
        found = distorted(color, turned, Draws(torch.Generator().manual_seed(seed)))
        hues.add(int(cv2.cvtColor(found, cv2.COLOR_RGB2HSV)[0, 0, 0]))
    away = {min((hue - start) % 180, (start - hue) % 180) for hue in hues}
    assert 15 <= max(away) <= 19
    half = Settings(**plain, saturation=(0.5, 0.5), hue=0).augmentation
    found = cv2.cvtColor(distorted(color, half, Draws(torch.Generator())), cv2.COLOR_RGB2HSV)
    own = cv2.cvtColor(color, cv2.COLOR_RGB2HSV)
    assert abs(int(found[0, 0, 1]) - own[0, 0, 1] // 2) <= 1


def test_test_images_are_whole_and_their_label_maps_untouched(maps: Maps) -> None:
    data = read(maps.camvid(), DataOptions(ignore=(3,)))
    image, labels = WholeExamples(data.test, data.coding, (32, 24), EvalTransform()).example(0, torch.Generator())
    assert image.shape == (3, 24, 32)
    assert np.array_equal(labels.numpy(), load(data.test[0], data.coding)[1])
    bgr = WholeExamples(data.test, data.coding, (64, 48), EvalTransform(channel_order="bgr"))
    rgb = dataclasses.replace(bgr, transform=EvalTransform())
    means = torch.tensor(EvalTransform().mean).view(3, 1, 1), torch.tensor(EvalTransform().std).view(3, 1, 1)
    pixels = [e.example(0, torch.Generator())[0] * means[1] + means[0] for e in (bgr, rgb)]
    torch.testing.assert_close(pixels[0], pixels[1].flip(0))
