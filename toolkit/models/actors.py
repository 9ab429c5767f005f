"""The models of PPO, whether they are adapters on one base or whole models.

A role's trunk turns tokens into hidden states. Heads read these: the output head for log-probs, and
one fp32 output each for values and scores. Subclasses define trunk and heads of each role
(``Roles``: adapters on one base; ``SeparateModels``: whole models).
"""

from abc import abstractmethod
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.cache_utils import Cache, DynamicCache

from toolkit.maths.distributions import Head, TokenDistribution, head_distribution
from toolkit.maths.ilql import steered
from toolkit.maths.precision import autocast_device
from toolkit.maths.sequences import last_real_token, position_ids
from toolkit.models.families import LogitRule, check_recomputing, logit_rule
from toolkit.models.fast import Read, flash_attends, padding_on_the_right
from toolkit.models.generation import Step
from toolkit.models.peft_wrappers import filler, head_weights, of_adapter
from toolkit.models.q_heads import QHeads
from toolkit.models.quantized import unpacked
from toolkit.models.reading import Reading
from toolkit.models.static_decoding import Masks

# Added to the logit of an id that must never be sampled. It is finite, so that 0 times it is 0.
NEVER = -1e30
POLICY, REFERENCE, VALUE, REWARD = "policy", "reference", "value", "reward"
CRITIC = "critic"  # of ILQL: Q and V
# The most fp32 logits that a KL of whole distributions is made from at once.
MOST_LOGITS = 1 << 24


class TokenOutputs(NamedTuple):
    """For each completion token, fp32 (B, C): logprobs and entropies; values and KL, or None.

    The KL is that of the whole next-token distribution from the reference's.
    """

    logprobs: Tensor
    entropies: Tensor
    values: Tensor | None
    kl: Tensor | None = None


@dataclass(frozen=True)
class Steering:
    """What steers a role's sampling (``toolkit.maths.ilql.steered``).

    Attributes:
        critic: the role whose states the heads read.
        heads: Q and V.
        beta: how strongly; 0 leaves the role as it is.
        clipped: whether no token gains.
    """

    critic: str
    heads: QHeads
    beta: float
    clipped: bool = False


