"""The house's own rules: imports go down only, and what is public says what it does."""

import ast
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FLOORS = {
    "endings": -1, "errors": -1, "maths": 0, "data": 1, "models": 2, "training": 3, "labeling": 3,
    "evaluation": 3, "hub": 3, "trl_dialect": 4, "arguments": 4, "cli": 4, "stages": 5,
    "trl_yaml": 5,
    "__init__": 5,
}  # fmt: skip
# Rooms of one floor that may be entered from their neighbours: evaluation scores completions
# exactly as PPO does, and its judges are those that label.
DOORS = {("evaluation", "training"), ("evaluation", "labeling")}
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
        allowed = there == here or FLOORS[there] < FLOORS[here] or (here, there) in DOORS
        assert allowed, f"{path}: {here} (floor {FLOORS[here]}) imports {there}"


def test_the_maths_floor_knows_torch_and_nothing_else() -> None:
    for path in (ROOT / "toolkit" / "maths").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom):
                top = (node.module or "").split(".")[0]
                assert top in {"torch", "toolkit", "math", "typing", "collections", "statistics"}, (
                    f"{path}:{node.lineno} imports {node.module}"
                )


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(ROOT)))
def test_public_functions_say_what_they_do(path: Path) -> None:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
            assert ast.get_docstring(node), f"{path}:{node.lineno} {node.name}: no docstring"


def test_every_dependency_is_pinned_without_local_tags() -> None:
    import re

    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = {line.split("==")[0].lower().replace("_", "-") for line in lines if "==" in line}
    for requirement in project["dependencies"] + project["optional-dependencies"]["dev"]:
        name = re.split(r"[<>=\[]", requirement)[0].strip().lower().replace("_", "-")
        assert name in pins, f"{name} is not in constraints.txt"
    assert not [line for line in lines if "+" in line or line.startswith("nvidia")]


def test_the_embedded_model_is_under_four_megabytes() -> None:
    size = (ROOT / "data" / "model" / "model.safetensors").stat().st_size
    assert size < 4_000_000
