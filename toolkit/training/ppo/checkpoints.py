"""Checkpoints: a run's state as a folder, written atomically, verified by hash, without pickle.

    checkpoint-000040/
        weights.safetensors, optimizer.safetensors, random.safetensors, state.json
        manifest.json            size and SHA-256 of each of these; written last

``state.py`` defines their content (docs/checkpoints.md has the table). A checkpoint is written
aside, synced, and renamed, so a folder with this name is complete; if the disk failed, the manifest
shows it.
"""

import hashlib
import json
import re
import shutil
from pathlib import Path
from typing import Protocol

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from toolkit.data.files import atomic_directory, json_text
from toolkit.errors import InputError
from toolkit.models.actors import POLICY
from toolkit.models.peft_wrappers import of_adapter
from toolkit.models.toolkit_json import FACTS
from toolkit.training.ppo.state import TENSORS, Json, PPOState

NAME = re.compile(r"checkpoint-(\d{6,})")
MANIFEST = "manifest.json"
STATE = "state.json"
FILES = (*TENSORS.values(), STATE)


class State(Protocol):
    """What a checkpoint holds: ``PPOState``, or that of a trainer with the same files.

    Attributes:
        update: how many updates were made.
        weights, moments, torch_random: the tensors of the files in ``TENSORS``.
    """

    update: int
    weights: dict[str, Tensor]
    moments: dict[str, Tensor]
    torch_random: dict[str, Tensor]

    def to_json(self) -> Json:
        """Return the keys of state.json."""
        ...


def save_checkpoint(folder: Path, state: State, keep: int | None) -> Path:
    """Write ``folder/checkpoint-<update>``; delete later ones, and all but ``keep`` up to it.

    Raises:
        OSError: the disk is full, say; earlier checkpoints stay complete.
    """
    target = folder / f"checkpoint-{state.update:06d}"
    with atomic_directory(target) as aside:
        for name, file in TENSORS.items():
            save_file(getattr(state, name), aside / file)
        (aside / STATE).write_text(json_text(state.to_json()), encoding="utf-8")
        manifest = {name: _fingerprint(aside / name) for name in FILES}
        (aside / MANIFEST).write_text(json.dumps(manifest, indent=2), encoding="utf-8")

    there = checkpoints(folder)
    # Later ones are broken, or belong to updates that were discarded by resuming.
    later = [path for number, path in there if number > state.update]
    earlier = [path for number, path in there if number <= state.update]
    for old in later + ([] if keep is None else earlier[keep:]):
        shutil.rmtree(old, ignore_errors=True)
    return target


def clear_run(folder: Path) -> None:
    """Delete an earlier run's files from a folder that will be overwritten."""
    for _, path in checkpoints(folder):
        shutil.rmtree(path)
    for name in ("best", "adapters"):
        shutil.rmtree(folder / name, ignore_errors=True)
    for name in ("log.jsonl", "timings.jsonl", "samples.jsonl", "completions.jsonl"):
        (folder / name).unlink(missing_ok=True)


def checkpoints(folder: Path) -> list[tuple[int, Path]]:
    """List (update, folder) of all checkpoints, good or not, the newest first."""
    found = [(NAME.fullmatch(path.name), path) for path in folder.glob("checkpoint-*")]
    return sorted(((int(m[1]), path) for m, path in found if m and path.is_dir()), reverse=True)


