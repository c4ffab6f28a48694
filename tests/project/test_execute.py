"""The notebook runner: parameters are checked before anything runs, and a failed run replaces nothing."""

import shutil
import signal
import subprocess
import sys
import time
from functools import partial

import nbformat
import pytest
from miniature_notebook import make_study, runner_of


@pytest.fixture
def study(tmp_path):
    return make_study(tmp_path)


@pytest.fixture
def runner(study):
    return runner_of(study)


def command(study, *arguments):
    result = subprocess.run(
        [sys.executable, str(study / "execute.py"), *arguments], capture_output=True, text=True, cwd=study.parent
    )
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


def test_a_value_equal_to_the_default_is_not_injected(runner):
    assert planned(runner, ("size", "tiny"), ("rate", "0.50"))[0][1] == {}


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
    process = subprocess.Popen(
        [sys.executable, str(study / "execute.py"), "--to", "out"],
        cwd=study.parent,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        # a shell has its background jobs ignore Ctrl-C, and so would everything that these tests start
        preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_DFL),
    )
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
