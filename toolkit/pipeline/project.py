"""The stages of a project file in a row, and the word on what people must do between them."""

import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from toolkit.cli import bind, recipe
from toolkit.errors import InputError
from toolkit.next_step import Step, command, project_step
from toolkit.pipeline.comparison import INSTEAD, in_order, inputs_of
from toolkit.pipeline.stages import Stage
from toolkit.project import METHODS, POLICIES, STAGES, TRAIN_ON_REWARD, Project
from toolkit.training.methods import METHODS as ROWS

TITLES = {
    "convert": "Convert the comparisons",
    "split": "Split the prompts",
    "sample": "Sample completions",
    "label": "Pick the best of each",
    "ratings": "Rate the models",
    "reward_report": "Look at the reward model",
    "evaluate": "Compare on held-out prompts",
    "report": "Report",
}

# Flags that name files, which are the user's unless a stage makes them.
FILES = ("input", "prompts", "eval_prompts", "samples", "comparisons", "eval_comparisons",
         "demonstrations", "text", "lexicon")  # fmt: skip

WEIGHTS = "adapter_model.safetensors"

# What a section names to learn from in place of the project's comparisons.
OWN_DATA = ("comparisons", *INSTEAD)

LEARNING = (
    "ratings",
    "reward",
    "sft",
    "preference",
    "dpo",
    "kto",
    "orpo",
    "cpo",
)  # from comparisons

# Whose results a stage reads, so that it runs again if they are made anew.
AFTER: dict[str, tuple[str, ...]] = {
    "convert": (),
    "split": ("convert",),
    "sample": ("split",),
    "label": ("sample",),
    "ratings": ("convert", "label"),
    "reward": ("convert", "label"),
    "reward_report": ("reward",),
    **{name: ("convert", "split", "label") for name in POLICIES},
    **{name: ("split", "reward") for name in ("rloo", "grpo", "ppo")},
    "evaluate": ("split", "reward", *POLICIES),
    "report": ("ratings", "reward", *POLICIES, "evaluate"),
}


def names_of(project: Project) -> list[str]:
    """The stages that a project has, in their order; converting and splitting may go unsaid.

    Raises:
        InputError: there is none, or one lacks what it would read.
    """
    needed = {"convert"} if "comparisons" in project.shared else set()
    if project.splits:
        needed.add("split")
    names = [name for name in STAGES if project.has(name) or name in needed]

    if not set(names) - {"convert", "split"}:
        raise InputError(
            f"{project.path}: no section of a stage to run (stages are {', '.join(STAGES)})"
        )
    if "split" in names and project.shared.get("prompts") is None and project.comparisons is None:
        raise InputError(
            f"{project.path}: neither prompts nor comparisons are named (add `prompts: FILE` or "
            "`comparisons: FILE` outside the sections)"
        )
    if "label" in names and "sample" not in names and "samples" not in project.sections["label"]:
        raise InputError(
            f"{project.where('', 'label')}: label has nothing to label (add a section `sample:`, "
            "or its `samples: FILE`)"
        )
    if {"convert", "label"} <= {*names}:
        raise InputError(
            f"{project.where('', 'comparisons')}: comparisons are named, and the section label "
            "would make others (leave out one of them)"
        )
    given, made = project.shared.get("comparisons"), project.comparisons
    if given is not None and Path(str(given)).resolve() == Path(str(made)).resolve():
        raise InputError(
            f"{project.where('', 'comparisons')}: {given} is where the project's own copy goes "
            "(name another folder by `folder: FOLDER`)"
        )
    for name in LEARNING if project.comparisons is None else ():
        given = project.sections.get(name, {}).keys()
        if name in names and not {"dataset_name", *OWN_DATA} & given:
            raise InputError(
                f"{project.where('', name)}: {name} has nothing to learn from (add `comparisons: "
                "FILE` outside the sections, or sections `sample:` and `label:`)"
            )
    return names


def stages_of_project(project: Project, enough: bool = False) -> list[Stage]:
    """Make a stage for each section of a project, in the order in which they run.

    Args:
        project: the file.
        enough: go on with the labels that there are, even if people have not answered all items.
    """
    stages = [_stage(project, name, enough) for name in names_of(project)]
    makers = {path.resolve(): stage.name for stage in stages for path in stage.made}
    for stage in stages:  # an adapter that a section names may be another stage's
        makes = {makers.get(path) for _, path in inputs_of(stage)}
        stage.after = (*(stage.after or ()), *(name for name in makes if name is not None))
    note_files(stages)
    return in_order(stages)


