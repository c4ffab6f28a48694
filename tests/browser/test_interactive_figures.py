"""Figures that answer a pointer, in a built book: by mouse, by thumb and by keyboard, in both modes, on a phone."""

from contextlib import contextmanager

import pytest

CHAPTER = "notebooks/06_perspectives.html"
PHONE = {"width": 390, "height": 844}


@contextmanager
def opened(browser, base, book, **options):
    """The chapter in a context of its own, in which no error may occur and nothing may be fetched from elsewhere."""
    if not (book / CHAPTER).exists():
        pytest.skip("this book has no chapter with interactive figures")
    context, wrong = browser.new_context(**options), []
    page = context.new_page()
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on("console", lambda message: wrong.append(message.text) if message.type == "error" else None)
    page.on("request", lambda asked: None if asked.url.startswith((base, "data:")) else wrong.append(asked.url))
    page.goto(base + CHAPTER, wait_until="networkidle")
    yield page
    context.close()
    assert wrong == []


@pytest.fixture(params=["light", "dark"])
def chapter(browser, base, book, request):
    with opened(browser, base, book, color_scheme=request.param) as page:
        yield page


def figure_of(page, kind):
    found = page.locator(f".apd-live[data-live={kind}]").first
    found.scroll_into_view_if_needed()
    return found


def place_of_a_mark(figure, index):
    """Where a mark is on the screen, and what it should say."""
    return figure.evaluate(
        """(root, index) => {
            const {marks, lines} = JSON.parse(root.querySelector("script[type='application/json']").textContent);
            const m = root.querySelector("svg").getScreenCTM(), [x, y, said] = marks[index];
            return {x: m.a * x + m.e, y: m.d * y + m.f, said: said.map(i => lines[i])};
        }""",
        index,
    )


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


def test_arrow_keys_go_through_the_marks_and_escape_leaves_them(chapter):
    figure = figure_of(chapter, "marks")
    figure.focus()
    for index in range(3):
        chapter.keyboard.press("ArrowRight")
        assert figure.locator(".apd-tip").inner_text().splitlines() == place_of_a_mark(figure, index)["said"]
    chapter.keyboard.press("Escape")
    assert not figure.locator(".apd-tip").is_visible()


def test_a_mark_frames_those_of_its_group(chapter):
    figure = figure_of(chapter, "marks")
    figure.focus()
    chapter.keyboard.press("ArrowRight")
    alike = figure.evaluate(
        """root => {
            const {marks} = JSON.parse(root.querySelector("script[type='application/json']").textContent);
            return marks.filter(mark => mark[3] === marks[0][3]).length;
        }"""
    )
    assert figure.locator("svg > g:last-child circle").count() == alike > 1


def test_a_cell_is_framed_in_every_picture_and_told_by_every_view(chapter):
    figure = figure_of(chapter, "cells")
    picture = figure.locator("img").nth(4).bounding_box()
    chapter.mouse.move(picture["x"] + 0.3 * picture["width"], picture["y"] + 0.6 * picture["height"])
    data = figure.evaluate("root => JSON.parse(root.querySelector(\"script[type='application/json']\").textContent)")
    row, column = int(0.6 * data["height"]), int(0.3 * data["width"])
    told = figure.locator(".apd-said").inner_text().splitlines()
    assert told[0] == f"row {row + 1}, column {column + 1}"
    assert [line.split(":")[0] for line in told[1:]] == [view["name"] for view in data["views"]]
    label = data["views"][1]["labels"][row * data["width"] + column]
    assert data["names"][label] in told[2]
    frames = figure.locator(".apd-cell:visible")
    assert frames.count() == figure.locator("img").count()
    frame = frames.nth(4).bounding_box()
    assert frame["x"] == pytest.approx(picture["x"] + column * picture["width"] / data["width"], abs=1.5)
    assert frame["y"] == pytest.approx(picture["y"] + row * picture["height"] / data["height"], abs=1.5)


def test_a_thumb_can_read_a_mark(browser, base, book):
    with opened(browser, base, book, has_touch=True, viewport=PHONE) as page:
        figure = figure_of(page, "marks")
        mark = place_of_a_mark(figure, 0)
        page.touchscreen.tap(mark["x"] + 6, mark["y"] + 6)  # a thumb is not a needle
        assert figure.locator(".apd-tip").is_visible()
        assert page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]
