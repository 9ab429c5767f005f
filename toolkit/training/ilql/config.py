"""ILQLConfig: how a policy and its critic learn from completions with rewards, offline."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar, Literal

from toolkit.errors import InputError
from toolkit.flags import Count, CountOrZero, Flags, NotNegative, Positive, Range, Seed, Share, flag

# Fields that may differ when a run is resumed, because what is learned does not depend on them.
FREE = {"output_dir", "resume", "save_steps", "save_total_limit", "stop_at_update", "beta"}
PER_TOKEN = Annotated[float, Range(above=0, high=1)]


@dataclass
class ILQLConfig(Flags):
    """Arguments of ILQLTrainer. A field has the name that it has in trlX, where there is one.

    The defaults are trlX's (expectile, discount, weight of CQL), but for the targets, which move as
    in the authors' code (a two-hundredth at each update): a run here has hundreds of updates, after
    which trlX's would still be near their start.
    """

    HELP_GROUP: ClassVar[str] = "method"
    HELP_GROUPS: ClassVar[dict[str, tuple[str, ...]]] = {
        "prompts and data": ("max_length",),
        "training": (
            "learning_rate", "critic_learning_rate", "lr_scheduler_type", "num_train_epochs",
            "max_steps", "per_device_train_batch_size", "gradient_accumulation_steps",
            "per_device_eval_batch_size", "weight_decay", "max_grad_norm", "adam_beta2", "bf16",
            "gradient_checkpointing", "seed",
        ),
        "output, saving and resuming": (
            "output_dir", "logging_steps", "eval_steps", "save_steps", "save_total_limit", "resume",
            "stop_at_update",
        ),
    }  # fmt: skip

    output_dir: str = flag("outputs/ilql", "Folder of the run.")
    rewards: Literal["picks", "scores"] = flag(
        "picks",
        "Where a completion's reward comes from: picks (+1 for the best of its row, and for "
        "others of the same text, -1 for the rest) or scores (`scores` of the row, which preftune "
        "label writes beside a scorer's picks).",
    )
    normalize_rewards: bool = flag(
        True,
        "Subtract the mean of all rewards and divide by their standard deviation. Without it "
        "--beta is in units of the rewards.",
    )
    tau: Annotated[float, Range(low=0.01, high=0.99)] = flag(
        0.7,
        "Expectile that V is of Q: 0.5 is the mean, towards 1 the best outcome, be it skill or "
        "luck.",
    )
    gamma: PER_TOKEN = flag(0.99, "Discount of each token.")
    cql_scale: NotNegative = flag(
        0.1,
        "Weight of CQL, which keeps Q of tokens that were never taken low. With too little, a "
        "large --beta picks such tokens.",
    )
    cql_temperature: Positive = flag(1.0, "Temperature of CQL's softmax over Q.")
    awac_scale: NotNegative = flag(
        1.0,
        "Weight of the likelihood, by which the policy's adapter learns. With 0 the policy stays "
        "what it was, which is right if it wrote the completions itself.",
    )
    awac_beta: NotNegative = flag(
        0.0,
        "Weigh a token's likelihood by exp(this times its advantage); 0 learns all completions "
        "alike, good and bad.",
    )
    alpha: Share = flag(0.005, "How far the target heads of Q move to the heads at each sync.")
    sync_every: Count = flag(1, "Updates between two syncs of the target heads.")
    q_head: Literal["auto", "own", "tied"] = flag(
        "auto",
        "Heads of Q: own (a number for each token, 8 d V weights in all) or tied (through the "
        "base's frozen output head, the size of d squared). By default own for vocabularies up to "
        "10,000 tokens.",
    )
    beta: NotNegative = flag(
        4.0,
        "How strongly Q steers sampling where nothing else is said; evaluate takes others by "
        "FOLDER:beta=1,4,16. It changes nothing in training.",
    )

    learning_rate: Positive = flag(1e-3, "Highest learning rate of the policy's adapter.")
    critic_learning_rate: Positive | None = flag(
        None, "Highest learning rate of Q, V and their adapter; by default learning_rate."
    )
    lr_scheduler_type: Literal["linear", "constant"] = flag(
        "linear", "How the learning rates change: linear falls to 0, constant stays."
    )
    num_train_epochs: Positive = flag(1.0, "Passes over the completions.")
    max_steps: Count | None = flag(None, "Updates of the run, instead of num_train_epochs.")
    per_device_train_batch_size: Count = flag(64, "Completions in one forward and backward pass.")
    gradient_accumulation_steps: Count = flag(1, "Passes in an update.")
    per_device_eval_batch_size: Count = flag(128, "Held-out completions in one pass.")
    weight_decay: NotNegative = flag(0.0, "AdamW's weight decay.")
    max_grad_norm: NotNegative = flag(
        1.0, "Clip the norms of the policy's and the critic's gradients to this; 0 for no clipping."
    )
    adam_beta2: Annotated[float, Range(low=0, high=0.9999)] = flag(0.95, "AdamW's second decay.")
    bf16: bool = flag(False, "Run every pass of the base under bf16 autocast (GPU).")
    gradient_checkpointing: bool = flag(
        False, "Recompute activations in the backward passes: less memory, more time."
    )
    max_length: Annotated[int, Range(low=2)] | None = flag(
        None, "Most tokens of prompt and completion; by default the model's context."
    )
    seed: Seed = flag(0, "Seed of the split, the order of the rows and the first weights.")
    logging_steps: Count = flag(10, "Updates between two lines of the log.")
    eval_steps: CountOrZero = flag(
        100, "Updates between two evaluations on held-out rows; 0 for one at the end alone."
    )
    save_steps: CountOrZero = flag(100, "Updates between two checkpoints; 0 for none.")
    save_total_limit: Count | None = flag(1, "Checkpoints to keep; none keeps all.")
    resume: str | None = flag(
        None, "Checkpoint folder to resume, or auto for the newest good one in output_dir."
    )
    stop_at_update: Count | None = flag(
        None, "Save and end after this update; --resume auto continues from there."
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.output_dir:
            raise InputError("output_dir is empty, but must name a folder", "output_dir")
        if self.resume is not None and not self.resume.strip():
            raise InputError("resume is empty, but must be auto or a checkpoint's folder", "resume")
        if self.stop_at_update is not None and not self.save_steps:
            raise InputError("stop_at_update needs checkpoints (save_steps)", "stop_at_update")

    @property
    def folder(self) -> Path:
        """``output_dir`` as a path."""
        return Path(self.output_dir)

    @property
    def batch_size(self) -> int:
        """Completions in an update."""
        return self.per_device_train_batch_size * self.gradient_accumulation_steps

    def identity(self) -> dict[str, object]:
        """Every setting on which the result depends; a run is resumed only if none has changed."""
        names = {f.name for f in dataclasses.fields(self)} - FREE
        return {name: getattr(self, name) for name in sorted(names)}
