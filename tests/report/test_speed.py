"""The tables of cost show what the files of measurements say, and a measured run has everything that they read."""

import re
import sys

import pytest
import torch
from small_experiments import tiny

from apd.cost.measure import LossShape
from apd.report.figures import curves
from apd.training.record import RecordError
from book.figures import speed


def measured(monkeypatch, folder):
    """What the command writes, each entry timed for a moment."""
    arguments = ["--seconds", "0.001", "--to", str(folder), "--parts", "losses", "published"]
    monkeypatch.setattr(sys, "argv", ["speed", *arguments])
    speed.main()
    (found,) = curves.read_measurements(folder)
    return found


def test_a_measurement_has_what_the_chapter_reads_and_is_kept_when_a_part_fails(tmp_path, monkeypatch):
    threads = torch.get_num_threads()
    shape = LossShape(batch=2, channels=4, grid=3, classes=5, labels=9)
    monkeypatch.setattr(speed, "LOSS_SHAPES", {"camvid": shape})
    monkeypatch.setattr(speed, "PUBLISHED", {"camvid": "tiny"})
    monkeypatch.setattr(speed, "recipe", lambda _size: tiny("apd"))
    found = measured(monkeypatch, tmp_path)
    names = set(curves.rows_of(found, "camvid"))
    assert {"APD", "APD, class by class", "APD, no heads", "pixel KD", "CIRKD", "MGD"} <= names
    assert {name for name in names if name.startswith("APD")} == set(curves.rows_of(found, "camvid", "bf16"))
    assert found["git"].keys() == {"commit", "clean"}
    assert [(row["recipe"], row["dtype"]) for row in found["published"]] == [("tiny", "fp32"), ("tiny", "bf16")]
    assert all(row["share_of_time"] > 0 for row in found["published"])

    def failing(device, *, seconds):
        raise OSError("no memory left")
        yield

    monkeypatch.setattr(speed, "published", failing)
    with pytest.raises(OSError, match="no memory left"):
        measured(monkeypatch, tmp_path / "again")
    (kept,) = curves.read_measurements(tmp_path / "again")
    assert kept["rows"]
    assert "published" not in kept
    torch.set_num_threads(threads)


def test_the_committed_measurement_is_shown_with_its_medians_and_numbers_have_three_digits():
    assert [curves.three_digits(value) for value in (1234.5, 100.0, 64.52, 0.66312)] == ["1234", "100", "64.5", "0.663"]
    (measurement,) = curves.read_measurements()
    median = curves.three_digits(curves.rows_of(measurement, "camvid")["CWD"]["milliseconds"][1])
    assert median in curves.speed_table(measurement, "camvid").description


@pytest.mark.parametrize("log", [False, True])
def test_bars_are_as_long_as_their_numbers_and_share_one_axis(log):
    columns = {"CPU": {"baseline": 1.0, "+ APD": 100.0}, "GPU": {"+ APD": 10.0}, "none": {}}
    drawn = curves.bars(columns, "time of a step", text=curves.three_digits, log=log)
    assert drawn.description == "time of a step. CPU: baseline 1, + APD 100. GPU: + APD 10"
    found = re.findall(r'<path d="M (\S+) \S+ \nL (\S+) [^>]*fill: (#7d8796|#0e9384)', drawn.html)
    assert [colour for *_, colour in found] == ["#7d8796", "#0e9384", "#0e9384"] * 2, "side by side, and for a phone"
    lengths = [float(right) - float(left) for left, right, _ in found[:3]]
    shares = [length / lengths[1] for length in lengths]
    # from half of the least number, in decades
    assert shares == pytest.approx([0.1308, 1, 0.5654] if log else [0.01, 1, 0.1], rel=0.01)
    assert "0 measurements yet" in str(curves.bars({"CPU": {}}, "time"))


@pytest.mark.parametrize(
    ("text", "message"), [("{", "Expecting"), ("[]", "attribute"), ('{"git": {}, "rows": []}', "device, shapes, sta")]
)
def test_a_file_that_holds_no_measurements_is_refused_with_its_name_and_what_to_do(tmp_path, text, message):
    (tmp_path / "cpu.json").write_text(text)
    said = rf"cpu\.json holds no measurements: .*{message}.*run python -m book\.figures\.speed"
    with pytest.raises(RecordError, match=said):
        curves.read_measurements(tmp_path)
