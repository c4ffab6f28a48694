"""A run that is killed, stopped or thrown out of its loop ends as if nothing had happened, to the last bit."""

import random
from dataclasses import replace

import pytest
import torch
from small_experiments import exit_code, outcome, tiny, train_until_killed, train_until_killed_in_a_file

from apd.training import trainer as loop
from apd.training.run import run_folder, train

EXPERIMENTS = {
    "apd": tiny("apd"),  # two optimisers
    "both_with_average": tiny("both", seed=1, ema_decay=0.9, clip_norm=1.0),
    "adamw_warming_up": tiny(optimiser="adamw", warmup=4, schedule="steps", milestones=(5,), learning_rate=1e-3),
}


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    """What each experiment gives when nobody disturbs it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("APD_RUNS", str(tmp_path_factory.mktemp("undisturbed")))
        for experiment in EXPERIMENTS.values():
            train(experiment)
        return {name: outcome(experiment) for name, experiment in EXPERIMENTS.items()}


@pytest.fixture
def runs(tmp_path, monkeypatch):
    monkeypatch.setenv("APD_RUNS", str(tmp_path / "runs"))
    return tmp_path / "runs"


@pytest.mark.parametrize("name", ["apd", "both_with_average"])
def test_a_run_killed_at_random_moments_ends_bit_equal(name, uninterrupted, runs, tmp_path):
    """The kills fall anywhere: while a checkpoint is written, renamed or pruned, between log and checkpoint, at the
    end while weights and record are written, and in the run of the teacher."""
    dice, output = random.Random(name), tmp_path / "output"
    codes = []
    while (code := exit_code(train_until_killed, EXPERIMENTS[name], runs, dice.randint(8, 50), output=output)) == -9:
        codes.append(code)
        assert len(codes) < 60, "the run makes no progress"
    assert code == 0, output.read_text()
    assert len(codes) >= 4, "too few kills to show anything"
    assert "resumed at step" in output.read_text()
    assert outcome(EXPERIMENTS[name]) == uninterrupted[name]
    assert not list(runs.rglob("*.part*")), "a partial file outlived the run"


@pytest.mark.parametrize("file", ["weights.safetensors", "state.safetensors", "optimisers.pt"])
def test_a_run_killed_with_half_a_checkpoint_written_ends_bit_equal(file, uninterrupted, runs, tmp_path):
    experiment = EXPERIMENTS["apd"]
    assert exit_code(train_until_killed_in_a_file, experiment, runs, file, 5, output=tmp_path / "killed") == -9
    assert [path.name for path in run_folder(experiment).glob("checkpoints/.part-*")] == [".part-00000005"]
    train(experiment)
    assert outcome(experiment) == uninterrupted["apd"]


class Thrown(Exception):
    pass


def thrown_at(last):
    def on_step(step):
        if step == last:
            raise Thrown

    return on_step


def test_steps_after_the_last_checkpoint_are_done_again_and_logged_once(uninterrupted, runs, monkeypatch, capsys):
    experiment = EXPERIMENTS["apd"]
    monkeypatch.setattr(loop, "CHECKPOINT_SECONDS", 0.0)
    with pytest.raises(Thrown):
        train(experiment, on_step=thrown_at(4))  # after the scores of step 3, which the checkpoint holds
    monkeypatch.setattr(loop, "CHECKPOINT_SECONDS", 1e9)
    with pytest.raises(Thrown):
        train(experiment, on_step=thrown_at(5))
    assert "apd-seed0: resumed at step 4" in capsys.readouterr().out
    steps = []
    train(experiment, on_step=steps.append)
    assert steps == [5, 6]
    assert outcome(experiment) == uninterrupted["apd"]


@pytest.mark.parametrize("step", [2, 4])
def test_a_run_that_stops_in_its_warm_up_or_at_its_end_ends_bit_equal(step, uninterrupted, runs, monkeypatch, capsys):
    experiment = EXPERIMENTS["adamw_warming_up"]
    monkeypatch.setattr(loop, "CHECKPOINT_SECONDS", 0.0)
    with pytest.raises(Thrown):
        train(experiment, on_step=thrown_at(step))
    train(experiment)
    assert f"resumed at step {step}" in capsys.readouterr().out
    assert outcome(experiment) == uninterrupted["adamw_warming_up"]
    rates = [line["learning_rate"] for line in outcome(experiment)["log"]]
    assert rates == pytest.approx([2.5e-4, 5e-4, 7.5e-4, 1e-3, 1e-3, 1e-4])


def test_a_run_that_never_reached_a_checkpoint_starts_again(uninterrupted, runs):
    experiment = EXPERIMENTS["both_with_average"]
    with pytest.raises(Thrown):
        train(experiment, on_step=thrown_at(3))
    assert not list(run_folder(experiment).glob("checkpoints/*"))
    train(experiment)
    assert outcome(experiment) == uninterrupted["both_with_average"]


def test_the_random_state_around_a_run_plays_no_part(uninterrupted, runs):
    torch.manual_seed(12345)
    torch.rand(7)
    train(EXPERIMENTS["apd"])
    assert outcome(EXPERIMENTS["apd"]) == uninterrupted["apd"]


def test_a_finished_run_is_found_again_under_any_label(runs, monkeypatch):
    record = train(tiny())
    monkeypatch.setattr(loop.Trainer, "execute", lambda *_: pytest.fail("it was run again"))
    assert train(tiny()).content == record.content
    assert train(replace(tiny(), name="another-label")).content == record.content
    assert [path.name.split("-")[0] for path in runs.iterdir()] == ["student"]


def test_a_run_whose_record_is_lost_is_finished_from_its_last_checkpoint(runs, monkeypatch):
    train(tiny())
    before = outcome(tiny())
    (run_folder(tiny()) / "record.json").unlink()
    monkeypatch.setattr(loop.TrainStep, "__call__", lambda *_: pytest.fail("a step was done again"))
    train(tiny())
    assert outcome(tiny()) == before


def test_wall_time_is_summed_over_the_parts_of_a_run_and_its_start_is_the_first(runs, monkeypatch):
    monkeypatch.setattr(loop, "CHECKPOINT_SECONDS", 0.0)
    with pytest.raises(Thrown):
        train(tiny(), on_step=thrown_at(3))
    content = train(tiny()).content
    spent = [line["seconds"] for line in loop.RunLog(run_folder(tiny()) / "log.jsonl").read()]
    assert len(spent) == 6
    assert content["wall_seconds"] >= round(sum(spent), 2) - 0.01
