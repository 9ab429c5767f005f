"""Train every method on the same comparisons, compare them on held-out prompts, and report.

    accelerate launch recipes/compare.py --configs recipes/configs/tinystories

Runs, in this order, what the folder has a config for: sample*.yaml, label*.yaml, reward*.yaml,
sft*.yaml, dpo*.yaml (preference.py), rloo*.yaml, ppo*.yaml; then evaluate.yaml, with all that was
trained as contenders beside those it names (best-of-n, say), and a report. Killed, it goes on by
the same command; what is done is not done again. You should see a line and a progress bar for each
stage, then tables, and OUTPUT_DIR/report/report.html with the frontier: score against KL.
"""

from toolkit.cli import bind, recipe, run

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from toolkit.arguments.common import OverwriteArguments
from toolkit.errors import InputError
from toolkit.flags import flag
from toolkit.stages import Stage, run_stages

evaluate, report = recipe("evaluate"), recipe("report")
RECIPES: dict[str, tuple[str, Any, str]] = {  # title, recipe, what it leaves in its output_dir
    "sample": ("Sample completions", recipe("sample").main, ""),
    "label": ("Pick the best of each", recipe("label").main, ""),
    "reward": ("Train a reward model on the picks", recipe("reward").main, "adapter"),
    "sft": ("Fine-tune on the picks", recipe("sft").main, "adapter"),
    "dpo": ("Optimise preferences directly", recipe("preference").main, "adapter"),
    "rloo": ("Tune the policy with RLOO", recipe("rloo").main, "adapter"),
    "ppo": ("Tune the policy with PPO", recipe("ppo").main, "adapters/policy"),
}
POLICIES = ("sft", "dpo", "rloo", "ppo")


@dataclass
class CompareArguments(OverwriteArguments):
    configs: str = flag("recipes/configs/demo", "Folder with a YAML for each stage.")
    stages: str = flag(
        "sample,label,reward,sft,dpo,rloo,ppo",
        "Which of them, by commas; evaluation and report always follow.",
    )
    output_dir: str | None = flag(None, "Folder for the report; default outputs/NAME of configs.")


def stages_of(configs: Path, names: list[str], words: dict[str, list[str]]) -> list[Stage]:
    """A stage for each config of these names, with further words for some."""
    if unknown := [name for name in names if name not in RECIPES]:
        raise InputError(f"stages: {unknown[0]!r} is none of {', '.join(RECIPES)}", "stages")
    found = []
    for name, (title, main, leaves) in RECIPES.items():
        for path in sorted(configs.glob(f"{name}*.yaml")) if name in names else []:
            told = ["--config", str(path), *words.get(name, [])]
            made = output(main, told)
            found.append(Stage(path.stem, title, main, told, [made / leaves], name == "ppo"))
    if found:
        return found
    raise InputError(f"configs: {configs}: no folder with a YAML for {', '.join(names)}", "configs")


def output(main: Any, words: list[str]) -> Path:
    """Where a recipe writes when told these words: its output_dir, or its file."""
    for part in bind(main, words):
        for name in ("output_dir", "output"):
            if getattr(part, name, None) is not None:
                return Path(getattr(part, name))
    raise InputError(f"{words[1]}: no output_dir and no output (a comparison needs them)")


def last_stages(
    configs: Path, stages: list[Stage], out: Path, words: list[str], title: str
) -> list[Stage]:
    """Evaluation of all that the stages train, and the report."""
    told = ["--config", str(configs / "evaluate.yaml"), *words]
    contenders = list(bind(evaluate.main, told)[-1].contenders)
    known = {Path(c.partition("=")[2]) for c in contenders}
    groups: dict[str, list[str]] = {"--runs": [], "--rewards": [], "--trainings": []}
    picks: list[str] = []
    for stage in stages:
        place = f"{stage.name}={output(stage.main, stage.words)}"
        if stage.name.startswith(POLICIES):
            groups["--runs" if stage.resumes else "--trainings"].append(place)
            if stage.made[0] not in known:
                contenders.append(f"{stage.name}={stage.made[0]}")
        elif stage.name.startswith("reward"):
            groups["--rewards"].append(place)
        elif stage.name.startswith("label"):
            picks = ["--comparisons", str(stage.made[0])]
    evaluation, page = output(evaluate.main, told), out / "report"
    told += ["--contenders", *contenders] * bool(contenders)
    shown = ["--evaluation", str(evaluation), "--output_dir", str(page), "--title", title, *picks]
    shown += [w for flag, places in groups.items() if places for w in (flag, *places)]
    made = [evaluation / "evaluation.json"]
    return [
        Stage("evaluate", "Compare on held-out prompts", evaluate.main, told, made),
        Stage("report", "Report", report.main, shown, [page / "report.html"]),
    ]


def main(args: CompareArguments) -> dict[str, Any]:
    configs, out = Path(args.configs), Path(args.output_dir or f"outputs/{Path(args.configs).name}")
    stages = stages_of(configs, [name.strip() for name in args.stages.split(",")], {})
    stages += last_stages(configs, stages, out, [], "Methods compared")
    return run_stages(stages, out, args.overwrite)


if __name__ == "__main__":
    run(main)
