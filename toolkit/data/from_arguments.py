"""What a recipe's flags name, checked and read: comparisons and prompts."""

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
    """How messages become text. Make it once in a run: what it notices, it says once."""
    return read_chat(args.chat_template, args.chat_template_kwargs)


def split_comparisons(
    args: ComparisonArguments, wants: str, seed: int
) -> tuple[Comparisons, np.ndarray, np.ndarray]:
    """The source, checked, and which of its rows to train on and to hold out, bool (rows,)."""
    comparisons = open_comparisons(args.comparisons, wants, "--comparisons", args.skip_invalid)
    eval_rows = args.eval_rows or max(1, min(200, len(comparisons) // 5))
    split = split_by_prompt(comparisons.order, eval_rows, seed, args.train_fraction)
    return comparisons, *split


def encoder_of(
    args: ComparisonArguments, tokenizer: "PreTrainedTokenizerBase", max_length: int
) -> Encoder:
    """How rows of comparisons become token ids, at most ``max_length`` of them."""
    return Encoder(tokenizer, max_length, args.long_rows, chat_from(args), args.skip_invalid)


def prompts_of(
    args: PromptSourceArguments,
    lengths: PromptLengthArguments,
    tokenizer: "PreTrainedTokenizerBase",
    skip: int = 0,
) -> tuple[Prompts, int]:
    """The prompts from row ``skip`` on, and how many were left out by length."""
    return read_prompts(
        args.prompts or DEMO_PROMPTS,
        tokenizer,
        lengths.max_prompt_length,
        lengths.prompt_tokens,
        args.limit,
        skip,
        chat=chat_from(args),
        skip_invalid=args.skip_invalid,
    )


def training_prompts(
    args: PromptArguments, tokenizer: "PreTrainedTokenizerBase"
) -> tuple[Prompts, Prompts | None, int]:
    """Prompts, held-out prompts if there are any, and how many were left out by length."""
    read = partial(
        read_prompts,
        tokenizer=tokenizer,
        max_prompt_length=args.max_prompt_length,
        prompt_tokens=args.prompt_tokens,
        chat=chat_from(args),
        skip_invalid=args.skip_invalid,
    )
    prompts, left_out = read(args.prompts or DEMO_PROMPTS, limit=args.limit)
    if args.eval_prompts is None:
        return prompts, None, left_out

    held_out, _ = read(
        args.eval_prompts, limit=args.eval_limit, skip=args.eval_skip, what="--eval_prompts"
    )
    return prompts, held_out, left_out


def held_out_facts(prompts: Prompts, held_out: Prompts | None) -> dict[str, int]:
    """For run.json: how many prompts are held out, and how many of these are trained on."""
    seen = {tuple(ids) for ids in prompts}
    again = sum(tuple(ids) in seen for ids in held_out or [])
    count = len(held_out or [])
    if again:
        print(f"note: {again} of the {count} prompts of --eval_prompts are trained on")
    return {"held_out_prompts": count, "held_out_trained_on": again}
