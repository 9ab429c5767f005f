"""The files that come with the toolkit, and the names that they have in any folder.

    demo:model, demo:prompts.jsonl, demo:lexicon.txt     what lies in data/
    demo:ppo.yaml, demo:reward.yaml                      what lies in recipes/configs/demo/
    demo:configs                                         that folder

A checkout has them in data/ and recipes/, and an installed package has them beside this module, in
demo/ and recipes/. Nothing heavy is imported here: the console command asks for these places.
"""

import re
from pathlib import Path

from toolkit.errors import InputError

PREFIX = "demo:"
PACKAGE = Path(__file__).resolve().parent
INSTALLED = (PACKAGE / "recipes").is_dir()
ROOT = PACKAGE if INSTALLED else PACKAGE.parent
RECIPES = ROOT / "recipes"
DATA = ROOT / ("demo" if INSTALLED else "data")
CONFIGS = RECIPES / "configs" / "demo"

# A name where a value begins: --flag=demo:x, NAME=KIND:demo:x, demo:x,demo:y.
_NAMED = re.compile(r"(?:^|(?<=[=:,]))demo:([^,=:\s]+)(?=,|$)")
# What these flags take is no file: demo:score is the function `score` of a user's demo.py.
_NO_FILES = ("reward_function", "labeler", "judge_model", "title")


def embedded_files() -> dict[str, Path]:
    """Every name that ``demo:`` can stand before, and where its file or folder lies."""
    data = [p for p in DATA.iterdir() if p.suffix != ".md" and not p.name.startswith(("_", "."))]
    found = {path.name: path for path in (*CONFIGS.glob("*.yaml"), *data)}
    return {"configs": CONFIGS} | dict(sorted(found.items()))


def embedded(name: str) -> str:
    """The path of an embedded file or folder, as the working folder sees it.

    In a checkout's root it is the relative path ("data/model"), and elsewhere the absolute one.

    Raises:
        InputError: there is none of this name.
    """
    files = embedded_files()
    if name.rstrip("/") not in files:
        there = ", ".join(f"{PREFIX}{known}" for known in files)
        raise InputError(f"{PREFIX}{name}: no such file comes with the toolkit (there are {there})")

    path = files[name.rstrip("/")]
    return str(path.relative_to(ROOT) if _at_root() else path)


def expand(text: str, flag: str = "") -> str:
    """The text with a path in place of every ``demo:NAME`` that begins a value.

    Args:
        text: a word of a command line, or a text in a YAML file.
        flag: that the text is for, without dashes.

    Raises:
        InputError: there is no embedded file of such a name.
    """
    name = flag.replace("-", "_")
    if PREFIX not in text or name in _NO_FILES:
        return text

    def path(found: re.Match[str]) -> str:
        if found.string[: found.start()].endswith("=function:"):
            return found.group()
        return embedded(found.group(1))

    try:
        return _NAMED.sub(path, text)
    except InputError as error:
        raise InputError(f"{name}: {error}" if name else str(error), name or None) from None


def expand_words(words: list[str]) -> list[str]:
    """The words of a command line, with a path in place of every ``demo:NAME``.

    Raises:
        InputError: there is no embedded file of such a name.
    """
    expanded = []
    flag = ""
    for word in words:
        if word.startswith("--"):
            flag = word[2:].partition("=")[0]
        expanded.append(expand(word, flag))
    return expanded


def expand_value(value: object, flag: str) -> object:
    """A value of a YAML file, a text or a list of texts, with paths as ``expand`` puts them in."""
    if isinstance(value, str):
        return expand(value, flag)
    if isinstance(value, list):
        return [expand_value(item, flag) for item in value]
    return value


def short_name(text: str) -> str:
    """``demo:NAME`` where the text is the path of an embedded file; other texts as they are."""
    names = {embedded(name): f"{PREFIX}{name}" for name in embedded_files()}
    return names.get(text, text)


def is_embedded_model(name: str) -> bool:
    """Whether this is the folder of the embedded model, however it is written."""
    return Path(name).resolve() == DATA / "model"


def _at_root() -> bool:
    """Whether the working folder is the root of the checkout that the toolkit runs from."""
    try:
        return not INSTALLED and Path.cwd() == ROOT
    except OSError:  # the working folder was deleted
        return False
