"""Batches: a pure function of seed and iteration, of every sample once an epoch, by the loader or on a device."""

import random
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from bad_input import refused
from small_experiments import tiny

from apd.data import batches as module
from apd.data.augment import Augmentation
from apd.data.batches import BatchStream, DeviceStream, epoch_order, evaluation_batches, training_batches
from apd.data.images import DataError
from apd.data.specs import SCENES, Sample
from apd.training.run import train

WHOLE = Augmentation(crop=(6, 8), scale=(1, 1), flip=0)
VARIED = Augmentation(crop=(24, 28), colour=0.3)
SIZES = [(24, 32), (40, 20), (13, 17), (32, 32), (9, 60)]
pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create")


class Numbered:
    """Images of 6×8 pixels (or of `sizes`), each filled with its own number."""

    spec = SCENES

    def __init__(self, count=7, sizes=None):
        self.sizes = sizes or [(6, 8)] * count

    def __len__(self):
        return len(self.sizes)

    def __getitem__(self, index):
        labels = torch.full(self.sizes[index], index).byte()
        return Sample(labels.expand(3, -1, -1), labels, f"number {index}")


class Noise(Numbered):
    """Noise of several sizes, in memory as files are read (a pixel's colours together) or a channel at a time."""

    def __getitem__(self, index):
        rng, size = np.random.default_rng(index), SIZES[index % len(SIZES)]
        image = torch.from_numpy(rng.integers(0, 256, (*size, 3), dtype=np.uint8)).permute(2, 0, 1)
        labels = torch.from_numpy(rng.integers(0, 10, size, dtype=np.uint8))
        return Sample(image if index % 2 else image.contiguous(), labels, str(index))


def numbers(batches):
    """Which samples of a `Numbered` set the batches hold, in order."""
    return [round(255 * float(image.mean())) for batch in batches for image in batch.images_B3HW]


def assert_equal(batches, others):
    torch.testing.assert_close(list(map(tuple, batches)), list(map(tuple, others)), rtol=0, atol=0)


@pytest.mark.parametrize(("count", "batch_size"), [(7, 3), (6, 3), (5, 8), (1, 4)])
def test_every_epoch_visits_every_sample_once_across_the_borders_of_batches(count, batch_size):
    batches = training_batches(Numbered(count), batch_size=batch_size, augmentation=WHOLE, seed=4, iterations=4 * count)
    seen = numbers(batches)
    assert len(seen) == 4 * count * batch_size
    for first in range(0, len(seen), count):
        assert sorted(seen[first : first + count]) == list(range(count))


def test_the_order_of_an_epoch_is_fixed_for_all_time_and_its_batches_hold_pixels_from_0_to_1_and_whole_labels():
    # a change here would make every committed record's run impossible to repeat
    assert epoch_order(0, 0, 8).tolist() == [7, 2, 0, 4, 3, 5, 6, 1]
    assert epoch_order(3, 7, 8).tolist() == [3, 2, 7, 1, 5, 6, 4, 0]
    with pytest.raises(ValueError, match="read-only"):
        epoch_order(0, 0, 8)[0] = 3
    batch = next(training_batches(Numbered(3), batch_size=3, augmentation=WHOLE, seed=0, iterations=1))
    assert batch.images_B3HW.is_contiguous()
    labels_BHW = torch.from_numpy(epoch_order(0, 0, 3).copy())[:, None, None].expand(3, 6, 8)
    torch.testing.assert_close(batch.labels_BHW, labels_BHW.long(), rtol=0, atol=0)
    torch.testing.assert_close(batch.images_B3HW, (labels_BHW / 255).float()[:, None].expand(3, 3, 6, 8))


def test_batches_are_the_same_wherever_a_run_starts_and_in_whatever_order_and_process_they_are_made():
    settings = {"batch_size": 4, "augmentation": VARIED, "seed": 11}
    whole = list(training_batches(Noise(9), **settings, iterations=12))
    for start, workers in ((0, 0), (5, 1), (7, 2), (11, 0)):
        rest = training_batches(Noise(9), **settings, start_iteration=start, iterations=12, workers=workers)
        assert_equal(rest, whole[start:])
    assert list(training_batches(Noise(9), **settings, start_iteration=12, iterations=12)) == []
    assert_equal(training_batches(Noise(9), **settings, iterations=3), whole[:3])
    stream = module.BatchStream(Noise(9), 4, VARIED, seed=11)
    assert_equal([stream[iteration] for iteration in reversed(range(12))], whole[::-1])


