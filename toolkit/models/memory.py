"""How much memory a PPO run will take, from its configuration alone; nothing is loaded.

Weights are counted on a model without storage (the meta device). Activations are not estimated by
a formula for one family: the roles' own forward pass is run without storage, and what autograd
keeps for the backward pass is added up. What remains is arithmetic: optimizer, KV cache, logits.

The plan counts bytes in use. A CPU's allocator may hold more than that (glibc's, twice as much
after a while), unless MALLOC_MMAP_THRESHOLD_=1048576 has it give memory back, which takes half as
long again; the benchmark measures so.
"""

import copy
import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedConfig
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from toolkit.errors import InputError
from toolkit.maths.distributions import CHUNK_BYTES
from toolkit.maths.precision import autocast_type
from toolkit.models.loading import HEADS
from toolkit.models.roles import Roles

MIB = 1 << 20
# NF4: half a byte a weight; an 8-bit scale for each 64 of them, and an fp32 one for 256 scales.
NF4_BYTES = 0.5 + 1 / 64 + 4 / (64 * 256)


@dataclass
class MemoryPlan:
    """Bytes by what they are for.

    Attributes:
        held: throughout the run: base, adapters, heads, optimizer.
        phases: besides these, at the height of each phase.
        facts: what the plan was made for, in words.
    """

    held: dict[str, int]
    phases: dict[str, dict[str, int]]
    facts: dict[str, str] = field(default_factory=dict)

    @property
    def peak(self) -> int:
        """Bytes at the height of the hungriest phase."""
        return sum(self.held.values()) + max(sum(p.values()) for p in self.phases.values())

    @property
    def hungriest(self) -> str:
        """That phase's name."""
        return max(self.phases, key=lambda name: sum(self.phases[name].values()))

    def lines(self) -> list[str]:
        """The plan as a table."""
        rows = [f"{name:44}{size / MIB:12,.0f} MiB" for name, size in self.held.items()]
        for phase, parts in self.phases.items():
            rows.append(f"{phase:44}{sum(parts.values()) / MIB:12,.0f} MiB")
            rows += [f"    {name:40}{size / MIB:12,.0f} MiB" for name, size in parts.items()]
        return [*rows, f"{'peak, while ' + self.hungriest:44}{self.peak / MIB:12,.0f} MiB"]


