"""Runs by several ranks: one of them writes, the others wait for none that has gone, and they go on where they were."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from own_folders import SMALL, SMALL_TEACHER
from small_detection import small
from small_experiments import exit_codes, outcome, run_as_a_command, run_ranks, start_ranks, tiny, train_until_killed

import apd.training.segmentation
from apd.data.image_folder import DataError
from apd.evaluation.average_precision import scored, tables_of
from apd.training import distributed as ranks
from apd.training import trainer as loop
from apd.training.record import read_record
from apd.training.run import run_folder, task_of, train, trained_network


def shared(method="apd", start=tiny):
    """An experiment whose batches two ranks can share."""
    experiment = start(method, batch_size=4)
    if (teacher := experiment.teacher) is None:
        return experiment
    return replace(experiment, teacher=replace(teacher, training=replace(teacher.training, batch_size=4)))


@dataclass
class KillAt:
    """SIGKILL of one rank, or of every one, when that many steps are done."""

    step: int
    rank: int | None = None
    number: int = signal.SIGKILL

    def __call__(self, step):
        if step == self.step and self.rank in (None, ranks.started_rank()):
            os.kill(os.getpid(), self.number)


def often(experiment, runs, on_step=None):
    """Train with a checkpoint after every step."""
    loop.CHECKPOINT_SECONDS = 0.0
    run_as_a_command(experiment, runs, on_step)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """The folder of the runs of an experiment by two ranks, and what they said."""
    folder = tmp_path_factory.mktemp("undisturbed")
    run_ranks(run_as_a_command, shared(), folder / "runs", outputs=folder / "out")
    return folder


def test_two_ranks_leave_one_log_and_one_record_of_all_images(undisturbed, runs):
    (folder,) = (undisturbed / "runs").glob("apd-seed0-*")
    content, alone = read_record(folder / "record.json").content, train(shared()).content
    assert (content["device"]["ranks"], alone["device"].get("ranks")) == (2, None)
    assert content["fingerprint"] == alone["fingerprint"]
    for one, other in ((content, alone), (content["teacher"], alone["teacher"])):
        counts = [torch.tensor(scored["confusion"]).sum() for scored in (one, other)]
        assert torch.equal(*counts), "an image was left out or seen twice"
    assert [entry["step"] for entry in content["evaluations"]] == [3, 6]
    assert steps_in(folder) == list(range(6))
    assert (undisturbed / "out" / "0").read_text().count("teacher mIoU") == 1
    assert (undisturbed / "out" / "1").read_text() == ""


def steps_in(folder):
    return [json.loads(line)["step"] for line in (folder / "log.jsonl").read_text().splitlines()]


def test_two_ranks_that_are_killed_go_on_and_end_bit_equal(undisturbed, tmp_path, monkeypatch):
    """Dropout is on: the second rank's generator, too, is where it was."""
    for touches in (30, 70):  # files: the first is killed while it writes, and the second notices
        kill = train_until_killed, shared(), tmp_path / "runs", touches
        run_ranks(*kill, outputs=tmp_path / "out", expected=(-9, 1))
    for step in (2, 5):
        run_ranks(often, shared(), tmp_path / "runs", KillAt(step), outputs=tmp_path / "out", expected=(-9, -9))
    first, _ = run_ranks(often, shared(), tmp_path / "runs", outputs=tmp_path / "out")
    assert "apd-seed0: resumed at step" in first
    found = []
    for runs in (tmp_path / "runs", undisturbed / "runs"):
        monkeypatch.setenv("APD_RUNS", str(runs))
        found.append(outcome(shared()))
    assert found[0] == found[1]


@pytest.mark.parametrize(("before", "after"), [(2, 1), (1, 2)])
def test_a_run_goes_on_with_another_number_of_ranks(before, after, runs, tmp_path):
    experiment = shared("student")
    codes = exit_codes(start_ranks(often, experiment, runs, KillAt(4), outputs=tmp_path / "before", size=before))
    assert codes == [-9] * before
    folder = run_folder(experiment)
    kept = (folder / "log.jsonl").read_text().splitlines()[:3]
    assert exit_codes(start_ranks(often, experiment, runs, outputs=tmp_path / "after", size=after)) == [0] * after
    assert re.search("resumed at step [34]", (tmp_path / "after" / "0").read_text())
    assert (folder / "log.jsonl").read_text().splitlines()[:3] == kept
    assert steps_in(folder) == list(range(6))
    assert read_record(folder / "record.json").content["device"].get("ranks", 1) == after


