"""The reward model: TRL's RewardTrainer with a K-way softmax, and scores that mean something.

The seam in TRL 1.16.0 (three private names; pinned, and a test holds K = 2 against the stock loss):
``_prepare_dataset``, ``_set_signature_columns_if_needed`` and ``compute_loss``, and a collator.
"""

from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from datasets import Dataset
from peft import LoraConfig
from torch import Tensor, nn
from tqdm.auto import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase, set_seed
from trl import RewardConfig, RewardTrainer

from toolkit.data.collators import ComparisonCollator, by_comparison
from toolkit.errors import InputError, check_range, check_seed
from toolkit.maths.losses import best_of_k_loss
from toolkit.maths.normalization import gain_and_bias
from toolkit.maths.sequences import pad
from toolkit.maths.statistics import wilson_interval
from toolkit.models.generation import sample
from toolkit.models.roles import Roles
from toolkit.training.rollouts import SamplingRule, score

# Fields of RewardConfig that the K-way trainer would silently ignore, with their defaults.
NOT_USED = {
    "center_rewards_coefficient": None, "chat_template_path": None, "eos_token": None,
    "pad_token": None, "pad_to_multiple_of": "auto", "model_init_kwargs": None,
}  # fmt: skip


@dataclass
class BestOfKConfig(RewardConfig):
    """RewardConfig with the paper's habits: no clipping, no weight decay, linear decay to 0."""

    HELP_FIELDS: ClassVar[tuple[str, ...]] = (
        "output_dir", "num_train_epochs", "per_device_train_batch_size", "learning_rate",
        "max_length", "seed", "report_to",
    )  # fmt: skip

    output_dir: str | None = field(
        default="outputs/reward", metadata={"help": "Folder for the adapter."}
    )
    num_train_epochs: float = field(default=1.0, metadata={"help": "Passes over the comparisons."})
    learning_rate: float = field(default=1e-4, metadata={"help": "Falls linearly to 0."})
    per_device_train_batch_size: int = field(
        default=32, metadata={"help": "Comparisons (each of K texts) in a batch."}
    )
    per_device_eval_batch_size: int = field(default=64, metadata={"help": "The same, held out."})
    bf16: bool = field(default=False, metadata={"help": "Autocast to bf16 (GPU)."})
    activation_checkpointing: bool | None = field(default=False, metadata={"help": "Save memory."})
    gradient_checkpointing: bool | None = field(  # type: ignore[assignment]  # the old name
        default=None, init=False
    )
    max_grad_norm: float = field(default=0.0, metadata={"help": "0: gradients are not clipped."})
    adam_epsilon: float = field(default=1e-5, metadata={"help": "Adam's epsilon."})
    save_strategy: str = field(default="no", metadata={"help": "The adapter is saved at the end."})
    dataloader_pin_memory: bool = field(
        default_factory=torch.cuda.is_available, metadata={"help": "Pin batches (GPU)."}
    )
    trust_remote_code: bool = field(default=False, init=False)  # ModelArguments has it
    logging_steps: float = field(default=10, metadata={"help": "Steps between log lines."})

    def __post_init__(self) -> None:
        check_seed(self.seed)
        for name, default in NOT_USED.items():
            if getattr(self, name) != default:
                raise InputError(f"{name} is not used for comparisons (leave it out)", name)
        for name in ("num_train_epochs", "learning_rate"):
            check_range(name, getattr(self, name), above=0)
        for name in ("per_device_train_batch_size", "max_length"):
            check_range(name, getattr(self, name), low=1)
        super().__post_init__()


