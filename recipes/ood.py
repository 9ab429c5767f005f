"""Find prompts that are unlike those you know, such as those a reward model was trained on.

    preftune ood --like demo:prompts.jsonl --prompts yours.jsonl

A base model reads all prompts. Mean and covariance of one layer's activations are fitted to --like,
and each of --prompts is scored by its Mahalanobis distance, or by that less the distance without
correlations (arXiv 2204.05862, section 4.6). The activations are averaged over a prompt's tokens.
A fifth of --like is not fitted to: its distances are what the others are compared with. With
--outliers, a file of prompts that are known to be unlike, you see for every layer and both scores
how well they tell the two apart (AUROC), and the best one is used; a classifier from ten of them
is tried too. You should see how many prompts are unlike, and OUTPUT with a score for each, the
most unlike first.
"""

from toolkit.cli import changed, run

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Literal

from toolkit.arguments.chat import ChatArguments
from toolkit.arguments.common import InvalidRowsArguments, OverwriteArguments, SeedArguments
from toolkit.arguments.layouts import ColumnArguments
from toolkit.arguments.model import ModelArguments
from toolkit.arguments.prompts import PromptLengthArguments
from toolkit.data.files import write_jsonl
from toolkit.data.outputs import claim_output
from toolkit.errors import InputError
from toolkit.flags import Count, CountOrZero, Range, flag
from toolkit.next_step import note_settings, wrote
from toolkit.terminal import counted, print_table, say

if TYPE_CHECKING:
    from torch import Generator, Tensor

HELD_OUT_SHARE = 0.2
RIDGE = 1e-6  # of the mean variance; it keeps the covariance from being singular by rounding
LAST = -1


@dataclass
class OODArguments(
    PromptLengthArguments,
    ChatArguments,
    InvalidRowsArguments,
    ColumnArguments,
    SeedArguments,
    OverwriteArguments,
):
    like: str | None = flag(
        None, "Prompts that are as they should be: more of them than the model is wide."
    )
    prompts: str | None = flag(None, "Prompts to look at.")
    outliers: str | None = flag(
        None, "Prompts that are known to be unlike --like, to choose layer and score by."
    )
    like_limit: Count | None = flag(None, "Use at most this many of --like.")
    like_skip: CountOrZero = flag(0, "Skip this many rows of --like first.")
    limit: Count | None = flag(None, "Use at most this many of --prompts.")
    skip: CountOrZero = flag(0, "Skip this many rows of --prompts first.")
    outliers_limit: Count | None = flag(None, "Use at most this many of --outliers.")
    layer: int | None = flag(
        None,
        "Layer to read: 0 for the embeddings, 1 for the first block's output, -1 for the last "
        "one's. By default the last, or with --outliers the best.",
    )
    score: Literal["mahalanobis", "relative"] | None = flag(
        None,
        "mahalanobis, or relative (less the distance without correlations). By default the first, "
        "or with --outliers the best.",
    )
    read: Literal["mean", "last"] = flag(
        "mean", "Average over a prompt's tokens, or read its last token."
    )
    few: Count = flag(10, "Outliers that the classifier learns from; the others test it.")
    quantile: Annotated[float, Range(low=0.5, high=0.999)] = flag(
        0.95, "A prompt is unlike if it is further than this share of --like that was held out."
    )
    batch_size: Count = flag(64, "Prompts in one pass.")
    output: str = flag("outputs/ood.jsonl", "JSONL file for the prompts with their scores.")


