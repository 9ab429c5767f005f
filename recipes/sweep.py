"""PPO at several KL targets, and the frontier that comes of it: score against KL.

    accelerate launch recipes/sweep.py --kl_targets 1 2 4 8 \\
        --ppo_config recipes/configs/demo/ppo.yaml \\
        --evaluate_config recipes/configs/demo/evaluate.yaml --output_dir outputs/sweep

One PPO run for each target, all with the settings of --ppo_config, then one evaluation of all of
them (and of the contenders that --evaluate_config names), and a report. Killed, it goes on by the
same command. You should see a line for each stage, and OUTPUT_DIR/report/report.html, whose first
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
from toolkit.pipeline.comparison import judge_and_report, ppo_stage
from toolkit.pipeline.stages import run_stages


@dataclass
class SweepArguments(SeedArguments, OverwriteArguments):
    kl_targets: list[Positive] = flag([1.0, 2.0, 4.0, 8.0], "In nats a completion.")
    ppo_config: str = flag(embedded("ppo.yaml"), "ppo.py's settings.")
    evaluate_config: str = flag(embedded("evaluate.yaml"), "evaluate.py's settings.")
    total_episodes: Count | None = flag(None, "Episodes of each run, instead of ppo_config's.")
    output_dir: str = flag("outputs/sweep", "Folder to write.")

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.kl_targets or len(set(self.kl_targets)) < len(self.kl_targets):
            raise InputError("kl_targets: give one or more, each once", "kl_targets")


def main(args: SweepArguments) -> dict[str, Any]:
    require_file(args.ppo_config, "--ppo_config")
    require_file(args.evaluate_config, "--evaluate_config")
    out, seed = Path(args.output_dir), ["--seed", str(args.seed)]

    # A PPO run for each target.
    told = ["--config", args.ppo_config, *seed]
    if args.total_episodes is not None:
        told += ["--total_episodes", str(args.total_episodes)]
    runs = [ppo_stage(target, told, out / f"kl{target:g}") for target in sorted(args.kl_targets)]

    # All of them judged, and a report.
    told = ["--config", args.evaluate_config, *seed, "--output_dir", str(out / "evaluation")]
    shown = ["--runs", *(str(out / stage.name) for stage in runs)]
    stages = [*runs, *judge_and_report(told, runs, out, "KL targets compared", shown)]
    results = run_stages(stages, out, args.overwrite)
    say_open(out / "report" / "report.html")
    return results


if __name__ == "__main__":
    run(main)
