"""What happens to a run's files, data and processes behind its back is refused, passed over or marked."""

import json
import multiprocessing
import os
import re
import shutil
import signal
import socket
import subprocess
import tempfile
from dataclasses import replace
from itertools import product
from pathlib import Path

import pytest
from bad_input import refused
from hypothesis import given, settings
from hypothesis import strategies as st
from own_folders import leave, make
from small_detection import small
from small_experiments import DATA, outcome, stopped, tiny, undisturbed

from apd.config.experiment import ExperimentError
from apd.data.batches import BatchStream
from apd.data.images import DataError
from apd.data.scenes import Scenes
from apd.study.campaign import run_campaign
from apd.training import record
from apd.training import trainer as loop
from apd.training.checkpoint import CheckpointError, RunBusyError, load_checkpoint, only_process
from apd.training.run import run_folder, runs_folder, train, trained_network
from apd.training.run_log import RunLog
from apd.training.task import TeacherError

pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create")
NASTY = [*b'NaN "1" [2] true null {} {"step":2}'.split(), b"1" * 5000, b"[" * 99999, b"\n", b"\0\xff", b""]
LOST = (str, os.mkfifo, lambda path: path.symlink_to("/dev/zero"), lambda path: os.truncate(path.open("x").name, 2**40))
MEANT = {  # of dataset.yaml -> what of the split train is named
    "classes: [crop, soil]": "class_names of the split train: 'soil' then, 'crop' now",
    "classes: [soil, crop]\nvalues: [1, 0]": "file_values of the split train: [] then, [1, 0] now",
    "classes: [soil, crop]\nignore: [9]": "void_values of the split train: [] then, [9] now",
    "classes: [soil, crop]\ncolours: [[0, 0, 0], [1, 1, 1]]": "file_colours of the split train: [] then, [[0, 0, 0],",
}


@settings(max_examples=150)
@given(st.integers(0, 170), st.integers(0, 99), st.sampled_from(NASTY))
def test_whatever_becomes_of_a_log_only_steps_as_they_were_written_count_and_the_rest_is_marked(place, length, new):
    written = [{"step": step, "seconds": 1.5, "loss": 0.1 / 3 + step} for step in range(4)]
    with tempfile.TemporaryDirectory() as folder:
        log, again = (RunLog(Path(folder) / "log.jsonl") for _ in range(2))
        for entry in written:
            log.write(entry)
            log.facts()
        content = log.path.read_bytes()
        log.path.write_bytes(content[:place] + new + content[place + length :])
        again.start_over(log.parts)
        kept, summary = again.read(), again.summary()
    lost = [entry["step"] for entry in written if entry not in kept]
    assert kept == [entry for entry in written if entry in kept]
    assert summary["curves"]["iteration"] == [entry["step"] + 1 for entry in kept]
    assert summary.get("log_damaged") == ((lost and {"first": lost[0], "last": lost[-1], "steps": len(lost)}) or None)


@pytest.mark.parametrize("put", LOST)
def test_a_log_that_is_lost_costs_no_training(put, runs):
    path = stopped(tiny(), 4) / "log.jsonl"
    content = train(tiny(), on_step=lambda step: step == 6 and [path.unlink(), put(path)]).content
    assert (content["curves"], content["log_damaged"]["steps"]) == ({"iteration": []}, 6)
    assert content["confusion"] == undisturbed(tiny())["confusion"]
    assert content["seconds_per_iteration"] > 0
    assert [entry["steps"] for entry in content["history"]] == [[0, 4], [4, 6]]
    kept = {name: content[name] for name in ("git", "versions", "device", "command")}
    assert [{name: entry[name] for name in kept} for entry in content["history"]] == [kept, kept]


def test_a_manifest_in_which_anything_was_changed_is_refused_and_weights_of_other_code_are_too(runs, monkeypatch):
    path = stopped(tiny(), 4) / "checkpoints" / "step-00000004" / "manifest.json"
    whole = json.loads(path.read_text())
    for owner, value in product((whole, whole["facts"]), ([0], {"a": 0}, "1", -1, ...)):
        for name in owner:
            changed = {kept: old for kept, old in (owner | {name: value}).items() if old != ...}
            path.write_text(json.dumps(changed if owner is whole else {**whole, "facts": changed}))
            refused(lambda: load_checkpoint(path.parent), CheckpointError, names=(str(path.parent),))
    path.write_text(json.dumps(whole))
    os.mkfifo(path.parents[1] / "step-00000009")
    with monkeypatch.context() as patch:
        patch.setattr("torch.optim.Optimizer.load_state_dict", lambda *_: {}["state"])
        refused(lambda: train(tiny()), CheckpointError, names=("another version of this package",))
    train(tiny())
    assert outcome(tiny()) == undisturbed(tiny())


def flip(path):
    content = path.read_bytes()
    path.write_bytes(content[:-9] + bytes([content[-9] ^ 1]) + content[-8:])


