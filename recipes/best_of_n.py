"""Best-of-n: sample n completions of each prompt, keep the one that the reward likes most.

    accelerate launch recipes/best_of_n.py --reward_adapter outputs/reward/adapter --n 16 \\
        --prompts data/prompts.heldout.jsonl --output outputs/best_of_16.jsonl

The baseline that needs no training, only n times the sampling. Its KL from what it samples is ln n
- (n - 1) / n nats, whatever the model (less where completions tie). You should see that, and the
score of the picked completions against the mean of all. The rows, `prompt, completions, best,
scores`, are comparisons: sft.py can be trained on their picks.
"""

from toolkit.cli import run

import math
from dataclasses import dataclass, field

from toolkit.arguments.model import DEMO_PROMPTS, ModelArguments
from toolkit.arguments.rewards import ScorerArguments
from toolkit.arguments.sampling import SamplingArguments
from toolkit.data.chat import ChatArguments
from toolkit.data.files import write_jsonl
from toolkit.data.outputs import claim_output
from toolkit.data.prompts import PROMPTS_HELP, read_prompts
from toolkit.errors import check_range, check_seed
from toolkit.evaluation.contenders import Sampling, parse_contenders
from toolkit.evaluation.judges import ScoreJudge
from toolkit.evaluation.tables import Fact, print_facts
from toolkit.maths.frontier import best_of_n_kl
from toolkit.maths.statistics import mean_and_error
from toolkit.models.adapters import check_adapter
from toolkit.models.reading import other_rendering
from toolkit.models.roles import Roles


@dataclass
class BestOfArguments(ChatArguments):
    n: int = field(default=16, metadata={"help": "Completions of each prompt."})
    prompts: str | None = field(
        default=None,
        metadata={"help": f"{PROMPTS_HELP} With the embedded model by default {DEMO_PROMPTS}."},
    )
    output: str = field(default="outputs/best_of_n.jsonl", metadata={"help": "JSONL to write."})
    adapter: str | None = field(default=None, metadata={"help": "A policy adapter to sample."})
    limit: int | None = field(default=None, metadata={"help": "Use only so many prompts."})
    skip: int = field(default=0, metadata={"help": "Pass over so many rows first."})
    batch_size: int = field(default=256, metadata={"help": "Completions in one pass."})
    skip_invalid: bool = field(
        default=False, metadata={"help": "Go on without bad prompts, and say how many there are."}
    )
    overwrite: bool = field(default=False, metadata={"help": "Replace what is at --output."})
    seed: int = field(default=0, metadata={"help": "Of the sampling."})

    def __post_init__(self) -> None:
        super().__post_init__()
        check_seed(self.seed)
        check_range("n", self.n, low=2)
        check_range("limit", self.limit, low=1)
        check_range("skip", self.skip, low=0)
        check_range("batch_size", self.batch_size, low=1)


def main(
    model_args: ModelArguments,
    sampling_args: SamplingArguments,
    scorer_args: ScorerArguments,
    args: BestOfArguments,
) -> list[Fact]:
    # Checked before a model is loaded.
    claim_output(args.output, args.overwrite, "output")
    name, tokenizer = model_args.model_name_or_path, model_args.tokenizer(args.adapter)
    function = scorer_args.load(name, model_args.precision)
    folder = scorer_args.reward_adapter or ""
    judge = ScoreJudge("reward", "reward_adapter", function, folder, scorer_args.reward_end_token)
    if args.adapter is not None:
        check_adapter(args.adapter, name, "CAUSAL_LM", "--adapter", model_args.precision)
    sampling_args.rule(tokenizer)
    args.prompts = model_args.prompts(args.prompts)
    prompts, left_out = read_prompts(
        args.prompts, tokenizer, sampling_args.max_prompt_length, sampling_args.prompt_tokens,
        args.limit, args.skip, chat=args.chat, skip_invalid=args.skip_invalid,
    )  # fmt: skip
    model_args.check_context(prompts, sampling_args.response_length)
    judge.check(prompts, tokenizer)
    for line in other_rendering(args.adapter, prompts, "--adapter"):
        print(f"note: {line}")
    print(f"{len(prompts)} prompts ({left_out} left out by length)")

    # n completions of each, all scored.
    sampling = Sampling(
        Roles(model_args.base()), tokenizer, prompts, sampling_args.rule, model_args.precision,
        args.seed, args.batch_size,
    )  # fmt: skip
    specs = ["reference"] if args.adapter is None else [f"policy={args.adapter}"]
    drawn, scores = sampling.draw(
        parse_contenders(specs)[-1], args.n, lambda i, o: judge.score(sampling, o, i)
    )

    # Kept with their picks.
    rows = []
    for i in range(len(prompts)):
        part = slice(i * args.n, (i + 1) * args.n)
        rows.append({
            "prompt": prompts.shown(i, tokenizer), "completions": drawn.texts[part],
            "best": max(range(args.n), key=scores[part].__getitem__), "scores": scores[part],
            "labeler": f"best_of_{args.n}",
        } | prompts.handed_on(i))  # fmt: skip
    write_jsonl(args.output, rows)
    best, error = mean_and_error([max(row["scores"]) for row in rows])
    facts = [
        ("prompts", f"{len(rows)}", ""),
        ("mean score of all", f"{math.fsum(scores) / len(scores):.3f}", ""),
        (f"mean score of the best of {args.n}", f"{best:.3f} ± {error:.3f}", ""),
        ("KL from what is sampled, ln n - (n-1)/n", f"{best_of_n_kl(args.n):.3f} nats", ""),
    ]
    print_facts(f"Best of {args.n}", facts)
    print(f"{args.output}: {len(rows)} rows")
    return facts


if __name__ == "__main__":
    run(main)
