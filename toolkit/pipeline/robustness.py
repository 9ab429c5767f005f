"""Two reward models on halves of the comparisons: one trains the policy, the other watches it.

    OUT/reward-a/, reward-b/    preftune reward with --half a and --half b
    OUT/ppo/                    the policy against reward-a, with all its checkpoints
    OUT/evaluation/             each checkpoint's samples, scored by both and by further judges
    OUT/robustness.html, .json  the gap of the two gains over the root of the KL

Source: arXiv 2204.05862, section 4.2.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from toolkit.arguments.common import OverwriteArguments, SeedArguments
from toolkit.arguments.comparisons import Half
from toolkit.embedded import embedded
from toolkit.errors import InputError
from toolkit.flags import Count, flag
from toolkit.pipeline.stages import Stage

# What the recipe tells the stages itself.
OWN = {
    "reward": ("half", "output_dir"),
    "ppo": ("reward_adapter", "output_dir", "resume", "stop_at_update", "online"),
    "evaluate": ("contenders", "training_reward", "output_dir", "samples", "adapter"),
}
REPLACED = ("output_dir", "reward_adapter", "contenders", "training_reward")  # of usual configs
EVERY_CHECKPOINT = 1_000_000  # none are deleted
TRAIN, TEST = "train", "test"  # the two reward models as judges
HALVES: tuple[Half, ...] = ("a", "b")
Main = Callable[..., object]


@dataclass
class RobustnessArguments(SeedArguments, OverwriteArguments):
    """The configs of the stages."""

    reward_config: str = flag(
        embedded("reward.yaml"), "YAML file with settings for preftune reward, for both halves."
    )
    ppo_config: str = flag(
        embedded("ppo.yaml"),
        "YAML file with settings for preftune ppo. save_steps says how many checkpoints there are.",
    )
    evaluate_config: str = flag(
        embedded("evaluate.yaml"),
        "YAML file with settings for preftune evaluate: prompts, and further judges.",
    )
    comparisons: str | None = flag(
        None, "Comparisons to halve. By default those of --reward_config."
    )
    shared_samples: Count = flag(
        4,
        "Samples of the reference on each prompt, over which both reward models get the mean 0.",
    )
    output_dir: str = flag("outputs/robustness", "Folder for all of this, and for the page.")


def check_configs(told: Mapping[str, Mapping[str, object]], paths: Mapping[str, str]) -> None:
    """Raise InputError if a config says what the recipe itself tells that stage, or they disagree.

    Args:
        told: the settings of each stage that differ from their defaults.
        paths: the configs.
    """
    for stage, settings in told.items():
        odd = [name for name in OWN[stage] if name in settings and name not in REPLACED]
        if odd:
            raise InputError(
                f"{stage}_config: {paths[stage]}: leave out {odd[0]}, which preftune robustness "
                "sets itself",
                f"{stage}_config",
            )
    for name in ("reward_model", "lexicon", "reward_function"):
        if name in told["ppo"]:
            raise InputError(
                f"ppo_config: {paths['ppo']}: leave out {name}, since the policy is trained "
                "against the reward model of one half alone",
                "ppo_config",
            )
    if told["ppo"].get("save_strategy") == "no":
        raise InputError(
            f"ppo_config: {paths['ppo']}: save_strategy must be steps, since checkpoints are "
            "compared",
            "ppo_config",
        )
    for name in ("model_name_or_path", "precision"):
        values = {stage: settings.get(name) for stage, settings in told.items()}
        if len(set(values.values())) > 1:
            raise InputError(
                f"{name}: the configs differ: "
                + ", ".join(f"{stage} {value or 'the default'}" for stage, value in values.items()),
                name,
            )


def robustness_stages(
    args: RobustnessArguments,
    mains: Mapping[str, Main],
    evaluate_config: str,
    judges: Sequence[str],
    comparisons: str,
    page: Main,
) -> list[Stage]:
    """Return all stages in their order.

    Args:
        args: the recipe's flags.
        mains: the main functions of "reward", "ppo" and "evaluate".
        evaluate_config: the config without what the recipe sets (``REPLACED``).
        judges: its further judges, as NAME=KIND:VALUE.
        comparisons: what is halved.
        page: the last stage, which measures the gap.
    """
    out, stages = Path(args.output_dir), []
    seed = ["--seed", str(args.seed)]
    for half in HALVES:
        folder = out / f"reward-{half}"
        words = ["--config", args.reward_config, "--half", half, *seed]
        words += ["--comparisons", comparisons, "--output_dir", str(folder)]
        title = f"Train a reward model on half {half}"
        made = [folder / "adapter"]
        stages.append(Stage(f"reward-{half}", title, mains["reward"], words, made, after=()))

    train, test = (out / f"reward-{half}" / "adapter" for half in HALVES)
    policy = out / "ppo"
    words = ["--config", args.ppo_config, "--reward_adapter", str(train), *seed]
    words += ["--save_total_limit", str(EVERY_CHECKPOINT), "--output_dir", str(policy)]
    made = [policy / "adapters" / "policy"]
    title = "PPO against the reward model of half a"
    stages.append(Stage("ppo", title, mains["ppo"], words, made, True, after=("reward-a",)))

    shared = [
        "reference",
        *(f"reference-{i + 2}=reference" for i in range(args.shared_samples - 1)),
    ]
    words = ["--config", evaluate_config, *seed]
    words += ["--contenders", *shared, f"ppo={policy}/checkpoint-*"]
    words += ["--judges", f"{TRAIN}=reward_adapter:{train}", f"{TEST}=reward_adapter:{test}"]
    words += [*judges, "--training_reward", TRAIN, "--frontier_prompts", "0", "--show", "2"]
    words += ["--output_dir", str(out / "evaluation")]
    made = [out / "evaluation" / "evaluation.json"]
    title = "Score each checkpoint's samples by both"
    stages.append(Stage("evaluate", title, mains["evaluate"], words, made))

    words = ["--evaluation", str(out / "evaluation"), "--output_dir", str(out), *seed]
    words += ["--overwrite"]  # the folder is this recipe's own
    stages.append(Stage("page", "Compare the gains", page, words, [out / "robustness.html"]))
    return stages


def check_judges(judges: Sequence[str]) -> None:
    """Raise InputError if a judge of the evaluate config is called train or test."""
    for judge in judges:
        name = judge.partition("=")[0]
        if name in (TRAIN, TEST):
            raise InputError(
                f"evaluate_config: a judge is called {name}, as one of the two reward models is "
                "(give it another name)",
                "evaluate_config",
            )