def test_a_run_goes_on_with_the_teacher_and_the_settings_that_it_was_begun_with_only(runs):
    of_teacher, other = tiny("apd").teacher_experiment(), tiny(seed=1)
    train(of_teacher)
    weights, file = run_folder(of_teacher) / "weights.safetensors", runs / "mine.safetensors"
    shutil.copy(weights, file)
    experiment = replace(tiny("apd"), teacher=replace(tiny("apd").teacher, weights_file=str(file)))
    begun = stopped(experiment, 4) / "checkpoints"
    flip(file)
    names = ("other weights of the teacher", f"restore them, or delete {begun}")
    refused(lambda: train(experiment, on_step=pytest.fail), CheckpointError, names=names)
    file.unlink()
    refused(lambda: train(experiment), TeacherError, names=(str(file), "no such file; give another --teacher."))
    shutil.copy(weights, file)
    content = train(experiment, on_step=lambda step: step == 6 and file.unlink()).content
    assert content["teacher"]["weights_sha256"] == train(of_teacher).content["weights_sha256"], "of what was loaded"
    shutil.copy(weights, file)
    assert train(experiment, on_step=pytest.fail).content == content
    flip(file)
    refused(lambda: train(experiment), CheckpointError, names=("another teacher than", "delete the folder, or keep"))
    gone = "no such file; restore it"
    changes = {flip: "is damaged or was replaced; restore it", Path.unlink: gone, os.mkfifo: gone}
    for change, said in changes.items():
        change(weights)
        refused(lambda: train(tiny("apd")), TeacherError, names=(said, f"delete {weights.with_name('record.json')}"))
    run_folder(tiny()).mkdir()
    shutil.copytree(stopped(other, 4) / "checkpoints", run_folder(tiny()) / "checkpoints")
    refused(lambda: train(tiny(), on_step=pytest.fail), CheckpointError, names=("other settings", "begin anew"))
    shutil.rmtree(run_folder(tiny()))
    train(other)
    shutil.copytree(run_folder(other), run_folder(tiny()))
    refused(lambda: train(tiny()), CheckpointError, names=("of another experiment",))
    refused(lambda: trained_network(tiny()), CheckpointError, names=("of another experiment",))


@pytest.mark.parametrize(("step", "how"), [*product((2, 6), ("deleted", "replaced", "moved"))])
def test_a_run_whose_lock_is_gone_writes_no_checkpoint_and_no_record(step, how, runs, monkeypatch):
    def lose(folder):
        (folder / "lock").rename(folder / "old")
        if how == "replaced":
            (folder / "lock").touch()
        if how == "moved":
            folder.rename(folder.with_name("moved"))

    monkeypatch.setattr(loop, "CHECKPOINT_SECONDS", 0.0)
    folder, kinds = run_folder(tiny()), (RunBusyError, CheckpointError)
    refused(lambda: train(tiny(), on_step=lambda n: n == step and lose(folder)), *kinds, names=("start",))
    assert not [*runs.rglob("record.json"), *runs.rglob(f"step-{step + 1:08d}")]


def test_a_live_holder_is_named_and_nothing_else(tmp_path):
    here, holder = f"on {socket.gethostname()}", tmp_path / "holder"
    texts = (f"process {os.getpid()} {here}", "process 7 on elsewhere", f"process {2**22 + 1} {here}", "", "\0\xff")
    with only_process(tmp_path):
        for text in (*texts, "me", f"process -1 {here}", f"process 1{'0' * 99} {here}", "x" * 10**6):
            holder.write_text(text, encoding="latin-1")
            named = f"is in use by {text if text in texts[:2] else 'another process'};"
            refused(only_process(tmp_path).__enter__, RunBusyError, names=(named,))


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_a_damaged_image_or_a_killed_worker_ends_a_run_in_a_line_with_a_checkpoint(workers, runs, monkeypatch):
    def batch(stream, iteration, make=BatchStream.__getitem__):
        if iteration == 20 and workers < 2:
            raise DataError("a.png: damaged: fetch it again")
        return make(stream, iteration)

    def end(step):
        if step == 2 and workers == 2:
            os.kill(multiprocessing.active_children()[0].pid, signal.SIGKILL)

    monkeypatch.setattr(BatchStream, "__getitem__", batch)
    said = refused(lambda: train(tiny(iterations=30), workers=workers, on_step=end), DataError)
    assert re.match("a process that loads data died" if workers == 2 else "a.png: damaged: fetch it again$", said)
    assert len([*(run_folder(tiny(iterations=30)) / "checkpoints").iterdir()]) == 1
    assert multiprocessing.active_children() == []


def test_files_have_the_users_mode_and_weights_are_on_the_disk_before_the_record(runs, monkeypatch):
    flushed, fsync, before = [], os.fsync, os.umask(0o027)
    monkeypatch.setattr(os, "fsync", lambda at: [flushed.append(os.readlink(f"/proc/self/fd/{at}")), fsync(at)])
    train(tiny())
    os.umask(before)
    assert {oct(path.stat().st_mode & 0o777) for path in runs.rglob("*") if path.is_file()} == {"0o640"}
    names = [Path(path).name for path in flushed]
    assert names[1:4] == ["weights.safetensors", "state.safetensors", "optimisers.pt"]
    assert names[-4].startswith(".weights.")
    assert names[-2].startswith(".record.json.")


