"""What the book's pages and docstrings tell people to type works, and the committed drawings are what is drawn."""

import doctest
import importlib
import pydoc
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from page_blocks import PAGES, PYTHON, ROOT, blocks, commands
from PIL import Image

from apd import class_prototypes, observe
from apd.cli.app import COMMANDS, main, recipe_parts, with_recipe
from apd.distillers.base import DISTILLERS
from apd.study.campaigns import CAMPAIGNS

RUNNABLE = [page for page in PAGES if blocks(page, PYTHON) and page.name != "README.md"]
"""Without the README, whose Python is meant to be read inside somebody else's loop."""


def beginning_with(*program: str) -> list:
    """The commands of one program, without its name, as parameters of a test."""
    own = [(where, found) for where, found in commands() if found[: len(program)] == list(program)]
    return [pytest.param(found[len(program) :], id=where) for where, found in own]


@pytest.mark.parametrize("page", RUNNABLE, ids=lambda page: page.name)
def test_the_python_of_a_page_runs_from_top_to_bottom(page, monkeypatch):
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr("apd.distillers.base.DISTILLERS", dict(DISTILLERS))  # a page may define a method
    torch.manual_seed(0)
    names = {"__name__": page.stem}
    for first, code in blocks(page, PYTHON):
        # empty lines in front: a traceback tells the page's own line
        exec(compile("\n" * first + code, str(page), "exec"), names)


@pytest.mark.parametrize("arguments", beginning_with("apd") + beginning_with("python", "-m", "apd"))
def test_a_command_of_apd_has_the_options_that_a_page_gives_it(arguments, capsys):
    name, *rest = arguments
    assert name in COMMANDS
    at = rest.index("--size") if "--size" in rest else len(rest)
    assert main([name, *rest[at : at + 2], "--help"]) == 0  # the options follow from the recipe
    output = capsys.readouterr().out
    assert [word for word in rest if word.startswith("--") and not re.search(rf"{re.escape(word)}\b", output)] == []
    if name == "train":
        with_recipe(rest)  # a recipe that there is, or none
    if name == "recipes" and rest:
        recipe_parts(rest[-1])


@pytest.mark.parametrize("arguments", beginning_with("python", "-m", "apd.study.campaign"))
def test_a_campaign_that_a_page_starts_is_there(arguments):
    assert arguments[0] in CAMPAIGNS


@pytest.mark.parametrize("arguments", beginning_with("make"))
def test_a_target_of_make_that_a_page_names_is_in_the_makefile(arguments):
    targets = re.search(r"^\.PHONY:(.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)[1].split()
    assert [word for word in arguments if "=" not in word and word not in targets] == []


SCRIPTS = [param for param in beginning_with("python") if param.values[0][0].startswith("data_scripts/")]


@pytest.mark.parametrize("arguments", SCRIPTS)
def test_a_command_of_a_data_script_takes_what_a_page_gives_it(arguments, monkeypatch, capsys):
    monkeypatch.syspath_prepend(ROOT / "data_scripts")
    script, command, *rest = arguments
    with pytest.raises(SystemExit) as left:
        importlib.import_module(Path(script).stem).main([command, "--help"])
    usage = capsys.readouterr().out.split("\n\n")[0]
    assert left.value.code == 0
    places = [word for word in re.sub(r"\[.*?\]", "", usage).split() if word.isupper()]
    assert len(places) == len([word for word in rest if not word.startswith("--")])


def test_every_data_script_is_on_a_page_with_its_commands():
    listed = {(Path(param.values[0][0]).stem, param.values[0][1]) for param in SCRIPTS}
    for name in ("labelmefacade", "cityscapes", "ade20k", "pascal_context", "coco"):
        assert {(name, command) for command in ("fetch", "check", "convert")} <= listed
    assert {("camvid", "fetch"), ("camvid", "check")} <= listed


def test_every_shell_command_of_the_pages_is_of_a_kind_that_is_checked_here_or_known():
    checked = {"apd", "make", "python"}
    known = {"pip", "export", "papermill"}
    assert {arguments[0] for _, arguments in commands()} - checked <= known


def test_every_name_of_the_api_pages_is_there():
    text = "\n".join(page.read_text() for page in (ROOT / "book" / "api").glob("*.md"))
    names = re.findall(r"^\.\. auto(?:function|class|data|exception|module|attribute):: (\S+)", text, re.MULTILINE)
    assert len(names) > 100
    assert [name for name in names if pydoc.locate(name) is None] == []


MODULES = [
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
    for path in sorted((ROOT / "apd").rglob("*.py"))
    if any(">>> " in line and "+SKIP" not in line for line in path.read_text(encoding="utf-8").splitlines())
]


@pytest.mark.parametrize("module", MODULES)
def test_the_examples_in_docstrings_show_what_happens(module, runs):
    results = doctest.testmod(importlib.import_module(module))
    assert results.attempted > 0
    assert results.failed == 0


FOLDER, STATIC = ROOT / "book" / "figures", ROOT / "book" / "_static"


@pytest.fixture
def draw(monkeypatch):
    """The script; its short module names are forgotten afterwards."""
    monkeypatch.syspath_prepend(FOLDER)
    for path in FOLDER.glob("*.py"):
        monkeypatch.delitem(sys.modules, path.stem, raising=False)
    import draw

    yield draw
    for path in FOLDER.glob("*.py"):
        sys.modules.pop(path.stem, None)


def test_the_committed_drawings_are_up_to_date(draw):
    for name, content in draw.drawings().items():
        assert (STATIC / name).read_text(encoding="utf-8") == content, f"run python book/figures/draw.py ({name})"


def test_the_made_up_pixels_show_what_their_caption_says(draw):
    import perspectives

    features, labels = perspectives.made_up_pixels()
    wrong = {}
    for scope in ("batch", "image"):
        answers = observe(features, *class_prototypes(features, labels, 2, scope=scope)).argmax(1)
        wrong[scope] = int((answers != labels).sum())
    assert wrong["image"] == 0
    assert wrong["batch"] > labels.numel() / 5


@pytest.mark.parametrize(("module", "file"), [("scenes", "scenes-dial.jpg"), ("augmentation", "augmentation.jpg")])
def test_the_committed_images_show_what_is_drawn_today(draw, module, file):
    drawn = np.asarray(importlib.import_module(module).draw(), dtype=int)
    with Image.open(STATIC / file) as stored:
        committed = np.asarray(stored, dtype=int)
    assert committed.shape == drawn.shape
    assert np.abs(committed - drawn).mean() < 3, "run python book/figures/draw.py"
