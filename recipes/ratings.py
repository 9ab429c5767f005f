"""Rate models by people's choices between their completions, or turn choices into scores.

    preftune ratings --comparisons outputs/comparisons.jsonl

Comparisons whose `models` name the writer of each completion become Plackett-Luce, Bradley-Terry or
Elo ratings of the models, with 95 % bootstrap intervals. With --reward_model, what its scores
predict stands beside each rating (174 points for a nat), over comparisons on prompts that it was
not trained on: where it is higher, the reward model overrates what it was used to train. With
--scores FILE, all labels of a prompt
become a z-score for each completion, on which preftune reward can train (--loss_type
scalar_rating). You should see a table with the best model first, or the number of prompts with
scores.
"""

from toolkit.cli import run

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Literal

from toolkit.arguments.common import InvalidRowsArguments, OverwriteArguments, SeedArguments
from toolkit.arguments.layouts import LayoutArguments
from toolkit.arguments.model import Precision
from toolkit.data.outputs import claim_output
from toolkit.data.tables import check_table_name, write_table
from toolkit.errors import InputError
from toolkit.flags import Count, Range, flag
from toolkit.next_step import alike, beside, say_next, step, wrote
from toolkit.terminal import print_table

if TYPE_CHECKING:
    from toolkit.data.records import Placed


@dataclass
class RatingArguments(InvalidRowsArguments, LayoutArguments, SeedArguments, OverwriteArguments):
    comparisons: str = flag(
        "outputs/comparisons.jsonl", "Comparisons with `models`, or for --scores."
    )
    method: Literal["plackett_luce", "bradley_terry", "elo"] = flag(
        "plackett_luce", "Rating method."
    )
    resamples: Annotated[int, Range(low=20)] = flag(200, "Bootstrap samples for the intervals.")
    output: str = flag("outputs/ratings.json", "JSON file for the table.")
    scores: str | None = flag(None, "File for rows with `scores`, .jsonl or .parquet.")
    reward_model: str | None = flag(
        None,
        "Folder of a reward adapter, or a classifier with one output: its scores predict each "
        "rating.",
    )
    precision: Precision = flag("4bit", "How the reward model's base is held.")
    batch_size: Count = flag(64, "Texts that the reward model scores in one pass.")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.scores is not None:
            check_table_name(self.scores)
            if self.reward_model is not None:
                raise InputError(
                    "reward_model: has no use beside --scores, which rates completions (leave one "
                    "of them out)",
                    "reward_model",
                )


def scored_rows(
    args: RatingArguments, rows: "list[Placed]"
) -> "tuple[list[Placed], list[list[float]]]":
    """Score the completions of rows on prompts that the reward model was not trained on.

    Returns:
        these rows, and their scores in nats: gain and bias are taken back.
    """
    from pathlib import Path

    from toolkit.evaluation.trained_prompts import prompts_of_reward
    from toolkit.scoring.reward_models import RewardModel
    from toolkit.scoring.scorer import Completions

    assert args.reward_model is not None
    scorer = RewardModel(args.reward_model, args.precision, args.batch_size)
    seen, unknown = prompts_of_reward(
        Path(args.reward_model), [row for _, row in rows], scorer.tokenizer
    )
    if unknown is not None:
        print(f"note: it is not known which prompts the reward model was trained on: {unknown}")
    kept = [placed for placed, known in zip(rows, seen, strict=True) if not known]
    if not kept:
        raise InputError(
            f"reward_model: {args.reward_model} was trained on the prompts of all {len(rows)} "
            "comparisons, so its scores of them predict nothing (compare on other prompts)",
            "reward_model",
        )
    if len(kept) < len(rows):
        print(
            f"{len(rows) - len(kept)} of {len(rows)} comparisons are left out, because the reward "
            "model was trained on their prompts"
        )

    prompts = [row["prompt"] for _, row in kept for _ in row["completions"]]
    texts = [text for _, row in kept for text in row["completions"]]
    found = (scorer(Completions(prompts, texts)) - scorer.bias) / scorer.gain
    remaining = iter(found.tolist())
    return kept, [[next(remaining) for _ in row["completions"]] for _, row in kept]


def say(noted: Counter[str]) -> None:
    """Print what of the rows could not be used."""
    for what, times in noted.items():
        print(f"{times} {what}")


def main(args: RatingArguments) -> None:
    from toolkit.data.comparisons import open_comparisons
    from toolkit.evaluation.ratings import (
        Ratings,
        contests_between_models,
        rate,
        said_of_misfit,
        scores_from_rankings,
        with_predictions,
    )

    claim_output(args.scores or args.output, args.overwrite, "output")
    source = open_comparisons(args.comparisons, "best", "--comparisons", args.skip_invalid, args)
    noted: Counter[str] = Counter()
    if args.scores is not None:
        scored = scores_from_rankings((row for _, row in source), noted=noted)
        count = write_table(
            args.scores, scored, lambda: f"{args.comparisons}: every prompt has a tie"
        )
        wrote(
            args.scores,
            f"{count} prompts with scores, from {len(source)} labels; prompts with a tie for the "
            "best are left out",
        )
        say(noted)
        say_next(
            step(
                "reward",
                comparisons=args.scores,
                loss_type="scalar_rating",
                model_name_or_path="MODEL",
                output_dir=beside(args.scores, "reward"),
            )
        )
        return

    rows, left_out, raw = list(source), 0, None
    if args.reward_model is not None:
        contests_between_models(rows)  # a row without models must fail before a model is loaded
        kept, raw = scored_rows(args, rows)
        rows, left_out = kept, len(rows) - len(kept)
    contests = contests_between_models(rows, noted)
    ratings = rate(contests, args.method, args.resamples, args.seed)
    if raw is not None:
        ratings = with_predictions(ratings, contests, raw, args.method, args.resamples, args.seed)
    caption = "Elo's scale: mean 1500, 400 points are odds of 10 to 1. 95 % bootstrap by prompt."
    if args.method == "elo":
        caption += " Elo depends on the order of the rows."
    found = Ratings(args.method, ratings, args.reward_model, left_out)
    print_table(
        f"{args.method} ratings from {len(rows)} comparisons",
        *found.table(),
        caption,
        right=tuple(range(1, 8)),
    )
    doubt = said_of_misfit(contests)
    if doubt is not None:
        print(doubt)
    found.write(args.output)
    wrote(args.output, "these ratings")
    say(noted)
    say_next(
        step(
            "reward",
            comparisons=args.comparisons,
            first=args.first,
            **alike(args),
            model_name_or_path="MODEL",
            output_dir=beside(args.output, "reward"),
        )
    )


if __name__ == "__main__":
    run(main)
