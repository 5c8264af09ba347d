"""What a step of pretraining minimises: cut the drawn patches on the device, compare them, name the positions."""

from __future__ import annotations

import dataclasses
from typing import Literal

import torch
from torch import Tensor, nn

from context_pred.patches import GridPatchSampler, RandomPairSampler
from context_pred.pretext import Batch, cut_batch, pretext_loss


class PretextObjective:
    """Loss, hits and number of pairs of a micro-batch.

    Args:
        sampler: The recipe's.
        device: Where the model is.
        reduction: "mean" over the pairs, or "sum" as in the authors' released code.
        dtype: Of the patches: the model's.
        channels_last: Lay the patches out channels-last, as the model is.
    """

    def __init__(
        self,
        sampler: GridPatchSampler | RandomPairSampler,
        device: torch.device,
        *,
        reduction: Literal["mean", "sum"] = "mean",
        dtype: torch.dtype = torch.float32,
        channels_last: bool = True,
    ) -> None:
        self.sampler, self.device, self.dtype = sampler, device, dtype
        self.reduction: Literal["mean", "sum"] = reduction
        self.memory_format = torch.channels_last if channels_last else torch.contiguous_format

    def __call__(self, model: nn.Module, batch: Batch, noise: torch.Generator) -> tuple[Tensor, Tensor, int]:
        """Compute (loss, hits, number of pairs); hits is an int64 scalar on the device.

        Args:
            model: A ``ContextPredictionModel`` on the device, or what DistributedDataParallel made of it.
            batch: Images with the boxes drawn in them.
            noise: Source of colour dropping's noise, on the CPU or the device.
        """
        pairs = cut_batch(self.sampler, batch, self.device, noise)
        patches = pairs.patches.to(self.dtype).contiguous(memory_format=self.memory_format)
        logits: Tensor = model(dataclasses.replace(pairs, patches=patches))
        loss = pretext_loss(logits, pairs.position, self.reduction)
        return loss, (logits.detach().argmax(1) == pairs.position).sum(), len(pairs)
