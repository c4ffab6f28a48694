"""Mishaps: a checkpoint is whole or not at all, each ends in one clear message, and nothing finished is lost."""

import ast
import errno
import json
import os
import pickle
import re
import resource
import shutil
import signal
import threading
import time
from functools import partial
from pathlib import Path

import pytest
import torch
from own_folders import leave
from small_experiments import exit_code, outcome, run_as_a_command, start, stopped, tiny, undisturbed

from apd.training import checkpoint
from apd.training import trainer as loop
from apd.training.checkpoint import CheckpointError, load_newest, only_process
from apd.training.distributed import ALONE
from apd.training.run import run_folder, train
from apd.training.run_log import StoppedError

PACKAGE = Path(checkpoint.__file__).parents[1]
pytestmark = pytest.mark.usefixtures("tiny_recipes")
STUDENT = ("train", "--method", "student")


def ends_undisturbed():
    """Start the run of a mishap again: it must end as if nothing had happened. Returns the steps that were made."""
    steps = []
    train(tiny(), on_step=steps.append)
    assert outcome(tiny()) == undisturbed(tiny())
    return steps


@pytest.fixture
def refused(capsys):
    """Call a command; it must fail with one message, which is returned."""

    def call(*arguments):
        capsys.readouterr()
        assert leave(*arguments) == 1
        (message,) = capsys.readouterr().err.splitlines()
        assert message.startswith("apd: ")
        return message

    return call


def test_without_a_folder_of_data_nothing_is_trained_and_no_teacher_either(runs, refused, monkeypatch, tmp_path):
    monkeypatch.setenv("APD_DATA", str(tmp_path / "no"))
    assert "is not a folder" in refused("train", "--data.name", "camvid")
    assert not list(runs.glob("*teacher*"))


@pytest.mark.parametrize("both", [False, True])
def test_of_damaged_checkpoints_the_newest_whole_one_is_used_if_any(both, capsys):
    checkpoints = stopped(tiny(), 4) / "checkpoints"
    newest = checkpoints / "step-00000004" / "optimisers.pt"
    newest.write_bytes(newest.read_bytes()[:100])
    if both:
        (checkpoints / "step-00000003" / "manifest.json").write_text("[]")
    assert ends_undisturbed()[0] == (1 if both else 4)
    instead = "none before it is whole: step 0 again" if both else "step 3 before it is used"
    first, second = capsys.readouterr().out.splitlines()
    assert first == f"student-seed0: {newest} is damaged: its sha256 is not the one in manifest.json; {instead}"
    assert second.endswith(instead if both else "resumed at step 3")


def test_damaged_files_of_a_finished_run_are_named_and_made_again_when_deleted(refused):
    train(tiny())
    weights, path = (run_folder(tiny()) / name for name in ("weights.safetensors", "record.json"))
    weights.write_bytes(weights.read_bytes()[:-1])
    message = refused("evaluate", path.parent)
    assert message == f"apd: {weights} is missing, damaged or of another network; delete {path} to finish the run again"
    path.write_text(path.read_text()[:500])
    for command in (STUDENT, ("evaluate", path.parent)):
        assert re.search(f"{path}: cannot be read as JSON.*delete it to have it made again", refused(*command))
    path.unlink()
    ends_undisturbed()


def fill_the_disk(runs, largest, often):
    """After step 3 no file may grow beyond that many bytes, which the system enforces on every write."""

    def limit(step):
        if step == 3:
            resource.setrlimit(resource.RLIMIT_FSIZE, (largest, resource.RLIM_INFINITY))

    loop.CHECKPOINT_SECONDS = 0.0 if often else 1e9
    run_as_a_command(tiny(), runs, limit)


@pytest.mark.parametrize(("largest", "often", "file"), [(100_000, True, "step-00000004"), (900, False, "log.jsonl")])
def test_a_full_disk_stops_a_run_until_there_is_space(runs, tmp_path, largest, often, file):
    output = tmp_path / "output"
    assert exit_code(fill_the_disk, runs, largest, often, output=output) == 1
    (message,) = output.read_text().splitlines()
    assert re.match(f"apd: cannot write [^:]*{file}.*Nothing that was finished is lost.*start the same comm", message)
    assert ends_undisturbed()[0] == (4 if often else 1)


def test_a_disk_that_is_full_at_the_very_end_costs_no_step(refused, monkeypatch):
    execute = loop.Trainer.execute

    def execute_and_fill(run, on_step):
        execute(run, on_step)
        patch.setattr(checkpoint.os, "fsync", full)

    with monkeypatch.context() as patch:
        patch.setattr(loop.Trainer, "execute", execute_and_fill)
        message = refused(*STUDENT, "--name", tiny().name)
    assert f"cannot write {run_folder(tiny()) / 'weights.safetensors'}: No space left on device" in message
    assert not (run_folder(tiny()) / "record.json").exists()
    assert ends_undisturbed() == []


