"""What PPO asks of its models, whether they are adapters on one base or models of their own.

A role's trunk turns tokens into hidden states; heads read these: the output head for log-probs, one
fp32 output each for values and scores. Subclasses say which trunk and which head a role has
(``Roles``: adapters on one base; ``SeparateModels``: whole models).
"""

from abc import abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from toolkit.errors import InputError
from toolkit.maths.distributions import head_logprobs
from toolkit.maths.precision import autocast_device
from toolkit.maths.sequences import last_real_token, position_ids
from toolkit.models.generation import Step

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
    """

    gain: float = 1.0
    bias: float = 0.0
    shares_trunk: bool = False
    has_value: bool = False
    has_reward: bool = False
    autocast_dtype: torch.dtype | None = None
    scores_stop: bool = False
    checkpointing: bool = False

    @abstractmethod
    def trunk(self, role: str, last: int, **inputs: Any) -> Tensor:
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
    def save(self, folder: Any, **facts: Any) -> None:
        """Write what was trained, in the form that others load."""

    @abstractmethod
    def language_models(self) -> list[Any]:
        """The models that gradients flow through."""

    @abstractmethod
    def identity(self) -> dict[str, Any]:
        """What makes these models these, as JSON can hold it: a run is resumed on no others."""

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

    def use_checkpointing(self) -> None:
        """From now on activations are recomputed in the backward pass of ``optimizing``.

        A recomputation plays the role that is active then: run a role's backward pass before
        another role's forward pass.
        """
        self.checkpointing = True
        for model in self.language_models():
            for module in model.modules():
                if isinstance(module, nn.Dropout):
                    module.p = 0.0
                elif isinstance(getattr(module, "attention_dropout", None), float):
                    module.attention_dropout = 0.0
            model.activation_checkpointing_enable({"use_reentrant": False})

    @contextmanager
    def optimizing(self) -> Iterator[None]:
        """Around passes with gradients: transformers checkpoints in training mode alone."""
        if self.checkpointing:
            for model in self.language_models():
                model.train()
        try:
            yield
        finally:  # in training mode sampling would go without its cache
            self.eval()

    def _hidden(self, role: str, ids: Tensor, mask: Tensor, last: int) -> Tensor:
        ids = ids.masked_fill(~mask, 0)  # a pad token may lie outside the embedding
        return self.trunk(
            role, last, input_ids=ids, attention_mask=mask.long(), position_ids=position_ids(mask),
            use_cache=False,
        )  # fmt: skip

    def _before(self, role: str, ids: Tensor, mask: Tensor, completion_length: int) -> Tensor:
        """The states (B, C, d) before each completion token: those that predict it."""
        return self._hidden(role, ids[:, :-1], mask[:, :-1], completion_length)

    def _logprobs(
        self, role: str, hidden: Tensor, completion_ids: Tensor, temperature: float
    ) -> tuple[Tensor, Tensor]:
        head: Any = self.output_head(role)
        return head_logprobs(hidden, head.weight, head.bias, completion_ids, temperature)

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
        with self.precision():
            states = self._before(REFERENCE, ids, mask, completion_ids.shape[1])
            tokens = _real(completion_ids, mask)
            return self._logprobs(REFERENCE, states, tokens, temperature)[0]

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
        head = self.output_head(role)
        with_value = role == POLICY and self.shares_trunk

        def step(
            inputs: Tensor, mask: Tensor, positions: Tensor, cache: Any
        ) -> tuple[Tensor, Tensor | None]:
            with self.precision():
                hidden = self.trunk(
                    role, 1, input_ids=inputs, attention_mask=mask, position_ids=positions,
                    past_key_values=cache, use_cache=True,
                )[:, -1]  # fmt: skip
                return head(hidden), self.read_values(hidden) if with_value else None

        return step

    def logits(self, role: str, ids: Tensor, mask: Tensor, completion_length: int) -> Tensor:
        """Logits (B, C, V) of policy or reference, whole: for looking at, not for training."""
        with self.precision():
            states = self._before(role, ids, mask, completion_length)
            return self.output_head(role)(states)

    @torch.no_grad()
    def check_head(self, model: nn.Module) -> None:
        """Raise InputError if head(trunk) is not what the policy's own forward pass gives.

        Some families scale or cap their logits behind the head; log-probs made without that would
        be wrong in silence.
        """
        ids = torch.arange(4, device=self.device).unsqueeze(0)
        mask = torch.ones_like(ids, dtype=torch.bool)
        ours = self.logits(POLICY, ids, mask, 3).float()
        with self.precision():
            theirs = model(input_ids=ids, position_ids=ids).logits[:, :3].float()
        if not torch.allclose(ours, theirs, rtol=1e-2, atol=1e-2 * theirs.abs().max().item()):
            raise InputError(
                f"{type(model).__name__}: its logits are not its output head's of its hidden "
                "states (it scales or caps them); such models are not supported by PPO"
            )


def _real(completion_ids: Tensor, mask: Tensor) -> Tensor:
    """The tokens (B, C), 0 where there is padding, whose own id may be none of the vocabulary."""
    return completion_ids.masked_fill(~mask[:, -completion_ids.shape[1] :], 0)
