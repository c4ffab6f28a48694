"""Every figure and table of the book: functions of tensors and records that return something a notebook shows.

Line figures are SVG whose ink is the page's text colour, images are PNG in a grid that folds on a phone, tables are
plain HTML: all three follow the page into dark mode. Needs matplotlib, seaborn and pandas (`pip install -e '.[book]'`).
"""

import warnings

from apd.report.figures.page import Drawing, markdown

__all__ = ["Drawing", "markdown"]

# timm, on being imported by a notebook, has tqdm look for a widget that would need the network; the study shows none
warnings.filterwarnings("ignore", message="IProgress not found")
