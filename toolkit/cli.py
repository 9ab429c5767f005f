"""The door: command line and YAML to dataclasses, and a user's mistake to one line and exit 2.

TrlParser does the parsing. Around it: a misspelt key is named with file, line and the nearest
right one; a YAML value of the wrong type is refused (TrlParser passes it on unconverted);
``--config=x`` works as ``--config x`` does; ``--help`` shows the recipe's own arguments, and
``--help_all`` those that it inherits from transformers and TRL as well.
"""

import argparse
import dataclasses
import difflib
import enum
import errno
import importlib.util
import math
import os
import sqlite3
import sys
import types
import typing
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, NoReturn, Union

import torch
import yaml
from peft.utils.error import NoMatchingPeftModuleError
from trl import TrlParser

from toolkit import endings
from toolkit.data.files import require_file, write_text
from toolkit.data.locks import letting_go
from toolkit.data.records import Row
from toolkit.errors import InputError, check_finite, check_numbers
from toolkit.flags import choices_of
from toolkit.launched import world_size
from toolkit.record import RUN_FILE, RunRecord
from toolkit.scoring.guests import new_guests
from toolkit.training.distributed import leave
from toolkit.training.ppo.guards import RunStopped
from toolkit.training.ppo.signals import Interrupted
from toolkit.training.run_log import peak_mb

WHOLE = "no file is half-written; the same command starts again"
DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS)  # where no name is given
RECIPES = Path(__file__).parent.parent / "recipes"


class _HelpFormatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """The recipe's docstring as it stands, and each argument's default."""


class _OneLineParser(TrlParser):
    def error(self, message: str) -> NoReturn:
        raise InputError(f"{message} (see --help)")


def run(main: Callable[..., object], processes: bool = False) -> NoReturn:
    """Call ``main`` with the dataclasses that it is annotated with, filled from the command line.

    Several processes are refused unless ``processes`` says that ``main`` can share its work.

    Exit codes: 0 done, main's own if it returns an int, 2 for a mistake that the user can mend
    (one line on stderr), 1 for a run that diverged, 128 + its number for a signal (``endings``).
    """
    try:
        with endings.heard():
            if world_size() > 1 and not processes:
                raise InputError("this recipe runs in one process (launch with --num_processes 1)")
            if not torch.cuda.is_available() and "OMP_NUM_THREADS" not in os.environ:
                # As `accelerate launch` does. Measured on two busy cores: two threads were 10 to
                # 40 times slower than one for small models.
                torch.set_num_threads(1)
            code = call(main, sys.argv[1:])
            leave()
    except (Exception, KeyboardInterrupt) as error:
        code, lines = _ending(error)
        if not lines:  # a bug: its traceback is wanted
            raise
        endings.let_go(error)
        endings.say("\n       ".join(lines))
    sys.exit(code if isinstance(code, int) else 0)


def _ending(error: BaseException) -> tuple[int, list[str]]:
    """The exit code and the lines for what ended a recipe; no lines if it is a bug."""
    said = _one_line(error)
    if isinstance(error, InputError | NoMatchingPeftModuleError):
        details = [" ".join(detail.split()) for detail in getattr(error, "details", [])]
        return 2, [f"error: {said}", *details]
    if isinstance(error, RunStopped):  # a run that diverged: nobody's typing mistake
        return 1, [f"stopped: {said}"]
    if isinstance(error, Interrupted | KeyboardInterrupt):
        kept = getattr(error, "__notes__", [said if isinstance(error, Interrupted) else WHOLE])
        return getattr(error, "code", 130), [f"interrupted: {kept[0]}"]
    if isinstance(error, sqlite3.Error):  # the store of labels: locked, full, gone
        return 2, [f"error: the store of labels: {said}"]
    if isinstance(error, OSError) and error.filename is not None:
        # No such folder, no permission: nothing to debug.
        return 2, [f"error: {error.filename}: {error.strerror}"]
    if isinstance(error, OSError) and error.errno in DISK:
        return 2, [f"error: a file was not written: {error.strerror} (make room on the disk)"]
    return 1, []


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())


