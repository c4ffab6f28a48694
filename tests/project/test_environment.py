"""pyproject.toml, requirements.lock, requirements-conda.txt and environment.yml describe one environment."""

import importlib
import re
import tomllib
from importlib import metadata
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from packaging.version import Version
from rattler import MatchSpec

ROOT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
LOCK = (ROOT / "requirements.lock").read_text()
CONDA = yaml.safe_load((ROOT / "environment.yml").read_text())
PYTHONS = [
    line.split()[-1]
    for line in PROJECT["classifiers"]
    if re.fullmatch(r"Programming Language :: Python :: 3\.\d+", line)
]


def pins(text: str) -> list[Requirement]:
    """The requirements of a lock file, without hashes and comments."""
    lines = [line.removesuffix("\\").strip() for line in text.splitlines()]
    return [Requirement(line) for line in lines if line and not line.startswith(("#", "--hash"))]


def pinned(name: str, python: str) -> list[Version]:
    """The versions that the lock gives ``name`` on Linux under ``python``."""
    where = {"python_version": python, "python_full_version": f"{python}.9", "sys_platform": "linux"}
    return [
        Version(next(iter(pin.specifier)).version)
        for pin in pins(LOCK)
        if canonicalize_name(pin.name) == name and (pin.marker is None or pin.marker.evaluate(where))
    ]


def direct_requirements() -> list[Requirement]:
    extras = [line for lines in PROJECT["optional-dependencies"].values() for line in lines]
    asked = [Requirement(line) for line in PROJECT["dependencies"] + extras]
    return [requirement for requirement in asked if requirement.name != PROJECT["name"]]


@pytest.mark.parametrize("python", PYTHONS)
@pytest.mark.parametrize("requirement", direct_requirements(), ids=str)
def test_the_lock_gives_each_direct_requirement_one_version_that_it_allows(requirement, python):
    versions = pinned(canonicalize_name(requirement.name), python)
    assert len(versions) == 1, f"{requirement.name} on Python {python}: {versions}. Run `make lock`."
    assert versions[0] in requirement.specifier, f"{requirement} but the lock has {versions[0]}. Run `make lock`."


def test_every_installed_version_of_the_lock_admits_the_oldest_and_the_newest_python():
    """pip reads upper bounds, too (typing 3.10.0.0: below 3.5), uv does not."""
    looked_at, refused = 0, []
    for python in (PYTHONS[0], PYTHONS[-1]):
        where = {"python_version": python, "python_full_version": f"{python}.0"}
        for pin in pins(LOCK):
            try:
                installed = metadata.distribution(pin.name)
            except metadata.PackageNotFoundError:
                continue
            if pin.specifier.contains(installed.version) and (pin.marker is None or pin.marker.evaluate(where)):
                looked_at += 1
                if not SpecifierSet(installed.metadata["Requires-Python"] or "").contains(f"{python}.0"):
                    refused.append((str(pin), python))
    assert refused == []
    assert looked_at > 300


def test_what_the_book_copies_into_its_pages_comes_from_packages_that_are_asked_for(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "book" / "_ext")
    assets = importlib.import_module("offline_assets").ASSETS
    brought = {canonicalize_name(module) for module, _ in assets.values()}
    assert brought <= {canonicalize_name(requirement.name) for requirement in direct_requirements()}
    for module, inside in assets.values():
        assert (Path(importlib.import_module(module).__file__).parent / inside).is_file()


@pytest.mark.parametrize("file", ["requirements.lock", "requirements-conda.txt", "environment.yml", "pyproject.toml"])
def test_no_file_of_the_environment_names_the_address_of_a_registry(file):
    text = (ROOT / file).read_text()
    assert re.findall(r"\w+://\S*|--\S*index\S*|--find-links|@ file", text) == []


def test_the_core_asks_for_no_more_than_a_bare_gpu_machine_has():
    asked = map(Requirement, PROJECT["dependencies"])
    core = {need.name for need in asked if need.marker is None or need.marker.evaluate({"sys_platform": "linux"})}
    brought = {"timm": "pyyaml", "torch": "filelock"}  # named because they are imported here, too
    assert core == {"torch", "torchvision", "timm", "safetensors", "tqdm", "numpy", "pillow", *brought.values()}
    for name, dependency in brought.items():
        assert dependency in {canonicalize_name(Requirement(line).name) for line in metadata.requires(name)}


def test_every_locked_version_is_exact_and_has_a_hash_and_the_list_for_conda_is_the_lock_without():
    blocks = re.split(r"\n(?=[a-z0-9])", LOCK.strip())
    assert len(blocks) == len(pins(LOCK)) > 100
    assert [block.splitlines()[0] for block in blocks if "--hash=sha256:" not in block] == []
    assert all(len(pin.specifier) == 1 and next(iter(pin.specifier)).operator == "==" for pin in pins(LOCK))
    conda = (ROOT / "requirements-conda.txt").read_text()
    assert list(map(str, pins(conda))) == list(map(str, pins(LOCK))), "Run `make lock`."
    assert "--hash" not in conda  # with hashes pip refuses the editable project beside the list


def test_conda_brings_python_and_pip_and_pip_brings_the_locked_versions_and_the_project():
    conda_lines = [line for line in CONDA["dependencies"] if isinstance(line, str)]
    specs = {spec.name.normalized: spec for spec in map(MatchSpec, conda_lines)}
    assert set(specs) == {"python", "pip"}
    python = str(specs["python"].version).rstrip(".*").lstrip("=")
    assert SpecifierSet(PROJECT["requires-python"]).contains(python)
    assert python in PYTHONS
    (pip_lines,) = [line["pip"] for line in CONDA["dependencies"] if isinstance(line, dict)]
    assert pip_lines == ["-r requirements-conda.txt", "-e ."]


def test_the_citation_names_this_version_and_the_paper():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == PROJECT["version"]
    assert citation["license"] == PROJECT["license"]
    assert [reference["doi"] for reference in citation["references"]] == ["10.1109/TPAMI.2022.3159581"]
