"""See whether a policy pleases only the reward model that it was trained on, by a second one.

    preftune robustness --reward_config demo:reward.yaml --ppo_config demo:ppo.yaml \\
        --evaluate_config demo:evaluate.yaml --comparisons outputs/demo/comparisons.jsonl

Two reward models are trained on the two halves of the comparisons, with no prompt in both, and the
policy against the first (arXiv 2204.05862, section 4.2). Each checkpoint's samples on the prompts
of --evaluate_config are scored by both, and by its further judges. Every judge's mean over samples
of the untuned model is taken off, so that only gains are compared. Where the first model's gain is
surely above the second's, the policy is over-optimized. After a kill, the same command continues
and skips finished stages. You should see a verdict with the KL at which over-optimization begins,
and OUTPUT_DIR/robustness.html with both gains over the root of the KL, and robustness.json beside.
"""

from toolkit.cli import bind, changed, recipe, run, write_config

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from toolkit.arguments.common import OverwriteArguments, SeedArguments
from toolkit.data.files import require_file
from toolkit.data.leftovers import scratch_folder
from toolkit.flags import Count, flag
from toolkit.next_step import say_open
from toolkit.pipeline.project import note_files
from toolkit.pipeline.robustness import (
    REPLACED,
    TEST,
    TRAIN,
    RobustnessArguments,
    check_configs,
    check_judges,
    robustness_stages,
)
from toolkit.pipeline.stages import run_stages

if TYPE_CHECKING:
    from toolkit.evaluation.robustness import Robustness


@dataclass
class PageArguments(SeedArguments, OverwriteArguments):
    """The last stage."""

    evaluation: str = flag("outputs/robustness/evaluation", "Folder of the evaluation.")
    draws: Count = flag(2000, "Bootstrap samples for the intervals.")
    output_dir: str = flag("outputs/robustness", "Folder for the page.")


def main(args: RobustnessArguments) -> "Robustness | None":
    # Check everything before a model is loaded.
    paths = {
        "reward": args.reward_config,
        "ppo": args.ppo_config,
        "evaluate": args.evaluate_config,
    }
    for stage, path in paths.items():
        require_file(path, f"--{stage}_config")
    mains = {stage: recipe(stage).main for stage in paths}
    bound = {stage: bind(mains[stage], ["--config", path]) for stage, path in paths.items()}
    told = {stage: changed(*parts) for stage, parts in bound.items()}
    check_configs(told, paths)
    judges = bound["evaluate"][-1].judges
    check_judges(judges)
    comparisons = args.comparisons or bound["reward"][3].comparisons

    out = Path(args.output_dir)
    with scratch_folder() as scratch:
        kept = {name: value for name, value in told["evaluate"].items() if name not in REPLACED}
        config = str(write_config(scratch, kept))
        stages = robustness_stages(args, mains, config, judges, comparisons, page)
        note_files(stages)
        results = run_stages(stages, out, args.overwrite)
    say_open(out / "robustness.html")
    found: Robustness | None = results.get("page")  # type: ignore[assignment]
    return found


def page(args: PageArguments) -> "Robustness":
    """Measure the gaps, print them, and write the page."""
    from toolkit.evaluation.robustness import measure, write_page
    from toolkit.evaluation.run_report import read_evaluation
    from toolkit.evaluation.tables import print_facts

    result, samples = read_evaluation(args.evaluation, 1 << 60)
    found = measure(result, samples, TRAIN, TEST, args.draws, args.seed)
    about = [
        ("prompts", f"{found.prompts:,}"),
        ("samples of the reference on each", str(found.shared_samples)),
        ("folder", args.output_dir),
    ]
    write_page(Path(args.output_dir), found, about)
    print_facts("Robustness", found.facts())
    return found


if __name__ == "__main__":
    run(main)
