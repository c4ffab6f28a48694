"""A checkpoint is there whole or not at all, is never unpickled freely, and a damaged one is passed over and named."""

import ast
import errno
import json
import os
import pickle
import re
import shutil
import threading
from functools import partial
from pathlib import Path

import pytest
import torch
from small_experiments import start

from apd.training import checkpoint
from apd.training.checkpoint import CheckpointError, load_newest, only_process, save_weights, write_atomically
from apd.training.distributed import ALONE

APD = Path(checkpoint.__file__).parents[1]


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


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_checkpoint_comes_back_bit_equal(tmp_path):
    back = checkpoint.load_checkpoint(saved(tmp_path, 7))
    assert (back["step"], back["facts"]) == (7, {"seconds": 7 / 3, "evaluations": [{"step": 7}]})
    gradient, optimiser = torch.arange(3.0) + 7, back["optimisers"]["student"]
    assert torch.equal(back["weights"]["layer.weight"], torch.full((3,), 7.0) - 0.1 * gradient)
    assert torch.equal(back["state"]["generator.cpu"], torch.get_rng_state())
    assert back["state"]["count"] == 7
    assert torch.equal(optimiser["state"][0]["momentum_buffer"], gradient)
    assert optimiser["param_groups"][0]["lr"] == 0.1


def test_the_last_two_whole_checkpoints_are_kept_and_nothing_else(tmp_path):
    for step in (3, 20, 100):
        saved(tmp_path, step)
    shutil.copytree(tmp_path / "step-00000100", tmp_path / ".part-00000150")  # what a kill leaves half written
    assert load_newest(tmp_path)[0]["step"] == 100
    saved(tmp_path, 1000)
    assert names(tmp_path) == ["step-00000100", "step-00001000"]
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
    assert names(tmp_path) == ["step-00000012", "step-00000014"]
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
    (path / "manifest.json").write_text(json.dumps(manifest))
    found, (sentence,) = load_newest(folder)
    assert not trap.exists()
    assert (found["step"], "UnpicklingError" in sentence) == (10, True)


def test_the_package_unpickles_nothing_freely():
    """torch.load always with weights_only=True; no pickle, shelve, joblib or NumPy objects."""
    loads = []
    for node in (node for path in APD.rglob("*.py") for node in ast.walk(ast.parse(path.read_text()))):
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


@pytest.mark.parametrize("writer", ["save_file", "torch.save", "write_atomically", "os.fsync"])
def test_a_full_disk_leaves_the_checkpoints_that_are_there(tmp_path, monkeypatch, writer):
    saved(tmp_path, 10)
    monkeypatch.setattr(f"apd.training.checkpoint.{writer}", full)
    with pytest.raises(CheckpointError, match=r"step-00000020.*No space left on device.*free space or"):
        saved(tmp_path, 20)
    monkeypatch.undo()
    assert names(tmp_path) == ["step-00000010"]
    assert load_newest(tmp_path)[0]["step"] == 10


def test_weights_and_texts_are_replaced_whole_or_stay(tmp_path, monkeypatch):
    weights, text = tmp_path / "weights.safetensors", tmp_path / "record.json"
    save_weights(weights, {"a": torch.zeros(2)})
    write_atomically(text, "before")
    before = weights.read_bytes()
    monkeypatch.setattr(checkpoint, "save_file", full)
    monkeypatch.setattr(checkpoint.os, "fsync", full)
    for write, path, content in ((save_weights, weights, {"a": torch.ones(2)}), (write_atomically, text, "after")):
        with pytest.raises(CheckpointError, match=f"cannot write {path}: .*No space left on device.*free space"):
            write(path, content)
    assert (weights.read_bytes(), text.read_text()) == (before, "before")
    assert names(tmp_path) == ["record.json", "weights.safetensors"]


def hold(folder):
    with only_process(folder):
        pass


def hold_for_ever(folder, ready):
    with only_process(folder):
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
    assert names(folder) == ["lock"]


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
        with pytest.raises(CheckpointError, match=r"cannot lock .*lock: Function not implemented; have the file sys"):
            hold(tmp_path / folder)
