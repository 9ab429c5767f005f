"""Parse command line and YAML into dataclasses, and report a user's mistake in one line (exit 2).

TrlParser does the parsing. This module adds: a message for a misspelt key with file, line and the
nearest key; a check of YAML types (TrlParser passes values on unconverted); ``--config=x`` besides
``--config x``; ``--help`` with only the recipe's own arguments, and ``--help_all`` with those that
it inherits from transformers and TRL.
"""

import argparse
import dataclasses
import difflib
import enum
import errno
import gc
import importlib.util
import inspect
import math
import os
import sqlite3
import sys
import types
import typing
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, NoReturn, Union

import yaml
from trl import TrlParser

from toolkit import endings, next_step
from toolkit.data.files import require_file, write_text
from toolkit.data.locks import letting_go
from toolkit.data.records import Row
from toolkit.embedded import RECIPES, expand_value, expand_words
from toolkit.errors import (
    Caution,
    InputError,
    Interrupted,
    RunStopped,
    check_choice,
    check_finite,
    check_numbers,
)
from toolkit.flags import Flags, choices_of, named_of, words_of
from toolkit.help_text import HelpFormatter, arrange_help, own_fields
from toolkit.late import when_imported
from toolkit.launched import world_size
from toolkit.project import (
    AGREED,
    STAGES,
    TRAIN_ON_REWARD,
    Project,
    lines_of,
    load_yaml,
    same,
)
from toolkit.record import RUN_FILE, RunRecord
from toolkit.scoring.guest_state import new_guests

WHOLE = "no file is half-written, and the same command starts again"
LOST = (
    "another process of this run has ended, or its machine cannot be reached; its own output says "
    "why. Once all are started again, --resume auto goes on from the last checkpoint."
)
# torch reads its allocator's settings from these; the first is today's name.
ALLOCATOR = ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_HIP_ALLOC_CONF")
DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS)  # where no name is given


class _OneLineParser(TrlParser):
    def error(self, message: str) -> NoReturn:
        raise InputError(f"{message} (see --help)")


def run(main: Callable[..., object], processes: bool = False) -> NoReturn:
    """Call ``main`` with the dataclasses of its annotations, filled from the command line.

    Several processes are refused unless ``processes`` is set, which means that they share the work.

    Exit codes: 0 for success; ``main``'s result if it is an int; 2 for a mistake that the user can
    correct (one line on stderr); 1 for a run that diverged; 128 + its number for a signal.
    """
    warnings.formatwarning = _warned
    try:
        with endings.heard():
            if world_size() > 1 and not processes:
                raise InputError("this recipe runs in one process (use --num_processes 1)")
            _let_segments_grow()
            when_imported("torch", _one_thread)
            code = call(main, sys.argv[1:])
            if distributed := sys.modules.get("toolkit.training.distributed"):
                distributed.leave()
    except (Exception, KeyboardInterrupt) as error:
        code, lines = _ending(error)
        if not lines:  # a bug, which keeps its traceback
            raise
        endings.let_go(error)
        said = "\n       ".join(lines)
        if (further := _how_to_go_on(main, error)) is not None:
            said += f"\nnext: {next_step.command(further)}"
        endings.say(said)
    sys.exit(code if isinstance(code, int) else 0)


_plainly = warnings.formatwarning


def _warned(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    line: str | None = None,
) -> str:
    """Return the text of a warning: a line for the user, or the place in the code for others."""
    if issubclass(category, Caution):
        return f"warning: {message}\n"
    return _plainly(message, category, filename, lineno, line)


def _one_thread(torch: types.ModuleType) -> None:
    """Have torch use one thread on a CPU, as `accelerate launch` does.

    Measured on two busy cores: two threads were 10 to 40 times slower than one for small models.
    """
    if not torch.cuda.is_available() and "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(1)


