"""Loader against training: rates of loaders and steps whose time is known, and stops that leave workers in peace."""

import multiprocessing
import os
import re
import signal
from dataclasses import replace

import pytest
import torch
from small_experiments import outcome, tiny

from apd.config.experiment import ExperimentError
from apd.cost.feeding import Feeding, feeding_of, feeding_of_experiment
from apd.data.augment import Augmentation
from apd.data.specs import SCENES, Sample
from apd.training.run import train

CROPS = Augmentation(crop=(32, 32), scale=(1, 1))


@pytest.fixture
def clock(monkeypatch):
    """The clock of the measurement: it goes on by what pictures and steps say they take."""
    clock = [0.0]
    monkeypatch.setattr("apd.cost.feeding.time.perf_counter", lambda: clock[0])
    return clock


class Pictures:
    """A data set whose every picture takes a fiftieth of a second to read."""

    spec = SCENES

    def __init__(self, clock):
        self.clock = clock

    def __len__(self):
        return 4

    def __getitem__(self, index):
        self.clock[0] += 0.02
        return Sample(torch.zeros(3, 32, 32).byte(), torch.zeros(32, 32).byte(), str(index))

    def fingerprint(self):
        return f"{0:064x}"


def test_without_workers_loader_and_training_take_turns(clock):
    def work(batch):
        assert batch.images_B3HW.shape == (2, 3, 32, 32)
        clock[0] += 0.06

    (found,) = feeding_of(work, Pictures(clock), CROPS, batch_size=2, workers=[0], batches=4)
    assert found.workers == 0
    assert found.loader == pytest.approx(2 / 0.04)
    assert found.training == pytest.approx(2 / 0.06)
    assert found.together == pytest.approx(2 / 0.10)


def test_the_warm_up_is_not_timed(clock):
    seen = []

    def work(batch):
        seen.append(batch)
        clock[0] += 1.0 if len(seen) % 8 in (1, 2, 3) else 0.06

    (found,) = feeding_of(work, Pictures(clock), CROPS, batch_size=2, workers=[0], warmup=3, batches=5)
    assert len(seen) == 2 * 8
    assert found.training == pytest.approx(2 / 0.06)


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
def test_each_number_of_workers_gives_a_result_and_leaves_no_process():
    seen = []
    found = list(feeding_of(seen.append, Pictures([0.0]), CROPS, batch_size=2, workers=[0, 1], batches=3))
    assert [one.workers for one in found] == [0, 1]
    assert all(one.loader > 0 and one.together > 0 for one in found)
    assert len({one.training for one in found}) == 1
    assert len(seen) == 3 * 5
    assert multiprocessing.active_children() == []


@pytest.mark.parametrize(("name", "value"), [("warmup", 0), ("batches", 1)])
def test_counts_below_their_least_are_refused(name, value):
    with pytest.raises(ValueError, match=f"{name}: got {value}, expected at least"):
        next(feeding_of(print, Pictures([0.0]), CROPS, batch_size=2, **{name: value}))


def test_a_line_puts_the_rates_side_by_side():
    line = str(Feeding(workers=2, loader=100.0, training=80.0, together=60.0))
    assert line == "2 workers: loader 100.0, training 80.0, together 60.0 images/s (75% of training alone)"


def test_an_experiments_own_student_and_crops_are_measured_and_nothing_is_left_behind(tmp_path, monkeypatch):
    monkeypatch.setenv("APD_RUNS", str(tmp_path))
    (found,) = feeding_of_experiment(tiny("apd"), torch.device("cpu"), workers=[0], batches=2)
    assert min(found.loader, found.training, found.together) > 0
    assert list(tmp_path.iterdir()) == []


def signalled(step):
    """What Ctrl-C in a terminal does to the workers, and a scheduler's stop."""
    if step in (1, 2):
        for worker in multiprocessing.active_children():
            os.kill(worker.pid, signal.SIGINT if step == 1 else signal.SIGTERM)


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
def test_a_run_with_workers_ends_as_without_even_if_its_workers_are_asked_to_stop(tmp_path, monkeypatch):
    found, experiment = [], tiny()
    for workers, on_step in ((0, None), (1, signalled)):
        monkeypatch.setenv("APD_RUNS", str(tmp_path / str(workers)))
        train(experiment, workers=workers, on_step=on_step)
        found.append(outcome(experiment))
    assert found[0] == found[1]
    assert multiprocessing.active_children() == []


def test_a_negative_number_of_workers_is_refused_before_anything_runs(tmp_path, monkeypatch):
    monkeypatch.setenv("APD_RUNS", str(tmp_path))
    with pytest.raises(ExperimentError, match="workers = -1: expected a whole number of at least 0"):
        train(replace(tiny(), seed=5), workers=-1)
    assert list(tmp_path.iterdir()) == []


def test_the_command_prints_a_line_for_each_number_of_workers(monkeypatch, capsys):
    from apd.cli import app as cli

    monkeypatch.setattr("apd.study.recipes.recipe", lambda *_, **__: tiny())
    assert cli.main(["cost", "--feeding", "--workers", "0", "--device", "cpu"]) == 0
    first, line = capsys.readouterr().out.splitlines()
    assert first == "test_efficientnet on cpu, batches of 2"
    assert re.fullmatch(r"0 workers: loader [\d.]+, training [\d.]+, together [\d.]+ images/s \(\d+% of .*\)", line)
    for arguments in (["cost", "--feeding", "--workers", "-1"], ["train", "--workers", "-1"]):
        assert cli.main(arguments) == 2
        assert "--workers -1: expected" in capsys.readouterr().err
