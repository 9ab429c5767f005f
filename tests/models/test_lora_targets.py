"""LoRA goes on layers of the language model, where it does what peft says."""

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as tf
from torch import nn

from tests.models.test_families import MECHANISMS, SMALL, ministral_3, save
from toolkit.errors import InputError
from toolkit.models.adapters import lora_config
from toolkit.models.loading import load_base
from toolkit.models.lora_targets import language_lora, linear_targets
from toolkit.models.roles import Roles


def test_adapters_are_on_the_language_model_alone(tmp_path: Path) -> None:
    """Layers of the vision tower have the same names, and no text ever reaches them."""
    name = save(ministral_3(), tmp_path)
    base = load_base(name, "fp32")
    tower = {n for n, m in base.named_modules() if isinstance(m, nn.Linear) and "vision" in n}
    targets = linear_targets(base)
    assert tower and len(targets) == 14
    assert all(n.startswith("model.language_model.layers") for n in targets)
    named = language_lora(base, lora_config(4, 8, "q_proj,lm_head", "CAUSAL_LM")).target_modules
    layers = [f"model.language_model.layers.{i}.self_attn.q_proj" for i in range(2)]
    assert named == {*layers, "lm_head"}
    with pytest.raises(InputError, match="no layer of the language model has this name"):
        language_lora(base, lora_config(4, 8, "patch_conv", "CAUSAL_LM"))


def test_layers_that_no_pass_calls_get_no_adapter(demo_model: str) -> None:
    """LoRA there would be saved and counted, and never learn."""
    base: Any = load_base(demo_model, "fp32")
    everywhere = linear_targets(base)
    base.model.layers[1].speculative = nn.Linear(4, 4)
    state = torch.get_rng_state()
    assert linear_targets(base) == everywhere
    assert torch.equal(torch.get_rng_state(), state)
    assert not any(module._forward_hooks for module in base.modules())


def test_layers_that_read_past_an_adapter_get_none(tmp_path: Path) -> None:
    name = save(MECHANISMS["a cache by another name"](), tmp_path)
    base = load_base(name, "fp32")
    assert {n.rpartition(".")[2] for n in linear_targets(base)} == {"in_proj"}
    with pytest.raises(InputError, match="x_proj: MambaForCausalLM reads its weight and bypasses"):
        Roles(base, lora_config(4, 8, "in_proj,x_proj", "CAUSAL_LM"))
    with pytest.raises(InputError, match="mamba model bypasses bitsandbytes when it reads dt_proj"):
        load_base(name, "4bit")


def test_experts_and_routers_are_named_only_where_peft_does_them_right(tmp_path: Path) -> None:
    name = save(MECHANISMS["experts"](), tmp_path)
    with pytest.raises(InputError, match="gate: MixtralForCausalLM has experts in 4 bits"):
        Roles(load_base(name, "4bit"), lora_config(4, 8, "q_proj,gate", "CAUSAL_LM"))
    router = tf.Llama4ForCausalLM(
        tf.Llama4TextConfig(
            **SMALL,
            intermediate_size_mlp=96,
            head_dim=16,
            num_local_experts=2,
            num_experts_per_tok=1,
            moe_layers=[1],
        )
    )
    with pytest.raises(
        InputError, match="has a Llama4Router there, which does more than a linear layer"
    ):
        language_lora(router, lora_config(4, 8, "q_proj,router", "CAUSAL_LM"))


def test_a_name_of_no_layer_is_refused_beside_one_that_is_right(demo_model: str) -> None:
    lora = lora_config(4, 8, "q_proj,v_porj", "CAUSAL_LM")
    with pytest.raises(InputError, match="no layer called v_porj .* q_proj, k_proj, v_proj"):
        language_lora(load_base(demo_model, "fp32"), lora)
