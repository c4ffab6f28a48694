"""Figures say what records and labels say, fit both modes and any page, and answer a pointer without a network."""

import re
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest
import torch
from made_up_records import made_up_campaign, method_in
from page_blocks import data_of

from apd.data.scenes import Scenes
from apd.data.specs import SCENES
from apd.report.comparisons import by_context_shift, corrected_gains, holm_corrected, sweep
from apd.report.figures import method, style
from apd.report.figures.answers import interval, points
from apd.report.figures.curves import sweep_figure, sweep_table, term_curves, validation_curves
from apd.report.figures.forest import Row, draw_rows, forest, limits, scores_over_seeds
from apd.report.figures.style import Panel, View, cell_panels
from apd.report.statistics import compare, mean_interval
from apd.study.recipes import METHODS

RIGHT = {"student": 0.6, "student_equal_seconds": 0.63, "pixel_kd": 0.62, "apd_without_kd": 0.61, "apd": 0.66}
INSIDE, OUTSIDE = ([1.0, 2.0], (0.5, 2.5), ""), ([1.0, 2.0], (-9.0, 9.0), "<>")
ONE_SIDED = ([7.0, 8.0], (np.nan, np.nan), ">"), ([-7.0], (), "<")
LABELS = torch.tensor([[0, 3, 255], [3, 3, 8]])


def records_of(name="scenes-tiny", keep=lambda e: True, **other):
    return made_up_campaign(name, lambda e: (RIGHT | other)[method_in(e)] + 0.004 * (e.seed % 3), keep)


def differences(**values):
    return holm_corrected({name: mean_interval(dict(enumerate(seeds))) for name, seeds in values.items()})


ROWS = differences(clear=[0.030, 0.031, 0.032], wide=[-0.010, 0.012, 0.020], single=[-0.01], lost=[-0.30, -0.31, -0.32])
NAMES = {"clear": "clearly better", "wide": "who knows", "single": "one seed", "lost": "far away"}


@pytest.fixture(scope="module")
def comparisons():
    return [*compare(records_of()), *compare(records_of("camvid-small"))]


def all_figures(comparisons):
    one_of_each = {method: runs[0] for method, runs in comparisons[0].variants.items()}
    return [
        scores_over_seeds(*comparisons),
        term_curves(one_of_each),
        validation_curves(one_of_each, one_of_each["student"]),
        forest(
            {c.title: corrected_gains(c, METHODS, "student") for c in comparisons}, comparisons[0].names, axis="points"
        ),
        forest({"a title": ROWS}, NAMES, axis="points"),
        sweep_figure([sweep(by_context_shift(records_of()), "apd", "student")]),
    ]


@pytest.fixture(scope="module")
def figures(comparisons):
    return all_figures(comparisons)


def texts(drawn):
    """Texts of a figure and whether they are bold, from the top."""
    elements = (e for e in ElementTree.fromstring(drawn.html).iter() if e.tag.endswith("text"))
    return [("".join(e.itertext()), bool(re.search("bold|700", e.get("style", "")))) for e in elements]


def test_line_figures_are_well_formed_svg_with_the_pages_ink_and_a_description(figures, comparisons):
    names: list[str] = []
    for figure in figures:
        assert "currentColor" in figure.html
        for wrong in ("#000000", style.INK, style.FAINT, "fill: black", "#ffffff", "<script", "nan"):
            assert wrong not in figure.html
        assert "*{" not in figure.html.replace(".apd-drawing *{", "")  # no rule for the whole page
        page = ElementTree.fromstring(f"<div>{figure.html}</div>")
        assert {e.get("aria-label") for e in page.iter() if e.tag.endswith("svg")} == {figure.description}
        names += [name for element in page.iter() if (name := element.get("id"))]
    assert len(set(names)) == len(names)  # neither drawings of a page nor arrangements of one share a name
    assert [figure.html for figure in all_figures(comparisons)] == [figure.html for figure in figures]


