"""Forest plots, tables and sentences about many arms: they say what the records say, however many there are."""

import math
import re
import xml.etree.ElementTree as ElementTree

import pytest
from chapter_cells import run_cells
from hypothesis import given, settings
from hypothesis import strategies as st
from made_up_records import made_up_record

from apd.report.comparisons import corrected_gains, holm_corrected
from apd.report.figures import style
from apd.report.figures.forest import forest, limits, outlying, score_against_seconds, scores_over_seeds
from apd.report.figures.sentences import (
    added_to_rivals,
    beside_methods,
    complements,
    outcome,
    seconds_in_words,
    tallies,
    tally,
)
from apd.report.figures.tables import digits_of, interval, points, scores_table, settings_in_words
from apd.report.statistics import compare, paired_difference
from apd.study.ablations import OTHER_METHODS, at_best, option_variants
from apd.study.campaigns import experiments_of
from apd.study.recipes import METHODS

ARMS = ("scenes-terms", "scenes-options", "scenes-rivals", "scenes-combined", "scenes-tuned")
CAMPAIGNS_OF_ARMS = dict.fromkeys(ARMS, "scenes-tiny")
RIGHT = {"student": 0.6, "pixel_kd": 0.62, "apd": 0.66, "attention_transfer": 0.35, "apd_and_cwd": 0.7, "skd": 0.58}


def records_of(name, seeds):
    """Runs with a share of right pixels by arm, and a little luck that differs from arm to arm."""
    records = []
    for place, experiment in enumerate(experiments_of(name)):
        if experiment.seed < seeds:
            luck = 0.01 * experiment.seed + 0.001 * (place * 7 % 5)
            seconds = 0.4 if "cirkd" in experiment.name else 0.16 if experiment.distillers else 0.1
            right = RIGHT.get(experiment.name.split("-")[0], 0.64)
            records.append(made_up_record(experiment, right + luck, seconds=seconds))
    return records


@pytest.fixture(scope="module")
def campaigns():
    return {name: records_of(name, seeds=3) for name in ("scenes-tiny", *CAMPAIGNS_OF_ARMS)}


@pytest.fixture(scope="module")
def comparison(campaigns):
    (found,) = beside_methods(campaigns, CAMPAIGNS_OF_ARMS)
    return found


def differences(**values):
    return holm_corrected(
        {name: paired_difference(dict(enumerate(v)), dict.fromkeys(range(len(v)), 0.0)) for name, v in values.items()}
    )


ROWS = differences(clear=[0.030, 0.031, 0.032], wide=[-0.010, 0.012, 0.020], single=[-0.01], lost=[-0.30, -0.31, -0.32])
NAMES = {"clear": "clearly better", "wide": "who knows", "single": "one seed", "lost": "far away"}


def texts(drawn):
    """Markdown of a figure and whether they are bold, from the top."""
    elements = (e for e in ElementTree.fromstring(drawn.html).iter() if e.tag.endswith("text"))
    return [("".join(e.itertext()), bool(re.search("bold|700", e.get("style", "")))) for e in elements]


# figures


def test_a_forest_tells_every_row_and_is_fit_for_both_modes():
    drawn = forest(ROWS, NAMES, axis="points", title="a title")
    svg = ElementTree.fromstring(drawn.html)
    assert svg.get("aria-label") == drawn.description
    for key, name in NAMES.items():
        assert f"{name} {interval(ROWS[key].found)}" in drawn.description
    assert "nan" not in drawn.html
    for fixed in ("#000000", style.INK, style.FAINT):
        assert fixed not in drawn.html
    assert forest(ROWS, NAMES, axis="points", title="a title").html == drawn.html


def test_a_mean_is_bold_where_it_withstands_the_correction():
    bold = dict(texts(forest(ROWS, NAMES, axis="points")))
    assert {key: bold[points(ROWS[key].found.mean)] for key in ROWS} == {
        key: row.significant for key, row in ROWS.items()
    }
    assert {key for key, row in ROWS.items() if row.significant} == {"clear", "lost"}


