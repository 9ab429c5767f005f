"""What can be set in the baselines: TRL's configs, less the fields that are not used here.

Rows come as token ids, completions by PPO's own loop; the base is frozen and held once.
"""

import dataclasses
import importlib
import importlib.metadata
import warnings
from dataclasses import MISSING, dataclass, field
from typing import Any, ClassVar

import torch
from transformers import PreTrainedTokenizerBase, TrainingArguments
from trl import DPOConfig, DPOTrainer, KTOConfig, KTOTrainer, RLOOConfig, SFTConfig

from toolkit.errors import InputError, check_choice, check_range, check_seed
from toolkit.models.sampling import SamplingRule, sampling_rule
from toolkit.training.trackers import check_trackers

METHODS = ("dpo", "kto", "orpo", "cpo")
LOSSES = {
    "dpo": ("sigmoid", "hinge", "ipo", "exo_pair", "nca_pair", "robust", "bco_pair", "sppo_hard",
            "aot", "aot_unpaired", "apo_zero", "apo_down", "discopop", "sft", "sigmoid_norm"),
    "kto": ("kto", "apo_zero_unpaired"),
    "orpo": ("orpo",),
    "cpo": ("sigmoid", "hinge", "ipo", "simpo"),
}  # fmt: skip
# Fields of TRL's and transformers' that would be ignored, or that would undo what stands above.
NOT_USED = {
    "chat_template_path", "dataset_text_field", "dataset_kwargs", "dataset_num_proc", "eos_token",
    "pad_token", "padding_free", "packing", "eval_packing", "completion_only_loss",
    "assistant_only_loss", "truncation_mode", "model_init_kwargs", "push_to_hub", "hub_model_id",
    "hub_token", "resume_from_checkpoint", "sync_ref_model", "precompute_ref_log_probs",
    "label_smoothing_factor", "train_sampling_strategy", "shuffle_dataset", "use_vllm", "top_p",
    "top_k", "min_p", "repetition_penalty", "generation_kwargs", "mask_truncated_completions",
    "use_transformers_continuous_batching", "use_transformers_paged", "cache_implementation",
    "log_completions", "use_liger_kernel", "remove_unused_columns",
}  # fmt: skip


@dataclass
class BaselineDefaults:
    """Where all baselines differ from TRL's defaults: no bf16 and no checkpointing unless asked."""

    HELP_FIELDS: ClassVar[tuple[str, ...]] = (
        "beta", "gradient_accumulation_steps", "max_length", "max_steps", "seed", "report_to",
        "lr_scheduler_type", "warmup_steps", "disable_tqdm", "num_generations", "num_iterations",
        "normalize_advantages", "loss_weights", "label_smoothing", "epsilon",
    )  # fmt: skip

    num_train_epochs: float = field(default=1.0, metadata={"help": "Passes over the rows."})
    per_device_eval_batch_size: int = field(default=32, metadata={"help": "Rows, held out."})
    bf16: bool | None = field(default=False, metadata={"help": "Autocast to bf16 (GPU)."})
    activation_checkpointing: bool | None = field(default=False, metadata={"help": "Save memory."})
    gradient_checkpointing: bool = field(default=None, init=False)  # type: ignore[assignment]  # old
    save_strategy: str = field(default="no", metadata={"help": "The adapter is saved at the end."})
    dataloader_pin_memory: bool = field(
        default_factory=torch.cuda.is_available, metadata={"help": "Pin batches (GPU)."}
    )
    trust_remote_code: bool = field(default=False, init=False)  # ModelArguments has it
    logging_steps: float = field(default=10, metadata={"help": "Steps between log lines."})
    logging_first_step: bool = field(default=True, metadata={"help": "Log the first too."})

    def check(self) -> None:
        """Raise InputError for values out of range, and for fields that would be ignored."""
        config: Any = self
        for f in dataclasses.fields(self):
            default = f.default if f.default_factory is MISSING else f.default_factory()
            if f.name in NOT_USED and f.init and getattr(self, f.name) != default:
                raise InputError(f"{f.name} is not used by this recipe (leave it out)", f.name)
        check_seed(config.seed)
        for name in ("num_train_epochs", "learning_rate"):
            check_range(name, getattr(config, name), above=0)
        for name in ("per_device_train_batch_size", "gradient_accumulation_steps",
                     "per_device_eval_batch_size"):  # fmt: skip
            check_range(name, getattr(config, name), low=1)
        check_range("max_length", getattr(config, "max_length", None), low=2)
        check_range("beta", getattr(config, "beta", None), low=0)
        check_trackers(config.report_to)


