"""Completions of the console command for bash and zsh, made by shtab from the recipes' parsers."""

import argparse

import shtab

from toolkit.cli import first_flags, flag_classes, parser_of, recipe
from toolkit.commands import COMMAND, COMPLETIONS, SHELLS, command_names, shown_name, summary_of
from toolkit.flags import choices_of

# With this condition bash offers files for a dash behind a list of values (--runs a b --rew), since
# another value might begin with one. Ours do not, so a dash begins a flag.
VALUE_MAY_HAVE_DASHES = """&&
        ( -z "$current_action_compgen" || "$current_action_is_positional" = true ) ]]"""


def completions(shell: str) -> str:
    """The script that makes a shell complete subcommands, flags, choices and files.

    Args:
        shell: "bash" or "zsh".
    """
    return str(shtab.complete(command_parser(), shell)).replace(VALUE_MAY_HAVE_DASHES, "]]")


def command_parser() -> argparse.ArgumentParser:
    """A parser of the whole console command, for completions alone. It loads every recipe."""
    parser = argparse.ArgumentParser(prog=COMMAND)
    parser.add_argument("--version", action="store_true", help="Print the version.")
    commands = parser.add_subparsers(metavar="COMMAND")
    for name in command_names():
        added = commands.add_parser(shown_name(name), help=summary_of(name), add_help=False)
        _add_flags(added, name)
    shells = commands.add_parser(COMPLETIONS, help="Print completions for a shell.")
    shells.add_argument("shell", choices=SHELLS)
    return parser


def _add_flags(added: argparse.ArgumentParser, name: str) -> None:
    """Give a subcommand the flags that its recipe's help shows."""
    types = flag_classes(recipe(name).main)
    choices = {field: words for cls in types for field, words in choices_of(cls).items()}

    for action in parser_of(*types)._actions:
        if action.help is argparse.SUPPRESS:
            continue
        # --output-dir is taken as well as --output_dir; one of them is enough to offer.
        plain = [o for o in action.option_strings if "-" not in o.lstrip("-")]
        action.option_strings = plain or action.option_strings

        # A text that is no choice may be a file.
        words = choices.get(action.dest)
        if words is not None:
            action.choices = words
        elif action.type is str or action.dest == "config":
            action.complete = shtab.FILE  # type: ignore[attr-defined]
        added._add_action(action)
    for flag in first_flags(tuple(types)):  # a project file
        added.add_argument(f"{flag}_file", nargs="?").complete = shtab.FILE  # type: ignore[attr-defined]
