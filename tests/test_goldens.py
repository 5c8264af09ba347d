"""The numbers of the upstream implementation (mmselfsup 1.0.0), sampled in ``tests/goldens`` (see its README)."""

from __future__ import annotations

import itertools
import json
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from context_pred.backbones import LAYERS
from context_pred.model import ContextPredictionModel
from context_pred.patches import PatchPairs
from context_pred.patches.layout import RASTER_FROM_1X
from context_pred.pooling import pool_map
from context_pred.pretext import pretext_loss
from context_pred.ranks import Ranks
from context_pred.training.loop import Loop
from context_pred.training.optimizer import OptimizerOptions, make_optimizer
from context_pred.training.order import Order

FOLDER = Path(__file__).parent / "goldens"
RASTER = torch.tensor(RASTER_FROM_1X)


@pytest.fixture(scope="module")
def goldens() -> dict[str, np.ndarray]:
    with np.load(FOLDER / "relative_loc_1x.npz") as file:
        return dict(file)


def fill(key: str, shape: tuple[int, ...]) -> np.ndarray:
    """A value for every entry of the state dict from its name alone, as upstream's was filled."""
    r = np.random.RandomState(zlib.crc32(key.encode()))
    if key.endswith("num_batches_tracked"):
        return np.zeros(shape, np.int64)
    if key.endswith("running_mean"):
        value = 0.1 * r.randn(*shape)
    elif key.endswith("running_var"):
        value = 1 + 0.1 * r.rand(*shape)
    elif len(shape) >= 2:
        value = r.randn(*shape) * np.sqrt(2 / np.prod(shape[1:]))
    elif key.endswith("weight"):
        value = 1 + 0.1 * r.randn(*shape)
    else:
        value = 0.1 * r.randn(*shape)
    return value.astype(np.float32)


def filled(*, dropout: float = 0.5, bn3: float = 1.0) -> ContextPredictionModel:
    """ResNet-50 with the goldens' weights; the head's rows go from upstream's 1.x order to raster order."""
    with torch.device("meta"):
        model = ContextPredictionModel("resnet50", dropout=dropout)
    state = {}
    for key, value in model.state_dict().items():
        array = fill(key, tuple(value.shape))
        state[key] = torch.from_numpy(np.asarray(array * np.float32(bn3) if key.endswith("bn3.weight") else array))
    for key in ("head.fc_cls.weight", "head.fc_cls.bias"):
        state[key] = state[key][RASTER]
    model.load_weights(state, assign=True)
    return model.eval()


@pytest.fixture(scope="module")
def model() -> ContextPredictionModel:
    return filled()


def assert_golden(goldens: dict[str, np.ndarray], name: str, found: torch.Tensor, bound: float = 1e-4) -> None:
    values = found.detach().double().numpy()
    assert values.shape == tuple(goldens[f"{name}/shape"]), name
    index = np.random.RandomState(12345).randint(0, values.size, 256)
    error = np.abs(values.ravel()[index] - goldens[f"{name}/vals"]).max()
    assert error <= bound * goldens[f"{name}/std"], f"{name}: {error / goldens[f'{name}/std']:.2e} standard deviations"
    assert abs(np.abs(values).max() - goldens[f"{name}/absmax"]) <= bound * goldens[f"{name}/std"], name


def test_the_327_keys():
    with torch.device("meta"):
        state = ContextPredictionModel("resnet50").state_dict()
    keys = json.loads((FOLDER / "state_dict_keys.json").read_text())
    rows = keys.items() if isinstance(keys, dict) else ((row[0], row[1:]) for row in keys)
    expected = {key: list(value["shape"] if isinstance(value, dict) else value[0]) for key, value in rows}
    assert {key: list(value.shape) for key, value in state.items()} == expected
    assert len(expected) == 327


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_taps_and_poolings(model, goldens, memory_format):
    images = torch.from_numpy(np.random.RandomState(0).randn(2, 3, 224, 224).astype(np.float32))
    with torch.no_grad():
        found = model.features(images.contiguous(memory_format=memory_format))
    for number, layer in enumerate(LAYERS, 1):
        assert_golden(goldens, f"eval/{layer}", found[layer])
        assert_golden(goldens, f"eval/pool_specified{number}", pool_map(found[layer], layer, "grid"))
        adaptive = pool_map(found[layer], layer, "grid", windows=False)
        assert_golden(goldens, f"eval/pool_adaptive{number}", adaptive)


