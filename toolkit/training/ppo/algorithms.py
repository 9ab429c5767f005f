"""What PPO learns from a batch: which tokens get credit for the rewards, and the loss.

An algorithm is a small class with two hooks. Sampling, the KL penalty, guards, checkpoints and the
optimizer are the same for all algorithms.

    credit(rewards, rollout, total)   from rewards (B, C) with KL penalty to advantages and returns
    loss(now, values, then)           yields the terms of the loss on one micro-batch

PPO has a value. RLOO, GRPO, Dr. GRPO and REINFORCE++ have none; they are one class, ``Siblings``,
with other answers to four questions (``PRESETS``): what is the baseline, are advantages divided by
anything, how do completions of different lengths weigh, and where does the KL act?

To add one: write its class here, and name it in ``AlgorithmName``, ``OF_OTHERS`` and
``algorithm_of``. Its title and paper go into ``toolkit/training/methods.py``.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal, NamedTuple, Protocol

import torch
from torch import Tensor

from toolkit.flags import Flags, NotNegative, Positive, Range, Share, flag
from toolkit.maths.advantages import gae, group_moments, leave_one_out
from toolkit.maths.kl import kl_estimate
from toolkit.maths.losses import RatioOf, policy_loss, value_loss
from toolkit.maths.masking import masked_mean, whiten

if TYPE_CHECKING:
    from toolkit.models.actors import TokenOutputs
    from toolkit.training.ppo.rollouts import Rollout

AlgorithmName = Literal[
    "ppo",
    "rloo",
    "grpo",
    "dr_grpo",
    "reinforce_plus_plus",
    "reinforce_plus_plus_baseline",
    "group_relative",
]
LengthMean = Literal["tokens", "completions", "constant"]
KLLoss = Literal["k2", "k3", "k3_weighted", "full"]
Total = Callable[[Tensor], Tensor]  # the sum of a tensor over all processes
OF_POLICY = (
    "policy",
    "approxkl",
    "clipfrac",
    "ratio",
    "entropy",
)  # statistics of the policy's term


class Credit(NamedTuple):
    """Advantages (B, C), which weight the policy's loss; returns (B, C), the rewards to come.

    Without ``weights`` the policy's loss of a minibatch is the mean over its tokens. With weights
    (B, C) it is the mean over its completions of the sum over their tokens of weight times loss.
    """

    advantages: Tensor
    returns: Tensor
    weights: Tensor | None = None


class Before(NamedTuple):
    """A micro-batch of n episodes when it was sampled; each tensor is (n, C).

    Attributes:
        logprobs: of the policy that sampled.
        values: of the value role then; None without one.
        advantages, returns: as ``credit`` gave them.
        mask: bool, True for tokens to learn from.
        ref_logprobs: of the reference.
        kl_coef: the KL coefficient, for a KL in the loss.
        weights: what the policy's losses are multiplied by before the mean over this micro-batch's
            tokens, so that micro-batches add up to the loss that ``Credit`` describes; None for 1.
    """

    logprobs: Tensor
    values: Tensor | None
    advantages: Tensor
    returns: Tensor
    mask: Tensor
    ref_logprobs: Tensor
    kl_coef: float
    weights: Tensor | None = None


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
class PolicyTerm:
    """PPO's clipped loss of the policy; the KL, where it acts in the loss; and an entropy bonus.

    Attributes:
        cliprange: how far the ratio moves before the gradient stops.
        ratio_of: whose ratio that is: a token's or a completion's (``policy_loss``).
        kl_loss: the estimator of the KL in the loss, whose weight is the KL coefficient; None if
            the KL acts in the rewards.
        entropy_coef: weight of the mean entropy of the next-token distributions, in nats, which is
            subtracted from the loss.
    """

    cliprange: float
    ratio_of: RatioOf = "token"
    kl_loss: KLLoss | None = None
    entropy_coef: float = 0.0

    @property
    def statistics(self) -> tuple[str, ...]:
        """The names of what the term counts."""
        return (*OF_POLICY, "kl_loss") if self.kl_loss else OF_POLICY

    def __call__(self, now: "TokenOutputs", then: Before) -> Term:
        """The term on a micro-batch."""
        loss, statistics = policy_loss(
            now.logprobs,
            then.logprobs,
            then.advantages,
            self.cliprange,
            then.mask,
            then.weights,
            self.ratio_of,
        )
        statistics |= {"policy": loss, "entropy": masked_mean(now.entropies, then.mask)}

        if not loss.requires_grad:  # the value warms up, and the policy only watches
            if self.kl_loss is not None:
                statistics["kl_loss"] = torch.full_like(loss, float("nan"))
            return Term(loss, statistics)

        if self.entropy_coef:
            loss = loss - self.entropy_coef * statistics["entropy"]

        if self.kl_loss is not None:
            if self.kl_loss == "full":
                assert now.kl is not None
                kl = now.kl
            elif self.kl_loss == "k3_weighted":
                ratio = (now.logprobs - then.logprobs).exp()
                kl = ratio * kl_estimate(now.logprobs, then.ref_logprobs, "k3")
            else:
                kl = kl_estimate(now.logprobs, then.ref_logprobs, self.kl_loss)
            kl = kl if then.weights is None else kl * then.weights
            statistics["kl_loss"] = masked_mean(kl, then.mask)
            loss = loss + then.kl_coef * statistics["kl_loss"]

        return Term(loss, statistics)


@dataclass(frozen=True)
class PPO:
    """Advantages from a learned value (GAE), and the clipped loss of policy and value.

    With one pass and one minibatch the ratio is 1, so no clip acts. With lambda 1 and without
    whitening this is A2C: its gradients are those of -mean(A log pi) and vf_coef / 2
    mean((V - R)^2), where R is the whole return.

    Source: arXiv 1707.06347; arXiv 1909.08593 and openai/lm-human-preferences
    lm_human_preferences/train_policy.py:300-371.

    Attributes:
        whiten_rewards: whether rewards are divided by their standard deviation over the batch.
        gamma, lam: discount factor, and GAE's lambda.
        lam_value: lambda of the returns that the value learns; None for ``lam``. Source: decoupled
            GAE, arXiv 2503.01491 section 4.2.
        policy: the policy's term of the loss.
        cliprange_value: how far a value moves before the gradient stops.
        vf_coef: weight of the value's loss.
        whiten_advantages: whether advantages are whitened over the batch.
    """

    whiten_rewards: bool
    gamma: float
    lam: float
    policy: PolicyTerm
    cliprange_value: float
    vf_coef: float
    lam_value: float | None = None
    whiten_advantages: bool = True
    uses_value: bool = True
    group_size: int = 1

    @property
    def statistics(self) -> tuple[str, ...]:
        return (*self.policy.statistics, "value", "value_clipfrac", "value_error")

    def credit(self, rewards: Tensor, rollout: "Rollout", total: Total) -> Credit:
        """Compute GAE of whitened rewards; whiten the advantages, but not the returns."""
        assert rollout.values is not None
        mask = rollout.learned
        if self.whiten_rewards:
            rewards = whiten(rewards, mask, shift_mean=False, total=total)
        advantages, returns = gae(rewards, rollout.values, self.gamma, self.lam, mask)
        if self.lam_value is not None:
            _, returns = gae(rewards, rollout.values, self.gamma, self.lam_value, mask)
        if self.whiten_advantages:
            advantages = whiten(advantages, mask, total=total)
        return Credit(advantages, returns)

    def loss(
        self, now: "TokenOutputs", values: Callable[[], Tensor], then: Before
    ) -> Iterator[Term]:
        """Yield the terms of policy and value: one term if they share a trunk, and so a pass."""
        assert then.values is not None
        policy = self.policy(now, then)
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
class Siblings:
    """Compares each completion with its siblings, the other completions of its prompt, or with 0.

    The baseline replaces the value in GAE with gamma = lambda = 1, so a token is not charged for
    the KL that was paid before it. The policy's loss is PPO's, and nothing else is learned.

        name                          baseline          divided by           in the loss, mean over
        RLOO                          other siblings'   nothing              tokens
        GRPO                          group's           group's deviation    completions
        Dr. GRPO                      group's           nothing              completions, as sums
        REINFORCE++                   0                 batch's, whitened    tokens
        REINFORCE++ with baseline     group's           batch's, whitened    tokens

    Sources: RLOO, arXiv 2402.14740 eq. 7; GRPO, arXiv 2402.03300 eq. 3; Dr. GRPO, arXiv 2503.20783;
    REINFORCE++, arXiv 2501.03262.

    Attributes:
        group_size: completions of a prompt: 1 without a baseline, otherwise at least 2.
        policy: the policy's term of the loss.
        baseline: "others" for the mean total reward of the other siblings, "group" for that of all
            siblings, the completion itself among them, or "none" for 0.
        advantage_scale: "siblings" divides by the group's standard deviation plus 1e-4, "batch"
            whitens over the batch's tokens, "none" leaves advantages as they are.
        length_mean: how a loss is averaged: over "tokens"; over "completions", each with the mean
            over its own tokens; or "constant", each with its tokens' sum divided by the most tokens
            that a completion may have.
    """

    group_size: int
    policy: PolicyTerm
    baseline: Literal["others", "group", "none"] = "others"
    advantage_scale: Literal["siblings", "batch", "none"] = "none"
    length_mean: LengthMean = "tokens"
    uses_value: bool = False

    @property
    def statistics(self) -> tuple[str, ...]:
        return self.policy.statistics

    def credit(self, rewards: Tensor, rollout: "Rollout", total: Total) -> Credit:
        """Subtract the baseline from the rewards still to come, and scale."""
        mask = rollout.learned
        totals = (rewards * mask).sum(dim=1)
        mean, deviation = group_moments(totals, rollout.scored, self.group_size)
        if self.baseline == "others":
            baseline = leave_one_out(totals, rollout.scored, self.group_size)
        elif self.baseline == "group":
            baseline = mean
        else:
            baseline = torch.zeros_like(totals)

        values = baseline.unsqueeze(1).expand_as(rewards)
        advantages, returns = gae(rewards, values, 1.0, 1.0, mask)
        if self.policy.ratio_of != "token":  # one ratio for all tokens, so one advantage
            advantages = advantages[:, :1].expand_as(advantages)

        # A completion that is the only one of its prompt with a score is compared with none.
        compared = mask
        if self.baseline != "none":
            compared = mask & _has_sibling(rollout.scored, self.group_size).unsqueeze(1)
        advantages = advantages * compared

        if self.advantage_scale == "siblings":
            advantages = advantages / (deviation.unsqueeze(1) + 1e-4)
        elif self.advantage_scale == "batch" and total(compared.sum().float()):
            advantages = whiten(advantages, compared, total=total)

        return Credit(advantages, returns * mask, _length_weights(self.length_mean, mask))

    def loss(
        self, now: "TokenOutputs", values: Callable[[], Tensor], then: Before
    ) -> Iterator[Term]:
        """Yield the policy's term alone."""
        yield self.policy(now, then)


