"""What stops a run, or an update, before it does harm."""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from toolkit.maths.kl import penalized_rewards

MEMORY = 0.9  # of the running mean of scores


class RunStopped(RuntimeError):
    """A guard ended the run; the message says why, and where it can be taken up again."""


class Guards:
    """Looks at each batch before it is learned from.

    A batch is at fault if a log-prob, value or loss is not finite, if nothing in it was scored, or
    if its KL is beyond ``max_kl``. Then the update is skipped and counted, or the run stops. A
    collapse of the score always stops the run: skipping would not mend it.

    Args:
        on_fault: "stop" or "skip".
        max_skipped: this many skipped updates in a row stop the run all the same.
        max_kl: nats, or None.
        max_score_drop: in standard deviations of the first scores that differ, from the best
            running mean so far; None for no such guard.
    """

    def __init__(
        self, on_fault: str, max_skipped: int, max_kl: float | None, max_score_drop: float | None
    ) -> None:
        self.on_fault, self.max_skipped = on_fault, max_skipped
        self.max_kl, self.max_score_drop = max_kl, max_score_drop
        self.skipped = self.in_a_row = 0
        self.first_std = self.running = self.best = math.nan

    def fault(self, kl: float, scored: int, tensors: dict[str, Tensor]) -> str | None:
        """What is wrong with a batch, or None.

        Args:
            kl: nats per completion, over all processes.
            scored: episodes with a score, over all processes.
            tensors: by name; each must be finite.
        """
        for name, tensor in tensors.items():
            if not bool(tensor.isfinite().all()):
                return f"{name} not finite"
        if not math.isfinite(kl):
            return f"the KL is {kl}"
        if scored == 0:
            return "no completion could be scored"
        if self.max_kl is not None and kl > self.max_kl:
            return f"the KL is {kl:.2f} nats, beyond max_kl {self.max_kl:g}"
        return None

    def collapsed(self, mean: float, std: float) -> str | None:
        """Watch the scores' running mean; say so if it fell too far below its best."""
        if math.isnan(mean):  # nothing was scored: another guard's matter
            return None
        if math.isnan(self.running):
            self.running = self.best = mean
        if not self.first_std > 0:
            self.first_std = std
        self.running = MEMORY * self.running + (1 - MEMORY) * mean
        self.best = max(self.best, self.running)
        drop = (self.best - self.running) / self.first_std if self.first_std > 0 else 0.0
        if self.max_score_drop is not None and drop > self.max_score_drop:
            return (
                f"the scores' running mean is {self.running:.3f}, {drop:.1f} standard deviations "
                f"below its best (max_score_drop {self.max_score_drop:g})"
            )
        return None

    def forget_scores(self) -> None:
        """Start the watch over scores anew: another reward model's have another scale."""
        self.first_std = self.running = self.best = math.nan

    def skip(self, fault: str) -> str | None:
        """Count a skipped update; why the run is to stop, if it is."""
        if self.on_fault == "stop":
            return fault
        self.skipped, self.in_a_row = self.skipped + 1, self.in_a_row + 1
        if self.in_a_row >= self.max_skipped:
            return f"{self.in_a_row} updates in a row skipped, the last because {fault}"
        return None

    def went_well(self) -> None:
        """An update was made."""
        self.in_a_row = 0

    def state_dict(self) -> dict[str, Any]:
        names = ("skipped", "in_a_row", "first_std", "running", "best")
        return {name: getattr(self, name) for name in names}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for name, value in state.items():
            # What was not known yet (NaN) is null in a checkpoint's JSON.
            setattr(self, name, math.nan if value is None else value)


def check_signs(
    make_rewards: Callable[[Tensor, Tensor, float, Tensor], Tensor] = penalized_rewards,
    gain: float = 1.0,
    kl_coef: float = 0.1,
) -> None:
    """Raise RunStopped unless better scores raise rewards and more KL lowers them.

    A flipped sign once tuned a policy, overnight, to write the worst text there was (OpenAI, "Fine-
    tuning GPT-2 from human preferences", 2019).

    Args:
        make_rewards: scores (B,), kl (B, C), kl_coef, mask (B, C) -> rewards (B, C).
        gain: of the reward model; a negative one turns its order round.
        kl_coef: the controller's value.
    """
    mask = torch.tensor([[True, True, False], [True, True, True]])
    scores, kl = torch.tensor([0.3, -0.2]), torch.full((2, 3), 0.1)
    plain = make_rewards(scores, kl, kl_coef, mask).sum(dim=1)
    better = make_rewards(scores + 1, kl, kl_coef, mask).sum(dim=1)
    farther = make_rewards(scores, kl + 1, kl_coef, mask).sum(dim=1)
    if not bool((better > plain).all()) or gain <= 0:
        raise RunStopped(f"sign test: a better score does not raise the reward (gain {gain:g})")
    if kl_coef > 0 and not bool((farther < plain).all()):
        raise RunStopped("sign test: more KL does not lower the reward")