def test_figures_give_the_means_of_the_records_and_name_their_marks(comparisons, figures, monkeypatch):
    for comparison in comparisons:
        mean = 100 * sum(comparison.values("apd").values()) / len(comparison.values("apd"))
        assert f"+ APD {mean:.1f}" in scores_over_seeds(comparison).description
    found = sweep(by_context_shift(records_of()), "apd", "student")
    assert f"{interval(found.gains[1.0])} at 1" in figures[-1].description
    assert interval(found.gains[1.0]) in sweep_table([found]).html
    for teacher, drawn, not_drawn in ((0.45, "dashed", "arrow"), (0.95, "arrow", "dashed")):
        monkeypatch.setattr(type(comparisons[0]), "teacher_score", teacher)
        caption = scores_over_seeds(comparisons[0]).caption
        assert (drawn in caption, not_drawn in caption) == (True, False)


def test_a_figure_without_a_description_and_a_slider_over_one_frame_are_refused():
    with style.figure() as figure, pytest.raises(ValueError, match="description is empty"):
        style.drawing(figure, "")
    with pytest.raises(ValueError, match="over 1 frames: expected at least two"):
        style.slider(frames("a"), "c")


@pytest.mark.parametrize("colour", [*(style.METHOD_COLOURS[method] for method in METHODS), style.VARIANT_COLOUR])
@pytest.mark.parametrize("page", ["#ffffff", "#14181e"])
def test_a_methods_colour_stands_out_in_both_modes(colour, page):
    def luminance(colour):
        parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    high, low = sorted((luminance(colour), luminance(page)), reverse=True)
    assert (high + 0.05) / (low + 0.05) >= 3


def test_a_campaign_that_is_only_partly_there_is_drawn_as_far_as_it_goes():
    first = compare(records_of(keep=lambda e: e.seed == 0 and e.distillers))[0]  # the reference is missing
    assert "<svg" in scores_over_seeds(first).html
    assert "no record" in scores_over_seeds(first.only([])).description
    assert "0 context shifts" in sweep_figure([sweep({})]).description
    assert "0 rows have a seed in common" in forest({"scenes": {}}, {}, axis="points").description


def drawn_rows(rows, limits=None):
    """Lines, and by their marker bars, seeds and arrowheads of rows, read back from the axes."""
    with style.figure() as figure:
        axes = figure.subplots()
        if limits:
            axes.set_xlim(*limits)
        draw_rows(axes, rows, aside=0.25)
        lines = [line.get_xydata().round(6).tolist() for line in axes.lines if line.get_linestyle() == "-"]
        marks = {mark: [] for mark in "|<>o"}
        for line in axes.lines:
            marks.get(line.get_marker(), []).extend(tuple(at) for at in line.get_xydata() if np.isfinite(at).all())
        return lines, marks


def test_a_row_shows_its_mean_its_interval_and_every_seed():
    rows = [Row(0, [1.0, 2.0, 6.0], "#123456", (-1.0, 7.0)), Row(1.5, [4.0], "#654321", (np.nan,) * 2)]
    lines, marks = drawn_rows(rows)
    assert [[-1.0, 0.0], [7.0, 0.0]] in lines
    assert all(np.isnan(x) for line in lines for x, place in line if place == 1.5), "one seed has no interval"
    assert set(marks["|"]) == {(3.0, 0.0), (4.0, 1.5)}
    assert sorted(marks["o"]) == [(1.0, 0.25), (2.0, 0.25), (4.0, 1.75), (6.0, 0.25)]
    assert not marks["<"] + marks[">"]


@pytest.mark.parametrize(("seeds", "ends", "arrowheads"), [INSIDE, OUTSIDE, *ONE_SIDED])
def test_an_arrowhead_says_where_a_row_goes_on(seeds, ends, arrowheads):
    _, marks = drawn_rows([Row(0, seeds, "#123456", ends)], limits=(0, 3))
    assert "".join(kind for kind in "<>" if marks[kind]) == arrowheads


