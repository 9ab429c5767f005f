"""Let people on a web page, or a scripted labeler, pick the best completion of each row.

    preftune label --samples outputs/samples.jsonl --lexicon demo:lexicon.txt
    preftune label --serve --samples outputs/samples.jsonl --invite ann,bob
    preftune label --store outputs/labels.sqlite --backup labels.monday.sqlite

A scripted labeler is a word-valence lexicon (the highest sum is the best), any Python function
`module:function(prompts, completions) -> scores`, or an OpenAI-compatible --judge_url. With
--noise, some of its picks are random, as people's are. Without --store, its picks go straight to
--output. With --store, an SQLite file, people and scripts share the same items. The script labels
what is left; then --serve opens the page, and prints an invite link for each name and one for the
admin page; at the end, all picks so far are written to --output. You should see the number of
labels.

A useless judge ends the work with exit code 2. A judge is useless if --judge_patience answers in a
row are not a letter, or if it repeats one letter too often for chance. Those answers are taken
back, so the same command continues once the judge works. Items that it refuses now and then are
recorded as skipped, and --ask_again asks for them again.
"""

from toolkit.cli import run

import os
import random
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from toolkit.arguments.common import OverwriteArguments, SeedArguments
from toolkit.arguments.layouts import ColumnArguments, LayoutArguments
from toolkit.data.files import write_jsonl
from toolkit.data.outputs import claim_output
from toolkit.data.records import Row
from toolkit.errors import InputError
from toolkit.flags import Count, Share, flag
from toolkit.labeling.arguments import StoreArguments
from toolkit.next_step import (
    Step,
    again,
    beside,
    command,
    fresh,
    project_at_work,
    project_step,
    say_last,
    say_next,
    settings_beside,
    step,
    wrote,
)
from toolkit.scoring.arguments import FunctionArguments, JudgeArguments, load_picker

if TYPE_CHECKING:
    from toolkit.labeling.labelers import ScriptedLabeler
    from toolkit.labeling.store import Store


@dataclass
class LabelArguments(ColumnArguments, SeedArguments, OverwriteArguments):
    samples: str | None = flag(
        None,
        "JSONL with `prompt, completions`, or a CSV file with --columns. Without a store: "
        "outputs/samples.jsonl.",
    )
    output: str | None = flag(
        None, "JSONL file to write. Without a store: outputs/comparisons.jsonl."
    )
    edited: str | None = flag(
        None,
        "JSONL file for the better answers that people wrote (--ask edit): comparisons that they "
        "win, for preftune sft.",
    )
    overwrite: bool = flag(False, "Replace an existing file at --output, --edited or --backup.")
    labeler: str | None = flag(None, "Name of the scripted labeler.")
    ties: Literal["drop", "random"] = flag(
        "drop", "Drop rows with a tie for the best, or pick one of the best at random."
    )
    noise: Share = flag(0.0, "Share of the scripted labeler's picks that are random, 0 to 1.")
    ask_again: bool = flag(
        False,
        "Ask the scripted labeler again for the items that it refused earlier (skips with the "
        "reason `refused` in the store).",
    )
    limit: Count | None = flag(
        None,
        "Stop after this many comparisons of the script. With a store that is so many in each "
        "call: the same command then labels as many more. By default there is no limit.",
    )


