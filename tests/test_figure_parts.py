"""What figures are made of: rows of seeds, means and intervals, names beside marks, heat maps."""

import itertools

import numpy as np
import pytest
from matplotlib.text import Text

from apd.report.figures import style
from apd.report.figures.curves import label_marks
from apd.report.figures.forest import Row, draw_rows


def drawn_rows(rows, limits=None):
    """Horizontal lines (start, end, height), bars, seeds and arrowheads of rows, read back from the axes."""
    with style.figure() as figure:
        axes = figure.subplots()
        if limits:
            axes.set_xlim(*limits)
        draw_rows(axes, rows, aside=0.25)
        lines = [line.get_xydata().round(6).tolist() for line in axes.lines if len(line.get_xydata()) == 2]
        marks = {
            kind: [tuple(at) for line in axes.lines if line.get_marker() == kind for at in line.get_xydata()]
            for kind in "|<>"
        }
        marks = {kind: [at for at in places if np.isfinite(at).all()] for kind, places in marks.items()}
        seeds = [tuple(point) for part in axes.collections for point in part.get_offsets().tolist()]
        return lines, marks, seeds


def test_a_row_shows_its_mean_its_interval_and_every_seed():
    rows = [
        Row(0, [1.0, 2.0, 6.0], "#123456", (-1.0, 7.0)),
        Row(1.5, [4.0], "#654321", (np.nan,) * 2),
    ]
    lines, marks, seeds = drawn_rows(rows)
    assert [[-1.0, 0.0], [7.0, 0.0]] in lines
    single = [x for line in lines for x, place in line if place == 1.5]
    assert not np.ptp([x for x in single if np.isfinite(x)]), "one seed has no interval"
    assert set(marks["|"]) == {(3.0, 0.0), (4.0, 1.5)}
    assert sorted(seeds) == [(1.0, 0.25), (2.0, 0.25), (4.0, 1.75), (6.0, 0.25)]
    assert not marks["<"] + marks[">"]


@pytest.mark.parametrize(
    ("seeds", "ends", "arrowheads"),
    [
        ([1.0, 2.0], (0.5, 2.5), ""),
        ([1.0, 2.0], (-9.0, 2.5), "<"),
        ([1.0, 2.0], (0.5, 9.0), ">"),
        ([1.0, 2.0], (-9.0, 9.0), "<>"),
        ([7.0, 8.0], (np.nan, np.nan), ">"),
        ([-7.0], (), "<"),
        ([], (-1.0, 1.0, 2.0), "<"),
    ],
)
def test_an_arrowhead_says_where_a_row_goes_on(seeds, ends, arrowheads):
    _, marks, _ = drawn_rows([Row(0, seeds, "#123456", ends)], limits=(0, 3))
    assert "".join(kind for kind in "<>" if marks[kind]) == arrowheads


@pytest.mark.parametrize("heights", [[1.0, 1.01, 1.02, 9.0], [5.0] * 6, [1.0, 2.0, 3.0]])
def test_names_beside_marks_do_not_overlap_and_stay_within_the_axes(heights):
    with style.figure(height=4) as figure:
        axes = figure.subplots()
        axes.set(xlim=(0, 6), ylim=(0, 10))
        marks = {f"method number {i}": (i, height) for i, height in enumerate(heights)}
        label_marks(axes, marks, {key: key for key in marks})
        figure.draw_without_rendering()
        boxes = sorted((Text.get_window_extent(text) for text in axes.texts), key=lambda box: box.y0)
        room = axes.get_window_extent()
    assert all(low.y1 <= high.y0 + 1 for low, high in itertools.pairwise(boxes))
    assert all(box.x0 > room.x1 for box in boxes)
    assert room.y0 - 12 < boxes[0].y0 < boxes[-1].y1 < room.y1 + 12
