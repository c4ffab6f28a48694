"""Docstrings of fields and constants as they are written.

napoleon takes the words before the first colon of such a docstring for a type: "Data set: the built-in scenes" would
become an attribute of type "Data set". A colon put in front leaves it an empty type, and the sentence whole.
"""


def shield(app, what, name, obj, options, lines):
    if what in ("attribute", "data", "property") and lines and not lines[0].startswith(":"):
        lines[0] = f": {lines[0]}"


def setup(app):
    app.connect("autodoc-process-docstring", shield, priority=400)  # napoleon listens at 500
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
