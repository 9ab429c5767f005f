"""Tune the policy with TRL's RLOO or GRPO against the rewards that preftune ppo takes.

    preftune rloo --reward_adapter outputs/reward/adapter
    preftune rloo --method grpo --reward_adapter outputs/reward/adapter

Neither has a value model. The baseline of a completion is the mean reward of the other completions
of its prompt (of all its completions, for GRPO). preftune ppo --algorithm rloo or grpo learns by
the same losses with a KL that is held at a target, and can be resumed; these are TRL's own
trainers, to compare with. Prompts, rewards, sampling and truncation are those of preftune ppo, and
--beta is the fixed weight of the KL penalty. The reference is the base with the adapter off, or a
frozen copy of --policy_adapter. A reward adapter needs the memory of a second base, because TRL's
model does not share one. OUTPUT_DIR/adapter holds the adapter, beside log.jsonl, run.json and
metrics.json. You should see `reward` and `kl` (nats per token) rise, and with --eval_prompts both
on held-out prompts at the end.
"""

from toolkit.cli import run, write_run

from typing import Any

from toolkit.arguments.lora import LoraArguments
from toolkit.arguments.model import ModelArguments
from toolkit.arguments.prompts import PromptArguments
from toolkit.data.outputs import claim_output
from toolkit.data.records import to_row
from toolkit.errors import InputError
from toolkit.next_step import evaluation, held_out_flags, say_next, wrote
from toolkit.scoring.arguments import RewardArguments
from toolkit.terminal import say_figures
from toolkit.training.baselines.config import RLOOBaselineConfig


def main(
    model_args: ModelArguments,
    lora: LoraArguments,
    reward_args: RewardArguments,
    args: PromptArguments,
    config: RLOOBaselineConfig,
) -> dict[str, Any]:
    import torch

    from toolkit.data.from_arguments import held_out_facts, training_prompts
    from toolkit.data.prompts import Prompts
    from toolkit.models.adapters import other_start
    from toolkit.models.from_arguments import (
        base_of,
        check_length,
        check_start,
        lora_of,
        prompts_or_demo,
        tokenizer_of,
    )
    from toolkit.models.reading import other_rendering
    from toolkit.scoring.reward_models import RewardAdapter, RewardModel
    from toolkit.scoring.scorer import WeightedSum
    from toolkit.training.baselines.train_and_save import train_and_save
    from toolkit.training.baselines.trainers import VisibleReward, rloo_trainer
    from toolkit.training.from_arguments import rule_of

    # Check data and rewards before a model is loaded.
    out = claim_output(str(config.output_dir), args.overwrite, "output_dir")
    name, tokenizer = model_args.model_name_or_path, tokenizer_of(model_args, args.policy_adapter)
    rule = rule_of(config, tokenizer, config.penalty_reward_value)
    if len(reward_args.reward_adapters) > 1:
        raise InputError(
            "reward_adapter: TRL's RLOO takes one (preftune ppo takes several)",
            "reward_adapter",
        )
    parts = reward_args.load(name, model_args.precision)
    if isinstance(parts[0], RewardAdapter):  # TRL's model cannot share its base, so load another
        parts[0] = RewardModel(
            str(reward_args.reward_adapter),
            model_args.precision,
            end_token=reward_args.reward_end_token,
            tokenizer=tokenizer,
        )
    weights = reward_args.reward_weights or [1.0] * len(parts)
    scorer = WeightedSum(parts, weights, torch.float64)
    check_start(args.policy_adapter, model_args, lora, copied=True)
    if args.policy_adapter is not None and args.reference == "base":
        raise InputError(
            "reference: leave it out (RLOOTrainer uses a copy of --policy_adapter)", "reference"
        )
    args.prompts = prompts_or_demo(model_args, args.prompts)
    prompts, held_out, left_out = training_prompts(args, tokenizer)
    scorer.check(prompts, tokenizer)
    notes = other_rendering(args.policy_adapter, prompts, "--policy_adapter")
    for folder in reward_args.reward_adapters:
        notes += other_start(folder, args.policy_adapter)
    for line in notes:
        print(f"note: {line}")
    check_length(model_args, prompts + (held_out or []), config.response_length)
    facts = {"prompts": len(prompts), "prompts_too_long": left_out, "source": args.prompts}
    facts |= held_out_facts(prompts, held_out)
    say_figures("data", facts)
    both = (prompts, held_out or Prompts())
    reward = VisibleReward(scorer, rule, tokenizer, *both)

    # Train, save, and load again.
    metrics, history = train_and_save(
        lambda: rloo_trainer(
            base_of(model_args),
            config,
            tokenizer,
            prompts,
            held_out,
            reward,
            lora_of(lora, "CAUSAL_LM"),
            args.policy_adapter,
        ),
        f"Training by {config.method.upper()}",
        out,
        lambda: base_of(model_args),
        name,
        model_args.precision,
        prompts[:8],
        prompts.rendering(),
        args.policy_adapter,
    )
    write_run(
        out,
        config.method,
        model_args,
        lora,
        reward_args,
        args,
        config,
        data=facts,
        metrics=metrics,
        history=history,
        reward_verdicts=[to_row(v) for v in reward_args.verdicts],
    )
    say_figures("result", metrics)
    wrote(out / "adapter", "policy adapter")
    say_next(
        evaluation(
            out / "adapter",
            model_args,
            args,
            config,
            judges=reward_args.specs(),
            held_out=held_out_flags(args),
            end_token=reward_args.reward_end_token,
        )
    )
    return metrics | {"history": history}


if __name__ == "__main__":
    run(main)