def _let_segments_grow() -> None:
    """Have torch join free blocks of a GPU's memory, unless the user has set its allocator.

    Passes of many lengths would otherwise leave blocks between them that nothing fits. torch reads
    the variable when it first allocates on a GPU; the other names are the older ones.
    """
    if not any(name in os.environ for name in ALLOCATOR):
        os.environ[ALLOCATOR[0]] = "expandable_segments:True"


def _ending(error: BaseException) -> tuple[int, list[str]]:
    """Return the exit code and the lines for an exception; no lines for a bug."""
    said = _one_line(error)
    if isinstance(error, InputError):
        details = [" ".join(detail.split()) for detail in error.details]
        return error.code, [f"error: {said}", *details]
    peft = sys.modules.get("peft.utils.error")  # it cannot have raised anything before
    if peft is not None and isinstance(error, peft.NoMatchingPeftModuleError):
        return 2, [f"error: {said}"]
    if isinstance(error, RunStopped):
        return error.code, [f"stopped: {said}"]
    if isinstance(error, Interrupted | KeyboardInterrupt):
        kept = getattr(error, "__notes__", [said if isinstance(error, Interrupted) else WHOLE])
        return getattr(error, "code", 130), [f"interrupted: {kept[0]}"]
    if isinstance(error, sqlite3.Error):  # the label store is locked, full or gone
        return 2, [f"error: the label store: {said}"]
    if isinstance(error, OSError) and error.filename is not None:
        # A missing folder or permission is not a bug.
        return 2, [f"error: {error.filename}: {error.strerror}"]
    if isinstance(error, OSError) and error.errno in DISK:
        return 2, [f"error: a file was not written: {error.strerror} (make room on the disk)"]
    distributed = sys.modules.get("toolkit.training.distributed")
    if distributed is not None and distributed.is_lost(error):
        return 1, [f"stopped: {LOST}", f"({said[:200]})"]
    return 1, []


def _how_to_go_on(main: Callable[..., object], error: BaseException) -> next_step.Step | None:
    """The command that goes on with what a signal cut off; None if it has to start anew."""
    recipe_file = sys.modules[main.__module__].__file__
    name = Path(str(recipe_file)).stem
    if isinstance(error, Interrupted | KeyboardInterrupt) and hasattr(error, "__notes__"):
        return next_step.again(name, "overwrite")  # ``endings.goes_on``
    if isinstance(error, Interrupted):
        return next_step.again(name, "overwrite", resume="auto")
    return None


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())


def recipe(name: str) -> types.ModuleType:
    """Load the module recipes/NAME.py by its path, once, as ``toolkit.recipes.NAME``.

    No other module has this name, so a user's own reward.py stays ``reward``.
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
    """Call a recipe's ``main`` as a function with these words of a command line.

    Locks on outputs are released at the end, and users' functions have random states of their own.
    If a recipe calls another one, only the first prints what comes next.
    """
    with next_step.called(argv), letting_go(), new_guests():
        bound = bind(main, argv)
        if (project := _project_of(argv)) is not None:
            if name_of(main) in STAGES:
                next_step.in_project(project.path)
            _check_inputs(project, name_of(main), argv, bound)
        return main(*bound)


def bind(main: Callable[..., object], argv: list[str]) -> tuple[Any, ...]:
    """Return the arguments of ``main`` for these words."""
    description = sys.modules[main.__module__].__doc__
    bound = parse(
        *flag_classes(main), argv=argv, description=description, recipe_name=name_of(main)
    )
    gc.enable()  # toolkit/__init__.py and the console command turn it off
    return bound


def name_of(main: Callable[..., object]) -> str:
    """The name of the recipe whose ``main`` this is."""
    return Path(str(sys.modules[main.__module__].__file__)).stem


def _project_of(argv: list[str]) -> Project | None:
    """The project file that these words name by ``--config``; None if they name another or none."""
    path, _ = _take_config(expand_words(argv))
    return None if path is None else Project.if_any(path)


def _check_inputs(project: Project, name: str, argv: list[str], bound: tuple[Any, ...]) -> None:
    """Check what a stage of a project reads of earlier ones, before it loads anything.

    Raises:
        InputError: it is not there yet, or its reward model was trained with other settings.
    """
    if name not in STAGES:
        return
    told = {key: value for part in bound for key, value in vars(part).items()}
    for key, path in project.inputs(name, argv).items():
        if told.get(key) == path and not Path(path).exists():
            raise InputError(
                f"{key}: {path} is not there yet; an earlier stage of {project.path} makes it "
                f"(preftune run {project.path} runs all of them)",
                key,
            )
    if name in TRAIN_ON_REWARD and told.get("reward_adapter"):
        project.check_reward(name, str(told["reward_adapter"]), told)


def flag_classes(main: Callable[..., object]) -> list[type]:
    """The dataclasses of flags that a recipe's ``main`` is annotated with, in their order."""
    hints = inspect.get_annotations(main)
    hints.pop("return", None)  # may name a class that is not imported for a help text
    return list(hints.values())


