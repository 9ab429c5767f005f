"""Keep a registry of experts, find the one for a new task, or merge the best few of them.

    preftune experts add --name hotel --adapter outputs/hotel/adapter --prompts hotel.jsonl
    preftune experts find --prompts task.jsonl
    preftune experts merge --prompts task.jsonl --top 3 --output_dir outputs/merged-expert

An expert is a policy adapter that was trained on one task. add puts it into --registry, with 100 of
the prompts that it was trained on. find embeds all of them and the first 32 prompts of a new task
by the base itself; each prompt votes for the expert that has the nearest one (arXiv 2302.03202).
merge makes one adapter of those with the most votes, exactly, as a mean weighted by their votes. No
labels are needed. You should see the votes of each expert, and by how much the first one leads.
The votes do not tell whether any expert is of use: compare it with the base before you rely on it.
"""

from toolkit.cli import run

import random
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal

from toolkit.arguments.chat import ChatArguments
from toolkit.arguments.common import InvalidRowsArguments, OverwriteArguments, SeedArguments
from toolkit.arguments.layouts import ColumnArguments
from toolkit.arguments.model import ModelArguments
from toolkit.arguments.prompts import PromptLengthArguments
from toolkit.data.outputs import claim_output
from toolkit.errors import InputError
from toolkit.flags import Count, flag
from toolkit.next_step import evaluation, say_next, worded, wrote
from toolkit.terminal import counted, print_table

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from toolkit.data.prompts import Prompts
    from toolkit.maths.retrieval import Vote
    from toolkit.models.expert_registry import Expert

SHRINKAGE = 0.1  # of the covariance; 0.001 to 1 found the same experts (docs/results.md)
Action = Literal["add", "find", "merge"]
# The flags that only some actions read.
READ_BY: dict[str, tuple[Action, ...]] = {
    "name": ("add",),
    "adapter": ("add",),
    "library": ("add",),
    "votes": ("find", "merge"),
    "whiten": ("find", "merge"),
    "batch_size": ("find", "merge"),
    "top": ("merge",),
    "weights": ("merge",),
    "output_dir": ("merge",),
}


@dataclass
class ExpertArguments(
    PromptLengthArguments,
    ChatArguments,
    InvalidRowsArguments,
    ColumnArguments,
    SeedArguments,
    OverwriteArguments,
):
    FIRST_WORD: ClassVar[str] = "action"

    action: Action = flag(
        "find",
        "What to do: add an expert, find the expert for a task, or merge those with the most "
        "votes; it may stand without --action.",
    )
    registry: str = flag("outputs/experts.jsonl", "JSONL file with the experts.")
    prompts: str | None = flag(
        None,
        "For add, prompts that the expert was trained on; for find and merge, prompts of the new "
        "task. Any file that preftune ppo --prompts reads.",
    )
    name: str | None = flag(None, "Name of the expert to add.")
    adapter: str | None = flag(None, "Folder of the expert's policy adapter.")
    library: Count = flag(100, "Prompts of the expert that are kept, drawn at random.")
    votes: Count = flag(32, "How many prompts of the new task vote: the first so many.")
    whiten: bool = flag(
        True,
        "Take out of the embeddings what all prompts of the experts have in common, and give each "
        "direction the same weight, before the nearest are found.",
    )
    top: Count = flag(3, "How many experts are merged: those with the most votes.")
    weights: Literal["votes", "uniform"] = flag(
        "votes",
        "Weights of the merged experts: votes (each expert's share of their votes) or uniform.",
    )
    output_dir: str = flag("outputs/merged-expert", "Folder for the merged adapter.")
    batch_size: Count = flag(64, "Prompts that are embedded in one pass.")

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, actions in READ_BY.items():
            declared = ExpertArguments.__dataclass_fields__[name].default
            if self.action not in actions and getattr(self, name) != declared:
                raise InputError(f"experts {self.action} does not read {name} (leave it out)", name)
        for name in ("prompts", *(("name", "adapter") if self.action == "add" else ())):
            if not getattr(self, name):
                raise InputError(f"{name}: missing (experts {self.action} needs it)", name)


def main(model_args: ModelArguments, args: ExpertArguments) -> "Vote | None":
    from toolkit.models.expert_registry import read_registry
    from toolkit.models.from_arguments import tokenizer_of

    if args.action == "add":
        add(model_args, args)
        return None

    # Check the experts and the prompts before the model is loaded.
    out = None
    if args.action == "merge":
        out = claim_output(args.output_dir, args.overwrite, "output_dir", whole=True)
    experts = read_registry(args.registry)
    for expert in experts:
        check_base_of(expert.name, expert.adapter, model_args)
    tokenizer = tokenizer_of(model_args, experts[0].adapter)
    task = prompts_of_task(args, tokenizer, limit=args.votes)
    if len(task) < args.votes:
        print(f"note: only {counted(len(task), 'prompt')} can vote, not {args.votes}")

    vote = ballot(model_args, args, tokenizer, experts, task)
    show(vote, experts)
    if out is None:
        first = experts[vote.order[0]]
        merging = worded(
            "experts", "merge", **told(model_args, args), output_dir="outputs/merged-expert"
        )
        say_next(evaluation(first.adapter, model_args, judges=[]), merging)
    else:
        merge(vote, experts, args, out)
        say_next(evaluation(out, model_args, judges=[]))
    return vote


