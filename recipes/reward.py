"""Train a reward model on comparisons: K-way softmax, LoRA on the base, an fp32 score head.

    accelerate launch recipes/reward.py --comparisons outputs/comparisons.jsonl

Checks every row, splits by prompt, trains a LoRA adapter with a scalar head by TRL's RewardTrainer,
and scales its scores to mean 0 and standard deviation 1 on fresh samples of the reference, so that
one kl_coef means the same whatever the reward model. OUTPUT_DIR/adapter holds the adapter (plain
peft loads it, which another process proves), toolkit.json with gain and bias, and metrics.json;
beside it lie held_out.jsonl and run.json, from which reward_report.py makes its page. You should
see the loss fall from ln K and a held-out accuracy, with its interval, above chance.
"""

from toolkit.cli import run, write_run

from dataclasses import dataclass, field
from typing import Any

from toolkit.arguments import ComparisonArguments, LoraArguments, ModelArguments, SamplingArguments
from toolkit.data.files import atomic_directory, json_text, write_json, write_jsonl
from toolkit.data.outputs import claim_output, forget_run
from toolkit.data.text import token_id
from toolkit.errors import check_range
from toolkit.models.adapters import absolute_if_local
from toolkit.models.reading import reading_of
from toolkit.models.reload import plain_scores
from toolkit.models.roles import Roles
from toolkit.models.toolkit_json import write_facts
from toolkit.training.accuracy import best_of_k_accuracy, judge
from toolkit.training.preflight import preflight
from toolkit.training.reward_config import BestOfKConfig
from toolkit.training.reward_data import prepare
from toolkit.training.reward_trainer import BestOfKTrainer, normalize, score_candidates


@dataclass
class RewardArguments:
    overwrite: bool = field(default=False, metadata={"help": "Replace what is at --output_dir."})
    normalize_samples: int = field(
        default=512, metadata={"help": "Reference samples for mean 0 and std 1; 0: as it is."}
    )
    normalize_truncated: bool = field(
        default=False, metadata={"help": "Apply the truncation rule to them (the paper did not)."}
    )
    end_token: str = field(
        default="none",
        metadata={"help": "What closes every text before it is scored: none, eos, or a token. PPO "
                  "and the others then score texts that are closed so."},
    )  # fmt: skip
    check_reload: bool = field(
        default=True, metadata={"help": "Score again after loading in a clean process."}
    )

    def __post_init__(self) -> None:
        if self.normalize_samples != 0:
            check_range("normalize_samples", self.normalize_samples, low=2)


def main(
    model_args: ModelArguments,
    lora: LoraArguments,
    sampling: SamplingArguments,
    data_args: ComparisonArguments,
    args: RewardArguments,
    config: BestOfKConfig,
) -> dict[str, Any]:
    # Data, checked whole before a model is loaded.
    out = claim_output(str(config.output_dir), args.overwrite, "output_dir")
    tokenizer, name = model_args.tokenizer(), model_args.model_name_or_path
    rule = sampling.rule(tokenizer)
    longest = model_args.longest(config.max_length)
    room = min(sampling.max_prompt_length, longest - rule.response_length)
    comparisons = data_args.open(config.wants, config.seed)
    end_id = None if args.end_token == "none" else token_id(tokenizer, args.end_token, "end_token")
    encoder = data_args.encoder(tokenizer, longest)
    data = prepare(*comparisons, encoder, config, args.normalize_samples, room, out, end_id)
    print(json_text(data.facts, indent=2))

    # Model and trainer.
    trainer = BestOfKTrainer(
        model_args.base(score_head=True, seed=config.seed), config, tokenizer, data.train,
        data.held_out, lora.config("SEQ_CLS"), data.collator(),
    )  # fmt: skip
    print(preflight(trainer))
    seconds = trainer.train().metrics["train_runtime"]
    history = [row for row in trainer.state.log_history if "loss" in row]
    probes = data.probes()

    # Save, load again as PPO will, measure, normalise; the folder appears when all of it is done.
    with atomic_directory(out / "adapter") as folder:
        expected = plain_scores(trainer.model.eval(), probes)
        trainer.save_adapter(folder, absolute_if_local(name))
        del trainer
        if args.check_reload:
            model_args.verify_reload(folder, probes, expected)
        reads = {
            "ends_with": None if end_id is None else tokenizer.convert_ids_to_tokens(end_id),
            **encoder.rendering(),
        }
        write_facts(folder, name, precision=model_args.precision, **reads)
        roles = Roles(
            model_args.base(), reward_adapter=folder, reading=reading_of(folder, tokenizer)
        )
        roles.keep_only(tokenizer)
        scores = score_candidates(roles, data.held_out, data.pad_id)  # raw, as trained
        metrics = best_of_k_accuracy(scores, data.held_out["best"], *data.texts_and_prompts())
        metrics |= {"train_comparisons": len(data.train), "verdict": judge(metrics).answer}
        facts = normalize(
            roles, data.prompts, rule, tokenizer, args.normalize_samples, config.seed,
            whole=not args.normalize_truncated,
        )  # fmt: skip
        write_facts(folder, name, precision=model_args.precision, **reads, **facts)
        write_json(folder / "metrics.json", metrics)
        forget_run(out)
    write_jsonl(out / "held_out.jsonl", data.rows)
    write_run(out / "run.json", model_args, lora, sampling, data_args, args, config,
              data=data.facts, metrics=metrics, history=history, seconds=seconds)  # fmt: skip
    print(json_text(metrics, indent=2))
    print(f"{out / 'adapter'}: {judge(metrics).sentence}")
    return metrics | {"history": history}


if __name__ == "__main__":
    run(main)
