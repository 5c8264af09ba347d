"""Published protocols: from a model to figures that can be held against the literature.

context-pred evaluate knn --model resnet50_8xb64-steplr-70e --data imagenet/ --out knn
"""

from .job import Job, Measurement, Published, Result
from .labelled import LabelledImages, Split
from .run import PROTOCOLS, run
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
