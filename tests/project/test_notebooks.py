"""The rules for stored notebooks, what `pytest --nbval` lets through of them, and the runner that executes them."""

import ast
import re
import shutil
import signal
import subprocess
import sys
import time
from functools import partial

import nbformat
import papermill
import pytest
import yaml
from chapter_cells import ROOT, book_script
from IPython.core.inputtransformer2 import TransformerManager
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
IGNORED = "nbval-ignore-output"  # the one way to leave an output uncompared, for curves, timings and images
IMAGE_TYPES = {"image/png", "image/jpeg", "image/svg+xml"}
MACHINE_PATH = re.compile(r"/(?:home|root|tmp|Users|work|mnt|var)/\S*|\b[A-Z]:\\\S*")
CODE_LINES, DEF_LINES, MEGABYTES = 150, 5, 1.0
OTHER_WAYS = {"nbval-skip", "raises-exception", "nbval-raises-exception", "nbval-check-output"}
PARAMETER = re.compile(r"(?P<name>\w+): (?P<kind>\w+)(\[.*\])? = (?P<value>.+?) +# *\S.*")


def tags(cell) -> set[str]:
    return set(cell.metadata.get("tags", []))


def mime_types(cell) -> set[str]:
    return {kind for output in cell.outputs for kind in output.get("data", {})}


def compared(cell) -> str:
    """The text of a cell's outputs that nbval compares, that of results and their HTML included."""
    if IGNORED in tags(cell):
        return ""
    plain = [output.data for output in cell.outputs if "data" in output and not IMAGE_TYPES & set(output.data)]
    texts = [str(data.get(kind, "")) for data in plain for kind in ("text/plain", "text/html")]
    return "\n".join(texts + [output.get("text", "") for output in cell.outputs])


def stored(path):
    return nbformat.read(path, as_version=4)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_stored_notebook_has_a_title_ran_from_top_to_bottom_and_is_small(path):
    notebook, text = stored(path), path.read_text()
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code" and cell.source.strip()]
    assert notebook.cells[0].cell_type == "markdown"
    assert notebook.cells[0].source.startswith("# ")
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    assert {"papermill", "widgets"} & set(notebook.metadata) == set()
    assert MACHINE_PATH.findall(re.sub(r'"image/(png|jpeg)": "[^"]*"', "", text)) == []
    assert len(text) <= MEGABYTES * 1e6, "smaller images, please"
    lines = [line for cell in code for line in cell.source.splitlines() if line.strip() and line.strip()[0] != "#"]
    assert len(lines) <= CODE_LINES, "move work into the package"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_what_a_section_of_a_notebook_shows_has_a_number_that_is_compared(path):
    shown, heading = {}, "before the first section"
    for cell in stored(path).cells:
        if cell.cell_type == "markdown" and (match := re.search(r"^## +(.+)$", cell.source, re.MULTILINE)):
            heading = match[1]
        elif cell.cell_type == "code" and cell.outputs:
            shown[heading] = shown.get(heading, "") + compared(cell)
    assert shown
    assert [heading for heading, text in shown.items() if not re.search(r"\d", text)] == []


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_the_parameters_of_a_notebook_are_one_line_each_that_papermill_reads_as_written(path):
    cells = stored(path).cells
    assert [cell for cell in cells if "injected-parameters" in tags(cell)] == []
    (cell,) = [cell for cell in cells if "parameters" in tags(cell)]
    matches = {line: PARAMETER.fullmatch(line) for line in cell.source.splitlines()}
    assert [line for line, match in matches.items() if not match] == [], "expected `name: type = literal  # what it is`"
    given = {match["name"]: (match["kind"], ast.literal_eval(match["value"])) for match in matches.values()}
    assert {name: value for name, (kind, value) in given.items() if type(value).__name__ != kind} == {}
    assert given.get("size", ("str", "tiny"))[1] == "tiny"
    assert given.keys() == papermill.inspect_notebook(path).keys()


CELLS = [(path.stem, cell) for path in NOTEBOOKS for cell in stored(path).cells if cell.cell_type == "code"]