@dataclass
class SFTBaselineConfig(BaselineDefaults, SFTConfig):  # type: ignore[misc]  # as TRL itself
    """TRL's SFTConfig."""

    output_dir: str | None = field(default="outputs/sft", metadata={"help": "Folder of the run."})
    learning_rate: float = field(default=2e-4, metadata={"help": "Falls linearly to 0."})
    per_device_train_batch_size: int = field(default=16, metadata={"help": "Rows in a batch."})

    def __post_init__(self) -> None:
        self.check()
        check_choice("loss_type", self.loss_type, ("nll", "dft"))
        self.dataset_kwargs = {"skip_prepare_dataset": True}  # rows come tokenised
        super().__post_init__()


@dataclass
class PreferenceConfig(BaselineDefaults, DPOConfig):  # type: ignore[misc]  # as TRL itself
    """TRL's DPOConfig, which ``for_trl`` turns into the method's own."""

    method: str = field(default="dpo", metadata={"help": "dpo, kto, orpo or cpo."})
    loss_type: str | None = field(  # type: ignore[assignment]  # TRL has a list here
        default=None,
        metadata={"help": "dpo: sigmoid, ipo, hinge, robust, apo_zero, ... (several by commas); "
                  "kto: kto, apo_zero_unpaired; cpo: sigmoid, hinge, ipo, simpo."},
    )  # fmt: skip
    beta: float = field(
        default=0.1,
        metadata={"help": "The pull to the reference (dpo, kto; 1/(2 beta) is ipo's margin); the "
                  "weight of the odds ratio (orpo); a temperature (cpo)."},
    )  # fmt: skip
    rejected: str = field(
        default="all",
        metadata={"help": "The pick stands against all others of its row, or one at random."},
    )
    desirable_weight: float | None = field(
        default=None, metadata={"help": "Of kto's picks; none: both sides weigh the same."}
    )
    undesirable_weight: float = field(default=1.0, metadata={"help": "Of kto's others."})
    cpo_alpha: float = field(default=1.0, metadata={"help": "Weight of cpo's SFT term."})
    simpo_gamma: float = field(default=0.5, metadata={"help": "Target margin of cpo's simpo."})
    output_dir: str | None = field(
        default="outputs/preference", metadata={"help": "Folder of the run."}
    )
    learning_rate: float = field(default=5e-5, metadata={"help": "Falls linearly to 0."})
    per_device_train_batch_size: int = field(
        default=16, metadata={"help": "Pairs (kto: completions) in a batch."}
    )

    def __post_init__(self) -> None:
        self.check()
        check_choice("method", self.method, METHODS)
        check_choice("rejected", self.rejected, ("all", "one"))
        for name in self.losses:
            check_choice("loss_type", name, LOSSES[self.method])
        if len(self.losses) > 1 and self.method != "dpo":
            raise InputError(f"loss_type: {self.method} has one loss at a time", "loss_type")
        for name in ("desirable_weight", "undesirable_weight", "cpo_alpha", "simpo_gamma"):
            check_range(name, getattr(self, name), low=0)
        if self.method == "kto" and self.per_device_train_batch_size < 2:
            raise InputError(
                "per_device_train_batch_size is 1, but kto estimates its KL from the others of a "
                "batch (pass 2 or more)", "per_device_train_batch_size",
            )  # fmt: skip
        self._refuse_what_the_method_lacks()
        loss_type, self.loss_type = self.loss_type, self.losses  # type: ignore[assignment]
        super().__post_init__()
        self.loss_type = loss_type

    @property
    def losses(self) -> list[str]:
        """The losses' names; the method's own if none was given."""
        names = [name.strip() for name in (self.loss_type or "").split(",") if name.strip()]
        return names or [LOSSES[self.method][0]]

    def _refuse_what_the_method_lacks(self) -> None:
        known = {f.name for f in dataclasses.fields(method_classes(self.method)[0])}
        for f in dataclasses.fields(self):
            if f.name in known | {"method", "loss_type", "rejected"} or f.default is MISSING:
                continue
            if getattr(self, f.name) != f.default:
                raise InputError(f"{f.name} is not used by {self.method} (leave it out)", f.name)

    def for_trl(self, desirable_weight: float = 1.0) -> TrainingArguments:
        """The method's own config; ``desirable_weight`` where none was given."""
        cls = method_classes(self.method)[0]
        passed = {f.name for f in dataclasses.fields(self)} - {
            "train_sampling_strategy", "gradient_checkpointing", "loss_type", "trust_remote_code",
        }  # fmt: skip
        values = {
            f.name: getattr(self, f.name)
            for f in dataclasses.fields(cls)
            if f.init and f.name in passed
        }
        if self.method == "dpo":
            values["loss_type"] = self.losses
        elif self.method != "orpo":
            values["loss_type"] = self.losses[0]
        if self.method == "kto" and self.desirable_weight is None:
            values["desirable_weight"] = desirable_weight
        if self.method in ("orpo", "cpo"):
            values["remove_unused_columns"] = False
        return cls(**values)


