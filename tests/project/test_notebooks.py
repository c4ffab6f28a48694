"""The rules for stored notebooks, what `pytest --nbval` lets through of them, and the runner that executes them."""

import ast
import re
import shutil
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import nbformat
import papermill
import pytest
import yaml
from IPython.core.inputtransformer2 import TransformerManager
from miniature_notebook import executed_miniature, make_study, runner_of

ROOT = Path(__file__).resolve().parents[2]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
IGNORED = "nbval-ignore-output"  # the one way to leave an output uncompared, for curves, timings and images
IMAGE_TYPES = {"image/png", "image/jpeg", "image/svg+xml"}
MACHINE_PATH = re.compile(r"/(?:home|root|tmp|Users|work|mnt|var)/\S*|\b[A-Z]:\\\S*")
CODE_LINES, DEF_LINES, MEGABYTES = 150, 5, 1.0
OTHER_WAYS = {"nbval-skip", "raises-exception", "nbval-raises-exception", "nbval-check-output"}


def is_tagged(cell, tag: str) -> bool:
    return tag in cell.metadata.get("tags", [])


def mime_types(cell) -> set[str]:
    return {kind for output in cell.outputs for kind in output.get("data", {})}


def has_facts(cell) -> bool:
    """Whether nbval compares the cell and it prints a number, as text or as the text and HTML of results."""
    return not is_tagged(cell, IGNORED) and bool(re.search(r"\d", printed(cell)))


def printed(cell) -> str:
    """The text of a cell's outputs that nbval compares."""
    parts = []
    for output in cell.outputs:
        data = output.get("data", {})
        parts += [output.get("text", "")]
        parts += [] if IMAGE_TYPES & set(data) else [str(data.get(kind, "")) for kind in ("text/plain", "text/html")]
    return "\n".join(parts)


def sections(cells) -> dict[str, list]:
    """Code cells by the second-level heading above them."""
    found, heading = {}, "before the first section"
    for cell in cells:
        if cell.cell_type == "markdown" and (match := re.search(r"^## +(.+)$", cell.source, re.MULTILINE)):
            heading = match[1]
        elif cell.cell_type == "code" and cell.source.strip():
            found.setdefault(heading, []).append(cell)
    return found


def parameter_problems(notebook, path: Path) -> list[str]:
    cells = [cell for cell in notebook.cells if is_tagged(cell, "parameters")]
    if len(cells) != 1 or any(is_tagged(cell, "injected-parameters") for cell in notebook.cells):
        return ["not exactly one cell tagged parameters, or one injected by papermill"]
    found, names, lines = [], set(), cells[0].source.splitlines()
    for node in ast.parse(cells[0].source).body:
        line = lines[node.lineno - 1]
        one_line = isinstance(node, ast.AnnAssign) and node.end_lineno == node.lineno
        if not one_line or not isinstance(node.target, ast.Name):
            found.append(f"parameter is not one line `name: type = value  # what it is`: {line}")
            continue
        name, kind = node.target.id, ast.unparse(node.annotation).split("[")[0]
        names.add(name)
        if not re.search(r"#\s*\S+", line):
            found.append(f"parameter {name} has no comment")
        try:
            value = ast.literal_eval(node.value)
        except ValueError:
            found.append(f"parameter {name} has no literal default")
            continue
        if type(value).__name__ != kind:
            found.append(f"parameter {name} is declared {kind} and holds {value!r}")
        if name == "size" and value != "tiny":
            found.append(f"stored at size {value!r}, not tiny")
    if names != set(papermill.inspect_notebook(path)):
        found.append("papermill does not read the parameters as written: keep to plain types and one line each")
    return found


def cell_problems(cell) -> list[str]:
    """What is wrong with one code cell."""
    tags, outputs = set(cell.metadata.get("tags", [])), {output.output_type for output in cell.outputs}
    tree = ast.parse(TransformerManager().transform_cell(cell.source))
    defined = [n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)]
    long = [node.name for node in defined if node.end_lineno - node.lineno + 1 > DEF_LINES]
    unrounded = re.search(r"\d\.\d{7,}|\d\.\d+e[-+]\d+", "" if IGNORED in tags else printed(cell))
    is_picture = bool(IMAGE_TYPES & mime_types(cell)) and IGNORED not in tags
    checks = {
        "an exception is stored": "error" in outputs,
        "warnings are stored": any(output.get("name") == "stderr" for output in cell.outputs),
        "timings are stored": bool({"papermill", "execution"} & set(cell.metadata)),
        f"nbval takes it from a comment, not by the tag {IGNORED}": "NBVAL_" in cell.source,
        f"only the tag {IGNORED} is for nbval": bool(OTHER_WAYS & tags),
        "an output that needs the network, as a widget's": any("/vnd." in kind for kind in mime_types(cell)),
        f"{long} has more than {DEF_LINES} lines: it belongs into the package": bool(long),
        f"unrounded number {unrounded and unrounded[0]}: differs between machines": bool(unrounded),
        "an image is neither ignored nor beside facts": is_picture and not has_facts(cell),
    }
    return [f"{problem}: {cell.source.strip().splitlines()[0]}" for problem, is_so in checks.items() if is_so]


