"""Where runs and records live."""

import os
from pathlib import Path

from apd.study.experiment import Experiment
from apd.study.fingerprint import fingerprint

RUN_FILES = ("record.json", "weights.safetensors", "log.jsonl")
"""What lies in the folder of a finished run, beside its checkpoints."""


def repository() -> Path:
    """The nearest folder above the working one that holds both `apd/` and `pyproject.toml`; else the working one."""
    here = Path.cwd()
    for folder in (here, *here.parents):
        if (folder / "pyproject.toml").is_file() and (folder / "apd").is_dir():
            return folder
    return here


def runs_folder() -> Path:
    """APD_RUNS where it is set, else `runs/` in the repository."""
    return Path(os.environ["APD_RUNS"]) if os.environ.get("APD_RUNS") else repository() / "runs"


def run_folder(experiment: Experiment) -> Path:
    """The folder of one run. Its fingerprint decides; a folder of another label with that fingerprint is found."""
    name = fingerprint(experiment)
    found = sorted(runs_folder().glob(f"*-{name}"))
    return found[0] if found else runs_folder() / f"{experiment.name}-{name}"


def finished_folder(run: Path | str) -> Path:
    """The folder of a run, named by itself or by a file in it, such as the ``record.json`` that training prints.

    >>> finished_folder("runs/tiny-apd-seed0-0123456789ab/record.json").name
    'tiny-apd-seed0-0123456789ab'
    """
    run = Path(run).expanduser()
    return run.parent if run.name in RUN_FILES or run.is_file() else run


def records_folder(campaign: str) -> Path:
    """Where the committed records of a campaign lie."""
    return repository() / "book" / "results" / campaign
