"""Checkpoints that survive a kill at any moment (there whole or not at all, the last two), and one process per run."""

import contextlib
import hashlib
import json
import os
import re
import shutil
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout
from safetensors.torch import load_file, save
from torch import Tensor

from apd.fields import UserError

KEPT = 2
GO_ON = (
    "Nothing that was finished is lost: free space or make the folder writable, then start the same command again; it "
    "goes on from the last checkpoint"
)
_FILES = ("weights.safetensors", "state.safetensors", "optimisers.pt")


class CheckpointError(UserError, RuntimeError):
    """A checkpoint that cannot be written or read; the message names the file and what to do."""


class RunBusyError(UserError, RuntimeError):
    """Another process works on this run; the message says which."""


def sha256_of(path: Path) -> str:
    """Hexadecimal sha256 of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _flush(path: Path) -> None:
    """Have the disk hold a file, or the names in a folder, before anything is written that counts on them."""
    if os.name == "posix":
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        except OSError:
            if not path.is_dir():  # some file systems flush no folders
                raise
        finally:
            os.close(descriptor)


@contextlib.contextmanager
def replacing(path: Path, advice: str) -> Iterator[Path]:
    """A file to write beside the final one, whose place it takes whole, or not at all: a reader never sees a part."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")  # workers of a campaign may write the same record
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.unlink(missing_ok=True)  # a pipe of that name would be waited for
        yield temporary
        temporary.replace(path)
        _flush(path.parent)
    except Exception as error:  # safetensors wraps the OSError in a type of its own
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        reason = getattr(error, "strerror", None) or error
        raise CheckpointError(f"cannot write {path}: {reason}; free space{advice}") from error


def write_atomically(path: Path, text: str) -> None:
    """Write a text file so that a kill leaves the old content or the new. CheckpointError when the disk refuses it."""
    with replacing(path, " or choose another folder") as own, own.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def save_tensors(tensors: dict[str, Tensor], path: Path, **options: Any) -> None:
    """Write tensors as safetensors, onto the disk and with the mode that the user's umask gives."""
    path.unlink(missing_ok=True)
    # copies, also of tensors that share memory
    copies = {name: value.detach().cpu().contiguous().clone() for name, value in tensors.items()}
    path.write_bytes(save(copies, **options))  # save_file gives its files mode 0600
    _flush(path)


def save_checkpoint(folder: Path, step: int, *, weights: dict, state: dict, optimisers: dict, facts: dict) -> Path:
    """Write checkpoint `step` (steps done), then delete all but the one before. CheckpointError: the disk refuses."""
    final, partial = folder / f"step-{step:08d}", folder / f".part-{step:08d}"
    try:
        for leftover in folder.glob(".part-*"):  # a kill came while it was written
            shutil.rmtree(leftover, ignore_errors=True)
        partial.mkdir(parents=True)
        save_tensors(weights, partial / _FILES[0], metadata={"step": str(step)})
        save_tensors(state, partial / _FILES[1])
        torch.save(optimisers, partial / _FILES[2])
        _flush(partial / _FILES[2])
        manifest = {"step": step, "facts": facts, "sha256": {name: sha256_of(partial / name) for name in _FILES}}
        manifest["checksum"] = checksum_of(manifest)
        write_atomically(partial / "manifest.json", json.dumps(manifest, indent=1))
        if final.is_dir():  # a damaged one of the same step, passed over by load_newest
            shutil.rmtree(final)
        partial.rename(final)
        _flush(folder)
    except Exception as error:  # torch and safetensors wrap the OSError in types of their own
        shutil.rmtree(partial, ignore_errors=True)
        raise CheckpointError(f"cannot write checkpoint {final}: {error}. {GO_ON}") from error
    present = sorted(folder.glob("step-*/"))
    newest = present.index(final)  # those after it were damaged, or the run would have gone on from them
    for path in (*present[: max(0, newest + 1 - KEPT)], *present[newest + 1 :]):
        shutil.rmtree(path, ignore_errors=True)
    return final


