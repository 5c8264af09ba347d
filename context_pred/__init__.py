"""Visual features from unlabelled images by context prediction (Doersch, Gupta, Efros, ICCV 2015).

Importing the package imports nothing heavy: every public name is resolved when it is first used.

    import context_pred

    model = context_pred.load_pretrained("resnet50_8xb64-steplr-70e")
    features = model.features(model.transform(image)[None])["feature4"]
"""

from __future__ import annotations

from importlib import import_module

TYPE_CHECKING = False  # type checkers take it for true; importing typing for it would be most of this import's time
if TYPE_CHECKING:
    from context_pred import data, discover, errors, evaluate, extract, patches, zoo
    from context_pred.card import Card
    from context_pred.errors import ContextPredError
    from context_pred.model import ContextPredictionModel
    from context_pred.patches import GridPatchSampler, PatchPairs, RandomPairSampler
    from context_pred.zoo import list_models, load_pretrained, model_info

__version__ = "0.1.0"

__all__ = [
    "Card",
    "ContextPredError",
    "ContextPredictionModel",
    "GridPatchSampler",
    "PatchPairs",
    "RandomPairSampler",
    "data",
    "discover",
    "errors",
    "evaluate",
    "extract",
    "list_models",
    "load_pretrained",
    "model_info",
    "patches",
    "zoo",
]

_HOME = {
    "Card": "card",
    "ContextPredError": "errors",
    "ContextPredictionModel": "model",
    "GridPatchSampler": "patches",
    "PatchPairs": "patches",
    "RandomPairSampler": "patches",
    "list_models": "zoo",
    "load_pretrained": "zoo",
    "model_info": "zoo",
}


if not TYPE_CHECKING:  # so that type checkers know exactly the names above

    def __getattr__(name: str) -> object:
        """Import the module behind a public name the first time the name is used (PEP 562)."""
        if name not in __all__:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        module = import_module(f"{__name__}.{_HOME.get(name, name)}")
        value = getattr(module, name) if name in _HOME else module
        globals()[name] = value
        return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
