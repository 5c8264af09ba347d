"""Ready modules for Lightning's trainer: fine-tuning a classifier, and pretraining.

    from context_pred.integrations.lightning import fine_tune

    classifier = fine_tune("resnet18_1xb64-coslr-300k", "photos/", epochs=10)

``photos/`` has a folder a class. With a trainer of one's own, and any loader of (images, labels):

    Trainer(max_epochs=10).fit(FineTuning("resnet18_1xb64-coslr-300k", num_classes=3), loader)
"""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from inspect import signature
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader
from torchvision.datasets import ImageFolder
from torchvision.transforms import v2

from context_pred.data.images import open_image
from context_pred.errors import InvalidInputError, check_options, check_whole_number
from context_pred.extras import need
from context_pred.finetuning import Classifier
from context_pred.pretext import pretext_loss
from context_pred.training.optimizer import OptimizerOptions, make_optimizer

from ._models import Model, check_counts, loaded

if TYPE_CHECKING:
    from context_pred.data.transforms import EvalTransform
    from context_pred.model import ContextPredictionModel
    from context_pred.patches import GridPatchSampler, RandomPairSampler

_lightning = need("lightning", "context_pred.integrations.lightning", extra="lightning")
_Module: Any = _lightning.LightningModule

__all__ = ["FineTuning", "Pretraining", "fine_tune"]


def fine_tune(
    model: Classifier | Model, images: str | Path, *, epochs: int = 10, device: str = "auto", **options: Any
) -> Classifier:
    """Fine-tune a classifier on a folder, with Lightning's trainer as it comes but for logs and checkpoints.

    Args:
        model: A ``Classifier``, trained in place; or a model, or what ``load_pretrained`` takes, to make one of.
        images: A folder with a folder of images a class.
        epochs: How often each image is seen.
        device: Lightning's ``accelerator``: "auto", "cpu", "gpu" …
        options: Of ``FineTuning``: ``layer``, ``freeze``, ``lr``, ``layer_decay``, ``weight_decay``, ``batch_size`` …

    Returns:
        The classifier in eval mode on the CPU: ``classifier(classifier.transform(image)[None])`` gives logits
        (1, classes), ``classifier.classes`` the names of the folders.

    Raises:
        InvalidInputError: a folder without folders of images, or an option out of its range.
        UnknownNameError: no such model, layer or option.
    """
    check_whole_number("epochs", epochs)
    check_options(options, {*signature(FineTuning).parameters, "epochs", "device"} - {"model", "images"})
    module = FineTuning(model, images=images, **options)
    quiet = {"logger": False, "enable_checkpointing": False, "enable_model_summary": False}
    _lightning.Trainer(max_epochs=epochs, accelerator=device, **quiet).fit(module)
    return module.classifier.cpu().eval()


