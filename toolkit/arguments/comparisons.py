"""The flags that say which comparisons are learned from."""

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from toolkit.arguments.chat import ChatArguments
from toolkit.arguments.common import InvalidRowsArguments
from toolkit.flags import Count, Range, flag

LongRows = Literal["drop", "truncate_prompt"]


@dataclass
class ComparisonArguments(ChatArguments, InvalidRowsArguments):
    """Which comparisons, and what is done with those that are bad or too long."""

    HELP_GROUP: ClassVar[str] = "prompts and data"

    comparisons: str = flag(
        "outputs/comparisons.jsonl",
        "JSONL, Parquet, folder or Hub dataset of `prompt, completions, best`.",
    )
    long_rows: LongRows = flag(
        "drop", "Rows over max_length: drop, or truncate_prompt (its start)."
    )
    eval_rows: Count | None = flag(
        None, "Comparisons held out, by prompt; 200, or a fifth if that is fewer."
    )
    train_fraction: Annotated[float, Range(above=0, high=1)] = flag(
        1.0, "Train on this share of the others."
    )
