"""Which settings fit: the search over plans of memory, and what is said if a run does not fit."""

import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from typing import Literal

from toolkit.arguments.model import Precision
from toolkit.errors import Caution, InputError
from toolkit.models import cards
from toolkit.models.memory import MIB, TEXT_PHASE, MemoryPlan

WITHOUT_GRADIENTS = ("sampling", "reference and scores")
WITH_GRADIENTS = ("optimizing", TEXT_PHASE)


@dataclass(frozen=True)
class Passes:
    """The settings that decide how much memory a run takes, and nothing of what it learns.

    Only the base's precision changes numbers; it is the last that is proposed.

    Attributes:
        micro_batch: episodes in a pass with gradients.
        rollout_batch: episodes in a pass without.
        checkpointing: whether activations are recomputed.
        precision: of the base.
        plain_scales: whether the scales of 4-bit weights are held in fp32.
        unpack_base: whether 4-bit weights are unpacked while completions are sampled.
    """

    micro_batch: int
    rollout_batch: int
    checkpointing: bool
    precision: Precision = "4bit"
    plain_scales: bool = False
    unpack_base: bool = False

    def flags(self, batch: int) -> dict[str, object]:
        """Return them as flags of preftune ppo, for a batch of so many episodes."""
        return {
            "precision": self.precision,
            "gradient_checkpointing": self.checkpointing,
            "per_device_train_batch_size": self.micro_batch,
            "gradient_accumulation_steps": batch // self.micro_batch,
            "local_rollout_forward_batch_size": self.rollout_batch,
            "plain_scales": self.plain_scales,
            "unpack_base": self.unpack_base,
        }


Planner = Callable[[Passes], MemoryPlan]
Open = Literal["micro_batch", "rollout_batch", "checkpointing", "plain_scales", "unpack_base"]
ALL_OPEN: frozenset[Open] = frozenset(
    ("micro_batch", "rollout_batch", "checkpointing", "plain_scales", "unpack_base")
)


def largest_that_fit(
    plan: Planner, wanted: Passes, batch: int, room: int, choose: frozenset[Open] = ALL_OPEN
) -> Passes | None:
    """Return the largest passes that fit; None if not even one episode at a time does.

    Gradient checkpointing is turned on where it is open and the model can do it. Then come the
    largest parts of the batch with gradients and without. If there is room left, 4-bit weights have
    scales in fp32, and are unpacked while completions are sampled.

    Args:
        plan: makes the plan for settings.
        wanted: the most that is asked for; what is not open stays so.
        batch: episodes of an update in this process; passes divide it.
        room: bytes.
        choose: what is open.
    """
    plan = cache(plan)
    if "checkpointing" in choose and not wanted.checkpointing:
        wanted = _recomputing(plan, wanted)
    start = replace(
        wanted,
        plain_scales=wanted.plain_scales and "plain_scales" not in choose,
        unpack_base=wanted.unpack_base and "unpack_base" not in choose,
    )

    def largest(most: int, free: bool, phases: tuple[str, ...]) -> int | None:
        sizes = [size for size in range(1, batch + 1) if batch % size == 0 and size <= most]
        sizes = sizes if free else [most]

        # The plan grows with the passes: the first `low` sizes fit, and none from `high` on.
        low, high, probe = 0, len(sizes), len(sizes) - 1
        while low < high:
            size = sizes[probe]
            made = plan(replace(start, micro_batch=size, rollout_batch=size))
            if made.needs(*phases) <= room:
                low = probe + 1
            else:
                high = probe
            probe = (low + high) // 2
        return sizes[low - 1] if low else None

    micro = largest(wanted.micro_batch, "micro_batch" in choose, WITH_GRADIENTS)
    rollout = largest(wanted.rollout_batch, "rollout_batch" in choose, WITHOUT_GRADIENTS)
    if micro is None or rollout is None:
        return None

    found = replace(start, micro_batch=micro, rollout_batch=rollout)
    made = plan(found)
    if made.peak > room:  # already while it is loaded
        return None
    if found.precision == "4bit":
        more = made.plain_scales
        if "plain_scales" in choose and made.peak + more <= room:
            found = replace(found, plain_scales=True)
        else:
            more = 0
        if "unpack_base" in choose and made.needs("sampling") + more + made.unpacked <= room:
            found = replace(found, unpack_base=True)
    return found


def _recomputing(plan: Planner, wanted: Passes) -> Passes:
    """Turn on checkpointing, unless the model's family cannot."""
    recomputing = replace(wanted, checkpointing=True)
    try:
        plan(recomputing)
    except InputError as error:
        if error.field != "gradient_checkpointing":
            raise
        return wanted
    return recomputing


def what_would_fit(plan: Planner, now: Passes, batch: int, room: int) -> tuple[str, Passes | None]:
    """Say what would make a run fit that does not, and return these settings.

    Gradient checkpointing comes first, with what it alone would leave, because it changes nothing
    but time. Then come smaller passes, and at last a base in 4 bits.

    Args:
        plan: makes the plan for settings.
        now: what does not fit.
        batch: episodes of an update in this process.
        room: bytes.
    """
    plan = cache(plan)
    said = []
    recomputing = now if now.checkpointing else _recomputing(plan, now)
    if recomputing != now:
        alone = plan(recomputing)
        left = f"--gradient_checkpointing true alone would need {alone.peak / MIB:,.0f} MiB"
        if alone.peak <= room:
            return f"{left}, which fits", recomputing
        said.append(left)

    sizes: frozenset[Open] = frozenset(("micro_batch", "rollout_batch"))
    precisions: list[Precision] = [now.precision, "4bit"]
    for precision in dict.fromkeys(precisions):
        found = largest_that_fit(
            plan, replace(recomputing, precision=precision), batch, room, sizes
        )
        if found is None:
            continue
        flags = {k: v for k, v in found.flags(batch).items() if v != now.flags(batch)[k]}
        flags.pop("gradient_checkpointing", None)
        words = " ".join(f"--{name} {value}" for name, value in flags.items())
        also = "with it, " if said else ""
        said.append(f"{also}{words} would need {plan(found).peak / MIB:,.0f} MiB, which fits")
        return "; ".join(said), found

    said.append(
        "no smaller pass fits: take a smaller base or a lower --lora_r, or shorter prompts and "
        "completions"
    )
    return "; ".join(said), None


def check_memory(planner: Callable[[], Planner], now: Passes, batch: int, device: str) -> None:
    """Raise InputError if a run does not fit into free memory; the message says what would.

    If the plan is an estimate, or cannot be made, there is only a warning.

    Args:
        planner: returns what makes the plan for settings.
        now: the run's settings.
        batch: episodes of an update in this process.
        device: "cpu" or "cuda".
    """
    room = cards.free_room(device)
    try:
        plan = planner()
        chosen = plan(now)
    except InputError:
        raise
    except Exception as error:
        warnings.warn(f"no memory plan for this model: {error!s:.120}", Caution, stacklevel=2)
        return
    if chosen.peak > room.usable:
        problem = (
            f"about {chosen.peak / MIB:,.0f} MiB are needed while {chosen.hungriest}, but there "
            f"are {room.usable / MIB:,.0f} ({room.line()}); "
            f"{what_would_fit(plan, now, batch, room.usable)[0]}"
        )
        if chosen.counted:
            raise InputError(problem, "per_device_train_batch_size")
        warnings.warn(f"{problem} ({chosen.facts['kind']})", Caution, stacklevel=2)