def main(model_args: ModelArguments, args: OODArguments) -> None:
    import torch

    from toolkit.data.from_arguments import chat_from
    from toolkit.data.prompts import Prompts, read_prompts
    from toolkit.maths.ood import auroc, fit_inliers
    from toolkit.models.activations import prompt_activations
    from toolkit.models.base_config import check_base
    from toolkit.models.from_arguments import base_of, config_of, tokenizer_of

    # Read all prompts before the model is loaded.
    if args.like is None or (args.prompts is None and args.outliers is None):
        raise InputError(
            "like: name prompts that are as they should be (--like), and prompts to look at "
            "(--prompts) or known outliers (--outliers)",
            "like",
        )
    claim_output(args.output, args.overwrite, "output")
    check_base(model_args.model_name_or_path)
    tokenizer = tokenizer_of(model_args)
    chat = chat_from(args)

    def prompts_in(source: str, what: str, limit: int | None, skip: int = 0) -> Prompts:
        found, left_out = read_prompts(
            source,
            tokenizer,
            args.max_prompt_length,
            args.prompt_tokens,
            limit,
            skip,
            what,
            chat=chat,
            skip_invalid=args.skip_invalid,
            columns=args,
        )
        once = found.once()
        twice = len(found) - len(once)
        print(f"{what}: {len(once)} prompts (left out: {left_out} by length, {twice} duplicates)")
        return once

    like = prompts_in(args.like, "--like", args.like_limit, args.like_skip)
    asked, again = None, 0
    if args.prompts is not None:
        asked = prompts_in(args.prompts, "--prompts", args.limit, args.skip)

        # The distance of a prompt that was fitted to is too small, so none of these is.
        theirs = {tuple(ids) for ids in asked}
        others = [i for i, ids in enumerate(like) if tuple(ids) not in theirs]
        again = len(like) - len(others)
        if again:
            like = like.pick(others)
            say(
                f"note: {counted(again, 'prompt')} of --like will not be fitted to, because "
                f"--prompts has {'it' if again == 1 else 'them'} too: the distance of what was "
                "fitted to is too small."
            )
    known = None
    if args.outliers is not None:
        known = prompts_in(args.outliers, "--outliers", args.outliers_limit)
        ours = {tuple(ids) for ids in like}
        both = sum(tuple(ids) in ours for ids in known)
        if both:
            raise InputError(
                f"outliers: {both} of the {len(known)} prompts of {args.outliers} are also in "
                f"{args.like} (remove them from one of the two)",
                "outliers",
            )

    # Hold out some of --like: distances of what was fitted to are too small, whatever it is.
    config = config_of(model_args).get_text_config()
    width, depth = config.hidden_size, config.num_hidden_layers
    generator = torch.Generator().manual_seed(args.seed)
    order = torch.randperm(len(like), generator=generator).tolist()
    apart = max(1, round(HELD_OUT_SHARE * len(like)))
    held_out, fitted = sorted(order[:apart]), sorted(order[apart:])
    if len(fitted) <= width:
        needed = int(width / (1 - HELD_OUT_SHARE)) + 2
        lacking, cure = "", "bring more, or read them with a smaller model"
        if again:
            lacking = f" besides the {again} that are in --prompts, too"
            cure = "bring more, or ask about fewer at a time by --skip and --limit"
        raise InputError(
            f"like: {args.like} has {len(like)} prompts{lacking}, but the model is {width} wide, "
            f"and a covariance takes more prompts than that: {needed:,} or more, since a fifth is "
            f"held out ({cure})",
            "like",
        )
    if known is not None and len(fitted) < args.few <= len(known) // 2:
        raise InputError(
            f"few: a classifier from {args.few:,} outliers takes as many prompts of --like, but "
            f"there are {len(fitted)} without those held out (give a smaller --few)",
            "few",
        )
    if args.layer is not None and not -depth - 1 <= args.layer <= depth:
        raise InputError(
            f"layer: {args.layer}, but the model has layers 0 (embeddings) to {depth}, or -1 for "
            "the last",
            "layer",
        )
    wanted = args.layer if args.layer is not None else LAST
    layers = [wanted % (depth + 1)]
    if known is not None and args.layer is None:
        layers = list(range(depth + 1))

    # Read and fit.
    model = base_of(model_args).eval()

    def states(prompts: Prompts, what: str) -> "Tensor":
        return prompt_activations(model, prompts, layers, args.read, args.batch_size, what)

    inside = states(like, "--like")
    outside = None if known is None else states(known, "--outliers")
    try:
        fits = [fit_inliers(each[fitted], RIDGE) for each in inside]
    except ValueError as error:
        raise InputError(f"like: {args.like}: {error} (bring other prompts)", "like") from None

    # Choose layer and score by the outliers that are known.
    place, score = 0, args.score or "mahalanobis"
    if outside is not None and known is not None:
        found = {}
        for i, fit in enumerate(fits):
            for name in ("mahalanobis", "relative"):
                of = getattr(fit, name)
                found[i, name] = auroc(of(outside[i]), of(inside[i][held_out]))
        allowed = [key for key in found if args.score in (None, key[1])]
        place, score = max(allowed, key=found.__getitem__)
        print_table(
            f"AUROC of {len(known)} outliers over {apart} held-out prompts, read: {args.read}",
            ["layer", "mahalanobis", "relative"],
            [
                [str(layer), f"{found[i, 'mahalanobis']:.3f}", f"{found[i, 'relative']:.3f}"]
                for i, layer in enumerate(layers)
            ],
            ".5 tells nothing, 1 tells all apart.",
            right=(0, 1, 2),
        )
        say(
            f"The best is {score} at layer {layers[place]}, with an AUROC of "
            f"{found[place, score]:.3f}. "
            + (
                f"It is the best of {len(allowed)} on these very outliers, so for others expect a "
                "little less."
                if len(allowed) > 1
                else ""
            )
        )
        say(few_shot(args.few, inside[place], outside[place], fitted, held_out, generator))

    # Score what was asked about.
    if asked is not None:
        of = getattr(fits[place], score)
        ordered = of(inside[place][held_out]).sort().values
        limit = torch.quantile(ordered, args.quantile).item()
        scores = of(states(asked, "--prompts")[place])
        further = torch.searchsorted(ordered, scores, right=True) / len(ordered)
        rows = [
            {
                "prompt": asked.shown(i, tokenizer),
                "ood_score": scores[i].item(),
                "ood_further_than": further[i].item(),
                "ood": scores[i].item() > limit,
            }
            | asked.handed_on(i)
            for i in scores.argsort(descending=True, stable=True).tolist()
        ]
        unlike = sum(row["ood"] for row in rows)
        write_jsonl(args.output, rows)
        note_settings(args.output, changed(model_args, args))
        wrote(args.output, f"{len(rows)} prompts with scores, the most unlike first")
        expected = (1 - args.quantile) * len(rows)
        say(
            f"{unlike} of {len(rows)} prompts are further from --like than {args.quantile:.0%} of "
            f"its own held-out prompts ({score}, layer {layers[place]}). By chance it would be "
            f"about {expected:.0f}."
        )


def few_shot(
    few: int,
    inside: "Tensor",
    outside: "Tensor",
    fitted: list[int],
    held_out: list[int],
    generator: "Generator",
) -> str:
    """Try a classifier on a few of the outliers, and say how it does on the others.

    Args:
        few: outliers to learn from.
        inside, outside: activations of --like and of --outliers, one row a prompt.
        fitted, held_out: which of --like are learned from, and which test it.
        generator: draws the few.
    """
    import torch

    from toolkit.maths.ood import auroc, fit_classifier

    if len(outside) < 2 * few:
        return (
            f"No classifier was tried: {len(outside)} outliers are too few to learn from "
            f"{few} and to test on as many."
        )
    order = torch.randperm(len(outside), generator=generator)
    taught, others = order[:few], order[few:]
    fit = fit_classifier(inside[fitted], outside[taught])
    value = auroc(fit.scores(outside[others]), fit.scores(inside[held_out]))
    return (
        f"A linear classifier that knows {few} of the outliers has an AUROC of {value:.3f} on "
        f"the other {len(others)} at that layer."
    )


if __name__ == "__main__":
    run(main)
