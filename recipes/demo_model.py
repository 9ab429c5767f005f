"""Make the embedded demo model, its tokenizer and its prompts again, from nothing.

    accelerate launch recipes/demo_model.py --output_dir data/model

Writes reviews with the seeded generator of toolkit/data/demo_text.py, trains a byte-level BPE
tokenizer and a small Llama on them, and cuts prompts (the opening sentences) from reviews that the
model never saw. You should see the perplexity on held-out reviews fall to about 4 in some minutes.
"""

import json
import math
from dataclasses import dataclass, field
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    DataCollatorForLanguageModeling,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    Trainer,
    TrainingArguments,
    set_seed,
)

from toolkit.cli import run
from toolkit.data.demo_text import reviews
from toolkit.data.files import atomic_directory, write_json, write_jsonl

END, PAD = "<|endoftext|>", "<|pad|>"


@dataclass
class DemoModelArguments:
    output_dir: str = field(default="data/model", metadata={"help": "Folder for the model."})
    prompts_dir: str = field(default="data", metadata={"help": "Folder for the prompt files."})
    reviews: int = field(default=20_000, metadata={"help": "Reviews to learn from."})
    epochs: float = field(default=6.0, metadata={"help": "Passes over the reviews."})
    vocab_size: int = field(default=1024, metadata={"help": "Entries of the BPE vocabulary."})
    hidden_size: int = field(default=128, metadata={"help": "Width; a multiple of 64."})
    layers: int = field(default=3, metadata={"help": "Decoder layers."})
    learning_rate: float = field(default=2e-3, metadata={"help": "Peak learning rate."})
    seed: int = field(default=0, metadata={"help": "Seed of the text and of the training."})


def train_tokenizer(texts: list[str], vocab_size: int) -> PreTrainedTokenizerFast:
    """A byte-level BPE: any text can be encoded, and decoding gives it back exactly."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[PAD, END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=END, pad_token=PAD)


def main(args: DemoModelArguments) -> None:
    set_seed(args.seed)
    train_texts = [f"{opening} {rest}" for opening, rest in reviews(args.reviews, args.seed)]
    held_out = list(reviews(3_000, args.seed + 1))
    tokenizer = train_tokenizer(train_texts, args.vocab_size)
    held_out_texts = [f"{opening} {rest}" for opening, rest in held_out[:1000]]
    train_rows, eval_rows = (
        [{"input_ids": tokenizer(text + END)["input_ids"]} for text in texts]
        for texts in (train_texts, held_out_texts)
    )

    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=args.hidden_size,
            intermediate_size=3 * args.hidden_size,
            num_hidden_layers=args.layers,
            num_attention_heads=4,
            max_position_embeddings=256,
            tie_word_embeddings=True,
            bos_token_id=None,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )
    trainer = Trainer(
        model=model,
        args=TrainingArguments(
            output_dir="outputs/demo_model",
            per_device_train_batch_size=32,
            per_device_eval_batch_size=64,
            num_train_epochs=args.epochs,
            learning_rate=args.learning_rate,
            lr_scheduler_type="cosine",
            warmup_steps=100,
            weight_decay=0.01,
            logging_steps=100,
            save_strategy="no",
            seed=args.seed,
        ),
        train_dataset=train_rows,
        eval_dataset=eval_rows,
        data_collator=DataCollatorForLanguageModeling(tokenizer, mlm=False),
    )
    trainer.train()
    perplexity = math.exp(trainer.evaluate()["eval_loss"])
    parameters = sum(p.numel() for p in model.parameters())

    with atomic_directory(args.output_dir) as folder:
        model.to(torch.float32).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        facts = {"held_out_perplexity": round(perplexity, 3), "parameters": parameters}
        write_json(folder / "training.json", facts | {"reviews": args.reviews, "seed": args.seed})
    openings = list(dict.fromkeys(opening for opening, _ in held_out))
    prompts = Path(args.prompts_dir)
    write_jsonl(prompts / "prompts.jsonl", [{"prompt": text} for text in openings[:2000]])
    write_jsonl(prompts / "prompts.heldout.jsonl", [{"prompt": text} for text in openings[2000:]])
    print(json.dumps(facts))


if __name__ == "__main__":
    run(main, DemoModelArguments)
