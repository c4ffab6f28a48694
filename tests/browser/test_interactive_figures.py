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


def test_a_thumb_can_read_a_cell(browser, base, book):
    with opened(browser, base, book, has_touch=True, viewport=PHONE) as page:
        figure = figure_of(page, "cells")
        image = figure.locator("img").first.bounding_box()
        page.touchscreen.tap(image["x"] + image["width"] / 2, image["y"] + image["height"] / 2)
        assert figure.locator(".apd-said").inner_text()
        assert page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]
