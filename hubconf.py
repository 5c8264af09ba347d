"""Entry points for torch.hub, e.g. ``torch.hub.load(REPOSITORY, "context_pred", "resnet50_8xb64-steplr-70e")``."""

dependencies = ["torch", "torchvision", "huggingface_hub", "safetensors", "requests", "tqdm"]


def context_pred(name, **options):
    """Return the model `name` (a ContextPredictionModel in eval mode); options as in context_pred.load_pretrained."""
    from context_pred import load_pretrained

    return load_pretrained(name, **options)
