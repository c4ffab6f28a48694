"""Samples handed out as stored and varied later: the same batches, wherever the work is done."""

import doctest
from dataclasses import replace

import numpy as np
import pytest
import torch
from small_experiments import outcome, tiny

from apd.data import stored_batches as module
from apd.data.batches import Batch, training_batches
from apd.data.catalogue import SCENES
from apd.data.sample import Sample
from apd.data.stored_batches import StoredBatch, stored_batches
from apd.data.transforms import Augmentation
from apd.evaluate.feeding import Feeding
from apd.study.detection_config import DetectorConfig, InstanceDataConfig
from apd.study.experiment import Experiment, ExperimentError, TeacherConfig, TrainingConfig
from apd.study.feeding import feeding_of_experiment
from apd.study.train import train

SIZES = [(24, 32), (40, 20), (13, 17), (32, 32), (9, 60)]
VARIED = Augmentation(crop=(24, 28), colour=0.3, rotation=20, blur=0.5)


class Mixed:
    """Pictures of several sizes, in memory as files are read (a pixel's colours together) or a channel at a time."""

    spec = SCENES

    def __init__(self, count=7):
        self.count = count

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        if index >= self.count:
            raise IndexError(index)
        rng, (height, width) = np.random.default_rng(index), SIZES[index % len(SIZES)]
        image = torch.from_numpy(rng.integers(0, 256, (height, width, 3), dtype=np.uint8)).permute(2, 0, 1)
        labels = torch.from_numpy(rng.integers(0, 10, (height, width), dtype=np.uint8))
        return Sample(image if index % 2 else image.contiguous(), labels, str(index))

    def fingerprint(self):
        return f"{self.count:064x}"


def both(augmentation=VARIED, **settings):
    """The batches of the two ways, the second not varied yet."""
    settings = {"batch_size": 4, "seed": 11, "iterations": 5} | settings
    whole = list(training_batches(Mixed(), augmentation=augmentation, **settings))
    stored = list(stored_batches(Mixed(), augmentation=augmentation, **settings))
    assert len(whole) == len(stored) > 0
    return whole, stored


def assert_equal(batch, other):
    for value, wanted in zip(batch, other, strict=True):
        assert value.dtype == wanted.dtype
        assert value.stride() == wanted.stride()
        assert torch.equal(value, wanted)


@pytest.mark.parametrize(
    "augmentation",
    [
        VARIED,
        Augmentation(crop=(64, 64), flip=1),
        Augmentation(crop=(8, 8), scale=(1, 1), flip=0),
        Augmentation(crop=(13, 40), scale=(1, 1.2), rotation=180, colour=0.9),
    ],
)
def test_on_a_cpu_both_ways_give_the_same_bits(augmentation):
    for batch, stored in zip(*both(augmentation), strict=True):
        assert_equal(stored.varied(), batch)


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
@pytest.mark.parametrize("settings", [{"start_iteration": 3}, {"part": (1, 2)}, {"workers": 2, "start_iteration": 2}])
def test_starting_late_a_part_of_a_batch_and_workers_change_nothing(settings):
    for batch, stored in zip(*both(**settings), strict=True):
        assert_equal(stored.varied(), batch)


def test_a_batch_is_one_piece_of_memory_with_every_sample_as_it_is_stored():
    dataset = Mixed()
    stored = next(stored_batches(dataset, batch_size=7, augmentation=VARIED, seed=3, iterations=1))
    assert stored.bytes_N.dtype == torch.uint8
    assert stored.bytes_N.shape == (sum(4 * sample.labels_HW.numel() for sample in dataset),)
    found = {image.of(stored.bytes_N).numpy().tobytes(): number for number, image in enumerate(stored.images)}
    for sample in dataset:
        number = found[sample.image_3HW.numpy().tobytes()]
        assert torch.equal(stored.labels[number].of(stored.bytes_N), sample.labels_HW)
        assert stored.images[number].strides == sample.image_3HW.stride()


