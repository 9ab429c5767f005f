"""run.json: how a result was made. Training recipes and evaluate.py write it."""

import dataclasses
import datetime
import importlib.metadata
import platform
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from toolkit.data.files import read_object, write_json
from toolkit.embedded import INSTALLED
from toolkit.errors import InputError

RUN_FILE = "run.json"
PACKAGES = ("torch", "transformers", "trl", "peft", "bitsandbytes", "accelerate", "datasets")

# A setting that only one recipe has, to recognize old files without `method`.
TELLING = {
    "ppo": "kl_controller",
    "rloo": "num_generations",
    "reward": "normalize_samples",
    "evaluate": "contenders",
}

Json = dict[str, Any]


@dataclass
class RunRecord:
    """The record of how a result was made.

    Attributes:
        method: the name of a row of ``training.methods``, or "evaluate"; None for an old file whose
            settings do not reveal it.
        arguments: the arguments that differ from their defaults, as --config accepts them.
        settings: all of the toolkit's own arguments, default or not.
        seed: seed of the run.
        versions: versions of Python and packages by name.
        git: the toolkit's commit, with "+changes" if files differed from it; None without git.
        peak_mb: peak memory of the process until then, in MiB.
        device: the GPU's name, or "cpu".
        written: time of writing, in UTC as ISO 8601.
        data: counts of rows and prompts, and their sources.
        metrics: metrics on held-out data.
        history: rows of the trainer's log.
        seconds: duration of the training.
        reward_verdicts: whether the reward models can be trusted (``training.trust``).
        others: other parts of the file.
    """

    method: str | None = None
    arguments: Json = field(default_factory=dict)
    settings: Json = field(default_factory=dict)
    seed: int | None = None
    versions: dict[str, str] = field(default_factory=dict)
    git: str | None = None
    peak_mb: int | None = None
    device: str | None = None
    written: str | None = None
    data: Json | None = None
    metrics: Json | None = None
    history: list[Json] | None = None
    seconds: float | None = None
    reward_verdicts: list[Json] | None = None
    others: Json = field(default_factory=dict)

    @classmethod
    def now(
        cls, method: str, arguments: Json, settings: Json, seed: int | None, peak_mb: int
    ) -> "RunRecord":
        """Make a record with the versions, the machine and the time."""
        import torch

        return cls(
            method,
            arguments,
            settings,
            seed,
            versions(),
            _git_commit(),
            peak_mb,
            torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
            datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        )

    @classmethod
    def read(cls, path: Path, what: str = RUN_FILE, needs: Sequence[str] = ()) -> "RunRecord":
        """Read a record, and work out the method of an old file.

        Args:
            path: the file.
            what: the argument that named it, for messages.
            needs: parts that must be objects; all except ``arguments`` must not be empty.

        Raises:
            InputError: the file is missing or not a JSON object, or a part is missing or malformed.
        """
        found = read_object(path, what)
        for name in needs:
            part = found.get(name)
            if not isinstance(part, dict) or not (part or name == "arguments"):
                raise InputError(
                    f"{path}: no {name!r} in it (it was not written by preftune reward)"
                )

        known = {f.name for f in dataclasses.fields(cls)} - {"others"}
        parts = {name: value for name, value in found.items() if name in known}
        parts = {name: value for name, value in parts.items() if value is not None}
        for kind, (wanted, names) in _KINDS.items():
            for name in names:
                if name in parts and not isinstance(parts[name], kind):
                    raise InputError(f"{path}: {name} is {parts[name]!r:.60}, but must be {wanted}")

        others = {name: value for name, value in found.items() if name not in known}
        record = cls(**parts, others=others)
        if record.method is None:
            record.method = _method_of(record.settings)
        return record

    def as_json(self) -> Json:
        """Return the record as JSON, without the parts that this kind of run does not have."""
        whole = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        others = whole.pop("others")
        for name in ("data", "metrics", "history", "seconds", "reward_verdicts"):
            if whole[name] is None:
                del whole[name]
        return whole | others

    def write(self, path: Path) -> None:
        """Write the file atomically."""
        write_json(path, self.as_json())


def versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that results depend on."""
    found = {name: importlib.metadata.version(name) for name in PACKAGES}
    return found | {"python": platform.python_version()}


# Types of the parts that other modules read: the file may be edited, or come from another tool.
_KINDS: dict[type, tuple[str, tuple[str, ...]]] = {
    str: ("a text", ("method",)),
    dict: ("an object", ("arguments", "settings", "versions", "data", "metrics")),
    list: ("a list", ("history", "reward_verdicts")),
}


def record_beside(folder: Path, levels: int = 2) -> Path | None:
    """Return the nearest run.json above an adapter or checkpoint, which may be two folders up."""
    around = folder.resolve().parents[:levels]
    return next((p / RUN_FILE for p in around if (p / RUN_FILE).is_file()), None)


def _method_of(settings: Json) -> str | None:
    """Work out which method made a run from the settings in its file."""
    if not settings:
        return None
    for method, setting in TELLING.items():
        if setting in settings:
            return method
    return str(settings.get("method", "sft"))  # only preference.py has a flag for the method


def _git_commit() -> str | None:
    if INSTALLED:  # git would find the project of a user whose environment lies inside it
        return None

    git = ["git", "-C", str(Path(__file__).parent)]

    def said(*words: str) -> str:
        words = (*git, *words)
        done = subprocess.run(words, capture_output=True, text=True, timeout=10, check=True)
        return done.stdout.strip()

    try:
        head = said("rev-parse", "HEAD")
        changes = said("status", "--porcelain", "--untracked-files=no", ".")
    except (OSError, subprocess.SubprocessError):  # no git
        return None
    return head + ("+changes" if changes else "")
