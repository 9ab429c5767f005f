"""Train several methods on the same comparisons, evaluate them, and write a report.

    preftune compare --output_dir outputs/compare

This recipe runs the configs of a folder in this order: sample*.yaml, label*.yaml, reward*.yaml,
sft*.yaml, dpo*.yaml, kto*.yaml, orpo*.yaml, cpo*.yaml (these four by preftune preference),
ilql*.yaml, rloo*.yaml, grpo*.yaml (both by TRL), ppo*.yaml, warp*.yaml. A config that names
another's adapter (policy_adapter, start_adapter) runs after it. Then it runs evaluate.yaml on all
trained policies and on the contenders named there, such as best-of-n, and writes a report. With
--config or --configs and a project file, its sections are the stages. After a kill, the same
command continues and skips finished stages. You should see a line and a progress bar for each
stage, then tables, and OUTPUT_DIR/report/report.html with the frontier of score against KL.
"""

from toolkit.cli import run

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from toolkit.arguments.common import OverwriteArguments
from toolkit.embedded import embedded
from toolkit.flags import flag
from toolkit.next_step import say_open
from toolkit.pipeline.comparison import (
    PREPARATION,
    check_inputs,
    check_judges,
    last_stages,
    stages_of,
)
from toolkit.pipeline.project import note_files, stages_of_project
from toolkit.pipeline.stages import run_stages
from toolkit.project import Project
from toolkit.training.methods import METHODS


@dataclass
class CompareArguments(OverwriteArguments):
    configs: str = flag(
        embedded("configs"), "Folder with a YAML file for each stage, or a project file."
    )
    stages: str = flag(
        ",".join((*PREPARATION, *METHODS)),
        "Stages to run, separated by commas. Evaluation and report always follow.",
    )
    output_dir: str | None = flag(
        None, "Folder for the report. By default outputs/NAME, with the name of --configs."
    )


def main(args: CompareArguments) -> dict[str, Any]:
    configs = Path(args.configs)
    if configs.is_file():
        return of_project(configs, args)
    out = Path(args.output_dir or f"outputs/{configs.name}")
    stages = stages_of(configs, [name.strip() for name in args.stages.split(",")], {})
    check_inputs(stages)
    stages += last_stages(configs, stages, out, [], "Methods compared")
    check_judges(stages)
    note_files(stages)
    results = run_stages(stages, out, args.overwrite)
    say_open(out / "report" / "report.html")
    return results


def of_project(path: Path, args: CompareArguments) -> dict[str, Any]:
    """Run those stages of a project file that --stages names, then its evaluation and report."""
    project = Project.read(path, "configs")
    named = {name.strip() for name in args.stages.split(",")}
    named |= {"convert", "split", "ratings", "preference", "evaluate", "report"}
    stages = [stage for stage in stages_of_project(project) if stage.name in named]
    check_inputs(stages)
    check_judges(stages)
    out = Path(args.output_dir or project.folder)
    results = run_stages(stages, out, args.overwrite)
    if "report" in results:
        say_open(project.placed("report")["output_dir"] + "/report.html")
    return results


if __name__ == "__main__":
    run(main)
