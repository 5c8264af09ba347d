"""The first weights: upstream's draws, and what a run takes from another model."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from context_pred.backbones import adapt_stem
from context_pred.card import Card
from context_pred.errors import InvalidInputError, UnknownNameError, WeightsError
from context_pred.model import ContextPredictionModel
from context_pred.pretrain.initial import initialize, start_from
from context_pred.pretrain.recipe import RECIPE_FILE, read_recipe
from context_pred.training.checkpoints import Checkpoints


def small(backbone: str = "resnet18", **options) -> ContextPredictionModel:
    return ContextPredictionModel(backbone, **{"neck_channels": 16, **options})


def saved(folder: Path, model: ContextPredictionModel, **card) -> Path:
    """Save a model whose running statistics and batch norms are no longer fresh."""
    with torch.no_grad():
        for key, value in model.state_dict().items():
            if value.is_floating_point() and value.ndim == 1:
                value.add_(torch.rand(value.shape))
            elif key.endswith("num_batches_tracked"):
                value.fill_(7)
    model.card = model.card.replace(name="given", **card)
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved(tmp_path_factory.mktemp("given") / "model", small())


def std_of(model: ContextPredictionModel, name: str) -> float:
    return model.get_parameter(name).std().item()


@pytest.mark.parametrize(
    ("kind", "fan", "neck", "bias"), [("openmmlab", 64, 0.01, 0.0), ("openselfsup", 3, 0.005, 0.1)]
)
def test_the_draws_of_a_resnet(kind: str, fan: int, neck: float, bias: float) -> None:
    model = small(neck_channels=256)
    initialize(model, kind, seed=0)
    assert std_of(model, "backbone.conv1.weight") == pytest.approx((2 / (fan * 49)) ** 0.5, rel=0.05)
    # 128 → 256 channels, 3×3: fan in and fan out differ by a factor of two.
    channels = 128 if kind == "openselfsup" else 256
    assert std_of(model, "backbone.layer3.0.conv1.weight") == pytest.approx((2 / (channels * 9)) ** 0.5, rel=0.01)
    assert std_of(model, "neck.fc.weight") == pytest.approx(neck, rel=0.01)
    assert std_of(model, "head.fc_cls.weight") == pytest.approx(0.005, rel=0.1)
    assert model.get_parameter("neck.fc.bias").unique().tolist() == pytest.approx([bias])
    assert not model.get_parameter("head.fc_cls.bias").any()
    for name, parameter in model.named_parameters():
        if parameter.ndim == 1 and ("bn" in name or "downsample.1" in name):
            assert torch.equal(parameter, torch.full_like(parameter, float(name.endswith("weight")))), name


def test_the_draws_of_contextnet() -> None:
    model = small("contextnet")
    initialize(model, "caffe", seed=0)
    for name, parameter in model.named_parameters():
        if parameter.ndim == 1:
            assert not parameter.any(), name
        else:
            bound = (3 / parameter[0].numel()) ** 0.5
            assert 0.99 * bound < parameter.abs().max().item() <= bound, name
            assert parameter.std().item() == pytest.approx(bound / 3**0.5, rel=0.05), name


@pytest.mark.parametrize("kind", ["openmmlab", "openselfsup"])
def test_a_seed_decides_every_weight_whatever_was_there(kind: str) -> None:
    """Also the running statistics; torch's own generator is left where it was."""
    one, two, other = small(), small(), small()
    one.train()(torch.randn(4, 3, 64, 64), torch.randn(4, 3, 64, 64))
    before = torch.get_rng_state()
    for model, seed in ((one, 3), (two, 3), (other, 4)):
        initialize(model, kind, seed=seed)
    assert torch.equal(torch.get_rng_state(), before)
    for key, value in one.state_dict().items():
        assert torch.equal(value, two.state_dict()[key]), key
    assert not torch.equal(one.backbone.conv1.weight, other.backbone.conv1.weight)


def test_an_initialisation_of_another_network_is_refused() -> None:
    with pytest.raises(InvalidInputError, match="'caffe' is not one of resnet18"):
        initialize(small(), "caffe")
    with pytest.raises(InvalidInputError, match="'openmmlab' is not one of contextnet"):
        initialize(small("contextnet"), "openmmlab")
    with pytest.raises(UnknownNameError, match="'openmmlab'"):
        initialize(small(), "openmlab")  # type: ignore[arg-type]
    with pytest.raises(InvalidInputError, match="no neck and head"):
        initialize(ContextPredictionModel("resnet18", pair_layers=False), "openmmlab")


