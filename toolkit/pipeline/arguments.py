"""The flags of the online loop."""

from dataclasses import dataclass
from typing import Annotated, Literal

from toolkit.arguments.common import SeedArguments
from toolkit.errors import check_range
from toolkit.flags import Count, NotNegative, Positive, Range, Share, flag
from toolkit.pipeline.schedule import Plan, plan_rounds


@dataclass
class OnlineArguments(SeedArguments):
    """The rounds, the schedule of labels, and the labelers."""

    output_dir: str = flag("outputs/online", "Folder of the loop.")
    store: str | None = flag(
        None, "SQLite file of the labels. OUTPUT_DIR/labels.sqlite unless named."
    )
    sample_config: str | None = flag(None, "YAML file with settings for preftune sample.")
    reward_config: str | None = flag(None, "YAML file with settings for preftune reward.")
    ppo_config: str | None = flag(None, "YAML file with settings for preftune ppo.")
    policy_adapter: str | None = flag(
        None,
        "Adapter (of preftune sft, say) that stands in for the base: the first samples, the reward "
        "models and the policy start from it, and it is the reference.",
    )
    restart_policy: bool = flag(
        False,
        "Train the policy anew in each round, from the start and with all updates of --ppo_config, "
        "as the reward model always is. By default one PPO run goes on through all rounds.",
    )
    snapshots: Annotated[int, Range(low=1, high=16)] = flag(
        1,
        "Sample each round's completions from this many of the newest policies, the start among "
        "them. Rows then have `models`, which preftune ratings reads.",
    )
    rounds: Count = flag(5, "Number of rounds. Each trains one reward model (the paper had 20).")
    schedule: str = flag(
        "quadratic",
        "Labels wanted after n episodes: quadratic, linear, all_at_once, or module:function.",
    )
    initial_labels: Annotated[int, Range(low=2)] = flag(1000, "Picks before the first PPO.")
    total_labels: int = flag(4000, "Picks at the end of the loop.")
    validation: Share = flag(
        0.1, "Share of total_labels, at a constant rate, that compares policy and reference."
    )
    train_on_validation: bool = flag(True, "Train the reward models on validation picks too.")
    wait: bool = flag(False, "Wait for people to label.")
    poll_seconds: Positive = flag(5.0, "Seconds between checks of the store for new labels.")
    spare: NotNegative = flag(
        0.0, "Extra items, as a share of the wanted ones, for people to label during PPO."
    )
    overlap: Share = flag(0.0, "Share of the items that two labelers label.")
    on_alarm: Literal["stop", "warn"] = flag(
        "warn", "Stop or warn if the score rises while the win rate falls."
    )
    allow_untrusted_reward: bool = flag(
        False, "Continue if a round's reward model is no better than chance."
    )
    labeler: str | None = flag(None, "Name of the scripted labeler.")
    noise: Share = flag(0.0, "Share of the scripted labeler's picks that are random.")

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range("total_labels", self.total_labels, low=self.initial_labels)

    def plan(self, episodes: int | None, batch_size: int) -> Plan:
        """Return the plan of updates and labels (``plan_rounds``)."""
        labels = (self.initial_labels, self.total_labels)
        return plan_rounds(
            self.rounds, self.schedule, *labels, episodes, batch_size, self.restart_policy
        )
