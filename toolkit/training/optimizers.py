"""A run's optimizer and schedule, as transformers' Trainer would build them.

The defaults are Adam and a learning rate that falls linearly to 0, which this project computes
itself (``toolkit/maths/schedules.py``). ``optim``, ``optim_args``, ``weight_decay``,
``lr_scheduler_type``, ``lr_scheduler_kwargs`` and ``warmup_steps`` change them.
"""

import logging
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from toolkit.errors import InputError
from toolkit.maths.optimizers import AdamTFStyle
from toolkit.training.trl_configs import TrainingArguments

# transformers' names for AdamW. Fused or not only changes the speed, so the device decides.
Kind = Callable[..., Optimizer]
ADAMW = ("adamw_torch", "adamw_torch_fused")


def optimizer_class(args: TrainingArguments) -> tuple[Kind, dict[str, object]]:
    """Return the optimizer's class that ``args`` name, and its arguments without parameters.

    AdamW without weight decay equals Adam bit for bit.

    Raises:
        InputError: transformers cannot build it, for the reason given.
    """
    name = getattr(args.optim, "value", args.optim)
    adam = {
        "lr": args.learning_rate,
        "betas": (args.adam_beta1, args.adam_beta2),
        "eps": args.adam_epsilon,
    }
    if getattr(args, "adam_tf_style", False):
        return AdamTFStyle, adam
    if name in ADAMW:
        if args.optim_args:
            raise InputError("optim_args: AdamW accepts none (leave it out)", "optim_args")
        return (torch.optim.AdamW if args.weight_decay else torch.optim.Adam), adam

    from transformers import Trainer

    try:
        return Trainer.get_optimizer_cls_and_kwargs(args)
    except (ValueError, ImportError, TypeError) as error:
        what = f"optim_args {args.optim_args!r}: " if args.optim_args else ""
        reason = " ".join(str(error).split())
        raise InputError(f"optim: {name}: {what}{reason}", "optim") from None


def make_optimizer(
    args: TrainingArguments, model: nn.Module, rates: Callable[[str], float | None] | None = None
) -> Optimizer:
    """Make the optimizer that ``args`` name, for all parameters of ``model`` that are trained.

    As in transformers' Trainer, biases and the weights of norms have no weight decay, and
    bitsandbytes' 8-bit optimizers hold embeddings in 32 bits.

    Args:
        rates: the learning rate of the parameter of this name; None for that of ``args``.
    """
    kind, options = optimizer_class(args)
    if options.get("optim_bits") == 8:
        from bitsandbytes.optim import GlobalOptimManager

        for module in model.modules():
            if isinstance(module, nn.Embedding):
                overrides = GlobalOptimManager.get_instance()
                overrides.register_module_override(module, "weight", {"optim_bits": 32})
    trained = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    if kind in (torch.optim.Adam, torch.optim.AdamW) and all(p.is_cuda for _, p in trained):
        options = options | {"fused": True}  # one kernel for all weights instead of ten
    if not args.weight_decay and rates is None:
        return kind([p for _, p in trained], **options)

    decayed: set[str] = set()
    if args.weight_decay:
        from transformers import Trainer

        decayed = set(Trainer.get_decay_parameter_names(None, model))  # type: ignore[arg-type]

    # One group for each combination of weight decay and learning rate.
    groups: dict[tuple[bool, float | None], list[nn.Parameter]] = {}
    for name, parameter in trained:
        key = (name not in decayed, rates(name) if rates is not None else None)
        groups.setdefault(key, []).append(parameter)

    ordered = sorted(groups.items(), key=lambda item: (item[0][0], item[0][1] is not None))
    return kind(
        [
            {"params": parameters, "weight_decay": 0.0 if undecayed else args.weight_decay}
            | ({} if rate is None else {"lr": rate})
            for (undecayed, rate), parameters in ordered
        ],
        **options,
    )


