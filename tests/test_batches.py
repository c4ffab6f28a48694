import random
import zlib

import numpy as np
import pytest
import torch

from apd.data.augment import Augmentation
from apd.data.batches import Batch, BatchStream, epoch_order, evaluation_batches, training_batches
from apd.data.specs import SCENES, Sample

WHOLE = Augmentation(crop=(6, 8), scale=(1, 1), flip=0)
VARIED = Augmentation(crop=(6, 8), scale=(0.5, 2), colour=0.3)
ORDERS = ([7, 2, 0, 4, 3, 5, 6, 1], [3, 2, 7, 1, 5, 6, 4, 0])


class Numbered:
    """Pictures of 6×8 pixels (or of `sizes`), each filled with its own number."""

    spec = SCENES

    def __init__(self, count, sizes=None):
        self.sizes = sizes or [(6, 8)] * count

    def __len__(self):
        return len(self.sizes)

    def __getitem__(self, index):
        image = torch.full((3, *self.sizes[index]), index).byte()
        return Sample(image, torch.full(self.sizes[index], index % 10).byte(), f"number {index}")

    def fingerprint(self):
        return f"{zlib.crc32(repr(self.sizes).encode()):064x}"


class Noise(Numbered):
    def __getitem__(self, index):
        rng = np.random.default_rng(index)
        image = torch.from_numpy(rng.integers(0, 256, (3, 12, 16), dtype=np.uint8))
        return Sample(image, torch.from_numpy(rng.integers(0, 10, (12, 16), dtype=np.uint8)), str(index))


def numbers(batches):
    """Which samples of a `Numbered` set the batches hold, in order."""
    return [round(255 * float(image.mean())) for batch in batches for image in batch.images_B3HW]


def assert_equal(batches, others):
    batches, others = list(batches), list(others)
    assert len(batches) == len(others) > 0
    for batch, other in zip(batches, others, strict=True):
        assert torch.equal(batch.images_B3HW, other.images_B3HW)
        assert torch.equal(batch.labels_BHW, other.labels_BHW)


@pytest.mark.parametrize(("count", "batch_size"), [(7, 3), (6, 3), (5, 8), (1, 4)])
def test_every_epoch_visits_every_sample_once_across_the_borders_of_batches(count, batch_size):
    batches = training_batches(Numbered(count), batch_size=batch_size, augmentation=WHOLE, seed=4, iterations=4 * count)
    seen = numbers(batches)
    assert len(seen) == 4 * count * batch_size
    for first in range(0, len(seen), count):
        assert sorted(seen[first : first + count]) == list(range(count))


def test_epochs_and_seeds_have_orders_of_their_own():
    stream = {
        seed: numbers(training_batches(Numbered(20), batch_size=5, augmentation=WHOLE, seed=seed, iterations=12))
        for seed in (0, 1)
    }
    orders = [tuple(seen[first : first + 20]) for seen in stream.values() for first in (0, 20, 40)]
    assert len(set(orders)) == 6
    assert tuple(range(20)) not in orders


def test_the_order_of_an_epoch_is_fixed_for_all_time():
    # a change here would make every committed record's run impossible to repeat
    assert epoch_order(0, 0, 8).tolist() == ORDERS[0]
    assert epoch_order(3, 7, 8).tolist() == ORDERS[1]


def test_a_batch_holds_pixels_from_0_to_1_and_whole_labels():
    batch = next(training_batches(Numbered(3), batch_size=3, augmentation=WHOLE, seed=0, iterations=1))
    order = epoch_order(0, 0, 3)
    assert batch.images_B3HW.dtype == torch.float32
    assert batch.labels_BHW.dtype == torch.int64
    assert batch.images_B3HW.is_contiguous()
    for slot, index in enumerate(order):
        assert torch.equal(batch.images_B3HW[slot], torch.full((3, 6, 8), index / 255))
        assert torch.equal(batch.labels_BHW[slot], torch.full((6, 8), index))


def test_a_run_that_starts_at_an_iteration_sees_what_the_whole_run_saw():
    settings = {"batch_size": 4, "augmentation": VARIED, "seed": 11}
    whole = list(training_batches(Noise(9), **settings, iterations=12))
    for start in (0, 1, 5, 11):
        rest = training_batches(Noise(9), **settings, start_iteration=start, iterations=12)
        assert_equal(rest, whole[start:])
    assert list(training_batches(Noise(9), **settings, start_iteration=12, iterations=12)) == []
    assert_equal(training_batches(Noise(9), **settings, iterations=3), whole[:3])


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
@pytest.mark.parametrize("workers", [1, 2])
def test_workers_change_nothing(workers):
    settings = {"batch_size": 4, "augmentation": VARIED, "seed": 11, "start_iteration": 3, "iterations": 9}
    assert_equal(training_batches(Noise(9), **settings, workers=workers), training_batches(Noise(9), **settings))


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
@pytest.mark.parametrize("workers", [0, 1])
def test_global_random_numbers_are_neither_used_nor_changed(workers):
    settings = {"batch_size": 2, "augmentation": VARIED, "seed": 2, "iterations": 2, "workers": workers}
    results = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        np.random.seed(seed)  # noqa: NPY002 - the global state is the subject
        random.seed(seed)
        before = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()  # noqa: NPY002
        results.append(list(training_batches(Noise(5), **settings)))
        assert torch.equal(torch.get_rng_state(), before[0])
        assert np.array_equal(np.random.get_state()[1], before[1])  # noqa: NPY002
        assert random.getstate() == before[2]
    assert_equal(*results)


