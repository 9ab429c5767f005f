"""Merging an adapter (any type that peft can merge) and its base into one model."""

import gc
import warnings
from pathlib import Path
from typing import Any

import torch
from peft import PeftConfig, PeftModel
from safetensors import SafetensorError
from torch import Tensor
from transformers import AutoTokenizer

from toolkit.data.files import atomic_directory
from toolkit.data.links import check_inside
from toolkit.errors import InputError
from toolkit.models.adapters import absolute_if_local, check_for_merging
from toolkit.models.base_config import check_base
from toolkit.models.finite_weights import check_weights_of
from toolkit.models.loading import way_to_load

# Relative to the largest log-prob: merging rounds each weight once, in its type.
WAYS_OUT = {
    "bf16": "try --dtype fp32",
    "fp32": "LoRA on layers that share a weight cannot be merged, as in Zamba",
}
COPIED = (
    ".json",
    ".jinja",
    ".txt",
    ".model",
    ".py",
)  # files that a tokenizer saves again, and code
ALLOWED = {"bf16": 0.1, "fp32": 1e-3}


def merge_adapter(adapter: str, base: str | None, out: Path, dtype: str) -> str:
    """Write base and adapter as one model, with its tokenizer; then reload it and compare.

    Args:
        adapter: its folder; safetensors only.
        base: Hub id or folder; None for the one that the adapter names.
        out: the folder to write; it appears when everything is done.
        dtype: "bf16" or "fp32", of base and result.

    Returns:
        a line that compares the log-probs of the result with those of base and adapter.

    Raises:
        InputError: there is no adapter, it cannot be merged, or the result is another model.
    """
    folder = Path(adapter)
    if not (folder / "adapter_config.json").is_file():
        raise InputError(
            f"adapter: {adapter} has no adapter_config.json (give an adapter's folder)"
        )
    if not (folder / "adapter_model.safetensors").is_file():
        raise InputError(f"adapter: {adapter} has no adapter_model.safetensors")
    check_for_merging(folder)

    config = PeftConfig.from_pretrained(adapter)
    if config.task_type == "SEQ_CLS":
        raise InputError(f"adapter: {adapter} is a reward adapter, but must be a language model's")

    name = base or str(config.base_model_name_or_path or "")
    check_base(name)
    named = str(config.base_model_name_or_path or "")
    if base is not None and absolute_if_local(base) != absolute_if_local(named):
        print(f"warning: {adapter} names {named or 'no base'}, but is merged into {base}")

    own = (folder / "tokenizer_config.json").is_file()
    for home in (folder, Path(name)):
        if home.is_dir():
            check_inside(home, COPIED, "additional_chat_templates")
    tokenizer = AutoTokenizer.from_pretrained(adapter if own else name)

    model = _load(name, dtype, config.revision or "main")
    rows = model.get_input_embeddings().weight.shape[0]
    if own and len(tokenizer) > rows:  # as in peft's AutoPeftModel; the adapter has the new rows
        model.resize_token_embeddings(len(tokenizer))
    untie(model)

    whole = _with_adapter(model, adapter)
    probes = _probes(len(tokenizer))
    before = _logprobs(whole, probes)
    if not all(bool(logprobs.isfinite().all()) for logprobs in before):
        raise InputError(f"adapter: {adapter}: with it the base's log-probs are not finite")

    if not hasattr(whole, "merge_and_unload"):
        raise InputError(f"adapter: {adapter}: {config.peft_type} cannot be merged into weights")
    try:
        merged = whole.merge_and_unload()
    except (NotImplementedError, RuntimeError, ValueError) as error:
        reason = " ".join(str(error).split()) or config.peft_type
        raise InputError(f"adapter: {adapter}: peft cannot merge it: {reason[:200]}") from None
    tie_again(merged)

    with atomic_directory(out) as aside:
        try:
            merged.save_pretrained(aside)
        except RuntimeError as error:  # peft left some weights shared
            reason = " ".join(str(error).split())
            raise InputError(
                f"adapter: {adapter}: the merged model cannot be saved: {reason[:200]}"
            ) from None
        tokenizer.save_pretrained(aside)

        del model, whole, merged
        gc.collect()
        after = _logprobs(_load(str(aside), dtype), probes)
        difference = (
            torch.stack([(a - b).abs().max() for a, b in zip(before, after, strict=True)])
            .max()
            .item()
        )  # NaN if any element is

        largest = max(b.abs().max().item() for b in before)
        if not difference <= ALLOWED[dtype] * max(1.0, largest):
            raise InputError(
                f"{out}: the merged model's log-probs differ by up to {difference:.3g} from those "
                f"of base and adapter ({WAYS_OUT[dtype]}); nothing was written"
            )
    return f"merged in {dtype}: log-probs of {len(probes)} probes differ by up to {difference:.2g}"


def untie(model: Any) -> None:
    """Give the head its own weight, because an adapter may be on only one of two tied weights."""
    head, embedding = model.get_output_embeddings(), model.get_input_embeddings()
    if head is not None and head.weight is embedding.weight:
        head.weight = torch.nn.Parameter(head.weight.detach().clone(), requires_grad=False)
        model.config.get_text_config().tie_word_embeddings = False
        model.config.tie_word_embeddings = False


def tie_again(model: Any) -> None:
    """Tie the two weights again if they are equal."""
    head, embedding = model.get_output_embeddings(), model.get_input_embeddings()
    if head is not None and torch.equal(head.weight, embedding.weight):
        head.weight = embedding.weight
        model.config.get_text_config().tie_word_embeddings = True
        model.config.tie_word_embeddings = True


def _load(name: str, dtype: str, revision: str = "main") -> Any:
    """Load the language model on the CPU; a quantized checkpoint is dequantized."""
    check_weights_of(name, revision)
    way = way_to_load(name, dtype, "cpu", revision)
    try:
        model = way.load(name)
    except (OSError, ValueError, SafetensorError) as error:
        first = str(error).strip().split("\n")[0]
        raise InputError(f"{name}: the model cannot be loaded: {first}") from None
    for line in way.settle(model):
        print(line)
    return model.eval()


def _with_adapter(model: Any, adapter: str) -> Any:
    """Put the adapter on its base with plain peft; a misfit is an error, not a warning."""
    try:
        with warnings.catch_warnings(record=True) as heard:
            warnings.simplefilter("always")
            whole = PeftModel.from_pretrained(model, adapter)
    except (ValueError, RuntimeError, KeyError, SafetensorError) as error:
        reason = " ".join(str(error).split())
        raise InputError(f"adapter: {adapter}: peft cannot load it: {reason[:300]}") from None
    missing = [str(w.message) for w in heard if "missing adapter keys" in str(w.message).lower()]
    if missing:
        raise InputError(f"adapter: {adapter} does not fit this base: {missing[0][:300]}")
    return whole.eval()


def _probes(tokens: int) -> list[Tensor]:
    """Make rows of ids from all parts of the vocabulary, including the newest tokens."""
    generator = torch.Generator().manual_seed(0)
    drawn = torch.randint(0, tokens, (3, 16), generator=generator)
    return [*drawn.split(1), torch.arange(max(0, tokens - 16), tokens)[None]]


@torch.no_grad()
def _logprobs(model: Any, probes: list[Tensor]) -> list[Tensor]:
    found = []
    for ids in probes:
        logits = model(input_ids=ids, use_cache=False).logits[:, :-1].float()
        found.append(logits.log_softmax(-1).gather(-1, ids[:, 1:, None])[..., 0])
    return found
