"""Run every stage from prompts to a tuned policy on the embedded model.

    preftune demo

The demo samples four completions per prompt, lets the lexicon pick the best, trains a reward model,
and tunes the policy by PPO against it. Then it compares the policy with the untuned model and with
best-of-4 on held-out prompts, judged by the reward model and by the labeler's true scorer, and
writes a report. Each stage is the recipe of that name with its config in recipes/configs/demo. All
roles share one 4-bit base. You should see a progress bar for each stage, tables at the end, and
outputs/demo/report/report.html. The exit code is 1 if a verdict of the report is no: the policy is
not better, or the KL was not within 10 % of its target over the last fifth. With --live a page
shows PPO while it trains.
"""

from toolkit.cli import run

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from toolkit.arguments.common import SeedArguments
from toolkit.arguments.live import LiveArguments
from toolkit.arguments.model import Precision
from toolkit.embedded import CONFIGS
from toolkit.flags import Range, flag
from toolkit.next_step import say_open
from toolkit.pipeline.comparison import last_stages, stages_of
from toolkit.pipeline.stages import run_stages

OUTPUT = Path("outputs/demo")


@dataclass
class DemoArguments(SeedArguments):
    prompts: Annotated[int, Range(low=300)] | None = flag(
        None, "Number of prompts to label. By default all."
    )
    total_episodes: Annotated[int, Range(low=640)] | None = flag(
        None,
        "Number of completions that PPO samples, 128 in an update. By default the config's. In the "
        "first four updates the value learns alone.",
    )
    precision: Precision = flag("4bit", "Precision of the base.")


def main(args: DemoArguments, live: LiveArguments) -> int:
    # The stages, with the words that a person would use for each one.
    seed = ["--seed", str(args.seed)]
    model = [*seed, "--precision", args.precision]
    words = {"sample": model, "label": seed, "reward": model, "ppo": list(model)}
    if args.prompts is not None:
        words["sample"] = [*model, "--limit", str(args.prompts)]
    if args.total_episodes is not None:
        words["ppo"] += ["--total_episodes", str(args.total_episodes)]
    if live.live:
        words["ppo"].append("--live")
    stages = stages_of(CONFIGS, list(words), words)
    stages += last_stages(CONFIGS, stages, OUTPUT, model, "From prompts to a tuned policy")

    # The report's verdicts decide the exit code.
    facts = run_stages(stages, OUTPUT, overwrite=True)["report"]
    say_open(OUTPUT / "report" / "report.html")
    return 1 if any(verdict == "no" for _, _, verdict in facts) else 0


if __name__ == "__main__":
    run(main)