def test_neighbours_of_one_group_stand_below_one_bold_heading():
    groups = {"clear": "first", "wide": "first", "single": "second"}
    words = [
        word
        for word in texts(forest(ROWS, NAMES, axis="points", groups=groups))
        if word[0] in {*groups.values(), *NAMES.values()}
    ]
    assert words == [
        ("first", True),
        ("clearly better", False),
        ("who knows", False),
        ("second", True),
        ("one seed", False),
        ("far away", False),
    ]


def seeds(*values):
    return paired_difference(dict(enumerate(values)), dict.fromkeys(range(len(values)), 0.0))


def test_an_outlying_row_does_not_squeeze_the_others():
    low, high = limits([row.found for row in ROWS.values()])
    assert -12 < low < -1
    assert 3 < high < 12


def test_rows_that_rise_by_degrees_or_are_more_than_a_few_are_drawn_to_scale():
    _, high = limits([seeds(0.001 * 2**i, 0.001 * 2**i) for i in range(6)])
    assert high > 3.2
    _, high = limits([seeds(0.001, 0.001), seeds(0.05, 0.05), seeds(0.05, 0.05)])
    assert high > 5


@settings(deadline=None)
@given(st.lists(st.lists(st.integers(-300, 300), min_size=1, max_size=5), min_size=1, max_size=8))
def test_the_axis_holds_zero_and_the_seeds_of_most_rows(values):
    found = [
        paired_difference({i: v / 1000 for i, v in enumerate(row)}, dict.fromkeys(range(5), 0.0)) for row in values
    ]
    low, high = limits(found)
    assert math.isfinite(low)
    assert low < 0 < high
    inside = [all(low < v / 10 < high for v in row) for row in values]
    assert sum(inside) >= len(values) / 2


def test_a_forest_without_rows_says_so():
    assert "0 rows have a seed in common" in forest({}, {}, axis="points", title="scenes").description


@pytest.mark.parametrize("page", ["#ffffff", "#14181e"])
def test_the_colour_of_arms_stands_out_in_both_modes(page):
    def luminance(colour):
        parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    high, low = sorted((luminance(style.ARM_COLOUR), luminance(page)), reverse=True)
    assert (high + 0.05) / (low + 0.05) >= 3
    assert style.ARM_COLOUR not in style.METHOD_COLOURS.values()


def test_scores_of_many_methods_leave_the_outlying_ones_at_the_edge(comparison):
    alone = comparison.only([*METHODS, *OTHER_METHODS])
    assert outlying(alone) == {"attention_transfer", "skd"}
    assert outlying(alone.only(METHODS)) == set()
    for drawn in (scores_over_seeds([alone]), score_against_seconds(alone)):
        mean = 100 * sum(alone.miou("attention_transfer").values()) / 3
        assert f"AT {mean:.1f}" in drawn.description
        assert all(
            any(re.fullmatch(rf"{re.escape(name)}( \d+\.\d)?", text) for text, _ in texts(drawn))
            for name, _ in OTHER_METHODS.values()
        )


# records of several campaigns


def test_arms_of_several_campaigns_stand_beside_their_methods_on_the_data_of_the_arms(campaigns, comparison):
    assert comparison.data.context_shift == 1
    assert {"student", "terms_a", "scope_batch", "cwd", "apd_and_cwd"} <= set(comparison.variants)
    assert beside_methods({"scenes-tiny": campaigns["scenes-tiny"]}, {"no-such-campaign": "scenes-tiny"}) == []
    (methods_only,) = beside_methods({**campaigns, "scenes-terms": []}, {"scenes-terms": "scenes-tiny"})
    assert list(methods_only.variants) == ["student", "student_equal_seconds", "pixel_kd", "apd_without_kd", "apd"]
    assert beside_methods({"scenes-tiny": [], "scenes-terms": []}, {"scenes-terms": "scenes-tiny"}) == []


