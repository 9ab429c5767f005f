"""Turn files of human choices into comparisons, or comparisons into TRL's preference pairs.

    accelerate launch recipes/convert.py --input train.jsonl.gz --output outputs/comparisons.jsonl

Reads JSON Lines (.gz too), JSON, CSV, Parquet, a folder or a Hub dataset, and tells the format by
the fields: pairs (TRL's and HH's), rankings (OASST), sets with scores (UltraFeedback), one column a
completion, OpenAI's label files (token ids: pass --tokenizer). Writes JSON Lines or, by the name of
--output, Parquet. You should see how many comparisons came of it, why rows were left out, and what
was done to rows that were kept (a prompt cut off completions that repeat it, say).
"""

from toolkit.cli import run

from collections import Counter
from dataclasses import dataclass
from typing import Literal

from toolkit.arguments.common import InvalidRowsArguments, OverwriteArguments
from toolkit.data.layouts import FORMATS
from toolkit.data.outputs import claim_output
from toolkit.data.repeated_prompts import REPEATED
from toolkit.data.tables import check_table_name, write_table
from toolkit.errors import InputError
from toolkit.flags import flag
from toolkit.next_step import again, beside, say_next, step, wrote


@dataclass
class ConvertArguments(InvalidRowsArguments, OverwriteArguments):
    input: str | None = flag(None, "File, folder, or Hub dataset (owner/name:split).")
    output: str = flag("outputs/comparisons.jsonl", ".jsonl or .parquet to write.")
    format: Literal["auto", *FORMATS] = flag("auto", "How the file is laid out; auto looks.")
    to: Literal["comparisons", "pairs"] = flag("comparisons", "comparisons, or pairs (TRL's).")
    tokenizer: str | None = flag(None, "For openai: folder (encoder.json, vocab.bpe) or Hub id.")
    add_space: bool = flag(False, "Put a space between a text prompt and completions.")
    first: int | None = flag(
        None,
        "The number that the first completion has in best and ranking: 0 or 1. Default: the "
        "number in its column's name, else 0.",
    )
    repeated_prompt: Literal[*REPEATED] = flag(
        "auto",
        "Completions that begin with a text prompt: auto (cut it off where they repeat it, refuse "
        "where only some do), cut (wherever all do), or keep.",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.first not in (None, 0, 1):
            raise InputError(f"first is {self.first}, but must be 0 or 1", "first")
        if self.input is None:
            raise InputError("input: missing (name the file to convert)", "input")
        check_table_name(self.output)


def main(args: ConvertArguments) -> None:
    from toolkit.data.convert import convert, load_decoder, to_pairs, with_space

    claim_output(args.output, args.overwrite, "output")
    decode = None if args.tokenizer is None else load_decoder(args.tokenizer)
    dropped: Counter[str] = Counter()
    noted: Counter[str] = Counter()
    form = None if args.format == "auto" else args.format
    made = convert(
        str(args.input),
        form,
        decode,
        args.skip_invalid,
        dropped,
        args.first,
        args.repeated_prompt,
        noted,
    )

    if args.add_space:
        made = map(with_space, made)
    if args.to == "pairs":
        made = (pair for row in made for pair in to_pairs(row))
    count = write_table(
        args.output, made, lambda: f"{args.input}: no {args.to} in it; left out: {dict(dropped)}"
    )
    wrote(args.output, f"{count} {args.to}; left out: {sum(dropped.values())}")
    for reason, times in dropped.most_common():
        print(f"  {times} {reason}")
    if noted:
        print("done to what was kept:")
    for what, times in noted.most_common():
        print(f"  {times} {what}")

    if args.to == "pairs":
        print("TRL's own trainers read these pairs; the recipes here learn from comparisons.")
        say_next(again("convert", "to", output=beside(args.output, "comparisons.jsonl")))
        return
    say_next(
        step(
            "reward",
            comparisons=args.output,
            model_name_or_path="MODEL",
            output_dir=beside(args.output, "reward"),
        )
    )


if __name__ == "__main__":
    run(main)
