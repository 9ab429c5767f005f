"""Checkpoints from which a run goes on exactly as if it had never stopped.

    checkpoint-000040/
        weights.safetensors      what is trained: adapters and heads (or whole models)
        optimizer.safetensors    its moments
        random.safetensors       torch's random states
        state.json               update, prompt cursor, KL controller, gain and bias, guards,
                                 schedule, Python's and numpy's random states, and the settings
                                 under which the run is made
        manifest.json            size and SHA-256 of each of these; written last

All of it is written aside, synced, and renamed: a folder of that name is whole, or the disk lied,
and then the manifest tells. No pickle is written or read.
"""

import hashlib
import json
import re
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.optim import Optimizer

from toolkit.data.files import atomic_directory, json_text
from toolkit.errors import InputError
from toolkit.models.actors import POLICY
from toolkit.models.peft_wrappers import of_adapter
from toolkit.models.toolkit_json import FACTS
from toolkit.random_state import (
    python_random_state,
    restore_python_random_state,
    restore_torch_random_state,
    torch_random_state,
)

NAME = re.compile(r"checkpoint-(\d{6,})")
MANIFEST = "manifest.json"
FILES = ("weights.safetensors", "optimizer.safetensors", "random.safetensors", "state.json")


def save_checkpoint(
    folder: Path, update: int, weights: dict[str, Tensor], optimizer: Optimizer,
    names: list[str], state: dict[str, Any], keep: int | None,
) -> Path:  # fmt: skip
    """Write ``folder/checkpoint-<update>``; delete later ones, and all but ``keep`` up to it.

    Args:
        folder: the run's.
        update: updates made.
        weights: name -> tensor, of what is trained.
        optimizer: over those, in the order of ``names``.
        names: of the optimizer's parameters.
        state: everything else, as JSON can hold it.
        keep: checkpoints to keep; None for all.

    Raises:
        OSError: the disk is full, say; what was there before is still there, whole.
    """
    target = folder / f"checkpoint-{update:06d}"
    scalars, moments = _optimizer_state(optimizer, names)
    with atomic_directory(target) as aside:
        save_file(_plain(weights), aside / FILES[0])
        save_file(moments, aside / FILES[1])
        save_file(torch_random_state(), aside / FILES[2])
        whole = state | {"update": update, "optimizer": scalars, "random": python_random_state()}
        (aside / FILES[3]).write_text(json_text(whole), encoding="utf-8")
        manifest = {name: _fingerprint(aside / name) for name in FILES}
        (aside / MANIFEST).write_text(json.dumps(manifest, indent=2), encoding="utf-8")
    there = checkpoints(folder)
    later = [path for number, path in there if number > update]  # broken, or of a future given up
    earlier = [path for number, path in there if number <= update]
    for old in later + ([] if keep is None else earlier[keep:]):
        shutil.rmtree(old, ignore_errors=True)
    return target


def clear_run(folder: Path) -> None:
    """Delete what an earlier run left in a folder that is to be overwritten."""
    for _, path in checkpoints(folder):
        shutil.rmtree(path)
    for name in ("best", "adapters"):
        shutil.rmtree(folder / name, ignore_errors=True)
    for name in ("log.jsonl", "timings.jsonl", "completions.jsonl"):
        (folder / name).unlink(missing_ok=True)


def checkpoints(folder: Path) -> list[tuple[int, Path]]:
    """(update, folder) of each checkpoint there, the newest first, good or not."""
    found = [(NAME.fullmatch(path.name), path) for path in folder.glob("checkpoint-*")]
    return sorted(((int(m[1]), path) for m, path in found if m and path.is_dir()), reverse=True)


def problem_of(folder: Path) -> str | None:
    """What is wrong with a checkpoint (the file and how), or None if it is whole."""
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
    """The newest checkpoint whose manifest verifies, and what was passed over: "name: problem"."""
    passed_over: list[str] = []
    for _, path in checkpoints(folder):
        problem = problem_of(path)
        if problem is None:
            return path, passed_over
        passed_over.append(f"{path.name}: {problem}")
    return None, passed_over


def choose_checkpoint(resume: str, folder: Path) -> tuple[Path | None, list[str]]:
    """The checkpoint that ``--resume`` means: "auto" for the newest good one, or a folder.

    Raises:
        InputError: the folder is no checkpoint, or not a whole one.
    """
    if resume == "auto":
        return newest_good(folder)
    problem = problem_of(Path(resume))
    if problem is not None:
        raise InputError(f"resume: {resume}: {problem} (--resume auto takes the newest good one)")
    return Path(resume), []


def read_state(folder: Path) -> dict[str, Any]:
    """``state.json``."""
    return json.loads((folder / FILES[3]).read_text(encoding="utf-8"))


