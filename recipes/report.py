"""Write a page on one or more runs: frontier, curves, win rates, samples, data.

    preftune report --runs outputs/ppo --evaluation outputs/evaluation \\
        --rewards outputs/reward --comparisons outputs/comparisons.jsonl

The inputs are folders that other recipes wrote. All of them are optional, and several runs are
given as NAME=FOLDER. You should see a table of verdicts (was the KL held, is the policy better, can
the reward model be trusted, are there signs of over-optimization), and the self-contained page
OUTPUT_DIR/report.html, with report.json and the pictures as PNGs beside it.
"""

from toolkit.cli import run

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from toolkit.arguments.common import OverwriteArguments
from toolkit.arguments.layouts import LayoutArguments
from toolkit.data.outputs import claim_output
from toolkit.errors import InputError
from toolkit.flags import CountOrZero, flag
from toolkit.next_step import Step, base_named_by, say_next, say_open, wrote
from toolkit.record import RUN_FILE, RunRecord

if TYPE_CHECKING:
    from toolkit.evaluation.result import Evaluation
    from toolkit.evaluation.tables import Fact


@dataclass
class ReportArguments(LayoutArguments, OverwriteArguments):
    runs: list[str] = flag([], "Output folders of preftune ppo, as FOLDER or NAME=FOLDER.")
    evaluation: str | None = flag(None, "Output folder of preftune evaluate.")
    rewards: list[str] = flag([], "Output folders of preftune reward, as FOLDER or NAME=FOLDER.")
    trainings: list[str] = flag(
        [], "Output folders of preftune sft, preftune preference, preftune rloo."
    )
    comparisons: str | None = flag(None, "Comparisons to describe.")
    ratings: str | None = flag(None, "The file of preftune ratings: models by what people chose.")
    title: str = flag("Report", "Heading of the page.")
    samples: CountOrZero = flag(20, "Number of prompts whose samples are shown.")
    output_dir: str = flag("outputs/report", "Folder for the page.")


def named(values: list[str], field_name: str) -> dict[str, Path]:
    """Parse FOLDER or NAME=FOLDER into NAME -> folder; a name must not occur twice."""
    found: dict[str, Path] = {}
    for value in values:
        name, _, folder = value.rpartition("=")
        name = name or Path(folder).name
        if name in found:
            raise InputError(f"{field_name}: two are called {name!r} (write NAME=FOLDER)")
        found[name] = Path(folder)
    return found


def main(args: ReportArguments) -> "list[Fact]":
    from toolkit.evaluation.run_page import Report, write_run_report
    from toolkit.evaluation.run_report import (
        data_sheet,
        read_evaluation,
        read_ppo_run,
        read_reward_run,
        verdicts,
    )
    from toolkit.evaluation.samples import SampleRow
    from toolkit.evaluation.tables import print_facts

    given = (args.runs, args.evaluation, args.rewards, args.comparisons, args.ratings)
    if not any(given):
        raise InputError("runs: nothing to report on (add --runs, --evaluation or --rewards)")
    out = claim_output(args.output_dir, args.overwrite, "output_dir")
    runs = {n: read_ppo_run(f) for n, f in named(args.runs, "runs").items()}
    rewards = {n: read_reward_run(f) for n, f in named(args.rewards, "rewards").items()}
    trainings = {
        n: RunRecord.read(f / RUN_FILE, "--trainings").as_json()
        for n, f in named(args.trainings, "trainings").items()
    }
    result: Evaluation | None = None
    samples: list[SampleRow] = []
    if args.evaluation is not None:
        result, samples = read_evaluation(args.evaluation, args.samples)
    sheet = None if args.comparisons is None else data_sheet(args.comparisons, args)

    facts = verdicts(runs, rewards, result, trainings)
    report = Report(args.title, facts, runs, rewards, result, samples, sheet, trainings)
    if args.ratings is not None:
        from toolkit.evaluation.ratings import Ratings  # loads scipy

        report.ratings = Ratings.read(args.ratings, "--ratings")
    if args.evaluation is not None and (record := Path(args.evaluation) / RUN_FILE).is_file():
        report.evaluated = RunRecord.read(record).as_json()
    page = write_run_report(out, report)
    print_facts(args.title, facts)
    wrote(page, "a page to open in a browser")
    publishing = publish_of(args, result)
    if publishing is None or any(verdict == "no" for _, _, verdict in facts):
        say_open(page)
    else:
        say_next(publishing)
    return facts


def publish_of(args: ReportArguments, result: "Evaluation | None") -> Step | None:
    """The step that shows what would be published of a policy that took part; None without one."""
    adapters = [folder / "adapters" / "policy" for folder in named(args.runs, "runs").values()]
    adapters += [folder / "adapter" for folder in named(args.trainings, "trainings").values()]
    if result is not None:
        adapters += [Path(c.adapter) for c in result.contenders if c.adapter is not None]
    found = next((a for a in adapters if (a / "adapter_config.json").is_file()), None)
    if found is None:
        return None

    base = base_named_by(found)
    local = base is not None and Path(base).is_dir()
    flags = {
        "adapter": str(found),
        "repo_id": "OWNER/NAME",
        "base_model_id": "OWNER/BASE" if local else None,
        "evaluation": args.evaluation,
        "dry_run": True,
    }
    return Step("publish", flags)


if __name__ == "__main__":
    run(main)
