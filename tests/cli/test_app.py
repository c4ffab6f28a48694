"""The command `apd`: its commands and options, training, lists, and what is said to a mistyped command line."""

import contextlib
import json
import os
import re
import runpy
import sys
from dataclasses import replace
from pathlib import Path
from typing import get_args, get_type_hints

import pytest
import torch
from own_folders import leave
from small_experiments import exit_code, tiny

from apd.cli import app as cli
from apd.config.experiment import DataConfig, ExperimentError
from apd.config.identity import from_dict, to_dict
from apd.cost.measure import LossShape
from apd.evaluation.inference import scores
from apd.study.campaigns import CAMPAIGNS
from apd.study.recipes import all_recipes, recipe
from apd.training.record import read_record


def test_commands_and_their_options_are_listed(capsys):
    assert (leave(), leave("--help"), leave("-h")) == (2, 0, 0)
    once = capsys.readouterr().out.split("usage: apd COMMAND")[1]
    for command in cli.COMMANDS:
        assert f"  {command} " in once
        assert leave(command, "--help") == 0
        assert capsys.readouterr().out.startswith(f"usage: apd {command}")


def test_the_help_of_train_shows_every_field_of_an_experiment_with_its_type_or_choices(capsys):
    assert leave("train", "--help") == 0
    out = capsys.readouterr().out
    from pandas import json_normalize  # here: a bare machine, below, has none

    fields = to_dict(tiny("apd"))
    (distiller,) = fields.pop("distillers")
    expected = {*json_normalize(fields).columns, *(f"distillers.0.{name}" for name in distiller)}
    assert len(expected) > 60
    assert {name.replace("_", "-") for name in expected} <= set(re.findall(r"--([a-z0-9.-]+)", out))
    assert "--precision {auto,fp32,bf16}" in out
    assert "--training.learning-rate FLOAT" in out
    assert "--training.clip-norm {None}|FLOAT" in out


def test_train_prints_steps_scores_and_where_the_record_lies(runs, tiny_recipes, monkeypatch, capsys):
    monkeypatch.setattr("apd.training.run_log.LINE_SECONDS", 0.0)
    assert leave("train") == 0
    captured = capsys.readouterr()
    *lines, summary, path = captured.out.splitlines()
    record = read_record(Path(path))
    assert record.experiment.distillers == tiny("apd").distillers
    assert Path(path).is_relative_to(runs)
    assert summary.startswith(f"tiny-apd-seed0: mIoU {record.scores.miou:.4f}, mAcc {record.scores.macc:.4f}")
    assert f"teacher mIoU {record.teacher_scores.miou:.4f}, agreement {record.agreement:.4f}" in summary
    for name, steps in (("scenes-teacher", 4), ("tiny-apd-seed0", 6)):
        pattern = rf"{name}: step (\d) of {steps}, (?:loss \d+\.\d{{4}}, )?(?:mIoU 0.\d+ on val, )?\d\d:\d\d<"
        assert {*re.findall(pattern, "\n".join(lines))} == {str(step) for step in range(steps + 1)}
    for one in record.content["evaluations"]:
        value = scores(torch.tensor(one["confusion"])).miou
        assert re.search(rf"tiny-apd-seed0: step {one['step']} of 6, .*, mIoU {value:.4f} on val", "\n".join(lines))
    assert all(line.startswith("warning: the ") for line in captured.err.splitlines()), "no bar of progress"
    assert leave("train", "--method=apd") == 0
    assert capsys.readouterr().out.splitlines() == [summary, path], "a finished run is found again"


def test_any_field_can_be_changed_and_the_label_follows_the_seed_or_is_given(tiny_recipes, capsys):
    changes = ["--seed", "3", "--training.clip-norm", "1", "--data.world=2", "--training.batch_size", "3"]
    assert leave("train", "--method", "student", *changes) == 0
    record, start = read_record(Path(capsys.readouterr().out.splitlines()[-1])), tiny("student", seed=3)
    training, data = replace(start.training, clip_norm=1.0, batch_size=3), replace(start.data, world=2)
    assert record.experiment == replace(start, name="tiny-student-seed3", data=data, training=training)
    assert leave("train", "--method", "student", "--name", "mine") == 0
    assert Path(capsys.readouterr().out.splitlines()[-1]).parent.name.startswith("mine-")


