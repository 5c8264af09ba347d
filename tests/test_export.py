"""ONNX files and torch.export programs compute what the model computes, for RGB images of any size."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from click.testing import CliRunner
from numpy.typing import NDArray
from test_extract import network

import context_pred
from context_pred import ContextPredictionModel, export, extract
from context_pred.cli import main
from context_pred.errors import InvalidInputError, StorageError, UnknownNameError, WeightsError
from context_pred.pooling import pool_map

SHALLOW = ("feature1", "feature2")


def rgb(*shape: int) -> torch.Tensor:
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


def run(path: Path, images: torch.Tensor) -> dict[str, NDArray[Any]]:
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(None, {"images": images.numpy()}), strict=True))


def expected(
    model: ContextPredictionModel, images: torch.Tensor, layers: Any = None, pool: str = "none"
) -> dict[str, torch.Tensor]:
    with torch.inference_mode():
        maps = model.features(model.transform.normalize(images), layers)
        windows = model.backbone.grid_windows
        return {layer: pool_map(values, layer, pool, windows=windows) for layer, values in maps.items()}


def close(found: dict[str, Any], wanted: dict[str, torch.Tensor], tolerance: float = 1e-4) -> None:
    assert list(found) == list(wanted)
    for layer, values in wanted.items():
        difference = torch.as_tensor(found[layer]) - values
        assert found[layer].shape == values.shape
        assert difference.abs().max() <= tolerance * values.std(), layer


def test_the_shipped_model_on_images_of_any_number_and_size(tmp_path: Path) -> None:
    model = context_pred.load_pretrained("resnet18_1xb64-coslr-300k")
    path = export.onnx(model, tmp_path / "new" / "features.onnx")
    assert path == tmp_path / "new" / "features.onnx"
    for shape in ((1, 3, 224, 224), (3, 3, 65, 97)):
        images = model.transform.normalize(rgb(*shape))
        with torch.inference_mode():
            close(run(path, images), model.features(images))
    said = {
        key: json.loads(value)
        for key, value in onnxruntime.InferenceSession(path).get_modelmeta().custom_metadata_map.items()
    }
    assert said == {
        "context_pred": context_pred.__version__,
        "model": model.card.name,
        "backbone_sha256": extract.weights_digest(model),
        "pixels": "normalized",
        "channel_order": "rgb",
        "mean": list(model.card.mean),
        "std": list(model.card.std),
        "resize": 256,
        "crop": 224,
        "layers": ["feature1", "feature2", "feature3", "feature4", "feature5"],
        "pool": "none",
        "license": model.card.license,
    }
    assert str(Path(context_pred.__file__).parent).encode() not in path.read_bytes()


@pytest.mark.parametrize("pool", ["gap", "grid"])
def test_pooled(tmp_path: Path, pool: str) -> None:
    model = network()
    path = export.onnx(model, tmp_path / "pooled.onnx", "feature2", pool)
    images = rgb(3, 3, 64, 64)
    close(run(path, model.transform.normalize(images)), expected(model, images, "feature2", pool))


def test_the_graph_can_normalise(tmp_path: Path) -> None:
    model = network(mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.1))
    images = rgb(2, 3, 40, 50)
    wanted = expected(model, images, "feature1")
    path = export.onnx(model, tmp_path / "features.onnx", "feature1", pixels="uint8")
    close(run(path, images), wanted)
    with torch.inference_mode():
        close(export.program(model, "feature1", pixels="unit").module()(images / 255), wanted)


def test_a_bgr_model_takes_rgb(tmp_path: Path) -> None:
    model = network(channel_order="bgr", mean=(0.4, 0.45, 0.48), std=(0.2, 0.25, 0.3))
    images = rgb(2, 3, 48, 64)
    mean, std = (torch.tensor(values[::-1]).view(3, 1, 1) for values in (model.card.mean, model.card.std))
    given = (images / 255 - mean) / std
    wanted = expected(model, images, SHALLOW)
    path = export.onnx(model, tmp_path / "rgb.onnx", SHALLOW)
    close(run(path, given), wanted, 1e-5)
    with torch.inference_mode():
        close(export.program(model, SHALLOW).module()(given), wanted, 1e-5)
        close(export.program(model, SHALLOW, pixels="uint8").module()(images), wanted, 1e-5)
    said = onnxruntime.InferenceSession(path).get_modelmeta().custom_metadata_map
    assert (json.loads(said["mean"]), json.loads(said["channel_order"])) == ([0.48, 0.45, 0.4], "rgb")
    assert model.card.channel_order == "bgr"


@pytest.mark.parametrize("channels", [1, 4])
def test_other_numbers_of_channels(tmp_path: Path, channels: int) -> None:
    model = network(in_channels=channels, channel_order="bgr")
    model.card = model.card.replace(in_channels=channels)
    images = rgb(2, channels, 40, 40)
    wanted = expected(model, images, "feature1")
    if channels == 1:
        close(run(export.onnx(model, tmp_path / "features.onnx", "feature1", pixels="uint8"), images), wanted)
    with torch.inference_mode():
        close(export.program(model, "feature1", pixels="uint8").module()(images), wanted)


def test_contextnet_has_graphs_of_one_size(tmp_path: Path) -> None:
    model = network("contextnet", side=96)
    layers = ("feature1", "feature3", "fc6")
    path = export.onnx(model, tmp_path / "contextnet.onnx", layers)
    images = rgb(3, 3, 96, 96)
    close(run(path, model.transform.normalize(images)), expected(model, images, layers))
    with pytest.raises(Exception, match="96"):
        run(path, model.transform.normalize(rgb(1, 3, 128, 96)))
    with pytest.raises(InvalidInputError, match="fc6 needs"):
        export.onnx(model, tmp_path / "small.onnx", "fc6", size=64)


def test_a_program_takes_batches_of_any_size_and_is_written(tmp_path: Path) -> None:
    model = network()
    made = export.program(model, SHALLOW, "gap")
    path = export.pt2(model, tmp_path / "program.pt2", SHALLOW, "gap")
    files = {"metadata.json": ""}
    read = torch.export.load(path, extra_files=files)
    assert json.loads(json.loads(files["metadata.json"])["layers"]) == list(SHALLOW)
    for shape in ((1, 3, 64, 64), (3, 3, 49, 80)):
        images = rgb(*shape)
        for one in (made, read):
            with torch.inference_mode():
                found = one.module()(model.transform.normalize(images))
            close(found, expected(model, images, SHALLOW, "gap"))


def test_the_model_is_left_as_it_is(tmp_path: Path) -> None:
    model = network().train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    images = rgb(2, 3, 48, 48)
    export.onnx(model, tmp_path / "features.onnx", "feature1")
    assert model.training
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    found = run(tmp_path / "features.onnx", model.transform.normalize(images))
    close(found, expected(model.eval(), images, "feature1"))


def test_a_file_with_other_numbers_is_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = export.onnx_proto

    def damaged(*arguments: Any) -> Any:
        proto = real(*arguments)
        values = proto.graph.initializer[0]
        values.raw_data = (np.frombuffer(values.raw_data, np.float32) * np.float32(1.001)).tobytes()
        return proto

    path = tmp_path / "features.onnx"
    path.write_bytes(b"an earlier file")
    monkeypatch.setattr(export, "onnx_proto", damaged)
    with pytest.raises(WeightsError, match=r"another feature1 .* nothing has been written"):
        export.onnx(network(), path, "feature1")
    assert path.read_bytes() == b"an earlier file"
    assert list(tmp_path.iterdir()) == [path]


def test_a_place_that_cannot_be_written_to(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(StorageError, match="file"):
        export.onnx(network(), tmp_path / "file" / "features.onnx", "feature1")


@pytest.mark.parametrize(
    ("options", "kind", "message"),
    [
        ({"path": "features.pb"}, InvalidInputError, r"features\.pb.*\.onnx"),
        ({"path": "."}, InvalidInputError, r"\.onnx"),
        ({"layers": "layer3"}, UnknownNameError, "Did you mean 'feature4'"),
        ({"pool": "mean"}, UnknownNameError, "pooling 'mean'"),
        ({"pixels": "bgr"}, UnknownNameError, "normalized, unit, uint8"),
        ({"size": 8}, InvalidInputError, "size=8.*32 to 65,536 px"),
        ({"size": (64, 64, 3)}, InvalidInputError, "height, width"),
        ({"size": 224.0}, InvalidInputError, r"size=224\.0.*height, width"),
        ({"size": 1 << 20}, InvalidInputError, "32 to 65,536 px"),
        ({"model": torch.nn.Linear(1, 1)}, InvalidInputError, "given as Linear; .*ContextPredictionModel"),
    ],
)
def test_mistakes(tmp_path: Path, options: dict[str, Any], kind: type[Exception], message: str) -> None:
    given: dict[str, Any] = {"model": network(), "path": "features.onnx", **options}
    given["path"] = tmp_path / given["path"]
    with pytest.raises(kind, match=message):
        export.onnx(**given)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("module", ["onnx", "onnxscript", "onnxruntime"])
def test_a_missing_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, module: str) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(
        InvalidInputError, match=rf'{module}, which is not installed: pip install "context-pred\[onnx\]"'
    ):
        export.onnx(network(), tmp_path / "features.onnx")


def test_the_command(tmp_path: Path) -> None:
    name = "resnet18_1xb64-coslr-300k"
    model = context_pred.load_pretrained(name)
    images = rgb(2, 3, 64, 64)
    for out in ("features.onnx", "features.pt2"):
        line = ["zoo", "export", name, str(tmp_path / out), "--layer", "feature2", "--pool", "gap", "--pixels", "uint8"]
        result = CliRunner().invoke(main, line)
        assert (result.exit_code, result.output) == (0, f"{tmp_path / out}\n")
    wanted = expected(model, images, "feature2", "gap")
    close(run(tmp_path / "features.onnx", images), wanted)
    close(torch.export.load(tmp_path / "features.pt2").module()(images), wanted)
    refused = CliRunner().invoke(main, ["zoo", "export", name, str(tmp_path / "features.tflite")])
    assert refused.exit_code == 2
    assert ".onnx or .pt2" in refused.output
