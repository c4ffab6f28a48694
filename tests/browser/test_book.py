"""What a reader meets: light pages, nothing from elsewhere, links, both modes, a phone, paper, figures to point at."""

import re
from functools import cache
from pathlib import Path
from urllib.parse import unquote, urlparse

import pytest


@cache
def targets_in(page: Path) -> set[str]:
    """What links into a page can point at."""
    return {"", *re.findall(r"""\s(?:id|name)=["']([^"']+)""", page.read_text())}


LATE, LONG, BARE = "first result below the first screen", "screen after the eighth", "figure without a caption"
WIDE = ("part wider than its column", "part wider than its column on a phone")
REFERENCE = ("api", "genindex", "references", "search")
"""What the names of reference pages begin with: as long as they have to be."""
HOW_TO = ("command_line", "data", "design_notes", "loops", "networks", "own_loop", "paper_and_code", "reproduce")
"""And of pages without results."""
APART = {LONG: REFERENCE, LATE: REFERENCE + HOW_TO}
CHAPTER, SHIFTS = "notebooks/06_perspectives.html", ["0", "0.25", "0.5", "0.75", "1"]
PHONE, PAPER = {"width": 390, "height": 844}, {"width": 688, "height": 1017}  # A4 without its margins


@pytest.mark.parametrize(
    "kind",
    [
        *("request elsewhere", "error", "image that is not shown", "equation that is not set"),
        *("text that leaves its drawing", "part wider than a phone", "barrier in light mode", "barrier in dark mode"),
        *(LATE, LONG, BARE, *WIDE),
    ],
)
def test_a_page_has_no(visit, name, kind):
    assert name.startswith(APART.get(kind, ())) or visit(name)[kind] == []


def test_every_link_within_the_book_leads_somewhere(visit, name, base, book):
    for link in set(visit(name)["link"]):
        if link.startswith(base):
            url = urlparse(link)
            file = book / unquote(url.path.lstrip("/"))
            file = file / "index.html" if file.is_dir() else file
            assert file.exists(), link
            if file.suffix == ".html" and file.name != "search.html":
                assert unquote(url.fragment) in targets_in(file), link


def test_equations_are_set_in_the_font_that_comes_along(opened):
    with opened("notebooks/01_method.html") as page:
        loaded = "document.fonts.ready.then(all => [...all].filter(f => f.status == 'loaded').map(f => f.family))"
        assert "STIX Two Math" in " ".join(page.evaluate(loaded))
        assert page.locator("div.math math").count() > 0


@pytest.fixture
def page(opened):
    with opened("intro.html") as page:
        yield page


def test_a_search_finds_the_page_that_explains_the_word(page):
    page.locator("button.search-button-field:visible").first.click()
    field = page.locator("input[type=search]:visible").first
    field.fill("perspective")
    field.press("Enter")
    page.wait_for_selector("#search-results li a", timeout=60000)
    found = page.eval_on_selector_all("#search-results li a", "links => links.map(a => a.href)")
    assert "intro.html" in " ".join(found)


def test_the_reader_goes_on_to_the_next_page_and_back(page):
    first = page.title()
    page.click("a.right-next")
    page.wait_for_load_state("networkidle")
    assert page.title() != first
    page.click("a.left-prev")
    page.wait_for_load_state("networkidle")
    assert page.title() == first


def test_the_button_changes_between_light_and_dark_and_the_logo_with_them(page):
    seen = {}
    for _ in range(3):
        page.locator("button.theme-switch-button:visible").first.click()
        page.wait_for_timeout(100)
        mode = page.evaluate("document.documentElement.dataset.theme")
        logo = page.eval_on_selector_all("img.logo__image", "all => all.filter(i => i.offsetParent).map(i => i.src)")
        seen[mode] = [source.rsplit("/", 1)[-1] for source in logo][:1]
    assert seen == {"light": ["logo-light.svg"], "dark": ["logo-dark.svg"]}


@pytest.fixture(params=["light", "dark"])
def chapter(opened, request):
    with opened(CHAPTER, color_scheme=request.param) as page:
        yield page


def figure_of(page, kind):
    found = page.locator(f".apd-live[data-live={kind}]").first
    found.scroll_into_view_if_needed()
    return found


def test_every_interactive_figure_is_alive_and_a_cell_is_framed_in_every_image_and_named_by_every_view(chapter):
    assert chapter.locator(".apd-live:not([data-live])").count() == 0
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


def test_a_thumb_can_read_a_cell(opened):
    with opened(CHAPTER, has_touch=True, viewport=PHONE) as page:
        figure = figure_of(page, "cells")
        figure.locator("img").first.tap()
        assert figure.locator(".apd-said").inner_text()
        assert page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]


def test_a_page_without_interactive_figures_is_light(name, book):
    page = book / name
    text = page.read_text()
    parts = re.findall(r"<(?:script|link|img)[^>]*?(?:src|href)=\"([^\"#?:]+\.(?:js|css|svg|png|jpg))[\"?]", text)
    weight = page.stat().st_size + sum((page.parent / part).stat().st_size for part in set(parts))
    assert weight < (4e6 if 'class="apd-live"' in text else 1.5e6)
    assert not re.search("mathjax|fontawesome[.]js", "".join(parts))


@pytest.mark.parametrize("where", ["notebooks/04_ablations.html", "notebooks/05_rivals.html", "reproduce_paper.html"])
def test_every_column_fits_on_paper_and_what_is_folded_is_open_but_code(opened, where):
    with opened(where, viewport=PAPER, color_scheme="dark") as page:
        page.emulate_media(media="print")
        page.evaluate("dispatchEvent(new Event('beforeprint'))")
        right = page.eval_on_selector_all("article table", "all => all.map(e => e.getBoundingClientRect().right)")
        assert right
        assert max(right) <= PAPER["width"] + 1
        assert page.locator("article details:not([open])").count() == 0
        assert page.evaluate("document.documentElement.dataset.theme") == "light"
        assert not page.locator(".bd-sidebar-primary").is_visible()
        assert not page.locator(".cell.tag_hide-input > details").first.is_visible()


def shown(page):
    frames = page.locator(".apd-slider .apd-frame")
    return [name for name, frame in zip(SHIFTS, frames.all(), strict=True) if frame.is_visible()]


def test_the_arrow_keys_choose_a_frame_and_the_page_does_not_jump(opened):
    with opened(CHAPTER, viewport=PHONE) as page:
        page.wait_for_load_state("networkidle")
        page.evaluate("window.MathJax?.startup?.promise.then(() => 0)")  # formulas change the height when they are set
        height = page.evaluate("document.documentElement.scrollHeight")
        assert shown(page) == ["0"]
        control = page.locator(".apd-slider").get_by_role("slider", name="context shift")
        control.press("ArrowRight")
        assert (shown(page), page.locator(".apd-range span").inner_text()) == (["0.25"], "0.25")
        control.press("End")
        assert shown(page) == ["1"]
        assert control.get_attribute("aria-valuetext") == "1"
        assert page.evaluate("document.documentElement.scrollHeight") == height
        page.emulate_media(media="print")
        assert shown(page) == SHIFTS


def test_all_frames_stand_below_one_another_where_no_script_runs(opened):
    with opened(CHAPTER, java_script_enabled=False) as page:
        assert shown(page) == SHIFTS
        tops = [frame.bounding_box()["y"] for frame in page.locator(".apd-slider .apd-frame").all()]
        assert sorted(set(tops)) == tops
        assert not page.locator(".apd-slider input").is_visible()
