"""docs/architecture.md says where things are; here it is held to the code."""

import ast
import re
from pathlib import Path

import pytest

from tests.test_house import FLOORS

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
# `toolkit/maths/kl.py: penalized_rewards`, or a path alone, or `SamplingRule.visible` behind one.
NAMED = re.findall(r"`((?:toolkit|tests|recipes)/[\w/]+(?:\.py)?/?)(?:: ([\w.]+))?`", PAGE)


def defined(path: Path) -> set[str]:
    """What a file's top level defines, and the members of its classes as CLASS.NAME."""
    names = set()
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef):
            names.add(node.name)
        if isinstance(node, ast.ClassDef):
            members = [m.name for m in node.body if isinstance(m, ast.FunctionDef)]
            names |= {f"{node.name}.{member}" for member in members} | set(members)
        if isinstance(node, ast.Assign):
            names |= {target.id for target in node.targets if isinstance(target, ast.Name)}
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            names.add(node.target.id)
    return names


@pytest.mark.parametrize(("path", "name"), sorted(set(NAMED)))
def test_what_the_page_names_is_there(path: str, name: str) -> None:
    assert (ROOT / path).exists()
    assert not name or name in defined(ROOT / path)


def test_the_page_names_most_rooms() -> None:
    """So that the test above cannot pass by finding nothing."""
    assert len(set(NAMED)) > 40
    rooms = {path.split("/")[1] for path, _ in NAMED if path.startswith("toolkit/")}
    assert {"maths", "data", "models", "scoring", "training", "hub", "evaluation"} <= rooms


def test_the_tree_has_every_module_on_its_floor() -> None:
    tree = re.findall(r"^ +(-?\d) +(\w+)(?:\.py|/) ", PAGE, re.MULTILINE)
    floors = {name: int(floor) for floor, name in tree}
    assert {name: floors.get(name) for name in FLOORS if name != "__init__"} == {
        name: floor for name, floor in FLOORS.items() if name != "__init__"
    }
