"""The share of damaged images: judged by what was asked for, and by each rank for itself."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from context_pred.data.collection import Collection, Files
from context_pred.errors import ImageError
from context_pred.pretrain.damaged import Damaged, read


def images(count: int) -> Collection:
    return Files(Path(f"{number}.jpg") for number in range(count))


def asked_for(collection: Collection, broken: set[int], ranks: int, most: float, epochs: int = 2) -> list[Damaged]:
    """Go through the images in a random order, in batches of ten that the ranks take turns at."""
    found = [Damaged() for _ in range(ranks)]
    for epoch in range(epochs):
        order = random.Random(epoch).sample(range(len(collection)), len(collection))
        for number, start in enumerate(range(0, len(order), 10)):
            asked = order[start : start + 10]
            met = [(index, "no image") for index in asked if index in broken]
            mine = found[number % ranks]
            mine.add(collection, met)
            mine.check(collection, asked, met, most)
        for one in found:  # as at a checkpoint: everybody hears of everything
            for other in found:
                one.found.update(other.found)
    return found


@pytest.mark.parametrize("ranks", [1, 2, 8])
@pytest.mark.parametrize(("share", "passes"), [(0.03, True), (0.15, True), (0.3, False)])
def test_the_share_is_of_all_images_however_many_ranks_there_are(ranks: int, share: float, passes: bool):
    collection = images(4000)
    broken = set(random.Random(7).sample(range(4000), int(4000 * share)))
    if passes:
        assert all(len(one.found) == len(broken) for one in asked_for(collection, broken, ranks, 0.2))
    else:
        with pytest.raises(ImageError, match=r"more than run\.damaged_share = 0\.2 allows"):
            asked_for(collection, broken, ranks, 0.2)


@pytest.mark.parametrize(("broken", "passes"), [(3, True), (4, False)])
def test_of_few_images_the_share_is_exact(broken: int, passes: bool):
    if passes:
        asked_for(images(15), set(range(broken)), 1, 0.2, epochs=20)
    else:
        with pytest.raises(ImageError, match=r"4 of the 15 images are damaged.*one is \d+\.jpg: no image"):
            asked_for(images(15), set(range(broken)), 1, 0.2, epochs=20)


def test_images_tried_in_the_place_of_others_do_not_count():
    """One folder of a hundred was copied badly: its images lie side by side, and each is met by way of the others."""
    collection, damaged = images(10_000), Damaged()
    side_by_side = [(index, "no image") for index in range(100)]
    damaged.add(collection, side_by_side)
    damaged.check(collection, [0, *range(500, 509)], side_by_side, 0.2)
    assert len(damaged.found) == 100


def test_the_list_keeps_what_it_has_and_bears_half_a_line(tmp_path: Path):
    first, second = Damaged(), Damaged()
    first.found, second.found = {"a.jpg": "cut off"}, {"b.jpg": "no image"}
    first.write(tmp_path)
    with (tmp_path / "damaged.jsonl").open("a") as file:
        file.write('{"image": "c.j')
    second.write(tmp_path, [{"d.jpg": "empty"}])
    assert read(tmp_path) == {"a.jpg": "cut off", "b.jpg": "no image", "d.jpg": "empty"}
    assert read(tmp_path / "nowhere") == {}
