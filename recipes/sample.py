"""Sample K completions for each prompt.

    preftune sample --prompts demo:prompts.jsonl --output outputs/samples.jsonl

The input is JSONL with `prompt` (or `text`, with --prompt_tokens N), and the output has rows of
`prompt, completions`. With --truncate_token, each completion is cut after that token, and
completions without it are sampled again: as in the paper, people see only completions that end. You
should see a progress bar, then how many rows were written and left out.
"""

from toolkit.cli import changed, run

import math
from dataclasses import dataclass
from typing import Annotated

from toolkit.arguments.model import ModelArguments
from toolkit.arguments.prompts import SampledPromptArguments
from toolkit.arguments.sampling import SamplingArguments
from toolkit.data.files import write_jsonl
from toolkit.data.outputs import claim_output
from toolkit.errors import InputError
from toolkit.flags import Count, Range, flag, other_default
from toolkit.next_step import (
    DEMO_LEXICON,
    beside,
    is_demo,
    note_settings,
    say_next,
    settings_file,
    step,
    wrote,
)


@dataclass
class SampleArguments(SampledPromptArguments):
    output: str = flag("outputs/samples.jsonl", "JSONL file to write.")
    completions: Annotated[int, Range(low=2)] = flag(4, "Number K of completions in a row.")
    rows_per_prompt: Count = flag(1, "Rows of K completions for each prompt.")
    batch_size: Count = other_default(128, SampledPromptArguments, "batch_size")
    tries: Count = flag(8, "Rounds of sampling completions that do not end.")


def main(
    model_args: ModelArguments, sampling: SamplingArguments, args: SampleArguments
) -> dict[str, int]:
    import torch
    from tqdm.auto import tqdm

    from toolkit.data.from_arguments import prompts_of
    from toolkit.data.tokens import decode_pair
    from toolkit.maths.sequences import is_any, real_tokens
    from toolkit.models.adapters import check_adapter
    from toolkit.models.from_arguments import base_of, check_length, prompts_or_demo, tokenizer_of
    from toolkit.models.reading import other_rendering
    from toolkit.models.roles import Roles
    from toolkit.training.from_arguments import rule_of

    # Check all input before the model is loaded.
    claim_output(args.output, args.overwrite, "output")
    name = model_args.model_name_or_path
    tokenizer = tokenizer_of(model_args, args.adapter)
    rule = rule_of(sampling, tokenizer)
    args.prompts = prompts_or_demo(model_args, args.prompts)
    prompts, left_out = prompts_of(args, sampling, tokenizer)
    check_length(model_args, prompts, rule.response_length)
    prompts = prompts.pick([i for i in range(len(prompts)) for _ in range(args.rows_per_prompt)])
    if args.adapter is not None:
        check_adapter(args.adapter, name, "CAUSAL_LM", "--adapter", model_args.precision)
    for line in other_rendering(args.adapter, prompts, "--adapter"):
        print(f"note: {line}")

    roles = Roles(base_of(model_args), policy_adapter=args.adapter)
    roles.keep_only(tokenizer)
    generator = torch.Generator().manual_seed(args.seed)
    count = len(prompts) * args.completions
    which = "are empty" if rule.truncate_id is None else f"lack {sampling.truncate_token!r}"
    print(
        f"Sampling {count} completions: {args.completions} for each of {len(prompts)} prompts, in "
        f"{math.ceil(count / args.batch_size)} batches. Those that {which} are drawn again, in "
        f"{args.tries} rounds at most."
    )

    # Sample K completions of each prompt, then replace those that do not end.
    texts: list[list[str]] = [[] for _ in prompts]
    drawn = ended = 0
    for _ in range(args.tries):
        wanted = [i for i, kept in enumerate(texts) for _ in range(args.completions - len(kept))]
        if not wanted:
            break
        for start in tqdm(range(0, len(wanted), args.batch_size), desc="Sampling", unit="batch"):
            chosen = wanted[start : start + args.batch_size]
            batch = [prompts[i] for i in chosen]
            _, sampled = rule.sample(roles.step(), batch, generator, roles.device)
            if not bool(sampled.logprobs.isfinite().all()):
                raise InputError(
                    "model_name_or_path: the model's log-probs are NaN or infinite. Its weights "
                    "are broken or the precision is too low (try --precision fp32)"
                )
            visible, valid = rule.visible(sampled)
            stopped = is_any(sampled.completion_ids, rule.stop_ids) & sampled.mask
            drawn, ended = drawn + len(chosen), ended + int(stopped.any(dim=1).sum())
            written = real_tokens(sampled.completion_ids, visible)
            for i, ids, ok in zip(chosen, written, valid.tolist(), strict=True):
                text = decode_pair(tokenizer, prompts[i], ids)[1]
                if ok and text.strip():
                    texts[i].append(text)

    rows = [
        {
            "prompt": prompts.shown(i, tokenizer),
            "completions": kept,
        }
        | prompts.handed_on(i)
        for i, kept in enumerate(texts)
        if len(kept) == args.completions
    ]
    without = len(prompts) - len(rows)
    lacking = f"{without} without {args.completions} completions that are not empty"
    lacking += " and end" if rule.truncate_id is not None else ""
    if not rows:
        raise InputError(
            f"{args.prompts}: no row can be written: {lacking} after {args.tries} tries (use a "
            "longer --response_length, or --stop_token none)"
        )
    settings_file(args.output).unlink(missing_ok=True)  # of the samples that are replaced
    write_jsonl(args.output, rows)
    note_settings(args.output, changed(model_args, sampling, args))  # label.py hands them on
    wrote(
        args.output,
        f"{len(rows)} rows of {args.completions} completions; left out: {left_out} prompts by "
        f"length, {lacking}",
    )
    may_end = rule.truncate_id is None and bool(rule.stop_ids)
    if may_end and ended < drawn:
        kind = "note" if ended else "warning"
        print(
            f"{kind}: {ended} of {drawn} completions end by themselves. The others break off after "
            f"{rule.response_length} tokens. With a longer --response_length more of them end; "
            "with --truncate_token . each ends behind a full stop. Pass the same to all commands."
        )

    # What comes next: people pick, or a script.
    picks = beside(args.output, "comparisons.jsonl")
    people = step(
        "label",
        serve=True,
        samples=args.output,
        store=beside(args.output, "labels.sqlite"),
        output=picks,
        invite="me",
    )
    script = step("label", samples=args.output, lexicon=DEMO_LEXICON, output=picks)
    say_next(people, script if is_demo(model_args) else None)
    return {"drawn": drawn if may_end else 0, "ended": ended}


if __name__ == "__main__":
    run(main)