def test_each_slot_iteration_and_seed_is_varied_in_its_own_way():
    # one picture only: whatever differs comes from the augmentation
    images = [
        image
        for seed in (0, 1)
        for batch in training_batches(Noise(1, [(12, 16)]), batch_size=3, augmentation=VARIED, seed=seed, iterations=3)
        for image in batch.images_B3HW
    ]
    assert len({image.numpy().tobytes() for image in images}) == 18


def test_batches_can_be_asked_for_in_any_order():
    stream = BatchStream(Noise(9), 4, VARIED, seed=1)
    forwards = [stream[iteration] for iteration in range(8)]
    assert_equal([stream[iteration] for iteration in reversed(range(8))], forwards[::-1])


@pytest.mark.parametrize("parts", [1, 2, 3, 6])
def test_the_parts_of_a_batch_make_the_whole_in_order(parts):
    settings = {"batch_size": 6, "augmentation": VARIED, "seed": 11, "start_iteration": 2, "iterations": 7}
    whole = training_batches(Noise(9), **settings)
    pieces = [training_batches(Noise(9), **settings, part=(number, parts)) for number in range(parts)]
    joined = [Batch(*map(torch.cat, zip(*batches, strict=True))) for batches in zip(*pieces, strict=True)]
    assert len(joined) == 5
    assert_equal(joined, whole)


@pytest.mark.parametrize("part", [(0, 4), (2, 2), (-1, 2), (0, 0)])
def test_a_part_that_is_none_is_refused(part):
    with pytest.raises(ValueError, match=r"part=.*: expected \(r, n\) with 0 <= r < n, n a divisor of batch_size=6"):
        training_batches(Numbered(9), batch_size=6, augmentation=WHOLE, seed=0, iterations=1, part=part)


def test_the_order_cannot_be_changed_from_outside():
    with pytest.raises(ValueError, match="read-only"):
        epoch_order(0, 0, 8)[0] = 3


@pytest.mark.parametrize(
    ("field", "value", "expected"),
    [
        ("batch_size", 0, "batch_size=0; expected a whole number of at least 1"),
        ("seed", -1, "seed=-1; expected a whole number of at least 0"),
        ("iterations", -1, "iterations=-1"),
        ("workers", -2, "workers=-2"),
        ("start_iteration", 6, "start_iteration=6; expected 0 to iterations=5"),
        ("start_iteration", -1, "start_iteration=-1"),
    ],
)
def test_a_wrong_number_is_refused_before_the_first_batch(field, value, expected):
    settings = {"batch_size": 2, "augmentation": WHOLE, "seed": 0, "iterations": 5, field: value}
    with pytest.raises(ValueError, match=expected):
        training_batches(Numbered(3), **settings)


def test_an_empty_data_set_cannot_be_trained_on_but_evaluated():
    with pytest.raises(ValueError, match="data set is empty"):
        training_batches(Numbered(0), batch_size=2, augmentation=WHOLE, seed=0, iterations=5)
    assert list(evaluation_batches(Numbered(0), 2)) == []


@pytest.mark.parametrize(("batch_size", "lengths"), [(1, [1] * 5), (2, [2, 2, 1]), (5, [5]), (9, [5])])
def test_evaluation_goes_through_the_data_once_in_order(batch_size, lengths):
    batches = list(evaluation_batches(Numbered(5), batch_size))
    assert [len(batch.names) for batch in batches] == lengths
    assert [name for batch in batches for name in batch.names] == [f"number {index}" for index in range(5)]
    assert numbers(batches) == list(range(5))
    assert torch.equal(torch.cat([batch.labels_BHW for batch in batches])[:, 0, 0], torch.arange(5))
    assert batches[0].images_B3HW.dtype == torch.float32
    assert batches[0].labels_BHW.dtype == torch.int64


def test_a_batch_of_evaluation_ends_where_the_next_picture_has_another_size():
    mixed = Numbered(6, [(6, 8), (6, 8), (4, 8), (6, 8), (6, 8), (6, 8)])
    batches = list(evaluation_batches(mixed, 2))
    assert [tuple(batch.images_B3HW.shape) for batch in batches] == [
        (2, 3, 6, 8),
        (1, 3, 4, 8),
        (2, 3, 6, 8),
        (1, 3, 6, 8),
    ]
    assert [name for batch in batches for name in batch.names] == [f"number {index}" for index in range(6)]
    with pytest.raises(ValueError, match="batch_size=0"):
        evaluation_batches(mixed, 0)