def main(
    scorer_args: FunctionArguments,
    judge_args: JudgeArguments,
    store_args: StoreArguments,
    args: LabelArguments,
) -> None:
    from toolkit.data.comparisons import read_rows
    from toolkit.labeling.backup import backup
    from toolkit.labeling.opening import open_store, read_guidelines

    if args.ask_again and not (judge_args.judge_url or scorer_args.given):
        raise InputError("ask_again: no labeler (add --judge_url or a scorer)", "ask_again")
    if store_args.path is None:
        store_args.needed_by(judge_args.judge_url)
        for name, given in {"ask_again": args.ask_again, "edited": args.edited}.items():
            if given:
                raise InputError(f"{name}: needs a store (add --store FILE)", name)
        if not scorer_args.given:
            raise InputError(
                "nobody is to label (add --serve to open the page for people; or --lexicon, "
                "--reward_function, or --store with --judge_url, to have a script label)"
            )
        return to_file(scorer_args, args)
    if store_args.backup is not None:
        more = (
            args.samples,
            args.output,
            args.edited,
            judge_args.judge_url,
            scorer_args.given,
            store_args.gold,
        )
        if any(more):
            raise InputError("backup: only copies the store (pass only --store with it)", "backup")
        copy = backup(store_args.path, store_args.backup, args.overwrite)
        wrote(copy, f"a copy of {store_args.path}, {copy.stat().st_size:,} bytes")
        say_next(picks_of(store_args.path))
        return None
    if args.output is not None:
        claim_output(args.output, args.overwrite, "output")
    if args.edited is not None:
        if args.output is not None and Path(args.edited).resolve() == Path(args.output).resolve():
            raise InputError(f"edited: {args.edited} is --output as well (name another)", "edited")
        claim_output(args.edited, args.overwrite, "edited")
    scripted = None
    if (found := load_picker(judge_args, scorer_args)) is not None:
        from toolkit.labeling.labelers import ScriptedLabeler

        name = args.labeler or found[0]
        scripted = ScriptedLabeler(name, found[1], args.noise, args.ties, args.seed)
    rows = (
        read_rows(args.samples, "completions", "--samples", layout=LayoutArguments.of(args))
        if args.samples
        else []
    )

    # Add items to the store, let scripts and people label, then write the picks.
    guidelines = read_guidelines(store_args.guidelines)
    store = open_store(store_args.path, store_args.settings, store_args.gold, bool(rows))
    store.settle(store_args.asked)
    added, known = store.add_items(rows)
    print(f"{store.path}: {added} new items, {store.progress()['items']:,.0f} in all")
    if scripted is not None:
        by_script(store, scripted, args)
    if store_args.serve:
        from toolkit.labeling.serving import serve_page  # loads a web server

        serve_page(
            store,
            store_args.host,
            store_args.port,
            store_args.names,
            store_args.reinvite,
            store_args.public_host,
            store_args.https,
            guidelines,
            store_args.requests_per_second,
            partial(training_commands, store_args.path, args.samples),
        )
    picks = list(store.picks())
    matches = list(store.said("match"))
    if args.output is not None:
        write_jsonl(args.output, picks)
        wrote(args.output, f"{len(picks)} comparisons")
    if args.edited is not None:
        edited = list(store.edited())
        write_jsonl(args.edited, edited)
        wrote(args.edited, f"{len(edited)} edited answers")
    unanswered = store.unanswered()
    if unanswered:
        print(
            f"Without an answer yet: {unanswered} of {store.progress()['items']:,.0f} items. The "
            "same command goes on with them (with --overwrite, if it wrote a file)."
        )
        if scripted is not None and args.limit is None:
            print(
                "The script left out what somebody has on their screen, for up to "
                f"{store_args.lease_minutes:g} minutes (--lease_minutes)."
            )
    store.close()

    # What comes next: learn from the picks, or pick some first.
    if picks and args.output is not None and unanswered > len(picks):
        say_next(again("label", overwrite=True), learning(args.output, args.samples, picks))
    elif picks and args.output is not None:
        say_next(learning(args.output, args.samples, picks))
    elif picks:
        say_next(picks_of(store_args.path))
    elif matches:
        say_last("These are choices between models: run preftune evaluate again with --samples.")
    else:
        say_next(Step("label", {"serve": True, "store": store_args.path, "invite": "me"}))
    return None


def picks_of(store: str) -> Step:
    """The step that writes a store's picks to a file."""
    return step("label", store=store, output=beside(store, "comparisons.jsonl"))


