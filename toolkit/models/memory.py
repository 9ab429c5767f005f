"""Planning how much memory a PPO run needs, from its configuration alone; nothing is loaded.

Weights are counted on a model without storage (the meta device), and so is what its passes hold:
what autograd and the cache keep, and the most that is alive at one moment of the forward and the
backward pass (``memory_count``). If a family's passes cannot run there, that is estimated from the
sizes of its layers (``memory_estimate``), and the plan says so. The rest is arithmetic: optimizer,
sampling's probabilities.

The plan counts bytes in use. A CPU's allocator may hold more (glibc's, twice as much after a
while), unless MALLOC_MMAP_THRESHOLD_=1048576 makes it return memory, which takes half as long
again; the benchmark measures with that.
"""

import copy
from collections.abc import Callable, Sequence
from dataclasses import astuple, dataclass, field, replace
from typing import Any

import torch
from peft import LoraConfig
from torch import nn
from transformers import PreTrainedConfig
from transformers.pytorch_utils import Conv1D

from toolkit.maths.distributions import CHUNK_BYTES
from toolkit.models.experts import expert_parameters
from toolkit.models.families import HEADS, family_of
from toolkit.models.fast import changes_wanted
from toolkit.models.memory_count import (
    Kept,
    ShapesOnly,
    count_cache,
    count_kept,
    count_reading,
    count_text,
    recompute_shapes,
    stand_for_packed,
)
from toolkit.models.memory_estimate import (
    estimate_cache,
    estimate_kept,
    heads_of,
    stand_in,
    width_of,
)
from toolkit.models.roles import Roles

MIB = 1 << 20
COUNTED = "counted"
TEXT_PHASE = "learning from text"  # of the pretraining mix; only where there is one
# NF4: half a byte a weight, an 8-bit scale for 64 weights, and an fp32 scale for 256 scales.
NF4_BYTES = 0.5 + 1 / 64 + 4 / (64 * 256)
PLAIN_NF4_BYTES = 0.5 + 4 / 64  # with all scales in fp32
# Families whose layers are all alike, unless their config lists several kinds.
ALIKE = ("llama", "mistral", "qwen2", "qwen3")
# Counts without doubts, by all that they rest on: searches and later runs ask for the same again.
_COUNTS: dict[tuple[Any, ...], "Counts"] = {}


@dataclass
class MemoryPlan:
    """Bytes by purpose.

    Attributes:
        held: during the whole run: base, adapters, heads, optimizer.
        phases: besides these, at the peak of each phase.
        facts: what the plan was made for. "kind" is "counted", or "estimated from sizes" with the
            reason.
        plain_scales: bytes that a 4-bit base would take besides, if its scales were held in fp32; 0
            if they are.
        unpacked: bytes that it would take besides while sampling, if it were unpacked meanwhile; 0
            if it is.
    """

    held: dict[str, int]
    phases: dict[str, dict[str, int]]
    facts: dict[str, str] = field(default_factory=dict)
    plain_scales: int = 0
    unpacked: int = 0

    def needs(self, *phases: str) -> int:
        """Return the bytes at the peak of the largest of these phases, of those that there are."""
        there = [name for name in phases if name in self.phases]
        largest = max(sum(self.phases[name].values()) for name in there)
        return sum(self.held.values()) + largest

    @property
    def peak(self) -> int:
        """Bytes at the peak of the largest phase."""
        return self.needs(*self.phases)

    @property
    def hungriest(self) -> str:
        """The name of the largest phase."""
        return max(self.phases, key=lambda name: sum(self.phases[name].values()))

    @property
    def counted(self) -> bool:
        """Whether nothing is estimated from the sizes of layers."""
        return self.facts.get("kind", COUNTED) == COUNTED

    def lines(self) -> list[str]:
        """Return the plan as a table, headed by a line if it is an estimate."""
        rows = [f"{name:44}{size / MIB:12,.0f} MiB" for name, size in self.held.items()]
        for phase, parts in self.phases.items():
            rows.append(f"{phase:44}{sum(parts.values()) / MIB:12,.0f} MiB")
            rows += [f"    {name:40}{size / MIB:12,.0f} MiB" for name, size in parts.items()]
        said = [] if self.counted else [self.facts["kind"]]
        return [*said, *rows, f"{'peak, while ' + self.hungriest:44}{self.peak / MIB:12,.0f} MiB"]


