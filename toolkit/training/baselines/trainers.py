"""TRL's trainers with their overrides, and the sampling and rewards of RLOO and GRPO.

The trainers get token ids, and their own tokenization is bypassed; RLOO and GRPO sample with PPO's
loop. Private names that are overridden, seen in TRL 1.16.0: ``_prepare_dataset`` (DPO, KTO),
``tokenize_row`` (ORPO, CPO), ``_tokenize_prompts``, ``_generate_single_turn`` and
``_get_per_token_logps_and_entropies`` (RLOO, GRPO). Adapters stay fp32. The reference is the base
with the adapter off: no trainer here holds a second base.
"""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase, Trainer
from trl import GRPOTrainer, RLOOTrainer, SFTTrainer

from toolkit.data.prompts import Prompts, joined
from toolkit.maths.sequences import pad, position_ids
from toolkit.models.actors import POLICY, Actors, banned_of
from toolkit.models.adapters import plain_adapter
from toolkit.models.families import check_recomputing, trunk_of
from toolkit.models.fast import Read, last_states
from toolkit.models.generation import Sampled, step_of
from toolkit.models.lora_targets import language_lora
from toolkit.models.peft_wrappers import filler
from toolkit.models.sampling import SamplingRule
from toolkit.models.self_checks import check_passes
from toolkit.scoring.scorer import TokenCompletions, WeightedSum
from toolkit.training.baselines.config import (
    PreferenceConfig,
    RLOOBaselineConfig,
    SFTBaselineConfig,
    method_classes,
)
from toolkit.training.baselines.data import BaselineData, Row, prompt_rows, with_kl_rows

# Methods that tokenize in TRL's older trainers, one row at a time; the others tokenize a whole
# dataset.
MAKES_TOKENS_BY_ROW = ("orpo", "cpo")


@contextmanager
def fp32_adapters(base: PreTrainedModel) -> Iterator[None]:
    """Hide from TRL that the base is quantized, so that it leaves the adapters in fp32.

    TRL casts every trainable weight of a 4-bit model to bf16 (trl 1.16.0, dpo_trainer.py:726),
    which loses updates smaller than 1/256 of a weight. A test checks the adapters' type.
    """
    held: Any = base
    quantized = getattr(base, "is_loaded_in_4bit", False)
    if quantized:
        held.is_loaded_in_4bit = False
    try:
        yield
    finally:
        if quantized:
            held.is_loaded_in_4bit = True


class _Alone(Actors):
    """A language model without adapters, in the form for ``check_passes``."""

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model: Any = model

    def trunk(self, role: str, read: Read, **inputs: Any) -> Tensor:
        return last_states(trunk_of(self.model), read, **inputs)

    def output_head(self, role: str) -> Any:
        return self.model.get_output_embeddings()

    def language_model(self, role: str) -> Any:
        return self.model

    def language_models(self) -> list[Any]:
        return [self.model]


def _start(
    base: PreTrainedModel,
    config: SFTBaselineConfig | PreferenceConfig | RLOOBaselineConfig,
    lora: LoraConfig,
    policy_adapter: str | None,
) -> tuple[Any, LoraConfig | None]:
    """Prepare model and LoRA for TRL, which copies a given adapter as the frozen reference."""
    check_recomputing(base, config.activation_checkpointing)

    # TRL's fused head looks here for the trunk (Llama 4) and for the experts (Granite 4, Phi-MoE,
    # Llama 4). A Granite 4 without experts has nothing to balance.
    held: Any = base
    if held.base_model is held:
        held.base_model_prefix = "model"
    text: Any = base.config.get_text_config()
    if not hasattr(text, "num_experts"):
        text.num_experts = getattr(text, "num_local_experts", None)
    if not text.num_experts and hasattr(text, "router_aux_loss_coef"):
        text.router_aux_loss_coef = 0.0

    with torch.no_grad():  # before training, because other code will load the adapter
        check_passes(_Alone(base), POLICY)  # type: ignore[abstract]  # methods that it does not use

    if policy_adapter is None:
        return base, language_lora(base, lora)
    return plain_adapter(base, policy_adapter, is_trainable=True), None


def sft_trainer(
    base: PreTrainedModel,
    config: SFTBaselineConfig,
    tokenizer: PreTrainedTokenizerBase,
    data: BaselineData,
    lora: LoraConfig,
    policy_adapter: str | None = None,
) -> SFTTrainer:
    """Make TRL's SFTTrainer on these rows, from ``policy_adapter`` or a new adapter."""
    model, peft_config = _start(base, config, lora, policy_adapter)
    with fp32_adapters(base):
        return SFTTrainer(
            model,
            config,
            train_dataset=data.train,
            eval_dataset=data.held_out,
            processing_class=tokenizer,
            peft_config=peft_config,
        )


