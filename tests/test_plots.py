"""Figures and tables: what they say is what the records say, and they are fit for both modes and for any page."""

import itertools
import re
import xml.etree.ElementTree as ElementTree
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from made_up_records import made_up_record

from apd.data.scenes import Scenes
from apd.data.specs import SCENES
from apd.report.comparisons import corrected_gains
from apd.report.figures import comparison as evidence
from apd.report.figures import curves, method, style, tables, words
from apd.report.figures.forest import forest, term_combinations
from apd.report.figures.style import Panel, markdown, panels, png, table
from apd.report.statistics import compare, paired_difference
from apd.study.campaigns import experiments_of
from apd.study.recipes import METHODS, lengthened, recipe
from apd.training.record import RecordError

RIGHT = {"student": 0.6, "student_equal_seconds": 0.63, "pixel_kd": 0.62, "apd_without_kd": 0.61, "apd": 0.66}
DATA = Scenes(4, height=48, width=64, context_shift=0.5, seed=0, split="val")


def campaign(name="scenes-tiny", **arms):
    right = RIGHT | arms
    planned = experiments_of(name)
    return [made_up_record(e, right[e.name.split("-")[0]] + 0.004 * (e.seed % 3)) for e in planned]


@pytest.fixture(scope="module")
def records():
    return {"scenes-tiny": campaign(), "camvid-small": campaign("camvid-small")}


@pytest.fixture(scope="module")
def comparisons(records):
    return words.comparisons_of(records)


def all_figures(comparisons):
    one_of_each = {method: arm[0] for method, arm in comparisons[0].variants.items()}
    return [
        evidence.scores_over_seeds(comparisons),
        evidence.differences(comparisons, "student"),
        evidence.class_gains(comparisons[0]),
        evidence.score_against_seconds(comparisons[0]),
        curves.term_curves(one_of_each),
        curves.validation_curves(one_of_each, one_of_each["student"]),
        forest(corrected_gains(comparisons[0], METHODS, "student"), comparisons[0].names, axis="points"),
        term_combinations(comparisons[0]),
        method.cosine_matrices({"one": torch.eye(10), "two": -torch.eye(10)}, SCENES.class_names),
    ]


@pytest.fixture(scope="module")
def figures(comparisons):
    return all_figures(comparisons)


def test_line_figures_are_well_formed_svg_with_the_pages_ink_and_a_description(figures):
    for figure in figures:
        svg = ElementTree.fromstring(figure.html)
        assert svg.tag.endswith("svg")
        assert svg.get("aria-label") == figure.description
        assert "currentColor" in figure.html
        for fixed in ("#000000", style.INK, style.FAINT, "fill: black", "#ffffff"):
            assert fixed not in figure.html
        assert "<script" not in figure.html


def test_drawing_the_same_figure_again_gives_the_same_file(figures, comparisons):
    assert evidence.class_gains(comparisons[0]).html == figures[2].html


def test_drawings_that_share_a_page_share_no_name_but_that_of_equal_things(figures):
    by_name: dict[str, str] = {}
    for figure in figures:
        svg = ElementTree.fromstring(figure.html)
        assert "*{" not in figure.html.replace(".apd-drawing *{", "")  # no rule for the whole page
        for element in svg.iter():
            if name := element.get("id"):
                assert by_name.setdefault(name, ElementTree.tostring(element)) == ElementTree.tostring(element)


def test_a_figure_without_a_description_is_refused():
    with style.figure() as figure, pytest.raises(ValueError, match="description is empty"):
        style.drawing(figure, "")


def test_a_description_with_markup_cannot_break_the_page():
    with style.figure() as figure:
        drawn = style.drawing(figure, 'a "<b>" & \\1')
    assert ElementTree.fromstring(drawn.html).get("aria-label") == 'a "<b>" & \\1'


def contrast(first, second):
    def luminance(colour):
        parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    high, low = sorted((luminance(first), luminance(second)), reverse=True)
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("page", ["#ffffff", "#14181e"])
def test_a_methods_colour_stands_out_in_both_modes(method, page):
    assert contrast(style.METHOD_COLOURS[method], page) >= 3