def test_varying_leaves_the_stored_samples_alone_and_can_be_repeated():
    (stored,) = stored_batches(Mixed(), batch_size=4, augmentation=VARIED, seed=3, iterations=1)
    before = stored.bytes_N.clone()
    assert_equal(stored.varied(), stored.varied())
    assert torch.equal(stored.bytes_N, before)


def test_a_batch_is_pinned_in_one_piece_and_saved_as_it_was_trained_on(monkeypatch):
    (batch,), (stored,) = both(iterations=1)
    pinned = []
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda value: pinned.append(value) or value.clone())
    assert_equal(stored.pinned().varied(), batch)
    assert [value is stored.bytes_N for value in pinned] == [True]
    assert_equal(Batch(**stored.by_name()), batch)


def test_a_sample_of_a_wrong_kind_and_wrong_numbers_are_refused_as_for_other_batches():
    class Wrong(Mixed):
        def __getitem__(self, index):
            return super().__getitem__(index)._replace(image_3HW=torch.zeros(3, 8, 8), name="odd")

    with pytest.raises(ValueError, match=r"image of 'odd' is \(3, 8, 8\) torch.float32; expected"):
        next(stored_batches(Wrong(), batch_size=2, augmentation=VARIED, seed=0, iterations=1))
    with pytest.raises(ValueError, match="data set is empty"):
        stored_batches(Mixed(0), batch_size=2, augmentation=VARIED, seed=0, iterations=1)
    with pytest.raises(ValueError, match="start_iteration=2; expected 0 to iterations=1"):
        stored_batches(Mixed(), batch_size=2, augmentation=VARIED, seed=0, iterations=1, start_iteration=2)


def test_the_example_is_true():
    failed, tried = doctest.testmod(module)
    assert (failed, tried > 0) == (0, True)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_a_gpu_the_batch_is_made_there_and_is_the_cpus_up_to_rounding():
    for batch, stored in zip(*both(), strict=True):
        images, labels = stored.pinned().to("cuda").varied()
        assert images.is_cuda
        assert labels.is_cuda
        assert (images.cpu() - batch.images_B3HW).abs().mean() < 2 / 255
        assert (labels.cpu() == batch.labels_BHW).float().mean() > 0.99


# in a run


def test_a_run_ends_with_the_same_weights_whoever_varies_the_pictures(tmp_path, monkeypatch):
    found, given = [], []
    make = StoredBatch.varied
    monkeypatch.setattr(StoredBatch, "varied", lambda batch: given.append(batch) or make(batch))
    for there in (False, True):
        monkeypatch.setenv("APD_RUNS", str(tmp_path / str(there)))
        experiment = tiny(batch_size=4, accumulation=2, device_augmentation=there)
        train(experiment)
        found.append(outcome(experiment))
        assert len(given) == (experiment.training.iterations if there else 0)
    assert found[0].pop("fingerprint") != found[1].pop("fingerprint")
    assert found[0] == found[1]


def test_detection_refuses_the_switch_and_says_why():
    plain = Experiment(data=InstanceDataConfig(), network=DetectorConfig())
    training = TrainingConfig(device_augmentation=True)
    told = r"TrainingConfig.device_augmentation = True: expected False in detection: .* boxes and masks"
    for changes in ({"training": training}, {"teacher": TeacherConfig(network=DetectorConfig(), training=training)}):
        with pytest.raises(ExperimentError, match=told):
            replace(plain, **changes)


def test_feeding_measures_the_way_of_the_experiment_and_says_so(tmp_path, monkeypatch):
    monkeypatch.setenv("APD_RUNS", str(tmp_path))
    for there in (False, True):
        experiment = tiny(device_augmentation=there)
        (found,) = feeding_of_experiment(experiment, torch.device("cpu"), workers=[0], batches=2)
        assert found.device_augmentation == there
        assert min(found.loader, found.training, found.together) > 0
    line = str(Feeding(workers=2, loader=100.0, training=80.0, together=60.0, device_augmentation=True))
    assert line.startswith("2 workers, varied on the device: loader 100.0,")
