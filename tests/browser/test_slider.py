"""A figure whose frames a slider chooses from, by pointer and keyboard, in print and where no script runs."""

import numpy as np
import pytest

from apd.report.figures.style import Panel, slider

NAMES = ["shift 0", "shift 0.5", "shift 1"]


@pytest.fixture
def open_slider(browser):
    frames = [(name, [Panel([np.full((4, 6, 3), 80 * i, np.uint8)], f"{name} a")]) for i, name in enumerate(NAMES)]
    html = f"<!doctype html><html lang=en><title>one</title>{slider(frames, 'What changes')._repr_html_()}"
    contexts = []

    def opened(**options):
        contexts.append(browser.new_context(**options))
        page = contexts[-1].new_page()
        page.set_content(html)
        return page

    yield opened
    for context in contexts:
        context.close()


def shown(page):
    frames = page.locator(".apd-frame")
    return [name for name, frame in zip(NAMES, frames.all(), strict=True) if frame.is_visible()]


def test_the_arrow_keys_choose_a_frame_and_the_page_does_not_jump(open_slider):
    page = open_slider(viewport={"width": 390, "height": 844})
    height = page.evaluate("document.documentElement.scrollHeight")
    assert shown(page) == ["shift 0"]
    page.get_by_label("Shown").press("ArrowRight")
    assert (shown(page), page.locator(".apd-range span").inner_text()) == (["shift 0.5"], "shift 0.5")
    page.get_by_label("Shown").press("End")
    assert shown(page) == ["shift 1"]
    assert page.get_by_label("Shown").get_attribute("aria-valuetext") == "shift 1"
    assert page.evaluate("document.documentElement.scrollHeight") == height
    page.emulate_media(media="print")
    assert shown(page) == NAMES


def test_all_frames_stand_below_one_another_where_no_script_runs(open_slider):
    page = open_slider(java_script_enabled=False)
    assert shown(page) == NAMES
    tops = [frame.bounding_box()["y"] for frame in page.locator(".apd-frame").all()]
    assert sorted(set(tops)) == tops
    assert not page.locator("input").is_visible()