def training_commands(store: str, samples: str | None, said: Sequence[Row]) -> list[str]:
    """The lines that train a reward model on a store's picks, as one would type them now.

    Each names files that are not there yet. The first line goes to the folder in which this process
    was started, because the model's path may be relative to it. In a project the second line
    goes on with the project, with the picks that there are.

    Args:
        store: the store's file.
        samples: the file that its items came from, if it is known.
        said: what was said beside each pick (``StoreReader.said_beside``).
    """
    go = f"cd {shlex.quote(os.getcwd())}"
    if (project := project_at_work()) is not None:
        return [go, command(project_step(project, "--enough"))]
    picks = picks_of(str(Path(store).resolve()))
    output = str(picks.flags["output"])
    return [go, command(picks), command(learning(output, samples, said))]


def learning(comparisons: str, samples: str | None, picks: Sequence[Row] = ()) -> Step:
    """The step that trains a reward model, on the model that the samples are of.

    If people said more than which completion is the best, the loss is one that reads it.
    """
    told = None if samples is None else settings_beside(samples)
    model: dict[str, object] = {"model_name_or_path": "MODEL"} if told is None else {}
    if any("ranking" in pick or "worst" in pick for pick in picks):
        model["loss_type"] = "plackett_luce"
    elif picks and all("margin" in pick for pick in picks):
        model["use_margin"] = True
    return step(
        "reward",
        told or {},
        comparisons=comparisons,
        **model,
        output_dir=beside(comparisons, "reward"),
    )


def by_script(store: "Store", scripted: "ScriptedLabeler", args: LabelArguments) -> None:
    """Let the scripted labeler label what is left, and print the counts."""
    if args.ask_again:
        again = store.ask_again(store.script(scripted.name))
        print(f"{scripted.name}: {again} refused items will be asked again")
    counts = scripted.work(store, args.limit)
    scripted.check(store)
    print(counts)
    if doubt := scripted.picker.doubt():
        print(f"warning: {doubt}")
    if counts.refused:
        print(f"last refusal: {scripted.picker.refusal} (--ask_again asks for all again)")


def to_file(scorer_args: FunctionArguments, args: LabelArguments) -> None:
    """Label the rows of a file, and write the rows with ``best``."""
    from tqdm.auto import tqdm

    from toolkit.data.comparisons import read_rows
    from toolkit.data.prompts import TAKEN
    from toolkit.scoring.picker import pick_best, scores_of_row

    samples = args.samples or "outputs/samples.jsonl"
    output = args.output or "outputs/comparisons.jsonl"
    claim_output(output, args.overwrite, "output")
    scorer = scorer_args.load()
    rows = read_rows(samples, "completions", "--samples", layout=LayoutArguments.of(args))

    rng = random.Random(args.seed)
    labeler = args.labeler or scorer_args.reward_function or "lexicon"
    labeled: list[dict[str, object]] = []
    dropped = 0
    for row in tqdm(rows, desc="Labeling", unit="row"):
        if args.limit is not None and len(labeled) == args.limit:
            break
        completions = row["completions"]
        fields = {name: value for name, value in row.items() if name not in TAKEN}
        scores = scores_of_row(scorer, row["prompt"], completions, fields)
        best = pick_best(scores, args.ties, args.noise, rng)
        if best is None or len(set(completions)) == 1:
            dropped += 1
        else:
            labeled.append(row | {"best": best, "scores": scores, "labeler": labeler})
    write_jsonl(output, labeled)
    wrote(output, f"{len(labeled)} comparisons; {dropped} ties dropped")
    if not labeled:  # as with a store, this is the labeler's answer, not a mistake in the file
        print(
            f"warning: {samples}: all {dropped} rows are ties, so there is no pick to train on. "
            "Check whether the scorer gives different scores (if prompts are messages, each "
            "completion is a list with one message), or pass --ties random"
        )
        say_next(again("label", ties="random", output=fresh(output)))
        return
    say_next(learning(output, samples))


if __name__ == "__main__":
    run(main)
