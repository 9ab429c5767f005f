"""The reward model's trainer: TRL's RewardTrainer with a K-way softmax and normalized scores.

It overrides three private names of TRL 1.16.0 (pinned; a test compares K = 2 with the stock loss),
``_prepare_dataset``, ``_set_signature_columns_if_needed`` and ``compute_loss``, and the collator.
"""

from collections.abc import Iterable
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from peft import LoraConfig
from torch import Tensor, nn
from tqdm.auto import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase, set_seed
from trl import RewardTrainer

from toolkit.data.collators import ComparisonCollator, buckets, by_comparison
from toolkit.data.prompts import Prompts
from toolkit.errors import InputError
from toolkit.maths.losses import centering_penalty
from toolkit.maths.normalization import gain_and_bias
from toolkit.models.actors import REFERENCE
from toolkit.models.adapters import check_round_trip, copy_lora
from toolkit.models.families import check_recomputing
from toolkit.models.fast import flash_attends, padding_on_the_right
from toolkit.models.lora_targets import language_lora
from toolkit.models.roles import Roles
from toolkit.models.sampling import SamplingRule
from toolkit.scoring.reward_models import RewardAdapter, score_rows
from toolkit.scoring.scorer import TokenCompletions
from toolkit.training.progress import show_progress_in_words
from toolkit.training.reward.config import BestOfKConfig
from toolkit.training.reward.losses import LOSSES


class BestOfKTrainer(RewardTrainer):
    """RewardTrainer for comparisons of any K.

    Args:
        model: a sequence classifier with one output (``load_base(..., score_head=True)``).
        args: the configuration.
        processing_class: the tokenizer.
        train_dataset: rows of ``data.encoded_rows.SCHEMA``; ``candidate_ids`` and ``best`` suffice.
        eval_dataset: held-out rows of the same form.
        peft_config: LoRA with task type SEQ_CLS, so that the head is trained and saved.
        collator: by default ``ComparisonCollator`` with the tokenizer's pad token.
        start: a policy adapter's folder, of which LoRA starts as a copy (arXiv 1909.08593,
            section 2.1: the reward model starts from the supervised policy); ``peft_config`` is
            then ``lora_config_like`` it.

    Raises:
        ValueError: with another task type the head would be neither trained nor saved.
        InputError: LoRA cannot be an exact copy of ``start``.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        args: BestOfKConfig,
        processing_class: PreTrainedTokenizerBase,
        train_dataset: Dataset,
        eval_dataset: Dataset | None,
        peft_config: LoraConfig,
        collator: ComparisonCollator | None = None,
        start: str | Path | None = None,
    ) -> None:
        if peft_config.task_type != "SEQ_CLS":
            raise ValueError(f"task_type is {peft_config.task_type}, but must be SEQ_CLS")
        self.config = args
        collator = collator or ComparisonCollator(processing_class.pad_token_id)
        set_seed(args.seed)  # before peft draws the adapter's A
        check_recomputing(model, args.activation_checkpointing)
        super().__init__(
            model=model,
            args=args,
            processing_class=processing_class,
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            data_collator=collator,
            peft_config=language_lora(model, peft_config),
        )
        assert self.model is not None
        check_round_trip(self.model, "default")
        show_progress_in_words(self, "Training the reward model")
        # transformers' pooling recognizes padding by this id, whatever token it stands for.
        model.config.get_text_config().pad_token_id = collator.pad_token_id
        for parameter in self.model.parameters():  # undoes TRL's cast to bf16 on a quantized base
            if parameter.requires_grad:
                parameter.data = parameter.data.float()
        if start is not None:
            copy_lora(self.model, start)

    def save_adapter(self, folder: Path, base_name: str) -> None:
        """Save adapter and head with peft, naming the base ``base_name``."""
        model: Any = self.model
        model.peft_config["default"].base_model_name_or_path = base_name
        model.save_pretrained(str(folder))
        (folder / "README.md").unlink(missing_ok=True)  # peft's empty template

    def _prepare_dataset(self, dataset: Dataset, *args: Any, **kwargs: Any) -> Dataset:
        """Return the dataset unchanged: rows are tokenized. ``evaluate`` calls this, too."""
        return dataset

    def _set_signature_columns_if_needed(self) -> None:
        self._signature_columns = [  # type: ignore[assignment]
            "candidate_ids",
            "best",
            "ranking",
            "worst",
            "scores",
            "margin",
            "weight",
        ]

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Tensor],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """Compute the configured loss of a batch; its log values go to TRL's own metrics."""
        metrics = self._metrics["train" if model.training else "eval"]
        ids = inputs["input_ids"]
        flash = flash_attends(ids.device, self._in_fp32(model))
        flat, padding = score_in_buckets(model, ids, inputs["attention_mask"], not flash)
        scores, mask = by_comparison(flat, inputs["candidates"])
        loss = comparison_loss(self.config, scores, mask, inputs)
        with torch.no_grad():
            picked = scores.masked_fill(~mask, float("-inf")).argmax(dim=1)
            accuracy = (picked == inputs["best"]).float()
            accuracy = self.accelerator.gather_for_metrics(accuracy).mean().item()
            metrics["accuracy"].append(accuracy)
            metrics["mean_reward"].append(scores[mask].mean().item())
            metrics["padding"].append(padding)
        return (loss, {"scores": scores}) if return_outputs else loss

    def _in_fp32(self, model: Any) -> bool:
        """Whether the passes run in fp32."""
        weight = self.accelerator.unwrap_model(model).get_input_embeddings().weight
        return weight.dtype == torch.float32 and not self.args.bf16


