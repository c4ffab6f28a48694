"""Which weights a run keeps, when it ends early, and how long it takes in epochs, whatever comes between."""

from dataclasses import replace

import pytest
import torch
from bad_input import refused
from safetensors.torch import load_file
from small_detection import DATA, small
from small_experiments import TRAINING, copied, equal, outcome, stopped, tiny, undisturbed

from apd.config.experiment import TeacherConfig, TrainingConfig
from apd.fields import ExperimentError
from apd.training import trainer as loop
from apd.training.record import Record, RecordError
from apd.training.run import in_steps, run_folder, train, trained_distiller, trained_network
from apd.training.segmentation import SegmentationTask

SCORES = {1: 0.1, 2: 0.5, 3: 0.2, 4: 0.5, 5: 0.4, 6: 0.9}  # by step; what is measured again has none
BEST = dict(keep="best", evaluations=6)
KEPT = [  # options, the step that is kept, the last one
    ({"patience": 2}, 2, 4),
    ({"patience": 2, "ema_decay": 0.5}, 2, 4),
    ({"patience": 5}, 6, 6),
    ({}, 6, 6),
    ({"evaluations": 3}, 6, 6),
    ({"evaluations": 3, "patience": 1, "iterations": 12}, 4, 8),
]


@pytest.fixture(autouse=True)
def scored(monkeypatch):
    monkeypatch.setattr(SegmentationTask, "headline", lambda _, fact: ("mIoU", SCORES.get(fact.get("step"), 0.0)))


@pytest.mark.parametrize(("options", "kept", "last"), KEPT)
def test_the_best_weights_on_val_are_kept_and_the_patience_ends_a_run(options, kept, last, runs, monkeypatch, capsys):
    states, step = [], loop.TrainStep.__call__

    def seen(self, batch):
        terms = step(self, batch)
        states.append(copied(self.average.module if self.average else self.student))
        return terms

    monkeypatch.setattr(loop.TrainStep, "__call__", seen)
    content = train(experiment := tiny(**BEST | options)).content
    assert len(states) == last == content["curves"]["iteration"][-1]
    assert ("ended early, at step" in capsys.readouterr().out) == (last < experiment.training.iterations)
    assert content["kept"]["step"] == kept
    assert "optimistic" in content["kept"]["note"]
    assert equal(load_file(run_folder(experiment) / "weights.safetensors"), states[kept - 1])
    for run in (experiment, run_folder(experiment)):
        assert equal(copied(trained_network(run)), states[kept - 1])
    (evaluation,) = [found for found in content["evaluations"] if found["step"] == kept]
    assert content["confusion"] == evaluation["confusion"]
    for edited in ({}, {"step": last + 1}, 7):
        refused(lambda edited=edited: Record(content | {"kept": edited}), RecordError, names=("kept",))


@pytest.mark.parametrize("options", [{"patience": 2}, {"ema_decay": 0.5}])
@pytest.mark.parametrize("steps", [(1, 3), (2,), (4,)])
def test_an_interrupted_run_keeps_the_same_weights_and_ends_at_the_same_step(options, steps, runs):
    experiment = tiny(**BEST | options)
    stopped(experiment, *steps)
    train(experiment)
    assert outcome(experiment) == undisturbed(experiment)


def test_the_distillers_are_those_of_the_last_step_when_a_run_ended_early_or_was_given_in_epochs(runs):
    for training in (BEST | {"patience": 2}, {"iterations": 1000, "epochs": 2}):
        experiment = tiny("apd", **training)
        train(experiment)
        networks = trained_network(experiment), trained_network(experiment.teacher_experiment())
        assert not trained_distiller(experiment, *networks).training


def test_a_teacher_that_another_machine_scored_before_a_stop_does_not_keep_a_run_from_its_record(runs, monkeypatch):
    compare = SegmentationTask.compare

    def elsewhere(task, *seen):
        agreement = torch.tensor(compare(task, *seen)["agreement"])
        row, column = divmod(int(agreement.argmax()), len(agreement))
        agreement[row, column] -= 1
        agreement[row - 1, column] += 1
        return {"agreement": agreement.tolist()}

    monkeypatch.setattr(SegmentationTask, "compare", elsewhere)
    assert train(tiny("apd")).agreement > 0


def test_a_detector_keeps_its_best_weights_too_but_not_by_the_images_it_is_trained_on(runs):
    assert train(small(keep="best", patience=1)).content["kept"]["step"] in (2, 4)
    data = replace(DATA, name="coco", folder="coco", train_part="a", val_part="a")
    refused(lambda: small(data=data, keep="best"), ExperimentError, names=("keep = 'best': expected last: val_part",))


def test_epochs_are_steps_by_the_size_of_the_training_split_and_one_run_with_them(runs):
    given = replace(tiny(), training=replace(TRAINING, iterations=1000, epochs=2))
    record = train(given)
    assert record.experiment == tiny() == in_steps(given)
    assert record.content["epochs"] == 2.0
    assert run_folder(given) == run_folder(tiny())
    assert train(given).content == record.content
    assert equal(copied(trained_network(given)), copied(trained_network(tiny())))
    teacher = TeacherConfig(training=TrainingConfig(epochs=3, batch_size=4, warmup=2000))
    refused(lambda: in_steps(replace(tiny(), teacher=teacher)), ExperimentError, names=("below iterations 5",))