def test_a_read_only_disk_is_an_error_before_anything_is_computed(refused, monkeypatch, tmp_path):
    """A regular file in the place of a folder stands for it: root may write everywhere else."""
    (tmp_path / "file").touch()
    monkeypatch.setenv("APD_RUNS", str(tmp_path / "file" / "runs"))
    monkeypatch.setattr("apd.training.segmentation.build_splits", lambda *_: pytest.fail("too late"))
    assert f"cannot write to {tmp_path / 'file' / 'runs'}" in refused(*STUDENT)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_stop_is_honoured_after_the_step_and_loses_nothing(number):
    handler = signal.getsignal(number)
    with pytest.raises(StoppedError, match="stopped at step 3; the same command goes on from there"):
        train(tiny(), on_step=lambda step: signal.raise_signal(number) if step == 2 else None)
    assert signal.getsignal(number) is handler
    with pytest.raises(KeyboardInterrupt, match=r"^$"):  # a second Ctrl-C stops at once
        train(tiny(), on_step=lambda _: [signal.raise_signal(signal.SIGINT) for _ in range(2)])
    assert [path.name for path in (run_folder(tiny()) / "checkpoints").iterdir()] == ["step-00000003"]
    thread = threading.Thread(target=ends_undisturbed)  # where no signal can be caught
    thread.start()
    thread.join()
    assert ends_undisturbed() == []


def test_a_gpu_without_enough_memory_is_reported_and_the_run_goes_on(refused, monkeypatch):
    stopped(tiny(), 3)
    with monkeypatch.context() as patch:
        full = "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 8.00 GiB"
        patch.setattr(loop.TrainStep, "__call__", lambda *_: (_ for _ in ()).throw(torch.OutOfMemoryError(full)))
        message = refused(*STUDENT)
    assert "the GPU's memory does not hold this run (CUDA out of memory)" in message
    assert ends_undisturbed() == [4, 5, 6]


def test_a_defect_of_the_package_shows_its_traceback(monkeypatch):
    monkeypatch.setattr("apd.training.segmentation.build_splits", lambda *_: [][0])
    with pytest.raises(IndexError):
        leave(*STUDENT)


def saved(folder, step):
    """A checkpoint whose every value depends on the step."""
    parameter = torch.nn.Parameter(torch.full((3,), float(step)))
    optimiser = torch.optim.SGD([parameter], lr=0.1, momentum=0.9)
    parameter.grad = torch.arange(3.0) + step
    optimiser.step()
    return checkpoint.save_checkpoint(
        folder,
        step,
        weights={"layer.weight": parameter},
        state={"generator.cpu": torch.get_rng_state(), "count": torch.tensor(step)},
        optimisers={"student": optimiser.state_dict()},
        facts={"seconds": step / 3, "evaluations": [{"step": step}]},
    )


def test_the_last_two_whole_checkpoints_are_kept_and_nothing_else(tmp_path):
    for step in (3, 20, 100):
        saved(tmp_path, step)
    shutil.copytree(tmp_path / "step-00000100", tmp_path / ".part-00000150")  # what a kill leaves half written
    assert load_newest(tmp_path)[0]["step"] == 100
    saved(tmp_path, 1000)
    assert sorted(os.listdir(tmp_path)) == ["step-00000100", "step-00001000"]
    assert load_newest(tmp_path / "none") == (None, [])


def damage(path, file="weights.safetensors", end=b""):
    (path / file).write_bytes((path / file).read_bytes()[:-1] + end)


DAMAGES = {
    "weights.safetensors is damaged: its sha256": damage,
    "optimisers.pt is damaged: its sha256": lambda path: damage(path, "optimisers.pt", b"!"),
    "state.safetensors": lambda path: (path / "state.safetensors").unlink(),
    "JSONDecodeError": lambda path: (path / "manifest.json").write_text(""),
    "manifest.json is damaged: it says step 1": lambda path: shutil.copy(saved(path / "of", 1) / "manifest.json", path),
    "manifest.json": lambda path: [file.unlink() for file in path.iterdir()],
}


@pytest.mark.parametrize("message", DAMAGES)
def test_of_a_damaged_newest_checkpoint_the_one_before_is_used_and_it_is_said(tmp_path, message):
    saved(tmp_path, 10)
    path = saved(tmp_path, 20)
    DAMAGES[message](path)
    with pytest.raises(CheckpointError, match=f"step-00000020.*{message}") as caught:
        checkpoint.load_checkpoint(path)
    found, (sentence,) = load_newest(tmp_path)
    assert found["step"] == 10
    assert sentence == f"{caught.value}; step 10 before it is used"


def test_damaged_checkpoints_never_push_out_whole_ones(tmp_path):
    """Newer steps than the one just written were passed over as damaged: they go, and two whole ones stay."""
    for step in (10, 20, 30):
        path = saved(tmp_path, step)
    damage(path)
    damage(tmp_path / "step-00000020")
    saved(tmp_path, 12)
    damage(saved(tmp_path, 14))
    saved(tmp_path, 14)
    assert sorted(os.listdir(tmp_path)) == ["step-00000012", "step-00000014"]
    assert load_newest(tmp_path)[1] == []


