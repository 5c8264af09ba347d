"""torchvision's detectors and the segmenter: a step of training, frozen batch norms, the card's normalisation."""

from __future__ import annotations

import copy
from itertools import pairwise

import pytest
import torch
from torch import nn
from torchvision.models.detection import FasterRCNN
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor

from context_pred import ContextPredictionModel
from context_pred.errors import InvalidInputError, UnknownNameError
from context_pred.finetuning import parameter_groups
from context_pred.integrations.torchvision import c4_detector, faster_rcnn, fcn, mask_rcnn, retinanet, with_fpn

SIZE = {"min_size": 64, "max_size": 64}
FEW = {
    "rpn_pre_nms_top_n_train": 20, "rpn_post_nms_top_n_train": 20, "rpn_pre_nms_top_n_test": 10,
    "rpn_post_nms_top_n_test": 10, "box_batch_size_per_image": 8,
}  # fmt: skip
MAKERS = {
    "faster_rcnn": lambda model: faster_rcnn(model, 3, **SIZE, **FEW),
    "mask_rcnn": lambda model: mask_rcnn(model, 3, **SIZE, **FEW),
    "retinanet": lambda model: retinanet(model, 3, **SIZE, topk_candidates=10),
    "c4_detector": lambda model: c4_detector(model, 3, **SIZE, **FEW),
}


def batch() -> tuple[list[torch.Tensor], list[dict[str, torch.Tensor]]]:
    torch.manual_seed(1)
    images = [torch.rand(3, 64, 64), torch.rand(3, 48, 60)]
    boxes = torch.tensor([[4.0, 4, 40, 40], [10, 12, 30, 44]])
    targets = [
        {"boxes": boxes, "labels": torch.tensor([1, 2]), "masks": torch.ones(2, *image.shape[1:], dtype=torch.uint8)}
        for image in images
    ]
    return images, targets


@pytest.fixture(scope="module", params=MAKERS)
def detector(request: pytest.FixtureRequest, bgr: ContextPredictionModel) -> nn.Module:
    """A detector on a model whose stem and first stage are frozen, after one step of training."""
    torch.manual_seed(0)
    detector = MAKERS[request.param](copy.deepcopy(bgr).freeze(1))
    assert detector.training
    before = {key: value.clone() for key, value in detector.state_dict().items()}
    images, targets = batch()
    detector.train()
    losses = detector(images, targets)
    loss = sum(losses.values())
    optimizer = torch.optim.SGD(parameter_groups(detector, 1e-3))
    loss.backward()
    optimizer.step()
    detector.before, detector.loss = before, loss.detach()
    return detector


class TestDetectors:
    def test_a_step_moves_what_is_not_frozen(self, detector):
        assert detector.loss.isfinite()
        moved = {k for k, v in detector.state_dict().items() if not torch.equal(v, detector.before[k])}
        body = "backbone.body."
        assert not [key for key in moved if key.startswith((f"{body}conv1", f"{body}bn1", f"{body}layer1"))]
        norms = [key for key in detector.before if key.startswith(body) and ("bn" in key or "downsample.1" in key)]
        assert len(norms) == 100
        assert not moved & set(norms)
        assert {f"{body}layer2.0.conv1.weight", f"{body}layer4.1.conv2.weight"} <= moved
        assert any(not key.startswith(body) for key in moved)

    def test_training_again_keeps_the_norms_frozen(self, detector):
        copied = copy.deepcopy(detector).eval().train()
        assert not [m for n, m in copied.named_modules() if n.startswith("backbone.body.") and "bn" in n and m.training]

    def test_detects(self, detector):
        images, _ = batch()
        with torch.no_grad():
            found = detector.eval()(images)
        detector.train()
        assert len(found) == 2
        assert all(len(one["boxes"]) == len(one["scores"]) == len(one["labels"]) for one in found)

    def test_raw_rgb_images_reach_the_backbone_as_its_card_says(self, detector, bgr):
        image = torch.rand(3, 64, 64)
        with torch.no_grad():
            tensors = detector.transform([image])[0].tensors
            found = detector.backbone.body(tensors, "feature2")["feature2"]
            expected = bgr.features(bgr.transform.normalize(image)[None], "feature2")["feature2"]
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)

    def test_a_state_dict_has_every_weight_once(self, detector):
        storages = [value.data_ptr() for value in detector.state_dict().values() if value.numel()]
        assert len(storages) == len(set(storages))


