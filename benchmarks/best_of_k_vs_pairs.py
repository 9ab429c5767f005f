"""The K-way softmax against TRL's stock RewardTrainer on the same picks as pairs, side by side.

    python benchmarks/best_of_k_vs_pairs.py --model M --comparisons C.jsonl [--lexicon L.txt]

The prompts are cut into five folds. For each fold (and seed) two adapters are trained on the other
four: ours on the comparisons, TRL's on best-against-each pairs (K - 1 of them for each comparison,
in batches that hold as many comparisons), with the same 4-bit base, LoRA, head, learning rate,
schedule, epochs and seed. Each is asked which candidate of each comparison in the fold is best.
Every comparison is held out once, so the pooled accuracy is over all of them. The paired difference
has a t interval over the folds and McNemar's exact test over the comparisons.
"""

import argparse
import json
import math
import random
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from scipy import stats
from transformers import set_seed
from trl import RewardConfig, RewardTrainer

from toolkit.data.comparisons import open_comparisons
from toolkit.data.convert import to_pairs
from toolkit.data.encoding import Encoder
from toolkit.data.records import Row
from toolkit.maths.agreement import one_rater_accuracy, split_half_accuracy
from toolkit.maths.sequences import pad
from toolkit.models.adapters import lora_config
from toolkit.models.loading import load_base, load_tokenizer
from toolkit.scoring.accuracy import luck, share
from toolkit.scoring.functions import Lexicon
from toolkit.training.reward.config import BestOfKConfig
from toolkit.training.reward.trainer import BestOfKTrainer, score_in_buckets


def shared_arguments(args: argparse.Namespace, seed: int, batch: int) -> dict[str, Any]:
    return {
        "output_dir": "/tmp/best_of_k_vs_pairs",
        "num_train_epochs": args.epochs,
        "seed": seed,
        "learning_rate": args.lr,
        "per_device_train_batch_size": batch,
        "adam_epsilon": 1e-5,
        "max_grad_norm": 0.0,
        "max_length": 512,
        "report_to": "none",
        "save_strategy": "no",
        "logging_steps": 1000,
        "disable_tqdm": True,
        "bf16": False,
        "use_cpu": not torch.cuda.is_available(),
        "activation_checkpointing": False,
        "dataloader_pin_memory": False,
    }


def picks(model: Any, candidates: list[list[list[int]]]) -> np.ndarray:
    model.eval()
    result = []
    with torch.no_grad():
        for start in range(0, len(candidates), 64):
            chunk = candidates[start : start + 64]
            ids, mask = pad([c for row in chunk for c in row], 0)
            scores, _ = score_in_buckets(model, ids.to(model.device), mask.long().to(model.device))
            parts = scores.split([len(row) for row in chunk])
            result += [int(part.argmax()) for part in parts]
    return np.array(result)


def ours(args: argparse.Namespace, train: list[Row], test: list[Row], seed: int) -> np.ndarray:
    tokenizer = load_tokenizer(args.model)
    encoder = Encoder(tokenizer, 512)
    trainer = BestOfKTrainer(
        load_base(args.model, "4bit", score_head=True, seed=seed),
        BestOfKConfig(**shared_arguments(args, seed, args.batch)),
        tokenizer,
        Dataset.from_list(list(encoder.encode(("", row) for row in train))),
        None,
        lora_config(16, 32, "all-linear", "SEQ_CLS"),
    )
    trainer.train()
    return picks(trainer.model, [r["candidate_ids"] for r in encoder.encode(("", r) for r in test)])


def stock(args: argparse.Namespace, train: list[Row], test: list[Row], seed: int) -> np.ndarray:
    tokenizer = load_tokenizer(args.model)
    pairs = [pair for row in train for pair in to_pairs(row)]
    per_comparison = round(len(pairs) / len(train))
    set_seed(seed)
    trainer = RewardTrainer(
        model=load_base(args.model, "4bit", score_head=True, seed=seed),
        args=RewardConfig(**shared_arguments(args, seed, args.batch * per_comparison)),
        processing_class=tokenizer,
        train_dataset=Dataset.from_list(
            [{name: pair[name] for name in ("prompt", "chosen", "rejected")} for pair in pairs]
        ),
        peft_config=lora_config(16, 32, "all-linear", "SEQ_CLS"),
    )
    trainer.train()
    end = tokenizer.eos_token  # the stock trainer appends it to every text
    return picks(
        trainer.model,
        [tokenizer([r["prompt"] + c + end for c in r["completions"]])["input_ids"] for r in test],
    )


