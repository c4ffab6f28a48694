"""Where a number came from: the code, the libraries, the machine and the command that made it."""

import os
import platform
import shlex
import subprocess
import sys
from collections.abc import Sequence
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch


def provenance(device: torch.device, precision: str, ranks: int = 1, libraries: Sequence[str] = ()) -> dict[str, Any]:
    """The entries of a record that say where it came from: commit, versions (also of `libraries`), device, command."""
    return {
        "git": _git_state(),
        "versions": {"python": platform.python_version(), "apd": _version("adaptive-perspective-distillation")}
        | {name: _version(name) for name in ("torchvision", "timm", "numpy", *libraries)}
        | {"torch": str(torch.__version__)},  # with the suffix of its build, which the package's version lacks
        "device": {
            "type": device.type,
            "name": torch.cuda.get_device_name(device) if device.type == "cuda" else _processor(),
            "threads": torch.get_num_threads(),
            "precision": precision,
        }
        | ({"ranks": ranks} if ranks > 1 else {}),
        "command": shlex.join(Path(part).name if Path(part).is_absolute() else part for part in sys.argv),
    }


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def _processor() -> str:
    """The processor's model name as Linux gives it, else what Python knows."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


@cache
def _git_state() -> dict[str, Any]:
    """Commit of the source tree as the first run begins, empty without git, and whether the package differs from it."""
    here = Path(__file__).parent

    def git(*arguments: str) -> str:
        done = subprocess.run(["git", *arguments], cwd=here, capture_output=True, text=True, timeout=20)
        return done.stdout.strip() if done.returncode == 0 else ""

    try:
        commit = git("rev-parse", "HEAD")
        if not commit and os.environ.get("APD_COMMIT"):  # a copy without its history, whose maker knows its commit
            return {"commit": os.environ["APD_COMMIT"], "clean": True}
        return {"commit": commit, "clean": bool(commit) and not git("status", "--porcelain", "--", str(here.parent))}
    except (OSError, subprocess.TimeoutExpired):
        return {"commit": "", "clean": False}
