"""The flags that say which comparisons to learn from."""

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from toolkit.arguments.chat import ChatArguments
from toolkit.arguments.common import InvalidRowsArguments
from toolkit.arguments.layouts import LayoutArguments
from toolkit.errors import InputError
from toolkit.flags import Count, CountOrZero, Range, flag

LongRows = Literal["drop", "truncate_prompt"]
Half = Literal["a", "b"]


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


@dataclass
class RewardDataArguments(ComparisonArguments):
    """The comparisons of a reward model, and how it is found out what it has learned."""

    eval_comparisons: str | None = flag(
        None,
        "Comparisons to hold out, in a file of their own. Those of --comparisons are then all "
        "trained on, except for prompts that are also in this file.",
    )
    folds: CountOrZero | None = flag(
        None,
        "Cross-validation: train so many reward models instead of one, so that every comparison is "
        "held out once; 0 for none. By default 5 if there are fewer than 1,000 comparisons, and no "
        "--start_adapter or --eval_comparisons. The adapter is the first of these models, and the "
        "same as without a cross-validation.",
    )

    half: Half | None = flag(
        None,
        "Use only this half of the comparisons, a or b. A prompt is in the same half whatever the "
        "seed and the other prompts, and no prompt is in both, so two reward models can watch each "
        "other (preftune robustness).",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.folds == 1:
            raise InputError("folds: must be 0 (none) or at least 2", "folds")
        if self.eval_comparisons is not None:
            for name in ("folds", "eval_rows"):
                if getattr(self, name):  # 0 folds is what it does anyway
                    raise InputError(
                        f"{name}: has no use beside --eval_comparisons, which says what is held "
                        "out (leave one of them out)",
                        name,
                    )
