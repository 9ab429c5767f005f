"""Train a reward model on comparisons: K-way softmax, LoRA on the base, an fp32 score head.

    preftune reward --comparisons outputs/comparisons.jsonl

This checks every row, splits rows by prompt, and trains a LoRA adapter with a scalar head by TRL's
RewardTrainer. It scales the scores to mean 0 and standard deviation 1 on new samples of the
reference, so that kl_coef means the same for every reward model. With --start_adapter the reward
model starts as a copy of a policy adapter, and its scores are scaled on that adapter's samples.
OUTPUT_DIR/adapter holds the adapter (another process checks that plain peft loads it), toolkit.json
with gain and bias, and metrics.json. Beside it are held_out.jsonl and run.json, which preftune
reward-report reads. Of fewer than 1,000 comparisons a fifth would be too few to judge by, so four
more models are trained in a cross-validation (--folds), and all picks are held out once. You should
see the loss fall from ln K, and an accuracy whose interval is above chance.
"""

from toolkit.cli import changed, run, write_run

import contextlib
import shutil
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from toolkit.arguments.common import OverwriteArguments
from toolkit.arguments.comparisons import RewardDataArguments
from toolkit.arguments.lora import StartedLoraArguments
from toolkit.arguments.model import ModelArguments
from toolkit.arguments.sampling import SamplingArguments
from toolkit.data.files import atomic_directory, write_jsonl
from toolkit.data.outputs import claim_output, forget_run
from toolkit.data.records import to_row
from toolkit.endings import goes_on
from toolkit.errors import InputError, check_range
from toolkit.flags import Count, Seed, flag
from toolkit.next_step import beside, fresh, is_demo, say_next, step, wrote
from toolkit.terminal import counted, say, say_figures
from toolkit.training.reward.config import BestOfKConfig

if TYPE_CHECKING:
    from toolkit.scoring.accuracy import RewardMetrics

START = "starting_policy"  # the name of the adapter to start from, among the roles