@pytest.mark.parametrize("cell", [pytest.param(cell, id=f"{name}-{cell.execution_count}") for name, cell in CELLS])
def test_a_stored_cell_is_short_and_leaves_nothing_that_differs_between_machines(cell):
    assert "error" not in {output.output_type for output in cell.outputs}
    assert "stderr" not in {output.get("name") for output in cell.outputs}, "warnings are stored"
    assert {"papermill", "execution"} & set(cell.metadata) == set(), "timings are stored"
    assert "NBVAL_" not in cell.source, f"the tag {IGNORED} is the one way"
    assert OTHER_WAYS & tags(cell) == set(), f"the tag {IGNORED} is the one way"
    assert [kind for kind in mime_types(cell) if "/vnd." in kind] == [], "a widget needs the network"
    assert re.findall(r"\d\.\d{7,}|\d\.\d+e[-+]\d+", compared(cell)) == [], "round it"
    if IMAGE_TYPES & mime_types(cell):
        assert IGNORED in tags(cell) or re.search(r"\d", compared(cell)), "an image is ignored or beside facts"
    for node in ast.walk(ast.parse(TransformerManager().transform_cell(cell.source))):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            assert node.end_lineno - node.lineno < DEF_LINES, f"{node.name} belongs into the package"


def test_every_notebook_and_page_of_the_book_is_in_its_table_of_contents():
    contents = yaml.safe_load((ROOT / "book" / "_toc.yml").read_text())
    chapters = [chapter for part in contents["parts"] for chapter in part["chapters"]]
    chapters += [section for chapter in chapters for section in chapter.get("sections", ())]
    pages = {path.stem for path in (ROOT / "book").glob("*.md")} | {f"notebooks/{path.stem}" for path in NOTEBOOKS}
    pages |= {f"api/{path.stem}" for path in (ROOT / "book" / "api").glob("*.md")}
    assert {contents["root"], *(chapter["file"] for chapter in chapters)} == pages


@pytest.fixture
def study(tmp_path):
    """The folder notebooks/ in small: the runner, a note that relative paths find, and a notebook, not executed."""
    parameters = """\
size: str = "tiny"  # of the study: tiny, small, full
seed: int = 0  # of everything random
rate: float = 0.5  # per step
verbose: bool = False  # print more
widths: list = [4, 8]  # of the layers"""
    facts = """\
import time
from pathlib import Path

started = time.perf_counter()
root = 2 ** (rate + seed)
print(f"{size}: {root:.4f} with {sum(widths)}, note {Path('note.txt').read_text().strip()}")
print(f"took {time.perf_counter() - started:.3f} s")"""
    cells = [
        new_markdown_cell("# A miniature"),
        new_code_cell(parameters, metadata={"tags": ["parameters"]}),
        new_markdown_cell("## Facts"),
        new_code_cell(facts),
        new_code_cell('print(f"the grey is {seed * 40} of 255")'),
    ]
    python = {"display_name": "Python 3", "language": "python", "name": "python3"}
    (folder := tmp_path / "notebooks").mkdir()
    shutil.copy(ROOT / "notebooks" / "execute.py", folder)
    (folder / "note.txt").write_text("seven\n")
    nbformat.write(new_notebook(cells=cells, metadata={"kernelspec": python}), folder / "01_mini.ipynb")
    return folder


@pytest.fixture
def runner(study):
    return book_script("execute", study)


def test_pytest_nbval_typed_at_the_root_compares_numbers_and_not_times(study, runner):
    root, executed = study.parent, study / "01_mini.ipynb"
    runner.run(executed, executed, {})
    changes = {"01_mini": (r"took \d+\.\d+ s", "took 98.765 s"), "02_number": (r"1\.4142", "1.4143")}
    for name, change in reversed(changes.items()):
        notebook = stored(executed)
        facts = notebook.cells[3].outputs[0]
        facts.text, count = re.subn(*change, facts.text)
        assert count == 1
        nbformat.write(notebook, study / f"{name}.ipynb")
    for folder in ("tests", "book/_build"):
        (root / folder).mkdir(parents=True)
    shutil.copy(ROOT / "pyproject.toml", root)
    shutil.copy(ROOT / "tests" / "nbval_sanitize.cfg", root / "tests")
    (root / "book" / "_build" / "03_copy.ipynb").write_text("not to be collected")
    command = [sys.executable, "-m", "pytest", "-q", "--nbval"]
    result = subprocess.run(command, capture_output=True, text=True, cwd=root, timeout=300)
    assert re.findall(r"^FAILED (\S+)::", result.stdout, re.MULTILINE) == ["notebooks/02_number.ipynb"], result.stdout
    assert "1 failed, 5 passed in" in result.stdout
    assert result.returncode == 1


