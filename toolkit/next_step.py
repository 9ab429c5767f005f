"""What a recipe says last: what it wrote, and the command that comes next, ready to be pasted.

    wrote: outputs/reward/adapter (reward adapter)
    next: python recipes/reward_report.py --run outputs/reward

``called`` is entered by ``cli.call``. A recipe that was called by another one (by demo.py, say)
says what it wrote, but not what comes next: only the outermost knows that.

The command is written for the way in which the first one was called: ``python recipes/X.py`` from a
checkout, ``preftune X`` by the console command. Settings that the next recipe must share (the model
and its precision, how completions are sampled) are handed on where they differ from the defaults.
"""

import contextlib
import dataclasses
import json
import os
import shlex
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import yaml

from toolkit.arguments.chat import ChatArguments
from toolkit.arguments.comparisons import ComparisonArguments
from toolkit.arguments.layouts import ColumnArguments
from toolkit.arguments.model import ModelArguments
from toolkit.arguments.prompts import PromptArguments
from toolkit.arguments.sampling import SamplingArguments, TrainedCompletionArguments
from toolkit.arguments.shared import CHAT, MODEL, SAMPLING
from toolkit.commands import COMMAND, shown_name
from toolkit.data.files import write_text
from toolkit.embedded import is_embedded_model
from toolkit.launched import is_first, nodes, world_size
from toolkit.scoring.arguments import CombiningArguments, Spec

DEMO_LEXICON = "demo:lexicon.txt"

COMBINING = ("reward_combine", "reward_std_weight")

# Which of them a recipe is told, if it comes next. Those that are not here are told none.
SHARED: dict[str, tuple[str, ...]] = {
    "sample": (*MODEL, *CHAT, *SAMPLING),
    "reward": (*MODEL, *CHAT, *SAMPLING),
    "preference": (*MODEL, *CHAT, "stop_token"),
    "sft": (*MODEL, *CHAT, "stop_token"),
    "ppo": (*MODEL, *CHAT, *SAMPLING, "penalty_reward_value"),
    "evaluate": (*MODEL, *CHAT, *SAMPLING, *COMBINING),
}

_NAMES = {name for shared in SHARED.values() for name in shared}
DEFAULTS = {
    f.name: f.default
    for kind in (
        ModelArguments,
        ChatArguments,
        SamplingArguments,
        TrainedCompletionArguments,
        CombiningArguments,
    )
    for f in dataclasses.fields(kind)
    if f.name in _NAMES
}

# Words in a command that only the user can fill in, and what is said of them.
YOURS = {
    "MODEL": "your model's folder, its id on the Hub, or demo:model",
    "PROMPTS.jsonl": "your file of prompts",
    "HELD_OUT.jsonl": "a file of prompts that were not trained on",
    "REWARD/adapter": "the folder of a reward adapter",
    "OWNER/NAME": "the name that the adapter is to have on the Hub",
    "OWNER/BASE": "the id that the base model has on the Hub",
}

_calls: list[list[str]] = []  # the words of each call that is at work; the outermost comes first
_projects: list[str] = []  # the project file whose stage the outermost call is, if there is one


@contextlib.contextmanager
def called(words: Sequence[str]) -> Iterator[None]:
    """In this block a recipe is at work that was called with these words."""
    _calls.append(list(words))
    try:
        yield
    finally:
        _calls.pop()
        if not _calls:
            _projects.clear()


def in_project(path: str | Path) -> None:
    """Note that the outermost call is a stage of this project; ``preftune run`` goes on with it."""
    if len(_calls) == 1:
        _projects[:] = [str(path)]


def project_at_work() -> str | None:
    """The project file whose stage the outermost call is; None if there is none."""
    return _projects[0] if _projects else None


@dataclass(frozen=True)
class Step:
    """A recipe and the flags that it is to be told.

    A flag is left out if its value is None. True stands for the bare flag.
    """

    recipe: str
    flags: Mapping[str, object] = field(default_factory=dict)

    def words(self) -> list[str]:
        """The words of its command line."""
        found: list[str] = []
        for name, value in self.flags.items():
            if value is None:
                continue
            found.append(f"--{name}")
            if value is not True:
                found += map(_text, value if isinstance(value, list | tuple) else [value])
        return found


def step(recipe: str, *shared: object, **flags: object) -> Step:
    """The recipe with these flags, and with those settings that it must share.

    Args:
        recipe: its name.
        shared: the dataclasses of the recipe that ends, or a mapping of what was told to an earlier
            one. Its settings are handed on if they differ from the defaults and if the next recipe
            takes them.
        flags: as for ``Step``; they win.
    """
    told: dict[str, object] = {}
    for given in shared:
        told |= dict(given) if isinstance(given, Mapping) else changed_settings(given)
    handed_on = {name: told[name] for name in SHARED.get(recipe, ()) if name in told}
    for given in shared:
        # Prompts that are read from the file of comparisons have the same columns.
        if isinstance(given, ComparisonArguments) and flags.get("prompts") == given.comparisons:
            handed_on |= alike(given)
    return Step(recipe, {**flags, **{k: v for k, v in handed_on.items() if k not in flags}})


