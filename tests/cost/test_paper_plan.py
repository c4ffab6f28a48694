"""The page on reproducing the paper: its table is what is counted, its commands are recipes."""

from itertools import groupby
from typing import get_args

import pytest
from chapter_cells import ROOT, book_script
from page_blocks import commands

from apd.cli.app import with_recipe
from apd.study.published_recipes import PUBLISHED, CocoSize, detection_methods_of
from apd.study.recipes import recipe

plan = book_script("paper_plan")


def test_the_pages_tables_are_what_is_counted_today_and_name_every_pair():
    published, (head, line, *rows) = shown_tables()
    assert published == list(plan.plan_table())
    assert list(dict.fromkeys(row.split("|")[1].strip() for row in rows)) == list(get_args(CocoSize))
    one = "coco_boxes"  # to count all of them takes half a minute
    counted = list(plan.detection_plan_table([one]))
    assert [head, line, *(row for row in rows if row.startswith(f"| {one} |"))] == counted


def shown_tables():
    """The tables of the page, each a list of lines."""
    lines = (ROOT / "book" / "reproduce_paper.md").read_text(encoding="utf-8").splitlines()
    return [list(rows) for is_row, rows in groupby(lines, lambda line: line.startswith("|")) if is_row]


@pytest.mark.parametrize("number", [0, 1])
def test_the_formula_on_the_page_gives_the_tables_hours(number):
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in shown_tables()[number][2:]]
    assert {row[0] for row in rows} == set((PUBLISHED, get_args(CocoSize))[number])
    for *_, operations, gpu_hours, hours in rows:
        expected = float(operations) * 1e15 / (plan.PEAK * plan.SHARE) / 3600
        assert float(gpu_hours) == pytest.approx(expected, rel=0.01, abs=0.06)
        assert float(hours) == pytest.approx(expected / 4, rel=0.01, abs=0.06)


def test_a_command_for_each_published_score_is_on_the_page_and_names_a_recipe():
    asked = set()
    for where, arguments in commands():
        if where.startswith("reproduce_paper.md") and "train" in arguments:
            arguments = with_recipe(arguments[arguments.index("train") + 1 :])
            options = dict(zip(arguments[::2], arguments[1::2], strict=False))
            size, method = options["--size"], options["--method"]
            assert recipe(size, method).data.name.startswith(size.partition("_")[0])
            asked.add((size, method))
    forms_of_apd = {(size, method) for size in get_args(CocoSize) for method in detection_methods_of(size)}
    ours = {(size, method) for size, method in forms_of_apd if method in ("student", "roi_apd", "dense_apd")}
    assert asked == {(name, method) for name in PUBLISHED for method in ("student", "apd")} | ours
