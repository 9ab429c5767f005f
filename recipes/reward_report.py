"""Write a page on whether a reward model can be trusted, from the files of preftune reward.

    preftune reward-report --run outputs/reward --lexicon demo:lexicon.txt

This scores the held-out comparisons again and measures accuracy (against chance, people and
baselines; by K, margin, length, source and labeler), calibration, position and length bias, and the
distribution of scores, and lists the most confident mistakes. If the run was cross-validated, all
of its comparisons are in these figures. You should see a table, and
RUN/report/reward_report.html with the same figures as JSON beside it.

With --label_fractions 0.1,0.25,0.5 it also trains models on these shares of the labels, to say what
more labels would give. With --adapter and --comparisons it judges any reward adapter on any
comparisons, and tells which of their prompts the adapter was trained on.
"""

from toolkit.cli import bind, recipe, run, write_config

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from toolkit.arguments.common import InvalidRowsArguments, OverwriteArguments
from toolkit.arguments.layouts import LayoutArguments
from toolkit.arguments.model import Precision
from toolkit.data.leftovers import scratch_folder
from toolkit.data.outputs import claim_output
from toolkit.errors import InputError
from toolkit.flags import Count, Share, flag
from toolkit.next_step import Step, base_named_by, beside, fresh, is_demo, say_next, step, wrote
from toolkit.record import RUN_FILE, RunRecord, record_beside
from toolkit.terminal import counted, say

if TYPE_CHECKING:
    from toolkit.data.records import Placed
    from toolkit.evaluation.reward_results import Analysis, RewardReport
    from toolkit.evaluation.reward_scores import Encoded
    from toolkit.scoring.accuracy import RewardMetrics

RUN = "outputs/reward"
USUAL = "0.1,0.25,0.5"  # shares of the labels for a curve
HIGH_RATE = 2e-3  # no higher learning rate is proposed; small bases take it
NEEDED = ("arguments", "settings", "data", "metrics")  # of run.json