def method_classes(method: str) -> tuple[Any, Any]:
    """TRL's config and trainer of a method.

    Raises:
        InputError: this TRL has none: ORPO and CPO live in ``trl.experimental``, which may drop
            them in any release.
    """
    if method in ("dpo", "kto"):
        return {"dpo": (DPOConfig, DPOTrainer), "kto": (KTOConfig, KTOTrainer)}[method]
    name = method.upper()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # TRLExperimentalWarning: that is what the guard is for
            module = importlib.import_module(f"trl.experimental.{method}")
        return getattr(module, f"{name}Config"), getattr(module, f"{name}Trainer")
    except (ImportError, AttributeError) as error:
        raise InputError(
            f"method: TRL {importlib.metadata.version('trl')} has no {name} (pip install "
            f"'trl>=1.16,<1.17', which has it, or take another method): {error}", "method",
        ) from None  # fmt: skip


@dataclass
class RLOOBaselineConfig(BaselineDefaults, RLOOConfig):  # type: ignore[misc]  # as TRL itself
    """TRL's RLOOConfig, with PPO's words for how completions come about."""

    response_length: int = field(default=24, metadata={"help": "Tokens sampled per completion."})
    temperature: float = field(default=0.7, metadata={"help": "Of sampling and of all log-probs."})
    stop_token: str | None = field(
        default=None,
        metadata={"help": "End completions at this token; eos for all end tokens of model and "
                  "chat template, none for none. By default eos with a chat template, else none."},
    )  # fmt: skip
    truncate_token: str | None = field(
        default=None,
        metadata={"help": "Score only what stands up to this token (say a full stop)."},
    )
    truncate_after: int = field(
        default=16, metadata={"help": "First index at which truncate_token counts."}
    )
    penalty_reward_value: float = field(
        default=-1.0, metadata={"help": "Score of a completion without truncate_token there."}
    )
    num_generations: int = field(default=4, metadata={"help": "Completions of each prompt."})
    num_generations_eval: int = field(default=1, init=False)
    disable_dropout: bool = field(
        default=True, metadata={"help": "Or the ratio is not 1 before the first step."}
    )
    max_completion_length: int | None = field(default=None, init=False)  # response_length
    chat_template_kwargs: dict[str, Any] | None = field(default=None, init=False)  # ChatArguments
    reward_weights: list[float] | None = field(default=None, init=False)  # RewardArguments has it
    output_dir: str | None = field(default="outputs/rloo", metadata={"help": "Folder of the run."})
    learning_rate: float = field(default=5e-5, metadata={"help": "Falls linearly to 0."})
    per_device_train_batch_size: int = field(
        default=64,
        metadata={"help": "Completions in one pass, num_generations of a prompt."},
    )

    def __post_init__(self) -> None:
        self.check()
        for name in ("temperature", "epsilon"):
            check_range(name, getattr(self, name), above=0)
        check_range("response_length", self.response_length, low=1)
        check_range("truncate_after", self.truncate_after, low=0)
        check_range("penalty_reward_value", self.penalty_reward_value)
        check_range("num_generations", self.num_generations, low=2)
        self.max_completion_length = self.response_length
        super().__post_init__()

    def rule(self, tokenizer: PreTrainedTokenizerBase) -> SamplingRule:
        """The sampling in token ids."""
        return sampling_rule(
            tokenizer, self.response_length, self.temperature, self.stop_token,
            self.truncate_token, self.truncate_after, self.penalty_reward_value,
        )  # fmt: skip
