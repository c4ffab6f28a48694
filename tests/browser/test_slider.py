"""A figure whose frames a slider chooses from, by keyboard, in print and where no script runs."""

CHAPTER = "notebooks/06_perspectives.html"
NAMES = ["0", "0.25", "0.5", "0.75", "1"]


def shown(page):
    frames = page.locator(".apd-slider .apd-frame")
    return [name for name, frame in zip(NAMES, frames.all(), strict=True) if frame.is_visible()]


def test_the_arrow_keys_choose_a_frame_and_the_page_does_not_jump(opened):
    with opened(CHAPTER, viewport={"width": 390, "height": 844}) as page:
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
        assert shown(page) == NAMES


def test_all_frames_stand_below_one_another_where_no_script_runs(opened):
    with opened(CHAPTER, java_script_enabled=False) as page:
        assert shown(page) == NAMES
        tops = [frame.bounding_box()["y"] for frame in page.locator(".apd-slider .apd-frame").all()]
        assert sorted(set(tops)) == tops
        assert not page.locator(".apd-slider input").is_visible()
