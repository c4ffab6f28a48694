"""What a reader meets: pages that load nothing from elsewhere, links that lead somewhere, both modes, a phone."""

import re
from functools import cache
from pathlib import Path
from urllib.parse import unquote, urlparse

import pytest


@cache
def targets_in(page: Path) -> set[str]:
    """What links into a page can point at."""
    return {"", *re.findall(r"""\s(?:id|name)=["']([^"']+)""", page.read_text())}


@pytest.mark.parametrize(
    "kind",
    [
        *("request elsewhere", "error", "image that is not shown", "equation that is not set", "equation in error"),
        *("text that leaves its drawing", "part wider than a phone", "barrier in light mode", "barrier in dark mode"),
    ],
)
def test_a_page_has_no(visit, name, kind):
    assert visit(name)[kind] == []


def test_every_link_within_the_book_leads_somewhere(visit, name, base, book):
    for link in set(visit(name)["link"]):
        if link.startswith(base):
            url = urlparse(link)
            file = book / unquote(url.path.lstrip("/"))
            file = file / "index.html" if file.is_dir() else file
            assert file.exists(), link
            if file.suffix == ".html" and file.name != "search.html":
                assert unquote(url.fragment) in targets_in(file), link


def test_there_are_equations_to_set(book):
    assert any('<div class="math' in page.read_text() for page in book.rglob("*.html"))


@pytest.fixture
def page(open_quietly):
    with open_quietly("intro.html") as page:
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
