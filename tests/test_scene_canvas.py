"""The shapes scenes are made of, against a slow look at every cell."""

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from apd.data.scenes.canvas import GROUND_PARTS, Canvas, cells

HEIGHT, WIDTH = 40, 30
coordinate = st.floats(-20, 60, width=32)


def centres() -> tuple[np.ndarray, np.ndarray]:
    return np.meshgrid(np.arange(HEIGHT) + 0.5, np.arange(WIDTH) + 0.5, indexing="ij")


def painted(draw) -> np.ndarray:
    canvas = Canvas(HEIGHT, WIDTH)
    draw(canvas)
    return canvas.parts_HW == 1


@settings(max_examples=150, deadline=None)
@given(st.lists(st.floats(0, 6.28), min_size=3, max_size=5, unique=True), coordinate, coordinate, st.floats(2, 30))
@pytest.mark.parametrize("sense", [1, -1])
def test_a_polygon_fills_the_cells_on_the_inner_side_of_all_its_edges(sense, angles, x, y, radius):
    angles = sorted(angles)[::sense]
    corners = [(x + radius * np.cos(a), y + 0.7 * radius * np.sin(a)) for a in angles]
    edges = list(zip(corners, corners[1:] + corners[:1], strict=True))
    assume(all(abs(xa - xb) + abs(ya - yb) > 0.05 for (xa, ya), (xb, yb) in edges))
    rows, columns = centres()
    # Positive on the inner side of every edge; cells closer to an edge than rounding may fall either way.
    margin = np.min(
        [
            sense * ((xb - xa) * (rows - ya) - (yb - ya) * (columns - xa)) / np.hypot(xb - xa, yb - ya)
            for (xa, ya), (xb, yb) in edges
        ],
        axis=0,
    )
    inside = painted(lambda canvas: canvas.polygon(1, corners))
    sure = np.abs(margin) > 1e-3
    np.testing.assert_array_equal(inside[sure], margin[sure] > 0)


@settings(max_examples=100, deadline=None)
@given(coordinate, coordinate, st.floats(0.3, 25), st.floats(0.3, 25))
@pytest.mark.parametrize("shape", ["ellipse", "ellipses"])
def test_an_ellipse_fills_the_cells_within_it_whether_it_is_small_or_large(shape, x, y, across, down):
    rows, columns = centres()
    distance = ((columns - x) / across) ** 2 + ((rows - y) / down) ** 2
    inside = painted(
        lambda canvas: (
            canvas.ellipse(1, x, y, across, down)
            if shape == "ellipse"
            else canvas.ellipses(1, [(x, y, across, down), (x, y, 0.9 * across, 0.9 * down)])
        )
    )
    sure = np.abs(distance - 1) > 1e-3
    np.testing.assert_array_equal(inside[sure], distance[sure] < 1)


@given(st.floats(-50, 90), st.floats(0, 60))
def test_cells_are_those_whose_centre_lies_in_the_interval(low, length):
    high = low + length
    first, last = cells(low, high, WIDTH)
    expected = [i for i in range(WIDTH) if low <= i + 0.5 < high]
    assert list(range(first, last)) == expected


def test_spans_along_rows_and_along_columns_fill_the_same_cells_once_turned():
    start, end = np.array([3.2, 5.0, 40.0], np.float32), np.array([9.4, 5.2, -3.0], np.float32)
    along_rows = Canvas(30, 30)
    along_rows.rows_between(1, 4, start, end)
    along_columns = Canvas(30, 30)
    along_columns.columns_between(1, 4, start, end)
    np.testing.assert_array_equal(along_rows.parts_HW, along_columns.parts_HW.T)
    assert along_rows.parts_HW[4].nonzero()[0].tolist() == [3, 4, 5, 6, 7, 8]
    assert not along_rows.parts_HW[6].any()


def test_a_shadow_darkens_ground_once_and_leaves_objects_alone():
    canvas = Canvas(HEIGHT, WIDTH)
    canvas.parts_HW[:, :15] = 1
    canvas.parts_HW[:, 15:] = 2 * GROUND_PARTS
    for _ in range(2):
        canvas.shadow(15, 20, 8, 5)
    assert canvas.parts_HW[20, 10] == 1 + GROUND_PARTS
    assert canvas.parts_HW[20, 2] == 1
    assert (canvas.parts_HW[:, 15:] == 2 * GROUND_PARTS).all()
