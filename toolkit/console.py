"""The console command ``preftune``: every recipe as a subcommand, in any folder.

``preftune sample --prompts my.jsonl`` does what ``python recipes/sample.py --prompts my.jsonl``
does. Only the recipe that was named is loaded.
"""

import difflib
import gc
import importlib.metadata
import sys
from importlib.machinery import SourceFileLoader
from importlib.util import module_from_spec, spec_from_loader
from typing import NoReturn

from toolkit import endings
from toolkit.commands import COMMAND, COMPLETIONS, SHELLS, command_names, overview, shown_name
from toolkit.embedded import RECIPES

DISTRIBUTION = "preference-toolkit"


def main() -> None:
    """Run the subcommand that the command line names; without one, list those there are."""
    endings.prepare()
    words = sys.argv[1:]
    if words[:1] in (["-h"], ["--help"], ["help"]):
        words = [*words[1:2], "--help"] if words[1:] else []  # preftune help reward
    if not words:
        print(overview())
        return
    if words[0] == "--version":
        print(version())
        return

    name = words[0].replace("-", "_")
    if name in command_names():
        run_recipe(name, words[1:])
    elif name == COMPLETIONS:
        _print_completions(words[1:])
    else:
        _refuse(f"{words[0]!r} is no command{_nearest(words[0])}")


def run_recipe(name: str, words: list[str]) -> None:
    """Run recipes/NAME.py with these words as Python runs a script; it ends in ``SystemExit``.

    The recipe becomes the module ``__main__``, so that it does here what it does as a script.
    ``sys.path`` stays as it is, without the folder of recipes.
    """
    gc.disable()  # until the flags are read (cli.bind): a fifth of the time of the imports
    loader = SourceFileLoader("__main__", str(RECIPES / f"{name}.py"))
    spec = spec_from_loader("__main__", loader)
    assert spec is not None
    module = module_from_spec(spec)
    module.__spec__ = None  # as a script has it: a process that is spawned then reads its file
    sys.modules["__main__"] = module
    sys.argv = [f"{COMMAND} {shown_name(name)}", *words]
    loader.exec_module(module)


def version() -> str:
    """The name and the version of what is installed."""
    try:
        return f"{DISTRIBUTION} {importlib.metadata.version(DISTRIBUTION)}"
    except importlib.metadata.PackageNotFoundError:  # a checkout that is on the path alone
        return f"{DISTRIBUTION} is not installed: it runs from {RECIPES.parent}"


def _print_completions(words: list[str]) -> None:
    """Print the script for the shell that these words name."""
    if len(words) != 1 or words[0] not in SHELLS:
        _refuse(f"{COMPLETIONS}: for which shell? ({COMMAND} {COMPLETIONS} {' or '.join(SHELLS)})")

    from toolkit.completions import completions  # it loads every recipe, for their flags

    print(completions(words[0]))


def _nearest(word: str) -> str:
    names = [*map(shown_name, command_names()), COMPLETIONS]
    close = difflib.get_close_matches(shown_name(word), names, n=1)
    said = f"did you mean {close[0]}? " if close else ""
    return f" ({said}{COMMAND} --help lists them)"


def _refuse(line: str) -> NoReturn:
    """End with one line and the exit code of a user's mistake."""
    endings.say(f"error: {line}")
    sys.exit(2)
