"""Merge an adapter into its base as one model, and measure how the numbers change."""

import gc
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from toolkit.data.files import atomic_directory, write_text
from toolkit.data.links import copy_inside
from toolkit.errors import InputError, check_choice
from toolkit.hub.adapter_source import TrainedAdapter
from toolkit.hub.base_on_hub import TOKENIZER_FILES, Base, check_tokenizer
from toolkit.hub.gate import PROBES, publicly_known
from toolkit.hub.package import one_line
from toolkit.hub.secret_scan import find_secrets
from toolkit.models.adapters import plain_adapter
from toolkit.models.base_config import load_config
from toolkit.models.families import family_of
from toolkit.models.loading import load_base, load_tokenizer
from toolkit.models.merging import tie_again, untie
from toolkit.models.quantized import DTYPES


def check_merge(adapter: TrainedAdapter, dtype: str, into_full_precision: bool) -> None:
    """Raise InputError if merging would change the numbers and this was not asked for."""
    check_choice("merged_dtype", dtype, tuple(DTYPES))
    if adapter.kind == "value":
        raise InputError(
            "merged_output: a value has a head that no class of transformers loads (publish the "
            "adapter)",
            "merged_output",
        )
    if adapter.precision == "4bit" and not into_full_precision:
        raise InputError(
            "merged_output: the adapter was trained on a 4-bit base, and rounding would destroy it "
            "in 4-bit weights (pass --merge_into_full_precision true to merge it into the base "
            "before rounding; its numbers then differ somewhat, and the difference is measured)",
            "merge_into_full_precision",
        )


def merge(
    adapter: TrainedAdapter, base: Base, folder: Path, dtype: str, template: str | None
) -> str:
    """Write base and adapter as one model, load it again, and measure the difference.

    Args:
        adapter: the adapter.
        base: the adapter's base.
        folder: an empty folder.
        dtype: "bf16" or "fp32".
        template: text of chat_template.jinja; None keeps the base's own.

    Returns:
        A sentence on the difference, which is also in the folder's README.md.

    Raises:
        InputError: a secret or a local path got into the files, or they could not be written.
    """
    check_tokenizer(base.files)
    files = str(base.files)
    if adapter.kind == "reward" and family_of(load_config(files), files).classifier == "trunk":
        raise InputError(
            "merged_output: transformers has no sequence classifier for this base, so a reward "
            "model cannot be merged (publish the adapter)",
            "merged_output",
        )

    before = _outputs(_with_adapter(adapter, base, adapter.precision), base)
    merged = _with_adapter(adapter, base, dtype, apart=True).merge_and_unload()
    tie_again(merged)

    with one_line(folder), atomic_directory(folder) as aside:
        try:
            merged.save_pretrained(aside)
        except SafetensorError as error:  # raised for a full disk
            raise OSError(str(error)) from None
        del merged
        gc.collect()

        for name in TOKENIZER_FILES:
            copy_inside(base.files, name, aside / name)
        if template is not None:
            write_text(aside / "chat_template.jinja", template)

        head = "own" if adapter.kind == "reward" else False
        again = load_base(str(aside), dtype, score_head=head)
        said = _difference(before, _outputs(again, base), adapter, dtype)
        write_text(aside / "README.md", _card(adapter, base, said))

        if problems := find_secrets(
            aside, [adapter.folder, base.files, folder.resolve()], *publicly_known(base, aside)
        ):
            raise InputError(f"merged_output: {problems[0]}", details=problems[1:])
    return said


def _with_adapter(adapter: TrainedAdapter, base: Base, precision: str, apart: bool = False) -> Any:
    """Load the adapter on its base with plain peft, with its head if it has one.

    ``apart`` unties embedding and output head, so that merging into one does not change the other.
    """
    model = load_base(str(base.files), precision, score_head=adapter.kind == "reward")
    if apart:
        untie(model)
    return plain_adapter(model, adapter.folder).eval()


@torch.no_grad()
def _outputs(model: Any, base: Base) -> list[torch.Tensor]:
    """Compute each probe text's log-probs (T, V) or raw score (1, 1), fp32."""
    tokenizer = load_tokenizer(str(base.files))
    device = next(model.parameters()).device
    outputs = []
    for text in PROBES:
        ids = torch.tensor([tokenizer(text)["input_ids"]], device=device)
        logits = model(input_ids=ids, use_cache=False).logits.float().cpu()
        outputs.append(logits if logits.dim() == 2 else logits[0].log_softmax(-1))
    return outputs


def _difference(
    before: list[torch.Tensor], after: list[torch.Tensor], adapter: TrainedAdapter, dtype: str
) -> str:
    gaps = torch.cat([(a - b).abs().flatten() for a, b in zip(before, after, strict=True)])
    if not bool(gaps.isfinite().all()):
        raise InputError("merged_output: the model's numbers are NaN or infinite, merged or not")

    held = {"4bit": "4-bit", "bf16": "bfloat16", "fp32": "float32"}[adapter.precision]
    what = "raw scores" if adapter.kind == "reward" else "log-probs of all next tokens"
    text = (
        f"Merged in {dtype}, and compared with the adapter on the base in {held} on {len(PROBES)} "
        f"probe texts: {what} differ by up to {gaps.max().item():.3g}, on average by "
        f"{gaps.mean().item():.3g}"
    )
    if adapter.kind == "policy":
        pairs = list(zip(before, after, strict=True))
        divergence = torch.cat([(a.exp() * (a - b)).sum(-1) for a, b in pairs]).mean().item()
        text += f"; KL(adapter || merged) is {divergence:.3g} nats per token"
    return text + "."


def _card(adapter: TrainedAdapter, base: Base, said: str) -> str:
    license = "".join(f"{key}: {value}\n" for key, value in base.license.items())
    return (
        f"---\nbase_model: {base.repo_id}\nbase_model_relation: merge\n{license}---\n\n# Merged "
        f"model\n\nA {adapter.kind} adapter merged into `{base.repo_id}` (commit `{base.sha}`).\n\n"
        f"{said}\n"
    )
