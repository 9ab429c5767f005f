"""One base with four roles: policy, reference, value and reward, by adapter and head.

    role        adapter on the base                        head
    policy      "policy"                                   the base's own output head
    reference   none, or "reference": a frozen copy of     the base's own output head
                the adapter that the policy starts from,
                or one that follows the policy
    value       "value", or the policy's                   one fp32 output, starts at zero
    reward      "reward", frozen                           one fp32 output, then gain and bias
    critic      "critic", of ILQL (``add_critic``)         Q and V (``q_heads``)

The base is held once, in any precision. Each method first switches to its role's adapter; nothing
is switched back, because every other method does the same.
"""

import copy
import hashlib
import json
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import PreTrainedModel

from toolkit.data.files import read_object, write_json
from toolkit.errors import InputError
from toolkit.models.actors import CRITIC, POLICY, REFERENCE, REWARD, VALUE, Actors, Steering
from toolkit.models.adapters import (
    absolute_if_local,
    add_saved_adapter,
    check_round_trip,
    lora_config,
    put_adapter,
)
from toolkit.models.base_config import base_fingerprint
from toolkit.models.base_weights import BaseWeights
from toolkit.models.families import trunk_of
from toolkit.models.fast import Read, adapter_held, last_states, use_fast_passes
from toolkit.models.loading import Fp32Head, ValueHead, round_frozen_weights
from toolkit.models.lora_targets import language_lora
from toolkit.models.peft_wrappers import (
    Overrides,
    base_of,
    head_weights,
    of_adapter,
    switch,
    switchable,
)
from toolkit.models.q_heads import QHeads, QKind, kind_for
from toolkit.models.reading import Reading
from toolkit.models.self_checks import check_passes
from toolkit.models.toolkit_json import read_facts, start_of, write_facts


