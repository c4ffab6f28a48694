"""Runs side by side: all finish, a deadline leaves checkpoints, and a worker that fails loses nothing finished."""

import contextlib
import multiprocessing
import os
import re
import signal
import sys
import time
from dataclasses import replace

import pytest
import torch
from small_experiments import exit_code, outcome, tiny

from apd.config.experiment import TeacherConfig
from apd.study import parallel
from apd.study.campaign import Ledger, main, run_campaign
from apd.study.campaigns import CAMPAIGNS, CampaignError, steps_done
from apd.study.parallel import SideBySide, Worker
from apd.training.distributed import ALONE
from apd.training.run import run_folder, train
from apd.training.run_log import StopRequest, UnfinishedRunsError

TAUGHT = [tiny(method, seed=seed) for seed in range(2) for method in ("student", "pixel_kd", "apd")]
ENDLESS = replace(tiny(iterations=100_000, evaluations=0), name="endless")


@pytest.fixture
def folder(runs, tmp_path, monkeypatch):
    """Where records go; workers are forks, which start in a moment and have this process's environment and patches."""
    monkeypatch.setattr(parallel, "START", "fork")
    monkeypatch.setitem(CAMPAIGNS, "taught", lambda: iter(TAUGHT))
    monkeypatch.setitem(CAMPAIGNS, "endless", lambda: iter([ENDLESS, tiny()]))
    return tmp_path / "records"


def failing(kind, times, tmp_path):
    """What `train` is in a worker: it fails so often in one way for one experiment, and then works."""

    def trained(experiment, **options):
        marks = sorted(tmp_path.glob("failed-*"))
        if experiment.name == "apd-seed0" and len(marks) < times:
            (tmp_path / f"failed-{len(marks)}").touch()
            if kind == "memory":
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has")
            os.kill(os.getpid(), signal.SIGKILL)
        return train(experiment, **options)

    return trained


def test_side_by_side_every_run_ends_as_alone_and_the_teacher_is_trained_once(folder, tmp_path, capfd, monkeypatch):
    records = run_campaign("taught", folder=folder, processes=3)
    assert [record.experiment.name for record in records] == [e.name for e in TAUGHT]
    out = capfd.readouterr().out
    assert len(re.findall(r"taught: scenes-teacher is trained, ", out)) == 1
    assert re.search(r"taught: 6/6 \S+: mIoU 0\.\d+, \d+\.\d steps/s, \d at a time, about 0 min left", out)
    together = [outcome(experiment) for experiment in TAUGHT]
    monkeypatch.setenv("APD_RUNS", str(tmp_path / "alone"))
    run_campaign("taught", folder=tmp_path / "again")
    assert [outcome(experiment) for experiment in TAUGHT] == together


def test_at_the_deadline_runs_stop_with_checkpoints_and_what_is_left_is_said(folder, capfd):
    (record,) = run_campaign("endless", folder=folder, processes=2, minutes=0.07)
    assert record.experiment.name == "student-seed0"
    reached = steps_done(ENDLESS)
    assert 0 < reached < ENDLESS.training.iterations
    left = rf"endless: 1 experiments are left, about [1-9]\d* min; begun: endless at step {reached} of 100000\. The "
    assert re.search(left, capfd.readouterr().out)
    run_campaign("endless", folder=folder, processes=1, minutes=0.05)
    assert steps_done(ENDLESS) > reached
    assert f"endless: resumed at step {reached}" in capfd.readouterr().out


def test_a_stop_from_outside_leaves_checkpoints_and_exit_code_130(folder, tmp_path):
    output = tmp_path / "output"
    assert exit_code(stopped_campaign, tmp_path / "runs", folder, output=output) == 130
    assert "apd.study.campaign: endless: stopped; the same command goes on from there" in output.read_text()
    reached = steps_done(ENDLESS)
    time.sleep(1.0)
    assert steps_done(ENDLESS) == reached > 0, "no worker is left behind"


def stopped_campaign(runs, records):
    os.environ["APD_RUNS"] = str(runs)
    parallel.START = "fork"
    CAMPAIGNS["endless"] = lambda: iter([ENDLESS])
    listen = SideBySide.listen

    def listen_and_stop(state, seconds):
        listen(state, seconds)
        if state.speed:
            signal.raise_signal(signal.SIGTERM)
            SideBySide.listen = listen

    SideBySide.listen = listen_and_stop
    code = main(["endless", "--records", str(records), "--processes", "2", "--minutes", "5"])
    sys.stderr.flush()
    os._exit(code)


