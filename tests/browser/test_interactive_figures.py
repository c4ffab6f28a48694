"""Figures that answer a pointer, in a built book: by mouse, by thumb and by keyboard, in both modes, on a phone."""

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


def test_every_interactive_figure_has_come_to_life(chapter):
    assert chapter.locator(".apd-live").count() >= 2
    assert chapter.locator(".apd-live:not([data-live])").count() == 0


def test_a_cell_is_framed_in_every_image_and_named_by_every_view(chapter):
    figure = figure_of(chapter, "cells")
    image = figure.locator("img").nth(4).bounding_box()
    chapter.mouse.move(image["x"] + 0.3 * image["width"], image["y"] + 0.6 * image["height"])
    data = figure.evaluate("root => JSON.parse(root.querySelector(\"script[type='application/json']\").textContent)")
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


def test_a_thumb_can_read_a_cell(open_chapter):
    with open_chapter(has_touch=True, viewport=PHONE) as page:
        figure = figure_of(page, "cells")
        figure.locator("img").first.tap()
        assert figure.locator(".apd-said").inner_text()
        assert page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]