@dataclass
class ReportArguments(LayoutArguments, OverwriteArguments, InvalidRowsArguments):
    RENAMED: ClassVar[dict[str, str]] = {"output": "output_dir"}

    run: str = flag(RUN, "Output folder of preftune reward.")
    adapter: str | None = flag(
        None, "Reward adapter to judge, in place of --run: its folder, whoever trained it."
    )
    comparisons: str | None = flag(
        None,
        "Comparisons to judge --adapter on. Those with prompts that it was trained on are left "
        "out. By default the rows of --reward_bench.",
    )
    base: str | None = flag(
        None, "Base model of --adapter. By default that of its run.json, or the one that it names."
    )
    precision: Precision | None = flag(
        None, "Precision of the base of --adapter. By default that of its training, or 4bit."
    )
    output_dir: str | None = flag(
        None, "Folder for the page. By default RUN/report, or outputs/reward_report for --adapter."
    )
    lexicon: str | None = flag(None, "Word list to use as a baseline.")
    reward_bench: str | None = flag(
        None,
        "RewardBench 2, as its dataset's name or a file of its rows: scored too, subset by subset.",
    )
    label_fractions: str = flag(
        "",
        "Shares of the labels on which to train further models, 0.1,0.25,0.5 say, for the curve of "
        "accuracy against labels. By default none. The time is said before they are trained.",
    )
    batch_size: Count = flag(256, "Texts in one pass of --adapter.")
    target_accuracy: Share | None = flag(
        None,
        "Accuracy for which the curve is to say how many labels it takes. By default the next "
        "three multiples of 0.05.",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.adapter is None:
            for name in ("comparisons", "base", "precision"):
                if getattr(self, name) is not None:
                    raise InputError(f"{name}: is for --adapter (or name a --run alone)", name)
            if self.target_accuracy is not None and not self.fractions():
                raise InputError(
                    "target_accuracy: needs the curve of accuracy against labels (pass "
                    "--label_fractions 0.1,0.25,0.5 too)",
                    "target_accuracy",
                )
            return

        if self.run != RUN:
            raise InputError("adapter: is in place of --run (leave one of them out)", "adapter")
        if self.label_fractions or self.target_accuracy is not None:
            name = "label_fractions" if self.label_fractions else "target_accuracy"
            raise InputError(f"{name}: needs the --run, whose training it repeats", name)
        if self.comparisons is None and self.reward_bench is None:
            raise InputError(
                "adapter: needs --comparisons or --reward_bench to be judged on", "adapter"
            )

    def fractions(self) -> list[float]:
        """The shares as numbers between 0 and 1."""
        try:
            shares = sorted(float(part) for part in self.label_fractions.split(",") if part.strip())
        except ValueError:
            shares = [0.0]
        if not all(0 < share < 1 for share in shares):
            raise InputError(
                "label_fractions: must be shares between 0 and 1, such as 0.1,0.25,0.5"
            )
        return shares

    def folder(self) -> Path:
        """Where the page goes."""
        if self.output_dir is not None:
            return Path(self.output_dir)
        return Path("outputs/reward_report") if self.adapter else Path(self.run) / "report"


def main(args: ReportArguments) -> "Analysis":
    with scratch_folder() as scratch:
        return of_run(args, scratch) if args.adapter is None else of_adapter(args, scratch)


def of_run(args: ReportArguments, scratch: Path) -> "Analysis":
    # First what can be checked in a moment.
    source, fractions = Path(args.run), args.fractions()
    record = RunRecord.read(source / RUN_FILE, "--run", needs=NEEDED)
    out = claim_output(args.folder(), args.overwrite, "output_dir", folder=True)

    from accelerate.utils.memory import clear_device_cache

    from toolkit.data.comparisons import read_rows
    from toolkit.data.from_arguments import encoder_of, split_comparisons
    from toolkit.data.tokens import token_id
    from toolkit.evaluation.label_curve import curve_point, outlook
    from toolkit.evaluation.reward_analysis import analyze
    from toolkit.evaluation.reward_page import verdict
    from toolkit.evaluation.reward_results import RewardReport
    from toolkit.evaluation.reward_scores import encode_as_read
    from toolkit.models.adapters import check_adapter
    from toolkit.models.from_arguments import (
        base_of,
        check_reward_start,
        longest_text,
        tokenizer_of,
    )
    from toolkit.models.reading import reading_of
    from toolkit.models.roles import Roles
    from toolkit.scoring.functions import Lexicon
    from toolkit.training.reward import cross_validation

    # Read the run, its held-out rows, and what the other models of a cross-validation said.
    replay = ["--config", str(write_config(scratch, record.arguments)), "--report_to", "none"]
    reward = recipe("reward")
    model_args, lora, sampling, data_args, reward_args, config = bind(reward.main, replay)
    data_args.folds = (record.metrics or {}).get("folds") or 0
    baselines = {} if args.lexicon is None else {"lexicon": Lexicon(args.lexicon).of_texts}
    held_out = read_rows(source / "held_out.jsonl", "best", "--run")
    others = []
    if data_args.folds:
        validated = cross_validation.read_held_out(source / cross_validation.FILE)
        others = [row for row in validated if row.fold > 1]
    adapter, tokenizer = source / "adapter", tokenizer_of(model_args)
    check_adapter(adapter, model_args.model_name_or_path, "SEQ_CLS", "--run", model_args.precision)
    if fractions:
        again = split_comparisons(data_args, config.wants, config.seed)
        digests = {"digest": again.comparisons, "held_out_digest": again.held_out}
        for name, comparisons in digests.items():
            if comparisons is not None and comparisons.digest != (record.data or {}).get(name):
                raise InputError(
                    f"{comparisons.source}: has changed since {source} was trained (restore it, or "
                    "leave --label_fractions out)"
                )
    longest = longest_text(model_args, config.max_length)
    encoder, reading = encoder_of(data_args, tokenizer, longest), reading_of(adapter, tokenizer)
    placed = [(f"{source}/held_out.jsonl", row) for row in held_out]
    own = encode_as_read(placed, encoder, reading, tokenizer)
    if not own.rows:
        raise InputError(f"{source}/held_out.jsonl: no row fits {encoder.max_length} tokens")
    bench = read_bench(args, reading.trained_on != "text")
    bench_encoder = encoder_of(data_args, tokenizer, longest)
    benched = encode_as_read(bench, bench_encoder, reading, tokenizer)

    # Score the rows as PPO would, but without gain and bias.
    roles = Roles(base_of(model_args), reward_adapter=adapter)
    gain, bias, roles.gain, roles.bias = roles.gain, roles.bias, 1.0, 0.0
    size, trained = reward_args.batch_size, int((record.data or {}).get("train_comparisons", 0))
    raw = own.scores(roles, encoder.pad_id(), size)
    judged = [
        cross_validation.HeldOut(1, trained, scores, row)
        for scores, row in zip(raw, own.rows, strict=True)
    ]
    judged += others
    rows, raw = [each.row for each in judged], [each.raw for each in judged]
    analysis = analyze(rows, raw, gain, bias, baselines, range(len(own.rows)))
    if others:
        analysis = replace(analysis, metrics=cross_validation.metrics_of(judged))
    if args.reward_bench is not None:
        scores = benched.scores(roles, bench_encoder.pad_id(), size)
        analysis = with_bench(analysis, benched, scores)

    del roles  # the trainings below load the base again
    clear_device_cache(garbage_collection=True)

    # Repeat the training on fewer labels.
    curve, ahead = [], None
    if fractions:
        announce(fractions, record)
        check_reward_start(lora, model_args)
        end = None if reward_args.end_token == "none" else reward_args.end_token
        training = cross_validation.RewardTraining(
            model_args,
            lora,
            config,
            tokenizer,
            lambda: encoder_of(data_args, tokenizer, longest),
            token_id(tokenizer, end, "end_token"),
            reward_args.head_seed,
            size,
            scratch,
        )
        measured = []
        for fraction in fractions:
            share = fraction * data_args.train_fraction
            less = replace(data_args, train_fraction=share)
            splits = split_comparisons(less, config.wants, config.seed)
            found = [
                row
                for fold, split in enumerate(splits.folds, start=1)
                for row in training.of_fold(
                    splits, split, fold, f"{fraction:.0%} of the labels, fold {fold}"
                )
            ]
            measured.append(found)
            curve.append(curve_point(fraction, found))
            print(f"trained on {fraction:.0%} of the labels: accuracy {curve[-1].value:.3f}")
        curve.append(curve_point(1.0, judged))
        ahead = outlook(curve, [*measured, judged], args.target_accuracy)

    report = RewardReport(analysis, curve, record.as_json(), verdict(analysis)[1], ahead)
    write_and_print(out, report)
    if not fractions:
        say_what_a_curve_takes(record)

    # What comes next: tune a policy, or get more labels.
    told = model_args, sampling, data_args
    demo = is_demo(model_args)
    tune = step(
        "ppo",
        *told,
        reward_adapter=str(adapter),
        policy_adapter=record.arguments.get("start_adapter"),
        prompts=None if demo else data_args.comparisons,
        output_dir=beside(source, "ppo"),
    )
    more = step(
        "sample",
        *told,
        prompts=None if demo else "PROMPTS.jsonl",
        seed=config.seed + 1,  # other samples than those that were labeled
        output=beside(source, "more-samples.jsonl"),
    )
    answer = verdict(analysis)[0]
    if answer == "yes":
        say_next(tune)
        return analysis

    retrain = retraining(source, record, analysis.metrics, config.learning_rate)
    if answer == "no" and retrain is not None:
        print("Training longer at a higher rate needs no more labels, so try that first.")
        print("For more labels, sample more completions and have them labeled.")
        say_next(retrain, more)
    else:
        print("For more labels, sample more completions and have them labeled.")
        say_next(more)
    return analysis


def of_adapter(args: ReportArguments, scratch: Path) -> "Analysis":
    # First what can be checked in a moment.
    assert args.adapter is not None
    adapter = Path(args.adapter)
    out = claim_output(args.folder(), args.overwrite, "output_dir", folder=True)

    from toolkit.arguments.model import ModelArguments
    from toolkit.data.comparisons import open_comparisons
    from toolkit.data.encoding import Encoder
    from toolkit.evaluation.reward_analysis import analyze
    from toolkit.evaluation.reward_page import verdict
    from toolkit.evaluation.reward_results import RewardReport
    from toolkit.evaluation.reward_scores import check_kind, encode_as_read
    from toolkit.evaluation.trained_prompts import prompts_of_reward
    from toolkit.models.adapters import check_adapter
    from toolkit.models.from_arguments import base_of, longest_text, tokenizer_of
    from toolkit.models.reading import reading_of
    from toolkit.models.roles import Roles
    from toolkit.models.toolkit_json import read_facts
    from toolkit.scoring.functions import Lexicon

    # Find the base: as in the adapter's training, or as it was named here.
    named = base_named_by(adapter)
    if named is None:
        raise InputError(f"--adapter: {adapter}: there is no adapter_config.json in it", "adapter")
    model_args, data_args, beside_it = ModelArguments(named), None, record_beside(adapter, levels=1)
    record = RunRecord() if beside_it is None else RunRecord.read(beside_it)
    if record.method == "reward":
        replay = ["--config", str(write_config(scratch, record.arguments)), "--report_to", "none"]
        model_args, _, _, data_args, _, config = bind(recipe("reward").main, replay)
    precision = args.precision or read_facts(adapter).get("precision") or model_args.precision
    base = args.base or model_args.model_name_or_path
    model_args = replace(model_args, model_name_or_path=base, precision=precision)
    tokenizer = tokenizer_of(model_args, str(adapter))
    check_adapter(adapter, base, "SEQ_CLS", "--adapter", precision)
    baselines = {} if args.lexicon is None else {"lexicon": Lexicon(args.lexicon).of_texts}

    # Read the comparisons, without those whose prompts were trained on.
    reading = reading_of(adapter, tokenizer)
    longest = longest_text(model_args, None if data_args is None else config.max_length)
    long_rows = "drop" if data_args is None else data_args.long_rows
    bench = read_bench(args, reading.trained_on != "text")
    if args.comparisons is not None:
        opened = open_comparisons(
            args.comparisons, "best", "--comparisons", args.skip_invalid, args
        )
        placed, data = list(opened), {"source": opened.source, "digest": opened.digest}
    else:
        placed = [(p, row | {"source": row["subset"]}) for p, row in bench if row["right"] == 1]
        data = {"source": args.reward_bench, "digest": "not made"}
    check_kind(placed, reading, adapter)
    seen, unknown = prompts_of_reward(adapter, [row for _, row in placed], tokenizer)
    notes = []
    if unknown is not None:
        notes.append(
            f"Whether it was trained on some of these prompts could not be checked: {unknown}."
        )
    elif any(seen):
        notes.append(
            f"{counted(sum(seen), 'comparison')} of {len(seen):,} were left out, because it was "
            "trained on their prompts."
        )
    fresh_ones = [each for each, known in zip(placed, seen, strict=True) if not known]
    if not fresh_ones:
        raise InputError(
            f"--comparisons: {data['source']}: {adapter} was trained on all of these prompts, so "
            "they cannot show how good it is (choose others)",
            "comparisons",
        )

    def encoder() -> Encoder:
        return Encoder(tokenizer, longest, long_rows, reading.chat, args.skip_invalid)

    rows = encode_as_read(fresh_ones, encoder(), reading, tokenizer)
    if not rows.rows:
        raise InputError(f"--comparisons: no row fits {longest} tokens", "comparisons")
    if rows.too_long:
        notes.append(
            f"{counted(rows.too_long, 'comparison')} were left out, because they are longer than "
            f"{longest:,} tokens."
        )
    benched = encode_as_read(bench, encoder(), reading, tokenizer)
    for line in notes:
        say(f"note: {line}")

    # Score the rows as PPO would, but without gain and bias.
    roles = Roles(base_of(model_args), reward_adapter=adapter)
    gain, bias, roles.gain, roles.bias = roles.gain, roles.bias, 1.0, 0.0
    pad_id = encoder().pad_id()
    raw = rows.scores(roles, pad_id, args.batch_size)
    analysis = analyze(rows.rows, raw, gain, bias, baselines)
    if args.reward_bench is not None:
        scores = benched.scores(roles, pad_id, args.batch_size)
        analysis = with_bench(analysis, benched, scores)

    settings = {"model_name_or_path": base, "precision": precision, "adapter": str(adapter)}
    identity = {"settings": settings, "data": data, "trained": record.as_json()}
    known = None if unknown is not None else True
    sentence = verdict(analysis, known)[1]
    report = RewardReport(analysis, [], identity, sentence, None, notes, known)
    write_and_print(out, report)
    return analysis


def read_bench(args: ReportArguments, messages: bool) -> "list[Placed]":
    """The rows of RewardBench 2 as comparisons; none if it was not asked for."""
    from toolkit.data.tables import read_table
    from toolkit.evaluation.reward_bench import as_comparisons

    if args.reward_bench is None:
        return []
    return list(as_comparisons(read_table(args.reward_bench, "--reward_bench"), messages))


def with_bench(analysis: "Analysis", bench: "Encoded", scores: list[list[float]]) -> "Analysis":
    """The analysis with what RewardBench 2 says."""
    from toolkit.evaluation.reward_bench import reward_bench

    found = reward_bench(bench.rows, scores, left_out=bench.too_long)
    return replace(analysis, reward_bench=found)


def write_and_print(out: Path, report: "RewardReport") -> None:
    """Write the page, and print its main figures."""
    from toolkit.evaluation.reward_page import facts, write_reward_report
    from toolkit.evaluation.tables import print_facts

    write_reward_report(out, report)
    print_facts("Reward model report", facts(report))
    wrote(out / "reward_report.html", "a page to open in a browser")


def retraining(
    source: Path, record: RunRecord, measured: "RewardMetrics", rate: float
) -> Step | None:
    """The step that trains the same again, longer and at a higher rate.

    With few steps at a low rate even good labels teach nothing. It is None if something else is
    wrong: the model does better or worse than chance, or its rate was high.
    """
    like_chance = measured.accuracy_low <= measured.chance <= measured.accuracy_high
    if not like_chance or rate >= HIGH_RATE:
        return None
    told = {name: value for name, value in record.arguments.items() if name != "overwrite"}
    epochs = float(record.arguments.get("num_train_epochs") or 1)
    more = {
        "learning_rate": f"{min(10 * rate, HIGH_RATE):g}",
        "num_train_epochs": max(4, math.ceil(epochs)),
        "output_dir": fresh(source),
    }
    return Step("reward", told | more)


def announce(fractions: list[float], record: RunRecord) -> None:
    """Say how many trainings follow, on how much, and how long they should take."""
    metrics = record.metrics or {}
    count, models = int(metrics.get("train_comparisons") or 0), int(metrics.get("folds") or 1)
    parts = ", ".join(f"{round(share * count)}" for share in fractions)
    said = (
        f"Now {models * len(fractions)} more reward models are trained, for the curve of accuracy"
    )
    said += f" against labels: on {parts} comparisons" if count else " against labels"
    said += f", for each of the {models} folds." if models > 1 else "."
    if record.seconds is not None:
        seconds = models * sum(fractions) * record.seconds
        said += (
            f" The run itself trained for {record.seconds:.0f} s, so these take about "
            f"{seconds:.0f} s, and the loading."
        )
    print(said, flush=True)


def say_what_a_curve_takes(record: RunRecord) -> None:
    """Say by which flag one learns whether more labels would help, and how long that takes."""
    from toolkit.training.reward.cross_validation import duration

    said = f"Would more labels help? --label_fractions {USUAL} tells"
    if record.seconds is not None:
        models = int((record.metrics or {}).get("folds") or 1)
        shares = [float(share) for share in USUAL.split(",")]
        said += f", in about {duration(models * sum(shares) * record.seconds)}"
    say(f"{said}.")


if __name__ == "__main__":
    run(main)
