"""Published protocols: from a model to figures that can be held against the literature.

context-pred evaluate knn --model resnet50_8xb64-steplr-70e --data imagenet/ --out knn

Names are resolved when they are first used, so that the processes that fit classifiers need no PyTorch.
"""

from __future__ import annotations

from importlib import import_module

TYPE_CHECKING = False
if TYPE_CHECKING:
    from ._run import PROTOCOLS, run
    from .job import Job, Measurement, Published, Result
    from .labelled import LabelledImages, Split
    from .sources import FeatureMaps

__all__ = [
    "PROTOCOLS",
    "FeatureMaps",
    "Job",
    "LabelledImages",
    "Measurement",
    "Published",
    "Result",
    "Split",
    "run",
]

_HOME = {
    "PROTOCOLS": "_run",
    "FeatureMaps": "sources",
    "Job": "job",
    "LabelledImages": "labelled",
    "Measurement": "job",
    "Published": "job",
    "Result": "job",
    "Split": "labelled",
    "run": "_run",
}


if not TYPE_CHECKING:  # so that type checkers know exactly the names above

    def __getattr__(name: str) -> object:
        if name not in _HOME:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return getattr(import_module(f".{_HOME[name]}", __name__), name)
