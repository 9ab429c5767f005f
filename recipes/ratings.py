"""Rate models by the choices people made between their answers, or turn choices into scores.

    accelerate launch recipes/ratings.py --comparisons outputs/comparisons.jsonl

Comparisons that say who wrote each completion (`models`) become Plackett-Luce, Bradley-Terry or Elo
ratings of the models, with 95 % bootstrap intervals. With --scores FILE, all labels of one prompt
become a z-score for each completion, which reward.py trains on (--loss_type scalar_rating). You
should see a table, the best first, or how many prompts got scores.
"""

from toolkit.cli import run

from dataclasses import dataclass
from typing import Annotated, Literal

from toolkit.arguments.common import InvalidRowsArguments, OverwriteArguments, SeedArguments
from toolkit.data.comparisons import open_comparisons
from toolkit.data.outputs import claim_output
from toolkit.data.tables import check_table_name, write_table
from toolkit.evaluation.ratings import (
    METHODS,
    Ratings,
    contests_between_models,
    rate,
    scores_from_rankings,
)
from toolkit.flags import Range, flag
from toolkit.terminal import print_table


@dataclass
class RatingArguments(InvalidRowsArguments, SeedArguments, OverwriteArguments):
    comparisons: str = flag("outputs/comparisons.jsonl", "With `models`, or for --scores.")
    method: Literal[*METHODS] = flag("plackett_luce", "How the ratings are worked out.")
    resamples: Annotated[int, Range(low=20)] = flag(200, "Bootstrap draws for the intervals.")
    output: str = flag("outputs/ratings.json", "The table as JSON.")
    scores: str | None = flag(None, "Write rows with `scores` here instead (.jsonl, .parquet).")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.scores is not None:
            check_table_name(self.scores)


def main(args: RatingArguments) -> None:
    claim_output(args.scores or args.output, args.overwrite, "output")
    source = open_comparisons(args.comparisons, "best", "--comparisons", args.skip_invalid)
    if args.scores is not None:
        scored = scores_from_rankings(row for _, row in source)
        count = write_table(
            args.scores, scored, lambda: f"{args.comparisons}: only ties at the top"
        )
        print(
            f"{args.scores}: {count} prompts with scores, from {len(source)} labels; prompts "
            "whose labels leave a tie at the top are left out"
        )
        return

    ratings = rate(contests_between_models(source), args.method, args.resamples, args.seed)
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


if __name__ == "__main__":
    run(main)