def plan_memory(
    config: PreTrainedConfig,
    precision: str,
    lora: LoraConfig,
    value: str | None,
    prompt_length: int,
    response_length: int,
    micro_batch: int,
    rollout_batch: int,
    reward: int = 1,
    reference_adapter: bool = False,
    bf16: bool = False,
    checkpointing: bool = False,
    device: str = "cpu",
    beside_lora: int = 0,
    plain_scales: bool = False,
    unpack_base: bool = False,
    text_length: int | None = None,
    value_hidden: Sequence[int] = (),
    entropy_gradient: bool = False,
    full_kl: bool = False,
) -> MemoryPlan:
    """Plan the memory of a PPO run on one base.

    Args:
        config: of the base.
        precision: "4bit", "bf16" or "fp32".
        lora: of the adapters.
        value: "adapter", "trunk", or None for no value.
        prompt_length, response_length: P and C, tokens.
        micro_batch: episodes in a pass with gradients.
        rollout_batch: episodes in a pass without.
        reward: number of reward adapters (each is assumed to have ``lora``'s size).
        reference_adapter: whether the reference is an adapter.
        bf16: whether passes run under bf16 autocast.
        checkpointing: whether activations are recomputed, layer by layer.
        device: "cpu" or "cuda". Under 4bit, what is not quantized is fp32 on the one and bf16 on
            the other.
        beside_lora: weights that the policy's first adapter has besides LoRA (its own embedding,
            say). They are trained, and held once more in a frozen reference.
        plain_scales: whether the scales of 4-bit weights are held in fp32.
        unpack_base: whether 4-bit linear layers are unpacked while completions are sampled.
        text_length: tokens of the longest row of a pretraining mix, of which ``micro_batch`` are
            in a pass; None without one.
        value_hidden: widths of the value head's hidden layers.
        entropy_gradient, full_kl: what else the policy's loss has (``Actors``).
    """
    compute = torch.float32 if device == "cpu" else torch.bfloat16
    dtype = {"4bit": compute, "bf16": torch.bfloat16, "fp32": torch.float32}[precision]
    number = 2 if bf16 or dtype == torch.bfloat16 else 4
    tokens = prompt_length + response_length
    doubts: list[str] = []

    def either(count: Callable[[], Any], estimate: Callable[[], Any]) -> Any:
        try:
            with ShapesOnly(device):
                return count()
        except Exception as error:  # a family's code may raise anything without storage
            doubts.append(_reason(error))
            return estimate()

    def count(config: PreTrainedConfig) -> Counts:
        with torch.device("meta"):
            base, config = _base(config, dtype, doubts)
            base.requires_grad_(False).eval()
            eager = base.config._attn_implementation == "eager"

            packed, widest = _packed_weights(base, config) if precision == "4bit" else (set(), 0)
            scales = PLAIN_NF4_BYTES if plain_scales else NF4_BYTES
            base_bytes = _base_bytes(base, packed, bf16, scales)
            weights = sum(p.numel() for p in base.parameters())
            in_four = sum(p.numel() for p in base.parameters() if id(p) in packed)
            mixture = bool(expert_parameters(base))

            roles = Roles(
                base,
                copy.deepcopy(lora),
                value=value,
                checked=False,
                autocast_dtype=torch.bfloat16 if bf16 else None,
                value_hidden=value_hidden,
            )
            roles.entropy_gradient, roles.full_kl = entropy_gradient, full_kl
            # On a GPU whole passes are read with the padding on the right (``Actors.pads_right``).
            flash = device == "cuda" and not roles.in_fp32
            roles.right_padded = flash and "attention" in changes_wanted()

            in_linear = 0
            for module in base.modules():
                if isinstance(module, nn.Linear | Conv1D) and id(module.weight) in packed:
                    in_linear += module.weight.numel()
                    stand_for_packed(module, compute)

            adapter = sum(p.numel() for n, p in roles.trainable() if ".policy." in n)
            trained = sum(p.numel() for _, p in roles.trainable())

            sizes = micro_batch, prompt_length, response_length
            work = Work(config, prompt_length, response_length, number, CHUNK_BYTES[device], eager)

            cache = either(
                lambda: count_cache(roles, rollout_batch, tokens),
                lambda: estimate_cache(config, rollout_batch, tokens, number),
            )
            reading = either(
                lambda: count_reading(roles, rollout_batch, prompt_length, response_length),
                lambda: work.reading(rollout_batch),
            )

            def keep(length: int, work: Work) -> Kept:
                def estimated(checkpointing: bool) -> Kept:
                    return estimate_kept(
                        base, config, micro_batch, length, number, checkpointing, eager
                    )

                made = estimated(checkpointing)
                again = estimated(False).layer if checkpointing else 0
                made.beside = work.training(micro_batch, again)
                return made

            if checkpointing:
                recompute_shapes(roles, device)
            kept = either(lambda: count_kept(roles, *sizes), lambda: keep(tokens, work))
            text = Kept(0)
            if text_length is not None:
                length = text_length
                text_work = replace(work, prompt_length=1, response_length=length - 1)
                text = either(
                    lambda: count_text(roles, micro_batch, length), lambda: keep(length, text_work)
                )

        return Counts(
            base_bytes,
            weights,
            in_four if mixture else 0,
            in_four,
            in_linear,
            widest,
            adapter,
            trained,
            cache,
            work.sampling(rollout_batch),
            work.layer(4, rollout_batch, prompt_length),
            reading,
            int(kept),
            kept.beside or 0,
            int(text),
            text.beside or 0,
        )

    # What a count rests on besides the model's sizes. (Parts of the count are replaced in tests.)
    rest = (dtype, precision, repr(lora), value, prompt_length, response_length, micro_batch,
            rollout_batch, bf16, checkpointing, device, plain_scales, text_length,
            tuple(value_hidden), entropy_gradient, full_kl, changes_wanted(),
            _base, count_cache, count_reading, count_kept, count_text)  # fmt: skip

    def remembered(config: PreTrainedConfig) -> Counts:
        attention = getattr(config, "_attn_implementation", None)
        key = (type(config), config.to_json_string(), attention, *rest)
        known = _COUNTS.get(key)
        if known is not None:
            return known
        found = count(config)
        if not doubts:
            _COUNTS[key] = found
        return found

    few = _shallow(config)
    if few is None:
        found = remembered(config)
    else:
        shallow, deeper = map(remembered, few)
        found = shallow.at_depth(deeper, config.num_hidden_layers - few[0].num_hidden_layers)

    trained = (found.trained + beside_lora) * 4
    held = {
        f"base ({precision})": found.base_bytes,
        "adapters and heads (fp32)": trained
        + (int(reward) + int(reference_adapter)) * found.adapter * 4
        + int(reference_adapter) * beside_lora * 4,
        "optimizer (two moments)": 2 * trained,
    }

    phases = {
        "sampling": {
            "KV cache": found.cache,
            "logits and cumulative probabilities": found.sampling,
            "one layer at work": found.prefill,
        },
        "reference and scores": {"a layer at work, logits": found.reading},
        "optimizing": {
            "gradients": trained,
            "activations kept for the backward pass": found.kept,
            "a layer at work, its gradients, logits": found.beside,
        },
    }
    if text_length is not None:
        phases[TEXT_PHASE] = {
            "gradients": trained,
            "PPO's gradients, set aside": (found.adapter + beside_lora) * 4,
            "activations kept for the backward pass": found.text_kept,
            "a layer at work, its gradients, logits": found.text_beside,
        }
    if bf16:
        phases["sampling"]["the adapter, rounded"] = found.adapter * 2
    unpacked = found.in_linear * (4 if compute == torch.float32 else 2)
    if unpack_base and unpacked:
        phases["sampling"]["the base, unpacked"] = unpacked

    # An fp32 base that bf16 autocast will round is whole first, when nothing else is there yet.
    if precision == "fp32" and bf16:
        whole = max(0, 4 * found.weights - sum(held.values()))
        phases["loading"] = {"the base before it is rounded": whole}
    if precision == "4bit":
        for parts in phases.values():
            parts["the widest layer, dequantized"] = found.widest * number

    facts = {
        "trained": f"{trained // 4:,} parameters",
        "base": f"{found.weights:,} parameters",
        "kind": f"estimated from sizes ({doubts[0]})" if doubts else COUNTED,
    }
    if found.experts_in_four:
        share = 100 * found.experts_in_four / found.weights
        facts["in 4 bits"] = f"{share:.0f} % of the weights"
    more = 0 if plain_scales else int(found.in_four * (PLAIN_NF4_BYTES - NF4_BYTES))
    return MemoryPlan(held, phases, facts, more, 0 if unpack_base else unpacked)