def test_the_model_is_left_as_it_is(bgr):
    before = {key: value.clone() for key, value in bgr.state_dict().items()}
    backbone = with_fpn(bgr)
    backbone.train()(torch.rand(1, 3, 64, 64))["0"].sum().backward()
    assert all(torch.equal(value, before[key]) for key, value in bgr.state_dict().items())
    assert all(parameter.grad is None for parameter in bgr.parameters())


class TestPyramid:
    def test_levels(self, shipped):
        backbone = with_fpn(shipped, ["feature3", "feature4"], out_channels=8).eval()
        with torch.no_grad():
            maps = backbone(torch.rand(1, 3, 64, 64))
        assert {name: tuple(one.shape) for name, one in maps.items()} == {
            "0": (1, 8, 8, 8), "1": (1, 8, 4, 4), "pool": (1, 8, 2, 2)
        }  # fmt: skip
        assert backbone.strides == (8, 16, 32)
        assert "body.layer4.0.conv1.weight" not in backbone.state_dict()

    def test_the_pyramid_is_torchvisions_on_our_maps(self, shipped):
        backbone = with_fpn(shipped).eval()
        x = torch.rand(1, 3, 64, 64)
        with torch.no_grad():
            maps = shipped.features(x, ["feature2", "feature3", "feature4", "feature5"])
            expected = backbone.fpn(dict(zip("0123", maps.values(), strict=True)))
            for name, value in backbone(x).items():
                torch.testing.assert_close(value, expected[name])

    def test_it_fits_torchvisions_own_call(self, bgr):
        backbone = with_fpn(bgr)
        detector = FasterRCNN(backbone, num_classes=2, **backbone.normalization)
        assert detector.transform.image_mean == [0.6, 0.45, 0.3]
        assert detector.transform.image_std == [0.4, 0.2, 0.1]

    def test_anchors_are_torchvisions_for_the_usual_layers(self, shipped):
        sizes = faster_rcnn(shipped, 2).rpn.anchor_generator.sizes
        assert sizes == ((32,), (64,), (128,), (256,), (512,))
        sizes = retinanet(shipped, 2).anchor_generator.sizes
        assert [one[0] for one in sizes] == [32, 64, 128, 256, 512]

    def test_fewer_layers_detect(self, shipped):
        detector = faster_rcnn(shipped, 2, layers=["feature3", "feature4"], **SIZE, **FEW).eval()
        with torch.no_grad():
            assert set(detector([torch.rand(3, 64, 64)])[0]) == {"boxes", "labels", "scores"}

    def test_norms_may_learn(self, shipped):
        backbone = with_fpn(shipped.freeze(0), frozen_norms=False)
        shipped.freeze(-1)
        norms = {name: m.training for name, m in backbone.named_modules() if isinstance(m, nn.BatchNorm2d)}
        assert [name for name, training in norms.items() if not training] == ["body.bn1"]

    @pytest.mark.parametrize("channels", [1, 4])
    def test_other_channels(self, channels):
        model = ContextPredictionModel("resnet18", in_channels=channels, pair_layers=False)
        detector = faster_rcnn(model, 2, **SIZE, **FEW).eval()
        with torch.no_grad():
            assert len(detector([torch.rand(channels, 64, 64)])) == 1

    def test_many_channels_have_no_order_to_turn(self):
        model = ContextPredictionModel("resnet18", in_channels=4, pair_layers=False).eval()
        model.card = model.card.replace(channel_order="bgr", mean=(0.3, 0.45, 0.6), std=(0.1, 0.2, 0.4))
        backbone = with_fpn(model)
        pixels = torch.rand(4, 64, 64)
        mean, std = (torch.tensor(values)[:, None, None] for values in (backbone.image_mean, backbone.image_std))
        torch.testing.assert_close((pixels - mean) / std, model.transform.normalize(pixels))
        assert torch.equal(backbone.body.conv1.weight, model.backbone.conv1.weight)

    def test_strides_must_double(self, shipped):
        with pytest.raises(InvalidInputError, match="strides 4, 16 px"):
            with_fpn(shipped, ["feature2", "feature4"])

    def test_unknown_layer(self, shipped):
        with pytest.raises(UnknownNameError, match="Did you mean 'feature4'"):
            faster_rcnn(shipped, 2, layers=["feature3", "layer3"])

    @pytest.mark.parametrize("make", [faster_rcnn, mask_rcnn, retinanet, c4_detector])
    @pytest.mark.parametrize("classes", [1, 0, 2.0, True])
    def test_the_background_is_counted(self, shipped, make, classes):
        with pytest.raises(InvalidInputError, match="counts the background"):
            make(shipped, classes)

    @pytest.mark.parametrize("make", [faster_rcnn, mask_rcnn, retinanet, c4_detector])
    def test_options_are_not_swallowed(self, shipped, make):
        with pytest.raises(UnknownNameError, match=r"option 'min_sizes'\. Did you mean 'min_size'"):
            make(shipped, 2, min_sizes=480)

    def test_predictors_of_ones_own(self, shipped):
        predictor = FastRCNNPredictor(1024, 7)
        for make in (faster_rcnn, c4_detector):
            assert make(shipped, 7, box_predictor=predictor).roi_heads.box_predictor is predictor