def note_files(stages: Sequence[Stage]) -> None:
    """Note for each stage the files and adapters that it reads and none of them makes."""
    made = {path.resolve() for stage in stages for path in stage.made}
    for stage in stages:
        stage.given = {
            name: path
            for name, path in files_of(stage)
            if not {path.resolve(), path.parent.resolve()} & made
        }


def files_of(stage: Stage) -> Iterator[tuple[str, Path]]:
    """Yield the flags of a stage that name a file to read, with their paths."""
    told = {
        key: value for part in bind(stage.main, stage.words) for key, value in vars(part).items()
    }
    for name in FILES:
        unread = name == "comparisons" and any(told.get(other) is not None for other in INSTEAD)
        if isinstance(told.get(name), str) and not unread:
            yield name, Path(told[name])
    adapters = [(name, folder) for name, folder in inputs_of(stage) if name.endswith("adapter")]
    for number, (name, folder) in enumerate(adapters):
        several = any(other == name for other, _ in adapters[:number])
        yield from weights_of(name, [f"{number if several else ''}={folder}"])
    for name in ("models", "contenders", "judges"):
        yield from weights_of(name, told.get(name) or ())


def weights_of(flag: str, specs: Iterable[str]) -> Iterator[tuple[str, Path]]:
    """Yield the weights of each NAME=FOLDER that names an adapter, as FLAG NAME with their path.

    A folder keeps its name when its adapter is trained anew, so only the file tells. A contender
    may name several, as in NAME=mean(A,B), and a judge is NAME=reward_adapter:FOLDER.
    """
    for spec in specs:
        name, _, what = spec.partition("=")
        parts = [what] if (Path(what) / WEIGHTS).is_file() else re.split(r"[(),:*\s]+", what)
        found = [weights for part in parts if part and (weights := Path(part) / WEIGHTS).is_file()]
        for number, weights in enumerate(found):
            yield f"{flag} {name}{f' {number}' if number else ''}".strip(), weights


def _stage(project: Project, name: str, enough: bool) -> Stage:
    """Make the stage of a section."""
    words = ["--config", str(project.path)]
    reader = METHODS.get(name, name)
    if name in METHODS:
        words += ["--method", name]
    row = ROWS.get(project.method(name))
    title = TITLES.get(name) or (row.title if row else name)
    stage = Stage(name, title, recipe(reader).main, words, made_by(project, name))
    own = {*OWN_DATA} & project.sections.get(name, {}).keys()
    stage.after = () if own and name in LEARNING else AFTER[name]
    stage.resumes = row is not None and row.resumes

    if name == "sample":
        stage.check = lambda result: _check_ends(project, result)
    if name == "label" and project.people_label:
        # Only the page asks people: here their picks are written.
        stage.words += ["--serve", "false", "--invite", "", "--ask", ""]
        stage.words += ["--output", str(project.comparisons)]
        stage.waits = lambda: waiting(project, enough)
    elif name == "label":
        stage.waits = lambda: _check_store(project)
    return stage


def _check_ends(project: Project, sampled: object) -> None:
    """Raise InputError if no sample ends by itself, although a missing end is to cost something.

    Each completion would pay the same, so the policy could not learn to end, and people would pick
    among texts that break off.

    Args:
        project: whose policy is trained next.
        sampled: what recipes/sample.py returned: how many completions could end, and how many did.
    """
    assert isinstance(sampled, dict)
    if not sampled["drawn"] or sampled["ended"]:
        return
    for name in TRAIN_ON_REWARD:
        penalty = project.sections.get(name, {}).get("missing_eos_penalty")
        if penalty is not None:
            tokens = project.agreed("response_length")
            raise InputError(
                f"{project.where(name, 'missing_eos_penalty')}: {name} takes {penalty:g} off a "
                f"completion that does not end, and none of {sampled['drawn']} samples ends by "
                f"itself within {tokens} tokens, so all would pay it (give them more tokens by "
                "`response_length: NUMBER`; or leave out the missing_eos_penalty, and say "
                "`stop_token: none`, with `truncate_token: .` if they are to end behind a full "
                f"stop; then preftune run {project.path})"
            )


