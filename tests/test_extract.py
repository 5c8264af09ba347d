"""Extraction: features on disk equal the model's, whatever happens on the way."""

from __future__ import annotations

import json
import os
import resource
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.numpy import load_file

from context_pred import ContextPredictionModel, extract
from context_pred.data import open_image
from context_pred.data.transforms import EvalTransform
from context_pred.errors import (
    ImageError,
    InvalidInputError,
    NotCachedError,
    StorageError,
    UnknownNameError,
)
from context_pred.extract.network import fold_batch_norms


def network(name: str = "resnet18", side: int = 64, **entries: Any) -> ContextPredictionModel:
    """A random network for small images, its batch norms no identities."""
    torch.manual_seed(0)
    model = ContextPredictionModel(name, pair_layers=False, in_channels=entries.get("in_channels", 3))
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d) and module.weight is not None:
            torch.nn.init.uniform_(module.weight, 0.5, 1.5)
            torch.nn.init.uniform_(module.bias, -0.2, 0.2)
            torch.nn.init.uniform_(module.running_mean, -0.2, 0.2)
            torch.nn.init.uniform_(module.running_var, 0.5, 1.5)
    model.card = model.card.replace(resize=side, crop=side, **entries)
    return model.eval()


def picture(path: Path, seed: int, size: tuple[int, int] = (90, 70)) -> Path:
    noise = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(noise).resize(size).save(path)
    return path


