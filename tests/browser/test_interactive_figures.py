"""Figures that answer a pointer, in a built book: by mouse, by thumb and by keyboard, in both modes, on a phone."""

import json
from functools import partial

import pytest

CHAPTER = "notebooks/06_perspectives.html"
PHONE = {"width": 390, "height": 844}


@pytest.fixture
def open_chapter(open_quietly, book):
    if not (book / CHAPTER).exists():
        pytest.skip("this book has no chapter with interactive figures")
    return partial(open_quietly, CHAPTER)


@pytest.fixture(params=["light", "dark"])
def chapter(open_chapter, request):
    with open_chapter(color_scheme=request.param) as page:
        yield page


def figure_of(page, kind):
    found = page.locator(f".apd-live[data-live={kind}]").first
    found.scroll_into_view_if_needed()
    return found


def data_of(figure):
    return json.loads(figure.locator("script[type='application/json']").text_content())


def place_of_a_mark(figure, index):
    """Where a mark is on the screen, and what it should say."""
    data = data_of(figure)
    x, y, said = data["marks"][index][:3]
    m = figure.evaluate("""root => {const m = root.querySelector("svg").getScreenCTM(); return [m.a, m.e, m.d, m.f]}""")
    return {"x": m[0] * x + m[1], "y": m[2] * y + m[3], "said": [data["lines"][i] for i in said]}


def test_every_interactive_figure_has_come_to_life(chapter):
    assert chapter.locator(".apd-live").count() >= 3
    assert chapter.locator(".apd-live:not([data-live])").count() == 0


@pytest.mark.parametrize("size", [None, PHONE])
def test_a_mark_under_the_pointer_says_what_it_is(chapter, size):
    if size:
        chapter.set_viewport_size(size)
    figure = figure_of(chapter, "marks")
    mark = place_of_a_mark(figure, 5)
    chapter.mouse.move(mark["x"], mark["y"])
    tip = figure.locator(".apd-tip")
    assert tip.is_visible()
    # another mark may lie in the same place; the tip then tells that one's lines
    assert len(tip.inner_text().splitlines()) == len(mark["said"])
    box = tip.bounding_box()
    assert box["x"] >= 0
    assert box["x"] + box["width"] <= chapter.viewport_size["width"]
    chapter.mouse.move(2, 2)
    assert not tip.is_visible()


def test_arrow_keys_go_through_the_marks_frame_their_group_and_escape_leaves_them(chapter):
    figure = figure_of(chapter, "marks")
    marks = data_of(figure)["marks"]
    figure.focus()
    for index in range(3):
        chapter.keyboard.press("ArrowRight")
        assert figure.locator(".apd-tip").inner_text().splitlines() == place_of_a_mark(figure, index)["said"]
        alike = sum(mark[3] == marks[index][3] for mark in marks)
        assert figure.locator("svg > g:last-child circle").count() == alike > 1
    chapter.keyboard.press("Escape")
    assert not figure.locator(".apd-tip").is_visible()


def test_a_cell_is_framed_in_every_image_and_described_by_every_view(chapter):
    figure = figure_of(chapter, "cells")
    image = figure.locator("img").nth(4).bounding_box()
    chapter.mouse.move(image["x"] + 0.3 * image["width"], image["y"] + 0.6 * image["height"])
    data = data_of(figure)
    row, column = int(0.6 * data["height"]), int(0.3 * data["width"])
    said = figure.locator(".apd-said").inner_text().splitlines()
    assert said[0] == f"row {row + 1}, column {column + 1}"
    assert [line.split(":")[0] for line in said[1:]] == [view["name"] for view in data["views"]]
    label = data["views"][1]["labels"][row * data["width"] + column]
    assert data["names"][label] in said[2]
    frames = figure.locator(".apd-cell:visible")
    assert frames.count() == figure.locator("img").count()
    frame = frames.nth(4).bounding_box()
    assert frame["x"] == pytest.approx(image["x"] + column * image["width"] / data["width"], abs=1.5)
    assert frame["y"] == pytest.approx(image["y"] + row * image["height"] / data["height"], abs=1.5)


def test_a_thumb_can_read_a_mark(open_chapter):
    with open_chapter(has_touch=True, viewport=PHONE) as page:
        figure = figure_of(page, "marks")
        mark = place_of_a_mark(figure, 0)
        page.touchscreen.tap(mark["x"] + 6, mark["y"] + 6)  # a thumb is not a needle
        assert figure.locator(".apd-tip").is_visible()
        assert page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]
