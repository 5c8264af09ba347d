"""Weights that fit the data: k-means, normalisation, equal rates; and batch norm removed from the paper's tower."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from context_pred.backbones import ContextNetBackbone
from context_pred.errors import InvalidInputError
from context_pred.evaluate import sources
from context_pred.evaluate.detection import rescaling
from context_pred.evaluate.detection.tower import Tower, tower_of, without_batch_norm

Layers = list[Any]


def network(lrn: bool = False) -> tuple[nn.Sequential, Layers]:
    torch.manual_seed(0)
    between = [nn.LocalResponseNorm(5, k=1.0)] if lrn else []
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=2, padding=1), nn.ReLU(), *between, nn.MaxPool2d(2),
        nn.Conv2d(8, 12, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(12 * 16, 20), nn.Dropout(0.5), nn.ReLU(),
        nn.Linear(20, 6),
    )  # fmt: skip
    layers = [module for module in model if isinstance(module, (nn.Conv2d, nn.Linear))]
    with torch.no_grad():
        for layer, factor in zip(layers, (5.0, 0.01, 30.0, 0.3), strict=True):
            layer.weight.mul_(factor)
    return model, layers


def data() -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    scales = torch.tensor([30.0, 50.0, 20.0]).view(3, 1, 1)
    return [torch.randn(8, 3, 16, 16, generator=generator) * scales + 10 for _ in range(3)]


def before_relu(model: nn.Module, layer: Any, batches: list[Tensor]) -> Tensor:
    """(values, channels) of a layer's output, collected by itself."""
    rows: list[Tensor] = []
    handle = layer.register_forward_hook(lambda *what: rows.append(what[2]))
    with torch.no_grad():
        for batch in batches:
            model.eval()(batch)
    handle.remove()
    made = torch.cat(rows).double()
    return made.flatten(2).transpose(1, 2).flatten(0, 1) if made.ndim > 2 else made


@pytest.mark.parametrize("bias", [0.0, 0.1])
def test_every_channel_gets_its_mean_and_variance_1(bias: float) -> None:
    model, layers = network()
    rescaling.normalize(model, layers, model, data(), bias=bias)
    for layer in layers:
        rows = before_relu(model, layer, data())
        torch.testing.assert_close(rows.mean(0), torch.full_like(rows[0], bias), atol=1e-4, rtol=0)
        torch.testing.assert_close(rows.std(0, unbiased=False), torch.ones_like(rows[0]), atol=1e-4, rtol=0)


def test_a_dead_channel_stays_finite_and_the_mode_is_left() -> None:
    model, layers = network()
    model.train()
    with torch.no_grad():
        layers[0].weight[3].zero_()
    rescaling.normalize(model, layers, model, data())
    assert all(bool(value.isfinite().all()) for value in model.state_dict().values())
    assert model.training


def test_a_layer_without_a_bias_is_refused() -> None:
    model = nn.Sequential(nn.Linear(4, 4, bias=False))
    with pytest.raises(InvalidInputError, match="layers with a bias"):
        rescaling.normalize(model, [model[0]], model, [torch.randn(9, 4)])  # type: ignore[list-item]


def test_rates_are_equal_afterwards_and_the_function_is_the_same() -> None:
    model, layers = network()
    rescaling.normalize(model, layers, model, data())
    before = rescaling.rates(model, layers, model, data(), 0)
    assert float(before.max() / before.min()) > 1.5
    with torch.no_grad():
        made = model.eval()(data()[0])
    left = rescaling.equalize(model, layers, model, data())
    after = rescaling.rates(model, layers, model, data(), 0)
    assert left <= rescaling.TOLERANCE
    assert float(after.max() / after.min()) < 1 + 2.1 * rescaling.TOLERANCE
    with torch.no_grad():
        torch.testing.assert_close(model(data()[0]), made, rtol=1e-3, atol=1e-3)


def test_rates_are_those_of_the_definition() -> None:
    layer = nn.Linear(3, 2)
    x = torch.randn(5, 3)
    from context_pred.training import keys

    direction = torch.randn(5, 2, generator=keys.generator(4, 0))
    expected = ((direction.T @ x).square().mean() / layer.weight.square().mean()).sqrt()
    found = rescaling.rates(layer, [layer], layer, [x], 4)
    torch.testing.assert_close(found.float(), expected.detach()[None])


def test_response_normalisation_is_no_obstacle() -> None:
    model, layers = network(lrn=True)
    rescaling.normalize(model, layers, model, data())
    assert rescaling.equalize(model, layers, model, data()) < 0.05


def test_equal_rates_leave_frozen_layers_frozen() -> None:
    model, layers = network()
    layers[0].weight.requires_grad_(False)
    rescaling.equalize(model, layers, model, data())
    assert [layer.weight.requires_grad for layer in layers] == [False, True, True, True]
    assert all(layer.weight.grad is None for layer in layers)


def test_patches_are_what_the_convolution_multiplies() -> None:
    layer = nn.Conv2d(3, 5, 3, stride=2, padding=1)
    x = torch.randn(2, 3, 9, 7)
    rows = rescaling.patches(layer, x)
    expected = layer(x).flatten(2).transpose(1, 2).flatten(0, 1)
    torch.testing.assert_close(rows @ layer.weight.flatten(1).T + layer.bias, expected, atol=1e-5, rtol=1e-5)