def command(study, *arguments):
    program = [sys.executable, str(study / "execute.py"), *arguments]
    result = subprocess.run(program, capture_output=True, text=True, cwd=study.parent)
    return result.returncode, result.stdout, result.stderr


def planned(runner, *given, names=()):
    return runner.plan(runner.find_notebooks(names), given, all_of_them=not names)


def test_a_notebook_is_found_by_stem_file_name_and_path_and_what_is_none_is_named(runner, study, tmp_path):
    for name in ("01_mini", "01_mini.ipynb", "notebooks/01_mini.ipynb"):
        assert [path.name for path in runner.find_notebooks([name])] == ["01_mini.ipynb"]
    (tmp_path / "empty").mkdir()
    with pytest.raises(runner.WrongArgument, match="no notebook"):
        runner.find_notebooks([], tmp_path / "empty")
    with pytest.raises(runner.WrongArgument, match=r"'01_mimi'.*did you mean '01_mini'"):
        runner.find_notebooks(["01_mimi"])
    (study / "02_torn.ipynb").write_text('{"cells": [')
    with pytest.raises(runner.WrongArgument, match=r"02_torn.ipynb cannot be read"):
        planned(runner)


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        *(("seed", "-3", -3), ("rate", "1e-3", 1e-3), ("rate", "2", 2.0)),
        *(("verbose", "true", True), ("size", "7", "7"), ("widths", "[1, 2]", [1, 2])),
        ("widths", "a,b", ["a", "b"]),
    ],
)
def test_a_value_gets_the_type_that_the_notebook_declares(runner, name, text, expected):
    ((_, parameters),) = planned(runner, (name, text))
    assert parameters == {name: expected}
    assert type(parameters[name]) is type(expected)
    assert planned(runner, ("size", "tiny"), ("rate", "0.50"))[0][1] == {}, "as in the notebook: not injected"


def test_a_path_means_from_where_it_was_typed_and_not_the_kernels_folder(runner, tmp_path, monkeypatch):
    (tmp_path / "runs" / "a").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert runner.from_here("") == ""
    assert runner.from_here("runs/a,elsewhere") == f"{tmp_path / 'runs' / 'a'},elsewhere"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ([("sead", "1")], r"'sead'.*did you mean 'seed'.*rate, seed, size"),
        ([("seed", "1"), ("rate", "1.0"), ("seed", "2")], "-p seed is given more than once"),
        ([("seed", "3.5")], r"01_mini.ipynb.*'seed' takes .*int.*got '3.5'"),
        ([("seed", "True")], "'seed' takes .*int.*got 'True'"),
        ([("rate", "fast")], "'rate' takes .*float.*got 'fast'"),
        ([("verbose", "1")], "'verbose' takes .*true or false.*got '1'"),
        ([("widths", "4")], "'widths' takes .*list.*got '4'"),
    ],
)
def test_a_wrong_parameter_is_refused_with_what_was_expected(runner, given, message):
    with pytest.raises(runner.WrongArgument, match=message):
        planned(runner, *given)


def test_run_all_gives_a_parameter_to_the_notebooks_that_declare_it_and_named_ones_must(runner, study):
    other = stored(study / "01_mini.ipynb")
    other.cells[1].source = "steps: int = 2  # how many"
    nbformat.write(other, study / "02_other.ipynb")
    assert [parameters for _, parameters in planned(runner, ("steps", "5"))] == [{}, {"steps": 5}]
    with pytest.raises(runner.WrongArgument, match=r"'steps' in 01_mini.ipynb"):
        planned(runner, ("steps", "5"), names=("01_mini", "02_other"))


