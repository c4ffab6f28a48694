"""The chapter on cost says what the file of measurements says, and a measured run has everything the chapter reads."""

import json
import sys
from dataclasses import replace

import pytest
import torch
from small_experiments import DATA, tiny

from apd.cost import switches as switch_cost
from apd.cost.loss import LossShape
from apd.report.figures import speed
from apd.training.record import RecordError
from tests import measure_speed

EXPERIMENTS = {"tiny": tiny("apd"), "small": replace(tiny("apd"), data=replace(DATA, name="camvid"))}
SMALL = {"camvid": LossShape(batch=1, channels=4, grid=3, classes=5, labels=9)}


def settings(experiment, device):
    """As it is, with one switch the other way, and with one that cannot be had."""
    yield "as it is", experiment
    for switch in ("fused", "compile"):
        yield f"{switch} = True", replace(experiment, training=replace(experiment.training, **{switch: True}))


def no_compiler(function):
    raise RuntimeError("compiler: not found in /home/somebody")


@pytest.fixture(scope="module")
def measurement(tmp_path_factory):
    """A real measurement, of the smallest maps and of experiments of six steps."""
    folder = tmp_path_factory.mktemp("speed")
    threads = torch.get_num_threads()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(measure_speed, "LOSS_SHAPES", SMALL)
        patch.setattr(measure_speed, "recipe", EXPERIMENTS.__getitem__)
        patch.setattr(measure_speed, "WORKERS", (0,))
        patch.delenv("APD_DATA", raising=False)
        patch.setattr(switch_cost, "other_settings", settings)
        patch.setattr(torch, "compile", no_compiler)
        patch.setattr(sys, "argv", ["measure_speed", "--repeats", "2", "--to", str(folder)])
        measure_speed.main()
    torch.set_num_threads(threads)
    (found,) = speed.read_measurements(folder)
    return found


def test_every_loss_is_measured_and_apd_in_half_precision_too(measurement):
    names = set(speed.rows_of(measurement, "camvid"))
    assert {"APD", "APD, class by class", "APD, no heads", "pixel KD", "CIRKD", "MGD"} <= names
    assert {name for name in names if name.startswith("APD")} == set(speed.rows_of(measurement, "camvid", "bf16"))
    assert measurement["git"].keys() == {"commit", "clean"}


def test_the_sentence_compares_the_measured_medians_and_peaks(measurement):
    changed = json.loads(json.dumps(measurement))
    for row in changed["rows"]:
        slow = row["loss"].endswith(speed.CLASS_BY_CLASS)
        row["milliseconds"], row["peak_bytes"] = ([40, 50, 60], 400) if slow else ([4, 5, 6], 100)
    told = str(speed.against_the_reference([changed]))
    assert told.count("**10.0 times** as fast as class by class, at **25 %** of its memory") == 2


def test_figure_and_table_show_each_loss_with_its_median(measurement):
    row = speed.rows_of(measurement, "camvid")["CWD"]
    median = speed.three_digits(row["milliseconds"][1])
    assert f"CWD {median}" in speed.milliseconds_by_loss(measurement, "camvid").description
    assert median in speed.speed_table(measurement, "camvid").description


def test_switches_are_measured_for_every_recipe_and_one_that_cannot_be_had_says_why_without_a_path(measurement):
    found = {(row["recipe"], row["setting"]): row for row in measurement["switches"]}
    assert set(found) == {(r, s) for r in EXPERIMENTS for s in ("as it is", "fused = True")} | {
        ("tiny", "compile = True")
    }, "the larger networks are compiled when that is asked for"
    assert found["tiny", "compile = True"]["milliseconds"] is None
    assert found["tiny", "compile = True"]["reason"] == "RuntimeError"
    assert "somebody" not in json.dumps(measurement)
    steps = measurement["steps"]["recipes"]["tiny"]
    assert (steps["batch"], steps["crop"], steps["methods"], steps["precision"]) == (2, [32, 32], ["apd"], "fp32")


def test_the_table_of_switches_shows_the_measured_median_and_its_ratio(measurement):
    changed = json.loads(json.dumps(measurement))
    for row in changed["switches"]:
        if row["milliseconds"]:
            row["milliseconds"] = [1900, 2000, 2100] if row["setting"] == "as it is" else [900, 1000, 1100]
    lines = speed.switches_table(changed).description.splitlines()
    assert [line.split()[0] for line in lines[2:]] == ["as", "fused", "compile"]
    assert lines[2].count("2 s (1.9 to 2.1), 1.00 times") == 2
    assert lines[3].count("1 s (0.9 to 1.1), 0.50 times") == 2
    assert lines[4].count("not here (RuntimeError)") == 1
    assert lines[4].count("–") == 1


def test_loaders_are_measured_where_there_are_data_and_said_to_be_missing_elsewhere(measurement):
    here, gone = measurement["feeding"]
    assert (here["recipe"], here["workers"], gone) == (
        "tiny",
        0,
        {"recipe": "small", "workers": None, "reason": "its data were not on this machine"},
    )
    changed = json.loads(json.dumps(measurement))
    changed["feeding"][0] |= {"loader": 512.34, "training": 40.0, "together": 30.0}
    told = speed.feeding_table(changed).description
    assert all(word in told for word in ("tiny, 0 workers", "512", "75 %", "not measured: its data were not on this"))


def test_a_measurement_without_steps_says_what_makes_them(measurement):
    older = {key: value for key, value in measurement.items() if key not in ("steps", "switches", "feeding")}
    for drawn in (speed.switches_table(older), speed.feeding_table(older)):
        assert "not been measured yet: python -m tests.measure_speed does it." in drawn.description


def test_what_was_measured_before_a_part_fails_is_kept(measurement, tmp_path, monkeypatch):
    def failing(device, *, compiled):
        raise OSError("no memory left")
        yield

    threads = torch.get_num_threads()
    monkeypatch.setattr(measure_speed, "LOSS_SHAPES", SMALL)
    monkeypatch.setattr(measure_speed, "measured", lambda *_, **__: iter(measurement["rows"]))
    monkeypatch.setattr(measure_speed, "switches", failing)
    monkeypatch.setattr(sys, "argv", ["measure_speed", "--to", str(tmp_path)])
    with pytest.raises(OSError, match="no memory left"):
        measure_speed.main()
    assert torch.get_num_threads() == threads
    (kept,) = speed.read_measurements(tmp_path)
    assert kept["rows"] == measurement["rows"]
    assert "switches" not in kept


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("{", "cannot be read as JSON"),
        ("[]", "git, versions, device, started, shapes, floor, rows missing"),
        ('{"git": {}, "rows": []}', "versions, device, started, shapes, floor missing"),
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
