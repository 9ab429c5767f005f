"""Configs of the baselines: TRL's, without the fields that are not used here.

Rows arrive as token ids, PPO's loop samples completions, and one frozen base is shared.
"""

import dataclasses
import importlib
import importlib.metadata
import warnings
from dataclasses import MISSING, dataclass, field
from typing import Annotated, Any, ClassVar, Literal

from toolkit.arguments.sampling import TrainedCompletionArguments
from toolkit.errors import InputError, check_choice
from toolkit.flags import (
    Count,
    NotNegative,
    Positive,
    Range,
    check_flags,
    flag,
    other_default,
)
from toolkit.training.trackers import check_trackers
from toolkit.training.trl_configs import (
    DPOConfig,
    KTOConfig,
    RLOOConfig,
    SFTConfig,
    TrainingArguments,
)
from toolkit.training.trl_defaults import TRLDefaults

Method = Literal["dpo", "kto", "orpo", "cpo"]
OF_RLOO = ("normalize_advantages", "reward_clip_range")  # RLOO's own fields, which GRPO has not
LOSSES = {
    "dpo": (
        "sigmoid",
        "hinge",
        "ipo",
        "exo_pair",
        "nca_pair",
        "robust",
        "bco_pair",
        "sppo_hard",
        "aot",
        "aot_unpaired",
        "apo_zero",
        "apo_down",
        "discopop",
        "sft",
        "sigmoid_norm",
    ),
    "kto": ("kto", "apo_zero_unpaired"),
    "orpo": ("orpo",),
    "cpo": ("sigmoid", "hinge", "ipo", "simpo"),
}
# Fields of TRL and transformers that would be ignored, or would contradict the lines above.
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
class BaselineDefaults(TRLDefaults):
    """Where all baselines differ from TRL's defaults."""

    HELP_GROUPS: ClassVar[dict[str, tuple[str, ...]]] = {
        "method": (
            "beta", "loss_weights", "label_smoothing", "epsilon", "num_generations",
            "num_iterations", "normalize_advantages",
        ),
        "prompts and data": ("max_length",),
        "training": (
            "gradient_accumulation_steps", "max_steps", "seed", "lr_scheduler_type", "warmup_steps",
        ),
        "output, saving and resuming": ("report_to", "disable_tqdm"),
    }  # fmt: skip
    HELP_GROUP: ClassVar[str] = "training"
    INHERITED: ClassVar[dict[str, object]] = {
        "max_length": Annotated[int, Range(low=2)],
        "beta": NotNegative,
    }

    per_device_eval_batch_size: Count = flag(32, "Held-out rows in a batch.")
    learning_rate: Positive = flag(5e-5, "Highest learning rate; it falls linearly to 0.")
    per_device_train_batch_size: Count = flag(16, "Rows in a batch.")


def check_config(config: TrainingArguments) -> None:
    """Raise InputError for values out of range, and for fields that would be ignored."""
    for f in dataclasses.fields(config):
        default = f.default if f.default_factory is MISSING else f.default_factory()
        if f.name in NOT_USED and f.init and getattr(config, f.name) != default:
            raise InputError(f"{f.name} is not used by this recipe (leave it out)", f.name)
    check_flags(config)
    check_trackers(config.report_to)


@dataclass
class SFTBaselineConfig(BaselineDefaults, SFTConfig):  # type: ignore[misc]  # as TRL itself
    """TRL's SFTConfig."""

    INHERITED: ClassVar[dict[str, object]] = {"loss_type": Literal["nll", "dft"]}

    output_dir: str | None = flag("outputs/sft", "Folder of the run.")
    learning_rate: Positive = other_default(2e-4, BaselineDefaults, "learning_rate")

    def __post_init__(self) -> None:
        check_config(self)
        self.dataset_kwargs = {"skip_prepare_dataset": True}  # rows come tokenized
        super().__post_init__()


