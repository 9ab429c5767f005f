"""Best-of-n: sample n completions of each prompt and keep the one with the highest reward.

    preftune best-of-n --reward_adapter outputs/reward/adapter --n 16 \\
        --prompts demo:prompts.heldout.jsonl --output outputs/best_of_16.jsonl

This baseline needs no training, but samples n times as much. Its KL from the sampled model is ln n
- (n - 1) / n nats for any model (less if completions tie). You should see this KL, and the mean
score and length of the picked completions beside those of all. The rows `prompt, completions, best,
scores` are comparisons, so preftune sft can train on their picks.
"""

from toolkit.cli import run

import math
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Annotated

from toolkit.arguments.lengths import LengthArguments
from toolkit.arguments.model import ModelArguments
from toolkit.arguments.prompts import HELD_OUT, LaterPromptArguments
from toolkit.arguments.sampling import SamplingArguments
from toolkit.data.files import write_jsonl
from toolkit.data.outputs import claim_output
from toolkit.flags import Range, flag
from toolkit.next_step import beside, say_next, step, wrote
from toolkit.scoring.arguments import ScorerArguments

if TYPE_CHECKING:
    from toolkit.evaluation.tables import Fact


@dataclass
class BestOfArguments(LaterPromptArguments, LengthArguments):
    n: Annotated[int, Range(low=2)] = flag(16, "Completions to sample for each prompt.")
    output: str = flag("outputs/best_of_n.jsonl", "JSONL file to write.")


def main(
    model_args: ModelArguments,
    sampling_args: SamplingArguments,
    scorer_args: ScorerArguments,
    args: BestOfArguments,
) -> "list[Fact]":
    import torch

    from toolkit.data.from_arguments import prompts_of
    from toolkit.evaluation.contenders import Sampling, parse_contenders
    from toolkit.evaluation.tables import print_facts
    from toolkit.maths.frontier import best_of_n_kl
    from toolkit.maths.statistics import mean_and_error
    from toolkit.models.adapters import check_adapter
    from toolkit.models.from_arguments import base_of, check_length, prompts_or_demo, tokenizer_of
    from toolkit.models.reading import other_rendering
    from toolkit.models.roles import Roles
    from toolkit.scoring.lengths import LengthPriced, fitted, token_counts
    from toolkit.training.from_arguments import rule_of

    # Check everything before a model is loaded.
    claim_output(args.output, args.overwrite, "output")
    name, tokenizer = model_args.model_name_or_path, tokenizer_of(model_args, args.adapter)
    scorer = scorer_args.load(name, model_args.precision)
    if args.adapter is not None:
        check_adapter(args.adapter, name, "CAUSAL_LM", "--adapter", model_args.precision)
    rule_of(sampling_args, tokenizer)  # an unknown token must fail now
    args.prompts = prompts_or_demo(model_args, args.prompts)
    prompts, left_out = prompts_of(args, sampling_args, tokenizer, args.skip)
    check_length(model_args, prompts, sampling_args.response_length)
    scorer.check(prompts, tokenizer)
    for line in other_rendering(args.adapter, prompts, "--adapter"):
        print(f"note: {line}")
    print(f"{len(prompts)} prompts ({left_out} left out by length)")
    print(f"Sampling {args.n} completions of each, {len(prompts) * args.n} in all.", flush=True)

    # Sample and score n completions of each prompt.
    sampling = Sampling(
        Roles(base_of(model_args)),
        tokenizer,
        prompts,
        partial(rule_of, sampling_args),
        model_args.precision,
        args.seed,
        args.batch_size,
    )
    specs = ["reference"] if args.adapter is None else [f"policy={args.adapter}"]
    drawn, plain = sampling.draw(parse_contenders(specs)[-1], args.n, scorer)

    # Price the tokens, or take out what length predicts in these very samples.
    assert drawn.ids is not None
    as_drawn = torch.tensor(plain, dtype=torch.float64)
    priced = LengthPriced(scorer, args.length_penalty)
    if args.regress_length:
        priced.line = fitted(as_drawn, token_counts(drawn.ids))
        print(
            f"A token is worth {priced.line.slope:+.4f} ± {priced.line.error:.4f} of the score; "
            "this is taken out of every score."
        )
    scores = priced.priced(as_drawn, drawn.ids).tolist()
    lengths = token_counts(drawn.ids).tolist()

    # Keep them with their picks.
    rows = []
    picked = []
    for i in range(len(prompts)):
        part = slice(i * args.n, (i + 1) * args.n)
        best_of_them = max(range(args.n), key=scores[part].__getitem__)
        picked.append(lengths[part][best_of_them])
        rows.append(
            {
                "prompt": prompts.shown(i, tokenizer),
                "completions": drawn.texts[part],
                "best": best_of_them,
                "scores": scores[part],
                "labeler": f"best_of_{args.n}",
            }
            | prompts.handed_on(i)
        )
    write_jsonl(args.output, rows)
    best, error = mean_and_error([max(row["scores"]) for row in rows])
    usual, of_best = (math.fsum(each) / len(each) for each in (lengths, picked))
    facts = [
        ("prompts", f"{len(rows)}", ""),
        ("mean score of all completions", f"{math.fsum(scores) / len(scores):.3f}", ""),
        (f"mean score of the best of {args.n}", f"{best:.3f} ± {error:.3f}", ""),
        ("KL from the sampled model, ln n - (n-1)/n", f"{best_of_n_kl(args.n):.3f} nats", ""),
        ("mean length of all, and of the best", f"{usual:.1f}, {of_best:.1f} tokens", ""),
    ]
    print_facts(f"Best of {args.n}", facts)
    wrote(args.output, f"{len(rows)} rows")

    # What comes next: look at it beside the model that it samples, or learn from its picks.
    told = model_args, sampling_args, args, scorer_args
    best_of = f"best_of_{args.n}"
    source = [] if args.adapter is None else [f"policy={args.adapter}"]
    look = step(
        "evaluate",
        *told,
        prompts=None if args.prompts == HELD_OUT else args.prompts,
        skip=args.skip or None,
        prompt_tokens=sampling_args.prompt_tokens,
        contenders=[*source, f"{best_of}={best_of}{':policy' if source else ''}"],
        **scorer_args.flags(),
        output_dir=beside(args.output, "evaluation"),
    )
    learn = step("sft", *told, comparisons=args.output, output_dir=beside(args.output, "sft"))
    say_next(look, learn)
    return facts


if __name__ == "__main__":
    run(main)
