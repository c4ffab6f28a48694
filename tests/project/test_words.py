"""Pages, notebooks, docstrings and messages use the words of the field."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import nbformat

ROOT = Path(__file__).resolve().parents[2]
INSTEAD = {
    r"pictures?": "image",
    r"looks? of (?:an|the|its) images?|(?:its|their|same) look": "appearance",
    r"(?<!learning )(?<!sampling )(?<!error )rates?": "learning rate",
    r"students? alone|alone, without a teacher": "baseline",
    r"told|tells?|not distinguishable|undecided": "reported; differs significantly, no significant difference",
    r"judged together|before the correction": "Holm-corrected, uncorrected",
    r"variations? of images?|varied": "augmentation, augmented",
    r"dials?|dialled": "context shift",
    r"(?:an|one|each|every|the) arms?|one choice changed": "variant, ablation",
    r"rivals?": "other distillation methods",
    r"crossed|kinship|pairs? of (?:one kind|unlike networks)": "cross-architecture, same-architecture",
    r"dearer|(?:as many|more|equal) seconds": "more expensive, equal-time",
    r"by heart|the truth": "overfits, ground truth",
    r"held against|yardsticks?": "compared with, reference",
}
BANNED = re.compile(rf"\b(?:{'|'.join(INSTEAD)})\b", re.IGNORECASE)
NOT_PROSE = re.compile(
    r"^(`{3,}).*?^\1\s*$|(`+)[^`]+?\2|\]\([^)]*\)|<[^>\n]*>|\$[^$]*\$|--[\w.-]+|\w+\.\w+", re.MULTILINE | re.DOTALL
)


def banned_in(text: str) -> list[str]:
    return BANNED.findall(" ".join(NOT_PROSE.sub(" ", text).split()))


def texts() -> Iterator[tuple[str, str]]:
    """Name and text of every page, notebook and module: of modules what their strings with a space in them say."""
    for page in {*(ROOT / "book").rglob("*.md"), ROOT / "README.md"} - {*(ROOT / "book" / "_build").rglob("*.md")}:
        yield page.name, page.read_text(encoding="utf-8")
    for path in (ROOT / "notebooks").glob("*.ipynb"):
        cells = [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "markdown"]
        yield path.name, "\n\n".join(cell.source for cell in cells)
    for path in (ROOT / "apd").rglob("*.py"):
        nodes = ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        strings = [n.value for n in nodes if isinstance(n, ast.Constant) and isinstance(n.value, str)]
        yield path.relative_to(ROOT).as_posix(), "\n\n".join(string for string in strings if " " in string)


def test_no_text_uses_a_private_word_where_the_field_has_one():
    assert {name: words for name, text in texts() if (words := banned_in(text))} == {}


def test_only_prose_is_looked_at():
    assert banned_in("A picture at\na rate of 0.1, told apart.") == ["picture", "rate", "told"]
    assert banned_in("The learning rate of `rate`, `--pictures` and [images](rivals.md).") == []
    assert banned_in("```sh\napd train # a picture\n```\nThe student alone") == ["student alone"]
