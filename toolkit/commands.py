"""The subcommands of ``preftune``: which there are, in which groups, and what each is for.

They are the recipes. Their files are read as text here, so that a list of them comes at once.
"""

import ast
import textwrap

from toolkit.embedded import RECIPES

COMMAND = "preftune"
COMPLETIONS = "completions"
SHELLS = ("bash", "zsh")

# The recipes in the order in which a person meets them.
GROUPS = {
    "See it work": ("demo", "doctor"),
    "Run a project": ("init", "run"),
    "Collect comparisons": ("split", "sample", "label", "convert", "ratings"),
    "Train a reward model": ("reward", "reward_report"),
    "Tune the policy": ("ppo", "watch", "online", "warp", "sft", "preference", "rloo", "ilql"),
    "See what came of it": (
        "evaluate",
        "report",
        "compare",
        "sweep",
        "best_of_n",
        "label_sweep",
        "head_to_head",
        "robustness",
    ),
    "Hand it on": ("merge", "experts", "publish"),
    "Tools": ("ood", "preview_kl", "trl_config", "demo_model"),
}


def command_names() -> list[str]:
    """The recipes that are subcommands, by the names of their files."""
    return sorted(path.stem for path in RECIPES.glob("*.py"))


def shown_name(name: str) -> str:
    """A subcommand as it is shown and completed: with dashes."""
    return name.replace("_", "-")


def summary_of(name: str) -> str:
    """The first line of a recipe's docstring.

    Of a sentence that goes on in the next line, what stands before its first colon.
    """
    path = RECIPES / f"{name}.py"
    text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    sentence = text.partition("\n\n")[0]
    return sentence.partition(":")[0].replace("\n", " ") if "\n" in sentence else sentence


def overview() -> str:
    """The subcommands in their groups, with a line of what each does."""
    lines = [f"usage: {COMMAND} COMMAND [--help] [arguments]", ""]
    for title, names in GROUPS.items():
        lines.append(title)
        for name in names:
            first, *rest = textwrap.wrap(summary_of(name), 60) or [""]
            lines.append(f"  {shown_name(name):14} {first}")
            lines += [f"{'':17}{line}" for line in rest]
        lines.append("")
    lines += [
        f"{COMMAND} COMMAND --help tells what a command takes, writes and shows.",
        f"{COMMAND} {COMPLETIONS} bash prints completions for bash (or zsh).",
        f"{COMMAND} --version prints the version.",
        "demo:NAME stands for a file that comes with the toolkit (demo:lexicon.txt).",
    ]
    return "\n".join(lines)
