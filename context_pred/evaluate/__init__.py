"""Published protocols: from a model to figures that can be held against the literature."""

from .job import Job, Measurement, Published, Result

__all__ = ["Job", "Measurement", "Published", "Result"]
