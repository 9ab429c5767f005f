"""PPOConfig: the field names of TRL 1.12's, where the meaning is the same."""

import dataclasses
import enum
import math
from dataclasses import MISSING, dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import torch
from transformers import PreTrainedTokenizerBase, TrainingArguments

from toolkit.data.tokens import end_ids
from toolkit.errors import InputError, check_choice, check_range, check_seed
from toolkit.maths.kl import AdaptiveKLController, FixedKLController
from toolkit.models.sampling import SamplingRule, sampling_rule
from toolkit.training.optimizers import make_schedule, optimizer_class
from toolkit.training.trackers import check_trackers

# The fields of TrainingArguments that PPOTrainer acts on.
USED = {
    "output_dir", "per_device_train_batch_size", "gradient_accumulation_steps", "learning_rate",
    "lr_scheduler_type", "adam_beta1", "adam_beta2", "adam_epsilon", "max_grad_norm", "seed",
    "use_cpu", "bf16", "gradient_checkpointing", "activation_checkpointing", "num_train_epochs",
    "save_strategy", "save_steps", "save_total_limit", "report_to", "run_name", "disable_tqdm",
    "per_device_eval_batch_size", "lr_scheduler_kwargs", "warmup_steps", "optim", "optim_args",
    "weight_decay", "gradient_checkpointing_kwargs", "activation_checkpointing_kwargs", "tf32",
}  # fmt: skip
# Of those, the ones that a run notes only where they were changed: runs that were begun before PPO
# acted on them go on.
NOTED_IF_CHANGED = {
    "algorithm", "num_generations", "lr_scheduler_kwargs", "warmup_steps", "optim", "optim_args",
    "weight_decay",
    "gradient_checkpointing_kwargs", "activation_checkpointing_kwargs", "tf32",
}  # fmt: skip
# Optimizers that transformers' Trainer builds from packages that are installed here.
OPTIMIZERS = (
    "adamw_torch", "adamw_torch_fused", "adafactor", "sgd", "adagrad", "rmsprop",
    "adamw_bnb_8bit", "adamw_8bit", "paged_adamw_32bit", "paged_adamw_8bit", "ademamix",
    "ademamix_8bit", "paged_ademamix_32bit", "paged_ademamix_8bit", "lion_32bit", "lion_8bit",
    "paged_lion_32bit", "paged_lion_8bit", "rmsprop_bnb", "rmsprop_bnb_8bit", "rmsprop_bnb_32bit",
)  # fmt: skip
# Schedules that depend on the update alone. transformers' others want a metric at every step.
SCHEDULES = (
    "linear", "constant", "constant_with_warmup", "cosine", "cosine_with_restarts",
    "cosine_with_min_lr", "cosine_warmup_with_min_lr", "polynomial", "inverse_sqrt",
    "warmup_stable_decay",
)  # fmt: skip
# What torch.utils.checkpoint.checkpoint takes besides the function and its inputs.
CHECKPOINTING = (
    "use_reentrant", "preserve_rng_state", "determinism_check", "debug", "early_stop", "context_fn",
)  # fmt: skip
# Fields that may differ when a run is resumed: nothing of what is learned depends on them.
FREE = {
    "output_dir", "resume", "use_cpu", "save_strategy", "save_steps", "save_total_limit",
    "sample_every", "eval_every", "report_to", "run_name", "disable_tqdm", "world_size",
    "num_sample_generations", "per_device_eval_batch_size", "num_train_epochs", "stop_at_update",
    "online",
}  # fmt: skip
# What to say in place of a field that is refused.
INSTEAD = {
    "max_steps": "say total_episodes: updates times the batch",
    "fp16": "say bf16, or leave it out",
    "fp16_full_eval": "leave it out: evaluation runs as training does",
    "bf16_full_eval": "leave it out: evaluation runs as training does",
    "load_best_model_at_end": "leave it out: the best is kept in output_dir/best",
    "fsdp": "launch with recipes/accelerate/fsdp_qlora.yaml",
    "fsdp_config": "launch with recipes/accelerate/fsdp_qlora.yaml",
    "deepspeed": "launch with recipes/accelerate/several_gpus.yaml",
    "optim_target_modules": "its optimizers are not supported; see optim",
}
PUBLISH = (
    "push_to_hub: a run sends nothing to the Hub (leave it out, and publish the adapter when you "
    "have seen what would go: recipes/publish.py)"
)


