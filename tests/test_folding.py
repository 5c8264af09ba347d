"""Batch norms folded at every call: the same numbers, and only where nobody could tell."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from context_pred import folding
from context_pred.backbones import ResNetBackbone, build_backbone


@pytest.fixture(params=["resnet18", "resnet50"])
def backbone(request: pytest.FixtureRequest) -> ResNetBackbone:
    """A backbone whose batch norms have seen something: nothing in them is 0 or 1."""
    torch.manual_seed(0)
    made = build_backbone(request.param).eval()
    for module in made.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.2)
            module.running_var.uniform_(0.5, 2)
            nn.init.normal_(module.weight, 1, 0.2)
            nn.init.normal_(module.bias, 0, 0.2)
    return made


@pytest.fixture(autouse=True)
def folds_small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folding, "LEAST_PIXELS", 2 * 64 * 64)


def images(batch: int = 2) -> torch.Tensor:
    return torch.randn(batch, 3, 64, 64, generator=torch.Generator().manual_seed(1))


def folded_here(backbone: nn.Module, x: torch.Tensor) -> bool:
    """Whether this call folds: the stem's batch norm then never runs."""
    ran = []
    forward = type(backbone.bn1).forward
    type(backbone.bn1).forward = lambda self, y: (ran.append(None), forward(self, y))[1]
    try:
        backbone(x, "feature1")
    finally:
        type(backbone.bn1).forward = forward
    return not ran


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_the_same_numbers(backbone: ResNetBackbone, memory_format: torch.memory_format) -> None:
    backbone, x = backbone.to(memory_format=memory_format), images().contiguous(memory_format=memory_format)
    expected = backbone(x)
    with torch.no_grad():
        assert folded_here(backbone, x)
        found = backbone(x)
    for layer in expected:
        error = (found[layer] - expected[layer]).abs().max() / expected[layer].std()
        assert 0 < error < 1e-4, layer
        assert found[layer].stride() == expected[layer].stride()


def test_no_layer_is_changed_by_the_ones_after_it(backbone: ResNetBackbone) -> None:
    with torch.inference_mode():
        together = backbone(images())
        for layer, maps in together.items():
            torch.testing.assert_close(backbone(images(), layer)[layer], maps, rtol=0, atol=0)


def test_new_weights_count_at_once(backbone: ResNetBackbone) -> None:
    with torch.no_grad():
        before = backbone(images(), "feature2")["feature2"]
        backbone.layer1[0].bn1.running_var.mul_(4)
        assert not torch.equal(backbone(images(), "feature2")["feature2"], before)


def test_only_for_inference_on_large_batches(backbone: ResNetBackbone) -> None:
    assert not folded_here(backbone, images())  # gradients may be wanted
    with torch.no_grad():
        assert folded_here(backbone, images())
        assert not folded_here(backbone, images(1))
        assert not folded_here(backbone.double(), images().double())
        backbone.float()
        with torch.autocast("cpu", torch.bfloat16):
            assert not folded_here(backbone, images())
        backbone.layer4[1].bn2.train()
        assert not folded_here(backbone, images())
        assert not folded_here(backbone.train(), images())


def test_hooks_see_every_module(backbone: ResNetBackbone) -> None:
    seen = []
    handle = backbone.layer2[0].bn1.register_forward_hook(lambda *_: seen.append(None))
    with torch.no_grad():
        backbone(images())
        assert seen == [None]
        handle.remove()
        assert folded_here(backbone, images())


def test_replaced_layers_run_as_they_are(backbone: ResNetBackbone) -> None:
    class Doubled(nn.Conv2d):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return 2 * super().forward(x)

    backbone.conv1.__class__ = Doubled
    expected = backbone(images(), "feature1")["feature1"]
    with torch.no_grad():
        torch.testing.assert_close(backbone(images(), "feature1")["feature1"], expected, rtol=0, atol=0)
