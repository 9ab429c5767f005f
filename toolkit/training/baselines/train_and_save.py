"""The baselines: TRL's trainers on the comparisons, tokens and adapters of PPO.

    method              trainer                              learns from
    sft                 trl.SFTTrainer                       the picks, or plain text
    dpo (ipo, ...)      trl.DPOTrainer                       the pick against each other completion
    kto                 trl.KTOTrainer                       each completion, wanted or not
    orpo, cpo           trl.experimental                     the pick against each other completion
    rloo, grpo          trl.RLOOTrainer, trl.GRPOTrainer     fresh samples and their rewards

    module              holds
    config              settings, and what is refused
    data                rows as token ids: schemas, split, shape
    trainers            the trainers, their overrides, the sampling and rewards of RLOO and GRPO
    train_and_save      this one: train, evaluate, save, reload and compare

Each imports only from those above it.
"""

import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, Trainer

from toolkit.data.files import atomic_directory, write_json, write_jsonl
from toolkit.data.outputs import forget_run
from toolkit.errors import InputError, RunStopped
from toolkit.models.adapters import absolute_if_local
from toolkit.models.reload import TOLERANCE
from toolkit.models.roles import Roles
from toolkit.models.toolkit_json import start_of, write_facts
from toolkit.training.baselines.data import Row
from toolkit.training.progress import show_progress_in_words
from toolkit.training.run_log import peak_mb


@torch.no_grad()
def token_logprobs(model: Any, rows: list[list[int]]) -> list[Tensor]:
    """Return log-probs of each row's tokens but the first, one row at a time without padding."""
    device = next(model.parameters()).device
    found = []
    for row in rows:
        ids = torch.tensor([row], device=device)
        logits = model(input_ids=ids, use_cache=False).logits[:, :-1].float()
        chosen = logits.log_softmax(dim=-1).gather(-1, ids[:, 1:, None])
        found.append(chosen.flatten().cpu())
    return found


@torch.no_grad()
def role_logprobs(roles: Roles, rows: list[list[int]]) -> list[Tensor]:
    """Return the same, by the code path of PPO and the evaluation."""
    found = []
    for row in rows:
        ids = torch.tensor([row], device=roles.device)
        mask = torch.ones_like(ids, dtype=torch.bool)
        found.append(roles.policy_outputs(ids, mask, ids[:, 1:], 1.0).logprobs.flatten().cpu())
    return found


def train_and_save(
    make: Callable[[], Trainer],
    doing: str,
    out: Path,
    load: Callable[[], PreTrainedModel],
    name: str,
    precision: str,
    probes: list[list[int]],
    rendering: Row,
    policy_adapter: str | None = None,
) -> tuple[dict[str, float], list[Row]]:
    """Train, evaluate on held-out rows, save the adapter, reload it and compare.

    ``out/adapter`` appears when all is done: the adapter (plain peft loads it), toolkit.json and
    metrics.json; then ``out/log.jsonl``, with what the trainer logged. A run that fails keeps its
    log; a run that is killed leaves nothing that would disturb the next one.

    Args:
        make: makes the trainer, which is released before the base is loaded a second time.
        doing: the name of its progress bar.
        out: folder of the run.
        load: loads the base.
        name, precision: of the base.
        probes: token ids of texts whose log-probs must be the same after reloading.
        rendering: how these texts were rendered, for toolkit.json.
        policy_adapter: the adapter that the training starts from; None for the base alone.

    Returns:
        metrics, and the logged rows that have a loss.

    Raises:
        RunStopped: the adapter is not finite.
        InputError: the reloaded adapter differs from the trained one.
    """
    trainer = make()
    show_progress_in_words(trainer, doing)
    model: Any = trainer.model
    count = sum(p.numel() for p in model.parameters() if p.requires_grad)
    print(f"trains {count:,} weights of LoRA")

    seconds = trainer.train().metrics["train_runtime"]
    metrics = dict(trainer.evaluate()) if trainer.eval_dataset is not None else {}
    history = list(trainer.state.log_history)
    metrics |= {"seconds": seconds, "steps": trainer.state.global_step, "peak_mb": peak_mb()}

    with _log_of_a_failure(out, history), atomic_directory(out / "adapter") as folder:
        if not all(bool(p.isfinite().all()) for p in model.parameters() if p.requires_grad):
            raise RunStopped("the adapter is not finite (lower --learning_rate)")

        # As the adapter is loaded again, without the autocast that --bf16 puts around each pass.
        trainer.accelerator.unwrap_model(model, keep_fp32_wrapper=False)
        expected = token_logprobs(model.eval(), probes)
        model.peft_config["default"].base_model_name_or_path = absolute_if_local(name)
        model.save_pretrained(str(folder), selected_adapters=["default"])
        (folder / "README.md").unlink(missing_ok=True)  # peft's empty template
        write_facts(folder, name, precision=precision, **rendering, **start_of(policy_adapter))
        if getattr(trainer.processing_class, "beside_base", False):  # it is not the base's own
            tokenizer: Any = trainer.processing_class
            tokenizer.save_pretrained(folder)

        del trainer, model
        gc.collect()  # a trainer is part of cycles
        metrics["reload_difference"] = _check_reload(
            Roles(load(), policy_adapter=folder), probes, expected, folder, precision
        )
        write_json(folder / "metrics.json", metrics)
        forget_run(out)
    write_jsonl(out / "log.jsonl", history)
    return metrics, [row for row in history if "loss" in row]


@contextmanager
def _log_of_a_failure(out: Path, history: list[Row]) -> Iterator[None]:
    """Keep the log of a run that fails inside."""
    try:
        yield
    except (RunStopped, InputError):
        write_jsonl(out / "log.jsonl", history)
        raise


def _check_reload(
    roles: Roles, probes: list[list[int]], expected: list[Tensor], folder: Path, precision: str
) -> float:
    """Return the largest difference of the saved adapter's log-probs; raise if too large."""
    again, before = torch.cat(role_logprobs(roles, probes)), torch.cat(expected)
    difference = (again - before).abs().max().item()
    exact = precision == "fp32" or (precision == "4bit" and roles.device.type == "cpu")
    allowed = TOLERANCE["exact" if exact else "rounded"] * max(1.0, before.abs().max().item())
    if not difference <= allowed:
        raise InputError(
            f"{folder}: after reloading, log-probs differ by up to {difference:.3g} (allowed are "
            f"{allowed:.3g}): the saved adapter is not what was trained"
        )
    return difference
