"""Whatever is given to the command line, and whatever a library raises in it, ends in one line and an exit code."""

import json
import pickle
import zipfile
import zlib
from pathlib import Path

import PIL
import pytest
import torch
import yaml
from bad_input import LONGEST, refused
from miniatures import write_folder
from PIL import Image
from safetensors import SafetensorError

from apd.cli.app import main
from apd.models.pretrained import read_tensors
from apd.training.exit_codes import exit_code_of

DIGITS, LONG, ANSI = "9" * 5000, "x" * 5000, "a\x1b[31m\n"
SIZES = ("data.height", "data.crop-width", "data.long-side", "data.train-images", "data.world", "network.head-width")
SIZES += ("training.iterations", "training.batch-size", "training.evaluations", "training.accumulation", "seed")
NUMBERS = ("data.scale-max", "data.rotation", "data.flip", "training.learning-rate", "training.clip-norm")
NUMBERS += ("training.power", "training.weight-decay", "training.ema-decay", "inference.stride", "inference.scales")
TEXTS = ("name", "network.backbone", "network.weights-file", "teacher.weights-file", "data.folder", "precision")
DETECTION = ("data.height", "network.width", "network.proposals", "network.smallest-anchor", "data.least-pixels")
FIELDS = {f"--{name}": (str(10**30), DIGITS) for name in SIZES} | {"--workers": ("-1", str(10**9), DIGITS)}
FIELDS |= {f"--{name}": ("nan", "1e308", "1e400", "-inf") for name in NUMBERS}
FIELDS |= {f"--{name}": (LONG, ANSI) for name in TEXTS} | {f"--{LONG}": ("1",), "--inference.window": (f"{10**9} 64",)}
COMMANDS = [["train", option, *value.split(" ")] for option, values in FIELDS.items() for value in values]
COMMANDS += [["train", "--size", "scenes_detection", f"--{name}", str(10**10)] for name in DETECTION]
COMMANDS += [["cost", "--batch", batch] for batch in (str(10**9), DIGITS, "x", "0")] + [["cost", "--size", LONG]]
COMMANDS += [[name, text] for name in ("train", "recipes", "check", "evaluate", "campaign") for text in (LONG, ANSI)]
COMMANDS += [[LONG], [ANSI], ["replay", LONG], ["export", LONG, "--to", ANSI], ["predict", LONG, "a\0b"], ["campaign"]]
COMMANDS += [["campaign", "scenes-tiny", option, DIGITS] for option in ("--workers", "--processes", "--minutes")]
pytestmark = pytest.mark.usefixtures("runs")


def line_of(code: int | None, capsys) -> str:
    """What a command said on standard error: one line of bounded length, with the exit code of a mistake."""
    (line,) = capsys.readouterr().err.splitlines()
    assert code in (1, 2)
    assert len(line) <= LONGEST + 10
    assert line.isprintable()
    return line


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: ascii(" ".join(command))[:60])
def test_a_command_that_means_nothing_is_refused_in_one_line(command, capsys):
    line_of(main(command), capsys)


@pytest.mark.parametrize("name", ["RANK", "WORLD_SIZE"])
def test_a_number_of_torchrun_that_is_none_is_named(name, monkeypatch, capsys):
    monkeypatch.setenv("WORLD_SIZE", "2")
    for value in ("x", "-1", DIGITS):
        monkeypatch.setenv(name, value)
        assert f"{name} = " in line_of(main(["recipes"]), capsys)


RAISED = [
    *(kind("a\nb\x1b" + LONG) for kind in (yaml.YAMLError, yaml.MarkedYAMLError, yaml.scanner.ScannerError)),
    *(kind("damaged") for kind in (PIL.UnidentifiedImageError, Image.DecompressionBombError, SyntaxError)),
    *(kind("damaged") for kind in (SafetensorError, pickle.UnpicklingError, zipfile.BadZipFile, zlib.error, EOFError)),
    *(kind("") for kind in (MemoryError, RecursionError, OverflowError, ValueError, RuntimeError)),
    *(kind(5, "no", "a\n") for kind in (OSError, FileNotFoundError, PermissionError, IsADirectoryError, TimeoutError)),
    *(json.JSONDecodeError("a\nb", "{}", 1), UnicodeDecodeError("utf-8", b"\xff", 0, 1, "no"), OSError(36, "no", LONG)),
    torch.OutOfMemoryError("CUDA out of memory"),
]
# what reads, and the command that calls it
READERS = {"yaml.scanner.Scanner.check_token": "check", "json.JSONDecoder.decode": "replay", "PIL.Image.open": "check"}
RECORD = sorted(Path(__file__).parents[2].glob("book/results/camvid-small/*.json"))[0]


@pytest.mark.parametrize("error", RAISED, ids=lambda error: type(error).__name__)
def test_whatever_a_library_raises_in_a_reader_is_told_in_one_line(error, monkeypatch, tmp_path, capsys):
    def broken(*_, **__):
        raise error

    folder = write_folder(tmp_path / "field", "images/train/a.png masks/train/a.png images/val/b.png masks/val/b.png")
    for reader, command in READERS.items():
        with monkeypatch.context() as patch:
            patch.setattr(reader, broken)
            line_of(main([command, str(RECORD if command == "replay" else folder)]), capsys)
    torch.save({}, tmp_path / "a.pth")
    (tmp_path / "b.safetensors").write_bytes(b"content")
    for reader, name in {"torch.load": "a.pth", "apd.models.pretrained.load": "b.safetensors"}.items():
        monkeypatch.setattr(reader, broken)
        refused(lambda: read_tensors(tmp_path / name), RuntimeError)  # noqa: B023
    assert line_of(exit_code_of(broken, "apd"), capsys).startswith("apd: ")
