"""Whatever becomes of standard output and error, a training ends cleanly, and a command with the right exit code."""

import os
import signal
import sys

import pytest
from bad_input import refused
from small_experiments import exit_code, tiny

from apd.cli.app import main
from apd.data.instances import InstanceSpec
from apd.data.specs import DatasetSpec
from apd.study import recipes
from apd.training.exit_codes import printing_safely
from apd.training.record import read_record
from apd.training.run_log import StopRequest

FULL = "apd: cannot write to standard output: No space left on device"
STEERING = ["\x1b[31m", "a\x07", "a\nb", "a\t", "\x9b2J", "\u202ea", "a\r=", "\udcff", "\x00", "\u2028"]


def opened(kind):
    """A stream on a full disk, one that nobody reads, or a terminal that has gone."""
    if kind == "full":
        return os.open("/dev/full", os.O_WRONLY)
    other, own = os.pipe() if kind == "unread" else os.openpty()
    os.close(other)
    return own


def with_streams(output, error, folder, *arguments):
    """Run a command in this process with other streams, as a shell starts it, and leave with its exit code."""
    os.environ["APD_RUNS"] = str(folder)
    recipes.recipe = lambda *_, **__: tiny()
    for number, kind, name in ((1, output, "stdout"), (2, error, "stderr")):
        if kind == "shut":
            os.close(number)
            setattr(sys, name, None)
        elif kind:
            os.dup2(opened(kind), number)
            setattr(sys, name, os.fdopen(number, "w", closefd=False))
    os._exit(main(list(arguments)))


@pytest.mark.parametrize(
    ("output", "error", "code", "said"),
    [
        *(("full", "", 1, [FULL]), ("full", "full", 1, []), ("unread", "", 141, []), ("unread", "unread", 141, [])),
        *(("shut", "", 0, []), ("shut", "shut", 0, []), ("gone", "gone", 1, [])),
    ],
)
def test_a_training_goes_on_to_its_end_whatever_becomes_of_its_streams(output, error, code, said, tmp_path):
    printed = tmp_path / "printed"
    assert exit_code(with_streams, output, error, tmp_path, "train", "--method", "student", output=printed) == code
    (record,) = tmp_path.rglob("record.json")
    assert "digest" in read_record(record).content
    assert [line for line in printed.read_text().splitlines() if "warning: the student: " not in line] == said


@pytest.mark.parametrize("command", [["--help"], ["recipes"], ["train", "--help"], ["trian"]])
def test_a_command_ends_with_the_code_of_what_went_wrong(command, tmp_path):
    for output, code in {"full": 1, "unread": 141, "shut": 0}.items():
        printed, mistaken = tmp_path / output, command == ["trian"]
        assert exit_code(with_streams, output, "", tmp_path, *command, output=printed) == (2 if mistaken else code)
        said = printed.read_text().splitlines()
        assert len(said) == 1 if mistaken else said == [FULL] * (output == "full")


def write_with_closed_streams(path):
    os.close(1)
    os.close(2)

    @printing_safely
    def command():
        with path.open("w") as file:
            os.write(1, b"lost")
            os.write(2, b"lost")
            return int(file.fileno() <= 2)

    os._exit(command())


def test_a_file_never_gets_the_number_of_a_closed_stream(tmp_path):
    assert exit_code(write_with_closed_streams, tmp_path / "file", output=tmp_path / "printed") == 0
    assert (tmp_path / "file").read_text() == ""


@pytest.mark.parametrize("name", STEERING)
def test_a_name_that_could_steer_a_terminal_is_refused_in_data_and_escaped_in_what_is_printed(name, capsys):
    for spec in (lambda: InstanceSpec("set", (name,)), lambda: DatasetSpec("set", (name,), ((0, 0, 0),))):
        refused(spec, ValueError, names=("expected a text without control characters",))
    refused(lambda: DatasetSpec(name, ("a",), ((0, 0, 0),)), ValueError)
    printing_safely(lambda: print(f"class {name}") or print(f"warning: {name}", file=sys.stderr))()
    for text in capsys.readouterr():
        assert all(c.isprintable() or c in "\n\t" for c in text)


def test_a_terminal_that_is_closed_stops_a_run_unless_nohup_began_it():
    seen = []
    for handler in (signal.SIG_IGN, signal.SIG_DFL):  # nohup's, and the usual one
        before = signal.signal(signal.SIGHUP, handler)
        with StopRequest(notice=False) as stop:
            signal.raise_signal(signal.SIGHUP)
            seen.append(stop.requested)
        signal.signal(signal.SIGHUP, before)
    assert seen == [False, True]


def test_names_in_any_script_are_kept(capsys):
    spec = DatasetSpec("Straße", ("می‌روم", "道路 🚗"), ((0, 0, 0), (1, 1, 1)))
    printing_safely(lambda: print(*spec.class_names))()
    assert capsys.readouterr().out == "می‌روم 道路 🚗\n"
