"""For scripts that were written for TRL 1.12's PPOTrainer.

    from toolkit.trl_compat import PPOConfig, PPOTrainer  # was: from trl.experimental.ppo ...

The trainer is the toolkit's own, which takes whole separate models as TRL's did. The configuration
has every field of TRL 1.12's, with its default: a fixed KL coefficient of 0.05, no whitening of
rewards, 53 tokens. docs/from-trl.md lists what differs all the same, and why.
"""

from dataclasses import dataclass
from typing import ClassVar

from toolkit.arguments.kl import KLController
from toolkit.flags import flag
from toolkit.training.ppo.config import PPOConfig as _PPOConfig

# Fields of TrainingArguments that scripts may set and that change no number, here or in TRL: TRL's
# PPO never read them, or computed the value itself.
TAKEN = {
    # what is logged, and where
    "logging_steps", "logging_strategy", "logging_first_step", "logging_nan_inf_filter",
    "log_level", "log_level_replica", "log_on_each_node", "include_num_input_tokens_seen",
    "project", "trackio_space_id", "trackio_bucket_id", "trackio_static_space_id",
    "skip_memory_metrics", "debug",
    # evaluation; eval_strategy and eval_steps say how often (PPOConfig.__post_init__)
    "eval_strategy", "eval_steps", "eval_delay", "eval_on_start", "eval_do_concat_batches",
    "eval_use_gather_object", "eval_accumulation_steps", "prediction_loss_only",
    "include_for_metrics", "batch_eval_metrics", "metric_for_best_model", "greater_is_better",
    "do_train", "do_eval", "do_predict",
    # saving and the Hub; push_to_hub itself is refused
    "save_only_model", "save_on_each_node", "enable_jit_checkpoint", "resume_from_checkpoint",
    "ignore_data_skip", "restore_callback_states_from_checkpoint", "hub_strategy", "hub_token",
    "hub_private_repo", "hub_model_id", "hub_always_push", "hub_revision",
    # how rows come in; prompts are tokens already, and are shuffled by the seed
    "data_seed", "dataloader_drop_last", "dataloader_num_workers", "dataloader_pin_memory",
    "dataloader_persistent_workers", "dataloader_prefetch_factor", "dataloader_in_order",
    "dataloader_multiprocessing_context", "remove_unused_columns", "label_names",
    "length_column_name", "train_sampling_strategy",
    # speed and processes
    "average_tokens_across_devices", "auto_find_batch_size", "torch_empty_cache_steps",
    "torch_compile", "torch_compile_backend", "torch_compile_mode", "use_liger_kernel",
    "liger_kernel_config", "use_cache", "local_rank", "ddp_backend",
    "ddp_find_unused_parameters", "ddp_bucket_cap_mb", "ddp_broadcast_buffers",
    "ddp_static_graph",
}  # fmt: skip


@dataclass
class PPOConfig(_PPOConfig):
    """The toolkit's PPOConfig with TRL 1.12's fields and defaults.

    ``bf16``, ``gradient_checkpointing`` and ``max_grad_norm`` had no effect on TRL's PPO. Here they
    have an effect, so they are off unless set.
    """

    ALSO_TAKEN: ClassVar[set[str]] = TAKEN
    ENDS_TURNS: ClassVar[bool] = False

    output_dir: str | None = flag("trainer_output", "Folder that the run writes.")
    learning_rate: float = flag(3e-6, "Highest learning rate; see lr_scheduler_type.")
    per_device_train_batch_size: int = flag(8, "Episodes in one forward and backward pass.")
    adam_epsilon: float = flag(1e-8, "Adam's epsilon.")
    logging_steps: float = flag(10, "No effect: every update is logged, as TRL's PPO did.")
    total_episodes: int | None = flag(
        None, "Episodes in the whole run. By default num_train_epochs times the prompts."
    )
    local_rollout_forward_batch_size: int = flag(64, "Episodes in one pass without gradients.")
    num_sample_generations: int = flag(10, "Tables of sample completions in a run.")
    response_length: int = flag(53, "Tokens to sample per completion.")
    kl_controller: KLController = flag("fixed", "How the KL coefficient moves: fixed, or adaptive.")
    kl_coef: float = flag(0.05, "KL coefficient.")
    whiten_rewards: bool = flag(False, "Divide rewards by their standard deviation.")
    sample_every: int = flag(10**9, "Updates between printed samples.")
    save_steps: float = flag(500, "Updates between checkpoints; below 1, a part of the run.")
    save_total_limit: int | None = flag(None, "Checkpoints to keep; none keeps all.")
    ddp_timeout: int = flag(1800, "Seconds to wait for another process of the run.")
    sft_model_path: str = flag("EleutherAI/pythia-160m", "Model of the policy; read by scripts.")
    reward_model_path: str = flag("EleutherAI/pythia-160m", "Reward model; read by scripts.")
    dataset_num_proc: int | None = flag(None, "Processes that tokenize; read by scripts.")
    model_adapter_name: str | None = flag(
        None, "Name of the policy's adapter, if there are several."
    )
    ref_adapter_name: str | None = flag(None, "Name of the reference's, if there are several.")
    # The trainer computes these, as TRL's did, and ignores what is set.
    num_total_batches: int | None = flag(None, "Updates in the run; computed.")
    micro_batch_size: int | None = flag(None, "Episodes in a pass of all processes; computed.")
    local_batch_size: int | None = flag(  # type: ignore[assignment]
        None, "Episodes of one process in an update; computed."
    )
    batch_size: int | None = flag(None, "Episodes in an update; computed.")
    local_mini_batch_size: int | None = flag(
        None, "Episodes of one process in an optimizer step; computed."
    )
    mini_batch_size: int | None = flag(None, "Episodes in an optimizer step; computed.")
    ds3_gather_for_generation: bool = flag(True, "No effect: this trainer does not use DeepSpeed.")
    # Fields of transformers 4, on which TRL 1.12 ran, too.
    warmup_ratio: float | None = flag(
        None, "Share of the run that warms up; today it is warmup_steps below 1."
    )
    no_cuda: bool = flag(False, "Old name of use_cpu.")
    logging_dir: str | None = flag(None, "No effect: logs are in output_dir.")
    overwrite_output_dir: bool = flag(False, "No effect, as in TRL's PPO.")
    save_safetensors: bool = flag(True, "No effect: adapters are always safetensors.")

    def __post_init__(self) -> None:
        self.local_batch_size = self.per_device_train_batch_size * self.gradient_accumulation_steps
        self.bf16 = bool(self.bf16)
        self.use_cpu = self.use_cpu or self.no_cuda
        if self.warmup_ratio and not self.warmup_steps:  # as in transformers 4: steps come first
            self.warmup_steps = self.warmup_ratio
        if self.resume is None and self.resume_from_checkpoint:
            wish = str(self.resume_from_checkpoint)
            self.resume = "auto" if wish.lower() == "true" else wish
        super().__post_init__()
        if self.eval_strategy == "steps" and self.eval_steps:
            self.eval_every = self.eval_steps
