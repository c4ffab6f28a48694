"""Names from data are text wherever they are shown: in HTML, in SVG, in a spreadsheet."""

import csv
import io
import warnings
from html.parser import HTMLParser

import pandas as pd
import pytest
import torch

from apd.data.specs import DatasetSpec, Sample
from apd.evaluation.inference import class_csv
from apd.report.figures import method, style

NAMES = ("<!--<script>", "</script><script>alert(1)</script>", '"><img src=x onerror=alert(1)>', "' onload='alert(1)")
NAMES += ("]]></style><thead>", "&lt;b&gt; &amp;", "$x^{$", "US$ and $5", r"\frac{$\alpha$} \1 \g<0>", "{0} {stem} %s")
NAMES += ("_hidden", "<metadata>", "Straße 道路 🚗")
TAGS = "b caption clippath defs div em g i image img p path rect script span strong style svg table tbody td text th"
LABELS, IMAGE = torch.tensor([[0, 1], [1, 0]], dtype=torch.uint8), torch.zeros(3, 2, 2, dtype=torch.uint8)


class Page(HTMLParser):
    """What a browser finds in a page: tags, values of attributes, and text; a comment or a handler is an error."""

    def __init__(self, page):
        super().__init__()
        self.tags, self.texts = [], []
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        assert not [name for name, _ in attrs if name.startswith("on")]
        self.tags.append(tag)
        self.texts += [value for _, value in attrs if value]

    def handle_data(self, data):
        self.texts.append(data)

    def handle_comment(self, data):
        raise AssertionError(data)


def two(name):
    return DatasetSpec(name, (name, "other"), ((1, 2, 3), (4, 5, 6)))


def interactive(name):
    view = style.View(name, LABELS.long(), torch.full((2, 2), 0.5))
    panel = style.Panel([method.image_pixels(IMAGE)], name, name)
    return style.cell_panels([panel], [view], [name, "b"], columns=2, least="9rem")


SHOWN = {
    "table": lambda name: style.table(pd.DataFrame({name: [name]}, index=[name]), name),
    "rows of groups": lambda name: style.rows_table({(name, name): {name: name}}, name),
    "nothing": style.nothing,
    "strips": lambda name: method.prediction_strips([(Sample(IMAGE, LABELS, name), {name: LABELS})], two(name)),
    "matrix": lambda name: method.cosine_matrices({name: torch.eye(2)}, [name, "other"]),
    "observations": lambda name: method.observation_maps(*torch.zeros(2, 2, 2, 2), torch.ones(2).bool(), two(name)),
    "interactive": interactive,
}


@pytest.mark.parametrize("kind", SHOWN)
def test_a_name_is_shown_as_it_is_and_is_never_markup_or_mathematics(kind):
    for name in NAMES:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Glyph")  # which the font of a test lacks
            html = SHOWN[kind](name)._repr_html_()
        page = Page(html)
        assert set(page.tags) <= {*TAGS.split(), "thead", "tr", "tspan", "use"}
        assert page.tags.count("script") == (2 if kind == "interactive" else 0)
        assert page.tags.count("style") == html.count("<style")
        assert name in "".join(page.texts) or name in page.texts


@pytest.mark.parametrize("name", ["=cmd|' /C calc'!A0", "+1", "-2", "@A", "\t=1", "\r=1", "a\r=1", "\uff1d1", 'a"b,c'])
def test_a_spreadsheet_computes_nothing_from_a_class_name(name):
    rows = list(csv.reader(io.StringIO(class_csv(torch.eye(2).long(), (name, "other")), newline="")))
    assert rows[1][0].removeprefix("'") == name.replace("\r", " ")
    assert not rows[1][0].startswith(tuple("=+-@\t\r\uff1d"))
    assert rows[1][1:] == ["1.000000", "1.000000", "1"]