# words and tables


def test_a_tally_sorts_rows_by_what_can_be_said_of_them():
    unsure = differences(**{f"none{i}": [0.01, -0.012, 0.004] for i in range(20)}, chance=[0.010, 0.013, 0.016])
    assert unsure["chance"].found.verdict == "above"
    told = tally({**ROWS, "chance": unsure["chance"]}, {**NAMES, "chance": "a find"}, "the default", 0.95)
    lines = dict(line.split(": ", 1) for line in told.split("\n")[2:])
    assert told.startswith("5 settings against the default, judged together at 95 %.")
    assert lines["- **above** (1)"] == "“clearly better” " + interval(ROWS["clear"].found)
    assert lines["- **below** (1)"].startswith("“far away”")
    assert lines["- above or below only before the correction for their number (1)"].startswith("“a find” +1.3\u00a0[")
    assert lines["- not distinguishable (1)"].startswith("“who knows”")
    assert lines["- fewer than two seeds so far (1)"] == "“one seed” −1.0"


def test_a_tally_lists_few_undecided_rows_and_counts_many():
    many = differences(**{f"none{i}": [0.01, -0.012, 0.004] for i in range(11)})
    names = {key: f"setting {key}" for key in many}
    assert tally(many, names, "x").endswith(
        "- not distinguishable (11): all others; their intervals stand in the table"
    )
    few = dict(list(many.items())[:10])
    assert tally(few, names, "x").count("“setting none") == 10


def test_a_tally_of_nothing_says_that_nothing_is_above_or_below():
    assert tally({}, {}, "x").endswith("- **above** (0): none\n- **below** (0): none")
    assert "0 records" in str(tallies([], "apd"))


def test_an_end_that_is_not_zero_does_not_read_as_zero_beside_a_verdict():
    ahead = paired_difference({0: 0.0102, 1: 0.0145, 2: 0.02}, dict.fromkeys(range(3), 0.0), 0.90)
    near = replace_low(ahead, 0.0002)
    assert (near.verdict, digits_of(near)) == ("above", 2)
    assert "+0.02" in interval(near)
    undecided = replace_low(ahead, -0.0002)
    assert digits_of(undecided) == 1
    assert "[0.0," in interval(undecided)


def replace_low(difference, low):
    return difference._replace(low=low)


def test_arms_added_to_apd_are_held_against_both(comparison):
    against_rival, against_apd = added_to_rivals(comparison)
    assert list(against_rival) == list(against_apd) == list(OTHER_METHODS)
    expected = paired_difference(comparison.miou("apd_and_cwd"), comparison.miou(at_best("cwd")))
    assert against_rival["cwd"].found == expected
    assert against_apd["cwd"].found == comparison.difference("apd_and_cwd", "apd")
    told = str(complements(comparison, against_rival, against_apd))
    assert told.startswith(f"**{comparison.title}**: of {len(OTHER_METHODS)} methods")
    assert "complement each other: **CWD**" in told
    for rows, alone in ((against_rival, "the method alone"), (against_apd, "APD alone")):
        assert tally(rows, {key: f"{name} and APD" for key, (name, _) in OTHER_METHODS.items()}, alone) in told
    one = str(complements(comparison, {"cwd": against_rival["cwd"]}, {"cwd": against_apd["cwd"]}))
    assert "of 1 method, adding" in one
    assert "1 setting against APD alone" in one
    assert "0 methods have records" in str(complements(comparison, {}, against_apd))


def test_seconds_are_told_as_shares_of_the_yardsticks(comparison):
    told = str(seconds_in_words(comparison, ["apd", "pixel_kd", "cirkd"]))
    steps = comparison.iterations("student_equal_seconds") / comparison.iterations("apd")
    assert f"CIRKD {4 / steps:.2f}" in told
    assert "- longer, so that the comparison flatters them (1): CIRKD" in told
    assert "0 methods have records" in str(seconds_in_words(comparison.only(["apd"]), ["apd"]))