@dataclass(frozen=True)
class Counts:
    """What is counted on a model without storage.

    Attributes:
        base_bytes: bytes of the base.
        weights, in_four: its weights, and those of them that are in 4 bits.
        experts_in_four: the same in a model with experts; 0 in others.
        in_linear: those of them that are in linear layers.
        widest: weights that are unpacked at once.
        adapter, trained: weights of the policy's adapter, and of all that is trained.
        cache, sampling, prefill: bytes of keys and values, of sampling's probabilities, and of a
            layer that reads the prompts.
        reading: bytes at the peak of a pass without gradients.
        kept, beside: bytes that one with gradients keeps, and that are alive beside them.
        text_kept, text_beside: the same for a pass over text; 0 without a pretraining mix.
    """

    base_bytes: int
    weights: int
    experts_in_four: int
    in_four: int
    in_linear: int
    widest: int
    adapter: int
    trained: int
    cache: int
    sampling: int
    prefill: int
    reading: int
    kept: int
    beside: int
    text_kept: int
    text_beside: int

    def at_depth(self, deeper: "Counts", layers: int) -> "Counts":
        """Return the counts of a model with so many layers more; ``deeper`` has one more."""
        pairs = zip(astuple(self), astuple(deeper), strict=True)
        return Counts(*(one + layers * (two - one) for one, two in pairs))


