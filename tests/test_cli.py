"""The command `apd`: what it prints, what it writes, and what it says to a command line that it cannot understand."""

import contextlib
import dataclasses
import json
import os
import runpy
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from small_experiments import exit_code, tiny

from apd import cli
from apd.evaluate.cost import Latency
from apd.evaluate.loss_cost import LossShape
from apd.study.campaign import CAMPAIGNS
from apd.study.experiment import Experiment
from apd.study.fingerprint import from_dict, to_dict
from apd.study.folders import run_folder
from apd.study.recipes import all_recipes
from apd.study.record import read_record
from apd.study.train import train

COMMANDS = ("train", "evaluate", "predict", "campaign", "cost", "recipes")


@pytest.fixture
def runs(tmp_path, monkeypatch):
    """A folder for runs, and the tiny experiments of these tests in the place of the recipes."""
    monkeypatch.setenv("APD_RUNS", str(tmp_path / "runs"))
    monkeypatch.setattr("apd.study.recipes.recipe", lambda _size="tiny", method="apd", **_: tiny(method))
    return tmp_path / "runs"


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The folder of a finished run; tests must not change it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("APD_RUNS", str(tmp_path_factory.mktemp("runs")))
        train(tiny())
        return run_folder(tiny())


def leave(arguments):
    """The exit code of a command, however it is given."""
    try:
        return cli.main(arguments)
    except SystemExit as left:
        return left.code


def test_without_a_command_the_commands_are_told(capsys):
    assert (leave([]), leave(["--help"]), leave(["-h"])) == (2, 0, 0)
    once = capsys.readouterr().out.split("usage: apd COMMAND")[1]
    assert all(f"  {command} " in once for command in COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_tells_its_options(command, capsys):
    assert leave([command, "--help"]) == 0
    captured = capsys.readouterr()
    assert captured.out.startswith(f"usage: apd {command}")
    assert captured.err == ""


def test_the_help_of_train_shows_every_field_of_an_experiment_with_its_type_or_choices(capsys):
    assert leave(["train", "--help"]) == 0
    out = capsys.readouterr().out

    def flags(config, prefix=""):
        for field in dataclasses.fields(config):
            value = getattr(config, field.name)
            name = f"{prefix}{field.name}".replace("_", "-")
            if dataclasses.is_dataclass(value):
                yield from flags(value, f"{name}.")
            elif isinstance(value, tuple) and all(map(dataclasses.is_dataclass, value)):
                for place, entry in enumerate(value):
                    yield from flags(entry, f"{name}.{place}.")
            else:
                yield f"--{name}," if isinstance(value, bool) else f"--{name} "  # a bool has a --no- form beside it

    expected = list(flags(tiny("apd")))
    assert len(expected) > 60
    assert [flag for flag in expected if flag not in out] == []
    assert "--precision {auto,fp32,bf16}" in out
    assert "--training.learning-rate FLOAT" in out
    assert "--training.clip-norm {None}|FLOAT" in out


def test_train_prints_the_scores_and_where_the_record_lies(runs, capsys):
    assert leave(["train", "--method", "student"]) == 0
    captured = capsys.readouterr()
    summary, path = captured.out.splitlines()
    record = read_record(Path(path))
    assert summary.startswith(f"tiny-student-seed0: mIoU {record.scores.miou:.4f}, mAcc {record.scores.macc:.4f}")
    assert Path(path).is_relative_to(runs)
    assert captured.err == "", "the bar is for terminals"
    assert leave(["train", "--method=student"]) == 0
    assert capsys.readouterr().out == captured.out, "a finished run is found again"


def test_train_tells_the_teachers_score_and_the_agreement(runs, capsys):
    assert leave(["train"]) == 0
    *_, summary, path = capsys.readouterr().out.splitlines()
    record = read_record(Path(path))
    assert record.experiment.distillers == tiny("apd").distillers
    assert f"teacher mIoU {record.teacher_scores.miou:.4f}, agreement {record.agreement:.4f}" in summary


def test_any_field_can_be_changed_and_the_label_follows_the_seed(runs, capsys):
    changes = ["--seed", "3", "--training.clip-norm", "1", "--data.world=2", "--training.batch_size", "3"]
    assert leave(["train", "--method", "student", *changes]) == 0
    record = read_record(Path(capsys.readouterr().out.splitlines()[-1]))
    start = tiny()
    assert record.experiment == replace(
        start,
        name="tiny-student-seed3",
        seed=3,
        data=replace(start.data, world=2),
        training=replace(start.training, clip_norm=1.0, batch_size=3),
    )


def test_a_label_can_be_given(runs, capsys):
    assert leave(["train", "--method", "student", "--name", "mine"]) == 0
    assert Path(capsys.readouterr().out.splitlines()[-1]).parent.name.startswith("mine-")


def test_evaluate_prints_what_the_record_says_and_scores_other_splits(finished, capsys):
    record = read_record(finished / "record.json")
    assert leave(["evaluate", str(finished)]) == 0
    *classes, total = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in classes] == record.class_names
    for line, iou in zip(classes, record.scores.iou, strict=True):
        assert f"IoU {iou:.4f}" in line
    assert total.startswith(f"mIoU {record.scores.miou:.4f} over {record.scores.classes_counted} classes")
    assert total.endswith("3 images of val")
    assert leave(["evaluate", str(finished), "--split", "train"]) == 0
    assert capsys.readouterr().out.endswith("6 images of train\n")