def recipe(name: str) -> types.ModuleType:
    """Load the module recipes/NAME.py by its path, once, as ``toolkit.recipes.NAME``.

    The name is one that no other module has: a user's own reward.py stays ``reward``.
    """
    full_name = f"toolkit.recipes.{name}"
    if full_name in sys.modules:
        return sys.modules[full_name]

    spec = importlib.util.spec_from_file_location(full_name, RECIPES / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[full_name] = module  # type hints and docstrings are looked up there
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[full_name]
        raise
    return module


def call(main: Callable[..., Any], argv: list[str]) -> Any:
    """``main``'s result for these words of a command line: a recipe as a function.

    What it locked of its outputs is let go of when it ends, and users' functions draw from random
    states of this call's own.
    """
    with letting_go(), new_guests():
        return main(*bind(main, argv))


def bind(main: Callable[..., object], argv: list[str]) -> tuple[Any, ...]:
    """The arguments that ``main`` would be called with for these words."""
    hints = typing.get_type_hints(main)
    hints.pop("return", None)
    description = sys.modules[main.__module__].__doc__
    return parse(*hints.values(), argv=argv, description=description)


def flag_names(main: Callable[..., object]) -> set[str]:
    """All the flags that a recipe takes on its command line, in each of their spellings."""
    classes = [hint for name, hint in main.__annotations__.items() if name != "return"]
    parser = _OneLineParser(typing.cast(Any, classes), allow_abbrev=False)
    names = {name for action in parser._actions for name in action.option_strings}
    return names | {"--config", "--help_all"}


def parse(
    *dataclass_types: type, argv: list[str], description: str | None = None
) -> tuple[Any, ...]:
    """Instances of ``dataclass_types`` from the words of a command line.

    ``description`` opens the help.

    Raises:
        InputError: unknown or misspelt keys, wrong types, values out of range, a config file that
            is missing or is not a YAML mapping.
    """
    parser = _OneLineParser(
        typing.cast(Any, dataclass_types),
        allow_abbrev=False,
        description=description,
        formatter_class=_HelpFormatter,
    )
    parser.add_argument("--config", help="YAML file with any of these arguments; flags win.")
    parser.add_argument("--help_all", action="store_true", help="Show inherited arguments too.")
    args = list(argv)
    if "--help_all" in args:
        args = ["--help"]
    else:
        _hide_inherited(parser, dataclass_types)
    _leave_choices_to_the_fields(parser, dataclass_types)
    for action in parser._actions:
        if callable(action.type):  # before a library's own checks, which trip over an infinity
            action.type = _checked(action.type)

    # The file's values become defaults, so that flags win.
    config_path, args = _take_config(args)
    lines: dict[str, int] = {}
    if config_path is not None:
        values, lines = _read_config(config_path, parser, dataclass_types)
        parser.set_defaults_with_config(**values)

    try:
        *parsed, unknown = parser.parse_args_into_dataclasses(args, return_remaining_strings=True)
        check_finite(*filter(dataclasses.is_dataclass, parsed))
    except InputError as error:
        given = any(arg.split("=")[0] == f"--{error.field}" for arg in args)
        if error.field in lines and not given:
            raise InputError(f"{config_path}:{lines[error.field]}: {error}") from None
        raise
    except (ValueError, TypeError) as error:  # from transformers' own dataclasses
        raise InputError(_one_line(error)) from None

    if unknown:
        name = unknown[0].split("=")[0]
        raise InputError(f"unknown argument {name}{_suggest(name.lstrip('-'), _names(parser))}")
    return tuple(p for p in parsed if dataclasses.is_dataclass(p))


def changed(*arguments: Any) -> Row:
    """What these dataclass instances were told other than their defaults, as YAML could hold it.

    Passed back by ``--config`` it makes the same run. No Hub token gets in.
    """
    result: Row = {}
    for instance in arguments:
        default = type(instance)()
        for f in dataclasses.fields(instance):
            value = getattr(instance, f.name)
            plain = isinstance(value, str | int | float | bool | dict | list | None)
            if f.init and plain and value != getattr(default, f.name) and f.name != "hub_token":
                result[f.name] = value.value if isinstance(value, enum.Enum) else value
    return result


def _settings(*arguments: Any) -> Row:
    """All of the toolkit's own arguments (those of --help), default or not."""
    names: Row = {}
    for instance in arguments:
        fields = {f.name for f in dataclasses.fields(instance)}
        for name in _own_fields(type(instance)) & fields:
            value = getattr(instance, name, None)
            names[name] = value.value if isinstance(value, enum.Enum) else value
    return names


def _own_fields(cls: type) -> set[str]:
    names = set(getattr(cls, "HELP_FIELDS", ()))
    for parent in cls.__mro__:
        if parent.__module__.split(".")[0] not in ("transformers", "trl", "builtins"):
            names |= set(parent.__dict__.get("__annotations__", {}))
    return names - {"HELP_FIELDS"}


def write_config(folder: Path, arguments: Row) -> Path:
    """``arguments`` (``changed``) as a file for ``--config``."""
    path = folder / "config.yaml"
    write_text(path, yaml.safe_dump(arguments))
    return path


def write_run(
    folder: Path,
    method: str,
    *arguments: Any,
    data: Row | None = None,
    metrics: Row | None = None,
    history: list[Row] | None = None,
    seconds: float | None = None,
    reward_verdicts: list[Row] | None = None,
) -> None:
    """Write down what made a result: its method, its arguments, the versions at work and the rest.

    Args:
        folder: where run.json goes.
        method: the name of a row of ``training.methods``, or "evaluate".
        arguments: the recipe's dataclasses.
        data, metrics, history, seconds, reward_verdicts: parts of ``RunRecord``.
    """
    seed = next((a.seed for a in arguments if hasattr(a, "seed")), None)
    record = RunRecord.now(method, changed(*arguments), _settings(*arguments), seed, peak_mb())
    record.data = data
    record.metrics = metrics
    record.history = history
    record.seconds = seconds
    record.reward_verdicts = reward_verdicts
    record.write(folder / RUN_FILE)


def _checked(inner: Callable[[str], object]) -> Callable[[str], object]:
    """The converter of a word of the command line, which takes no NaN and no infinity."""

    def convert(word: str) -> object:
        value = inner(word)
        if isinstance(value, tuple):  # a word that was split into its letters
            raise argparse.ArgumentTypeError("several numbers: give them as a list in --config")
        if isinstance(value, float) and not math.isfinite(value):
            raise argparse.ArgumentTypeError(f"{word} is no number (give a finite one)")
        return value

    convert.__name__ = getattr(inner, "__name__", "value")  # what argparse calls it in messages
    return convert


def _names(parser: argparse.ArgumentParser) -> list[str]:
    return [action.dest for action in parser._actions if action.dest not in ("help", "help_all")]


def _suggest(name: str, names: list[str]) -> str:
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.6)
    return f" (did you mean {close[0]}?)" if close else " (see --help for those there are)"


