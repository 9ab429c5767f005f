"""Run PPO at several KL targets, and draw the frontier of score against KL.

    preftune sweep --kl_targets 1 2 4 8 \\
        --ppo_config demo:ppo.yaml \\
        --evaluate_config demo:evaluate.yaml --output_dir outputs/sweep

There is one PPO run for each target with the settings of --ppo_config, then one evaluation of all
runs (and of the contenders in --evaluate_config), and a report. --config project.yaml stands for
both: the sections ppo and evaluate of a project file are read then. After a kill, the same command
continues. You should see a line for each stage, and OUTPUT_DIR/report/report.html, whose first
picture has a point for each target, below the KL-optimal curve.
"""

from toolkit.cli import run

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from toolkit.arguments.common import OverwriteArguments, SeedArguments
from toolkit.data.files import require_file
from toolkit.embedded import embedded
from toolkit.errors import InputError
from toolkit.flags import Count, Positive, flag
from toolkit.next_step import say_open
from toolkit.pipeline.comparison import check_judges, judge_and_report, ppo_stage
from toolkit.pipeline.project import note_files
from toolkit.pipeline.stages import run_stages
from toolkit.project import Project


@dataclass
class SweepArguments(SeedArguments, OverwriteArguments):
    kl_targets: list[Positive] = flag([1.0, 2.0, 4.0, 8.0], "KL targets in nats per completion.")
    ppo_config: str = flag(embedded("ppo.yaml"), "YAML file with settings for preftune ppo.")
    evaluate_config: str = flag(
        embedded("evaluate.yaml"), "YAML file with settings for preftune evaluate."
    )
    total_episodes: Count | None = flag(
        None, "Episodes of each run. By default those of --ppo_config."
    )
    output_dir: str = flag("outputs/sweep", "Folder for the runs and the report.")

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.kl_targets or len(set(self.kl_targets)) < len(self.kl_targets):
            raise InputError("kl_targets: give at least one, and each only once", "kl_targets")


def main(args: SweepArguments) -> dict[str, Any]:
    require_file(args.ppo_config, "--ppo_config")
    require_file(args.evaluate_config, "--evaluate_config")
    out, seed = Path(args.output_dir), ["--seed", str(args.seed)]

    # One PPO run for each target.
    told = ["--config", args.ppo_config, *seed]
    if args.total_episodes is not None:
        told += ["--total_episodes", str(args.total_episodes)]
    runs = [ppo_stage(target, told, out / f"kl{target:g}") for target in sorted(args.kl_targets)]

    # Evaluate all runs, and report.
    told = ["--config", args.evaluate_config, *seed, "--output_dir", str(out / "evaluation")]
    shown = ["--runs", *(str(out / stage.name) for stage in runs)]
    project = Project.if_any(Path(args.evaluate_config))
    own = [] if project is None else [project.adapter(name) for name in project.policies()]
    stages = [*runs, *judge_and_report(told, runs, out, "KL targets compared", shown, own)]
    check_judges(stages)
    note_files(stages)
    results = run_stages(stages, out, args.overwrite)
    say_open(out / "report" / "report.html")
    return results


if __name__ == "__main__":
    run(main)
