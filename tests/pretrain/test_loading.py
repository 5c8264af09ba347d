"""Micro-batches: the same with any number of workers, full though images are damaged."""

from __future__ import annotations

import itertools
import os
import signal
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from context_pred.data.collection import Collection, Files, collect
from context_pred.errors import ImageError
from context_pred.patches import GridPatchSampler, RandomPairSampler
from context_pred.pretrain import loading
from context_pred.pretrain.loading import MicroBatch, load
from context_pred.pretrain.prepare import ImageOptions, Preparation
from context_pred.training import keys
from context_pred.training.examples import WorkerError

pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create")  # more workers than this machine's cores

SAMPLER = GridPatchSampler(60, 16)
PREPARATION = Preparation(ImageOptions(resize=70), SAMPLER)
PAIRS = Preparation(ImageOptions(resize=120), RandomPairSampler(patch=24, gap=8, jitter=3, count=2))


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten pictures, of which numbers 3, 4 and 9 are damaged."""
    folder = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    for number in range(10):
        small = Image.fromarray(rng.integers(0, 256, (9, 12, 3), dtype=np.uint8))
        kind = "png" if number == 6 else "jpg"
        small.resize((120 + number, 90)).save(folder / f"{number}.{kind}")
    whole = (folder / "3.jpg").read_bytes()
    (folder / "3.jpg").write_bytes(whole[: len(whole) // 2])
    (folder / "4.jpg").write_bytes(b"")
    (folder / "9.jpg").unlink()
    (folder / "9.jpg").write_text("words")
    return folder


def all_batches() -> list[list[tuple[int, int]]]:
    return [[(0, 0), (0, 1), (0, 2)], [(0, 3), (0, 6), (0, 8)], [(1, 9), (1, 0), (1, 5)], [(1, 7)]]


def same(a: MicroBatch, b: MicroBatch) -> bool:
    tensors = zip(a.images, b.images, strict=True)
    fields = ("boxes", "image", "neighbor", "center", "position", "grayscale")
    drawn = ((getattr(a.draw, name), getattr(b.draw, name)) for name in fields)
    return (a.index, a.damaged) == (b.index, b.damaged) and all(
        (x is None and y is None) or torch.equal(x, y) for x, y in itertools.chain(tensors, drawn)
    )


@pytest.mark.parametrize("preparation", [PREPARATION, PAIRS], ids=["grid", "pairs"])
def test_any_number_of_workers_gives_the_same(images: Path, preparation: Preparation) -> None:
    collection = collect(images)
    runs = [list(load(collection, preparation, all_batches(), seed=7, workers=n)) for n in (0, 1, 3)]
    for run in runs[1:]:
        assert len(run) == len(runs[0]) == 4
        assert all(same(a, b) for a, b in zip(run, runs[0], strict=True))
    other = next(load(collection, preparation, all_batches(), seed=8))
    assert not torch.equal(
        other.draw.boxes[: len(runs[0][0].draw.boxes)], runs[0][0].draw.boxes[: len(other.draw.boxes)]
    )


def test_a_batch_is_its_images_each_with_its_own_generator(images: Path) -> None:
    collection = collect(images)
    (batch,) = load(collection, PREPARATION, [[(2, 5), (2, 0), (2, 6)]], seed=7)
    assert isinstance(batch.images, torch.Tensor)
    assert batch.images.shape == (3, 3, 60, 60)
    assert batch.index == (5, 0, 6)
    assert batch.damaged == ()
    for place, image in enumerate(batch.index):
        alone = PREPARATION(collection.read(image), keys.generator(7, 2, image))
        assert torch.equal(batch.images[place], alone.pixels)
        assert torch.equal(batch.draw.boxes[9 * place : 9 * place + 9], alone.draw.boxes)
        assert (batch.draw.image[9 * place : 9 * place + 9] == place).all()
    pairs = SAMPLER.cut(batch.images, batch.draw)
    assert pairs.patches.shape == (27, 3, 16, 16)
    assert len(pairs) == 24


def test_lots_do_not_change_a_batch(images: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = list(load(collect(images), PREPARATION, all_batches(), seed=7))
    monkeypatch.setattr(loading, "TOGETHER", 1)
    after = list(load(collect(images), PREPARATION, all_batches(), seed=7))
    assert all(same(a, b) for a, b in zip(before, after, strict=True))


def test_images_of_differing_sizes_are_a_list(images: Path) -> None:
    (batch,) = load(collect(images), PAIRS, [[(0, 0), (0, 5)]], seed=7)
    assert isinstance(batch.images, list)
    assert [tuple(image.shape) for image in batch.images] == [(3, 120, 160), (3, 120, 166)]
    assert isinstance(PAIRS.sampler, RandomPairSampler)
    PAIRS.sampler.cut(batch.images, batch.draw, keys.generator(0))


def test_the_next_readable_image_stands_in_for_a_damaged_one(images: Path) -> None:
    collection = collect(images)
    one, two = load(collection, PREPARATION, [[(0, 2), (0, 3), (0, 4)], [(0, 9), (0, 8)]], seed=7)
    assert one.index == (2, 5, 5)
    assert two.index == (0, 8)
    assert [image for image, _ in one.damaged] == [3, 4]
    reasons = dict(one.damaged + two.damaged)
    assert "truncated" in reasons[3]
    assert reasons[4] == "empty file"
    assert reasons[9].startswith("not an image")
    # The draws are the place's, whichever image is shown there.
    stand_in = PREPARATION(collection.read(5), keys.generator(7, 0, 3))
    assert torch.equal(one.images[1], stand_in.pixels)
    assert torch.equal(one.draw.boxes[9:18], stand_in.draw.boxes)
    assert not torch.equal(one.draw.boxes[9:18], one.draw.boxes[18:27])


@pytest.mark.parametrize("workers", [0, 2])
def test_too_many_damaged_images_in_a_row_are_an_error(tmp_path: Path, images: Path, workers: int) -> None:
    missing = [tmp_path / f"{number}.jpg" for number in range(150)]
    with pytest.raises(ImageError, match=r"^100 images in a row cannot be read, from .*/7\.jpg on: no such file$"):
        list(load(Files([*missing, images / "0.jpg"]), PREPARATION, [[(0, 7)]], seed=1, workers=workers))
    (batch,) = load(Files([*missing, images / "0.jpg"]), PREPARATION, [[(0, 60)]], seed=1, workers=workers)
    assert batch.index == (150,)
    assert len(batch.damaged) == 90
    with pytest.raises(ImageError, match="3 images in a row"):
        list(load(Files(missing[:3]), PREPARATION, [[(0, 1)]], seed=1, workers=workers))


@pytest.mark.parametrize("workers", [0, 2])
def test_endless_batches_and_a_loader_left_early(images: Path, workers: int) -> None:
    def endless() -> Iterator[Sequence[tuple[int, int]]]:
        for epoch in itertools.count():
            yield [(epoch, 0), (epoch, 1)]

    coming = load(collect(images), PREPARATION, endless(), seed=1, workers=workers)
    boxes = [next(coming).draw.boxes for _ in range(6)]
    assert len({tuple(one.flatten().tolist()) for one in boxes}) == 6
    coming.close()  # type: ignore[attr-defined]


@pytest.mark.parametrize("workers", [0, 2])
def test_the_global_generator_is_left_alone(images: Path, workers: int) -> None:
    state = torch.random.get_rng_state()
    list(load(collect(images), PREPARATION, all_batches(), seed=1, workers=workers))
    assert torch.equal(torch.random.get_rng_state(), state)


def test_many_images_of_differing_sizes_need_few_open_files(images: Path) -> None:
    resource = pytest.importorskip("resource")
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    held = len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 64
    resource.setrlimit(resource.RLIMIT_NOFILE, (held + 100, before[1]))
    try:
        batches = [[(epoch, image) for image in (0, 1, 2, 5, 7) * 8] for epoch in range(4)]
        found = list(load(collect(images), PAIRS, batches, seed=1, workers=1))
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
    assert [len(batch.images) for batch in found] == [40] * 4


class _Deadly(Collection):
    """Ends the process that reads it."""

    names = ("a.jpg",)

    def __init__(self, how: int) -> None:
        self.how = how

    def read(self, i: int) -> bytes:
        os.kill(os.getpid(), self.how)
        return b""


def test_a_worker_that_dies_is_an_error_that_says_what_to_do() -> None:
    with pytest.raises(WorkerError, match=r"died \(DataLoader worker.*--shm-size.*--workers"):
        list(load(_Deadly(signal.SIGKILL), PREPARATION, [[(0, 0)]], seed=1, workers=1))


def test_a_worker_goes_on_after_the_signals_that_a_whole_group_gets(images: Path) -> None:
    class Signalled(Files):
        def read(self, i: int) -> Path:
            os.kill(os.getpid(), signal.SIGTERM)
            os.kill(os.getpid(), signal.SIGINT)
            return super().read(i)

    found = list(load(Signalled([images / "0.jpg"]), PREPARATION, [[(0, 0)], [(1, 0)], [(2, 0)]], seed=1, workers=1))
    assert [batch.index for batch in found] == [(0,)] * 3


def test_workers_use_one_thread(images: Path) -> None:
    class Counted(Files):
        def read(self, i: int) -> Path:
            if torch.get_num_threads() != 1:
                raise ImageError(f"{self.names[i]}: {torch.get_num_threads()} threads")
            return super().read(i)

    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        (batch,) = load(Counted([images / "0.jpg"]), PREPARATION, [[(0, 0)]], seed=1, workers=1)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
    assert batch.index == (0,)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("workers", [0, 2])
def test_pinned_memory(images: Path, workers: int) -> None:
    (batch,) = load(collect(images), PREPARATION, [[(0, 0)]], seed=1, workers=workers, pin_memory=True)
    assert isinstance(batch.images, torch.Tensor)
    assert batch.images.is_pinned()
