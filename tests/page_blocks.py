"""The fenced blocks of the book's pages: their Python, their shell commands by line; and what its scripts read."""

import json
import re
import shlex
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PAGES = [*sorted((ROOT / "book").glob("*.md")), ROOT / "README.md"]
BLOCK = re.compile(r"^```(?P<kind>[^\n`]*)\n(?P<options>(?::[^\n]*\n)*)(?P<code>.*?)^```$", re.MULTILINE | re.DOTALL)
PYTHON, SHELL = {"python", "{code-block} python"}, {"sh", "bash", "console", "shell"}


def blocks(page, kinds):
    """The fenced blocks of these kinds: the line that each starts on, and its code."""
    text = page.read_text(encoding="utf-8")
    found = [match for match in BLOCK.finditer(text) if match["kind"].strip() in kinds]
    return [(text.count("\n", 0, match.start("code")), match["code"]) for match in found]


def commands():
    """Every command of every shell block, as (where, arguments); one that goes on behind a backslash is one."""
    for page in PAGES:
        for first, code in blocks(page, SHELL):
            for number, line in enumerate(code.replace("\\\n", " ").splitlines(), start=first + 1):
                if arguments := shlex.split(line, comments=True):
                    if arguments[0] == "torchrun" and "-m" in arguments:  # checked as what one process runs
                        arguments = ["python", *arguments[arguments.index("-m") :]]
                    yield f"{page.name}:{number}", arguments


def data_of(shown):
    """What the script of a drawing reads."""
    return json.loads(re.search(r'<script type="application/json">(.*?)</script>', shown.html, re.DOTALL)[1])