@dataclass
class RewardModelArguments(OverwriteArguments):
    normalize_samples: int = flag(
        512, "Reference samples (or those of --start_adapter) to normalize scores; 0 for none."
    )
    normalize_truncated: bool = flag(
        False, "Apply the truncation rule to the samples that normalize (the paper did not)."
    )
    end_token: str = flag(
        "none",
        "Token put at the end of every text before it is scored: none, eos, or a token. PPO and "
        "the other recipes then add it too.",
    )
    head_seed: Seed | None = flag(
        None,
        "Seed of the score head's first weights; by default --seed. Reward models that preftune "
        "merge is to average need the same one.",
    )
    check_reload: bool = flag(True, "Load the result in a clean process and compare scores.")
    batch_size: Count = flag(
        256,
        "Texts in one pass without gradients: samples to normalize by, and held-out candidates.",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.normalize_samples != 0:
            check_range("normalize_samples", self.normalize_samples, low=2)


def main(
    model_args: ModelArguments,
    lora: StartedLoraArguments,
    sampling: SamplingArguments,
    data_args: RewardDataArguments,
    args: RewardModelArguments,
    config: BestOfKConfig,
) -> "RewardMetrics":
    from accelerate.utils.memory import clear_device_cache

    from toolkit.data.from_arguments import encoder_of, split_comparisons
    from toolkit.data.tokens import token_id
    from toolkit.models.actors import REFERENCE
    from toolkit.models.adapters import absolute_if_local
    from toolkit.models.base_config import base_fingerprint
    from toolkit.models.from_arguments import (
        base_of,
        check_reward_start,
        longest_text,
        tokenizer_of,
        verify_scores,
    )
    from toolkit.models.reading import other_rendering, reading_of
    from toolkit.models.reload import plain_scores
    from toolkit.models.roles import Roles
    from toolkit.models.toolkit_json import start_of, write_facts
    from toolkit.record import versions
    from toolkit.scoring.accuracy import best_of_k_accuracy, judge
    from toolkit.scoring.power import power_of
    from toolkit.training.from_arguments import rule_of
    from toolkit.training.reward import cross_validation
    from toolkit.training.reward.data import check_weights, prepare
    from toolkit.training.reward.preflight import preflight
    from toolkit.training.reward.trainer import normalize, score_candidates

    # Check all data before a model is loaded.
    kept_in = cross_validation.KEPT
    out = claim_output(str(config.output_dir), args.overwrite, "output_dir", kept=kept_in)
    name, start = model_args.model_name_or_path, lora.start_adapter
    tokenizer = tokenizer_of(model_args, start)
    check_reward_start(lora, model_args)
    rule = rule_of(sampling, tokenizer)
    longest = longest_text(model_args, config.max_length)
    room = min(sampling.max_prompt_length, longest - rule.response_length)
    if start is not None:
        # It was probably trained on the picks themselves, all but those that this run holds out.
        if data_args.folds:
            raise InputError(
                "folds: a cross-validation would hold out what --start_adapter was trained on "
                "(leave one of them out)",
                "folds",
            )
        data_args.folds = 0
    splits = split_comparisons(data_args, config.wants, config.seed)
    check_weights(splits.comparisons, splits.folds, config.weights())
    end_id = None if args.end_token == "none" else token_id(tokenizer, args.end_token, "end_token")
    encoder = encoder_of(data_args, tokenizer, longest)
    data = prepare(
        splits.comparisons,
        *splits.folds[0],
        encoder,
        config,
        args.normalize_samples,
        room,
        out,
        end_id,
        splits.held_out,
    )
    for line in other_rendering(start, data.prompts, "--start_adapter"):
        print(f"note: {line}")
    folds = splits.validated
    if folds:
        data.facts["folds"] = folds
    if data_args.half is not None:
        data.facts["half"] = data_args.half
    say_figures("data", data.facts)
    if splits.shared:
        say(
            f"note: {counted(splits.shared, 'comparison')} of {data_args.comparisons} will not be "
            f"trained on, because {data_args.eval_comparisons} has the same prompts"
        )
    if not folds or data_args.train_fraction == 1:
        chances = data.chances(folds > 0)
        prompts = {repr(row["prompt"]) for row in data.rows}
        different = splits.prompts if folds else len(prompts)
        say(power_of(chances, different).sentence(folds))

    training = cross_validation.RewardTraining(
        model_args,
        lora,
        config,
        tokenizer,
        lambda: encoder_of(data_args, tokenizer, longest),
        end_id,
        args.head_seed,
        args.batch_size,
        out,
    )

    # Train the models of the other folds, so that each comparison is held out from one of them.
    others = []
    if folds:
        say(
            f"The adapter is the first of {folds} models. It is not trained on the "
            f"{counted(len(data.held_out), 'comparison')} in held_out.jsonl."
        )
        told = changed(model_args, lora, sampling, data_args, args, config)
        identity = {
            "told": {name: told[name] for name in told.keys() - {"output_dir", "overwrite"}},
            "comparisons": splits.comparisons.digest,
            "tokens": data.digest(),
            "base": base_fingerprint(name),
            **start_of(start),
            "versions": versions(),
        }
        kept = cross_validation.KeptFolds(out / kept_in, identity)
        # With --overwrite the same command goes on too, but not without it.
        with contextlib.nullcontext() if args.overwrite else goes_on():
            others = list(cross_validation.other_folds(training, splits, kept, say))

    # Load the model and make the trainer.
    trainer = training.trainer(data)
    print(preflight(trainer))
    print(
        f"Training takes {counted(config.num_train_epochs, 'pass', 'passes')} over "
        f"{len(data.train)} comparisons."
        + (
            " Then a clean process loads base and adapter once more, to check what was saved "
            "(--check_reload false leaves this out)."
            if args.check_reload
            else ""
        ),
        flush=True,
    )
    seconds = trainer.train().metrics["train_runtime"]
    history = [row for row in trainer.state.log_history if "loss" in row]
    probes = data.probes()

    # Save, load as PPO will, measure, normalize; the folder appears when everything is done.
    with atomic_directory(out / "adapter") as folder:
        # As plain peft will score, without the autocast that --bf16 puts around each pass.
        plain = trainer.accelerator.unwrap_model(trainer.model, keep_fp32_wrapper=False)
        expected = plain_scores(plain.eval(), probes)
        trainer.save_adapter(folder, absolute_if_local(name))
        # The clean process, and this one after it, load the base again: a card holds one of them.
        del trainer, plain
        clear_device_cache(garbage_collection=True)
        if args.check_reload:
            verify_scores(model_args, folder, probes, expected)
        reads = {
            "ends_with": None if end_id is None else tokenizer.convert_ids_to_tokens(end_id),
            **encoder.rendering(),
            "head_seed": training.seed_of_head(config),
            **start_of(start),  # by which PPO knows whose samples have mean 0 and std 1
        }
        write_facts(folder, name, precision=model_args.precision, **reads)
        roles = Roles(
            base_of(model_args), reward_adapter=folder, reading=reading_of(folder, tokenizer)
        )
        if start is not None:
            roles.add_policy(START, start)
        roles.keep_only(tokenizer)
        scores = score_candidates(  # raw, as trained
            roles, data.held_out, data.pad_id, args.batch_size
        )
        metrics = best_of_k_accuracy(scores, data.held_out["best"], *data.texts_and_prompts())
        own = [
            cross_validation.HeldOut(1, len(data.train), each, data.rows[i])
            for each, i in zip(scores, data.held_out["row"], strict=True)
        ]
        if folds:
            metrics = cross_validation.metrics_of(own + others)
        verdict = judge(metrics)
        metrics = replace(metrics, train_comparisons=len(data.train), verdict=verdict.answer)
        facts = normalize(
            roles,
            data.prompts,
            rule,
            tokenizer,
            args.normalize_samples,
            config.seed,
            whole=not args.normalize_truncated,
            batch_size=args.batch_size,
            role=REFERENCE if start is None else START,
        )
        write_facts(folder, name, precision=model_args.precision, **reads, **facts)
        metrics.write(folder / "metrics.json")
        forget_run(out)
    write_jsonl(out / "held_out.jsonl", data.rows)
    if folds:
        cross_validation.write_held_out(out / cross_validation.FILE, own + others)
    write_run(
        out,
        "reward",
        model_args,
        lora,
        sampling,
        data_args,
        args,
        config,
        data=data.facts,
        metrics=to_row(metrics),
        history=history,
        seconds=seconds,
    )
    if folds:
        shutil.rmtree(out / kept_in, ignore_errors=True)
    wrote(out / "adapter", "reward adapter")
    print(verdict.sentence)

    # What comes next: look at it; and use it, if it can be trusted.
    told = (model_args, sampling, data_args)
    tune = step(
        "ppo",
        *told,
        reward_adapter=str(out / "adapter"),
        policy_adapter=start,
        prompts=None if is_demo(model_args) else data_args.comparisons,
        output_dir=beside(out, "ppo"),
    )
    look = step("reward_report", run=str(out), output_dir=fresh(out / "report"))
    say_next(look, tune if verdict.answer == "yes" else None)
    return metrics


if __name__ == "__main__":
    run(main)
