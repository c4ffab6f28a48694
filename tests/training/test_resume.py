"""A run that is killed, stopped or thrown out of its loop ends as if nothing had happened, to the last bit."""

import random

import pytest
import torch
from small_experiments import Thrown, exit_code, outcome, thrown_at, tiny, train_until_killed

from apd.training import trainer as loop
from apd.training.run import run_folder, train

EXPERIMENTS = {
    "apd": tiny("apd"),  # two optimisers
    "both_with_average": tiny("both", seed=1, ema_decay=0.9, clip_norm=1.0),
    "adamw_warming_up": tiny(optimiser="adamw", warmup=4, schedule="steps", milestones=(5,), learning_rate=1e-3),
}


@pytest.mark.parametrize("name", ["apd", "both_with_average"])
def test_a_run_killed_at_random_moments_ends_bit_equal(name, undisturbed, runs, tmp_path):
    """The kills fall anywhere: while a checkpoint is written, renamed or pruned, between log and checkpoint, at the
    end while weights and record are written, and in the run of the teacher."""
    dice, output, kills = random.Random(name), tmp_path / "output", 0
    while (code := exit_code(train_until_killed, EXPERIMENTS[name], runs, dice.randint(8, 50), output=output)) == -9:
        kills += 1
        assert kills < 60, "the run makes no progress"
    assert code == 0, output.read_text()
    assert kills >= 4, "too few to show anything"
    assert "resumed at step" in output.read_text()
    assert outcome(EXPERIMENTS[name]) == undisturbed(EXPERIMENTS[name])
    assert not list(runs.rglob("*.part*")), "a partial file outlived the run"


OFTEN, NEVER = 0.0, 1e9  # seconds between two checkpoints
INTERRUPTIONS = [  # the experiment, and after which steps it is thrown out of its loop with how frequent checkpoints
    ("apd", [(4, OFTEN), (5, NEVER)]),  # after the scores of step 3, which the checkpoint holds
    ("adamw_warming_up", [(2, OFTEN)]),
    ("adamw_warming_up", [(4, OFTEN)]),
    ("both_with_average", [(3, NEVER)]),
]


@pytest.mark.parametrize(("name", "interruptions"), INTERRUPTIONS)
def test_a_run_thrown_out_of_its_loop_repeats_the_steps_after_its_last_checkpoint_and_ends_bit_equal(
    name, interruptions, undisturbed, runs, monkeypatch, capsys
):
    experiment, last = EXPERIMENTS[name], 0
    for step, seconds in interruptions:
        monkeypatch.setattr(loop, "CHECKPOINT_SECONDS", seconds)
        with pytest.raises(Thrown):
            train(experiment, on_step=thrown_at(step))
        last = step if seconds == OFTEN else last
    steps = []
    torch.manual_seed(12345)  # the random state around a run plays no part
    content = train(experiment, on_step=steps.append).content
    assert steps == list(range(last + 1, 7))
    assert (f"resumed at step {last}" in capsys.readouterr().out) == (last > 0)
    assert outcome(experiment) == undisturbed(experiment)
    spent = sum(line["seconds"] for line in loop.RunLog(run_folder(experiment) / "log.jsonl").read())
    assert content["wall_seconds"] >= round(spent, 2) - 0.01, "summed over the parts"