def problems(path: Path) -> list[str]:
    """Everything that is wrong with the stored notebook at ``path``; the empty list when nothing is."""
    notebook, text = nbformat.read(path, as_version=4), path.read_text()
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code" and cell.source.strip()]
    paths = MACHINE_PATH.findall(re.sub(r'"image/(png|jpeg)": "[^"]*"', "", text))
    lines = [line for cell in code for line in cell.source.splitlines() if line.strip() and line.strip()[0] != "#"]
    showing = {name: cells for name, cells in sections(notebook.cells).items() if any(cell.outputs for cell in cells)}
    checks = {
        "no title first": not notebook.cells[0].source.startswith("# ") or notebook.cells[0].cell_type != "markdown",
        "not run from top to bottom": [cell.execution_count for cell in code] != list(range(1, len(code) + 1)),
        "timings or widgets are stored": bool({"papermill", "widgets"} & set(notebook.metadata)),
        f"path of a machine: {paths[:1]}": bool(paths),
        f"{len(text) / 1e6:.1f} MB: smaller images, please": len(text) > MEGABYTES * 1e6,
        f"{len(lines)} lines of code: move work into the package": len(lines) > CODE_LINES,
        "shows nothing": not showing,
    }
    found = [problem for problem, is_so in checks.items() if is_so] + parameter_problems(notebook, path)
    found += [problem for cell in code for problem in cell_problems(cell)]
    bare = [name for name, cells in showing.items() if not any(map(has_facts, cells))]
    return found + [f"section {name!r} has no compared cell that prints a number" for name in bare]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_stored_notebook_keeps_the_rules(path):
    assert problems(path) == []


def test_every_notebook_and_page_of_the_book_is_in_its_table_of_contents():
    contents = yaml.safe_load((ROOT / "book" / "_toc.yml").read_text())
    chapters = [chapter for part in contents["parts"] for chapter in part["chapters"]]
    chapters += [section for chapter in chapters for section in chapter.get("sections", ())]
    pages = {path.stem for path in (ROOT / "book").glob("*.md")} | {f"notebooks/{path.stem}" for path in NOTEBOOKS}
    pages |= {f"api/{path.stem}" for path in (ROOT / "book" / "api").glob("*.md")}
    assert {contents["root"], *(chapter["file"] for chapter in chapters)} == pages


def change_time(cells):
    cells[3].outputs[0].text = re.sub(r"took \d+\.\d+ s", "took 98.765 s", cells[3].outputs[0].text)
    assert "98.765" in cells[3].outputs[0].text


def change_number(cells):
    assert "1.4142" in cells[3].outputs[0].text
    cells[3].outputs[0].text = cells[3].outputs[0].text.replace("1.4142", "1.4143")


@pytest.fixture
def project(tmp_path):
    """A project with this one's test options, the miniature and a built book."""
    for name in ("tests", "notebooks", "book/_build"):
        (tmp_path / name).mkdir(parents=True)
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    shutil.copy(ROOT / "tests" / "nbval_sanitize.cfg", tmp_path / "tests")
    (tmp_path / "notebooks" / "note.txt").write_text("seven\n")
    nbformat.write(executed_miniature(), tmp_path / "notebooks" / "01_mini.ipynb")
    (tmp_path / "book" / "_build" / "02_copy.ipynb").write_text("not to be collected")
    return tmp_path


@pytest.mark.parametrize(("change", "expected"), [(change_time, "3 passed"), (change_number, "1 failed, 2 passed")])
def test_pytest_nbval_typed_at_the_root_compares_numbers_and_not_times(project, change, expected):
    notebook = nbformat.read(project / "notebooks" / "01_mini.ipynb", as_version=4)
    change(notebook.cells)
    nbformat.write(notebook, project / "notebooks" / "01_mini.ipynb")
    command = [sys.executable, "-m", "pytest", "-q", "--nbval"]
    result = subprocess.run(command, capture_output=True, text=True, cwd=project, timeout=300)
    assert f"{expected} in" in result.stdout, result.stdout[-2000:]
    assert result.returncode == (1 if "failed" in expected else 0)


