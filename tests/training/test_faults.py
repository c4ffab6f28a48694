"""What happens to a run's process: kills, a lost lock, signals, dead workers; and what is left of it on the disk."""

import contextlib
import multiprocessing
import os
import random
import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path

import pytest
from bad_input import refused
from small_detection import small
from small_experiments import (
    Thrown,
    exit_code,
    exit_codes,
    outcome,
    start,
    start_ranks,
    thrown_at,
    tiny,
    train_until_killed,
)

from apd.config.experiment import ExperimentError
from apd.data.batches import BatchStream
from apd.data.images import DataError
from apd.study.campaign import run_campaign
from apd.training import record
from apd.training import trainer as loop
from apd.training.checkpoint import CheckpointError, RunBusyError, only_process
from apd.training.run import run_folder, runs_folder, train
from apd.training.run_log import StoppedError, StopRequest


def test_a_detection_run_killed_at_random_moments_ends_bit_equal(undisturbed, runs, tmp_path):
    dice, output, codes = random.Random(1), tmp_path / "output", [-9]
    while codes[-1] == -9:
        codes.append(exit_code(train_until_killed, small("roi_apd"), runs, dice.randint(15, 60), output=output))
    assert codes[-1] == 0, output.read_text()
    assert 4 < len(codes) < 20, "too few kills to show anything, or no progress"
    assert outcome(small("roi_apd")) == undisturbed(small("roi_apd"))


def test_two_ranks_of_which_the_first_is_killed_anywhere_end_bit_equal(tmp_path, monkeypatch):
    ends = []
    for runs, touches in ((tmp_path / "killed", (30, 70, 9999)), (tmp_path / "whole", (9999,))):
        for number in touches:
            ranks = start_ranks(train_until_killed, tiny(batch_size=4), runs, number, outputs=tmp_path / "out")
            assert exit_codes(ranks) == ([0, 0] if number == 9999 else [-9, 1])
        monkeypatch.setenv("APD_RUNS", str(runs))
        ends.append(outcome(tiny(batch_size=4)))
    assert ends[0] == ends[1]


def hold_with_a_child(folder, ready):
    with only_process(folder):
        if child := os.fork():
            ready.write_text(str(child))
        time.sleep(60)


def test_a_lock_does_not_outlive_its_process_in_a_child(tmp_path):
    ready = tmp_path / "ready"
    holder = start(hold_with_a_child, tmp_path, ready, output=tmp_path / "output")
    while not (ready.exists() and ready.read_text()):
        holder.join(0.01)
    holder.kill()
    holder.join()
    with only_process(tmp_path):
        os.kill(int(ready.read_text()), signal.SIGKILL)


LOSSES = [
    lambda folder: (folder / "lock").unlink(),
    lambda folder: [(folder / "lock").rename(folder / "old"), (folder / "lock").touch()],
    lambda folder: folder.rename(folder.with_name("moved")),
]


@pytest.mark.parametrize("step", [2, 6])
@pytest.mark.parametrize("lose", LOSSES)
def test_a_run_whose_lock_is_gone_writes_no_checkpoint_and_no_record(lose, step, runs, monkeypatch):
    monkeypatch.setattr(loop, "CHECKPOINT_SECONDS", 0.0)
    folder = run_folder(tiny())
    kinds = RunBusyError, CheckpointError
    refused(lambda: train(tiny(), on_step=lambda n: n == step and lose(folder)), *kinds, names=(str(folder), "start"))
    assert not [*runs.rglob("record.json"), *runs.rglob(f"step-{step + 1:08d}")]


HERE = f"on {socket.gethostname()}"
HOLDERS = {f"process {os.getpid()} {HERE}": True, "process 7 on elsewhere": True, f"process {2**22 + 1} {HERE}": False}
HOLDERS |= dict.fromkeys(("", "\0\xff", "me", f"process -1 {HERE}", f"process 1{'0' * 99} {HERE}", "x" * 10**6), False)


@pytest.mark.parametrize("text", HOLDERS)
def test_a_live_holder_is_named_and_nothing_else(text, tmp_path):
    with only_process(tmp_path):
        (tmp_path / "holder").write_text(text, encoding="latin-1")
        named = f"is in use by {text if HOLDERS[text] else 'another process'};"
        refused(only_process(tmp_path).__enter__, RunBusyError, names=(named,))


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
def test_a_killed_worker_ends_a_run_in_a_line_with_a_checkpoint(runs, undisturbed):
    def kill(step):
        if step == 2:
            os.kill(multiprocessing.active_children()[0].pid, signal.SIGKILL)

    longer = tiny(iterations=30)
    refused(lambda: train(longer, workers=2, on_step=kill), DataError, names=("prepares batches was killed",))
    assert len([*(run_folder(longer) / "checkpoints").iterdir()]) == 1
    assert multiprocessing.active_children() == []
    train(longer)
    assert outcome(longer) == undisturbed(longer)


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
@pytest.mark.parametrize("workers", [0, 1])
def test_an_image_that_is_damaged_on_the_way_ends_a_run_in_a_line_with_a_checkpoint(workers, runs, monkeypatch):
    def batch(stream, iteration, make=BatchStream.__getitem__):
        if iteration == 3:
            raise DataError("a.png: damaged: fetch it again")
        return make(stream, iteration)

    monkeypatch.setattr(BatchStream, "__getitem__", batch)
    assert refused(lambda: train(tiny(), workers=workers), DataError) == "a.png: damaged: fetch it again"
    assert [path.name for path in (run_folder(tiny()) / "checkpoints").iterdir()] == ["step-00000003"]


