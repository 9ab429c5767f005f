"""What a model does otherwise than its config says is seen when it is loaded."""

from typing import Any

import pytest
import torch
import transformers as tf

from tests.models.conftest import LORA, roles_of
from toolkit.errors import InputError
from toolkit.models.families import LogitRule
from toolkit.models.loading import load_base
from toolkit.models.roles import Roles
from toolkit.models.self_checks import check_passes


def test_a_cap_that_the_config_does_not_name_is_seen_whatever_the_logits(demo_model: str) -> None:
    """The embedded model's logits stay far below 300, so the numbers alone would not tell."""

    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        output = tf.LlamaForCausalLM.forward(self, *args, **kwargs)
        output.logits = 300 * torch.tanh(output.logits / 300)
        return output

    with pytest.raises(InputError, match="unchanged, but the model does something else"):
        check_passes(roles_of(demo_model, forward=forward), "policy")


def test_a_rule_of_the_config_that_the_model_leaves_out_is_left_out_for_all_roles(
    demo_model: str,
) -> None:
    """As in Aya Vision: its language model's config has a factor, and the whole does not use it."""
    base = load_base(demo_model, "fp32")
    base.config.logit_scale = 0.25
    roles = Roles(base, LORA)
    assert roles.logit_rule("policy") == roles.logit_rule("reference") == LogitRule()


def test_a_head_that_reads_something_else_is_seen(demo_model: str) -> None:
    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        output = self.model(*args, **kwargs)
        logits = self.lm_head(output.last_hidden_state * 1.1)
        return tf.modeling_outputs.CausalLMOutputWithPast(logits=logits)

    with pytest.raises(InputError, match="reads something else than its trunk's last states"):
        check_passes(roles_of(demo_model, forward=forward), "policy")


def test_a_cache_that_is_swallowed_is_seen(demo_model: str) -> None:
    """As RWKV and Mamba did: sampled log-probs were nats off, and PPO went on."""
    roles = roles_of(demo_model)
    honest = roles.trunk

    def forgetful(role: str, last: int, **inputs: Any) -> torch.Tensor:
        inputs.pop("past_key_values", None)
        inputs["attention_mask"] = inputs["attention_mask"][:, -inputs["input_ids"].shape[1] :]
        return honest(role, last, **inputs)

    roles.trunk = forgetful
    with pytest.raises(InputError, match="log-probs of sampling with its cache differ"):
        check_passes(roles, "policy")


def test_sampling_past_the_adapter_is_seen_before_the_adapter_says_anything(
    demo_model: str,
) -> None:
    """A new adapter changes nothing, so the checks give it something to say."""
    roles = roles_of(demo_model)
    honest = roles.step
    roles.step = lambda role: honest("reference")
    with pytest.raises(InputError, match="log-probs of sampling with its cache differ"):
        check_passes(roles, "policy")


def test_a_family_whose_code_fails_under_a_cache_is_refused_in_a_line(demo_model: str) -> None:
    roles = roles_of(demo_model)

    def failing(role: str, last: int, **inputs: Any) -> torch.Tensor:
        raise IndexError("list index out of range")

    roles.trunk = failing
    with pytest.raises(InputError, match="OddForCausalLM: a pass .* list index out of range"):
        check_passes(roles, "policy")


def test_positions_that_padding_shifts_are_seen(demo_model: str) -> None:
    """A prompt with padding in front of it must read as it does without."""
    roles = roles_of(demo_model)
    honest = roles.trunk

    def blind(role: str, last: int, **inputs: Any) -> torch.Tensor:
        if inputs.get("past_key_values") is None:
            inputs["attention_mask"] = torch.ones_like(inputs["attention_mask"])
        return honest(role, last, **inputs)

    roles.trunk = blind
    with pytest.raises(InputError, match="rows padded on the left differ"):
        check_passes(roles, "policy")


def test_the_checks_leave_a_new_adapter_at_its_start(demo_model: str) -> None:
    """They fill B with noise, or a pass that skipped the adapter would go unseen."""
    roles = Roles(load_base(demo_model, "fp32"), LORA, value="adapter")
    assert all(not p.any() for n, p in roles.named_parameters() if "lora_B" in n)
    state = torch.get_rng_state()
    check_passes(roles, "policy")
    assert torch.equal(torch.get_rng_state(), state)
