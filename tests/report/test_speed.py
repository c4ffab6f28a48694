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
    assert curves.against_the_reference([found]).html.count("<tr") == 3

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


def test_the_committed_measurement_is_compared_and_shown_with_its_medians():
    (measurement,) = curves.read_measurements()
    median = curves.three_digits(curves.rows_of(measurement, "camvid")["CWD"]["milliseconds"][1])
    assert f"CWD {median}" in curves.milliseconds_by_loss(measurement, "camvid").description
    assert f">{median}<" in curves.milliseconds_by_loss(measurement, "camvid").html
    bar = r'<path d="M (\S+) \S+ \nL (\S+) [^>]*fill: #8c7a5b'
    ends = re.findall(bar, curves.milliseconds_by_loss(measurement, "camvid").html)
    assert len(ends) == 10
    assert all(float(right) - float(left) > 5 for left, right in ends)
    assert median in curves.speed_table(measurement, "camvid").description
    for row in measurement["rows"]:
        slow = row["loss"].endswith(curves.CLASS_BY_CLASS)
        row["milliseconds"], row["peak_bytes"] = ([40, 50, 60], 400) if slow else ([4, 5, 6], 100)
    rows = curves.against_the_reference([measurement]).description.splitlines()[2:]
    assert [row.split()[-3:] for row in rows] == [["10.0", "25", "%"]] * 6


def test_the_cost_of_a_detectors_step_is_that_of_the_file():
    (measurement,) = curves.read_measurements(of="detection-speed")
    for row in measurement["rows"]:
        table = " ".join(curves.step_cost_table(measurement, row).description.split())
        assert f"baseline {row['student'][1]:.0f}" in table
        seconds, share = (row[what]["roi_apd"][1] for what in ("steps", "added"))
        assert re.search(rf"APD of boxes {seconds:.0f} .*? {100 * share:.0f} %", table)


@pytest.mark.parametrize(
    ("text", "message"), [("{", "Expecting"), ("[]", "attribute"), ('{"git": {}, "rows": []}', "device, shapes, sta")]
)
def test_a_file_that_holds_no_measurements_is_refused_with_its_name_and_what_to_do(tmp_path, text, message):
    (tmp_path / "cpu.json").write_text(text)
    said = rf"cpu\.json holds no measurements: .*{message}.*run python -m book\.figures\.speed"
    with pytest.raises(RecordError, match=said):
        curves.read_measurements(tmp_path)


def test_without_measurements_it_is_said_and_numbers_have_three_digits():
    assert [curves.three_digits(value) for value in (1234.5, 100.0, 64.52, 0.66312)] == ["1234", "100", "64.5", "0.663"]
    assert "0 records yet" in str(curves.against_the_reference([]))