def table_rows(shown):
    heading, *rows = [
        ["".join(cell.itertext()) for cell in row] for row in ElementTree.fromstring(shown.html).iter("tr")
    ]
    return heading, rows


def test_the_table_of_arms_holds_score_error_difference_and_costs(comparison):
    groups = {arm.key: arm.group for arm in option_variants()}
    rows = corrected_gains(comparison, groups, "apd")
    heading, lines = table_rows(scores_table(comparison, rows, "apd", groups=groups))
    assert len(lines) == 1 + len(groups)
    scope = dict(zip(heading[-8:], lines[1][-8:], strict=True))
    values = comparison.miou("scope_batch")
    mean = sum(values.values()) / 3
    error = math.sqrt(sum((v - mean) ** 2 for v in values.values()) / 2 / 3)
    assert (scope["seeds"], scope["mIoU, %"], scope["standard error"]) == (
        "3",
        f"{100 * mean:.2f}",
        f"{100 * error:.2f}",
    )
    assert scope["minus “+ APD” [95 % interval]"] == interval(rows["scope_batch"].found)
    assert (scope["seconds a step"], scope["times the plain step"]) == ("0.160", "1.60")
    assert scope["peak memory, GB"] == "1.00"
    assert scope["p, corrected"] == f"{rows['scope_batch'].corrected:.3f}"
    sure = {"scope_batch": rows["scope_batch"]._replace(corrected=0.0001)}
    assert table_rows(scores_table(comparison, sure, "apd"))[1][-1][5] == "< 0.001"
    assert "nan" not in scores_table(comparison.only(["cwd"]), {}, "apd").html
    assert "0 records" in scores_table(comparison.only([]), {}, "apd").description


def test_the_settings_of_every_method_are_listed():
    told = str(settings_in_words()).split("\n")
    assert "- **CWD**, beside pixel KD: `logits` 3, `features` 0, `temperature` 4" in told
    assert "- **DKD**, in place of pixel KD: `target` 1, `non_target` 0.25, `temperature` 1" in told
    assert len(told) == len(OTHER_METHODS)


def test_questions_are_answered_by_the_names_of_arms(comparison):
    told = str(outcome([comparison], questions=[("scope_batch", "apd", "a remark")]))
    assert "- “prototypes of the batch” is **below** “+ APD”:" in told
    assert "(a remark)." in told
    partly = str(outcome([comparison.only(["apd", "student"])]))
    assert "“+ APD” is **above** “student alone”" in partly
    assert "- 4 of 5 questions have no seed with both records." in partly
    assert "nan" not in partly
    assert "0 records" in str(outcome([]))


# the chapters


@pytest.mark.parametrize("name", ["04_ablations", "05_rivals"])
@pytest.mark.parametrize("kept", ["none", "half of the first seed"])
def test_a_chapter_works_with_the_records_that_are_there(tmp_path, campaigns, name, kept):
    for campaign, records in campaigns.items():
        first = [record for record in records if record.experiment.seed == 0]
        for record in first[::2] if kept != "none" else []:
            record.save(tmp_path / campaign / f"{record.experiment.name}.json")
    shown = run_cells(name, tmp_path)
    told = "\n".join(f"{item!r}" for item in shown)
    assert len(shown) > 5
    assert not re.search(r"\bnan\b", told)
    assert "planned runs have a record" in told
    assert ("not yet comparable" in told or "fewer than two seeds" in told) == (kept != "none")


def test_records_that_do_not_fit_one_another_are_refused(campaigns):
    stray = made_up_record(campaigns["scenes-rivals"][0].experiment, images="a" * 64)
    with pytest.raises(ValueError, match="images of the evaluation split"):
        beside_methods({**campaigns, "scenes-rivals": [stray]}, CAMPAIGNS_OF_ARMS)
    assert compare([]) == []
