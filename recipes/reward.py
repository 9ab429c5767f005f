"""Train a reward model on comparisons: K-way softmax, LoRA on the base, an fp32 score head.

    accelerate launch recipes/reward.py --comparisons outputs/comparisons.jsonl

Splits the comparisons by prompt, trains a LoRA adapter with a scalar head by TRL's RewardTrainer,
then scales its scores to mean 0 and standard deviation 1 on fresh samples of the reference, so that
one kl_coef means the same whatever the reward model. OUTPUT_DIR/adapter holds the adapter (plain
peft loads it), toolkit.json with gain and bias, and metrics.json. You should see the loss fall from
ln K and a held-out accuracy, with its interval, above chance.
"""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from datasets import Dataset

from toolkit.cli import LoraArguments, ModelArguments, SamplingArguments, run
from toolkit.data.comparisons import encode_candidates, read_rows, split_by_prompt
from toolkit.data.files import atomic_directory, claim_output, write_json
from toolkit.errors import InputError, check_range
from toolkit.models.adapters import absolute_if_local, write_facts
from toolkit.models.roles import Roles
from toolkit.training.reward_trainer import (
    BestOfKConfig,
    BestOfKTrainer,
    best_of_k_accuracy,
    normalize,
    score_candidates,
)


@dataclass
class RewardArguments:
    comparisons: str = field(
        default="outputs/comparisons.jsonl",
        metadata={"help": "JSONL with `prompt, completions, best`."},
    )
    overwrite: bool = field(default=False, metadata={"help": "Replace what is at --output_dir."})
    eval_rows: int = field(default=200, metadata={"help": "Comparisons held out, by prompt."})
    normalize_samples: int = field(
        default=512, metadata={"help": "Reference samples for mean 0 and std 1."}
    )
    normalize_truncated: bool = field(
        default=False, metadata={"help": "Apply the truncation rule to them (the paper did not)."}
    )

    def __post_init__(self) -> None:
        check_range("eval_rows", self.eval_rows, low=1)
        check_range("normalize_samples", self.normalize_samples, low=2)


def main(
    model_args: ModelArguments,
    lora: LoraArguments,
    sampling: SamplingArguments,
    args: RewardArguments,
    config: BestOfKConfig,
) -> dict[str, Any]:
    # Data, checked whole before a model is loaded.
    target = claim_output(str(config.output_dir), args.overwrite, "output_dir") / "adapter"
    name = model_args.model_name_or_path
    tokenizer = model_args.tokenizer()
    rule = sampling.rule(tokenizer)
    rows = read_rows(args.comparisons, "best", "--comparisons")
    train, held_out = split_by_prompt(rows, args.eval_rows, config.seed)
    train_rows, train_long = encode_candidates(tokenizer, train, config.max_length or 10**9)
    eval_rows, eval_long = encode_candidates(tokenizer, held_out, config.max_length or 10**9)
    if not train_rows or not eval_rows:
        raise InputError(f"{args.comparisons}: every row is over max_length {config.max_length}")
    prompts = [tokenizer(row["prompt"])["input_ids"] for row in train]
    prompts = [ids for ids in prompts if len(ids) <= (config.max_length or 10**9)]
    model_args.check_context(prompts, rule.response_length)
    model_args.check_context([c for row in train_rows + eval_rows for c in row["candidate_ids"]], 0)
    print(f"{len(train_rows)} comparisons to train on, {len(eval_rows)} held out, "
          f"{train_long + eval_long} over {config.max_length} tokens left out")  # fmt: skip

    # Model and trainer.
    trainer = BestOfKTrainer(
        model=model_args.base(score_head=True, seed=config.seed),
        args=config,
        processing_class=tokenizer,
        train_dataset=Dataset.from_list(train_rows),
        eval_dataset=Dataset.from_list(eval_rows),
        peft_config=lora.config("SEQ_CLS"),
    )
    trainer.train()
    history = [row for row in trainer.state.log_history if "loss" in row]

    # Save, load again as PPO will, normalise, measure; the folder appears when all of it is done.
    with atomic_directory(target) as folder:
        trainer.model.peft_config["default"].base_model_name_or_path = absolute_if_local(name)
        trainer.model.save_pretrained(str(folder))
        (Path(folder) / "README.md").unlink(missing_ok=True)  # peft's empty template
        del trainer
        roles = Roles(model_args.base(), reward_adapter=folder)
        facts = normalize(
            roles, prompts, rule, tokenizer, args.normalize_samples, config.seed,
            whole=not args.normalize_truncated,
        )  # fmt: skip
        write_facts(folder, name, precision=model_args.precision, **facts)
        scores = score_candidates(roles, eval_rows, tokenizer.pad_token_id)
        metrics = best_of_k_accuracy(scores, [row["best"] for row in eval_rows])
        metrics["train_comparisons"] = len(train_rows)
        write_json(folder / "metrics.json", metrics)
    print(json.dumps(metrics, indent=2))
    print(f"{target}: held-out accuracy {metrics['accuracy']:.3f} "
          f"[{metrics['accuracy_low']:.3f}, {metrics['accuracy_high']:.3f}] "
          f"against {metrics['chance']:.3f} by chance")  # fmt: skip
    if metrics["accuracy_low"] <= metrics["chance"]:
        print("warning: no better than chance, so PPO would learn nothing from it; try a higher "
              "--learning_rate, more --num_train_epochs, or more comparisons")  # fmt: skip
    return metrics | {"history": history}


if __name__ == "__main__":
    run(main)
