"""The planned memory and the least time of the settings in recipes/configs for public models.

    python benchmarks/model_configs.py [--write] [MODEL ...]

Each of these configs opens with a table: a card, the memory that is planned for it, and what to add
to the command line there. This plans every row again, from the public config.json in
tests/model_configs and without any weights. It prints the rows whose figure has changed; --write
puts the new figures into the files, and two tables into docs/your-model.md. It takes some minutes.

The times are arithmetic. A token of sampling reads all weights and the keys and values of all rows
at the card's bandwidth. Passes over whole texts compute at 40 % of the card's peak. Launching
kernels comes on top, and bounded sampling where it was measured (docs/gpu.md).
"""

import argparse
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from toolkit.cli import bind, recipe
from toolkit.models.adapters import lora_config
from toolkit.models.families import family_of
from toolkit.models.loading import load_config
from toolkit.models.memory import MemoryPlan, plan_memory
from toolkit.models.memory_count import layers_of

ROOT = Path(__file__).parent.parent
CONFIGS = ROOT / "recipes" / "configs"
PUBLIC = ROOT / "tests" / "model_configs"
PAGE = ROOT / "docs" / "your-model.md"
STAGES = ("sample", "reward", "ppo", "evaluate")
TRAININGS = ("reward", "ppo")
ANSWERS = 4  # in a comparison, as preftune sample makes them
GIB = 1 << 30
# Bytes a second and bf16 operations a second (dense, summed in fp32), by NVIDIA's data sheets.
SPEEDS = {
    "RTX 4080, 16 GB": (717e9, 97.5e12),
    "RTX 4090, 24 GB": (1008e9, 165e12),
    "L40S, 48 GB": (864e9, 362e12),
    "A100, 80 GB": (2039e9, 312e12),
    "H100, 80 GB": (3350e9, 989e12),
}
USED_OF_PEAK = 0.4
# A 4-bit weight is read, written in bf16 and read again at each token: the kernel that does without
# is not used for batches of this size.
BYTES_READ = {"4bit": 0.5 + 2 + 2, "bf16": 2.0}
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
    values = _values(path, words)
    lengths = values["max_prompt_length"], values["response_length"]
    if stage == "ppo":
        plan = plan_ppo(path, words)
        return (plan.peak + plan.plain_scales) / GIB

    # Sampling and scoring hold an adapter for the policy and one for the reward, and no optimizer.
    plan = _plan(model, values, *lengths, 1, values["batch_size"], None, checkpointing=True)
    held = sum(size for name, size in plan.held.items() if not name.startswith("optimizer"))
    phases = [sum(parts.values()) for name, parts in plan.phases.items() if name != "optimizing"]
    without_gradients = (held + max(phases)) / GIB
    if stage != "reward":
        return without_gradients

    # A training pass reads whole texts, and a score at the last token of each. PPO's plan for one
    # new token behind all others is the same, but for the output head at that token.
    rows, last = ANSWERS * values["per_device_train_batch_size"], values["max_length"] - 1
    checkpointing = bool(values["activation_checkpointing"])
    plan = _plan(model, values, last, 1, rows, 1, None, checkpointing, reward=False)
    return max(without_gradients, plan.peak / GIB)


def plan_ppo(path: Path, words: tuple[str, ...]) -> MemoryPlan:
    """Plan the memory of a ppo.yaml with these words on its command line.

    On a card that has room for them, PPO holds the scales of a 4-bit base in fp32
    (``plain_scales``), which comes on top of the plan.
    """
    values = _values(path, words)
    micro = values["per_device_train_batch_size"]
    batch = micro * values["gradient_accumulation_steps"]
    return _plan(
        path.parent.name,
        values,
        values["max_prompt_length"],
        values["response_length"],
        micro,
        min(values["local_rollout_forward_batch_size"], batch),
        values["value"],
        checkpointing=bool(values["gradient_checkpointing"]),
    )


def _values(path: Path, words: tuple[str, ...]) -> dict[str, Any]:
    """Return all flags of a config's stage by name, with these words on its command line."""
    told = ["--config", str(path), *words]
    if path.stem in TRAININGS:
        told += ["--use_cpu"]  # bf16 is refused where there is no GPU; the plan is for one anyway
    given = bind(recipe(path.stem).main, told)
    return {name: value for part in given for name, value in vars(part).items()}


