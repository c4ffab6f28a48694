"""The page on reproducing the paper: its table is what is counted, its commands are recipes."""

import doctest
import importlib
import re
from pathlib import Path

import pytest
from test_book_snippets import blocks, commands

from apd.commands.parsing import with_recipe
from apd.study.field_checks import ExperimentError
from apd.study.paper_plan import PEAK, SHARE, plan_table
from apd.study.paper_recipes import PUBLISHED
from apd.study.recipes import recipe

PAGE = Path(__file__).resolve().parents[1] / "book" / "reproduce_paper.md"


@pytest.fixture(scope="module")
def table():
    return list(plan_table())


def test_the_pages_table_is_what_is_counted_today(table):
    shown = [line for line in PAGE.read_text(encoding="utf-8").splitlines() if line.startswith("|")]
    assert shown == table


def test_the_formula_on_the_page_gives_the_tables_hours(table):
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table[2:]]
    assert {row[0] for row in rows} == set(PUBLISHED)
    for *_, operations, gpu_hours, hours in rows:
        expected = float(operations) * 1e15 / (PEAK * SHARE) / 3600
        assert float(gpu_hours) == pytest.approx(expected, rel=0.01, abs=0.06)
        assert float(hours) == pytest.approx(expected / 4, rel=0.01, abs=0.06)


def test_the_published_gains_are_those_of_the_readme():
    gains = {name: round(published.with_apd - published.alone, 2) for name, published in PUBLISHED.items()}
    assert gains == {"cityscapes": 1.53, "ade20k": 2.06, "pascal_context": 1.67}


def test_a_command_for_each_published_score_is_on_the_page_and_names_a_recipe():
    asked = set()
    for where, words in commands():
        if where.startswith("reproduce_paper.md") and "train" in words:
            words = with_recipe(words[words.index("train") + 1 :])
            options = dict(zip(words[::2], words[1::2], strict=False))
            size, method = options["--size"], options["--method"]
            assert recipe(size, method).data.name.startswith(size)
            asked.add((size, method))
    assert asked == {(name, method) for name in PUBLISHED for method in ("student", "apd")}


def test_every_run_on_the_page_is_for_as_many_processes_as_the_release():
    lines = [line for _, code in blocks(PAGE, {"sh"}) for line in code.splitlines() if line.startswith("torchrun")]
    assert len(lines) == 6
    assert all(re.match(r"torchrun --nproc-per-node 4 -m apd train ", line) for line in lines)


def test_a_command_that_names_no_recipe_would_be_found():
    with pytest.raises(ExperimentError, match="student_equal_seconds"):
        recipe("cityscapes", "student_equal_seconds")


@pytest.mark.parametrize("name", ["paper_recipes", "paper_sources", "step_cost", "dry_run", "recipes", "schedule"])
def test_the_examples_in_the_docstrings_are_true(name, tmp_path, monkeypatch):
    monkeypatch.setenv("APD_RUNS", str(tmp_path))
    results = doctest.testmod(importlib.import_module(f"apd.study.{name}"))
    assert results.attempted > 0
    assert results.failed == 0
