"""Scripted labellers: a word-valence lexicon or a Python function scores, the best score is picked.

Every scorer has TRL's signature for reward functions, ``fn(prompts, completions) -> scores``, so
what labels can also be what PPO is tuned against, or what judges it.
"""

import hashlib
import math
import random
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from toolkit.data.files import require_file
from toolkit.data.text import answer_text
from toolkit.errors import InputError

WORD = re.compile(r"[a-z']+")


class Lexicon:
    """Scores a completion by the sum of its words' valences; words that are not listed count 0.

    Args:
        path: lines of ``word TAB valence``, further columns ignored (VADER's format); blank lines
            and lines that start with "# " are passed over.

    Raises:
        InputError: no such file, a line that is not of that form, or a valence that is not finite
            (file:line).
    """

    def __init__(self, path: str | Path) -> None:
        self.valences: dict[str, float] = {}
        try:
            lines = require_file(path, "--lexicon").read_text(encoding="utf-8").splitlines()
        except UnicodeDecodeError as error:
            raise InputError(
                f"{path}: not UTF-8 at byte {error.start} (save it as UTF-8)"
            ) from None
        for number, line in enumerate(lines, start=1):
            if not line.strip() or line.startswith("# "):
                continue
            fields = line.split("\t")
            try:
                valence = float(fields[1])
            except (IndexError, ValueError):
                raise InputError(
                    f"{path}:{number}: {line[:40]!r} is not `word TAB valence`"
                ) from None
            if not math.isfinite(valence):
                raise InputError(
                    f"{path}:{number}: the valence of {fields[0][:40]!r} is {fields[1][:20]!r}, "
                    "but must be a finite number"
                )
            self.valences[fields[0].lower()] = valence
        if not self.valences:
            raise InputError(f"{path}: no words (lines of `word TAB valence` are wanted)")

    @property
    def identity(self) -> str:
        """Which lexicon it is, by what it says."""
        content = repr(sorted(self.valences.items())).encode()
        return f"lexicon {hashlib.sha256(content).hexdigest()[:16]}"

    def __call__(self, prompts: list[Any], completions: list[Any], **columns: Any) -> list[float]:
        """Sums of valences, one for each completion (text or message); prompts do not count."""
        return [
            sum(self.valences.get(word, 0.0) for word in WORD.findall(text.lower()))
            for text in map(answer_text, completions)
        ]


def by_lexicon(path: str | Path) -> Callable[[list[str]], list[float]]:
    """A lexicon's scores of completions alone."""
    lexicon = Lexicon(path)
    return lambda texts: lexicon([], texts)


def pick_best(scores: list[float], ties: str, noise: float, rng: random.Random) -> int | None:
    """Index of the best score; None for a tie at the top that is to be dropped.

    Args:
        scores: one for each completion.
        ties: "drop", or "random" for one of the best by ``rng``.
        noise: probability of picking one of all completions by lot instead (a tired labeller).
        rng: three draws a call, whatever comes of them, so one row's tie shifts no other's luck.
    """
    careless, lot, tie_break = rng.random(), rng.random(), rng.random()
    if careless < noise:
        return int(lot * len(scores))
    top = max(scores)
    best = [k for k, value in enumerate(scores) if value == top]
    if len(best) > 1 and ties == "drop":
        return None
    return best[int(tie_break * len(best))]
