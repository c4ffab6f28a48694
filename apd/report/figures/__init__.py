"""Every figure and table of the book: functions of tensors and records that return something a notebook shows.

Line figures are SVG whose ink is the page's text colour, images are PNG in a grid that folds on a phone, tables are
plain HTML: all three follow the page into dark mode. Needs matplotlib, seaborn and pandas (`pip install -e '.[book]'`).
"""

from apd.report.figures.page import Drawing, markdown

__all__ = ["Drawing", "markdown"]
