"""Classifiers on any layer, parameters by stage, and what is frozen stays frozen wherever a backbone goes."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from context_pred import ContextPredictionModel
from context_pred.errors import InvalidInputError, UnknownNameError
from context_pred.finetuning import Classifier, parameter_groups


@pytest.fixture(scope="module")
def model() -> ContextPredictionModel:
    torch.manual_seed(0)
    return ContextPredictionModel("resnet18", neck_channels=8).eval()


def images(count: int = 4, channels: int = 3) -> torch.Tensor:
    return torch.rand(count, channels, 64, 64, generator=torch.Generator().manual_seed(1))


class TestParameterGroups:
    def test_rates_fall_towards_the_stem(self, model):
        classifier = model.classifier(3)
        groups = {group["name"]: group for group in classifier.parameter_groups(0.1, layer_decay=0.5, weight_decay=0.3)}
        assert list(groups) == [
            name + end
            for name in ("feature1", "feature2", "feature3", "feature4", "feature5", "head")
            for end in ("", ": norms and biases")
        ]
        for name, power in {"head": 0, "feature5": 1, "feature4": 2, "feature2": 4, "feature1": 5}.items():
            assert groups[name]["lr"] == pytest.approx(0.1 * 0.5**power)
            assert groups[name]["weight_decay"] == 0.3
            assert groups[f"{name}: norms and biases"]["lr"] == groups[name]["lr"]
            assert groups[f"{name}: norms and biases"]["weight_decay"] == 0
        assert groups["feature1"]["params"] == [classifier.backbone.conv1.weight]
        assert {p.ndim for group in groups.values() if "norms" in group["name"] for p in group["params"]} == {1}

    @pytest.mark.parametrize("make", [lambda m: m, lambda m: m.classifier(2, "feature3"), lambda m: nn.Sequential(m)])
    def test_every_parameter_once(self, model, make):
        module = make(model)
        found = [id(p) for group in parameter_groups(module, 0.1) for p in group["params"]]
        assert sorted(found) == sorted(map(id, module.parameters()))

    def test_what_is_frozen_is_left_out(self, model):
        classifier = model.classifier(3).freeze(2)
        names = [group["name"] for group in classifier.parameter_groups(0.1)]
        assert [name for name in names if "norms" not in name] == ["feature4", "feature5", "head"]
        assert [group["name"] for group in classifier.freeze(4).parameter_groups(1)] == [
            "head",
            "head: norms and biases",
        ]

    def test_the_neck_and_head_of_pretraining_learn_at_the_whole_rate(self, model):
        groups = {group["name"]: group for group in model.parameter_groups(1.0, layer_decay=0.5)}
        assert groups["head"]["lr"] == 1
        assert {id(p) for p in model.neck.parameters()} <= {
            id(p) for name in ("head", "head: norms and biases") for p in groups[name]["params"]
        }

    def test_contextnet(self):
        backbone = ContextPredictionModel("contextnet", pair_layers=False)
        groups = {group["name"]: group["lr"] for group in backbone.parameter_groups(1.0, layer_decay=0.5)}
        assert groups["fc6"] == 0.5
        assert groups["feature1"] == 0.5**6

    @pytest.mark.parametrize("make", [torch.optim.SGD, torch.optim.AdamW, torch.optim.RMSprop])
    def test_optimisers_take_them(self, model, make):
        optimizer = make(model.classifier(2).parameter_groups(1e-3, layer_decay=0.5))
        assert optimizer.param_groups[0]["name"] == "feature1"

    @pytest.mark.parametrize(
        "wrong",
        [
            {"lr": 0},
            {"lr": float("inf")},
            {"lr": "1e-3"},  # what YAML makes of 1e-3
            {"lr": 1, "layer_decay": 0},
            {"lr": 1, "layer_decay": 1.1},
            {"lr": 1, "weight_decay": -1},
            {"lr": 1, "weight_decay": None},
        ],
    )
    def test_ranges(self, model, wrong):
        with pytest.raises(InvalidInputError, match="accepted: lr above 0"):
            model.parameter_groups(**wrong)

    def test_nothing_to_learn(self, model):
        with pytest.raises(InvalidInputError, match="Every parameter is frozen"):
            parameter_groups(copy.deepcopy(model).freeze(4).backbone, 0.1)

    def test_a_strange_module(self):
        with pytest.raises(InvalidInputError, match="Linear has no backbone"):
            parameter_groups(nn.Linear(2, 2), 0.1)
        with pytest.raises(InvalidInputError, match="generator has no backbone"):
            parameter_groups(nn.Linear(2, 2).parameters(), 0.1)


class TestClassifier:
    @pytest.mark.parametrize("layer", ["feature1", "feature3", "feature5"])
    def test_it_ends_with_the_layer(self, model, layer):
        classifier = model.classifier(5, layer).eval()
        deeper = ("layer1", "layer2", "layer3", "layer4")[int(layer[-1]) - 1 :]
        assert not [key for key in classifier.state_dict() if key.startswith(tuple(f"backbone.{d}" for d in deeper))]
        with torch.no_grad():
            expected = F.linear(model.embed(images(), layer), classifier.head.fc.weight, classifier.head.fc.bias)
            torch.testing.assert_close(classifier(images()), expected)
        with pytest.raises(UnknownNameError, match="feature6"):
            classifier.backbone(images(), "feature6")
        if layer != "feature5":
            with pytest.raises(UnknownNameError, match="Accepted: feature1"):
                classifier.backbone(images(), "feature5")

    @pytest.mark.parametrize("size", [8, 224])
    @pytest.mark.parametrize("batch_norm", [False, True])
    def test_the_grid_is_the_linear_protocols(self, model, batch_norm, size):
        classifier = model.classifier(5, "feature2", pool="grid", batch_norm=batch_norm).eval()
        assert classifier.head.fc.in_features == 64 * 6 * 6
        assert (classifier.head.norm is not None) == batch_norm
        x = F.interpolate(images(1), (size * 4, size * 4) if size == 8 else (size, size))
        with torch.no_grad():
            pooled = model.embed(x, "feature2", "grid")
            scale = (1 + 1e-5) ** -0.5 if batch_norm else 1  # of a batch norm that has seen nothing
            expected = F.linear(scale * pooled, classifier.head.fc.weight, classifier.head.fc.bias)
            torch.testing.assert_close(classifier(x), expected, rtol=1e-4, atol=1e-5)

    def test_the_model_is_left_as_it_is(self, model):
        before = {key: value.clone() for key, value in model.state_dict().items()}
        classifier = model.classifier(2)
        classifier.train()(images()).sum().backward()
        torch.optim.SGD(classifier.parameter_groups(1.0)).step()
        assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
        assert not model.training

    @pytest.mark.parametrize("stages", [-1, 1, 2])
    def test_frozen_parts_stand_still_and_the_rest_moves(self, model, stages):
        classifier = model.classifier(2, "feature4").freeze(stages)
        assert classifier.training
        before = {key: value.clone() for key, value in classifier.state_dict().items()}
        F.cross_entropy(classifier.eval().train()(images()), torch.tensor([0, 1, 0, 1])).backward()
        torch.optim.SGD(classifier.parameter_groups(0.1)).step()
        frozen = {-1: (), 1: ("conv1", "bn1", "layer1"), 2: ("conv1", "bn1", "layer1", "layer2")}[stages]
        for key, value in classifier.state_dict().items():
            assert torch.equal(value, before[key]) == key.startswith(tuple(f"backbone.{f}." for f in frozen)), key

    def test_norms_alone_can_be_frozen(self, model):
        classifier = model.classifier(2).freeze(-1, norms=True).train()
        norms = [module for module in classifier.modules() if isinstance(module, nn.BatchNorm2d)]
        assert len(norms) == 20
        assert not any(norm.training or norm.weight.requires_grad for norm in norms)
        assert classifier.backbone.conv1.weight.requires_grad
        assert all(norm.training and norm.weight.requires_grad for norm in norms if classifier.freeze(-1))

    def test_what_the_model_has_frozen_is_frozen(self, model):
        classifier = copy.deepcopy(model).freeze(4).classifier(2, "feature3")
        assert [name for name, p in classifier.named_parameters() if p.requires_grad] == [
            "head.fc.weight",
            "head.fc.bias",
        ]
        assert not classifier.train().backbone.layer2[0].bn1.training

    def test_synchronised_norms_stay_frozen_too(self, model):
        classifier = nn.SyncBatchNorm.convert_sync_batchnorm(model.classifier(2).freeze(1)).train()
        assert not classifier.backbone.bn1.training
        assert classifier.backbone.layer2[0].bn1.training

    def test_pretraining_leaves_no_trace_in_the_norms(self, model):
        trained = copy.deepcopy(model)
        for module in trained.backbone.modules():
            if hasattr(module, "repeats"):
                module.repeats = 8.0
        assert {m.repeats for m in trained.classifier(2).modules() if hasattr(m, "repeats")} == {1.0}

    def test_state_dicts_travel(self, model, tmp_path):
        first = model.classifier(3, "feature2", batch_norm=True).train()
        first(images())
        torch.save(first.state_dict(), tmp_path / "classifier.pt")
        second = ContextPredictionModel("resnet18", pair_layers=False).classifier(3, "feature2", batch_norm=True)
        second.load_state_dict(torch.load(tmp_path / "classifier.pt", weights_only=True))
        with torch.no_grad():
            torch.testing.assert_close(second.eval()(images()), first.eval()(images()), rtol=0, atol=0)

    def test_learns(self, model):
        torch.manual_seed(0)
        x = images(8)
        labels = torch.arange(8) % 2
        x[labels == 1, 0] *= 0.2
        classifier = model.classifier(2, "feature3", batch_norm=True).freeze(1)
        optimizer = torch.optim.AdamW(classifier.parameter_groups(1e-2, layer_decay=0.5))
        for _ in range(8):
            optimizer.zero_grad()
            F.cross_entropy(classifier(x), labels).backward()
            optimizer.step()
        with torch.no_grad():
            assert (classifier(x).argmax(1) == labels).all()

    def test_compiles_whole(self, model):
        classifier = model.classifier(3, "feature2", batch_norm=True).eval()
        compiled = torch.compile(classifier, fullgraph=True, backend="aot_eager")
        with torch.no_grad():
            torch.testing.assert_close(compiled(images()), classifier(images()))

    def test_exports_for_any_batch(self, model):
        classifier = model.classifier(3, "feature2", batch_norm=True).eval()
        batch = torch.export.Dim("batch", min=1, max=64)
        program = torch.export.export(classifier, (images(2),), dynamic_shapes=({0: batch},)).module()
        with torch.no_grad():
            for count in (1, 5):
                torch.testing.assert_close(program(images(count)), classifier(images(count)))

    def test_transform_and_channels(self):
        grey = ContextPredictionModel("resnet18", in_channels=1, pair_layers=False)
        classifier = grey.classifier(2, "feature1")
        assert classifier.transform == grey.transform
        assert classifier(images(channels=1)).shape == (4, 2)

    def test_contextnet(self):
        classifier = ContextPredictionModel("contextnet", pair_layers=False).eval().classifier(2, "feature2").freeze(1)
        assert classifier(images()).shape == (4, 2)
        assert [group["name"] for group in classifier.parameter_groups(1)] == ["head", "head: norms and biases"]

    @pytest.mark.parametrize("classes", [0, -1, 2.0, True, "3", None])
    def test_number_of_classes(self, model, classes):
        with pytest.raises(InvalidInputError, match="accepted: a whole number from 1 up"):
            model.classifier(classes)

    @pytest.mark.parametrize(
        ("options", "text"),
        [
            ({"layer": "layer4"}, "Did you mean 'feature5'"),
            ({"layer": ["feature4", "feature5"]}, "accepted: one of feature1"),
            ({"pool": "none"}, "Unknown pooling 'none'"),
            ({"pool": "max"}, "Accepted: gap, grid"),
        ],
    )
    def test_names(self, model, options, text):
        with pytest.raises(InvalidInputError, match=text):
            model.classifier(2, **options)

    def test_stages_beyond_the_layer(self, model):
        with pytest.raises(InvalidInputError, match=r"freeze\(3\): accepted are -1 \(nothing\), 0 \(the stem\) … 1"):
            model.classifier(2, "feature2").freeze(3)

    @pytest.mark.parametrize(
        ("x", "text"),
        [
            (torch.zeros(3, 8, 8), "Add the batch axis"),
            (torch.zeros(1, 8, 8, 3), "Move the channels first"),
            (torch.zeros(1, 3, 8, 8, dtype=torch.uint8), "must be floating"),
        ],
    )
    def test_images(self, model, x, text):
        with pytest.raises(InvalidInputError, match=text):
            model.classifier(2)(x)

    def test_is_public(self, model):
        assert isinstance(model.classifier(2), Classifier)


class TestBackbonesElsewhere:
    def test_a_frozen_backbone_stays_so_in_a_users_own_module(self, model):
        class Own(nn.Module):
            def __init__(self, backbone):
                super().__init__()
                self.body, self.norm = backbone, nn.BatchNorm2d(512)

        own = Own(copy.deepcopy(model).freeze(2).backbone).eval().train()
        assert own.norm.training
        assert own.body.layer3[0].bn1.training
        assert not own.body.bn1.training
        assert not own.body.layer2[1].bn2.training

    def test_thawed_for_the_protocols_that_train_everything(self, model):
        frozen = copy.deepcopy(model).freeze(2, norms=True)
        thawed = frozen.backbone.thawed().train()
        assert all(parameter.requires_grad for parameter in thawed.parameters())
        assert all(module.training for module in thawed.modules())
        assert not frozen.backbone.conv1.weight.requires_grad

    def test_all_layers_of_one_that_was_cut(self, model):
        assert tuple(model.backbone.upto("feature3").eval()(images())) == ("feature1", "feature2", "feature3")
