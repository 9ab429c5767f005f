"""Whole models for the four roles, as TRL 1.12's PPOTrainer took them.

For scripts written for that trainer. ``Roles`` does the same work on one base in a fraction of the
memory, and is what the recipes use.
"""

import copy
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel, get_peft_model
from peft.tuners.lora import LoraLayer
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import AuxiliaryTrainingWrapper
from torch import Tensor, nn
from transformers import PreTrainedModel

from toolkit.errors import InputError
from toolkit.models.actors import POLICY, REFERENCE, REWARD, VALUE, Actors
from toolkit.models.decoder import last_states, lean_decoder
from toolkit.models.lean import make_lean


def _is_plain_lora(policy: PeftModel) -> bool:
    layers = [m for m in policy.modules() if isinstance(m, BaseTunerLayer)]
    saved_whole = any(isinstance(m, AuxiliaryTrainingWrapper) for m in policy.modules())
    return not saved_whole and all(isinstance(layer, LoraLayer) for layer in layers)


class SeparateModels(Actors):
    """Policy, reference, value and reward model, each a model of its own.

    Args:
        policy: a causal language model, plain or with a peft adapter; what requires a gradient in
            it is trained.
        reference: another one; None for the policy with its adapter off (or with the adapter
            ``ref_adapter_name`` on), or, of a plain policy, for a copy of it.
        reward_model: a sequence classifier with one output, or None (functions score).
        value_model: another one, trained.
        peft_config: puts an adapter on a plain policy.
        autocast_dtype: run every pass under autocast to this type.
        model_adapter_name, ref_adapter_name: of adapters that the policy has.

    Raises:
        InputError: models that do not go together, with what is wrong.
    """

    scores_stop = True  # TRL's reward models are trained with the end-of-text token in sight

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
            raise InputError("model and ref_model are one object (pass a copy, or None)")
        if value_model is not None and value_model is reward_model:
            raise InputError("value_model and reward_model are one object (pass a copy)")
        if value_model is None:
            raise InputError("value_model: a plain model needs one (or build Roles on one base)")
        if peft_config is not None:
            if isinstance(policy, PeftModel):
                raise InputError("peft_config: the model has an adapter already (pass one of both)")
            policy = get_peft_model(policy, peft_config)
        self.autocast_dtype = autocast_dtype
        has_adapter = isinstance(policy, PeftModel)
        if has_adapter and reference is None and not _is_plain_lora(policy):
            raise InputError(
                "the policy's adapter is more than LoRA (modules_to_save, or another method) and "
                "cannot be switched off for the reference: pass a ref_model"
            )
        if reference is None and not has_adapter:
            reference = copy.deepcopy(policy).requires_grad_(False)
        self.policy, self.reference = policy, reference
        self.value_model, self.reward_model = value_model, reward_model
        for frozen in (reference, reward_model):
            if frozen is not None:
                frozen.requires_grad_(False)
        self.has_value, self.has_reward = True, reward_model is not None
        self._layers = make_lean(policy) if has_adapter else []
        for model in (policy, reference, value_model, reward_model):
            if model is not None:
                lean_decoder(model)
        self._policy_adapter = model_adapter_name or (policy.active_adapter if has_adapter else "")
        self._reference_adapter = ref_adapter_name
        for module in self.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0
        self.eval().to(next(policy.parameters()).device)
        self.check_head(self._act_as(POLICY))

    @property
    def _causal(self) -> Any:
        policy = self.policy
        return policy.get_base_model() if isinstance(policy, PeftModel) else policy

    def _act_as(self, role: str) -> Any:
        """The language model of policy or reference, the right adapter on."""
        if role == REFERENCE and self.reference is not None:
            return self.reference
        adapter = self._policy_adapter if role == POLICY else self._reference_adapter
        for layer in self._layers:
            layer._disable_adapters = adapter is None
            if adapter is not None:
                layer._active_adapter = [adapter]
        return self._causal

    def _classifier(self, role: str) -> Any:
        return self.value_model if role == VALUE else self.reward_model

    def trunk(self, role: str, last: int, **inputs: Any) -> Tensor:
        if role in (VALUE, REWARD):
            model = self._classifier(role)
            return last_states(getattr(model, model.base_model_prefix), last, **inputs)
        return last_states(self._act_as(role).base_model, last, **inputs)

    def output_head(self, role: str) -> nn.Module:
        model = self.reference if role == REFERENCE and self.reference is not None else self._causal
        return model.get_output_embeddings()

    def read_values(self, hidden: Tensor) -> Tensor:
        return self._classifier(VALUE).score(hidden).float().squeeze(-1)

    def read_scores(self, hidden: Tensor) -> Tensor:
        return self._classifier(REWARD).score(hidden).float().squeeze(-1)

    def language_models(self) -> list[Any]:
        return [self._causal, self.value_model]

    def identity(self) -> dict[str, Any]:
        return {"models": {name: list(p.shape) for name, p in self.trainable()}}

    def save(self, folder: str | Path, **facts: Any) -> None:
        """Write the policy, or its adapter, into ``folder``."""
        self._act_as(POLICY)
        self.policy.save_pretrained(str(folder))
        (Path(folder) / "README.md").unlink(missing_ok=True)  # peft's, with nothing filled in
