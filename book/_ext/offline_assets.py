"""MathJax from its installed wheel, so that no page of the book loads anything from elsewhere.

It is copied into the built book rather than kept under the source's ``_static``: jupyter-book puts every script that it
finds there on every page.
"""

import importlib
import shutil
from pathlib import Path

VENDOR = "_static/vendor"
ASSETS = {  # name in the built book: (module that ships it, path inside)
    "tex-svg-full.js": ("sphinx-mathjax-offline", "static/mathjax/tex-svg-full.js"),  # one file, no fonts, all of TeX
}
REPAIRS = (
    # docutils gives its citation list the role of a list without list items: screen readers stumble
    ('<div role="list" class="citation-list">', '<div class="citation-list">'),
    # long lines of code and wide tables can be scrolled by keyboard
    ('<div class="highlight"><pre>', '<div class="highlight"><pre tabindex="0">'),
    ('<div class="output text_html">', '<div class="output text_html" tabindex="0">'),
)


def copy_assets(app, exception):
    if exception is None and app.builder.format == "html":
        folder = Path(app.outdir, VENDOR)
        folder.mkdir(parents=True, exist_ok=True)
        for name, (module, inside) in ASSETS.items():
            shutil.copyfile(Path(importlib.import_module(module).__file__).parent / inside, folder / name)


def tidy_page(app, pagename, templatename, context, doctree):
    body = context.get("body", "")
    for before, after in REPAIRS:
        body = body.replace(before, after)
    context["body"] = body
    kept = {}  # Sphinx 7.4 emits inline scripts twice; jupyter-book's thebe names a CDN, for a button not shown
    for script in context["script_files"]:
        inline = getattr(script, "attributes", {}).get("body") or ""
        if "thebe" not in f"{script}{inline}".lower():
            kept.setdefault(inline or str(script), script)
    context["script_files"][:] = kept.values()


def setup(app):
    app.config.mathjax_path = "vendor/tex-svg-full.js"
    app.connect("build-finished", copy_assets)
    app.connect("html-page-context", tidy_page, priority=900)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
