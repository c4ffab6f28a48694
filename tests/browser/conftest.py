"""A built book behind a local server, and what a browser sees of each of its pages."""

import functools
import http.server
import importlib.util
import os
import shutil
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from playwright.sync_api import Browser, BrowserContext, Page, Route, sync_playwright

BOOK = Path(os.environ.get("BOOK", Path(__file__).resolve().parents[2] / "book" / "_build" / "html")).resolve()
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
# no phoning home, no helper that needs a desktop
FLAGS = ["no-sandbox", "disable-gpu", "disable-quic", "disable-background-networking", "disable-component-update"]
AXE = Path(importlib.util.find_spec("axe_playwright_python").origin).parent / "axe.min.js"
# colours fade over when the mode changes, and axe would measure them on the way
STILL = "*, *::before, *::after { transition: none !important; animation: none !important; }"
PHONE = {"width": 390, "height": 844}
DESKTOP = {"width": 1280, "height": 900}


def pages() -> list[str]:
    """The book's own pages; jupyter-book's index.html only sends the reader on."""
    found = sorted(path for path in BOOK.rglob("*.html") if "_static" not in path.relative_to(BOOK).parts)
    return [str(path.relative_to(BOOK)) for path in found if 'http-equiv="Refresh"' not in path.read_text()]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "name" in metafunc.fixturenames:
        metafunc.parametrize("name", pages(), ids=str)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    reason = None
    if not (BOOK / "intro.html").exists():
        reason = "no built book: run `make book` first, or name its folder with BOOK="
    elif CHROMIUM is None:
        reason = "no chromium here, so the book's pages were not looked at: install it and run `make browser`"
    if reason:
        for item in items:
            item.add_marker(pytest.mark.skip(reason=reason))


class Quiet(http.server.SimpleHTTPRequestHandler):
    """Serves files without a log line for each."""

    def log_message(self, *arguments: object) -> None:
        pass


@pytest.fixture(scope="session")
def book() -> Path:
    """Folder of the built book."""
    return BOOK


@pytest.fixture(scope="session")
def base() -> Iterator[str]:
    """Address of the served book."""
    handler = functools.partial(Quiet, directory=str(BOOK))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=[f"--{flag}" for flag in FLAGS])
        yield browser
        browser.close()


@dataclass
class Watch:
    """What a page asked for outside the book, and what went wrong in it."""

    foreign: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)


def watched(browser: Browser, base: str, **options: object) -> tuple[BrowserContext, Page, Watch]:
    """Open an empty page whose requests to anywhere but the book are refused and noted."""
    watch = Watch()
    context = browser.new_context(viewport=DESKTOP, **options)

    def route(request: Route) -> None:
        if request.request.url.startswith((base, "data:", "blob:")):
            request.continue_()
        else:
            watch.foreign.append(request.request.url)
            request.abort()

    context.route("**/*", route)
    page = context.new_page()
    page.on("console", lambda message: watch.errors.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: watch.errors.append(str(error)))
    page.on("response", lambda got: watch.errors.append(f"{got.status} {got.url}") if got.status >= 400 else None)
    return context, page, watch


@dataclass
class Visit:
    """Everything one visit found on one page, so that the page is loaded once for all the checks."""

    watch: Watch
    broken_pictures: list[str]
    raw_equations: int
    equations_in_error: int
    links: list[str]
    phone_width: int
    sticking_out: list[str]
    violations: dict[str, list]


AXE_RUN = """async () => {
  const result = await axe.run(document, {runOnly: ["wcag2a", "wcag2aa"], preload: false});
  return result.violations
    .filter(v => ["serious", "critical"].includes(v.impact))
    .map(v => [v.id, v.nodes.length, v.nodes[0].html.slice(0, 160)]);
}"""

WIDE = """width => [...document.querySelectorAll("main *")]
  .filter(e => e.getBoundingClientRect().right > width + 1 && !e.closest("pre, .highlight, table, .text_html, .math"))
  .slice(0, 3).map(e => e.outerHTML.slice(0, 120))"""


@pytest.fixture(scope="session")
def visit(browser: Browser, base: str) -> Iterator[functools.cache]:
    """Visit a page by its name, once."""

    @functools.cache
    def look(name: str) -> Visit:
        context, page, watch = watched(browser, base, color_scheme="light")
        page.goto(base + name, wait_until="networkidle")
        page.add_style_tag(content=STILL)
        page.add_script_tag(path=str(AXE))
        light = page.evaluate(AXE_RUN)
        page.emulate_media(color_scheme="dark")
        page.wait_for_function("document.documentElement.dataset.theme == 'dark'")
        dark = page.evaluate(AXE_RUN)
        seen = dict(
            broken_pictures=page.evaluate(
                "[...document.images].filter(i => i.loading != 'lazy' && !i.naturalWidth).map(i => i.src)"
            ),
            raw_equations=page.evaluate(
                "[...document.querySelectorAll('.math')].filter(m => !m.querySelector('mjx-container')).length"
            ),
            equations_in_error=page.locator("mjx-merror, [data-mml-node=merror]").count(),
            links=page.evaluate("[...new Set([...document.querySelectorAll('a[href]')].map(a => a.href))]"),
        )
        page.set_viewport_size(PHONE)
        width = page.evaluate("document.documentElement.scrollWidth")
        wide = page.evaluate(WIDE, PHONE["width"]) if width > PHONE["width"] else []
        context.close()
        return Visit(
            watch=watch, phone_width=width, sticking_out=wide, violations={"light": light, "dark": dark}, **seen
        )

    return look


@pytest.fixture
def page(browser: Browser, base: str) -> Iterator[Page]:
    """A page of its own for a test that clicks and types; nothing may go wrong meanwhile."""
    context, page, watch = watched(browser, base, color_scheme="light")
    page.goto(base + "intro.html", wait_until="networkidle")
    yield page
    context.close()
    assert (watch.foreign, watch.errors) == ([], [])
