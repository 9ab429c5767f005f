"""The memory plans of public models on cards of 16 to 80 GB, next to arithmetic by hand.

    python benchmarks/plans.py

Each row is PPO in the settings that the plan chooses for the card (``preftune doctor --gpu``), from
the public config.json in tests/model_configs: base in 4-bit, bf16, gradient checkpointing, LoRA of
rank 16 on all linear layers for policy, value and reward, 64 episodes an update, prompts of 512
tokens and completions of 256. No weights are read.

"by hand" adds up sizes that are written out below, from the numbers of config.json alone; it shares
no code with the plan, which counts the tensors of the passes. The last column is plan / by hand.
It takes about ten minutes.
"""

import argparse
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from toolkit.arguments.model import ModelArguments
from toolkit.models.adapters import lora_config
from toolkit.models.cards import room_of
from toolkit.models.loading import load_config
from toolkit.models.memory import MemoryPlan, plan_memory
from toolkit.models.memory_fit import Passes, largest_that_fit

PUBLIC = Path(__file__).parent.parent / "tests" / "model_configs"
CARDS = ("16GB", "24GB", "48GB", "80GB")
PROMPT, NEW, BATCH, RANK = 512, 256, 64, 16
GIB = 1 << 30


def by_hand(text: Mapping[str, Any], passes: Passes) -> float:
    """Add up the bytes of a run from the numbers of the language model's config."""
    layers, hidden, inner = (
        int(text[name]) for name in ("num_hidden_layers", "hidden_size", "intermediate_size")
    )
    vocab = int(text["vocab_size"])
    heads, groups = int(text["num_attention_heads"]), int(text["num_key_value_heads"])
    size = int(text.get("head_dim") or hidden // heads)
    asked, kept_heads = heads * size, groups * size  # widths of queries, and of keys or values

    # The base: linear layers in 4 bits, embedding and head in bf16. Norms are too small to count.
    shapes = [(hidden, asked), (hidden, kept_heads), (hidden, kept_heads), (asked, hidden)]
    shapes += [(hidden, inner), (hidden, inner), (inner, hidden)]
    linear = layers * sum(read * made for read, made in shapes)
    tied = text["tie_word_embeddings"]
    scales = 4 / 64 if passes.plain_scales else 1 / 64 + 4 / (64 * 256)
    base = linear * (0.5 + scales) + (1 if tied else 2) * vocab * hidden * 2

    # Adapters of policy, value and reward in fp32; two of them have gradients and Adam's moments.
    adapter = layers * RANK * sum(read + made for read, made in shapes) * 4
    held = base + 3 * adapter + 2 * 2 * adapter
    widest = hidden * inner * 2  # a 4-bit layer that is unpacked for a product

    # Sampling: keys and values, then logits in fp32, their softmax and its sums in fp64.
    tokens = PROMPT + NEW
    rows = passes.rollout_batch
    cache = layers * 2 * kept_heads * rows * tokens * 2
    drawing = rows * vocab * (4 + 4 + 8 + 8)
    sampling = cache + drawing + 4 * rows * PROMPT * inner * 2 + widest + adapter / 2
    if passes.unpack_base:
        sampling += linear * 2

    # Logits: a chunk of at most 256 MiB in fp32, its softmax, and that in bf16.
    def logits(rows: int) -> float:
        return 2.5 * min(1 << 28, rows * NEW * vocab * 4)

    # Without gradients: the residual and an MLP at work. Families without the fast passes hold
    # silu(gate) beside its product.
    fast = text["model_type"] in ("llama", "qwen3")
    at_work = rows * tokens * 2 * (3 * hidden + (3 if fast else 4) * inner)
    reading = max(at_work, rows * NEW * hidden * 2 + logits(rows)) + widest

    # With gradients: the input of each layer, and one layer whole. In it are kept what linear
    # layers read, queries, keys and values after the rotation, and attention's output.
    rows = passes.micro_batch
    inputs = layers * hidden * 2
    norms = (4 if text["model_type"].startswith("gemma") else 2) * hidden
    layer = 2 * (hidden + norms + 2 * asked + 2 * kept_heads + (3 if fast else 4) * inner)
    if not fast:
        layer += 4 * norms  # transformers' own norms keep an fp32 copy
    on_its_way = 2 * (2 * inner + hidden)  # two gradients of the MLP's product, one of its output
    each_token = inputs + layer + on_its_way
    last = rows * NEW * hidden * 2  # what the output head's gradient needs
    kept = rows * tokens * inputs + last
    training = max(rows * tokens * each_token + last, kept + logits(rows)) + widest + 2 * adapter

    return held + max(sampling, reading, training)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    names = sorted(path.name for path in PUBLIC.iterdir() if path.is_dir())
    parser.add_argument("--models", nargs="+", default=names)
    parser.add_argument("--cards", nargs="+", default=CARDS)
    args = parser.parse_args()
    precision = ModelArguments().precision
    lora = lora_config(RANK, 32, "all-linear", "CAUSAL_LM")

    head = (
        "model",
        "card",
        "with gradients",
        "without",
        "fp32 scales",
        "unpacked",
        "GiB left",
        "held",
        "plan",
        "by hand",
        "plan / by hand",
        "peak while",
    )
    print(f"| {' | '.join(head)} |")
    print("|" + "---|" * len(head), flush=True)
    for model in args.models:
        shape = load_config(str(PUBLIC / model))

        @cache
        def plan(passes: Passes, shape: Any = shape) -> MemoryPlan:
            return plan_memory(
                shape,
                passes.precision,
                lora,
                "adapter",
                PROMPT,
                NEW,
                passes.micro_batch,
                passes.rollout_batch,
                bf16=True,
                checkpointing=passes.checkpointing,
                device="cuda",
                plain_scales=passes.plain_scales,
                unpack_base=passes.unpack_base,
            )

        numbers = shape.get_text_config().to_dict()  # what config.json leaves out has a default
        for card in args.cards:
            room = room_of(card)
            wanted = Passes(BATCH, BATCH, True, precision)
            found = largest_that_fit(plan, wanted, BATCH, room.usable)
            if found is None:
                print(f"| {model} | {card} | does not fit |", flush=True)
                continue
            made, hand = plan(found), by_hand(numbers, found)
            held = sum(made.held.values())
            said = "yes" if found.plain_scales else "no", "yes" if found.unpack_base else "no"
            print(
                f"| {model} | {card} | {found.micro_batch} | {found.rollout_batch} | {said[0]} | "
                f"{said[1]} | {room.usable / GIB:.1f} | {held / GIB:.2f} | {made.peak / GIB:.2f} | "
                f"{hand / GIB:.2f} | {made.peak / hand:.3f} | {made.hungriest} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
