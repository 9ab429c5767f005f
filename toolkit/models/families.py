"""What a model's config reveals: the class to load, how logits are made, and the cache.

All of this is decided before a weight is read, so that an unusable model is refused in one line.
``self_checks`` compares what a config promises with the loaded model.

    language model     AutoModelForCausalLM knows most, including composite ones (Gemma 3 and 4 as
                       published; of Qwen3.5 it loads only the language model). Other models that
                       read images and text (Ministral 3, Qwen-VL) load with
                       AutoModelForImageTextToText. Only text is used, and adapters stay off the
                       other parts
    reward model       transformers' sequence classifier, if it has one on the language model's
                       trunk; otherwise a score head on that trunk
"""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from transformers import (
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.cache_utils import DynamicLayer
from transformers.models.auto.auto_factory import _BaseAutoModelClass
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING,
    MODEL_FOR_MASKED_LM_MAPPING_NAMES,
    MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING,
)

from toolkit.errors import InputError
from toolkit.models.peft_wrappers import base_of

AutoClass = type[_BaseAutoModelClass]  # a class with from_pretrained and from_config
# Config fields that multiply logits after the head, and those that divide them.
MULTIPLIERS = ("logit_scale", "lm_head_multiplier", "output_multiplier")
DIVISORS = ("logits_scaling",)
CAPS = ("final_logit_softcapping", "logits_soft_cap")
MULTIPLIED = ("hyperclovax",)  # families that multiply by a field of DIVISORS
# Output heads of most families, never quantized (a quantized `score` fails in its forward pass).
LANGUAGE_HEADS, SCORE_HEAD = ("lm_head", "embed_out"), "score"
HEADS = (*LANGUAGE_HEADS, SCORE_HEAD)
# Names of the cache in forward passes: before transformers 5.24 (most, Mamba), and since.
CACHES = ("past_key_values", "cache_params", "cache")
# Errors of code that was not made for an outside cache, mask or positions.
FAILURES = (RuntimeError, ValueError, TypeError, AttributeError, LookupError, AssertionError)
# Types whose sequence classifier has a head with another name than `score`.
OTHER_CLASSIFIERS = ("ctrl", "modernbert-decoder")
# Families that fail the checks at load, with the reason (transformers 5.23).
REFUSED = {
    "minimax": "keeps its cache in its own form",
    "paligemma": "reads its prompt in both directions",
    "recurrent_gemma": "does not keep padding out of its recurrent layers",
    "xlstm": "keeps its cache in its own form",
}
# Families whose code reads quantized weights as if they were not (transformers 5.23).
NOT_IN_4BIT = {"mamba": "dt_proj"}


@dataclass(frozen=True)
class LogitRule:
    """How a family changes its head's output: z -> scale z, then cap tanh(z / cap).

    Attributes:
        scale: a constant factor, equivalent to another temperature.
        cap: a bound that logits approach; None for no bound.
    """

    scale: float = 1.0
    cap: float | None = None

    def __call__(self, logits: Tensor) -> Tensor:
        """Compute logits from the head's output; they are fp32 if the rule changes them."""
        if self == LogitRule():
            return logits
        logits = logits.float() * self.scale
        return logits if self.cap is None else self.cap * torch.tanh(logits / self.cap)

    def said(self) -> str:
        """Describe the rule; empty if it changes nothing."""
        words = [] if self.scale == 1.0 else [f"multiplied by {self.scale:g}"]
        words += [] if self.cap is None else [f"capped at {self.cap:g}"]
        return " and ".join(words)


@dataclass(frozen=True)
class Family:
    """How models of one type are loaded.

    Attributes:
        model_type: the type in configs.
        auto: the class of transformers that loads the language model.
        model_class: the class that it makes.
        classifier: "stock" (AutoModelForSequenceClassification), or "trunk": a head on the trunk.
        composite: whether the checkpoint has more than a language model.
        logits: what happens after the head.
    """

    model_type: str
    auto: AutoClass
    model_class: type[PreTrainedModel]
    classifier: str
    composite: bool
    logits: LogitRule

    @property
    def heads(self) -> list[str]:
        """Names of the output head, which bitsandbytes must not quantize."""
        tied = getattr(self.model_class, "_tied_weights_keys", None) or {}
        own = [key.removesuffix(".weight") for key in tied if key.count(".") == 1]
        return sorted({*HEADS, *own})

    def notes(self) -> list[str]:
        """One line for each way in which this family differs from a plain language model."""
        lines = []
        if self.composite:
            lines.append(
                f"{self.model_type}: only text is used, and adapters are on its language model"
            )
        if self.logits.said():
            lines.append(f"{self.model_type}: its logits are {self.logits.said()}")
        return lines


