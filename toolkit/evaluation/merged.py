"""Contenders that are made of other adapters: a part of one, a mean, or SLERP.

    FOLDER*0.5            half of an adapter's change (below 1 towards what it started from)
    FOLDER*0.25,0.5,1     several such, as NAME*0.25, NAME*0.5 and NAME*1
    mean(A,B,C)           the mean of their changes
    slerp(A,B)*0.75       along the arc between their changes, layer by layer; then a part of it

A, B and C are folders of adapters, checkpoints, names of other contenders, or such expressions.
``toolkit.models.adapter_arithmetic`` makes them, exactly.
"""

import math
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from toolkit.data.leftovers import scratch_folder
from toolkit.errors import InputError
from toolkit.models.adapter_arithmetic import How, merge_adapters
from toolkit.models.toolkit_json import adapter_digest, read_facts
from toolkit.record import RunRecord, record_beside
from toolkit.training.ppo.checkpoints import NAME, export_policy

WAYS: dict[str, How] = {"mean": "linear", "slerp": "slerp"}
CALL = re.compile(rf"({'|'.join(WAYS)})\((.*)\)", re.DOTALL)
NUMBER = r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?"
FACTORS = re.compile(rf"(.+)\*\s*({NUMBER}(?:\s*,\s*{NUMBER})*)", re.DOTALL)


@dataclass(frozen=True)
class Merged:
    """An expression.

    Attributes:
        parts: folders of adapters or checkpoints, and expressions.
        how: the word before the parentheses; None for one part and a factor.
        factor: what the result is multiplied by.
    """

    parts: "tuple[str | Merged, ...]"
    how: str | None = None
    factor: float = 1.0

    def __str__(self) -> str:
        inner = ",".join(map(str, self.parts))
        text = f"{self.how}({inner})" if self.how else inner
        return text if self.factor == 1 and self.how else f"{text}*{digits_of(self.factor)}"

    def folders(self) -> list[str]:
        """The adapters and checkpoints of which it is made."""
        inner = [part.folders() if isinstance(part, Merged) else [part] for part in self.parts]
        return [folder for part in inner for folder in part]


def digits_of(factor: float) -> str:
    """Return a factor in as few digits as give it back."""
    short = f"{factor:g}"
    return short if float(short) == factor else repr(factor)


def split_factors(what: str) -> tuple[str, list[float]]:
    """Split ``WHAT*0.5,1`` into what comes before the star and its factors; [] without any.

    The star of ``checkpoint-*0`` is a wildcard, and a folder that has such a name is a folder.
    """
    match = FACTORS.fullmatch(what)
    if match is None or Path(what).exists():
        return what, []
    name = Path(match[1].strip()).name
    if name.startswith("checkpoint-") and not NAME.fullmatch(name):
        return what, []
    factors = [float(factor) for factor in match[2].split(",")]
    if not all(map(math.isfinite, factors)):
        raise InputError(f"contenders: {what}: a factor must be finite")
    return match[1].strip(), factors


def is_merged(what: str) -> bool:
    """Whether this names a contender that is made of others."""
    head, factors = split_factors(what)
    return bool(factors) or (CALL.fullmatch(head) is not None and not Path(what).exists())


def parse_merged(what: str, named: Callable[[str], "str | Merged | None"]) -> Merged:
    """Parse an expression with at most one factor.

    Args:
        what: the expression.
        named: returns what the contender of a name is; None if there is none.

    Raises:
        InputError: a part is not there, or is nothing that can be merged.
    """
    head, factors = split_factors(what)
    if len(factors) > 1:
        raise InputError(f"contenders: {what}: only a whole contender may have several factors")
    factor = factors[0] if factors else 1.0
    call = CALL.fullmatch(head)
    if call is None:
        return Merged((_part(head, named),), None, factor)

    parts = tuple(_part(part, named) for part in _split(call[2]))
    if len(parts) < 2:
        raise InputError(f"contenders: {what}: {call[1]} needs two adapters or more")
    return Merged(parts, call[1], factor)


def _part(what: str, named: Callable[[str], "str | Merged | None"]) -> "str | Merged":
    what = what.strip()
    known = named(what)
    if known is not None:
        return known
    if is_merged(what):
        return parse_merged(what, named)

    path = Path(what)
    if not what or not (
        (path / "adapter_config.json").is_file() or (NAME.fullmatch(path.name) and path.is_dir())
    ):
        raise InputError(
            f"contenders: {what!r} is not the folder of an adapter or of a checkpoint, nor the "
            f"name of such a contender{hint_of(what)}"
        )
    return what


def hint_of(what: str) -> str:
    """Return how a merge is written, for a message on what may be meant as one."""
    return " (a merge is written mean(A,B) or slerp(A,B))" if "(" in what or ")" in what else ""


def _split(inner: str) -> list[str]:
    """Split at the commas that are not inside parentheses and do not separate factors."""
    parts, depth, begun = [], 0, 0
    for i, letter in enumerate(inner):
        depth += (letter == "(") - (letter == ")")
        if letter == "," and depth == 0:
            parts.append(inner[begun:i])
            begun = i + 1
    return [*parts, inner[begun:]]


@contextmanager
def written(merged: Merged, what: str) -> Iterator[Path]:
    """Write the adapter into a folder that is removed at the end.

    Args:
        merged: the expression.
        what: the contender, for messages.

    Raises:
        InputError: it cannot be made exactly.
    """
    with scratch_folder() as scratch:
        starts = {_start_of(folder) for folder in merged.folders()}
        start = next(iter(starts)) if len(starts) == 1 else None
        yield _write(merged, scratch, start, what)


def _write(merged: Merged, scratch: Path, start: str | None, what: str) -> Path:
    folders: list[str | Path] = []
    for i, part in enumerate(merged.parts):
        inner = scratch / f"{i}"
        inner.mkdir()
        if isinstance(part, Merged):
            folders.append(_write(part, inner, start, what))
        elif NAME.fullmatch(Path(part).name):
            export_policy(Path(part), inner / "policy")
            folders.append(inner / "policy")
        else:
            folders.append(part)
    how = WAYS[merged.how] if merged.how else "linear"
    merge_adapters(folders, scratch / "merged", how, None, merged.factor, start, what)
    return scratch / "merged"


def _start_of(folder: str) -> str | None:
    """Return the folder of the adapter that this one was trained from, if its run still knows it.

    Without it, ``merge_adapters`` counts from the base, or refuses if that is not where it started.
    """
    record = record_beside(Path(folder))
    place = None if record is None else RunRecord.read(record).settings.get("policy_adapter")
    if not isinstance(place, str) or not (Path(place) / "adapter_model.safetensors").is_file():
        return None
    begun = read_facts(folder).get("start")
    if NAME.fullmatch(Path(folder).name):
        begun = adapter_digest(place)  # the export says what it started from, and is compared
    return place if begun == adapter_digest(place) else None
