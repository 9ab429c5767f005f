"""Reading and checking the comparisons and prompts that a recipe's flags name."""

from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from toolkit.arguments.chat import ChatArguments
from toolkit.arguments.comparisons import ComparisonArguments
from toolkit.arguments.prompts import (
    DEMO_PROMPTS,
    PromptArguments,
    PromptLengthArguments,
    PromptSourceArguments,
)
from toolkit.data.chat import Chat, read_chat
from toolkit.data.comparisons import Comparisons, open_comparisons, split_by_prompt
from toolkit.data.encoding import Encoder
from toolkit.data.prompts import Prompts, read_prompts

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def chat_from(args: ChatArguments) -> Chat:
    """Make the run's ``Chat``. Make it once: each warning is then printed once."""
    return read_chat(args.chat_template, args.chat_template_kwargs)


def split_comparisons(
    args: ComparisonArguments, wants: str, seed: int
) -> tuple[Comparisons, np.ndarray, np.ndarray]:
    """Check the source; choose rows to train on and to hold out, each bool (rows,)."""
    comparisons = open_comparisons(
        args.comparisons, wants, "--comparisons", args.skip_invalid, args
    )
    return comparisons, *_split(args, comparisons, seed)


def split_demonstrations(
    source: str, args: ComparisonArguments, seed: int
) -> tuple[Comparisons, np.ndarray, np.ndarray]:
    """Check prompts with one answer each, and split them as ``split_comparisons``.

    Each row has one completion, which is its best.
    """
    found = open_comparisons(source, "demonstration", "--demonstrations", args.skip_invalid, args)
    return found, *_split(args, found, seed)


def _split(
    args: ComparisonArguments, comparisons: Comparisons, seed: int
) -> tuple[np.ndarray, np.ndarray]:
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
) -> tuple[Prompts, int]:
    """Read the prompts from row ``skip`` on; also return how many were left out by length."""
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