def test_the_figures_tell_the_means_of_the_records(comparisons):
    said = evidence.scores_over_seeds(comparisons).description
    for comparison in comparisons:
        mean = 100 * sum(comparison.miou("apd").values()) / len(comparison.miou("apd"))
        assert f"+ APD {mean:.1f}" in said.split(comparison.title)[1].split("teacher")[0]


def test_a_campaign_that_is_only_partly_there_is_drawn_as_far_as_it_goes(comparisons):
    some = [r for r in campaign() if r.experiment.seed == 0 and r.experiment.distillers]  # the reference is missing
    (first, _second) = compare(some)
    assert "<svg" in evidence.scores_over_seeds([first]).html
    assert "<svg" in evidence.score_against_seconds(first).html
    assert "no seed has" in evidence.differences([first], "student").description
    assert "no seed has" in evidence.class_gains(first).description
    assert "nan" not in tables.campaign_table(first).html + tables.cost_table([first]).html
    told = str(words.outcome([first]))
    assert "not yet comparable" in told
    assert "nan" not in told
    mixed = [r for r in campaign() if r.experiment.seed == 0 or not r.experiment.distillers]
    assert "<svg" in evidence.differences(compare(mixed), "student").html


def test_without_any_record_every_part_says_so_in_words():
    assert "no record" in evidence.scores_over_seeds([]).description
    assert "no seed" in evidence.differences([], "student").description
    assert "no record" in tables.cost_table([]).description
    assert "no record" in tables.answers_table([]).description
    assert "0 records" in str(words.outcome([]))
    assert "records at 0 context shifts" in str(words.gain_by_context([]))
    assert "provenance of 0 records" in tables.provenance_table({"scenes-tiny": []}).description


@pytest.mark.parametrize(("ahead", "verdict"), [(0.06, "above"), (-0.06, "below"), (0.0, "not distinguishable from")])
def test_the_outcome_is_worded_by_what_the_records_say(ahead, verdict):
    right = {"student": 0.6, "apd": 0.6 + ahead}
    wobble = {"student": (0.0, 0.01, 0.02), "apd": (0.01, 0.0, 0.02)}
    runs = [
        made_up_record(recipe("tiny", method, seed=seed), right[method] + wobble[method][seed])
        for method in right
        for seed in range(3)
    ]
    first = str(words.outcome(compare(runs))).split("\n")[2]
    assert first.startswith(f"- “+ APD” is **{verdict}** “student alone”:")
    assert "3 seeds" in first
    short = table_rows(tables.answers_table(compare(runs)))
    (answer,) = next(iter(short.values())).values()
    assert answer.split()[0] == verdict.replace("not distinguishable from", "undecided")
    assert list(short.values())[1] == {"scenes, context shift 0.5": "too few runs\u00a0–"}


def test_the_gain_by_context_is_the_difference_of_the_two_gains():
    shifted = [
        made_up_record(recipe("tiny", method, seed=seed, context_shift=shift), 0.6 + gain + 0.001 * seed)
        for method, shift, gain in [("student", 0.0, 0), ("apd", 0.0, 0.01), ("student", 1.0, 0), ("apd", 1.0, 0.05)]
        for seed in range(3)
    ]
    comparisons = compare(shifted)
    gains = [paired_difference(c.miou("apd"), c.miou("student")) for c in comparisons]
    told = str(words.gain_by_context(comparisons))
    assert "**above**" in told
    assert f"{100 * (gains[1].mean - gains[0].mean):+.1f}" in told


def of_length(times, gains):
    runs = [
        made_up_record(
            lengthened(recipe("tiny", method, seed=seed), student=times, teacher=1), 0.6 + gain + 0.001 * seed
        )
        for method, gain in gains.items()
        for seed in range(3)
    ]
    return replace(compare(runs)[0], remark=f"{times} times the steps")


def test_the_gain_by_length_is_told_for_every_question_that_both_lengths_answer():
    short, long = of_length(1, {"student": 0, "pixel_kd": 0.0, "apd": 0.05}), of_length(4, {"student": 0, "apd": 0.01})
    told = str(words.gain_by_length(short, long, [("apd", "student"), ("apd", "pixel_kd"), ("apd", "apd_without_kd")]))
    title, _, line = told.splitlines()
    assert title == f"**{short.title}**"
    first, second = (100 * c.difference("apd", "student").mean for c in (short, long))
    assert f"“+ APD” over “student alone” is {first:+.1f}" in line
    assert "after 200 steps" in line
    assert f"after 800. The second is **below** the first: −{first - second:.1f}" in line
    assert "no record of both" in str(words.gain_by_length(short, long, [("pixel_kd", "apd_without_kd")]))


