"""Reward models that stock TRL trained, scored as PPO scores: do they say what TRL says of them?

    python benchmarks/stock_reward_models.py

Samples pairs from the embedded model, picks by its lexicon, and trains TRL's own RewardTrainer on
256 of them, as a LoRA adapter and whole, on text and on messages. On 300 other pairs it prints
TRL's own accuracy (``trainer.evaluate``) beside that of the scorer of ``ppo.py``: of the adapter on
the policy's base (``--reward_adapter``), of either by its text (``--reward_model``), and without
the end that TRL trained them with (``--reward_end_token none``). About two minutes on one CPU core.
"""

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import AutoModelForSequenceClassification, AutoTokenizer
from trl import RewardConfig, RewardTrainer

from toolkit.data.encoding import Encoder
from toolkit.data.prompts import Prompts, read_prompts
from toolkit.data.text import answers
from toolkit.data.tokens import decode_pair
from toolkit.models.loading import load_base, load_tokenizer
from toolkit.models.reading import reading_of
from toolkit.models.roles import Roles
from toolkit.models.sampling import sampling_rule
from toolkit.scoring.functions import Lexicon
from toolkit.scoring.reward_models import RewardAdapter, RewardModel
from toolkit.scoring.scorer import Completions, TokenCompletions

ROOT = Path(__file__).parent.parent
BASE = str(ROOT / "data" / "model")
TEMPLATE = (
    "{% for m in messages %}<|{{ m['role'] }}|>\n{{ m['content'] }}<|endoftext|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)
Pair = tuple[Any, str, str]  # prompt, chosen, rejected


def sample_pairs(count: int) -> list[Pair]:
    """Pairs of the embedded model's samples whose lexicon scores differ."""
    tokenizer = load_tokenizer(BASE)
    prompts, _ = read_prompts(ROOT / "data" / "prompts.jsonl", tokenizer, 256, limit=count)
    roles, rule = Roles(load_base(BASE, "fp32")), sampling_rule(tokenizer, 24, 0.7)
    generator, lexicon = torch.Generator().manual_seed(0), Lexicon(ROOT / "data" / "lexicon.txt")
    texts: list[list[str]] = []
    for _ in range(2):
        _, sampled = rule.sample(roles.step(), list(prompts), generator, roles.device)
        texts.append(
            [
                decode_pair(tokenizer, p, c.tolist())[1]
                for p, c in zip(prompts, sampled.completion_ids, strict=True)
            ]
        )
    pairs = []
    for i, (a, b) in enumerate(zip(*texts, strict=True)):
        x, y = lexicon.of_texts([a, b])
        if x != y:
            pairs.append((prompts.given[i], *((a, b) if x > y else (b, a))))
    return pairs


def as_dataset(pairs: list[Pair]) -> Dataset:
    rows = []
    for prompt, chosen, rejected in pairs:
        said = answers([prompt, prompt], [chosen, rejected])
        rows.append({"prompt": prompt, "chosen": said[0], "rejected": said[1]})
    return Dataset.from_list(rows)


def train(train_pairs: list[Pair], held_out: list[Pair], lora: bool, folder: Path) -> float:
    """TRL's own trainer, from its examples; returns its own accuracy on what is held out."""
    tokenizer = AutoTokenizer.from_pretrained(BASE)
    if not isinstance(train_pairs[0][0], str):
        tokenizer.chat_template = TEMPLATE
    torch.manual_seed(0)
    model = AutoModelForSequenceClassification.from_pretrained(BASE, num_labels=1)
    config = LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="SEQ_CLS")
    trainer = RewardTrainer(
        model,
        RewardConfig(
            str(folder),
            use_cpu=True,
            bf16=False,
            gradient_checkpointing=False,
            report_to=[],
            per_device_train_batch_size=16,
            num_train_epochs=6,
            learning_rate=2e-3 if lora else 5e-4,
            save_strategy="no",
            logging_steps=10**6,
            disable_tqdm=True,
            seed=0,
        ),
        train_dataset=as_dataset(train_pairs),
        eval_dataset=as_dataset(held_out),
        processing_class=tokenizer,
        peft_config=config if lora else None,
    )
    trainer.train()
    trainer.save_model(str(folder))
    return float(trainer.evaluate()["eval_accuracy"])


def by_ids(folder: Path, pairs: list[Pair], end_token: str) -> float:
    """The adapter on the policy's base, as ``ppo.py --reward_adapter`` has it."""
    tokenizer = load_tokenizer(BASE)
    if not isinstance(pairs[0][0], str):
        tokenizer.chat_template = TEMPLATE
    reading = reading_of(folder, tokenizer, end_token)
    roles = Roles(load_base(BASE, "fp32"), reward_adapter=folder, reading=reading)
    encoder, scores = Encoder(tokenizer, None), []
    for side in (1, 2):
        prompts = Prompts(encoder.prompt_ids(pair[0]) for pair in pairs)
        prompts.given = {i: pair[0] for i, pair in enumerate(pairs)}
        kept = [
            encoder.completion_ids(
                ids, encoder.prompt_text(pair[0]), str(pair[side]), not isinstance(pair[0], str)
            )
            for ids, pair in zip(prompts, pairs, strict=True)
        ]
        asked = TokenCompletions(prompts, tokenizer, kept, actors=roles, batch_size=64)
        scores.append(RewardAdapter()(asked))
    return float((scores[0] > scores[1]).float().mean())


def by_text(folder: Path, pairs: list[Pair], end_token: str) -> float:
    """A model beside the policy's, as ``ppo.py --reward_model`` has it."""
    model = RewardModel(str(folder), "fp32", end_token=end_token)
    prompts = [pair[0] for pair in pairs]
    chosen, rejected = (
        model(Completions(prompts, [str(pair[side]) for pair in pairs])) for side in (1, 2)
    )
    return float((chosen > rejected).float().mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--train", type=int, default=256, help="Pairs to train on.")
    parser.add_argument("--held_out", type=int, default=300, help="Pairs to measure on.")
    args = parser.parse_args()
    torch.set_num_threads(1)
    count = args.train + args.held_out
    pairs = sample_pairs(2 * count)[:count]
    print(f"{'trained':28}{'TRL':>8}{'adapter':>10}{'model':>8}{'no end':>8}")
    for chat in (False, True):
        made = [
            ([{"role": "user", "content": p}], c, r) if chat else (p, c, r) for p, c, r in pairs
        ]
        for lora in (True, False):
            with tempfile.TemporaryDirectory() as scratch:
                folder, held_out = Path(scratch) / "reward", made[args.train :]
                own = train(made[: args.train], held_out, lora, folder)
                row = {
                    "trained": f"{'LoRA' if lora else 'whole'}, {'messages' if chat else 'text'}",
                    "trl": own,
                    "adapter": by_ids(folder, held_out, "auto") if lora else None,
                    "model": by_text(folder, held_out, "auto"),
                    "no_end": by_text(folder, held_out, "none"),
                }
            shown = [
                "" if row[n] is None else f"{row[n]:.3f}"
                for n in ("trl", "adapter", "model", "no_end")
            ]
            print(f"{row['trained']:28}{shown[0]:>8}{shown[1]:>10}{shown[2]:>8}{shown[3]:>8}")
            print(json.dumps(row))


if __name__ == "__main__":
    main()
