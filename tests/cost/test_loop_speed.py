"""What `apd train` is measured against is a loop of the same steps, and both are timed block by block."""

import json
from dataclasses import replace

import pytest
import torch
from small_experiments import tiny

from apd.report.figures.curves import read_measurements
from apd.training.run import task_of
from apd.training.trainer import Trainer
from book.figures import loop_speed

CPU = torch.device("cpu")


@pytest.mark.parametrize("method", ["student", "apd"])
def test_the_bare_loop_makes_the_steps_of_a_run(method, tmp_path):
    start = tiny(method, evaluations=0)
    experiment = replace(start, network=replace(start.network, dropout=0.0))  # whose draws would be others
    task = task_of(experiment)
    run = Trainer(task, tmp_path, task.splits(), *loop_speed.networks(experiment, task, CPU))
    run.facts["teacher"] = {}
    losses = [loss.item() for loss in loop_speed.bare_loop(experiment, run.splits.train, CPU)]
    run.execute()
    logged = [json.loads(line)["loss"] for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert losses == pytest.approx(logged, rel=1e-4)


def test_a_row_has_the_ratio_with_its_interval_and_the_committed_ones_are_at_most_1_05(monkeypatch):
    monkeypatch.setattr(loop_speed, "BLOCK", 1)
    monkeypatch.setattr(loop_speed, "recipe", lambda *_: tiny("apd"))
    *_, row = loop_speed.measured(["tiny-apd"], CPU, pairs=4)
    low, ratio, high = row["ratio"]
    assert low < ratio < high
    assert (row["pairs"], row["steps"], row["tensorboard"]) == (4, 4, loop_speed.HAS_TENSORBOARD)
    for measurement in read_measurements(of="loop-speed"):
        assert all(row["ratio"][1] <= 1.05 for row in measurement["rows"])
