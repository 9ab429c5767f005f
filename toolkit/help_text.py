"""How ``--help`` looks: the toolkit's own flags, in groups, each once."""

import argparse
import dataclasses
import textwrap

from toolkit.embedded import short_name
from toolkit.flags import is_library

# The groups in the order of the help. A class of flags names its group in HELP_GROUP, and a class
# with flags of several groups in HELP_GROUPS; what is in none of them belongs to the command alone.
OWN = "this command"
ORDER = (
    OWN,
    "store and labeling page",
    "model",
    "prompts and data",
    "completions",
    "rewards and labelers",
    "method",
    "KL penalty",
    "LoRA adapter",
    "training",
    "pretraining mix",
    "sampling by a vLLM server",
    "evaluation",
    "guards against faults",
    "output, saving and resuming",
    "general",
)
LONGEST_CHOICES = 50  # characters that stand beside a flag; longer lists go into its text
OUTPUT = ("output", "output_dir", "overwrite")

# What stands for a value, where the last word of the flag's name says too little.
VALUES = {
    "adapter": "FOLDER", "adapters": "FOLDER", "backup": "FILE", "columns": "NAME=HEADER",
    "comparisons": "FILE", "demonstrations": "FILE",
    "config": "FILE",
    "configs": "FOLDER", "contender": "NAME", "contenders": "NAME=WHAT", "data": "TEXT",
    "evaluation": "FOLDER", "fractions": "NUMBERS", "function": "MODULE:FUNCTION", "gold": "FILE",
    "gpu": "CARD",
    "guidelines": "FILE", "input": "FILE", "invite": "NAMES", "judges": "NAME=KIND:VALUE",
    "kwargs": "JSON", "labeler": "NAME", "labels": "TEXT", "lexicon": "FILE", "output": "PATH",
    "ptx_data": "FILE",
    "prompts": "FILE", "reranker": "NAME", "resume": "FOLDER", "reward": "NAME",
    "rewards": "FOLDER", "run": "FOLDER", "runs": "FOLDER", "samples": "FILE", "scores": "FILE",
    "stages": "NAMES", "start": "FOLDER",
    "store": "FILE", "text": "FILE", "title": "TEXT", "to": "TRACKER",
    "tokenizer": "PATH", "trainings": "FOLDER",
}  # fmt: skip

# Our words for flags of transformers and TRL, whose own speak of what is not here.
PLAINER = {
    "beta": "Weight of the KL penalty; 0 leaves the reference out.",
    "center_rewards_coefficient": "Weight of a penalty that draws the mean of scores to 0, for "
    "example 0.01.",
    "disable_tqdm": "Print no progress bars.",
    "epsilon": "Clip the probability ratio to 1 plus or minus this.",
    "gradient_accumulation_steps": "Batches whose gradients are added up for one optimizer step.",
    "label_smoothing": "Probability that a pick is wrong, for losses that allow for it (dpo's "
    "robust).",
    "loss_weights": "Weights of several losses; by default each weighs 1.",
    "lr_scheduler_type": "How the learning rate changes: linear falls to 0, constant stays, and "
    "so on.",
    "max_length": "Most tokens of a prompt with a completion; --long_rows says what happens to "
    "longer rows.",
    "max_steps": "Optimizer steps of the run, in place of num_train_epochs; -1 for no such limit.",
    "normalize_advantages": "Bring the advantages of a batch to mean 0 and standard deviation 1.",
    "num_iterations": "Passes over each batch of completions.",
    "report_to": "Where to send the logs besides log.jsonl: tensorboard, wandb, all, or none.",
    "seed": "Seed of everything that is drawn at random.",
    "warmup_steps": "Steps in which the learning rate rises from 0; below 1, a part of the run.",
    "weight_decay": "Weight decay of the optimizer; biases and norms have none.",
}


class HelpFormatter(argparse.HelpFormatter):
    """The recipe's docstring, commands in it as they stand; and each flag once, with its default.

    Lines break at spaces alone, so that a flag or a path stays whole.
    """

    def _split_lines(self, text: str, width: int) -> list[str]:
        return _wrapped(" ".join(text.split()), width)

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        paragraphs = text.strip().split("\n\n")
        return "\n\n".join(
            paragraph
            if paragraph.startswith(" ")
            else "\n".join(_wrapped(" ".join(paragraph.split()), width))
            for paragraph in paragraphs
        )

    def _format_action_invocation(self, action: argparse.Action) -> str:
        if not action.option_strings:
            return super()._format_action_invocation(action)
        flag = next(o for o in action.option_strings if o.startswith("--"))
        return f"{flag} {self._format_args(action, _value_of(action))}".rstrip()

    def _get_help_string(self, action: argparse.Action) -> str:
        text = action.help or ""
        if action.default in (None, [], argparse.SUPPRESS) or action.nargs == 0:
            return text
        default = _as_typed(action.default).replace("%", "%%")
        return f"{text} (default: {default})"


