"""A built book behind a local server, and what a browser sees of each of its pages."""

import functools
import http.server
import importlib.util
import os
import shutil
import threading
from contextlib import contextmanager
from pathlib import Path

import pytest
from playwright.sync_api import sync_playwright

BOOK = Path(os.environ.get("BOOK", Path(__file__).resolve().parents[2] / "book" / "_build" / "html")).resolve()
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
# no phoning home, no helper that needs a desktop
FLAGS = ["no-sandbox", "disable-gpu", "disable-quic", "disable-background-networking", "disable-component-update"]
AXE = Path(importlib.util.find_spec("axe_playwright_python").origin).parent / "axe.min.js"
# colours fade over when the mode changes, and axe would measure them on the way
STILL = "*, *::before, *::after { transition: none !important; animation: none !important; }"
PHONE = {"width": 390, "height": 844}
DESKTOP = {"width": 1280, "height": 900}


def pytest_generate_tests(metafunc):
    """The book's own pages; jupyter-book's index.html only sends the reader on."""
    if "name" in metafunc.fixturenames:
        found = sorted(path for path in BOOK.rglob("*.html") if "_static" not in path.relative_to(BOOK).parts)
        pages = [str(path.relative_to(BOOK)) for path in found if 'http-equiv="Refresh"' not in path.read_text()]
        metafunc.parametrize("name", pages)


def pytest_collection_modifyitems(items):
    reasons = {
        "no built book: run `make book` first, or name its folder with BOOK=": not (BOOK / "intro.html").exists(),
        "no chromium here, so the pages were not looked at: install it and run `make browser`": CHROMIUM is None,
    }
    for item in items if any(reasons.values()) else ():
        item.add_marker(pytest.mark.skip(reason=next(reason for reason, holds in reasons.items() if holds)))


@pytest.fixture(scope="session")
def book():
    """Folder of the built book."""
    return BOOK


@pytest.fixture(scope="session")
def base():
    """Address of the served book."""
    quiet = type("Quiet", (http.server.SimpleHTTPRequestHandler,), {"log_message": lambda *arguments: None})
    handler = functools.partial(quiet, directory=str(BOOK))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()


@pytest.fixture(scope="session")
def opened(base):
    """Opens a page by its name. What goes wrong with it goes into the lists of `wrong`; without them nothing may."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=[f"--{flag}" for flag in FLAGS])

        @contextmanager
        def open_page(name, wrong=None, **options):
            found = {} if wrong is None else wrong
            foreign, errors = found.setdefault("request elsewhere", []), found.setdefault("error", [])
            context = browser.new_context(**{"viewport": DESKTOP, "color_scheme": "light"} | options)

            def refuse(route):
                foreign.append(route.request.url)
                route.abort()

            context.route(lambda url: not url.startswith((base, "data:", "blob:")), refuse)
            page = context.new_page()
            page.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
            page.on("pageerror", lambda error: errors.append(str(error)))
            page.on("response", lambda got: errors.append(f"{got.status} {got.url}") if got.status >= 400 else None)
            page.goto(base + name, wait_until="networkidle")
            yield page
            context.close()
            assert wrong is not None or not any(found.values()), found

        yield open_page
        browser.close()


AXE_RUN = """async () => {
  const result = await axe.run(document, {runOnly: ["wcag2a", "wcag2aa"], preload: false});
  return result.violations
    .filter(v => ["serious", "critical"].includes(v.impact))
    .map(v => [v.id, v.nodes.length, v.nodes[0].html.slice(0, 160)]);
}"""
IN_PAGE = {  # a selector, and of what is found that which counts and how to name it
    "image that is not shown": ("img", "e.loading != 'lazy' && !e.naturalWidth", "e.src"),
    "equation that is not set": (".math", "!e.querySelector('math')?.getBoundingClientRect().width", "e.innerText"),
    "text that leaves its drawing": (
        "svg.apd-drawing text",
        "(([t, d]) => t.left < d.left - 1 || t.right > d.right + 1)"
        "([e, e.ownerSVGElement].map(one => one.getBoundingClientRect()))",
        "e.textContent",
    ),
    "link": ("a[href]", "true", "e.href"),
}
TOO_WIDE = """width => document.documentElement.scrollWidth <= width ? [] : [
  "the page", ...[...document.querySelectorAll("main *")]
  .filter(e => e.getBoundingClientRect().right > width + 1)
  .filter(e => !e.closest("pre, .highlight, table, .text_html, .math"))
  .slice(0, 3).map(e => e.outerHTML.slice(0, 120))]"""

LAYOUT = """() => {  // what is folded away, or meant for the other mode, does not count
  const article = document.querySelector("article, main"), edge = article.getBoundingClientRect().right;
  const all = selector => [...article.querySelectorAll(selector)].filter(e => e.checkVisibility());
  const scrolls = e => ["auto", "scroll"].includes(getComputedStyle(e).overflowX);
  const inScroller = e => e != article && (scrolls(e) || inScroller(e.parentElement));
  const beyond = e => e.matches("pre, .text_html") ? e.scrollWidth - e.clientWidth
    : inScroller(e) ? 0 : e.getBoundingClientRect().right - edge;
  const figures = all("figure, .apd-figure:not(:has(table, .apd-answer)), img, svg.apd-drawing, canvas")
    .filter(e => !e.parentElement.closest("figure, .apd-figure") && e.getBoundingClientRect().height > 50);  // no icon
  const tops = [...figures, ...all("table")].map(e => e.getBoundingClientRect().top + scrollY);
  const [first, screens] = [Math.min(...tops), document.documentElement.scrollHeight / 900];
  return {
    "first result below the first screen": first < 900 ? [] : [`${first} px`],
    "screen after the eighth": screens <= 8 ? [] : [`${screens} screens`],
    "figure without a caption": figures
      .filter(e => !e.querySelector("figcaption")?.innerText.trim()).map(e => e.outerHTML.slice(0, 80)),
    "part wider than its column": all("pre, table, .text_html, img, svg")
      .map(e => [beyond(e), e.outerHTML.slice(0, 80)])
      .filter(([pixels]) => pixels > 1).sort((a, b) => b[0] - a[0]),
  };
}"""


@pytest.fixture(scope="session")
def visit(opened):
    """All that is found on a page of this name, by kind; it is loaded once."""

    @functools.cache
    def visited(name):
        found = {}
        with opened(name, found) as page:
            found |= page.evaluate(LAYOUT)
            page.add_style_tag(content=STILL)
            page.add_script_tag(path=str(AXE))
            found["barrier in light mode"] = page.evaluate(AXE_RUN)
            page.emulate_media(color_scheme="dark")
            page.wait_for_function("document.documentElement.dataset.theme == 'dark'")
            found["barrier in dark mode"] = page.evaluate(AXE_RUN)
            for kind, (selector, counts, named) in IN_PAGE.items():
                found[kind] = page.eval_on_selector_all(selector, f"all => all.filter(e => {counts}).map(e => {named})")
            page.set_viewport_size(PHONE)
            found["part wider than its column on a phone"] = page.evaluate(LAYOUT)["part wider than its column"]
            return found | {"part wider than a phone": page.evaluate(TOO_WIDE, PHONE["width"])}

    return visited
