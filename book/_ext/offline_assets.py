"""Formulas as MathML and fonts from installed wheels: no page loads anything from elsewhere, or for nothing."""

import base64
import html
import io
import re
from importlib.util import find_spec
from pathlib import Path

from docutils import nodes
from fontTools import subset
from fontTools.ttLib import TTFont
from latex2mathml.converter import convert
from sphinx.util import logging

VENDOR = "_static/vendor"
STIX = "STIXTwoMath-Regular.ttf"
# of 1400 icons: what the theme's pages and admonitions show; another one would still come from the theme's own font
ICONS = (
    "f002 f00d f010 f015 f019 f03a f03b f042 f04b f053 f054 f057 f058 f05a f062 f064 f06a f071 f078 f0c9 f0eb f0f3 "
    "f104 f105 f107 f15b f15c f185 f186 f1c1 f303 f35d"
)
FONT = """@font-face {{ font-family: "Font Awesome 6 Free"; font-weight: 900; unicode-range: {ranges};
src: url(data:font/woff;base64,{data}) format("woff"); }}
"""
ITALIC = {0x210E, *range(0x1D434, 0x1D468), *range(0x1D6E2, 0x1D71C)}  # as a browser sets a letter that stands alone
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


def cut(font, codes, **kept):
    """A font with these characters alone, as woff."""
    font, file = TTFont(font), io.BytesIO()
    subsetter = subset.Subsetter(subset.Options(**kept))
    subsetter.populate(unicodes=codes)
    subsetter.subset(font)
    font.flavor = "woff"
    font.save(file)
    return file.getvalue()


def formula(translator, node):
    """Browsers set MathML themselves, and screen readers read it."""
    block = isinstance(node, nodes.math_block)
    found = convert(node.astext(), display="block" if block else "inline")
    if "\\" in found or re.search('mathvariant="(?!normal)', found):
        logging.getLogger(__name__).warning("MathML has no such thing: %s", node.astext(), location=node)
    tag = 'div tabindex="0"' if block else "span"
    translator.body.append(f'<{tag} class="math notranslate">{found}</{tag.split()[0]}>')
    raise nodes.SkipNode


def copy_assets(app, exception):
    if exception is not None or app.builder.format != "html":
        return
    folder = Path(app.outdir, VENDOR)
    icons = cut(folder / "fontawesome" / "webfonts" / "fa-solid-900.ttf", [int(icon, 16) for icon in ICONS.split()])
    ranges = ", ".join(f"U+{icon}" for icon in ICONS.split())
    (folder / "icons.css").write_text(FONT.format(ranges=ranges, data=base64.b64encode(icons).decode()))
    stix = Path(find_spec("ziamath").origin).parent / "fonts" / STIX
    signs = set(ITALIC)
    for page in Path(app.outdir).rglob("*.html"):
        text = ICON_SCRIPT.sub("", page.read_text(encoding="utf-8")).replace(*UNFOLD)
        page.write_text(text if page.name == "search.html" else SEARCH.sub("", text), encoding="utf-8")
        signs.update(map(ord, html.unescape("".join(re.findall("<math.*?</math>", text, re.DOTALL)))))
    (folder / "formulas.woff").write_bytes(cut(stix, signs, layout_features=["ssty"]))


def tidy_page(app, pagename, templatename, context, doctree):
    body = context.get("body", "")
    for before, after in REPAIRS:
        body = body.replace(before, after)
    context["body"] = body
    kept = {}  # Sphinx 7.4 emits inline scripts twice; jupyter-book's thebe names a CDN, for a button not shown
    for script in context["script_files"]:
        inline = getattr(script, "attributes", {}).get("body") or ""
        if "thebe" not in f"{getattr(script, 'filename', script)}{inline}".lower():
            kept.setdefault(inline or str(script), script)
    context["script_files"][:] = kept.values()


def setup(app):
    app.add_html_math_renderer("mathml", (formula, None), (formula, None))
    app.config.html_math_renderer = "mathml"
    app.add_css_file("vendor/icons.css")
    app.connect("build-finished", copy_assets)
    app.connect("html-page-context", tidy_page, priority=900)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
