"""Every engine computes PyTorch's numbers, from tensors in memory and from files, or says why it cannot."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from click.testing import CliRunner
from test_export import rgb
from test_extract import network

import context_pred
from context_pred import engines, extract
from context_pred.cli import main
from context_pred.errors import InvalidInputError, UnknownNameError, WeightsError
from context_pred.extract.storage import Names
from context_pred.graph import apart

openvino = engines._need("openvino", "openvino")
OTHERS = ("onnxruntime", "openvino")
SHALLOW = ("feature1", "feature2")
CLOSE = 5e-5
"""In standard deviations of a layer. The largest difference seen was 3.2e-5: feature5 of a resnet152, OpenVINO."""


def difference(found: dict[str, Any], wanted: dict[str, Any]) -> float:
    assert list(found) == list(wanted)
    assert [found[layer].shape for layer in found] == [wanted[layer].shape for layer in wanted]
    assert {values.dtype for values in found.values()} == {np.dtype(np.float32)}
    return max(apart(found[layer], np.asarray(wanted[layer])) for layer in wanted)


@pytest.mark.parametrize("name", OTHERS)
def test_the_shipped_model_on_tensors_in_memory(name: str) -> None:
    model = context_pred.load_pretrained("resnet18_1xb64-coslr-300k")
    engine = engines.prepare(model, name)
    for images in (rgb(3, 3, 96, 96), rgb(1, 3, 65, 97)):
        normalized = model.transform.normalize(images)
        with torch.inference_mode():
            wanted = model.features(normalized)
        first = engine(images)
        assert difference(first, wanted) < CLOSE
        engine(images.flip(-1))
        assert difference(first, wanted) < CLOSE  # another call leaves what was returned
        assert difference(engine(normalized), wanted) < CLOSE
        assert difference(engine(normalized.contiguous(memory_format=torch.channels_last)), wanted) < CLOSE
        assert difference(engine(images.numpy()), wanted) < CLOSE


@pytest.mark.parametrize("pool", ["gap", "grid"])
@pytest.mark.parametrize("name", OTHERS)
def test_pools(name: str, pool: str) -> None:
    model = network(side=64)
    engine, torchs = (engines.prepare(model, one, "feature2", pool) for one in (name, "torch"))
    for images in (rgb(3, 3, 64, 64), rgb(2, 3, 40, 56))[: 1 if (name, pool) == ("onnxruntime", "grid") else 2]:
        assert difference(engine(images), torchs(images)) < CLOSE


@pytest.mark.slow
@pytest.mark.parametrize("pool", ["none", "gap", "grid"])
@pytest.mark.parametrize("name", OTHERS)
@pytest.mark.parametrize("backbone", ["resnet50", "resnet152", "contextnet-paper"])
def test_every_layer_of_deeper_networks(backbone: str, name: str, pool: str) -> None:
    model = network(backbone, side=128)
    images = rgb(2, 3, 128, 128)
    found, wanted = (engines.prepare(model, one, model.backbone.layers, pool)(images) for one in (name, "torch"))
    assert difference(found, wanted) < CLOSE


@pytest.mark.parametrize(
    ("name", "backbone", "layers", "options"),
    [
        ("onnxruntime", "contextnet", ("feature2", "fc6"), {}),
        ("openvino", "contextnet", ("feature2", "fc6"), {}),
        ("onnxruntime", "resnet18", ("feature1",), {"in_channels": 1}),
        ("openvino", "resnet18", ("feature1",), {"channel_order": "bgr", "mean": (0.3, 0.5, 0.7)}),
    ],
)
def test_other_models(name: str, backbone: str, layers: tuple[str, ...], options: dict[str, Any]) -> None:
    model = network(backbone, side=96, **options)
    model.card = model.card.replace(in_channels=model.backbone.in_channels)
    images = rgb(2, model.backbone.in_channels, 96, 96)
    with torch.inference_mode():
        wanted = model.features(model.transform.normalize(images), layers)
    assert difference(engines.prepare(model, name, layers)(images), wanted) < CLOSE


@pytest.mark.parametrize("dtype", ["float16", torch.float16])
@pytest.mark.parametrize("name", engines.ENGINES)
def test_half_precision_is_stored(name: str, dtype: Any) -> None:
    engine = engines.prepare(network(), name, "feature1", dtype=dtype, device="cpu")
    assert engine(rgb(2, 3, 64, 64))["feature1"].dtype == np.float16


def test_the_threads_are_pytorchs(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = {}
    session, compiled = onnxruntime.InferenceSession, openvino.Core.compile_model

    def recording_session(data: bytes, options: Any, **rest: Any) -> Any:
        asked["onnxruntime"] = options.intra_op_num_threads
        return session(data, options, **rest)

    def recording_compiled(core: Any, model: Any, device: str, settings: dict[str, Any]) -> Any:
        asked["openvino"] = settings["INFERENCE_NUM_THREADS"]
        return compiled(core, model, device, settings)

    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    monkeypatch.setattr(onnxruntime, "InferenceSession", recording_session)
    monkeypatch.setattr(openvino.Core, "compile_model", recording_compiled)
    for name in OTHERS:
        engines.prepare(network(), name, "feature1")
    assert asked == dict.fromkeys(OTHERS, 3)


def test_openvino_reports_nothing_to_its_makers() -> None:
    engines.resolve("openvino")
    assert "openvino.tools.ovc.telemetry_stub" in sys.modules
    assert "openvino_telemetry" not in sys.modules


def run(code: str, **variables: str) -> None:
    """Run code in a process of its own."""
    given = {
        name: value for name, value in os.environ.items() if name not in ("ORT_DISABLE_TELEMETRY", "XDG_CACHE_HOME")
    }
    begun = (
        "from context_pred import engines\nfrom context_pred.zoo.registry import default_name\nimport context_pred\n"
    )
    model = "model = context_pred.load_pretrained(default_name())\n"
    done = subprocess.run([sys.executable, "-c", begun + model + code], env=given | variables, capture_output=True)
    assert done.returncode == 0, (done.returncode, done.stderr.decode())


def test_onnxruntime_reports_nothing_to_its_makers(tmp_path: Path) -> None:
    run("engines.prepare(model, 'onnxruntime', 'feature1')", HOME=str(tmp_path))
    assert not list(tmp_path.rglob("*onnxruntime*"))  # where it notes what it will send


def test_signals_are_handled_after_engines_have_gone() -> None:
    run(
        """