class FineTuning(_Module):  # type: ignore[misc]  # Any to the type checker
    """A classifier and how it is fine-tuned: AdamW, rates by stage, falling along a cosine to zero at every step.

    Batches are (images, labels): float32 (N, C, H, W), normalised as ``classifier.transform`` does, and int64 (N,).
    Logged are "train_loss", "val_loss" and "val_accuracy". A checkpoint has no arguments in it, so loading one takes
    them again: ``FineTuning.load_from_checkpoint(path, model=…, num_classes=3)``.

    Args:
        model: A ``Classifier``, trained in place; or a model, or what ``load_pretrained`` takes, to make one of.
        num_classes: Of the classifier that is made; None: the number of folders in ``images``.
        images: A folder with a folder of images a class, or None where loaders are given to ``Trainer.fit``. Training
            images are cut at random places and scales and mirrored at random.
        layer: Of the classifier that is made.
        freeze: Stages to freeze, as in ``ContextPredictionModel.freeze``; None: as the model has it.
        lr: Learning rate of the head.
        layer_decay: Factor of the rate from a stage to the one before it.
        weight_decay: Of weight matrices and kernels.
        batch_size: Of the loader that is made of ``images``.
        workers: Of that loader.

    Raises:
        InvalidInputError: neither images nor a number of classes, another layer or number of classes than those of a
            classifier that is there already, a folder without folders of images or for a model of other than 1 or 3
            input channels, or an option out of its range (the rates: when training begins).
        UnknownNameError: no such model or layer.
    """

    def __init__(
        self,
        model: Classifier | Model,
        num_classes: int | None = None,
        *,
        images: str | Path | None = None,
        layer: str = "feature5",
        freeze: int | None = None,
        lr: float = 1e-3,
        layer_decay: float = 0.75,
        weight_decay: float = 0.05,
        batch_size: int = 32,
        workers: int = 0,
    ) -> None:
        super().__init__()
        check_counts(batch_size, workers)
        classes = None if images is None else _classes(images)
        if isinstance(model, Classifier):
            if layer not in ("feature5", model.layer):
                raise InvalidInputError(f"layer={layer!r}, and the classifier that is there already has {model.layer}.")
            self.classifier = model
        else:
            count = len(classes) if num_classes is None and classes else num_classes
            if count is None:
                raise InvalidInputError("How many classes? Give num_classes=, or images=, a folder with a folder each.")
            self.classifier = loaded(model).classifier(count, layer)
        outputs = self.classifier.head.fc.out_features
        if (classes is not None and len(classes) != outputs) or num_classes not in (None, outputs):
            raise InvalidInputError(
                f"The classifier has {outputs} classes, {images or 'num_classes'} "
                f"{len(classes) if classes is not None else num_classes}."
            )
        channels = self.classifier.transform.in_channels
        if classes is not None and channels not in (1, 3):
            raise InvalidInputError(f"The model has {channels} input channels, and images of files give 1 or 3.")
        if freeze is not None:
            self.classifier.freeze(freeze)
        self.classifier.classes = classes or self.classifier.classes
        self.images = images
        self.lr, self.layer_decay, self.weight_decay = lr, layer_decay, weight_decay
        self.batch_size, self.workers = batch_size, workers
        self.train()  # the trainer leaves every module in the mode that it finds it in

    def forward(self, images: Tensor) -> Tensor:
        """Classify images.

        Args:
            images: (N, C, H, W), floating, as ``classifier.transform`` makes them.

        Returns:
            Logits (N, classes).
        """
        logits: Tensor = self.classifier(images)
        return logits

    def training_step(self, batch: tuple[Tensor, Tensor], index: int) -> Tensor:
        """Compute the loss of a batch.

        Args:
            batch: Images and labels.
            index: Of the batch.

        Returns:
            The cross entropy, a scalar.
        """
        images, labels = batch
        loss = F.cross_entropy(self(images).float(), labels)
        self.log("train_loss", loss, prog_bar=True)
        return loss

    def validation_step(self, batch: tuple[Tensor, Tensor], index: int) -> None:
        """Log cross entropy and accuracy.

        Args:
            batch: Images and labels.
            index: Of the batch.
        """
        images, labels = batch
        logits = self(images).float()
        self.log("val_loss", F.cross_entropy(logits, labels), batch_size=len(labels))
        self.log("val_accuracy", (logits.argmax(1) == labels).float().mean(), prog_bar=True, batch_size=len(labels))

    def predict_step(self, batch: Any, index: int) -> Tensor:
        """Classify a batch.

        Args:
            batch: Images, with or without labels.
            index: Of the batch.

        Returns:
            Probabilities (N, classes).
        """
        logits: Tensor = self(batch[0] if isinstance(batch, (list, tuple)) else batch)
        return logits.float().softmax(1)

    def configure_optimizers(self) -> dict[str, Any]:
        """Return AdamW with a group of parameters a stage, and the cosine over all steps of the trainer."""
        groups = self.classifier.parameter_groups(self.lr, layer_decay=self.layer_decay, weight_decay=self.weight_decay)
        return _with_cosine(torch.optim.AdamW(groups), self.trainer)

    def train_dataloader(self) -> DataLoader[Any]:
        """Return the loader of ``images``: shuffled, the last incomplete batch left out where there is a whole one.

        Raises:
            InvalidInputError: the module was made without images.
        """
        if self.images is None:
            raise InvalidInputError("Nothing to train on: give images= a folder, or a loader to Trainer.fit.")
        transform = self.classifier.transform
        augment = v2.Compose([v2.RandomResizedCrop(transform.crop, antialias=True), v2.RandomHorizontalFlip()])
        data = ImageFolder(str(self.images), partial(_normalized, augment, transform), loader=open_image)
        whole = len(data) >= self.batch_size
        return DataLoader(data, self.batch_size, shuffle=True, num_workers=self.workers, drop_last=whole)