def flag_names(main: Callable[..., object]) -> set[str]:
    """All the flags that a recipe takes on its command line, in each of their spellings."""
    classes = [hint for name, hint in main.__annotations__.items() if name != "return"]
    parser = _OneLineParser(typing.cast(Any, classes), allow_abbrev=False)
    names = {name for action in parser._actions for name in action.option_strings}
    return names | {"--config", "--help_all"}


def parse(
    *dataclass_types: type,
    argv: list[str],
    description: str | None = None,
    recipe_name: str = "",
) -> tuple[Any, ...]:
    """Make instances of ``dataclass_types`` from the words of a command line.

    The help begins with ``description``. A path written ``demo:NAME``, here or in the config file,
    names a file that comes with the toolkit (``embedded``). Of a project file, the recipe's part is
    read (``project``).

    Raises:
        InputError: a key is unknown, a type is wrong, a value is out of range, or a config file is
            missing or not a YAML mapping.
    """
    renamed: dict[str, str] = {}
    for cls in dataclass_types:
        renamed |= cls.RENAMED if issubclass(cls, Flags) else {}
    args = _with_new_names(_with_first_flag(expand_words(argv), dataclass_types), renamed)
    parser = parser_of(*dataclass_types, description=description, inherited="--help_all" in args)
    if "--help_all" in args:
        args = ["--help"]
    words = {name: found for cls in dataclass_types for name, found in words_of(cls).items()}
    checked_by_fields = {name for cls in dataclass_types for name in choices_of(cls)}
    for action in parser._actions:
        if action.dest in checked_by_fields:  # in our words, and with the line of a YAML file
            action.choices = None
        if callable(action.type):  # before a library's own checks, which fail for an infinity
            action.type = _checked(action.type, words.get(action.dest, ()))

    # The file's values become defaults, so that flags override them.
    config_path, args = _take_config(args)
    lines: dict[str, int] = {}
    project = None
    if config_path is not None:
        project = Project.if_any(config_path)
        hints = _type_hints(dataclass_types)
        if project is not None:
            values, lines = project.told(recipe_name, {*hints, *renamed}, args)
        else:
            values, node = load_yaml(config_path)
            lines = lines_of(config_path, node)
        _check_config(config_path, values, lines, parser, dataclass_types, renamed)
        parser.set_defaults_with_config(**values)

    args = _with_lists_joined(args, parser)

    # A word that nobody knows is the mistake to name, before the fields look at their values.
    _, unknown = parser.parse_known_args(args)
    if unknown:
        name = unknown[0].split("=")[0]
        if not name.startswith("-"):
            raise InputError(f"no flag stands before {unknown[0]!r} (--help lists the flags)")
        raise InputError(
            f"unknown argument {name}{_suggest(name.lstrip('-'), _names(parser), '--')}"
        )

    try:
        parsed = parser.parse_args_into_dataclasses(args)
        check_finite(*filter(dataclasses.is_dataclass, parsed))
    except InputError as error:
        given = any(arg.split("=")[0] == f"--{error.field}" for arg in args)
        if error.field in lines and not given:
            raise InputError(f"{config_path}:{lines[error.field]}: {error}") from None
        raise
    except (ValueError, TypeError) as error:  # from transformers' own dataclasses
        raise InputError(_one_line(error)) from None

    found = tuple(p for p in parsed if dataclasses.is_dataclass(p))
    if project is not None:
        _note_disagreement(project, args, found)
    return found


