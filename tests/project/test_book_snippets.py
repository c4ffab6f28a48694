"""What the book's pages and docstrings tell people to type works, and the committed drawings are what is drawn."""

import doctest
import importlib
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from miniatures import WRITERS, data_script
from page_blocks import PAGES, PYTHON, ROOT, blocks, commands
from PIL import Image

from apd import class_prototypes, observe
from apd.cli.app import COMMANDS, main, recipe_parts, with_recipe
from apd.distillers.base import DISTILLERS
from apd.study.campaigns import CAMPAIGNS

RUNNABLE = [page for page in PAGES if blocks(page, PYTHON)]
FOLDER, STATIC = ROOT / "book" / "figures", ROOT / "book" / "_static"


def inside_a_loop():
    """What the README's lines find around them."""
    maps = {
        name: torch.rand(2, channels, 6, 6).requires_grad_()
        for name, channels in dict(fs=128, ft=512, zs=19, zt=19).items()
    }
    optimiser = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.1)
    return maps | dict(torch=torch, optimiser=optimiser, loss=torch.zeros(()), labels=torch.randint(19, (2, 48, 48)))


@pytest.mark.parametrize("page", RUNNABLE, ids=lambda page: page.name)
def test_the_python_of_a_page_runs_from_top_to_bottom(page, monkeypatch):
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr("apd.distillers.base.DISTILLERS", dict(DISTILLERS))  # a page may define a method
    torch.manual_seed(0)
    names = {"__name__": page.stem} | (inside_a_loop() if page.name == "README.md" else {})
    for first, code in blocks(page, PYTHON):
        # empty lines in front: a traceback tells the page's own line
        exec(compile("\n" * first + code, str(page), "exec"), names)


def of_apd(arguments, capsys):
    """A command has the options that a page gives it."""
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


def of_a_data_script(arguments, capsys):
    """A command takes as many arguments as a page gives it."""
    script, command, *rest = arguments
    with pytest.raises(SystemExit) as left:
        data_script(Path(script).stem).main([command, "--help"])
    usage = capsys.readouterr().out.split("\n\n")[0]
    assert left.value.code == 0
    places = [word for word in re.sub(r"\[.*?\]", "", usage).split() if word.isupper()]
    assert len(places) == len([word for word in rest if not word.startswith("--")])


@pytest.mark.parametrize("arguments", [pytest.param(found, id=where) for where, found in commands()])
def test_a_command_of_a_page_is_one_that_there_is(arguments, capsys):
    match arguments:
        case ["python", "-m", "apd.study.campaign", name, *_]:
            assert name in CAMPAIGNS
        case ["apd", *rest] | ["python", "-m", "apd", *rest]:
            of_apd(rest, capsys)
        case ["python", script, *_] if script.startswith("data_scripts/"):
            of_a_data_script(arguments[1:], capsys)
        case ["make", *rest]:
            targets = re.search(r"^\.PHONY:(.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)[1].split()
            assert [word for word in rest if "=" not in word and word not in targets] == []
        case [program, *_]:
            known = "python pip export papermill accelerate torchrun"  # the last two: test_loops
            assert program in known.split()


def test_links_of_the_readme_lead_to_files_of_the_project():
    links = re.findall(r"""(?:\]\(|src(?:set)?=")(?!http)([^)#"]+)""", (ROOT / "README.md").read_text(encoding="utf-8"))
    assert len(links) > 9
    assert [link for link in links if not (ROOT / link).exists()] == []


def test_every_data_script_is_on_a_page_with_its_commands():
    listed = [" ".join(found[1:3]) for _, found in commands()]
    wanted = {f"{name} {c}" for name in WRITERS for c in ("fetch", "check", "convert")}
    wanted |= {"labelmefacade fetch", "labelmefacade check", "labelmefacade convert", "camvid fetch", "camvid check"}
    assert {f"data_scripts/{one.replace(' ', '.py ')}" for one in wanted} <= set(listed)


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


@pytest.fixture
def draw(monkeypatch):
    """The script; its short module names are forgotten afterwards."""
    monkeypatch.syspath_prepend(FOLDER)
    for path in FOLDER.glob("*.py"):
        monkeypatch.setitem(sys.modules, path.stem, None)
        del sys.modules[path.stem]
    return importlib.import_module("draw")


def test_the_committed_drawings_are_up_to_date(draw):
    for name, content in draw.drawings().items():
        assert (STATIC / name).read_text(encoding="utf-8") == content, f"run python book/figures/draw.py ({name})"


def test_the_first_page_and_its_figure_are_what_the_records_say(draw):
    import main_results

    found, page = main_results.results(), (ROOT / "book" / "intro.md").read_text(encoding="utf-8")
    assert page == main_results.with_results(page, found), "run python book/figures/main_results.py"
    gains = [
        (one.name, other)
        for one in found
        for other, gain in one.gains.items()
        if gain.significant and gain.found.mean > 0
    ]
    assert {other for name, other in gains if name.startswith("Scenes, context shift")} == {"student", "pixel_kd"}
    assert [name for name, _ in gains if not name.startswith("Scenes, context shift")] == [], "the sentence below it"
    for name, drawn in main_results.drawings(found).items():
        assert (STATIC / name).read_text(encoding="utf-8") == drawn, "run python book/figures/main_results.py"


def test_the_made_up_pixels_show_what_their_caption_says(draw):
    import perspectives

    features, labels = perspectives.made_up_pixels()
    wrong = {}
    for scope in ("batch", "image"):
        answers = observe(features, *class_prototypes(features, labels, 2, scope=scope)).argmax(1)
        wrong[scope] = int((answers != labels).sum())
    assert wrong["image"] == 0
    assert wrong["batch"] > labels.numel() / 5


@pytest.mark.parametrize(("module", "file"), [("scenes", "scenes-shifts.jpg"), ("augmentation", "augmentation.jpg")])
def test_the_committed_images_show_what_is_drawn_today(draw, module, file):
    drawn = np.asarray(importlib.import_module(module).draw(), dtype=int)
    with Image.open(STATIC / file) as stored:
        committed = np.asarray(stored, dtype=int)
    assert committed.shape == drawn.shape
    assert np.abs(committed - drawn).mean() < 3, "run python book/figures/draw.py"