class Pretraining(_Module):  # type: ignore[misc]
    """Context prediction in Lightning's trainer: AdamW, the rate falling along a cosine to zero at every step.

    For most purposes ``context-pred pretrain`` is the better way: it resumes to the bit, watches for shortcuts and
    writes a report. Batches are uint8 images (N, C, H, W), RGB, of one size, at least the sampler's, alone or with
    labels, which are not looked at. Logged are "train_loss" and "train_accuracy" (chance is 1/8).

    Args:
        model: Trained in place; with neck and head.
        sampler: Where patches are cut; None: the model's own, ``model.patch_sampler``.
        lr: Learning rate.
        weight_decay: Of weight matrices and kernels.

    Raises:
        InvalidInputError: a model without neck and head, or no model.
    """

    def __init__(
        self,
        model: ContextPredictionModel,
        *,
        sampler: GridPatchSampler | RandomPairSampler | None = None,
        lr: float = 1e-3,
        weight_decay: float = 0.05,
    ) -> None:
        super().__init__()
        self.model = loaded(model)
        if self.model.neck is None:
            raise InvalidInputError(f"{self.model.card.name} has no neck and head to pretrain with.")
        self.sampler = self.model.patch_sampler if sampler is None else sampler
        self.train()  # the trainer leaves every module in the mode that it finds it in
        self.options = OptimizerOptions("adamw", lr, weight_decay=weight_decay, decay_norms_and_biases=False)

    def training_step(self, batch: Any, index: int) -> Tensor:
        """Cut patches out of a batch and compare them.

        Args:
            batch: uint8 images (N, C, H, W), with or without labels.
            index: Of the batch.

        Returns:
            The cross entropy of the positions, a scalar.
        """
        pairs = self.sampler(batch[0] if isinstance(batch, (list, tuple)) else batch)
        logits = self.model(pairs)
        loss = pretext_loss(logits, pairs.position)
        self.log("train_loss", loss, prog_bar=True)
        self.log("train_accuracy", (logits.argmax(1) == pairs.position).float().mean(), prog_bar=True)
        return loss

    def configure_optimizers(self) -> dict[str, Any]:
        """Return AdamW and the cosine over all steps of the trainer."""
        return _with_cosine(make_optimizer(self.model, self.options), self.trainer)


def _with_cosine(optimizer: torch.optim.Optimizer, trainer: Any) -> dict[str, Any]:
    steps = max(1, int(trainer.estimated_stepping_batches))
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def _normalized(augment: Callable[..., Any], transform: EvalTransform, image: Any) -> Tensor:
    pixels = v2.functional.pil_to_tensor(augment(image))
    return transform.normalize(v2.functional.rgb_to_grayscale(pixels) if transform.in_channels == 1 else pixels)


def _classes(images: str | Path) -> tuple[str, ...]:
    try:
        found = tuple(ImageFolder(str(images)).classes)
    except OSError as error:
        raise InvalidInputError(
            f"{os.fspath(images)!r} is no folder with a folder of images a class: {error}"
        ) from error
    return found