def add(model_args: ModelArguments, args: ExpertArguments) -> None:
    """Put an expert into the registry, with some of its prompts."""
    from toolkit.models.expert_registry import Expert, read_registry, with_expert, write_registry
    from toolkit.models.from_arguments import tokenizer_of

    claim_output(args.registry, True, "output")  # others stay in it
    name, adapter = str(args.name), str(args.adapter)
    check_base_of(name, adapter, model_args)
    tokenizer = tokenizer_of(model_args, adapter)
    prompts = prompts_of_task(args, tokenizer).once()
    drawn = sorted(
        random.Random(args.seed).sample(range(len(prompts)), min(args.library, len(prompts)))
    )
    kept = ("prompt", "tools", "chat_template_kwargs")
    library = [
        {field: row[field] for field in kept if row.get(field) is not None}
        for row in prompts.pick(drawn).asked(tokenizer)
    ]
    if len(library) < args.library:
        print(f"note: {args.prompts} has {len(library)} different prompts, not {args.library}")

    # An adapter that was trained anew must not keep its own row from being written anew.
    replaced = name if args.overwrite else None
    there = read_registry(args.registry, replaced) if Path(args.registry).exists() else []
    experts = with_expert(there, Expert.of(name, adapter, library), args.overwrite)
    write_registry(args.registry, experts)
    wrote(args.registry, f"{counted(len(experts), 'expert')}; {name} has {len(library)} prompts")
    say_next(worded("experts", "find", **told(model_args, args) | {"prompts": "PROMPTS.jsonl"}))


def check_base_of(name: str, adapter: str, model_args: ModelArguments) -> None:
    """Raise InputError unless this expert is a policy adapter on the base."""
    from toolkit.models.adapters import check_adapter

    base, precision = model_args.model_name_or_path, model_args.precision
    check_adapter(adapter, base, "CAUSAL_LM", f"expert {name}", precision)


def prompts_of_task(
    args: ExpertArguments, tokenizer: "PreTrainedTokenizerBase", limit: int | None = None
) -> "Prompts":
    """Read prompts of an expert or of a task."""
    from toolkit.data.from_arguments import chat_from
    from toolkit.data.prompts import read_prompts

    prompts, left_out = read_prompts(
        str(args.prompts),
        tokenizer,
        args.max_prompt_length,
        args.prompt_tokens,
        limit,
        chat=chat_from(args),
        skip_invalid=args.skip_invalid,
        columns=args,
    )
    if left_out:
        print(f"{args.prompts}: {counted(left_out, 'prompt')} left out by length")
    return prompts


def ballot(
    model_args: ModelArguments,
    args: ExpertArguments,
    tokenizer: "PreTrainedTokenizerBase",
    experts: "list[Expert]",
    task: "Prompts",
) -> "Vote":
    """Embed the libraries and the prompts of a task, and let these vote."""
    from toolkit.data.from_arguments import chat_from
    from toolkit.data.prompts import given_prompts
    from toolkit.maths.retrieval import vote, whitened
    from toolkit.models.embeddings import embeddings
    from toolkit.models.from_arguments import base_of, check_length

    rows = [row for expert in experts for row in expert.library]
    owners = [i for i, expert in enumerate(experts) for _ in expert.library]
    library = given_prompts(rows, tokenizer, chat_from(args))
    check_length(model_args, [*library, *task], 0)

    base, pad = base_of(model_args), int(tokenizer.pad_token_id)
    found, asked = (embeddings(base, ids, pad, args.batch_size) for ids in (library, task))
    try:
        if args.whiten:
            found, asked = whitened(found, asked, SHRINKAGE)
        return vote(asked, found, owners, len(experts))
    except ValueError as problem:  # all prompts of the experts are the same, say
        raise InputError(f"--registry: {args.registry}: {problem} (add other prompts)") from None


def show(vote: "Vote", experts: "list[Expert]") -> None:
    """Print the votes of each expert, and by how much the first one leads."""
    count = len(vote.nearest)
    rows = [
        [experts[i].name, str(int(vote.counts[i])), f"{vote.counts[i] / count:.0%}"]
        for i in vote.order
    ]
    print_table(
        f"Votes of {counted(count, 'prompt')}",
        ["expert", "votes", "share"],
        rows,
        "Each prompt votes for the expert that was trained on the prompt most like it.",
        right=(1, 2),
    )
    first = experts[vote.order[0]]
    if len(experts) > 1 and vote.margin == 0:
        second = experts[vote.order[1]].name
        print(f"{first.name} and {second} have equally many votes; {first.name} was added first.")
    elif len(experts) > 1:
        print(f"{first.name} leads by {vote.margin:.0%} of the votes: {first.adapter}")


def merge(vote: "Vote", experts: "list[Expert]", args: ExpertArguments, out: Path) -> None:
    """Write the mean of the experts with the most votes."""
    from toolkit.models.adapter_arithmetic import merge_adapters

    chosen = [i for i in vote.order[: args.top] if vote.counts[i]]
    if len(chosen) < args.top:
        print(f"note: {counted(len(chosen), 'expert')} and not {args.top}, as no others have votes")
    shares = vote.shares(chosen) if args.weights == "votes" else [1 / len(chosen)] * len(chosen)
    names = ", ".join(f"{experts[i].name} {s:.3g}" for i, s in zip(chosen, shares, strict=True))
    print(f"Merging, with these weights: {names}")
    outcome = merge_adapters(
        [experts[i].adapter for i in chosen], out, weights=shares, what="experts"
    )
    print(outcome.sentence())
    wrote(out, "policy adapter")


def told(model_args: ModelArguments, args: ExpertArguments) -> dict[str, object]:
    """The flags of this command that the next one needs."""
    shared: dict[str, object] = {"registry": args.registry, "prompts": args.prompts}
    for part, name in ((model_args, "model_name_or_path"), (model_args, "precision")):
        value = getattr(part, name)
        if value != type(part).__dataclass_fields__[name].default:
            shared[name] = value
    return shared


if __name__ == "__main__":
    run(main)