def test_everything_is_taken_where_everything_fits(given: Path) -> None:
    model = small()
    found = start_from(model, given)
    assert (found.source, found.taken, found.left_out) == ("given", ("backbone", "neck", "head"), ())
    theirs = ContextPredictionModel.from_pretrained(given)
    assert found.sha256 == theirs.card.sha256 is not None
    assert found.tensors == len(theirs.state_dict())
    for key, value in theirs.state_dict().items():
        assert torch.equal(model.state_dict()[key], value), key
    assert "Started from given: backbone, neck, head" in str(found)
    assert json.loads(json.dumps(found.to_dict()))["channel_order"] == "rgb"


def test_a_run_in_double_precision_takes_them_too(given: Path) -> None:
    model = small().double()
    start_from(model, given)
    assert model.backbone.conv1.weight.dtype == torch.float64
    theirs = ContextPredictionModel.from_pretrained(given)
    assert torch.equal(model.backbone.conv1.weight, theirs.backbone.conv1.weight.double())


def test_pair_layers_of_another_width_are_left_out_with_the_reason(given: Path) -> None:
    model = small(neck_channels=24)
    fresh = {key: value.clone() for key, value in model.state_dict().items()}
    found = start_from(model, given)
    assert found.taken == ("backbone",)
    assert [part for part, _ in found.left_out] == ["neck", "head"]
    assert "neck.fc.weight is (16, 1024), the run's (24, 1024)" in str(found)
    for key, value in model.state_dict().items():
        assert torch.equal(value, fresh[key]) != key.startswith("backbone.") or not value.ndim, key


def test_a_backbone_alone_leaves_fresh_pair_layers(tmp_path: Path) -> None:
    folder = saved(tmp_path / "bare", ContextPredictionModel("resnet18", pair_layers=False))
    found = start_from(small(), folder)
    assert found.taken == ("backbone",)
    assert "Not taken: neck, since given has none." in str(found)


def test_another_architecture_is_refused_and_nothing_copied(given: Path) -> None:
    model = small("resnet34")
    fresh = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(WeightsError, match=r"backbone resnet18, the run resnet34.*--set model\.backbone=resnet18"):
        start_from(model, given)
    assert all(torch.equal(value, fresh[key]) for key, value in model.state_dict().items())


def test_other_input_channels_get_an_adapted_stem(given: Path) -> None:
    model = small(in_channels=1)
    found = start_from(model, given)
    theirs = ContextPredictionModel.from_pretrained(given)
    assert torch.equal(model.backbone.conv1.weight, adapt_stem(theirs.backbone.conv1.weight, 1))
    assert "adapted from 3 input channels to 1" in str(found)
    assert found.taken == ("backbone", "neck", "head")


