"""The protocol from command to table, its figures against torchmetrics and scikit-learn, resuming, two ranks."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from click.testing import Result as Outcome
from processes import in_ranks
from sklearn.metrics import jaccard_score
from torch import nn
from torchmetrics.classification import MulticlassJaccardIndex

from context_pred import evaluate
from context_pred.backbones import build_backbone
from context_pred.cli import main
from context_pred.errors import InvalidInputError, StoppedError
from context_pred.evaluate import segmentation, sources
from context_pred.evaluate.job import Job
from context_pred.evaluate.segmentation import Settings, measurements, scores, squares
from context_pred.evaluate.segmentation.fcn import FCN
from context_pred.evaluate.segmentation.layouts import read
from context_pred.training.loop import StopRequest

Maps = Any
TINY = {
    "scale": (64, 48), "crop": 32, "batch": 4, "steps": 3, "output_stride": 32, "channels": 8, "auxiliary_channels": 8,
    "pictures": 1, "checkpoint_every": 1,
}  # fmt: skip


def call(data: Path, out: Path, *more: object, model: str = "random:resnet18") -> Outcome:
    pairs = [f"{key}={','.join(map(str, value)) if isinstance(value, tuple) else value}" for key, value in TINY.items()]
    options = [part for pair in pairs for part in ("--set", pair)]
    arguments = ["segmentation", "--model", model, "--data", data, "--out", out, "--no-progress", "--device", "cpu",
                 "--workers", 1, *options, *more]  # fmt: skip
    return CliRunner().invoke(main, ["evaluate", *map(str, arguments)], prog_name="context-pred")


def run(data: Any, out: Path, **settings: Any) -> evaluate.Result:
    return evaluate.run(
        "segmentation", "random:resnet18", data, out=out, settings={**TINY, **settings}, device="cpu", workers=1,
        progress=False,
    )  # fmt: skip


def job(data: Any, out: Path, settings: Settings, source: Any = "random:resnet18", variant: str = "voc12aug") -> Job:
    return Job(
        sources.find(source), data, out, (), settings, 0, workers=1, device="cpu", progress=False, variant=variant
    )


def test_every_setting_of_c12_is_in_what_is_built(maps: Maps, tmp_path: Path) -> None:
    data = read(maps.voc())
    from context_pred.model import ContextPredictionModel

    resnet50 = ContextPredictionModel("resnet50", pair_layers=False)
    asked = Settings(**segmentation.defaults("voc12aug", {}))
    work: Any = segmentation._training(job(data, tmp_path, asked, resnet50))
    assert work.model.head[-1].out_channels == work.model.auxiliary[-1].out_channels == 21
    assert [c.out_channels for c in work.model.head.modules() if isinstance(c, nn.Conv2d)] == [512, 512, 512, 21]
    assert work.model.align_corners is False
    optimizer = work.optimizer(work.model)
    assert type(optimizer) is torch.optim.SGD
    for group in optimizer.param_groups:
        assert (group["momentum"], group["weight_decay"], group["nesterov"]) == (0.9, 5e-4, False)
        assert group["multiplier"] == 1
    trained = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    assert {*map(id, trained)} == {*map(id, work.model.parameters())}
    assert len(trained) == len(list(work.model.parameters()))
    rates = work.rates(661)
    assert rates.steps == 20_000
    assert rates.rate(0) == pytest.approx(0.01)
    assert rates.rate(10_000) == pytest.approx((0.01 - 1e-4) * 0.5**0.9 + 1e-4)
    assert rates.rate(19_999) == pytest.approx(1e-4, rel=0.02)
    assert (work.images, work.per_device, work.sync_batch_norm, work.whole_epochs) == (16, 0, True, False)
    assert work.objective.auxiliary_weight == 0.4
    augmentation = work.examples.augmentation
    assert (augmentation.scale, augmentation.ratio, augmentation.crop) == ((2048, 512), (0.5, 2.0), 512)
    assert (augmentation.largest_share, augmentation.crop_tries, augmentation.flip) == (0.75, 10, 0.5)
    assert (augmentation.distortion, augmentation.brightness, augmentation.hue) == (0.5, 32, 18)
    assert augmentation.contrast == augmentation.saturation == (0.5, 1.5)
    assert work.examples.transform.mean == (0.485, 0.456, 0.406)  # 123.675, 116.28, 103.53 of 255
    assert asked.test == "whole"


def test_heads_learn_at_a_rate_of_their_own(maps: Maps, tmp_path: Path) -> None:
    asked = Settings(**{**TINY, "head_rate": 7.0})
    work: Any = segmentation._training(job(read(maps.camvid((4, 1, 3))), tmp_path, asked))
    backbone, heads = work.optimizer(work.model).param_groups
    assert heads["multiplier"] == 7
    assert {*map(id, heads["params"])} == {
        *map(id, work.model.head.parameters()), *map(id, work.model.auxiliary.parameters())
    }  # fmt: skip
    assert {*map(id, backbone["params"])} == {*map(id, work.model.backbone.parameters())}
    with pytest.raises(InvalidInputError, match="head_rate = 0: accepted is above 0"):
        Settings(head_rate=0)


def test_every_setting_of_c13_is_in_what_is_built(maps: Maps, tmp_path: Path) -> None:
    data = read(maps.cityscapes())
    asked = Settings(**segmentation.defaults("cityscapes", {}))
    work: Any = segmentation._training(job(data, tmp_path, asked, variant="cityscapes"))
    assert work.model.align_corners is True
    assert work.model.head[-1].out_channels == 19
    assert (work.images, work.rates(1).steps) == (8, 40_000)
    assert (work.examples.augmentation.scale, work.examples.augmentation.crop) == ((2049, 1025), 769)
    assert (asked.test, asked.test_crop, asked.test_stride) == ("slide", 769, 513)
    corners = list(squares(1025, 2049, asked.test_crop, asked.test_stride))
    assert corners == [(t, left) for t in (0, 256) for left in (0, 513, 1026, 1280)]  # mmsegmentation's slide_inference


def test_the_loss_is_mmsegmentations(maps: Maps) -> None:
    """Cross entropy of both heads, 1 and .4, summed over labelled pixels and divided by all of them."""
    torch.manual_seed(0)
    model = FCN(build_backbone("resnet18"), 5, dropout=0.0)
    images, labels = torch.randn(2, 3, 32, 32), torch.randint(0, 5, (2, 32, 32)).byte()
    labels[:, :7] = 255
    objective = segmentation.SegmentationObjective(0.4, torch.device("cpu"))
    loss, hits, asked = objective(model, (images, labels), torch.Generator())
    with torch.no_grad():
        main_scores, auxiliary = model(images)
    by_hand = 0.0
    for weight, part in ((1.0, main_scores), (0.4, auxiliary)):
        chosen = part.log_softmax(1)[:, :, 7:].gather(1, labels[:, None, 7:].long())
        by_hand += weight * -chosen.sum().item() / (2 * 32 * 32)
    assert loss.item() == pytest.approx(by_hand, rel=1e-5)
    assert asked == 2 * 25 * 32
    assert int(hits) == int((main_scores.argmax(1) == labels).sum())


def test_figures_by_hand_and_beside_two_references() -> None:
    # true 0: 3 right, 1 taken for 1; true 1: 2 right; class 2 neither there nor predicted
    confusion = np.array([[3, 1, 0], [0, 2, 0], [0, 0, 0]])
    found = {(m.metric, m.at.get("class")): m.value for m in measurements(confusion, ("a", "b", "c"))}
    assert found == {
        ("mIoU", None): pytest.approx((3 / 4 + 2 / 3) / 2), ("pixel accuracy", None): pytest.approx(5 / 6),
        ("IoU", "a"): pytest.approx(3 / 4), ("IoU", "b"): pytest.approx(2 / 3),
    }  # fmt: skip
    generator = torch.Generator().manual_seed(0)
    truth = torch.randint(0, 7, (4, 50, 60), generator=generator)
    predicted = torch.where(torch.rand(truth.shape, generator=generator) < 0.6, truth, truth.roll(1, 1))
    truth[:, :5] = 255
    matrix = np.zeros((7, 7), np.int64)
    for t, p in zip(truth.flatten().tolist(), predicted.flatten().tolist(), strict=True):
        if t != 255:
            matrix[t, p] += 1
    ours = [m.value for m in measurements(matrix, tuple("abcdefg"))]
    reference = MulticlassJaccardIndex(7, average=None, ignore_index=255)(predicted, truth)
    kept = truth != 255
    other = jaccard_score(truth[kept].numpy(), predicted[kept].numpy(), average=None)
    np.testing.assert_allclose(ours[2:], reference.numpy(), atol=1e-6)
    np.testing.assert_allclose(ours[2:], other, atol=1e-6)
    assert ours[0] == pytest.approx(float(other.mean()), abs=1e-6)


def test_sliding_squares_are_averaged() -> None:
    class Constant(nn.Module):
        """Scores: the mean brightness of what it sees, and where in the square a pixel lies."""

        def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, None]:
            mean = images.mean((1, 2, 3), keepdim=True).expand(-1, 1, *images.shape[-2:])
            return torch.cat([mean, torch.arange(images.shape[-1]).expand_as(mean)], 1), None

    image = torch.arange(20.0).expand(1, 3, 16, 20).clone()
    settings = Settings(test="slide", test_crop=16, test_stride=10)
    found = scores(Constant(), image, (16, 20), settings)  # type: ignore[arg-type]
    left, right = image[..., :16].mean(), image[..., 4:].mean()
    assert found[0, 0, 0, 0].item() == pytest.approx(left.item())
    assert found[0, 0, 0, 10].item() == pytest.approx((left + right).item() / 2)
    assert found[0, 0, 0, 19].item() == pytest.approx(right.item())
    assert found[0, 1, 0, 10].item() == pytest.approx((10 + 6) / 2)
    assert list(squares(16, 20, 16, 10)) == [(0, 0), (0, 4)]
    assert list(squares(10, 12, 16, 10)) == [(0, 0)]
    assert scores(Constant(), image, (32, 40), settings).shape == (1, 2, 32, 40)  # type: ignore[arg-type]


@pytest.mark.parametrize("layout", ["voc12aug", "cityscapes", "folder"])
def test_command_prints_the_table_and_writes_everything(maps: Maps, tmp_path: Path, layout: str) -> None:
    folder = {"voc12aug": maps.voc, "cityscapes": maps.cityscapes, "folder": maps.camvid}[layout]()
    more = ["--set", "ignore=3"] if layout == "folder" else []
    outcome = call(folder, tmp_path / "out", *more, "--set", "test=slide", "--set", "test_crop=32")
    assert outcome.exit_code == 0, outcome.output
    record = json.loads((tmp_path / "out" / "result.json").read_text())
    assert record["ran_on"]["data"]["kind"] == layout
    assert record["variant"] == ("cityscapes" if layout == "cityscapes" else "voc12aug")
    assert {"mIoU", "pixel accuracy", "IoU"} == {m["metric"] for m in record["measured"]}
    confusion = np.array(record["details"]["confusion"])
    labelled = sum((s != 255).sum() for s in (labels for _, labels in truths_of(folder, more)))
    assert confusion.sum() == labelled
    if layout == "voc12aug":
        assert "63.49" in outcome.stdout
        assert record["ran_on"]["data"] | {"notes": 0} == {
            "name": "mini", "kind": "voc12aug", "path": str(folder), "train": 5, "test": 2, "classes": 21, "notes": 0
        }  # fmt: skip
        assert "Classes without a pixel in the test images: boat" in outcome.stdout
    assert "RGB, mean (0.485, 0.456, 0.406)" in record["ran_on"]["images"]
    assert (tmp_path / "out" / "plot.png").is_file()
    assert len(list((tmp_path / "out/seed-0/pictures").glob("*.png"))) == 1


def test_classes_that_no_test_image_shows_are_told_with_what_becomes_of_them(maps: Maps, tmp_path: Path) -> None:
    work = job(read(maps.camvid((2, 1, 1))), tmp_path, Settings())
    first = "Classes without a pixel in the test images"
    for predicted, said in (
        ([4, 0, 0], f"{first}: b, c; they stay out of the mean."),
        ([3, 1, 0], f"{first}: b, c; b were predicted all the same and count as 0; the others stay out of the mean."),
        ([2, 1, 1], f"{first}: b, c; b, c were predicted all the same and count as 0."),
    ):
        confusion = np.array([predicted, [0, 0, 0], [0, 0, 0]])
        assert segmentation._notes(work, confusion, ("a", "b", "c")) == [said]


def truths_of(folder: Path, more: list[str]) -> Any:
    from context_pred.evaluate.segmentation.examples import load
    from context_pred.evaluate.segmentation.label_maps import DataOptions

    data = read(folder, DataOptions(ignore=(3,) if more else ()))
    return [load(pair, data.coding) for pair in data.test]


@pytest.mark.slow
def test_it_learns(maps: Maps, tmp_path: Path) -> None:
    """Panes of red, green and blue, of another size in every image, in noise: there is nothing to it but colour."""
    generator = np.random.default_rng(0)
    for split, count in (("train", 12), ("test", 4)):
        for number in range(count):
            rows, columns = np.sort(generator.integers(8, 40, 1)), np.sort(generator.integers(8, 56, 2))
            labels = np.zeros((48, 64), np.uint8)
            labels[rows[0] :] = 1
            labels[:, columns[0] : columns[1]] = 2
            pixels = generator.integers(0, 120, (48, 64, 3)) + 120 * np.eye(3, dtype=int)[labels]
            maps.labels(pixels.astype(np.uint8), split, f"{number}.png")
            maps.labels(labels, f"{split}annot", f"{number}.png")
    settings = {
        "steps": 40, "batch": 8, "crop": 48, "learning_rate": 0.05, "output_stride": 8, "channels": 0,
        "auxiliary_channels": 0, "ratio": (1.0, 1.0), "distortion": 0.0, "checkpoint_every": 40,
    }  # fmt: skip
    result = run(maps.root, tmp_path / "out", **settings)
    assert result.measured[0].metric == "mIoU"
    assert result.measured[0].value > 0.6


def test_a_stopped_run_goes_on_and_ends_as_one_that_was_not(
    maps: Maps, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = maps.camvid()
    whole = run(data, tmp_path / "whole")
    asked = StopRequest.asked
    calls: list[int] = []

    def stop_once(self: StopRequest) -> bool:
        calls.append(1)
        if len(calls) == 2:
            self._note(signal.SIGTERM, None)
        return asked(self)

    monkeypatch.setattr(StopRequest, "asked", stop_once)
    with pytest.raises(StoppedError, match="step 2 of 3"):
        run(data, tmp_path / "parts")
    again = run(data, tmp_path / "parts")
    assert [m.value for m in again.measured] == [m.value for m in whole.measured]
    assert again.details["steps"] == 3


def test_two_ranks_see_every_image_once(maps: Maps, tmp_path: Path) -> None:
    data = maps.camvid((4, 1, 3))
    code = (
        "import sys; from context_pred import evaluate\n"
        f"settings = {dict(TINY, ignore=(3,))!r}\n"
        "evaluate.run('segmentation', 'random:resnet18', sys.argv[1], out=sys.argv[2], settings=settings,"
        " device='cpu', workers=1, progress=False)"
    )
    ended = in_ranks([data, tmp_path / "out"], program=("-c", code))
    assert [process.code for process in ended] == [0, 0], ended
    record = json.loads((tmp_path / "out" / "result.json").read_text())
    assert record["ran_on"]["processes"] == 2
    truths = [labels for _, labels in truths_of(data, ["ignore"])]
    assert np.array(record["details"]["confusion"]).sum() == sum((labels != 255).sum() for labels in truths)
    assert any("Batch norm saw the images of each process by itself" in note for note in record["details"]["notes"])


def test_damaged_files_are_left_out_on_demand(maps: Maps, tmp_path: Path) -> None:
    data = maps.camvid((4, 2, 2))
    (data / "train" / "000.png").write_text("words")
    (data / "testannot" / "001.png").write_text("words")
    result = run(data, tmp_path / "out", skip_damaged=True, ignore=(3,))
    assert (result.ran_on["data"]["train"], result.ran_on["data"]["test"]) == (5, 1)
    assert "2 damaged files were left out with their partners" in str(result)


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--model", "hog"], ["trains a network"]),
        (["--model", "random:contextnet"], ["stands on a ResNet"]),
        (["--layer", "feature5"], ["uses the whole backbone"]),
        (["--set", "crop=8"], ["crop = 8"]),
        (["--set", "output_stride=4"], ["8, 16 or 32"]),
        (["--set", "ratio=2,1"], ["ratio"]),
        (["--set", "test=sliding"], ["test"]),
        (["--set", "ignore=300"], ["ignore = [300]"]),
        (["--set", "learning_rate=0.00001"], ["least_rate"]),
        (["--set", "per_device=3"], ["divides batch, 4"]),
        (["--variant", "cityscape"], ["Did you mean 'cityscapes'"]),
    ],
    ids=lambda more: " ".join(map(str, more)),
)
def test_mistakes_are_one_line_and_exit_with_2(maps: Maps, tmp_path: Path, more: list[str], words: list[str]) -> None:
    outcome = call(maps.camvid((2, 1, 1)), tmp_path / "out", *more)
    assert outcome.exit_code == 2, outcome.output
    for word in words:
        assert word in outcome.stderr.splitlines()[-1]


def test_a_bad_label_map_ends_the_command_with_its_name(maps: Maps, tmp_path: Path) -> None:
    data = maps.camvid((2, 1, 1))
    maps.labels(np.zeros((10, 10), np.uint8), "trainannot", "000.png")
    outcome = call(data, tmp_path / "out")
    assert outcome.exit_code == 2
    assert "trainannot/000.png: a label map of 10×10 px for an image of 64×48 px" in outcome.stderr.splitlines()[-1]


def test_bad_test_files_are_named_before_the_training(maps: Maps, tmp_path: Path) -> None:
    data = maps.camvid((2, 1, 1))
    maps.labels(np.full((48, 64), 9, np.uint8), "testannot", "000.png")
    outcome = call(data, tmp_path / "out", "--set", "classes=a,b,c,d")
    assert "testannot/000.png: a label map with the value 9" in outcome.stderr.splitlines()[-1]
    (data / "test" / "000.png").write_text("words")
    outcome = call(data, tmp_path / "out", "--set", "classes=a,b,c,d")
    assert "test/000.png (not an image" in outcome.stderr.splitlines()[-1]
    assert "--set skip_damaged=true" in outcome.stderr.splitlines()[-1]
    assert not (tmp_path / "out" / "seed-0").exists()


def test_a_layout_asked_for_names_the_piece_that_is_missing(maps: Maps) -> None:
    data = maps.camvid((2, 1, 1))
    for layout, words in (("cityscapes", "leftImg8bit_trainvaltest"), ("voc12aug", "VOCtrainval_11-May-2012")):
        with pytest.raises(InvalidInputError, match=words):
            read(data, segmentation.DataOptions(layout=layout))


def test_one_channel_models_are_refused(maps: Maps, tmp_path: Path) -> None:
    from context_pred.model import ContextPredictionModel

    grey = ContextPredictionModel("resnet18", in_channels=1, pair_layers=False)
    with pytest.raises(InvalidInputError, match="takes 1 channels"):
        evaluate.run("segmentation", grey, maps.camvid((2, 1, 1)), out=tmp_path / "out", settings=TINY, progress=False)
