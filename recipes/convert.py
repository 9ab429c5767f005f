"""Turn files of human choices into comparisons, or comparisons into TRL's preference pairs.

    preftune convert --input train.jsonl.gz --output outputs/comparisons.jsonl

The input is JSON Lines (also .gz), JSON, CSV, Parquet, a folder or a Hub dataset. Its fields reveal
the format: pairs (TRL's and HH's), rankings (OASST), sets with scores (UltraFeedback), one column
per completion, or OpenAI's label files (token ids, for which you pass --tokenizer). The output is
JSON Lines, or Parquet if --output ends in .parquet. You should see the number of comparisons, why
rows were left out, and how rows were changed (a prompt is cut off completions that repeat it).
"""

from toolkit.cli import run

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

from toolkit.arguments.common import InvalidRowsArguments, OverwriteArguments
from toolkit.arguments.prompt_form import MessageArguments, PromptFormArguments
from toolkit.data.layouts import FORMATS
from toolkit.data.outputs import claim_output
from toolkit.data.records import Row
from toolkit.data.repeated_prompts import REPEATED
from toolkit.data.tables import check_table_name, write_table
from toolkit.data.text import runs_on
from toolkit.errors import InputError
from toolkit.flags import flag
from toolkit.next_step import again, beside, say_next, step, wrote


@dataclass
class ConvertArguments(
    PromptFormArguments, MessageArguments, InvalidRowsArguments, OverwriteArguments
):
    input: str | None = flag(None, "File, folder, or Hub dataset (owner/name:split) to convert.")
    output: str = flag("outputs/comparisons.jsonl", "File to write, .jsonl or .parquet.")
    format: Literal["auto", *FORMATS] = flag("auto", "Format of the input; auto detects it.")
    to: Literal["comparisons", "pairs"] = flag("comparisons", "Write comparisons, or TRL's pairs.")
    tokenizer: str | None = flag(
        None, "Tokenizer for openai: a folder (encoder.json, vocab.bpe) or Hub id."
    )
    add_space: bool = flag(False, "Put a space between a text prompt and its completions.")
    first: int | None = flag(
        None,
        "Number of the first completion in best and ranking: 0 or 1. By default the number in its "
        "column's name, else 0.",
    )
    repeated_prompt: Literal[*REPEATED] = flag(
        "auto",
        "What to do if completions begin with the text prompt: auto (cut it off, refuse if only "
        "some do), cut (if all do), or keep.",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.first not in (None, 0, 1):
            raise InputError(f"first is {self.first}, but must be 0 or 1", "first")
        check_table_name(self.output)


@dataclass
class Borders:
    """Counts the rows in which completions stick to their prompt, and keeps how the first reads."""

    joined: int = 0
    example: str = ""

    def seen(self, rows: Iterable[Row]) -> Iterator[Row]:
        """Yield the rows as they are, and look at each."""
        for row in rows:
            prompt, completions = row["prompt"], row["completions"]
            if isinstance(prompt, str) and runs_on(prompt, completions):
                self.joined += 1
                self.example = self.example or prompt[-10:] + completions[0][:10]
            yield row


def main(args: ConvertArguments) -> None:
    from toolkit.data.convert import convert, load_decoder, to_pairs, with_space
    from toolkit.data.prompt_form import in_form

    if args.input is None:
        raise InputError("input: missing (name the file to convert)", "input")
    claim_output(args.output, args.overwrite, "output")
    decode = None if args.tokenizer is None else load_decoder(args.tokenizer)
    dropped: Counter[str] = Counter()
    noted: Counter[str] = Counter()
    form = None if args.format == "auto" else args.format
    made = convert(
        args.input,
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
    made = (in_form(row, args.prompt_form, args.as_messages) for row in made)
    borders = Borders()
    made = borders.seen(made)
    if args.to == "pairs":
        made = (pair for row in made for pair in to_pairs(row))

    def none() -> str:
        reasons = "; ".join(f"{times} {reason}" for reason, times in dropped.most_common())
        return f"{args.input}: holds no {args.to}" + (f"; left out: {reasons}" if reasons else "")

    count = write_table(args.output, made, none)
    wrote(args.output, f"{count} {args.to}; left out: {sum(dropped.values())}")
    for reason, times in dropped.most_common():
        print(f"  {times} {reason}")
    if noted:
        print("changes to the rows that were kept:")
    for what, times in noted.most_common():
        print(f"  {times} {what}")

    if borders.joined:
        print(
            f"warning: {borders.joined} rows have no space between prompt and completion, as in "
            f"{borders.example!r} (if that is not intended, run this again with --add_space "
            "--overwrite)"
        )

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
