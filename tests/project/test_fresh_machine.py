"""On a fresh machine `make` is never silent, advice and CI are right, and all files describe one environment."""

import importlib
import os
import re
import subprocess
import sys
import tomllib
import zipfile
from email.parser import Parser
from importlib import metadata
from itertools import product
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from rattler import MatchSpec

ROOT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
LOCK = (ROOT / "requirements.lock").read_text()
PYTHONS = [line.split()[-1] for line in PROJECT["classifiers"] if re.search(r"Python :: 3\.", line)]
WORKFLOW = ROOT / ".github" / "workflows" / "ci.yml"
BIN, THIS = Path(sys.executable).parent, Path(__file__).resolve()
TOOL = r"(?:pip3?|pipx|uv|conda|mamba)[ \t]+(?:install|add)"
FOREIGN = re.compile(TOOL + r"""(?:[ \t]+-[\w-]+)*[ \t]+['"]?apd(?![\w/-])|\bapd\[[a-z,]+\]['"]""")
EXTRA = re.compile(r"install\b[^\n`;]*?\.\[([\w,]+)\]")


@pytest.mark.parametrize("code", [0, 3])
def test_make_says_that_a_silent_command_still_runs_and_passes_on_how_it_ended(tmp_path, code):
    """`pages` with a builder that is silent for a second, and a clock that runs a hundred times as fast."""
    commands = {"python": "exit 0", "jupyter-book": f"/bin/sleep 1; exit {code}", "sleep": "exec /bin/sleep 0.09"}
    for name, lines in commands.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{lines}\n")
        (tmp_path / name).chmod(0o755)
    make = ["make", "--no-print-directory", "-o", ".venv/.installed", "pages", f"BIN={tmp_path}", "READY="]
    path = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "t": "1000"}
    ended = subprocess.run(make, cwd=ROOT, env=os.environ | path, capture_output=True, text=True, timeout=60)
    check, command, *beats = ended.stdout.splitlines()
    assert check == f"{tmp_path}/python -m apd records check"
    assert command == f"{tmp_path}/jupyter-book build -W --keep-going --all --quiet book"
    assert beats[:2] == ["  … still running, 9 s", "  … still running, 18 s"]
    assert (ended.returncode != 0) == (code != 0)


def test_ci_installs_by_stock_pip_on_the_oldest_and_the_newest_python_and_publishes_the_book():
    assert (ROOT / ".ci" / "run").read_text().splitlines()[-1] == "exec make UV= resolve test"
    assert os.access(ROOT / ".ci" / "run", os.X_OK)
    assert re.search(r"^make test ", (ROOT / "README.md").read_text(), re.MULTILINE)
    jobs = yaml.safe_load(WORKFLOW.read_text())["jobs"]
    assert jobs["test"]["strategy"]["matrix"]["python"] == [PYTHONS[0], PYTHONS[-1]]
    steps = jobs["test"]["steps"]
    assert [step["run"] for step in steps if "run" in step] == [".ci/run"]
    assert steps[-1]["with"]["path"] == "book/_build/html"
    assert steps[-1]["if"] == f"matrix.python == '{PYTHONS[0]}'"
    assert jobs["publish"]["needs"] == "test"


def test_the_linter_of_workflows_finds_nothing():
    options = ["--offline", "--strict-collection", "--persona=pedantic", "--no-progress", "--color=never"]
    found = subprocess.run([BIN / "zizmor", *options, WORKFLOW], capture_output=True, text=True, timeout=60)
    assert found.returncode == 0, found.stdout + found.stderr


def test_no_text_advises_to_install_the_package_of_another_project_or_an_extra_that_is_not_there():
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    kinds = {".py", ".md", ".ipynb", ".toml", ".yml", ".yaml", ".txt", ".cff", ".html", ".js", ""}
    paths = [path for name in listed.splitlines() if (path := ROOT / name).suffix in kinds and path.is_file()]
    found = {path: path.read_text(errors="replace") for path in paths if path != THIS}
    assert len(found) > 200
    assert {path: match.group() for path, text in found.items() if (match := FOREIGN.search(text))} == {}
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
    env = os.environ | {"APD_RUNS": str(tmp_path), "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}"}
    ended = subprocess.run([sys.executable, "-c", WITHOUT_POSIX], env=env, capture_output=True, text=True, timeout=300)
    assert ended.returncode == 0, ended.stderr[-2000:]
    assert re.search(r"^\d{8,} bytes$", ended.stdout, re.MULTILINE)
    assert len(list(tmp_path.glob("*/record.json"))) == 1


def pins(text: str) -> list[Requirement]:
    """The requirements of a lock file, without hashes and comments."""
    lines = [line.removesuffix("\\").strip() for line in text.splitlines()]
    return [Requirement(line) for line in lines if line and not line.startswith(("#", "--hash"))]


