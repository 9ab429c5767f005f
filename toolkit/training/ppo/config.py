"""PPOConfig. A field has the name that it had in TRL 1.12, where the meaning is the same."""

import dataclasses
import enum
import math
from dataclasses import MISSING, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal, cast

from toolkit.arguments.kl import KLArguments
from toolkit.arguments.lengths import LengthArguments
from toolkit.arguments.sampling import TrainedCompletionArguments
from toolkit.errors import InputError, check_choice, check_range
from toolkit.flags import (
    Count,
    CountOrZero,
    Finite,
    NotNegative,
    Positive,
    Range,
    Seed,
    Share,
    check_flags,
    flag,
)
from toolkit.maths.kl_controllers import FixedKLController, controller_of
from toolkit.training.ppo.algorithms import (
    OF_OTHERS,
    AlgorithmArguments,
    algorithm_of,
    kl_loss_of,
)
from toolkit.training.trackers import check_trackers
from toolkit.training.trl_configs import TrainingArguments

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from toolkit.models.sampling import SamplingRule
    from toolkit.training.ppo.vllm_server import VLLMServer

# The fields of TrainingArguments that PPOTrainer acts on.
USED = {
    "output_dir", "per_device_train_batch_size", "gradient_accumulation_steps", "learning_rate",
    "lr_scheduler_type", "adam_beta1", "adam_beta2", "adam_epsilon", "max_grad_norm", "seed",
    "use_cpu", "bf16", "gradient_checkpointing", "activation_checkpointing", "num_train_epochs",
    "save_strategy", "save_steps", "save_total_limit", "report_to", "run_name", "disable_tqdm",
    "per_device_eval_batch_size", "lr_scheduler_kwargs", "warmup_steps", "optim", "optim_args",
    "weight_decay", "gradient_checkpointing_kwargs", "activation_checkpointing_kwargs", "tf32",
    "full_determinism", "ddp_timeout",
}  # fmt: skip
# Fields that a run records only where they were changed, so that runs begun before PPO acted on
# them can still be resumed.
NOTED_IF_CHANGED = {
    "algorithm", "num_generations", "kl_in", "kl_loss", "length_mean", "ratio_of", "entropy_coef",
    "whiten_advantages", "value_hidden",
    "lr_scheduler_kwargs", "warmup_steps", "optim", "optim_args", "weight_decay",
    "reference_ema", "train_last_ranks",
    "gradient_checkpointing_kwargs", "activation_checkpointing_kwargs", "tf32", "unpack_base",
    "ptx_coef", "ptx_ratio",
    "lam_value", "value_learning_rate", "value_warmup", "kl_coef_samples",
    "length_penalty", "regress_length", "reference_samples",
}  # fmt: skip
# Optimizers that transformers' Trainer builds from packages that are installed here.
Optimizer = Literal[
    "adamw_torch", "adamw_torch_fused", "adafactor", "sgd", "adagrad", "rmsprop",
    "adamw_bnb_8bit", "adamw_8bit", "paged_adamw_32bit", "paged_adamw_8bit", "ademamix",
    "ademamix_8bit", "paged_ademamix_32bit", "paged_ademamix_8bit", "lion_32bit", "lion_8bit",
    "paged_lion_32bit", "paged_lion_8bit", "rmsprop_bnb", "rmsprop_bnb_8bit", "rmsprop_bnb_32bit",
]  # fmt: skip
# Schedules that depend on the update alone; transformers' others need a metric at every step.
Schedule = Literal[
    "linear", "constant", "constant_with_warmup", "cosine", "cosine_with_restarts",
    "cosine_with_min_lr", "cosine_warmup_with_min_lr", "polynomial", "inverse_sqrt",
    "warmup_stable_decay",
]  # fmt: skip
# What torch.utils.checkpoint.checkpoint takes besides the function and its inputs.
CHECKPOINTING = (
    "use_reentrant",
    "preserve_rng_state",
    "determinism_check",
    "debug",
    "early_stop",
    "context_fn",
)
# Fields that may differ when a run is resumed, because what is learned does not depend on them.
FREE = {
    "output_dir", "resume", "use_cpu", "save_strategy", "save_steps", "save_total_limit",
    "sample_every", "eval_every", "report_to", "run_name", "disable_tqdm", "world_size",
    "num_sample_generations", "per_device_eval_batch_size", "num_train_epochs", "stop_at_update",
    "online", "full_determinism", "ddp_timeout", "vllm_server_base_url", "vllm_server_timeout",
    "vllm_key_variable", "vllm_adapter_dir", "vllm_max_gap", "disagreement_alarm",
    "ptx_data", "ptx_length",  # the trainer notes the rows themselves
}  # fmt: skip
# For each field that is refused, what to use instead.
INSTEAD = {
    "max_steps": "use total_episodes, which is updates times the batch",
    "fp16": "use bf16, or leave it out",
    "fp16_full_eval": "leave it out: evaluation runs as training does",
    "bf16_full_eval": "leave it out: evaluation runs as training does",
    "load_best_model_at_end": "leave it out: the best is kept in output_dir/best",
    "fsdp": "launch with recipes/accelerate/fsdp_qlora.yaml",
    "fsdp_config": "launch with recipes/accelerate/fsdp_qlora.yaml",
    "deepspeed": "launch with recipes/accelerate/several_gpus.yaml",
    "optim_target_modules": "its optimizers are not supported; see optim",
}
# What these fields are if they were not given. On a GPU `preftune ppo` chooses others
# (`toolkit.training.chosen`).
DEFAULTS: dict[str, object] = {
    "per_device_train_batch_size": 64,
    "local_rollout_forward_batch_size": 256,
    "bf16": False,
    "gradient_checkpointing": None,
    "unpack_base": False,
}
PUBLISH = (
    "push_to_hub: a run sends nothing to the Hub (leave it out; look at the adapter first, and "
    "publish it with preftune publish)"
)


