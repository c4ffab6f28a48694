"""TensorBoard shows what the log holds, with one point a step after a stop, and changes nothing of the run."""

import json
import sys
from dataclasses import replace

import pytest
import torch
from small_detection import small
from small_experiments import Thrown, outcome, thrown_at, tiny, undisturbed
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from apd.cli.app import main
from apd.config.datasets import build_split
from apd.training import trainer as loop
from apd.training.run import run_folder, train
from apd.training.run_log import shown
from apd.training.segmentation import build_network

pytestmark = pytest.mark.usefixtures("runs")


def board_of(experiment):
    board = EventAccumulator(str(run_folder(experiment) / "tensorboard"), size_guidance={"scalars": 0})
    return board.Reload()


def points(board, tag):
    return {event.step: event.value for event in board.Scalars(tag)}


@pytest.mark.parametrize("checkpoints", [True, False], ids=["resumed at step 4", "begun anew after step 4"])
def test_a_resumed_run_goes_on_in_the_same_curves_and_ends_as_one_without(checkpoints, monkeypatch):
    experiment = tiny("both")
    monkeypatch.setattr(loop, "CHECKPOINT_SECONDS", 0.0 if checkpoints else 1e9)
    with pytest.raises(Thrown):
        train(experiment, tensorboard=True, on_step=thrown_at(4))
    record = train(experiment, tensorboard=True)
    assert outcome(experiment) == undisturbed(experiment)
    board = board_of(experiment)
    lines = [json.loads(line) for line in (run_folder(experiment) / "log.jsonl").read_text().splitlines()]
    for term in set(lines[0]) - {"step"}:
        group = {"learning_rate": "schedule"}.get(term, "time" if "seconds" in term else "loss")
        assert points(board, f"{group}/{term}") == pytest.approx({line["step"] + 1: line[term] for line in lines})
        assert len(board.Scalars(f"{group}/{term}")) == len(lines)
    assert list(points(board, "val/mIoU")) == [3, 6]
    assert points(board, "val/mIoU")[6] != record.scores.miou  # which is of the test split
    images = board.Tags()["images"]
    assert len(images) == 3
    assert [(image.step, image.width, image.height) for image in board.Images(images[0])] == [(3, 96, 32), (6, 96, 32)]
    assert (run_folder(experiment.teacher_experiment()) / "tensorboard").is_dir()


def test_labels_stand_beside_predictions_where_images_are_made_smaller():
    data = replace(tiny().data, height=64, width=96, long_side=48)
    network = build_network(tiny().network, 10, torch.device("cpu"), 0).eval()
    assert [image_HW3.shape for _, image_HW3 in shown(network, build_split(data, "val"))] == [(32, 96, 3)] * 3


def test_a_detector_shows_its_detections():
    experiment = small()
    train(experiment, tensorboard=True)
    board = board_of(experiment)
    assert "val/box AP" in board.Tags()["scalars"]
    assert board.Tags()["images"]


def test_without_the_package_one_line_says_so_before_anything_runs(monkeypatch, runs, capsys):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    assert main(["train", "--tensorboard"]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert "--tensorboard needs the package tensorboard: install it with `pip install -e '.[tensorboard]'`" in line
    assert not runs.exists()
