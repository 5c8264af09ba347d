"""Where the published figures of a file were measured with another channel order or normalisation than its training's.

Sources: METHOD's quirk register, Q1 and Q10; mmselfsup 0.5–0.6 (images decoded BGR in its own benchmarks, RGB in
mmdetection's and mmsegmentation's) and 1.x (whole numbers in pretraining and in its own SVM and kNN tools, which take
the pretraining's preprocessor; exact ones in mmcls, mmdetection and mmsegmentation).
"""

from __future__ import annotations

import dataclasses
from typing import Any

from context_pred.card import IMAGENET_MEAN, IMAGENET_STD
from context_pred.data.transforms import EvalTransform

_RGB = {"channel_order": "rgb"}
_EXACT = {"mean": IMAGENET_MEAN, "std": IMAGENET_STD}

_OTHER: dict[str, dict[str, dict[str, Any]]] = {
    "resnet50_8xb64-steplr-70e.20211213": {"detection": _RGB, "segmentation": _RGB},
    "resnet50_8xb64-steplr-70e.20220825": dict.fromkeys(
        ("linear", "semi-supervised", "detection", "segmentation"), _EXACT
    ),
}


def transform_of(own: EvalTransform, file: str, protocol: str) -> EvalTransform:
    """Return a model's transform as a protocol's published figures had it.

    Args:
        own: The model's.
        file: The zoo's name of the weights, or "".
        protocol: Its name.
    """
    other = _OTHER.get(file, {}).get(protocol, {})
    return dataclasses.replace(own, **other) if other else own
