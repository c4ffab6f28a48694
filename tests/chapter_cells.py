"""What the book is made of: a chapter's code cells, run with records of a test's own, and the book's scripts."""

import ast
import importlib.util
from pathlib import Path

import nbformat

ROOT = Path(__file__).resolve().parents[1]


def run_cells(name, folder=None, **parameters):
    """A notebook's code cells, run one after the other with other records or parameters; what they display."""
    shown = []
    scope = {"display": shown.append}
    for cell in nbformat.read(ROOT / "notebooks" / f"{name}.ipynb", as_version=4).cells:
        if cell.cell_type == "code":
            *body, last = ast.parse(cell.source).body
            exec(compile(ast.Module(body, []), name, "exec"), scope)
            if isinstance(last, ast.Expr):
                shown.append(eval(compile(ast.Expression(last.value), name, "eval"), scope))
            else:
                exec(compile(ast.Module([last], []), name, "exec"), scope)
        if "parameters" in cell.metadata.get("tags", []):
            scope |= {"records": str(folder), **parameters}
    return [item for item in shown if item is not None]


def book_script(name, folder=ROOT / "book" / "figures"):
    """A script of `book/figures`, or of another folder, imported."""
    spec = importlib.util.spec_from_file_location(name, folder / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