def test_a_request_to_one_rank_stops_all_with_a_checkpoint(tmp_path):
    runs, stop = tmp_path / "runs", KillAt(2, rank=1, number=signal.SIGTERM)
    first, second = run_ranks(run_as_a_command, shared("student"), runs, stop, outputs=tmp_path, expected=(130, 130))
    assert first.splitlines()[-1].startswith("apd: stopped at step 3; the same command goes on from there")
    assert "stopped" not in second
    assert [path.name for path in runs.glob("*/checkpoints/*")] == ["step-00000003"]


def test_two_ranks_leave_one_record_of_a_detector_on_all_images(runs, tmp_path):
    experiment = shared("roi_apd", small)
    first, second = run_ranks(run_as_a_command, experiment, runs, outputs=tmp_path / "out")
    content, val = read_record(run_folder(experiment) / "record.json").content, task_of(experiment).split("val")
    labels = torch.cat([sample.labels_N[~sample.crowd_N] for sample in val])
    assert content["ap"]["boxes"]["things"] == torch.bincount(labels, minlength=3).tolist()
    alone = scored(trained_network(experiment), val).tables()
    for kind, table in tables_of(content["ap"]).items():
        torch.testing.assert_close(table.ap_TKA, alone[kind].ap_TKA, equal_nan=True, rtol=0, atol=1e-3)
    assert steps_in(run_folder(experiment)) == list(range(4))
    assert (first.count("teacher box AP"), second) == (1, "")


def without_data(experiment, runs):
    def missing(*_):
        raise DataError("no data on rank 1")

    if ranks.started_rank() == 1:
        apd.training.segmentation.build_splits = missing
    run_as_a_command(experiment, runs)


def test_an_error_of_one_rank_is_reported_by_it_and_ends_all(tmp_path):
    printed = run_ranks(without_data, shared("student"), tmp_path / "runs", outputs=tmp_path, expected=(1, 1))
    starts = "apd: another process of this run has gone", "apd (rank 1): no data on rank 1"
    for text, start in zip(printed, starts, strict=True):
        (said,) = [line for line in text.splitlines() if not line.startswith(("student-seed0:", "batch norm:"))]
        assert said.startswith(start)


def test_a_batch_that_cannot_be_divided_is_an_error_of_every_rank_and_reported_once(tmp_path):
    printed = run_ranks(run_as_a_command, tiny(batch_size=3), tmp_path / "runs", outputs=tmp_path, expected=(1, 1))
    parts = "a multiple of ranks x accumulation = 2 x 1 = 2, and 2 or more images in each part"
    assert printed == [f"apd: TrainingConfig.batch_size = 3: expected {parts}\n", ""]


def wait_and_train(experiment, runs):
    os.environ["APD_RUNS"] = str(runs)
    ranks.ASK_AGAIN_SECONDS = 0.05
    train(experiment, wait=True)
    sys.exit(ranks.leave(0))


def test_two_ranks_wait_together_for_a_run_that_another_process_holds(runs, tmp_path):
    experiment, waiting, output = shared("student"), [], tmp_path / "0"

    def start_others(step):
        if step == 2:
            waiting.extend(start_ranks(wait_and_train, experiment, runs, outputs=tmp_path))
            while not (output.exists() and "waiting: " in output.read_text()):
                time.sleep(0.02)

    record = train(experiment, on_step=start_others)
    assert exit_codes(waiting) == [0, 0]
    assert f"is in use by process {os.getpid()} on " in output.read_text()
    assert read_record(run_folder(experiment) / "record.json").content == record.content


def test_torchrun_trains_and_a_rank_that_is_killed_ends_the_job(tmp_path):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "apd"]
    command += ["train", "--method=student", *SMALL, *SMALL_TEACHER, "--training.batch-size=4"]
    command += ["--teacher.training.batch-size=4", "--teacher.training.iterations=100000"]  # whose run is the first
    command += [f"--data.{side}=32" for side in ("height", "width", "crop-height", "crop-width")]
    command += ["--data.train-images=4", "--data.evaluation-images=2"]
    environment = {**os.environ, "APD_RUNS": str(tmp_path), "PYTHONUNBUFFERED": "1", "OMP_NUM_THREADS": "1"}
    job = subprocess.Popen(command, env=environment, stdout=-1, stderr=-1, text=True)
    while not (logs := list(tmp_path.glob("*/log.jsonl"))) or len(logs[0].read_text().splitlines()) < 3:
        assert job.poll() is None, job.stderr.read()
        time.sleep(0.05)
    workers = Path(f"/proc/{job.pid}/task/{job.pid}/children").read_text().split()
    (second,) = [int(pid) for pid in workers if "\0RANK=1\0" in Path(f"/proc/{pid}/environ").read_text()]
    os.kill(second, signal.SIGKILL)
    _out, err = job.communicate(timeout=100)
    assert job.returncode != 0
    assert "apd: another process of this run has gone" in err or "SIGKILL" in err
    assert not list(tmp_path.glob("*/record.json"))
