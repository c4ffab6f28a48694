"""Run the study's notebooks with papermill, checking every parameter before anything runs.

    python notebooks/execute.py                                  all of them, copies to runs/notebooks/
    python notebooks/execute.py 02_train -p size small -p seed 3 one of them, other parameters
    python notebooks/execute.py --to book/notebooks -p size tiny what `make book` does
    python notebooks/execute.py --in-place                       what `make notebooks` does: refresh the stored outputs

papermill itself lets a mistyped name or a value of the wrong type through; here both stop with a message. A notebook is
executed under runs/notebooks/ and put in its place only when it is complete, so a failed run never replaces a good
notebook; what it had reached is kept there as NAME-failed.ipynb. A parameter goes to every notebook named, or, when
none is named, to those that declare it. Exit codes: 0 all done, 1 a notebook failed, 2 wrong arguments, 130 Ctrl-C.
"""

import argparse
import ast
import difflib
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import nbformat
import papermill
from papermill.exceptions import PapermillExecutionError, strip_color
from traitlets.config import Config

FOLDER = Path(__file__).resolve().parent
ROOT = FOLDER.parent
ASIDE = ROOT / "runs" / "notebooks"
# a kernel talks over local sockets that other users of the machine could read, and warns of it on the terminal
ENCRYPTED = Config({"KernelManager": {"transport_encryption": "auto"}})
WORDS = {"true": True, "false": False}


class WrongArgument(Exception):
    """A notebook or parameter that does not exist, or a value of the wrong type. Nothing was run."""


def nearest(word: str, known: Sequence[str]) -> str:
    """Say which of ``known`` was probably meant, and which there are."""
    close = difflib.get_close_matches(word, known, n=1)
    guess = f"did you mean {close[0]!r}? " if close else ""
    return f"{guess}There are: {', '.join(sorted(known)) or 'none'}."


def find_notebooks(names: Sequence[str], folder: Path = FOLDER) -> list[Path]:
    """Return the notebooks of ``folder`` called ``names`` (as stem, file name or path), all of them without names."""
    known = {path.stem: path for path in sorted(folder.glob("*.ipynb"))}
    if not known:
        raise WrongArgument(f"{show(folder)} holds no notebook.")
    stems = [Path(name).name.removesuffix(".ipynb") for name in names]
    for name, stem in zip(names, stems, strict=True):
        if stem not in known:
            raise WrongArgument(f"No notebook {name!r} in {show(folder)}: {nearest(stem, list(known))}")
    return [known[stem] for stem in stems] or list(known.values())


def show(path: Path) -> str:
    """Path as a person would type it: relative to the working folder where it lies below."""
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)


def declared_parameters(notebook: Path) -> dict[str, dict[str, Any]]:
    """Return what papermill reads from the cell tagged ``parameters``: name, type, default and comment of each."""
    try:
        return papermill.inspect_notebook(notebook)
    except ValueError as error:  # also json's, for a file that is no notebook
        raise WrongArgument(f"{show(notebook)} cannot be read as a notebook for python3: {error}") from None


def default_of(notebook: str, parameter: dict[str, Any]) -> Any:
    """Return the default of one of papermill's inferred parameters as a value."""
    try:
        return ast.literal_eval(parameter["default"])
    except (ValueError, SyntaxError):
        raise WrongArgument(
            f"{notebook}: parameter {parameter['name']!r} has the default {parameter['default']}, "
            "which is no literal. Write a plain value into the notebook's parameters cell."
        ) from None


def parse_value(notebook: str, parameter: dict[str, Any], text: str) -> Any:
    """Turn a command line's ``text`` into the type that the notebook declares for ``parameter``.

    Without an annotation the type of the default counts. Raises :class:`WrongArgument`.
    """
    name, default, declared = parameter["name"], default_of(notebook, parameter), parameter["inferred_type_name"]
    if declared in (None, "None"):
        declared = type(default).__name__
    kind = declared.split("[")[0]
    if kind == "str":
        return text
    try:
        value = WORDS[text.lower()] if kind == "bool" else ast.literal_eval(text)
    except (KeyError, ValueError, SyntaxError):
        value = text
    if kind == "list" and value == text:
        value = text.split(",")
    if kind == "float" and type(value) is int:
        value = float(value)
    if type(value).__name__ != kind:
        expected = "true or false" if kind == "bool" else f"a value of type {declared}"
        raise WrongArgument(
            f"{notebook}: parameter {name!r} takes {expected} (its default is {default!r}), got {text!r}."
        )
    return value


def plan(
    notebooks: Sequence[Path], given: Sequence[Sequence[str]], *, all_of_them: bool
) -> list[tuple[Path, dict[str, Any]]]:
    """Pair each notebook with the parameters to inject, checked against what it declares.

    A value equal to the notebook's default is left out, so that running with the defaults adds no cell to the page.
    """
    names = [name for name, _ in given]
    if len(set(names)) < len(names):
        raise WrongArgument(f"-p {max(names, key=names.count)} is given more than once.")
    declared = {path: declared_parameters(path) for path in notebooks}
    for name in names:
        lacking = [path for path in notebooks if name not in declared[path]]
        if lacking == list(notebooks) or (lacking and not all_of_them):
            known = {known for path in lacking for known in declared[path]}
            where = "any notebook" if all_of_them else lacking[0].name
            raise WrongArgument(f"There is no parameter {name!r} in {where}: {nearest(name, sorted(known))}")
    planned = []
    for path in notebooks:
        parameters = {}
        for name, text in given:
            if name in declared[path]:
                value = parse_value(path.name, declared[path][name], text)
                default = default_of(path.name, declared[path][name])
                if (type(value), value) != (type(default), default):
                    parameters[name] = value
        planned.append((path, parameters))
    return planned