def test_a_forest_has_every_row_below_its_group_and_a_mean_is_bold_where_it_is_significant():
    groups = {"clear": "first", "wide": "first", "single": "second", "lost": "second"}
    drawn = forest({"": ROWS}, NAMES, axis="points", groups=groups)
    assert all(f"{name} {interval(ROWS[key].found)}" in drawn.description for key, name in NAMES.items())
    expected = ["first", "clearly better", "who knows", "second", "one seed", "far away"]
    fewer = forest({"a": {key: ROWS[key] for key in ("clear", "single")}, "b": ROWS}, NAMES, axis="p", groups=groups)
    for each in (drawn, fewer):  # the first panel may lack rows of a group
        labels = [word for word in texts(each) if word[0] in expected][: len(expected)]
        assert labels == [(name, name in ("first", "second")) for name in expected]
    bold = dict(texts(drawn))
    significant = {key: row.significant for key, row in ROWS.items()}
    assert {key: bold[points(row.found.mean)] for key, row in ROWS.items()} == significant
    assert [key for key, found in significant.items() if found] == ["clear", "lost"]


def test_panels_stand_a_second_time_below_one_another_for_a_phone_each_with_the_labels_of_its_own_rows():
    few = {key: ROWS[key] for key in ("single", "lost")}
    drawn = forest({"all": ROWS, "few": few}, NAMES, axis="mIoU", groups=dict(zip(ROWS, "aabb", strict=True)))
    beside, below = re.findall("<svg.*?</svg>", drawn.html, re.DOTALL)
    labels = ["a", NAMES["clear"], NAMES["wide"], "b", NAMES["single"], NAMES["lost"]]
    for svg, expected in ((beside, labels), (below, labels + labels[3:])):
        assert [text for text, _ in texts(style.Drawing(svg, "")) if text in labels] == expected
    assert drawn.caption.startswith("mIoU. Bar")


def test_an_outlying_row_does_not_squeeze_the_others_and_a_few_that_rise_by_degrees_are_drawn_to_scale():
    low, high = limits([row.found for row in ROWS.values()])
    assert -12 < low < -1
    assert 3 < high < 12
    rising = differences(**{str(i): [0.001 * 2**i] * 2 for i in range(6)})
    assert limits([row.found for row in rising.values()])[1] > 3.2


def cells(*views):
    views = views or (View("labels", LABELS), View("sure", LABELS, torch.full((2, 3), 0.874)))
    image = Panel([np.zeros((4, 6, 3), np.uint8)], "image")
    return cell_panels([image], views, SCENES.class_names, columns=1, least="9rem")


def test_nothing_is_fetched_and_a_reader_without_pointer_or_sight_is_served():
    shown = cells()
    assert not re.search(r"(src|href)=\"(?!data:|#)", shown.html)
    assert "http" not in re.sub(r'"http://www.w3.org/[^"]*"', "", shown.html)
    (name,) = re.findall(r'<div class="apd-live" id="([^"]+)"', shown.html)
    assert f'getElementById("{name}")' in shown.html
    assert shown.html.count("<script") == shown.html.count("</script>") == 2
    assert 'tabindex="0" role="group" aria-label="interactive figure.' in shown.html
    assert 'role="status"' in shown.html
    assert "arrow keys" in shown.html
    assert cells().html == shown.html
    assert name not in cells(View("one", LABELS)).html


def test_every_cell_is_named_by_every_view_row_by_row():
    data = data_of(cells())
    assert (data["width"], data["height"], data["names"][3]) == (3, 2, "road")
    assert data["views"][0] == {"name": "labels", "labels": [0, 3, -1, 3, 3, 8]}
    assert data["views"][1]["scores"] == [87] * 6
    with pytest.raises(ValueError, match=r"on the grids \[\(2, 2\), \(2, 3\)\]"):
        cells(View("one", LABELS), View("other", LABELS[:, :2]))