def _shallow(config: PreTrainedConfig) -> tuple[PreTrainedConfig, PreTrainedConfig] | None:
    """Return the config with three layers and with four, if all layers of the model are alike.

    Every count then grows by the same for each layer. Counting seven layers in place of 32 takes a
    fifth of the time.
    """
    kinds = getattr(config, "layer_types", None) or []
    if config.model_type not in ALIKE or len(set(kinds)) > 1 or config.num_hidden_layers <= 7:
        return None

    def cut(layers: int) -> PreTrainedConfig:
        made = copy.deepcopy(config)
        made.num_hidden_layers = layers
        if kinds:
            made.layer_types = kinds[:layers]
        return made

    return cut(3), cut(4)


def _base(
    config: PreTrainedConfig, dtype: torch.dtype, doubts: list[str]
) -> tuple[Any, PreTrainedConfig]:
    """Make the language model without storage, or a stand-in, which ``doubts`` records.

    Raises:
        InputError: the model cannot be used (``family_of``).
    """
    auto = family_of(config).auto
    plain = copy.deepcopy(config)
    vars(plain).pop("quantization_config", None)  # the weights' shapes are those of the whole model
    try:
        return auto.from_config(plain, dtype=dtype), config
    except Exception as error:
        doubts.append(f"treated as a Llama: {_reason(error)}")
        plain = stand_in(config)
        return family_of(plain).auto.from_config(plain, dtype=dtype), plain


