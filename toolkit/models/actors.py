"""What PPO asks of its models, whether they are adapters on one base or models of their own.

A role's trunk turns tokens into hidden states; heads read these: the output head for log-probs, one
fp32 output each for values and scores. Subclasses say which trunk and which head a role has
(``Roles``: adapters on one base; ``SeparateModels``: whole models).
"""

from abc import abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.cache_utils import Cache

from toolkit.maths.distributions import head_logprobs
from toolkit.maths.precision import autocast_device
from toolkit.maths.sequences import last_real_token, position_ids
from toolkit.models.families import LogitRule, check_recomputing, logit_rule
from toolkit.models.generation import Step
from toolkit.models.peft_wrappers import filler, head_weights
from toolkit.models.reading import Reading

# Added to the logit of an id that shall never come. Finite, so that 0 times it is 0 and no NaN.
NEVER = -1e30
POLICY, REFERENCE, VALUE, REWARD = "policy", "reference", "value", "reward"


class TokenOutputs(NamedTuple):
    """Of each completion token: logprobs and entropies fp32 (B, C); values (B, C) or None."""

    logprobs: Tensor
    entropies: Tensor
    values: Tensor | None


class Actors(nn.Module):
    """Policy, reference, value and reward model.

    Attributes:
        gain, bias: a score is gain * head + bias.
        shares_trunk: policy and value come from one pass.
        has_value, has_reward: whether there is such a role.
        autocast_dtype: every pass runs under autocast to this type; None for none.
        scores_stop: the reward model is to see the stop token.
        banned: fp32 (V,), 0 or NEVER: added to all logits, so that ids without a token are neither
            sampled nor counted on (``keep_only``).
        reading: what the reward model is to find behind a completion.
    """

    gain: float = 1.0
    bias: float = 0.0
    shares_trunk: bool = False
    has_value: bool = False
    has_reward: bool = False
    autocast_dtype: torch.dtype | None = None
    scores_stop: bool = False
    checkpointing: bool = False
    banned: Tensor | None = None
    reading: Reading = Reading()

    def __init__(self) -> None:
        super().__init__()
        self._logit_rules: dict[str, LogitRule] = {}

    @abstractmethod
    def trunk(self, role: str, last: int, **inputs: object) -> Tensor:
        """The role's last hidden states of the last ``last`` positions: (B, last, d)."""

    @abstractmethod
    def output_head(self, role: str) -> nn.Module:
        """The head that makes logits of policy's or reference's hidden states."""

    @abstractmethod
    def read_values(self, hidden: Tensor) -> Tensor:
        """Values (...) fp32 of hidden states (..., d)."""

    @abstractmethod
    def read_scores(self, hidden: Tensor) -> Tensor:
        """Raw scores (...) fp32 of hidden states (..., d), before gain and bias."""

    @abstractmethod
    def save(self, folder: str | Path, **facts: object) -> None:
        """Write what was trained, in the form that others load."""

    @abstractmethod
    def language_models(self) -> list[PreTrainedModel]:
        """The models that gradients flow through."""

    @abstractmethod
    def identity(self) -> dict[str, object]:
        """What makes these models these, as JSON can hold it: a run is resumed on no others."""

    @abstractmethod
    def language_model(self, role: str) -> PreTrainedModel:
        """The causal language model that plays the role, its adapter on."""

    def policy_facts(self) -> dict[str, object] | None:
        """What makes an adapter of the policy's trained weights; None for whole models."""
        return None

    def is_frozen_adapter(self, name: str, parameter: nn.Parameter) -> bool:
        """Whether a parameter of that name is of an adapter that is not trained."""
        return "lora_" in name and not parameter.requires_grad

    @property
    def in_fp32(self) -> bool:
        """Whether every pass is made in fp32, so that equal passes give equal numbers."""
        wide = all(
            model.get_input_embeddings().weight.dtype == torch.float32
            for model in self.language_models()
        )
        return wide and self.autocast_dtype is None

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.parameters()).device

    def trainable(self) -> list[tuple[str, nn.Parameter]]:
        """Names and parameters that PPO trains."""
        return [(name, p) for name, p in self.named_parameters() if p.requires_grad]

    @contextmanager
    def precision(self) -> Iterator[None]:
        """Autocast, where it was asked for."""
        with torch.autocast(
            autocast_device(self.device),
            self.autocast_dtype,
            enabled=self.autocast_dtype is not None,
        ):
            yield

    def use_checkpointing(self, options: dict[str, object] | None = None) -> None:
        """From now on activations are recomputed in the backward pass of ``optimizing``.

        A recomputation plays the role that is active then: run a role's backward pass before
        another role's forward pass.

        Args:
            options: of ``torch.utils.checkpoint.checkpoint``; not reentrant unless they say so.
        """
        options = {"use_reentrant": False} | (options or {})
        self.checkpointing = True
        for model in self.language_models():
            check_recomputing(model, True)
            for module in _recomputed(model):
                for name, value in vars(module).items():
                    if isinstance(value, float) and "drop" in name:  # read while it is training
                        setattr(module, name, 0.0)
            model.activation_checkpointing_enable(options)

    @contextmanager
    def optimizing(self) -> Iterator[None]:
        """Around passes with gradients: transformers checkpoints in training mode alone.

        The layers that are recomputed are put in that mode by themselves: below them are dropout,
        and routers that draw experts at random, and the ratio of the first pass would not be 1.
        """
        if self.checkpointing:
            for model in self.language_models():
                for module in _recomputed(model):
                    module.training = True
        try:
            yield
        finally:  # in training mode sampling would go without its cache
            self.eval()

    def _hidden(self, role: str, ids: Tensor, mask: Tensor, last: int) -> Tensor:
        # A pad token may lie outside the embedding.
        ids = ids.masked_fill(~mask, filler(self.language_models()[0].get_input_embeddings()))
        return self.trunk(
            role,
            last,
            input_ids=ids,
            attention_mask=mask.long(),
            position_ids=position_ids(mask),
            use_cache=False,
        )

    def _before(self, role: str, ids: Tensor, mask: Tensor, completion_length: int) -> Tensor:
        """The states (B, C, d) before each completion token: those that predict it."""
        return self._hidden(role, ids[:, :-1], mask[:, :-1], completion_length)

    def _logprobs(
        self, role: str, hidden: Tensor, completion_ids: Tensor, temperature: float
    ) -> tuple[Tensor, Tensor]:
        weight, bias = head_weights(self.output_head(role))
        rule = self.logit_rule(role)
        if rule.cap is not None and rule.scale != 1.0:  # the cap is of what was multiplied
            weight, bias = weight * rule.scale, None if bias is None else bias * rule.scale
        elif rule.cap is None:
            temperature = temperature / rule.scale
        return head_logprobs(
            hidden, weight, bias, completion_ids, temperature, cap=rule.cap, banned=self.banned
        )

    def keep_only(self, tokenizer: PreTrainedTokenizerBase) -> None:
        """From now on ids that are no token have no probability (rows of the embedding to spare).

        Logits are cut to the tokenizer's tokens as in openai/lm-human-preferences policy.py:59.
        """
        banned = banned_of(tokenizer, head_weights(self.output_head(POLICY))[0].shape[0])
        self.banned = None if banned is None else banned.to(self.device)

    def policy_outputs(
        self, ids: Tensor, mask: Tensor, completion_ids: Tensor, temperature: float
    ) -> TokenOutputs:
        """Policy, and the value where it shares the trunk.

        Args:
            ids, mask: int and bool (B, T), prompt then completion, padded on any side.
            completion_ids: (B, C), the last C of ``ids``.
            temperature: that of sampling.
        """
        with self.precision():
            states = self._before(POLICY, ids, mask, completion_ids.shape[1])
            tokens = _real(completion_ids, mask)
            logprobs, entropies = self._logprobs(POLICY, states, tokens, temperature)
            values = self.read_values(states) if self.shares_trunk else None
        return TokenOutputs(logprobs, entropies, values)

    def reference_logprobs(
        self, ids: Tensor, mask: Tensor, completion_ids: Tensor, temperature: float
    ) -> Tensor:
        """Reference: log-probs (B, C) fp32; arguments as for policy_outputs."""
        return self.logprobs(REFERENCE, ids, mask, completion_ids, temperature)

    def logprobs(
        self, role: str, ids: Tensor, mask: Tensor, completion_ids: Tensor, temperature: float
    ) -> Tensor:
        """Any role that has logits: log-probs (B, C) fp32; arguments as for policy_outputs."""
        with self.precision():
            states = self._before(role, ids, mask, completion_ids.shape[1])
            tokens = _real(completion_ids, mask)
            return self._logprobs(role, states, tokens, temperature)[0]

    def values(self, ids: Tensor, mask: Tensor, completion_length: int) -> Tensor:
        """Value: (B, T) -> (B, C) fp32, V of the state before each completion token."""
        with self.precision():
            return self.read_values(self._before(VALUE, ids, mask, completion_length))

    def scores(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Reward: (B, T) -> (B,) fp32, gain * head(state of the last real token) + bias."""
        if not self.has_reward:
            raise ValueError("no reward model among the roles: pass reward_adapter")
        with self.precision():
            at = last_real_token(mask)
            read = ids.shape[1] - int(at.min())
            hidden = self._hidden(REWARD, ids, mask, read)
            rows = torch.arange(ids.shape[0], device=ids.device)
            return self.gain * self.read_scores(hidden[rows, at - ids.shape[1]]) + self.bias

    def step(self, role: str = POLICY) -> Step:
        """One pass of sampling; with the policy's values where they share its trunk."""
        head, rule = self.output_head(role), self.logit_rule(role)
        with_value = role == POLICY and self.shares_trunk

        def step(
            inputs: Tensor, mask: Tensor, positions: Tensor, cache: Cache | None
        ) -> tuple[Tensor, Tensor | None]:
            with self.precision():
                hidden = self.trunk(
                    role,
                    1,
                    input_ids=inputs,
                    attention_mask=mask,
                    position_ids=positions,
                    past_key_values=cache,
                    use_cache=True,
                )[:, -1]
                logits = rule(head(hidden))
                if self.banned is not None:
                    logits = logits.float() + self.banned
                return logits, self.read_values(hidden) if with_value else None

        return Step(step, self.language_model(role).config)

    def logits(self, role: str, ids: Tensor, mask: Tensor, completion_length: int) -> Tensor:
        """Logits (B, C, V) of policy or reference, whole: for looking at, not for training."""
        with self.precision():
            states = self._before(role, ids, mask, completion_length)
            logits = self.logit_rule(role)(self.output_head(role)(states))
            return logits if self.banned is None else logits.float() + self.banned

    def _model_of(self, role: str) -> str:
        """A name for the model that plays the role: roles of one model have one logit rule."""
        return role

    def logit_rule(self, role: str) -> LogitRule:
        """What the role's model does to its head's output."""
        name = self._model_of(role)
        if name not in self._logit_rules:
            self._logit_rules[name] = logit_rule(self.language_model(role).config)
        return self._logit_rules[name]

    def set_logit_rule(self, role: str, rule: LogitRule) -> None:
        """Take another rule than the config's: what the model was seen to do (``self_checks``)."""
        self._logit_rules[self._model_of(role)] = rule


def _recomputed(model: nn.Module) -> list[nn.Module]:
    """The modules that transformers recomputes, and those that loop over them."""
    return [module for module in model.modules() if hasattr(module, "gradient_checkpointing")]


def _real(completion_ids: Tensor, mask: Tensor) -> Tensor:
    """The tokens (B, C), 0 where there is padding, whose own id may be none of the vocabulary."""
    return completion_ids.masked_fill(~mask[:, -completion_ids.shape[1] :], 0)


def banned_of(tokenizer: PreTrainedTokenizerBase, rows: int) -> Tensor | None:
    """fp32 (rows,), 0 for the tokenizer's tokens, NEVER for other ids; None if all are tokens."""
    without = sorted(set(range(rows)) - set(tokenizer.get_vocab().values()))
    if not without:
        return None
    banned = torch.zeros(rows)
    banned[without] = NEVER
    return banned
