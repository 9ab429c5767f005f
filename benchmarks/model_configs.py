"""The planned memory of the settings in recipes/configs for public models, card by card.

    python benchmarks/model_configs.py [--write] [MODEL ...]

Each of these configs opens with a table: a card, the memory that is planned for it, and what to add
to the command line there. This plans every row again, from the public config.json in
tests/model_configs and without any weights. It prints the rows whose figure has changed; --write
puts the new figures into the files. It takes some minutes.
"""

import argparse
import re
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import TypeVar

from toolkit.arguments.lora import LoraArguments
from toolkit.arguments.model import ModelArguments
from toolkit.arguments.prompts import PromptArguments
from toolkit.cli import bind, recipe
from toolkit.models.from_arguments import config_of, lora_of
from toolkit.models.memory import plan_memory
from toolkit.scoring.arguments import RewardArguments
from toolkit.training.from_arguments import memory_planner
from toolkit.training.ppo.config import PPOConfig

ROOT = Path(__file__).parent.parent
CONFIGS = ROOT / "recipes" / "configs"
PUBLIC = ROOT / "tests" / "model_configs"
STAGES = ("sample", "reward", "ppo", "evaluate")
TRAININGS = ("reward", "ppo")
ANSWERS = 4  # in a comparison, as preftune sample makes them
Part = TypeVar("Part")
ROW = re.compile(r"#   (?P<card>\d+) GB +(?P<gib>[\d.]+) GiB   (?P<words>.*)")


@dataclass(frozen=True)
class CardRow:
    """A row of the table at the top of a config.

    Attributes:
        card: its memory in GB.
        gib: the planned memory in GiB, rounded to a tenth.
        words: what is added to the command line.
    """

    card: int
    gib: float
    words: tuple[str, ...]

    def __str__(self) -> str:
        words = " ".join(self.words) or "(nothing)"
        return f"#   {self.card} GB  {self.gib:5.1f} GiB   {words}"


def models() -> list[str]:
    """The models that have settings, by the names of their folders."""
    return sorted(folder.name for folder in PUBLIC.iterdir() if folder.is_dir())


def rows_of(path: Path) -> list[CardRow]:
    """Read the table at the top of a config."""
    found = map(ROW.fullmatch, path.read_text(encoding="utf-8").splitlines())
    return [
        CardRow(
            int(row["card"]),
            float(row["gib"]),
            () if row["words"] == "(nothing)" else tuple(row["words"].split()),
        )
        for row in found
        if row is not None
    ]


def planned(path: Path, words: tuple[str, ...]) -> float:
    """Plan the memory of a config's stage in GiB, with these words on its command line."""
    model, stage = path.parent.name, path.stem
    told = ["--config", str(path), *words, "--model_name_or_path", str(PUBLIC / model)]
    if stage in TRAININGS:
        told += ["--use_cpu"]  # bf16 is refused where there is no GPU; the plan is for one anyway
    given = bind(recipe(stage).main, told)
    model_args, precision = _of(given, ModelArguments), _of(given, ModelArguments).precision

    if stage == "ppo":
        config = _of(given, PPOConfig)
        prompts = _of(given, PromptArguments)
        plan = memory_planner(
            model_args,
            _of(given, LoraArguments),
            prompts,
            config,
            _of(given, RewardArguments).reward_adapter,
            prompts.max_prompt_length,
            "cuda",
        )
        checkpointing = bool(config.gradient_checkpointing)
        return plan(config.per_device_train_batch_size, checkpointing).peak / (1 << 30)

    values = {name: value for part in given for name, value in vars(part).items()}
    lengths = values["max_prompt_length"], values["response_length"]
    without = _without_gradients(model, precision, *lengths, values["batch_size"])
    if stage != "reward":
        return without
    # A pass is over whole texts, whose score is read at the last token. PPO's plan for one new
    # token after all others comes to the same, but for the output head at one token.
    lora = lora_of(_of(given, LoraArguments), "CAUSAL_LM")
    whole = plan_memory(
        config_of(model_args),
        precision,
        lora,
        value=None,
        prompt_length=values["max_length"] - 1,
        response_length=1,
        micro_batch=ANSWERS * values["per_device_train_batch_size"],
        rollout_batch=1,
        reward=False,
        bf16=bool(values["bf16"]),
        checkpointing=bool(values["activation_checkpointing"]),
        device="cuda",
    )
    return max(without, whole.peak / (1 << 30))


@lru_cache
def _without_gradients(
    model: str, precision: str, prompt_length: int, response_length: int, batch: int
) -> float:
    """Plan sampling and scoring in GiB, with an adapter for the policy and one for the reward."""
    plan = plan_memory(
        config_of(ModelArguments(str(PUBLIC / model))),
        precision,
        lora_of(LoraArguments(), "CAUSAL_LM"),
        value=None,
        prompt_length=prompt_length,
        response_length=response_length,
        micro_batch=1,
        rollout_batch=batch,
        checkpointing=True,
        device="cuda",
    )
    held = sum(size for name, size in plan.held.items() if not name.startswith("optimizer"))
    phases = [sum(parts.values()) for name, parts in plan.phases.items() if name != "optimizing"]
    return (held + max(phases)) / (1 << 30)


def _of(given: tuple[object, ...], kind: type[Part]) -> Part:
    """Return the first of a recipe's arguments of this kind."""
    return next(part for part in given if isinstance(part, kind))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", nargs="*", default=models(), metavar="MODEL")
    parser.add_argument("--write", action="store_true", help="put the new figures into the files")
    args = parser.parse_args()

    for path in (CONFIGS / model / f"{stage}.yaml" for model in args.models for stage in STAGES):
        text = path.read_text(encoding="utf-8")
        for row in rows_of(path):
            new = replace(row, gib=round(planned(path, row.words), 1))
            if new != row:
                print(f"{path.relative_to(ROOT)}, {row.card} GB: {row.gib} is {new.gib} GiB now")
            old = next(line for line in text.splitlines() if line.startswith(f"#   {row.card} GB"))
            text = text.replace(old, str(new))
        if args.write:
            path.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
