"""Channel order and normalisation of the published figures, where they differ from the model's."""

from __future__ import annotations

import pytest

from context_pred import model_info
from context_pred.card import IMAGENET_MEAN, IMAGENET_STD
from context_pred.data.transforms import EvalTransform
from context_pred.evaluate.quirks import transform_of

FIRST = "resnet50_8xb64-steplr-70e.20211213"
SECOND = "resnet50_8xb64-steplr-70e.20220225"
THIRD = "resnet50_8xb64-steplr-70e.20220825"


def own(name: str) -> EvalTransform:
    card = model_info(name)
    return EvalTransform(mean=card.mean, std=card.std, channel_order=card.channel_order)


@pytest.mark.parametrize(
    ("protocol", "order"),
    [("svm", "bgr"), ("low-shot-svm", "bgr"), ("linear", "bgr"), ("detection", "rgb"), ("segmentation", "rgb")],
)
def test_the_first_file_saw_bgr_in_its_own_benchmarks_and_rgb_elsewhere(protocol: str, order: str) -> None:
    assert transform_of(own(FIRST), FIRST, protocol).channel_order == order


@pytest.mark.parametrize("protocol", ["linear", "semi-supervised", "detection", "segmentation"])
def test_the_third_file_is_evaluated_with_exact_mean_and_std(protocol: str) -> None:
    transform = transform_of(own(THIRD), THIRD, protocol)
    assert (transform.mean, transform.std) == (IMAGENET_MEAN, IMAGENET_STD)


@pytest.mark.parametrize("protocol", ["svm", "low-shot-svm", "knn"])
def test_the_third_file_has_whole_numbers_in_mmselfsups_own_tools(protocol: str) -> None:
    """Its ``test_svm.sh`` and ``test_knn.py`` take the pretraining's preprocessor; the others are mmcls' and so on."""
    transform = transform_of(own(THIRD), THIRD, protocol)
    assert [round(255 * value, 6) for value in transform.mean] == [124, 117, 104]
    assert [round(255 * value, 6) for value in transform.std] == [59, 58, 58]


@pytest.mark.parametrize("name", [SECOND, "", "mine"])
def test_other_files_are_left_as_they_are(name: str) -> None:
    transform = EvalTransform(mean=(0.1, 0.2, 0.3), std=(1.0, 1.0, 1.0), channel_order="bgr")
    assert transform_of(transform, name, "detection") == transform