def frames(*names):
    image = np.zeros((4, 6, 3), np.uint8)
    return [(name, [Panel([image + index], f"{name} a"), Panel([image], "b")]) for index, name in enumerate(names)]


def test_a_slider_holds_all_its_frames_and_shows_them_without_a_script():
    drawn = style.Drawing("<svg></svg>", "a curve")
    shown = style.slider([*frames("shift 0", "shift <1>"), ("last", drawn)], "what <changes>", label="context shift")
    assert re.findall(r'<p class="apd-frame-name">(.*?)</p>', shown.html) == ["shift 0", "shift &lt;1&gt;", "last"]
    assert "<figcaption>what &lt;changes&gt;</figcaption>" in shown.html
    assert "apd-off" not in re.sub(r"<(style|script)>.*?</\1>", "", shown.html, flags=re.DOTALL)
    assert shown.html.count("<img") == 4
    assert re.search(r'<label[^>]*>context shift: .*<input type="range" [^>]*min="0" max="2" value="0"', shown.html)
    assert "http" not in shown.html
    (name,) = re.findall(r'class="apd-figure apd-slider" id="([^"]+)"', shown.html)
    assert f'getElementById("{name}")' in shown.html
    assert shown.description.splitlines()[0] == "what <changes>"
    assert "last: a curve" in shown.description
    assert style.slider(frames("a", "b"), "c").html == style.slider(frames("a", "b"), "c").html


def test_errors_are_red_where_wrong_grey_where_right_white_where_ignored_and_images_chosen_by_their_rank():
    pixels_HW3 = method.error_pixels(torch.tensor([[0, 0, 0]]), torch.tensor([[0, 1, 255]]), 255)
    assert pixels_HW3[0].tolist() == [list(method.RIGHT), list(method.WRONG), [255, 255, 255]]
    assert method.at_quantiles(torch.tensor([0.5, -0.2, 0.1, 0.3, 0.0]), (0.0, 0.5, 1.0)) == [1, 2, 0]


def test_predictions_have_the_share_of_valid_pixels_that_is_right():
    sample = Scenes(1, height=48, width=64, context_shift=0.5, seed=0, split="val")[0]
    labels_HW = sample.labels_HW
    half = labels_HW.clone()
    half[:, ::2] = (half[:, ::2] + 1) % 10
    both = {"all": labels_HW, "half": half, "none": (labels_HW + 1) % 10}
    valid_HW = labels_HW != 255
    share = 100 * float(((half == labels_HW) & valid_HW).sum() / valid_HW.sum())
    strips = method.prediction_strips([(sample, both)] * 2, SCENES)
    assert (strips.html.count("<img"), strips.description.count("ground truth")) == (10, 2)
    for name, expected in (("all", "100"), ("half", f"{share:.0f}"), ("none", "0")):
        assert f"{name} ({expected} % right)" in strips.description


def test_observation_maps_show_present_classes_only():
    present = torch.zeros(10, dtype=torch.bool)
    present[[0, 3]] = True
    shown = method.observation_maps(torch.zeros(10, 3, 4), torch.zeros(10, 3, 4), present, SCENES)
    assert shown.html.count("<img") == 4
    assert "images: sky; road" in shown.description


def test_cosines_that_are_not_there_stay_empty_few_hold_their_numbers_and_many_a_colour_bar():
    square_KK = torch.full((10, 10), torch.nan)
    square_KK[:3, :3] = 0.25
    said = method.cosine_matrices({"some": square_KK, "none": square_KK * torch.nan}, SCENES.class_names)
    assert "some: +0.25; none: +nan" in said.description
    drawn = method.cosine_matrices({"one": torch.tensor([[1.0, -0.25], [-0.001, torch.nan]])}, ["a", "b"])
    assert [text for text, _ in texts(drawn) if re.search(r"\d", text)] == ["1.00", "−0.25", "0.00"]
    large = method.cosine_matrices({"one": torch.eye(10)}, SCENES.class_names).html
    assert "cosine" in large
    assert "0.00<" not in large