def _note_disagreement(project: Project, args: list[str], parsed: tuple[Any, ...]) -> None:
    """Warn of flags that give a stage of a project what its other stages do not have."""
    told = {name: value for part in parsed for name, value in vars(part).items()}
    for name in AGREED:
        given = any(arg.split("=")[0].replace("-", "_") == f"__{name}" for arg in args)
        if given and name in told and not same(name, told[name], project.agreed(name)):
            warnings.warn(
                f"--{name} is {told[name]!r} here, but {project.agreed(name)!r} for the other "
                f"stages of {project.path}",
                Caution,
                stacklevel=3,
            )


def parser_of(
    *dataclass_types: type, description: str | None = None, inherited: bool = False
) -> TrlParser:
    """The parser of a recipe that takes these dataclasses.

    Args:
        dataclass_types: in the recipe's order.
        description: opens the help.
        inherited: show in the help what the recipe inherits from transformers and TRL, too.
    """
    parser = _OneLineParser(
        typing.cast(Any, dataclass_types),
        allow_abbrev=False,
        description=description,
        formatter_class=HelpFormatter,
        usage=f"%(prog)s {''.join(f'[{flag.upper()}] ' for flag in first_flags(dataclass_types))}"
        "[--config FILE] [--FLAG VALUE ...]",
    )
    parser.add_argument(
        "--config",
        metavar="FILE",
        help="Read flags from this YAML file, or this command's part of a project file "
        "(preftune init); the command line wins.",
    )
    parser.add_argument(
        "--help_all",
        action="store_true",
        help="Show the flags inherited from transformers and TRL too, and exit.",
    )
    arrange_help(parser, dataclass_types, inherited)
    return parser


def changed(*arguments: Any) -> Row:
    """Return the values that differ from the defaults, in a form for YAML.

    As a ``--config`` they give the same run. A Hub token is left out.
    """
    result: Row = {}
    for instance in arguments:
        default = type(instance)()
        given = vars(instance).get("given_defaults", ())  # without them, others would be chosen
        for f in dataclasses.fields(instance):
            value = getattr(instance, f.name)
            plain = isinstance(value, str | int | float | bool | dict | list | None)
            differs = value != getattr(default, f.name) or (f.name in given and value is not None)
            if f.init and plain and differs and f.name != "hub_token":
                result[f.name] = value.value if isinstance(value, enum.Enum) else value
    return result


def _settings(*arguments: Any) -> Row:
    """Return all of the toolkit's own arguments (those in --help), default or not."""
    names: Row = {}
    for instance in arguments:
        fields = {f.name for f in dataclasses.fields(instance)}
        for name in own_fields(type(instance)) & fields:
            value = getattr(instance, name, None)
            names[name] = value.value if isinstance(value, enum.Enum) else value
    return names


def write_config(folder: Path, arguments: Row) -> Path:
    """Write ``arguments`` (from ``changed``) as a file for ``--config``."""
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
    """Write run.json: a result's method, arguments, versions and more.

    Args:
        folder: the folder for run.json.
        method: the name of a row of ``training.methods``, or "evaluate".
        arguments: the recipe's dataclasses.
        data, metrics, history, seconds, reward_verdicts: parts of ``RunRecord``.
    """
    from toolkit.training.run_log import peak_mb

    seed = next((a.seed for a in arguments if hasattr(a, "seed")), None)
    record = RunRecord.now(method, changed(*arguments), _settings(*arguments), seed, peak_mb())
    record.data = data
    record.metrics = metrics
    record.history = history
    record.seconds = seconds
    record.reward_verdicts = reward_verdicts
    record.write(folder / RUN_FILE)