class _ShapeAttention(torch.autograd.Function):
    """What a fused attention kernel keeps: q, k, v, its output and a number for each row."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        out = torch.empty_like(q)
        ctx.save_for_backward(q, k, v, out, q.new_empty(q.shape[:-1], dtype=torch.float32))
        return out.transpose(1, 2)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
        raise NotImplementedError("shapes only: what is kept is counted, nothing flows back")


def _attention(
    module: nn.Module, q: Tensor, k: Tensor, v: Tensor, *args: Any, **kwargs: Any
) -> Any:
    dtype = autocast_type(q)
    if dtype is not None:
        q, k, v = q.to(dtype), k.to(dtype), v.to(dtype)
    return _ShapeAttention.apply(q, k, v), None


@contextmanager
def _shapes_only() -> Iterator[str]:
    """An attention implementation for models without storage; yields its name."""
    name = "shapes_only"
    ALL_ATTENTION_FUNCTIONS.register(name, _attention)
    ALL_MASK_ATTENTION_FUNCTIONS.register(name, lambda *args, **kwargs: None)
    yield name


def _kept(forward: Callable[[], Any], model: nn.Module) -> int:
    """Bytes that autograd keeps of a pass, parameters left out, each storage once."""
    held = {p.untyped_storage()._cdata for p in model.parameters()}
    seen: dict[int, Tensor] = {}

    def pack(tensor: Tensor) -> Tensor:
        key = tensor.untyped_storage()._cdata
        if key not in held:
            seen[key] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        result = forward()
    del result
    return sum(t.untyped_storage().nbytes() for t in seen.values())


def plan_memory(
    config: PreTrainedConfig,
    precision: str,
    lora: LoraConfig,
    value: str,
    prompt_length: int,
    response_length: int,
    micro_batch: int,
    rollout_batch: int,
    reward: bool = True,
    reference_adapter: bool = False,
    bf16: bool = False,
    checkpointing: bool = False,
    device: str = "cpu",
    beside_lora: int = 0,
) -> MemoryPlan:
    """The plan of a PPO run on one base.

    Args:
        config: of the base.
        precision: "4bit", "bf16" or "fp32".
        lora: of the adapters.
        value: "adapter" or "trunk".
        prompt_length, response_length: P and C, tokens.
        micro_batch: episodes in a pass with gradients.
        rollout_batch: episodes in a pass without.
        reward: whether there is a reward adapter (taken to be of ``lora``'s size).
        reference_adapter: whether the reference is an adapter.
        bf16: autocast.
        checkpointing: activations are recomputed, layer by layer.
        device: "cpu" or "cuda": of what is not quantised, 4-bit holds fp32 on the one, bf16 on
            the other.
        beside_lora: weights that the policy's first adapter has beside LoRA (an embedding of its
            own, say): trained, and once more in a frozen reference.
    """
    compute = torch.float32 if device == "cpu" else torch.bfloat16
    dtype = {"4bit": compute, "bf16": torch.bfloat16, "fp32": torch.float32}[precision]
    with _shapes_only() as attention, torch.device("meta"):
        base = AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation=attention)
        base.requires_grad_(False).eval()
        linear = _linear_weights(base)
        base_bytes = _base_bytes(base, linear, precision, bf16)
        roles = Roles(base, copy.deepcopy(lora), value=value, checked=False)
        roles.autocast_dtype = torch.bfloat16 if bf16 else None
        if checkpointing:
            roles.use_checkpointing()
        adapter = sum(p.numel() for n, p in roles.trainable() if ".policy." in n) * 4
        trained = (sum(p.numel() for _, p in roles.trainable()) + beside_lora) * 4
        kept = _training_bytes(roles, micro_batch, prompt_length, response_length)
    held = {
        f"base ({precision})": base_bytes,
        "adapters and heads (fp32)": trained
        + (int(reward) + int(reference_adapter)) * adapter
        + int(reference_adapter) * beside_lora * 4,
        "optimizer (two moments)": 2 * trained,
    }
    number = 2 if bf16 or dtype == torch.bfloat16 else 4
    lengths, batches = (prompt_length, response_length), (micro_batch, rollout_batch)
    phases = _phases(config, lengths, batches, number, CHUNK_BYTES[device], trained, kept)
    if precision == "4bit":
        widest = max(p.numel() for p in base.parameters() if p.dim() == 2 and id(p) in linear)
        for parts in phases.values():
            parts["the widest layer, dequantised"] = widest * number
    facts = {
        "trained": f"{trained // 4:,} parameters",
        "base": f"{sum(p.numel() for p in base.parameters() if not p.requires_grad):,} parameters",
    }
    return MemoryPlan(held, phases, facts)


def _linear_weights(base: nn.Module) -> set[int]:
    """The ids of the weights that 4-bit quantises: linear layers but for the output heads."""
    return {
        id(module.weight)
        for name, module in base.named_modules()
        if type(module).__name__ in ("Linear", "Conv1D") and name.split(".")[-1] not in HEADS
    }


def _base_bytes(base: nn.Module, linear: set[int], precision: str, bf16: bool) -> int:
    """Bytes of the base's weights, tied ones counted once."""
    total = 0.0
    for parameter in base.parameters():
        size: float = parameter.element_size()
        if id(parameter) in linear and precision == "4bit":
            size = NF4_BYTES
        elif id(parameter) in linear and bf16:
            size = 2
        total += parameter.numel() * size
    return int(total)


def _training_bytes(roles: Roles, batch: int, prompt_length: int, response_length: int) -> int:
    """Kept of one micro-batch: of the hungrier role, as they go one after the other."""
    ids = torch.zeros((batch, prompt_length + response_length), dtype=torch.long, device="meta")
    mask = torch.ones_like(ids, dtype=torch.bool)
    completion = ids[:, -response_length:]
    with roles.optimizing():
        kept = _kept(lambda: roles.policy_outputs(ids, mask, completion, 1.0), roles)
        if not roles.shares_trunk:
            kept = max(kept, _kept(lambda: roles.values(ids, mask, response_length), roles))
    return kept