def test_neck_and_logits(model, goldens):
    patches = torch.from_numpy(np.random.RandomState(1).randn(2, 9, 3, 64, 64).astype(np.float32))
    neighbors, centers = patches[:, 1:].flatten(0, 1), patches[:, 0]
    index = torch.arange(2).repeat_interleave(8)
    joined = []
    handle = model.neck.register_forward_hook(lambda module, args, out: joined.append(out))
    with torch.no_grad():
        assert_golden(goldens, "eval/patch_feat_neigh", model.features(neighbors)["feature5"])
        repeated = model.features(centers[index])["feature5"]
        assert_golden(goldens, "eval/patch_feat_centre", repeated)
        logits = model(neighbors, centers, index)
    handle.remove()
    assert_golden(goldens, "eval/neck_eval", joined[0].reshape(tuple(goldens["eval/neck_eval/shape"])))
    expected = torch.from_numpy(goldens["eval/logits_eval"])[:, RASTER]
    assert (logits - expected).abs().max() <= 1e-4 * expected.std()
    loss = F.cross_entropy(logits, RASTER.repeat(2))
    assert float(loss) == pytest.approx(float(goldens["eval/loss_eval"]), rel=1e-5)


class Constant:
    """Six steps at upstream's rate: five, and one more for the loss after them."""

    steps = 6

    def rate(self, step: int) -> float:
        return 0.01


def objective(
    model: torch.nn.Module, pairs: PatchPairs, noise: torch.Generator
) -> tuple[torch.Tensor, torch.Tensor, int]:
    logits = model(pairs)
    return pretext_loss(logits, pairs.position), (logits.argmax(1) == pairs.position).sum(), len(pairs)


def trained(precision: str, memory_format: torch.memory_format) -> Iterator[tuple[float, dict[str, torch.Tensor]]]:
    """The steps as the goldens took them, through the training loop; yields each loss and the weights after it."""
    dtype = {"float64": torch.float64, "float32": torch.float32}[precision]
    model = filled(dropout=0.0, bn3=0.1).to(dtype).to(memory_format=memory_format)
    options = OptimizerOptions("sgd", 0.01, momentum=0.9, weight_decay=1e-4, pair_layers_weight_decay=5e-4)
    patches = torch.from_numpy(np.random.RandomState(1).randn(8, 9, 3, 64, 64).astype(np.float32)).to(dtype)
    first = torch.arange(8) * 9
    pairs = PatchPairs(
        patches.flatten(0, 1).contiguous(memory_format=memory_format),
        neighbor=(first[:, None] + torch.arange(1, 9)).flatten(),
        center=first.repeat_interleave(8),
        position=RASTER.repeat(8),
        boxes=torch.zeros(72, 4, dtype=torch.int64),
        image=torch.arange(8).repeat_interleave(9),
    )
    loop = Loop(
        model,
        objective,
        make_optimizer(model, options),
        Constant(),
        Order(8, 8, 8, seed=0),
        lambda first: itertools.repeat(pairs),
        Ranks(),
        device=torch.device("cpu"),
        precision=precision,
    )
    for stepped in loop.steps():
        yield stepped.loss, model.state_dict()


@pytest.mark.slow
def test_five_training_steps_in_double_precision(goldens):
    for step, (loss, state) in enumerate(trained("float64", torch.contiguous_format), 1):
        assert loss == pytest.approx(goldens["train/train_losses"][step - 1], rel=1e-9)
        compared = 0
        for key in state:
            values = goldens.get(f"train/after{step}/{key}/vals")
            if values is not None:
                found = (state[key][RASTER] if key.startswith("head") else state[key]).double().numpy().ravel()
                index = np.random.RandomState(12345).randint(0, found.size, 256)
                np.testing.assert_allclose(found[index], values, rtol=1e-9, atol=1e-9 * np.abs(values).max())
                compared += 1
        assert compared == (12 if step in (1, 5) else 0)


@pytest.mark.slow
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_five_training_steps_in_single_precision(goldens, memory_format):
    losses = [loss for loss, _ in trained("float32", memory_format)]
    np.testing.assert_allclose(losses, goldens["train/train_losses"], rtol=1e-3)
