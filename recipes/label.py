"""A scripted labeller picks the best completion of each row.

    accelerate launch recipes/label.py --samples outputs/samples.jsonl --lexicon data/lexicon.txt

The labeller is a word-valence lexicon (the best is the highest sum) or any Python function
`module:function(prompts, completions) -> scores`. --noise makes it pick by lot now and then, as
people do; ties at the top are dropped or broken by the seed. Reads `prompt, completions`, writes
the rows with `best`, `scores` and `labeler`. You should see how many were labelled and dropped.
"""

import random
from dataclasses import dataclass, field

from tqdm.auto import tqdm

from toolkit.arguments import FunctionArguments
from toolkit.cli import run
from toolkit.data.comparisons import read_rows
from toolkit.data.files import claim_output, write_jsonl
from toolkit.errors import InputError, check_choice, check_range, check_seed
from toolkit.labeling.scripted import pick_best
from toolkit.training.rewards import call_reward_function


@dataclass
class LabelArguments:
    samples: str = field(
        default="outputs/samples.jsonl", metadata={"help": "JSONL with `prompt, completions`."}
    )
    output: str = field(default="outputs/comparisons.jsonl", metadata={"help": "JSONL to write."})
    overwrite: bool = field(default=False, metadata={"help": "Replace what is at --output."})
    ties: str = field(default="drop", metadata={"help": "Ties at the top: drop or random."})
    noise: float = field(default=0.0, metadata={"help": "Share of picks made by lot, 0 to 1."})
    limit: int | None = field(default=None, metadata={"help": "Stop at so many comparisons."})
    seed: int = field(default=0, metadata={"help": "Of noise and of ties."})

    def __post_init__(self) -> None:
        check_seed(self.seed)
        check_choice("ties", self.ties, ("drop", "random"))
        check_range("noise", self.noise, low=0, high=1)
        check_range("limit", self.limit, low=1)


def main(scorer_args: FunctionArguments, args: LabelArguments) -> None:
    claim_output(args.output, args.overwrite, "output")
    scorer = scorer_args.function()
    rows = read_rows(args.samples, "completions", "--samples")

    rng = random.Random(args.seed)
    labeler = scorer_args.reward_function or "lexicon"
    labelled: list[dict[str, object]] = []
    dropped = 0
    for row in tqdm(rows, desc="Labelling", unit="row"):
        if args.limit is not None and len(labelled) == args.limit:
            break
        completions = row["completions"]
        scores = call_reward_function(scorer, [row["prompt"]] * len(completions), completions, {})
        best = pick_best(scores, args.ties, args.noise, rng)
        if best is None or len(set(completions)) == 1:
            dropped += 1
        else:
            labelled.append(row | {"best": best, "scores": scores, "labeler": labeler})
    if not labelled:
        raise InputError(
            f"{args.samples}: all {dropped} rows are ties, so there is no pick "
            "(does the lexicon know these words? --ties random keeps them)"
        )
    write_jsonl(args.output, labelled)
    print(f"{args.output}: {len(labelled)} comparisons; {dropped} ties dropped")


if __name__ == "__main__":
    run(main)
