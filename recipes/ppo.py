"""Tune the policy with PPO against reward models and functions, with a KL penalty.

    preftune ppo --reward_adapter outputs/reward/adapter

One base in memory serves policy, reference, value and reward through LoRA adapters and heads. The
policy starts as the base, or from --policy_adapter. The KL coefficient adapts until the KL is at
--kl_target. After a kill, --resume auto continues the run exactly. You should see the score rise,
the KL climb to its target and stay there, and some samples. log.jsonl has a row for each update,
timings.jsonl has the seconds, samples.jsonl the samples, and adapters/policy loads with plain peft.
--live opens a page that shows the run.
"""

from toolkit.cli import run, write_run

import math
from functools import partial
from typing import TYPE_CHECKING

from toolkit.arguments.live import PPOPromptArguments
from toolkit.arguments.lora import LoraArguments
from toolkit.arguments.model import ModelArguments
from toolkit.data.outputs import claim_output
from toolkit.data.records import to_row
from toolkit.errors import InputError
from toolkit.next_step import again, evaluation, held_out_flags, say_next, wrote
from toolkit.scoring.arguments import RewardArguments
from toolkit.terminal import counted
from toolkit.training.ppo.config import PPOConfig

if TYPE_CHECKING:
    from collections.abc import Sequence

    from toolkit.training.ppo.trainer import Row


