"""Split prompts into those to train on and those to compare on.

    preftune split --prompts prompts.txt

Prompts that occur several times are kept once. A share of them, drawn by the seed, is held out:
PPO never trains on these, so that preftune evaluate can compare on them. The prompts may also be
those of comparisons. With --eval_prompts none are held out, and both files are only brought into
the same form. With --comparisons, those on prompts that are not held out are written to --kept, for
a policy that learns from comparisons. You should see how many prompts each file has.
"""

from toolkit.cli import changed, run

import math
from dataclasses import dataclass
from typing import Annotated

from toolkit.arguments.common import OverwriteArguments, SeedArguments
from toolkit.arguments.layouts import ColumnArguments
from toolkit.arguments.prompt_form import PromptFormArguments
from toolkit.data.files import read_jsonl, write_jsonl
from toolkit.data.outputs import claim_output
from toolkit.errors import InputError
from toolkit.flags import Range, flag
from toolkit.next_step import note_settings, say_next, step, wrote


@dataclass
class SplitArguments(PromptFormArguments, ColumnArguments, SeedArguments, OverwriteArguments):
    prompts: str | None = flag(
        None,
        "Prompts, or comparisons with prompts: JSONL, Parquet, CSV, a folder, a .txt file with one "
        "prompt a line, or owner/name:split.",
    )
    eval_prompts: str | None = flag(
        None, "Prompts to compare on. By default some of --prompts are held out."
    )
    eval_share: Annotated[float, Range(above=0, high=0.9)] = flag(
        0.1, "Share of the prompts to hold out."
    )
    output: str = flag("outputs/prompts.jsonl", "JSONL file of prompts to train on.")
    held_out: str = flag("outputs/prompts.heldout.jsonl", "JSONL file of prompts to compare on.")
    comparisons: str | None = flag(
        None, "JSONL file of preftune convert, to be copied without rows on held-out prompts."
    )
    kept: str = flag("outputs/comparisons.policy.jsonl", "JSONL file for that copy.")


FEW = 50  # prompts to compare on; fewer are told


def main(args: SplitArguments) -> None:
    from toolkit.data.prompt_form import canonical, in_form, once_each, split_prompts
    from toolkit.data.prompts import read_prompt_rows

    if args.prompts is None:
        raise InputError("prompts: missing (name a file of prompts)", "prompts")
    claim_output(args.output, args.overwrite, "output")
    claim_output(args.held_out, args.overwrite, "output")
    if args.comparisons is not None:
        claim_output(args.kept, args.overwrite, "output")

    # Read each prompt once, in its form.
    def read(source: str, what: str) -> list[dict[str, object]]:
        rows = read_prompt_rows(source, what, args)
        found = once_each(in_form(row, args.prompt_form, args.as_messages) for row in rows)
        if len(found) < len(rows):
            again = len(rows) - len(found)
            print(f"{source}: {again} of {len(rows)} prompts occur again, and are kept once")
        return found

    # Hold some out, or take those that were named.
    rows = read(args.prompts, "--prompts")
    if args.eval_prompts is not None:
        held_out = read(args.eval_prompts, "--eval_prompts")
    else:
        if len(rows) < 4:
            raise InputError(
                f"prompts: {args.prompts} has {len(rows)} different prompts, which are too few to "
                "hold some out (name others to compare on by --eval_prompts)",
                "prompts",
            )
        rows, held_out = split_prompts(rows, args.eval_share, args.seed)

    # Leave out the comparisons on prompts that are held out.
    if args.comparisons is not None:
        compared = [row for _, row in read_jsonl(args.comparisons)]
        shown = [in_form(row, args.prompt_form, args.as_messages)["prompt"] for row in compared]
        keys = {canonical(row.get("prompt")) for row in held_out}
        kept = [row for row, one in zip(compared, shown, strict=True) if canonical(one) not in keys]
        if not kept:
            raise InputError(
                f"comparisons: {args.comparisons}: all are on prompts that are held out, so none "
                "is left to train a policy on (hold out others by --eval_prompts)",
                "comparisons",
            )
        write_jsonl(args.kept, kept)
        wrote(args.kept, f"{len(kept)} of {len(compared)} comparisons, on prompts to train on")

    write_jsonl(args.output, rows)
    write_jsonl(args.held_out, held_out)
    note_settings(args.output, changed(args))
    wrote(args.output, f"{len(rows)} prompts to train on")
    wrote(args.held_out, f"{len(held_out)} prompts to compare on")
    if len(held_out) < FEW:
        points = min(
            50, round(98 / math.sqrt(max(1, len(held_out))))
        )  # 95 % of a fair coin's draws
        print(
            f"note: on {len(held_out)} prompts a win rate is known to about {points} percentage "
            "points either way (bring more prompts, or raise --eval_share)"
        )
    say_next(step("sample", prompts=args.output, model_name_or_path="MODEL"))


if __name__ == "__main__":
    run(main)