def checksum_of(manifest: dict[str, Any]) -> str:
    """Hexadecimal sha256 of all that a manifest says."""
    return hashlib.sha256(json.dumps(manifest).encode()).hexdigest()


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Read one checkpoint: keys step, facts, weights, state, optimisers. CheckpointError where it is not as written."""
    try:
        if missing := [name for name in ("manifest.json", *_FILES) if not (path / name).is_file()]:  # or a pipe
            raise CheckpointError(f"{path / missing[0]} is missing or no file")
        manifest = json.loads((path / "manifest.json").read_text())
        if manifest.pop("checksum", None) != checksum_of(manifest):
            raise CheckpointError(f"{path / 'manifest.json'} is damaged: its checksum is not that of what it says")
        if path.name != f"step-{manifest['step']:08d}":
            raise CheckpointError(f"{path / 'manifest.json'} is damaged: it says step {manifest['step']}")
        for name in _FILES:
            if sha256_of(path / name) != manifest["sha256"][name]:
                raise CheckpointError(f"{path / name} is damaged: its sha256 is not the one in manifest.json")
        optimisers = torch.load(path / _FILES[2], map_location="cpu", weights_only=True)
        found = dict(zip(("weights", "state"), map(load_file, (path / name for name in _FILES[:2])), strict=True))
        return {"step": manifest["step"], "facts": manifest["facts"], "optimisers": optimisers, **found}
    except Exception as error:  # json, safetensors and the unpickler each raise types of their own
        if isinstance(error, CheckpointError):
            raise
        reason = str(error).split("\n")[0]
        raise CheckpointError(f"checkpoint {path} cannot be read: {type(error).__name__}: {reason:.200}") from error


def load_newest(folder: Path) -> tuple[dict[str, Any] | None, list[str]]:
    """The newest checkpoint that is whole, and a sentence for each damaged one passed over on the way."""
    checkpoint, errors = None, []
    for path in sorted(folder.glob("step-*/"), reverse=True):
        try:
            checkpoint = checkpoint or load_checkpoint(path)
        except CheckpointError as error:
            errors.append(error)
    instead = f"step {checkpoint['step']} before it is used" if checkpoint else "none before it is whole: step 0 again"
    return checkpoint, [f"{error}; {instead}" for error in errors]


@contextlib.contextmanager
def only_process(folder: Path) -> Iterator[Callable[[], None]]:
    """Hold a run's folder, which may have to be made, by a lock on `folder/lock`; what this gives is called before what
    counts is written. RunBusyError: another holds it, or the lock is gone; CheckpointError: there can be none."""
    path, name, held = folder / "lock", folder / "holder", list[os.stat_result]()

    def require_held() -> None:
        with contextlib.suppress(OSError):
            if os.path.samestat(os.lstat(path), held[-1]):
                return
        raise RunBusyError(f"{path} was deleted or replaced: where another works on this run, wait; then start again")

    wrong, fix = f"cannot write to {folder}", "make it writable or set APD_RUNS to another folder"
    # without a fallback: that lock would outlive a killed process
    lock = FileLock(path, fallback_to_soft=False, on_acquired=lambda descriptor: held.append(os.fstat(descriptor)))
    try:
        folder.mkdir(parents=True, exist_ok=True)
        name.touch()  # not the lock: where Python has no fcntl, a file of that name is the lock
        wrong, fix = f"cannot lock {path}", "mount it with locks (Lustre: option flock), or set APD_RUNS to another"
        with contextlib.suppress(Timeout):
            lock.acquire(blocking=False)
    except OSError as error:
        raise CheckpointError(f"{wrong}: {error.strerror}; {fix}") from error
    if not lock.is_locked:
        holder = None
        with contextlib.suppress(OSError):
            text = name.read_text(encoding="utf-8", errors="replace") if name.is_file() else ""
            holder = re.fullmatch(r"process (\d{1,9}) on (\S{1,255})", text)
        if holder and holder[2] == socket.gethostname() and os.path.exists("/proc/self"):
            holder = holder if os.path.exists(f"/proc/{holder[1]}") else None  # the one before, which was killed
        advice = "wait for it to end, or stop it and start this command again"
        raise RunBusyError(f"{folder} is in use by {holder[0] if holder else 'another process'}; {advice}")
    try:
        with contextlib.suppress(OSError):  # a full disk keeps nobody from working
            for leftover in folder.glob(".*.part"):  # a kill came while it was written
                leftover.unlink()
            name.unlink(missing_ok=True)
            name.write_text(f"process {os.getpid()} on {socket.gethostname()}", encoding="utf-8")
        yield require_held
    finally:
        with contextlib.suppress(OSError, RunBusyError):  # the file may be another's now
            require_held()
            name.unlink(missing_ok=True)
        lock.release()