def _checked(
    inner: Callable[[str], object], words: tuple[str, ...] = ()
) -> Callable[[str], object]:
    """Wrap a converter of command-line words so that it rejects NaN and infinity.

    Args:
        words: are left as they are.
    """

    def convert(word: str) -> object:
        if word in words:
            return word
        try:
            value = inner(word)
        except ValueError:
            if not words:
                raise
            told = f"{word!r} is not a number, nor {' or '.join(words)}"
            raise argparse.ArgumentTypeError(told) from None
        if isinstance(value, tuple):  # a word that was split into its letters
            raise argparse.ArgumentTypeError("for several numbers, use a list in --config")
        if isinstance(value, float) and not math.isfinite(value):
            raise argparse.ArgumentTypeError(f"{word} is not a finite number")
        return value

    convert.__name__ = getattr(inner, "__name__", "value")  # what argparse calls it in messages
    return convert


def _names(parser: argparse.ArgumentParser) -> list[str]:
    return [action.dest for action in parser._actions if action.dest not in ("help", "help_all")]


def _suggest(name: str, names: list[str], dashes: str = "") -> str:
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.6)
    return f" (did you mean {dashes}{close[0]}?)" if close else " (--help lists the arguments)"


def _with_new_names(words: list[str], renamed: dict[str, str]) -> list[str]:
    """Return the words of a command line with the new names of renamed flags."""
    found = []
    for word in words:
        flag, equals, value = word.partition("=")
        new = renamed.get(flag[2:]) if flag.startswith("--") else None
        if new is not None:
            warnings.warn(f"{flag} is called --{new} now", Caution, stacklevel=2)
            word = f"--{new}{equals}{value}"
        found.append(word)
    return found


def _with_first_flag(words: list[str], dataclass_types: tuple[type, ...]) -> list[str]:
    """Return the words with the flag that a first word without one belongs to, if there is any."""
    for flag in first_flags(dataclass_types):
        if words and not words[0].startswith("-"):
            return [f"--{flag}", *words]
    return words


def first_flags(dataclass_types: tuple[type, ...]) -> list[str]:
    """The flag whose value may be a command line's first word; empty if there is none."""
    found = [cls.FIRST_WORD for cls in dataclass_types if issubclass(cls, Flags)]
    return [flag for flag in found if flag is not None]


def _with_lists_joined(args: list[str], parser: argparse.ArgumentParser) -> list[str]:
    """Return the words in which a flag that takes several values stands once, with all of them.

    argparse would keep the last ``--contenders`` alone, and drop those before it in silence.
    """
    lists = {
        option: action.dest
        for action in parser._actions
        if action.nargs == "+"
        for option in action.option_strings
    }
    places: dict[str, list[str]] = {}  # by flag: the part of the words in which its values stand
    parts: list[list[str]] = [[]]
    for arg in args:
        name, given, value = arg.partition("=")
        if not arg.startswith("--"):
            parts[-1].append(arg)
            continue
        dest = lists.get(name)
        values = [value] if given else []
        if dest is None:
            parts.append([arg])
        elif dest in places and len(places[dest]) > 1:  # one without a value is argparse's to name
            parts.append(places[dest])
            places[dest] += values
        else:
            places[dest] = [name, *values]
            parts.append(places[dest])
    once: dict[int, list[str]] = {id(part): part for part in parts}
    return [word for part in once.values() for word in part]


