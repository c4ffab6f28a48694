"""Tables say what the records say, settings are those of the trials, and chapters work half-filled."""

import re
import xml.etree.ElementTree as ElementTree
from dataclasses import replace
from itertools import product
from statistics import fmean

import pytest
from chapter_cells import run_cells
from made_up_records import made_up_campaign, made_up_record, method_in

from apd.report.comparisons import corrected_gains, holm_corrected, pairs_of
from apd.report.figures import answers as reading
from apd.report.figures import tables
from apd.report.figures.answers import PAIR_RATES, beside_methods, detectable, interval, pair_trials, trials_table
from apd.report.statistics import LONGER, compare, mean_interval, method_of, paired_difference
from apd.study import campaigns as study
from apd.study.ablations import BEST, OTHER_METHODS, at_best, option_variants, plain_variants, variant_names
from apd.study.campaigns import BEST_OTHER_METHODS, FITTED_RATES, TUNED_METHODS, experiments_of
from apd.study.recipes import LEARNING_RATES, METHOD_NAMES, SECONDS_OF_APD, SMALL_LEARNING_RATES, lengthened, recipe
from apd.training.record import RecordError, read_records, records_folder

VARIANTS = ("scenes-terms", "scenes-options", "scenes-rivals", "scenes-combined", "scenes-tuned")
METHODS_OF = dict.fromkeys(VARIANTS, "scenes-tiny")
RIGHT = {"student": 0.6, "pixel_kd": 0.62, "apd": 0.66, "attention_transfer": 0.35, "apd_and_cwd": 0.7, "skd": 0.58}


def right(experiment):
    """A share of right pixels by variant, and a little luck that differs from variant to variant and seed to seed."""
    luck = 0.01 * experiment.seed + 0.001 * (7 * (experiment.seed + 1) * len(experiment.name) % 5)
    return RIGHT.get(method_in(experiment), 0.64) + luck


@pytest.fixture(scope="module")
def campaigns():
    return {name: made_up_campaign(name, right, lambda e: e.seed < 3) for name in ("scenes-tiny", *VARIANTS)}


@pytest.fixture(scope="module")
def comparison(campaigns):
    (found,) = beside_methods(campaigns, METHODS_OF)
    return found


def seeds(*values):
    return mean_interval(dict(enumerate(values)))


def cells_of(shown):
    """A table's cells by the last heading of a row and that of the column."""
    lines = ElementTree.fromstring(shown.html).iter("tr")
    heading, *rows = (["".join(cell.itertext()) for cell in line] for line in lines)
    columns = [name for name in heading if name]
    return {row[-len(columns) - 1]: dict(zip(columns, row[-len(columns) :], strict=True)) for row in rows}


def test_a_difference_that_rounds_to_nothing_has_no_sign_and_a_significant_one_does_not_read_as_zero():
    assert reading.points(-0.0002) == reading.points(0.0002) == "0.0"
    assert (reading.points(0.0123), reading.points(-0.0123), reading.points(float("nan"))) == ("+1.2", "−1.2", "–")
    near = seeds(0.0102, 0.0145, 0.02)._replace(low=0.0002)
    assert reading.digits_of(near) == 2
    assert "+0.02" in interval(near)
    assert "[0.0," in interval(near._replace(low=-0.0002))


def test_the_table_of_scores_holds_mean_error_difference_and_corrected_p_value(comparison):
    groups = {variant.key: variant.group for variant in option_variants()}
    rows = corrected_gains(comparison, groups, "apd")
    shown = cells_of(tables.scores_table(comparison, rows, "apd", groups=groups))
    assert len(shown) == 1 + len(groups)
    values, row = list(comparison.values("scope_batch").values()), rows["scope_batch"]
    mean = fmean(values)
    error = (sum((v - mean) ** 2 for v in values) / 2 / 3) ** 0.5
    expected = ["3", f"{100 * mean:.2f}", f"{100 * error:.2f}", interval(row.found), f"{row.corrected:.3f}"]
    assert list(shown["prototypes of the batch"].values())[:5] == expected
    sure = {"scope_batch": row._replace(corrected=0.0001)}
    assert "< 0.001" in cells_of(tables.scores_table(comparison, sure, "apd"))["prototypes of the batch"].values()
    assert "nan" not in tables.scores_table(comparison.only(["cwd"]), {"cwd": rows["scope_batch"]}, "apd").html
    assert "0 records" in tables.scores_table(comparison.only([]), {}, "apd").description


