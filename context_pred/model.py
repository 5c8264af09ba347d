"""``ContextPredictionModel``: backbone, neck and head of context prediction, and everything a user asks of them."""

from __future__ import annotations

import contextlib
import re
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import torch
from huggingface_hub import ModelCard, PyTorchModelHubMixin
from torch import Tensor, nn

from .backbones import (
    Backbone,
    FeatureInfo,
    RepeatedBatchNorm2d,
    ResNetBackbone,
    adapt_stem,
    build_backbone,
    xavier_caffe,
)
from .card import CARD_FILE, WEIGHTS_FILE, Card, fit_channels
from .errors import InvalidInputError, NotCachedError, WeightsError
from .hub_readme import PAPER, TAGS, hub_readme
from .outline import outline
from .pair_layers import ContextNetNeck, PairNeck, PositionHead
from .patches import GridPatchSampler, PatchPairs, sampler_from_config
from .pooling import pool_map
from .weights_file import read_weights, write_weights

if TYPE_CHECKING:
    from .data.transforms import EvalTransform
    from .finetuning import Classifier
    from .patches import RandomPairSampler


class ContextPredictionModel(
    nn.Module,
    PyTorchModelHubMixin,
    library_name="context-pred",
    paper_url=PAPER,
    pipeline_tag="image-feature-extraction",
    tags=TAGS,
):
    """A context-prediction model: ``backbone`` and, where pairs can be asked about, ``neck`` and ``head``.

    State-dict keys are upstream's: ``backbone.`` + torchvision's names, ``neck.…``, ``head.fc_cls.…``.

    Args:
        backbone: A name of ``context_pred.backbones.BACKBONES``: "resnet18" … "resnet152", "contextnet",
            "contextnet-paper".
        in_channels: Channels of the images.
        pair_layers: False leaves out neck and head; pair calls then raise.
        neck_channels: Width of the neck; None: twice the backbone's channels (4096 for ResNet-50, as upstream), and
            4096 for ``contextnet``.
        dropout: Probability in the neck of a ResNet.
    """

    def __init__(
        self,
        backbone: str = "resnet50",
        *,
        in_channels: int = 3,
        pair_layers: bool = True,
        neck_channels: int | None = None,
        dropout: float = 0.5,
    ) -> None:
        super().__init__()
        self.backbone: Backbone = build_backbone(backbone, in_channels)
        channels = self.backbone.feature_info[self.backbone.pair_layer].channels
        self.neck: PairNeck | ContextNetNeck | None = None
        self.head: PositionHead | None = None
        if pair_layers and isinstance(self.backbone, ResNetBackbone):
            self.neck = PairNeck(channels, neck_channels or 2 * channels, dropout)
        elif pair_layers:
            self.neck = ContextNetNeck(channels, neck_channels or 4096)
        if self.neck is not None:
            self.head = PositionHead(neck_channels or (4096 if isinstance(self.neck, ContextNetNeck) else 2 * channels))
            if isinstance(self.neck, ContextNetNeck):
                self.head.apply(xavier_caffe)
        self.card = Card(
            name=f"{backbone} (random weights)",
            backbone=backbone,
            in_channels=in_channels,
            pair_layers=pair_layers,
            neck_channels=neck_channels,
            **_untrained_input(self.backbone),
        )

    # Making one -------------------------------------------------------------------------------------------------

    @classmethod
    def from_card(
        cls, card: Card, state_dict: Mapping[str, Tensor] | None = None, *, in_channels: int | None = None
    ) -> ContextPredictionModel:
        """Make the model a card describes, in eval mode.

        Args:
            card: The card; the model keeps it as ``card``.
            state_dict: Its weights (taken over, not copied, where they are float32 already); None leaves the
                weights random.
            in_channels: Another number of input channels than the card's; the stem is adapted.

        Raises:
            WeightsError: a key is missing, extra or mis-shaped; all are named.
        """
        made: dict[str, Any] = {"pair_layers": card.pair_layers, "neck_channels": card.neck_channels}
        if state_dict is None:
            model = cls(card.backbone, in_channels=in_channels or card.in_channels, **made)
        else:
            with outline():
                model = cls(card.backbone, in_channels=card.in_channels, **made)
            model.load_weights(state_dict, assign=True)
            if in_channels is not None and in_channels != card.in_channels:
                model = model._with_stem(in_channels, made)
        model.card = card if in_channels is None else card.replace(in_channels=in_channels)
        return model.eval()

    def _with_stem(self, in_channels: int, made: dict[str, Any]) -> ContextPredictionModel:
        """Return the same weights for another number of input channels."""
        state = self.state_dict()
        state["backbone.conv1.weight"] = adapt_stem(state["backbone.conv1.weight"], in_channels)
        with outline():
            model = type(self)(self.card.backbone, in_channels=in_channels, **made)
        model.load_weights(state, assign=True)
        return model

    def load_weights(self, state_dict: Mapping[str, Tensor], *, assign: bool = False) -> None:
        """Load a whole state dict, strictly; tensors of another precision take the model's.

        Args:
            state_dict: Every key of ``self.state_dict()`` and no other.
            assign: Take the tensors over instead of copying them.

        Raises:
            WeightsError: naming every missing, extra or mis-shaped key; nothing has been loaded then.
        """
        own = self.state_dict()
        missing = [key for key in own if key not in state_dict]
        extra = [key for key in state_dict if key not in own]
        wrong = [
            f"{key} is {tuple(state_dict[key].shape)}, not {tuple(own[key].shape)}"
            for key in own
            if key in state_dict and state_dict[key].shape != own[key].shape
        ]
        if missing or extra or wrong:
            parts = [("missing", missing), ("extra", extra), ("mis-shaped", wrong)]
            found = "; ".join(f"{len(keys)} {kind}: {', '.join(keys)}" for kind, keys in parts if keys)
            raise WeightsError(f"The weights do not fit {self.card.backbone}. {found}.")
        cast = {key: value.to(own[key].dtype) for key, value in state_dict.items()}
        self.load_state_dict(cast, strict=True, assign=assign)

    # Looking ----------------------------------------------------------------------------------------------------

    @property
    def feature_info(self) -> dict[str, FeatureInfo]:
        """Channels, stride in px and module (a name within ``backbone``) of every layer."""
        return dict(self.backbone.feature_info)

    @property
    def transform(self) -> EvalTransform:
        """The evaluation preprocessing these weights expect: a PIL image or a tensor to a float32 (3, H, W) tensor."""
        from .data.transforms import EvalTransform

        card = self.card
        return EvalTransform(
            resize=card.resize,
            crop=card.crop,
            mean=card.mean,
            std=card.std,
            channel_order=card.channel_order,
            in_channels=card.in_channels,
        )

    @property
    def patch_sampler(self) -> GridPatchSampler | RandomPairSampler:
        """The sampler this model was trained with, from its card; mean and std fitted to ``in_channels``."""
        sampler = sampler_from_config(self.card.patch_sampler)
        if isinstance(sampler, GridPatchSampler) and len(sampler.mean) != self.card.in_channels:
            fitted = {name: fit_channels(getattr(sampler, name), self.card.in_channels) for name in ("mean", "std")}
            sampler = sampler_from_config({**sampler.to_config(), **fitted})
        return sampler

    def features(self, images: Tensor, layers: str | Sequence[str] | None = None) -> dict[str, Tensor]:
        """Compute feature maps; no stage deeper than the deepest layer asked for is run.

        Args:
            images: (N, C, H, W), floating, as ``transform`` makes them.
            layers: Names among "feature1" … "feature5" ("fc6" too for contextnet); None: all five.

        Returns:
            {name: (N, channels, H / stride, W / stride)}, in the order of the backbone.

        Raises:
            UnknownNameError: no such layer.
            InvalidInputError: the images have another shape or dtype.
        """
        self.backbone.check(images, "images")
        found: dict[str, Tensor] = self.backbone(images, layers)
        return found

    def embed(self, images: Tensor, layer: str = "feature5", pool: str = "gap") -> Tensor:
        """Compute one pooled vector an image.

        Args:
            images: (N, C, H, W), floating, as ``transform`` makes them.
            layer: The layer to pool.
            pool: "gap": the mean over positions, (N, C); "grid": (N, C·n·n), n = 12, 6, 4, 3, 2 cells a side for
                feature1 … feature5 (mmselfsup's ``MultiPooling``); "none": the flattened map.

        Returns:
            (N, D), floating as the images.

        Raises:
            UnknownNameError: no such layer or pooling.
            InvalidInputError: the images have another shape or dtype.
        """
        maps = self.features(images, layer)[layer]
        return pool_map(maps, layer, pool, windows=self.backbone.grid_windows).flatten(1)

    def forward(
        self, neighbors: Tensor | PatchPairs, centers: Tensor | None = None, center_index: Tensor | None = None
    ) -> Tensor:
        """Predict where each neighbour lies, seen from its centre.

        In train mode neighbours and centres pass the batch norms apart, as upstream's do; a centre of several pairs
        counts that often in the running variances. Pairs in which any patch is both pass jointly.

        Args:
            neighbors: (M, C, p, p) patches, or a ``PatchPairs``, whose patches run through the backbone once each.
            centers: (M, C, p, p), or (K, C, p, p) with ``center_index``.
            center_index: int64 (M,): pair m compares ``neighbors[m]`` with ``centers[center_index[m]]``.

        Returns:
            Logits (M, 8); positions 0…7 in raster order.

        Raises:
            InvalidInputError: shapes that do not belong together, another dtype, or a backbone alone.
        """
        if isinstance(neighbors, PatchPairs):
            if centers is not None or center_index is not None:
                raise InvalidInputError("model(pairs) takes nothing beside the pairs.")
            return self._pairs(neighbors)
        if centers is None:
            raise InvalidInputError("model(neighbors, centers) needs the centres too, or one PatchPairs alone.")
        self.backbone.check(neighbors, "neighbors")
        self.backbone.check(centers, "centers")
        if center_index is None and len(neighbors) != len(centers):
            raise InvalidInputError(
                f"{len(neighbors)} neighbours and {len(centers)} centres need center_index, int64 "
                f"({len(neighbors)},): which centre each neighbour is compared with."
            )
        if center_index is not None and center_index.shape != neighbors.shape[:1]:
            raise InvalidInputError(f"center_index is {tuple(center_index.shape)}, not ({len(neighbors)},).")
        n = self._vectors(neighbors)
        c = self._vectors(centers, repeats=len(neighbors) / max(len(centers), 1))
        return self._compare(n, c, None, center_index)

    def _pairs(self, pairs: PatchPairs) -> Tensor:
        self.backbone.check(pairs.patches, "pairs.patches")
        if self.training:
            neighbor, of_neighbor = torch.unique(pairs.neighbor, return_inverse=True)
            center, of_center = torch.unique(pairs.center, return_inverse=True)
            if not bool(torch.isin(neighbor, center).any()):
                n = self._vectors(pairs.patches[neighbor], repeats=len(pairs) / max(len(neighbor), 1))
                c = self._vectors(pairs.patches[center], repeats=len(pairs) / max(len(center), 1))
                return self._compare(n, c, of_neighbor, of_center)
        vectors = self._vectors(pairs.patches)
        return self._compare(vectors, vectors, pairs.neighbor, pairs.center)

    def _vectors(self, patches: Tensor, repeats: float = 1.0) -> Tensor:
        """Run patches through the backbone and pool its last layer; batch norms count each ``repeats`` times."""
        if self.training:
            for module in self.backbone.modules():
                if isinstance(module, RepeatedBatchNorm2d):
                    module.repeats = repeats
        layer = self.backbone.pair_layer
        maps: Tensor = self.backbone(patches, layer)[layer]
        return maps.mean((-2, -1))

    def _compare(self, neighbors: Tensor, centers: Tensor, neighbor: Tensor | None, center: Tensor | None) -> Tensor:
        if self.neck is None or self.head is None:
            raise InvalidInputError(
                f"{self.card.name} is a backbone alone (neck=None, head=None) and cannot compare patches; "
                f"load a model with pair layers, or make one with ContextPredictionModel({self.card.backbone!r})."
            )
        logits: Tensor = self.head(self.neck(neighbors, centers, neighbor, center))
        return logits

    # Fine-tuning ------------------------------------------------------------------------------------------------

    def freeze(self, stages: int, *, norms: bool = False) -> Self:
        """Freeze the stem and the first ``stages`` stages; their batch norms stay in eval mode, also after ``train()``.

        Args:
            stages: 0: the stem alone; 4: the whole backbone of a ResNet; −1: nothing (thaws). OpenMMLab counts so
                (``frozen_stages``); torchvision's ``trainable_layers`` = 4 − ``stages``.
            norms: Freeze the batch norms of all other stages too, for batches of few images.

        Returns:
            The model itself.

        Raises:
            InvalidInputError: the backbone has no such stage.
        """
        self.backbone.freeze(stages, norms=norms)
        return self

    def parameter_groups(
        self, lr: float, *, layer_decay: float = 1.0, weight_decay: float = 0.0
    ) -> list[dict[str, Any]]:
        """Group the parameters by stage for an optimiser: deeper ones learn faster, norms and biases decay not.

        Args:
            lr: Learning rate of neck and head, above 0.
            layer_decay: Factor from one stage to the one before it, above 0, at most 1.
            weight_decay: Of weight matrices and kernels, 0 or more.

        Returns:
            Groups with "name", "lr", "weight_decay" and "params"; see ``context_pred.finetuning.parameter_groups``.

        Raises:
            InvalidInputError: a number out of its range, or nothing that is not frozen.
        """
        from .finetuning import parameter_groups

        return parameter_groups(self, lr, layer_decay=layer_decay, weight_decay=weight_decay)

    def classifier(
        self, num_classes: int, layer: str = "feature5", *, pool: str = "gap", batch_norm: bool = False
    ) -> Classifier:
        """Make a trainable classifier of a copy of the backbone; see ``context_pred.finetuning.Classifier``.

        Args:
            num_classes: How many classes there are, 1 or more.
            layer: The layer to classify on; no stage beyond it is run, or part of the classifier.
            pool: "gap": the mean over positions; "grid": a grid of cells, flattened.
            batch_norm: Normalise the pooled map first, without scale and shift.

        Returns:
            The classifier, in train mode: (N, C, H, W) → logits (N, num_classes).

        Raises:
            UnknownNameError: no such layer or pooling.
            InvalidInputError: ``num_classes`` is no whole number from 1 up.
        """
        from .finetuning import Classifier

        return Classifier(self, num_classes, layer, pool=pool, batch_norm=batch_norm)

    def __repr__(self) -> str:
        """Name the model, what it has, and the input it expects."""
        card = self.card
        pairs = "neck and head" if self.neck is not None else "no pair layers: neck=None, head=None"
        count = sum(p.numel() for p in self.parameters())
        mean, std = (f"({', '.join(f'{v:.4g}' for v in values)})" for values in (card.mean, card.std))
        return (
            f"ContextPredictionModel({card.name!r}: {card.backbone}, {pairs}, {count:,} parameters; input "
            f"(N, {card.in_channels}, {card.crop}, {card.crop}) {card.channel_order}, mean {mean}, std {std})"
        )

    # Saving and the Hub -----------------------------------------------------------------------------------------

    def _save_pretrained(self, save_directory: Path) -> None:
        """Write ``model.safetensors`` and ``card.json`` (huggingface-hub's mixin calls this)."""
        digest = write_weights(self.state_dict(), save_directory / WEIGHTS_FILE)
        size = (save_directory / WEIGHTS_FILE).stat().st_size
        card = self.card.replace(
            file=WEIGHTS_FILE,
            sha256=digest,
            file_size=size,
            num_params=sum(p.numel() for p in self.parameters()),
        )
        card.write(save_directory / CARD_FILE)

    def generate_model_card(self, *args: Any, **kwargs: Any) -> ModelCard:
        """Make the README.md of a saved model from the card (huggingface-hub's mixin calls this).

        Args:
            args: What the mixin passes; not needed.
            kwargs: The same.
        """
        return ModelCard(hub_readme(self.card))

    @classmethod
    def from_pretrained(  # the arguments are huggingface-hub's
        cls,
        pretrained_model_name_or_path: str | Path,
        *,
        revision: str | None = None,
        force_download: bool = False,
        token: str | bool | None = None,
        cache_dir: str | Path | None = None,
        local_files_only: bool = False,
        in_channels: int | None = None,
        **strange: Any,
    ) -> ContextPredictionModel:
        """Load what ``save_pretrained`` or ``push_to_hub`` wrote: strictly, its digest checked, in eval mode.

        Args:
            pretrained_model_name_or_path: A folder, or ``owner/name`` on the Hub.
            revision: Commit (40 hex digits), branch or tag on the Hub; anything but a commit draws a warning, since
                what it means can change.
            force_download: Fetch again although cached.
            token: For private repositories.
            cache_dir: In place of the Hub's own cache folder.
            local_files_only: Ask no server; so does HF_HUB_OFFLINE=1.
            in_channels: Adapt the stem to images of so many channels.
            strange: Refused; the error names the argument.

        Raises:
            NotCachedError: no such folder, or offline and not cached.
            DownloadError: the Hub does not give it.
            DigestError: the weights are not those of the card.
            WeightsError: a key is missing, extra or mis-shaped, or a file is not what it should be.
            InvalidInputError: an argument that does not exist.
        """
        if strange:
            raise InvalidInputError(
                f"from_pretrained does not take {', '.join(strange)}; it takes revision, force_download, token, "
                "cache_dir, local_files_only and in_channels."
            )
        folder = Path(pretrained_model_name_or_path)
        if not folder.is_dir():
            fetching = {"force_download": force_download, "token": token, "cache_dir": cache_dir}
            folder = _downloaded(str(pretrained_model_name_or_path), revision, local_files_only, fetching)
        wanted: dict[str, Any] = {} if in_channels is None else {"in_channels": in_channels}
        return super().from_pretrained(folder, **wanted)

    @classmethod
    def _from_pretrained(
        cls, *, model_id: str, in_channels: int | None = None, dropout: float | None = None, **_: Any
    ) -> ContextPredictionModel:
        """Load a saved folder (huggingface-hub's mixin calls this, with what config.json says)."""
        folder = Path(model_id)
        if not (folder / CARD_FILE).is_file():
            raise NotCachedError(
                f"{folder} has no {CARD_FILE}; a folder from save_pretrained, or `full` from `zoo publish`, has one. "
                "A backbone in timm's layout is loaded by context_pred.load_pretrained, or by timm."
            )
        card = Card.read(folder / CARD_FILE)
        state = read_weights(folder / (card.file or WEIGHTS_FILE), card.sha256)
        model = cls.from_card(card, state, in_channels=in_channels)
        if isinstance(model.neck, PairNeck) and dropout is not None:
            model.neck.drop.p = dropout
        return model


