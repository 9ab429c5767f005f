"""Turn files that people have into comparisons, demonstrations, prompts, or TRL's preference pairs.

    preftune convert --input train.jsonl.gz --output outputs/comparisons.jsonl
    preftune convert --input picks.csv --columns prompt=Prompt completions="A,B" best=Best --show

The input is JSON Lines (also .gz), JSON, CSV, TSV, Parquet, a folder or a Hub dataset. Its fields
reveal the layout, of which docs/comparisons.md has a table. --columns names the columns of a
spreadsheet. --show prints the first rows as they will be read, and writes nothing. The output is
JSON Lines, or Parquet if --output ends in .parquet. You should see the number of comparisons, why
rows were left out, and how rows were changed (a prompt is cut off completions that repeat it).
"""

from toolkit.cli import run

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

from toolkit.arguments.common import InvalidRowsArguments, OverwriteArguments
from toolkit.arguments.layouts import LayoutArguments
from toolkit.arguments.prompt_form import PromptFormArguments
from toolkit.data.layouts.registry import LAYOUTS
from toolkit.data.outputs import claim_output
from toolkit.data.records import Row
from toolkit.data.repeated_prompts import REPEATED
from toolkit.data.tables import check_table_name, write_table
from toolkit.data.text import runs_on
from toolkit.errors import InputError
from toolkit.flags import CountOrZero, flag
from toolkit.next_step import again, beside, say_next, step, wrote


@dataclass
class ConvertArguments(
    PromptFormArguments, LayoutArguments, InvalidRowsArguments, OverwriteArguments
):
    input: str | None = flag(None, "File, folder, or Hub dataset (owner/name:split) to convert.")
    output: str = flag("outputs/comparisons.jsonl", "File to write, .jsonl or .parquet.")
    format: Literal["auto", *LAYOUTS] = flag("auto", "Layout of the input; auto detects it.")
    to: Literal["comparisons", "pairs", "demonstrations", "prompts"] = flag(
        "comparisons",
        "Write comparisons; TRL's pairs; demonstrations, which are prompts with one answer, for "
        "sft --demonstrations; or prompts.",
    )
    show: CountOrZero = flag(
        0,
        "Print this many of the first rows as they will be read, and why others are left out, and "
        "write nothing. Without a number: 5.",
        bare=5,
    )
    tokenizer: str | None = flag(
        None, "Tokenizer for openai: a folder (encoder.json, vocab.bpe) or Hub id."
    )
    add_space: bool = flag(False, "Put a space between a text prompt and its completions.")
    repeated_prompt: Literal[*REPEATED] = flag(
        "auto",
        "What to do if completions begin with the text prompt: auto (cut it off, refuse if only "
        "some do), cut (if all do), or keep.",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        check_table_name(self.output)


@dataclass
class Borders:
    """Counts the rows in which completions stick to their prompt, and keeps how the first reads."""

    joined: int = 0
    example: str = ""

    def seen(self, rows: Iterable[Row]) -> Iterator[Row]:
        """Yield the rows as they are, and look at each."""
        for row in rows:
            prompt, completions = row["prompt"], row.get("completions", [])
            if isinstance(prompt, str) and completions and runs_on(prompt, completions):
                self.joined += 1
                self.example = self.example or prompt[-10:] + completions[0][:10]
            yield row


def main(args: ConvertArguments) -> None:
    from toolkit.data.convert import converted, load_decoder, to_demonstration, to_pairs, with_space
    from toolkit.data.layouts.named import NamedColumns
    from toolkit.data.layouts.reader import LayoutReader
    from toolkit.data.prompt_form import in_form
    from toolkit.data.show import shown

    if args.input is None:
        raise InputError("input: missing (name the file to convert)", "input")
    reader = LayoutReader(
        wanted="comparisons" if args.to == "pairs" else args.to,
        form=None if args.format == "auto" else args.format,
        columns=NamedColumns(args.mapping),
        decode=None if args.tokenizer is None else load_decoder(args.tokenizer),
        first=args.first,
        repeated_prompt=args.repeated_prompt,
        skip_invalid=args.skip_invalid,
    )

    def finished(row: Row) -> Row:
        """A space goes before completions of a text prompt, before that becomes a message."""
        if args.add_space and args.to != "prompts":
            row = with_space(row)
        return in_form(row, args.prompt_form, args.as_messages)

    if args.show:
        for line in shown(args.input, reader, args.show, finished):
            print(line)
        say_next(again("convert", "show"))
        return

    claim_output(args.output, args.overwrite, "output")
    dropped, noted = reader.dropped, reader.noted
    made = (finished(row) for _, row in converted(args.input, reader))
    borders = Borders()
    made = borders.seen(made)
    if args.to == "pairs":
        made = (pair for row in made for pair in to_pairs(row, noted))
    elif args.to == "demonstrations":
        made = map(to_demonstration, made)

    def none() -> str:
        reasons = "; ".join(f"{times} {reason}" for reason, times in dropped.most_common())
        return f"{args.input}: holds no {args.to}" + (f"; left out: {reasons}" if reasons else "")

    count = write_table(args.output, made, none)
    wrote(args.output, f"{count} {args.to}; left out: {sum(dropped.values())}")
    for reason, times in dropped.most_common():
        print(f"  {times} {reason}")
    if reader.labels and set(reader.labels) != {"number"}:
        read = ", ".join(f"{times} by {how}" for how, times in reader.labels.most_common())
        print(f"best was read {read}")
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
    if args.to == "demonstrations":
        say_next(
            step(
                "sft",
                demonstrations=args.output,
                model_name_or_path="MODEL",
                output_dir=beside(args.output, "sft"),
            )
        )
        return
    if args.to == "prompts":
        say_next(
            step(
                "sample",
                prompts=args.output,
                model_name_or_path="MODEL",
                output=beside(args.output, "samples.jsonl"),
            )
        )
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
