"""The tables of learning rates and weights: validation scores of the last step, one seed, each method's best marked."""

from dataclasses import replace
from statistics import fmean

import pytest
from made_up_records import made_up_record

from apd.config.identity import fingerprint
from apd.report.figures.tables import rates_table, validation_by_strength, validation_miou, weights_table
from apd.report.statistics import method_of
from apd.study.ablations import BEST, OTHER_METHODS, at_best, plain_variants, variant_names, variant_of_strength
from apd.study.campaigns import BEST_OTHER_METHODS, TRIED_LEARNING_RATES, TRIED_RATES, TUNED_METHODS, experiments_of
from apd.study.recipes import LEARNING_RATES, SECONDS_OF_APD, SMALL_RATES, recipe
from apd.training.record import read_record, read_records
from apd.training.run import records_folder


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


def trial(arm, factor, right, *, seed=0):
    experiment = replace(recipe("tiny", "student", seed=seed), distillers=variant_of_strength(arm, factor).distillers)
    return made_up_record(experiment, right)


def test_trials_of_weights_are_found_by_their_distillers_and_each_methods_best_is_marked():
    arms = {arm.key: arm for arm in plain_variants()}
    records = [
        *(trial(arms["cwd"], factor, right) for factor, right in ((0.1, 0.6), (1, 0.7), (10, 0.5))),
        *(trial(arms["pixel_kd"], factor, right) for factor, right in ((0.1, 0.8), (1, 0.7))),
        trial(arms["apd"], 10, 0.9, seed=1),
        made_up_record(recipe("tiny", "student")),
    ]
    found = validation_by_strength(records)
    assert {key: max(values, key=values.get) for key, values in found.items()} == {"cwd": 1, "pixel_kd": 0.1}
    told = weights_table(records, "made up").description
    lines = {line.split("  ")[0].strip(): line.split() for line in told.splitlines()}
    assert lines["CWD"].index("◂") == 3  # after the second score
    assert lines["pixel KD"][-1] == "–"
    assert "APD" not in lines


def test_the_weights_that_are_called_best_are_those_of_the_records():
    campaigns = ("scenes-tiny", "scenes-rivals", "scenes-rivals-tuning")
    records = [r for name in campaigns for r in read_records(records_folder(name)) if r.experiment.data.context_shift]
    found = validation_by_strength(records)
    tried = {key: values for key, values in found.items() if len(values) > 1}
    assert len(tried) >= 10
    assert {key: max(values, key=values.get) for key, values in tried.items()} == {
        key: BEST.get(key, 1.0) for key in tried
    }


def test_the_best_rivals_are_those_of_the_records():
    found = {}
    for record in (r for name in ("scenes-rivals", "scenes-tuned") for r in read_records(records_folder(name))):
        key = method_of(record.experiment, variant_names())
        found.setdefault(key, []).append(validation_miou(record))
    means = {key: fmean(found[at_best(key)]) for key in OTHER_METHODS}
    assert set(BEST_OTHER_METHODS) == set(sorted(means, key=means.get)[-3:])
    assert BEST_OTHER_METHODS[0] == max(means, key=means.get)


def test_without_another_weight_there_is_nothing_to_choose_from():
    assert "no trial of other weights" in weights_table([trial(plain_variants()[0], 1, 0.5)], "made up").description


def test_every_methods_rate_on_camvid_is_the_best_of_its_records():
    found = {}
    for record in read_records(records_folder("camvid-small-rates")):
        method, rate = record.experiment.name.split("-")[0], record.experiment.training.learning_rate
        found.setdefault(method, {})[rate] = validation_miou(record)
    assert {method: set(rates) for method, rates in found.items()} == {key: set(TRIED_RATES) for key in TUNED_METHODS}
    for method in TUNED_METHODS:
        assert max(found[method], key=found[method].get) == SMALL_RATES[method]


def test_every_methods_learning_rate_on_labelmefacade_is_the_best_of_its_records_and_not_at_an_end_of_the_grid():
    planned = {fingerprint(experiment) for experiment in experiments_of("facade-learning-rates")}
    found = {}
    for record in (read_record(path) for path in records_folder("facade-learning-rates").glob("*.json")):
        assert record.content["fingerprint"] in planned, f"{record.source} is of another recipe"
        method, rate = method_of(record.experiment), record.experiment.training.learning_rate
        found.setdefault(method, {})[rate] = validation_miou(record)
    for method, scores in found.items():
        if set(scores) == set(TRIED_LEARNING_RATES):  # until then the middle of the grid stands
            best = max(scores, key=scores.get)
            assert LEARNING_RATES[method] == best
            assert min(scores) < best < max(scores)
    assert LEARNING_RATES["student_equal_seconds"] == LEARNING_RATES["student"]


def test_the_longer_student_has_the_core_seconds_of_apd_within_three_per_cent():
    least = {}
    for record in (read_record(path) for path in records_folder("facade-learning-rates").glob("*.json")):
        method, seconds = method_of(record.experiment), record.content["core_seconds_per_iteration"]
        least[method] = min(seconds, least.get(method, seconds))
    if {"student", "apd"} <= set(least):
        expected = pytest.approx(least["apd"] / least["student"], rel=0.03)
        assert SECONDS_OF_APD["facade-small"] == expected, "set it to what was measured, before facade-small runs"
    longer, student = (recipe("facade-small", method).training for method in ("student_equal_seconds", "student"))
    assert longer.iterations == round(student.iterations * SECONDS_OF_APD["facade-small"])