@pytest.mark.parametrize("write", [torch.save, lambda value, path: path.write_bytes(pickle.dumps(value, protocol=2))])
def test_a_malicious_pickle_is_refused_and_not_run(tmp_path, write):
    """An attacker can write any file of the folder, the manifest's hashes included."""
    trap, folder = tmp_path / "trap", tmp_path / "checkpoints"
    saved(folder, 10)
    path = saved(folder, 20)
    makes_a_folder = type("Malicious", (), {"__reduce__": lambda _: (os.mkdir, (str(trap),))})
    write({"student": makes_a_folder()}, path / "optimisers.pt")
    manifest = json.loads((path / "manifest.json").read_text())
    manifest["sha256"]["optimisers.pt"] = checkpoint.sha256_of(path / "optimisers.pt")
    del manifest["checksum"]
    (path / "manifest.json").write_text(json.dumps(manifest | {"checksum": checkpoint.checksum_of(manifest)}))
    found, (sentence,) = load_newest(folder)
    assert not trap.exists()
    assert (found["step"], "UnpicklingError" in sentence) == (10, True)


def test_the_package_unpickles_nothing_freely():
    loads = []
    for node in (node for path in PACKAGE.rglob("*.py") for node in ast.walk(ast.parse(path.read_text()))):
        if isinstance(node, ast.Import | ast.ImportFrom) and ast.unparse(node) != "from pickle import UnpicklingError":
            modules = {alias.name for alias in node.names} | {getattr(node, "module", None)}
            assert not modules & {"pickle", "cPickle", "shelve", "dill", "joblib", "marshal"}
        if isinstance(node, ast.Call):
            assert "allow_pickle=True" not in ast.unparse(node)
            if ast.unparse(node.func) in ("torch.load", "load_url"):
                loads.append(ast.unparse(node))
    assert loads
    assert all("weights_only=True" in call for call in loads)


def full(*_arguments, error=errno.ENOSPC, **_options):
    raise OSError(error, os.strerror(error))


@pytest.mark.parametrize("writer", ["save", "torch.save", "write_atomically", "os.fsync"])
def test_a_full_disk_leaves_the_checkpoints_that_are_there(tmp_path, monkeypatch, writer):
    saved(tmp_path, 10)
    monkeypatch.setattr(f"apd.training.checkpoint.{writer}", full)
    with pytest.raises(CheckpointError, match=r"step-00000020.*No space left on device.*free space or"):
        saved(tmp_path, 20)
    monkeypatch.undo()
    assert sorted(os.listdir(tmp_path)) == ["step-00000010"]
    assert load_newest(tmp_path)[0]["step"] == 10


def hold(folder):
    with only_process(folder):
        pass


def hold_for_ever(folder, ready):
    with only_process(folder):
        if os.fork() == 0:  # a child, as a worker of a loader is, lives on for a while
            time.sleep(5)
            os._exit(0)
        ready.touch()
        os.read(os.pipe()[0], 1)


def test_one_process_at_a_time_the_other_learns_which_and_who_waits_is_next(tmp_path, capsys):
    folder, ready = tmp_path / "run", tmp_path / "ready"
    holder = start(hold_for_ever, folder, ready, output=tmp_path / "output")
    while not ready.exists():
        holder.join(0.01)
        assert holder.is_alive(), (tmp_path / "output").read_text()
    busy = rf"run is in use by process {holder.pid} on \S+; wait for it to end"
    with pytest.raises(checkpoint.RunBusyError, match=busy), ALONE.hold(folder, wait=False):
        pass
    threading.Timer(0.3, holder.kill).start()
    with ALONE.hold(folder, wait=True):  # the lock went with its process
        assert (folder / "holder").read_text().startswith(f"process {os.getpid()} on ")
    assert re.search(f"waiting: .*{busy}", capsys.readouterr().out)
    assert sorted(os.listdir(folder)) == ["lock"]


def test_a_full_disk_does_not_keep_a_run_from_being_held(tmp_path, monkeypatch):
    (tmp_path / "holder").write_text("process 1 on a machine that was switched off")
    monkeypatch.setattr(Path, "write_text", full)
    with only_process(tmp_path), pytest.raises(checkpoint.RunBusyError, match="in use by another process"):
        hold(tmp_path)


@pytest.mark.filterwarnings("ignore:flock not supported")
def test_a_file_system_without_locks_is_named_and_what_to_do(tmp_path, monkeypatch):
    hold(tmp_path / "before")
    monkeypatch.setattr("fcntl.flock", partial(full, error=errno.ENOSYS))
    for folder in ("before", "new", "new"):
        with pytest.raises(CheckpointError, match=r"cannot lock .*lock: Function not implemented; mount it with locks"):
            hold(tmp_path / folder)
