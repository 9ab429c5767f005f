"""From prompts to a tuned policy: every stage in order, on the model embedded in data/.

    accelerate launch recipes/demo.py

Samples four completions per prompt, lets the lexicon pick the best, trains the reward model, tunes
the policy by PPO against it, compares the policy with the untuned model and with best-of-4 on
held-out prompts, as judged by the reward model and by the labeller's true scorer, and reports. Each
stage is the recipe of that name with its config in recipes/configs/demo; all roles sit on one 4-bit
base. You should see a progress bar for each stage, tables at the end, and
outputs/demo/report/report.html to look at. The exit code is 1 if a verdict of the report is no: the
policy did not get better, or the KL was not held within 10 % of its target over the last fifth.
"""

from toolkit.cli import recipe, run

from dataclasses import dataclass, field
from pathlib import Path

from toolkit.errors import check_range, check_seed
from toolkit.pipeline.stages import run_stages

compare = recipe("compare")
CONFIGS = Path(__file__).parent / "configs" / "demo"
OUTPUT = Path("outputs/demo")


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
    # The stages, each as a person would run it alone.
    seed = ["--seed", str(args.seed)]
    model = [*seed, "--precision", args.precision]
    words = {"sample": model, "label": seed, "reward": model, "ppo": list(model)}
    if args.prompts is not None:
        words["sample"] = [*model, "--limit", str(args.prompts)]
    if args.total_episodes is not None:
        words["ppo"] += ["--total_episodes", str(args.total_episodes)]
    stages = compare.stages_of(CONFIGS, list(words), words)
    stages += compare.last_stages(CONFIGS, stages, OUTPUT, model, "From prompts to a tuned policy")

    # The report's verdicts decide.
    facts = run_stages(stages, OUTPUT, overwrite=True)["report"]
    return 1 if any(verdict == "no" for _, _, verdict in facts) else 0


if __name__ == "__main__":
    run(main)
