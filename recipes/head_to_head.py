"""Let people choose between what models write, and print who is preferred how often.

    preftune head-to-head --contenders ppo=outputs/ppo/adapters/policy sft=outputs/sft/adapter \\
        --evaluate_config demo:evaluate.yaml --invite ann,bob,eve

This is table 1 of arXiv 1909.08593. All contenders and the untuned model write to the same held-out
prompts. Then the labeling page opens, on which people see two texts without names and pick the
better one; each pair goes to --votes people, and the majority counts. After Ctrl-C the table is
printed. The same command goes on with the next votes, and --count_only prints the table alone. You
should see invite links, and for each pair of models a line such as 88 : 12 with its interval.
"""

from toolkit.cli import bind, call, recipe, run

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from toolkit.arguments.common import OverwriteArguments, SeedArguments
from toolkit.data.files import require_file
from toolkit.embedded import embedded
from toolkit.errors import InputError
from toolkit.flags import Count, Named, Range, flag
from toolkit.next_step import Step, again, say_next
from toolkit.pipeline.project import note_files
from toolkit.pipeline.stages import Stage, run_stages
from toolkit.terminal import counted, print_table

if TYPE_CHECKING:
    from toolkit.evaluation.result import Evaluation

PEOPLE = "people"  # the name of the judge


@dataclass
class HeadToHeadArguments(SeedArguments, OverwriteArguments):
    contenders: Named = flag(
        [],
        "Models to compare, as NAME=WHAT, as for preftune evaluate. Those of --evaluate_config and "
        "the untuned model take part, too.",
    )
    evaluate_config: str = flag(
        embedded("evaluate.yaml"), "YAML file with settings for preftune evaluate."
    )
    pairs: Literal["all", "reference"] = flag(
        "all", "Compare all pairs of models, or each with the untuned model alone."
    )
    items: Count = flag(100, "Prompts on which each pair of models is compared.")
    votes: Annotated[int, Range(low=1, high=25)] = flag(
        3, "People who judge each pair of texts. An odd number leaves fewer ties."
    )
    invite: str = flag("me", "People who judge, separated by commas. Each new name gets a link.")
    reinvite: bool = flag(False, "Make new links for invited names too. Their old links end.")
    port: Annotated[int, Range(low=0, high=65_535)] = flag(8000, "Port of the labeling page.")
    guidelines: str | None = flag(None, "Text file that tells people what to look for.")
    count_only: bool = flag(False, "Do not open the page; print the table with the votes so far.")
    output_dir: str = flag("outputs/head-to-head", "Folder for samples, votes and results.")


def main(args: HeadToHeadArguments) -> "Evaluation":
    from toolkit.labeling.store import StoreReader

    require_file(args.evaluate_config, "--evaluate_config")
    out = Path(args.output_dir)
    store = out / "matches.sqlite"
    evaluate, label = recipe("evaluate"), recipe("label")

    # All models write, and their texts become items without names. Votes are never deleted.
    if args.overwrite and store.exists():
        raise InputError(
            f"output_dir: {store} holds texts that people vote on, which --overwrite would leave "
            "beside other texts (name another folder)",
            "output_dir",
        )
    config = ["--config", args.evaluate_config, "--seed", str(args.seed)]
    known = bind(evaluate.main, config)[-1]
    judges = [*known.judges, f"{PEOPLE}=people:{store}"]
    asked = ["--judges", *judges, "--pick_pairs", args.pairs, "--pick_limit", str(args.items)]
    asked += ["--people_votes", str(args.votes), "--frontier_prompts", "0"]
    if known.samples is None and (known.limit or args.items) < args.items:
        asked += ["--limit", str(args.items)]
    contenders = contenders_of(known.contenders, args.contenders)
    told = [*config, *asked, "--contenders", *contenders, "--output_dir", str(out / "samples")]
    made = [out / "samples" / "samples.jsonl", store]
    writing = Stage("samples", "All models write", evaluate.main, told, made)
    # Votes on texts of another adapter or other prompts must not count for those of now.
    note_files([writing])
    writing.free = ("pick_limit", "pick_pairs")  # more items, or more pairs, of the same texts
    cure = "Those votes stay where they are; name another --output_dir for this setting"
    run_stages([writing], out, args.overwrite, cure=cure)
    ask(out / "samples" / "samples.jsonl", store, args)

    # People vote.
    if not args.count_only:
        page = ["--serve", "--store", str(store), "--invite", args.invite, "--port", str(args.port)]
        page += ["--repeats", "0", *(["--reinvite"] if args.reinvite else [])]
        if args.guidelines is not None:
            page += ["--guidelines", args.guidelines]
        call(label.main, page)

    # Count the votes of now.
    samples = ["--samples", str(out / "samples" / "samples.jsonl"), "--overwrite"]
    result: Evaluation = call(
        evaluate.main, [*config, *asked, *samples, "--output_dir", str(out / "result")]
    )
    show(result, args.votes)
    page = Step("report", {"evaluation": str(out / "result"), "output_dir": str(out / "report")})
    with StoreReader(store) as opened:
        wanted, said = int(opened.progress()["wanted"]), sum(1 for _ in opened.said("match"))
    if said >= wanted:
        say_next(page)
        return result
    print(f"{wanted - said} of {wanted} votes are missing.")
    say_next(again("head_to_head", "count_only"), page)
    return result


def ask(samples: Path, store: Path, args: HeadToHeadArguments) -> None:
    """Put into the store what people are asked now and were not before."""
    from toolkit.evaluation.judges import PeopleJudge, pairs_of, questions_of
    from toolkit.evaluation.samples import read_samples

    written = read_samples(samples)
    shown = [row["prompt"] for row in written.asked[: args.items]]
    if len(shown) < args.items:
        print(f"note: there are {len(shown)} prompts, not {args.items}, on which to compare")
    pairs = list(pairs_of([contender.name for contender in written.contenders], args.pairs))
    questions = questions_of(pairs, shown, written.outputs)
    PeopleJudge(PEOPLE, str(store), votes=args.votes).ask(questions)


def contenders_of(known: list[str], given: list[str]) -> list[str]:
    """The contenders of the config and those of the flag, which win where they have one name."""
    names = {one.partition("=")[0] for one in given}
    found = [one for one in known if one.partition("=")[0] not in names] + given
    if not found:
        raise InputError("contenders: missing (name at least one model as NAME=WHAT)", "contenders")
    return found


def show(result: "Evaluation", votes: int) -> None:
    """Print how often people preferred which model."""
    rows = []
    for pair in result.pairs:
        if pair.judge != PEOPLE:
            continue
        share = f"{100 * pair.win_rate:.0f} : {100 * (1 - pair.win_rate):.0f}"
        decided = pair.wins + pair.losses
        rows.append(
            [
                f"{pair.a} : {pair.b}",
                share if decided else "-",
                f"{100 * pair.low:.0f} to {100 * pair.high:.0f}" if decided else "-",
                f"{pair.p_holm:.2g}" if decided else "-",
                str(pair.ties),
                str(pair.not_judged),
            ]
        )
    print_table(
        "What people prefer",
        ["models", "% preferred", "95 %", "p", "ties", "not judged"],
        rows,
        f"Each pair of texts by the majority of up to {counted(votes, 'vote')}. Shares are of the "
        "decided pairs; p is that of a sign test, corrected for the number of lines.",
        right=(1, 2, 3, 4, 5),
    )


if __name__ == "__main__":
    run(main)
