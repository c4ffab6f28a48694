"""The examples in the docstrings of `apd.report` run and say what they say."""

import doctest
import importlib
from pathlib import Path

import pytest

import apd

PACKAGE = Path(apd.__file__).parent
MODULES = sorted((PACKAGE / "report").rglob("*.py"))
NAMES = [".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts) for path in MODULES]


@pytest.mark.parametrize("name", NAMES)
def test_the_examples_in_the_docstrings_run(name):
    module = importlib.import_module(name.removesuffix(".__init__"))
    results = doctest.testmod(module)
    assert results.attempted == Path(module.__file__).read_text().count(">>> ")
    assert results.failed == 0
