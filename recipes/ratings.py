"""Rate models by people's choices between their completions, or turn choices into scores.

    preftune ratings --comparisons outputs/comparisons.jsonl

Comparisons whose `models` name the writer of each completion become Plackett-Luce, Bradley-Terry or
Elo ratings of the models, with 95 % bootstrap intervals. With --scores FILE, all labels of a prompt
become a z-score for each completion, on which preftune reward can train (--loss_type
scalar_rating). You should see a table with the best model first, or the number of prompts with
scores.
"""

from toolkit.cli import run

from collections import Counter
from dataclasses import dataclass
from typing import Annotated, Literal

from toolkit.arguments.common import InvalidRowsArguments, OverwriteArguments, SeedArguments
from toolkit.arguments.layouts import LayoutArguments
from toolkit.data.outputs import claim_output
from toolkit.data.tables import check_table_name, write_table
from toolkit.flags import Range, flag
from toolkit.next_step import alike, beside, say_next, step, wrote
from toolkit.terminal import print_table


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

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.scores is not None:
            check_table_name(self.scores)


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
        scores_from_rankings,
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

    ratings = rate(contests_between_models(source, noted), args.method, args.resamples, args.seed)
    caption = "Elo's scale: mean 1500, 400 points are odds of 10 to 1. 95 % bootstrap by prompt."
    if args.method == "elo":
        caption += " Elo depends on the order of the rows."
    print_table(
        f"{args.method} ratings from {len(source)} comparisons",
        ["model", "rating", "95 %", "contests", "won"],
        [
            [
                r.name,
                f"{r.rating:.0f}",
                f"{r.low:.0f} to {r.high:.0f}",
                str(r.contests),
                f"{r.wins / r.contests:.0%}",
            ]
            for r in ratings
        ],
        caption,
        right=(1, 2, 3, 4),
    )
    Ratings(args.method, ratings).write(args.output)
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
