"""The README.md of a saved model, as the Hub shows it: made from the card, so that it never says anything else."""

from __future__ import annotations

from huggingface_hub import ModelCardData

from .card import Card

PAPER = "https://arxiv.org/abs/1505.05192"
TAGS = ["self-supervised", "context-prediction", "relative-location"]


def hub_readme(card: Card) -> str:
    """Return the text: the Hub's metadata, what the model is, how it is used, its input, its data and its numbers."""
    metadata = ModelCardData(
        library_name="context-pred",
        license=card.license.lower() or None,
        pipeline_tag="image-feature-extraction",
        tags=[*TAGS, card.backbone],
    )
    pairs = "with neck and head" if card.pair_layers else "backbone alone"
    mean, std = (", ".join(f"{value:.4g}" for value in values) for values in (card.mean, card.std))
    rows = [
        ("backbone", f"{card.backbone}, {pairs}"),
        ("input", f"resize {card.resize}, centre crop {card.crop}, {card.channel_order.upper()}"),
        ("mean; std", f"{mean}; {std}"),
        ("trained on", card.dataset),
        ("recipe", card.recipe),
        ("trained", card.trained),
        ("by", card.authors),
        ("licence", card.license),
        ("SHA-256", f"`{card.sha256}`" if card.sha256 else ""),
    ]
    table = "\n".join(f"| {name} | {value} |" for name, value in rows if value)
    numbers = "\n".join(
        f"| {m.benchmark} | {m.dataset} | {m.layer} | {m.metric} | {m.value} | {m.measured_on} |" for m in card.metrics
    )
    head = "| benchmark | data | layer | metric | value | measured on |\n| --- | --- | --- | --- | --- | --- |"
    parts = [
        f"---\n{metadata.to_yaml()}\n---",
        f"# {card.title or card.name}",
        card.description,
        f"Visual features by context prediction ([Doersch, Gupta, Efros 2015]({PAPER})), for the Python library "
        "`context-pred`. `OWNER/NAME` is this repository, `REVISION` the 40 digits of a commit of it:",
        "```python\nimport context_pred\nfrom PIL import Image\n\n"
        'model = context_pred.load_pretrained("hf-hub:OWNER/NAME@REVISION")\n'
        'x = model.transform(Image.open("photo.jpg"))[None]\n'
        'features = model.features(x)  # {"feature1": …, … "feature5": …}\n```',
        f"|  |  |\n| --- | --- |\n{table}",
        "\n".join(f"- {note}" for note in card.notes),
        f"## Numbers\n\n{head}\n{numbers}" if numbers else "",
    ]
    return "\n\n".join(part for part in parts if part) + "\n"