def main(
    model_args: ModelArguments,
    lora: LoraArguments,
    reward_args: RewardArguments,
    args: PPOPromptArguments,
    config: PPOConfig,
) -> "list[Row]":
    import torch

    from toolkit.data.from_arguments import held_out_facts, training_prompts
    from toolkit.data.plain_text import text_rows
    from toolkit.live.beside import open_beside
    from toolkit.models.adapters import check_adapter, other_start
    from toolkit.models.cards import whole_room
    from toolkit.models.from_arguments import (
        base_of,
        check_length,
        longest_text,
        lora_of,
        prompts_or_demo,
        reference_role,
        tokenizer_of,
    )
    from toolkit.models.memory_fit import check_memory
    from toolkit.models.reading import other_rendering
    from toolkit.models.roles import Roles
    from toolkit.scoring.trust import with_earlier
    from toolkit.training.chosen import choose_passes, passes_of, recorded_settings
    from toolkit.training.distributed import Ranks
    from toolkit.training.from_arguments import memory_planner
    from toolkit.training.ppo.checkpoints import checkpoints, clear_run
    from toolkit.training.ppo.trainer import PPOTrainer
    from toolkit.training.run_log import AtTheStart

    # Check data, rewards and memory before the model is loaded.
    ranks = Ranks(config.world_size, config.ddp_timeout)
    replaced = args.overwrite or config.resume is not None
    begun = bool(checkpoints(config.folder))
    claim_output(config.folder, replaced, "output_dir", goes_on=begun)
    name, tokenizer = model_args.model_name_or_path, tokenizer_of(model_args, args.policy_adapter)
    rewards = reward_args.load(name, model_args.precision)
    if args.policy_adapter is not None:
        check_adapter(args.policy_adapter, name, "CAUSAL_LM", "--policy_adapter")
    if config.reference_ema is not None and args.policy_adapter and args.reference == "base":
        raise InputError(
            "reference: base stays where it is, but reference_ema lets the reference follow the "
            "policy (leave out one of them)",
            "reference",
        )
    if config.train_last_ranks is not None and args.policy_adapter is None:
        raise InputError(
            "train_last_ranks: needs a --policy_adapter, whose other ranks stay", "train_last_ranks"
        )
    if config.value_init == "reward" and reward_args.reward_adapter is None:
        raise InputError("value_init: reward needs a --reward_adapter to start from", "value_init")
    args.prompts = prompts_or_demo(model_args, args.prompts)
    prompts, held_out, left_out = training_prompts(args, tokenizer)
    notes = other_rendering(args.policy_adapter, prompts, "--policy_adapter")
    for folder in reward_args.reward_adapters:
        notes += other_start(folder, args.policy_adapter)
    for line in notes:
        print(f"note: {line}")
    reading = reward_args.reading(tokenizer)
    if reading is not None:
        reading.check(prompts)
    for scorer in rewards:  # several reward adapters have a reading each
        scorer.check(prompts, tokenizer)
    config.rule(tokenizer)  # an unknown truncation token must fail now
    check_length(model_args, prompts + (held_out or []), config.response_length)
    longest = max(len(prompt) for prompt in prompts)
    text = None
    if config.ptx_data is not None:
        most = longest_text(model_args, config.text_length(longest))
        text = text_rows(config.ptx_data, tokenizer, most, "--ptx_data")
    elif config.ptx_coef:
        raise InputError("ptx_coef needs text: name a file of it by --ptx_data", "ptx_coef")
    device = "cuda" if torch.cuda.is_available() and not config.use_cpu else "cpu"
    adapters = reward_args.reward_adapters
    planner = partial(
        memory_planner,
        model_args,
        lora,
        args,
        config,
        len(adapters),
        longest,
        device,
        None if text is None else max(map(len, text.rows)),
    )
    room = whole_room() if device == "cuda" else None
    recorded = ranks.from_main(lambda: recorded_settings(config))
    chosen = choose_passes(config, model_args, planner, room, ranks.sharded, recorded)
    if chosen is not None and ranks.is_main:
        print(chosen)
    if not model_args.trust_remote_code:
        now = passes_of(config, model_args)
        check_memory(planner, now, config.local_batch_size, device)
    if ranks.is_main:
        print(f"{len(prompts)} prompts ({left_out} left out by length)")
        if text is not None:
            print(
                f"pretraining mix: {len(text.rows)} rows of text, {text.cut} of them cut to {most} "
                f"tokens (--ptx_length), {text.short} left out as too short"
            )

    # Load the model: one base, its adapters and heads.
    torch.manual_seed(config.seed)  # for peft's random A matrices
    roles = Roles(
        base_of(model_args),
        lora_of(lora, "CAUSAL_LM"),
        value=config.value_role,
        reward_adapter=adapters[0] if adapters else None,  # PPOTrainer adds others
        policy_adapter=args.policy_adapter,
        reference="moving" if config.reference_ema is not None else reference_role(args),
        value_init=config.value_init,
        value_hidden=config.value_hidden or (),
        autocast_dtype=torch.bfloat16 if config.bf16 else None,
        reading=reading,
        last_ranks=config.train_last_ranks,
    )

    def record() -> None:
        """Write run.json: only now, since a run that is refused must leave the earlier one's."""
        facts = {"prompts": len(prompts), "source": args.prompts, "left_out": left_out}
        facts |= held_out_facts(prompts, held_out)
        if text is not None:
            facts |= {"text_rows": len(text.rows), "text_rows_cut": text.cut}
        folder, resumed = config.folder, config.resume is not None
        verdicts = with_earlier(folder, reward_args.verdicts, resumed)
        write_run(
            folder,
            "ppo",
            model_args,
            lora,
            reward_args,
            args,
            config,
            data=facts,
            reward_verdicts=[to_row(verdict) for verdict in verdicts],
        )
        trainer.run_log.say(
            f"PPO makes {counted(trainer.num_updates, 'update')} of {trainer.batch_size} episodes "
            "each. The first of them show how long the rest will take."
        )

    # Train and save.
    trainer = PPOTrainer(
        config,
        tokenizer,
        roles,
        reward_model=rewards,
        train_dataset=prompts,
        eval_dataset=held_out,
        reward_weights=reward_args.reward_weights,
        ptx_dataset=None if text is None else text.rows,
        callbacks=[AtTheStart(record)] if ranks.is_main else [],
    )
    if args.overwrite and config.resume is None and ranks.is_main:
        clear_run(config.folder)
    ranks.wait()
    if args.live and ranks.is_main:  # at once: measuring the reference may take minutes
        trainer.run_log.say(open_beside(config.folder))
    rows = trainer.train()
    saved = trainer.save_model(precision=model_args.precision)
    wrote(saved, "policy adapter")
    if config.stop_at_update is not None and config.stop_at_update < trainer.num_updates:
        say_next(again("ppo", "overwrite", "stop_at_update", resume="auto"))
        return rows
    if ranks.is_main:
        print(outcome(rows, None if config.kl_controller == "fixed" else config.kl_target))
    say_next(
        evaluation(
            saved,
            model_args,
            args,
            config,
            reward_args,
            judges=reward_args.specs(),
            held_out=held_out_flags(args),
            end_token=reward_args.reward_end_token,
        )
    )
    return rows


def outcome(rows: "Sequence[Row]", kl_target: float | None) -> str:
    """Return what a run came to in a sentence or two: score and KL, over its first and last fifth.

    Args:
        rows: of log.jsonl.
        kl_target: where the controller steers the KL; None if it does not.
    """
    fifth = max(1, len(rows) // 5)

    def mean(name: str, part: "Sequence[Row]") -> float:
        known = [float(row[name]) for row in part if row.get(name) is not None]
        return sum(known) / len(known) if known else math.nan

    first, last = (mean("objective/scores", part) for part in (rows[:fifth], rows[-fifth:]))
    kl = mean("objective/kl", rows[-fifth:])
    told = f"The score went from {first:.2f} to {last:.2f}, and the KL to {kl:.2f} nats"
    if kl_target is None:
        return f"{told}."
    told += f" (target {kl_target:g})."
    if kl < kl_target / 4:  # the policy is still next to where it started
        told += (
            " The policy has hardly moved: raise --learning_rate, or --total_episodes for a longer "
            "run."
        )
    return told


if __name__ == "__main__":
    run(main, processes=True)
