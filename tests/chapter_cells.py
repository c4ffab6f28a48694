"""A chapter's code cells, run in this process with records of a test's own."""

import ast
from pathlib import Path
from typing import Any

import nbformat

NOTEBOOKS = Path(__file__).resolve().parents[1] / "notebooks"


def run_cells(name: str, folder: Path) -> list[Any]:
    """A notebook's code cells, run one after the other with other records; what they display."""
    shown = []
    scope = {"display": shown.append}
    for cell in nbformat.read(NOTEBOOKS / f"{name}.ipynb", as_version=4).cells:
        if cell.cell_type == "code":
            *body, last = ast.parse(cell.source).body
            exec(compile(ast.Module(body, []), name, "exec"), scope)
            if isinstance(last, ast.Expr):
                shown.append(eval(compile(ast.Expression(last.value), name, "eval"), scope))
            else:
                exec(compile(ast.Module([last], []), name, "exec"), scope)
        if "parameters" in cell.metadata.get("tags", []):
            scope["records"] = str(folder)
    return [item for item in shown if item is not None]