def test_costs_are_given_as_multiples_of_both_baselines(campaigns):
    experiments = [record.experiment for record in campaigns["scenes-tiny"]]
    (comparison, _) = compare([made_up_record(e, seconds=0.16 if method_in(e) == "apd" else 0.1) for e in experiments])
    shown = cells_of(tables.cost_table([comparison]))
    apd, longer = (shown[METHOD_NAMES[method]] for method in ("apd", "student_equal_seconds"))
    assert (apd["seconds a step"], apd["of the baseline’s step"]) == ("0.160", "× 1.60")
    assert apd["of the equal-time baseline’s"] == f"× {1.6 * int(apd['steps']) / int(longer['steps']):.2f}"
    assert apd["peak memory, GB"] == "1.00"
    assert "–" in cells_of(tables.cost_table([comparison.only(["apd"])]))["+ APD"].values()
    # one clock for all methods: the core's only where each has a record with that
    name = "core_seconds_per_iteration"
    comparison.variants[LONGER][0].content[name] = 0.05
    assert comparison.step_seconds(LONGER) == 0.1
    for runs in comparison.variants.values():
        runs[0].content[name] = 0.05
    assert [comparison.step_seconds(method) for method in ("apd", LONGER)] == [0.05, 0.05]


@pytest.mark.parametrize(("ahead", "said"), [(0.06, "outperforms"), (-0.06, "underperforms"), (0.0, "not significant")])
def test_questions_are_answered_by_what_the_records_say(ahead, said):
    wobble = {"student": (0.0, 0.01, 0.02), "apd": (0.01, 0.0, 0.02)}
    runs = [(method, seed) for method in wobble for seed in range(3)]
    level = {"student": 0.6, "apd": 0.6 + ahead}
    records = [made_up_record(recipe("tiny", m, seed=s), level[m] + wobble[m][s]) for m, s in runs]
    first, second, *_ = cells_of(tables.answers_table(compare(records))).values()
    assert first["scenes, context shift 0.5, 200 steps"].startswith(f"{said} ")
    assert second["scenes, context shift 0.5, 200 steps"] == "not run"
    many = tables.answers_table(compare(records), questions=[("apd", "student", f"asked {i} times") for i in range(6)])
    assert "performs" not in many.html  # p of 0.009 alone is 0.055 among six
    assert "0 records" in tables.answers_table([]).description


def test_where_the_numbers_come_from_is_counted_over_the_records(campaigns):
    shown = cells_of(tables.provenance_table({"scenes-tiny": campaigns["scenes-tiny"], "none": []}))
    assert shown["records"] == {"scenes-tiny": "30", "none": "0"}
    assert shown["commit"] == {"scenes-tiny": "0123456789", "none": "–"}
    assert 'tabindex="0" role="region" aria-label="' in tables.provenance_table(campaigns).html


def test_the_table_of_pairs_has_a_row_for_every_pair_with_its_teacher():
    (pairs,) = pairs_of(made_up_campaign("scenes-pairs", right))
    shown = tables.pairs_table(pairs)
    assert shown.html.count("<tr") == 13
    assert f"{100 * pairs[0].runs.teacher_score:.1f}" in shown.html
    assert interval(pairs[4].runs.difference("apd", "student")) in shown.html
    (alone,) = pairs_of(made_up_campaign("scenes-pairs", right, lambda e: bool(e.distillers)))
    assert "nan" not in tables.pairs_table(alone).description


def trial(method, rate, share, *, seed=0, factor=1):
    experiment = recipe("tiny", method, seed=seed)
    training = replace(experiment.training, learning_rate=rate, iterations=experiment.training.iterations * factor)
    return made_up_record(replace(experiment, name=f"{method}-rate{rate:g}", training=training), share)


