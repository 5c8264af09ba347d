"""Features of images as a scikit-learn transformer.

    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from context_pred.integrations.sklearn import ContextFeatures

    probe = make_pipeline(ContextFeatures(layer="feature3"), LogisticRegression()).fit(paths, labels)

Images are paths, Pillow images or arrays.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from context_pred.engines import Engine, prepare
from context_pred.errors import InvalidInputError, unknown
from context_pred.extract.loading import usual_workers
from context_pred.extras import need
from context_pred.model import ContextPredictionModel
from context_pred.pooling import GRID
from context_pred.zoo import registry

from ._models import IMAGES, Model, check_counts, cut_batches, loaded

_base = need("sklearn.base", "ContextFeatures", extra="sklearn")
_Transformer: Any = _base.TransformerMixin
_Estimator: Any = _base.BaseEstimator

__all__ = ["ContextFeatures"]

_POOLS = ("gap", "grid")


class ContextFeatures(_Transformer, _Estimator):  # type: ignore[misc]  # scikit-learn has no types
    """Images to vectors, by a network that is trained already: ``fit`` learns nothing, ``transform`` needs no ``fit``.

    It is batched, opens files in threads, and computes as ``extract.run`` does: the same numbers.
    Estimators can be cloned, pickled and searched over (``GridSearchCV(…, {"contextfeatures__layer": […]})``); a pickle
    of one that was given a name holds the name, not the weights.

    Args:
        model: A name of the zoo, a path, or a ``ContextPredictionModel``, of which later changes count from the next
            ``fit`` on; None: the model that ships with the library.
        layer: "feature1" … "feature5" ("fc6" too for contextnet).
        pool: "gap": the mean over positions, C values; "grid": C·n·n values, n = 12, 6, 4, 3, 2 for feature1 …
            feature5.
        batch_size: Images a batch.
        workers: Threads that open images; 0: none beside the caller's; None: two beside a network on the CPU, up to
            16 beside any other.
        device: "auto" (a GPU, else the CPU) or a device of PyTorch's.
        dtype: Precision of the computation: "float32", "float16" or "bfloat16".
        engine: Who computes: "torch", "onnxruntime", "openvino", or "auto", the fastest that is installed.
    """

    def __init__(
        self,
        model: Model | None = None,
        layer: str = "feature5",
        *,
        pool: str = "gap",
        batch_size: int = 32,
        workers: int | None = None,
        device: str | torch.device = "auto",
        dtype: str = "float32",
        engine: str = "torch",
    ) -> None:
        self.model = model
        self.layer = layer
        self.pool = pool
        self.batch_size = batch_size
        self.workers = workers
        self.device = device
        self.dtype = dtype
        self.engine = engine

    def fit(self, X: Any, y: Any = None) -> Self:  # noqa: N803  # scikit-learn's names
        """Load the model and check the settings; images and labels are not looked at.

        Args:
            X: Anything.
            y: Anything.

        Returns:
            The transformer itself.

        Raises:
            UnknownNameError: no such model, layer, pooling, dtype or engine.
            InvalidInputError: another setting that is not accepted, or an engine that is not installed.
        """
        if isinstance(self.model, ContextPredictionModel):
            self.__dict__.pop("_made", None)
        self._engine()
        return self

    def transform(self, X: Any) -> NDArray[np.float32]:  # noqa: N803
        """Compute a vector an image.

        Args:
            X: A sequence (list, array, series, one-column frame) of images: paths, bytes of files, Pillow images, or
                uint8 arrays (H, W), (H, W, 3), (H, W, 4) in RGB order; also one array (N, H, W), (N, H, W, 3 or 4).

        Returns:
            float32 (N, D), rows in the order of the images; D is ``len(get_feature_names_out())``.

        Raises:
            InvalidInputError: no images, or something else than images; the first is named by its number.
            ImageError: a file that cannot be opened.
        """
        engine = self._engine()
        threads = usual_workers(engine.device) if self.workers is None else self.workers
        batches = cut_batches(_images(X), self._loaded.transform, self.batch_size, threads)
        found = [engine(pixels)[self.layer].reshape(len(pixels), -1) for pixels in batches]
        if not found:
            raise InvalidInputError(f"No images; accepted: at least one of them, each {IMAGES}.")
        return np.concatenate(found).astype(np.float32, copy=False)

    def get_feature_names_out(self, input_features: Any = None) -> NDArray[np.object_]:
        """Return the names of the values, "feature5_0", "feature5_1" …

        Args:
            input_features: Anything; scikit-learn passes it.
        """
        self._engine()
        cells = GRID.get(self.layer, 1) ** 2 if self.pool == "grid" else 1
        count = self._loaded.feature_info[self.layer].channels * cells
        return np.array([f"{self.layer}_{number}" for number in range(count)], dtype=object)

    def _engine(self) -> Engine:
        """Return what computes with the settings, made anew where these have changed."""
        check_counts(self.batch_size, self.workers)
        settings = (self.layer, self.pool, str(self.device), str(self.dtype), self.engine)
        made = self.__dict__.get("_made")
        if made is not None and made[0] is self.model and made[1] == settings:
            return made[2]  # type: ignore[no-any-return]
        if self.pool not in _POOLS:
            raise unknown("pooling", self.pool, _POOLS)
        model: ContextPredictionModel = loaded(registry.default_name() if self.model is None else self.model)
        if model.card.in_channels not in (1, 3):
            raise InvalidInputError(f"The model has {model.card.in_channels} input channels, and images give 1 or 3.")
        if not isinstance(self.layer, str):
            raise InvalidInputError(f"layer={self.layer!r}; accepted: one of {', '.join(model.feature_info)}.")
        engine = prepare(model, self.engine, self.layer, self.pool, device=self.device, dtype=self.dtype)
        self._loaded, self._made = model, (self.model, settings, engine)
        return engine

    def __getstate__(self) -> dict[str, Any]:
        """Leave the loaded network out of pickles and copies: it is made again when it is needed."""
        state: dict[str, Any] = super().__getstate__()
        return {key: value for key, value in state.items() if key not in ("_loaded", "_made")}

    def __sklearn_is_fitted__(self) -> bool:
        """Say that ``fit`` is not needed."""
        return True

    def __sklearn_tags__(self) -> Any:
        """Say that images go in, float32 comes out, and ``fit`` is not needed."""
        tags = super().__sklearn_tags__()
        tags.requires_fit, tags.no_validation = False, True
        tags.input_tags.two_d_array, tags.input_tags.one_d_array = False, True
        tags.input_tags.three_d_array, tags.input_tags.string = True, True
        tags.transformer_tags.preserves_dtype = []
        return tags


def _images(given: Any) -> Iterable[Any]:
    """Return the images one by one, or raise InvalidInputError where a single one was given, or none can be."""
    if isinstance(given, (str, bytes, os.PathLike, Image.Image, dict)):
        raise InvalidInputError(f"X is a single image ({type(given).__name__}); accepted: a sequence of them, as [x].")
    if hasattr(given, "to_numpy"):  # pandas and polars
        given = given.to_numpy()
    if isinstance(given, np.ndarray):
        if given.dtype == np.uint8 and (given.ndim == 2 or (given.ndim == 3 and given.shape[-1] in (3, 4))):
            raise InvalidInputError(f"X is a single image, an array {given.shape}; accepted: a batch of them, X[None].")
        if given.dtype != np.uint8 and given.ndim == 2 and given.shape[1] == 1:
            given = given[:, 0]
        if given.dtype.kind in "OUS" and given.ndim > 1:
            raise InvalidInputError(f"X has shape {given.shape}; accepted: one column of images, each {IMAGES}.")
        if given.ndim < 1 or (given.dtype.kind not in "OUS" and given.dtype != np.uint8):
            raise InvalidInputError(f"X is an array {given.shape} of {given.dtype}; accepted: images, each {IMAGES}.")
        return list(given) if given.dtype.kind in "OUS" else given
    if not isinstance(given, (Sequence, Iterable)):
        raise InvalidInputError(f"X is {type(given).__name__}; accepted: a sequence of images, each {IMAGES}.")
    return given