def family_of(config: PreTrainedConfig, name: str = "") -> Family:
    """Return how models with this config are loaded.

    Raises:
        InputError: the model has no causal language model; the message says why.
    """
    kind = config.model_type or type(config).__name__
    before = f"{name}: a {kind} model" if name else f"a {kind} model"

    if getattr(config, "is_encoder_decoder", False):
        raise InputError(f"{before} has an encoder and a decoder (choose a causal language model)")

    reads_both_ways = kind in (*MODEL_FOR_MASKED_LM_MAPPING_NAMES, "bert-generation")
    if reads_both_ways and not getattr(config, "is_decoder", False):
        raise InputError(f"{before} reads in both directions (choose a causal language model)")

    if kind in REFUSED:
        raise InputError(
            f"{before} {REFUSED[kind]}, so sampled log-probs would differ from those of a whole "
            "pass: it is not supported (choose another family)"
        )

    auto: AutoClass = AutoModelForCausalLM
    found = MODEL_FOR_CAUSAL_LM_MAPPING.get(type(config), None)
    if found is None:
        auto = AutoModelForImageTextToText
        found = MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING.get(type(config), None)
    if found is None:
        raise InputError(
            f"{before}: transformers {transformers.__version__} has no causal language model for it"
        )

    model_class: Any = found[0] if isinstance(found, tuple) else found
    if not _inputs(model_class.forward).intersection(CACHES):
        raise InputError(
            f"{before} does not accept a cache of transformers (past_key_values), without which "
            "sampling is not possible here"
        )

    return Family(
        kind,
        auto,
        model_class,
        _classifier(config, model_class),
        config.get_text_config() is not config,
        logit_rule(config),
    )


def check_precision(family: Family, precision: str, name: str) -> None:
    """Raise InputError if the precision is 4bit and the family cannot be held in 4 bits."""
    read = NOT_IN_4BIT.get(family.model_type)
    if precision == "4bit" and read is not None:
        raise InputError(
            f"{name}: a {family.model_type} model bypasses bitsandbytes when it reads {read}, so "
            "it cannot be held in 4 bits (pass --precision bf16 or fp32)",
            "precision",
        )


def check_recomputing(model: PreTrainedModel, wanted: bool | None) -> None:
    """Raise InputError if activations must be recomputed, but the model's code cannot."""
    if wanted and not model.supports_gradient_checkpointing:
        raise InputError(
            f"{type(model).__name__} cannot recompute its activations (leave out "
            "gradient_checkpointing and activation_checkpointing; a smaller "
            "--per_device_train_batch_size also saves memory)",
            "gradient_checkpointing",
        )


@cache
def _inputs(forward: Callable[..., object]) -> frozenset[str]:
    return frozenset(inspect.signature(forward).parameters)


def _classifier(config: PreTrainedConfig, model_class: Any) -> str:
    """Return "stock" if transformers' classifier has the language model's trunk, else "trunk"."""
    found: Any = MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING.get(type(config), None)
    if found is None or config.model_type in OTHER_CLASSIFIERS:
        return "trunk"
    # Qwen3.5's classifier takes the whole checkpoint, its language model only a part.
    return "stock" if found.config_class is model_class.config_class else "trunk"


def logit_rule(config: PreTrainedConfig) -> LogitRule:
    """Return how a model with this config changes its head's output."""
    text: Any = config.get_text_config()

    def first(names: tuple[str, ...]) -> float | None:
        found = (getattr(text, name, None) for name in names)
        return next((float(value) for value in found if isinstance(value, int | float)), None)

    scale, divisor = first(MULTIPLIERS) or 1.0, first(DIVISORS) or 1.0
    turned = config.model_type.startswith(MULTIPLIED)
    return LogitRule(scale * divisor if turned else scale / divisor, first(CAPS))


def empty_model(config: PreTrainedConfig, **options: object) -> PreTrainedModel:
    """Make the language model without storage, frozen, to inspect its layers."""
    with torch.device("meta"):
        model = family_of(config).auto.from_config(config, **options)
    return model.requires_grad_(False).eval()


def fit_inputs(model: nn.Module, inputs: Mapping[str, Any]) -> dict[str, Any]:
    """Rename the inputs of a pass to what the model accepts.

    The cache gets the model's name for it; positions go only to models that take them; state-space
    models (Mamba), which remember no single token, get the mask of the new tokens alone.
    """
    # peft's own forward pass names few of the inputs that it passes on.
    known = _inputs(type(base_of(model)).forward)
    fitted = dict(inputs)
    if "position_ids" not in known:
        fitted.pop("position_ids", None)

    kept = fitted.pop("past_key_values", None)
    if kept is None:
        return fitted

    fitted[next((name for name in CACHES if name in known), CACHES[0])] = kept
    if not any(isinstance(layer, DynamicLayer) for layer in kept.layers):
        fitted["attention_mask"] = fitted["attention_mask"][:, -fitted["input_ids"].shape[1] :]
    return fitted


def trunk_of(model: PreTrainedModel) -> Any:
    """Return the model without its head, which gives the last hidden states."""
    if model.base_model is not model:
        return model.base_model
    return getattr(model, "model", None) or model.get_decoder()


def heads_of(model: PreTrainedModel) -> list[nn.Module]:
    """Return the output head and the score head, if they exist."""
    found = (model.get_output_embeddings(), getattr(model, "score", None))
    return [head for head in found if head is not None]


def language_names(model: PreTrainedModel) -> list[str] | None:
    """List the modules of the language model with its heads; None if there are no others.

    A composite model has others, such as a vision tower and the projection of its output.
    """
    decoder = trunk_of(model).get_decoder()
    inside = {id(module) for module in decoder.modules()}

    heads = heads_of(model)
    others = [
        module
        for module in model.modules()
        if id(module) not in inside
        and isinstance(module, nn.Linear)
        and not any(module is head for head in heads)
    ]

    if not others:
        return None
    inside |= {id(head) for head in heads}
    return [name for name, module in model.named_modules() if id(module) in inside]
