"""The same network for RGB input, where a file was trained on BGR (METHOD's first quirk, OpenMMLab's files of 2021)."""

from __future__ import annotations

import copy

from .model import ContextPredictionModel


def for_rgb(model: ContextPredictionModel) -> ContextPredictionModel:
    """Return a copy that takes RGB and gives the numbers the model gives on BGR; an RGB model's copy is unchanged.

    Grey images, and those of more than three channels, have no order: copies of their models are unchanged too.
    The input channels of the first convolution, and the card's mean and std, are reversed. The copy's card has no
    digest or source any more: its weights are other bytes than those published. It is for features of images: the
    card's patch sampler is left as it was, and swaps the channels of a BGR model's patches.

    Args:
        model: It is left as it is.
    """
    turned = copy.deepcopy(model)
    card = model.card
    if card.channel_order == "rgb" or card.in_channels != 3:
        return turned
    stem = turned.backbone.conv1.weight
    stem.data = stem.data.flip(1).contiguous()
    turned.card = card.replace(
        mean=card.mean[::-1],
        std=card.std[::-1],
        channel_order="rgb",
        file=None,
        sha256=None,
        hub=None,
        url=None,
        url_sha256_prefix=None,
        file_size=None,
    )
    return turned
