"""Train every method on the same comparisons, compare them on held-out prompts, and report.

    accelerate launch recipes/compare.py --configs recipes/configs/tinystories

Runs, in this order, what the folder has a config for: sample*.yaml, label*.yaml, reward*.yaml,
sft*.yaml, dpo*.yaml, kto*.yaml, orpo*.yaml, cpo*.yaml (all four by preference.py), rloo*.yaml,
ppo*.yaml; then evaluate.yaml, with all that was trained as contenders beside those it names
(best-of-n, say), and a report. Killed, it goes on by the same command; what is done is not done
again. You should see a line and a progress bar for each stage, then tables, and
OUTPUT_DIR/report/report.html with the frontier: score against KL.
"""

from toolkit.cli import run

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from toolkit.arguments.common import OverwriteArguments
from toolkit.embedded import embedded
from toolkit.flags import flag
from toolkit.next_step import say_open
from toolkit.pipeline.comparison import PREPARATION, last_stages, stages_of
from toolkit.pipeline.stages import run_stages
from toolkit.training.methods import METHODS


@dataclass
class CompareArguments(OverwriteArguments):
    configs: str = flag(embedded("configs"), "Folder with a YAML for each stage.")
    stages: str = flag(
        ",".join((*PREPARATION, *METHODS)),
        "Which of them, by commas; evaluation and report always follow.",
    )
    output_dir: str | None = flag(None, "Folder for the report; default outputs/NAME of configs.")


def main(args: CompareArguments) -> dict[str, Any]:
    configs = Path(args.configs)
    out = Path(args.output_dir or f"outputs/{configs.name}")
    stages = stages_of(configs, [name.strip() for name in args.stages.split(",")], {})
    stages += last_stages(configs, stages, out, [], "Methods compared")
    results = run_stages(stages, out, args.overwrite)
    say_open(out / "report" / "report.html")
    return results


if __name__ == "__main__":
    run(main)