@pytest.mark.parametrize("workers", [0, 1])
def test_global_random_numbers_are_neither_used_nor_changed(workers):
    def state():
        return torch.get_rng_state().tolist(), np.random.get_state()[1].tolist(), random.getstate()  # noqa: NPY002

    settings, results = {"batch_size": 2, "augmentation": VARIED, "seed": 2, "iterations": 2, "workers": workers}, []
    for seed in (1, 2):
        torch.manual_seed(seed)
        np.random.seed(seed)  # noqa: NPY002 - the global state is the subject
        random.seed(seed)
        before = state()
        results.append(list(training_batches(Noise(5), **settings)))
        assert state() == before
    assert_equal(*results)


def test_each_slot_iteration_and_seed_is_augmented_in_its_own_way():
    streams = (training_batches(Noise(1), batch_size=3, augmentation=VARIED, seed=s, iterations=3) for s in (0, 1))
    images = {image.numpy().tobytes() for stream in streams for batch in stream for image in batch.images_B3HW}
    assert len(images) == 18, "of one image"


@pytest.mark.parametrize("parts", [1, 2, 6])
def test_the_parts_of_a_batch_make_the_whole_in_order(parts):
    settings = {"batch_size": 6, "augmentation": VARIED, "seed": 11, "start_iteration": 2, "iterations": 7}
    pieces = [training_batches(Noise(9), **settings, part=(number, parts)) for number in range(parts)]
    joined = [module.Batch(*map(torch.cat, zip(*batches, strict=True))) for batches in zip(*pieces, strict=True)]
    assert_equal(joined, training_batches(Noise(9), **settings))


def test_a_wrong_number_is_refused_before_the_first_batch():
    settings = {"batch_size": 2, "augmentation": WHOLE, "seed": 0, "iterations": 5}
    for field, values, expected in (
        ("batch_size", (0,), "batch_size=0; expected a whole number of at least 1"),
        ("seed", (-1,), "seed=-1; expected a whole number of at least 0"),
        ("iterations", (-1,), "iterations=-1"),
        ("workers", (-2,), "workers=-2"),
        ("start_iteration", (6, -1), "start_iteration=(6; expected 0 to iterations=5|-1)"),
        ("part", ((0, 4), (2, 2), (-1, 2), (0, 0)), r"part=.*: expected \(r, n\) .*divisor of batch_size=2"),
    ):
        for value in values:
            with pytest.raises(ValueError, match=expected):
                training_batches(Numbered(3), **settings | {field: value})
    refused(lambda: training_batches(Numbered(0), **settings), ValueError, names=("data set is empty",))


@pytest.mark.parametrize(("batch_size", "lengths"), [(1, [1] * 6), (2, [2, 1, 2, 1]), (9, [2, 1, 3])])
def test_evaluation_goes_through_the_data_once_in_order_and_a_batch_has_one_size(batch_size, lengths):
    mixed = Numbered(6, [(6, 8), (6, 8), (4, 8), (6, 8), (6, 8), (6, 8)])
    batches = list(evaluation_batches(mixed, batch_size))
    assert [len(batch.names) for batch in batches] == lengths
    assert [name for batch in batches for name in batch.names] == [f"number {index}" for index in range(6)]
    assert numbers(batches) == [int(labels[0, 0]) for batch in batches for labels in batch.labels_BHW] == [*range(6)]
    assert list(evaluation_batches(Numbered(0), 2)) == []
    refused(lambda: next(evaluation_batches(mixed, 0)), ValueError, names=("batch_size=0",))


