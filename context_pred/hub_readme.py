"""The README.md of a published model, as the Hub shows it: made from the card, so that it never says anything else."""

from __future__ import annotations

import itertools
import math
import re
from collections import Counter
from collections.abc import Iterable
from typing import Any

from huggingface_hub import EvalResult, ModelCardData

from .card import Card, Metric

PAPER = "https://arxiv.org/abs/1505.05192"
_TAGS = ("self-supervised", "context-prediction", "relative-location")
TAGS = list(_TAGS)  # huggingface-hub's mixin adds its own to the list it is given
PIPELINE = "image-feature-extraction"

_HERE = "OWNER/NAME"
_MANY = 4
# Of the identifiers the Hub accepts (hub-docs, repositories-licenses), those of free software and free data.
_LICENSES = re.compile(
    r"afl-3\.0|agpl-3\.0|apache-2\.0|artistic-2\.0|bsd(-[23]-clause)?|bsd-3-clause-clear|bsl-1\.0|cc"
    r"|cc-by(-nc)?(-sa|-nd)?-[234]\.0|cc-by-2\.5|cc0-1\.0|cdla-(sharing-1|permissive-[12])\.0|ecl-2\.0|epl-[12]\.0"
    r"|etalab-2\.0|eupl-1\.[12]|gfdl|gpl(-[23]\.0)?|isc|lgpl(-2\.1|-3\.0)?|lppl-1\.3c|mit|mpl-2\.0|ms-pl|ncsa|odbl"
    r"|odc-by|ofl-1\.1|openrail|osl-3\.0|pddl|postgresql|unknown|unlicense|wtfpl|zlib"
)
# Data sets named on cards, as the Hub's own identifiers.
_DATASETS = {"imagenet-1k": "ILSVRC/imagenet-1k"}


