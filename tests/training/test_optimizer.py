"""The optimiser: upstream's groups, every parameter once, and the update itself."""

from __future__ import annotations

import math
from collections import Counter

import pytest
import torch

from context_pred.errors import InvalidInputError
from context_pred.model import ContextPredictionModel
from context_pred.training.optimizer import OptimizerOptions, make_optimizer

SGD = OptimizerOptions("sgd", 0.2, weight_decay=1e-4, pair_layers_weight_decay=5e-4)
ADAMW = OptimizerOptions("adamw", 1e-3, weight_decay=0.05, decay_norms_and_biases=False)


@pytest.fixture
def model() -> ContextPredictionModel:
    return ContextPredictionModel("resnet18", neck_channels=8, dropout=0.0)


def decays(model: ContextPredictionModel, optimizer: torch.optim.Optimizer) -> dict[str, float]:
    """The weight decay of every parameter by its name."""
    of = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    return {name: of[id(p)] for name, p in model.named_parameters()}


@pytest.mark.parametrize(
    "options",
    [SGD, ADAMW, OptimizerOptions("sgd", 0.1), OptimizerOptions("sgd", 0.1, decay_norms_and_biases=False)],
)
@pytest.mark.parametrize("backbone", ["resnet18", "contextnet"])
def test_every_parameter_is_in_exactly_one_group(options: OptimizerOptions, backbone: str) -> None:
    model = ContextPredictionModel(backbone, neck_channels=8)
    counted = Counter(id(p) for group in make_optimizer(model, options).param_groups for p in group["params"])
    assert counted == Counter(id(p) for p in model.parameters())


def test_upstreams_groups(model: ContextPredictionModel) -> None:
    optimizer = make_optimizer(model, SGD)
    for name, decay in decays(model, optimizer).items():
        assert decay == (1e-4 if name.startswith("backbone.") else 5e-4), name
    assert {group["name"] for group in optimizer.param_groups} == {"backbone", "pair layers"}
    for group in optimizer.param_groups:
        assert (group["lr"], group["momentum"], group["nesterov"], group["dampening"]) == (0.2, 0.9, False, 0)


def test_without_one_of_their_own_neck_and_head_decay_as_the_backbone(model: ContextPredictionModel) -> None:
    assert set(decays(model, make_optimizer(model, OptimizerOptions("sgd", 0.1))).values()) == {1e-4}


@pytest.mark.parametrize("kind", ["sgd", "adamw"])
def test_norms_and_biases_can_be_left_undecayed(model: ContextPredictionModel, kind: str) -> None:
    options = OptimizerOptions(
        kind, 1e-3, weight_decay=0.05, pair_layers_weight_decay=0.01, decay_norms_and_biases=False
    )
    for name, decay in decays(model, make_optimizer(model, options)).items():
        plain = name.endswith(".bias") or ".bn" in name or "downsample.1" in name
        assert decay == (0.0 if plain else 0.05 if name.startswith("backbone.") else 0.01), name


def test_adamw_has_its_betas(model: ContextPredictionModel) -> None:
    optimizer = make_optimizer(model, OptimizerOptions("adamw", 1e-3, betas=(0.8, 0.95)))
    assert type(optimizer) is torch.optim.AdamW
    assert {group["betas"] for group in optimizer.param_groups} == {(0.8, 0.95)}


def test_two_steps_of_sgd_are_those_of_the_formula(model: ContextPredictionModel) -> None:
    """v ← .9 v + (g + wd·w), w ← w − lr·v, the first v being the gradient itself: mmselfsup's torch.optim.SGD."""
    optimizer = make_optimizer(model.double(), SGD)
    some = [(name, p) for name, p in model.named_parameters() if p.numel() < 40_000]
    assert {name.split(".")[0] for name, _ in some} == {"backbone", "neck", "head"}
    expected = {name: p.detach().clone() for name, p in some}
    velocity = dict.fromkeys(expected, 0.0)
    generator = torch.Generator().manual_seed(0)
    for _ in range(2):
        for name, p in some:
            p.grad = torch.randn(p.shape, generator=generator, dtype=p.dtype)
            decay = 1e-4 if name.startswith("backbone.") else 5e-4
            velocity[name] = 0.9 * velocity[name] + p.grad + decay * expected[name]
            expected[name] = expected[name] - 0.2 * velocity[name]
        optimizer.step()
    for name, p in some:
        torch.testing.assert_close(p.detach(), expected[name], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"learning_rate": 0.0}, "learning_rate"),
        ({"learning_rate": math.nan}, "learning_rate"),
        ({"momentum": 1.0}, "momentum"),
        ({"betas": (0.9, 1.0)}, "betas"),
        ({"betas": (0.9,)}, "betas"),
        ({"weight_decay": -1e-4}, "weight_decay"),
        ({"pair_layers_weight_decay": -1.0}, "pair_layers_weight_decay"),
    ],
)
def test_options_out_of_their_range_are_refused(options: dict, said: str) -> None:
    with pytest.raises(InvalidInputError, match=said):
        OptimizerOptions(**{"kind": "sgd", "learning_rate": 0.1, **options})
