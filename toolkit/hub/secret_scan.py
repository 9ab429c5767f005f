"""Scan files for tokens, keys and local paths, which must not leave the machine."""

import json
import re
from collections.abc import Collection, Iterable, Iterator, Sequence
from pathlib import Path

from toolkit.data.secrets import SECRETS, known_secrets

HOMES = {
    # A longer path such as https://host/home/news does not count.
    "a path in somebody's home folder": r"(?<![\w.-])(/home/|/Users/)[^/\s\"'`]"
    r"|[A-Za-z]:\\+Users\\|(?<![\w.-])/root(?![\w-])",
}


def find_secrets(
    folder: Path,
    local_paths: Iterable[str | Path] = (),
    public: Collection[str] = (),
    words: Collection[str] = (),
) -> list[str]:
    """Return a line for each file and kind of secret found, never the secret itself.

    Args:
        folder: the files' folder; only the header of safetensors files is read.
        local_paths: folders of this machine whose names must not occur either.
        public: names of files that equal the base's on the Hub, byte for byte. One of ten thousand
            texts in a word list may be "/root", which reveals nothing.
        words: texts that are public in the same way, and are ignored if they stand alone.
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
    """Remove these words if they are a whole JSON string or a line of their own."""
    for word in words:
        for quoted in (json.dumps(word), json.dumps(word, ensure_ascii=False)):
            text = text.replace(quoted, '""')
        text = re.sub(rf"^{re.escape(word)}$", "", text, flags=re.M)
    return text


def words_of(path: Path) -> set[str]:
    """Return the texts in a JSON file; none if it is not JSON."""
    try:
        return set(_strings(json.loads(path.read_bytes())))
    except (ValueError, RecursionError):
        return set()


def _texts(path: Path) -> Iterator[str]:
    """Yield the file's text, as it is and with JSON's escapes decoded."""
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