def direct_requirements() -> list[Requirement]:
    extras = [line for lines in PROJECT["optional-dependencies"].values() for line in lines]
    asked = [Requirement(line) for line in PROJECT["dependencies"] + extras]
    return [requirement for requirement in asked if requirement.name != PROJECT["name"]]


@pytest.mark.parametrize("python", PYTHONS)
def test_the_lock_gives_each_direct_requirement_one_version_that_it_allows(python):
    where = {"python_version": python, "python_full_version": f"{python}.9", "sys_platform": "linux"}
    locked = [pin for pin in pins(LOCK) if pin.marker is None or pin.marker.evaluate(where)]
    for need in direct_requirements():
        (pin,) = [pin for pin in locked if canonicalize_name(pin.name) == canonicalize_name(need.name)]
        assert next(iter(pin.specifier)).version in need.specifier, f"{need}, but {pin}: run `make lock`"


def test_every_installed_version_of_the_lock_admits_the_oldest_and_the_newest_python():
    """pip reads upper bounds, too (typing 3.10.0.0: below 3.5), uv does not."""
    there = {canonicalize_name(found.name): found for found in metadata.distributions()}
    looked_at = {}
    for python, pin in product((PYTHONS[0], PYTHONS[-1]), pins(LOCK)):
        where, found = {"python_version": python, "python_full_version": f"{python}.0"}, there.get(pin.name)
        if found and found.version in pin.specifier and (pin.marker is None or pin.marker.evaluate(where)):
            admitted = SpecifierSet(found.metadata["Requires-Python"] or "")
            looked_at[str(pin), python] = f"{python}.0" in admitted
    assert [one for one, admitted in looked_at.items() if not admitted] == []
    assert len(looked_at) > 300


def test_what_the_book_sets_formulas_with_is_asked_for_and_what_it_cannot_set_is_a_warning(monkeypatch, caplog):
    monkeypatch.syspath_prepend(ROOT / "book" / "_ext")
    assets = importlib.import_module("offline_assets")
    assert Path(assets.find_spec("ziamath").origin).with_name("fonts").joinpath(assets.STIX).is_file()
    assert {"ziamath", "latex2mathml", "fonttools"} <= {canonicalize_name(one.name) for one in direct_requirements()}
    for formula in ("x^2", r"\mathcal C", r"\unknown x"):
        with pytest.raises(assets.nodes.SkipNode):
            assets.formula(SimpleNamespace(body=[]), assets.nodes.math(text=formula))
    assert [record.args[0] for record in caplog.records] == [r"\mathcal C", r"\unknown x"]


def test_no_file_of_the_environment_names_the_address_of_a_registry():
    files = "requirements-conda.txt", "environment.yml", "pyproject.toml"
    texts = LOCK, *((ROOT / name).read_text() for name in files)
    assert re.findall(r"\w+://\S*|--\S*index\S*|--find-links|@ file", "\n".join(texts)) == []


def test_the_core_asks_for_no_more_than_a_bare_gpu_machine_has():
    asked = map(Requirement, PROJECT["dependencies"])
    core = {need.name for need in asked if need.marker is None or need.marker.evaluate({"sys_platform": "linux"})}
    brought = {"timm": "pyyaml", "torch": "filelock"}  # named because they are imported here, too
    assert core == {"torch", "torchvision", "timm", "safetensors", "tqdm", "numpy", "pillow", *brought.values()}
    for name, dependency in brought.items():
        assert dependency in {canonicalize_name(Requirement(line).name) for line in metadata.requires(name)}


def test_every_locked_version_is_exact_and_has_a_hash_and_conda_gets_the_same_by_pip_without():
    blocks = re.split(r"\n(?=[a-z0-9])", LOCK.strip())
    assert len(blocks) == len(pins(LOCK)) > 100
    assert [block.splitlines()[0] for block in blocks if "--hash=sha256:" not in block] == []
    assert all(len(pin.specifier) == 1 and next(iter(pin.specifier)).operator == "==" for pin in pins(LOCK))
    conda = (ROOT / "requirements-conda.txt").read_text()
    assert list(map(str, pins(conda))) == list(map(str, pins(LOCK))), "Run `make lock`."
    assert "--hash" not in conda  # with hashes pip refuses the editable project beside the list
    *conda_lines, of_pip = yaml.safe_load((ROOT / "environment.yml").read_text())["dependencies"]
    assert of_pip == {"pip": ["-r requirements-conda.txt", "-e ."]}
    specs = {spec.name.normalized: spec for spec in map(MatchSpec, conda_lines)}
    assert set(specs) == {"python", "pip"}
    python = str(specs["python"].version).rstrip(".*").lstrip("=")
    assert python in PYTHONS
    assert SpecifierSet(PROJECT["requires-python"]).contains(python)


def test_the_citation_names_this_version_and_the_paper():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == PROJECT["version"]
    assert citation["license"] == PROJECT["license"]
    assert [reference["doi"] for reference in citation["references"]] == ["10.1109/TPAMI.2022.3159581"]
