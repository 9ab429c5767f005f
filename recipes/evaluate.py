"""Compare a policy adapter with the untuned model on held-out prompts, under a scorer.

    accelerate launch recipes/evaluate.py --adapter outputs/ppo/adapters/policy \
        --prompts data/prompts.heldout.jsonl --lexicon data/lexicon.txt

Both sides continue the same prompts. You should see a table with the win rate over decided pairs
and its Wilson interval, the ties, the scores, the KL in nats with its standard error, and the first
samples as they came, not picked. evaluation.json and samples.jsonl hold the same.
"""

from dataclasses import dataclass, field
from pathlib import Path

from toolkit.arguments import ModelArguments, SamplingArguments, ScorerArguments
from toolkit.cli import run
from toolkit.data.files import claim_output, write_json, write_jsonl
from toolkit.data.prompts import read_prompts
from toolkit.errors import check_range, check_seed
from toolkit.evaluation.compare import compare
from toolkit.evaluation.report import print_samples, print_summary
from toolkit.models.adapters import check_adapter
from toolkit.models.roles import Roles


@dataclass
class EvaluateArguments:
    adapter: str = field(
        default="outputs/ppo/adapters/policy", metadata={"help": "The policy adapter's folder."}
    )
    prompts: str = field(
        default="data/prompts.heldout.jsonl", metadata={"help": "JSONL with `prompt`."}
    )
    limit: int | None = field(default=512, metadata={"help": "Use only so many prompts."})
    skip: int = field(default=0, metadata={"help": "Pass over so many rows first."})
    output_dir: str = field(default="outputs/evaluation", metadata={"help": "Folder to write."})
    chat_template: str | None = field(
        default=None,
        metadata={"help": "For prompts of messages: plain, a Jinja file, or the tokenizer's own."},
    )
    overwrite: bool = field(default=False, metadata={"help": "Replace what is at --output_dir."})
    show: int = field(default=12, metadata={"help": "Samples in the table."})
    seed: int = field(default=0, metadata={"help": "Of both sides' sampling."})

    def __post_init__(self) -> None:
        check_seed(self.seed)
        check_range("limit", self.limit, low=1)
        check_range("skip", self.skip, low=0)
        check_range("show", self.show, low=0)


def main(
    model_args: ModelArguments,
    sampling: SamplingArguments,
    scorer_args: ScorerArguments,
    args: EvaluateArguments,
) -> dict[str, float]:
    claim_output(args.output_dir, args.overwrite, "output_dir")
    name = model_args.model_name_or_path
    tokenizer = model_args.tokenizer()
    scorer = scorer_args.load(name, model_args.precision)
    check_adapter(args.adapter, name, "CAUSAL_LM", "--adapter", model_args.precision)
    prompts, left_out = read_prompts(
        args.prompts,
        tokenizer,
        sampling.max_prompt_length,
        sampling.prompt_tokens,
        args.limit,
        args.skip,
        chat_template=args.chat_template,
    )
    model_args.check_context(prompts, sampling.response_length)
    print(f"{len(prompts)} prompts ({left_out} left out by length)")

    roles = Roles(
        model_args.base(), policy_adapter=args.adapter, reward_adapter=scorer_args.reward_adapter
    )
    summary, rows = compare(roles, prompts, sampling.rule(tokenizer), tokenizer, scorer, args.seed)

    write_json(Path(args.output_dir) / "evaluation.json", summary)
    write_jsonl(Path(args.output_dir) / "samples.jsonl", rows)
    print_summary(summary)
    print_samples(rows[: args.show])
    return summary


if __name__ == "__main__":
    run(main)
