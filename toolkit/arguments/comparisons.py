"""The flags that say which comparisons to learn from."""

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from toolkit.arguments.chat import ChatArguments
from toolkit.arguments.common import InvalidRowsArguments
from toolkit.arguments.layouts import LayoutArguments
from toolkit.flags import Count, Range, flag

LongRows = Literal["drop", "truncate_prompt"]


@dataclass
class ComparisonArguments(ChatArguments, InvalidRowsArguments, LayoutArguments):
    """Which comparisons to learn from, and what to do with bad and long ones."""

    HELP_GROUP: ClassVar[str] = "prompts and data"

    comparisons: str = flag(
        "outputs/comparisons.jsonl",
        "Comparisons: JSONL, Parquet, CSV, a folder or a Hub dataset. Rows have `prompt, "
        "completions, best`, or a layout that convert reads.",
    )
    long_rows: LongRows = flag(
        "drop", "Rows longer than max_length: drop, or truncate_prompt (cut its start)."
    )
    eval_rows: Count | None = flag(
        None, "Comparisons to hold out, by prompt. By default 200, or a fifth if that is fewer."
    )
    train_fraction: Annotated[float, Range(above=0, high=1)] = flag(
        1.0, "Share of the remaining comparisons to train on."
    )