def test_a_remark_tells_comparisons_on_the_same_data_apart_in_their_titles():
    assert of_length(4, {"student": 0}).title == "scenes, context shift 0.5, 4 times the steps"


def test_a_difference_that_rounds_to_nothing_has_no_sign():
    assert tables.points(-0.0002) == tables.points(0.0002) == "0.0"
    assert (tables.points(0.0123), tables.points(-0.0123), tables.points(float("nan"))) == ("+1.2", "−1.2", "–")


def test_campaigns_are_read_with_a_sentence_on_how_far_they_got(tmp_path):
    planned = experiments_of("scenes-tiny")
    for experiment in planned[:3]:
        made_up_record(experiment).save(tmp_path_folder(tmp_path) / f"{experiment.name}.json")
    stale = replace(planned[3], data=replace(planned[3].data, train_images=7))
    made_up_record(stale).save(tmp_path / "scenes-tiny" / "stale.json")
    records, progress = words.read_campaigns(["scenes-tiny", "camvid-small"], tmp_path)
    assert (len(records["scenes-tiny"]), len(records["camvid-small"])) == (3, 0)
    assert f"scenes-tiny: 3 of {len(planned)} planned runs have a record; 1 of other settings left out" in str(progress)
    assert "`apd campaign camvid-small`" in str(progress)


def tmp_path_folder(tmp_path):
    (tmp_path / "scenes-tiny").mkdir(exist_ok=True)
    return tmp_path / "scenes-tiny"


def test_a_folder_of_records_that_is_not_there_or_damaged_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such folder; it should hold scenes-tiny"):
        words.read_campaigns(["scenes-tiny"], tmp_path / "absent")
    (tmp_path_folder(tmp_path) / "broken.json").write_text("{")
    with pytest.raises(RecordError, match=r"broken\.json"):
        words.read_campaigns(["scenes-tiny"], tmp_path)


def table_rows(shown):
    """A table's cells by row and column heading."""
    heading, *rows = [[cell.text or "" for cell in row] for row in ElementTree.fromstring(shown.html).iter("tr")]
    return {row[0]: dict(zip(heading[1:], row[1:], strict=True)) for row in rows}


def test_tables_hold_the_records_numbers_and_scroll_by_keyboard(comparisons, records):
    shown = tables.campaign_table(comparisons[0])
    rows = table_rows(shown)
    assert [row["seeds"] for row in rows.values()] == ["5"] * 5
    mean = 100 * sum(comparisons[0].miou("apd").values()) / 5
    assert rows["+ APD"]["mIoU, %"].startswith(f"{mean:.1f}")
    assert 'tabindex="0" role="region" aria-label="' in shown.html
    assert "0123456789" in tables.provenance_table(records).html  # the commit
    assert f"{1.0:.2f}" in tables.cost_table(comparisons).html


def test_text_in_tables_and_captions_is_escaped():
    assert "<b>" not in table(pd.DataFrame({"a": ["<b>"]}), "<b>").html
    cell = Panel([np.zeros((2, 2, 3), np.uint8)], "<b>", '"<i>"')
    assert not re.search(r"<b>|<i>", panels([cell], columns=1).html)
    assert "<b>" in str(markdown("<b>"))


def test_a_picture_of_the_wrong_kind_is_refused():
    with pytest.raises(ValueError, match=r"float64 of shape \(2, 2, 3\)"):
        png(np.zeros((2, 2, 3)))


def test_labels_move_apart_and_keep_their_order():
    heights = [1.0, 1.1, 5.0, 1.05]
    placed = curves.spread_out(heights, 0.5)
    assert sorted(range(4), key=lambda i: placed[i]) == sorted(range(4), key=lambda i: heights[i])
    ordered = sorted(placed)
    assert min(b - a for a, b in itertools.pairwise(ordered)) >= 0.5 - 1e-9
    assert placed[2] == 5.0
    assert sum(placed) == pytest.approx(sum(heights))
