"""``zoo publish``: both folders loaded by the libraries they are for, and sent to a server with the Hub's routes."""

from __future__ import annotations

import json
import math
import re
import shlex
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from huggingface_hub import ModelCard
from PIL import Image
from torch import Tensor

from context_pred import load_pretrained
from context_pred.card import Card, Metric
from context_pred.cli import main
from context_pred.errors import (
    DigestError,
    InvalidInputError,
    NotCachedError,
    StorageError,
    UnknownNameError,
    UploadError,
    WeightsError,
)
from context_pred.hub_readme import hub_readme, timm_readme
from context_pred.model import ContextPredictionModel
from context_pred.weights_file import read_weights
from context_pred.zoo import layouts
from context_pred.zoo.publish import Published, publish

timm = pytest.importorskip("timm")

SHIPPED = "resnet18_1xb64-coslr-300k"
TAGGED = "resnet18_1xb64-coslr-300k.20261123"


def run(*arguments: str) -> Any:
    return CliRunner().invoke(main, ["zoo", "publish", *arguments], prog_name="context-pred")


def model_folder(folder: Path, backbone: str = "resnet18", in_channels: int = 3, **entries: Any) -> Path:
    """A model of random weights whose batch norms have seen something, as ``save_pretrained`` writes it."""
    torch.manual_seed(3)
    model = ContextPredictionModel(backbone, in_channels=in_channels, neck_channels=8).eval()
    for name, buffer in model.named_buffers():
        if name.endswith("running_mean"):
            buffer.normal_(0, 0.1)
        elif name.endswith("running_var"):
            buffer.uniform_(0.5, 2)
    told = {"name": "mine.20261124", "license": "MIT", "resize": 72, "crop": 64}
    model.card = model.card.replace(**{**told, **entries})
    model.save_pretrained(folder)
    return folder


def differ(found: Tensor, expected: Tensor) -> float:
    assert found.shape == expected.shape
    assert float(expected.detach().abs().max()) > 1e-3
    return float((found - expected).detach().abs().max())


def by_timm(folder: Path, **options: Any) -> torch.nn.Module:
    return timm.create_model(f"local-dir:{folder}", pretrained=True, **options).eval()


@pytest.fixture
def photograph(photos: Path) -> Image.Image:
    return Image.open(photos / "koala.jpg").convert("RGB")


