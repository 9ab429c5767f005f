"""Broken comparisons (of tests/recipes/test_bad_input.py), for the recipes that read them."""

import importlib.util
from functools import partial
from typing import Any

from benchmarks.faulty.room import ROOT, Fault, Room

RECIPES: dict[str, list[object]] = {
    "reward": ["--use_cpu", "--eval_rows", 1, "--output_dir", "out"],
    "sft": ["--use_cpu", "--eval_rows", 1, "--output_dir", "out"],
    "preference": ["--use_cpu", "--eval_rows", 1, "--output_dir", "out"],
}


def _broken() -> dict[str, tuple[str, bytes, str]]:
    """A fault's name: a file's name and content, and what is to be said of it."""
    path = ROOT / "tests" / "recipes" / "test_bad_input.py"
    spec = importlib.util.spec_from_file_location("test_bad_input", path)
    assert spec is not None and spec.loader is not None
    module: Any = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    broken: dict[str, tuple[str, bytes, str]] = module.FAULTS
    return broken


def _refused(room: Room, recipe: str, name: str, content: bytes, said: str) -> str:
    room.write(name, content)
    (room.folder / "data").symlink_to(ROOT / "data")
    return room.recipe(recipe, "--comparisons", name, *RECIPES[recipe]).refused(said)


FAULTS = [
    Fault(
        "broken rows",
        f"{recipe}: {fault}",
        partial(_refused, recipe=recipe, name=name, content=content, said=said),
    )
    for recipe in RECIPES
    for fault, (name, content, said) in _broken().items()
]
