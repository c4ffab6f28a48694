"""The table of learning rates: validation scores of the last step, one seed, each method's best marked."""

from dataclasses import replace

from made_up_records import made_up_record

from apd.plots.rates import rates_table, validation_miou
from apd.study.recipes import recipe


def run(method, rate, right, *, seed=0, factor=1):
    experiment = recipe("tiny", method, seed=seed)
    training = replace(experiment.training, learning_rate=rate, iterations=experiment.training.iterations * factor)
    experiment = replace(experiment, name=f"{method}-rate{rate:g}", training=training)
    return made_up_record(experiment, right)


def test_the_score_is_that_of_the_last_step_on_val():
    record = run("apd", 0.1, 0.5)
    assert validation_miou(record) == record.scores.miou
    earlier = replace(record, content={**record.content, "evaluations": record.content["evaluations"][:1]})
    assert validation_miou(earlier) is None


def test_each_methods_best_rate_is_marked_and_other_seeds_and_lengths_are_left_out():
    records = [
        run("student", 0.1, 0.7),
        run("student", 0.02, 0.6),
        run("apd", 0.1, 0.6),
        run("apd", 0.02, 0.8),
        run("apd", 0.5, 0.9, seed=1),
        run("student_equal_seconds", 0.5, 0.9, factor=2),
    ]
    told = rates_table(records, "made up").description
    assert "rate 0.5" not in told
    lines = {line.split("  ")[0].strip(): line for line in told.splitlines()}
    assert lines["student alone"].rstrip().endswith("◂")
    assert not lines["+ APD"].rstrip().endswith("◂")
    assert told.count("◂") == 3  # one in the caption


def test_without_a_score_on_val_it_is_said():
    assert "no run with a score" in rates_table([], "made up").description
