"""Batches made on the device: those of the loader, wherever the work is done."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from small_experiments import tiny

from apd.config.detection import DetectorConfig, InstanceDataConfig
from apd.config.experiment import DataConfig, Experiment, ExperimentError, TeacherConfig, TrainingConfig
from apd.data import device_batches as module
from apd.data.augment import Augmentation
from apd.data.batches import DeviceStream, device_batches, training_batches
from apd.data.images import DataError
from apd.data.specs import SCENES, Sample
from apd.training.run import train

SIZES = [(24, 32), (40, 20), (13, 17), (32, 32), (9, 60)]
VARIED = Augmentation(crop=(24, 28), colour=0.3)
GPU = pytest.param(
    "cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device: there is none here")
)


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


def both(augmentation=VARIED, device="cpu", **settings):
    """The batches made on a device, each with the loader's."""
    settings = {"batch_size": 4, "seed": 11, "iterations": 5} | settings
    whole = list(training_batches(Mixed(), augmentation=augmentation, **settings))
    there = list(device_batches(Mixed(), device=device, augmentation=augmentation, **settings))
    assert len(whole) == len(there) > 0
    return zip(whole, there, strict=True)


def assert_equal_up_to_rounding(there, loaded):
    """Labels are equal; colours differ by what rounding after each of at most five steps makes of half a level."""
    assert torch.equal(there.labels_BHW.cpu(), loaded.labels_BHW)
    assert there.images_B3HW.shape == loaded.images_B3HW.shape
    levels = 255 * (there.images_B3HW.cpu() - loaded.images_B3HW).abs()
    assert levels.max() < 4.5
    assert levels.mean() < 0.5
    assert (levels < 1.5).float().mean() > 0.9


@pytest.mark.parametrize(
    "augmentation",
    [
        VARIED,
        Augmentation(crop=(64, 64), flip=1),
        Augmentation(crop=(16, 16), scale=(0.2, 0.5)),
        Augmentation(crop=(13, 40), scale=(1, 1.2), colour=0.4),
        Augmentation(crop=(5, 70), scale=(0.01, 3), flip=0.5, colour=0.2),
    ],
    ids=["all", "padded", "shrunk", "recoloured", "any"],
)
@pytest.mark.parametrize("device", ["cpu", GPU])
def test_the_batches_are_the_loaders_up_to_rounding(augmentation, device):
    for loaded, there in both(augmentation, device):
        assert there.images_B3HW.device.type == device
        assert_equal_up_to_rounding(there, loaded)


def test_an_image_that_keeps_its_size_and_colours_comes_through_to_the_last_bit():
    for loaded, there in both(Augmentation(crop=(8, 8), scale=(1, 1), flip=0.5)):
        for value, wanted in zip(there, loaded, strict=True):
            assert value.dtype == wanted.dtype
            assert value.stride() == wanted.stride()
            assert torch.equal(value, wanted)


@pytest.mark.parametrize("settings", [{"start_iteration": 3}, {"part": (1, 2)}])
def test_starting_late_and_a_part_of_a_batch_change_nothing(settings):
    for loaded, there in both(**settings):
        assert_equal_up_to_rounding(there, loaded)


def test_the_data_set_is_read_once_and_kept_in_one_byte_a_value():
    read = []

    class Noted(Mixed):
        def __getitem__(self, index):
            read.append(index)
            return super().__getitem__(index)

    stream = DeviceStream(Noted(), 4, VARIED, 3, device=torch.device("cpu"))
    first = stream[0]
    assert torch.equal(stream[0].images_B3HW, first.images_B3HW)
    assert sorted(read) == [0, 0, 1, 2, 3, 4, 5, 6], "the first one also tells how much room all need"
    assert {stream.images.images_N3HW.dtype, stream.images.labels_NHW.dtype} == {torch.uint8}


def test_wrong_samples_numbers_and_what_only_the_loader_does_are_refused():
    class Wrong(Mixed):
        def __getitem__(self, index):
            return super().__getitem__(index)._replace(image_3HW=torch.zeros(3, 8, 8), name="odd")

    def made(dataset, augmentation=VARIED, **settings):
        settings = {"batch_size": 2, "seed": 0, "iterations": 1} | settings
        return device_batches(dataset, device="cpu", augmentation=augmentation, **settings)

    with pytest.raises(ValueError, match=r"image of 'odd' is \(3, 8, 8\) torch.float32; expected"):
        made(Wrong())
    with pytest.raises(ValueError, match="data set is empty"):
        made(Mixed(0))
    with pytest.raises(ValueError, match="start_iteration=2; expected 0 to iterations=1"):
        made(Mixed(), start_iteration=2)
    for more in ({"rotation": 5.0}, {"blur": 0.5}):
        with pytest.raises(ValueError, match="expected rotation=0 and blur=0 on a device"):
            made(Mixed(), Augmentation(crop=(24, 28), **more))


def test_a_data_set_that_does_not_fit_is_refused_with_both_sizes_before_it_is_read(monkeypatch):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _device: (2**30, 2**31))
    with pytest.raises(DataError, match=r"the 9 training images take 2\.0 GiB on cuda, which has 1\.0 GiB free.*False"):
        module._require_room(2**31, 9, torch.device("cuda"))
    module._require_room(2**29, 9, torch.device("cuda"))


# in a run


def test_a_run_makes_its_batches_where_its_experiment_says(tmp_path, monkeypatch):
    found, made = [], []
    make = DeviceStream.__getitem__
    monkeypatch.setattr(DeviceStream, "__getitem__", lambda *given: made.append(given) or make(*given))
    for there in (False, True):
        monkeypatch.setenv("APD_RUNS", str(tmp_path / str(there)))
        experiment = tiny(batch_size=4, accumulation=2, device_augmentation=there)
        found.append(train(experiment))
        assert len(made) == (experiment.training.iterations if there else 0)
    curves = [record.content["curves"]["task"] for record in found]
    assert curves[0] != curves[1]
    assert curves[0] == pytest.approx(curves[1], rel=0.05)


def test_what_only_the_loader_does_is_refused_beside_the_switch_before_anything_runs():
    training = TrainingConfig(device_augmentation=True)
    for name in ("rotation", "blur"):
        for owner in ({"training": training}, {"teacher": TeacherConfig(training=training)}):
            with pytest.raises(ExperimentError, match=rf"device_augmentation = True: expected False beside .*{name}"):
                Experiment(data=DataConfig(**{name: 0.5}), **owner)


def test_detection_refuses_the_switch_and_says_why():
    plain = Experiment(data=InstanceDataConfig(), network=DetectorConfig())
    training = TrainingConfig(device_augmentation=True)
    told = r"TrainingConfig.device_augmentation = True: expected False in detection: .* boxes and masks"
    for changes in ({"training": training}, {"teacher": TeacherConfig(network=DetectorConfig(), training=training)}):
        with pytest.raises(ExperimentError, match=told):
            replace(plain, **changes)