@dataclass
class PreferenceConfig(BaselineDefaults, DPOConfig):  # type: ignore[misc]  # as TRL itself
    """TRL's DPOConfig, which ``for_trl`` turns into the method's own."""

    HELP_GROUP: ClassVar[str] = "method"

    method: Method = flag("dpo", "Training method: dpo, kto, orpo or cpo.")
    loss_type: str | None = flag(  # type: ignore[assignment]  # TRL has a list here
        None,
        "Loss of the method. dpo: sigmoid, ipo, hinge, robust, apo_zero, ... (join several by "
        "commas); kto: kto, apo_zero_unpaired; cpo: sigmoid, hinge, ipo, simpo.",
    )
    beta: NotNegative = flag(
        0.1,
        "Strength of the pull to the reference (dpo, kto; 1/(2 beta) is ipo's margin), weight of "
        "the odds ratio (orpo), or temperature (cpo).",
    )
    rejected: Literal["all", "one"] = flag(
        "all", "Pair the pick with all others of its row, or with one at random."
    )
    desirable_weight: NotNegative | None = flag(
        None, "Weight of the picks (kto). By default both sides weigh the same."
    )
    undesirable_weight: NotNegative = flag(1.0, "Weight of the other completions (kto).")
    cpo_alpha: NotNegative = flag(1.0, "Weight of the SFT term (cpo).")
    simpo_gamma: NotNegative = flag(0.5, "Target margin (cpo with simpo).")
    output_dir: str | None = flag("outputs/preference", "Folder of the run.")
    per_device_train_batch_size: Count = flag(16, "Pairs in a batch (kto: completions).")

    def __post_init__(self) -> None:
        check_config(self)
        for name in self.losses:
            check_choice("loss_type", name, LOSSES[self.method])
        if len(self.losses) > 1 and self.method != "dpo":
            raise InputError(f"loss_type: {self.method} takes one loss at a time", "loss_type")
        if self.method == "kto" and self.per_device_train_batch_size < 2:
            raise InputError(
                "per_device_train_batch_size is 1, but kto estimates its KL from the others of a "
                "batch (pass 2 or more)",
                "per_device_train_batch_size",
            )
        self._refuse_what_the_method_lacks()
        loss_type, self.loss_type = self.loss_type, self.losses  # type: ignore[assignment]
        super().__post_init__()
        self.loss_type = loss_type

    @property
    def losses(self) -> list[str]:
        """The names of the losses; by default the method's own."""
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
        """Make the method's own config; ``desirable_weight`` is the default of that field."""
        cls = method_classes(self.method)[0]
        passed = {f.name for f in dataclasses.fields(self)} - {
            "train_sampling_strategy",
            "gradient_checkpointing",
            "loss_type",
            "trust_remote_code",
        }

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
    """Return TRL's config and trainer of a method.

    Raises:
        InputError: the installed TRL has none. ORPO and CPO live in ``trl.experimental``, which may
            drop them in any release.
    """
    if method in ("dpo", "kto"):
        from trl import DPOTrainer, KTOTrainer

        return {"dpo": (DPOConfig, DPOTrainer), "kto": (KTOConfig, KTOTrainer)}[method]
    name = method.upper()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # TRLExperimentalWarning, which this function handles
            module = importlib.import_module(f"trl.experimental.{method}")
        return getattr(module, f"{name}Config"), getattr(module, f"{name}Trainer")
    except (ImportError, AttributeError) as error:
        raise InputError(
            f"method: TRL {importlib.metadata.version('trl')} has no {name} (pip install "
            f"'trl>=1.16,<1.17', which has it, or choose another method): {error}",
            "method",
        ) from None


@dataclass
class RLOOBaselineConfig(  # type: ignore[misc]  # as TRL itself
    TrainedCompletionArguments, BaselineDefaults, RLOOConfig
):
    """TRL's RLOOConfig, with PPO's names for how completions are sampled; also for GRPO."""

    HELP_GROUP: ClassVar[str] = "method"
    INHERITED: ClassVar[dict[str, object]] = {"epsilon": Positive}

    method: Literal["rloo", "grpo"] = flag("rloo", "Training method: rloo or grpo.")
    loss_type: Literal["grpo", "bnpo", "dr_grpo"] | None = flag(
        None,
        "Loss of grpo: grpo (each completion weighs the same), bnpo (each token does), or dr_grpo "
        "(sums over max_completion_length, with advantages that are not divided by the group's "
        "deviation). By default grpo.",
    )
    num_generations: Annotated[int, Range(low=2)] = flag(4, "Completions of each prompt.")
    num_generations_eval: int = field(default=1, init=False)
    disable_dropout: bool = flag(True, "Turn dropout off, so that the ratio starts at 1.")
    max_completion_length: int | None = field(default=None, init=False)  # response_length
    # ChatArguments and RewardArguments have these.
    chat_template_kwargs: dict[str, object] | None = field(default=None, init=False)
    reward_weights: list[float] | None = field(default=None, init=False)
    output_dir: str | None = flag("outputs/rloo", "Folder of the run.")
    per_device_train_batch_size: Count = flag(
        64, "Completions in one pass, num_generations of each prompt."
    )

    def __post_init__(self) -> None:
        check_config(self)
        defaults = {f.name: f.default for f in dataclasses.fields(self)}
        others = ("loss_type",) if self.method == "rloo" else OF_RLOO
        for name in others:
            if getattr(self, name) != defaults[name]:
                raise InputError(f"{name} is not used by {self.method} (leave it out)", name)
        self.max_completion_length = self.response_length
        RLOOConfig.__post_init__(self)

    def for_trl(self) -> TrainingArguments:
        """Return the method's own config: this one, or a GRPOConfig with the same settings."""
        if self.method == "rloo":
            return self

        from trl import GRPOConfig

        # The batch that is generated at once is computed, and TRL takes one of its two names.
        left_out = {"generation_batch_size", "trust_remote_code", "gradient_checkpointing"}
        ours = {f.name for f in dataclasses.fields(self)} - left_out
        values = {
            f.name: getattr(self, f.name)
            for f in dataclasses.fields(GRPOConfig)
            if f.init and f.name in ours
        }
        values["loss_type"] = self.loss_type or "grpo"
        values["scale_rewards"] = "none" if self.loss_type == "dr_grpo" else "group"
        return GRPOConfig(**values)
