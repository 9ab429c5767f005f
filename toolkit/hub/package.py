"""Pack exactly the files that will be sent into a folder.

adapter_config.json            with the Hub's base and revision instead of a local folder
adapter_model.safetensors      byte for byte; for a value, value_head.safetensors too
toolkit.json                   numbers, the base's precision and fingerprint, and how a reward model
                               reads; no other text
tokenizer*, vocab*, ...        the base's, byte for byte, or those beside the adapter
chat_template.jinja            the base's, or the one that a reward model was trained with
README.md                      the card
"""

import hashlib
import math
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from toolkit.data.chat import PLAIN_TEMPLATE, chat_of
from toolkit.data.files import atomic_directory, require_file, write_json, write_text
from toolkit.data.links import copy_inside, open_inside, shown
from toolkit.errors import InputError
from toolkit.hub.adapter_source import VALUE_HEAD, TrainedAdapter
from toolkit.hub.base_on_hub import TOKENIZER_FILES, Base
from toolkit.models.toolkit_json import FACTS
from toolkit.record import Json

ADAPTER_FILES = ("adapter_config.json", "adapter_model.safetensors", FACTS)
CARD = "README.md"
LONGEST_TEMPLATE = 1 << 20  # bytes
HARMLESS = re.compile("[0-9a-f]{16}|[0-9a-f]{64}|4bit|bf16|fp32|plain|messages|text|both")
SENT = {*ADAPTER_FILES, VALUE_HEAD, *TOKENIZER_FILES, CARD}


class PackedFile(NamedTuple):
    """A file that will be sent."""

    name: str
    size: int
    sha256: str


class Package(NamedTuple):
    """The folder, its files by name, and the files of the adapter's folder that are left out."""

    folder: Path
    files: list[PackedFile]
    left_out: list[str]


def pack(
    adapter: TrainedAdapter, base: Base, card: str, template: str | None, folder: Path
) -> Package:
    """Fill the folder; the same adapter, base and card give the same bytes.

    Args:
        adapter: the adapter.
        base: the adapter's base.
        card: README.md's text.
        template: text of chat_template.jinja; None keeps the base's own.
        folder: the folder; files that an earlier run packed there are replaced.

    Raises:
        InputError: the folder holds other files, or cannot be written.
    """
    check_folder(folder)
    sent = [*ADAPTER_FILES, VALUE_HEAD] if adapter.kind == "value" else [*ADAPTER_FILES]

    with one_line(folder), atomic_directory(folder) as aside:
        home = adapter.tokenizer_home(base.files)
        for name in TOKENIZER_FILES:
            copy_inside(home, name, aside / name)
        for name in sent[1:]:
            if name != FACTS and not copy_inside(adapter.folder, name, aside / name):
                raise InputError(f"adapter: {adapter.folder}: no {name}")

        config = adapter.config | {"base_model_name_or_path": base.repo_id, "revision": base.sha}
        write_json(aside / "adapter_config.json", config)
        write_json(aside / FACTS, _toolkit_json(adapter))
        if template is not None:
            write_text(aside / "chat_template.jinja", template)
        write_text(aside / CARD, card)

    left_out = sorted(shown(p.name) for p in adapter.folder.iterdir() if p.name not in sent)
    return Package(folder, listing(folder), left_out)


def _toolkit_json(adapter: TrainedAdapter) -> Json:
    """Return the part of toolkit.json to send, with no text except what loading needs."""
    before = adapter.toolkit_json
    sent = _without_text(before) | {"precision": adapter.precision}
    if before.get("chat_template_kwargs"):
        sent["chat_template_kwargs"] = before["chat_template_kwargs"]
    if before.get("start"):
        sent["start"] = before["start"]
    if adapter.kind == "reward":
        sent["ends_with"] = adapter.ends_with or None
        sent["whole_turns"] = bool(sent.get("whole_turns")) or not adapter.trained_here
    return sent


