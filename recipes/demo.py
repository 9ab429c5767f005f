"""From prompts to a tuned policy: every stage in order, on the model embedded in data/.

    accelerate launch recipes/demo.py

Samples four completions per prompt, lets the lexicon pick the best, trains the reward model, tunes
the policy by PPO against it, and compares the policy with the untuned model on held-out prompts, as
judged by the labeller's true scorer. Each stage is the recipe of that name with its config in
recipes/configs/demo; all roles sit on one 4-bit base. You should see a progress bar for each stage,
tables at the end, and outputs/demo/report.html to look at. The exit code is 1 if the policy did not
get better, or if the KL was not held within 10 % of its target over the last fifth.
"""

import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import evaluate
import label
import ppo
import reward
import sample

from toolkit.cli import call, run
from toolkit.data.files import read_jsonl, write_bytes
from toolkit.errors import check_range, check_seed
from toolkit.evaluation.report import plot_curves, print_facts, verdict, write_report

CONFIGS = Path(__file__).parent / "configs" / "demo"
STAGES = {
    "sample": ("Sample four completions per prompt", sample),
    "label": ("Pick the best of each four", label),
    "reward": ("Train the reward model on the picks", reward),
    "ppo": ("Tune the policy with PPO", ppo),
    "evaluate": ("Compare with the untuned model on held-out prompts", evaluate),
}


@dataclass
class DemoArguments:
    prompts: int | None = field(default=None, metadata={"help": "Label only so many prompts."})
    total_episodes: int | None = field(default=None, metadata={"help": "PPO's completions in all."})
    precision: str = field(default="4bit", metadata={"help": "4bit, bf16 or fp32."})
    seed: int = field(default=0, metadata={"help": "Of every stage."})

    def __post_init__(self) -> None:
        check_seed(self.seed)
        check_range("prompts", self.prompts, low=300)
        check_range("total_episodes", self.total_episodes, low=1)


def main(args: DemoArguments) -> int:
    started = time.monotonic()
    model = ["--precision", args.precision]
    more = {"sample": model, "reward": model, "ppo": model, "evaluate": model, "label": []}
    if args.prompts is not None:
        more["sample"] = model + ["--limit", str(args.prompts)]
    if args.total_episodes is not None:
        more["ppo"] = model + ["--total_episodes", str(args.total_episodes)]

    # The stages, each as a person would run it alone.
    results: dict[str, Any] = {}
    for number, (name, (title, recipe)) in enumerate(STAGES.items(), start=1):
        print(f"\n[{number}/5] {title} ({time.monotonic() - started:.0f} s so far)", flush=True)
        words = ["--config", str(CONFIGS / f"{name}.yaml"), "--seed", str(args.seed), "--overwrite"]
        results[name] = call(recipe.main, words + more[name])

    # The verdict, and a report to look at.
    facts, good = verdict(results["evaluate"], results["ppo"], results["reward"])
    facts.append(("time", f"{time.monotonic() - started:.0f} s", ""))
    curves = plot_curves(results["ppo"], results["reward"]["history"])
    out = Path("outputs/demo")
    write_bytes(out / "curves.png", curves)
    samples = [row for _, row in read_jsonl(out / "evaluation" / "samples.jsonl")][:20]
    write_report(out / "report.html", "From prompts to a tuned policy", facts, curves, samples)
    print_facts("From prompts to a tuned policy", facts)
    print(f"report: {out / 'report.html'}")
    return 0 if good else 1


if __name__ == "__main__":
    run(main)
