"""Guards, which stop a run or an update before it does harm."""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from toolkit.errors import RunStopped
from toolkit.maths.kl import penalized_rewards
from toolkit.maths.masking import masked_mean
from toolkit.maths.sequences import is_any
from toolkit.training.distributed import Ranks
from toolkit.training.ppo.rollouts import Rollout
from toolkit.training.run_log import Row

MEMORY = 0.9  # decay of the running mean of scores
# Captured log-probs may differ from recomputed ones by rounding: 2e-6 in fp32, 6e-3 under bf16
# autocast, 2e-2 in pure bf16, 0.3 in 4 bits on a GPU (measured). Beyond the first limit they are
# recomputed where the arithmetic rounds (a router of experts may flip there). In fp32, or beyond
# the second, sampling and training do not run the same model, so what is learned would be wrong.
CAPTURE_TOLERANCE = 0.1
CAPTURE_LIMIT = 2.0


class Guards:
    """Checks each batch before the policy learns from it.

    A batch is faulty if a log-prob, value or loss is not finite, if nothing in it was scored, or if
    its KL exceeds ``max_kl``. The update is then skipped and counted, or the run stops. A collapse
    of the score always stops the run, because skipping would not help.

    Args:
        on_fault: "stop" or "skip".
        max_skipped: number of skipped updates in a row that stops the run.
        max_kl: largest mean KL in nats, or None.
        max_score_drop: largest fall of the scores' running mean below its best, in standard
            deviations of the first scores that differ; None for no limit.
    """

    def __init__(
        self, on_fault: str, max_skipped: int, max_kl: float | None, max_score_drop: float | None
    ) -> None:
        self.on_fault, self.max_skipped = on_fault, max_skipped
        self.max_kl, self.max_score_drop = max_kl, max_score_drop
        self.skipped = self.in_a_row = 0
        self.first_std = self.running = self.best = math.nan

    def fault(self, kl: float, scored: int, tensors: dict[str, Tensor]) -> str | None:
        """Return what is wrong with a batch, or None.

        Args:
            kl: nats per completion, over all processes.
            scored: episodes with a score, over all processes.
            tensors: tensors by name; each must be finite.
        """
        for name, tensor in tensors.items():
            if not bool(tensor.isfinite().all()):
                return f"{name} are not finite"
        if not math.isfinite(kl):
            return f"the KL is {kl}"
        if scored == 0:
            return "no completion could be scored"
        if self.max_kl is not None and kl > self.max_kl:
            return f"the KL is {kl:.2f} nats, above max_kl {self.max_kl:g}"
        return None

    def collapsed(self, mean: float, std: float) -> str | None:
        """Update the scores' running mean; return a message if it fell too far below its best."""
        if math.isnan(mean):  # nothing was scored, which another guard handles
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
        """Forget earlier scores, because another reward model has another scale."""
        self.first_std = self.running = self.best = math.nan

    def skip(self, fault: str) -> str | None:
        """Count a skipped update; return why the run must stop, or None."""
        if self.on_fault == "stop":
            return fault
        self.skipped, self.in_a_row = self.skipped + 1, self.in_a_row + 1
        if self.in_a_row >= self.max_skipped:
            return f"{self.in_a_row} updates in a row were skipped, the last because {fault}"
        return None

    def went_well(self) -> None:
        """Note that an update was made."""
        self.in_a_row = 0

    def state_dict(self) -> dict[str, float]:
        names = ("skipped", "in_a_row", "first_std", "running", "best")
        return {name: getattr(self, name) for name in names}

    def load_state_dict(self, state: dict[str, float | None]) -> None:
        for name, value in state.items():
            # A value that was not yet known (NaN) is null in a checkpoint's JSON.
            setattr(self, name, math.nan if value is None else value)


