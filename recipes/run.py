"""Run the stages of a project file, one after another, and skip what is done.

    preftune run project.yaml

The file, which preftune init writes, says once what all stages share, and has a section for each
stage. Those that it has are run in this order: convert, split, sample, label, ratings, reward,
reward_report, sft, preference, rloo, ppo, evaluate, report. Where people must label, this stops and
prints the command that opens their page; the next run goes on from there. After a kill, the same
command goes on: PPO from its last checkpoint. A stage whose settings were changed is named, and
--from_stage runs it again. You should see a line for each stage, and at the end the page of the
report.
"""

from toolkit.cli import run

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from toolkit.arguments.common import OverwriteArguments
from toolkit.errors import InputError
from toolkit.flags import flag
from toolkit.next_step import Step, command, project_step, say_next, say_open


@dataclass
class RunArguments(OverwriteArguments):
    FIRST_WORD: ClassVar[str] = "project"

    project: str = flag("project.yaml", "The project file; it may stand without --project.")
    from_stage: str | None = flag(
        None, "Run this stage again and those that read what it makes, with their settings of now."
    )
    enough: bool = flag(
        False, "Go on with the picks that people have made, even if some items have no answer."
    )
    overwrite: bool = flag(False, "Run all stages again. Labels in a store are kept.")


def main(args: RunArguments) -> dict[str, object]:
    from toolkit.pipeline.project import stages_of_project
    from toolkit.pipeline.stages import run_stages
    from toolkit.project import Project

    project = Project.read(args.project)
    stages = stages_of_project(project, args.enough)
    cure = (
        "--from_stage {stage} runs it again, and what reads its results; another folder in the "
        "project file keeps them"
    )
    try:
        results = run_stages(stages, project.folder, args.overwrite, args.from_stage, cure)
    except InputError as error:
        if error.field == "reward_adapter":  # it is no better than chance
            again = command(project_step(project.path, "--from_stage", "reward"))
            error.details.append(f"after a change in the section reward: {again}")
        raise
    if len(results) < len(stages):  # people must label first
        return results

    # What comes next: look at the report, and see what would be published.
    policy = project.placed("publish")["adapter"]
    if project.has("report"):
        say_open(project.placed("report")["output_dir"] + "/report.html")
    if policy is not None:
        local = Path(project.agreed("model_name_or_path")).is_dir()
        told = {"config": str(project.path), "repo_id": "OWNER/NAME"}
        base = {"base_model_id": "OWNER/BASE" if local else None}
        say_next(Step("publish", {**told, **base, "dry_run": True}))
    return results


if __name__ == "__main__":
    run(main)
