"""The processes that train together: sums over them, and shares of a batch.

Each process holds all adapters, works on its share of every batch, and the adapters' gradients (a
few megabytes) are summed in one message. The base is whole in each, or, under FSDP, shared out.
"""

import os
from collections.abc import Iterable
from typing import Any

import torch
import torch.distributed as dist
from accelerate import PartialState
from accelerate.utils import gather_object
from torch import Tensor, nn

from toolkit.errors import InputError
from toolkit.launched import world_size


def leave() -> None:
    """Take this process out of the group, all work being done.

    Left to the end of the interpreter, gloo's threads may still be running when they are torn down,
    and the process aborts after a run that went well ("terminate called without an active
    exception", torch 2.13, seen once in some hundred runs).
    """
    if dist.is_available() and dist.is_initialized():
        dist.barrier()
        dist.destroy_process_group()


class Ranks:
    """This process among the others.

    Args:
        asked_for: how many processes there should be; None for as many as there are.

    Raises:
        InputError: there are not as many as were asked for, or as the launcher started
            (``accelerate launch --cpu --num_processes 2`` runs one, without a word); or DeepSpeed,
            which this trainer would silently go without.

    Attributes:
        sharded: the base is shared out (FSDP), so all must make the same number of passes.
    """

    def __init__(self, asked_for: int | None = None) -> None:
        if os.environ.get("ACCELERATE_USE_DEEPSPEED", "").lower() == "true":
            raise InputError(
                "DeepSpeed is not supported by PPO: ZeRO-2 shares out the optimizer, here "
                "some megabytes (launch with recipes/accelerate/several_gpus.yaml, or with "
                "fsdp_qlora.yaml to share out the base)"
            )
        state = PartialState()
        self.rank, self.world = state.process_index, state.num_processes
        fsdp = os.environ.get("ACCELERATE_USE_FSDP", "").lower() == "true"
        self.sharded = fsdp and self.world > 1
        launched = world_size()
        for wanted, by in ((asked_for, "world_size"), (launched, "the launcher's WORLD_SIZE")):
            if wanted is not None and wanted != self.world:
                raise InputError(
                    f"{by} is {wanted}, but {self.world} process{'es' * (self.world > 1)} at work "
                    "(on CPUs: ACCELERATE_USE_CPU=true torchrun --nproc_per_node N)"
                )

    @property
    def is_main(self) -> bool:
        """Whether this process writes files and shows progress."""
        return self.rank == 0

    def total(self, value: Tensor) -> Tensor:
        """The sum over all processes."""
        if self.world > 1:
            value = value.clone()
            dist.all_reduce(value)
        return value

    def largest(self, value: Tensor) -> Tensor:
        """The maximum over all processes."""
        if self.world > 1:
            value = value.clone()
            dist.all_reduce(value, op=dist.ReduceOp.MAX)
        return value

    def idle_passes(self, passes: int) -> int:
        """How many passes of nothing to make besides ``passes`` of one's own, to keep in step."""
        if not self.sharded:
            return 0
        most = self.largest(torch.tensor(float(passes), device=PartialState().device))
        return int(most) - passes

    def gather(self, value: Any) -> list[Any]:
        """A list of every process's object, in order of rank."""
        return gather_object([value]) if self.world > 1 else [value]

    def share(self, count: int) -> slice:
        """Which of ``count`` items of a global batch are this process's."""
        size = count // self.world
        return slice(self.rank * size, (self.rank + 1) * size)

    def same_start(self, parameters: Iterable[nn.Parameter]) -> None:
        """Give every process the main one's weights: drawn from other seeds they would drift."""
        for p in parameters if self.world > 1 else ():
            dist.broadcast(p.data, 0)

    def sum_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Replace every gradient by its sum over the processes."""
        if self.world == 1:
            return
        parameters = list(parameters)
        for p in parameters:
            if p.grad is None:
                p.grad = torch.zeros_like(p)
        grads = [p.grad for p in parameters if p.grad is not None]
        flat = torch.cat([grad.flatten() for grad in grads])
        dist.all_reduce(flat)
        for grad, part in zip(grads, flat.split([g.numel() for g in grads]), strict=True):
            grad.copy_(part.view_as(grad))

    def wait(self) -> None:
        """Until all processes are here."""
        if self.world > 1:
            dist.barrier()
