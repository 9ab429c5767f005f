"""The flags of the online loop."""

from dataclasses import dataclass
from typing import Annotated, Literal

from toolkit.arguments.common import SeedArguments
from toolkit.errors import check_range
from toolkit.flags import Count, NotNegative, Positive, Range, Share, flag
from toolkit.pipeline.schedule import Plan, plan_rounds


@dataclass
class OnlineArguments(SeedArguments):
    """How many rounds, labels when, and by whom."""

    output_dir: str = flag("outputs/online", "Folder of the loop.")
    store: str | None = flag(None, "OUTPUT_DIR/labels.sqlite, or this.")
    sample_config: str | None = flag(None, "YAML for sample.py.")
    reward_config: str | None = flag(None, "YAML for reward.py.")
    ppo_config: str | None = flag(None, "YAML for ppo.py.")
    rounds: Count = flag(5, "Reward models in all (the paper: 20).")
    schedule: str = flag("quadratic", "l(n): quadratic, linear, all_at_once, module:f.")
    initial_labels: Annotated[int, Range(low=2)] = flag(1000, "Picks before the first PPO.")
    total_labels: int = flag(4000, "l(n)'s value at the end.")
    validation: Share = flag(
        0.1, "Share of total_labels, at a constant rate: policy against reference."
    )
    train_on_validation: bool = flag(True, "They train rewards too.")
    wait: bool = flag(False, "Wait for people to label.")
    poll_seconds: Positive = flag(5.0, "Seconds between looks at the store.")
    spare: NotNegative = flag(0.0, "Items beyond those wanted, as a share: to label during PPO.")
    overlap: Share = flag(0.0, "Share of items for two labelers.")
    on_alarm: Literal["stop", "warn"] = flag(
        "warn", "If the score rises and the win rate falls: stop, or warn."
    )
    allow_untrusted_reward: bool = flag(
        False, "Go on with a round's reward model that is at chance, or below it."
    )
    labeler: str | None = flag(None, "The scripted labeler's name.")
    noise: Share = flag(0.0, "Share of its picks made by lot.")

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range("total_labels", self.total_labels, low=self.initial_labels)

    def plan(self, episodes: int | None, batch_size: int) -> Plan:
        """What is due when (``plan_rounds``)."""
        labels = (self.initial_labels, self.total_labels)
        return plan_rounds(self.rounds, self.schedule, *labels, episodes, batch_size)
