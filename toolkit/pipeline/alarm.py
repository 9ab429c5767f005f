"""Raise an alarm if the reward model's score rises, but people like the policy less."""

import math
from collections.abc import Iterable

from toolkit.data.records import Row
from toolkit.maths.statistics import wilson_interval
from toolkit.pipeline.samples import POLICY


def _is_match(row: Row) -> bool:
    """Whether a row is a validation item of the loop, not a foreign row with the same field."""
    sides, source = row.get("sides"), row.get("source")
    known = isinstance(sides, list) and row["best"] < len(sides)
    return known and isinstance(source, dict) and "round" in source


def win_rate(picks: Iterable[Row], number: int | None = None) -> Row:
    """Compute how often people picked the policy over the reference, with Wilson's interval.

    Args:
        picks: picks, of which those with ``sides`` count.
        number: count only this round; None for all rounds.
    """
    sides = [
        row["sides"][row["best"]]
        for row in picks
        if _is_match(row) and number in (None, row["source"]["round"])
    ]
    wins, trials = sides.count(POLICY), len(sides)
    low, high = wilson_interval(wins, trials)
    rate = wins / trials if trials else None
    return {"wins": wins, "trials": trials, "rate": rate, "low": low, "high": high}


def scores_of(log: list[Row], first: int, last: int) -> Row:
    """Read the KL and the rise of the score over updates ``first`` to ``last`` from PPO's log.

    Start and end are means over the first and the last quarter of these updates.
    """
    rows = [row for row in log if first <= row["update"] <= last]
    rows = [row for row in rows if row["objective/scores"] is not None]
    if not rows:
        return {}
    quarter = max(1, len(rows) // 4)

    def mean(part: list[Row], name: str) -> float:
        return math.fsum(row[name] for row in part) / len(part)

    return {
        "proxy_start": mean(rows[:quarter], "objective/scores"),
        "proxy_end": mean(rows[-quarter:], "objective/scores"),
        "kl": mean(rows[-quarter:], "objective/kl"),
        "kl_coef": rows[-1]["objective/kl_coef"],
    }


def alarm_of(before: Row | None, proxy: Row, now: Row) -> str | None:
    """Return a sentence if people and the reward model seem to disagree, else None.

    They do if the reward model's score rose over a round, while the upper end of the new win rate's
    95 % interval lies below the previous win rate (0.5 at the start, where the policy is the
    reference). With few validation items only a large fall is noticed.

    Args:
        before: the previous ``win_rate``; None, or one without trials, counts as 0.5.
        proxy: the scores of the round in between (``scores_of``).
        now: the win rate after the round.
    """
    previous = 0.5 if before is None or before["rate"] is None else before["rate"]
    if not proxy or not now["trials"] or proxy["proxy_end"] <= proxy["proxy_start"]:
        return None
    if now["high"] >= previous:
        return None
    return (
        f"the reward model's score rose from {proxy['proxy_start']:.2f} to "
        f"{proxy['proxy_end']:.2f}, but people pick the policy over the reference in "
        f"{now['rate']:.0%} of {now['trials']} items [{now['low']:.0%}, {now['high']:.0%}], "
        f"and picked it in {previous:.0%} before"
    )
