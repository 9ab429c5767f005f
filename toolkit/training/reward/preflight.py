"""A check before a long run: what trains, and whether a backward pass reaches all of it."""

import math
from dataclasses import dataclass

import torch
from datasets import Dataset
from torch import Tensor, nn
from trl import RewardTrainer

from toolkit.errors import InputError


@dataclass
class Preflight:
    """What one backward pass showed.

    Attributes:
        trained: number of weights that are trained, by kind ("LoRA", "score head").
        frozen: number of frozen weights (a 4-bit weight counts once).
        loss, gradient_norm: their values for the batch.
    """

    trained: dict[str, int]
    frozen: int
    loss: float
    gradient_norm: float

    def __str__(self) -> str:
        parts = " and ".join(f"{count:,} weights of {kind}" for kind, count in self.trained.items())
        return (
            f"trains {parts}; {self.frozen:,} frozen; first loss {self.loss:.3f}, "
            f"gradient norm {self.gradient_norm:.3g}"
        )


def preflight(trainer: RewardTrainer) -> Preflight:
    """Run one batch forward and backward through what will be trained; nothing changes.

    Call it before ``train``: it clears what the trainer has logged so far.

    Raises:
        InputError: the score head or every adapter is frozen, or gets no gradient.
        FloatingPointError: the loss or a gradient is not finite.
    """
    model = trainer.model
    assert model is not None
    rows = trainer.train_dataset  # the first ones, so that no random state is used
    assert isinstance(rows, Dataset)
    count = min(len(rows), trainer.args.per_device_train_batch_size)
    batch = trainer.data_collator([rows[i] for i in range(count)])
    was_training = model.training
    model.train()
    loss = trainer.compute_loss(model, trainer._prepare_inputs(batch))
    assert isinstance(loss, Tensor)
    trainer.accelerator.backward(loss)
    trainer._metrics["train"].clear()  # this batch is not part of the run
    gradients = {n: p.grad for n, p in model.named_parameters() if p.requires_grad}
    try:
        return _judge(model, gradients, loss.item())
    finally:
        model.zero_grad(set_to_none=True)
        model.train(was_training)


def _judge(model: nn.Module, gradients: dict[str, Tensor | None], loss: float) -> Preflight:
    if not math.isfinite(loss):
        raise FloatingPointError(f"pre-flight: the loss of the first batch is {loss}")
    kinds = {"LoRA": ".lora_", "score head": "score."}
    trained: dict[str, int] = {}
    for kind, mark in kinds.items():
        of_kind = {name: grad for name, grad in gradients.items() if mark in name}
        if not of_kind:
            raise InputError(f"pre-flight: no {kind} weight is trained (is task_type SEQ_CLS?)")
        reached = [name for name, grad in of_kind.items() if grad is not None and grad.any()]
        if not reached:
            raise InputError(f"pre-flight: the {kind} gets no gradient, so it would not learn")
        for name, grad in of_kind.items():
            if grad is not None and not torch.isfinite(grad).all():
                raise FloatingPointError(f"pre-flight: the gradient of {name} is not finite")
        trained[kind] = sum(p.numel() for n, p in model.named_parameters() if n in of_kind)

    frozen = 0
    for parameter in model.parameters():
        if not parameter.requires_grad:
            packed = 2 if parameter.dtype == torch.uint8 else 1  # two 4-bit weights a byte
            frozen += packed * parameter.numel()

    norms = [grad.norm() for grad in gradients.values() if grad is not None]
    return Preflight(trained, frozen, loss, torch.stack(norms).norm().item())