def alike(given: ColumnArguments) -> dict[str, object]:
    """The flags by which another recipe reads the prompts of a file as this one did."""
    told = {"columns": given.columns, "as_messages": given.as_messages}
    return {name: value for name, value in told.items() if value}


def changed_settings(arguments: object) -> dict[str, object]:
    """What this dataclass says, of the settings that are shared, other than their defaults."""
    values = vars(arguments)
    return {
        name: values[name]
        for name, default in DEFAULTS.items()
        if name in values and values[name] != default
    }


def evaluation(
    adapter: str | Path,
    model_args: ModelArguments,
    *shared: object,
    judges: Sequence[Spec],
    held_out: Mapping[str, object] | None = None,
    end_token: str = "auto",
) -> Step:
    """The step that compares a tuned policy with the untuned model.

    The embedded model's policies are judged by its lexicon too, which they were not trained on. If
    nobody else can judge, people are asked.

    Args:
        adapter: of the policy.
        model_args: the base.
        shared: as for ``step``.
        judges: the rewards that it was trained on, if there were any.
        held_out: flags that name prompts (``held_out_flags``), if some are known.
        end_token: what closed the texts that reward models scored.
    """
    asked = list(judges)
    if is_demo(model_args) and not any(judge.kind == "lexicon" for judge in asked):
        asked.append(Spec("lexicon", "lexicon", DEMO_LEXICON))
    if not asked:
        asked.append(Spec("people", "people", beside(_run_of(adapter), "matches.sqlite")))

    prompts = held_out or ({} if is_demo(model_args) else {"prompts": "HELD_OUT.jsonl"})
    return step(
        "evaluate",
        model_args,
        *shared,
        adapter=str(adapter),
        **prompts,
        **judge_flags(asked),
        training_reward=judges[0].name if len(judges) == 1 else None,
        reward_end_token=None if end_token == "auto" else end_token,
        output_dir=beside(_run_of(adapter), "evaluation"),
    )


def judge_flags(judges: Sequence[Spec]) -> dict[str, object]:
    """The flags by which evaluate.py has these judges: the short ones, where there are any."""
    short = {
        "lexicon": "lexicon",
        "function": "reward_function",
        "reward_adapter": "reward_adapter",
    }
    flags: dict[str, object] = {}
    named = []
    for judge in judges:
        flag = short.get(judge.kind)
        if flag is None or flag in flags:
            named.append(f"{judge.name}={judge.kind}:{judge.value}")
        else:
            flags[flag] = judge.value
    return {**flags, "judges": named or None}


def held_out_flags(args: PromptArguments) -> dict[str, object]:
    """The flags by which evaluate.py reads the held-out prompts of PPO; empty if it had none."""
    if args.eval_prompts is None:
        return {}
    return {
        "prompts": args.eval_prompts,
        "skip": args.eval_skip or None,
        "prompt_tokens": args.prompt_tokens,
        **alike(args),
    }


def is_demo(model_args: ModelArguments) -> bool:
    """Whether the base is the embedded model, which has prompts and a lexicon of its own."""
    return is_embedded_model(model_args.model_name_or_path)


def wrote(path: str | Path, what: str) -> None:
    """Say that something was written, and what it is."""
    if is_first():
        print(f"wrote: {path} ({what})", flush=True)


def say_next(first: Step, other: Step | None = None) -> None:
    """Print the command that comes next, and perhaps another choice, if no recipe called this one.

    Args:
        first: what most people do next.
        other: what some do instead.
    """
    if len(_calls) > 1 or not is_first():
        return

    if _projects:
        print(f"next: {command(project_step(_projects[0]))}", flush=True)
        return
    steps = [first] if other is None else [first, other]
    told = {word for one in steps for word in one.words()}
    for word, meaning in YOURS.items():
        if word in told:
            print(f"In the command below, put {meaning} in place of {word}.")
    print(f"next: {command(first)}", flush=True)
    if other is not None:
        print(f"or: {command(other)}", flush=True)


def say_open(page: str | Path) -> None:
    """Print that a page is to be looked at, if no recipe called this one."""
    if len(_calls) <= 1 and is_first():
        print(f"open: {shlex.quote(str(page))}", flush=True)


def say_last(sentence: str) -> None:
    """Print a sentence in place of a command, if no recipe called this one."""
    if len(_calls) <= 1 and is_first():
        print(sentence, flush=True)


def command(one: Step) -> str:
    """The command line of a step in one line, quoted for a shell, with *** for a secret in it."""
    from toolkit.data.secrets import scrub  # looks for a login, which takes a library

    words = [*_program(one.recipe), *one.words()]
    for i, word in enumerate(words):
        scrubbed = scrub(word)
        if scrubbed != " ".join(word.split()):
            words[i] = scrubbed
    return shlex.join(words)


