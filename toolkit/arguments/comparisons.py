"""The flags that say which comparisons are learned from."""

from dataclasses import dataclass, field

import numpy as np
from transformers import PreTrainedTokenizerBase

from toolkit.data.chat import ChatArguments
from toolkit.data.comparisons import Comparisons, open_comparisons, split_by_prompt
from toolkit.data.encoding import LONG_ROWS, Encoder
from toolkit.errors import check_choice, check_range


@dataclass
class ComparisonArguments(ChatArguments):
    """Which comparisons, and what is done with those that are bad or too long."""

    comparisons: str = field(
        default="outputs/comparisons.jsonl",
        metadata={"help": "JSONL, Parquet, folder or Hub dataset of `prompt, completions, best`."},
    )
    skip_invalid: bool = field(
        default=False, metadata={"help": "Go on without bad rows, and say how many there are."}
    )
    long_rows: str = field(
        default="drop",
        metadata={"help": "Rows over max_length: drop, or truncate_prompt (its start)."},
    )
    eval_rows: int | None = field(
        default=None,
        metadata={"help": "Comparisons held out, by prompt; 200, or a fifth if that is fewer."},
    )
    train_fraction: float = field(
        default=1.0, metadata={"help": "Train on this share of the others."}
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("long_rows", self.long_rows, LONG_ROWS)
        check_range("eval_rows", self.eval_rows, low=1)
        check_range("train_fraction", self.train_fraction, above=0, high=1)

    def open(self, wants: str, seed: int) -> tuple[Comparisons, np.ndarray, np.ndarray]:
        """The source, checked, and which of its rows to train on and to hold out."""
        comparisons = open_comparisons(self.comparisons, wants, "--comparisons", self.skip_invalid)
        eval_rows = self.eval_rows or max(1, min(200, len(comparisons) // 5))
        split = split_by_prompt(comparisons.order, eval_rows, seed, self.train_fraction)
        return comparisons, *split

    def encoder(self, tokenizer: PreTrainedTokenizerBase, max_length: int) -> Encoder:
        """How its rows become token ids."""
        return Encoder(tokenizer, max_length, self.long_rows, self.chat, self.skip_invalid)