def preference_trainer(
    base: PreTrainedModel,
    config: PreferenceConfig,
    tokenizer: PreTrainedTokenizerBase,
    data: BaselineData,
    lora: LoraConfig,
    policy_adapter: str | None = None,
) -> Trainer:
    """Make the method's trainer on these rows (``preference_shape``).

    The reference of DPO and KTO is the base with the adapter off, or a frozen copy of
    ``policy_adapter``; ORPO and CPO have none.
    """
    model, peft_config = _start(base, config, lora, policy_adapter)
    trainer_class = _takes_ids(method_classes(config.method)[1], config.method)

    train, held_out, weight = data.train, data.held_out, 1.0
    if config.method == "kto":
        wanted = sum(train["label"])
        weight = config.undesirable_weight * (len(train) - wanted) / wanted
        train = with_kl_rows(train, config.per_device_train_batch_size, config.seed)
        held_out = with_kl_rows(held_out, config.per_device_eval_batch_size, config.seed)
    args = config.for_trl(weight)

    if config.method in MAKES_TOKENS_BY_ROW and peft_config is not None:
        # Otherwise TRL would first convert unquantized weights to fp32 (prepare_model_for_kbit).
        torch.manual_seed(config.seed)
        model, peft_config = get_peft_model(model, peft_config), None

    with fp32_adapters(base), warnings.catch_warnings():
        # TRL's own deprecation warning, about which the user can do nothing.
        warnings.simplefilter("ignore", FutureWarning)
        return trainer_class(
            model=model,
            args=args,
            train_dataset=train,
            eval_dataset=held_out,
            processing_class=tokenizer,
            peft_config=peft_config,
        )


def _takes_ids(trainer_class: Any, method: str) -> Any:
    """Subclass the trainer so that it does not tokenize: rows are token ids."""
    if method in MAKES_TOKENS_BY_ROW:

        class TakesPairs(trainer_class):
            def tokenize_row(self, feature: Row, model: object = None) -> Row:
                prompt = feature["prompt_ids"]
                made: Row = {
                    "prompt_input_ids": prompt,
                    "prompt_attention_mask": [1] * len(prompt),
                }
                for side in ("chosen", "rejected"):
                    ids = feature[f"{side}_ids"]
                    made[f"{side}_input_ids"] = prompt + ids
                    made[f"{side}_attention_mask"] = [1] * len(prompt + ids)
                    made[f"{side}_labels"] = [-100] * len(prompt) + ids
                return made

        return TakesPairs

    class TakesIds(trainer_class):
        def _prepare_dataset(self, dataset: Dataset, *args: object, **kwargs: object) -> Dataset:
            return dataset

    return TakesIds


class VisibleReward:
    """Rewards of sampled tokens; scorers see the visible part of a completion, as in PPO.

    Args:
        scorer: the sum of scores, in fp64 as TRL requires.
        rule: the truncation, and the penalty for completions that do not meet it.
        tokenizer: of these tokens.
        prompts: the training prompts, then the held-out ones; the other columns of their rows go
            to the scorers.
    """

    def __init__(
        self,
        scorer: WeightedSum,
        rule: SamplingRule,
        tokenizer: PreTrainedTokenizerBase,
        *prompts: Prompts,
    ) -> None:
        self.scorer = scorer
        self.rule = rule
        self.tokenizer = tokenizer
        self.prompts = joined(prompts)
        self.__name__ = scorer.name

    def __call__(
        self,
        prompts: list[list[int]],
        completion_ids: list[list[int]],
        row: list[int],
        **others: Any,
    ) -> list[float]:
        """Return scores; NaN, from which TRL learns nothing, if a part cannot score it."""
        ids, mask = pad(completion_ids, self.rule.pad_id)
        visible, valid = self.rule.visible(Sampled(ids, mask, torch.zeros(0)))
        seen = TokenCompletions.seen(self.prompts.pick(row), ids, visible, self.tokenizer)
        return torch.where(valid, self.scorer(seen), self.rule.penalty).tolist()


