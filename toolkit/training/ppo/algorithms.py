"""What PPO learns from a batch: which tokens get credit for the rewards, and the loss.

An algorithm is a small class with two hooks. Sampling, the KL penalty, guards, checkpoints and the
optimizer are the same for all algorithms.

    credit(rewards, rollout, total)   from rewards (B, C) with KL penalty to advantages and returns
    loss(now, values, then)           yields the terms of the loss on one micro-batch

To add one: write its class here, and name it in ``AlgorithmArguments``,
``OF_OTHERS`` and ``algorithm_of``.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal, NamedTuple, Protocol

from torch import Tensor

from toolkit.flags import Flags, NotNegative, Positive, Range, Share, flag
from toolkit.maths.advantages import gae, leave_one_out
from toolkit.maths.losses import policy_loss, value_loss
from toolkit.maths.masking import masked_mean, whiten

if TYPE_CHECKING:
    from toolkit.models.actors import TokenOutputs
    from toolkit.training.ppo.rollouts import Rollout

Total = Callable[[Tensor], Tensor]  # the sum of a tensor over all processes
OF_POLICY = (
    "policy",
    "approxkl",
    "clipfrac",
    "ratio",
    "entropy",
)  # statistics of the policy's term


class Credit(NamedTuple):
    """Advantages (B, C), which weight the policy's loss; returns (B, C), the rewards to come."""

    advantages: Tensor
    returns: Tensor


class Before(NamedTuple):
    """A micro-batch of n episodes when it was sampled; each tensor is (n, C).

    Attributes:
        logprobs: of the policy that sampled.
        values: of the value role then; None without one.
        advantages, returns: as ``credit`` gave them.
        mask: bool, True for tokens to learn from.
    """

    logprobs: Tensor
    values: Tensor | None
    advantages: Tensor
    returns: Tensor
    mask: Tensor


class Term(NamedTuple):
    """A term of the loss, a scalar with gradient; and scalars to average for the log."""

    loss: Tensor
    statistics: dict[str, Tensor]


class Algorithm(Protocol):
    """The two hooks, and what a run must provide for them.

    Attributes:
        uses_value: whether there is a value role; without one there is no value pass.
        group_size: completions of a prompt, which are neighbors in a batch.
        statistics: names of what the loss's terms count, besides "max_log_ratio"; the log shows
            them by the names in ``metrics.py``, others as val/NAME.
    """

    @property
    def uses_value(self) -> bool: ...

    @property
    def group_size(self) -> int: ...

    @property
    def statistics(self) -> tuple[str, ...]: ...

    def credit(self, rewards: Tensor, rollout: "Rollout", total: Total) -> Credit:
        """Compute advantages and returns of this process's share of a batch.

        Args:
            rewards: (B, C), with the KL penalty, and the score on the last token.
            rollout: the batch; tokens outside ``rollout.learned`` get no credit.
            total: sums over all processes, for statistics of the whole batch.
        """
        ...

    def loss(
        self, now: "TokenOutputs", values: Callable[[], Tensor], then: Before
    ) -> Iterator[Term]:
        """Yield the terms of the loss on a micro-batch.

        The gradient of each term is taken before the next term is made, so that only one role's
        activations exist at a time.

        Args:
            now: the policy's outputs (n, C), with gradients, and values if the trunk is shared.
            values: makes the value role's own pass: (n, C), with gradients.
            then: the micro-batch when it was sampled.
        """
        ...


@dataclass(frozen=True)
class PPO:
    """Advantages from a learned value (GAE), and the clipped loss of policy and value.

    Source: arXiv 1707.06347; arXiv 1909.08593 and openai/lm-human-preferences
    lm_human_preferences/train_policy.py:300-371.

    Attributes:
        whiten_rewards: whether rewards are divided by their standard deviation over the batch.
        gamma, lam: discount factor, and GAE's lambda.
        lam_value: lambda of the returns that the value learns; None for ``lam``. Source: decoupled
            GAE, arXiv 2503.01491 section 4.2.
        cliprange, cliprange_value: how far ratio and value move before the gradient stops.
        vf_coef: weight of the value's loss.
    """

    whiten_rewards: bool
    gamma: float
    lam: float
    cliprange: float
    cliprange_value: float
    vf_coef: float
    lam_value: float | None = None
    uses_value: bool = True
    group_size: int = 1
    statistics: tuple[str, ...] = (*OF_POLICY, "value", "value_clipfrac", "value_error")

    def credit(self, rewards: Tensor, rollout: "Rollout", total: Total) -> Credit:
        """Compute GAE of whitened rewards; whiten the advantages, but not the returns."""
        assert rollout.values is not None
        mask = rollout.learned
        if self.whiten_rewards:
            rewards = whiten(rewards, mask, shift_mean=False, total=total)
        advantages, returns = gae(rewards, rollout.values, self.gamma, self.lam, mask)
        if self.lam_value is not None:
            _, returns = gae(rewards, rollout.values, self.gamma, self.lam_value, mask)
        return Credit(whiten(advantages, mask, total=total), returns)

    def loss(
        self, now: "TokenOutputs", values: Callable[[], Tensor], then: Before
    ) -> Iterator[Term]:
        """Yield the terms of policy and value: one term if they share a trunk, and so a pass."""
        assert then.values is not None
        policy = _policy_term(now, then, self.cliprange)
        if now.values is None:
            yield policy
            now_values = values()
        else:
            now_values = now.values
        vf_loss, vf = value_loss(
            now_values, then.values, then.returns, self.cliprange_value, then.mask
        )
        statistics = {
            "value": vf_loss,
            "value_clipfrac": vf["clipfrac"],
            "value_error": vf["error"],
        }
        if now.values is None:
            yield Term(self.vf_coef * vf_loss, statistics)
        else:
            yield Term(policy.loss + self.vf_coef * vf_loss, policy.statistics | statistics)


