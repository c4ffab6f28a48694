"""MathJax and icons from installed wheels, so that no page of the book loads anything from elsewhere, or for nothing.

They are copied into the built book rather than kept under the source's ``_static``: jupyter-book puts every script that
it finds there on every page.
"""

import base64
import importlib
import io
import re
import shutil
from pathlib import Path

from fontTools import subset
from fontTools.ttLib import TTFont

VENDOR = "_static/vendor"
MATHJAX = "tex-chtml-full.js", "output/chtml/fonts/woff-v2"  # one file with all of TeX; a page loads the fonts it needs
# of 1400 icons: what the theme's pages and admonitions show; another one would still come from the theme's own font
ICONS = (
    "f002 f00d f010 f015 f019 f03a f03b f042 f04b f053 f054 f057 f058 f05a f062 f064 f06a f071 f078 f0c9 f0eb f0f3 "
    "f104 f105 f107 f15b f15c f185 f186 f1c1 f303 f35d"
)
FONT = """@font-face {{ font-family: "Font Awesome 6 Free"; font-weight: 900; unicode-range: {ranges};
src: url(data:font/woff;base64,{data}) format("woff"); }}
"""
REPAIRS = (
    # docutils gives its citation list the role of a list without list items: screen readers stumble
    ('<div role="list" class="citation-list">', '<div class="citation-list">'),
    # wide tables can be scrolled by keyboard
    ('<div class="output text_html">', '<div class="output text_html" tabindex="0">'),
    ('<div class="pst-scrollable-table-container">', '<div class="pst-scrollable-table-container" tabindex="0">'),
)
# what the theme loads on every page: 1.5 MB of icons as a script, beside the same as a font, and what searches the book
SCRIPT = r'\s*<script (?:defer )?src="[^"]*(?:{})\.js[^"]*"></script>'
# the theme's button that unfolds a part of the contents has no name
UNFOLD = '<summary><span class="toctree-toggle"', '<summary aria-label="pages below"><span class="toctree-toggle"'
ICON_SCRIPT = re.compile(SCRIPT.format("fontawesome"))
SEARCH = re.compile(SCRIPT.format("searchtools|language_data|searchindex"))


def icon_font(theme_font):
    font, kept = TTFont(theme_font), io.BytesIO()
    subsetter = subset.Subsetter()
    subsetter.populate(unicodes=[int(icon, 16) for icon in ICONS.split()])
    subsetter.subset(font)
    font.flavor = "woff"
    font.save(kept)
    return FONT.format(
        ranges=", ".join(f"U+{icon}" for icon in ICONS.split()), data=base64.b64encode(kept.getvalue()).decode()
    )


def copy_assets(app, exception):
    if exception is not None or app.builder.format != "html":
        return
    folder = Path(app.outdir, VENDOR)
    mathjax = Path(importlib.import_module("sphinx-mathjax-offline").__file__).parent / "static" / "mathjax"
    shutil.copytree(mathjax / MATHJAX[1], folder / MATHJAX[1], dirs_exist_ok=True)
    shutil.copyfile(mathjax / MATHJAX[0], folder / MATHJAX[0])
    (folder / "icons.css").write_text(icon_font(folder / "fontawesome" / "webfonts" / "fa-solid-900.ttf"))
    for page in Path(app.outdir).rglob("*.html"):
        text = ICON_SCRIPT.sub("", page.read_text(encoding="utf-8")).replace(*UNFOLD)
        page.write_text(text if page.name == "search.html" else SEARCH.sub("", text), encoding="utf-8")


def tidy_page(app, pagename, templatename, context, doctree):
    body = context.get("body", "")
    for before, after in REPAIRS:
        body = body.replace(before, after)
    context["body"] = body
    kept = {}  # Sphinx 7.4 emits inline scripts twice; jupyter-book's thebe names a CDN, for a button not shown
    for script in context["script_files"]:
        inline = getattr(script, "attributes", {}).get("body") or ""
        text = f"{getattr(script, 'filename', script)}{inline}".lower()
        sets_formulas = "mathjax" in text or MATHJAX[0] in text
        if "thebe" not in text and ('class="math' in body or not sets_formulas):  # Sphinx: or those of its children
            kept.setdefault(inline or str(script), script)
    context["script_files"][:] = kept.values()


def setup(app):
    app.config.mathjax_path = f"vendor/{MATHJAX[0]}"
    app.add_css_file("vendor/icons.css")
    app.connect("build-finished", copy_assets)
    app.connect("html-page-context", tidy_page, priority=900)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