def again(recipe: str, *without: str, **flags: object) -> Step:
    """A recipe with the words that the outermost call was told.

    Args:
        recipe: its name: the same or another one.
        without: names of flags that are left out.
        flags: further ones, as for ``Step``; those that were told before are replaced.
    """
    words = _calls[0] if _calls else sys.argv[1:]
    return _Again(recipe, flags, tuple(_left(words, {*without, *flags})))


def worded(recipe: str, word: str, **flags: object) -> Step:
    """A recipe whose command line begins with a word that is no flag, and these flags."""
    return _Again(recipe, flags, (word,))


def project_step(path: str | Path, *more: str) -> Step:
    """The step that goes on with a project, with these further words."""
    return _Again("run", {}, (str(path), *more))


@dataclass(frozen=True)
class _Again(Step):
    """A step that begins with words which somebody typed."""

    typed: tuple[str, ...] = ()

    def words(self) -> list[str]:
        return [*self.typed, *super().words()]


def fresh(path: str | Path) -> str:
    """The path, or with a number behind its name if something is there: nothing is overwritten."""
    path = Path(path)
    number = 1
    found = path
    while found.exists():
        number += 1
        found = path.with_name(f"{path.stem}-{number}{path.suffix}")
    return str(found)


def beside(path: str | Path, name: str) -> str:
    """A fresh path of this name in the folder that holds ``path``."""
    return fresh(Path(path).parent / name)


def settings_file(output: str | Path) -> Path:
    """Where sample.py notes the settings of its output, a YAML file for ``--config``."""
    return Path(f"{output}.settings.yaml")


def note_settings(output: str | Path, told: Mapping[str, object]) -> None:
    """Write a command's settings beside its output, for the next command to hand on.

    A recipe that another one called says nothing of what comes next, and so leaves no such file.
    """
    path = settings_file(output)
    if len(_calls) > 1:
        path.unlink(missing_ok=True)
    else:
        write_text(path, yaml.safe_dump(dict(told)))


def settings_beside(output: str | Path) -> dict[str, object] | None:
    """What the recipe that wrote this file was told; None if that is not known."""
    try:
        found = yaml.safe_load(settings_file(output).read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError):
        return None
    return found if isinstance(found, dict) else None


def reward_beside(path: str | Path, model: str) -> str | None:
    """The adapter of reward.py in the folder that holds ``path``, if its base is this model."""
    adapter = Path(path).parent / "reward" / "adapter"
    base = base_named_by(adapter)
    if base is None or (base != model and Path(base).resolve() != Path(model).resolve()):
        return None
    return str(adapter)


def base_named_by(adapter: str | Path) -> str | None:
    """The base that an adapter's own configuration names; None if there is no such adapter."""
    try:
        text = (Path(adapter) / "adapter_config.json").read_text(encoding="utf-8")
        return str(json.loads(text)["base_model_name_or_path"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _run_of(adapter: str | Path) -> Path:
    """The folder of the run that left an adapter: it is the nearest one with a run.json."""
    folder = Path(adapter)
    return next((p for p in folder.parents if (p / "run.json").is_file()), folder.parent)


def _program(recipe: str) -> list[str]:
    """The words that start a recipe, as this process was started."""
    script = Path(sys.argv[0])
    if script.suffix == ".py" and script.parent.name == "recipes":
        path = str(script.with_name(f"{recipe}.py"))
        if world_size() > 1 and recipe == script.stem:  # only with as many does a run go on
            return [
                "accelerate",
                "launch",
                *_machines(),
                "--num_processes",
                str(world_size()),
                path,
            ]
        return ["python", path]

    name = shown_name(recipe)
    if (script.parent.name, script.name) == ("toolkit", "__main__.py"):
        return ["python", "-m", "toolkit", name]
    return [COMMAND, name]


def _machines() -> list[str]:
    """The launcher's words about several machines, as they are on this one."""
    if nodes() == 1:
        return []
    told = {
        "num_machines": str(nodes()),
        "machine_rank": os.environ.get("GROUP_RANK", ""),
        "main_process_ip": os.environ.get("MASTER_ADDR", ""),
        "main_process_port": os.environ.get("MASTER_PORT", ""),
    }
    return [word for name, value in told.items() if value for word in (f"--{name}", value)]


def _left(words: Sequence[str], without: set[str]) -> Iterator[str]:
    """The words but for these flags and their values."""
    dropping = False
    for word in words:
        if word.startswith("--"):
            dropping = word[2:].partition("=")[0].replace("-", "_") in without
        if not dropping:
            yield word


def _text(value: object) -> str:
    """A value as a word of a command line."""
    if isinstance(value, bool):
        return str(value).lower()
    return json.dumps(value) if isinstance(value, dict) else str(value)