@pytest.mark.parametrize(("name", "size", "method"), [("small-pixel_kd", "small", "pixel_kd"), ("full", "full", "apd")])
def test_a_recipe_can_be_trained_by_its_name(name, size, method, tiny_recipes, monkeypatch, capsys):
    asked, of_the_tests = [], "apd.study.recipes.recipe"
    monkeypatch.setattr(of_the_tests, lambda size, method, **_: asked.append((size, method)) or tiny(method))
    assert leave("train", name, "--dry-run", "--device", "cpu", "--training.warmup", "2") == 0
    assert asked == [(size, method)]
    assert f"{size}-{method}-seed0, fingerprint" in capsys.readouterr().out


def test_a_campaign_trains_what_has_no_record_and_prints_every_score(tiny_recipes, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(CAMPAIGNS, "two", lambda: (tiny(seed=seed) for seed in range(2)))
    command = ["campaign", "two", "--records", str(tmp_path / "records")]
    assert leave(*command, "--only", "seed1", "--workers", "0") == 0
    assert capsys.readouterr().out.splitlines()[-1].startswith("student-seed1:")
    assert leave(*command) == 0
    out = capsys.readouterr().out
    assert "two: 2 experiments, 1 have a record" in out
    assert [line.split(":")[0] for line in out.splitlines()[-2:]] == ["student-seed0", "student-seed1"]


def test_cost_shows_both_networks_or_the_loss_without_and_with_heads(tiny_recipes, monkeypatch, capsys):
    tiny_shape = {"tiny": LossShape(batch=1, channels=4, grid=3, classes=5, labels=9)}
    monkeypatch.setattr("apd.cost.measure.LOSS_SHAPES", tiny_shape)
    network = "test_efficientnet psp, 2x32x48 on cpu: "
    expected = {"--batch=2": [f"student: {network}", f"teacher: {network}"]}
    for option, starts in (expected | {"--loss": ["tiny, no heads: ", "tiny, heads 4 wide: "]}).items():
        assert leave("cost", option, "--device", "cpu") == 0
        lines = capsys.readouterr().out.splitlines()
        assert [line[: len(start)] for line, start in zip(lines, starts, strict=True)] == starts


@pytest.mark.parametrize("arguments", [["small-apd"], ["show", "small"]])
def test_recipes_are_listed_and_shown_as_they_are_run(arguments, capsys):
    assert leave("recipes") == 0
    recipes = dict(all_recipes())
    assert {line.split()[0] for line in capsys.readouterr().out.splitlines()} == set(recipes)
    assert {name: recipe(*cli.recipe_parts(name)) for name in recipes} == recipes
    for size, method in map(cli.recipe_parts, recipes):
        chosen = ["--size", size, "--method", method]
        assert cli.with_recipe([f"{size}-{method}"]) == cli.with_recipe([size, *chosen[2:]]) == chosen
    with pytest.raises(ExperimentError, match=r"'roi_apd': .* at size tiny; it is of size scenes_detection"):
        recipe("tiny", "roi_apd")
    assert leave("recipes", *arguments) == 0
    assert from_dict(json.loads(capsys.readouterr().out)) == recipes["small-apd"]


def test_a_run_can_be_evaluated_on_every_split_that_its_data_can_have():
    from apd.cli.using import _Evaluate  # here, as above

    splits = get_args(get_type_hints(_Evaluate)["split"])
    assert set(splits) == {"train", *get_args(get_type_hints(DataConfig)["evaluation_split"])}


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["trian"], ["there is no command 'trian'", "did you mean 'train'?"]),
        (["train", "tny-apd"], ["there is no recipe 'tny-apd'", "did you mean 'tiny-apd'?"]),
        (["train", "tiny-apd", "--method=student"], ["--method=student: the recipe tiny-apd says it already"]),
        (["train", "--seed", "3", "facade-small-apd"], ["stands first, as in `apd train facade-small-apd …`"]),
        (["train", "--dry-run", "True"], ["Unrecognized options: True"]),
        (["train", "small-apd", "--data.train_images=9"], ["--data.train_images=9: only scenes have it"]),
        (["train", "small-apd", "--data.world=1"], ["--data.world=1: only scenes have it, and --data.name is camvid"]),
        (["campaign", "scenes"], ["there is no campaign 'scenes'", "did you mean 'scenes-tiny'?"]),
        (["train", "--size", "smal"], ["'smal'", "did you mean 'small'?"]),
        (["train", "--training.lerning-rate", "1"], ["--training.lerning-rate", "meant --training.learning-rate, "]),
        (["train", "--training.learning-rate", "fast"], ["--training.learning-rate", "'fast'"]),
        (["train", "--training.batch-size", "1"], ["TrainingConfig.batch_size = 1", "at least 2"]),
        (["evaluate"], ["Missing", "RUN"]),
        (["evaluate", "here", "--split", "tset"], ["'tset'", "did you mean 'test'?"]),
        (["recipes", "SMALL-APD"], ["there is no recipe 'SMALL-APD'", "did you mean 'small-apd'?"]),
        (["predict", "here"], ["at least one image"]),
        (["cost", "--batch", "0"], ["--batch 0", "at least 1"]),
    ],
)
def test_a_command_line_that_cannot_be_understood_is_answered_with_what_is_nearest(arguments, expected, capsys):
    assert leave(*arguments) == 2
    captured = capsys.readouterr()
    text = " ".join(captured.err.replace("│", " ").split())  # tyro draws a box and wraps lines in it
    assert [part for part in expected if part not in text] == []
    assert captured.out == ""


