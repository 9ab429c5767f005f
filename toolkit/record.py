"""run.json: what made a result. Every training recipe leaves one, and evaluate.py does."""

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

# A setting that only this recipe has, for files from before `method` was written down.
TELLING = {
    "ppo": "kl_controller",
    "rloo": "num_generations",
    "reward": "normalize_samples",
    "evaluate": "contenders",
}

Json = dict[str, Any]


@dataclass
class RunRecord:
    """What made a result. ``RunRecord.now`` fills in the versions, the machine and the time.

    Attributes:
        method: the name of a row of ``training.methods``, or "evaluate"; None if the file is from
            before methods were written down and its settings do not tell.
        arguments: what the recipe was told other than its defaults; --config takes it.
        settings: all of the toolkit's own arguments, default or not.
        seed: of the run.
        versions: of Python and the packages at work, by name.
        git: the toolkit's commit, with "+changes" if files differed from it; None without git.
        peak_mb: the most memory that the process had held until then, in MiB.
        device: the GPU's name, or "cpu".
        written: UTC, ISO 8601.
        data: counts of rows and prompts, and where they came from.
        metrics: of what was held out.
        history: the trainer's log, a row each.
        seconds: of training.
        reward_verdicts: whether the reward models can be trusted (``training.trust``).
        others: what else the file holds.
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
        """A record of this process, on this machine, at this time."""
        import torch

        versions = {name: importlib.metadata.version(name) for name in PACKAGES}
        return cls(
            method,
            arguments,
            settings,
            seed,
            versions | {"python": platform.python_version()},
            _git_commit(),
            peak_mb,
            torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
            datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        )

    @classmethod
    def read(cls, path: Path, what: str = RUN_FILE, needs: Sequence[str] = ()) -> "RunRecord":
        """The record in this file, with its method worked out if it is an old one.

        Args:
            path: the file.
            what: the argument that led to it, for messages.
            needs: parts that must be objects in it; all but ``arguments`` must not be empty.

        Raises:
            InputError: no such file, no JSON object, or a part that is missing or of another kind.
        """
        found = read_object(path, what)
        for name in needs:
            part = found.get(name)
            if not isinstance(part, dict) or not (part or name == "arguments"):
                raise InputError(f"{path}: no {name!r} in it (it was not written by reward.py)")

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
        """What ``write`` writes. Parts that this kind of run does not have are left out."""
        whole = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        others = whole.pop("others")
        for name in ("data", "metrics", "history", "seconds", "reward_verdicts"):
            if whole[name] is None:
                del whole[name]
        return whole | others

    def write(self, path: Path) -> None:
        """Write the file, whole or not at all."""
        write_json(path, self.as_json())


# What the parts that others look into must be: a file may have been edited, or be another tool's.
_KINDS: dict[type, tuple[str, tuple[str, ...]]] = {
    str: ("a text", ("method",)),
    dict: ("an object", ("arguments", "settings", "versions", "data", "metrics")),
    list: ("a list", ("history", "reward_verdicts")),
}


def record_beside(folder: Path, levels: int = 2) -> Path | None:
    """The run.json nearest to an adapter or checkpoint: in a folder around it.

    Args:
        folder: of the adapter or checkpoint.
        levels: how many folders up to look; PPO's adapters lie two below their run.
    """
    around = folder.resolve().parents[:levels]
    return next((p / RUN_FILE for p in around if (p / RUN_FILE).is_file()), None)


def _method_of(settings: Json) -> str | None:
    """Work out which method made a run from the settings in its file."""
    if not settings:
        return None
    for method, setting in TELLING.items():
        if setting in settings:
            return method
    return str(settings.get("method", "sft"))  # preference.py is told its method, sft.py is not


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