@pytest.fixture(scope="module")
def shipped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folders of the model that ships, as the command writes them."""
    out = tmp_path_factory.mktemp("shipped") / "out"
    result = run(SHIPPED, "--namespace", "lab", "--dry-run", "--out", str(out))
    assert result.exit_code == 0, result.output
    assert f"{out / 'full'}  →  lab/{TAGGED}\n" in result.output
    assert f"{out / 'timm'}  →  lab/{TAGGED}-timm\n" in result.output
    assert "nothing was uploaded" in result.output
    return out


class TestFolders:
    def test_they_hold_the_files_and_the_shipped_bytes(self, shipped: Path, root: Path) -> None:
        assert {path.name for path in shipped.iterdir()} == {"full", "timm"}
        for kind in ("full", "timm"):
            assert {path.name for path in (shipped / kind).iterdir()} == set(layouts.FILES[kind])
        weights = root / "weights" / TAGGED / "model.safetensors"
        assert (shipped / "full" / "model.safetensors").read_bytes() == weights.read_bytes()
        card = Card.read(shipped / "full" / "card.json")
        assert card.sha256 == load_pretrained(SHIPPED).card.sha256

    def test_this_library_loads_the_whole_model(self, shipped: Path, photograph: Image.Image) -> None:
        model = load_pretrained(SHIPPED)
        x = model.transform(photograph)[None]
        for again in (ContextPredictionModel.from_pretrained(shipped / "full"), load_pretrained(shipped / "full")):
            assert again.transform == model.transform
            assert torch.equal(again.features(x, "feature5")["feature5"], model.features(x, "feature5")["feature5"])
            assert torch.equal(again.head.fc_cls.weight, model.head.fc_cls.weight)

    @torch.no_grad()
    def test_timm_gives_equal_features_of_the_same_photograph(self, shipped: Path, photograph: Image.Image) -> None:
        model = load_pretrained(SHIPPED)
        expected = model.features(model.transform(photograph)[None])
        network = by_timm(shipped / "timm", features_only=True)
        prepared = timm.data.create_transform(**timm.data.resolve_model_data_config(network))(photograph)[None]
        assert torch.equal(prepared, model.transform(photograph)[None])
        for found, value in zip(network(prepared), expected.values(), strict=True):
            assert differ(found, value) < 1e-5
        pooled = by_timm(shipped / "timm")(prepared)
        assert differ(pooled, model.embed(prepared)) < 1e-5

    @torch.no_grad()
    def test_timm_adapts_the_stem_to_grey_as_this_library_does(self, shipped: Path) -> None:
        x = torch.randn(1, 1, 64, 64)
        expected = load_pretrained(SHIPPED, in_channels=1).features(x, "feature5")["feature5"]
        assert differ(by_timm(shipped / "timm", in_chans=1).forward_features(x), expected) < 1e-5

    @torch.no_grad()
    def test_transformers_gives_equal_features_of_the_same_photograph(
        self, shipped: Path, photograph: Image.Image
    ) -> None:
        transformers = pytest.importorskip("transformers")
        model = load_pretrained(SHIPPED)
        network = transformers.AutoModel.from_pretrained(shipped / "timm")
        processor = transformers.AutoImageProcessor.from_pretrained(shipped / "timm")
        prepared = processor(photograph, return_tensors="pt")
        assert torch.equal(prepared["pixel_values"], model.transform(photograph)[None])
        output = network(**prepared)
        assert differ(output.last_hidden_state, model.features(prepared["pixel_values"])["feature5"]) < 1e-5
        assert differ(output.pooler_output, model.embed(prepared["pixel_values"])) < 1e-5

    def test_the_pages_are_valid_and_index_own_numbers_only(self, shipped: Path) -> None:
        card = Card.read(shipped / "full" / "card.json")
        data = ModelCard.load(shipped / "full" / "README.md").data
        assert (data.library_name, data.license, data.pipeline_tag) == (
            "context-pred",
            "apache-2.0",
            "image-feature-extraction",
        )
        assert data.model_name == TAGGED
        own = [metric for metric in card.metrics if metric.measured_on == TAGGED]
        assert 0 < len(own) < len(card.metrics)
        assert any("±" in metric.value for metric in own)  # the Hub takes the number before the spread
        assert sorted(result.metric_value for result in data.eval_results) == sorted(
            float(metric.value.split()[0]) for metric in own
        )
        names = [(result.dataset_name, result.metric_name) for result in data.eval_results]
        assert len(set(names)) == len(names)
        backbone = ModelCard.load(shipped / "timm" / "README.md")
        assert (backbone.data.library_name, backbone.data.license) == ("timm", "apache-2.0")
        assert f"hf-hub:lab/{TAGGED}-timm" in backbone.text
        assert f"hf-hub:lab/{TAGGED}@REVISION" in (shipped / "full" / "README.md").read_text()

    @torch.no_grad()
    def test_the_lines_on_the_pages_run(self, shipped: Path, photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        pytest.importorskip("transformers")
        monkeypatch.chdir(photos)
        places = {
            "photo.jpg": "koala.jpg",
            f"hf-hub:lab/{TAGGED}-timm": f"local-dir:{shipped / 'timm'}",
            f"hf-hub:lab/{TAGGED}@REVISION": str(shipped / "full"),
            f"lab/{TAGGED}-timm": str(shipped / "timm"),
        }
        made: dict[str, Any] = {}
        for page in (shipped / "full" / "README.md", shipped / "timm" / "README.md"):
            for code in re.findall(r"^```python\n(.*?)^```$", page.read_text(), re.MULTILINE | re.DOTALL):
                for name, place in places.items():
                    code = code.replace(f'"{name}"', f'"{place}"')
                exec(code, made)
        assert differ(made["maps"][4], made["features"]["feature5"]) < 1e-5
        assert differ(made["output"].last_hidden_state, made["features"]["feature5"]) < 1e-5

    def test_golden_tensors_tell_one_changed_weight(self, shipped: Path, tmp_path: Path) -> None:
        for kind in ("full", "timm"):
            assert layouts.check(shipped / kind, kind) < 1e-5
        copy = shutil.copytree(shipped / "timm", tmp_path / "timm")
        state = read_weights(copy / "model.safetensors")
        state["layer4.1.conv2.weight"][0] += 1
        from safetensors.torch import save_file

        save_file(state, copy / "model.safetensors", metadata={"format": "pt"})
        with pytest.raises(WeightsError, match=r"other numbers than its golden\.safetensors: feature5"):
            layouts.check(copy, "timm")
        del state["layer1.0.conv1.weight"]
        save_file(state, copy / "model.safetensors", metadata={"format": "pt"})
        with pytest.raises(WeightsError, match=r"layer1\.0\.conv1\.weight"):
            layouts.check(copy, "timm")


class TestOtherModels:
    @torch.no_grad()
    def test_a_bgr_model_takes_rgb_in_timm(self, tmp_path: Path, photograph: Image.Image) -> None:
        entries = {"channel_order": "bgr", "mean": (0.4, 0.45, 0.48), "std": (0.2, 0.25, 0.3)}
        folder = model_folder(tmp_path / "bgr", **entries)
        publish(folder, "lab", out=tmp_path / "out", dry_run=True)
        model = load_pretrained(tmp_path / "out" / "full")
        assert model.card.channel_order == "bgr"
        expected = model.features(model.transform(photograph)[None])
        network = by_timm(tmp_path / "out" / "timm", features_only=True)
        config = timm.data.resolve_model_data_config(network)
        assert tuple(config["mean"]) == (0.48, 0.45, 0.4)
        prepared = timm.data.create_transform(**config)(photograph)[None]
        for found, value in zip(network(prepared), expected.values(), strict=True):
            assert differ(found, value) < 1e-5
        assert differ(network(prepared.flip(1))[4], expected["feature5"]) > 1e-3
        assert "**Feed it RGB.**" in (tmp_path / "out" / "timm" / "README.md").read_text()
        first, second = (read_weights(tmp_path / "out" / kind / "golden.safetensors") for kind in ("full", "timm"))
        assert torch.equal(first["images"].flip(1), second["images"])
        assert differ(second["feature5"], first["feature5"]) < 1e-5

    @torch.no_grad()
    @pytest.mark.parametrize("in_channels", [1, 3])
    def test_this_library_reads_the_timm_layout_with_its_preprocessing(
        self, in_channels: int, tmp_path: Path, photograph: Image.Image
    ) -> None:
        entries = {"channel_order": "bgr", "mean": (0.4, 0.45, 0.48), "std": (0.2, 0.25, 0.3)}
        folder = model_folder(tmp_path / "model", in_channels=in_channels, **entries)
        publish(folder, "lab", out=tmp_path / "out", dry_run=True)
        model, backbone = load_pretrained(folder), load_pretrained(tmp_path / "out" / "timm")
        assert backbone.head is None
        assert (backbone.card.name, backbone.card.resize, backbone.card.crop) == ("mine.20261124", 72, 64)
        found = backbone.embed(backbone.transform(photograph)[None])
        assert differ(found, model.embed(model.transform(photograph)[None])) < 1e-5

    @torch.no_grad()
    def test_a_grey_model(self, tmp_path: Path, photograph: Image.Image) -> None:
        folder = model_folder(tmp_path / "grey", in_channels=1)
        publish(folder, "lab", out=tmp_path / "out", dry_run=True)
        model = load_pretrained(folder)
        network = by_timm(tmp_path / "out" / "timm")
        config = timm.data.resolve_model_data_config(network)
        assert tuple(config["input_size"]) == (1, 64, 64)
        prepared = timm.data.create_transform(**config)(photograph.convert("L"))[None]
        assert differ(prepared, model.transform(photograph)[None]) < 1e-6
        assert differ(network(prepared), model.embed(prepared)) < 1e-5
        transformers = pytest.importorskip("transformers")
        processor = transformers.AutoImageProcessor.from_pretrained(tmp_path / "out" / "timm")
        again = processor(photograph.convert("L"), return_tensors="pt")
        output = transformers.AutoModel.from_pretrained(tmp_path / "out" / "timm")(**again)
        assert differ(output.pooler_output, model.embed(prepared)) < 1e-5

    @torch.no_grad()
    def test_resnet50_with_pair_layers_of_any_width(self, tmp_path: Path) -> None:
        folder = model_folder(tmp_path / "model", "resnet50")
        publish(folder, "lab", out=tmp_path / "out", dry_run=True)
        x = torch.randn(1, 3, 64, 64)
        expected = load_pretrained(folder).features(x)
        for found, value in zip(
            by_timm(tmp_path / "out" / "timm", features_only=True)(x), expected.values(), strict=True
        ):
            assert differ(found, value) < 1e-5
        keys = set(read_weights(tmp_path / "out" / "timm" / "model.safetensors"))
        from torchvision.models import resnet50

        assert keys == {key for key in resnet50().state_dict() if not key.startswith("fc.")}

    @torch.no_grad()
    def test_a_model_of_five_channels(self, tmp_path: Path) -> None:
        folder = model_folder(tmp_path / "model", in_channels=5)
        publish(folder, "lab", out=tmp_path / "out", dry_run=True)
        x = torch.randn(1, 5, 64, 64)
        found = by_timm(tmp_path / "out" / "timm").forward_features(x)
        assert differ(found, load_pretrained(folder).features(x)["feature5"]) < 1e-5
        assert "a tensor (N, 5, 64, 64)" in (tmp_path / "out" / "timm" / "README.md").read_text()
        code = re.findall(r"^```python\n(.*?)^```$", hub_readme(load_pretrained(folder).card), re.MULTILINE | re.DOTALL)
        made: dict[str, Any] = {"image": torch.rand(5, 80, 90)}
        exec(code[0].replace("hf-hub:OWNER/NAME@REVISION", str(folder)), made)
        assert made["features"]["feature5"].shape == (1, 512, 2, 2)

    def test_contextnet_has_no_timm_layout(self, tmp_path: Path) -> None:
        torch.manual_seed(0)
        model = ContextPredictionModel("contextnet", neck_channels=8)
        model.card = model.card.replace(name="tower", license="MIT")
        model.save_pretrained(tmp_path / "tower")
        with pytest.raises(InvalidInputError, match="--layout full"):
            publish(tmp_path / "tower", "lab", out=tmp_path / "out", dry_run=True)
        assert not (tmp_path / "out").exists()
        (one,) = publish(tmp_path / "tower", "lab", out=tmp_path / "out", dry_run=True, layout="full")
        assert one.repository == "lab/tower"
        assert layouts.check(tmp_path / "out" / "full", "full") < 1e-5

    def test_a_card_without_a_licence_is_asked_for_one(self, tmp_path: Path) -> None:
        folder = model_folder(
            tmp_path / "model", license="", metrics=(Metric("knn", "d", "", "top-1 %", "5", "mine.20261124"),)
        )
        arguments = [str(folder), "--namespace", "lab", "--dry-run", "--out", str(tmp_path / "out"), "--layout", "full"]
        result = run(*arguments)
        assert result.exit_code == 2
        assert "--set license=" in result.output
        assert not (tmp_path / "out").exists()
        result = run(*arguments, "--set", "license=CC-BY-4.0", "--set", "name=ours", "--set", "authors=We, ourselves")
        assert result.exit_code == 0, result.output
        card = Card.read(tmp_path / "out" / "full" / "card.json")
        assert (card.name, card.license, card.authors) == ("ours", "CC-BY-4.0", "We, ourselves")
        assert card.metrics[0].measured_on == "ours"
        assert "license: cc-by-4.0" in (tmp_path / "out" / "full" / "README.md").read_text()
        assert Card.read(folder / "card.json").license == ""

    @pytest.mark.parametrize(("resize", "crop"), [(256, 224), (72, 64), (97, 96), (300, 299), (1000, 7)])
    def test_timm_computes_the_same_size_to_resize_to(self, resize: int, crop: int) -> None:
        assert math.floor(crop / layouts.crop_pct(crop, resize)) == resize

    def test_and_so_for_every_size(self) -> None:
        wrong = [
            (crop, resize)
            for resize in range(1, 513)
            for crop in range(1, resize + 1)
            if math.floor(crop / layouts.crop_pct(crop, resize)) != resize
        ]
        assert not wrong


class TestPage:
    @pytest.mark.parametrize(
        ("license", "expected"),
        [
            ("Apache-2.0", "license: apache-2.0\n"),
            ("GPL-3.0-or-later", "license: gpl-3.0\n"),
            ("CC-BY-NC-SA-4.0", "license: cc-by-nc-sa-4.0\n"),
            ("Our own, of 2026", "license: other\nlicense_name: our-own-of-2026\n"),
            ("自由", "license: other\nlicense_name: unnamed\n"),
        ],
    )
    def test_a_licence_in_the_words_of_the_hub(self, license: str, expected: str) -> None:
        assert expected in hub_readme(Card("mine", "resnet18", license=license))

    def test_none_is_made_up(self) -> None:
        text = hub_readme(Card("mine", "resnet18"))
        assert "license:" not in text
        assert "None is stated" in text

    def test_figures_of_others_are_told_but_not_indexed(self) -> None:
        metrics = (
            Metric("VOC07 SVM", "VOC2007", "feature4", "mAP", "65.52", "other"),
            Metric("Faster R-CNN C4", "VOC07+12", "", "AP50", "79.70", "mine"),
            Metric("FCN", "VOC12", "", "mIoU", "63.1 ± 0.2", "mine"),
        )
        page = ModelCard(hub_readme(Card("mine", "resnet18", license="MIT", metrics=metrics)))
        found = {(r.task_type, r.metric_type, r.metric_value) for r in page.data.eval_results}
        assert found == {
            ("object-detection", "mean_average_precision", 79.7),
            ("image-segmentation", "mean_iou", 63.1),
        }
        assert "65.52" in page.text
        assert "63.1 ± 0.2" in page.text

    @pytest.mark.parametrize("value", ["", "n/a", "nan", "inf", "1,234.5", "37.5 / 56.2"])
    def test_what_is_no_number_is_told_but_not_indexed(self, value: str) -> None:
        metrics = (Metric("FCN", "", "", "mIoU", value, "mine"), Metric("FCN", "", "", "mIoU", "40.1", "mine"))
        text = hub_readme(Card("mine", "resnet18", license="MIT", metrics=metrics))
        (result,) = ModelCard(text).data.eval_results
        assert (result.metric_value, result.dataset_name) == (40.1, "not stated")
        assert f"mIoU {value}; mIoU 40.1" in text

    def test_figures_say_who_printed_them_and_what_to_know(self) -> None:
        metrics = tuple(
            Metric("pretext", "BSDS500", "", "accuracy %", value, "mine", f"`evaluate{of}`", note)
            for value, of, note in (("39.97", "", ""), ("37.42", " --set geometry=paper", "± over 5 seeds."))
        )
        text = hub_readme(Card("mine", "resnet18", license="MIT", metrics=metrics))
        assert "| `mine` | accuracy % 39.97 | `evaluate` |\n" in text
        assert "| `mine` | accuracy % 37.42 | `evaluate --set geometry=paper`. ± over 5 seeds. |\n" in text

    def test_texts_of_the_card_break_no_table(self) -> None:
        card = Card("mine", "resnet18", license="MIT", dataset="ours | theirs", authors="A\nB", notes=("one\ntwo",))
        text = hub_readme(card.replace(paper="https://example.org/ours"))
        assert "| trained on | ours &#124; theirs |\n| by | A B |\n| paper | https://example.org/ours |\n" in text
        assert "- one two\n" in text

    def test_a_backbone_alone_has_no_pair_layers_to_speak_of(self) -> None:
        for pair_layers in (True, False):
            text = timm_readme(Card("mine", "resnet18", pair_layers=pair_layers, license="MIT"), "lab/mine-timm")
            assert ("Pair questions" in text, "neck and head" in text) == (pair_layers, pair_layers)

    def test_imagenet_is_named_as_the_hub_names_it(self) -> None:
        page = ModelCard(hub_readme(Card("mine", "resnet18", dataset="ImageNet-1k (1,281,167 images)")))
        assert page.data.datasets == ["ILSVRC/imagenet-1k"]


class TestRefusals:
    def test_a_misspelt_name(self) -> None:
        with pytest.raises(UnknownNameError, match=f"Did you mean '{SHIPPED}'"):
            publish("resnet18_1xb64-coslr-300", "lab", out="nowhere", dry_run=True)

    def test_a_misspelt_text_of_the_card(self, tmp_path: Path) -> None:
        with pytest.raises(UnknownNameError, match="license"):
            publish(SHIPPED, "lab", out=tmp_path / "out", dry_run=True, changes={"licence": "MIT"})

    @pytest.mark.parametrize("namespace", ["", "a/b", "-a", "a b"])
    def test_no_namespace(self, namespace: str, tmp_path: Path) -> None:
        with pytest.raises(InvalidInputError, match="--namespace"):
            publish(SHIPPED, namespace, out=tmp_path / "out", dry_run=True)

    def test_a_name_that_no_repository_can_have(self, tmp_path: Path) -> None:
        folder = model_folder(tmp_path / "model", name="resnet18 (random weights)")
        with pytest.raises(InvalidInputError, match="--set name="):
            publish(folder, "lab", out=tmp_path / "out", dry_run=True)

    def test_a_dry_run_to_nowhere(self) -> None:
        with pytest.raises(InvalidInputError, match="--out DIR"):
            publish(SHIPPED, "lab", dry_run=True)

    def test_an_unknown_layout(self) -> None:
        with pytest.raises(UnknownNameError, match="full, timm, both"):
            publish(SHIPPED, "lab", dry_run=True, out="x", layout="tim")  # type: ignore[arg-type]

    @pytest.mark.parametrize("kind", ["folder", "file"])
    def test_what_is_there_already_is_not_overwritten(self, kind: str, tmp_path: Path) -> None:
        out = tmp_path / "out"
        kept = out / "kept.txt" if kind == "folder" else out
        kept.parent.mkdir(exist_ok=True)
        kept.write_text("precious")
        with pytest.raises(StorageError, match="not empty"):
            publish(SHIPPED, "lab", out=out, dry_run=True)
        assert kept.read_text() == "precious"

    @pytest.mark.parametrize("kind", ["here", "link"])
    def test_an_empty_folder_is_filled_and_not_replaced(
        self, kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        out = tmp_path / "out"
        out.mkdir()
        (tmp_path / "link").symlink_to(out)
        monkeypatch.chdir(out)
        folder = model_folder(tmp_path / "model")
        publish(folder, "lab", out="." if kind == "here" else tmp_path / "link", dry_run=True, layout="full")
        assert [path.name for path in Path.cwd().iterdir()] == ["full"]
        assert (out / "full" / "model.safetensors").is_file()

    def test_a_folder_that_cannot_be_written(self, tmp_path: Path) -> None:
        (tmp_path / "closed").write_text("precious")
        with pytest.raises(StorageError, match="closed"):
            publish(SHIPPED, "lab", out=tmp_path / "closed" / "out", dry_run=True, layout="full")
        assert (tmp_path / "closed").read_text() == "precious"

    def test_damaged_weights(self, tmp_path: Path) -> None:
        folder = model_folder(tmp_path / "model")
        data = bytearray((folder / "model.safetensors").read_bytes())
        data[-9] ^= 1
        (folder / "model.safetensors").write_bytes(data)
        with pytest.raises(DigestError, match="SHA-256"):
            publish(folder, "lab", out=tmp_path / "out", dry_run=True)
        assert [path.name for path in tmp_path.iterdir()] == ["model"]

    def test_a_file_without_a_card(self, tmp_path: Path) -> None:
        folder = model_folder(tmp_path / "model")
        (folder / "card.json").unlink()
        with pytest.raises(InvalidInputError, match="zoo convert"):
            publish(folder / "model.safetensors", "lab", out=tmp_path / "out", dry_run=True)

    def test_the_folder_above_names_the_one_below(self, tmp_path: Path) -> None:
        model_folder(tmp_path / "run" / "model")
        with pytest.raises(NotCachedError, match=r"Did you mean '.*run/model'"):
            publish(tmp_path / "run", "lab", out=tmp_path / "out", dry_run=True)

    def test_the_timm_layout_is_no_whole_model(self, shipped: Path) -> None:
        with pytest.raises(NotCachedError, match=r"timm's layout is loaded by context_pred\.load_pretrained"):
            ContextPredictionModel.from_pretrained(shipped / "timm")

    def test_without_timm_the_error_is_a_line_to_copy(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "timm", None)
        with pytest.raises(InvalidInputError, match=r'pip install "context-pred\[timm\]"'):
            publish(SHIPPED, "lab", out=tmp_path / "out", dry_run=True)
        publish(SHIPPED, "lab", out=tmp_path / "out", dry_run=True, layout="full")


@pytest.fixture
def place(caches: SimpleNamespace, hub: Any, monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """Empty caches, nobody logged in, and large files by LFS (Xet's protocol is not spoken here)."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(caches.assets / "token"))
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.delenv("HUGGING_FACE_HUB_TOKEN", raising=False)
    return caches


@pytest.fixture(scope="module")
def mine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return model_folder(tmp_path_factory.mktemp("mine") / "model")


def send(folder: Path, **options: Any) -> tuple[Published, ...]:
    return publish(folder, "lab", token="hf_writer", **options)


@pytest.mark.usefixtures("place")
class TestUpload:
    def test_what_was_published_is_loaded_back(self, hub: Any, mine: Path, tmp_path: Path) -> None:
        full, backbone = send(mine, out=tmp_path / "out", message="The first")
        assert full.new
        assert backbone.new
        for one in (full, backbone):
            commit, files = hub.head(one.repository)
            assert one.revision == commit
            assert one.folder is not None
            here = {path.name: path.read_bytes() for path in one.folder.iterdir()}
            assert {**here, ".gitattributes": files[".gitattributes"]} == files
        assert [(c["repository"], c["summary"], len(c["files"])) for c in hub.commits] == [
            ("lab/mine.20261124", "The first", 5),
            ("lab/mine.20261124-timm", "The first", 4),
        ]
        assert all(len(c["parentCommit"]) == 40 for c in hub.commits)
        x = torch.randn(1, 3, 64, 64)
        expected = load_pretrained(mine).features(x)["feature5"]
        again = load_pretrained(f"hf-hub:{full.repository}@{full.revision}")
        assert torch.equal(again.features(x)["feature5"], expected)
        network = timm.create_model(f"hf-hub:{backbone.repository}@{backbone.revision}", pretrained=True).eval()
        assert differ(network.forward_features(x), expected) < 1e-5
        ours = load_pretrained(f"hf-hub:{backbone.repository}@{backbone.revision}")
        assert ours.transform == again.transform
        assert differ(ours.features(x)["feature5"], expected) < 1e-5

    def test_the_command_prints_what_comes_next(self, hub: Any, mine: Path) -> None:
        result = run(str(mine), "--namespace", "writer", "--token", "hf_writer", "--layout", "full")
        assert result.exit_code == 0, result.output
        assert f"writer/mine.20261124@{hub.head('writer/mine.20261124')[0]}  (new)" in result.output

    def test_a_run_named_as_a_recipe_is_not_taken_for_the_model_of_the_zoo(self, hub: Any, mine: Path) -> None:
        arguments = ["--namespace", "writer", "--token", "hf_writer", "--layout", "full", "--set", f"name={SHIPPED}"]
        result = run(str(mine), *arguments)
        assert f"writer/{SHIPPED}@" in result.output
        assert "zoo pin" not in result.output

    def test_twice_uploads_nothing_new(self, hub: Any, mine: Path) -> None:
        first = send(mine)
        before = len(hub.wrote())
        second = send(mine)
        assert hub.wrote()[before:] == []
        assert [one.revision for one in second] == [one.revision for one in first]
        assert not any(one.new for one in second)

    def test_a_changed_card_sends_the_changed_files_alone(self, hub: Any, mine: Path) -> None:
        send(mine, layout="full")
        (again,) = send(mine, layout="full", changes={"description": "Better told."})
        assert again.new
        assert hub.commits[-1]["files"] == ["README.md", "card.json"]
        assert hub.commits[-1]["parentCommit"] == hub.commits[0]["commit"]

    def test_private(self, hub: Any, mine: Path) -> None:
        send(mine, layout="full", private=True)
        assert hub.private == {"lab/mine.20261124"}
        send(mine, layout="full", private=True)
        hub.private.clear()
        with pytest.raises(UploadError, match="already and public"):
            send(mine, layout="full", private=True)

    def test_nobody_is_logged_in(self, hub: Any, mine: Path) -> None:
        with pytest.raises(UploadError, match="hf auth login"):
            publish(mine, "lab", layout="full")
        assert hub.log == []

    def test_a_token_that_is_not_accepted(self, hub: Any, mine: Path) -> None:
        with pytest.raises(UploadError, match=r"not accepted.*settings/tokens"):
            publish(mine, "lab", token="hf_wrong", layout="full")
        assert hub.repositories == {}

    def test_a_namespace_of_others(self, hub: Any, mine: Path) -> None:
        with pytest.raises(UploadError, match="Accepted for this token: writer, lab"):
            publish(mine, "google", token="hf_writer", layout="full")
        assert hub.wrote() == []

    @pytest.mark.parametrize("part", ["repos/create", "preupload", "/lfs/", "/commit/"])
    def test_a_token_that_may_only_read(self, hub: Any, mine: Path, part: str) -> None:
        hub.refuse = {part: 403}
        with pytest.raises(UploadError, match="role `write`"):
            send(mine, layout="full")
        assert hub.commits == []

    @pytest.mark.parametrize(
        ("part", "status"), [("whoami", 500), ("whoami", 403), ("/api/models/", 400), ("verify", 429)]
    )
    def test_a_refusal_is_one_sentence_and_what_to_do(
        self, hub: Any, mine: Path, part: str, status: int, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("time.sleep", lambda seconds: None)
        hub.refuse = {part: status}
        with pytest.raises(UploadError, match=r"^(The model|lab/mine\.20261124) was not published: \w") as caught:
            send(mine, layout="full")
        assert not re.search(r"None|\.\.|:\.|\.:", str(caught.value))
        assert hub.commits == []

    def test_a_hub_that_does_not_answer(self, mine: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        from huggingface_hub import constants

        monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
        with pytest.raises(UploadError, match="cannot be reached"):
            send(mine, layout="full", out=tmp_path / "out")

    @pytest.mark.usefixtures("offline")
    def test_offline(self, hub: Any, mine: Path) -> None:
        with pytest.raises(UploadError, match="HF_HUB_OFFLINE"):
            send(mine, layout="full")

    @pytest.mark.parametrize("files", [{"config.json": b"{}"}, {"card.json": b"[]"}, {"data.csv": b"1"}])
    def test_a_repository_that_holds_something_else(self, hub: Any, mine: Path, files: dict[str, bytes]) -> None:
        hub.commit("lab/mine.20261124-timm", files)
        with pytest.raises(UploadError, match="holds something else"):
            send(mine)
        assert hub.head("lab/mine.20261124-timm")[1] == files
        assert "lab/mine.20261124" not in hub.repositories

    def test_a_repository_that_is_empty_but_for_its_first_page(self, hub: Any, mine: Path) -> None:
        hub.commit("lab/mine.20261124", {".gitattributes": b"", "README.md": b"# soon"})
        (one,) = send(mine, layout="full")
        assert hub.head(one.repository)[1]["README.md"].startswith(b"---\nlibrary_name")

    def test_another_commit_in_between(self, hub: Any, mine: Path) -> None:
        send(mine, layout="full")
        theirs: list[str] = []
        hub.meanwhile = lambda: theirs.append(hub.commit("lab/mine.20261124", {"note.txt": b"theirs"}))
        with pytest.raises(UploadError, match="changed the repository meanwhile"):
            send(mine, layout="full", changes={"description": "Better told."})
        commit, files = hub.head("lab/mine.20261124")
        assert commit == theirs[-1]
        assert b"Better told." not in files["README.md"]

    def test_of_two_the_second_fails_and_the_same_command_goes_on(self, hub: Any, mine: Path) -> None:
        hub.refuse = {"mine.20261124-timm/commit": 403}
        with pytest.raises(UploadError, match=r"Already published: lab/mine\.20261124@[0-9a-f]{40}"):
            send(mine)
        hub.refuse = {}
        full, backbone = send(mine)
        assert (full.new, backbone.new) == (False, True)

    def test_a_page_the_hub_finds_wrong(self, hub: Any, mine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("context_pred.hub_readme._license_entries", lambda license: {})
        with pytest.raises(UploadError, match=r"license is missing.*--set"):
            send(mine, layout="full")
        assert hub.commits == []


def test_configuration_of_the_published_bgr_file(tmp_path: Path) -> None:
    """What the card of the first published file says reaches timm's configuration turned."""
    from context_pred import model_info

    card = model_info("resnet50_8xb64-steplr-70e.20211213")
    model = ContextPredictionModel.from_card(card)
    layouts.write_timm(model, tmp_path, repository="lab/x-timm")
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["pretrained_cfg"]["mean"] == [0.406, 0.456, 0.485]
    stem = read_weights(tmp_path / "model.safetensors")["conv1.weight"]
    assert torch.equal(stem, model.backbone.conv1.weight.detach().flip(1))
    assert config["context_pred"] == {"name": card.name, "channel_order": "bgr"}


def test_the_commands_on_the_page_that_need_a_token_are_commands(root: Path) -> None:
    """Those that publish and pin for good cannot run in a test; their options can be parsed."""
    page = (root / "docs" / "publishing.md").read_text(encoding="utf-8")
    lines = re.findall(r"^\$ context-pred (zoo (?:publish|pin) .*)$", page, re.MULTILINE)
    assert len(lines) == 9
    for line in lines:
        group, name, *arguments = shlex.split(line)
        command = main.commands[group].commands[name]  # type: ignore[attr-defined]
        command.make_context(name, arguments)
