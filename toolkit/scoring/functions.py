"""Scorers that read text: a word-valence lexicon, and a user's Python functions.

A function has TRL's signature for reward functions, ``fn(prompts, completions, **columns) ->
scores``, so one function can label, reward PPO, or judge. It is named by ``module:function``, and
gets its own copies of the lists.
"""

import copy
import hashlib
import importlib
import importlib.util
import inspect
import math
import os
import re
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from toolkit.data.files import require_file
from toolkit.embedded import RECIPES
from toolkit.errors import InputError
from toolkit.scoring.guests import as_guest
from toolkit.scoring.scorer import Columns, Completions, Scorer, refuse_infinite

RewardFunction = Callable[..., list[float]]
WORD = re.compile(r"[a-z']+")


class Lexicon(Scorer):
    """Scores a completion by the sum of its words' valences; words that are not listed count 0.

    Args:
        path: lines of ``word TAB valence``; further columns are ignored (VADER's format). Blank
            lines and lines that start with "# " are skipped.

    Raises:
        InputError: there is no such file, a line has another form, or a valence is not finite
            (file:line).
    """

    name = "Lexicon"

    def __init__(self, path: str | Path) -> None:
        self.valences: dict[str, float] = {}
        try:
            lines = require_file(path, "--lexicon").read_text(encoding="utf-8").splitlines()
        except UnicodeDecodeError as error:
            raise InputError(
                f"{path}: not UTF-8 at byte {error.start} (save it as UTF-8)"
            ) from None

        for number, line in enumerate(lines, start=1):
            if line.strip() and not line.startswith("# "):
                word, valence = _valence(line, f"{path}:{number}")
                self.valences[word] = valence
        if not self.valences:
            raise InputError(f"{path} has no words (write lines of `word TAB valence`)")

    @property
    def identity(self) -> str:
        """What identifies the lexicon: its content."""
        content = repr(sorted(self.valences.items())).encode()
        return f"lexicon {hashlib.sha256(content).hexdigest()[:16]}"

    def of_texts(self, texts: Iterable[str]) -> list[float]:
        """Return the sum of valences of each text."""
        return [
            sum(self.valences.get(word, 0.0) for word in WORD.findall(text.lower()))
            for text in texts
        ]

    def __call__(self, completions: Completions) -> Tensor:
        """Return sums of valences (B,) fp64; prompts do not count."""
        scores = self.of_texts(completions.texts)
        refuse_infinite(self.title, scores, completions.texts)
        return torch.tensor(scores, dtype=torch.float64)


def _valence(line: str, place: str) -> tuple[str, float]:
    """Parse a line into its word and valence."""
    fields = line.split("\t")
    try:
        valence = float(fields[1])
    except (IndexError, ValueError):
        raise InputError(f"{place}: {line[:40]!r} is not `word TAB valence`") from None
    if not math.isfinite(valence):
        raise InputError(
            f"{place}: the valence of {fields[0][:40]!r} is {fields[1][:20]!r}, but must be a "
            "finite number"
        )
    return fields[0].lower(), valence


class FunctionScorer(Scorer):
    """Scores by a Python function of TRL's signature, which runs as a guest.

    Args:
        function: called as ``function(prompts=..., completions=..., **columns)``, with the columns
            that it accepts.
    """

    def __init__(self, function: RewardFunction) -> None:
        self.function = function
        self.name = function_name(function)

    @property
    def title(self) -> str:
        """Its name in messages."""
        return f"reward function {self.name}"

    @property
    def identity(self) -> str:
        """The function's own ``identity`` if it has one, or else where it is defined."""
        known = getattr(self.function, "identity", None)
        if known is not None:
            return str(known)
        kind = self.function if hasattr(self.function, "__qualname__") else type(self.function)
        return f"{kind.__module__}:{kind.__qualname__}"

    def __call__(self, completions: Completions) -> Tensor:
        """Return the function's scores (B,) fp64; NaN where it gives NaN or None."""
        scores = call_reward_function(
            self.function, completions.prompts, completions.answers, completions.columns
        )
        return torch.tensor(scores, dtype=torch.float64)


def as_scorer(scorer: Scorer | RewardFunction) -> Scorer:
    """Return a scorer unchanged; wrap a function of TRL's signature as a scorer."""
    return scorer if isinstance(scorer, Scorer) else FunctionScorer(scorer)


def load_function(spec: str, field: str = "reward_function") -> Callable[..., Any]:
    """Load the function named by ``module:function``, searching the working folder first.

    Args:
        spec: "module:function".
        field: the argument that names it.

    Raises:
        InputError: there is no such module or function, or importing the module fails or exits.
    """
    module_name, _, name = spec.partition(":")
    module_name = module_name.removesuffix(".py")  # a file name is accepted, too
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

    # If recipes/ is the working folder, its files would be taken for libraries on the path.
    path = Path(here, f"{name}.py")
    spec = importlib.util.spec_from_file_location(name, path)
    if name in sys.modules or not path.is_file() or spec is None or spec.loader is None:
        return importlib.import_module(name)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def function_name(function: RewardFunction) -> str:
    """Return a reward function's name in messages and logs."""
    return getattr(function, "__name__", type(function).__name__)


def call_reward_function(
    function: RewardFunction,
    prompts: Sequence[object],
    completions: Sequence[object],
    columns: Columns,
) -> list[float]:
    """Call a user's function; return one float for each of B completions, NaN for None.

    It gets copies, which it may change, and runs as a guest (``guests``).

    Args:
        function: of TRL's signature.
        prompts: B prompts, each text or messages.
        completions: B completions, each text or a list with the assistant's message.
        columns: name -> B values.

    Raises:
        InputError: it failed, or did not return B numbers that are finite or NaN.
    """
    name = f"reward function {function_name(function)}"
    with as_guest(name):
        wanted = _wanted(function, columns)
        given = copy.deepcopy({"prompts": prompts, "completions": completions} | wanted)
        values = _as_floats(function(**given), name)

    if len(values) != len(completions):
        raise InputError(f"{name} returned {len(values)} scores for {len(completions)} completions")
    refuse_infinite(name, values, completions)
    return values


def _as_floats(scores: Iterable[float | None], name: str) -> list[float]:
    try:
        if isinstance(scores, str | bytes | dict):
            raise TypeError
        return [math.nan if s is None else float(s) for s in scores]
    except (TypeError, ValueError):
        raise InputError(f"{name} returned {scores!r:.80}, not numbers") from None


def _wanted(function: RewardFunction, columns: Columns) -> Columns:
    """Return the columns that the function accepts: those it names, or all with ``**columns``.

    Raises:
        InputError: it requires a column that the rows do not have.
    """
    parameters = inspect.signature(function).parameters
    if any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        return columns
    for name, p in parameters.items():
        given = name in columns or name in ("prompts", "completions")
        if not given and p.default is p.empty and p.kind is not p.VAR_POSITIONAL:
            raise InputError(
                f"reward function {function_name(function)}: it needs the column {name!r}, but "
                f"the prompts' rows have {', '.join(sorted(columns)) or 'no others'}"
            )
    return {name: values for name, values in columns.items() if name in parameters}