def make_schedule(
    args: TrainingArguments, optimizer: Optimizer, updates: int
) -> LRScheduler | None:
    """Make the schedule that ``args`` name, to be stepped once an update.

    Returns:
        None for a constant rate, and for one that falls linearly from the first update on, which
        the trainer computes without a state.

    Raises:
        InputError: transformers cannot build it, for the reason given.
    """
    name = getattr(args.lr_scheduler_type, "value", args.lr_scheduler_type)
    warmup = args.get_warmup_steps(updates)
    if not args.lr_scheduler_kwargs and (name == "constant" or (name == "linear" and not warmup)):
        return None

    from transformers.optimization import get_scheduler

    options = args.lr_scheduler_kwargs or {}
    assert isinstance(options, dict)  # transformers has already parsed the JSON
    if name in ("constant", "constant_with_warmup") and options:
        raise InputError(
            f"lr_scheduler_kwargs: {name} accepts none (leave it out)", "lr_scheduler_kwargs"
        )
    try:
        return get_scheduler(name, optimizer, warmup, updates, options)
    except (TypeError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise InputError(
            f"lr_scheduler_kwargs {options!r} for {name}: {reason}", "lr_scheduler_kwargs"
        ) from None


def optimizers_of(
    args: TrainingArguments,
    given: tuple[Optimizer | None, LRScheduler | None],
    model: nn.Module,
    updates: int,
    rates: Callable[[str], float | None] | None = None,
) -> tuple[Optimizer, LRScheduler | None]:
    """Return the caller's optimizer and schedule, or those that ``args`` name if they are None.

    Raises:
        InputError: they do not fit together, or the optimizer trains nothing of ``model``.
    """
    optimizer, schedule = given
    if optimizer is None and schedule is not None:
        raise InputError("optimizers: the schedule has no optimizer (pass both, or neither)")
    if isinstance(schedule, ReduceLROnPlateau):
        raise InputError(
            "optimizers: ReduceLROnPlateau needs a metric at every step (use another schedule)"
        )

    if optimizer is not None and rates is not None:
        raise InputError(
            "value_learning_rate is not used with an optimizer of your own (give the value a "
            "parameter group)",
            "value_learning_rate",
        )
    if optimizer is not None:
        known = {id(p): p for p in model.parameters()}
        held = [p for group in optimizer.param_groups for p in group["params"]]
        strange = sum(id(p) not in known for p in held)
        if strange:
            raise InputError(
                f"optimizers: {strange} of {len(held)} parameters of the optimizer belong to no "
                "model of this trainer (build it from the models that you pass)"
            )
        trained = sum(p.requires_grad for p in held)
        if not trained:
            raise InputError(
                "optimizers: nothing in the optimizer requires a gradient (with peft_config, add "
                "the adapter with get_peft_model first, and build the optimizer from the result)"
            )
        left_out = sum(p.requires_grad for p in model.parameters()) - trained
        if left_out:
            logging.getLogger(__name__).warning(
                "the optimizer that was passed leaves out %d parameters that require a gradient",
                left_out,
            )
    else:
        optimizer = make_optimizer(args, model, rates)

    return optimizer, schedule or make_schedule(args, optimizer, updates)


def to_host(tensor: Tensor) -> Tensor:
    """Return a tensor for a file: on the CPU, contiguous, without a gradient."""
    return tensor.detach().cpu().contiguous()


def optimizer_state(
    optimizer: Optimizer, names: list[str]
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return the numbers ("name|key" -> value) and tensors of an optimizer's state."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    scalars: dict[str, Any] = {}
    tensors: dict[str, Tensor] = {}
    for name, parameter in zip(names, parameters, strict=True):
        for key, value in optimizer.state.get(parameter, {}).items():
            if isinstance(value, Tensor):
                # Copy it, because bitsandbytes has one table for all parameters.
                tensors[f"{name}|{key}"] = value.detach().cpu().clone().contiguous()
            else:
                scalars[f"{name}|{key}"] = value
    return scalars, tensors


def restore_optimizer(
    optimizer: Optimizer, names: list[str], scalars: dict[str, Any], tensors: dict[str, Tensor]
) -> None:
    """Give an optimizer back what ``optimizer_state`` returned; the names are in its order."""
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