class Roles(Actors):
    """The base with its adapters and heads.

    Args:
        base: a frozen causal language model.
        lora: the configuration of the adapters that are trained. Without it there is no new
            adapter, unless there is a value, which implies a policy to train.
        value: "adapter" (its own), "trunk" (a head on the policy's hidden states), or None.
        reward_adapter: folder of a trained reward adapter, or None.
        policy_adapter: folder of an adapter that the policy starts from, or None for a new one.
        reference: "base" (adapters off), "policy_adapter" (a frozen copy of that one, for a
            policy that starts from supervised fine-tuning), or "moving" (a copy of the policy's
            start, which ``move_reference`` moves).
        last_ranks: of ``policy_adapter``, train only so many last ranks of each layer; None for
            all of it.
        reading: what the reward adapter expects after a completion (``reading_of``).
        value_init: "zero", or "reward": adapter and head start as copies of the reward's.
        value_hidden: widths of the value head's hidden layers; empty for a linear head.
        autocast_dtype: run every pass under autocast to this type, and hold the base's frozen
            linear weights in it.
        checked: whether to compare a few passes with the base's own (``check_passes``).

    Raises:
        InputError: an adapter does not fit, or the base fails the checks at load.
    """

    def __init__(
        self,
        base: PreTrainedModel,
        lora: LoraConfig | None = None,
        value: str | None = None,
        reward_adapter: str | Path | None = None,
        policy_adapter: str | Path | None = None,
        reference: str = "base",
        value_init: str = "zero",
        autocast_dtype: torch.dtype | None = None,
        checked: bool = True,
        reading: Reading | None = None,
        last_ranks: int | None = None,
        value_hidden: Sequence[int] = (),
    ) -> None:
        super().__init__()
        if lora is None and value is not None:
            lora = lora_config(8, 16, "all-linear", "CAUSAL_LM")
        if lora is not None:
            lora = language_lora(base, lora)
        self._lora = lora

        self.base_name = absolute_if_local(base.name_or_path or "")
        self.autocast_dtype = autocast_dtype
        for name, _ in base.named_modules():
            if {POLICY, REFERENCE, VALUE, REWARD} & set(name.split(".")):
                raise InputError(
                    f"{type(base).__name__} is not supported: its module {name} has the name of a "
                    "role, and peft distinguishes adapters by name"
                )
        if autocast_dtype is not None:
            round_frozen_weights(base, autocast_dtype)

        hidden_size = head_weights(base.get_output_embeddings())[0].shape[1]
        device = next(base.parameters()).device

        self.base_weights = BaseWeights(base)
        self.model: Any = base  # peft's model from the first adapter on
        self.overrides = Overrides()
        self.policy_bias = "none"
        self.start = start_of(None)
        self.value_head: Fp32Head | ValueHead | None = None
        self.reward_head: Fp32Head | None = None
        self.critic: QHeads | None = None
        self._steered: dict[str, tuple[str, str, QHeads]] = {}

        if policy_adapter is not None:
            self._add(policy_adapter, POLICY)
            self.start = start_of(policy_adapter)
            self.policy_bias = read_object(
                Path(policy_adapter) / "adapter_config.json", "policy_adapter"
            ).get("bias", "none")
            if reference in ("policy_adapter", "moving"):
                self._add(policy_adapter, REFERENCE)
        elif lora is not None:
            self.model = put_adapter(self.model, copy.deepcopy(lora), POLICY)
            self.base_weights.check("the policy's new adapter")
            if reference == "moving":
                self.model = put_adapter(self.model, copy.deepcopy(lora), REFERENCE)
            if checked:
                check_round_trip(self.model, POLICY)

        # The reward adapters on the base, by their folders; one of them is the reward.
        self._rewards: dict[str, tuple[str, Fp32Head, float, float, Reading]] = {}
        self.reading = reading or Reading()
        if reward_adapter is not None:
            self._add_reward(reward_adapter, REWARD, self.reading)
        if value is not None:
            assert lora is not None
            if value_hidden:
                self.value_hidden = tuple(value_hidden)
                self.value_head = ValueHead(hidden_size, value_hidden).to(device)
            else:
                self.value_head = Fp32Head(hidden_size, 1).to(device)
            self._add_value(value, value_init, lora, reward_adapter)

        self.has_value, self.has_reward = value is not None, reward_adapter is not None
        self.shares_trunk = value == "trunk"
        self._adapter_of = {
            POLICY: POLICY if POLICY in self.adapters else None,
            REFERENCE: REFERENCE if REFERENCE in self.adapters else None,
            VALUE: POLICY if self.shares_trunk else VALUE,
            REWARD: REWARD,
        }

        self._settle()
        self.last_ranks = last_ranks
        if last_ranks is not None:
            self._train_last(last_ranks)
        if reference == "moving":
            self._only_lora_is_trained("reference_ema")
            self.moves_reference = True
            self.move_reference(1.0)
        if checked:
            check_passes(self, POLICY)

    def _only_lora_is_trained(self, what: str) -> None:
        """Raise InputError if the policy trains anything besides LoRA's matrices."""
        beside = [n for n, _ in self.trainable() if of_adapter(n, POLICY) and ".lora_" not in n]
        if beside or any(p.requires_grad for p in self.overrides.tensors(POLICY)):
            raise InputError(
                f"{what}: the policy's adapter trains weights besides LoRA, for example "
                f"{(beside or self.overrides.keys[POLICY])[0]} (leave it out)",
                what,
            )

    def _train_last(self, ranks: int) -> None:
        """Leave all but the last ranks of the policy's layers without a gradient."""
        self._only_lora_is_trained("train_last_ranks")
        for name, parameter in self.trainable():
            if not of_adapter(name, POLICY):
                continue
            if parameter.ndim != 2:
                raise InputError(
                    f"train_last_ranks: {name} of the policy's adapter does not belong to single "
                    "ranks (DoRA, or a bias of LoRA), so it cannot stay (leave it out)",
                    "train_last_ranks",
                )
            # A is (r, in), B is (out, r).
            axis = 0 if ".lora_A." in name or ".lora_embedding_A." in name else 1
            kept = parameter.shape[axis] - ranks
            if kept > 0:
                parameter.register_hook(partial(_without_first, axis=axis, count=kept))

    def move_reference(self, share: float) -> None:
        """Move the reference's LoRA matrices this share of the way to the policy's.

        This is WARP's moving anchor (arXiv 2406.16768, section 3.1), of the factors A and B: their
        average is not the average of the changes B A, which would need more ranks at every step.
        """
        if not self.moves_reference:
            super().move_reference(share)
        with torch.no_grad():
            for policy, reference in self._followed():
                reference.lerp_(policy, share)

    def _followed(self) -> list[tuple[nn.Parameter, nn.Parameter]]:
        """The policy's trained matrices, each with the reference's."""
        named = dict(self.named_parameters())
        return [
            (parameter, named[_of_role(name, REFERENCE)])
            for name, parameter in named.items()
            if of_adapter(name, POLICY) and parameter.requires_grad
        ]

    def changing(self) -> list[tuple[str, nn.Parameter]]:
        found = self.trainable()
        if self.moves_reference:
            named = dict(self.named_parameters())
            moved = [_of_role(name, REFERENCE) for name, _ in found if of_adapter(name, POLICY)]
            found = found + [(name, named[name]) for name in moved]
        if self.critic is not None:
            targets = self.critic.targets.named_parameters()
            found = found + [(f"critic.targets.{name}", target) for name, target in targets]
        return found

    @property
    def adapters(self) -> dict[str, Any]:
        """The configuration of each adapter, by its name."""
        return dict(self.model.peft_config) if isinstance(self.model, PeftModel) else {}

    def _add_reward(self, folder: str | Path, name: str, reading: Reading) -> None:
        """Put a reward adapter on the base, and make it the reward."""
        (weight,) = self._add(folder, name).values()
        head = Fp32Head(weight.shape[1], 1, bias=False).to(self.device)
        self.reward_head = head.requires_grad_(False)
        self.reward_head.weight.copy_(weight)
        facts = read_facts(folder)
        self.gain, self.bias = facts.get("gain", 1.0), facts.get("bias", 0.0)
        kept = name, self.reward_head, self.gain, self.bias, reading
        self._rewards[_key_of(folder)] = kept

    def add_policy(self, name: str, folder: str | Path) -> None:
        """Add a frozen policy on the same base, as the role ``name``.

        Args:
            name: without dots, and not one of the four roles.
            folder: its adapter's folder.
        """
        self._add(folder, name)
        self._adapter_of[name] = name
        self._settle()
        check_passes(self, name)

    def add_critic(self, kind: QKind | None = None) -> QHeads:
        """Add a new critic, with an adapter of its own, to be trained beside the policy.

        Its passes go through its own adapter, so no gradient of it reaches the policy's. That is
        configured as the policy's new one (``lora``), without the output head.

        Args:
            kind: of the heads; by default what the vocabulary suggests (``kind_for``).

        Returns:
            its heads, which are ``self.critic``.
        """
        for name, _ in self._causal.named_modules():
            if CRITIC in name.split("."):
                raise InputError(
                    f"{type(self._causal).__name__} is not supported: its module {name} has the "
                    "name of a role, and peft distinguishes adapters by name"
                )
        assert self._lora is not None, "give Roles a configuration of LoRA"
        self.model = put_adapter(self.model, self._without_head(self._lora), CRITIC)
        self.base_weights.check("the critic's new adapter")
        check_round_trip(self.model, CRITIC)
        self._adapter_of[CRITIC] = CRITIC
        vocabulary, size = self._head_shape()
        self.critic = QHeads(size, vocabulary, kind or kind_for(vocabulary)).to(self.device)
        self._settle()
        return self.critic

    def add_steered(
        self, name: str, folder: str | Path, beta: float, clipped: bool = False
    ) -> None:
        """Add a frozen policy that its critic steers, as the role ``name``.

        Args:
            name: as for ``add_policy``.
            folder: holds ``policy`` and ``critic``. One folder may be added several times.
            beta, clipped: as for ``Steering``.

        Raises:
            InputError: an adapter or the heads do not fit the base.
        """
        key = _key_of(folder)
        if key not in self._steered:
            critic = f"{name}_critic"
            vocabulary, size = self._head_shape()
            heads = QHeads.load(Path(folder) / CRITIC, size, vocabulary).to(self.device)
            self.add_policy(name, Path(folder) / POLICY)
            self.add_policy(critic, Path(folder) / CRITIC)
            self._steered[key] = name, critic, heads.requires_grad_(False)
        policy, critic, heads = self._steered[key]
        self._adapter_of[name] = policy
        self.steering[name] = Steering(critic, heads, beta, clipped)

    def steer(self, name: str, beta: float) -> None:
        """Let the critic that is being trained steer the policy, as the role ``name``."""
        assert self.critic is not None
        self._adapter_of[name] = POLICY
        self.steering[name] = Steering(CRITIC, self.critic, beta)

    def _head_shape(self) -> tuple[int, int]:
        """Return vocabulary and width of the base's output head."""
        self.act_as(REFERENCE)
        vocabulary, size = head_weights(self._causal.get_output_embeddings())[0].shape
        return vocabulary, size

    def use_reward(self, folder: str | Path, reading: Reading | None = None) -> None:
        """Make this reward adapter the reward from now on; earlier ones stay on the base."""
        key = _key_of(folder)
        if key not in self._rewards:
            self._add_reward(folder, f"reward{len(self._rewards)}", reading or Reading())
            self._settle()
        name, self.reward_head, self.gain, self.bias, self.reading = self._rewards[key]
        self._adapter_of[REWARD] = name
        self.has_reward = True

    def _add(self, folder: str | Path, name: str) -> dict[str, Tensor]:
        """Put a saved adapter on the base; return a reward's head.

        What is not LoRA is fp32 if the passes allow it (a base in fp32, or autocast); otherwise it
        has the base's type, as in peft.
        """
        embedding = self._causal.get_input_embeddings().weight
        wide = self.autocast_dtype is not None or embedding.dtype == torch.float32
        self.model, head = add_saved_adapter(
            self.model, folder, name, self.overrides, torch.float32 if wide else None
        )
        self.base_weights.check(folder)
        return head

    def _settle(self) -> None:
        """Prepare the adapters: what is trained, fast passes, eval mode."""
        copies = {
            id(p)
            for a, keys in self.overrides.keys.items()
            for key, p in zip(keys, self.overrides.tensors(a), strict=True)
            if not key.endswith("bias")
        }
        for holder in (self.model, self.overrides):
            for name, parameter in holder.named_parameters():
                trained = any(of_adapter(name, adapter) for adapter in (POLICY, VALUE, CRITIC))
                parameter.requires_grad_(trained and id(parameter) not in copies)

        # A norm has a fast pass only while it is frozen, so what is trained is settled first.
        with self.precision():
            use_fast_passes(self.model)
        self._layers = switchable(self.model)
        self.eval()

    def _add_value(
        self,
        value: str,
        init: str,
        lora: LoraConfig,
        reward_adapter: str | Path | None,
    ) -> None:
        assert self.value_head is not None
        head = self.value_head
        last = head.last if isinstance(head, ValueHead) else head
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
        if init == "reward":
            if reward_adapter is None or self.reward_head is None or value != "adapter":
                raise ValueError("value_init='reward' needs value='adapter' and a reward adapter")
            if isinstance(self.value_head, ValueHead):
                raise ValueError("value_init='reward' needs a linear value head")
            self._add(reward_adapter, VALUE)
            with torch.no_grad():
                self.value_head.weight.copy_(self.gain * self.reward_head.weight)
                self.value_head.bias.fill_(self.bias)
        elif value == "adapter":
            self.model = put_adapter(self.model, self._without_head(lora), VALUE)
            self.base_weights.check("the value's new adapter")

    def _without_head(self, lora: LoraConfig) -> LoraConfig:
        """Configure the value's adapter: the policy's without the output head."""
        targets = lora.target_modules
        if not isinstance(targets, set | list):
            return lora

        head = self._causal.get_output_embeddings()
        own = {
            name.rpartition(".")[2]
            for name, module in self._causal.named_modules()
            if module is head
        }

        kept = [target for target in targets if target.rpartition(".")[2] not in own]
        if not kept:
            raise InputError(
                "lora_target_modules: with only the output head, a value adapter would be empty "
                "(add layers, or pass --value trunk)",
                "lora_target_modules",
            )

        made: Any = copy.deepcopy(lora)
        made.target_modules = set(kept)
        return made

    @property
    def _causal(self) -> PreTrainedModel:
        return base_of(self.model)

    def _model_of(self, role: str) -> str:
        return "base"

    def act_as(self, role: str) -> PreTrainedModel:
        """Activate this role's adapter, and return the causal language model."""
        adapter = self._adapter_of[role]
        switch(self._layers, adapter)
        self.overrides.lay(adapter)
        return self._causal

    def trunk(self, role: str, read: Read, **inputs: object) -> Tensor:
        return last_states(trunk_of(self.act_as(role)), read, **inputs)

    @contextmanager
    def sampling(self, role: str) -> Iterator[None]:
        adapter = self._adapter_of[role]
        with ExitStack() as held:
            held.enter_context(super().sampling(role))
            if adapter is not None:
                with self.precision():
                    held.enter_context(adapter_held(self._causal, adapter))
            yield

    def language_model(self, role: str) -> PreTrainedModel:
        return self.act_as(role)

    def output_head(self, role: str) -> nn.Module:
        return self._causal.get_output_embeddings()

    def read_values(self, hidden: Tensor) -> Tensor:
        assert self.value_head is not None
        return self.value_head(hidden).squeeze(-1)

    def read_scores(self, hidden: Tensor) -> Tensor:
        assert self.reward_head is not None
        return self.reward_head(hidden).squeeze(-1)

    def language_models(self) -> list[PreTrainedModel]:
        return [self._causal]

    def identity(self) -> dict[str, object]:
        weight = next(p for p in self._causal.parameters() if not p.requires_grad)
        return {
            "base": base_fingerprint(self.base_name) or self.base_name,
            "base_type": str(weight.dtype)
            + (" 4bit" if getattr(self._causal, "is_loaded_in_4bit", False) else ""),
            "adapters": {
                name: [config.r, config.lora_alpha, str(self._targets(config))]
                for name, config in self.adapters.items()
            },
            "shared_trunk": self.shares_trunk,
            "frozen": self._frozen_digest(),
        }

    def _frozen_digest(self) -> str:
        """Hash the reward and reference adapters and the rewards' heads."""
        digest = hashlib.sha256()
        frozen: list[tuple[str, Tensor]] = [
            (name, p) for name, p in self.named_parameters() if self.is_frozen_adapter(name, p)
        ]
        for name, head, *_ in self._rewards.values():
            frozen.append((f"{name}_head.weight", head.weight))
        for name, tensor in frozen:
            digest.update(name.encode())
            digest.update(tensor.detach().float().cpu().numpy().tobytes())
        return digest.hexdigest()[:16]

    def policy_facts(self) -> dict[str, object]:
        """Return, as JSON, what is needed to write the policy's adapter.

        Returns:
            config: the content of ``adapter_config.json``; overrides: the keys of those weights, in
            order; frozen: the ones among them that are not trained; start: as in toolkit.json.
        """
        config = self.model.peft_config[POLICY].to_dict() | {"bias": self.policy_bias}
        keys = self.overrides.keys.get(POLICY, [])
        held = zip(keys, self.overrides.tensors(POLICY), strict=True)
        return {
            "config": json.loads(json.dumps(config, default=_plain)),
            "overrides": keys,
            "frozen": [key for key, tensor in held if not tensor.requires_grad],
            **self.start,
        }

    def is_frozen_adapter(self, name: str, parameter: nn.Parameter) -> bool:
        if self.moves_reference and of_adapter(name, REFERENCE):
            return False
        return not parameter.requires_grad and any(
            of_adapter(name, adapter) for adapter in self.adapters
        )

    @staticmethod
    def _targets(config: LoraConfig) -> list[str] | str | None:
        targets = config.target_modules
        return sorted(targets) if isinstance(targets, set | list) else targets

    def save(self, folder: str | Path, **facts: object) -> None:
        """Write ``folder/policy``, which plain peft loads, and ``value`` or ``critic`` if any."""
        folder = Path(folder)
        names = [POLICY, *(name for name in (VALUE, CRITIC) if name in self.adapters)]
        self._save_adapters(folder, names)

        if self.value_head is not None:
            (folder / VALUE).mkdir(exist_ok=True)
            state = {k: v.contiguous() for k, v in self.value_head.state_dict().items()}
            save_file(state, folder / VALUE / "value_head.safetensors")

        write_facts(folder / POLICY, self.base_name, **self.start, **facts)

    def save_critic(self, folder: str | Path, **facts: object) -> None:
        """Add the critic's heads and facts to ``folder/critic``, where ``save`` put its adapter."""
        assert self.critic is not None
        self.critic.save(Path(folder) / CRITIC)
        write_facts(Path(folder) / CRITIC, self.base_name, **facts)

    def save_policy(self, folder: str | Path) -> None:
        """Write ``folder/policy`` alone, as ``save`` does, but without the toolkit's facts."""
        self._save_adapters(Path(folder), [POLICY])

    def _save_adapters(self, folder: Path, names: list[str]) -> None:
        for name in names:
            self.model.peft_config[name].base_model_name_or_path = self.base_name
        self.act_as(POLICY)

        # Leave out copies of the base's embedding, which peft would add for some layers.
        self.model.save_pretrained(
            str(folder), selected_adapters=names, save_embedding_layers=False
        )
        self._save_overrides(folder / POLICY)
        for template in folder.rglob("README.md"):  # peft's template, which is not filled in
            template.unlink()

    def _save_overrides(self, folder: Path) -> None:
        """Add the policy's biases and other overrides to its file, under peft's keys."""
        keys, tensors = self.overrides.keys.get(POLICY, []), self.overrides.tensors(POLICY)
        if not keys:
            return
        path = folder / "adapter_model.safetensors"
        own = {key: t.detach().contiguous() for key, t in zip(keys, tensors, strict=True)}
        save_file(load_file(path) | own, path, metadata={"format": "pt"})
        config = read_object(folder / "adapter_config.json", "adapter")
        write_json(folder / "adapter_config.json", config | {"bias": self.policy_bias})


def _of_role(name: str, role: str) -> str:
    """Return the name of the same parameter in another role's adapter than the policy's."""
    return f"{name}.".replace(f".{POLICY}.", f".{role}.").removesuffix(".")


def _without_first(gradient: Tensor, axis: int, count: int) -> Tensor:
    """Return a gradient whose first rows (or columns) are zero."""
    gradient = gradient.clone()
    gradient.narrow(axis, 0, count).zero_()
    return gradient


def _key_of(folder: str | Path) -> str:
    return str(Path(folder).resolve())


def _plain(value: object) -> object:
    """Convert a set or an enumeration for JSON."""
    return sorted(value) if isinstance(value, set) else getattr(value, "value", str(value))