def _plan(
    model: str,
    values: dict[str, Any],
    prompt_length: int,
    response_length: int,
    micro_batch: int,
    rollout_batch: int,
    value: str | None,
    checkpointing: bool,
    reward: bool = True,
) -> MemoryPlan:
    """Plan the memory of PPO (``plan_memory``) on a public model, for a stage's settings."""
    adapter = lora_config(16, 32, "all-linear", "CAUSAL_LM")
    if "lora_r" in values:
        shape = values["lora_r"], values["lora_alpha"], values["lora_target_modules"]
        adapter = lora_config(*shape, "CAUSAL_LM")
    return plan_memory(
        load_config(str(PUBLIC / model)),
        values["precision"],
        adapter,
        value,
        prompt_length,
        response_length,
        micro_batch,
        rollout_batch,
        reward=reward,
        bf16=bool(values.get("bf16")),
        checkpointing=checkpointing,
        device="cuda",
    )


def least_times(path: Path, row: CardRow, bandwidth: float, peak: float) -> tuple[float, float]:
    """Return the least seconds of an update of PPO: of sampling, and of everything else."""
    values = _values(path, row.words)
    config = load_config(str(PUBLIC / path.parent.name))
    text = config.get_text_config()
    with torch.device("meta"):
        model = family_of(config).auto.from_config(config)
    head = model.get_output_embeddings().weight.numel()
    linear = sum(
        module.weight.numel()
        for layer in layers_of(model)
        for module in layer.modules()
        if isinstance(module, torch.nn.Linear)
    )

    prompt, response = values["max_prompt_length"], values["response_length"]
    batch = values["per_device_train_batch_size"] * values["gradient_accumulation_steps"]
    rollout = min(values["local_rollout_forward_batch_size"], batch)
    width = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    keys = 2 * 2 * text.num_hidden_layers * text.num_key_value_heads * width  # bytes a token

    # Sampling: weights once for all rows, keys and values of half of the completion in the mean.
    weights = linear * BYTES_READ[values["precision"]] + 2 * head
    cached = rollout * keys * (prompt + response / 2)
    steps = response * batch / rollout
    sampling = steps * (weights + cached) / bandwidth

    # Whole texts: 2 operations a weight and token in a forward pass. Prompt, reference, reward and
    # value pass once. In each epoch, policy and value pass forward, once more to recompute, and
    # back (the base's weights have no gradient of their own).
    once = 2 * (prompt + 3 * (prompt + response))
    trained = values["num_ppo_epochs"] * 2 * 3 * 2 * (prompt + response)
    operations = batch * linear * (once + trained)
    return sampling, operations / (USED_OF_PEAK * peak)


def times_table() -> str:
    """A row for each model with the least seconds of an update of PPO, a column for each card."""
    lines = [f"| seconds | {' | '.join(SPEEDS)} |", f"|---{'|---' * len(SPEEDS)}|"]
    for name in models():
        path, cells = CONFIGS / name / "ppo.yaml", []
        rows = {row.card: row for row in rows_of(path)}
        for card, speed in SPEEDS.items():
            row = rows[int(card.split(", ")[1].removesuffix(" GB"))]
            sampling, rest = least_times(path, row, *speed)
            cells.append(f"{sampling:.0f} + {rest:.0f}")
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def memory_table() -> str:
    """A row for each model with the phases of PPO on 24 GB, and its peaks on all cards."""
    phases = ("held", "sampling", "reference and scores", "optimizing")
    cards = [row.card for row in rows_of(CONFIGS / models()[0] / "ppo.yaml")]
    heads = [f"24 GB: {phases[0]}", *phases[1:], *(f"peak, {card} GB" for card in cards)]
    lines = [f"| GiB | {' | '.join(heads)} |", f"|---{'|---' * len(heads)}|"]
    for name in models():
        path = CONFIGS / name / "ppo.yaml"
        rows = rows_of(path)
        plan = plan_ppo(path, next(row.words for row in rows if row.card == 24))
        held = sum(plan.held.values()) + plan.plain_scales
        sizes = [held, *(sum(plan.phases[each].values()) for each in phases[1:])]
        cells = [f"{size / GIB:.1f}" for size in sizes] + [f"{row.gib:.1f}" for row in rows]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


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

    page = PAGE.read_text(encoding="utf-8")
    for name, table in (("memory", memory_table()), ("times", times_table())):
        before, rest = page.split(f"<!-- {name} -->", 1)
        page = (
            f"{before}<!-- {name} -->\n\n{table}\n\n<!-- end -->{rest.split('<!-- end -->', 1)[1]}"
        )
    if args.write:
        PAGE.write_text(page, encoding="utf-8")


if __name__ == "__main__":
    main()