def campaign_on_a_bare_machine(runs):
    """As where only torch, torchvision, timm, safetensors, tqdm, numpy and pillow are installed."""
    extras = ("tyro", "matplotlib", "pandas", "seaborn", "papermill", "sklearn", "jupyter_book", "nbformat")
    assert not set(extras) & set(sys.modules)
    sys.modules.update(dict.fromkeys(extras))  # None: importing it fails as if it were not installed
    os.environ["APD_RUNS"] = str(runs)
    import apd.study.campaigns

    apd.study.campaigns.recipe = lambda *_, method="student", **options: tiny(seed=options.get("seed", 0))
    sys.argv = ["campaign", "camvid-small", "--only", "student-seed0", "--records", str(runs / "records")]
    with contextlib.suppress(SystemExit):
        runpy.run_module("apd.study.campaign", run_name="__main__")
    os._exit(cli.main(["train"]))


def test_a_bare_machine_runs_campaigns_and_says_what_the_command_line_lacks(tmp_path):
    output = tmp_path / "output"
    assert exit_code(campaign_on_a_bare_machine, tmp_path, output=output) == 1
    (record,) = (tmp_path / "records").iterdir()
    assert read_record(record).experiment == replace(tiny(), name="student-seed0")
    *before, last = output.read_text().splitlines()
    assert before[-1].startswith("camvid-small: 1/1 student-seed0: mIoU ")
    assert last.startswith("apd: the command line needs tyro (in the project's folder: pip install -e '.[cli]')")
    assert "`python -m apd.study.campaign NAME` runs campaigns" in last


def test_advice_that_names_a_field_names_the_option_too():
    asks = re.compile(r"(?i)(?:use|set|with|ask for|give|lower) ([a-z_]+=(?:False|True|None|'\w+')|[a-z]+\.[a-z]+_\w+)")
    rooms = ("data", "models", "config", "evaluation", "training", "cost", "study", "cli")
    files = [path for room in rooms for path in (Path(cli.__file__).parents[1] / room).rglob("*.py")]
    lines = [line.strip() for path in files for line in path.read_text(encoding="utf-8").splitlines()]
    advice = [line for line in lines if asks.search(line) and not line.startswith("with ")]
    assert advice != []
    assert [line for line in advice if "--" not in line] == []