@pytest.fixture(scope="module")
def model() -> ContextPredictionModel:
    return network()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Eleven images, of which the fourth is cut off."""
    photos = tmp_path / "photos"
    for k in range(11):
        picture(photos / f"{k}.png", k)
    data = (photos / "3.png").read_bytes()
    (photos / "3.png").write_bytes(data[: len(data) // 2])
    return photos


def run(images: Any, model: Any, out: Path, **options: Any) -> extract.Summary:
    return extract.run(images, model, out=out, **{"batch_size": 4, "progress": False, "device": "cpu"} | options)


def expected(model: ContextPredictionModel, paths: list[str], layer: str, pool: str = "gap") -> torch.Tensor:
    with torch.inference_mode():
        return model.embed(torch.stack([model.transform(open_image(path)) for path in paths]), layer, pool)


def close(found: Any, wanted: torch.Tensor, tolerance: float = 1e-4) -> None:
    difference = torch.from_numpy(np.array(found, np.float32)).flatten(1) - wanted
    assert difference.abs().max() <= tolerance * wanted.std()


def test_rows_are_the_models_features_in_the_order_of_the_index(
    folder: Path, model: ContextPredictionModel, tmp_path: Path
) -> None:
    summary = run(folder, model, tmp_path / "deep" / "out.safetensors", layers=["feature5", "feature2"])
    names = [str(folder / f"{k}.png") for k in range(11)]
    lines = [json.loads(line) for line in (tmp_path / "deep" / "out.index.jsonl").read_text().splitlines()]
    assert [line["path"] for line in lines] == names
    assert [line.get("row") for line in lines] == [0, 1, 2, None, 3, 4, 5, 6, 7, 8, 9]
    assert "error" in lines[3]
    paths, arrays = extract.load(tmp_path / "deep" / "out.safetensors")
    assert paths == names[:3] + names[4:] == list(summary.paths)
    assert list(arrays) == ["feature2", "feature5"]
    for layer, array in arrays.items():
        assert isinstance(array, np.memmap)
        assert not array.flags.writeable
        close(array, expected(model, paths, layer))
        assert (load_file(tmp_path / "deep" / "out.safetensors")[layer] == array).all()  # the format, by its library
    assert summary.rows == 10
    assert summary.shapes == {"feature2": (10, 64), "feature5": (10, 512)}
    assert list(summary.errors) == [names[3]]
    assert summary.images_per_second > 0
    for part in ("10 rows", "1 file skipped", f"{names[3]} (", "images/s"):
        assert part in str(summary)
    assert sorted(path.name for path in (tmp_path / "deep").iterdir()) == ["out.index.jsonl", "out.safetensors"]


@pytest.mark.parametrize(("pool", "shape"), [("grid", (3, 256, 3, 3)), ("none", (3, 256, 14, 14))])
def test_pools(tmp_path: Path, pool: str, shape: tuple[int, ...]) -> None:
    images = [picture(tmp_path / f"{k}.png", k) for k in range(3)]
    model = network(side=224)
    run(images, model, tmp_path / "out", layers="feature4", pool=pool)
    found = extract.load(tmp_path / "out")[1]["feature4"]
    assert found.shape == shape
    close(found, expected(model, [str(path) for path in images], "feature4", pool))
    if pool == "grid":  # MultiPooling: windows of 8, 3 apart
        maps = model.features(torch.stack([model.transform(open_image(path)) for path in images]), "feature4")
        windows = torch.nn.functional.avg_pool2d(maps["feature4"], 8, 3)
        close(found, windows.flatten(1).detach())


@pytest.mark.parametrize(
    "entries", [{"channel_order": "bgr", "mean": (0.1, 0.4, 0.7)}, {"in_channels": 1}], ids=["bgr", "grey"]
)
def test_the_cards_preprocessing_is_used(folder: Path, tmp_path: Path, entries: dict[str, Any]) -> None:
    model = network(**entries)
    run(folder, model, tmp_path / "out")
    paths, arrays = extract.load(tmp_path / "out")
    close(arrays["feature5"], expected(model, paths, "feature5"))


def test_another_transform_takes_the_place_of_the_models(
    folder: Path, model: ContextPredictionModel, tmp_path: Path
) -> None:
    other = EvalTransform(resize=40, crop=32, mean=(0.5, 0.4, 0.3), channel_order="bgr")
    run(folder, model, tmp_path / "f", transform=other)
    paths, arrays = extract.load(tmp_path / "f")
    with torch.inference_mode():
        wanted = model.embed(torch.stack([other(open_image(path)) for path in paths]))
    np.testing.assert_allclose(arrays["feature5"], wanted, atol=1e-4)
    with pytest.raises(InvalidInputError, match="transform was"):
        run(folder, model, tmp_path / "f")
    with pytest.raises(InvalidInputError, match="gives 1 channels, and the model takes 3"):
        run(folder, model, tmp_path / "g", transform=EvalTransform(in_channels=1))


def test_contextnet_and_its_fc6(folder: Path, tmp_path: Path) -> None:
    model = network("contextnet", side=96)
    run(folder, model, tmp_path / "out", layers=["feature3", "fc6"], pool="grid")
    paths, arrays = extract.load(tmp_path / "out")
    assert arrays["feature3"].shape == (10, 384, 4, 4)
    for layer in arrays:
        close(arrays[layer], expected(model, paths, layer, "grid"))


def test_the_model_is_left_as_it_was(folder: Path, tmp_path: Path) -> None:
    model = network().train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    run(folder, model, tmp_path / "out")
    assert model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert model.backbone.conv1.weight.is_contiguous()


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_folding_keeps_the_numbers(name: str) -> None:
    model = network(name)
    x = torch.randn(2, 3, 64, 64)
    with torch.inference_mode():
        wanted = model.features(x)
        found = fold_batch_norms(model.backbone)(x)
    assert not any(isinstance(module, torch.nn.BatchNorm2d) for module in model.backbone.modules())
    for layer, value in wanted.items():
        assert (found[layer] - value).abs().max() <= 5e-5 * value.std(), layer


def test_dtypes(folder: Path, model: ContextPredictionModel, tmp_path: Path) -> None:
    for dtype, stored, tolerance in (("float16", np.float16, 2e-3), ("bfloat16", np.float32, 0.1)):
        run(folder, model, tmp_path / dtype, dtype=dtype)
        paths, arrays = extract.load(tmp_path / dtype)
        assert arrays["feature5"].dtype == stored
        close(arrays["feature5"], expected(model, paths, "feature5"), tolerance)


def test_threads_and_damaged_images_change_no_byte(folder: Path, model: ContextPredictionModel, tmp_path: Path) -> None:
    run(folder, model, tmp_path / "a", workers=0)
    run(folder, model, tmp_path / "b", workers=3)
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()
    without = extract.load(tmp_path / "a")[1]["feature5"]
    picture(folder / "3.png", 3)
    run(folder, model, tmp_path / "c")
    whole = extract.load(tmp_path / "c")[1]["feature5"]
    assert (np.delete(whole, 3, 0) == without).all()


def test_strict_stops_at_the_first_damaged_file(folder: Path, model: ContextPredictionModel, tmp_path: Path) -> None:
    with pytest.raises(ImageError, match=r"3\.png: "):
        run(folder, model, tmp_path / "out", strict=True)
    assert not (tmp_path / "out.safetensors").exists()
    run(folder, model, tmp_path / "out")
    with pytest.raises(ImageError, match=r"3\.png: "):  # also when the output is there already
        run(folder, model, tmp_path / "out", strict=True)


def test_nothing_but_damaged_files_leaves_nothing_behind(model: ContextPredictionModel, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "notes.txt").write_text("no image")
    with pytest.raises(ImageError, match=r"None of 1 files could be opened.*notes\.txt: not an image"):
        run(tmp_path / "in", model, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


def test_what_the_summary_counts(
    model: ContextPredictionModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    photos = tmp_path / "photos"
    picture(photos / "0.png", 0)
    (photos / "1.heic").write_bytes(b"\0\0\0\x18ftypheic" + bytes(40))
    for k, top in enumerate((4095, 65535, 200)):
        Image.fromarray(np.linspace(0, top, 64 * 64).astype(np.uint16).reshape(64, 64)).save(photos / f"deep{k}.png")
    (photos / "readme.md").write_text("# no image")
    for _ in range(2):  # the second time from the finished file
        summary = run(photos, model, tmp_path / "out")
        assert (summary.rows, summary.sixteen_bit, summary.dim) == (4, 3, 2)
        assert summary.heif == (str(photos / "1.heic"),)
        assert len(summary.errors) == 2
        text = str(summary)
        for part in ("1 HEIC file", 'pip install "context-pred[heif]"', "3 images of 16 bits, 2 of", "--range 0 4095"):
            assert part in text
        assert "1 file skipped" in text
    bright = run(photos, model, tmp_path / "bright", value_range=(0, 4095))
    paths, arrays = extract.load(tmp_path / "bright")
    row = paths.index(str(photos / "deep0.png"))
    with torch.inference_mode():
        opened = open_image(photos / "deep0.png", value_range=(0, 4095))
        close(arrays["feature5"][row][None], model.embed(model.transform(opened)[None]))
    assert bright.rows == 4


def test_the_output_may_lie_among_the_images(folder: Path, model: ContextPredictionModel) -> None:
    first = run(folder, model, folder / "out.safetensors")
    again = run(folder, model, folder / "out.safetensors")
    assert again.computed == 0
    assert again.errors.keys() == first.errors.keys()
    assert len(first.errors) == 1


def test_a_finished_output_is_kept_unless_told(folder: Path, model: ContextPredictionModel, tmp_path: Path) -> None:
    out = tmp_path / "out.safetensors"
    run(folder, model, out)
    data = out.read_bytes()
    stamp = out.stat().st_mtime_ns
    again = run(folder, model, out)
    assert (again.computed, again.images_per_second, again.rows) == (0, 0, 10)
    assert out.stat().st_mtime_ns == stamp
    for options, difference in (
        ({"layers": "feature4"}, "layers was .*feature5.* and is .*feature4"),
        ({"batch_size": 5}, "batch_size was 4 and is 5"),
        ({"shard_rows": 3}, "shard_rows was None and is 3"),
    ):
        with pytest.raises(InvalidInputError, match=rf"{difference}.*--overwrite"):
            run(folder, model, out, **options)
    picture(folder / "0.png", 77)
    with pytest.raises(InvalidInputError, match="files have changed"):
        run(folder, model, out)
    other = network()
    torch.nn.init.ones_(other.backbone.bn1.weight)
    with pytest.raises(InvalidInputError, match="weights have changed"):
        run(folder, other, out)
    assert out.read_bytes() == data
    assert run(folder, model, out, overwrite=True).computed == 11
    assert out.read_bytes() != data
    run(folder, model, out, shard_rows=4, overwrite=True)  # and the file goes when shards replace it
    assert not out.exists()
    assert extract.load(out)[1]["feature5"].shape == (10, 512)


def test_other_programs_files_are_not_overwritten(folder: Path, model: ContextPredictionModel, tmp_path: Path) -> None:
    (tmp_path / "out.safetensors").write_bytes(b"somebody's work")
    with pytest.raises(InvalidInputError, match=r"out\.safetensors is there, and is no finished output"):
        run(folder, model, tmp_path / "out.safetensors")
    assert (tmp_path / "out.safetensors").read_bytes() == b"somebody's work"
    (tmp_path / "d.safetensors").mkdir()
    with pytest.raises(InvalidInputError, match="is a folder"):
        run(folder, model, tmp_path / "d.safetensors")


def test_shards(folder: Path, model: ContextPredictionModel, tmp_path: Path) -> None:
    run(folder, model, tmp_path / "one", layers=["feature3", "feature5"])
    summary = run(folder, model, tmp_path / "s.safetensors", layers=["feature3", "feature5"], shard_rows=3)
    names = [f"s-0000{k}-of-00004.safetensors" for k in (1, 2, 3, 4)]
    assert [path.name for path in summary.out] == names
    assert [len(load_file(tmp_path / name)["feature3"]) for name in names] == [3, 3, 3, 1]
    paths, whole = extract.load(tmp_path / "one")
    same, rows = extract.load(tmp_path / "s")
    assert same == paths
    for layer in whole:
        array, sharded = np.asarray(whole[layer]), rows[layer]
        assert isinstance(sharded, extract.Rows)
        assert (sharded.shape, sharded.dtype, len(sharded)) == (array.shape, array.dtype, 10)
        assert (np.asarray(sharded) == array).all()
        assert (np.stack(list(sharded)) == array).all()
        keys: list[Any] = [
            0, -1, 7, slice(2, 8), slice(None, None, -3), [5, 1, 1, 9], np.array([[0, 9], [4, 4]]), array[:, 0] > 0.5,
            (slice(1, 7), slice(0, 5)), (3, 2), [], slice(4, 4), np.int64(6), (slice(None), 3), Ellipsis,
        ]  # fmt: skip
        for key in keys:
            assert np.array_equal(sharded[key], array[key]), key
        with pytest.raises(IndexError):
            sharded[10]
        assert "4 files" in repr(sharded)
    (tmp_path / names[1]).unlink()
    with pytest.raises(InvalidInputError, match="Shards are missing"):
        extract.load(tmp_path / "s")


def test_load_says_what_is_wrong(folder: Path, model: ContextPredictionModel, tmp_path: Path) -> None:
    with pytest.raises(NotCachedError, match=r"nothing\.safetensors is not there"):
        extract.load(tmp_path / "nothing")
    run(folder, model, tmp_path / "out")
    data = (tmp_path / "out.safetensors").read_bytes()
    index = (tmp_path / "out.index.jsonl").read_text()
    (tmp_path / "out.safetensors").write_bytes(data[:-100])
    with pytest.raises(InvalidInputError, match="cut off"):
        extract.load(tmp_path / "out")
    (tmp_path / "out.safetensors").write_bytes(b"hello, I am a text file called .safetensors")
    with pytest.raises(InvalidInputError, match="not a file of features"):
        extract.load(tmp_path / "out")
    (tmp_path / "out.safetensors").write_bytes(data)
    (tmp_path / "out.index.jsonl").write_text("".join(index.splitlines(keepends=True)[1:]))
    with pytest.raises(InvalidInputError, match=r"10 rows, and the index .* names 9"):
        extract.load(tmp_path / "out")
    (tmp_path / "out.index.jsonl").write_text(index + "{}\n")
    with pytest.raises(InvalidInputError, match="is not the index"):
        extract.load(tmp_path / "out")


def test_a_full_disk_keeps_what_was_computed(folder: Path, model: ContextPredictionModel, tmp_path: Path) -> None:
    out = tmp_path / "out.safetensors"
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    # A file that may not grow beyond a limit fails as one on a full disk does: in the middle of a write.
    for limit, what in ((4000, r"part-0000000\d"), (10_000, r"out\.safetensors")):
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
        try:
            with pytest.raises(StorageError, match=rf"{what}.* cannot be written: .*same command"):
                run(folder, model, out)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        assert not out.exists()
        assert not list(tmp_path.rglob("*.tmp"))
    with pytest.raises(NotCachedError, match="has not finished"):
        extract.load(out)
    assert run(folder, model, out).computed == 0  # the limit of the second round left room for the parts
    assert extract.load(out)[1]["feature5"].shape == (10, 512)


def test_a_place_that_cannot_be_written_to(folder: Path, model: ContextPredictionModel, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match="cannot be written"):
        run(folder, model, tmp_path / "file" / "out.safetensors")
    if os.geteuid() != 0:
        (tmp_path / "locked").mkdir(mode=0o500)
        with pytest.raises(StorageError, match="cannot be written: Permission denied"):
            run(folder, model, tmp_path / "locked" / "out.safetensors")


def test_mistakes(folder: Path, model: ContextPredictionModel, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    out = tmp_path / "out"
    table: list[tuple[type[Exception], str, dict[str, Any]]] = [
        (UnknownNameError, "feature6.*feature5", {"layers": ["feature6"]}),
        (UnknownNameError, "gapp.*gap", {"pool": "gapp"}),
        (UnknownNameError, "float64.*float32", {"dtype": "float64"}),
        (InvalidInputError, "device='cuda:99'|device='abc'", {"device": "abc"}),
        (InvalidInputError, "batch_size=0", {"batch_size": 0}),
        (InvalidInputError, "workers=-1", {"workers": -1}),
        (InvalidInputError, "shard_rows=0", {"shard_rows": 0}),
        (InvalidInputError, "background", {"background": (0, 0)}),
        (InvalidInputError, "value_range", {"value_range": (1, 0)}),
        (InvalidInputError, "4 input channels", {"model": network(in_channels=4)}),
        (InvalidInputError, "No images in the folder", {"images": tmp_path / "empty"}),
    ]
    for kind, message, options in table:
        given = {"images": folder, "model": model, "out": out} | options
        with pytest.raises(kind, match=message):
            run(**given)
    assert not list(tmp_path.glob("out*"))


SCRIPT = """
import sys, torch
sys.path.insert(0, {tests!r})
from test_extract import network, run
from pathlib import Path
from context_pred.errors import ContextPredError
torch.set_num_threads(1)
for folder, out in zip(sys.argv[1::2], sys.argv[2::2]):
    try:
        print(run(folder, network(), Path(out)), flush=True)
    except ContextPredError as error:
        print(type(error).__name__, error, flush=True)