@dataclass
class PPOConfig(TrainingArguments):
    """Arguments of PPOTrainer.

    A batch is ``per_device_train_batch_size * gradient_accumulation_steps`` episodes in each
    process; each of ``num_ppo_epochs`` passes over it makes ``num_mini_batches`` optimizer steps.
    Unlike TRL 1.12: the KL coefficient adapts by default, ``response_length`` tokens are sampled
    whatever they are unless ``stop_token`` is given, rewards are whitened, gradients are not
    clipped, and Adam's epsilon is 1e-5 (all as in arXiv 1909.08593 and its code).
    ``toolkit.trl_compat.PPOConfig`` has TRL 1.12's defaults.
    """

    ALSO_TAKEN: ClassVar[set[str]] = set()  # TrainingArguments' fields that pass, besides USED
    # A chat model's completions end at its end tokens unless told otherwise, and a
    # missing_eos_penalty is refused where none does; TRL 1.12 had neither.
    ENDS_TURNS: ClassVar[bool] = True
    HELP_FIELDS: ClassVar[tuple[str, ...]] = (
        "output_dir", "per_device_train_batch_size", "gradient_accumulation_steps",
        "learning_rate", "warmup_steps", "weight_decay", "max_grad_norm", "seed", "adam_epsilon",
        "bf16", "gradient_checkpointing",
        "save_steps", "save_total_limit", "report_to", "disable_tqdm",
    )  # fmt: skip

    output_dir: str | None = field(default="outputs/ppo", metadata={"help": "Folder of the run."})
    learning_rate: float = field(
        default=1e-4, metadata={"help": "The highest rate; see lr_scheduler_type."}
    )
    lr_scheduler_type: str = field(
        default="linear",
        metadata={
            "help": "How it goes on: linear (falls to 0), constant, cosine, or another of "
            "transformers' schedules that needs no metric."
        },
    )
    optim: str = field(
        default="adamw_torch_fused",
        metadata={
            "help": "transformers' name of the optimizer: AdamW, adafactor, sgd, adagrad, "
            "rmsprop, or one of bitsandbytes'."
        },
    )
    per_device_train_batch_size: int = field(
        default=64, metadata={"help": "Episodes in one forward and backward pass."}
    )
    gradient_accumulation_steps: int = field(
        default=1, metadata={"help": "Such passes in a batch; batch = their product."}
    )
    adam_epsilon: float = field(default=1e-5, metadata={"help": "Adam's epsilon."})
    max_grad_norm: float = field(
        default=0.0, metadata={"help": "Clip the gradient's norm to this; 0 for no clipping."}
    )
    adam_tf_style: bool = field(
        default=False, metadata={"help": "TensorFlow 1's epsilon (spec of the original runs)."}
    )
    bf16: bool = field(
        default=False, metadata={"help": "Run every pass under bf16 autocast (on a GPU: do)."}
    )
    gradient_checkpointing: bool | None = field(
        default=None, metadata={"help": "Recompute activations: less memory, more time."}
    )
    total_episodes: int | None = field(
        default=20_000, metadata={"help": "Episodes (completions) in all."}
    )
    num_ppo_epochs: int = field(default=4, metadata={"help": "Passes over each batch."})
    num_mini_batches: int = field(default=1, metadata={"help": "Optimizer steps in a pass."})
    local_rollout_forward_batch_size: int = field(
        default=256, metadata={"help": "Episodes in one pass without gradients."}
    )
    response_length: int = field(default=24, metadata={"help": "Tokens sampled per completion."})
    temperature: float = field(default=0.7, metadata={"help": "Of sampling and of all log-probs."})
    stop_token: str | None = field(
        default=None,
        metadata={"help": "End completions at this token; eos for all end tokens of model and "
                  "chat template, none for none. By default eos with a chat template, else none."},
    )  # fmt: skip
    stop_token_id: int | None = field(default=None, metadata={"help": "The same, by its id."})
    missing_eos_penalty: float | None = field(
        default=None, metadata={"help": "Taken off the score of a completion without stop_token."}
    )
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
    kl_controller: str = field(
        default="adaptive",
        metadata={"help": "adaptive (kl_horizon), adaptive_paper (kl_k_beta) or fixed."},
    )
    kl_coef: float = field(default=0.15, metadata={"help": "Its (first) value."})
    kl_target: float = field(default=6.0, metadata={"help": "Nats per completion (adaptive)."})
    kl_horizon: float = field(
        default=10_000, metadata={"help": "Episodes; 10 x the batch is the paper's K = 0.1."}
    )
    kl_k_beta: float = field(default=0.1, metadata={"help": "K of the paper's form, per update."})
    kl_coef_min: float = field(default=0.0, metadata={"help": "The coefficient's floor."})
    kl_coef_max: float | None = field(default=None, metadata={"help": "Its ceiling."})
    kl_estimator: str = field(default="k1", metadata={"help": "k1, k2 or k3."})
    whiten_rewards: bool = field(default=True, metadata={"help": "Divide rewards by their std."})
    gamma: float = field(default=1.0, metadata={"help": "Discount."})
    lam: float = field(default=0.95, metadata={"help": "GAE's lambda."})
    cliprange: float = field(default=0.2, metadata={"help": "Clip of the ratio."})
    vf_coef: float = field(default=0.1, metadata={"help": "Weight of the value loss."})
    cliprange_value: float = field(default=0.2, metadata={"help": "Clip of the value's move."})
    algorithm: str = field(
        default="ppo",
        metadata={
            "help": "ppo, or group_relative: no value role; a completion is compared with the "
            "other completions of its prompt, num_generations in all."
        },
    )
    num_generations: int = field(
        default=4, metadata={"help": "Completions of a prompt (with group_relative)."}
    )
    value: str = field(
        default="adapter",
        metadata={"help": "adapter (LoRA of its own) or trunk (a head on the policy)."},
    )
    value_init: str = field(
        default="zero",
        metadata={"help": "zero, or reward: the value's adapter and head start as the reward's."},
    )
    recompute_logprobs: bool = field(
        default=False,
        metadata={"help": "Compute log-probs anew after sampling instead of capturing them."},
    )
    on_fault: str = field(
        default="stop",
        metadata={"help": "At a fault (not finite, max_kl): stop, or skip the update."},
    )
    max_skipped: int = field(default=5, metadata={"help": "Skipped in a row before it stops."})
    max_kl: float | None = field(
        default=None, metadata={"help": "A batch of more nats is a fault."}
    )
    max_score_drop: float | None = field(
        default=None,
        metadata={"help": "Stop if scores fall so many of their first std below their best."},
    )
    sample_every: int = field(default=20, metadata={"help": "Show samples every so many updates."})
    eval_every: float = field(
        default=20,
        metadata={"help": "Updates between evaluations on held-out prompts; or a part of the run."},
    )
    num_sample_generations: int = field(
        default=0, metadata={"help": "TRL's: tables of generate_completions in a run."}
    )
    save_strategy: str = field(
        default="steps",
        metadata={"help": "steps (save_steps), epoch (each pass through the prompts) or no."},
    )
    save_steps: float = field(
        default=20,
        metadata={"help": "Updates between checkpoints; below 1, a part of the run (0.25)."},
    )
    save_total_limit: int | None = field(
        default=2, metadata={"help": "Checkpoints that are kept; none for all."}
    )
    resume: str | None = field(
        default=None,
        metadata={"help": "auto: from the newest good checkpoint in output_dir; or a folder."},
    )
    stop_at_update: int | None = field(
        default=None,
        metadata={"help": "Save and end after this update; --resume auto goes on from there."},
    )
    online: bool = field(
        default=False,
        metadata={"help": "The reward adapter may be another one whenever the run is resumed."},
    )
    world_size: int | None = field(
        default=None, metadata={"help": "Processes asked for: any other number is an error."}
    )

    def __post_init__(self) -> None:
        if not self.output_dir:
            raise InputError("output_dir is empty, but must name a folder", "output_dir")
        self._refuse_what_is_not_used()
        check_seed(self.seed)
        if self.resume is not None and not self.resume.strip():
            raise InputError("resume is empty, but must be auto or a checkpoint's folder", "resume")
        for name in ("total_episodes", "num_ppo_epochs", "num_mini_batches", "response_length",
                     "per_device_train_batch_size", "gradient_accumulation_steps",
                     "local_rollout_forward_batch_size", "sample_every",
                     "save_total_limit", "world_size", "max_skipped",
                     "stop_at_update"):  # fmt: skip
            check_range(name, getattr(self, name), low=1)
        for name in ("temperature", "kl_target", "kl_horizon", "cliprange", "cliprange_value",
                     "adam_epsilon", "kl_k_beta", "kl_coef_max", "max_kl",
                     "max_score_drop"):  # fmt: skip
            check_range(name, getattr(self, name), above=0)
        for name in ("save_steps", "eval_every"):
            check_steps(name, getattr(self, name))
        for name in ("learning_rate", "kl_coef", "vf_coef", "max_grad_norm", "truncate_after",
                     "warmup_steps", "weight_decay",
                     "kl_coef_min", "stop_token_id", "num_sample_generations"):  # fmt: skip
            check_range(name, getattr(self, name), low=0)
        for name in ("gamma", "lam", "adam_beta1", "adam_beta2"):
            check_range(name, getattr(self, name), low=0, high=1)
        for name in ("penalty_reward_value", "missing_eos_penalty"):
            check_range(name, getattr(self, name))
        check_choice("kl_controller", self.kl_controller, ("adaptive", "adaptive_paper", "fixed"))
        check_choice("kl_estimator", self.kl_estimator, ("k1", "k2", "k3"))
        check_choice("algorithm", self.algorithm, ("ppo", "group_relative"))
        check_range("num_generations", self.num_generations, low=2)
        check_choice("value", self.value, ("adapter", "trunk"))
        check_choice("value_init", self.value_init, ("zero", "reward"))
        check_choice("on_fault", self.on_fault, ("stop", "skip"))
        check_choice("save_strategy", _plain(self.save_strategy), ("steps", "epoch", "no"))
        check_choice("lr_scheduler_type", _plain(self.lr_scheduler_type), SCHEDULES)
        check_choice("optim", _plain(self.optim), OPTIMIZERS)
        self._check_together()
        check_trackers(self.report_to)
        if self.activation_checkpointing is None:  # transformers' new names for them
            self.activation_checkpointing = bool(self.gradient_checkpointing)
        if self.activation_checkpointing_kwargs is None:
            self.activation_checkpointing_kwargs = self.gradient_checkpointing_kwargs
        super().__post_init__()  # reads the dictionaries that came as JSON
        self._check_dictionaries()

    def _check_together(self) -> None:
        """What is right by itself and wrong beside something else."""
        if self.local_batch_size % self.num_mini_batches:
            raise InputError(
                f"num_mini_batches is {self.num_mini_batches}, but must divide the batch of "
                f"{self.local_batch_size}", "num_mini_batches",
            )  # fmt: skip
        if self.whiten_rewards and self.local_batch_size < 8:
            raise InputError(
                f"a batch of {self.local_batch_size} is too small to whiten rewards over (take 8 "
                "or more, or whiten_rewards: false)", "per_device_train_batch_size",
            )  # fmt: skip
        if self.kl_controller != "fixed":
            check_range("kl_coef", self.kl_coef, above=0)  # times anything, 0 stays 0
        if self.kl_controller == "adaptive":
            check_range("kl_horizon", self.kl_horizon, low=self.local_batch_size)
        check_range("kl_coef", self.kl_coef, low=self.kl_coef_min, high=self.kl_coef_max)
        if self.stop_token is not None and self.stop_token_id is not None:
            raise InputError("stop_token and stop_token_id: give one of them", "stop_token_id")
        if self.stop_at_update is not None and self.save_strategy == "no":
            raise InputError("stop_at_update needs save_strategy: steps", "stop_at_update")
        plain_adam = _plain(self.optim) in ("adamw_torch", "adamw_torch_fused")
        if self.adam_tf_style and (not plain_adam or self.weight_decay):
            raise InputError(
                "adam_tf_style is an optimizer of its own (leave out optim and weight_decay)",
                "adam_tf_style",
            )
        if self.algorithm == "group_relative" and self.local_batch_size % self.num_generations:
            raise InputError(
                f"num_generations is {self.num_generations}, but must divide the batch of "
                f"{self.local_batch_size}: all completions of a prompt are in one batch",
                "num_generations",
            )
        if self.value_init == "reward" and self.value != "adapter":
            raise InputError("value_init: reward needs value: adapter", "value_init")

    def _check_dictionaries(self) -> None:
        """Refuse what would fail at the first update: a name that nothing takes."""
        for name in self.activation_checkpointing_kwargs or {}:
            check_choice("gradient_checkpointing_kwargs", name, CHECKPOINTING)
        make_schedule(self, torch.optim.SGD([torch.zeros(1)], lr=1.0), updates=10**6)
        optimizer_class(self)

    def _refuse_what_is_not_used(self) -> None:
        """Flags of TrainingArguments that would be silently ignored (as TRL 1.12's PPO did)."""
        if self.push_to_hub:
            raise InputError(PUBLISH, "push_to_hub")
        for f in dataclasses.fields(TrainingArguments):
            if f.name in USED | self.ALSO_TAKEN or not f.init:
                continue
            default = f.default if f.default_factory is MISSING else f.default_factory()
            if getattr(self, f.name) not in (default, None, False):
                cure = INSTEAD.get(f.name, "leave it out")
                raise InputError(f"{f.name} is not used by PPO ({cure})", f.name)

    def rule(self, tokenizer: PreTrainedTokenizerBase, show_stop: bool = False) -> SamplingRule:
        """How completions are sampled and scored, in token ids (``sampling_rule``).

        Args:
            tokenizer: of the policy.
            show_stop: the scorer sees the stop token too.
        """
        stop_token = self.stop_token
        if stop_token is None and not self.ENDS_TURNS:
            stop_token = "none"
        rule = sampling_rule(
            tokenizer, self.response_length, self.temperature, stop_token,
            self.truncate_token, self.truncate_after, self.penalty_reward_value,
            self.missing_eos_penalty, self.stop_token_id,
        )  # fmt: skip
        if self.ENDS_TURNS and self.missing_eos_penalty is not None and not rule.stop_ids:
            raise InputError(
                "missing_eos_penalty needs a stop_token (say 'eos')", "missing_eos_penalty"
            )
        return dataclasses.replace(
            rule, end_ids=rule.stop_ids or end_ids(tokenizer), show_stop=show_stop
        )

    def kl_state(self) -> FixedKLController:
        """The controller that ``kl_controller`` names, at its start."""
        if self.kl_controller == "fixed":
            return FixedKLController(self.kl_coef)
        return AdaptiveKLController(
            self.kl_coef, self.kl_target, self.kl_horizon,
            self.kl_k_beta if self.kl_controller == "adaptive_paper" else None,
            self.kl_coef_min, self.kl_coef_max or math.inf,
        )  # fmt: skip

    def identity(self) -> dict[str, Any]:
        """Every setting on which the result depends: a run is resumed only under the same."""
        own = {f.name for f in dataclasses.fields(PPOConfig)} - {
            f.name for f in dataclasses.fields(TrainingArguments)
        }
        values = {name: _plain(getattr(self, name)) for name in sorted((own | USED) - FREE)}
        defaults = {
            f.name: _plain(f.default)
            for f in dataclasses.fields(PPOConfig) + dataclasses.fields(TrainingArguments)
        }
        for name in NOTED_IF_CHANGED:
            if values[name] == defaults[name]:
                del values[name]
        return values

    @property
    def folder(self) -> Path:
        """``output_dir`` as a path."""
        return Path(self.output_dir or "")

    @property
    def value_role(self) -> str | None:
        """How the value is held, "adapter" or "trunk"; None where the algorithm has no value."""
        return None if self.algorithm == "group_relative" else self.value

    @property
    def local_batch_size(self) -> int:
        """Episodes of one process in one update."""
        return self.per_device_train_batch_size * self.gradient_accumulation_steps


def check_steps(name: str, value: float | None) -> None:
    """Raise InputError unless ``value`` counts updates, or is a part of the run above 0."""
    check_range(name, value, above=0)
    if value is not None and value >= 1 and value != int(value):
        raise InputError(f"{name} is {value}, but must be whole, or a part below 1", name)


def _plain(value: Any) -> Any:
    return value.value if isinstance(value, enum.Enum) else value