def test_each_rows_best_trial_is_marked_and_other_seeds_and_lengths_are_left_out():
    records = [trial("student", 0.1, 0.7), trial("student", 0.02, 0.6), trial("apd", 0.1, 0.6), trial("apd", 0.02, 0.8)]
    records += [trial("apd", 0.5, 0.9, seed=1), trial("student_equal_seconds", 0.5, 0.9, factor=2)]
    shown = cells_of(trials_table(reading.learning_rate_trials(records), "learning rate {:g}", "made up"))
    marked = {row: [name for name, text in cells.items() if "◂" in text] for row, cells in shown.items() if row}
    assert marked == {"baseline": ["learning rate 0.1"], "+ APD": ["learning rate 0.02"]}
    assert reading.validation_score(records[0]) == records[0].scores.miou
    early = replace(records[0], content={**records[0].content, "evaluations": records[0].content["evaluations"][:1]})
    assert "0 trials have a score" in trials_table(reading.learning_rate_trials([early]), "{:g}", "made up").description


def test_a_value_with_fewer_trials_than_another_of_its_row_is_left_out():
    records = made_up_campaign("scenes-pairs-tuning", lambda e: 0.9 if "rate0.1" in e.name else right(e))
    assert set(reading.trials(pair_trials(records)).idxmax(axis=1)) == {0.1}
    fewer = [r for r in records if r.experiment.name != "apd-psp_resnet18-rate0.1"]
    row = cells_of(trials_table(pair_trials(fewer), "{:g}", "made up", PAIR_RATES))["student ResNet-18"]
    assert (row["0.1"], row["used"]) == ("–", "0.01")


def best_of(found):
    mean = reading.trials(found)
    return mean[mean.notna().sum(axis=1) > 1].idxmax(axis=1).to_dict()


def test_the_weights_and_learning_rates_of_the_study_are_the_best_of_the_committed_trials():
    names = ("scenes-tiny", "scenes-rivals", "scenes-rivals-tuning")
    records = [r for name in names for r in read_records(records_folder(name)) if r.experiment.data.context_shift]
    found = best_of(reading.weight_trials(records))
    factors = {variant.name: BEST.get(variant.key, 1.0) for variant in plain_variants()}
    assert len(found) >= 10
    assert found == {name: factors[name] for name in found}
    pairs, _ = reading.read_campaigns(["scenes-pairs-tuning"])
    assert len(pairs["scenes-pairs-tuning"]) == len(experiments_of("scenes-pairs-tuning"))
    assert best_of(pair_trials(pairs["scenes-pairs-tuning"])) == PAIR_RATES
    records = read_records(records_folder("camvid-small-rates"))
    camvid = [(method_in(r.experiment), r.experiment.training.learning_rate, r) for r in records]
    tried = set(product(TUNED_METHODS, study.TRIED_SMALL_LEARNING_RATES))
    assert {(method, rate) for method, rate, _ in camvid} == tried
    assert best_of(camvid) == {method: SMALL_LEARNING_RATES[method] for method in TUNED_METHODS}


def test_teachers_of_fitted_scenes_have_the_learning_rate_that_is_best_for_each_context_shift():
    records = read_records(records_folder("scenes-fitted-tuning"))
    found = [(r.experiment.data.context_shift, r.experiment.training.learning_rate, r) for r in records]
    assert best_of(found) == FITTED_RATES
    planned = experiments_of("scenes-fitted")
    assert {(e.data.context_shift, e.teacher.training.learning_rate) for e in planned} == set(FITTED_RATES.items())


def test_the_best_other_methods_are_those_of_the_records():
    found = {}
    for record in (r for name in ("scenes-rivals", "scenes-tuned") for r in read_records(records_folder(name))):
        found.setdefault(method_of(record.experiment, variant_names()), []).append(reading.validation_score(record))
    means = {key: fmean(found[at_best(key)]) for key in OTHER_METHODS}
    assert set(BEST_OTHER_METHODS) == set(sorted(means, key=means.get)[-3:])
    assert BEST_OTHER_METHODS[0] == max(means, key=means.get)