class _SamplesAsPPO:
    """Overrides of RLOOTrainer and GRPOTrainer: token ids as prompts, and PPO's sampler.

    ``generate`` ends completions at end-of-text, or bans that token if there is no end. The toolkit
    samples it like any other token, unless it is the stop token.

    Args:
        rule: the sampling rule.
        kwargs: the trainer's.
    """

    accelerator: Any
    args: Any
    model_wrapped: Any
    processing_class: Any

    def __init__(self, rule: SamplingRule, **kwargs: Any) -> None:
        self.rule = rule
        super().__init__(**kwargs)
        self.noise = torch.Generator().manual_seed(self.args.seed)
        self.eos_token_ids = list(rule.stop_ids)  # counted in metrics

    def _tokenize_prompts(self, prompts: list[list[int]]) -> tuple[list[list[int]], None, Row]:
        return prompts, None, {}

    def _sample(self, prompt_ids: list[list[int]]) -> list[list[int]]:
        model: Any = self.accelerator.unwrap_model(self.model_wrapped)
        was_training = model.training
        model.eval()  # in training mode checkpointing would not use the cache
        device = self.accelerator.device

        with self.accelerator.autocast():
            tokenizer: Any = self.processing_class
            banned = banned_of(tokenizer, model.config.get_text_config().vocab_size)
            step = step_of(model, None if banned is None else banned.to(device))
            _, sampled = self.rule.sample(step, prompt_ids, self.noise, device)

        model.train(was_training)
        return [
            ids[keep].tolist()
            for ids, keep in zip(sampled.completion_ids, sampled.mask, strict=True)
        ]

    def _get_per_token_logps_and_entropies(
        self,
        model: Any,
        input_ids: Tensor,
        attention_mask: Tensor,
        logits_to_keep: int,
        batch_size: int | None = None,
        compute_entropy: bool = False,
        compute_aux_loss: bool = False,
        **images: object,
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Add position ids, without which padding makes learned positions wrong.

        Padding is not read as the padding token, whose gradient may be none (``filler``).
        """
        fill = filler(self.accelerator.unwrap_model(model).get_input_embeddings())
        logps, entropies, balances = [], [], []
        routers = {"output_router_logits": True} if compute_aux_loss else {}

        for ids, mask in zip(
            *(t.split(batch_size or len(input_ids)) for t in (input_ids, attention_mask)),
            strict=True,
        ):
            labels = ids.masked_fill(mask == 0, -100)
            labels[:, :-logits_to_keep] = -100
            with self.accelerator.autocast():
                outputs = model(
                    input_ids=ids.masked_fill(mask == 0, fill),
                    attention_mask=mask,
                    position_ids=position_ids(mask),
                    labels=labels,
                    fused_lm_head=True,
                    **routers,
                )
            logps.append(outputs.log_probs[:, -logits_to_keep:])
            entropies.append(outputs.entropy[:, -logits_to_keep:])
            balances.append(outputs.aux_loss)  # for experts; families without them have none

        balance = torch.stack(balances).mean() if compute_aux_loss else None
        return torch.cat(logps), torch.cat(entropies) if compute_entropy else None, balance


class SampledRLOOTrainer(_SamplesAsPPO, RLOOTrainer):
    """RLOOTrainer with PPO's samples."""

    def _generate_single_turn(
        self, prompt_ids: list[list[int]], images: None, multimodal_fields: Row
    ) -> list[list[int]]:
        return self._sample(prompt_ids)


class SampledGRPOTrainer(_SamplesAsPPO, GRPOTrainer):
    """GRPOTrainer with PPO's samples."""

    def _generate_single_turn(
        self, prompt_ids: list[list[int]], *others: object, **named: object
    ) -> tuple[list[list[int]], None]:
        return self._sample(prompt_ids), None


def rloo_trainer(
    base: PreTrainedModel,
    config: RLOOBaselineConfig,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Prompts,
    held_out: Prompts | None,
    reward: VisibleReward,
    lora: LoraConfig,
    policy_adapter: str | None = None,
) -> SampledRLOOTrainer | SampledGRPOTrainer:
    """Make TRL's RLOOTrainer or GRPOTrainer on these prompts and this reward."""
    model, peft_config = _start(base, config, lora, policy_adapter)
    kind = SampledRLOOTrainer if config.method == "rloo" else SampledGRPOTrainer
    with fp32_adapters(base):
        return kind(
            reward.rule,
            model=model,
            args=config.for_trl(),
            reward_funcs=[reward],
            train_dataset=prompt_rows(prompts),
            eval_dataset=None if held_out is None else prompt_rows(held_out, len(prompts)),
            processing_class=tokenizer,
            peft_config=peft_config,
        )
