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
from dataclasses import dataclass, field

from toolkit.data.convert import convert, load_decoder, to_pairs, with_space
from toolkit.data.layouts import FORMATS
from toolkit.data.outputs import claim_output
from toolkit.data.repeated_prompts import REPEATED
from toolkit.data.tables import check_table_name, write_table
from toolkit.errors import InputError, check_choice


@dataclass
class ConvertArguments:
    input: str | None = field(
        default=None, metadata={"help": "File, folder, or Hub dataset (owner/name:split)."}
    )
    output: str = field(
        default="outputs/comparisons.jsonl", metadata={"help": ".jsonl or .parquet to write."}
    )
    format: str = field(default="auto", metadata={"help": f"auto, {', '.join(FORMATS)}."})
    to: str = field(default="comparisons", metadata={"help": "comparisons, or pairs (TRL's)."})
    tokenizer: str | None = field(
        default=None, metadata={"help": "For openai: folder (encoder.json, vocab.bpe) or Hub id."}
    )
    add_space: bool = field(
        default=False, metadata={"help": "Put a space between a text prompt and completions."}
    )
    first: int | None = field(
        default=None,
        metadata={
            "help": "The number that the first completion has in best and ranking: 0 or 1. "
            "Default: the number in its column's name, else 0."
        },
    )
    repeated_prompt: str = field(
        default="auto",
        metadata={
            "help": "Completions that begin with a text prompt: auto (cut it off where they repeat "
            "it, refuse where only some do), cut (wherever all do), or keep."
        },
    )
    skip_invalid: bool = field(default=False, metadata={"help": "Leave bad rows out."})
    overwrite: bool = field(default=False, metadata={"help": "Replace what is at --output."})

    def __post_init__(self) -> None:
        check_choice("format", self.format, ("auto", *FORMATS))
        check_choice("repeated_prompt", self.repeated_prompt, REPEATED)
        if self.first not in (None, 0, 1):
            raise InputError(f"first is {self.first}, but must be 0 or 1", "first")
        check_choice("to", self.to, ("comparisons", "pairs"))
        if self.input is None:
            raise InputError("input: missing (name the file to convert)", "input")
        check_table_name(self.output)


def main(args: ConvertArguments) -> None:
    claim_output(args.output, args.overwrite, "output")
    decode = None if args.tokenizer is None else load_decoder(args.tokenizer)
    dropped: Counter[str] = Counter()
    noted: Counter[str] = Counter()
    form = None if args.format == "auto" else args.format
    made = convert(
        str(args.input), form, decode, args.skip_invalid, dropped, args.first,
        args.repeated_prompt, noted,
    )  # fmt: skip
    if args.add_space:
        made = map(with_space, made)
    if args.to == "pairs":
        made = (pair for row in made for pair in to_pairs(row))
    count = write_table(
        args.output, made, lambda: f"{args.input}: no {args.to} in it; left out: {dict(dropped)}"
    )
    print(f"{args.output}: {count} {args.to}; left out: {sum(dropped.values())}")
    for reason, times in dropped.most_common():
        print(f"  {times} {reason}")
    if noted:
        print("done to what was kept:")
    for what, times in noted.most_common():
        print(f"  {times} {what}")


if __name__ == "__main__":
    run(main)
