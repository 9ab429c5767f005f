"""What a PPO update costs, side by side: shared trunk or own value adapter, fp32 or 4-bit base.

    make bench

Every variant runs one update in turn, round after round (ABCABC), in one process on one thread, so
that a busy machine slows all alike. Printed are medians and, what may be quoted, their ratios.
"""

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path

import torch

from toolkit import PPOConfig, PPOTrainer, Roles, load_base, load_tokenizer
from toolkit.labeling.scripted import Lexicon
from toolkit.models.adapters import lora_config

DATA = Path(__file__).parent.parent / "data"
VARIANTS = [("fp32", "trunk"), ("fp32", "adapter"), ("4bit", "trunk"), ("4bit", "adapter")]


def update_of(precision: str, value: str, folder: str, batch: int):  # noqa: ANN201
    """A function that runs one whole update and returns its seconds."""
    tokenizer = load_tokenizer(str(DATA / "model"))
    lines = (DATA / "prompts.jsonl").read_text(encoding="utf-8").splitlines()[:512]
    prompts = tokenizer([json.loads(line)["prompt"] for line in lines])["input_ids"]
    lora = lora_config(16, 32, "all-linear", "CAUSAL_LM")
    roles = Roles(load_base(str(DATA / "model"), precision), lora, value=value)
    config = PPOConfig(
        output_dir=folder, per_device_train_batch_size=batch, total_episodes=batch,
        sample_every=10**9, use_cpu=not torch.cuda.is_available(),
    )  # fmt: skip
    trainer = PPOTrainer(config, tokenizer, roles, prompts, Lexicon(DATA / "lexicon.txt"))

    def update() -> float:
        started = time.perf_counter()
        trainer.train()
        return time.perf_counter() - started

    return update


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5, help="timed rounds, after one to warm up")
    parser.add_argument("--batch", type=int, default=128, help="episodes in an update")
    args = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        updates = {v: update_of(*v, folder, args.batch) for v in VARIANTS}
        times: dict[tuple[str, str], list[float]] = {v: [] for v in VARIANTS}
        for round_ in range(args.rounds + 1):
            for variant, update in updates.items():
                seconds = update()
                if round_:
                    times[variant].append(seconds)
    medians = {variant: statistics.median(seconds) for variant, seconds in times.items()}
    base = medians[VARIANTS[0]]
    print(
        f"\n{'base':6} {'value':8} {'median s':>9} {'ratio':>6}  ({args.batch} episodes, 24 tokens)"
    )
    for (precision, value), seconds in medians.items():
        print(f"{precision:6} {value:8} {seconds:9.3f} {seconds / base:6.2f}")


if __name__ == "__main__":
    main()