def test_a_hangup_stops_a_run_with_a_checkpoint_unless_it_is_ignored(runs, monkeypatch):
    def hang_up(step):
        for _ in "by the terminal", "by the shell":
            signal.raise_signal(signal.SIGHUP)

    refused(lambda: train(tiny(), on_step=hang_up), StoppedError, names=("stopped at step 2",))
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    with StopRequest() as stop:
        signal.raise_signal(signal.SIGHUP)
    signal.signal(signal.SIGHUP, before)
    assert not stop.requested


def test_files_have_the_users_mode_and_weights_are_on_the_disk_before_the_record(runs, monkeypatch):
    flushed, fsync, before = [], os.fsync, os.umask(0o027)
    monkeypatch.setattr(os, "fsync", lambda at: [flushed.append(Path(os.readlink(f"/proc/self/fd/{at}"))), fsync(at)])
    train(tiny())
    os.umask(before)
    assert {oct(path.stat().st_mode & 0o777) for path in runs.rglob("*") if path.is_file()} == {"0o640"}
    names = [path.name for path in flushed]
    files = ["weights.safetensors", "state.safetensors", "optimisers.pt", "manifest.json", "checkpoints"]
    assert [name for name in names if name in files][:3] == files[:3]
    assert names[-4:-2] == ["weights.part", run_folder(tiny()).name]
    assert names[-2].startswith(".record.json.")


def test_folders_are_expanded_and_refused_where_nothing_can_be_written(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("APD_RUNS", "~/runs")
    assert runs_folder() == tmp_path / "runs"
    (tmp_path / "file").touch()
    monkeypatch.setattr("apd.study.campaign.train", pytest.fail)
    for records in ("~/file", "~/file/records", "/proc/no"):
        refused(lambda at=records: run_campaign("scenes-tiny", folder=Path(at)), CheckpointError, names=(records[1:],))
    monkeypatch.setenv("APD_RUNS", "~nobody-here/runs")
    refused(runs_folder, ExperimentError, names=("APD_RUNS = '~nobody-here/runs'",))


def test_the_recorded_commit_is_the_projects_own_or_none(tmp_path, monkeypatch):
    def git(folder, *arguments):
        me = ["-c", "user.name=me", "-c", "user.email=me@example.org"]
        return subprocess.run(["git", *me, *arguments], cwd=folder, check=True, capture_output=True, text=True).stdout

    def state_of(folder):
        (folder / "apd" / "training").mkdir(parents=True, exist_ok=True)
        monkeypatch.setattr(record, "__file__", str(folder / "apd" / "training" / "record.py"))
        return record._git_state.__wrapped__()

    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    for folder, name in ((ours, "adaptive-perspective-distillation"), (theirs, "other")):
        (folder / "apd").mkdir(parents=True)
        (folder / "pyproject.toml").write_text(f'[project]\nname = "{name}"\n')
        git(folder, "init", "-q")
        git(folder, "add", ".")
        git(folder, "commit", "-qm", name)
    git(ours, "worktree", "add", "-q", str(tmp_path / "tree"))
    shutil.copytree(ours, unpacked := theirs / "unpacked", ignore=shutil.ignore_patterns(".git"))
    commit = git(ours, "rev-parse", "HEAD").strip()
    monkeypatch.setenv("GIT_DIR", str(theirs / ".git"))  # as in a hook
    for folder in (ours, tmp_path / "tree"):
        assert state_of(folder) == {"commit": commit, "clean": True}
    for folder in (theirs, theirs / ".venv" / "site-packages", unpacked, tmp_path):
        assert state_of(folder) == {"commit": "not in a checkout", "clean": False}
    monkeypatch.setenv("APD_COMMIT", "0" * 40)
    assert state_of(unpacked) == {"commit": "0" * 40, "clean": True}


def test_a_record_has_an_entry_for_every_process_that_worked_on_the_run(runs, monkeypatch):
    monkeypatch.setattr(loop, "CHECKPOINT_SECONDS", 0.0)
    for part in (2, 4, 6):
        monkeypatch.setattr("sys.argv", ["apd", "train", f"/home/me/part{part}"])
        with contextlib.suppress(Thrown):
            content = train(tiny(), on_step=thrown_at(part if part < 6 else 9)).content
    entries = content["history"]
    assert [entry["steps"] for entry in entries] == [[0, 2], [2, 4], [4, 6]]
    assert [entry["command"] for entry in entries] == [f"apd train part{part}" for part in (2, 4, 6)]
    kept = ("git", "versions", "device", "command")
    assert all(entry.keys() == {"started", "steps", *kept} for entry in entries)
    assert {name: entries[-1][name] for name in kept}.items() <= content.items(), "of the last process"
