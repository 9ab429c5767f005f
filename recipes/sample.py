"""Sample K completions for each prompt.

    accelerate launch recipes/sample.py --prompts data/prompts.jsonl --output outputs/samples.jsonl

Reads JSONL rows of `prompt` (or of `text`, with --prompt_tokens N), writes rows of
`prompt, completions`. With --truncate_token, each completion is cut behind that token, and those
without one are drawn again: people are asked only about completions that end (spec of the paper).
You should see a progress bar, then how many rows were written and left out.
"""

from toolkit.cli import run

from dataclasses import dataclass, field

import torch
from tqdm.auto import tqdm

from toolkit.arguments.model import DEMO_PROMPTS, ModelArguments
from toolkit.arguments.sampling import SamplingArguments
from toolkit.data.chat import ChatArguments
from toolkit.data.files import write_jsonl
from toolkit.data.outputs import claim_output
from toolkit.data.prompts import PROMPTS_HELP, read_prompts
from toolkit.data.text import decode_pair
from toolkit.errors import InputError, check_range, check_seed
from toolkit.models.adapters import check_adapter
from toolkit.models.reading import other_rendering
from toolkit.models.roles import Roles


@dataclass
class SampleArguments(ChatArguments):
    prompts: str | None = field(
        default=None,
        metadata={"help": f"{PROMPTS_HELP} With the embedded model by default {DEMO_PROMPTS}."},
    )
    output: str = field(default="outputs/samples.jsonl", metadata={"help": "JSONL to write."})
    skip_invalid: bool = field(
        default=False, metadata={"help": "Go on without bad prompts, and say how many there are."}
    )
    overwrite: bool = field(default=False, metadata={"help": "Replace what is at --output."})
    adapter: str | None = field(default=None, metadata={"help": "A policy adapter's folder."})
    completions: int = field(default=4, metadata={"help": "K, completions for each prompt."})
    rows_per_prompt: int = field(default=1, metadata={"help": "Rows of K for each prompt."})
    limit: int | None = field(default=None, metadata={"help": "Use only so many prompts."})
    batch_size: int = field(default=128, metadata={"help": "Completions in one pass."})
    tries: int = field(default=8, metadata={"help": "Rounds of drawing those that do not end."})
    seed: int = field(default=0, metadata={"help": "Of the sampling."})

    def __post_init__(self) -> None:
        super().__post_init__()
        check_seed(self.seed)
        check_range("completions", self.completions, low=2)
        for name in ("batch_size", "tries", "limit", "rows_per_prompt"):
            check_range(name, getattr(self, name), low=1)


def main(model_args: ModelArguments, sampling: SamplingArguments, args: SampleArguments) -> None:
    # Everything that can be wrong with the input is found before the model is loaded.
    claim_output(args.output, args.overwrite, "output")
    name = model_args.model_name_or_path
    tokenizer = model_args.tokenizer(args.adapter)
    rule = sampling.rule(tokenizer)
    args.prompts = model_args.prompts(args.prompts)
    prompts, left_out = read_prompts(
        args.prompts,
        tokenizer,
        sampling.max_prompt_length,
        sampling.prompt_tokens,
        args.limit,
        chat=args.chat,
        skip_invalid=args.skip_invalid,
    )
    model_args.check_context(prompts, rule.response_length)
    prompts = prompts.pick([i for i in range(len(prompts)) for _ in range(args.rows_per_prompt)])
    if args.adapter is not None:
        check_adapter(args.adapter, name, "CAUSAL_LM", "--adapter", model_args.precision)
    for line in other_rendering(args.adapter, prompts, "--adapter"):
        print(f"note: {line}")

    roles = Roles(model_args.base(), policy_adapter=args.adapter)
    roles.keep_only(tokenizer)
    generator = torch.Generator().manual_seed(args.seed)

    # Draw K completions of each prompt; then draw again in place of those that do not end.
    texts: list[list[str]] = [[] for _ in prompts]
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
                    "the model's log-probs are not finite: what it writes means nothing (its "
                    "weights are broken, or the precision is too low: try --precision fp32)"
                )
            visible, valid = rule.visible(sampled)
            for i, row, keep, ok in zip(
                chosen, sampled.completion_ids, visible, valid, strict=True
            ):
                text = decode_pair(tokenizer, prompts[i], row[keep].tolist())[1]
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
    lacking = f"{without} without {args.completions} that are not empty"
    lacking += " and end" if rule.truncate_id is not None else ""
    if not rows:
        raise InputError(
            f"{args.prompts}: no row to write: {lacking} (the first of {args.tries} "
            "--tries may do with a longer --response_length, or --stop_token none)"
        )
    write_jsonl(args.output, rows)
    print(
        f"{args.output}: {len(rows)} rows of {args.completions} completions; left out: "
        f"{left_out} prompts by length, {lacking}"
    )


if __name__ == "__main__":
    run(main)