@pytest.fixture
def study(tmp_path):
    return make_study(tmp_path)


@pytest.fixture
def runner(study):
    return runner_of(study)


def command(study, *arguments):
    program = [sys.executable, str(study / "execute.py"), *arguments]
    result = subprocess.run(program, capture_output=True, text=True, cwd=study.parent)
    return result.returncode, result.stdout, result.stderr


def planned(runner, *given, names=()):
    return runner.plan(runner.find_notebooks(names), given, all_of_them=not names)


def test_a_notebook_is_found_by_stem_by_file_name_and_by_path(runner):
    for name in ("01_mini", "01_mini.ipynb", "notebooks/01_mini.ipynb"):
        assert [path.name for path in runner.find_notebooks([name])] == ["01_mini.ipynb"]


def test_what_is_no_notebook_is_named_and_an_empty_folder_is_no_success(runner, study, tmp_path):
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
        ("seed", "-3", -3),
        ("rate", "1e-3", 1e-3),
        ("rate", "2", 2.0),
        ("verbose", "true", True),
        ("size", "7", "7"),
        ("widths", "[1, 2]", [1, 2]),
    ],
)
def test_a_value_gets_the_type_that_the_notebook_declares(runner, name, text, expected):
    ((_, parameters),) = planned(runner, (name, text))
    assert parameters == {name: expected}
    assert type(parameters[name]) is type(expected)
    assert planned(runner, ("size", "tiny"), ("rate", "0.50"))[0][1] == {}, "as in the notebook: not injected"


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
    other = nbformat.read(study / "01_mini.ipynb", as_version=4)
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
    result = nbformat.read(study.parent / "out" / "01_mini.ipynb", as_version=4)
    printed = "".join(output.text for cell in result.cells for output in cell.get("outputs", []) if "text" in output)
    assert "tiny: 5.6569 with 12, note seven" in printed  # 2 ** 2.5; the note is found beside the notebook
    assert ["injected-parameters"] in [cell.metadata.get("tags") for cell in result.cells]
    text = (study.parent / "out" / "01_mini.ipynb").read_text()
    assert '"papermill"' not in text
    assert '"execution"' not in text
    assert str(study.parent) not in text


def test_running_in_place_twice_changes_nothing_but_what_is_timed(study):
    assert command(study, "--in-place")[0] == 0
    first = nbformat.read(study / "01_mini.ipynb", as_version=4)
    assert command(study, "--in-place")[0] == 0
    second = nbformat.read(study / "01_mini.ipynb", as_version=4)
    for notebook in (first, second):
        facts = notebook.cells[3].outputs[0]
        facts.text = facts.text.split("took")[0]
    assert first == second
    assert first.cells[-1].outputs[0].text == "the grey is 0 of 255\n"


def test_a_failing_cell_is_named_the_good_notebook_stays_and_the_partial_one_is_kept_aside(study):
    assert command(study, "--to", "out")[0] == 0
    good = (study.parent / "out" / "01_mini.ipynb").read_bytes()
    broken = nbformat.read(study / "01_mini.ipynb", as_version=4)
    broken.cells[-1].source = "shown = 1\nraise FileNotFoundError('no CamVid: set APD_DATA')"
    nbformat.write(broken, study / "01_mini.ipynb")
    shutil.copy(study / "01_mini.ipynb", study / "02_after.ipynb")
    code, out, err = command(study, "--to", "out")
    assert code == 1
    assert "notebooks/01_mini.ipynb stopped in cell In [3]" in err
    assert "    shown = 1" in err
    assert "FileNotFoundError: no CamVid: set APD_DATA" in err
    assert "runs/notebooks/01_mini-failed.ipynb" in err
    assert "02_after" not in out
    assert (study.parent / "out" / "01_mini.ipynb").read_bytes() == good
    partial = nbformat.read(study.parent / "runs" / "notebooks" / "01_mini-failed.ipynb", as_version=4)
    assert "5.6569" not in str(partial)
    assert "1.4142" in str(partial)
    assert sorted(path.name for path in (study.parent / "out").iterdir()) == ["01_mini.ipynb"]


@pytest.mark.skipif(sys.platform == "win32", reason="signals")
def test_ctrl_c_leaves_with_130_and_everything_finished_in_place(study):
    slow = nbformat.read(study / "01_mini.ipynb", as_version=4)
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
