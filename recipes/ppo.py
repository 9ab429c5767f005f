"""Tune the policy with PPO against reward models and functions, minus a KL penalty.

    accelerate launch recipes/ppo.py --reward_adapter outputs/reward/adapter

One base in memory serves policy, reference, value and reward, by LoRA adapters and heads. The
policy starts as the base, or from --policy_adapter. The KL coefficient adapts until the KL stands
at --kl_target. A run that was killed goes on with --resume auto, exactly. You should see the score
rise, the KL climb to its target and stay there, and samples on the way; log.jsonl has a row for
each update, timings.jsonl the seconds, and adapters/policy loads with plain peft.
"""

from dataclasses import dataclass, field

import torch

from toolkit.cli import LoraArguments, ModelArguments, RewardArguments, run
from toolkit.data.files import claim_output
from toolkit.data.prompts import read_prompts
from toolkit.errors import InputError, check_choice, check_range
from toolkit.models.adapters import check_adapter
from toolkit.models.roles import Roles
from toolkit.training.ppo_config import PPOConfig
from toolkit.training.ppo_trainer import PPOTrainer, Row


@dataclass
class PPOArguments:
    prompts: str = field(default="data/prompts.jsonl", metadata={"help": "JSONL with `prompt`."})
    eval_prompts: str | None = field(
        default=None, metadata={"help": "Held-out prompts: evaluated every --eval_every updates."}
    )
    eval_limit: int | None = field(default=128, metadata={"help": "Use only so many of these."})
    eval_skip: int = field(default=0, metadata={"help": "Pass over so many of their rows first."})
    max_prompt_length: int = field(default=256, metadata={"help": "Leave out longer prompts."})
    prompt_tokens: int | None = field(
        default=None,
        metadata={"help": "Cut prompts out of text: its first so many tokens (rows of `text`)."},
    )
    chat_template: str | None = field(
        default=None,
        metadata={"help": "For prompts of messages: plain, a Jinja file, or the tokenizer's own."},
    )
    limit: int | None = field(default=None, metadata={"help": "Use only so many prompts."})
    policy_adapter: str | None = field(
        default=None, metadata={"help": "Adapter that the policy starts from (fine-tuned, say)."}
    )
    reference: str = field(
        default="policy_adapter",
        metadata={"help": "With --policy_adapter: a frozen copy of it, or base."},
    )
    overwrite: bool = field(default=False, metadata={"help": "Replace what is at --output_dir."})

    def __post_init__(self) -> None:
        check_choice("reference", self.reference, ("policy_adapter", "base"))
        for name in ("max_prompt_length", "prompt_tokens", "limit", "eval_limit"):
            check_range(name, getattr(self, name), low=1)
        check_range("eval_skip", self.eval_skip, low=0)


def main(
    model_args: ModelArguments,
    lora: LoraArguments,
    reward_args: RewardArguments,
    args: PPOArguments,
    config: PPOConfig,
) -> list[Row]:
    # Data and rewards, checked before the model is loaded.
    claim_output(str(config.output_dir), args.overwrite or config.resume is not None, "output_dir")
    name, tokenizer = model_args.model_name_or_path, model_args.tokenizer()
    rewards = reward_args.load(name, model_args.precision)
    if args.policy_adapter is not None:
        check_adapter(args.policy_adapter, name, "CAUSAL_LM", "--policy_adapter")
    if config.value_init == "reward" and reward_args.reward_adapter is None:
        raise InputError("value_init: reward needs a --reward_adapter to start from", "value_init")
    how = {"prompt_tokens": args.prompt_tokens, "chat_template": args.chat_template}
    longest = args.max_prompt_length
    prompts, left_out = read_prompts(args.prompts, tokenizer, longest, limit=args.limit, **how)
    held_out = None
    if args.eval_prompts is not None:
        held_out, _ = read_prompts(
            args.eval_prompts, tokenizer, longest, limit=args.eval_limit, skip=args.eval_skip,
            what="--eval_prompts", **how,
        )  # fmt: skip
    config.rule(tokenizer)  # a truncation token that is not one, say, is a mistake for now
    model_args.check_context(prompts + (held_out or []), config.response_length)
    print(f"{len(prompts)} prompts ({left_out} left out by length)")

    # Model: one base, its adapters and heads.
    torch.manual_seed(config.seed)  # peft draws the adapters' A
    roles = Roles(
        model_args.base(), lora.config("CAUSAL_LM"), value=config.value,
        reward_adapter=reward_args.reward_adapter, policy_adapter=args.policy_adapter,
        reference=args.reference if args.policy_adapter else "base", value_init=config.value_init,
        autocast_dtype=torch.bfloat16 if config.bf16 else None,
    )  # fmt: skip

    # Trainer, train, save.
    trainer = PPOTrainer(
        config, tokenizer, roles, reward_model=rewards, train_dataset=prompts,
        eval_dataset=held_out, reward_weights=reward_args.reward_weights,
    )  # fmt: skip
    rows = trainer.train()
    print(f"policy adapter: {trainer.save_model(precision=model_args.precision)}")
    return rows


if __name__ == "__main__":
    run(main, processes=True)