@pytest.fixture(scope="module")
def bgr(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved(tmp_path_factory.mktemp("bgr") / "model", small(), channel_order="bgr")


def test_the_run_takes_the_models_channel_order(bgr: Path, given: Path) -> None:
    recipe = read_recipe("resnet18_1xb64-coslr-300k")
    model = small()
    found = start_from(model, bgr, recipe.sampler)
    assert found.channel_order == "bgr"
    assert "It expects BGR, and so the run's sampler gives BGR." in str(found)
    swapped = found.applied_to(recipe)
    assert swapped.make_sampler().channel_order == "bgr"
    assert swapped == recipe.override({"sampler.channel_order": "bgr"})
    assert torch.equal(model.backbone.conv1.weight, ContextPredictionModel.from_pretrained(bgr).backbone.conv1.weight)
    back = start_from(model, given, swapped.sampler)
    assert "gives RGB" in str(back)
    assert back.applied_to(swapped) == recipe


@pytest.mark.parametrize("case", ["one channel", "another sampler"])
def test_where_the_sampler_cannot_swap_the_stem_is_turned(bgr: Path, case: str) -> None:
    stem = ContextPredictionModel.from_pretrained(bgr).backbone.conv1.weight
    if case == "one channel":
        model, sampler = small(in_channels=2), None
        expected = adapt_stem(stem.flip(1), 2)
    else:
        model, sampler = small(), {"type": "RandomPairSampler", "preset": "deepcontext"}
        expected = stem.flip(1)
    found = start_from(model, bgr, sampler)
    assert found.channel_order == "rgb"
    assert "turned to RGB" in str(found)
    assert torch.equal(model.backbone.conv1.weight, expected)


def test_another_mean_is_said(given: Path) -> None:
    recipe = read_recipe("resnet18_1xb64-coslr-300k")
    assert start_from(small(), given, recipe.sampler).notes == ()
    other = recipe.override({"sampler.mean": "[0.5, 0.5, 0.5]"})
    assert "mean [0.5, 0.5, 0.5] (there [0.485, 0.456, 0.406])" in str(start_from(small(), given, other.sampler))


def test_the_shipped_model_starts_the_recipe_for_a_cpu() -> None:
    recipe = read_recipe("resnet18_1xb64-coslr-300k")
    model = ContextPredictionModel(recipe.model.backbone, dropout=recipe.model.dropout)
    found = start_from(model, "resnet18_1xb64-coslr-300k", recipe.sampler)
    assert found.taken == ("backbone", "neck", "head")
    assert found.applied_to(recipe) is recipe
    assert isinstance(model.card, Card)
    assert model.card.name != found.source


# A run's folder -------------------------------------------------------------------------------------------------------


@pytest.fixture
def unfinished(tmp_path: Path) -> Path:
    """A run on BGR patches that was killed or diverged after step 20, with checkpoints and no model."""
    recipe = read_recipe("resnet18_1xb64-coslr-300k").override({"model.neck_channels": "16"})
    recipe = recipe.override({"sampler.channel_order": "bgr"})
    run = tmp_path / "run"
    run.mkdir()
    (run / RECIPE_FILE).write_text(recipe.to_toml(), encoding="utf-8")
    model = small()
    for step in (10, 20):
        torch.nn.init.constant_(model.get_parameter("head.fc_cls.bias"), step)
        state = {"recipe": recipe.to_toml(), "files": "", "best": 0.2, "model": model.state_dict()}
        Checkpoints(run / "checkpoints").save(step, state, best=step == 10)
    return run


@pytest.mark.parametrize(
    ("what", "step"), [("", 20), ("checkpoints/best.pt", 10), ("checkpoints/step-00000010.pt", 10)]
)
def test_a_run_that_has_not_ended(unfinished: Path, what: str, step: int) -> None:
    recipe = read_recipe("resnet18_1xb64-coslr-300k")
    model = small()
    found = start_from(model, str(unfinished / what), recipe.sampler)
    assert found.taken == ("backbone", "neck", "head")
    assert model.get_parameter("head.fc_cls.bias").unique().tolist() == [step]
    assert found.applied_to(recipe).make_sampler().channel_order == "bgr"
    said = f"The run in {unfinished} has not ended; this is its checkpoint" in str(found)
    assert said == (what == "")
    assert f"Started from {'step-00000020.pt' if not what else Path(what).name}:" in str(found)


def test_damaged_checkpoints_are_passed_over_and_said(unfinished: Path) -> None:
    folder = unfinished / "checkpoints"
    for name, left in (("step-00000020.pt", "step-00000010.pt"), ("step-00000010.pt", "best.pt")):
        data = bytearray((folder / name).read_bytes())
        data[1_000_000] ^= 1
        (folder / name).write_bytes(data)
        found = start_from(small(), unfinished)
        assert found.source == left
        assert "Passed over: " in str(found)
        assert "step-00000020.pt: damaged file (wrong check sum" in str(found)
    (folder / "best.pt").write_bytes(b"")
    with pytest.raises(WeightsError, match=r"no model, and no checkpoint that can be read\. .*best\.pt: it is empty"):
        start_from(small(), unfinished)


def test_a_run_without_a_checkpoint(unfinished: Path) -> None:
    for path in (unfinished / "checkpoints").iterdir():
        path.unlink()
    with pytest.raises(InvalidInputError, match="neither a model nor a checkpoint yet"):
        start_from(small(), unfinished)


def test_a_finished_run_gives_its_model(unfinished: Path) -> None:
    saved(unfinished / "model", small())
    model = small()
    found = start_from(model, unfinished)
    assert found.source == "given"
    assert f"It is the model of the run in {unfinished}." in str(found)
    theirs = ContextPredictionModel.from_pretrained(unfinished / "model")
    assert torch.equal(model.backbone.conv1.weight, theirs.backbone.conv1.weight)


def test_a_model_folder_with_a_recipe_in_it_is_a_model_folder(given: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(given, tmp_path / "copy")
    (folder / RECIPE_FILE).write_text("")
    assert start_from(small(), folder).notes == ()
