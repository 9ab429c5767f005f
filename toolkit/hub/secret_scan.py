"""Looks through files for what must not leave the machine: tokens, keys, local paths."""

import json
import re
from collections.abc import Collection, Iterable, Iterator, Sequence
from pathlib import Path

from toolkit.data.secrets import SECRETS, known_secrets

HOMES = {
    # Not within a longer path: https://host/home/news is none.
    "a path in somebody's home folder": r"(?<![\w.-])(/home/|/Users/)[^/\s\"'`]"
    r"|[A-Za-z]:\\+Users\\|(?<![\w.-])/root(?![\w-])",
}


def find_secrets(
    folder: Path,
    local_paths: Iterable[str | Path] = (),
    public: Collection[str] = (),
    words: Collection[str] = (),
) -> list[str]:
    """A line for each file and kind of thing found; never the thing itself.

    Args:
        folder: of the files; of safetensors the header is read, metadata and names.
        local_paths: folders of this machine whose names must not be found either.
        public: names of files that are the base's own on the Hub, byte for byte: of ten thousand
            pieces of text in a word list one may well be "/root", which tells nothing of anybody.
        words: pieces of text that are so public; they are passed over where they stand alone.
    """
    problems = []
    like_paths = [w for w in words if any(re.search(p, w) for p in HOMES.values())]
    paths = [str(path) for path in [Path.cwd(), *local_paths] if len(str(path)) > 3]

    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        texts = list(_texts(path))
        own = [] if path.name in public else [_without(text, like_paths) for text in texts]

        found = [what for what, p in SECRETS.items() if any(re.search(p, t) for t in texts)]
        found += [what for what, p in HOMES.items() if any(re.search(p, t) for t in own)]
        found += [
            f"the value of the environment variable {name}" if name else "the Hub token"
            for name, secret in known_secrets()
            if any(secret in text for text in texts)
        ]
        if any(local in text for local in paths for text in own):
            found.append("the path of a folder of this machine")

        problems += [f"{path.relative_to(folder)}: {what} (take it out)" for what in found]
    return problems


def _without(text: str, words: Sequence[str]) -> str:
    """The text without these pieces, where one is a whole string of JSON or a line of its own."""
    for word in words:
        for quoted in (json.dumps(word), json.dumps(word, ensure_ascii=False)):
            text = text.replace(quoted, '""')
        text = re.sub(rf"^{re.escape(word)}$", "", text, flags=re.M)
    return text


def words_of(path: Path) -> set[str]:
    """The pieces of text in a JSON file; none of one that is not JSON."""
    try:
        return set(_strings(json.loads(path.read_bytes())))
    except (ValueError, RecursionError):
        return set()


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


def _strings(value: object) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for key, inner in value.items():
            yield str(key)
            yield from _strings(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _strings(inner)
