"""Figures that answer a pointer: marks are where they are drawn, cells are told what they are, nothing is fetched."""

import json
import re
import xml.etree.ElementTree as ElementTree

import pytest
import torch

from apd.data.scenes import Scenes
from apd.data.specs import SCENES
from apd.report.figures.method import image_pixels
from apd.report.figures.style import Mark, Panel, View, cell_panels, figure, hoverable, view_of

HREF = "{http://www.w3.org/1999/xlink}href"
SAMPLE = Scenes(1, height=48, width=64, context_shift=0.5, seed=0, split="val")[0]


def data_of(shown):
    return json.loads(re.search(r'<script type="application/json">(.*?)</script>', shown.html, re.DOTALL)[1])


def drawn(points, texts=None, description="two panels of points"):
    """Points in two panels, the second of them on a logarithmic axis, with a mark on each."""
    with figure(width=4, height=3) as fig:
        left, right = fig.subplots(1, 2)
        right.set_xscale("log")
        marks = []
        for axes in (left, right):
            axes.scatter(*zip(*points, strict=True), s=12, color="#0e9384")
            marks += [Mark(axes, x, y, texts or (f"{x:g}", f"{y:g}"), group=f"{x:g}") for x, y in points]
        return hoverable(fig, marks, description)


def test_a_mark_is_where_its_point_is_drawn():
    points = [(1.0, 2.0), (3.5, -1.0), (2.0, 7.25)]
    shown = drawn(points)
    svg = ElementTree.fromstring(re.search(r"<svg.*</svg>", shown.html, re.DOTALL)[0])
    placed = [(float(use.get("x")), float(use.get("y"))) for use in svg.iter("{http://www.w3.org/2000/svg}use")]
    for x, y, _, _ in data_of(shown)["marks"]:
        assert min((x - px) ** 2 + (y - py) ** 2 for px, py in placed) < 0.1**2, (x, y)
    assert len(data_of(shown)["marks"]) == 6


def test_a_mark_tells_its_lines_and_knows_its_group():
    data = data_of(drawn([(1.0, 2.0), (3.0, 4.0)]))
    said = [[data["lines"][i] for i in lines] for _, _, lines, _ in data["marks"]]
    assert said == [["1", "2"], ["3", "4"]] * 2
    assert [group for *_, group in data["marks"]] == ["1", "3", "1", "3"]


def test_nothing_is_fetched_and_the_script_finds_its_own_figure():
    for shown in (drawn([(1.0, 2.0)]), cells()):
        assert not re.search(r"(src|href)=\"(?!data:|#)", shown.html)
        assert "http" not in re.sub(r'"http://www.w3.org/[^"]*"', "", shown.html)
        (name,) = re.findall(r'<div class="apd-live" id="([^"]+)"', shown.html)
        assert f'getElementById("{name}")' in shown.html
        assert shown.html.count("<script") == shown.html.count("</script>") == 2


def test_a_reader_without_pointer_or_sight_is_served():
    for shown in (drawn([(1.0, 2.0)]), cells()):
        assert 'tabindex="0" role="group" aria-label="interactive figure.' in shown.html
        assert 'role="status"' in shown.html
        assert "arrow keys" in shown.html


def test_equal_figures_give_equal_files_and_different_ones_different_names():
    name = re.compile(r'id="(apd-live-[^"]+)"')
    assert drawn([(1.0, 2.0)]).html == drawn([(1.0, 2.0)]).html
    assert name.search(drawn([(1.0, 2.0)]).html)[1] != name.search(drawn([(1.0, 3.0)]).html)[1]


def test_text_with_markup_cannot_break_out_of_the_data():
    shown = drawn([(1.0, 2.0)], texts=("</script><b>", '"quoted" & more'))
    assert data_of(shown)["lines"] == ["</script><b>", '"quoted" & more']
    assert "</script><b>" not in shown.html


def test_a_figure_without_a_mark_is_refused():
    with figure() as fig, pytest.raises(ValueError, match="marks is empty"):
        hoverable(fig, [], "nothing")


LABELS = torch.tensor([[0, 3, 255], [3, 3, 8]])


def cells(views=None):
    views = views or [View("labels", LABELS), View("sure", LABELS, torch.full((2, 3), 0.874))]
    return cell_panels(
        [Panel([image_pixels(SAMPLE.image_3HW)], "image")], views, SCENES.class_names, columns=1, least="9rem"
    )


def test_every_cell_is_told_by_every_view_row_by_row():
    data = data_of(cells())
    assert (data["width"], data["height"]) == (3, 2)
    assert data["names"][3] == "road"
    labels, sure = data["views"]
    assert labels == {"name": "labels", "labels": [0, 3, -1, 3, 3, 8]}
    assert sure["scores"] == [87] * 6


def test_views_on_different_grids_are_refused():
    with pytest.raises(ValueError, match=r"on the grids \[\(2, 2\), \(2, 3\)\]"):
        cells([View("one", LABELS), View("other", LABELS[:, :2])])
    with pytest.raises(ValueError, match="at least one view"):
        cell_panels([], [], SCENES.class_names, columns=1, least="9rem")


def test_a_view_chooses_among_present_classes():
    logits_KHW = torch.zeros(10, 2, 3)
    logits_KHW[4], logits_KHW[3] = 9.0, 2.0
    present_K = torch.zeros(10, dtype=torch.bool)
    present_K[[0, 3]] = True
    found = view_of("one", logits_KHW, present_K)
    assert (found.labels_hw == 3).all()
    expected = torch.tensor([0.0, 2.0]).softmax(0)[1]
    assert torch.allclose(found.scores_hw, expected.expand(2, 3))
