"""What a plan of memory chooses for a PPO run: how its batch is split into passes, and the rest.

On a GPU, flags that were not given are chosen: bf16, gradient checkpointing, the parts in which the
batch is read, fp32 scales of 4-bit weights, and whether these weights are unpacked for sampling.
The choice depends on the model, the card and the other flags alone, so the same command chooses the
same. A run that is resumed keeps what its run.json records, because other passes would round
differently. On a CPU nothing is chosen.
"""

import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from toolkit.arguments.model import ModelArguments
from toolkit.errors import Caution, InputError
from toolkit.models.cards import Room
from toolkit.models.memory_fit import Open, Passes, Planner, largest_that_fit
from toolkit.record import RUN_FILE, RunRecord, record_beside
from toolkit.training.ppo.checkpoints import checkpoints
from toolkit.training.ppo.config import PPOConfig

# The fields of PPOConfig that are open if they were not given, and what they are called in a plan.
OPEN: dict[str, Open] = {
    "per_device_train_batch_size": "micro_batch",
    "local_rollout_forward_batch_size": "rollout_batch",
    "gradient_checkpointing": "checkpointing",
    "unpack_base": "unpack_base",
}


def passes_of(config: PPOConfig, model_args: ModelArguments) -> Passes:
    """Return what a run's flags say about its passes."""
    return Passes(
        config.per_device_train_batch_size,
        min(config.local_rollout_forward_batch_size, config.local_batch_size),
        bool(config.gradient_checkpointing),
        model_args.precision,
        bool(model_args.plain_scales),
        config.unpack_base,
    )


def choose_passes(
    config: PPOConfig,
    model_args: ModelArguments,
    planner: Callable[[], Planner],
    room: Room | None,
    sharded: bool = False,
    recorded: dict[str, object] | None = None,
) -> str | None:
    """Fill in what was not given, for this run on this card; return a line that says so.

    If not even the smallest passes fit, they are left as they are, and the check of memory refuses
    the run.

    Args:
        config, model_args: the run's flags, which are changed in place.
        planner: returns what makes the plan for settings.
        room: of the card; None on a CPU.
        sharded: whether several GPUs hold parts of the base, which then stays as it is.
        recorded: the settings of the run that is resumed (``recorded_settings``).
    """
    open_fields = set(config.open_defaults)
    if model_args.plain_scales is None:
        open_fields.add("plain_scales")

    if sharded:
        open_fields -= {"plain_scales", "unpack_base"}

    if recorded is not None:
        return _take(recorded, open_fields, config, model_args)
    if room is None or not open_fields:
        return None

    if "bf16" in open_fields:  # who asks for an fp32 base wants its numbers
        config.bf16 = room.bf16 and model_args.precision != "fp32"
    if model_args.trust_remote_code:  # its passes cannot be planned
        return _said(room.where, open_fields & {"bf16"}, config, model_args)

    batch = config.local_batch_size
    wanted = passes_of(config, model_args)
    if "per_device_train_batch_size" in open_fields:
        wanted = replace(wanted, micro_batch=batch // config.num_mini_batches)
    choose = frozenset(name for field, name in OPEN.items() if field in open_fields)
    if "plain_scales" in open_fields:
        choose |= {"plain_scales"}
    try:
        found = largest_that_fit(planner(), wanted, batch, room.usable, choose)
    except InputError:
        raise
    except Exception as error:
        warnings.warn(f"no settings were chosen for {room.where}: {error!s:.120}", Caution, 2)
        return _said(room.where, open_fields & {"bf16"}, config, model_args)
    if found is None:
        return _said(room.where, open_fields & {"bf16"}, config, model_args)
    _set(found, config, model_args)
    return _said(room.where, open_fields, config, model_args)


def _set(found: Passes, config: PPOConfig, model_args: ModelArguments) -> None:
    """Write settings into the flags; the batch stays what it is."""
    batch = config.local_batch_size
    config.per_device_train_batch_size = found.micro_batch
    config.gradient_accumulation_steps = batch // found.micro_batch
    config.local_rollout_forward_batch_size = found.rollout_batch
    config.gradient_checkpointing = config.activation_checkpointing = found.checkpointing
    config.unpack_base = found.unpack_base
    model_args.plain_scales = found.plain_scales


def recorded_settings(config: PPOConfig) -> dict[str, object] | None:
    """Return the settings of the run that is resumed; None if there is none, or no record.

    A run that has no checkpoint yet starts anew. On several machines only the first has its folder.
    """
    if config.resume is None:
        return None
    if config.resume == "auto":
        if not checkpoints(config.folder):
            return None
        path: Path | None = config.folder / RUN_FILE
    else:
        path = record_beside(Path(config.resume) / "state.json")
    if path is None or not path.is_file():
        return None
    record = RunRecord.read(path)
    return record.settings or None if record.method in (None, "ppo") else None


def _take(
    recorded: dict[str, object],
    open_fields: set[str],
    config: PPOConfig,
    model_args: ModelArguments,
) -> str | None:
    """Take what was not given from the record of the run that is resumed."""
    batch = config.local_batch_size
    micro, steps = (
        recorded.get(name)
        for name in ("per_device_train_batch_size", "gradient_accumulation_steps")
    )
    if not (isinstance(micro, int) and isinstance(steps, int) and micro * steps == batch):
        open_fields = open_fields - {"per_device_train_batch_size"}  # another batch was asked for

    for name in open_fields:
        value = recorded.get(name)
        if value is None:
            continue
        setattr(model_args if name == "plain_scales" else config, name, value)
        if name == "gradient_checkpointing":
            config.activation_checkpointing = bool(value)
    if "per_device_train_batch_size" in open_fields:
        config.gradient_accumulation_steps = batch // config.per_device_train_batch_size
    return None


def _said(
    where: str, fields: set[str], config: PPOConfig, model_args: ModelArguments
) -> str | None:
    if not fields:
        return None
    values = {
        name: getattr(model_args if name == "plain_scales" else config, name)
        for name in ("bf16", *OPEN, "plain_scales")
        if name in fields
    }
    if "per_device_train_batch_size" in values:
        values["gradient_accumulation_steps"] = config.gradient_accumulation_steps
    words = ", ".join(f"{name} {_text(value)}" for name, value in values.items())
    return f"chosen for {where} (flags override it): {words}"


def _text(value: object) -> str:
    return str(bool(value)).lower() if value is None or isinstance(value, bool) else str(value)