def _length_weights(length_mean: LengthMean, mask: Tensor) -> Tensor | None:
    """Return ``Credit``'s weights (B, C) of tokens where ``mask`` (B, C) is True."""
    if length_mean == "tokens":
        return None
    if length_mean == "completions":
        return mask / mask.sum(dim=1, keepdim=True).clamp(min=1)
    return mask / mask.shape[1]


def _has_sibling(scored: Tensor, size: int) -> Tensor:
    """bool (B,): whether a completion and another one of its prompt have scores."""
    others = scored.view(-1, size).sum(dim=1, keepdim=True) - scored.view(-1, size).long()
    return (others > 0).view(-1) & scored


@dataclass
class AlgorithmArguments(Flags):
    """The flags that choose an algorithm and set its constants."""

    HELP_GROUP: ClassVar[str] = "method"

    algorithm: AlgorithmName = flag(
        "ppo",
        "How the policy learns from rewards. ppo trains a value model, too. The others have none: "
        "they compare each completion with the others of its prompt (reinforce_plus_plus with 0). "
        "group_relative is the earlier name of rloo.",
    )
    num_generations: Annotated[int, Range(low=2)] = flag(
        4, "Completions of a prompt that are compared with each other."
    )
    kl_in: Literal["reward", "loss"] | None = flag(
        None,
        "Where the KL acts: in the reward of each token, or in the loss. By default as the "
        "algorithm's paper has it. kl_coef is its weight, and the controller moves it, in both.",
    )
    kl_loss: KLLoss | None = flag(
        None,
        "Estimator of a KL in the loss. k2 has the gradient of KL(policy || reference), as a KL in "
        "the reward. k3 has that of KL(reference || policy), and so pulls the policy to cover all "
        "that the reference writes; k3_weighted, which is k3 times the probability ratio (TRL's "
        "default for GRPO), has the former again. full computes KL(policy || reference) of the "
        "whole next-token distributions, with one more pass of the reference. By default k3 for "
        "grpo and dr_grpo, full for ppo, otherwise k2.",
    )
    length_mean: LengthMean | None = flag(
        None,
        "How completions of different lengths weigh in the loss of an algorithm without a value: "
        "tokens (each token weighs the same), completions (each completion does), or constant (the "
        "sum over a completion's tokens, divided by response_length). By default completions for "
        "grpo, constant for dr_grpo, otherwise tokens.",
    )
    ratio_of: RatioOf = flag(
        "token",
        "Whose probability ratio is clipped, without a value: each token's, the completion's (the "
        "product over its tokens, as in TRL's RLOO), or completion_mean (the geometric mean, as in "
        "GSPO).",
    )
    entropy_coef: NotNegative = flag(
        0.0,
        "Weight of an entropy bonus: the mean entropy of the policy's next-token distributions, in "
        "nats per token, is added to what is maximized.",
    )
    whiten_rewards: bool = flag(True, "Divide rewards by their standard deviation.")
    whiten_advantages: bool = flag(
        True, "Subtract the advantages' mean, and divide them by their standard deviation."
    )
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


