"""Reading and checking the comparisons and prompts that a recipe's flags name."""

from collections.abc import Collection
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from toolkit.arguments.chat import ChatArguments
from toolkit.arguments.comparisons import ComparisonArguments, RewardDataArguments
from toolkit.arguments.prompts import (
    DEMO_PROMPTS,
    PromptArguments,
    PromptLengthArguments,
    PromptSourceArguments,
)
from toolkit.data.chat import Chat, kind_of, read_chat
from toolkit.data.comparisons import Comparisons, open_comparisons
from toolkit.data.encoding import Encoder
from toolkit.data.prompts import Prompts, read_prompts
from toolkit.data.splits import (
    Split,
    folds_by_prompt,
    in_half,
    share_of_rest,
    split_by_prompt,
)
from toolkit.errors import InputError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def chat_from(args: ChatArguments) -> Chat:
    """Make the run's ``Chat``. Make it once: each warning is then printed once."""
    return read_chat(args.chat_template, args.chat_template_kwargs)


FEW = 1000  # with fewer comparisons a reward model is cross-validated, unless told otherwise
FOLDS = 5


@dataclass(frozen=True)
class RewardSplits:
    """What a reward model is trained on, and what is held out from it.

    Attributes:
        comparisons: those to train on.
        folds: for each model of a cross-validation bool (rows,) to train on, and bool (rows,) to
            hold out. The first is the adapter's, and without a cross-validation the only one.
        held_out: comparisons of their own that are held out whole; None if they are some of
            ``comparisons``.
        shared: number of comparisons that are not trained on because their prompts are in
            ``held_out``.
        prompts: number of different prompts in ``comparisons``, or in the half that is used.
    """

    comparisons: Comparisons
    folds: list[Split]
    held_out: Comparisons | None = None
    shared: int = 0
    prompts: int = 0

    @property
    def validated(self) -> int:
        """The number of folds of a cross-validation; 0 for none."""
        return len(self.folds) if len(self.folds) > 1 else 0


