"""The chapter on cost says what the file of measurements says, and a measured run has everything the chapter reads."""

import sys

import pytest
import torch
from small_experiments import tiny

from apd.cost.measure import LossShape
from apd.report.figures import speed
from apd.training.record import RecordError
from tests import measure_speed

SMALL = {"camvid": LossShape(batch=2, channels=4, grid=3, classes=5, labels=9)}


@pytest.fixture
def small(monkeypatch):
    """The smallest maps, and a recipe of six steps in the place of the paper's."""
    threads = torch.get_num_threads()
    monkeypatch.setattr(measure_speed, "LOSS_SHAPES", SMALL)
    monkeypatch.setattr(measure_speed, "PUBLISHED", {"camvid": "tiny"})
    monkeypatch.setattr(measure_speed, "recipe", lambda _size: tiny("apd"))
    yield
    torch.set_num_threads(threads)


def measured(monkeypatch, folder, *arguments):
    """What the command writes, each entry timed for a moment."""
    monkeypatch.setattr(sys, "argv", ["measure_speed", "--seconds", "0.001", "--to", str(folder), *arguments])
    measure_speed.main()
    (found,) = speed.read_measurements(folder)
    return found


@pytest.fixture
def measurement():
    """The committed measurement."""
    return speed.read_measurements()[0]


def test_a_measurement_has_what_the_chapter_reads(small, tmp_path, monkeypatch):
    found = measured(monkeypatch, tmp_path, "--parts", "losses", "published")
    names = set(speed.rows_of(found, "camvid"))
    assert {"APD", "APD, class by class", "APD, no heads", "pixel KD", "CIRKD", "MGD"} <= names
    assert {name for name in names if name.startswith("APD")} == set(speed.rows_of(found, "camvid", "bf16"))
    assert found["git"].keys() == {"commit", "clean"}
    assert [(row["recipe"], row["dtype"]) for row in found["published"]] == [("tiny", "fp32"), ("tiny", "bf16")]
    assert all(row["share_of_time"] > 0 for row in found["published"])
    told = str(speed.against_the_reference([found]))
    assert told.count("as fast as class by class") == 2
    assert "floor" not in told
    for drawn in (speed.switches_table(found), speed.feeding_table(found)):
        assert drawn.description.endswith("not been measured.")


def test_the_sentence_compares_the_measured_medians_and_peaks(measurement):
    for row in measurement["rows"]:
        slow = row["loss"].endswith(speed.CLASS_BY_CLASS)
        row["milliseconds"], row["peak_bytes"] = ([40, 50, 60], 400) if slow else ([4, 5, 6], 100)
    told = str(speed.against_the_reference([measurement]))
    assert told.count("**10.0 times** as fast as class by class, at **25 %** of its memory") == 6


def test_figure_and_table_show_each_loss_with_its_median(measurement):
    row = speed.rows_of(measurement, "camvid")["CWD"]
    median = speed.three_digits(row["milliseconds"][1])
    assert f"CWD {median}" in speed.milliseconds_by_loss(measurement, "camvid").description
    assert median in speed.speed_table(measurement, "camvid").description


def test_the_table_of_switches_shows_the_measured_median_and_its_ratio(measurement):
    switched = {"as it is": [1900, 2000, 2100], "fused = True": [900, 1000, 1100], "compile = True": None}
    measurement["switches"] = [
        {"recipe": recipe, "setting": setting, "milliseconds": milliseconds, "reason": "RuntimeError"}
        for recipe in ("tiny", "small")
        for setting, milliseconds in switched.items()
        if milliseconds or recipe == "tiny"
    ]
    lines = speed.switches_table(measurement).description.splitlines()
    assert [line.split()[0] for line in lines[2:]] == ["as", "fused", "compile"]
    assert lines[2].count("2 s (1.9 to 2.1), 1.00 times") == 2
    assert lines[3].count("1 s (0.9 to 1.1), 0.50 times") == 2
    assert lines[4].count("not here (RuntimeError)") == 1
    assert lines[4].count("–") == 1


def test_the_table_of_loaders_shows_rates_and_which_data_were_missing(measurement):
    rates = {"loader": 512.34, "training": 40.0, "together": 30.0}
    gone = {"recipe": "small", "workers": None, "reason": "its data were not on this machine"}
    measurement["feeding"] = [{"recipe": "tiny", "workers": 0} | rates, gone]
    told = speed.feeding_table(measurement).description
    assert all(word in told for word in ("tiny, 0 workers", "512", "75 %", "not measured: its data were not on this"))


def test_what_was_measured_before_a_part_fails_is_kept(small, tmp_path, monkeypatch):
    def failing(device, *, seconds):
        raise OSError("no memory left")
        yield

    monkeypatch.setattr(measure_speed, "published", failing)
    with pytest.raises(OSError, match="no memory left"):
        measured(monkeypatch, tmp_path, "--parts", "losses", "published")
    (kept,) = speed.read_measurements(tmp_path)
    assert kept["rows"]
    assert "published" not in kept


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("{", "cannot be read as JSON"),
        ("[]", "git, versions, device, started, shapes, rows missing"),
        ('{"git": {}, "rows": []}', "versions, device, started, shapes missing"),
    ],
)
def test_a_file_that_holds_no_measurements_is_refused_with_its_name_and_what_to_do(tmp_path, text, told):
    (tmp_path / "cpu.json").write_text(text)
    with pytest.raises(RecordError, match=rf"cpu\.json: {told}.*Delete it and run python -m tests\.measure_speed"):
        speed.read_measurements(tmp_path)


def test_numbers_have_three_digits_and_no_exponent():
    assert [speed.three_digits(value) for value in (1234.5, 100.0, 64.52, 0.66312)] == ["1234", "100", "64.5", "0.663"]


def test_without_measurements_it_is_said_how_to_make_them(tmp_path):
    assert speed.read_measurements(tmp_path) == []
    assert "python -m tests.measure_speed" in str(speed.against_the_reference([]))
