"""What tests of several modules share: plans and configurations of small models."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    MixtralConfig,
    PhiConfig,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
)

from toolkit.models.adapters import lora_config
from toolkit.models.loading import load_base
from toolkit.models.memory import MemoryPlan, plan_memory
from toolkit.models.roles import Roles

LORA = lora_config(4, 8, "all-linear", "CAUSAL_LM")

# Plans of memory.

PLANNED = lora_config(8, 16, "all-linear", "CAUSAL_LM")


def plan_of(config: object, micro: int = 8, checkpointing: bool = False, **kwargs) -> MemoryPlan:  # noqa: ANN003
    options = {
        "precision": "fp32",
        "lora": PLANNED,
        "value": "trunk",
        "prompt_length": 16,
        "response_length": 8,
        "rollout_batch": 8,
    }
    return plan_memory(config, micro_batch=micro, checkpointing=checkpointing, **(options | kwargs))


def really_kept(roles: Roles, batch: int, prompt: int, response: int) -> int:
    """Bytes that autograd keeps of the policy's pass on real weights, parameters left out."""
    held = {p.untyped_storage().data_ptr() for p in roles.parameters()}
    seen: dict[int, torch.Tensor] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.untyped_storage().data_ptr() not in held:
            seen[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    ids, mask = passage_of(batch, prompt + response)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        outputs = roles.policy_outputs(ids, mask, ids[:, -response:], 1.0)
    kept = sum(t.untyped_storage().nbytes() for t in seen.values())
    del outputs
    return kept


def passage_of(batch: int, tokens: int) -> tuple[Tensor, Tensor]:
    """Token ids and mask of rows whose first prompt is shorter than the others."""
    ids = torch.ones((batch, tokens), dtype=torch.long)
    mask = torch.ones_like(ids).bool()
    mask[0, :3] = False
    return ids, mask


def really_alive(run: Callable[[], object]) -> int:
    """The most bytes that were allocated and not yet freed while something ran.

    torch's CPU allocator reports each allocation and each release to the profiler.
    """
    activities = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=activities, profile_memory=True) as profiler:
        run()
    results: Any = profiler.profiler
    events = [e for e in results.kineto_results.events() if e.name() == "[memory]"]
    alive = most = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        alive += event.nbytes()
        most = max(most, alive)
    return most


def kept(plan: MemoryPlan) -> int:
    return plan.phases["optimizing"]["activations kept for the backward pass"]


SMALL: dict[str, Any] = {
    "vocab_size": 128, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "intermediate_size": 48, "max_position_embeddings": 64,
    "pad_token_id": None, "bos_token_id": None, "eos_token_id": 1,
}  # fmt: skip

LINEAR = {
    "linear_num_value_heads": 4,
    "linear_num_key_heads": 2,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "layer_types": ["linear_attention", "full_attention"],
}

MLA = {"kv_lora_rank": 8, "q_lora_rank": 8, "qk_nope_head_dim": 8, "qk_rope_head_dim": 8,
       "v_head_dim": 8, "first_k_dense_replace": 1, "n_group": 1, "topk_group": 1,
       "n_routed_experts": 4, "n_shared_experts": 1, "moe_intermediate_size": 16}  # fmt: skip

WIDE = SMALL | {"hidden_size": 256, "intermediate_size": 704, "num_hidden_layers": 8}

WIDE_CONFIGS = {
    "llama": LlamaConfig(**WIDE),
    "qwen3": Qwen3Config(**WIDE, head_dim=64),
    "gemma2": Gemma2Config(**WIDE, head_dim=64, sliding_window=64),
    "gpt2": GPT2Config(vocab_size=128, n_embd=256, n_layer=8, n_head=4, n_positions=64),
    "phi": PhiConfig(**WIDE),
    "mixtral": MixtralConfig(**WIDE, num_local_experts=4),
}


def no_count(*args: Any) -> int:
    raise ValueError("needs real numbers")


