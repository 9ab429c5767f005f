"""Whole models for the four roles, as TRL 1.12's PPOTrainer took them.

This is for scripts written for that trainer. ``Roles`` does the same work on one base with a
fraction of the memory, and is what the recipes use.
"""

import copy
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel, get_peft_model
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn
from transformers import PreTrainedModel

from toolkit.errors import InputError
from toolkit.models.actors import POLICY, REFERENCE, REWARD, VALUE, Actors
from toolkit.models.families import trunk_of
from toolkit.models.fast import Read, last_states, use_fast_passes
from toolkit.models.loading import cure_cpu_repacking
from toolkit.models.peft_wrappers import of_adapter, switch, switchable
from toolkit.models.self_checks import check_passes

# Initializations of LoRA that change the base's own weights, also with the adapter off.
CHANGES_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")


def _stays_on(policy: PeftModel) -> str | None:
    """Name what would remain of the policy's adapters when they are switched off, or None."""
    known = {id(module) for module in switchable(policy)}
    for module in policy.modules():
        if isinstance(module, BaseTunerLayer) and id(module) not in known:
            return f"a {type(module).__name__}"
    for name, config in policy.peft_config.items():
        start = getattr(config, "init_lora_weights", None)
        if getattr(config, "bias", "none") != "none":
            return f"the biases of adapter {name}"
        if isinstance(start, str) and start.lower().startswith(CHANGES_BASE):
            return f"what init_lora_weights={start!r} took out of the base"
        if getattr(config, "layer_replication", None):
            return "replicated layers"
    for name, parameter in policy.named_parameters():
        if parameter.requires_grad and not any(of_adapter(name, a) for a in policy.peft_config):
            return f"the base's {name}, which is trained"
    return None


def _classifier(model: Any, what: str) -> Any:
    """Return the sequence classifier in ``model``, below its adapter if it has one.

    Raises:
        InputError: it has no head called score with one output.
    """
    if isinstance(model, PeftModel):
        if model.active_peft_config.is_prompt_learning:
            raise InputError(f"{what}: prompt tuning is not supported (merge it, or use LoRA)")
        model = model.get_base_model()
    kind = type(model).__name__
    head = getattr(model, "score", None)
    if not isinstance(head, nn.Module) or not hasattr(model, "base_model_prefix"):
        raise InputError(
            f"{what}: a {kind} has no head called score (load it with "
            "AutoModelForSequenceClassification with num_labels=1)"
        )
    labels = getattr(model.config, "num_labels", 1)
    if labels != 1:
        raise InputError(f"{what}: its head has {labels} outputs (load it with num_labels=1)")
    return model