def _reason(error: Exception) -> str:
    """Return an error in a few words."""
    return f"{' '.join(str(error).split()) or type(error).__name__:.80}"


def _packed_weights(base: nn.Module, config: PreTrainedConfig) -> tuple[set[int], int]:
    """Find the parameters that will be in 4 bits.

    Returns:
        the ids of these parameters; and the most numbers that are unpacked at once: those of one
        linear layer, or of all experts of a layer.
    """
    linear = [
        module.weight
        for name, module in base.named_modules()
        if type(module).__name__ in ("Linear", "Conv1D") and name.split(".")[-1] not in HEADS
    ]

    at_once = {id(weight): weight.numel() for weight in linear}
    packed = set(at_once)

    # A checkpoint saved in 4 bits is not changed; its experts are unquantized.
    saved_so = getattr(config, "quantization_config", None) is not None
    for module, name in [] if saved_so else expert_parameters(base):
        weight = module._parameters[name]
        assert weight is not None
        packed.add(id(weight))
        at_once[id(module)] = at_once.get(id(module), 0) + weight.numel()

    return packed, max(at_once.values(), default=0)


def _base_bytes(base: nn.Module, packed: set[int], bf16: bool, in_four: float) -> int:
    """Count the bytes of the base's weights as the roles hold them; tied weights count once.

    A packed weight takes ``in_four`` bytes.
    """
    rounded = {
        id(module.weight)
        for name, module in base.named_modules()
        if type(module) is nn.Linear and name.split(".")[-1] not in HEADS
    }

    total = 0.0
    for parameter in base.parameters():
        size: float = parameter.element_size()
        if id(parameter) in packed:
            size = in_four
        elif id(parameter) in rounded and bf16:
            size = 2
        total += parameter.numel() * size
    return int(total)


@dataclass
class Work:
    """What passes need for a moment, estimated from sizes.

    Attributes:
        config: of the base.
        prompt_length, response_length: tokens.
        number: bytes of a number.
        chunk_bytes: bytes of logits that exist at once.
        eager: whether attention makes whole matrices of scores and their softmax.
    """

    config: PreTrainedConfig
    prompt_length: int
    response_length: int
    number: int
    chunk_bytes: int
    eager: bool

    def layer(self, times: int, rows: int, length: int) -> int:
        """Return the bytes of a layer at work: so many of its widest tensors, or its scores."""
        scores = 3 * heads_of(self.config) * length * length if self.eager else 0
        return rows * max(times * length * width_of(self.config), scores) * self.number

    def logits(self, rows: int) -> int:
        """Return the bytes of a chunk of logits, their softmax and its rounded copy."""
        text = self.config.get_text_config()
        tokens = rows * self.response_length
        chunk = min(self.chunk_bytes, tokens * text.vocab_size * 4)
        return int(2.5 * chunk) + tokens * text.hidden_size * 4

    def sampling(self, rows: int) -> int:
        """Return the bytes of logits, probabilities in fp32, and their sums in fp64."""
        return rows * int(self.config.get_text_config().vocab_size) * (4 + 4 + 8 + 8)

    def reading(self, rows: int) -> int:
        """Return the bytes of a pass without gradients."""
        layer = self.layer(4, rows, self.prompt_length + self.response_length)
        return max(layer, self.logits(rows))

    def training(self, rows: int, again: int) -> int:
        """Return the bytes beside what is kept, ``again`` of them in a layer that is recomputed."""
        layer = self.layer(3, rows, self.prompt_length + self.response_length)
        return max(again + layer, self.logits(rows))