def _value_of(action: argparse.Action) -> str:
    """What stands for a flag's value, in capitals, unless it was said already."""
    if action.metavar is not None or action.nargs == 0:
        return str(action.metavar)
    kind = getattr(action.type, "__name__", "")
    last_word = action.dest.rpartition("_")[2]  # the PATH of model_name_or_path
    value = VALUES.get(action.dest, VALUES.get(last_word, last_word.upper()))
    return {"int": "N", "float": "X", "string_to_bool": "true|false"}.get(kind, value)


def _as_typed(default: object) -> str:
    """A default as one would type it: true, 1.0 2.0, demo:model."""
    if isinstance(default, bool):
        return str(default).lower()
    if isinstance(default, list):
        return " ".join(map(_as_typed, default))
    return short_name(str(default))


def _wrapped(text: str, width: int) -> list[str]:
    return textwrap.wrap(text, width, break_on_hyphens=False, break_long_words=False)


def arrange_help(
    parser: argparse.ArgumentParser, dataclass_types: tuple[type, ...], all_flags: bool
) -> None:
    """Put the flags into their groups, and leave out what only repeats or is not ours.

    Args:
        parser: with all flags of the dataclasses.
        dataclass_types: of the recipe.
        all_flags: show what is inherited from transformers and TRL as well.
    """
    shown = {name for cls in dataclass_types for name in own_fields(cls)}
    by_title: dict[str, list[argparse.Action]] = {title: [] for title in ORDER}

    foreign = library_texts(dataclass_types)

    for action in parser._actions:
        if action.dest == "help":
            action.help = "Show this help, and exit."
        elif action.dest in PLAINER and action.help in foreign:
            action.help = PLAINER[action.dest]
        if action.choices is not None:
            _show_choices(action)
        general = action.dest in ("config", "help", "help_all")
        says_the_opposite = action.nargs == 0 and not general  # --no_x, of a flag that is on
        if says_the_opposite or not (general or all_flags or action.dest in shown):
            action.help = argparse.SUPPRESS
        else:
            by_title[group_of(action.dest, dataclass_types)].append(action)

    parser._action_groups.clear()
    for title, actions in by_title.items():
        parser.add_argument_group(title)._group_actions.extend(actions)


def _show_choices(action: argparse.Action) -> None:
    """Put the words that a flag takes beside it, or into its text if they are long."""
    listed = [str(choice) for choice in action.choices or ()]
    beside = f"{{{','.join(listed)}}}"
    if len(beside) <= LONGEST_CHOICES:
        action.metavar = beside
    else:
        action.metavar = action.dest.rpartition("_")[2].upper()
        action.help = f"{action.help} One of: {', '.join(listed)}."


def group_of(name: str, dataclass_types: tuple[type, ...]) -> str:
    """The title of the group that a flag is in.

    Args:
        name: of the flag.
        dataclass_types: of the recipe.
    """
    if name in OUTPUT:
        return "output, saving and resuming"

    for cls in dataclass_types:
        if name not in {f.name for f in dataclasses.fields(cls)}:
            continue
        for parent in cls.__mro__:
            for title, names in parent.__dict__.get("HELP_GROUPS", {}).items():
                if name in names:
                    return str(title)
        # The class that had the flag first: a recipe may only give it another default.
        for parent in reversed(cls.__mro__):
            if not is_library(parent) and name in parent.__dict__.get("__annotations__", {}):
                return str(parent.__dict__.get("HELP_GROUP", OWN))
    return "general"


def library_texts(dataclass_types: tuple[type, ...]) -> set[str]:
    """The help texts that transformers and TRL wrote for the flags of these dataclasses."""
    parents = [p for cls in dataclass_types for p in cls.__mro__ if is_library(p)]
    return {
        str(f.metadata.get("help")).replace("%", "%%")
        for parent in parents
        if dataclasses.is_dataclass(parent)
        for f in dataclasses.fields(parent)
    }


def own_fields(cls: type) -> set[str]:
    """The fields that the toolkit's own classes declare, and those they list in HELP_GROUPS."""
    names: set[str] = set()
    for parent in cls.__mro__:
        if not is_library(parent):
            names |= set(parent.__dict__.get("__annotations__", {}))
        for listed in parent.__dict__.get("HELP_GROUPS", {}).values():
            names |= set(listed)
    return names & {f.name for f in dataclasses.fields(cls)}
