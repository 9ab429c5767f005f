"""Train the policy directly on comparisons, without a reward model: TRL's DPO, KTO, ORPO, CPO.

    preftune preference --comparisons outputs/comparisons.jsonl --method dpo

This takes the same comparisons as preftune reward, and holds out the same rows for the same --seed
and --eval_rows. A row of K completions gives K - 1 pairs of the pick and another completion; KTO
uses each completion separately. --loss_type (such as ipo) chooses among a method's losses, and
--beta sets how strongly the reference pulls. The reference is the base with the adapter off, or a
frozen copy of --policy_adapter; ORPO and CPO have none. The LoRA adapter is on one base, in 4-bit
by default. It is saved in OUTPUT_DIR/adapter, beside log.jsonl, run.json and metrics.json. You
should see the loss fall from ln 2 (dpo), and eval_rewards/accuracies, the share of held-out pairs
that the policy ranks correctly, rise above a half.
"""

from toolkit.cli import run, write_run

from typing import Any

from toolkit.arguments.comparisons import ComparisonArguments
from toolkit.arguments.lora import LoraArguments, StartArguments
from toolkit.arguments.model import ModelArguments
from toolkit.data.outputs import claim_output
from toolkit.next_step import evaluation, reward_beside, say_next, wrote
from toolkit.scoring.arguments import short_forms
from toolkit.terminal import say_figures
from toolkit.training.baselines.config import PreferenceConfig
from toolkit.training.methods import METHODS


def main(
    model_args: ModelArguments,
    lora: LoraArguments,
    data_args: ComparisonArguments,
    args: StartArguments,
    config: PreferenceConfig,
) -> dict[str, Any]:
    from toolkit.data.from_arguments import encoder_of, split_picks
    from toolkit.data.tokens import closing_id, stop_ids
    from toolkit.models.from_arguments import (
        base_of,
        check_start,
        longest_text,
        lora_of,
        tokenizer_of,
    )
    from toolkit.training.baselines.data import preference_shape, prepare_completions
    from toolkit.training.baselines.train_and_save import train_and_save
    from toolkit.training.baselines.trainers import preference_trainer

    # Check all data before a model is loaded.
    out = claim_output(str(config.output_dir), args.overwrite, "output_dir")
    name, tokenizer = model_args.model_name_or_path, tokenizer_of(model_args, args.policy_adapter)
    stop_id = closing_id(tokenizer, stop_ids(tokenizer, args.stop_token))
    fused = METHODS[config.method].has_reference  # TRL has its fused head for these
    check_start(args.policy_adapter, model_args, lora, fused, fused)
    encoder = encoder_of(data_args, tokenizer, longest_text(model_args, config.max_length))
    data = prepare_completions(
        split_picks(data_args, config.seed),
        encoder,
        stop_id,
        *preference_shape(config),
        out,
    )
    say_figures("data", data.facts)

    # Train, save, and load again.
    metrics, history = train_and_save(
        lambda: preference_trainer(
            base_of(model_args),
            config,
            tokenizer,
            data,
            lora_of(lora, "CAUSAL_LM"),
            args.policy_adapter,
        ),
        f"Training by {config.method.upper()}",
        out,
        lambda: base_of(model_args),
        name,
        model_args.precision,
        data.probes,
        encoder.rendering(),
        args.policy_adapter,
    )
    write_run(
        out,
        config.method,
        model_args,
        lora,
        data_args,
        args,
        config,
        data=data.facts,
        metrics=metrics,
        history=history,
    )
    say_figures("result", metrics)
    wrote(out / "adapter", "policy adapter")
    judges = short_forms({"reward_adapter": reward_beside(out, name)})
    say_next(evaluation(out / "adapter", model_args, data_args, args, judges=judges))
    return metrics | {"history": history}


if __name__ == "__main__":
    run(main)