def test_kmeans_finds_the_directions_of_clusters() -> None:
    generator = torch.Generator().manual_seed(0)
    rays = torch.eye(6)[:4]
    rows = torch.cat([ray * 9 + 0.1 * torch.randn(50, 6, generator=generator) for ray in rays])
    weights = rescaling.kmeans_weights(rows, 4, seed=0)
    assert weights.shape == (4, 6)
    answers = (rows - rows.mean(0)) @ weights.T
    winners = answers.argmax(1).view(4, 50)
    assert all(len(set(one.tolist())) == 1 for one in winners)
    assert len(set(winners[:, 0].tolist())) == 4
    np.testing.assert_array_equal(weights, rescaling.kmeans_weights(rows, 4, seed=0))


def test_principal_components_are_the_same_from_either_side() -> None:
    rows = torch.randn(10, 30, generator=torch.Generator().manual_seed(0))
    values, vectors = rescaling._components(rows, 4)
    expected, directions = torch.linalg.eigh(rows.T @ rows)
    torch.testing.assert_close(values, expected[-4:], rtol=1e-4, atol=1e-3)
    torch.testing.assert_close((vectors * directions[:, -4:]).sum(0).abs(), torch.ones(4), rtol=1e-4, atol=1e-4)


def test_too_few_patches_are_gaussian_and_said_so() -> None:
    model, layers = network()
    enough = rescaling.initialize(model, layers, model, data(), samples=600)
    assert enough == [True, True, True, True]
    enough = rescaling.initialize(model, layers, model, [batch[:5] for batch in data()], samples=600)
    assert enough == [True, True, False, True]  # 15 rows for 20 channels
    for layer in layers:
        assert bool(layer.weight.isfinite().all())


def trained_statistics(backbone: ContextNetBackbone) -> ContextNetBackbone:
    generator = torch.Generator().manual_seed(3)
    for norm in (backbone.bn3, backbone.bn4, backbone.bn5, backbone.bn6):
        count = len(norm.running_mean)  # type: ignore[arg-type]
        norm.running_mean.copy_(torch.randn(count, generator=generator))  # type: ignore[operator]
        norm.running_var.copy_(torch.rand(count, generator=generator) + 0.5)  # type: ignore[operator]
    for layer in (backbone.conv3, backbone.conv4, backbone.conv5, backbone.fc6):
        nn.init.normal_(layer.get_parameter("bias"))
    return backbone.eval()


@pytest.mark.parametrize("conv2", [256, 384])
def test_without_batch_norm_the_tower_computes_the_same(conv2: int) -> None:
    torch.manual_seed(0)
    backbone = trained_statistics(ContextNetBackbone(conv2=conv2)).double()  # else the CPU's kernel decides
    x = torch.randn(2, 3, 96, 131, dtype=torch.float64)
    with torch.no_grad():
        maps = backbone(x, ["feature5", "fc6"])
        tower = Tower(backbone)
        torch.testing.assert_close(tower(x), maps["feature5"], atol=1e-9, rtol=1e-9)
        fc6 = without_batch_norm(backbone.fc6, backbone.bn6)
        made = torch.relu(fc6(backbone.pool(tower(x))))
        torch.testing.assert_close(made, maps["fc6"], atol=1e-9, rtol=1e-9)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in tower.modules())
    assert sum(p.numel() for p in tower.parameters()) == sum(
        p.numel() for name, p in backbone.named_parameters() if name.startswith("conv")
    )


def test_scale_and_shift_of_a_batch_norm_are_taken_along() -> None:
    layer, norm = nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4)
    with torch.no_grad():
        for value in (norm.running_mean, norm.running_var, norm.weight, norm.bias):
            value.copy_(torch.rand(4) + 0.5)  # type: ignore[union-attr]
    x = torch.randn(2, 3, 8, 8)
    expected = norm.eval()(layer(x))
    torch.testing.assert_close(without_batch_norm(layer, norm)(x), expected, atol=1e-5, rtol=1e-5)
    with pytest.raises(InvalidInputError, match="without running statistics"):
        without_batch_norm(layer, nn.BatchNorm2d(4, track_running_stats=False))


def test_fast_rcnns_padding_puts_a_cell_on_every_16th_pixel() -> None:
    backbone = ContextNetBackbone().eval()
    x = torch.zeros(1, 3, 161, 241)
    with torch.no_grad():
        assert Tower(backbone, 1)(x).shape == (1, 256, 11, 16)
        # The cell that answers most to a pixel: its gradient's centre.
    for padding, off in ((1, 0), (0, 12)):
        tower = copy.deepcopy(Tower(backbone, padding))
        with torch.no_grad():
            for layer in tower.convolutions:
                layer.weight.fill_(1e-3)
                layer.bias.fill_(1.0)  # type: ignore[union-attr]
        pixels = torch.rand(1, 3, 161, 161, requires_grad=True)
        tower(pixels)[0, 0, 5, 5].backward()
        assert pixels.grad is not None
        seen = pixels.grad[0].abs().sum(0).sum(0).nonzero()
        centre = (int(seen.min()) + int(seen.max())) / 2
        assert abs(centre - (80 + off)) <= 8, (padding, centre)


def test_other_backbones_are_told_which_are_accepted() -> None:
    with pytest.raises(InvalidInputError, match=r"resnet18; accepted: contextnet, contextnet-paper.*voc0712-c4"):
        tower_of(sources.find("random:resnet18").model.backbone, "resnet18", "voc07-rcnn")
