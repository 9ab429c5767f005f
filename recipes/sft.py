"""Fine-tune the policy on the picks or on plain text with TRL's SFTTrainer, the simplest baseline.

    preftune sft --comparisons outputs/comparisons.jsonl

This takes the same comparisons as preftune reward, and holds out the same rows for the same --seed
and --eval_rows. It learns the tokens of each pick after its prompt, and an end token only with
--stop_token. With --demonstrations FILE it learns answers that nobody compared (Alpaca's,
ShareGPT's, TRL's prompts with completions), with --text FILE rows of `text`. The LoRA adapter is on
a base in 4-bit by default. It is saved in OUTPUT_DIR/adapter, beside log.jsonl, run.json and
metrics.json. preftune ppo and preftune preference can start from it (--policy_adapter), preftune
reward too (--start_adapter), and preftune evaluate can judge it. You should see loss and eval_loss
fall. If eval_loss rises again, use fewer epochs.
"""

from toolkit.cli import run, write_run

from dataclasses import dataclass
from typing import Any

from toolkit.arguments.comparisons import ComparisonArguments
from toolkit.arguments.lora import LoraArguments, StartArguments
from toolkit.arguments.model import ModelArguments
from toolkit.data.outputs import claim_output
from toolkit.errors import InputError
from toolkit.flags import flag
from toolkit.next_step import (
    alike,
    beside,
    evaluation,
    is_demo,
    reward_beside,
    say_next,
    step,
    wrote,
)
from toolkit.scoring.arguments import short_forms
from toolkit.terminal import say_figures
from toolkit.training.baselines.config import SFTBaselineConfig


@dataclass
class SFTArguments(StartArguments):
    text: str | None = flag(None, "File with rows of `text` to use instead of comparisons.")
    demonstrations: str | None = flag(
        None,
        "File of prompts with one answer each to use instead of comparisons: `prompt, completion`, "
        "Alpaca's, ShareGPT's or `messages`.",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.text is not None and self.demonstrations is not None:
            raise InputError(
                "demonstrations stand beside text (pass one of them)", "demonstrations"
            )


def main(
    model_args: ModelArguments,
    lora: LoraArguments,
    data_args: ComparisonArguments,
    args: SFTArguments,
    config: SFTBaselineConfig,
) -> dict[str, Any]:
    from toolkit.data.from_arguments import encoder_of, split_demonstrations, split_picks
    from toolkit.data.tokens import closing_id, stop_ids
    from toolkit.models.from_arguments import (
        base_of,
        check_start,
        longest_text,
        lora_of,
        tokenizer_of,
    )
    from toolkit.training.baselines.data import (
        SFT_SCHEMA,
        prepare_completions,
        prepare_text,
        sft_rows,
    )
    from toolkit.training.baselines.train_and_save import train_and_save
    from toolkit.training.baselines.trainers import sft_trainer

    # Check all data before a model is loaded.
    out = claim_output(str(config.output_dir), args.overwrite, "output_dir")
    name, tokenizer = model_args.model_name_or_path, tokenizer_of(model_args, args.policy_adapter)
    stop_id = closing_id(tokenizer, stop_ids(tokenizer, args.stop_token))
    longest = longest_text(model_args, config.max_length)
    check_start(args.policy_adapter, model_args, lora)
    encoder = encoder_of(data_args, tokenizer, longest)
    if args.text is not None:
        data = prepare_text(
            args.text, tokenizer, longest, stop_id, data_args.eval_rows, config.seed, out
        )
    else:
        learned = (
            split_picks(data_args, config.seed)
            if args.demonstrations is None
            else split_demonstrations(args.demonstrations, data_args, config.seed)
        )
        data = prepare_completions(
            learned,
            encoder,
            stop_id,
            sft_rows,
            SFT_SCHEMA,
            out,
        )
    say_figures("data", data.facts)

    # Train, save, and load again.
    metrics, history = train_and_save(
        lambda: sft_trainer(
            base_of(model_args),
            config,
            tokenizer,
            data,
            lora_of(lora, "CAUSAL_LM"),
            args.policy_adapter,
        ),
        "Training by SFT",
        out,
        lambda: base_of(model_args),
        name,
        model_args.precision,
        data.probes,
        encoder.rendering() if args.text is None else {"trained_on": "text"},
        args.policy_adapter,
    )
    write_run(
        out,
        "sft",
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

    # What comes next: look at it, or go on from it by PPO if there is a reward model.
    reward = reward_beside(out, name)
    tune = step(
        "ppo",
        model_args,
        data_args,
        args,
        policy_adapter=str(out / "adapter"),
        reward_adapter=reward,
        prompts=None if is_demo(model_args) else args.demonstrations or data_args.comparisons,
        **(alike(data_args) if args.demonstrations is not None else {}),
        output_dir=beside(out, "ppo"),
    )
    judges = short_forms({"reward_adapter": reward})
    look = evaluation(out / "adapter", model_args, data_args, args, judges=judges)
    say_next(look, tune if reward and args.text is None else None)
    return metrics | {"history": history}


if __name__ == "__main__":
    run(main)
