"""What a newcomer types works: `make` is never silent, advice is right from a clone, and so is what CI promises."""

import os
import re
import subprocess
import sys
import tomllib
import zipfile
from email.parser import Parser
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
WORKFLOW = ROOT / ".github" / "workflows" / "ci.yml"
BIN = Path(sys.executable).parent


@pytest.mark.parametrize("code", [0, 3])
def test_make_says_that_a_silent_command_still_runs_and_passes_on_how_it_ended(tmp_path, code):
    """`pages` with a builder that is silent for a second, and a clock that runs a hundred times as fast."""
    for name, lines in {"jupyter-book": f"/bin/sleep 1; exit {code}", "sleep": "exec /bin/sleep 0.09"}.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{lines}\n")
        (tmp_path / name).chmod(0o755)
    make = ["make", "--no-print-directory", "-o", ".venv/.installed", "pages", f"BIN={tmp_path}", "READY="]
    path = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "t": "1000"}
    ended = subprocess.run(make, cwd=ROOT, env=os.environ | path, capture_output=True, text=True, timeout=60)
    command, *beats = ended.stdout.splitlines()
    assert command == f"{tmp_path}/jupyter-book build -W --keep-going --all --quiet book"
    assert beats[:2] == ["  … still running, 9 s", "  … still running, 18 s"]
    assert (ended.returncode != 0) == (code != 0)


def test_ci_installs_by_stock_pip_and_then_runs_the_command_of_the_readme():
    script = (ROOT / ".ci" / "run").read_text()
    assert script.splitlines()[-1] == "exec make UV= resolve test"
    assert re.search(r"^make test ", (ROOT / "README.md").read_text(), re.MULTILINE)


def test_the_workflow_runs_ci_on_the_oldest_and_the_newest_python_and_publishes_the_book():
    jobs = yaml.safe_load(WORKFLOW.read_text())["jobs"]
    named = [line.split()[-1] for line in PROJECT["classifiers"] if re.search(r"Python :: 3\.", line)]
    assert jobs["test"]["strategy"]["matrix"]["python"] == [named[0], named[-1]]
    steps = jobs["test"]["steps"]
    assert [step["run"] for step in steps if "run" in step] == [".ci/run"]
    assert os.access(ROOT / ".ci" / "run", os.X_OK)
    assert steps[-1]["with"]["path"] == "book/_build/html"
    assert steps[-1]["if"] == f"matrix.python == '{named[0]}'"
    assert jobs["publish"]["needs"] == "test"


def test_the_linter_of_workflows_finds_nothing():
    options = ["--offline", "--strict-collection", "--persona=pedantic", "--no-progress", "--color=never"]
    found = subprocess.run([BIN / "zizmor", *options, WORKFLOW], capture_output=True, text=True, timeout=60)
    assert found.returncode == 0, found.stdout + found.stderr


TOOL = r"(?:pip3?|pipx|uv|conda|mamba)[ \t]+(?:install|add)"
FOREIGN = re.compile(TOOL + r"""(?:[ \t]+-[\w-]+)*[ \t]+['"]?apd(?![\w/-])|\bapd\[[a-z,]+\]['"]""")
EXTRA = re.compile(r"install\b[^\n`;]*?\.\[([\w,]+)\]")


def texts() -> dict[str, str]:
    """Every text file of the repository, this one left out."""
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    kinds = {".py", ".md", ".ipynb", ".toml", ".yml", ".yaml", ".txt", ".cff", ".html", ".js", ""}
    names = {name for name in listed.splitlines() if Path(name).suffix in kinds} - {
        "tests/project/test_fresh_machine.py"
    }
    paths = [ROOT / name for name in names]
    found = {str(path.relative_to(ROOT)): path.read_text(errors="replace") for path in paths if path.is_file()}
    assert len(found) > 200
    return found


def test_no_text_advises_to_install_the_package_of_another_project_or_an_extra_that_is_not_there():
    found = texts()
    assert {name: match.group() for name, text in found.items() if (match := FOREIGN.search(text))} == {}
    named = {extra for text in found.values() for names in EXTRA.findall(text) for extra in names.split(",")}
    assert {"cli", "detection", "export"} <= named <= set(PROJECT["optional-dependencies"])


def test_the_wheel_has_the_free_name_and_says_that_the_package_is_typed(tmp_path):
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", tmp_path]
    subprocess.run(build, cwd=ROOT, capture_output=True, check=True, timeout=120)
    (path,) = tmp_path.iterdir()
    with zipfile.ZipFile(path) as wheel:
        names = wheel.namelist()
        (described,) = [name for name in names if name.endswith(".dist-info/METADATA")]
        facts = Parser().parsestr(wheel.read(described).decode())
    assert (facts["Name"], facts["Version"]) == ("adaptive-perspective-distillation", PROJECT["version"])
    assert "apd/py.typed" in names
    assert {name.split("/")[0] for name in names} == {"apd", described.split("/")[0]}


WITHOUT_POSIX = """
import builtins, sys
missing = {"fcntl", "resource", "pwd", "grp", "termios", "tty", "pty", "syslog", "readline", "posix"}
original = builtins.__import__
def restricted(name, globals=None, *rest, **named):
    ours = ((globals or {}).get("__name__") or "").partition(".")[0] == "apd"
    if ours and name in missing:
        raise ModuleNotFoundError(f"No module named {name!r}", name=name)
    return original(name, globals, *rest, **named)
builtins.__import__ = restricted
from apd.cli import app as cli
assert cli.main(["recipes"]) == 0
assert cli.main(["train", "tiny-student", "--dry-run", "--device=cpu"]) == 0
from small_experiments import tiny, train
print(train(tiny()).content["peak_memory_bytes"], "bytes")
"""


def test_the_commands_run_where_pythons_modules_for_posix_are_missing(tmp_path):
    """As on Windows, for this package's own imports; filelock and psutil bring there what they need themselves."""
    folders = {"APD_RUNS": str(tmp_path), "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}"}
    ended = subprocess.run(
        [sys.executable, "-c", WITHOUT_POSIX], env=os.environ | folders, capture_output=True, text=True, timeout=300
    )
    assert ended.returncode == 0, ended.stderr[-2000:]
    assert re.search(r"^\d{8,} bytes$", ended.stdout, re.MULTILINE)
    assert len(list(tmp_path.glob("*/record.json"))) == 1