def from_here(paths: str) -> str:
    """Paths with commas between them, absolute where they lead to something from here: a kernel runs elsewhere."""
    parts = [paths] if paths and Path(paths).exists() else paths.split(",")  # a comma may be a part of a name
    return ",".join(str(Path(part).resolve()) if part and Path(part).exists() else part for part in parts)


def clean(notebook: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """Strip what differs from run to run and from machine to machine though the study does not: timings and paths."""
    for unwanted in ("papermill", "widgets"):
        notebook.metadata.pop(unwanted, None)
    notebook.metadata.kernelspec = {"display_name": "Python 3", "language": "python", "name": "python3"}
    notebook.metadata.language_info = {"name": "python", "pygments_lexer": "ipython3", "file_extension": ".py"}
    for cell in notebook.cells:
        for unwanted in ("papermill", "execution"):
            cell.metadata.pop(unwanted, None)
        if not cell.metadata.get("tags", True):
            del cell.metadata["tags"]
    return notebook


def run(source: Path, target: Path, parameters: dict[str, Any], *, aside: Path = ASIDE) -> float:
    """Execute ``source`` with ``parameters`` and put the cleaned result at ``target``; return the seconds it took.

    The kernel's working folder is that of ``source``, as under nbval, so relative paths mean the same in both. On
    failure ``target`` is left alone, the partial notebook is kept in ``aside`` and the exception passed on.
    """
    aside.mkdir(parents=True, exist_ok=True)
    working, failed = aside / f"{source.stem}-running-{os.getpid()}.ipynb", aside / f"{source.stem}-failed.ipynb"
    bar = {"desc": source.stem, "disable": not sys.stderr.isatty(), "leave": False}
    started = time.perf_counter()
    try:
        papermill.execute_notebook(
            source,
            working,
            parameters=parameters,
            cwd=source.parent,
            kernel_name="python3",
            progress_bar=bar,
            coalesce_streams=True,
            config=ENCRYPTED,
            # a kernel that is shut down may log the interrupt that ends it as an error, which it is not
            extra_arguments=["--log-level=CRITICAL"],
        )
        result = clean(nbformat.read(working, as_version=4))
        target.parent.mkdir(parents=True, exist_ok=True)
        new = target.with_name(target.name + ".new")
        nbformat.write(result, new)
        new.replace(target)
    except BaseException:
        if working.exists():
            working.replace(failed)
        raise
    working.unlink()
    failed.unlink(missing_ok=True)
    return time.perf_counter() - started


def explain(source: Path, error: BaseException, aside: Path = ASIDE) -> str:
    """Say which notebook stopped, in which cell, with which error, and where what it had reached is kept."""
    lines = [f"{show(source)} stopped"]
    if isinstance(error, PapermillExecutionError):
        lines[0] += f" in cell In [{error.exec_count}]:"
        lines += [f"    {line}" for line in error.source.strip().splitlines()[:8]]
        lines.append(strip_color(f"{error.ename}: {error.evalue}").strip())
    else:
        lines.append(f"{type(error).__name__}: {error}")
    partial = aside / f"{source.stem}-failed.ipynb"
    if partial.exists():
        lines.append(f"What it had reached, with the whole traceback: {show(partial)}")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; see the module's docstring. Returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help="notebooks to run, such as 02_train; default: all")
    parser.add_argument("-p", nargs=2, action="append", default=[], metavar=("PARAMETER", "VALUE"), dest="given")
    where = parser.add_mutually_exclusive_group()
    where.add_argument("--to", type=Path, default=ASIDE, metavar="FOLDER", help="folder of the executed copies")
    where.add_argument("--in-place", action="store_true", help="store the outputs in the notebooks themselves")
    options = parser.parse_args(arguments)
    try:
        if options.in_place and options.given:
            raise WrongArgument(
                "--in-place stores the notebooks as they are committed, with their own defaults: no -p."
            )
        notebooks = find_notebooks(options.names)
        given = [(name, from_here(text) if name in ("records", "run") else text) for name, text in options.given]
        planned = plan(notebooks, given, all_of_them=not options.names)
    except WrongArgument as error:
        print(error, file=sys.stderr)
        return 2
    for source, parameters in planned:
        target = source if options.in_place else options.to.resolve() / source.name
        shown = ", ".join(f"{name}={value!r}" for name, value in parameters.items()) or "its own defaults"
        print(f"{source.stem}: running with {shown}", flush=True)
        try:
            seconds = run(source, target, parameters)
        except KeyboardInterrupt:
            print(f"Interrupted in {source.name}; the notebooks before it are done.", file=sys.stderr)
            return 130
        except Exception as error:
            print(explain(source, error), file=sys.stderr)
            return 1
        print(f"{source.stem}: done in {seconds:.0f} s, {show(target)}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