def _hide_inherited(parser: argparse.ArgumentParser, dataclass_types: tuple[type, ...]) -> None:
    """Keep in --help what the toolkit's own classes declare, and what they list in HELP_FIELDS."""
    shown = {"config", "help", "help_all"}
    for cls in dataclass_types:
        shown |= _own_fields(cls)
    for action in parser._actions:
        if action.dest not in shown:
            action.help = argparse.SUPPRESS


def _leave_choices_to_the_fields(
    parser: argparse.ArgumentParser, dataclass_types: tuple[type, ...]
) -> None:
    """Have argparse show our fields' choices and not check them.

    The fields do (``flags.check_flags``), in our words and with the line of a YAML file.
    """
    words = {name for cls in dataclass_types for name in choices_of(cls)}
    for action in parser._actions:
        if action.dest in words and action.choices is not None:
            action.metavar = f"{{{','.join(action.choices)}}}"
            action.choices = None


def _take_config(args: list[str]) -> tuple[Path | None, list[str]]:
    rest: list[str] = []
    path = None
    remaining = iter(args)
    for arg in remaining:
        if arg == "--config":
            path = next(remaining, None)
            if path is None:
                raise InputError("--config: expected the path of a YAML file after it")
        elif arg.startswith("--config="):
            path = arg.removeprefix("--config=")
        else:
            rest.append(arg)
    return (None if path is None else require_file(path, "--config")), rest


