"""PPOConfig: the field names of TRL 1.12's, where the meaning is the same."""

import dataclasses
import enum
import math
from dataclasses import MISSING, dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from transformers import PreTrainedTokenizerBase, TrainingArguments

from toolkit.errors import InputError, check_choice, check_range, check_seed
from toolkit.maths.kl import AdaptiveKLController, FixedKLController
from toolkit.training.rollouts import SamplingRule, sampling_rule
from toolkit.training.trackers import check_trackers

# The fields of TrainingArguments that PPOTrainer acts on.
USED = {
    "output_dir", "per_device_train_batch_size", "gradient_accumulation_steps", "learning_rate",
    "lr_scheduler_type", "adam_beta1", "adam_beta2", "adam_epsilon", "max_grad_norm", "seed",
    "use_cpu", "bf16", "gradient_checkpointing", "activation_checkpointing", "num_train_epochs",
    "save_strategy", "save_steps", "save_total_limit", "report_to", "run_name", "disable_tqdm",
    "per_device_eval_batch_size",
}  # fmt: skip
# Fields that may differ when a run is resumed: nothing of what is learned depends on them.
FREE = {
    "output_dir", "resume", "use_cpu", "save_strategy", "save_steps", "save_total_limit",
    "sample_every", "eval_every", "report_to", "run_name", "disable_tqdm", "world_size",
    "num_sample_generations", "per_device_eval_batch_size", "num_train_epochs", "stop_at_update",
    "online",
}  # fmt: skip
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
    ``toolkit.trl_dialect.PPOConfig`` has TRL 1.12's defaults.
    """

    ALSO_TAKEN: ClassVar[set[str]] = set()  # TrainingArguments' fields that pass, besides USED
    NEEDS_STOP: ClassVar[bool] = True  # missing_eos_penalty is refused without a stop token
    HELP_FIELDS: ClassVar[tuple[str, ...]] = (
        "output_dir", "per_device_train_batch_size", "gradient_accumulation_steps",
        "learning_rate", "max_grad_norm", "seed", "adam_epsilon", "bf16", "gradient_checkpointing",
        "save_steps", "save_total_limit", "report_to", "disable_tqdm",
    )  # fmt: skip

    output_dir: str | None = field(default="outputs/ppo", metadata={"help": "Folder of the run."})
    learning_rate: float = field(default=1e-4, metadata={"help": "Falls linearly to 0."})
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
        default=None, metadata={"help": "End completions at this token; 'eos' for the tokenizer's."}
    )
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
    eval_every: int = field(
        default=20, metadata={"help": "Updates between evaluations on held-out prompts."}
    )
    num_sample_generations: int = field(
        default=0, metadata={"help": "TRL's: tables of generate_completions in a run."}
    )
    save_strategy: str = field(default="steps", metadata={"help": "steps or no."})
    save_steps: int = field(default=20, metadata={"help": "Updates between checkpoints."})
    save_total_limit: int = field(default=2, metadata={"help": "Checkpoints that are kept."})
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
                     "per_device_train_batch_size", "gradient_accumulation_steps", "save_steps",
                     "local_rollout_forward_batch_size", "sample_every", "eval_every",
                     "save_total_limit", "world_size", "max_skipped",
                     "stop_at_update"):  # fmt: skip
            check_range(name, getattr(self, name), low=1)
        for name in ("temperature", "kl_target", "kl_horizon", "cliprange", "cliprange_value",
                     "adam_epsilon", "kl_k_beta", "kl_coef_max", "max_kl",
                     "max_score_drop"):  # fmt: skip
            check_range(name, getattr(self, name), above=0)
        for name in ("learning_rate", "kl_coef", "vf_coef", "max_grad_norm", "truncate_after",
                     "kl_coef_min", "stop_token_id", "num_sample_generations"):  # fmt: skip
            check_range(name, getattr(self, name), low=0)
        for name in ("gamma", "lam", "adam_beta1", "adam_beta2"):
            check_range(name, getattr(self, name), low=0, high=1)
        for name in ("penalty_reward_value", "missing_eos_penalty"):
            check_range(name, getattr(self, name))
        check_choice("kl_controller", self.kl_controller, ("adaptive", "adaptive_paper", "fixed"))
        check_choice("kl_estimator", self.kl_estimator, ("k1", "k2", "k3"))
        check_choice("value", self.value, ("adapter", "trunk"))
        check_choice("value_init", self.value_init, ("zero", "reward"))
        check_choice("on_fault", self.on_fault, ("stop", "skip"))
        check_choice("save_strategy", self.save_strategy, ("steps", "no"))
        check_choice("lr_scheduler_type", self.lr_scheduler_type, ("linear", "constant"))
        self._check_together()
        check_trackers(self.report_to)
        if self.activation_checkpointing is None:  # transformers' new name for it
            self.activation_checkpointing = bool(self.gradient_checkpointing)
        super().__post_init__()

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
        if self.NEEDS_STOP and self.missing_eos_penalty is not None and not self.stops:
            raise InputError(
                "missing_eos_penalty needs a stop_token (say 'eos')", "missing_eos_penalty"
            )
        if self.stop_at_update is not None and self.save_strategy == "no":
            raise InputError("stop_at_update needs save_strategy: steps", "stop_at_update")
        if self.value_init == "reward" and self.value != "adapter":
            raise InputError("value_init: reward needs value: adapter", "value_init")

    def _refuse_what_is_not_used(self) -> None:
        """Flags of TrainingArguments that would be silently ignored (as TRL 1.12's PPO did)."""
        if self.push_to_hub:
            raise InputError(PUBLISH, "push_to_hub")
        for f in dataclasses.fields(TrainingArguments):
            if f.name in USED | self.ALSO_TAKEN or not f.init:
                continue
            default = f.default if f.default_factory is MISSING else f.default_factory()
            if getattr(self, f.name) not in (default, None, False):
                raise InputError(f"{f.name} is not used by PPO (leave it out)", f.name)

    def rule(self, tokenizer: PreTrainedTokenizerBase) -> SamplingRule:
        """How completions are sampled and scored, in token ids (``sampling_rule``)."""
        rule = sampling_rule(
            tokenizer, self.response_length, self.temperature, self.stop_token,
            self.truncate_token, self.truncate_after, self.penalty_reward_value,
            self.missing_eos_penalty, self.stop_token_id,
        )  # fmt: skip
        rule.end_id = tokenizer.eos_token_id if rule.stop_id is None else rule.stop_id
        return rule

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
        names = sorted((own | USED) - FREE)
        return {name: _plain(getattr(self, name)) for name in names}

    @property
    def stops(self) -> bool:
        """Whether completions end at a stop token."""
        return self.stop_token is not None or self.stop_token_id is not None

    @property
    def folder(self) -> Path:
        """``output_dir`` as a path."""
        return Path(self.output_dir or "")

    @property
    def local_batch_size(self) -> int:
        """Episodes of one process in one update."""
        return self.per_device_train_batch_size * self.gradient_accumulation_steps


def _plain(value: Any) -> Any:
    return value.value if isinstance(value, enum.Enum) else value