def hub_readme(card: Card, repository: str | None = None, timm_repository: str | None = None) -> str:
    """Return the README of a whole model: the Hub's metadata, its use, limits, training, numbers and licence.

    Args:
        card: The model's card.
        repository: ``owner/name`` it is published as; None: a placeholder.
        timm_repository: ``owner/name`` of its backbone in timm's layout; None: there is none.
    """
    metadata = _metadata(card, "context-pred", card.name, _results(card))
    beside = f"The backbone alone, for timm and transformers: {_link(timm_repository)}." if timm_repository else ""
    parts = [
        f"---\n{metadata.to_yaml()}\n---",
        f"# {card.title or card.name}",
        card.description,
        f"Visual features by context prediction ([Doersch, Gupta, Efros 2015]({PAPER})), for the Python library "
        f"`context-pred`: {card.backbone}, {'with neck and head' if card.pair_layers else 'backbone alone'}.",
        beside,
        "## Use",
        f"{f'`{_HERE}` is this repository; ' if repository is None else ''}`REVISION` is the 40 digits of a commit of "
        "this repository: a commit never changes, and is not asked for again once it is cached.",
        _use(card, repository or _HERE),
        "## Limits",
        _list(_limits(card)),
        "## Training",
        _rows([*_training(card), ("SHA-256", f"`{card.sha256}`" if card.sha256 else "")]),
        _notes(card.notes),
        *_numbers(card.metrics),
        "## Licence",
        _licence(card),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def timm_readme(card: Card, repository: str, full_repository: str | None = None, turned: bool = False) -> str:
    """Return the README of a backbone in timm's layout.

    Args:
        card: The card of the model as it lies there: RGB, its own mean and std.
        repository: ``owner/name`` it is published as.
        full_repository: ``owner/name`` of the whole model; None: it is not published.
        turned: The model was trained on BGR, and its first convolution reversed for this layout.
    """
    metadata = _metadata(card, "timm", None, [])
    whole = _link(full_repository) if full_repository else "not published"
    reversed_ = (
        "**Feed it RGB.** It was trained on BGR images; in this repository the input channels of the first "
        "convolution, the mean and the standard deviation are reversed, so that RGB gives the same features."
    )
    parts = [
        f"---\n{metadata.to_yaml()}\n---",
        f"# {card.title or card.name}, backbone for timm",
        f"The {card.backbone} of `{card.name}`, trained without labels by context prediction ([Doersch, Gupta, Efros "
        f"2015]({PAPER})), under torchvision's and timm's keys and without a classifier. The whole model, with "
        f"{'neck and head and ' if card.pair_layers else ''}its numbers: {whole}.",
        reversed_ if turned else card.description,
        "## Use",
        *_timm_use(card, repository),
        "## Limits",
        _list(_limits(card, timm=True)),
        "## Training",
        _rows(_training(card)),
        "## Licence",
        _licence(card),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _use(card: Card, repository: str) -> str:
    imported, image, told = "from PIL import Image\n", 'Image.open("photo.jpg")', ""
    if card.in_channels not in (1, 3):
        imported, image, told = "", "image", f"  # of a tensor ({card.in_channels}, H, W), uint8 or float in [0, 1]"
    return (
        f"```python\nimport context_pred\n{imported}\n"
        f'model = context_pred.load_pretrained("hf-hub:{repository}@REVISION")\n'
        f"x = model.transform({image})[None]{told}\n"
        'features = model.features(x)  # {"feature1": …, … "feature5": …}\n```'
    )


def _timm_use(card: Card, repository: str) -> list[str]:
    made = f'model = timm.create_model("hf-hub:{repository}", pretrained=True, features_only=True).eval()\n'
    size = f"{card.in_channels}, {card.crop}, {card.crop}"
    if card.in_channels not in (1, 3):
        return [
            f"```python\nimport timm\n\n{made}maps = model(images)  # strides 2, 4, 8, 16, 32\n```",
            f"`images` is a tensor (N, {size}), normalised by `mean` and `std` of `config.json`. The `AutoModel` of "
            "transformers takes the same tensor.",
        ]
    opened = f'Image.open("photo.jpg").convert("{"L" if card.in_channels == 1 else "RGB"}")'
    return [
        "In timm:",
        f"```python\nimport timm\nfrom PIL import Image\n\n{made}"
        "transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model))\n"
        f"maps = model(transform({opened})[None])  # strides 2, 4, 8, 16, 32\n```",
        "In transformers:",
        "```python\nfrom PIL import Image\nfrom transformers import AutoImageProcessor, AutoModel\n\n"
        f'processor, model = (kind.from_pretrained("{repository}") for kind in (AutoImageProcessor, AutoModel))\n'
        f'output = model(**processor({opened}, return_tensors="pt"))  # last_hidden_state, pooler_output\n```',
        f"Both prepare an image as the model was evaluated: shorter side to {card.resize} px, bilinear, the central "
        f"{card.crop} px, mean and standard deviation of `config.json`.",
    ]


def _metadata(card: Card, library: str, name: str | None, results: list[EvalResult]) -> ModelCardData:
    extra: dict[str, Any] = _license_entries(card.license)
    return ModelCardData(
        library_name=library,
        pipeline_tag=PIPELINE,
        tags=[*_TAGS, card.backbone],
        datasets=[hub for word, hub in _DATASETS.items() if card.dataset.lower().startswith(word)] or None,
        model_name=name if results else None,
        eval_results=results or None,
        **extra,
    )


def _license_entries(license: str) -> dict[str, str]:
    """Say a licence in the Hub's words: its own identifier, or "other" with the name it has."""
    if not license:
        return {}
    spdx = re.sub(r"-(only|or-later)$", "", license.strip().lower())
    return {"license": spdx} if _LICENSES.fullmatch(spdx) else {"license": "other", "license_name": _slug(license)}


def _results(card: Card) -> list[EvalResult]:
    """Return the card's numbers as the Hub indexes them: those measured on this very model, and no others.

    Numbers of other files, of random weights or of pixels stand in the table below them only; so do figures that are
    no single number, since the Hub sorts by numbers.
    """
    own = [metric for metric in card.metrics if metric.measured_on == card.name and math.isfinite(_value(metric.value))]
    names = [", ".join(filter(None, (m.benchmark, m.layer, m.metric))) for m in own]
    several = Counter((m.dataset, name) for m, name in zip(own, names, strict=True))
    return [
        EvalResult(
            task_type=_task(metric),
            dataset_type=_slug(metric.dataset.partition("(")[0]),
            dataset_name=metric.dataset or "not stated",
            metric_type=_kind(metric.metric),
            metric_name=name if several[metric.dataset, name] == 1 else f"{name} ({metric.source.strip('`')})",
            metric_value=_value(metric.value),
        )
        for metric, name in zip(own, names, strict=True)
    ]


def _task(metric: Metric) -> str:
    text = metric.benchmark.lower()
    if "pretext" in text:
        return PIPELINE
    if "r-cnn" in text or "detection" in text:
        return "object-detection"
    if "fcn" in text or "segmentation" in text:
        return "image-segmentation"
    return "image-classification"


def _kind(metric: str) -> str:
    if "iou" in metric.lower():
        return "mean_iou"
    if "AP" in metric:
        return "mean_average_precision"
    return "accuracy" if re.search("top-|accuracy|%", metric) else _slug(metric)


def _value(text: str) -> float:
    """Read a number without its spread; NaN where there is none."""
    try:
        return float(text.partition("±")[0])
    except ValueError:
        return math.nan


def _slug(text: str) -> str:
    return re.sub(r"[^a-z0-9._-]+", "-", text.strip().lower()).strip("-") or "unnamed"


def _limits(card: Card, timm: bool = False) -> list[str]:
    found = [
        "It gives features, not classes: a classifier, a detector or a search comes on top of it.",
        "It knows images of the kind it was trained on (see below); of other kinds expect less.",
    ]
    if card.channel_order == "bgr":
        found.append("It takes BGR, as it was trained; `model.transform` turns RGB images for it.")
    if timm and card.pair_layers:
        found.append("Pair questions (where does this patch lie, seen from that one?) need the whole model.")
    return found


def _training(card: Card) -> list[tuple[str, str]]:
    mean, std = (", ".join(f"{value:.4g}" for value in values) for values in (card.mean, card.std))
    return [
        ("input", f"resize {card.resize}, centre crop {card.crop}, {card.channel_order.upper()}"),
        ("mean; std", f"{mean}; {std}"),
        ("trained on", card.dataset or "not stated"),
        ("recipe", card.recipe),
        ("trained", card.trained),
        ("by", card.authors or "not stated"),
        ("paper", card.paper if card.paper != PAPER else ""),
        ("first published at", card.url or ""),
    ]


def _notes(notes: tuple[str, ...]) -> str:
    """A list of the notes; a long one stays folded until it is asked for."""
    if len(notes) <= _MANY:
        return _list(notes)
    return f"<details>\n<summary>{len(notes)} notes</summary>\n\n{_list(notes)}\n\n</details>"


def _numbers(metrics: tuple[Metric, ...]) -> list[str]:
    """One row for the numbers that share benchmark, data, model and source."""
    if not metrics:
        return []

    def shared(metric: Metric) -> tuple[str, str, str, str, str]:
        return metric.benchmark, metric.dataset, metric.measured_on, metric.source, metric.note

    rows = [("benchmark", "data", "measured on", "figures", "source and notes"), ("---",) * 5]
    for (benchmark, dataset, measured_on, source, note), run in itertools.groupby(metrics, shared):
        figures = "; ".join(f"{' '.join(filter(None, (m.layer, m.metric)))} {m.value}" for m in run)
        told = ". ".join(filter(None, (source, note)))
        rows.append((benchmark, dataset, f"`{measured_on}`" if measured_on else "not stated", figures, told))
    return ["## Numbers", "\n".join(f"| {' | '.join(map(_cell, row))} |" for row in rows)]


def _licence(card: Card) -> str:
    return f"{card.license}." if card.license else "None is stated: ask its authors before you use it."


def _rows(rows: Iterable[tuple[str, str]]) -> str:
    return "|  |  |\n| --- | --- |\n" + "\n".join(f"| {name} | {_cell(value)} |" for name, value in rows if value)


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "&#124;")


def _link(repository: str) -> str:
    return f"[{repository}](https://huggingface.co/{repository})"


def _list(lines: Iterable[str]) -> str:
    return "\n".join(f"- {' '.join(line.split())}" for line in lines)