def test_wrong_arguments_exit_with_2_one_message_and_no_run(study):
    for arguments in (["-p", "seed", "x"], ["02_none"], ["--in-place", "-p", "seed", "1"]):
        code, out, err = command(study, *arguments)
        assert (code, out, len(err.splitlines())) == (2, "", 1)
    assert not (study.parent / "runs").exists()


def test_a_run_writes_a_clean_copy_says_where_and_is_quiet_when_not_on_a_terminal(study):
    before = (study / "01_mini.ipynb").read_bytes()
    code, out, err = command(study, "--to", "out", "-p", "seed", "2")
    assert code == 0, err
    assert out.splitlines()[0] == "01_mini: running with seed=2"
    assert out.splitlines()[-1].endswith("out/01_mini.ipynb")
    assert err == ""
    assert (study / "01_mini.ipynb").read_bytes() == before
    result = stored(study.parent / "out" / "01_mini.ipynb")
    assert "tiny: 5.6569 with 12, note seven" in str(result)  # 2 ** 2.5; the note is found beside the notebook
    assert ["injected-parameters"] in [cell.metadata.get("tags") for cell in result.cells]
    text = (study.parent / "out" / "01_mini.ipynb").read_text()
    assert [word for word in ('"papermill"', '"execution"', str(study.parent)) if word in text] == []


def test_running_in_place_twice_changes_nothing_but_what_is_timed(study):
    kept = []
    for _ in range(2):
        assert command(study, "--in-place")[0] == 0
        kept.append(stored(study / "01_mini.ipynb"))
        facts = kept[-1].cells[3].outputs[0]
        facts.text = facts.text.split("took")[0]
    assert kept[0] == kept[1]
    assert kept[0].cells[-1].outputs[0].text == "the grey is 0 of 255\n"


def test_a_failing_cell_is_named_the_good_notebook_stays_and_the_partial_one_is_kept_aside(study):
    assert command(study, "--to", "out")[0] == 0
    good = (study.parent / "out" / "01_mini.ipynb").read_bytes()
    broken = stored(study / "01_mini.ipynb")
    broken.cells[-1].source = "shown = 1\nraise FileNotFoundError('no CamVid: set APD_DATA')"
    nbformat.write(broken, study / "01_mini.ipynb")
    shutil.copy(study / "01_mini.ipynb", study / "02_after.ipynb")
    code, out, err = command(study, "--to", "out")
    assert (code, "02_after" in out) == (1, False)
    said = ("notebooks/01_mini.ipynb stopped in cell In [3]", "    shown = 1", "runs/notebooks/01_mini-failed.ipynb")
    assert [words for words in (*said, "FileNotFoundError: no CamVid: set APD_DATA") if words not in err] == []
    assert (study.parent / "out" / "01_mini.ipynb").read_bytes() == good
    assert "1.4142" in str(stored(study.parent / "runs" / "notebooks" / "01_mini-failed.ipynb"))
    assert sorted(path.name for path in (study.parent / "out").iterdir()) == ["01_mini.ipynb"]


def test_ctrl_c_leaves_with_130_and_everything_finished_in_place(study):
    slow = stored(study / "01_mini.ipynb")
    slow.cells[-1].source = "import time\nfrom pathlib import Path\nPath('reached').touch()\ntime.sleep(60)"
    nbformat.write(slow, study / "02_slow.ipynb")
    program, pipes = [sys.executable, str(study / "execute.py")], {"stdout": -3, "stderr": -1}  # away, and a pipe
    # a shell has its background jobs ignore Ctrl-C, and so would everything that these tests start
    listen = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    process = subprocess.Popen([*program, "--to", "out"], cwd=study.parent, text=True, preexec_fn=listen, **pipes)
    deadline = time.monotonic() + 90
    while not (study / "reached").exists():
        assert time.monotonic() < deadline
        assert process.poll() is None
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=30)
    assert process.returncode == 130, err
    assert "Interrupted in 02_slow.ipynb" in err
    assert sorted(path.name for path in (study.parent / "out").iterdir()) == ["01_mini.ipynb"]
