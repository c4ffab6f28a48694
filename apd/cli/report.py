"""The command `apd report`: a notebook on finished runs, executed by papermill, as one page without anything beside."""

import os
import sys
import tempfile
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Annotated, Any

from tyro.conf import Positional, arg

from apd.cli.app import parse
from apd.cli.using import record_of
from apd.evaluation.export import ExportError
from apd.fields import UsageError, imported
from apd.training.checkpoint import write_atomically
from apd.training.run import finished_folder

NOTEBOOK = Path(__file__).resolve().parents[2] / "notebooks" / "10_your_run.ipynb"  # in a clone, not in a wheel


@dataclass(frozen=True)
class _Report:
    runs: Annotated[Positional[tuple[Path, ...]], arg(metavar="RUN")]  #: Folders of finished runs, to be compared.
    to: Path = Path("report.html")  #: File to write. One that is there is replaced.
    images: int = 200  #: Images of the evaluation split among which best and worst are looked for; 0 shows none.


def report(arguments: list[str], sentence: str) -> int:
    """From records to a page."""
    chosen = parse(_Report, arguments, prog="apd report", description=sentence)
    if not chosen.runs:
        raise UsageError("apd report needs at least one run: apd report RUN…")
    if chosen.to.suffix != ".html" or chosen.to.is_dir() or not os.access(chosen.to.absolute().parent, os.W_OK):
        raise UsageError(f"--to {chosen.to}: expected NAME.html in a folder that is there and can be written")
    if not 0 <= chosen.images <= 10**6:
        raise UsageError(f"--images {chosen.images}: expected a whole number of at least 0 and at most 1000000")
    folders = [finished_folder(run).resolve() for run in chosen.runs]
    for run, folder in zip(chosen.runs, folders, strict=True):
        if folders.count(folder) > 1:
            raise UsageError(f"{run} is named more than once: name each run once")
        first, record = record_of(folders[0]), record_of(folder)
        if (record.experiment.task, record.class_names) != (first.experiment.task, first.class_names):
            fix = "their scores cannot be compared, so write a report of each"
            raise UsageError(f"{chosen.runs[0]} and {run} have other tasks or classes: {fix}")
    notebook = executed({"run": list(map(str, folders)), "images": chosen.images})
    write_atomically(chosen.to, page_of(notebook, f"{', '.join(folder.name for folder in folders)}: report"))
    print(chosen.to)
    return 0


def executed(parameters: dict[str, Any]) -> Any:
    """The notebook as it is after papermill has run it with these parameters; ExportError where that cannot be."""
    if not NOTEBOOK.is_file():
        fix = "install a clone of the project with `pip install -e '.[book]'`"
        raise ExportError(f"apd report needs {NOTEBOOK}, which lies in a clone only: {fix}")
    papermill, _ = (imported(package, "apd report", "book", ExportError) for package in ("papermill", "markdown_it"))
    with tempfile.TemporaryDirectory() as folder:
        options = {"kernel_name": "python3", "progress_bar": sys.stderr.isatty(), "parameters": parameters}
        options |= {"extra_arguments": ["--log-level=CRITICAL"]}  # of a kernel that is shut down
        try:
            return papermill.execute_notebook(NOTEBOOK, Path(folder) / NOTEBOOK.name, **options)
        except papermill.PapermillExecutionError as error:
            what = f"{error.ename}: {error.evalue}"
            raise ExportError(f"{NOTEBOOK.name} stopped in its cell In [{error.exec_count}]: {what}") from error


def page_of(notebook: Any, title: str) -> str:
    """HTML of a notebook's text and outputs (text, Markdown, HTML with its style) without code; it fetches nothing."""
    from markdown_it import MarkdownIt

    markdown, parts, links = MarkdownIt(), [], []
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            name = cell.source.partition("\n")[0].removeprefix("## ")
            if cell.source.startswith("## "):
                links.append(f'<a href="#{name}">{name}</a>')
            parts.append(markdown.render(cell.source).replace("<h2>", f'<h2 id="{name}">', 1))
        for output in cell.get("outputs", []):
            data = output.get("data", {})
            if "text/html" in data:
                parts.append(data["text/html"])
            elif "text/markdown" in data:
                parts.append(markdown.render(data["text/markdown"]))
            elif output.get("name") != "stderr":
                parts.append(f"<pre>{escape(output.get('text', data.get('text/plain', '')).strip())}</pre>")
    body = "\n".join([*parts[:1], f"<nav>{' '.join(links)}</nav>", *parts[1:]])
    page = Path(__file__).with_suffix(".html").read_text(encoding="utf-8")
    return page.replace("TITLE", escape(title)).replace("BODY", body)