class Watch:
    """Checks each update after it was made: is there something to learn, and is it correct?

    Args:
        in_fp32: whether every pass runs in fp32, where equal passes give equal numbers.

    Attributes:
        gap: difference in nats between captured and recomputed log-probs at the last update.
    """

    def __init__(self, in_fp32: bool) -> None:
        self.in_fp32 = in_fp32
        self.gap = 0.0
        self._warned: set[str] = set()
        self._alarmed = False

    def warnings(
        self,
        update: int,
        row: Row,
        rollout: Rollout,
        ends: tuple[int, ...],
        ranks: Ranks,
        should_end: bool = False,
    ) -> list[str]:
        """Return warnings, each once a run: completions are empty or endless, scores are equal.

        Args:
            update: its number.
            row: its row of the log.
            rollout: this process's share of the batch.
            ends: tokens that end a completion.
            ranks: the processes.
            should_end: whether completions are to end by one of these tokens.
        """
        lines: list[str] = []
        first = is_any(rollout.completion_ids[:, 0], ends).float()
        empty = masked_mean(first, total=ranks.total).item()
        if empty > 0.5 and "empty" not in self._warned:
            self._warned.add("empty")
            lines.append(
                f"warning: update {update}: {empty:.0%} of the completions are empty: the model "
                "ends at once (do the prompts have the form that it was trained on?)"
            )
        said = {"empty", "equal"} & self._warned
        if row["objective/scored"] and not row["objective/scores_std"] and not said:
            self._warned.add("equal")
            lines.append(
                f"warning: update {update}: all scores are {row['objective/scores']:.3g}, so there "
                "is nothing to learn from but the KL"
            )
        if should_end and not row["val/num_eos_tokens"] and "endless" not in self._warned:
            self._warned.add("endless")
            lines.append(
                f"warning: update {update}: no completion ends by itself within "
                f"{rollout.completion_ids.shape[1]} tokens, so all are cut off, and a "
                "missing_eos_penalty is the same for all of them (cure: a longer response_length; "
                "or stop_token none, perhaps with a truncate_token such as a full stop)"
            )
        return lines

    def alarms(self, row: Row) -> list[str]:
        """Return a line if the reward models begin to disagree too much (``reward/alarm``)."""
        alarmed, before = bool(row.get("reward/alarm")), self._alarmed
        self._alarmed = alarmed
        if not alarmed or before:
            return []
        return [
            f"ALARM: update {row['update']}: the reward models disagree by "
            f"{row['reward/disagreement']:.2f}, {row['reward/disagreement_grown']:.1f} times as "
            "much as on the reference's samples: the policy writes texts that they were not "
            "trained on, and a higher score means less there"
        ]

    def must_recompute(
        self, update: int, ratio: float | None, rollout: Rollout, ranks: Ranks
    ) -> bool:
        """Return whether rounding changed captured log-probs so much that they must be recomputed.

        Args:
            update: its number.
            ratio: the largest difference between log-probs and those of the first training pass.
            rollout: the batch; its log-probs may already have been recomputed.
            ranks: the processes; the largest difference counts.

        Raises:
            RunStopped: the difference is more than rounding.
        """
        mine = torch.tensor(rollout.capture_gap, device=rollout.mask.device)
        self.gap = max(ratio or 0.0, ranks.largest(mine).item())
        if self.gap > (CAPTURE_TOLERANCE if self.in_fp32 else CAPTURE_LIMIT):
            raise RunStopped(
                f"update {update}: log-probs captured while sampling differ from recomputed ones "
                f"by {self.gap:.2g} nats, far more than rounding: sampling and training do not run "
                "the same model (does its cached step give what a whole pass gives?); nothing was "
                "saved"
            )
        return self.gap > CAPTURE_TOLERANCE


def check_signs(
    make_rewards: Callable[[Tensor, Tensor, float, Tensor], Tensor] = penalized_rewards,
    gain: float = 1.0,
    kl_coef: float = 0.1,
) -> None:
    """Raise RunStopped unless better scores raise rewards and more KL lowers them.

    A flipped sign once tuned a policy overnight to write the worst possible text (OpenAI, "Fine-
    tuning GPT-2 from human preferences", 2019).

    Args:
        make_rewards: scores (B,), kl (B, C), kl_coef, mask (B, C) -> rewards (B, C).
        gain: of the reward model; a negative one reverses its order.
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
