"""Can stock pip install requirements.lock on the oldest and on the newest Python that pyproject.toml names?

Asks the package index for each, whatever Python runs this, and downloads no wheel: pip's own resolver has to find a
wheel of every locked version (for this machine's system) whose Requires-Python admits that Python, upper bounds
included, which uv ignores. Exit code 0, or 1 with pip's message.
"""

import re
import subprocess
import sys
import tempfile
import tomllib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parents[1]


def supported() -> list[str]:
    """The versions of Python that pyproject.toml names, oldest first."""
    classifiers = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["classifiers"]
    return [line.split()[-1] for line in classifiers if re.fullmatch(r".*Python :: 3\.\d+", line)]


def locked(python: str) -> list[str]:
    """What requirements.lock asks for under ``python``, without hashes: for pip to resolve, not to install."""
    lines = re.findall(r"^([a-z0-9].*?) *\\$", (ROOT / "requirements.lock").read_text(), re.MULTILINE)
    where = {"python_version": python, "python_full_version": f"{python}.0"}
    pins = map(Requirement, lines)  # pip would evaluate the markers for the Python that it runs on
    return [f"{pin.name}{pin.specifier}" for pin in pins if pin.marker is None or pin.marker.evaluate(where)]


def resolve(python: str, requirements: list[str]) -> int:
    """Let pip look for ``requirements`` under ``python``; its exit code, after its message when that is not 0."""
    pip = [sys.executable, "-m", "pip", "install", "--dry-run", "--ignore-installed", "--no-deps", "--target"]
    options = ["--only-binary=:all:", "--use-feature=fast-deps", "--python-version", python, "--quiet"]
    with tempfile.TemporaryDirectory() as nowhere:
        asked = subprocess.run([*pip, nowhere, *options, *requirements], capture_output=True, text=True)
    if asked.returncode:
        print("\n".join(line for line in asked.stderr.splitlines() if line.startswith("ERROR")), file=sys.stderr)
    return asked.returncode


def main() -> int:
    """Resolve for the oldest and the newest supported Python."""
    oldest, *_, newest = supported()
    asked = {python: locked(python) for python in (oldest, newest)}
    with ThreadPoolExecutor() as pool:
        codes = dict(zip(asked, pool.map(resolve, asked, asked.values()), strict=True))
    for python, code in codes.items():
        found = "every one has a wheel" if code == 0 else "cannot be installed"
        print(f"Python {python}, {len(asked[python])} locked versions: {found}")
    return max(codes.values())


if __name__ == "__main__":
    sys.exit(main())