def available_memory(device: str) -> tuple[int, str]:
    """Bytes that are free, and the device's name."""
    if device == "cuda":
        return torch.cuda.mem_get_info()[0], torch.cuda.get_device_name()
    meminfo = Path("/proc/meminfo")
    for line in meminfo.read_text(encoding="ascii").splitlines() if meminfo.is_file() else ():
        if line.startswith("MemAvailable"):
            return int(line.split()[1]) * 1024, "CPU"
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"), "CPU"


def what_fits(plan: Callable[[int, bool], MemoryPlan], micro_batch: int, room: int) -> str:
    """The largest halving of the micro-batch that fits, without checkpointing and with, in words.

    Args:
        plan: of a micro-batch, and of whether activations are recomputed.
        micro_batch: what did not fit.
        room: bytes.
    """
    for checkpointing in (False, True):
        size = micro_batch
        while size:
            if plan(size, checkpointing).peak < room:
                more = " and gradient_checkpointing: true" if checkpointing else ""
                steps = micro_batch // size
                return (
                    f"per_device_train_batch_size: {size}, gradient_accumulation_steps: x{steps}"
                    f"{more} would"
                )
            size //= 2
    return "no micro-batch does: take a smaller base, 4bit, or a lower rank"


def check_memory(
    planner: Callable[[], Callable[[int, bool], MemoryPlan]], micro_batch: int,
    checkpointing: bool, device: str,
) -> None:  # fmt: skip
    """Raise InputError if a run would not fit into what is free, with what would.

    A family that the plan cannot be made for (its code needs real numbers) is warned of.

    Args:
        planner: makes the plan of a micro-batch and of whether activations are recomputed.
        micro_batch: episodes in a pass.
        checkpointing: whether they are.
        device: "cpu" or "cuda".
    """
    room, where = available_memory(device)
    try:
        plan = planner()
        chosen = plan(micro_batch, checkpointing)
    except Exception as error:
        warnings.warn(f"no memory plan for this model: {error!s:.120}", stacklevel=2)
        return
    if chosen.peak > room:
        raise InputError(
            f"about {chosen.peak / MIB:,.0f} MiB are needed while {chosen.hungriest}, {where} has "
            f"{room / MIB:,.0f} free; {what_fits(plan, micro_batch, room)}",
            "per_device_train_batch_size",
        )


def _phases(
    config: PreTrainedConfig, lengths: tuple[int, int], batches: tuple[int, int], number: int,
    chunk_bytes: int, trained: int, kept: int,
) -> dict[str, dict[str, int]]:  # fmt: skip
    """Bytes at the height of each phase, besides what is held; ``number`` is bytes a number."""
    text = config.get_text_config()
    hidden, vocab = text.hidden_size, text.vocab_size
    width = max(hidden, getattr(text, "intermediate_size", None) or 4 * hidden)
    (prompt_length, response_length), (micro_batch, rollout_batch) = lengths, batches
    tokens = prompt_length + response_length
    chunk = (
        3 * min(chunk_bytes, micro_batch * response_length * vocab * 4)
        + micro_batch * response_length * hidden * 4
    )
    heads = getattr(text, "num_key_value_heads", None) or text.num_attention_heads
    head_size = getattr(text, "head_dim", None) or hidden // text.num_attention_heads
    cache = 2 * text.num_hidden_layers * rollout_batch * heads * head_size * tokens * number
    return {
        "sampling": {
            "KV cache": cache,
            "logits and cumulative probabilities": rollout_batch * vocab * (4 + 4 + 8 + 8),
            "one layer at work": 4 * rollout_batch * prompt_length * width * number,
        },
        "reference and scores": {
            "one layer at work": 4 * rollout_batch * tokens * width * number,
            "a chunk of logits": chunk,
        },
        "optimising": {
            "gradients": trained,
            "activations kept for the backward pass": kept,
            "one layer at work": 3 * micro_batch * tokens * width * number,
            "a chunk of logits": chunk,
        },
    }
