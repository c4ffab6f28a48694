"""A notebook as the study's are, in small: what the tests of the runner and of the notebooks' rules work on."""

import importlib.util
import shutil
import tempfile
from functools import cache
from pathlib import Path
from types import ModuleType

import nbformat
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

ROOT = Path(__file__).resolve().parents[1]

PARAMETERS = """\
size: str = "tiny"  # of the study: tiny, small, full
seed: int = 0  # of everything random
rate: float = 0.5  # per step
verbose: bool = False  # print more
widths: list = [4, 8]  # of the layers"""

FACTS = """\
import time
from pathlib import Path

started = time.perf_counter()
root = 2 ** (rate + seed)
print(f"{size}: {root:.4f} with {sum(widths)}, note {Path('note.txt').read_text().strip()}")
print(f"took {time.perf_counter() - started:.3f} s")"""


def miniature_notebook() -> nbformat.NotebookNode:
    """Parameters and printed facts. Not executed."""
    cells = [
        new_markdown_cell("# A miniature"),
        new_code_cell(PARAMETERS, metadata={"tags": ["parameters"]}),
        new_markdown_cell("## Facts"),
        new_code_cell(FACTS),
        new_code_cell('print(f"the grey is {seed * 40} of 255")'),
    ]
    python = {"display_name": "Python 3", "language": "python", "name": "python3"}
    return new_notebook(cells=cells, metadata={"kernelspec": python})


def make_study(root: Path) -> Path:
    """Copy notebooks/ in small: the runner, a note that relative paths find, and the miniature. Returns the folder."""
    folder = root / "notebooks"
    folder.mkdir(parents=True)
    shutil.copy(ROOT / "notebooks" / "execute.py", folder)
    (folder / "note.txt").write_text("seven\n")
    nbformat.write(miniature_notebook(), folder / "01_mini.ipynb")
    return folder


def runner_of(folder: Path) -> ModuleType:
    """Import the notebook runner of ``folder``."""
    spec = importlib.util.spec_from_file_location("execute", folder / "execute.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@cache
def executed_text() -> str:
    """The miniature as `make notebooks` would store it."""
    with tempfile.TemporaryDirectory() as root:
        path = make_study(Path(root)) / "01_mini.ipynb"
        runner_of(path.parent).run(path, path, {})
        return path.read_text()


def executed_miniature() -> nbformat.NotebookNode:
    """A fresh copy of the executed miniature."""
    return nbformat.reads(executed_text(), as_version=4)
