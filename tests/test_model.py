"""The model: pairs, batch-norm passes, freezing, stems, saving; and what it refuses."""

from __future__ import annotations

import copy
import json
import warnings

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn import functional as F

from context_pred.backbones import RepeatedBatchNorm2d
from context_pred.card import Card
from context_pred.errors import ContextPredError, DigestError, InvalidInputError, NotCachedError, WeightsError
from context_pred.model import ContextPredictionModel
from context_pred.patches import GridPatchSampler, PatchPairs

IMAGES = 2


@pytest.fixture
def model() -> ContextPredictionModel:
    torch.manual_seed(0)
    return ContextPredictionModel("resnet18", neck_channels=16, dropout=0.0).eval()


def sample(pairs: str = "center", seed: int = 0, dtype: torch.dtype = torch.float32) -> PatchPairs:
    generator = torch.Generator().manual_seed(seed)
    images = torch.rand(IMAGES, 3, 96, 96, generator=generator, dtype=dtype)
    found = GridPatchSampler(96, 32, pairs=pairs, grayscale=0)(images, generator)
    return PatchPairs(**{**vars(found), "patches": found.patches.to(dtype)})


class TestPairs:
    def test_one_call_three_ways(self, model):
        pairs = sample()
        neighbors, centers = pairs.patches[pairs.neighbor], pairs.patches[pairs.center]
        unique = pairs.center.unique()
        with torch.no_grad():
            expected = model(neighbors, centers)
            assert expected.shape == (8 * IMAGES, 8)
            torch.testing.assert_close(model(pairs), expected, rtol=1e-4, atol=1e-6)
            index = torch.searchsorted(unique, pairs.center)
            torch.testing.assert_close(model(neighbors, pairs.patches[unique], index), expected, rtol=1e-4, atol=1e-6)

    def test_the_split_weight_is_the_joined_one(self, model):
        """Upstream's neck (mmselfsup 1.x): concatenate the maps on channels, pool, fc, batch norm, ReLU."""
        pairs = sample()
        n, c = pairs.patches[pairs.neighbor], pairs.patches[pairs.center]
        with torch.no_grad():
            maps = torch.cat([model.features(x, "feature5")["feature5"] for x in (n, c)], 1)
            joined = F.relu(model.neck.bn(model.neck.fc(maps.mean((-2, -1)))))
            torch.testing.assert_close(model(n, c), model.head.fc_cls(joined), rtol=1e-4, atol=1e-6)

    def test_contextnet_joins_centre_first(self):
        """deepcontext: concat = (first, second) and the label is where the second lies."""
        torch.manual_seed(0)
        model = ContextPredictionModel("contextnet", neck_channels=8).eval()
        n, c = torch.randn(2, 2, 3, 96, 96).unbind(0)
        with torch.no_grad():
            vectors = [model.features(x, "fc6")["fc6"].flatten(1) for x in (c, n)]
            x = F.relu(model.neck.bn7(model.neck.fc7(torch.cat(vectors, 1))))
            expected = model.head.fc_cls(F.relu(model.neck.fc8(x)))
            torch.testing.assert_close(model(n, c), expected, rtol=1e-4, atol=1e-6)

    @pytest.mark.parametrize("call", ["pairs", "index"])
    def test_centre_once_trains_like_centre_eight_times(self, model, call):
        """Loss, gradients and every running statistic are those of upstream's sixteen passes (float64)."""
        model = model.double().train()
        upstream = copy.deepcopy(model)
        pairs = sample(dtype=torch.float64)
        for _ in range(2):
            if call == "pairs":
                loss = F.cross_entropy(model(pairs), pairs.position)
            else:
                first = pairs.center.unique()
                index = torch.searchsorted(first, pairs.center)
                logits = model(pairs.patches[pairs.neighbor], pairs.patches[first], index)
                loss = F.cross_entropy(logits, pairs.position)
            loss.backward()
            logits = upstream(pairs.patches[pairs.neighbor], pairs.patches[pairs.center])
            expected = F.cross_entropy(logits, pairs.position)
            expected.backward()
            torch.testing.assert_close(loss, expected, rtol=1e-11, atol=0)
        for (name, ours), theirs in zip(model.named_parameters(), upstream.parameters(), strict=True):
            bound = 1e-8 * float(theirs.grad.abs().max()) + 1e-15
            torch.testing.assert_close(ours.grad, theirs.grad, rtol=0, atol=bound, msg=name)
        for (name, ours), theirs in zip(model.named_buffers(), upstream.buffers(), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-10, msg=name)

    def test_repeating_changes_only_the_unbiased_factor(self):
        torch.manual_seed(0)
        once, repeated = RepeatedBatchNorm2d(3).double(), nn.BatchNorm2d(3).double()
        x = torch.randn(4, 3, 2, 2, dtype=torch.float64)
        once.repeats = 5
        torch.testing.assert_close(once(x).repeat(5, 1, 1, 1), repeated(x.repeat(5, 1, 1, 1)))
        torch.testing.assert_close(once.running_var, repeated.running_var, rtol=1e-14, atol=0)
        assert int(once.num_batches_tracked) == 1

    @pytest.mark.parametrize(("kind", "passes"), [("center", [8 * IMAGES, IMAGES]), ("adjacent", [9 * IMAGES])])
    def test_passes_follow_the_pairs(self, model, kind, passes):
        sizes = []
        model.backbone.conv1.register_forward_hook(lambda module, args, out: sizes.append(len(out)))
        model.train()(sample(kind))
        assert sizes == passes

    def test_a_joint_pass_counts_each_patch_once(self, model):
        """After a grid pass (repeats = 8) a joint pass must not inherit its correction."""
        model.train()(sample("center"))
        expected = copy.deepcopy(model)
        pairs = sample("adjacent")
        model(pairs)
        for module in expected.backbone.modules():
            if isinstance(module, RepeatedBatchNorm2d):
                module.repeats = 1.0
        expected.backbone(pairs.patches)
        for ours, theirs in zip(model.backbone.buffers(), expected.backbone.buffers(), strict=True):
            torch.testing.assert_close(ours, theirs)

    def test_learns_a_task_that_can_be_learned(self, model):
        """Ramp images show each patch where it lies, so a few steps must beat chance by far."""
        torch.manual_seed(0)
        ramp = torch.stack(torch.meshgrid(torch.linspace(0, 1, 96), torch.linspace(0, 1, 96), indexing="ij"))
        images = torch.cat([ramp, torch.zeros(1, 96, 96)])[None].expand(4, -1, -1, -1)
        sampler = GridPatchSampler(96, 24, grayscale=0)
        model.train()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        for _ in range(12):
            pairs = sampler(images)
            loss = F.cross_entropy(model(pairs), pairs.position)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        pairs = sampler(images)
        assert (model(pairs).argmax(1) == pairs.position).float().mean() > 0.6

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (lambda n, c: (n, c[:2]), "center_index"),
            (lambda n, c: (n,), "needs the centres"),
            (lambda n, c: (n, c[:2], torch.zeros(3, dtype=torch.int64)), r"center_index is \(3,\)"),
            (lambda n, c: (sample(), c), "nothing beside"),
            (lambda n, c: (n[0], c), "batch axis"),
            (lambda n, c: (n.permute(0, 2, 3, 1), c), "channels first"),
            (lambda n, c: ((n * 255).byte(), c), "uint8"),
            (lambda n, c: (n.double(), c), "float64"),
            (lambda n, c: ([n], c), "not list"),
        ],
    )
    def test_wrong_calls_say_what_is_accepted(self, model, arguments, message):
        n, c = torch.rand(2, 8, 3, 32, 32).unbind(0)
        with pytest.raises(InvalidInputError, match=message):
            model(*arguments(n, c))

    def test_a_backbone_alone_compares_nothing(self):
        model = ContextPredictionModel("resnet18", pair_layers=False)
        assert model.neck is None
        assert model.head is None
        assert "neck=None" in repr(model)
        with pytest.raises(InvalidInputError, match="backbone alone"):
            model(sample())