class Preset(NamedTuple):
    """What belongs to the name of an algorithm without a value; see ``Siblings``."""

    baseline: Literal["others", "group", "none"]
    advantage_scale: Literal["siblings", "batch", "none"]
    length_mean: LengthMean
    kl_in: Literal["reward", "loss"]
    kl_loss: KLLoss


PRESETS = {
    "rloo": Preset("others", "none", "tokens", "reward", "k2"),
    "grpo": Preset("group", "siblings", "completions", "loss", "k3"),
    "dr_grpo": Preset("group", "none", "constant", "loss", "k3"),
    "reinforce_plus_plus": Preset("none", "batch", "tokens", "reward", "k2"),
    "reinforce_plus_plus_baseline": Preset("group", "batch", "tokens", "loss", "k2"),
}
PRESETS["group_relative"] = PRESETS["rloo"]

# The flags that an algorithm does not read.
OF_VALUE = (
    *("whiten_rewards", "whiten_advantages", "gamma", "lam", "lam_value", "vf_coef"),
    *("cliprange_value", "value", "value_init", "value_hidden", "value_learning_rate"),
    "value_warmup",
)
OF_OTHERS = {
    "ppo": ("num_generations", "length_mean", "ratio_of"),
    **{
        name: OF_VALUE if preset.baseline != "none" else (*OF_VALUE, "num_generations")
        for name, preset in PRESETS.items()
    },
}