class SeparateModels(Actors):
    """Policy, reference, value and reward model as separate models.

    Args:
        policy: a causal language model, plain or with a peft adapter; parameters that require a
            gradient are trained.
        reference: another one. None uses the policy with its adapter off (or with the adapter
            ``ref_adapter_name`` on), or a copy of a plain policy.
        reward_model: a sequence classifier with one output, plain or with a peft adapter, or None
            (functions score).
        value_model: another one; parameters that require a gradient are trained.
        peft_config: puts an adapter on a plain policy.
        autocast_dtype: run every pass under autocast to this type.
        model_adapter_name, ref_adapter_name: names of adapters of the policy.

    Raises:
        InputError: the models do not fit together; the message says why.
    """

    scores_stop = True  # TRL's reward models are trained with the end token visible

    def __init__(
        self,
        policy: Any,
        reference: PreTrainedModel | None,
        reward_model: nn.Module | None,
        value_model: nn.Module | None,
        peft_config: Any = None,
        autocast_dtype: torch.dtype | None = None,
        model_adapter_name: str | None = None,
        ref_adapter_name: str | None = None,
    ) -> None:
        super().__init__()
        if reference is policy:
            raise InputError("model and ref_model are the same object (pass a copy, or None)")
        if value_model is not None and value_model is reward_model:
            raise InputError("value_model and reward_model are the same object (pass a copy)")
        if value_model is None:
            raise InputError(
                "value_model: a plain model needs one (pass it, or build Roles on one base)"
            )
        given = {
            "model": policy,
            "ref_model": reference,
            "reward_model": reward_model,
            "value_model": value_model,
        }

        given = {name: model for name, model in given.items() if model is not None}
        for model in given.values():  # before the first pass, which would repack 4-bit weights
            cure_cpu_repacking(model)
        if peft_config is not None:
            if isinstance(policy, PeftModel):
                raise InputError(
                    "peft_config: the model already has an adapter (pass one of the two)"
                )
            policy = given["model"] = get_peft_model(policy, peft_config)

        self.autocast_dtype = autocast_dtype
        self._policy_adapter: str | None = None
        self._reference_adapter: str | None = None
        if isinstance(policy, PeftModel):
            self._name_adapters(policy, model_adapter_name, ref_adapter_name)
            remains = None if reference is not None else _stays_on(policy)
            if remains is not None:
                raise InputError(
                    "the policy's adapter cannot be switched off for the reference: "
                    f"{remains} would remain (pass a ref_model)"
                )
        elif model_adapter_name or ref_adapter_name:
            raise InputError("model_adapter_name, ref_adapter_name: the model has no adapter")
        elif reference is None:
            reference = copy.deepcopy(policy).requires_grad_(False)

        self._check_apart(given)
        self.policy, self.reference = policy, reference
        self.value_model, self.reward_model = value_model, reward_model
        for frozen in (reference, reward_model):
            if frozen is not None:
                frozen.requires_grad_(False)

        self.has_value, self.has_reward = True, reward_model is not None
        for role in (VALUE, REWARD) if self.has_reward else (VALUE,):
            self._classifier(role)
        if not any(p.requires_grad for p in value_model.parameters()):
            raise InputError(
                "value_model: nothing in it requires a gradient, so it would not learn (load an "
                "adapter with is_trainable=True)"
            )

        self._layers: list[Any] = []
        if isinstance(policy, PeftModel):
            self._layers = switchable(policy)
        for model in (policy, reference, value_model, reward_model):
            if model is not None:
                use_fast_passes(model)

        for module in self.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0

        self.eval().to(next(policy.parameters()).device)
        check_passes(self, POLICY)
        check_passes(self, REFERENCE)

    def _name_adapters(self, policy: PeftModel, name: str | None, reference: str | None) -> None:
        """Decide which of the policy's adapters is trained, and which is the reference."""
        if policy.active_peft_config.is_prompt_learning:
            raise InputError(
                "the model's adapter is prompt tuning, which is not supported (LoRA is)"
            )

        for field, wanted in (("model_adapter_name", name), ("ref_adapter_name", reference)):
            if wanted is not None and wanted not in policy.peft_config:
                there = ", ".join(policy.peft_config)
                raise InputError(
                    f"{field}: there is no adapter {wanted!r} (there are: {there})", field
                )

        active = policy.active_adapters
        if name is None and len(active) != 1:
            raise InputError(
                f"{len(active)} adapters are active (name the one to train as model_adapter_name)",
                "model_adapter_name",
            )

        self._policy_adapter, self._reference_adapter = name or active[0], reference
        if self._policy_adapter == reference:
            raise InputError(
                f"ref_adapter_name: {reference!r} is trained itself, so the KL would always be 0",
                "ref_adapter_name",
            )

        if name is not None and name != active[0]:
            policy.set_adapter(name)  # it is trained from now on

    @staticmethod
    def _check_apart(models: dict[str, Any]) -> None:
        """Refuse two models that share weights if one is trained and the other is frozen."""
        trained: dict[int, str] = {}
        for name in ("model", "value_model"):
            for parameter in models[name].parameters():
                other = trained.setdefault(id(parameter), name)
                if parameter.requires_grad and other != name:
                    raise InputError(f"{name} and {other} share weights (load each separately)")
        for name in ("ref_model", "reward_model"):
            for parameter in models[name].parameters() if name in models else ():
                if parameter.requires_grad and id(parameter) in trained:
                    raise InputError(
                        f"{trained[id(parameter)]} and {name} share weights that are trained (load "
                        "each separately)"
                    )

    @property
    def _causal(self) -> Any:
        policy = self.policy
        return policy.get_base_model() if isinstance(policy, PeftModel) else policy

    def _act_as(self, role: str) -> Any:
        """Activate the adapter of policy or reference, and return the language model."""
        if role == REFERENCE and self.reference is not None:
            return self.reference
        switch(self._layers, self._policy_adapter if role == POLICY else self._reference_adapter)
        return self._causal

    def _classifier(self, role: str) -> Any:
        """Return the role's sequence classifier; its adapter is always on."""
        model = self.value_model if role == VALUE else self.reward_model
        return _classifier(model, f"{role}_model")

    def trunk(self, role: str, read: Read, **inputs: Any) -> Tensor:
        if role in (VALUE, REWARD):
            model = self._classifier(role)
            return last_states(getattr(model, model.base_model_prefix), read, **inputs)
        return last_states(trunk_of(self._act_as(role)), read, **inputs)

    def language_model(self, role: str) -> Any:
        return self._act_as(role)

    def output_head(self, role: str) -> nn.Module:
        return self._act_as(role).get_output_embeddings()

    def read_values(self, hidden: Tensor) -> Tensor:
        return self._classifier(VALUE).score(hidden).float().squeeze(-1)

    def read_scores(self, hidden: Tensor) -> Tensor:
        return self._classifier(REWARD).score(hidden).float().squeeze(-1)

    def language_models(self) -> list[Any]:
        return [self._causal, self._classifier(VALUE)]

    def identity(self) -> dict[str, Any]:
        return {"models": {name: list(p.shape) for name, p in self.trainable()}}

    def save(self, folder: str | Path, **facts: Any) -> None:
        """Write the policy, or its adapter, into ``folder``."""
        self._act_as(POLICY)
        self.policy.save_pretrained(str(folder))
        (Path(folder) / "README.md").unlink(
            missing_ok=True
        )  # peft's template, which is not filled in