class TestFeatures:
    def test_embed_pools(self, model):
        images = torch.randn(2, 3, 224, 224)
        with torch.no_grad():
            maps = model.features(images, "feature5")["feature5"]
            torch.testing.assert_close(model.embed(images), maps.mean((2, 3)))
            assert model.embed(images, "feature5", "grid").shape == (2, 512 * 4)
            assert model.embed(images, "feature1", "grid").shape == (2, 64 * 144)
            torch.testing.assert_close(model.embed(images, pool="none"), maps.flatten(1))

    def test_unknown_pool(self, model):
        with pytest.raises(InvalidInputError, match="Accepted: gap, grid, none"):
            model.embed(torch.randn(1, 3, 32, 32), pool="mean")

    def test_contextnet_embeds_fc6(self):
        model = ContextPredictionModel("contextnet", pair_layers=False).eval()
        with torch.no_grad():
            assert model.embed(torch.zeros(1, 3, 96, 96), layer="fc6").shape == (1, 4096)

    def test_features_run_under_autocast(self, model):
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            assert model.embed(torch.randn(1, 3, 64, 64)).dtype in (torch.bfloat16, torch.float32)

    def test_the_sampler_fits_other_channels(self):
        model = ContextPredictionModel("resnet18", in_channels=1, neck_channels=8).eval()
        pairs = model.patch_sampler(torch.rand(1, 1, 255, 255))
        assert model.patch_sampler.mean == pytest.approx(((0.485 + 0.456 + 0.406) / 3,))
        with torch.no_grad():
            assert model(pairs).shape == (8, 8)
        assert ContextPredictionModel("resnet18", in_channels=4).patch_sampler.mean == (0.485, 0.456, 0.406, 0.485)