def test_folders_are_expanded_and_refused_where_nothing_can_be_written(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("APD_RUNS", "~/runs")
    assert runs_folder() == tmp_path / "runs"
    (tmp_path / "file").touch()
    for records in ("~/file", "~/file/records", "/proc/no"):
        refused(lambda at=records: run_campaign("scenes-tiny", folder=Path(at)), CheckpointError, names=(records[1:],))
    monkeypatch.setenv("APD_RUNS", "~nobody-here/runs")
    refused(runs_folder, ExperimentError, names=("APD_RUNS = '~nobody-here/runs'",))


def test_the_recorded_commit_is_the_projects_own_or_none(tmp_path, monkeypatch):
    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    for folder, name in ((ours, "adaptive-perspective-distillation"), (theirs, "other")):
        (folder / "apd").mkdir(parents=True)
        (folder / "pyproject.toml").write_text(f'[project]\nname = "{name}"\n')
        for command in ("init -q", "add .", "-c user.name=me -c user.email=me@example.org commit -qm all"):
            subprocess.run(["git", *command.split()], cwd=folder, check=True)
    commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ours, capture_output=True, text=True).stdout.strip()
    shutil.copytree(ours, unpacked := theirs / "unpacked", ignore=shutil.ignore_patterns(".git"))
    monkeypatch.setenv("GIT_DIR", str(theirs / ".git"))  # as in a hook
    states = {ours: commit, theirs: None, theirs / ".venv" / "site-packages": None, unpacked: None, tmp_path: None}
    for folder, expected in states.items():
        monkeypatch.setattr(record, "__file__", str(folder / "apd" / "training" / "record.py"))
        state = {"commit": expected or "not in a checkout", "clean": expected is not None}
        assert record._git_state.__wrapped__() == state
    monkeypatch.setenv("APD_COMMIT", "a\nb")
    refused(record._git_state.__wrapped__, ExperimentError, names=("APD_COMMIT",))


@pytest.mark.parametrize("changed", [*MEANT, "train", "val", "test"])
def test_a_run_goes_on_and_is_used_with_what_it_was_begun_with_alone(changed, runs, tmp_path, monkeypatch, capsys):
    folder, words = tmp_path / "fields", MEANT.get(changed, f"fingerprint of the split {changed}: ")
    data = replace(DATA, name="folder", folder=str(folder), evaluation_split="test")
    experiment = replace(tiny(), data=data)

    def prepare(*, change):
        make(folder, test=2)
        if change and changed in MEANT:
            (folder / "dataset.yaml").write_text(changed)
        elif change:
            shutil.copy(folder / f"images/{changed}/{changed}000.png", folder / f"images/{changed}/{changed}001.png")

    def refuse(begun):
        prepare(change=True)
        refused(lambda: train(experiment), CheckpointError, names=(begun, words))
        prepare(change=False)

    prepare(change=False)
    stopped(experiment, 3)
    refuse("begun with other data")
    assert list(train(experiment).identities) == ["train", "val", "test"]
    refuse("other images or labels")
    file, image = run_folder(experiment) / "record.json", folder / "images/val/val000.png"
    for older in (False, True):
        if older:  # a record of before there were identities
            content = json.loads(file.read_text()) | {"digest": ""}
            del content["data"]["identities"], content["digest"]
            file.write_text(json.dumps(content))
            prepare(change=False)
            assert train(experiment).content == content
        prepare(change=True)
        other = changed in MEANT and (not older or "class_names" in words)
        for command in (("evaluate", file, "--split", "train"), ("predict", file, image, "--to", tmp_path)):
            assert leave(*command) == int(other)
            said = capsys.readouterr().err
            assert words.split(": ")[1] in said if other else ("of an older kind" in said) == older
            assert "of train are not those" in said or changed != "train" or command[0] != "evaluate"
    shutil.move(image, seen := tmp_path / "seen.png")
    shutil.rmtree(folder)
    assert leave("predict", file, seen, "--to", tmp_path) == 0, "a network is used where its data are not"


def test_a_split_without_a_label_that_counts_is_refused_before_a_teacher_is_trained(runs, monkeypatch):
    objects = small("roi_apd")
    objects, drawn = replace(objects, data=replace(objects.data, least_pixels=10**6)), Scenes.__getitem__
    refused(lambda: train(objects), DataError, names=("scenes: the split train has no annotation",))
    monkeypatch.setattr(Scenes, "__getitem__", lambda *at: [sample := drawn(*at), sample.labels_HW.fill_(255)][0])
    refused(lambda: train(tiny("apd")), DataError, names=("scenes: the split train has no labelled pixel",))
    assert not list(runs.rglob("log.jsonl"))
