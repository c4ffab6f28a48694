"""What a page weighs, and what is on its paper."""

import re

import pytest


def test_a_page_without_interactive_figures_is_light(name, book):
    page = book / name
    text = page.read_text()
    parts = re.findall(r"<(?:script|link|img)[^>]*?(?:src|href)=\"([^\"#?:]+\.(?:js|css|svg|png|jpg))[\"?]", text)
    weight = page.stat().st_size + sum((page.parent / part).stat().st_size for part in set(parts))
    assert weight < (4e6 if 'class="apd-live"' in text else 1.5e6)
    assert not re.search("mathjax|fontawesome[.]js", "".join(parts))


PAPER = {"width": 688, "height": 1017}  # A4 without its margins


@pytest.mark.parametrize("chapter", ["notebooks/04_ablations.html", "notebooks/05_rivals.html", "reproduce_paper.html"])
def test_every_column_fits_on_paper_and_what_is_folded_is_open_but_code(opened, chapter):
    with opened(chapter, viewport=PAPER, color_scheme="dark") as page:
        page.emulate_media(media="print")
        page.evaluate("dispatchEvent(new Event('beforeprint'))")
        right = page.eval_on_selector_all("article table", "all => all.map(e => e.getBoundingClientRect().right)")
        assert right
        assert max(right) <= PAPER["width"] + 1
        assert page.locator("article details:not([open])").count() == 0
        assert page.evaluate("document.documentElement.dataset.theme") == "light"
        assert not page.locator(".bd-sidebar-primary").is_visible()
        assert not page.locator(".cell.tag_hide-input > details").first.is_visible()