class TestFreeze:
    @pytest.mark.parametrize("stages", [-1, 0, 1, 4])
    def test_frozen_parts_stand_still_and_the_rest_moves(self, model, stages):
        model.freeze(stages).train()
        before = {k: v.clone() for k, v in model.state_dict().items()}
        optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
        pairs = sample()
        F.cross_entropy(model(pairs), pairs.position).backward()
        optimizer.step()
        frozen = ("conv1", "bn1", "layer1", "layer2", "layer3", "layer4")[: {-1: 0, 0: 2}.get(stages, stages + 2)]
        for key, value in model.state_dict().items():
            still = key.startswith(tuple(f"backbone.{name}." for name in frozen))
            if key.endswith("neck.fc.bias"):
                continue  # a batch norm follows: its gradient is zero in mathematics
            assert torch.equal(value, before[key]) == still, key

    def test_thawing(self, model):
        model.freeze(4).freeze(0).train()
        assert model.backbone.layer1.training
        assert not model.backbone.bn1.training
        model.freeze(-1)
        assert all(p.requires_grad for p in model.parameters())
        assert model.backbone.bn1.training

    @pytest.mark.parametrize("stages", [5, -2, 1.0, True, "layer1"])
    def test_no_such_stage(self, model, stages):
        with pytest.raises(InvalidInputError, match="accepted"):
            model.freeze(stages)


class TestLoading:
    def test_every_wrong_key_is_named_and_nothing_is_loaded(self, model):
        state = {k: v + 1 for k, v in model.state_dict().items()}
        before = model.state_dict()["backbone.conv1.weight"].clone()
        del state["neck.fc.bias"]
        state["head.fc.weight"] = torch.zeros(1)
        state["backbone.conv1.weight"] = torch.zeros(64, 1, 7, 7)
        with pytest.raises(WeightsError) as caught:
            model.load_weights(state)
        for piece in (
            "1 missing: neck.fc.bias",
            "1 extra: head.fc.weight",
            "conv1.weight is (64, 1, 7, 7), not (64, 3",
        ):
            assert piece in str(caught.value)
        assert torch.equal(model.state_dict()["backbone.conv1.weight"], before)

    def test_the_callers_dict_is_left_alone_and_half_becomes_float(self, model):
        state = {k: v.half() if v.is_floating_point() else v for k, v in model.state_dict().items()}
        keys = list(state)
        model.load_weights(state)
        assert list(state) == keys
        assert {p.dtype for p in model.parameters()} == {torch.float32}
        assert state["backbone.conv1.weight"].dtype == torch.float16

    def test_from_card_is_in_eval_mode_and_off_the_meta_device(self, model):
        made = ContextPredictionModel.from_card(model.card, model.state_dict())
        assert not made.training
        assert {t.device.type for t in made.state_dict().values()} == {"cpu"}
        pairs = sample()
        with torch.no_grad():
            torch.testing.assert_close(made(pairs), model(pairs), rtol=0, atol=0)

    def test_another_number_of_channels(self, model):
        made = ContextPredictionModel.from_card(model.card, model.state_dict(), in_channels=1)
        grey = torch.rand(1, 1, 64, 64)
        with torch.no_grad():
            torch.testing.assert_close(made.embed(grey), model.embed(grey.expand(-1, 3, -1, -1)), rtol=1e-4, atol=1e-5)
        assert made.card.in_channels == 1
        assert len(made.transform(torch.rand(3, 64, 64))) == 1


