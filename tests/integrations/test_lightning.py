"""The ready modules in Lightning's own trainer, on a few small photographs."""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any

import lightning
import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from context_pred import ContextPredictionModel, GridPatchSampler
from context_pred.errors import InvalidInputError, UnknownNameError
from context_pred.integrations.lightning import FineTuning, Pretraining, fine_tune

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore:.*LeafSpec.*")


def trainer(**options: Any) -> lightning.Trainer:
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "accelerator": "cpu"}
    return lightning.Trainer(**quiet, enable_model_summary=False, **options)


@pytest.fixture
def small() -> ContextPredictionModel:
    """A model for images of 32 px."""
    torch.manual_seed(0)
    model = ContextPredictionModel("resnet18", neck_channels=8).eval()
    model.card = model.card.replace(resize=36, crop=32)
    return model


def test_fine_tunes_a_folder(small, kinds: Path):
    torch.manual_seed(0)
    module = FineTuning(small, images=kinds, layer="feature3", freeze=1, lr=1e-2, batch_size=4)
    assert module.classifier.classes == ("animal", "flower")
    before = copy.deepcopy(module.state_dict())
    run = trainer(max_epochs=2)
    run.fit(module)
    assert run.global_step == 4
    assert math.isfinite(run.callback_metrics["train_loss"])
    still = tuple(f"classifier.backbone.{name}" for name in ("conv1", "bn1", "layer1"))
    for key, value in module.state_dict().items():
        assert torch.equal(value, before[key]) == key.startswith(still), key
    assert all(group["lr"] == pytest.approx(0, abs=1e-9) for group in run.optimizers[0].param_groups)
    assert run.optimizers[0].param_groups[0]["name"] == "feature3"


def test_the_frozen_shipped_model_learns_flowers_from_animals(shipped, kinds: Path):
    """A linear probe by the trainer: on what it was trained on it must be right, from an untrained head's guessing."""
    from torchvision.datasets import ImageFolder

    torch.manual_seed(0)
    classifier = shipped.classifier(2, "feature2", batch_norm=True).freeze(1)
    data = ImageFolder(str(kinds), classifier.transform)
    batch = [torch.stack(one) if torch.is_tensor(one[0]) else torch.tensor(one) for one in zip(*data, strict=True)]
    loader = DataLoader(TensorDataset(*batch), 8)
    module = FineTuning(classifier, lr=0.05)
    run = trainer(max_epochs=12, check_val_every_n_epoch=12)
    run.fit(module, loader, loader)
    assert run.callback_metrics["val_accuracy"] == 1
    probabilities = torch.cat(run.predict(module, loader))
    torch.testing.assert_close(probabilities.sum(1), torch.ones(8))


def test_one_call(small, kinds: Path):
    classifier = small.classifier(2, "feature2").freeze(0)
    before = copy.deepcopy(classifier.state_dict())
    found = fine_tune(classifier, kinds, epochs=1, device="cpu", lr=1e-2)
    assert found is classifier
    assert not found.training
    assert found.classes == ("animal", "flower")
    assert torch.equal(found.backbone.conv1.weight, before["backbone.conv1.weight"])
    assert not torch.equal(found.head.fc.weight, before["head.fc.weight"])
    with pytest.raises(InvalidInputError, match="epochs=0"):
        fine_tune(small, kinds, epochs=0)


def test_grey_images(kinds: Path):
    model = ContextPredictionModel("resnet18", in_channels=1, pair_layers=False)
    model.card = model.card.replace(resize=36, crop=32)
    images, labels = next(iter(FineTuning(model, images=kinds, layer="feature1", batch_size=5).train_dataloader()))
    assert images.shape == (5, 1, 32, 32)
    assert labels.shape == (5,)


def test_pretrains():
    torch.manual_seed(0)
    model = ContextPredictionModel("resnet18", neck_channels=8, dropout=0.0).eval()
    module = Pretraining(model, sampler=GridPatchSampler(48, 16), lr=1e-3)
    before = copy.deepcopy(model.state_dict())
    run = trainer(max_steps=2)
    images = torch.randint(0, 256, (4, 3, 48, 48), dtype=torch.uint8)
    run.fit(module, DataLoader(TensorDataset(images, torch.zeros(4)), 2))
    assert math.isfinite(run.callback_metrics["train_loss"])
    assert int(model.backbone.bn1.num_batches_tracked) == 4  # two passes a step, in train mode
    assert not torch.equal(model.state_dict()["head.fc_cls.weight"], before["head.fc_cls.weight"])


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({}, "How many classes"),
        ({"images": "nowhere"}, "'nowhere' is no folder with a folder of images a class"),
        ({"num_classes": 0}, "num_classes=0; accepted: a whole number from 1 up"),
        ({"num_classes": 2, "freeze": 7}, "accepted are -1"),
        ({"num_classes": 2, "batch_size": 0}, "batch_size=0"),
        ({"num_classes": 2, "workers": -1}, "workers=-1"),
    ],
)
def test_bad_options(small, options, text):
    with pytest.raises(InvalidInputError, match=text):
        FineTuning(small, **options)


def test_a_misspelt_option_names_the_nearest(small, kinds: Path):
    with pytest.raises(UnknownNameError, match=r"option 'layerdecay'\. Did you mean 'layer_decay'"):
        fine_tune(small, kinds, layerdecay=0.5)


def test_other_numbers_of_classes(small, kinds: Path):
    with pytest.raises(InvalidInputError, match="has 3 classes"):
        FineTuning(small, 3, images=kinds)
    with pytest.raises(InvalidInputError, match="has 3 classes"):
        FineTuning(small.classifier(3), 2)


def test_another_layer_than_the_classifiers(small):
    assert FineTuning(small.classifier(3, "feature2"), layer="feature2").classifier.layer == "feature2"
    with pytest.raises(InvalidInputError, match="'feature3', and the classifier that is there already has feature2"):
        FineTuning(small.classifier(3, "feature2"), layer="feature3")


def test_four_channels_have_no_files(kinds: Path):
    with pytest.raises(InvalidInputError, match="4 input channels"):
        FineTuning(ContextPredictionModel("resnet18", in_channels=4, pair_layers=False), images=kinds)


def test_a_checkpoint_is_loaded_with_the_arguments(small, tmp_path: Path):
    module, run = FineTuning(small, 2, layer="feature1"), trainer(max_steps=1)
    run.fit(module, DataLoader(TensorDataset(torch.rand(2, 3, 32, 32), torch.tensor([0, 1])), 2))
    run.save_checkpoint(tmp_path / "one.ckpt")
    again = FineTuning.load_from_checkpoint(tmp_path / "one.ckpt", model=small, num_classes=2, layer="feature1")
    assert all(torch.equal(again.state_dict()[key], value) for key, value in module.state_dict().items())


def test_nothing_to_train_on(small):
    with pytest.raises(InvalidInputError, match="Nothing to train on"):
        trainer(max_epochs=1).fit(FineTuning(small, 2))


def test_no_pair_layers(bgr):
    with pytest.raises(InvalidInputError, match="no neck and head"):
        Pretraining(bgr)
