"""Train reward models on ever more labels and a policy on each, and draw what they gain.

    preftune label-sweep --label_fractions 0.05 0.2 1 \\
        --reward_config demo:reward.yaml --ppo_config demo:ppo.yaml \\
        --evaluate_config demo:evaluate.yaml --output_dir outputs/label-sweep

This is figure 2 of arXiv 1909.08593. For each share of the comparisons a reward model is trained,
then a policy by PPO against it; if the labeler is a script that --evaluate_config names as a judge
(lexicon or reward_function), one more policy is trained on its scores directly. All are compared on
held-out prompts. --config project.yaml stands for the three configs. After a kill, the same command
continues. You should see a line for each stage, a table, and OUTPUT_DIR/labels.html, whose picture
shows the gain against the number of labels, with the direct policy as a line above.
"""

from toolkit.cli import bind, recipe, run

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from toolkit.arguments.common import OverwriteArguments, SeedArguments
from toolkit.data.files import require_file
from toolkit.embedded import embedded
from toolkit.errors import InputError
from toolkit.flags import Count, Range, flag
from toolkit.next_step import say_open, wrote
from toolkit.pipeline.comparison import check_judges, judge_and_report
from toolkit.pipeline.project import note_files
from toolkit.pipeline.stages import Stage, run_stages
from toolkit.project import Project
from toolkit.terminal import print_table
from toolkit.training.methods import METHODS

if TYPE_CHECKING:
    from toolkit.evaluation.label_figure import LabelPoint

DIRECT = "direct"


@dataclass
class LabelSweepArguments(SeedArguments, OverwriteArguments):
    label_fractions: list[Annotated[float, Range(above=0, high=1)]] = flag(
        [0.05, 0.2, 1.0], "Shares of the comparisons that the reward models are trained on."
    )
    reward_config: str = flag(
        embedded("reward.yaml"), "YAML file with settings for preftune reward."
    )
    ppo_config: str = flag(embedded("ppo.yaml"), "YAML file with settings for preftune ppo.")
    evaluate_config: str = flag(
        embedded("evaluate.yaml"), "YAML file with settings for preftune evaluate."
    )
    direct: bool = flag(
        True,
        "Also train a policy on the scores of the judge that stands for the labeler, if there is "
        "one in --evaluate_config.",
    )
    total_episodes: Count | None = flag(
        None, "Episodes of each policy. By default those of --ppo_config."
    )
    output_dir: str = flag("outputs/label-sweep", "Folder for the runs and the picture.")

    def __post_init__(self) -> None:
        super().__post_init__()
        fractions = self.label_fractions
        if not fractions or len(set(fractions)) < len(fractions):
            raise InputError(
                "label_fractions: give at least one, and each only once", "label_fractions"
            )


def main(args: LabelSweepArguments) -> "list[LabelPoint]":
    for name in ("reward_config", "ppo_config", "evaluate_config"):
        require_file(getattr(args, name), f"--{name}")
    out, seed = Path(args.output_dir), ["--seed", str(args.seed)]

    # A reward model for each share of the labels, and a policy for each reward model.
    rewards, policies = [], []
    for fraction in sorted(args.label_fractions):
        reward = reward_stage(fraction, args, seed, out)
        rewards.append(reward)
        policies.append(
            policy_stage(
                f"labels-{fraction:g}", f"PPO on {fraction:.4g} of the labels", args, seed, out,
                reward, ["--reward_adapter", str(reward.made[0])],
            )
        )  # fmt: skip
    labeler = labeler_of(args)
    if labeler is not None:
        # Of two rewards the reward model has no weight, so the labeler's scores are all.
        told = [
            *labeler,
            "--reward_adapter",
            str(rewards[-1].made[0]),
            "--reward_weights",
            "0",
            "1",
        ]
        title = "PPO on the labeler's scores"
        policies.append(policy_stage(DIRECT, title, args, seed, out, rewards[-1], told))
    elif args.direct:
        print(
            "note: --evaluate_config names neither a lexicon nor a reward_function, so there is no "
            "direct policy"
        )

    # Evaluate all of them, and report.
    told = ["--config", args.evaluate_config, *seed, "--output_dir", str(out / "evaluation")]
    shown = ["--runs", *(f"{stage.name}={out / stage.name}" for stage in policies)]
    shown += ["--rewards", *(f"{r.name}={r.made[0].parent}" for r in rewards)]
    project = Project.if_any(Path(args.evaluate_config))
    own = [] if project is None else [project.adapter(name) for name in project.policies()]
    last = judge_and_report(told, policies, out, "What more labels are worth", shown, own)
    stages = [*rewards, *policies, *last]
    check_judges(stages)
    note_files(stages)
    run_stages(stages, out, args.overwrite)
    return draw(out, rewards, policies)


def reward_stage(fraction: float, args: LabelSweepArguments, seed: list[str], out: Path) -> Stage:
    """Make the stage that trains a reward model on a share of the labels."""
    reward = METHODS["reward"]
    folder = out / f"reward-{fraction:g}"
    words = ["--config", args.reward_config, *seed, "--train_fraction", str(fraction)]
    words += ["--output_dir", str(folder)]
    title = f"Reward model on {fraction:.4g} of the labels"
    return Stage(
        folder.name, title, recipe(reward.recipe).main, words, [folder / reward.adapter], after=()
    )


def policy_stage(
    name: str,
    title: str,
    args: LabelSweepArguments,
    seed: list[str],
    out: Path,
    reward: Stage,
    told: list[str],
) -> Stage:
    """Make the stage that trains a policy by these rewards, and reads this stage's alone."""
    ppo = METHODS["ppo"]
    words = ["--config", args.ppo_config, *seed, *told, "--output_dir", str(out / name)]
    if args.total_episodes is not None:
        words += ["--total_episodes", str(args.total_episodes)]
    made = [out / name / ppo.adapter]
    after = (reward.name,)
    return Stage(name, title, recipe(ppo.recipe).main, words, made, ppo.resumes, after=after)


def labeler_of(args: LabelSweepArguments) -> list[str] | None:
    """The flag of the scorer that stands for the labeler, with its value; None for none."""
    judges = bind(recipe("evaluate").main, ["--config", args.evaluate_config])[-1]
    for name in ("lexicon", "reward_function") if args.direct else ():
        if getattr(judges, name) is not None:
            return [f"--{name}", getattr(judges, name)]
    return None


def draw(out: Path, rewards: list[Stage], policies: list[Stage]) -> "list[LabelPoint]":
    """Print the table, and write the page with the picture."""
    from toolkit.evaluation.label_figure import headers_of, label_points, row_of, write_label_page
    from toolkit.evaluation.result import Evaluation
    from toolkit.scoring.accuracy import RewardMetrics

    labels = {}
    for reward, policy in zip(rewards, policies, strict=False):
        metrics = RewardMetrics.read(reward.made[0] / "metrics.json", "rewards")
        labels[policy.name] = int(metrics.train_comparisons or 0)
    result = Evaluation.read(out / "evaluation" / "evaluation.json", "evaluation")
    direct = DIRECT if policies[-1].name == DIRECT else None
    points = label_points(result, labels, direct)
    page = write_label_page(out, "What more labels are worth", points, result)

    headers = headers_of(list(points[0].gains))
    caption = "Gains are in standard deviations of the untuned model's scores, ± standard errors."
    right = tuple(range(1, len(headers)))
    print_table(
        "Gain by labels", headers, [row_of(point) for point in points], caption, right=right
    )
    wrote(page, "the picture; labels.json holds its figures")
    say_open(page)
    return points


if __name__ == "__main__":
    run(main)