def test_c4_needs_a_resnet():
    with pytest.raises(InvalidInputError, match="contextnet"):
        c4_detector(ContextPredictionModel("contextnet", pair_layers=False), 2)


class TestSegmenter:
    def test_learns_where_it_may_and_takes_raw_images(self, bgr):
        torch.manual_seed(0)
        segmenter = fcn(copy.deepcopy(bgr).freeze(1), 3, channels=8, auxiliary_channels=8)
        before = {key: value.clone() for key, value in segmenter.state_dict().items()}
        optimizer = torch.optim.SGD(parameter_groups(segmenter, 0.1))
        images, labels = torch.rand(2, 3, 32, 32), torch.randint(3, (2, 32, 32))
        losses = []
        for _ in range(3):
            found = segmenter.train()(images)
            loss = sum(nn.functional.cross_entropy(one, labels) for one in found.values())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(float(loss.detach()))
        assert all(first > second for first, second in pairwise(losses))
        still = ("network.backbone.conv1", "network.backbone.bn1", "network.backbone.layer1")
        for key, value in segmenter.state_dict().items():
            assert torch.equal(value, before[key]) == key.startswith(still), key
        assert set(segmenter.eval()(images)) == {"out"}

    def test_normalisation(self, bgr):
        segmenter = fcn(bgr, 2, output_stride=32).eval()
        image = torch.rand(3, 32, 32)
        seen = {}
        segmenter.network.backbone.register_forward_hook(lambda module, args, out: seen.update(out))
        with torch.no_grad():
            segmenter(image[None])
            expected = bgr.features(bgr.transform.normalize(image)[None], "feature4")["feature4"]
        torch.testing.assert_close(seen["feature4"], expected, rtol=1e-4, atol=1e-5)

    @pytest.mark.parametrize("classes", [0, 1.5, "3"])
    def test_classes(self, bgr, classes):
        with pytest.raises(InvalidInputError, match="num_classes"):
            fcn(bgr, classes)

    def test_options_that_do_not_exist(self, bgr):
        with pytest.raises(UnknownNameError, match=r"option 'stride'\. Did you mean .*'output_stride'"):
            fcn(bgr, 2, stride=16)

    def test_bytes_are_refused(self, bgr):
        with pytest.raises(InvalidInputError, match="images / 255"):
            fcn(bgr, 2)(torch.zeros(1, 3, 32, 32, dtype=torch.uint8))
