"""One base, four roles: policy, reference, value and reward by adapter and head.

    role        adapter on the base            head
    policy      "policy"                       the base's own output head
    reference   none                           the base's own output head
    value       "value", or the policy's       one fp32 output, starts at zero
    reward      "reward", frozen               one fp32 output, gain and bias behind it

The base is held once, whatever the precision. Each method says which role it plays and switches to
that role's adapter first; nothing is switched back, for every other method does the same.
"""

from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.tuners_utils import BaseTunerLayer
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import PreTrainedModel

from toolkit.maths.sequences import last_real_token, position_ids
from toolkit.models.adapters import (
    absolute_if_local,
    add_saved_adapter,
    lora_config,
    read_facts,
    write_facts,
)
from toolkit.models.loading import Fp32Head


class Roles(nn.Module):
    """The base with its adapters and heads.

    Args:
        base: a frozen causal language model.
        lora: the configuration of the adapters that are trained.
        value: "adapter" (its own), "trunk" (a head on the policy's hidden states), or None.
        reward_adapter: folder of a trained reward adapter, or None.
        policy_adapter: folder of an adapter that the policy starts from, or None for a new one.
    """

    def __init__(
        self,
        base: PreTrainedModel,
        lora: LoraConfig | None = None,
        value: str | None = None,
        reward_adapter: str | Path | None = None,
        policy_adapter: str | Path | None = None,
    ) -> None:
        super().__init__()
        lora = lora or lora_config(8, 16, "all-linear", "CAUSAL_LM")
        self.base_name = absolute_if_local(base.name_or_path or "")
        hidden_size = base.config.get_text_config().hidden_size
        device = next(base.parameters()).device
        self.model: PeftModel = get_peft_model(base, lora, adapter_name="policy")
        self.value_head: Fp32Head | None = None
        self.reward_head: Fp32Head | None = None
        self.gain, self.bias = 1.0, 0.0
        if policy_adapter is not None:
            self.model.delete_adapter("policy")
            add_saved_adapter(self.model, policy_adapter, "policy")
        if value == "adapter":
            self.model.add_adapter("value", lora)
        if value is not None:
            self.value_head = Fp32Head(hidden_size, 1).to(device)
            nn.init.zeros_(self.value_head.weight)
            nn.init.zeros_(self.value_head.bias)
        if reward_adapter is not None:
            self._add_reward(reward_adapter, hidden_size, device)
        self._value_adapter = "value" if value == "adapter" else "policy"
        self._layers = [m for m in self.model.modules() if isinstance(m, BaseTunerLayer)]
        trained = ("policy", "value")
        for name, parameter in self.model.named_parameters():
            parameter.requires_grad_(any(f".{adapter}." in name for adapter in trained))
        self.eval()
        self.act_as_policy()

    def _add_reward(self, folder: str | Path, hidden_size: int, device: torch.device) -> None:
        left_over = add_saved_adapter(self.model, folder, "reward")
        (weight,) = [value for key, value in left_over.items() if key.endswith("score.weight")]
        self.reward_head = Fp32Head(hidden_size, 1, bias=False).to(device).requires_grad_(False)
        self.reward_head.weight.copy_(weight)
        facts = read_facts(folder)
        self.gain, self.bias = facts.get("gain", 1.0), facts.get("bias", 0.0)

    @property
    def _causal(self) -> PreTrainedModel:
        base = self.model.get_base_model()
        assert isinstance(base, PreTrainedModel)
        return base

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device

    @property
    def shares_trunk(self) -> bool:
        """Whether policy and value come from one pass."""
        return self._value_adapter == "policy"

    def trainable(self) -> list[tuple[str, nn.Parameter]]:
        """Names and parameters that PPO trains: policy and value adapters, and the value head."""
        return [(name, p) for name, p in self.named_parameters() if p.requires_grad]

    def _activate(self, adapter: str | None) -> None:
        # peft's set_adapter also flips requires_grad, and a leaf frozen between forward and
        # backward gets no gradient, silently; so only the two flags that its forward reads are set.
        # Seen in peft 0.21.2, peft/tuners/lora/bnb.py; a test holds this against set_adapter.
        for layer in self._layers:
            layer._disable_adapters = adapter is None
            if adapter is not None:
                layer._active_adapter = [adapter]

    def act_as_policy(self) -> nn.Module:
        """The causal language model with the policy's adapter on."""
        self._activate("policy")
        return self._causal

    def act_as_reference(self) -> nn.Module:
        """The causal language model with every adapter off: the base, bit for bit."""
        self._activate(None)
        return self._causal

    def _hidden(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Last hidden states (B, T, d) under whatever adapter is active, any side padded."""
        output = self._causal.base_model(
            input_ids=ids,
            attention_mask=mask.long(),
            position_ids=position_ids(mask),
            use_cache=False,
        )
        return output.last_hidden_state

    def _logits(self, hidden: Tensor, completion_length: int) -> Tensor:
        """Logits (B, C, V) for the completion's tokens only: the state before each predicts it."""
        return self._causal.get_output_embeddings()(hidden[:, -completion_length - 1 : -1])

    def _values(self, hidden: Tensor, completion_length: int) -> Tensor:
        assert self.value_head is not None
        return self.value_head(hidden[:, -completion_length - 1 : -1]).squeeze(-1)

    def policy_logits(self, ids: Tensor, mask: Tensor, completion_length: int) -> Tensor:
        """Policy: ids int and mask bool (B, T), prompt then completion -> logits (B, C, V)."""
        self._activate("policy")
        return self._logits(self._hidden(ids, mask), completion_length)

    def reference_logits(self, ids: Tensor, mask: Tensor, completion_length: int) -> Tensor:
        """Reference: as policy_logits, adapters off."""
        self._activate(None)
        return self._logits(self._hidden(ids, mask), completion_length)

    def values(self, ids: Tensor, mask: Tensor, completion_length: int) -> Tensor:
        """Value: (B, T) -> (B, C) fp32, V of the state before each completion token."""
        self._activate(self._value_adapter)
        return self._values(self._hidden(ids, mask), completion_length)

    def policy_logits_and_values(
        self, ids: Tensor, mask: Tensor, completion_length: int
    ) -> tuple[Tensor, Tensor]:
        """Policy and value from one pass where they share a trunk, else from two."""
        self._activate("policy")
        hidden = self._hidden(ids, mask)
        logits = self._logits(hidden, completion_length)
        if not self.shares_trunk:
            return logits, self.values(ids, mask, completion_length)
        return logits, self._values(hidden, completion_length)

    def scores(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Reward: (B, T) -> (B,) fp32, gain * head(state of the last real token) + bias."""
        if self.reward_head is None:
            raise ValueError("no reward adapter: pass reward_adapter when building the roles")
        self._activate("reward")
        hidden = self._hidden(ids, mask)
        rows = torch.arange(ids.shape[0], device=ids.device)
        raw = self.reward_head(hidden[rows, last_real_token(mask)]).squeeze(-1)
        return self.gain * raw + self.bias

    def save_adapters(self, folder: str | Path, **facts: Any) -> None:
        """Write ``folder/policy`` (plain peft loads it) and, if there is one, ``folder/value``."""
        folder = Path(folder)
        names = ["policy"] + (["value"] if not self.shares_trunk else [])
        for name in names:
            self.model.peft_config[name].base_model_name_or_path = self.base_name
        self._activate("policy")
        self.model.save_pretrained(str(folder), selected_adapters=names)
        if self.value_head is not None:
            (folder / "value").mkdir(exist_ok=True)
            state = {k: v.contiguous() for k, v in self.value_head.state_dict().items()}
            save_file(state, folder / "value" / "value_head.safetensors")
        for template in folder.rglob("README.md"):  # peft's, with nothing filled in
            template.unlink()
        write_facts(folder / "policy", self.base_name, **facts)
