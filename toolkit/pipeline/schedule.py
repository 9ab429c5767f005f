"""Plan how many labels are wanted before each round's PPO."""

import math
from collections.abc import Callable
from typing import NamedTuple

from toolkit.errors import InputError, check_range
from toolkit.maths.schedules import num_updates

Schedule = Callable[[float, float, float, float], float]


def quadratic(n: float, episodes: float, initial: float, total: float) -> float:
    """l(n) = N0 + (N - N0) (1 - (1 - n/N_episodes)^2): most labels early, none at the end.

    The paper, arXiv 1909.08593, has a schedule l(n) of the labels required after n episodes, for
    which PPO waits. This form is RECALLED, and was not checked against the paper's text.
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
    """Return a schedule by its name, or ``module:function(n, episodes, initial, total)``.

    Raises:
        InputError: the name is neither.
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
    """Return the labels wanted at each of ``starts``: when a round's PPO starts, and at the end.

    Raises:
        InputError: the schedule falls, or gives something other than numbers of at least 1.
    """
    from toolkit.scoring.guests import as_guest

    wanted: list[int] = []
    for n in starts:
        with as_guest("schedule", "schedule"):
            value = schedule(n, starts[-1], initial, total)
        if not isinstance(value, int | float) or not math.isfinite(value) or value < 1:
            raise InputError(
                f"schedule: gives {value!r} labels at {n} episodes (it must give a number of at "
                "least 1)",
                "schedule",
            )
        wanted.append(math.ceil(value - 1e-9))
    if wanted != sorted(wanted):
        raise InputError(f"schedule: the number of labels must not fall: {wanted}", "schedule")
    return wanted


class Plan(NamedTuple):
    """When each round's PPO ends, and how many picks are wanted when it starts.

    Attributes:
        stops: updates made at the end of each round, counted over all rounds.
        batch_size: episodes per update.
        wanted: picks when each round starts, and at the end.
    """

    stops: list[int]
    batch_size: int
    wanted: list[int]


def plan_rounds(
    rounds: int,
    schedule: str,
    initial: int,
    total: int,
    episodes: int | None,
    batch_size: int,
    restart: bool = False,
) -> Plan:
    """Plan when each round's PPO ends, and how many labels are wanted before it.

    Args:
        rounds: number of rounds.
        schedule: name of the schedule (``schedule_of``).
        initial, total: labels before the first PPO, and at the end.
        episodes: episodes of the whole PPO run.
        batch_size: episodes per update.
        restart: whether each round has a whole PPO run of its own, instead of a part of one run.

    Raises:
        InputError: there are more rounds than updates, or the schedule is invalid.
    """
    if episodes is None:
        raise InputError("total_episodes: missing (set it in the file of --ppo_config)")
    updates = num_updates(episodes, batch_size)
    if restart:
        stops = [updates * (r + 1) for r in range(rounds)]
    else:
        check_range("rounds", rounds, high=updates)
        stops = [round(updates * (r + 1) / rounds) for r in range(rounds)]
    starts = [update * batch_size for update in [0, *stops]]
    wanted = wanted_labels(schedule_of(schedule), starts, initial, total)
    return Plan(stops, batch_size, wanted)