def _untrained_input(backbone: Backbone) -> dict[str, Any]:
    """What a model with random weights expects: ImageNet's mean and std, or for contextnet its authors' pixels.

    The released models of deepcontext take RGB in 0…255 with the channel means subtracted (its project page).
    """
    if isinstance(backbone, ResNetBackbone):
        return {}
    return {
        "mean": (123 / 255, 117 / 255, 104 / 255),
        "std": (1 / 255,) * 3,
        "patch_sampler": {"type": "RandomPairSampler", "preset": "deepcontext"},
    }


def _downloaded(model_id: str, revision: str | None, local_files_only: bool, options: dict[str, Any]) -> Path:
    """Fetch a saved model from the Hub and return the folder of the snapshot."""
    from .zoo import hub  # above this module; only a model of the Hub needs it

    if not re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", model_id) or Path(model_id).exists():
        raise NotCachedError(
            f"{model_id!r} is no folder, and no 'owner/name' of the Hub. A folder from save_pretrained is taken; "
            "context_pred.load_pretrained takes names of the zoo and single files too."
        )
    if revision is None or not re.fullmatch("[0-9a-f]{40}", revision):
        warnings.warn(
            f"{model_id} is loaded without a pinned revision and may change; pass revision= with the 40 digits of a "
            "commit.",
            stacklevel=3,
        )
    fetching = hub.Options(local_files_only=local_files_only, **options)
    card = hub.fetch(model_id, CARD_FILE, revision or "main", fetching)
    for file in (Card.read(card).file or WEIGHTS_FILE, "config.json"):
        with contextlib.suppress(hub.NoSuchFileError) if file == "config.json" else contextlib.nullcontext():
            hub.fetch(model_id, file, card.parent.name, fetching)
    return card.parent
