"""PPO at several KL targets, and the frontier that comes of it: score against KL.

    accelerate launch recipes/sweep.py --kl_targets 1 2 4 8 \\
        --ppo_config recipes/configs/demo/ppo.yaml \\
        --evaluate_config recipes/configs/demo/evaluate.yaml --output_dir outputs/sweep

One PPO run for each target, all with the settings of --ppo_config, then one evaluation of all of
them (and of the contenders that --evaluate_config names), and a report. Killed, it goes on by the
same command. You should see a line for each stage, and OUTPUT_DIR/report/report.html, whose first
picture has a point for each target, below the KL-optimal curve.
"""

from toolkit.cli import bind, recipe, run

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from toolkit.arguments.common import OverwriteArguments, SeedArguments
from toolkit.data.files import require_file
from toolkit.errors import InputError
from toolkit.flags import Count, Positive, flag
from toolkit.stages import Stage, run_stages

evaluate, ppo, report = recipe("evaluate"), recipe("ppo"), recipe("report")


@dataclass
class SweepArguments(SeedArguments, OverwriteArguments):
    kl_targets: list[Positive] = flag([1.0, 2.0, 4.0, 8.0], "In nats a completion.")
    ppo_config: str = flag("recipes/configs/demo/ppo.yaml", "ppo.py's settings.")
    evaluate_config: str = flag("recipes/configs/demo/evaluate.yaml", "evaluate.py's settings.")
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
    more = [] if args.total_episodes is None else ["--total_episodes", str(args.total_episodes)]
    stages = []
    for target in sorted(args.kl_targets):
        folder = out / f"kl{target:g}"
        words = ["--config", args.ppo_config, *seed, *more, "--kl_target", str(target),
                 "--output_dir", str(folder)]  # fmt: skip
        stages.append(Stage(f"kl{target:g}", f"PPO, KL target {target:g} nats", ppo.main, words,
                            [folder / "adapters" / "policy"], resumes=True))  # fmt: skip
    told = ["--config", args.evaluate_config, *seed, "--output_dir", str(out / "evaluation")]
    runs = [f"{stage.name}={stage.made[0]}" for stage in stages]
    told += ["--contenders", *bind(evaluate.main, told)[-1].contenders, *runs]
    page = ["--output_dir", str(out / "report"), "--evaluation", str(out / "evaluation")]
    page += ["--title", "KL targets compared", "--runs", *(str(out / s.name) for s in stages)]
    stages += [
        Stage("evaluate", "Compare on held-out prompts", evaluate.main, told,
              [out / "evaluation" / "evaluation.json"]),
        Stage("report", "Report", report.main, page, [out / "report" / "report.html"]),
    ]  # fmt: skip
    return run_stages(stages, out, args.overwrite)


if __name__ == "__main__":
    run(main)
