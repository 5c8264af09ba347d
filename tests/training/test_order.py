"""The order of images: upstream's counts, and nothing of the hardware in it."""

from __future__ import annotations

import itertools

import pytest

from context_pred.errors import InvalidInputError
from context_pred.training.order import GroupedOrder, Order


def epoch_of(order: Order, epoch: int, ranks: int = 1) -> list[int]:
    first = epoch * order.steps_per_epoch
    return [
        image
        for step in range(first, first + order.steps_per_epoch)
        for rank in range(ranks)
        for number in order.numbers(rank, ranks)
        for _, image in order.micro_batch(step, number)
    ]


def test_imagenet_on_eight_gpus_takes_upstreams_steps():
    order = Order(1_281_167, 512, 64, seed=0)
    assert order.steps_per_epoch == 2503
    assert [len(order.micro_batch(2501, m)) for m in range(8)] == [64] * 8
    assert [len(order.micro_batch(2502, m)) for m in range(8)] == [18] * 8
    assert order.micro_batch(2503, 0)[0][0] == 1


def test_an_epoch_is_every_image_once_and_the_padding():
    order = Order(103, 32, 8, seed=3)
    seen = epoch_of(order, 0)
    assert len(seen) == 104
    assert set(seen) == set(range(103))


def test_epochs_and_seeds_differ_and_repeat():
    assert epoch_of(Order(50, 8, 4, seed=0), 0) == epoch_of(Order(50, 8, 4, seed=0), 0)
    assert epoch_of(Order(50, 8, 4, seed=0), 0) != epoch_of(Order(50, 8, 4, seed=0), 1)
    assert epoch_of(Order(50, 8, 4, seed=0), 0) != epoch_of(Order(50, 8, 4, seed=1), 0)


def test_ranks_share_the_same_micro_batches():
    order = Order(100, 32, 8, seed=0)
    assert sorted([*order.numbers(0, 2), *order.numbers(1, 2)]) == list(order.numbers(0, 1)) == [0, 1, 2, 3]
    assert list(order.numbers(1, 2)) == [1, 3]


@pytest.mark.parametrize("count", [1, 2, 5])
def test_fewer_images_than_a_step_are_repeated(count):
    order = Order(count, 32, 8, seed=0)
    assert order.steps_per_epoch == 1
    batches = [order.micro_batch(0, m) for m in range(4)]
    assert len({len(b) for b in batches}) == 1
    assert {image for b in batches for _, image in b} == set(range(count))


@pytest.mark.parametrize("count", [1, 27, 65, 103])
def test_where_the_length_is_in_images_every_step_is_full_and_every_image_has_its_turn(count):
    order = Order(count, 64, 32, seed=0, whole_epochs=False)
    places = [place for step in range(20) for m in range(2) for place in order.micro_batch(step, m)]
    assert len(places) == 20 * 64
    assert len(set(places)) == len(places)  # so no image comes twice with the same draws
    epochs = len(places) // count
    for epoch in range(epochs):
        assert {image for at, image in places if at == epoch} == set(range(count))
    assert {image for at, image in places if at > epochs} == set()
    assert order.smallest == 32


def test_the_smallest_micro_batch():
    assert Order(1_281_167, 512, 64, seed=0).smallest == 18
    assert Order(65, 64, 64, seed=0).smallest == 1
    assert Order(64, 64, 64, seed=0).smallest == 64


def test_what_cannot_be_shared():
    with pytest.raises(InvalidInputError, match=r"3 processes cannot share 8 micro-batches.*start 1 or 2 or 4 or 8"):
        Order(100, 512, 64, seed=0).numbers(0, 3)
    with pytest.raises(InvalidInputError, match="no multiple"):
        Order(100, 100, 64, seed=0)
    with pytest.raises(InvalidInputError, match="No images"):
        Order(0, 64, 64, seed=0)


@pytest.mark.parametrize("per_device", [2, 16])
def test_micro_batches_of_one_group(per_device):
    groups = [int(k % 10 < 7) for k in range(203)]
    order = GroupedOrder(203, 16, per_device, 0, groups)
    assert order.steps_per_epoch == 13
    assert order.smallest == per_device
    for epoch in range(3):
        batches = [
            order.micro_batch(step, number)
            for step in range(13 * epoch, 13 * (epoch + 1))
            for number in range(order.micro_batches)
        ]
        assert {len(batch) for batch in batches} == {per_device}
        assert {where for batch in batches for where, _ in batch} == {epoch}
        images = [image for batch in batches for _, image in batch]
        assert len(images) == 208
        assert set(images) == set(range(203))
        kinds = [{groups[image] for _, image in batch} for batch in batches]
        assert sum(len(kind) > 1 for kind in kinds) <= 1
        assert sum(one != other for one, other in itertools.pairwise(kinds)) > 2  # not one group after the other
    assert epoch_of(order, 0) == epoch_of(GroupedOrder(203, 16, per_device, 0, groups), 0)
    assert epoch_of(order, 0) != epoch_of(order, 1)