def score_in_buckets(
    model: nn.Module, ids: Tensor, mask: Tensor, masked: bool = True
) -> tuple[Tensor, float]:
    """Score right-padded rows (N, T), similar lengths together; return (N,) fp32.

    In one pass over the table a third of the tokens would be padding, if candidates differ in
    length as people's texts do; ``data.collators.buckets`` bounds the padding.

    Args:
        model: the sequence classifier.
        ids, mask: (N, T).
        masked: False leaves it to causal attention that no token sees padding
            (``padding_on_the_right``).

    Returns:
        the scores, in the rows' order, and the share of padding among the tokens computed.
    """
    lengths = mask.sum(dim=1).tolist()
    parts, order, computed = [], [], 0
    for group in buckets(lengths):
        rows = torch.tensor(group).to(ids.device, non_blocking=True)
        width = lengths[group[0]]
        with nullcontext() if masked else padding_on_the_right():
            outputs = model(
                input_ids=ids[rows, :width], attention_mask=mask[rows, :width], use_cache=False
            )
        parts.append(outputs.logits.squeeze(-1).float())
        order += group
        computed += width * len(group)
    back = torch.tensor(order).argsort().to(ids.device, non_blocking=True)
    return torch.cat(parts)[back], 1 - sum(lengths) / computed


def comparison_loss(
    config: BestOfKConfig, scores: Tensor, mask: Tensor, batch: dict[str, Tensor]
) -> Tensor:
    """Compute the loss that ``config.loss_type`` names, plus the centering penalty if set.

    Args:
        config: loss_type, label_smoothing, use_margin, center_rewards_coefficient.
        scores, mask: (B, K).
        batch: from ``ComparisonCollator``; ``target_scores`` (N,).
    """
    margin = batch["margin"] if config.use_margin else None
    loss = LOSSES[config.loss_type](scores, mask, batch, config.label_smoothing, margin)
    if config.center_rewards_coefficient:
        penalty = centering_penalty(scores, mask, batch.get("weight"))
        loss = loss + config.center_rewards_coefficient * penalty
    return loss


@torch.no_grad()
def score_candidates(
    roles: Roles, rows: Iterable[dict[str, Any]], pad_id: int, batch_size: int = 256
) -> list[list[float]]:
    """Score each row's candidates with the reward adapter, by the code path of PPO.

    Args:
        roles: roles with a reward adapter.
        rows: rows with ``candidate_ids`` (``data.encoding``), iterated twice.
        pad_id: id of the padding.
        batch_size: candidates in one pass.
    """
    counts = [len(row["candidate_ids"]) for row in rows]
    flat = [ids for row in rows for ids in row["candidate_ids"]]
    scores = score_rows(roles.scores, flat, pad_id, batch_size, roles.device, True).tolist()
    remaining = iter(scores)
    return [[next(remaining) for _ in range(count)] for count in counts]


@torch.no_grad()
def normalize(
    roles: Roles,
    prompts: list[list[int]],
    rule: SamplingRule,
    tokenizer: PreTrainedTokenizerBase,
    samples: int,
    seed: int,
    whole: bool = True,
    batch_size: int = 256,
    role: str = REFERENCE,
) -> dict[str, float]:
    """Set the roles' gain and bias so that fresh samples of a role have mean 0 and std 1.

    As in the original code, these samples are whole, although labels and PPO's scores are for
    truncated text (openai/lm-human-preferences lm_human_preferences/train_reward.py:190-195).

    Args:
        roles: with a reward adapter whose gain is 1 and bias 0.
        prompts: token ids, or ``Prompts``; used in turn until there are enough samples.
        rule: how completions are sampled.
        tokenizer: for padding.
        samples: number of samples; 0 leaves the scores unchanged.
        seed: seed of the sampling.
        whole: score whole completions; False scores them after truncation.
        batch_size: samples in one pass.
        role: who writes the samples: the reference, or a policy that was added to the roles. It
            should be what the policy will start from.

    Returns:
        gain, bias, raw_mean, raw_std, samples.

    Raises:
        InputError: all samples have the same score: the head has learned nothing.
    """
    if (roles.gain, roles.bias) != (1.0, 0.0):
        raise ValueError("normalize: the scores are already normalized")
    if samples == 0:
        return {"gain": 1.0, "bias": 0.0, "samples": 0}
    generator = torch.Generator().manual_seed(seed)
    known = prompts if isinstance(prompts, Prompts) else Prompts(prompts)
    chosen = [i % len(known) for i in range(samples)]
    raw: list[float] = []
    for start in tqdm(range(0, samples, batch_size), desc="Normalizing", leave=False):
        batch = known.pick(chosen[start : start + batch_size])
        _, sampled = rule.sample(roles.step(role), batch, generator, roles.device)
        # Whole or not, the scorer never sees a stop token.
        shown = replace(rule, truncate_id=None) if whole else rule
        visible, _ = shown.visible(sampled)
        seen = TokenCompletions.seen(batch, sampled.completion_ids, visible, tokenizer, roles)
        raw += RewardAdapter().finite_scores(seen)
    tensor = torch.tensor(raw)
    try:
        roles.gain, roles.bias = gain_and_bias(tensor)
    except ValueError as error:
        raise InputError(f"the reward model cannot be normalized: {error}") from None
    return {
        "gain": roles.gain,
        "bias": roles.bias,
        "raw_mean": tensor.mean().item(),
        "raw_std": tensor.std(correction=0).item(),
        "samples": samples,
    }