def test_predict_writes_two_files_for_each_picture_and_prints_them(finished, tmp_path, capsys):
    for name, size in (("a.png", (50, 40)), ("b.jpg", (33, 90))):
        Image.fromarray(np.zeros((*size, 3), dtype=np.uint8)).save(tmp_path / name)
    to = tmp_path / "out"
    pictures = [str(tmp_path / "a.png"), str(tmp_path / "b.jpg")]
    assert leave(["predict", str(finished), *pictures, "--to", str(to)]) == 0
    names = ["a-labels.png", "a-overlay.png", "b-labels.png", "b-overlay.png"]
    assert capsys.readouterr().out.splitlines() == [str(to / name) for name in names]
    assert sorted(path.name for path in to.iterdir()) == names
    with Image.open(to / "b-labels.png") as image:
        assert image.size == (90, 33)
        assert np.asarray(image).max() < 10


def test_campaign_trains_what_lacks_a_record_and_prints_every_score(runs, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(CAMPAIGNS, "two", lambda: (tiny(seed=seed) for seed in range(2)))
    records = str(tmp_path / "records")
    assert leave(["campaign", "two", "--records", records, "--only", "seed1"]) == 0
    assert leave(["campaign", "two", "--records", records]) == 0
    out = capsys.readouterr().out
    assert "two: 2 experiments, 1 have a record" in out
    assert [line.split(":")[0] for line in out.splitlines()[-2:]] == ["student-seed0", "student-seed1"]


def test_cost_tells_both_networks(runs, capsys):
    assert leave(["cost", "--batch", "2", "--device", "cpu"]) == 0
    student, teacher = capsys.readouterr().out.splitlines()
    assert student.startswith("student: test_efficientnet psp, 2x32x48 on cpu: ")
    assert teacher.startswith("teacher: test_efficientnet psp, 2x32x48 on cpu: ")


def test_cost_of_the_loss_has_a_line_for_each_shape_without_and_with_heads(monkeypatch, capsys):
    tiny_shape = {"tiny": LossShape(batch=1, channels=4, grid=3, classes=5, labels=9)}
    monkeypatch.setattr("apd.evaluate.loss_cost.method_costs.__defaults__", ("cpu", tiny_shape))
    assert leave(["cost", "--loss", "--device", "cpu"]) == 0
    bare, with_heads = capsys.readouterr().out.splitlines()
    assert bare.startswith("tiny, no heads: ")
    assert with_heads.startswith("tiny, heads 4 wide: ")
    assert "floor: " in bare


def test_cost_of_the_switches_is_a_table_with_the_recipe_first(runs, monkeypatch, capsys):
    monkeypatch.setattr("apd.study.switch_cost._step_latency", lambda *_: Latency(90.0, 100.0, 110.0))
    assert leave(["cost", "--switches", "--device", "cpu"]) == 0
    head, first, *others = capsys.readouterr().out.splitlines()
    assert head == "apd-seed0: one optimiser step, batch of 2, on cpu"
    assert first.startswith("as it is ")
    assert [line.split()[0] for line in others] == ["precision", "channels_last", "fused", "compile"]


def test_a_worker_of_a_campaign_runs_its_shard(runs, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(CAMPAIGNS, "two", lambda: (tiny(seed=seed) for seed in range(2)))
    assert leave(["campaign", "two", "--records", str(tmp_path / "records"), "--shard", "2/2"]) == 0
    assert [line.split(":")[0] for line in capsys.readouterr().out.splitlines()[-1:]] == ["student-seed1"]


def test_recipes_are_listed_and_shown_as_they_are_run(capsys):
    assert leave(["recipes"]) == 0
    listed = {line.split()[0] for line in capsys.readouterr().out.splitlines()}
    recipes = dict(all_recipes())
    assert listed == set(recipes)
    assert leave(["recipes", "small-apd"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown == to_dict(recipes["small-apd"])
    assert isinstance(from_dict(shown), Experiment)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["trian"], ["there is no command 'trian'", "did you mean 'train'?"]),
        (["recipes", "tny-apd"], ["there is no recipe 'tny-apd'", "did you mean 'tiny-apd'?"]),
        (["campaign", "scenes"], ["there is no campaign 'scenes'", "did you mean 'scenes-tiny'?"]),
        (["train", "--size", "smal"], ["'smal'", "did you mean 'small'?"]),
        (["train", "--method=adp"], ["'adp'", "did you mean 'apd'?"]),
        (["train", "--data.name", "camvd"], ["'camvd'", "did you mean 'camvid'?"]),
        (["train", "--training.lerning-rate", "1"], ["--training.lerning-rate", "--training.learning-rate FLOAT"]),
        (["train", "--training.learning-rate", "fast"], ["--training.learning-rate", "'fast'"]),
        (["train", "--seed", "1.5"], ["--seed", "'1.5'"]),
        (["train", "--training.batch-size", "1"], ["TrainingConfig.batch_size = 1", "at least 2"]),
        (["train", "--distillers.0.width", "None"], ["APDConfig.regularisation = 1.0", "width is None"]),
        (["evaluate"], ["Missing", "RUN"]),
        (["evaluate", "here", "--split", "tset"], ["'tset'", "did you mean 'test'?"]),
        (["predict", "here"], ["at least one picture"]),
        (["predict", "here", "x/a.png", "y/a.jpg"], ["two of the pictures have one name"]),
        (["cost", "--batch", "0"], ["--batch 0", "at least 1"]),
        (["campaign", "scenes-tiny", "--shard", "3/2"], ["shard = '3/2'", "such as 2/8"]),
    ],
)
def test_a_command_line_that_cannot_be_understood_is_told_with_what_is_nearest(arguments, told, capsys):
    assert leave(arguments) == 2
    captured = capsys.readouterr()
    text = " ".join(captured.err.replace("│", " ").split())  # tyro draws a box and wraps lines in it
    assert [part for part in told if part not in text] == []
    assert captured.out == ""


def campaign_on_a_bare_machine(runs):
    """As where only torch, torchvision, timm, safetensors, tqdm, numpy and pillow are installed."""
    extras = ("tyro", "matplotlib", "pandas", "seaborn", "papermill", "plotly", "sklearn", "jupyter_book", "nbformat")
    assert not set(extras) & set(sys.modules)
    sys.modules.update(dict.fromkeys(extras))  # None: importing it fails as if it were not installed
    os.environ["APD_RUNS"] = str(runs)
    import apd.study.recipes

    apd.study.recipes.recipe = lambda *_, method="student", **options: tiny(seed=options.get("seed", 0))
    sys.argv = ["campaign", "camvid-small", "--only", "student-seed0", "--records", str(runs / "records")]
    with contextlib.suppress(SystemExit):
        runpy.run_module("apd.study.campaign", run_name="__main__")
    os._exit(cli.main(["train"]))


def test_a_bare_machine_runs_campaigns_and_is_told_what_the_command_line_lacks(tmp_path):
    output = tmp_path / "output"
    assert exit_code(campaign_on_a_bare_machine, tmp_path, output=output) == 1
    (record,) = (tmp_path / "records").iterdir()
    assert read_record(record).experiment == replace(tiny(), name="student-seed0")
    *before, last = output.read_text().splitlines()
    assert before[-1].startswith("camvid-small: 1/1 student-seed0: mIoU ")
    assert last == (
        "apd: the command line needs tyro (pip install 'apd[cli]'); without it, "
        "`python -m apd.study.campaign NAME` runs campaigns"
    )


def list_recipes_for_a_reader_who_has_left():
    reading, writing = os.pipe()
    os.close(reading)
    os.dup2(writing, 1)
    sys.stdout = os.fdopen(1, "w")
    sys.exit(cli.main(["recipes"]))


def test_a_reader_that_leaves_early_is_no_error_to_show(tmp_path):
    assert exit_code(list_recipes_for_a_reader_who_has_left, output=tmp_path / "output") == 1
    assert (tmp_path / "output").read_text() == ""