def test_learning_rates_on_labelmefacade_are_the_best_of_their_records():
    records, _ = reading.read_campaigns(["facade-learning-rates", "facade-small"])
    rates = LEARNING_RATES["labelmefacade"]
    first = [r for found in records.values() for r in found if r.experiment.seed == 0]
    found = [(method_of(r.experiment), r.experiment.training.learning_rate, r) for r in first]
    best = best_of(found)  # of those tried so far
    assert best == {method: rates[method] for method in TUNED_METHODS}
    for method in best:
        tried = {rate for whose, rate, _ in found if whose == method}
        assert tried != set(study.TRIED_LEARNING_RATES) or min(tried) < best[method] < max(tried)
    assert rates["student_equal_seconds"] == rates["student"]


def test_at_sides_that_fit_the_baseline_gains_and_the_order_of_the_methods_stays():
    both, _ = reading.read_campaigns(["scenes-longer", "scenes-fitted", "fitted-sides"])
    before, after = (compare(both[name]) for name in ("scenes-longer", "scenes-fitted"))
    for old, new in zip(before, after, strict=True):
        assert old.data == new.data
        assert paired_difference(new.values("student"), old.values("student")).mean > 0
        means = [{m: fmean(one.values(m).values()) for m in TUNED_METHODS} for one in (old, new)]
        assert sorted(means[0], key=means[0].get) == sorted(means[1], key=means[1].get)
    unfit, fit = (
        {
            r.experiment.seed: r.scores.miou
            for r in both["fitted-sides"]
            if (r.experiment.data.crop_height == 161) is fits
        }
        for fits in (False, True)
    )
    assert paired_difference(fit, unfit).mean > 0


def test_the_longer_baseline_has_the_seconds_of_apd():
    took = {}
    for record in (r for r in reading.read_campaigns(["facade-small"])[0]["facade-small"] if r.experiment.seed == 0):
        took[method_of(record.experiment)] = record.content["core_seconds_per_iteration"]
    step = min(took[method] for method in ("student", "student_equal_seconds") if method in took)
    assert SECONDS_OF_APD["facade-small"] == pytest.approx(took["apd"] / step, rel=0.03)
    longer, student = (recipe("facade-small", method).training for method in ("student_equal_seconds", "student"))
    assert longer.iterations == round(student.iterations * SECONDS_OF_APD["facade-small"])


def test_differences_are_listed_with_their_corrected_p_values():
    rows = holm_corrected({"clear": seeds(0.030, 0.031, 0.032), "single": seeds(-0.01)})
    shown = cells_of(tables.differences_table(rows, {"clear": "clearly", "single": "one seed"}, "made up"))
    missed = f"{100 * detectable(rows['clear'].found):.1f}"
    assert list(shown["clearly"].values()) == [interval(rows["clear"].found), "3", "< 0.001", missed]
    assert list(shown["one seed"].values()) == ["−1.0", "1", "–", "–"]
    assert "; p of 1 comparison; " in tables.differences_table(rows, dict.fromkeys(rows, "it"), "made up").description
    assert "0 records" in tables.differences_table({}, {}, "made up").description


def test_words_and_tables_have_the_confidence_of_their_intervals(comparison):
    row = holm_corrected({"only": mean_interval({0: 0.01, 1: 0.02, 2: 0.04}, 0.99)})["only"]
    missed = f"{100 * detectable(row.found):.1f}"
    assert (missed, detectable(row.found) > 2 * detectable(row.found._replace(confidence=0.95))) == ("11.2", True)
    assert "99 % CI −6.4 to 11.1; detectable with 3 seeds: 11.2)" in reading.statement(row, "APD", "KD")
    assert f"detectable: {missed} points" in reading.tally([row], "APD", "KD")
    assert missed in cells_of(tables.differences_table({0: row}, {0: "it"}, "made up"))["it"].values()
    table = tables.scores_table(comparison, {"scope_batch": row}, "apd")
    assert "99 % interval" in table.html
    assert missed in cells_of(table)["prototypes of the batch"].values()


