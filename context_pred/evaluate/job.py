"""What a protocol is given (a Job) and what it gives back (a Result)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from context_pred.ranks import Ranks

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from context_pred.data.transforms import EvalTransform

    from .features import Preprocessing
    from .sources import Source


@dataclass(frozen=True)
class Measurement:
    """One figure of a table.

    Attributes:
        metric: "mAP", "top-1", "top-5" …
        value: A share from 0 to 1, the mean over seeds or samples where there are several.
        layer: The layer it was measured on, or None where the protocol has no such choice.
        at: What else tells the figure from its neighbours, as ``{"k": 8}``.
        spread: Standard deviation (n − 1) over seeds or samples; None of a single one.
        low: The smallest over seeds or samples; None of a single one.
        high: The largest over seeds or samples; None of a single one.
        count: How many seeds or samples stand behind the value.
    """

    metric: str
    value: float
    layer: str | None = None
    at: Mapping[str, float | str] = field(default_factory=dict)
    spread: float | None = None
    low: float | None = None
    high: float | None = None
    count: int = 1


@dataclass(frozen=True)
class Published:
    """One published figure.

    Attributes:
        metric: As in Measurement.
        value: A share from 0 to 1.
        layer: As in Measurement.
        at: As in Measurement.
        source: Where it is printed, as "mmselfsup 0.x README".
        file: The weights it was measured on, as ``resnet50_8xb64-steplr-70e.20211213``; "" where that is not known.
        note: What a reader must know to compare with it; "" where there is nothing.
        data: The data set it was measured on, as "VOC2007".
        of: What was measured: "relative location", "random initialisation", "ImageNet supervised" …
    """

    metric: str
    value: float
    layer: str | None
    at: Mapping[str, float | str]
    source: str
    file: str
    note: str = ""
    data: str = ""
    of: str = "relative location"


@dataclass(frozen=True)
class Result:
    """What a protocol found.

    Attributes:
        protocol: Its name, as ``svm``.
        variant: Which of its rows, or None.
        measured: The figures.
        published: The figures to hold them against.
        best: The one figure to report, as the best layer's; None where there is no such choice.
        ran_on: Model, digest, transform and channel order, data and counts, settings, versions, seeds, seconds.
        details: Whatever else the protocol knows, as JSON values: AP by class, costs chosen …
    """

    protocol: str
    variant: str | None
    measured: tuple[Measurement, ...]
    published: tuple[Published, ...] = ()
    best: Measurement | None = None
    ran_on: Mapping[str, Any] = field(default_factory=dict)
    details: Mapping[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        """Return the printed report: the table, and what it was measured on."""
        from .report import text

        return text(self)


@dataclass(frozen=True)
class Job:
    """One run of a protocol with one seed.

    Attributes:
        source: The model, or pixels or HOG, as named layers.
        data: What the protocol's ``read`` made of the folder: labelled images, boxes, label maps …
        out: The run's folder, where protocols keep what they computed.
        layers: The layers asked for; empty: the protocol's own.
        settings: The protocol's Settings.
        seed: Of every draw.
        workers: Processes or threads to use.
        device: Where the network runs: "auto", "cpu", "cuda" …
        progress: Whether to show progress bars on stderr.
        variant: The row of the protocol that was asked for, or None.
        kept: The folder of extracted features; None: ``out``'s own.
        record: What the job notes for the result's ``ran_on`` while it runs.
        ranks: The processes that ``torchrun`` started, or this one alone.
        transform: The model's channel order, mean and standard deviation where the published figures had others.
    """

    source: Source
    data: Any
    out: Path
    layers: tuple[str, ...]
    settings: Any
    seed: int
    workers: int
    device: str
    progress: bool
    variant: str | None = None
    kept: Path | None = None
    record: dict[str, Any] = field(default_factory=dict)
    ranks: Ranks = field(default_factory=Ranks)
    transform: EvalTransform | None = None

    @property
    def preprocessing(self) -> EvalTransform:
        """Channel order, mean and standard deviation: the model's, or those of the published figure."""
        return self.transform or self.source.model.transform

    def features(self, split_name: str, layer: str, preprocessing: Preprocessing, pool: str) -> NDArray[np.float32]:
        """Return the features of a split, computed once and kept on disk.

        Args:
            split_name: "train" or "test".
            layer: A layer of the source.
            preprocessing: How images become the network's input.
            pool: "gap", "grid" or "none", as in extraction.

        Returns:
            (n, …) float32, memory-mapped and read-only, rows in the order of the split.

        Raises:
            ImageError: an image cannot be opened; the message names the files.
        """
        from .features import of_split

        return of_split(self, split_name, layer, preprocessing, pool)
