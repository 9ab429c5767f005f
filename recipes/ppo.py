"""Tune the policy with PPO against a reward model, or a Python function, minus a KL penalty.

    accelerate launch recipes/ppo.py --reward_adapter outputs/reward/adapter

One base in memory serves policy, reference, value and reward, by LoRA adapters and heads. The
policy starts as the base. The KL coefficient adapts until the KL stands at --kl_target.
You should see the score rise, the KL climb to its target and stay there, and samples on the way;
log.jsonl has a row for each update, and adapters/policy loads with plain peft.
"""

from dataclasses import dataclass, field

import torch

from toolkit.cli import LoraArguments, ModelArguments, ScorerArguments, run
from toolkit.data.comparisons import read_prompts
from toolkit.data.files import claim_output
from toolkit.errors import check_range
from toolkit.models.roles import Roles
from toolkit.training.ppo_config import PPOConfig
from toolkit.training.ppo_trainer import PPOTrainer, Row


@dataclass
class PPOArguments:
    prompts: str = field(default="data/prompts.jsonl", metadata={"help": "JSONL with `prompt`."})
    max_prompt_length: int = field(default=256, metadata={"help": "Leave out longer prompts."})
    prompt_tokens: int | None = field(
        default=None,
        metadata={"help": "Cut prompts out of text: its first so many tokens (rows of `text`)."},
    )
    limit: int | None = field(default=None, metadata={"help": "Use only so many prompts."})
    overwrite: bool = field(default=False, metadata={"help": "Replace what is at --output_dir."})

    def __post_init__(self) -> None:
        for name in ("max_prompt_length", "prompt_tokens", "limit"):
            check_range(name, getattr(self, name), low=1)


def main(
    model_args: ModelArguments,
    lora: LoraArguments,
    scorer_args: ScorerArguments,
    args: PPOArguments,
    config: PPOConfig,
) -> list[Row]:
    # Data and reward, checked before the model is loaded.
    claim_output(str(config.output_dir), args.overwrite, "output_dir")
    name = model_args.model_name_or_path
    tokenizer = model_args.tokenizer()
    reward_function = scorer_args.load(name, model_args.precision)
    prompts, left_out = read_prompts(
        args.prompts, tokenizer, args.max_prompt_length, args.prompt_tokens, args.limit
    )
    config.rule(tokenizer)  # a truncation token that is not one, say, is a mistake for now
    model_args.check_context(prompts, config.response_length)
    print(f"{len(prompts)} prompts ({left_out} left out by length)")

    torch.manual_seed(config.seed)  # peft draws the adapters' A
    # Model: one base, its adapters and heads.
    roles = Roles(
        model_args.base(),
        lora.config("CAUSAL_LM"),
        value=config.value,
        reward_adapter=scorer_args.reward_adapter,
    )

    # Trainer, train, save.
    trainer = PPOTrainer(
        args=config,
        processing_class=tokenizer,
        model=roles,
        train_dataset=prompts,
        reward_model=reward_function,
    )
    rows = trainer.train()
    print(f"policy adapter: {trainer.save_model(precision=model_args.precision)}")
    return rows


if __name__ == "__main__":
    run(main)
