"""Sample K completions for each prompt.

    preftune sample --prompts demo:prompts.jsonl --output outputs/samples.jsonl

The input is JSONL with `prompt` (or `text`, with --prompt_tokens N), and the output has rows of
`prompt, completions`. With --truncate_token, each completion is cut after that token, and
completions without it are sampled again: as in the paper, people see only completions that end.
With --models, several policies write the completions of each row together, which then says by
`models` who wrote what; preftune ratings reads it. You should see a progress bar, then how many
rows were written and left out.
"""

from toolkit.cli import changed, run

import math
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from toolkit.arguments.model import ModelArguments
from toolkit.arguments.prompts import SampledPromptArguments
from toolkit.arguments.sampling import SamplingArguments
from toolkit.data.files import write_jsonl
from toolkit.data.outputs import claim_output
from toolkit.errors import InputError
from toolkit.flags import Count, Named, Range, flag, other_default
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

BASE = "base"  # in --models: the untuned model


@dataclass
class SampleArguments(SampledPromptArguments):
    output: str = flag("outputs/samples.jsonl", "JSONL file to write.")
    completions: Annotated[int, Range(low=2)] = flag(4, "Number K of completions in a row.")
    models: Named = flag(
        [],
        "Policies that write each row's completions together, in equal shares, as NAME=FOLDER of "
        "an adapter on the base, or NAME=base for the untuned model. In place of --adapter.",
    )
    rows_per_prompt: Count = flag(1, "Rows of K completions for each prompt.")
    batch_size: Count = other_default(128, SampledPromptArguments, "batch_size")
    tries: Count = flag(8, "Rounds of sampling completions that do not end.")

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.models:
            return
        if self.adapter is not None:
            raise InputError("models: name --adapter among them (and leave it out)", "models")
        if self.completions % len(self.models):
            raise InputError(
                f"completions: {self.completions} cannot be shared out equally among "
                f"{len(self.models)} models (say --completions {2 * len(self.models)})",
                "completions",
            )
        self.writers()

    def writers(self) -> dict[str, str | None]:
        """The adapter of each model by its name, None for the untuned one.

        Raises:
            InputError: one is not NAME=FOLDER or NAME=base, or two have the same name.
        """
        found: dict[str, str | None] = {}
        for text in self.models:
            name, _, folder = text.partition("=")
            if not name or not folder:
                raise InputError(f"models: {text!r} is not NAME=FOLDER or NAME=base", "models")
            if name in found:
                raise InputError(f"models: two are called {name!r} (name them apart)", "models")
            found[name] = None if folder == BASE and not Path(folder).exists() else folder
        return found


def main(
    model_args: ModelArguments, sampling: SamplingArguments, args: SampleArguments
) -> dict[str, int]:
    import torch
    from tqdm.auto import tqdm

    from toolkit.data.from_arguments import prompts_of
    from toolkit.data.tokens import decode_pair
    from toolkit.maths.sequences import is_any, real_tokens
    from toolkit.models.actors import POLICY, REFERENCE
    from toolkit.models.adapters import check_adapter
    from toolkit.models.from_arguments import base_of, check_length, prompts_or_demo, tokenizer_of
    from toolkit.models.reading import other_rendering
    from toolkit.models.roles import Roles
    from toolkit.training.from_arguments import rule_of

    # Check all input before the model is loaded.
    claim_output(args.output, args.overwrite, "output")
    name = model_args.model_name_or_path
    writers = args.writers()
    tokenizer = tokenizer_of(model_args, args.adapter or tokenizer_among(writers))
    rule = rule_of(sampling, tokenizer)
    args.prompts = prompts_or_demo(model_args, args.prompts)
    prompts, left_out = prompts_of(args, sampling, tokenizer)
    check_length(model_args, prompts, rule.response_length)
    prompts = prompts.pick([i for i in range(len(prompts)) for _ in range(args.rows_per_prompt)])
    adapters = {"--adapter": args.adapter}
    adapters |= {f"--models {writer}": folder for writer, folder in writers.items()}
    for what, folder in adapters.items():
        if folder is not None:
            check_adapter(folder, name, "CAUSAL_LM", what, model_args.precision)
        for line in other_rendering(folder, prompts, what):
            print(f"note: {line}")

    roles = Roles(base_of(model_args), policy_adapter=args.adapter)
    roles.keep_only(tokenizer)
    wrote_by: dict[str, str] = {}  # the role of each model; without --models the policy alone
    for number, (writer, folder) in enumerate(writers.items()):
        wrote_by[writer] = REFERENCE if folder is None else f"writer{number}"
        if folder is not None:
            roles.add_policy(wrote_by[writer], folder)
    wrote_by = wrote_by or {"": POLICY}
    each = args.completions // len(wrote_by)
    generator = torch.Generator().manual_seed(args.seed)
    count = len(prompts) * args.completions
    which = "are empty" if rule.truncate_id is None else f"lack {sampling.truncate_token!r}"
    print(
        f"Sampling {count} completions: {args.completions} for each of {len(prompts)} prompts, in "
        f"{math.ceil(count / args.batch_size)} batches. Those that {which} are drawn again, in "
        f"{args.tries} rounds at most."
    )

    # Sample each model's completions of each prompt, then replace those that do not end.
    by_model: dict[str, list[list[str]]] = {}
    drawn = ended = 0
    for writer, _ in [(writer, i) for writer in wrote_by for i in range(args.tries)]:
        texts = by_model.setdefault(writer, [[] for _ in prompts])
        wanted = [i for i, kept in enumerate(texts) for _ in range(each - len(kept))]
        if not wanted:
            continue
        what = f"Sampling {writer}".strip()
        for start in tqdm(range(0, len(wanted), args.batch_size), desc=what, unit="batch"):
            chosen = wanted[start : start + args.batch_size]
            batch = [prompts[i] for i in chosen]
            _, sampled = rule.sample(roles.step(wrote_by[writer]), batch, generator, roles.device)
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

    # Of several models, none always stands first.
    rng = random.Random(args.seed)
    rows = []
    for i in range(len(prompts)):
        said = [(text, writer) for writer, texts in by_model.items() for text in texts[i]]
        if len(said) < args.completions:
            continue
        if writers:
            rng.shuffle(said)
        row = {"prompt": prompts.shown(i, tokenizer), "completions": [text for text, _ in said]}
        row |= prompts.handed_on(i)
        rows.append(row | ({"models": [writer for _, writer in said]} if writers else {}))
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


def tokenizer_among(writers: dict[str, str | None]) -> str | None:
    """The folder of an adapter among the models that has a tokenizer of its own; None without one.

    Raises:
        InputError: two have other tokens.
    """
    from toolkit.evaluation.contenders import Contender, tokenizer_folder

    trained = [Contender(name, "adapter", folder) for name, folder in writers.items() if folder]
    return tokenizer_folder(trained) if trained else None


if __name__ == "__main__":
    run(main)