class TestSaving:
    @pytest.fixture
    def special(self, model) -> ContextPredictionModel:
        """A model whose card differs from every default."""
        model.card = model.card.replace(
            name="special.20261123",
            channel_order="bgr",
            mean=(0.1, 0.2, 0.3),
            std=(0.4, 0.5, 0.6),
            resize=100,
            crop=96,
            patch_sampler=GridPatchSampler(96, 32, preset="openmmlab-1.x", pairs="adjacent").to_config(),
            notes=("kept",),
        )
        return model

    def test_round_trip(self, special, tmp_path):
        special.save_pretrained(tmp_path)
        again = ContextPredictionModel.from_pretrained(tmp_path)
        assert sorted(p.name for p in tmp_path.iterdir()) == [
            "README.md",
            "card.json",
            "config.json",
            "model.safetensors",
        ]
        pairs = sample()
        with torch.no_grad():
            torch.testing.assert_close(again(pairs), special(pairs), rtol=0, atol=0)
        assert repr(again.transform) == repr(special.transform)
        assert again.patch_sampler.to_config() == special.patch_sampler.to_config()
        assert again.card.notes == ("kept",)
        assert again.card.channel_order == "bgr"
        assert not again.training
        assert again.card.sha256
        assert again.card.file_size == (tmp_path / "model.safetensors").stat().st_size

    def test_the_readme_says_what_the_card_says(self, special, tmp_path):
        special.card = special.card.replace(description="Of nothing in particular.", license="MIT")
        special.save_pretrained(tmp_path)
        text = (tmp_path / "README.md").read_text()
        for piece in ("license: mit", "library_name: context-pred", "Of nothing in particular.", "BGR", "0.1, 0.2"):
            assert piece in text
        assert "More Information Needed" not in text

    def test_saving_twice_gives_the_same_bytes(self, special, tmp_path):
        for name in ("a", "b"):
            special.save_pretrained(tmp_path / name)
        for file in ("model.safetensors", "card.json", "config.json"):
            assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()

    def test_prints_nothing(self, special, tmp_path, capsys):
        special.save_pretrained(tmp_path)
        ContextPredictionModel.from_pretrained(tmp_path)
        assert capsys.readouterr().out == ""

    def test_a_missing_weight_is_an_error_not_a_random_number(self, special, tmp_path):
        """huggingface-hub's mixin loads such a file in silence unless told not to."""
        special.save_pretrained(tmp_path)
        file = tmp_path / "model.safetensors"
        state = load_file(file)
        del state["head.fc_cls.bias"]
        save_file(state, file)
        card = json.loads((tmp_path / "card.json").read_text())
        with pytest.raises(DigestError, match="SHA-256"):
            ContextPredictionModel.from_pretrained(tmp_path)
        (tmp_path / "card.json").write_text(json.dumps({**card, "sha256": None}))
        with pytest.raises(WeightsError, match=r"missing: head\.fc_cls\.bias"):
            ContextPredictionModel.from_pretrained(tmp_path)

    @pytest.mark.parametrize(
        ("damage", "error"),
        [
            (lambda d: (d / "card.json").unlink(), NotCachedError),
            (lambda d: (d / "card.json").write_text("{}"), WeightsError),
            (lambda d: (d / "card.json").write_text("not json"), WeightsError),
            (lambda d: (d / "model.safetensors").unlink(), NotCachedError),
            (lambda d: (d / "model.safetensors").write_text("hello"), DigestError),
        ],
    )
    def test_damaged_folders(self, special, tmp_path, damage, error):
        special.save_pretrained(tmp_path)
        damage(tmp_path)
        with pytest.raises(error):
            ContextPredictionModel.from_pretrained(tmp_path)

    def test_text_called_safetensors(self, special, tmp_path):
        special.save_pretrained(tmp_path)
        (tmp_path / "model.safetensors").write_text("hello, world, this is no model")
        Card.read(tmp_path / "card.json").replace(sha256=None).write(tmp_path / "card.json")
        with pytest.raises(WeightsError, match="not a safetensors file"):
            ContextPredictionModel.from_pretrained(tmp_path)

    def test_dropout_and_in_channels_survive_and_strange_arguments_do_not(self, tmp_path):
        ContextPredictionModel("resnet18", neck_channels=8, dropout=0.25).save_pretrained(tmp_path)
        assert ContextPredictionModel.from_pretrained(tmp_path).neck.drop.p == 0.25
        assert ContextPredictionModel.from_pretrained(tmp_path, in_channels=1).backbone.in_channels == 1
        with pytest.raises(ContextPredError, match="chanels"):
            ContextPredictionModel.from_pretrained(tmp_path, chanels=1)

    def test_local_folders_need_no_revision(self, special, tmp_path):
        special.save_pretrained(tmp_path)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            ContextPredictionModel.from_pretrained(tmp_path)


def test_repr_tells_the_input(model):
    text = repr(model)
    assert all(piece in text for piece in ("resnet18", "neck and head", "mean (0.485", "std (0.229", "rgb"))