def problem_of(folder: Path) -> str | None:
    """Return what is wrong with a checkpoint (file and problem), or None if it is complete."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return f"{MANIFEST} is missing"
    except (OSError, ValueError):
        return f"{MANIFEST} cannot be read"
    if not isinstance(manifest, dict) or set(manifest) != set(FILES):
        return f"{MANIFEST} does not name the files of a checkpoint"
    for name, fingerprint in manifest.items():
        if not (folder / name).is_file():
            return f"{name} is missing"
        if _fingerprint(folder / name) != fingerprint:
            return f"{name} is not what was written"
    return None


def newest_good(folder: Path) -> tuple[Path | None, list[str]]:
    """Return the newest good checkpoint, and "name: problem" for each newer one that is bad."""
    passed_over: list[str] = []
    for _, path in checkpoints(folder):
        problem = problem_of(path)
        if problem is None:
            return path, passed_over
        passed_over.append(f"{path.name}: {problem}")
    return None, passed_over


def choose_checkpoint(resume: str, folder: Path) -> tuple[Path | None, list[str]]:
    """Return the checkpoint that ``--resume`` names: "auto" is the newest good one.

    Raises:
        InputError: the folder is not a checkpoint, or not a complete one.
    """
    if resume == "auto":
        return newest_good(folder)
    problem = problem_of(Path(resume))
    if problem is not None:
        raise InputError(f"resume: {resume}: {problem} (--resume auto uses the newest good one)")
    return Path(resume), []


def load_checkpoint(folder: Path) -> PPOState:
    """Load the state from a checkpoint.

    Raises:
        InputError: a file cannot be read, or was written by an incompatible version.
    """
    state, tensors = read_checkpoint(folder)
    return PPOState.from_json(state, folder, tensors)


def read_checkpoint(folder: Path) -> tuple[Json, dict[str, dict[str, Tensor]]]:
    """Read a checkpoint's files: the keys of state.json, and the tensors by field.

    Raises:
        InputError: a file cannot be read.
    """
    try:
        tensors = {name: load_file(folder / file) for name, file in TENSORS.items()}
    except SafetensorError as error:  # the manifest should have shown this: a bug, or a race
        raise InputError(f"{folder} cannot be read: {error}") from None
    return _read_state(folder), tensors


def _read_state(folder: Path) -> Json:
    return json.loads((folder / STATE).read_text(encoding="utf-8"))


def export_policy(checkpoint: Path, folder: Path) -> None:
    """Write a checkpoint's policy as an adapter that plain peft loads on its base.

    Args:
        checkpoint: of a run whose policy is an adapter.
        folder: receives adapter_config.json, adapter_model.safetensors and toolkit.json.

    Raises:
        InputError: the checkpoint is not complete, or has no policy adapter.
    """
    problem = problem_of(checkpoint)
    if problem is not None:
        raise InputError(f"{checkpoint}: {problem}")
    state = _read_state(checkpoint)
    base, policy = state["settings"].get("base"), state.get("policy")
    if policy is None:
        raise InputError(f"{checkpoint} has no policy adapter that could be written by itself")
    if policy["frozen"]:
        raise InputError(
            f"{checkpoint}: its policy has weights that are not trained, for example "
            f"{policy['frozen'][0]}, and a checkpoint lacks them (use adapters/policy of the run)"
        )

    overrides = dict(enumerate(policy["overrides"]))
    weights = {
        _as_peft(name, overrides): tensor
        for name, tensor in load_file(checkpoint / TENSORS["weights"]).items()
        if of_adapter(name, POLICY)
    }

    folder.mkdir(parents=True, exist_ok=True)
    config = policy["config"] | {"inference_mode": True, "base_model_name_or_path": base}
    (folder / "adapter_config.json").write_text(json.dumps(config), "utf-8")
    save_file(weights, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    facts = {"base_fingerprint": base}
    if "start" in policy:  # an earlier version did not write it
        facts["start"] = policy["start"]
    (folder / FACTS).write_text(json.dumps(facts), "utf-8")


def _as_peft(name: str, overrides: dict[int, str]) -> str:
    """Return the key in an adapter's file for a parameter named ``name`` in ``Roles``."""
    if name.startswith("overrides."):
        return overrides[int(name.rpartition(".")[2])]
    name = name.removeprefix("model.").replace(f".modules_to_save.{POLICY}.", ".")
    return f"{name}.".replace(f".{POLICY}.", ".").removesuffix(".")


def check_same(then: Json, now: Json, folder: Path) -> None:
    """Raise InputError, with a line for each difference, unless the settings are equal."""
    now = json.loads(json.dumps(now))
    names = sorted(set(then) | set(now))
    changes = [
        f"{name}: was {then.get(name)!r}, is {now.get(name)!r}"
        for name in names
        if then.get(name) != now.get(name)
    ]
    if changes:
        raise InputError(
            f"{folder} was made under other settings, {changes[0]} (resume with the old ones, or "
            "start again with another output_dir)",
            details=changes[1:],
        )


def _fingerprint(path: Path) -> Json:
    digest = hashlib.sha256()
    with open(path, "rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return {"size": path.stat().st_size, "sha256": digest.hexdigest()}