def made_by(project: Project, name: str) -> list[Path]:
    """What is there once a stage of a project is done."""
    placed = project.placed(name) | project.sections.get(name, {})
    if name == "split":
        kept = [Path(placed["kept"])] if placed["comparisons"] else []
        return [Path(placed["output"]), Path(placed["held_out"]), *kept]
    if name == "label":
        return [Path(str(project.comparisons))]
    if name in ("convert", "sample"):
        return [Path(placed["output"])]
    if name == "ratings":
        return [Path(placed.get("scores") or placed["output"])]
    if name in ("reward", *POLICIES):
        return [Path(project.adapter(name))]
    page = {"evaluate": "evaluation.json", "report": "report.html"}
    return [Path(placed["output_dir"]) / page.get(name, "reward_report.html")]


def waiting(project: Project, enough: bool) -> str | None:
    """What people still have to do, and the commands for it; None if there are labels to go on.

    Args:
        project: whose items people label.
        enough: whether the labels that there are suffice, if there is a pick among them.

    Raises:
        InputError: the store has items that are not in the samples (``items_to_label``).
    """
    from toolkit.labeling.store import StoreReader

    wanted = project.sections["label"].get("limit")
    items, said = items_to_label(project)
    answered = sum(said.get(item, False) for item in items)
    picks = 0
    if said:
        with StoreReader(project.store) as opened:
            picks = sum(1 for _ in opened.picks())

    done = picks > 0 and (enough or answered == len(items))
    if done or (wanted is not None and picks >= wanted):
        return None

    page = Step("label", {"config": str(project.path)})
    elsewhere = "public_host" not in project.sections["label"]
    where = " (for people elsewhere add --https --public_host NAME, as docs/labeling.md says)"
    lines = [
        ("There is no pick yet, so --enough changes nothing. " if enough else "")
        + f"People label now: {answered} of {len(items)} items have an answer, and {picks} a pick. "
        f"This command opens the page for them, until Ctrl-C{where if elsewhere else ''}:",
        f"next: {command(page)}",
        f"then: {command(project_step(project.path))}",
    ]
    if picks:
        more = command(project_step(project.path, "--enough"))
        lines.insert(2, f"or: {more}   # go on with {picks} picks")
    return "\n".join(lines)


def _check_store(project: Project) -> None:
    """Raise InputError if a script's store has items that are not in the samples."""
    items_to_label(project)


def items_to_label(project: Project) -> tuple[set[str], dict[str, bool]]:
    """The items of a project's samples, and whether each item of its store has an answer.

    Both name an item by its digest. A store that is not there yet, or not used, has no item.

    Raises:
        InputError: the store has items that are not in the samples, which were made anew, say. The
            picks of all items of a store are learned from, so theirs would be, too.
    """
    from toolkit.arguments.layouts import LayoutArguments
    from toolkit.data.comparisons import read_rows
    from toolkit.labeling.store import StoreReader, item_digest

    parts = bind(recipe("label").main, ["--config", str(project.path)])
    told = {key: value for part in parts for key, value in vars(part).items()}
    layout = LayoutArguments.of(parts[-1])
    rows = read_rows(str(told["samples"]), "completions", "samples", layout=layout)
    items = {item_digest(row) for row in rows}

    store = told["store"]
    if store is None or not Path(store).is_file():
        return items, {}
    with StoreReader(store) as opened:
        said = opened.answered()
    if gone := said.keys() - items:
        answered = sum(said[item] for item in gone)
        raise InputError(
            f"store: {store} has {len(gone)} items ({answered} with an answer) that are not in "
            f"{told['samples']}: these samples were made anew, or items were uploaded on the admin "
            f"page. Their picks would be learned from (if you do not want that, name a new file by "
            f"`store: FILE` in the section label of {project.path}; if you do, write all picks to "
            f"a file by `preftune label --store {store} --output FILE`, and name that as "
            "`comparisons: FILE` in place of the section label, so that no policy learns from "
            "those on prompts that it is compared on)"
        )
    return items, said