threads = [path.read_text() for path in Path("/proc/self/task").glob("*/comm")]  # none where there is no /proc
print(sum("gloo" in name for name in threads), "threads of gloo left", flush=True)
"""


def start(*folders_and_outs: Path, **environment: str) -> subprocess.Popen[str]:
    """Run extractions, one after the other, in a process of its own."""
    script = SCRIPT.format(tests=str(Path(__file__).parent))
    paths = os.pathsep.join([str(Path(__file__).parent.parent), *filter(None, sys.path)])
    return subprocess.Popen(
        [sys.executable, "-c", script, *map(str, folders_and_outs)],
        env={**os.environ, "PYTHONPATH": paths, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.usefixtures("one_thread")
def test_a_killed_run_goes_on(model: ContextPredictionModel, tmp_path: Path) -> None:
    folder = tmp_path / "photos"
    for k in range(120):
        picture(folder / f"{k}.png", k)
    (folder / "9.png").write_bytes(b"damaged")
    process = start(folder, tmp_path / "out")
    parts = tmp_path / "out.parts"
    while process.poll() is None and not (parts / "part-00000002.safetensors").exists():
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    there = sorted(path for path in parts.iterdir() if path.suffix == ".safetensors")
    assert 3 <= len(there) < 30, "killed in the middle"
    assert not (tmp_path / "out.safetensors").exists()
    with pytest.raises(InvalidInputError, match=r"unfinished run with other settings: pool was 'gap'.*go on"):
        run(folder, model, tmp_path / "out", pool="grid")
    there[1].write_bytes(there[1].read_bytes()[:-1])  # as a power failure would
    summary = run(folder, model, tmp_path / "out")
    assert summary.computed == 120 - 4 * (len(there) - 1)
    assert summary.rows == 119
    run(folder, model, tmp_path / "straight")
    for ending in (".safetensors", ".index.jsonl"):
        assert (tmp_path / f"out{ending}").read_bytes() == (tmp_path / f"straight{ending}").read_bytes()
    assert not parts.exists()


def test_two_ranks_write_the_file_of_one(folder: Path, model: ContextPredictionModel, tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    torchrun = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": "2"}
    (tmp_path / "empty").mkdir()
    jobs = (folder, tmp_path / "two", tmp_path / "empty", tmp_path / "none")
    ranks = [start(*jobs, RANK=str(k), LOCAL_RANK=str(k), **torchrun) for k in range(2)]
    for process in ranks:
        output, errors = process.communicate(timeout=300)
        assert process.returncode == 0, errors
        assert "10 rows of feature5" in output
        assert "InvalidInputError No images in the folder" in output  # what the first rank finds wrong reaches all
        assert "\n0 threads of gloo left" in output  # they abort a process that Python leaves before them
    run(folder, model, tmp_path / "one")
    for ending in (".safetensors", ".index.jsonl"):
        assert (tmp_path / f"two{ending}").read_bytes() == (tmp_path / f"one{ending}").read_bytes()
    assert not (tmp_path / "two.parts").exists()
