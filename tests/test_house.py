"""The house's own rules: imports go down only, and what is public says what it does."""

import ast
import importlib.util
import re
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parent.parent
FLOORS = {
    "errors": -2,
    "embedded": -1,
    "commands": 0,
    "endings": -1,
    "late": -1,
    "help_text": 0,
    "flags": -1,
    "arguments": 0,
    "random_state": 0,
    "launched": 0,
    "maths": 0,
    "data": 1,
    "models": 2,
    "record": 2,
    "terminal": 2,
    "scoring": 3,
    "training": 4,
    "project": 3,
    "labeling": 4,
    "next_step": 4,
    "cli": 5,
    "live": 5,
    "evaluation": 5,
    "hub": 6,
    "pipeline": 6,
    "trl_compat": 6,
    "completions": 6,
    "__init__": 6,
    "console": 7,
    "__main__": 8,
}
# Declared and imported by no file of ours: starlette reads forms with it, and says so only then.
INDIRECT = {"python-multipart"}
SOURCES = sorted((ROOT / "toolkit").rglob("*.py"))


def room(path: Path) -> str:
    return path.relative_to(ROOT / "toolkit").with_suffix("").parts[0]


def imported_rooms(path: Path) -> set[str]:
    rooms = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module]
        for name in names:
            if name == "recipes" or name.startswith("recipes."):
                rooms.add("recipes")
            if name.startswith("toolkit."):
                rooms.add(name.split(".")[1])
    return rooms


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_go_down_only(path: Path) -> None:
    here = room(path)
    for there in imported_rooms(path):
        allowed = there == here or FLOORS[there] < FLOORS[here]
        assert allowed, f"{path}: {here} (floor {FLOORS[here]}) imports {there}"


def test_the_maths_floor_knows_torch_and_nothing_else() -> None:
    for path in (ROOT / "toolkit" / "maths").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom):
                top = (node.module or "").split(".")[0]
                assert top in {"torch", "toolkit", "math", "typing", "collections", "statistics"}, (
                    f"{path}:{node.lineno} imports {node.module}"
                )


MODULES = [path for path in SOURCES if path.name != "__init__.py"]


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(ROOT)))
def test_every_module_has_its_test_file(path: Path) -> None:
    inside = path.relative_to(ROOT / "toolkit")
    mirror = ROOT / "tests" / inside.with_name(f"test_{inside.name}")
    assert mirror.is_file(), f"{path.relative_to(ROOT)} has no {mirror.relative_to(ROOT)}"


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(ROOT)))
def test_public_functions_say_what_they_do(path: Path) -> None:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
            assert ast.get_docstring(node), f"{path}:{node.lineno} {node.name}: no docstring"


def imported_packages(folder: str) -> dict[str, str]:
    """Top-level modules that a folder's files import, and where: none of Python's or our own."""
    found: dict[str, str] = {}
    for path in sorted((ROOT / folder).rglob("*.py")):
        own = {"toolkit", "recipes", "tests", "benchmarks"}
        own |= {p.stem for p in (ROOT / "benchmarks").glob("*.py")}
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names: list[str] = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                names = [node.module]
            elif isinstance(node, ast.Call) and node.args:
                called = getattr(node.func, "attr", getattr(node.func, "id", ""))
                first = node.args[0]
                if called in ("import_module", "importorskip") and isinstance(first, ast.Constant):
                    names = [str(first.value)]
            for name in {name.split(".")[0] for name in names} - own - sys.stdlib_module_names:
                found.setdefault(name, f"{path.relative_to(ROOT)}:{node.lineno}")
    return found


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def declared() -> tuple[set[str], set[str]]:
    """What pyproject.toml names for use, and for the tests."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    use, dev = project["dependencies"] + extras["label"], extras["dev"]
    names = [{normal(re.split(r"[<>=\[ ]", line)[0]) for line in lines} for lines in (use, dev)]
    return names[0], names[1]


@pytest.mark.slow
@pytest.mark.parametrize("folder", ["toolkit", "recipes", "tests", "benchmarks"])
def test_what_is_imported_is_declared(folder: str) -> None:
    use, dev = declared()
    allowed = use | dev if folder in ("tests", "benchmarks") else use
    packages = packages_distributions()
    for name, place in imported_packages(folder).items():
        of = {normal(package) for package in packages.get(name, [name])}
        assert of & allowed, f"{place}: {name} is imported, but pyproject.toml does not name {of}"


def test_what_is_declared_is_imported() -> None:
    packages = packages_distributions()
    modules = {**imported_packages("toolkit"), **imported_packages("recipes")}
    used = {normal(package) for name in modules for package in packages.get(name, [])}
    assert declared()[0] - used == INDIRECT


def licenses() -> ModuleType:
    spec = importlib.util.spec_from_file_location("licenses", ROOT / "benchmarks" / "licenses.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_page_of_licenses_has_every_pin_and_nothing_for_use_is_under_the_gpl() -> None:
    tool = licenses()
    text = tool.PAGE.read_text(encoding="utf-8")
    rows = dict(re.findall(r"^\| \**([\w-]+)\** \| (\S+) \|", text, flags=re.M))
    for name, version in tool.pins().items():
        assert rows.get(name) == version, f"{name} {version}: run benchmarks/licenses.py again"
    for name, package in tool.closure(tool.declared()).items():
        license = tool.license_of(package)
        assert "GPL" not in license and "unknown" not in license, f"{name}: {license}"
    assert "krippendorff" not in imported_packages("toolkit") | imported_packages("recipes")


def test_every_dependency_is_pinned_without_local_tags() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = {line.split("==")[0].lower().replace("_", "-") for line in lines if "==" in line}
    extras = project["optional-dependencies"]
    for requirement in project["dependencies"] + extras["label"] + extras["dev"]:
        name = re.split(r"[<>=\[]", requirement)[0].strip().lower().replace("_", "-")
        assert name in pins, f"{name} is not in constraints.txt"
    assert not [line for line in lines if "+" in line or line.startswith("nvidia")]


def test_the_embedded_model_is_under_four_megabytes() -> None:
    size = (ROOT / "data" / "model" / "model.safetensors").stat().st_size
    assert size < 4_000_000