def save_tiny(folder: Path, seed: int) -> str:
    torch.manual_seed(seed)
    config = GPT2Config(n_embd=64, n_layer=1, n_head=2, vocab_size=64, n_positions=64)
    GPT2LMHeadModel(config).save_pretrained(folder)
    return str(folder)


def roles_of(demo_model: str, **changes: Any) -> Roles:
    """Roles on the embedded model, not checked, with attributes of its class changed."""
    base: Any = load_base(demo_model, "fp32")
    roles = Roles(base, LORA, checked=False)
    base.__class__ = type("OddForCausalLM", (type(base),), changes)
    return roles


# Adapters as plain peft saves them.

IDS = torch.tensor([[5, 6, 7, 8, 9, 10, 11, 12], [40, 41, 5, 6, 7, 300, 301, 302]])
MASK = torch.ones_like(IDS, dtype=torch.bool)

# What peft can write, and one base can hold.
KINDS: dict[str, dict[str, Any]] = {
    "embedding and head": {"modules_to_save": ["embed_tokens", "lm_head"]},
    "head alone": {"modules_to_save": ["lm_head"]},
    "norms": {"modules_to_save": ["norm", "input_layernorm"]},
    "biases": {"bias": "all"},
    "rows of the embedding": {"trainable_token_indices": [5, 6, 300]},
    "LoRA on the head": {"target_modules": ["q_proj", "lm_head"]},
    "LoRA on the embedding": {"target_modules": ["q_proj", "embed_tokens"]},
    "LoRA's own bias": {"lora_bias": True},
    "DoRA": {"use_dora": True},
    "an orthogonal start": {"init_lora_weights": "orthogonal"},
    "an embedding that ties the head": {
        "modules_to_save": ["embed_tokens"],
        "ensure_weight_tying": True,
    },
    "rank-stabilized LoRA on the head": {"target_modules": ["lm_head"], "use_rslora": True},
}


@pytest.fixture(scope="module")
def untied(tmp_path_factory: pytest.TempPathFactory, demo_model: str) -> str:
    """A model with biases whose head is not its embedding."""
    folder = tmp_path_factory.mktemp("untied")
    torch.manual_seed(0)
    Qwen2ForCausalLM(
        Qwen2Config(
            vocab_size=1024,
            hidden_size=64,
            intermediate_size=128,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=64,
            tie_word_embeddings=False,
        )
    ).save_pretrained(folder)
    for file in Path(demo_model).glob("*token*"):
        shutil.copy(file, folder)
    return str(folder)


def saved(base: str, folder: Path, scale: float = 0.1, **kwargs: Any) -> Path:
    """An adapter as plain peft saves it, every trained weight moved."""
    options = {"target_modules": ["q_proj", "v_proj"], "task_type": "CAUSAL_LM"} | kwargs
    model = get_peft_model(
        AutoModelForCausalLM.from_pretrained(base), LoraConfig(r=4, lora_alpha=8, **options)
    )
    torch.manual_seed(1)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data += scale * torch.randn_like(parameter)
    model.save_pretrained(str(folder))
    return folder


@torch.no_grad()
def plain(base: str, folder: Path | None) -> Tensor:
    """Log-probs (2, 4) of the last four tokens, by transformers and peft alone."""
    model: Any = AutoModelForCausalLM.from_pretrained(base).eval()
    if folder is not None:
        model = PeftModel.from_pretrained(model, str(folder)).eval()
    logits = model(input_ids=IDS).logits[:, 3:7].float()
    return logits.log_softmax(-1).gather(-1, IDS[:, 4:, None]).squeeze(-1)


def perturb(roles: Roles, adapter: str) -> None:
    """Give an adapter something to say: its B starts at zero."""
    generator = torch.Generator().manual_seed(len(adapter))
    for name, parameter in roles.named_parameters():
        if f"lora_B.{adapter}." in name:
            with torch.no_grad():
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.05)


@torch.no_grad()
def by_roles(roles: Roles, role: str) -> Tensor:
    if role == "reference":
        return roles.reference_logprobs(IDS, MASK, IDS[:, 4:], 1.0)
    return roles.policy_outputs(IDS, MASK, IDS[:, 4:], 1.0).logprobs