def describe(name: str, right: np.ndarray, rows: list[Row]) -> str:
    prompts, credits = [row["prompt"] for row in rows], right.astype(float).tolist()
    found = share(credits, prompts)
    p = luck(credits, [1 / len(row["completions"]) for row in rows], prompts)
    return (
        f"{name:28s} {found.value:.4f} [{found.low:.4f}, {found.high:.4f}]  "
        f"chance gives as many with probability {p:.1e}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", default="data/model")
    parser.add_argument("--comparisons", required=True)
    parser.add_argument("--lexicon")
    parser.add_argument("--folds", type=int, default=5)
    parser.add_argument("--epochs", type=float, default=2)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--batch", type=int, default=32, help="comparisons in a batch")
    parser.add_argument("--json", help="write the figures here")
    args = parser.parse_args()
    torch.set_num_threads(1)

    source = open_comparisons(args.comparisons, "best", "--comparisons")
    rows = [row for _, row in source]
    ranks = {h: i for i, h in enumerate(sorted(set(source.order.tolist())))}
    fold = np.array([ranks[h] % args.folds for h in source.order.tolist()])
    best = np.array([row["best"] for row in rows])
    chance = float(np.mean([1 / len(row["completions"]) for row in rows]))
    right = {name: np.zeros(len(rows), dtype=bool) for name in ("ours", "stock")}
    differences = []
    times: dict[str, list[float]] = {"ours": [], "stock": []}
    for f in range(args.folds):
        train = [row for row, g in zip(rows, fold, strict=True) if g != f]
        test = [row for row, g in zip(rows, fold, strict=True) if g == f]
        for name, train_and_pick in (("ours", ours), ("stock", stock)):
            started = time.monotonic()
            right[name][fold == f] = train_and_pick(args, train, test, f) == best[fold == f]
            accuracy, seconds = right[name][fold == f].mean(), time.monotonic() - started
            times[name].append(seconds)
            print(
                f"fold, seed {f}: {name:6s} {accuracy:.4f} of {len(test)}, {seconds:.0f} s",
                flush=True,
            )
        both = [right[name][fold == f].mean() for name in ("ours", "stock")]
        differences.append(float(both[0] - both[1]))

    mean = float(np.mean(differences))
    spread = (
        stats.t.ppf(0.975, args.folds - 1) * np.std(differences, ddof=1) / math.sqrt(args.folds)
    )
    only_ours, only_stock = (
        int((right[a] & ~right[b]).sum()) for a, b in (("ours", "stock"), ("stock", "ours"))
    )
    mcnemar = stats.binomtest(only_ours, only_ours + only_stock).pvalue
    print(f"\n{len(rows)} comparisons, each held out once; chance {chance:.4f}")
    print(describe("K-way softmax (ours)", right["ours"], rows))
    print(describe("pairs (TRL's RewardTrainer)", right["stock"], rows))
    longest = [int(np.argmax([len(c) for c in row["completions"]])) for row in rows]
    print(describe("longest completion", np.array(longest) == best, rows))
    if args.lexicon:
        lexicon = Lexicon(args.lexicon)
        words = [int(np.argmax(lexicon.of_texts(row["completions"]))) for row in rows]
        print(describe("lexicon", np.array(words) == best, rows))
    if all("ratings" in row for row in rows):
        rng = random.Random(0)
        one = np.mean([one_rater_accuracy(row["ratings"], row["best"]) for row in rows])
        half = np.mean([split_half_accuracy(row["ratings"], rng) for row in rows])
        print(f"one rater against the best   {one:.4f}")
        print(f"half of the raters           {half:.4f}")
    print(
        f"ours - stock: {mean:+.4f} [{mean - spread:+.4f}, {mean + spread:+.4f}] (t over "
        f"{args.folds} folds); only ours right {only_ours}, only stock {only_stock}: "
        f"McNemar's exact p {mcnemar:.3f}"
    )
    ratios = sorted(a / b for a, b in zip(times["ours"], times["stock"], strict=True))
    print(f"time of ours over that of stock, by fold: {ratios[0]:.2f} to {ratios[-1]:.2f}")
    if args.json:
        Path(args.json).write_text(
            json.dumps(
                {
                    "ours": float(right["ours"].mean()),
                    "stock": float(right["stock"].mean()),
                    "differences": differences,
                    "half_width": float(spread),
                    "mcnemar_p": float(mcnemar),
                },
                indent=2,
            )
            + "\n"
        )


if __name__ == "__main__":
    main()