@dataclass
class PPOConfig(
    TrainedCompletionArguments,
    KLArguments,
    AlgorithmArguments,
    LengthArguments,
    TrainingArguments,
):
    """Arguments of PPOTrainer.

    A batch is ``per_device_train_batch_size * gradient_accumulation_steps`` episodes in each
    process; each of ``num_ppo_epochs`` passes over it makes ``num_mini_batches`` optimizer steps.
    Unlike TRL 1.12: the KL coefficient adapts by default, every completion has ``response_length``
    tokens unless ``stop_token`` is given, rewards are whitened, gradients are not clipped, and
    Adam's epsilon is 1e-5 (all as in arXiv 1909.08593 and its code).
    ``toolkit.trl_compat.PPOConfig`` has TRL 1.12's defaults.

    Attributes:
        open_defaults: the fields of ``DEFAULTS`` that were not given.
    """

    ALSO_TAKEN: ClassVar[set[str]] = set()  # TrainingArguments' fields that pass, besides USED
    # By default a chat model's completions end at its end tokens, and a missing_eos_penalty is
    # refused where no stop token is set; TRL 1.12 did neither.
    ENDS_TURNS: ClassVar[bool] = True
    HELP_GROUP: ClassVar[str] = "method"
    HELP_GROUPS: ClassVar[dict[str, tuple[str, ...]]] = {
        "completions": ("stop_token_id", "missing_eos_penalty"),
        "rewards and labelers": ("reference_samples",),
        "KL penalty": (
            "kl_coef_samples", "kl_coef_min", "kl_coef_max", "kl_estimator", "kl_in", "kl_loss",
            "reference_ema",
        ),
        "training": (
            "total_episodes", "train_last_ranks", "per_device_train_batch_size",
            "gradient_accumulation_steps",
            "local_rollout_forward_batch_size", "unpack_base", "learning_rate",
            "lr_scheduler_type",
            "warmup_steps", "optim", "weight_decay", "max_grad_norm", "adam_epsilon",
            "adam_tf_style", "bf16", "gradient_checkpointing", "full_determinism", "world_size",
            "ddp_timeout", "seed",
        ),
        "pretraining mix": ("ptx_coef", "ptx_data", "ptx_ratio", "ptx_length"),
        "sampling by a vLLM server": (
            "vllm_server_base_url", "vllm_server_timeout", "vllm_key_variable", "vllm_adapter_dir",
            "vllm_max_gap",
        ),
        "evaluation": ("sample_every", "eval_every", "num_sample_generations"),
        "guards against faults": (
            "on_fault", "max_skipped", "max_kl", "max_score_drop", "disagreement_alarm",
        ),
        "output, saving and resuming": (
            "save_strategy", "save_steps", "save_total_limit", "resume", "stop_at_update",
            "online", "report_to", "disable_tqdm",
        ),
    }  # fmt: skip
    INHERITED: ClassVar[dict[str, object]] = {
        "seed": Seed,
        "warmup_steps": NotNegative,
        "weight_decay": NotNegative,
        "adam_beta1": Share,
        "adam_beta2": Share,
    }

    output_dir: str | None = flag("outputs/ppo", "Folder that the run writes.")
    learning_rate: NotNegative = flag(1e-4, "Highest learning rate; see lr_scheduler_type.")
    lr_scheduler_type: Schedule = flag(
        "linear", "How the learning rate changes: linear falls to 0, constant stays, and so on."
    )
    optim: Optimizer = flag(
        "adamw_torch_fused",
        "Optimizer, by transformers' name: AdamW, adafactor, sgd, adagrad, rmsprop, or one of "
        "bitsandbytes'. A learning rate does not carry over from one to another: rmsprop's first "
        "step is ten times the rate, where Adam's is the rate itself.",
    )
    # Those in `DEFAULTS` are never None once the config is made: the types say so.
    per_device_train_batch_size: Count = flag(
        cast(int, None),
        "Episodes in one forward and backward pass. By default 64; on a GPU as large a part of the "
        "batch as fits into memory.",
    )
    gradient_accumulation_steps: Count = flag(
        1,
        "Passes in a batch; the batch is this times per_device_train_batch_size, or times 64 if "
        "that is left to the plan of memory.",
    )
    adam_epsilon: Positive = flag(1e-5, "Adam's epsilon.")
    max_grad_norm: NotNegative = flag(0.0, "Clip the gradient's norm to this; 0 for no clipping.")
    adam_tf_style: bool = flag(False, "Use TensorFlow 1's epsilon, as the original runs did.")
    bf16: bool = flag(
        cast(bool, None), "Run every pass under bf16 autocast. By default only on a GPU."
    )
    gradient_checkpointing: bool | None = flag(
        None,
        "Recompute activations in the backward pass: less memory, more time. By default only on a "
        "GPU.",
    )
    full_determinism: bool = flag(
        False,
        "Use only operations that give the same bits in every run. A GPU has others, with which "
        "two runs, or a resumed run, may differ in the last bits. This costs time, and changes "
        "nothing on a CPU.",
    )
    total_episodes: Count | None = flag(20_000, "Episodes (completions) in the whole run.")
    num_ppo_epochs: Count = flag(4, "Passes over each batch.")
    num_mini_batches: Count = flag(1, "Optimizer steps in each pass over a batch.")
    local_rollout_forward_batch_size: Count = flag(
        cast(int, None),
        "Episodes in one pass without gradients. By default 256; on a GPU as many as fit.",
    )
    stop_token_id: CountOrZero | None = flag(None, "Id of the stop token, instead of stop_token.")
    missing_eos_penalty: Finite | None = flag(
        None, "Subtract this from the score of a completion without stop_token."
    )
    kl_coef_samples: Annotated[int, Range(low=1024)] = flag(
        2048,
        "Completions from which kl_coef: auto is estimated: the reference's, and for a later "
        "reward model half of them the policy's. They are shared "
        "between 16 prompts: the more of each, the higher is the KL up to which they say something "
        "(n of each reach about ln n - 3 nats).",
    )
    kl_coef_min: NotNegative = flag(0.0, "Lower bound of the KL coefficient.")
    kl_coef_max: Positive | None = flag(None, "Upper bound of the KL coefficient.")
    kl_estimator: Literal["k1", "k2", "k3"] = flag(
        "k1", "Estimator of the KL per token: k1 (the log ratio), k2 or k3."
    )
    reference_ema: Annotated[float, Range(above=0, high=1)] | None = flag(
        None,
        "Let the reference follow the policy: after each update its LoRA matrices move this share "
        "of the way to the policy's (0.01 in WARP). The KL is then measured against it, and not "
        "against the start. By default the reference stays.",
    )
    train_last_ranks: Count | None = flag(
        None,
        "With --policy_adapter, train only so many last ranks of each of its layers, and leave "
        "the others as they are (preftune warp adds new ones there). By default all are trained.",
    )
    value: Literal["adapter", "trunk"] = flag(
        "adapter", "Value model: adapter (a LoRA of its own) or trunk (a head on the policy)."
    )
    value_init: Literal["zero", "reward"] = flag(
        "zero", "How the value starts: zero, or reward (a copy of the reward's adapter and head)."
    )
    ptx_coef: NotNegative = flag(
        0.0,
        "Weight of the pretraining mix: so many times the gradient of the language model's loss on "
        "--ptx_data is added to PPO's at each step. InstructGPT's 27.8 does not carry over, since "
        "advantages are whitened here: begin at 0.05, and look at ptx/gradient_ratio in the log.",
    )
    ptx_data: str | None = flag(
        None, "File with rows of `text` for the pretraining mix; they are taken in order."
    )
    ptx_ratio: Count = flag(
        8, "Rows of --ptx_data for each episode, shared over the optimizer steps of an update."
    )
    ptx_length: Annotated[int, Range(low=2)] | None = flag(
        None,
        "Tokens of a row of --ptx_data at most; longer rows are cut. By default as many as the "
        "longest prompt and its completion have, so that a row takes no more memory than an "
        "episode's in all but the last layer. The memory plan counts the longest row.",
    )
    value_learning_rate: Positive | None = flag(
        None, "Highest learning rate of the value; by default learning_rate."
    )
    value_warmup: CountOrZero = flag(
        0, "Updates at the start that train the value alone; they count as updates of the run."
    )
    value_hidden: list[Count] | None = flag(
        None,
        "Widths of the value head's hidden layers, such as 2048 2048. By default the head is "
        "linear.",
    )
    recompute_logprobs: bool = flag(
        False, "Compute log-probs again after sampling instead of recording them meanwhile."
    )
    unpack_base: bool = flag(
        cast(bool, None),
        "Unpack a 4-bit base to 16 bits while completions are sampled: the same weights, which a "
        "GPU reads faster. It takes two bytes a weight meanwhile. By default only on a GPU with "
        "room for it.",
    )
    vllm_server_base_url: str | None = flag(
        None,
        "Address of a vLLM server that samples the training completions, with the policy as a LoRA "
        "adapter. It was never tried with a real server. A resumed run then goes on, but not bit "
        "for bit.",
    )
    vllm_server_timeout: Positive = flag(240.0, "Seconds for one request to the vLLM server.")
    vllm_key_variable: str = flag(
        "VLLM_API_KEY", "Environment variable that holds the vLLM server's API key, if it has one."
    )
    vllm_adapter_dir: str | None = flag(
        None,
        "Folder for the policy's adapters, which the vLLM server must see under the same path; by "
        "default vllm in output_dir.",
    )
    vllm_max_gap: Positive = flag(
        0.1,
        "Stop if the vLLM server's log-probs differ from the recomputed ones by more nats a token.",
    )
    on_fault: Literal["stop", "skip"] = flag(
        "stop", "What to do at a fault (not finite, or max_kl): stop, or skip the update."
    )
    max_skipped: Count = flag(5, "Stop after this many skipped updates in a row.")
    max_kl: Positive | None = flag(
        None, "Treat an update as faulty if its mean KL exceeds this many nats."
    )
    max_score_drop: Positive | None = flag(
        None, "Stop if scores fall this far below their best, in standard deviations of the first."
    )
    disagreement_alarm: Annotated[float, Range(low=1)] = flag(
        1.5,
        "Raise an alarm if several reward models disagree by more than this many times what they "
        "did on the reference's samples.",
    )
    reference_samples: Count = flag(
        512,
        "Samples of the reference, before the first update, for regress_length and "
        "disagreement_alarm.",
    )
    sample_every: Count = flag(20, "Updates between printed samples.")
    eval_every: float = flag(
        20, "Updates between evaluations on held-out prompts; below 1, a part of the run."
    )
    num_sample_generations: CountOrZero = flag(0, "Tables of sample completions in a run (TRL's).")
    save_strategy: Literal["steps", "epoch", "no"] = flag(
        "steps", "When to save: steps (save_steps), epoch (a pass through the prompts) or no."
    )
    save_steps: float = flag(20, "Updates between checkpoints; below 1, a part of the run.")
    save_total_limit: Count | None = flag(2, "Checkpoints to keep; none keeps all.")
    resume: str | None = flag(
        None, "Checkpoint folder to resume, or auto for the newest good one in output_dir."
    )
    stop_at_update: Count | None = flag(
        None, "Save and end after this update; --resume auto continues from there."
    )
    online: bool = flag(False, "Allow another reward adapter whenever the run is resumed.")
    world_size: Count | None = flag(
        None, "Number of processes expected; another number is an error."
    )
    ddp_timeout: Count = flag(
        900, "Seconds to wait for another process of the run before it counts as lost."
    )

    def __post_init__(self) -> None:
        self.open_defaults = {name for name in DEFAULTS if getattr(self, name) is None}
        for name in self.open_defaults:
            setattr(self, name, DEFAULTS[name])
        if self.activation_checkpointing is not None:  # transformers' new name for it
            self.open_defaults.discard("gradient_checkpointing")
        self.given_defaults = set(DEFAULTS) - self.open_defaults
        self.check()
        if self.full_determinism:
            from toolkit.training.determinism import prepare_determinism

            prepare_determinism()

        if self.activation_checkpointing is None:  # transformers' new names for them
            self.activation_checkpointing = bool(self.gradient_checkpointing)
        if self.activation_checkpointing_kwargs is None:
            self.activation_checkpointing_kwargs = self.gradient_checkpointing_kwargs
        TrainingArguments.__post_init__(self)  # reads the dictionaries that came as JSON
        self._check_dictionaries()

    def check(self) -> None:
        """Raise InputError for what is wrong with a setting, or with two that go together."""
        if not self.output_dir:
            raise InputError("output_dir is empty, but must name a folder", "output_dir")
        if self.resume is not None and not self.resume.strip():
            raise InputError("resume is empty, but must be auto or a checkpoint's folder", "resume")
        self._refuse_what_is_not_used()
        check_flags(self)
        for name in ("save_steps", "eval_every"):
            check_steps(name, getattr(self, name))
        self._check_together()
        check_trackers(self.report_to)

    def _check_together(self) -> None:
        """Check settings that are right by themselves and wrong together."""
        if self.local_batch_size % self.num_mini_batches:
            raise InputError(
                f"num_mini_batches is {self.num_mini_batches}, but must divide the batch of "
                f"{self.local_batch_size}",
                "num_mini_batches",
            )
        whitens = self.whiten_rewards and "whiten_rewards" not in OF_OTHERS[self.algorithm]
        if whitens and self.local_batch_size < 8:
            raise InputError(
                f"a batch of {self.local_batch_size} is too small to whiten rewards (take 8 or "
                "more, or whiten_rewards: false)",
                "per_device_train_batch_size",
            )

        if self.kl_controller != "fixed" and not isinstance(self.kl_coef, str):
            check_range("kl_coef", self.kl_coef, above=0)  # multiplied by anything, 0 stays 0
        if self.kl_controller in ("adaptive", "adaptive_pi"):
            check_range("kl_horizon", self.kl_horizon, low=self.local_batch_size)
        if not isinstance(self.kl_coef, str):
            check_range("kl_coef", self.kl_coef, low=self.kl_coef_min, high=self.kl_coef_max)

        if self.stop_token is not None and self.stop_token_id is not None:
            raise InputError(
                "stop_token and stop_token_id are both given (give one of them)", "stop_token_id"
            )
        if self.stop_at_update is not None and self.save_strategy == "no":
            raise InputError("stop_at_update needs save_strategy: steps", "stop_at_update")

        plain_adam = _plain(self.optim) in ("adamw_torch", "adamw_torch_fused")
        if self.adam_tf_style and (not plain_adam or self.weight_decay):
            raise InputError(
                "adam_tf_style replaces the optimizer (leave out optim and weight_decay)",
                "adam_tf_style",
            )
        if self.train_last_ranks is not None and self.weight_decay:
            raise InputError(
                "train_last_ranks: weight_decay would shrink the ranks that are to stay (leave one "
                "of them out)",
                "train_last_ranks",
            )
        self._refuse_what_the_algorithm_leaves_out()
        group = algorithm_of(self).group_size
        if self.local_batch_size % group:
            raise InputError(
                f"num_generations is {group}, but must divide the batch of "
                f"{self.local_batch_size}: all completions of a prompt are in one batch",
                "num_generations",
            )
        if not self.ptx_coef:
            for name in ("ptx_data", "ptx_length"):
                if getattr(self, name) is not None:
                    raise InputError(f"{name} is not used without ptx_coef (give it, too)", name)
        steps = self.num_ppo_epochs * self.num_mini_batches
        if self.ptx_coef and self.ptx_ratio * self.local_batch_size < steps:
            raise InputError(
                f"ptx_ratio is {self.ptx_ratio}, which gives fewer rows of text to an update than "
                f"its {steps} optimizer steps (raise it)",
                "ptx_ratio",
            )
        if self.value_init == "reward" and self.value != "adapter":
            raise InputError("value_init: reward works only with value: adapter", "value_init")
        if self.value_warmup and self.value != "adapter":
            raise InputError(
                "value_warmup works only with value: adapter (a shared trunk would move the "
                "policy)",
                "value_warmup",
            )
        if self.value_init == "reward" and self.value_hidden:
            raise InputError(
                "value_hidden: value_init: reward copies a linear head (leave out one of them)",
                "value_hidden",
            )

    def _refuse_what_the_algorithm_leaves_out(self) -> None:
        """Refuse flags that only another algorithm reads."""
        defaults = {f.name: f.default for f in dataclasses.fields(self)}
        for name in OF_OTHERS[self.algorithm]:
            if getattr(self, name) != defaults[name]:
                raise InputError(f"{name} is not used by {self.algorithm} (leave it out)", name)
        divided = self.algorithm == "ppo" and self.whiten_rewards and not self.whiten_advantages
        if self.kl_coef == "auto" and kl_loss_of(self) is not None and divided:
            raise InputError(
                "kl_coef: auto is estimated from scores, which whiten_rewards divides while the KL "
                "in the loss stays as it is (pass --whiten_rewards false, or a number)",
                "kl_coef",
            )
        if self.kl_loss is not None and kl_loss_of(self) is None:
            raise InputError(
                "kl_loss is not used by a KL that acts in the reward (leave it out, or pass "
                "--kl_in loss)",
                "kl_loss",
            )

    def _check_dictionaries(self) -> None:
        """Refuse names that would fail at the first update."""
        import torch

        from toolkit.training.optimizers import make_schedule, optimizer_class

        for name in self.activation_checkpointing_kwargs or {}:
            check_choice("gradient_checkpointing_kwargs", name, CHECKPOINTING)
        make_schedule(self, torch.optim.SGD([torch.zeros(1)], lr=1.0), updates=10**6)
        optimizer_class(self)

    def _refuse_what_is_not_used(self) -> None:
        """Refuse flags of TrainingArguments that PPO would ignore (TRL 1.12's did so silently)."""
        if self.push_to_hub:
            raise InputError(PUBLISH, "push_to_hub")
        for f in dataclasses.fields(TrainingArguments):
            if f.name in USED | self.ALSO_TAKEN or not f.init:
                continue
            default = f.default if f.default_factory is MISSING else f.default_factory()
            if getattr(self, f.name) not in (default, None, False):
                cure = INSTEAD.get(f.name, "leave it out")
                raise InputError(f"{f.name} is not used by PPO ({cure})", f.name)

    def rule(self, tokenizer: "PreTrainedTokenizerBase", show_stop: bool = False) -> "SamplingRule":
        """Return how completions are sampled and scored, in token ids (``sampling_rule``)."""
        from toolkit.data.tokens import end_ids
        from toolkit.models.sampling import sampling_rule

        stop_token = self.stop_token
        if stop_token is None and not self.ENDS_TURNS:
            stop_token = "none"
        rule = sampling_rule(
            tokenizer,
            self.response_length,
            self.temperature,
            stop_token,
            self.truncate_token,
            self.truncate_after,
            self.penalty_reward_value,
            self.missing_eos_penalty,
            self.stop_token_id,
        )

        if self.ENDS_TURNS and self.missing_eos_penalty is not None and not rule.stop_ids:
            raise InputError(
                "missing_eos_penalty needs a stop_token (for example eos)", "missing_eos_penalty"
            )

        return dataclasses.replace(
            rule, end_ids=rule.stop_ids or end_ids(tokenizer), show_stop=show_stop
        )

    def kl_state(self) -> FixedKLController:
        """The controller that ``kl_controller`` names, at its start.

        With kl_coef: auto its value is NaN until ``start_at`` is called with the estimate.
        """
        kl_coef = math.nan if isinstance(self.kl_coef, str) else self.kl_coef
        return controller_of(
            self.kl_controller,
            kl_coef,
            self.kl_target,
            self.kl_horizon,
            self.kl_k_beta,
            self.kl_coef_min,
            self.kl_coef_max or math.inf,
        )

    def identity(self) -> dict[str, object]:
        """Every setting on which the result depends; a run is resumed only if none has changed."""
        own = {f.name for f in dataclasses.fields(PPOConfig)} - {
            f.name for f in dataclasses.fields(TrainingArguments)
        }
        values = {name: _plain(getattr(self, name)) for name in sorted((own | USED) - FREE)}
        defaults = {
            f.name: _plain(f.default)
            for f in dataclasses.fields(PPOConfig) + dataclasses.fields(TrainingArguments)
        }
        if values["algorithm"] == "rloo":  # its earlier name, under which runs are recorded
            values["algorithm"] = "group_relative"
        for name in NOTED_IF_CHANGED:
            if values[name] == DEFAULTS.get(name, defaults[name]):
                del values[name]
        return values

    def vllm_server(self) -> "VLLMServer | None":
        """Return the server that samples, or None if the policy samples here."""
        if self.vllm_server_base_url is None:
            return None
        from toolkit.training.ppo.vllm_server import VLLMServer

        return VLLMServer(
            self.vllm_server_base_url,
            self.vllm_server_timeout,
            self.vllm_key_variable,
            Path(self.vllm_adapter_dir or self.folder / "vllm"),
            self.vllm_max_gap,
            str(self.folder.resolve()),
        )

    def text_length(self, longest: int) -> int:
        """Most tokens of a row of ``ptx_data``, if the longest prompt has ``longest``."""
        return self.ptx_length or longest + self.response_length

    @property
    def folder(self) -> Path:
        """``output_dir`` as a path."""
        return Path(self.output_dir or "")

    @property
    def value_role(self) -> str | None:
        """How the value is held, "adapter" or "trunk"; None where the algorithm has no value."""
        return self.value if algorithm_of(self).uses_value else None

    @property
    def local_batch_size(self) -> int:
        """Episodes of one process in one update."""
        return self.per_device_train_batch_size * self.gradient_accumulation_steps


def check_steps(name: str, value: float | None) -> None:
    """Raise InputError unless ``value`` counts updates, or is a part of the run above 0."""
    check_range(name, value, above=0)
    if value is not None and value >= 1 and value != int(value):
        raise InputError(f"{name} is {value}, but must be whole, or a part below 1", name)


def _plain(value: object) -> object:
    return value.value if isinstance(value, enum.Enum) else value
