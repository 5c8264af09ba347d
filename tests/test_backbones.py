"""One contract for every backbone: what it gives, what it refuses, and that compilers take it."""

from __future__ import annotations

import functools
import shutil

import pytest
import torch
import torchvision
from torch import nn
from torchvision.models.feature_extraction import create_feature_extractor

from context_pred.backbones import BACKBONES, LAYERS, adapt_stem, build_backbone
from context_pred.errors import InvalidInputError, UnknownNameError
from context_pred.model import ContextPredictionModel


@functools.cache
def made(name: str) -> nn.Module:
    torch.manual_seed(0)
    return build_backbone(name).eval()


class BackboneContract:
    """Inherited by one class a family; ``name`` is a key of BACKBONES, ``size`` the side of a small input."""

    name: str
    size: int

    @pytest.fixture
    def backbone(self) -> nn.Module:
        return made(self.name)

    def images(self, *, channels: int = 3) -> torch.Tensor:
        return torch.randn(2, channels, self.size, self.size, generator=torch.Generator().manual_seed(1))

    def test_channels_and_strides_are_those_announced(self, backbone):
        with torch.no_grad():
            found = backbone(self.images())
        assert tuple(found) == LAYERS
        for layer, maps in found.items():
            info = backbone.feature_info[layer]
            side = -(-self.size // info.stride)
            assert maps.shape == (2, info.channels, side, side), layer

    def test_announced_module_gives_the_layer(self, backbone):
        seen = {}
        handles = [
            backbone.get_submodule(info.module).register_forward_hook(
                lambda module, args, out, layer=layer: seen.__setitem__(layer, out.relu())
            )
            for layer, info in backbone.feature_info.items()
            if info.module != "relu"  # shared by all blocks: its last call is not the stem's
        ]
        with torch.no_grad():
            found = backbone(self.images(), tuple(backbone.feature_info))
        for handle in handles:
            handle.remove()
        for layer, out in seen.items():
            torch.testing.assert_close(out, found[layer])

    @pytest.mark.parametrize("last", LAYERS)
    def test_nothing_deeper_than_the_last_layer_runs(self, backbone, last):
        deeper = [n for stage in backbone.stages[LAYERS.index(last) + 1 :] for n in stage]
        ran = []
        handles = [
            backbone.get_submodule(name).register_forward_hook(lambda *_, name=name: ran.append(name))
            for name in deeper
        ]
        with torch.no_grad():
            found = backbone(self.images(), last)
        for handle in handles:
            handle.remove()
        assert ran == []
        assert tuple(found) == (last,)

    def test_layers_come_in_the_backbones_order_and_equal_those_of_a_full_run(self, backbone):
        with torch.no_grad():
            some, full = backbone(self.images(), ["feature4", "feature2"]), backbone(self.images())
        assert tuple(some) == ("feature2", "feature4")
        for layer in some:
            torch.testing.assert_close(some[layer], full[layer], rtol=0, atol=0)

    @pytest.mark.parametrize("wrong", ["feature6", "feat4", "layer3", ""])
    def test_unknown_layer_names_the_nearest(self, backbone, wrong):
        with pytest.raises(UnknownNameError, match="Accepted: feature1") as caught:
            backbone(self.images(), [wrong])
        if wrong in ("feat4", "layer3"):
            assert "'feature4'" in str(caught.value).split("Accepted")[0]

    def test_no_layer_at_all_is_an_error(self, backbone):
        with pytest.raises(InvalidInputError, match="No layer"):
            backbone(self.images(), [])

    def test_gradients_reach_every_parameter(self):
        backbone = build_backbone(self.name)
        backbone(self.images(), backbone.layers)[backbone.pair_layer].square().mean().backward()
        assert [n for n, p in backbone.named_parameters() if p.grad is None or not p.grad.isfinite().all()] == []

    @pytest.mark.parametrize("channels", [1, 4])
    def test_other_input_channels(self, channels):
        backbone = build_backbone(self.name, channels).eval()
        with torch.no_grad():
            assert backbone(self.images(channels=channels), "feature1")["feature1"].shape[0] == 2

    @pytest.mark.slow
    def test_compiles_whole(self, backbone):
        compiled = torch.compile(backbone, fullgraph=True, backend="aot_eager")
        with torch.no_grad():
            for layers in (None, ("feature2",)):
                found, expected = compiled(self.images(), layers), backbone(self.images(), layers)
                assert tuple(found) == tuple(expected)
                for layer in expected:
                    torch.testing.assert_close(found[layer], expected[layer])

    @pytest.mark.slow
    def test_exports(self, backbone):
        program = torch.export.export(backbone, (self.images(),))
        with torch.no_grad():
            torch.testing.assert_close(program.module()(self.images()), backbone(self.images()))

    def test_channels_last_gives_the_same_numbers(self, backbone):
        with torch.no_grad():
            expected = backbone(self.images())
            found = backbone(self.images().contiguous(memory_format=torch.channels_last))
        for layer, maps in expected.items():  # random weights: the last maps' standard deviation is 9
            torch.testing.assert_close(found[layer], maps, rtol=0, atol=1e-4 * float(maps.std()))

    @pytest.mark.slow
    def test_a_model_of_it_compiles_and_exports_for_pairs(self):
        torch.manual_seed(0)
        model = ContextPredictionModel(self.name, neck_channels=16).eval()
        patches = (self.images(), self.images()[:1], torch.zeros(2, dtype=torch.int64))
        with torch.no_grad():
            expected = model(*patches)
            torch.testing.assert_close(
                torch.compile(model, fullgraph=True, backend="aot_eager")(*patches), expected, rtol=1e-4, atol=1e-5
            )
            exported = torch.export.export(model, patches).module()
            torch.testing.assert_close(exported(*patches), expected, rtol=1e-4, atol=1e-5)


class TestResNet18(BackboneContract):
    name, size = "resnet18", 64

    def test_features_of_a_model_compile_whole(self):
        """The quick one of the compiler tests; the slow ones do every backbone, pairs and export."""
        model = ContextPredictionModel(self.name).eval()
        compiled = torch.compile(lambda x: model.features(x, ["feature2"]), fullgraph=True, backend="aot_eager")
        with torch.no_grad():
            torch.testing.assert_close(compiled(self.images()), model.features(self.images(), ["feature2"]))

    @pytest.mark.slow
    @pytest.mark.inductor
    def test_inductor(self, backbone):
        if shutil.which("g++") is None and shutil.which("clang++") is None:
            pytest.skip("no C++ compiler here, and torch.compile's default backend needs one")
        with torch.no_grad():
            found = torch.compile(backbone, fullgraph=True)(self.images())
            for layer, expected in backbone(self.images()).items():
                torch.testing.assert_close(found[layer], expected, rtol=1e-3, atol=1e-3)


class TestResNet50(BackboneContract):
    name, size = "resnet50", 64


class TestContextNet(BackboneContract):
    name, size = "contextnet", 96

    def test_sizes_of_the_paper(self, backbone):
        """pool5 is 3×3 at 96 px and 7×7 at 227 px, so fc6 gives 1×1 and 5×5."""
        for side, pooled in ((96, 3), (227, 7)):
            with torch.no_grad():
                found = backbone(torch.zeros(1, 3, side, side), ("feature5", "fc6"))
            assert backbone.pool(found["feature5"]).shape[-1] == pooled
            assert found["fc6"].shape[-1] == pooled - 2

    def test_too_small_a_patch_for_fc6_says_so(self, backbone):
        with pytest.raises(InvalidInputError, match="93 px"):
            backbone(torch.zeros(1, 3, 92, 92), "fc6")
        with torch.no_grad():
            assert backbone(torch.zeros(1, 3, 93, 93), "fc6")["fc6"].shape == (1, 4096, 1, 1)


@pytest.mark.parametrize("name", ["resnet18", "resnet34", "resnet50", "resnet101", "resnet152"])
def test_resnets_keep_torchvisions_keys_and_shapes(name):
    with torch.device("meta"):
        ours = build_backbone(name).state_dict()
        theirs = getattr(torchvision.models, name)(weights=None).state_dict()
    assert {k: v.shape for k, v in ours.items()} == {k: v.shape for k, v in theirs.items() if not k.startswith("fc.")}


def test_resnet_features_are_torchvisions():
    torch.manual_seed(0)
    theirs = torchvision.models.resnet18(weights=None).eval()
    ours = build_backbone("resnet18").eval()
    missing, unexpected = ours.load_state_dict(theirs.state_dict(), strict=False)
    assert missing == []
    assert sorted(unexpected) == ["fc.bias", "fc.weight"]
    images = torch.randn(1, 3, 64, 64)
    nodes = {"relu": "feature1", "layer1": "feature2", "layer4": "feature5"}
    reference = create_feature_extractor(theirs, nodes)
    with torch.no_grad():
        found = ours(images, tuple(nodes.values()))
        torch.testing.assert_close(found, reference(images), rtol=0, atol=0)


@pytest.mark.parametrize(("name", "count"), [("contextnet", 63_561_096), ("resnet50", 40_330_312)])
def test_parameter_counts_of_the_published_networks(name, count):
    with torch.device("meta"):
        model = ContextPredictionModel(name)
    assert sum(p.numel() for p in model.parameters()) == count


def test_the_figure_of_the_paper_has_a_wider_conv2():
    with torch.device("meta"):
        assert build_backbone("contextnet-paper").feature_info["feature2"].channels == 384


@pytest.mark.parametrize("name", ["resnet-50", "resnet20", "", "vgg16"])
def test_unknown_backbone_lists_all(name):
    with pytest.raises(UnknownNameError) as caught:
        build_backbone(name)
    assert all(known in str(caught.value) for known in BACKBONES)


@pytest.mark.parametrize("channels", [0, -1, 2.0, True])
def test_impossible_input_channels(channels):
    with pytest.raises(InvalidInputError, match="in_channels"):
        build_backbone("resnet18", channels)


class TestAdaptStem:
    def test_a_grey_image_gives_what_its_three_equal_channels_gave(self):
        weight, grey = torch.randn(8, 3, 7, 7), torch.randn(1, 1, 32, 32)
        torch.testing.assert_close(
            torch.conv2d(grey, adapt_stem(weight, 1)), torch.conv2d(grey.expand(1, 3, -1, -1), weight)
        )

    def test_more_channels_repeat_cyclically_and_keep_the_scale(self):
        weight = torch.randn(8, 3, 7, 7)
        adapted = adapt_stem(weight, 5)
        torch.testing.assert_close(adapted, weight[:, [0, 1, 2, 0, 1]] * 3 / 5)
        assert adapt_stem(weight, 3) is weight