import os, signal
handled = []
signal.signal(signal.SIGUSR1, lambda *_: handled.append(True))
first, second = (engines.prepare(model, "openvino", "feature1") for _ in range(2))
del first
del second
os.kill(os.getpid(), signal.SIGUSR1)
assert handled
"""
    )


@pytest.mark.parametrize("name", OTHERS)
def test_no_file_is_left_behind(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    engines.prepare(network(), name, "feature1")(rgb(2, 3, 64, 64))
    assert not list(tmp_path.iterdir())


def test_auto_is_the_fastest_that_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    gone: set[str] = set()
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name in gone else real(name))
    assert engines.resolve("auto", "cpu") == ("onnxruntime", torch.device("cpu"))
    assert engines.resolve("auto", "cpu", "bfloat16")[0] == "torch"
    gone.add("onnxscript")
    assert engines.resolve("auto", "cpu")[0] == "openvino"
    gone.add("openvino")
    assert engines.resolve("auto", "cpu")[0] == "torch"


def test_auto_is_pytorch_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    from context_pred.extract import network as networks

    monkeypatch.setattr(networks, "find_device", lambda name: torch.device("cuda" if str(name) == "auto" else name))
    assert engines.resolve("auto") == ("torch", torch.device("cuda"))
    assert engines.resolve("openvino") == ("openvino", torch.device("cpu"))
    with pytest.raises(InvalidInputError, match=r"'onnxruntime' computes on the CPU, not on cuda; .*engine='torch'"):
        engines.resolve("onnxruntime", "cuda")


@pytest.mark.parametrize(
    ("options", "kind", "message"),
    [
        ({"engine": "onnx"}, UnknownNameError, "engine 'onnx'. Did you mean 'onnxruntime'"),
        ({"engine": "openvino", "dtype": "bfloat16"}, InvalidInputError, "float32.*engine='torch'"),
        ({"engine": "openvino", "dtype": "int8"}, UnknownNameError, "dtype 'int8'"),
        ({"engine": "openvino", "layers": "layer4"}, UnknownNameError, "feature5"),
        ({"engine": "openvino", "pool": "max"}, UnknownNameError, "pooling 'max'"),
        ({"model": "resnet18_1xb64-coslr-300k"}, InvalidInputError, "given as str; .*load_pretrained"),
    ],
)
def test_mistakes(options: dict[str, Any], kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=message):
        engines.prepare(**{"model": network(), **options})


@pytest.mark.parametrize(("name", "extra"), [("onnxruntime", "onnx"), ("openvino", "openvino")])
def test_a_missing_package(name: str, extra: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(InvalidInputError, match=rf'not installed: pip install "context-pred\[{extra}\]"'):
        engines.prepare(network(), name)


def test_images_of_another_shape_or_kind() -> None:
    engine = engines.prepare(network(), "torch", "feature1")
    strange = ([[1]], None, np.zeros((1, 3, 64, 64), object), rgb(2, 3, 0, 64))
    for images in (rgb(3, 64, 64), rgb(2, 64, 64, 3), rgb(2, 3, 64, 64).long(), *strange):
        with pytest.raises(InvalidInputError, match=r"accepted: a tensor or an array \(N, 3, H, W\), uint8"):
            engine(images)


def test_arrays_of_the_other_byte_order() -> None:
    engine = engines.prepare(network(), "torch", "feature1")
    images = rgb(2, 3, 64, 64).numpy().astype(np.float32)
    assert np.array_equal(engine(images.astype(">f4"))["feature1"], engine(images)["feature1"])


@pytest.mark.parametrize("name", engines.ENGINES)
def test_no_images_have_no_features(name: str) -> None:
    assert engines.prepare(network(), name, "feature2")(rgb(0, 3, 64, 64))["feature2"].shape == (0, 64, 16, 16)


def test_an_engine_with_other_numbers_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    real = engines._onnxruntime

    def rounded(*arguments: Any) -> Any:
        run = real(*arguments)
        return lambda x: [torch.from_numpy(values).bfloat16().float().numpy() for values in run(x)]

    monkeypatch.setattr(engines, "_onnxruntime", rounded)
    with pytest.raises(WeightsError, match=r"'onnxruntime' computes another feature1 .*engine='torch'"):
        engines.prepare(network(), "onnxruntime", "feature1")


def settings(out: Path) -> dict[str, Any]:
    return dict(json.loads(extract.storage.read_header(out)[1]["context_pred"]))


@pytest.fixture
def folder(tmp_path: Path, photos: Path) -> Path:
    """Five photographs."""
    found = tmp_path / "photos"
    found.mkdir()
    for path in sorted(photos.glob("*.jpg"))[:5]:
        (found / path.name).symlink_to(path)
    return found


def test_files_are_extracted_with_every_engine(folder: Path, tmp_path: Path) -> None:
    model = network()
    options: dict[str, Any] = {"layers": SHALLOW, "batch_size": 2, "device": "cpu", "progress": False}
    rows = {}
    for name in engines.ENGINES:
        out = tmp_path / f"{name}.safetensors"
        assert extract.run(folder, model, out=out, engine=name, **options).computed == 5
        assert extract.run(folder, model, out=out, engine=name, **options).computed == 0
        assert settings(out).get("engine", "torch") == name
        rows[name] = extract.load(out)[1]
    assert "engine" not in settings(tmp_path / "torch.safetensors")  # as features have that were kept before
    for name in OTHERS:
        assert difference(rows[name], rows["torch"]) < CLOSE
    with pytest.raises(InvalidInputError, match="engine was 'torch' and is 'openvino'"):
        extract.run(folder, model, out=tmp_path / "torch.safetensors", engine="openvino", **options)
    with pytest.raises(InvalidInputError, match="engine was 'openvino' and is 'torch'"):
        extract.run(folder, model, out=tmp_path / "openvino.safetensors", **options)


def test_a_run_goes_on_with_its_own_engine_only(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from context_pred.extract import work

    model, out = network(), tmp_path / "out.safetensors"
    options: dict[str, Any] = {"layers": "feature1", "batch_size": 2, "device": "cpu", "progress": False}
    real = work.write_part

    def stopped(path: Path, *content: Any) -> None:
        if path != Names.of(out).part(0):
            raise KeyboardInterrupt
        real(path, *content)

    monkeypatch.setattr(work, "write_part", stopped)
    with pytest.raises(KeyboardInterrupt):
        extract.run(folder, model, out=out, engine="openvino", **options)
    monkeypatch.setattr(work, "write_part", real)
    with pytest.raises(InvalidInputError, match=r"unfinished run.*engine was 'openvino' and is 'torch'"):
        extract.run(folder, model, out=out, **options)
    assert extract.run(folder, model, out=out, engine="openvino", **options).computed == 3


def test_the_command(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.safetensors"
    line = ["extract", str(folder), "--out", str(out), "--layer", "feature1", "--engine", "auto", "--device", "cpu"]
    result = CliRunner().invoke(main, line)
    assert result.exit_code == 0, result.output
    assert settings(out)["engine"] == "onnxruntime"
    refused = CliRunner().invoke(main, [*line, "--dtype", "bfloat16", "--engine", "openvino"])
    assert refused.exit_code == 2
    assert "engine='torch'" in refused.output
