"""A look through the files for what must not leave the machine: tokens, keys, local paths."""

import json
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from toolkit.data.secrets import SECRETS, known_secrets

HOMES = {
    # Not within a longer path: https://host/home/news is none.
    "a path in somebody's home folder": r"(?<![\w.-])(/home/|/Users/)[^/\s\"'`]"
    r"|[A-Za-z]:\\+Users\\|(?<![\w.-])/root(?![\w-])",
}
# Word lists: of ten thousand pieces of text one may well be "/root". They are the base's own files.
WORD_LISTS = ("tokenizer.json", "vocab.json", "vocab.txt", "merges.txt")


def scan(folder: Path, local_paths: Iterable[str | Path] = ()) -> list[str]:
    """A line for each file and kind of thing found; never the thing itself.

    Args:
        folder: of the files; of safetensors the header is read, metadata and names.
        local_paths: folders of this machine whose names must not be found either.
    """
    problems = []
    paths = [str(path) for path in [Path.cwd(), *local_paths] if len(str(path)) > 3]
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        word_list = path.name in WORD_LISTS or path.suffix == ".model"
        patterns = SECRETS if word_list else SECRETS | HOMES
        texts = list(_texts(path))
        found = [what for what, p in patterns.items() if any(re.search(p, t) for t in texts)]
        found += [
            f"the value of the environment variable {name}" if name else "the Hub token"
            for name, secret in known_secrets()
            if any(secret in text for text in texts)
        ]
        if any(local in text for local in paths for text in texts):
            found.append("the path of a folder of this machine")
        problems += [f"{path.relative_to(folder)}: {what} (take it out)" for what in found]
    return problems


def _texts(path: Path) -> Iterator[str]:
    """What a reader could find in the file: as it is, and with JSON's escapes undone."""
    with open(path, "rb") as stream:
        if path.suffix == ".safetensors":
            raw = stream.read(int.from_bytes(stream.read(8), "little"))
        else:
            raw = stream.read()
    yield raw.decode("utf-8", "replace")
    try:
        yield "\n".join(_strings(json.loads(raw)))
    except (ValueError, RecursionError):
        return


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for key, inner in value.items():
            yield str(key)
            yield from _strings(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _strings(inner)
