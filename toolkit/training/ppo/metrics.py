"""The log's row of an update: figures of the batch, and of the optimizer's steps.

The names are TRL 1.12's, with some of our own.
"""

import torch
from torch import Tensor

from toolkit.maths.kl_controllers import FixedKLController
from toolkit.maths.masking import masked_mean, masked_var
from toolkit.maths.sequences import is_any
from toolkit.training.distributed import Ranks
from toolkit.training.ppo.rollouts import Rollout
from toolkit.training.run_log import Row

# The log's names for statistics of an algorithm's loss, averaged over the optimizer's steps.
NAMES = {
    "policy/approxkl_avg": "approxkl",
    "policy/clipfrac_avg": "clipfrac",
    "policy/entropy_avg": "entropy",
    "loss/policy_avg": "policy",
    "loss/value_avg": "value",
    "val/clipfrac_avg": "value_clipfrac",
    "val/ratio": "ratio",
    "val/ratio_var": "ratio_var",
    "val/first_max_log_ratio": "first_max_log_ratio",
}


def batch_row(
    rollout: Rollout,
    kl: Tensor,
    returns: Tensor,
    controller: FixedKLController,
    ends: tuple[int, ...],
    ranks: Ranks,
) -> Row:
    """Return what is logged of a batch, over all processes.

    Args:
        rollout: this process's share.
        kl: (B, C), nats.
        returns: (B, C).
        controller: of the KL coefficient, in the state that made these rewards.
        ends: tokens that end a completion.
        ranks: the processes.
    """
    total = ranks.total
    kl_sum = masked_mean((kl * rollout.mask).sum(dim=1), total=total).item()
    scores = masked_mean(rollout.scores, rollout.scored, total).item()
    spread = masked_var(rollout.scores, rollout.scored, total).item() ** 0.5
    non_score = -controller.value * kl_sum
    ended = is_any(rollout.completion_ids, ends) & rollout.mask
    device = rollout.mask.device
    noted = {
        f"reward/{name}": masked_mean(values.nan_to_num().to(device), rollout.scored, total).item()
        for name, values in rollout.noted.items()
    }
    return {
        "objective/kl": kl_sum,
        "objective/kl_coef": controller.value,
        "objective/kl_target": controller.kl_target,
        "objective/scores": scores,
        "objective/scores_std": spread,
        "objective/non_score_reward": non_score,
        "objective/rlhf_reward": scores + non_score,
        "objective/entropy": masked_mean(-rollout.logprobs.sum(dim=1), total=total).item(),
        "objective/valid": masked_mean(rollout.valid.float(), total=total).item(),
        "objective/scored": masked_mean(rollout.scored.float(), total=total).item(),
        "val/num_eos_tokens": int(total(ended.sum().float())),
        "val/returns_var": masked_var(returns, rollout.learned, total).item(),
    } | noted


def mean_statistics(steps: list[dict[str, float]]) -> dict[str, float]:
    """Average the statistics of an update's optimizer steps that learned something.

    Args:
        steps: the statistics of each; empty if nothing in the minibatch was scored.
    """
    steps = [step for step in steps if step]
    names = steps[0].keys() - {"max_log_ratio"}
    means = {name: sum(step[name] for step in steps) / len(steps) for name in names}
    ratios = torch.tensor([step["ratio"] for step in steps])
    means["ratio_var"] = ratios.var(correction=0).item()
    # From the first step: before the policy moved, its log-probs should be those of sampling.
    return means | {"first_max_log_ratio": steps[0]["max_log_ratio"]}


def step_row(stats: dict[str, float], returns_var: float) -> Row:
    """Return the row's part on the optimizer's steps; null if the batch was skipped.

    Args:
        stats: ``mean_statistics``; empty for a batch that was skipped.
        returns_var: variance that the value had to explain.
    """
    row: Row = {name: stats.get(key) for name, key in NAMES.items()}
    for key in stats.keys() - set(NAMES.values()) - {"value_error"}:
        row[key if "/" in key else f"val/{key}"] = stats[key]
    error = stats.get("value_error")
    explained = None if error is None else 1 - error / max(returns_var, 1e-12)
    return row | {"val/var_explained": explained}