@pytest.mark.parametrize(
    ("kind", "times", "said"),
    [
        ("memory", 1, "out of memory; tried again, with 1 at a time from now on"),
        ("killed", 1, "its worker ended by signal 9; the run goes on from its last checkpoint in an"),
        ("killed", 2, " was given up: its worker ended by signal 9 a second time"),
    ],
)
def test_a_failing_worker_is_named_and_its_run_tried_again(folder, tmp_path, capfd, monkeypatch, kind, times, said):
    monkeypatch.setattr(parallel, "train", failing(kind, times, tmp_path))
    monkeypatch.setitem(CAMPAIGNS, "taught", lambda: iter(TAUGHT[:3]))
    given_up = pytest.raises(UnfinishedRunsError, match=r"1 of 3 experiments were given up, see above: apd-seed0; the")
    with given_up if times == 2 else contextlib.nullcontext():
        run_campaign("taught", folder=folder, processes=2)
    assert len(list(folder.iterdir())) == (2 if times == 2 else 3)
    assert re.search(f"taught: apd-seed0:? ?{said}", capfd.readouterr().out)


def test_what_stops_every_run_stops_the_campaign_with_its_message(folder, monkeypatch, capsys):
    wrong = replace(TAUGHT[1], teacher=TeacherConfig(weights_file="nowhere.safetensors"))
    monkeypatch.setitem(CAMPAIGNS, "taught", lambda: iter([wrong]))
    assert main(["taught", "--records", str(folder), "--processes", "2"]) == 1
    (message,) = capsys.readouterr().err.splitlines()
    assert message.startswith("apd.study.campaign: teacher weights nowhere.safetensors: there is no such file")


def test_several_ranks_have_one_run_at_a_time(folder, monkeypatch):
    monkeypatch.setattr("apd.study.campaign.join", lambda: replace(ALONE, size=2))
    with pytest.raises(CampaignError, match="start it without torchrun"):
        run_campaign("taught", folder=folder, processes=2)


@pytest.fixture
def state(folder):
    ledger = Ledger("made-up", folder, {}, len(TAUGHT), ALONE)
    made = SideBySide(TAUGHT, ledger, None, processes=2, loaders=0)
    made.workers = [Worker(None, None), Worker(None, None)]
    return made


def at_pace(worker, run, seconds):
    """The worker is at a run whose steps take so long."""
    worker.run, worker.queued, worker.first, worker.newest = run, True, (100.0, 10), (100.0 + 4 * seconds, 14)
    return worker


def test_a_teacher_comes_before_its_students_and_those_without_one_go_on(state):
    assert state.next_run() == TAUGHT[0]
    state.queue.popleft()
    teacher = state.next_run()
    assert teacher == TAUGHT[1].teacher_experiment()
    state.workers[0].run = teacher
    assert state.next_run().name == "student-seed1"
    train(teacher)
    assert state.next_run() == TAUGHT[1]


def test_no_run_is_begun_that_cannot_finish_by_the_seconds_of_runs_like_it(state):
    train(TAUGHT[1].teacher_experiment())
    now = time.monotonic()
    state.deadline = now + 100
    assert state.next_run() == TAUGHT[0], "nothing is known yet"
    at_pace(state.workers[0], TAUGHT[5], seconds=50)  # 6 steps of an apd run take 300 seconds
    at_pace(state.workers[1], TAUGHT[0], seconds=2)
    state.queue.clear()
    state.queue.extend([TAUGHT[2], TAUGHT[1], TAUGHT[3]])
    assert state.speed == pytest.approx(1 / 50 + 1 / 2), "of all workers together, without their starts"
    seconds = [state.expected_seconds(run) for run in state.queue]
    assert seconds == pytest.approx([300, 300, 12]), "of a run like it, else of the slowest"
    assert state.next_run() == TAUGHT[3]
    (run_folder(TAUGHT[3]) / "checkpoints" / "step-00000004").mkdir(parents=True)
    assert state.expected_seconds(TAUGHT[3]) == pytest.approx(4), "what is done already does not count against it"
    state.deadline = now + 3
    assert state.next_run() is None


def test_a_worker_stops_at_its_next_step_once_asked_or_left_alone(folder, monkeypatch):
    """The request reaches it through its pipe, so that no signal comes twice."""
    ours, theirs = multiprocessing.Pipe()
    ours.send(ENDLESS)
    ours.send(None)
    monkeypatch.setattr(os, "setpgid", lambda *_: None)
    parallel.work(theirs, "cpu", 0, 1)
    assert ours.recv() == ("stopped", None)
    assert steps_done(ENDLESS) == 2
    assert not StopRequest().requested
