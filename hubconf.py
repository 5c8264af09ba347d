"""Entry points for torch.hub: one a model of the zoo, its name made a Python name, and ``context_pred`` for any model.

    model = torch.hub.load(REPOSITORY, "resnet50_8xb64_steplr_70e")
    model = torch.hub.load(REPOSITORY, "context_pred", "path/to/a/model")

REPOSITORY is the folder of a clone, with ``source="local"``, or ``owner/name`` on GitHub; of the latter
``torch.hub.list`` shows the entry points, and ``torch.hub.help`` explains one.
"""

import re

dependencies = ["torch", "torchvision", "huggingface_hub", "safetensors", "requests", "tqdm"]


def context_pred(name, **options):
    """Return the model `name` (a ContextPredictionModel in eval mode); options as in context_pred.load_pretrained."""
    from context_pred import load_pretrained

    return load_pretrained(name, **options)


def _entry_points():
    from context_pred import list_models, model_info

    def entry_point(name):
        card = model_info(name)

        def load(pretrained=True, **options):
            if pretrained:
                return context_pred(name, **options)
            from context_pred import ContextPredictionModel

            return ContextPredictionModel.from_card(card, **options)

        load.__name__ = load.__qualname__ = re.sub(r"\W", "_", name)
        load.__doc__ = (
            f"Return {name}: {card.title or card.backbone}, trained on {card.dataset}.\n\n"
            f"{card.description}\n\n"
            "A ContextPredictionModel in eval mode: `features(model.transform(image)[None])`, `embed(...)`. Options\n"
            "as in context_pred.load_pretrained; with `pretrained=False` the weights are random, and the only option\n"
            "is `in_channels`."
        )
        return load

    return {function.__name__: function for function in map(entry_point, list_models())}


globals().update(_entry_points())
