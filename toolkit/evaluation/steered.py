"""Contenders that a critic steers: what preftune ilql left, at one strength or several.

    FOLDER                     at the strength that the run wrote down (--beta)
    FOLDER:beta=4              at this one; 0 is the policy alone
    FOLDER:beta=1,4,16         several, as NAME:beta=1, NAME:beta=4 and NAME:beta=16
    FOLDER:beta=16:clipped     no token gains: Q - V counts only where it is below 0 (Wordle, in
                               the authors' code)

FOLDER is the run's folder, or ``adapters`` in it, which holds ``policy`` and ``critic``.
"""

import math
import re
from dataclasses import dataclass
from pathlib import Path

from toolkit.errors import InputError
from toolkit.evaluation.merged import digits_of
from toolkit.models.actors import CRITIC, POLICY
from toolkit.models.adapters import check_adapter
from toolkit.models.q_heads import kind_of
from toolkit.models.toolkit_json import read_facts

STRENGTHS = re.compile(r"(.+):beta=([^:]*)(:clipped)?", re.DOTALL)


@dataclass(frozen=True)
class Steered:
    """Policy and critic in a folder, at one strength."""

    folder: str
    beta: float
    clipped: bool = False

    def __str__(self) -> str:
        return f"{self.folder}:beta={digits_of(self.beta)}{':clipped' if self.clipped else ''}"

    @property
    def policy(self) -> str:
        """The folder of the policy's adapter."""
        return str(Path(self.folder) / POLICY)


def is_steered(what: str) -> bool:
    """Whether this names a folder with a critic, or a strength."""
    return STRENGTHS.fullmatch(what) is not None or _home(what) is not None


def parse_steered(what: str) -> list[Steered]:
    """Parse ``FOLDER:beta=1,4``; a folder alone has the strength that is written down there.

    Raises:
        InputError: the folder holds no critic, or a strength is no number from 0 on.
    """
    match = STRENGTHS.fullmatch(what)
    folder = what if match is None else match[1].strip()
    home = _home(folder)
    if home is None:
        raise InputError(
            f"contenders: {what}: {folder} holds no critic that could steer (give the folder of "
            "preftune ilql)"
        )
    if match is None:
        beta = read_facts(home / CRITIC).get("beta")
        if beta is None:
            raise InputError(
                f"contenders: {what}: its toolkit.json names no strength (write {what}:beta=4)"
            )
        return [Steered(str(home), float(beta))]
    betas = [_number(part, what) for part in match[2].split(",")]
    return [Steered(str(home), beta, match[3] is not None) for beta in betas]


def check_steered(one: Steered, base: str, what: str, precision: str) -> None:
    """Raise InputError unless policy and critic can be loaded; this reads only small files."""
    for name in (POLICY, CRITIC):
        check_adapter(Path(one.folder) / name, base, "CAUSAL_LM", what, precision)
    kind_of(Path(one.folder) / CRITIC)


def _home(folder: str) -> Path | None:
    """Return the folder that holds policy and critic; None if there is none."""
    for home in (Path(folder), Path(folder) / "adapters"):
        if (home / CRITIC / "adapter_config.json").is_file():
            return home
    return None


def _number(text: str, what: str) -> float:
    try:
        beta = float(text)
    except ValueError:
        beta = math.nan
    if not (math.isfinite(beta) and beta >= 0):
        raise InputError(
            f"contenders: {what}: {text.strip()!r} is no strength (write numbers from 0 on, such "
            "as :beta=1,4)"
        )
    return beta