def export_policy(checkpoint: Path, folder: Path) -> None:
    """Write a checkpoint's policy as an adapter of its own, which plain peft loads on its base.

    Args:
        checkpoint: of a run whose policy is an adapter.
        folder: where to; adapter_config.json, adapter_model.safetensors and toolkit.json.

    Raises:
        InputError: the checkpoint is not whole, or holds whole models.
    """
    problem = problem_of(checkpoint)
    if problem is not None:
        raise InputError(f"{checkpoint}: {problem}")
    state = read_state(checkpoint)
    base, policy = state["settings"].get("base"), state.get("policy")
    if policy is None:
        raise InputError(f"{checkpoint}: no policy adapter in it that could be written by itself")
    if policy["frozen"]:
        raise InputError(
            f"{checkpoint}: its policy has weights that are not trained, {policy['frozen'][0]} for "
            "one, and are not in a checkpoint (name adapters/policy of the finished run)"
        )
    overrides = dict(enumerate(policy["overrides"]))
    weights = {
        _as_peft(name, overrides): tensor
        for name, tensor in load_file(checkpoint / FILES[0]).items()
        if of_adapter(name, POLICY)
    }
    folder.mkdir(parents=True, exist_ok=True)
    config = policy["config"] | {"inference_mode": True, "base_model_name_or_path": base}
    (folder / "adapter_config.json").write_text(json.dumps(config), "utf-8")
    save_file(weights, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    (folder / FACTS).write_text(json.dumps({"base_fingerprint": base}), "utf-8")


def _as_peft(name: str, overrides: dict[int, str]) -> str:
    """The key in an adapter's file of a parameter that ``Roles`` calls ``name``."""
    if name.startswith("overrides."):
        return overrides[int(name.rpartition(".")[2])]
    name = name.removeprefix("model.").replace(f".modules_to_save.{POLICY}.", ".")
    return f"{name}.".replace(f".{POLICY}.", ".").removesuffix(".")


def check_same(then: dict[str, Any], now: dict[str, Any], folder: Path) -> None:
    """Raise InputError, with a line for each difference, unless the settings are the same."""
    now = json.loads(json.dumps(now))
    names = sorted(set(then) | set(now))
    changes = [
        f"{name}: was {then.get(name)!r}, is {now.get(name)!r}"
        for name in names
        if then.get(name) != now.get(name)
    ]
    if changes:
        raise InputError(
            f"{folder}: made under other settings, {changes[0]} (resume with the old ones, or "
            "start anew with another output_dir)", details=changes[1:],
        )  # fmt: skip


def load_checkpoint(
    folder: Path, weights: dict[str, Tensor], optimizer: Optimizer, names: list[str]
) -> dict[str, Any]:
    """Put a checkpoint's tensors in place, in memory that is there already; returns its state."""
    state = read_state(folder)
    try:
        saved = load_file(folder / FILES[0])
        moments = load_file(folder / FILES[1])
        randoms = load_file(folder / FILES[2])
    except SafetensorError as error:  # the manifest would have told; a bug, or a race
        raise InputError(f"{folder}: not readable: {error}") from None
    if saved.keys() != weights.keys():
        odd = sorted(saved.keys() ^ weights.keys())
        raise InputError(f"{folder}: not this run's weights ({len(odd)} differ, {odd[0]} for one)")
    with torch.no_grad():
        for name, tensor in weights.items():
            tensor.copy_(saved[name])
    _restore_optimizer(optimizer, names, state["optimizer"], moments)
    restore_torch_random_state(randoms)
    restore_python_random_state(state["random"])
    return state


def _plain(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}


def _fingerprint(path: Path) -> dict[str, Any]:
    digest = hashlib.sha256()
    with open(path, "rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return {"size": path.stat().st_size, "sha256": digest.hexdigest()}


def _optimizer_state(
    optimizer: Optimizer, names: list[str]
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Numbers ("name|key" -> value) and tensors of an optimizer's state."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    scalars: dict[str, Any] = {}
    tensors: dict[str, Tensor] = {}
    for name, parameter in zip(names, parameters, strict=True):
        for key, value in optimizer.state.get(parameter, {}).items():
            if isinstance(value, Tensor):  # bitsandbytes has one table for all parameters
                tensors[f"{name}|{key}"] = value.detach().cpu().clone().contiguous()
            else:
                scalars[f"{name}|{key}"] = value
    return scalars, tensors


def _restore_optimizer(
    optimizer: Optimizer, names: list[str], scalars: dict[str, Any], tensors: dict[str, Tensor]
) -> None:
    places = [(p, group) for group in optimizer.param_groups for p in group["params"]]
    by_name = dict(zip(names, places, strict=True))
    optimizer.state.clear()
    for key, value in (scalars | tensors).items():
        name, _, slot = key.rpartition("|")
        parameter, group = by_name[name]
        # torch counts steps on the CPU, unless the kernel is fused or captured.
        on_device = slot != "step" or group.get("fused") or group.get("capturable")
        if isinstance(value, Tensor) and on_device:
            value = value.to(parameter.device)
        optimizer.state[parameter][slot] = value