class Actors(nn.Module):
    """Policy, reference, value and reward model.

    Attributes:
        gain, bias: a score is gain * head + bias.
        shares_trunk: whether policy and value come from one pass.
        has_value, has_reward: whether there is such a role.
        moves_reference: whether the reference can follow the policy (``move_reference``).
        autocast_dtype: every pass runs under autocast to this type; None for no autocast.
        scores_stop: whether the reward model sees the stop token.
        banned: fp32 (V,), 0 or NEVER, added to all logits, so that ids without a token are never
            sampled and have no probability (``keep_only``).
        reading: what the reward model expects after a completion.
        value_hidden: widths of the value head's hidden layers; empty if it is linear.
        entropy_gradient: whether the policy's entropies have gradients.
        full_kl: whether the policy's passes with gradients also compute the KL of the whole
            distribution from the reference's, whose pass they then make, too.
        right_padded: whether whole passes get padding on the right alone; None if the device and
            the precision decide (``pads_right``).
        steering: by the names of the roles that a critic steers (ILQL).
    """

    gain: float = 1.0
    bias: float = 0.0
    shares_trunk: bool = False
    has_value: bool = False
    last_ranks: int | None = None  # of the policy's adapter, how many ranks are trained; None: all
    has_reward: bool = False
    moves_reference: bool = False
    autocast_dtype: torch.dtype | None = None
    scores_stop: bool = False
    checkpointing: bool = False
    unpacks: bool = False
    banned: Tensor | None = None
    reading: Reading = Reading()
    value_hidden: tuple[int, ...] = ()
    entropy_gradient: bool = False
    full_kl: bool = False
    right_padded: bool | None = None

    def __init__(self) -> None:
        super().__init__()
        self._logit_rules: dict[str, LogitRule] = {}
        self.steering: dict[str, Steering] = {}

    @abstractmethod
    def trunk(self, role: str, read: Read, **inputs: object) -> Tensor:
        """Return the role's final hidden states where they are read (``last_states``)."""

    @abstractmethod
    def output_head(self, role: str) -> nn.Module:
        """Return the head that makes logits from hidden states of policy or reference."""

    @abstractmethod
    def read_values(self, hidden: Tensor) -> Tensor:
        """Return values (...) fp32 of hidden states (..., d)."""

    @abstractmethod
    def read_scores(self, hidden: Tensor) -> Tensor:
        """Return raw scores (...) fp32 of hidden states (..., d), before gain and bias."""

    @abstractmethod
    def save(self, folder: str | Path, **facts: object) -> None:
        """Write what was trained, in a form that other libraries load."""

    @abstractmethod
    def language_models(self) -> list[PreTrainedModel]:
        """Return the models that gradients flow through."""

    @abstractmethod
    def identity(self) -> dict[str, object]:
        """Return, as JSON, what identifies these models; a run is resumed only on the same."""

    @abstractmethod
    def language_model(self, role: str) -> PreTrainedModel:
        """Return the causal language model of the role, with its adapter active."""

    def policy_facts(self) -> dict[str, object] | None:
        """Return what is needed to write the policy's adapter; None for whole models."""
        return None

    def is_frozen_adapter(self, name: str, parameter: nn.Parameter) -> bool:
        """Whether a parameter with that name belongs to an adapter that is not trained."""
        return "lora_" in name and not parameter.requires_grad

    @property
    def in_fp32(self) -> bool:
        """Whether every pass runs in fp32, so that equal passes give equal numbers."""
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

    def changing(self) -> list[tuple[str, nn.Parameter]]:
        """Names and parameters that change in a run: all of them are in a checkpoint."""
        return self.trainable()

    def move_reference(self, share: float) -> None:
        """Move the reference's weights this share of the way to the policy's.

        Raises:
            ValueError: this reference stays where it is.
        """
        raise ValueError("the reference cannot move (build Roles with reference='moving')")

    @staticmethod
    def of_value(name: str) -> bool:
        """Whether a parameter belongs to the value alone: its adapter, its model or its head."""
        return of_adapter(name, VALUE) or name.startswith(("value_head.", "value_model."))

    @contextmanager
    def precision(self) -> Iterator[None]:
        """Turn autocast on, if it is configured."""
        with torch.autocast(
            autocast_device(self.device),
            self.autocast_dtype,
            enabled=self.autocast_dtype is not None,
        ):
            yield

    def use_checkpointing(self, options: dict[str, object] | None = None) -> None:
        """Recompute activations in the backward passes inside ``optimizing`` from now on.

        A recomputation uses the role that is active then, so run a role's backward pass before
        another role's forward pass.

        Args:
            options: for ``torch.utils.checkpoint.checkpoint``; not reentrant by default.
        """
        options = {"use_reentrant": False} | (options or {})
        self.checkpointing = True
        for model in self.language_models():
            check_recomputing(model, True)
            for module in _recomputed(model):
                for name, value in vars(module).items():
                    if isinstance(value, float) and "drop" in name:  # read in training mode
                        setattr(module, name, 0.0)
            model.activation_checkpointing_enable(options)

    @contextmanager
    def optimizing(self) -> Iterator[None]:
        """Enclose passes with gradients: transformers checkpoints only in training mode.

        Only the recomputed layers are put into that mode: below them are dropout and routers that
        draw experts at random, with which the ratio of the first pass would not be 1.
        """
        if self.checkpointing:
            for model in self.language_models():
                for module in _recomputed(model):
                    module.training = True
        try:
            yield
        finally:  # in training mode sampling would not use its cache
            self.eval()

    @property
    def pads_right(self) -> bool:
        """Whether whole passes get their rows with the padding moved to the right.

        They then need no mask, and flash attention can take them (``padding_on_the_right``): on a
        GPU, and not in fp32. Elsewhere rows stay as they are, and the last layer finds the
        completions in the same columns.
        """
        if self.right_padded is not None:
            return self.right_padded
        return flash_attends(self.device, self.in_fp32)

    def _hidden(self, role: str, ids: Tensor, mask: Tensor, read: Read) -> Tensor:
        """Return the role's states (B, C, d) at the last so many columns, or at these columns."""
        # A pad token may lie outside the embedding.
        ids = ids.masked_fill(~mask, filler(self.language_models()[0].get_input_embeddings()))
        positions = position_ids(mask)
        if not self.pads_right:
            return self.trunk(
                role,
                read,
                input_ids=ids,
                attention_mask=mask.long(),
                position_ids=positions,
                use_cache=False,
            )

        # A token's position among the real ones is then its column. Padding gets the position
        # after the last real token: some rotary embeddings choose by the largest position.
        real_first = mask.long().argsort(dim=1, descending=True, stable=True)
        real = mask.long().gather(1, real_first)
        columns = positions[:, -read:] if isinstance(read, int) else positions.gather(1, read)
        with padding_on_the_right():
            return self.trunk(
                role,
                columns,
                input_ids=ids.gather(1, real_first),
                attention_mask=real,
                position_ids=position_ids(real),
                use_cache=False,
            )

    def _before(self, role: str, ids: Tensor, mask: Tensor, completion_length: int) -> Tensor:
        """Return the states (B, C, d) that predict each completion token."""
        return self._hidden(role, ids[:, :-1], mask[:, :-1], completion_length)

    def _head(self, role: str, hidden: Tensor) -> Head:
        """Return states (B, C, d) with the role's output head, while its adapter is active."""
        weight, bias = head_weights(self.output_head(role))
        rule = self.logit_rule(role)
        if rule.cap is not None and rule.scale != 1.0:  # the cap applies after the scale
            weight, bias = weight * rule.scale, None if bias is None else bias * rule.scale
        return Head(hidden, weight, bias)

    def _distribution(
        self,
        role: str,
        hidden: Tensor,
        completion_ids: Tensor,
        temperature: float,
        reference: Head | None = None,
    ) -> TokenDistribution:
        rule = self.logit_rule(role)
        if rule.cap is None:
            temperature = temperature / rule.scale
        return head_distribution(
            self._head(role, hidden),
            completion_ids,
            temperature,
            cap=rule.cap,
            banned=self.banned,
            entropy_gradient=role == POLICY and self.entropy_gradient,
            reference=reference,
        )

    def keep_only(self, tokenizer: PreTrainedTokenizerBase) -> None:
        """Give ids without a token (spare rows of the embedding) no probability from now on.

        Logits are cut to the tokenizer's tokens as in openai/lm-human-preferences policy.py:59.
        """
        banned = banned_of(tokenizer, head_weights(self.output_head(POLICY))[0].shape[0])
        self.banned = None if banned is None else banned.to(self.device)

    def policy_outputs(
        self, ids: Tensor, mask: Tensor, completion_ids: Tensor, temperature: float
    ) -> TokenOutputs:
        """Run the policy, and the value if it shares the trunk.

        With ``full_kl`` and gradients on, the reference runs first.

        Args:
            ids, mask: int and bool (B, T), prompt then completion, padded on any side.
            completion_ids: (B, C), the last C of ``ids``.
            temperature: the sampling temperature.
        """
        length = completion_ids.shape[1]
        reference = None
        if self.full_kl and torch.is_grad_enabled():
            # Autocast remembers the weights that it rounds here, without their gradients, until its
            # context ends; so this is a context of its own.
            with torch.no_grad(), self.precision():
                hidden = self._before(REFERENCE, ids, mask, length)
                reference = self._head(REFERENCE, hidden)

        with self.precision():
            states = self._before(POLICY, ids, mask, length)
            tokens = _real(completion_ids, mask)
            found = self._distribution(POLICY, states, tokens, temperature, reference)
            values = self.read_values(states) if self.shares_trunk else None
        return TokenOutputs(found.logprobs, found.entropies, values, found.kl)

    def reference_logprobs(
        self, ids: Tensor, mask: Tensor, completion_ids: Tensor, temperature: float
    ) -> Tensor:
        """Return the reference's log-probs (B, C) fp32; arguments as for policy_outputs."""
        return self.logprobs(REFERENCE, ids, mask, completion_ids, temperature)

    def logprobs(
        self, role: str, ids: Tensor, mask: Tensor, completion_ids: Tensor, temperature: float
    ) -> Tensor:
        """Return log-probs (B, C) fp32 of any role with logits; arguments as for policy_outputs."""
        if role in self.steering:
            return self._steered_logprobs(role, ids, mask, completion_ids, temperature)
        with self.precision():
            states = self._before(role, ids, mask, completion_ids.shape[1])
            tokens = _real(completion_ids, mask)
            return self._distribution(role, states, tokens, temperature).logprobs

    def values(self, ids: Tensor, mask: Tensor, completion_length: int) -> Tensor:
        """Return values (B, C) fp32 of the state before each completion token; ids are (B, T)."""
        with self.precision():
            return self.read_values(self._before(VALUE, ids, mask, completion_length))

    def scores(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Return scores (B,) fp32: gain * head(state of the last real token) + bias."""
        if not self.has_reward:
            raise ValueError("the roles have no reward model (pass reward_adapter)")
        with self.precision():
            at = last_real_token(mask)
            if self.pads_right:
                hidden = self._hidden(REWARD, ids, mask, at.unsqueeze(1)).squeeze(1)
            else:
                rows = torch.arange(ids.shape[0], device=ids.device)
                last = self._hidden(REWARD, ids, mask, ids.shape[1] - int(at.min()))
                hidden = last[rows, at - ids.shape[1]]
            return self.gain * self.read_scores(hidden) + self.bias

    def step(self, role: str = POLICY, temperature: float | None = None) -> Step:
        """Return one pass of sampling; with values if they share the policy's trunk.

        Args:
            role: who samples.
            temperature: of the sampling; needed only for a role that a critic steers.
        """
        head, rule = self.output_head(role), self.logit_rule(role)
        with_value = role == POLICY and self.shares_trunk
        if role in self.steering:
            if temperature is None:
                raise ValueError(f"step: {role} is steered, so its temperature must be given")
            return self._steered_step(role, temperature)

        def step(
            inputs: Tensor, mask: Masks, positions: Tensor, cache: Cache | None
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

        return Step(step, self.language_model(role), self.in_fp32, lambda: self.sampling(role))

    def _steered_step(self, role: str, temperature: float) -> Step:
        """Return one pass of sampling with a critic: two trunks, each with a cache of its own."""
        head, rule, steering = self.output_head(role), self.logit_rule(role), self.steering[role]
        model = self.language_model(role)
        critics: WeakKeyDictionary[Cache, Cache] = WeakKeyDictionary()

        def step(
            inputs: Tensor, mask: Masks, positions: Tensor, cache: Cache | None
        ) -> tuple[Tensor, None]:
            passed = {"input_ids": inputs, "attention_mask": mask, "position_ids": positions}
            own = None
            if cache is not None:
                own = critics.setdefault(cache, DynamicCache(config=model.config))
            with self.precision():
                hidden = self.trunk(role, 1, **passed, past_key_values=cache, use_cache=True)[:, -1]
                logits = rule(head(hidden)).float()
                if self.banned is not None:
                    logits = logits + self.banned

                # The critic reads the same state, which stands before the token to be drawn.
                state = self.trunk(
                    steering.critic, 1, **passed, past_key_values=own, use_cache=True
                )[:, -1]
            return self._steer(steering, logits, state, temperature), None

        prepared = Actors.sampling  # what holds one adapter ready would not see the other
        return Step(step, model, self.in_fp32, lambda: prepared(self, role), static=False)

    def _steer(
        self, steering: Steering, logits: Tensor, states: Tensor, temperature: float
    ) -> Tensor:
        """Return steered logits (..., V) from the critic's states (..., d), its adapter active."""
        weight, _ = head_weights(self.output_head(steering.critic))
        u = steering.heads.advantages(states, weight)
        return steered(logits, u, steering.beta, temperature, steering.clipped)

    def _steered_logprobs(
        self, role: str, ids: Tensor, mask: Tensor, completion_ids: Tensor, temperature: float
    ) -> Tensor:
        found = []
        for part in self._parts(completion_ids):
            logits = self.logits(role, ids[part], mask[part], completion_ids.shape[1], temperature)
            tokens = _real(completion_ids[part], mask[part]).unsqueeze(-1)
            logprobs = (logits / temperature).log_softmax(dim=-1)
            found.append(logprobs.gather(-1, tokens).squeeze(-1))
        return torch.cat(found)

    @torch.no_grad()
    def exact_kl(
        self, role: str, ids: Tensor, mask: Tensor, completion_ids: Tensor, temperature: float
    ) -> Tensor:
        """Return the KL (B, C) fp32 of a role's next-token distributions from the reference's.

        Summed over a completion that the role sampled, it has the mean of the log-ratio's sum, and
        a smaller error: sampled log-ratios vary much where a role is far from the reference.

        Args:
            role: a role with logits.
            ids, mask, completion_ids, temperature: as for policy_outputs.
        """
        found = []
        for part in self._parts(completion_ids):
            passed = (ids[part], mask[part], completion_ids.shape[1])
            own, there = (
                (self.logits(each, *passed, temperature).float() / temperature).log_softmax(dim=-1)
                for each in (role, REFERENCE)
            )
            found.append((own.exp() * (own - there)).sum(dim=-1))
        return torch.cat(found)

    def _parts(self, completion_ids: Tensor) -> Iterator[slice]:
        """Cut a batch (B, C) into rows whose whole logits may exist at once."""
        vocabulary = head_weights(self.output_head(REFERENCE))[0].shape[0]
        rows = max(1, MOST_LOGITS // (vocabulary * completion_ids.shape[1]))
        for start in range(0, len(completion_ids), rows):
            yield slice(start, start + rows)

    def sampling(self, role: str) -> AbstractContextManager[None]:
        """Return a context in which the passes of one batch of samples run faster."""
        return unpacked(self.language_model(role)) if self.unpacks else nullcontext()

    def logits(
        self,
        role: str,
        ids: Tensor,
        mask: Tensor,
        completion_length: int,
        temperature: float = 1.0,
    ) -> Tensor:
        """Return all logits (B, C, V) of policy or reference: for inspection, not for training.

        Those of a steered role are to be divided by this temperature.
        """
        with self.precision():
            states = self._before(role, ids, mask, completion_length)
            logits = self.logit_rule(role)(self.output_head(role)(states))
            logits = logits if self.banned is None else logits.float() + self.banned

        steering = self.steering.get(role)
        if steering is None:
            return logits
        states = self.states(steering.critic, ids, mask, completion_length)
        return self._steer(steering, logits.float(), states, temperature)

    def states(self, role: str, ids: Tensor, mask: Tensor, completion_length: int) -> Tensor:
        """Return the states (B, C, d) that stand before each completion token; ids are (B, T)."""
        with self.precision():
            return self._before(role, ids, mask, completion_length)

    def _model_of(self, role: str) -> str:
        """Name the model that plays the role; roles of one model share a logit rule."""
        return role

    def logit_rule(self, role: str) -> LogitRule:
        """Return what the role's model does to the output of its head."""
        name = self._model_of(role)
        if name not in self._logit_rules:
            self._logit_rules[name] = logit_rule(self.language_model(role).config)
        return self._logit_rules[name]

    def set_logit_rule(self, role: str, rule: LogitRule) -> None:
        """Replace the config's rule by what the model was observed to do (``self_checks``)."""
        self._logit_rules[self._model_of(role)] = rule


def _recomputed(model: nn.Module) -> list[nn.Module]:
    """Return the modules that transformers recomputes, and those that loop over them."""
    return [module for module in model.modules() if hasattr(module, "gradient_checkpointing")]


def _real(completion_ids: Tensor, mask: Tensor) -> Tensor:
    """Return the tokens (B, C) with 0 as padding, since a pad id may lie outside the vocabulary."""
    return completion_ids.masked_fill(~mask[:, -completion_ids.shape[1] :], 0)


def banned_of(tokenizer: PreTrainedTokenizerBase, rows: int) -> Tensor | None:
    """fp32 (rows,), 0 for the tokenizer's tokens, NEVER for other ids; None if all are tokens."""
    without = sorted(set(range(rows)) - set(tokenizer.get_vocab().values()))
    if not without:
        return None
    banned = torch.zeros(rows)
    banned[without] = NEVER
    return banned
