"""Fixtures shared by several test modules."""

import importlib.util
import shutil
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import nbformat
import pytest
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

PICTURE = """\
import struct, zlib
from IPython.display import Image, display
part = lambda kind, data: struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
rows = b"".join(b"\\0" + bytes([seed * 40] * 8) for _ in range(8))
head = struct.pack(">IIBBBBB", 8, 8, 8, 0, 0, 0, 0)
png = b"\\x89PNG\\r\\n\\x1a\\n" + part(b"IHDR", head) + part(b"IDAT", zlib.compress(rows)) + part(b"IEND", b"")
display(Image(png))"""


def miniature_notebook() -> nbformat.NotebookNode:
    """A notebook as the study's are, in small: parameters, printed facts, a picture. Not executed."""
    cells = [
        new_markdown_cell("# A miniature"),
        new_code_cell(PARAMETERS, metadata={"tags": ["parameters"]}),
        new_markdown_cell("## Facts"),
        new_code_cell(FACTS),
        new_markdown_cell("## A picture"),
        new_code_cell(PICTURE, metadata={"tags": ["nbval-ignore-output"]}),
        new_code_cell('print(f"the grey is {seed * 40} of 255")'),
    ]
    return new_notebook(cells=cells)


def load(path: Path) -> ModuleType:
    """Import a script by its path."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def study(tmp_path: Path) -> Path:
    """A copy of notebooks/ in small: the runner, a note that relative paths find, and one miniature, not executed."""
    folder = tmp_path / "notebooks"
    folder.mkdir()
    shutil.copy(ROOT / "notebooks" / "execute.py", folder)
    (folder / "note.txt").write_text("seven\n")
    nbformat.write(miniature_notebook(), folder / "01_mini.ipynb")
    return folder


@pytest.fixture
def runner(study: Path) -> ModuleType:
    """The notebook runner of that copy."""
    return load(study / "execute.py")


@pytest.fixture(scope="session")
def executed_miniature(tmp_path_factory: pytest.TempPathFactory) -> Callable[[], nbformat.NotebookNode]:
    """Return fresh copies of the miniature as ``make notebooks`` would store it."""
    folder = tmp_path_factory.mktemp("miniature")
    (folder / "note.txt").write_text("seven\n")
    nbformat.write(miniature_notebook(), folder / "01_mini.ipynb")
    execute = load(ROOT / "notebooks" / "execute.py")
    execute.run(folder / "01_mini.ipynb", folder / "01_mini.ipynb", {}, aside=folder / "aside")
    return lambda: nbformat.read(folder / "01_mini.ipynb", as_version=4)