def split_comparisons(args: RewardDataArguments, wants: str, seed: int) -> RewardSplits:
    """Check the source; choose rows to train on and to hold out.

    Raises:
        InputError: a row is bad, or no row would be left to train on.
    """
    comparisons = open_comparisons(
        args.comparisons, wants, "--comparisons", args.skip_invalid, args
    )
    # Of the other half nothing is used: neither to train on nor to hold out.
    used = np.ones(len(comparisons), dtype=bool)
    if args.half is not None:
        used = in_half(comparisons.order, args.half)
        if not used.any():
            raise InputError(
                f"half: {args.comparisons} has no prompt in half {args.half} (bring more prompts)",
                "half",
            )
    order = comparisons.order[used]
    prompts = len(np.unique(order))

    def whole(part: np.ndarray) -> np.ndarray:
        """The choice among the used rows, bool (used,), as one among all rows, bool (rows,)."""
        found = np.zeros(len(used), dtype=bool)
        found[used] = part
        return found

    if args.eval_comparisons is not None:
        other = open_comparisons(
            args.eval_comparisons, wants, "--eval_comparisons", args.skip_invalid, args
        )
        known, kinds = (
            {kind_of(row["prompt"]) for _, row in source} for source in (comparisons, other)
        )
        if kinds - known:  # nor would a prompt be found that is text here and a message there
            raise InputError(
                f"eval_comparisons: {args.eval_comparisons} has prompts of {min(kinds - known)}, "
                f"and {args.comparisons} has none, so the model would not know them "
                "(--as_messages true reads text as a user's message)",
                "eval_comparisons",
            )
        also = np.isin(order, other.order)
        if also.all():
            raise InputError(
                f"eval_comparisons: {args.eval_comparisons} has all the prompts of "
                f"{args.comparisons}, so none is left to train on",
                "eval_comparisons",
            )
        train = share_of_rest(also, seed, args.train_fraction)
        everything = np.ones(len(other), dtype=bool)
        return RewardSplits(
            comparisons, [(whole(train), everything)], other, int(also.sum()), prompts
        )

    eval_rows = args.eval_rows or max(1, min(200, len(order) // 5))
    alone = split_by_prompt(order, eval_rows, seed, args.train_fraction)
    folds = args.folds
    if folds is None:
        beside = len(np.unique(order[~alone[1]]))  # prompts for the other folds
        folds = FOLDS if len(order) < FEW and beside >= 2 * FOLDS else 0
    cut = [alone]
    if folds:
        cut = folds_by_prompt(order, eval_rows, seed, folds, args.train_fraction)
    found = [(whole(train), whole(held_out)) for train, held_out in cut]
    return RewardSplits(comparisons, found, prompts=prompts)


def split_picks(
    args: ComparisonArguments, seed: int, wants: str = "best"
) -> tuple[Comparisons, np.ndarray, np.ndarray]:
    """Check the source; choose rows to train a policy on and to hold out, each bool (rows,).

    For the same seed they are those of ``split_comparisons`` without a cross-validation.

    Args:
        args: the source.
        seed: of the split.
        wants: what rows must have, "best" or "scores".
    """
    found = open_comparisons(args.comparisons, wants, "--comparisons", args.skip_invalid, args)
    return found, *_split(args, found, seed)


def split_demonstrations(
    source: str, args: ComparisonArguments, seed: int
) -> tuple[Comparisons, np.ndarray, np.ndarray]:
    """Check prompts with one answer each, and split them as ``split_picks``.

    Each row has one completion, which is its best.
    """
    found = open_comparisons(source, "demonstration", "--demonstrations", args.skip_invalid, args)
    return found, *_split(args, found, seed)


def _split(args: ComparisonArguments, comparisons: Comparisons, seed: int) -> Split:
    eval_rows = args.eval_rows or max(1, min(200, len(comparisons) // 5))
    return split_by_prompt(comparisons.order, eval_rows, seed, args.train_fraction)


def encoder_of(
    args: ComparisonArguments, tokenizer: "PreTrainedTokenizerBase", max_length: int
) -> Encoder:
    """Make the encoder of comparisons, with at most ``max_length`` tokens each."""
    return Encoder(tokenizer, max_length, args.long_rows, chat_from(args), args.skip_invalid)


def prompts_of(
    args: PromptSourceArguments,
    lengths: PromptLengthArguments,
    tokenizer: "PreTrainedTokenizerBase",
    skip: int = 0,
    keep: Collection[str] = (),
) -> tuple[Prompts, int]:
    """Read the prompts from row ``skip`` on; also return how many were left out by length.

    ``keep`` is as for ``read_prompts``.
    """
    return read_prompts(
        args.prompts or DEMO_PROMPTS,
        tokenizer,
        lengths.max_prompt_length,
        lengths.prompt_tokens,
        args.limit,
        skip,
        chat=chat_from(args),
        skip_invalid=args.skip_invalid,
        columns=args,
        keep=keep,
    )


def training_prompts(
    args: PromptArguments, tokenizer: "PreTrainedTokenizerBase"
) -> tuple[Prompts, Prompts | None, int]:
    """Read prompts and held-out prompts (or None); also return how many were too long."""
    read = partial(
        read_prompts,
        tokenizer=tokenizer,
        max_prompt_length=args.max_prompt_length,
        prompt_tokens=args.prompt_tokens,
        chat=chat_from(args),
        skip_invalid=args.skip_invalid,
        columns=args,
    )
    prompts, left_out = read(args.prompts or DEMO_PROMPTS, limit=args.limit)
    if args.eval_prompts is None:
        return prompts, None, left_out

    held_out, _ = read(
        args.eval_prompts, limit=args.eval_limit, skip=args.eval_skip, what="--eval_prompts"
    )
    return prompts, held_out, left_out


def held_out_facts(prompts: Prompts, held_out: Prompts | None) -> dict[str, int]:
    """For run.json: how many prompts are held out, and how many of them are trained on."""
    seen = {tuple(ids) for ids in prompts}
    again = sum(tuple(ids) in seen for ids in held_out or [])
    count = len(held_out or [])
    if again:
        print(f"note: {again} of the {count} prompts of --eval_prompts are also trained on")
    return {"held_out_prompts": count, "held_out_trained_on": again}
