"""A checkpoint is there whole or not at all, is never unpickled freely, and a damaged one is passed over and named."""

import ast
import errno
import json
import os
import pickle
import re
import shutil
import threading
from pathlib import Path

import pytest
import torch
from small_experiments import exit_code, start

from apd.training import checkpoint
from apd.training.checkpoint import (
    CheckpointError,
    RunBusyError,
    load_checkpoint,
    load_newest,
    only_process,
    save_checkpoint,
    save_weights,
    sha256_of,
    write_atomically,
)
from apd.training.distributed import ALONE

APD = Path(checkpoint.__file__).parents[1]


def saved(folder, step):
    """A checkpoint whose every value depends on the step."""
    parameter = torch.nn.Parameter(torch.full((3,), float(step)))
    optimiser = torch.optim.SGD([parameter], lr=0.1, momentum=0.9)
    parameter.grad = torch.arange(3.0) + step
    optimiser.step()
    return save_checkpoint(
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
    back = load_checkpoint(saved(tmp_path, 7))
    assert (back["step"], back["facts"]) == (7, {"seconds": 7 / 3, "evaluations": [{"step": 7}]})
    parameter, gradient = torch.full((3,), 7.0), torch.arange(3.0) + 7
    assert torch.equal(back["weights"]["layer.weight"], parameter - 0.1 * gradient)
    assert torch.equal(back["state"]["generator.cpu"], torch.get_rng_state())
    assert back["state"]["count"] == 7
    assert torch.equal(back["optimisers"]["student"]["state"][0]["momentum_buffer"], gradient)
    assert back["optimisers"]["student"]["param_groups"][0]["lr"] == 0.1


def test_the_last_two_are_kept_and_nothing_else(tmp_path):
    for step in (3, 20, 100, 1000):
        saved(tmp_path, step)
    assert names(tmp_path) == ["step-00000100", "step-00001000"]
    assert load_newest(tmp_path)[0]["step"] == 1000
    assert load_newest(tmp_path / "none") == (None, [])


def truncate(path):
    (path / "weights.safetensors").write_bytes((path / "weights.safetensors").read_bytes()[:-1])


def flip_a_bit(path):
    content = bytearray((path / "optimisers.pt").read_bytes())
    content[len(content) // 2] ^= 1
    (path / "optimisers.pt").write_bytes(content)


def edit_manifest(path, **changes):
    manifest = json.loads((path / "manifest.json").read_text())
    (path / "manifest.json").write_text(json.dumps(manifest | changes))


DAMAGES = {
    "weights truncated": (truncate, "weights.safetensors is damaged: its sha256"),
    "a bit flipped": (flip_a_bit, "optimisers.pt is damaged: its sha256"),
    "a file missing": (lambda path: (path / "state.safetensors").unlink(), "state.safetensors"),
    "manifest missing": (lambda path: (path / "manifest.json").unlink(), "manifest.json"),
    "manifest empty": (lambda path: (path / "manifest.json").write_text(""), "JSONDecodeError"),
    "manifest of another step": (lambda path: edit_manifest(path, step=1), "manifest.json is damaged: it says step 1"),
    "folder empty": (lambda path: [file.unlink() for file in path.iterdir()], "manifest.json"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_of_a_damaged_newest_checkpoint_the_one_before_is_used_and_it_is_said(tmp_path, damage):
    change, message = DAMAGES[damage]
    for step in (10, 20):
        path = saved(tmp_path, step)
    change(path)
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(path)
    assert "step-00000020" in str(caught.value)
    assert message in str(caught.value)
    found, (sentence,) = load_newest(tmp_path)
    assert found["step"] == 10
    assert sentence == f"{caught.value}; step 10 before it is used"


def test_when_no_checkpoint_is_whole_each_is_told_and_the_run_starts_again(tmp_path):
    for step in (10, 20):
        truncate(saved(tmp_path, step))
    found, sentences = load_newest(tmp_path)
    assert found is None
    assert ["step-00000020" in sentences[0], "step-00000010" in sentences[1]] == [True, True]
    assert all(sentence.endswith("none before it is whole: step 0 again") for sentence in sentences)


def test_damaged_checkpoints_never_push_out_whole_ones(tmp_path):
    """Newer steps than the one just written were passed over as damaged: they go, and two whole ones stay."""
    for step in (10, 20, 30):
        path = saved(tmp_path, step)
    truncate(path)
    truncate(tmp_path / "step-00000020")
    shutil.copytree(path, tmp_path / "step-00000040")
    saved(tmp_path, 12)
    truncate(saved(tmp_path, 14))
    saved(tmp_path, 14)
    assert names(tmp_path) == ["step-00000012", "step-00000014"]
    assert load_newest(tmp_path)[1] == []


def test_what_a_kill_left_half_written_is_never_read_and_cleared_away(tmp_path):
    saved(tmp_path, 10)
    shutil.copytree(tmp_path / "step-00000010", tmp_path / ".part-00000015")
    assert load_newest(tmp_path)[0]["step"] == 10
    saved(tmp_path, 20)
    assert names(tmp_path) == ["step-00000010", "step-00000020"]


class Malicious:
    """Unpickling this makes a file."""

    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return os.mkdir, (str(self.target),)


def test_a_malicious_pickle_is_refused_and_not_run(tmp_path):
    """An attacker can write any file of the folder, the manifest's hashes included."""
    trap, folder = tmp_path / "trap", tmp_path / "checkpoints"
    saved(folder, 10)
    path = saved(folder, 20)
    torch.save({"student": Malicious(trap)}, path / "optimisers.pt")
    hash_again(path)
    found, (sentence,) = load_newest(folder)
    assert not trap.exists()
    assert (found["step"], "UnpicklingError" in sentence) == (10, True)
    (path / "optimisers.pt").write_bytes(pickle.dumps(Malicious(trap), protocol=2))
    hash_again(path)
    assert load_newest(folder)[0]["step"] == 10
    assert not trap.exists()


def hash_again(path):
    files = ("weights.safetensors", "state.safetensors", "optimisers.pt")
    edit_manifest(path, sha256={name: sha256_of(path / name) for name in files})


def test_the_package_unpickles_nothing_freely():
    """torch.load always with weights_only=True; no pickle, shelve, joblib or NumPy objects."""
    found = 0
    for path in APD.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import | ast.ImportFrom):
                names = {alias.name for alias in node.names}
                modules = set() if names == {"UnpicklingError"} else names | {getattr(node, "module", None)}
                assert not modules & {"pickle", "cPickle", "shelve", "dill", "joblib", "marshal"}, path
            if isinstance(node, ast.Call) and ast.unparse(node.func) in ("torch.load", "load_url"):
                found += 1
                assert "weights_only=True" in ast.unparse(node), f"{path}: {ast.unparse(node)}"
            if isinstance(node, ast.Call):
                assert "allow_pickle=True" not in ast.unparse(node), path
    assert found >= 1


def full(*_arguments, **_options):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("writer", ["save_file", "torch.save", "write_atomically", "os.fsync"])
def test_a_full_disk_leaves_the_checkpoints_that_are_there(tmp_path, monkeypatch, writer):
    saved(tmp_path, 10)
    owner = {"torch.save": checkpoint.torch, "os.fsync": checkpoint.os}.get(writer, checkpoint)
    monkeypatch.setattr(owner, writer.split(".")[-1], full)
    with pytest.raises(CheckpointError) as caught:
        saved(tmp_path, 20)
    assert "step-00000020" in str(caught.value)
    assert "No space left on device" in str(caught.value)
    assert "free space or make the folder writable, then start the same command again" in str(caught.value)
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
    monkeypatch.undo()
    assert (weights.read_bytes(), text.read_text()) == (before, "before")
    assert names(tmp_path) == ["record.json", "weights.safetensors"]
    write_atomically(text, "after")
    assert text.read_text() == "after"


def hold(folder):
    with only_process(folder):
        pass


WRITERS = {
    "checkpoint": lambda folder: saved(folder, 1),
    "weights": lambda folder: save_weights(folder / "weights.safetensors", {"a": torch.zeros(2)}),
    "text": lambda folder: write_atomically(folder / "record.json", ""),
    "lock": hold,
}


@pytest.mark.parametrize("what", WRITERS)
def test_a_folder_that_cannot_be_made_is_an_error(tmp_path, what):
    """A regular file in the place of a folder stands for a read-only disk: root may write everywhere else."""
    (tmp_path / "file").touch()
    folder = tmp_path / "file" / "run"
    with pytest.raises(CheckpointError, match=f"cannot write .*{folder}"):
        WRITERS[what](folder)


def hold_for_ever(folder, ready):
    with only_process(folder):
        ready.touch()
        os.read(os.pipe()[0], 1)


def test_one_process_at_a_time_the_other_is_told_which_and_who_waits_is_next(tmp_path, capsys):
    folder, ready = tmp_path / "run", tmp_path / "ready"
    holder = start(hold_for_ever, folder, ready, output=tmp_path / "output")
    while not ready.exists():
        holder.join(0.01)
        assert holder.is_alive(), (tmp_path / "output").read_text()
    busy = rf"run is in use by process {holder.pid} on \S+; wait for it to end"
    with pytest.raises(RunBusyError, match=busy), ALONE.hold(folder, wait=False):
        pass
    threading.Timer(0.3, holder.kill).start()
    with ALONE.hold(folder, wait=True):  # the lock went with its process
        assert (folder / "holder").read_text().startswith(f"process {os.getpid()} on ")
    assert re.search(f"waiting: .*{busy}", capsys.readouterr().out)
    assert names(folder) == ["lock"]


def test_a_lock_is_free_again_after_an_error(tmp_path):
    with pytest.raises(KeyError), only_process(tmp_path):
        raise KeyError
    assert exit_code(hold, tmp_path, output=tmp_path / "output") == 0


def test_a_full_disk_does_not_keep_a_run_from_being_held(tmp_path, monkeypatch):
    (tmp_path / "holder").write_text("process 1 on a machine that was switched off")
    monkeypatch.setattr(Path, "write_text", full)
    with only_process(tmp_path), pytest.raises(RunBusyError, match="in use by another process"):
        hold(tmp_path)


@pytest.mark.filterwarnings("ignore:flock not supported")
def test_a_file_system_without_locks_is_named_and_what_to_do(tmp_path, monkeypatch):
    def unsupported(*_):
        raise OSError(errno.ENOSYS, "Function not implemented")

    hold(tmp_path / "before")
    monkeypatch.setattr("fcntl.flock", unsupported)
    for folder in ("before", "new", "new"):
        with pytest.raises(CheckpointError, match=r"cannot lock .*lock: Function not implemented; have the file sys"):
            hold(tmp_path / folder)