def _take_config(args: list[str]) -> tuple[Path | None, list[str]]:
    rest: list[str] = []
    paths: list[str] = []
    remaining = iter(args)
    for arg in remaining:
        if arg == "--config":
            path = next(remaining, None)
            if path is None:
                raise InputError("--config: the path of a YAML file must follow")
            paths.append(path)
        elif arg.startswith("--config="):
            paths.append(arg.removeprefix("--config="))
        else:
            rest.append(arg)
    if len(paths) > 1:
        raise InputError(
            f"--config is given twice, {paths[0]} and {paths[1]} (give one, and what differs as "
            "flags)"
        )
    return (require_file(paths[0], "--config") if paths else None), rest


def _check_config(
    path: Path,
    values: dict[str, Any],
    lines: dict[str, int],
    parser: argparse.ArgumentParser,
    dataclass_types: tuple[type, ...],
    renamed: dict[str, str],
) -> None:
    """Check a file's values against the dataclasses' types, and convert them in place.

    Args:
        path: of the file.
        values: by the names of the flags.
        lines: where each stands.
        parser, dataclass_types: of the recipe.
        renamed: earlier names of flags, which are replaced.
    """
    hints = _type_hints(dataclass_types)
    for old, new in renamed.items():
        if old in values and new not in values:
            line = lines.pop(old, 1)
            warnings.warn(f"{path}:{line}: {old} is called {new} now", Caution, stacklevel=2)
            values[new], lines[new] = values.pop(old), line

    numbers = {name: found for cls in dataclass_types for name, found in words_of(cls).items()}
    for key, value in values.items():
        where = f"{path}:{lines.get(str(key), 1)}"  # a merged key has no line
        if key not in hints:
            raise InputError(f"{where}: unknown key {key!r}{_suggest(str(key), _names(parser))}")
        try:
            value = expand_value(value, key)
        except InputError as error:
            raise InputError(f"{where}: {error}", key) from None
        try:
            values[key] = _convert(value, hints[key])
        except ValueError:
            wanted = _name_of(hints[key])
            cure = ""
            if isinstance(value, bool) and "str" in wanted:
                word = "yes" if value else "no"
                cure = f" (YAML reads the word {word} as {value}: write '{word}' with its quotes)"
            elif wanted == "list" and isinstance(value, str | int | float):
                cure = f" (write {key}: [{value}])"
            raise InputError(
                f"{where}: {key} is {value!r}, but must be of type {wanted}{cure}"
            ) from None
        try:
            check_numbers(key, values[key])
            if key in numbers and isinstance(values[key], str):
                check_choice(key, str(values[key]), ("a number", *numbers[key]))
        except InputError as error:
            raise InputError(f"{where}: {error}", key) from None


def _type_hints(dataclass_types: tuple[type, ...]) -> dict[str, object]:
    hints: dict[str, object] = {}
    for cls in dataclass_types:
        resolved = typing.get_type_hints(cls)
        hints |= {f.name: resolved[f.name] for f in dataclasses.fields(cls) if f.init}
        for name in choices_of(cls):  # any text for now; the field checks it later
            optional = type(None) in typing.get_args(hints[name])
            hints[name] = str | None if optional else str
        for name in named_of(cls):
            hints[name] = list[str] | dict[str, object] | str
    return hints


def _name_of(hint: object) -> str:
    """Return a type as a person would write it: ``int``, also where nothing may be given."""
    if typing.get_origin(hint) not in (Union, types.UnionType):
        return getattr(hint, "__name__", str(hint))

    options = [o.__name__ if isinstance(o, type) else str(o) for o in typing.get_args(hint)]
    return " or ".join(option for option in options if option != "NoneType")


def _convert(value: object, hint: object) -> object:
    """Convert ``value`` to the type ``hint`` (3 and "1e-5" to a float), or raise ValueError."""
    origin, options = typing.get_origin(hint), typing.get_args(hint)
    if origin in (Union, types.UnionType):
        for option in sorted(
            options, key=lambda o: o is str
        ):  # str last, because it accepts any text
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