def check_folder(folder: Path) -> None:
    """Raise InputError if the folder holds files that ``pack`` did not put there."""
    if folder.exists() and not folder.is_dir():
        raise InputError(f"output_dir: {folder} is a file, not a folder", "output_dir")
    strangers = [p.name for p in folder.iterdir() if p.name not in SENT] if folder.is_dir() else []
    if strangers:
        raise InputError(
            f"output_dir: {folder} holds {shown(strangers[0])}, which this recipe did not write "
            "(name another folder, because this one would be replaced)",
            "output_dir",
        )


def read_template(adapter: TrainedAdapter, given: str | None) -> str | None:
    """Return the chat template of the training, if it is not the tokenizer's own.

    Raises:
        InputError: the file is missing or not Jinja, or only run.json names it.
    """
    if given is None and "chat_template" in adapter.toolkit_json:
        return chat_of(adapter.toolkit_json).template
    name = given or adapter.setting("chat_template")
    if name is None:
        return None
    if name == "plain":
        return PLAIN_TEMPLATE
    if given is None:  # run.json may come from a stranger, and could name any file of this machine
        raise InputError(
            f"chat_template: run.json names the file {name!r:.200} (pass the one that "
            "the adapter was trained with)",
            "chat_template",
        )

    try:
        path = require_file(given, "chat_template")
        text = path.read_text(encoding="utf-8") if path.stat().st_size <= LONGEST_TEMPLATE else ""
    except (OSError, UnicodeDecodeError, InputError):
        text = ""
    if "{{" not in text and "{%" not in text:
        raise InputError(
            f"chat_template: {given}: is neither plain nor a Jinja file in UTF-8 (pass the one "
            "that the adapter was trained with)",
            "chat_template",
        ) from None
    return text


def listing(folder: Path) -> list[PackedFile]:
    """Return name, bytes and SHA-256 of every file in the folder, sorted by name."""
    files = []
    for path in sorted(folder.iterdir()):
        stream = open_inside(folder, path.name)
        if stream is None:
            continue
        with stream:
            digest = hashlib.file_digest(stream, "sha256").hexdigest()
            files.append(PackedFile(path.name, stream.tell(), digest))
    return files


def check_unchanged(folder: Path, files: list[PackedFile]) -> None:
    """Raise InputError if a file of the folder changed since it was checked."""
    changed = sorted({f.name for f in set(files) ^ set(listing(folder))})
    if changed:
        raise InputError(
            f"{folder}: {shown(changed[0])} was changed after it was checked (run the same command "
            "again)"
        )


def describe(package: Package, repo_id: str, private: bool) -> str:
    """Return a readable list of the files and their destination."""
    total = sum(f.size for f in package.files)
    lines = [
        f"to {repo_id} ({'private' if private else 'PUBLIC: everybody can read it'}): "
        f"{len(package.files)} files, {total:,} bytes",
        f"from {package.folder}:",
        f"{'bytes':>13}  file, with its SHA-256 below it",
    ]
    for f in package.files:  # a hash beside its name would be too wide for a terminal
        lines += [f"{f.size:>13,}  {f.name}", f"{'':15}{f.sha256}"]
    if package.left_out:
        lines.append(f"not sent from the adapter's folder: {', '.join(package.left_out)}")
    return "\n".join(lines)


@contextmanager
def one_line(folder: Path) -> Iterator[None]:
    """Report a full disk and the like in one line, and remove half-written files."""
    try:
        yield
    except OSError as error:
        raise InputError(
            f"{folder}: was not written: {error.strerror or error} (make room, or name another "
            "folder)"
        ) from None


def _without_text(whole: Json) -> Json:
    """Keep numbers, fingerprints and a few known words, at any depth."""
    kept: Json = {}
    for key, value in whole.items():
        if isinstance(value, dict):
            kept[key] = _without_text(value)
        elif _is_harmless(value):
            kept[key] = value
    return kept


def _is_harmless(value: object) -> bool:
    if isinstance(value, str):
        return HARMLESS.fullmatch(value) is not None
    return isinstance(value, int | float) and math.isfinite(value)