def kl_loss_of(flags: AlgorithmArguments) -> KLLoss | None:
    """Return the estimator of the KL in the loss; None if the KL acts in the rewards."""
    preset = PRESETS.get(flags.algorithm)
    kl_in = flags.kl_in or ("reward" if preset is None else preset.kl_in)
    if kl_in == "reward":
        return None
    return flags.kl_loss or ("full" if preset is None else preset.kl_loss)


KLUnit = Literal["score", "all", "batch", "siblings"]


def kl_unit_of(flags: AlgorithmArguments) -> KLUnit:
    """Return what the KL coefficient is measured in: the unit of what stands beside the KL.

    In the reward that is a score. In the loss it is an advantage: a score as well, or one over a
    standard deviation: of all scores, of all after each prompt's mean is taken off ("batch"), or of
    each prompt's.
    """
    if kl_loss_of(flags) is None:
        return "score"
    preset = PRESETS.get(flags.algorithm)
    if preset is None:
        return "batch" if flags.whiten_advantages else "score"
    if preset.advantage_scale == "none":
        return "score"
    return "all" if preset.baseline == "none" else preset.advantage_scale


def algorithm_of(flags: AlgorithmArguments) -> Algorithm:
    """The algorithm that the flags name, with its constants."""
    policy = PolicyTerm(flags.cliprange, flags.ratio_of, kl_loss_of(flags), flags.entropy_coef)
    if flags.algorithm == "ppo":
        return PPO(
            whiten_rewards=flags.whiten_rewards,
            gamma=flags.gamma,
            lam=flags.lam,
            policy=policy,
            cliprange_value=flags.cliprange_value,
            vf_coef=flags.vf_coef,
            lam_value=flags.lam_value,
            whiten_advantages=flags.whiten_advantages,
        )

    preset = PRESETS[flags.algorithm]
    return Siblings(
        group_size=1 if preset.baseline == "none" else flags.num_generations,
        policy=policy,
        baseline=preset.baseline,
        advantage_scale=preset.advantage_scale,
        length_mean=flags.length_mean or preset.length_mean,
    )
