"""A user's Python functions: found by ``module:function``, called with lists of their own."""

import copy
import importlib
import importlib.util
import inspect
import math
import os
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

from toolkit.errors import InputError
from toolkit.scoring.guests import as_guest

RewardFunction = Callable[..., list[float]]
Columns = dict[str, list[Any]]
RECIPES = Path(__file__).resolve().parents[2] / "recipes"


def load_function(spec: str, field: str = "reward_function") -> Callable[..., Any]:
    """The function that ``module:function`` names; the working folder is searched first.

    Args:
        spec: of the function.
        field: the argument that named it.

    Raises:
        InputError: no such module or function, or the module fails, or exits, when imported.
    """
    module_name, _, name = spec.partition(":")
    module_name = module_name.removesuffix(".py")  # a file's name will do
    if not module_name or not name:
        raise InputError(f"{field}: {spec!r} is not module:function", field)
    with as_guest(f"{field}: {module_name}", field):
        module = _import_from_here(module_name)
        function = getattr(module, name, None)
    if not callable(function):
        raise InputError(f"{field}: {module_name} has no function {name!r}", field)
    return function


def _import_from_here(name: str) -> ModuleType:
    """Import a module, searching the working folder before anything else."""
    here = os.getcwd()
    if Path(here).resolve() != RECIPES:
        if sys.path[:1] not in ([here], [""]):
            sys.path.insert(0, here)
        return importlib.import_module(name)

    # Somebody works in recipes/: on the path, its files would be taken for libraries.
    path = Path(here, f"{name}.py")
    spec = importlib.util.spec_from_file_location(name, path)
    if name in sys.modules or not path.is_file() or spec is None or spec.loader is None:
        return importlib.import_module(name)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def function_name(function: RewardFunction) -> str:
    """What a reward function is called in messages and logs."""
    return getattr(function, "__name__", type(function).__name__)


def call_reward_function(
    function: RewardFunction, prompts: list[Any], completions: list[Any], columns: Columns,
    all_scored: bool = True,
) -> list[float]:  # fmt: skip
    """Its scores as floats, one for each completion, or an InputError that names it.

    It gets copies, which it may change as it likes, and runs as a guest (``guests``); the toolkit's
    own scorers need neither. NaN, or None, says that a completion cannot be scored, which is a
    mistake where ``all_scored``; an infinite score always is.
    """
    name = f"reward function {function_name(function)}"
    if type(function).__module__.startswith("toolkit."):
        values = _as_floats(function(prompts=prompts, completions=completions, **columns), name)
    else:
        with as_guest(name):
            wanted = _wanted(function, columns)
            given = copy.deepcopy({"prompts": prompts, "completions": completions} | wanted)
            values = _as_floats(function(**given), name)
    if len(values) != len(completions):
        raise InputError(f"{name}: {len(values)} scores for {len(completions)} completions")
    for value, completion in zip(values, completions, strict=True):
        if math.isinf(value) or (all_scored and math.isnan(value)):
            raise InputError(f"{name}: scored {completion!r:.60} as {value}")
    return values


def _as_floats(scores: Any, name: str) -> list[float]:
    try:
        if isinstance(scores, str | bytes | dict):
            raise TypeError
        return [math.nan if s is None else float(s) for s in scores]
    except (TypeError, ValueError):
        raise InputError(f"{name}: returned {scores!r:.80}, not numbers") from None


def _wanted(function: RewardFunction, columns: Columns) -> Columns:
    """The columns that the function takes: those it names, or all if it has ``**columns``.

    Raises:
        InputError: it cannot do without a column that the rows do not have.
    """
    parameters = inspect.signature(function).parameters
    if any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        return columns
    for name, p in parameters.items():
        given = name in columns or name in ("prompts", "completions")
        if not given and p.default is p.empty and p.kind is not p.VAR_POSITIONAL:
            raise InputError(
                f"reward function {function_name(function)}: it asks for the column {name!r}, but "
                f"the prompts' rows have {', '.join(sorted(columns)) or 'no further ones'}"
            )
    return {name: values for name, values in columns.items() if name in parameters}
