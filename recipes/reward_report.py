"""Write a page on whether a reward model can be trusted, from the files of preftune reward.

    preftune reward-report --run outputs/reward --lexicon demo:lexicon.txt

This scores the held-out comparisons again and measures accuracy (against chance, people and
baselines; by K, margin and length), calibration, position and length bias, and the distribution of
scores, and lists the most confident mistakes. Then it trains three more models, on 10, 25 and 50 %
of the labels, to see whether more labels would help (--label_fractions "" saves that time). You
should see a table, and RUN/report/reward_report.html with the same figures as JSON beside it.
"""

from toolkit.cli import bind, call, recipe, run, write_config

import contextlib
import io
import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from toolkit.arguments.common import OverwriteArguments
from toolkit.data.leftovers import scratch_folder
from toolkit.data.outputs import claim_output
from toolkit.data.records import from_row
from toolkit.errors import InputError
from toolkit.flags import flag
from toolkit.next_step import Step, beside, fresh, is_demo, say_next, step, wrote
from toolkit.record import RUN_FILE, RunRecord

if TYPE_CHECKING:
    from toolkit.evaluation.reward_results import Analysis
    from toolkit.scoring.accuracy import RewardMetrics

HIGH_RATE = 2e-3  # no higher learning rate is proposed; small bases take it
NEEDED = ("arguments", "settings", "data", "metrics")  # of run.json


@dataclass
class ReportArguments(OverwriteArguments):
    RENAMED: ClassVar[dict[str, str]] = {"output": "output_dir"}

    run: str = flag("outputs/reward", "Output folder of preftune reward.")
    output_dir: str | None = flag(None, "Folder for the page. By default RUN/report.")
    lexicon: str | None = flag(None, "Word list to use as a baseline.")
    reward_bench: str | None = flag(
        None,
        "RewardBench 2, as its dataset's name or a file of its rows: scored too, subset by subset.",
    )
    label_fractions: str = flag(
        "0.1,0.25,0.5", "Shares of the labels on which to train further models."
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


def main(args: ReportArguments) -> "Analysis":
    with scratch_folder() as scratch:
        return report(args, scratch)


def report(args: ReportArguments, scratch: Path) -> "Analysis":
    # First what can be checked in a moment.
    source, fractions = Path(args.run), args.fractions()
    record = RunRecord.read(source / RUN_FILE, "--run", needs=NEEDED)
    out = claim_output(
        args.output_dir or source / "report", args.overwrite, "output_dir", folder=True
    )

    from accelerate.utils.memory import clear_device_cache

    from toolkit.data.comparisons import read_rows
    from toolkit.data.from_arguments import encoder_of, split_comparisons
    from toolkit.data.tables import read_table
    from toolkit.evaluation.reward_analysis import analyze
    from toolkit.evaluation.reward_bench import as_comparisons, reward_bench
    from toolkit.evaluation.reward_page import curve_point, facts, verdict, write_reward_report
    from toolkit.evaluation.tables import print_facts
    from toolkit.models.adapters import check_adapter
    from toolkit.models.from_arguments import base_of, longest_text, tokenizer_of
    from toolkit.models.reading import reading_of
    from toolkit.models.roles import Roles
    from toolkit.scoring.accuracy import RewardMetrics
    from toolkit.scoring.functions import Lexicon
    from toolkit.training.reward.trainer import score_candidates

    # Read the run and its held-out rows.
    replay = ["--config", str(write_config(scratch, record.arguments)), "--report_to", "none"]
    reward = recipe("reward")
    model_args, _, sampling, data_args, reward_args, config = bind(reward.main, replay)
    baselines = {} if args.lexicon is None else {"lexicon": Lexicon(args.lexicon).of_texts}
    held_out = read_rows(source / "held_out.jsonl", "best", "--run")
    adapter, tokenizer = source / "adapter", tokenizer_of(model_args)
    check_adapter(adapter, model_args.model_name_or_path, "SEQ_CLS", "--run", model_args.precision)
    if fractions:
        again, _, _ = split_comparisons(data_args, config.wants, config.seed)
        if again.digest != record.data["digest"]:
            raise InputError(
                f"{data_args.comparisons}: has changed since {source} was trained (restore it, or "
                'pass --label_fractions "")'
            )
    encoder = encoder_of(data_args, tokenizer, longest_text(model_args, config.max_length))
    reading = reading_of(adapter, tokenizer)
    placed = ((f"{source}/held_out.jsonl", row) for row in held_out)
    encoded = list(encoder.encode(placed, reading.ends_with))
    rows = [held_out[row["row"]] for row in encoded]
    if not rows:
        raise InputError(f"{source}/held_out.jsonl: no row fits {encoder.max_length} tokens")

    bench, bench_ids, read_bench = [], [], 0
    if args.reward_bench is not None:
        asked = read_table(args.reward_bench, "--reward_bench")
        placed_bench = list(as_comparisons(asked, messages=reading.trained_on != "text"))
        read_bench = len(placed_bench)
        bench_encoder = encoder_of(data_args, tokenizer, encoder.max_length)
        bench_ids = list(bench_encoder.encode(iter(placed_bench), reading.ends_with))
        bench = [placed_bench[each["row"]][1] for each in bench_ids]

    # Score the rows as PPO would, but without gain and bias.
    roles = Roles(base_of(model_args), reward_adapter=adapter)
    gain, bias, roles.gain, roles.bias = roles.gain, roles.bias, 1.0, 0.0
    raw = score_candidates(roles, encoded, encoder.pad_id(), reward_args.batch_size)
    analysis = analyze(rows, raw, gain, bias, baselines)
    if args.reward_bench is not None:
        found = score_candidates(roles, bench_ids, bench_encoder.pad_id(), reward_args.batch_size)
        benched = reward_bench(bench, found, left_out=read_bench - len(bench))
        analysis = replace(analysis, reward_bench=benched)

    del roles  # the trainings below load the base again
    clear_device_cache(garbage_collection=True)

    # Repeat the training on fewer labels.
    curve = []
    if fractions:
        announce(fractions, record)
    for fraction in fractions:
        with contextlib.redirect_stdout(io.StringIO()):  # hides output on the other models
            less = call(
                reward.main,
                [
                    *replay,
                    "--train_fraction",
                    str(fraction * data_args.train_fraction),
                    "--output_dir",
                    str(scratch / str(fraction)),
                    "--normalize_samples",
                    "0",
                    "--check_reload",
                    "false",
                    "--overwrite",
                ],
            )
        curve.append(curve_point(fraction, less))
        print(f"trained on {fraction:.0%} of the labels: accuracy {less.accuracy:.3f}")
    if fractions:
        whole = from_row(RewardMetrics, record.metrics, f"{source}/{RUN_FILE}: metrics")
        curve.append(curve_point(1.0, whole))

    write_reward_report(out, analysis, curve, record.as_json())
    print_facts("Reward model report", facts(analysis))
    wrote(out / "reward_report.html", "a page to open in a browser")

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
    count = int((record.metrics or {}).get("train_comparisons") or 0)
    parts = ", ".join(f"{round(share * count)}" for share in fractions)
    said = f"Now {len(fractions)} more reward models are trained, for the curve of accuracy"
    said += f" against labels: on {parts} comparisons." if count else " against labels."
    if record.seconds is not None:
        seconds = sum(fractions) * record.seconds
        said += (
            f" The run itself trained for {record.seconds:.0f} s, so these take about "
            f"{seconds:.0f} s, and the loading."
        )
    print(f'{said} (--label_fractions "" leaves them out.)', flush=True)


if __name__ == "__main__":
    run(main)