def test_the_change_of_a_gain_is_the_difference_of_the_two_gains():
    def of_length(times, gains):
        plain = [recipe("tiny", method, seed=seed) for method in gains for seed in range(3)]
        runs = [lengthened(experiment, student=times, teacher=1) for experiment in plain]
        (found,) = compare([made_up_record(e, 0.6 + gains[method_of(e)] + 0.001 * e.seed) for e in runs])
        return replace(found, remark=f"{times} times the steps")

    short, long = of_length(1, {"student": 0, "pixel_kd": 0.0, "apd": 0.05}), of_length(4, {"student": 0, "apd": 0.01})
    shown = cells_of(tables.change_of_gains(short, long, [("apd", "student"), ("apd", "pixel_kd")]))
    ((name, row),) = [(name, row) for name, row in shown.items() if row and name]  # of two gains, one is not there yet
    gains = [c.difference("apd", "student") for c in (short, long)]
    assert (name, row[short.title], row[long.title]) == ("+ APD over baseline", *map(interval, gains))
    assert row["change"].startswith(reading.points(gains[1].mean - gains[0].mean))


def save_all(folder, records):
    for record in records:
        record.save(folder / f"{record.experiment.name}.json")


def test_campaigns_are_read_with_a_sentence_on_how_far_they_got(tmp_path, campaigns):
    planned = experiments_of("scenes-tiny")
    save_all(tmp_path / "scenes-tiny", campaigns["scenes-tiny"][:3])
    other = made_up_record(replace(planned[3], data=replace(planned[3].data, train_images=7)))
    other.save(tmp_path / "scenes-tiny" / "old.json")
    records, progress = reading.read_campaigns(["scenes-tiny", "camvid-small"], tmp_path)
    assert (len(records["scenes-tiny"]), len(records["camvid-small"])) == (3, 0)
    assert f"scenes-tiny: 3 of {len(planned)} planned runs have a record; 1 of other settings left out" in str(progress)
    assert f"`apd campaign camvid-small --records {tmp_path}/camvid-small`" in str(progress)
    with pytest.raises(FileNotFoundError, match="no such folder; it should hold scenes-tiny"):
        reading.read_campaigns(["scenes-tiny"], tmp_path / "absent")
    (tmp_path / "scenes-tiny" / "broken.json").write_text("{")
    with pytest.raises(RecordError, match=r"broken\.json"):
        reading.read_campaigns(["scenes-tiny"], tmp_path)


def test_variants_of_several_campaigns_stand_beside_their_methods_on_the_data_of_the_variants(campaigns, comparison):
    assert comparison.data.context_shift == 1
    assert {"student", "terms_a", "scope_batch", "cwd", "apd_and_cwd"} <= set(comparison.variants)
    assert beside_methods({"scenes-tiny": campaigns["scenes-tiny"]}, {"no-such-campaign": "scenes-tiny"}) == []
    (methods_only,) = beside_methods({**campaigns, "scenes-terms": []}, {"scenes-terms": "scenes-tiny"})
    assert list(methods_only.variants) == list(METHOD_NAMES)
    stray = made_up_record(campaigns["scenes-rivals"][0].experiment, images="a" * 64)
    with pytest.raises(ValueError, match="images of the evaluation split"):
        beside_methods({**campaigns, "scenes-rivals": [stray]}, METHODS_OF)


@pytest.mark.parametrize("name", ["03_does_it_work", "04_ablations", "05_rivals", "07_pairs"])
@pytest.mark.parametrize("kept", ["none", "every other run of the first seed"])
def test_a_chapter_works_with_the_records_that_are_there(tmp_path, name, kept):
    of_pairs = ("scenes-pairs", "scenes-pairs-tuning")
    for campaign in of_pairs if name == "07_pairs" else ("scenes-tiny", *VARIANTS):
        records = made_up_campaign(campaign, right, lambda e: e.seed == 0)
        save_all(tmp_path / campaign, records[::2] if kept != "none" else [])
    shown = run_cells(name, tmp_path)
    text = "\n".join(f"{item!r}" for item in shown)
    assert len(shown) > 2
    assert not re.search(r"\bnan\b", text)
    assert "planned runs have a record" in text