def _read_config(
    path: Path, parser: argparse.ArgumentParser, dataclass_types: tuple[type, ...]
) -> tuple[dict[str, object], dict[str, int]]:
    """The file's values, checked against the dataclasses' types, and the line of each key."""
    try:
        text = path.read_text(encoding="utf-8")
        node, values = yaml.compose(text), yaml.safe_load(text)
    except UnicodeDecodeError:
        raise InputError(f"{path}: not UTF-8 (save the file as UTF-8)") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{path}:{mark.line + 1}" if mark else str(path)
        raise InputError(f"{where}: not YAML, {getattr(error, 'problem', error)}") from None
    if not isinstance(values, dict) or not isinstance(node, yaml.MappingNode):
        raise InputError(f"{path}:1: not a YAML mapping (write one `name: value` a line)")

    lines: dict[str, int] = {}
    for key, _ in node.value:
        name, line = str(key.value), key.start_mark.line + 1
        if name in lines:
            raise InputError(f"{path}:{line}: {name} is given twice, first in line {lines[name]}")
        lines[name] = line

    hints = _type_hints(dataclass_types)
    for key, value in values.items():
        where = f"{path}:{lines.get(str(key), 1)}"  # a merged key has no line of its own
        if key not in hints:
            raise InputError(f"{where}: unknown key {key!r}{_suggest(str(key), _names(parser))}")
        try:
            values[key] = _convert(value, hints[key])
        except ValueError:
            wanted = _name_of(hints[key])
            raise InputError(f"{where}: {key} is {value!r}, but must be of type {wanted}") from None
        try:
            check_numbers(key, values[key])
        except InputError as error:
            raise InputError(f"{where}: {error}", key) from None
    return values, lines


def _type_hints(dataclass_types: tuple[type, ...]) -> dict[str, object]:
    hints: dict[str, object] = {}
    for cls in dataclass_types:
        resolved = typing.get_type_hints(cls)
        hints |= {f.name: resolved[f.name] for f in dataclasses.fields(cls) if f.init}
        for name in choices_of(cls):  # any text for now: the field says which words it takes
            optional = type(None) in typing.get_args(hints[name])
            hints[name] = str | None if optional else str
    return hints


def _name_of(hint: object) -> str:
    """A type as a person would write it: ``int | None``."""
    if typing.get_origin(hint) not in (Union, types.UnionType):
        return getattr(hint, "__name__", str(hint))

    options = [o.__name__ if isinstance(o, type) else str(o) for o in typing.get_args(hint)]
    return " | ".join(options).replace("NoneType", "None")


def _convert(value: object, hint: object) -> object:
    """``value`` as ``hint`` wants it (a float of 3 and of "1e-5"), or ValueError."""
    origin, options = typing.get_origin(hint), typing.get_args(hint)
    if origin in (Union, types.UnionType):
        for option in sorted(options, key=lambda o: o is str):  # str last: it takes anything typed
            try:
                return _convert(value, option)
            except ValueError:
                continue
        raise ValueError

    if origin is list and isinstance(value, list):
        return [_convert(v, options[0]) for v in value]
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if hint is float and (number or isinstance(value, str)):
        # YAML 1.1 reads 1e-5, which has no point, as a string.
        return float(typing.cast(float | str, value))

    if origin is Literal:
        fits = value in options
    elif origin is list or hint is float:
        fits = False
    elif hint is int:
        fits = number and isinstance(value, int)
    elif hint in (bool, str, type(None)):
        fits = isinstance(value, typing.cast(type, hint))
    else:  # transformers' enums and dicts: their own __post_init__ checks them
        fits = True
    if not fits:
        raise ValueError
    return value