class BestOfKTrainer(RewardTrainer):
    """RewardTrainer for comparisons of any K.

    Args:
        model: a sequence classifier with one output (``load_base(..., score_head=True)``).
        args: the configuration.
        processing_class: the tokenizer.
        train_dataset: rows ``candidate_ids, best`` (``encode_candidates``).
        eval_dataset: the same, held out.
        peft_config: LoRA with task type SEQ_CLS, so that the head is trained and saved.

    Raises:
        ValueError: another task type: the head would be neither trained nor saved.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        args: BestOfKConfig,
        processing_class: PreTrainedTokenizerBase,
        train_dataset: Dataset,
        eval_dataset: Dataset | None,
        peft_config: LoraConfig,
    ) -> None:
        if peft_config.task_type != "SEQ_CLS":
            raise ValueError(f"task_type is {peft_config.task_type}, but must be SEQ_CLS")
        set_seed(args.seed)  # before peft draws the adapter's A
        super().__init__(
            model=model,
            args=args,
            processing_class=processing_class,
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            data_collator=ComparisonCollator(processing_class.pad_token_id),
            peft_config=peft_config,
        )
        assert self.model is not None
        for parameter in self.model.parameters():  # undoes TRL's cast to bf16 on a quantised base
            if parameter.requires_grad:
                parameter.data = parameter.data.float()

    def _prepare_dataset(self, dataset: Dataset, *args: Any, **kwargs: Any) -> Dataset:
        """Rows come tokenised; called again by ``evaluate``."""
        return dataset

    def _set_signature_columns_if_needed(self) -> None:
        self._signature_columns = ["candidate_ids", "best"]  # type: ignore[assignment]

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Tensor],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """The K-way softmax over each comparison's scores; accuracy goes to TRL's own metrics."""
        mode = "train" if model.training else "eval"
        outputs = model(
            input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"], use_cache=False
        )
        scores, mask = by_comparison(outputs.logits.squeeze(-1).float(), inputs["candidates"])
        loss = best_of_k_loss(scores, inputs["best"], mask)
        with torch.no_grad():
            picked = scores.masked_fill(~mask, float("-inf")).argmax(dim=1)
            accuracy = (picked == inputs["best"]).float()
            accuracy = self.accelerator.gather_for_metrics(accuracy).mean().item()
            self._metrics[mode]["accuracy"].append(accuracy)
        return (loss, {"scores": scores}) if return_outputs else loss


@torch.no_grad()
def score_candidates(
    roles: Roles, rows: list[dict[str, Any]], pad_id: int, batch_size: int = 256
) -> list[list[float]]:
    """The reward adapter's scores of each row's candidates, by the code path that PPO scores with.

    Args:
        roles: with a reward adapter.
        rows: ``candidate_ids`` (``encode_candidates``).
        pad_id: padding.
        batch_size: candidates in one pass.
    """
    flat = [ids for row in rows for ids in row["candidate_ids"]]
    order = sorted(range(len(flat)), key=lambda i: len(flat[i]))  # equal lengths pad little
    scores = [0.0] * len(flat)
    for start in tqdm(range(0, len(flat), batch_size), desc="Scoring", leave=False):
        chunk = order[start : start + batch_size]
        ids, mask = pad([flat[i] for i in chunk], pad_id)
        batch = roles.scores(ids.to(roles.device), mask.to(roles.device)).tolist()
        for i, value in zip(chunk, batch, strict=True):
            scores[i] = value
    remaining = iter(scores)
    return [[next(remaining) for _ in row["candidate_ids"]] for row in rows]


def best_of_k_accuracy(scores: list[list[float]], best: list[int]) -> dict[str, float]:
    """How often the highest score is the pick, with Wilson's interval, beside chance."""
    hits = sum(
        max(range(len(s)), key=s.__getitem__) == b for s, b in zip(scores, best, strict=True)
    )
    low, high = wilson_interval(hits, len(best))
    loss = 0.0
    for row, b in zip(scores, best, strict=True):
        loss += best_of_k_loss(torch.tensor([row]), torch.tensor([b])).item()
    return {
        "accuracy": hits / len(best),
        "accuracy_low": low,
        "accuracy_high": high,
        "chance": sum(1 / len(row) for row in scores) / len(scores),
        "loss": loss / len(best),
        "comparisons": len(best),
    }


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
) -> dict[str, float]:
    """Set the roles' gain and bias so that fresh reference samples score with mean 0, std 1.

    As in the original code these samples are whole, though labels and PPO's scores are of truncated
    text (openai/lm-human-preferences lm_human_preferences/train_reward.py:190-195).

    Args:
        roles: with a reward adapter whose gain is 1 and bias 0.
        prompts: token ids; gone through in turn until there are enough samples.
        rule: how completions are sampled.
        tokenizer: for padding.
        samples: how many.
        seed: of the sampling.
        whole: score whole completions; False scores what the truncation rule leaves of them.
        batch_size: samples in one pass.

    Returns:
        gain, bias, raw_mean, raw_std, samples.

    Raises:
        InputError: all samples score the same; the head has learned nothing.
    """
    if (roles.gain, roles.bias) != (1.0, 0.0):
        raise ValueError("normalize: the scores are normalised already")
    generator = torch.Generator(roles.device).manual_seed(seed)
    chosen = [prompts[i % len(prompts)] for i in range(samples)]
    raw: list[float] = []
    for start in tqdm(range(0, samples, batch_size), desc="Normalising", leave=False):
        batch = chosen[start : start + batch_size]
        ids, mask = (t.to(roles.device) for t in pad(batch, rule.pad_id, "left"))
        sampled = sample(
            roles.act_as_reference(), ids, mask, rule.response_length, rule.temperature, generator,
            rule.pad_id, rule.stop_id,
        )  # fmt: skip
        visible = sampled.mask if whole else rule.visible(sampled)[0]
        raw += score(roles, batch, sampled.completion_ids, visible, tokenizer).tolist()
    tensor = torch.tensor(raw)
    try:
        roles.gain, roles.bias = gain_and_bias(tensor)
    except ValueError as error:
        raise InputError(f"reward model not normalised: {error}") from None
    return {
        "gain": roles.gain,
        "bias": roles.bias,
        "raw_mean": tensor.mean().item(),
        "raw_std": tensor.std(correction=0).item(),
        "samples": samples,
    }