@pytest.mark.parametrize(
    "augmentation",
    [
        Augmentation(crop=(64, 64), flip=1),
        Augmentation(crop=(16, 16), scale=(0.2, 0.5)),
        Augmentation(crop=(5, 70), scale=(0.01, 3), flip=0.5, colour=0.4),
        Augmentation(crop=(8, 8), scale=(1, 1), flip=0.5),
    ],
    ids=["padded", "shrunk", "any", "of its own size and colours"],
)
def test_the_batches_are_the_loaders_up_to_rounding_and_to_the_last_bit_where_nothing_is_rounded(augmentation):
    """Labels are equal; colours differ by what rounding after each of at most five steps makes of half a level."""
    settings = {"augmentation": augmentation, "batch_size": 4, "seed": 11, "iterations": 5}
    made = training_batches(Noise(), **settings, stream=partial(DeviceStream, device=torch.device("cpu")))
    for loaded, there in zip(training_batches(Noise(), **settings), made, strict=True):
        assert torch.equal(there.labels_BHW, loaded.labels_BHW)
        assert there.images_B3HW.shape == loaded.images_B3HW.shape
        levels = 255 * (there.images_B3HW - loaded.images_B3HW).abs()
        assert levels.max() < 4.5
        assert levels.mean() < 0.5
        assert (levels < 1.5).float().mean() > 0.9
        if augmentation.scale == (1, 1):
            torch.testing.assert_close(tuple(there), tuple(loaded), rtol=0, atol=0, check_stride=True)


def test_padding_gets_the_label_that_the_data_set_ignores():
    data = Noise()
    data.spec = replace(SCENES, ignore_index=100)
    for stream in (BatchStream, partial(DeviceStream, device=torch.device("cpu"))):
        options = dict(batch_size=2, augmentation=Augmentation(crop=(64, 64)), seed=0, iterations=1, stream=stream)
        (batch,) = training_batches(data, **options)
        assert set(batch.labels_BHW.unique().tolist()) == {*range(10), 100}


def test_a_device_reads_the_data_once_in_one_byte_a_value_and_refuses_what_is_wrong_or_does_not_fit(monkeypatch):
    read, get = [], Noise.__getitem__
    monkeypatch.setattr(Noise, "__getitem__", lambda self, index: read.append(index) or get(self, index))
    stream = DeviceStream(Noise(), 4, VARIED, 3, device=torch.device("cpu"))
    first = stream[0]
    assert torch.equal(stream[0].images_B3HW, first.images_B3HW)
    assert sorted(read) == [0, 0, 1, 2, 3, 4, 5, 6], "the first one also says how much room all need"
    assert {stream.images_N3HW.dtype, stream.labels_NHW.dtype} == {torch.uint8}
    stream = partial(DeviceStream, device=torch.device("cpu"))
    settings = {"stream": stream, "batch_size": 2, "seed": 0, "iterations": 1}
    for more in ({"rotation": 5.0}, {"blur": 0.5}):
        with pytest.raises(ValueError, match="expected rotation=0 and blur=0 on a device"):
            training_batches(Noise(), augmentation=Augmentation(crop=(24, 28), **more), **settings)
    monkeypatch.setattr(Noise, "__getitem__", lambda *_: Sample(torch.zeros(3, 8, 8), torch.zeros(8, 8).byte(), "odd"))
    odd = partial(training_batches, Noise(), augmentation=VARIED, **settings)
    refused(odd, ValueError, names=("'odd' is (3, 8, 8)",))
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _device: (2**30, 2**31))
    sizes, cuda = ("the 9 training images take 0.5 GiB on cuda, which has 1.0 GiB free", "False"), torch.device("cuda")
    refused(lambda: module._require_room(2**29 + 1, 9, cuda), DataError, names=sizes)
    module._require_room(2**29, 9, cuda)


def test_a_run_makes_its_batches_where_its_experiment_says(tmp_path, monkeypatch):
    curves, made, make = [], [], DeviceStream.__getitem__
    monkeypatch.setattr(DeviceStream, "__getitem__", lambda *given: made.append(given) or make(*given))
    for there in (False, True):
        monkeypatch.setenv("APD_RUNS", str(tmp_path / str(there)))
        experiment = tiny(batch_size=4, accumulation=2, device_augmentation=there)
        curves.append(train(experiment).content["curves"]["task"])
        assert len(made) == (experiment.training.iterations if there else 0)
    assert curves[0] != curves[1]
    assert curves[0] == pytest.approx(curves[1], rel=0.05)