@dataclass(frozen=True)
class GroupRelative:
    """Compares each completion with its siblings, the other completions of its prompt.

    The baseline of a completion is the mean total reward of its siblings (RLOO, arXiv 2402.14740
    eq. 7). It replaces the value in GAE with gamma = lambda = 1, so a token is not charged for the
    KL that was paid before it. The policy's loss is PPO's.

    Attributes:
        group_size: completions of a prompt, at least 2.
        cliprange: as in PPO.
    """

    group_size: int
    cliprange: float
    uses_value: bool = False
    statistics: tuple[str, ...] = OF_POLICY

    def credit(self, rewards: Tensor, rollout: "Rollout", total: Total) -> Credit:
        """Subtract the siblings' mean from the rewards still to come; nothing is whitened."""
        mask = rollout.learned
        totals = (rewards * mask).sum(dim=1)
        baseline = leave_one_out(totals, rollout.scored, self.group_size)
        values = baseline.unsqueeze(1).expand_as(rewards)
        advantages, returns = gae(rewards, values, 1.0, 1.0, mask)
        # A completion that is the only one of its prompt with a score is compared with none.
        compared = _has_sibling(rollout.scored, self.group_size).unsqueeze(1)
        return Credit(advantages * mask * compared, returns * mask)

    def loss(
        self, now: "TokenOutputs", values: Callable[[], Tensor], then: Before
    ) -> Iterator[Term]:
        """Yield the policy's term alone."""
        yield _policy_term(now, then, self.cliprange)


def _policy_term(now: "TokenOutputs", then: Before, cliprange: float) -> Term:
    loss, statistics = policy_loss(
        now.logprobs, then.logprobs, then.advantages, cliprange, then.mask
    )
    entropy = masked_mean(now.entropies, then.mask)
    return Term(loss, {"policy": loss, "entropy": entropy} | statistics)


def _has_sibling(scored: Tensor, size: int) -> Tensor:
    """bool (B,): whether a completion and another one of its prompt have scores."""
    others = scored.view(-1, size).sum(dim=1, keepdim=True) - scored.view(-1, size).long()
    return (others > 0).view(-1) & scored


@dataclass
class AlgorithmArguments(Flags):
    """The flags that choose an algorithm and set its constants."""

    HELP_GROUP: ClassVar[str] = "method"

    algorithm: Literal["ppo", "group_relative"] = flag(
        "ppo",
        "How the policy learns from rewards: ppo trains a value model, too; group_relative has "
        "none, and compares each completion with the others of its prompt.",
    )
    num_generations: Annotated[int, Range(low=2)] = flag(
        4, "Completions of a prompt that group_relative compares."
    )
    whiten_rewards: bool = flag(True, "Divide rewards by their standard deviation.")
    gamma: Share = flag(1.0, "Discount factor per token.")
    lam: Share = flag(0.95, "Lambda of GAE: 0 for one-step differences, 1 for the whole return.")
    lam_value: Share | None = flag(
        None,
        "Lambda of the returns that the value learns, if it is another than lam: 1 for what was "
        "really paid, without the value's own guesses.",
    )
    cliprange: Positive = flag(0.2, "Clip the probability ratio to 1 plus or minus this.")
    vf_coef: NotNegative = flag(0.1, "Weight of the value loss.")
    cliprange_value: Positive = flag(0.2, "Clip a value to within this of its old one.")


# The flags that an algorithm does not read.
OF_OTHERS = {
    "ppo": ("num_generations",),
    "group_relative": (
        *("whiten_rewards", "gamma", "lam", "lam_value", "vf_coef", "cliprange_value"),
        *("value", "value_init", "value_learning_rate", "value_warmup"),
    ),
}


def algorithm_of(flags: AlgorithmArguments) -> Algorithm:
    """The algorithm that the flags name, with its constants."""
    if flags.algorithm == "group_relative":
        return GroupRelative(flags.num_generations, flags.cliprange)
    return PPO(
        whiten_rewards=flags.whiten_rewards,
        gamma=flags.gamma,
        lam=flags.lam,
        cliprange=flags.cliprange,
        cliprange_value=flags.cliprange_value,
        vf_coef=flags.vf_coef,
        lam_value=flags.lam_value,
    )
