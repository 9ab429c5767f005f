"""When labels are due: how many are wanted before each round's PPO begins."""

import math
from collections.abc import Callable
from typing import NamedTuple

from toolkit.errors import InputError, check_range
from toolkit.maths.schedules import num_updates

Schedule = Callable[[float, float, float, float], float]


def quadratic(n: float, episodes: float, initial: float, total: float) -> float:
    """l(n) = N0 + (N - N0) (1 - (1 - n/N_episodes)^2): most labels early, none at the end.

    A RECALLED form of the schedule in arXiv 1909.08593, not verified against the paper's text;
    known is that there is such an l(n), the labels required after n episodes, and PPO waits.
    """
    return initial + (total - initial) * (1 - (1 - n / episodes) ** 2)


def linear(n: float, episodes: float, initial: float, total: float) -> float:
    """l(n) = N0 + (N - N0) n/N_episodes."""
    return initial + (total - initial) * n / episodes


def all_at_once(n: float, episodes: float, initial: float, total: float) -> float:
    """l(n) = N: everything is labeled before the first episode (offline)."""
    return total


SCHEDULES: dict[str, Schedule] = {
    "quadratic": quadratic,
    "linear": linear,
    "all_at_once": all_at_once,
}


def schedule_of(name: str) -> Schedule:
    """A schedule by its name, or the function ``module:function(n, episodes, initial, total)``.

    Raises:
        InputError: neither.
    """
    if name in SCHEDULES:
        return SCHEDULES[name]
    if ":" not in name:
        raise InputError(
            f"schedule is {name!r}, but must be {', '.join(SCHEDULES)} or module:function",
            "schedule",
        )
    from toolkit.scoring.functions import load_function

    return load_function(name, "schedule")  # any function; checked when it is used


def wanted_labels(schedule: Schedule, starts: list[int], initial: int, total: int) -> list[int]:
    """Labels that are wanted when each round's PPO starts, and at the end.

    Args:
        schedule: l(n).
        starts: episodes n at which the rounds start, and those of the whole run.
        initial, total: N0 and N.

    Raises:
        InputError: a schedule that falls, or does not give numbers from 1 on.
    """
    from toolkit.scoring.guests import as_guest

    wanted: list[int] = []
    for n in starts:
        with as_guest("schedule", "schedule"):
            value = schedule(n, starts[-1], initial, total)
        if not isinstance(value, int | float) or not math.isfinite(value) or value < 1:
            raise InputError(f"schedule: {value!r} labels at {n} episodes", "schedule")
        wanted.append(math.ceil(value - 1e-9))
    if wanted != sorted(wanted):
        raise InputError(f"schedule: labels can not become fewer: {wanted}", "schedule")
    return wanted


class Plan(NamedTuple):
    """PPO's last update in each round; episodes of an update; picks when each round starts."""

    stops: list[int]
    batch_size: int
    wanted: list[int]


def plan_rounds(
    rounds: int, schedule: str, initial: int, total: int, episodes: int | None, batch_size: int
) -> Plan:
    """When each round's PPO ends, and how many labels are wanted before it.

    Args:
        rounds: how many.
        schedule: its name (``schedule_of``).
        initial, total: labels before the first PPO, and at the end.
        episodes: of the whole PPO run.
        batch_size: episodes of an update.

    Raises:
        InputError: more rounds than updates, or a schedule that does not give numbers.
    """
    if episodes is None:
        raise InputError("total_episodes: the loop needs to know when it ends (ppo_config)")
    updates = num_updates(episodes, batch_size)
    check_range("rounds", rounds, high=updates)

    stops = [round(updates * (r + 1) / rounds) for r in range(rounds)]
    starts = [update * batch_size for update in [0, *stops]]
    wanted = wanted_labels(schedule_of(schedule), starts, initial, total)
    return Plan(stops, batch_size, wanted)
