"""The processes that train together: sums over them, and shares of a batch.

Each process holds all adapters and works on its share of every batch; the adapters' gradients (a
few megabytes) are summed in one message. The base is whole in each process, or sharded by FSDP.

Only the main process reads and writes the run's folder, so only its node needs the folder. What the
main process finds there, it sends to the others. All other files (base, prompts, adapters of other
runs) are read by every process, under the same path on each node.
"""

import hashlib
import json
import os
import socket
from collections.abc import Callable, Iterable
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from accelerate import PartialState
from accelerate.utils import gather_object
from torch import Tensor, nn

from toolkit.errors import InputError
from toolkit.launched import world_size

T = TypeVar("T")


def leave() -> None:
    """Take this process out of the group after all work is done.

    If this is left to the end of the interpreter, gloo's threads may still run when they are torn
    down, and the process aborts after a successful run ("terminate called without an active
    exception", torch 2.13, seen once in some hundred runs).
    """
    if dist.is_available() and dist.is_initialized():
        dist.barrier()
        dist.destroy_process_group()


def is_lost(error: BaseException) -> bool:
    """Whether this error means that another process has ended, or cannot be reached.

    NCCL raises an error of torch's own (if its watchdog does not end the process itself), gloo a
    plain RuntimeError with its name in it.
    """
    said = str(error).lower()
    gone = "connection closed by peer" in said or "connection reset by peer" in said
    return isinstance(error, dist.DistError) or (
        isinstance(error, RuntimeError) and "gloo" in said and (gone or "timed out" in said)
    )


class Ranks:
    """This process among the others.

    Args:
        asked_for: expected number of processes; None for any number.
        patience: seconds to wait for another process before ``is_lost``; None for torch's own.

    Raises:
        InputError: there are not as many processes as expected, or as the launcher started
            (``accelerate launch --cpu --num_processes 2`` silently runs one); or DeepSpeed is on,
            which this trainer would silently ignore.

    Attributes:
        sharded: whether the base is sharded (FSDP), so that all must make equally many passes.
    """

    def __init__(self, asked_for: int | None = None, patience: float | None = None) -> None:
        if os.environ.get("ACCELERATE_USE_DEEPSPEED", "").lower() == "true":
            raise InputError(
                "DeepSpeed is not supported by PPO: ZeRO-2 shards the optimizer, which is only "
                "some megabytes here (launch with recipes/accelerate/several_gpus.yaml, or with "
                "fsdp_qlora.yaml to shard the base)"
            )
        state = PartialState()
        self.rank, self.world = state.process_index, state.num_processes
        fsdp = os.environ.get("ACCELERATE_USE_FSDP", "").lower() == "true"
        self.sharded = fsdp and self.world > 1
        launched = world_size()
        for wanted, by in ((asked_for, "world_size"), (launched, "the launcher's WORLD_SIZE")):
            if wanted is not None and wanted != self.world:
                raise InputError(
                    f"{by} is {wanted}, but the number of processes is {self.world} "
                    "(on CPUs, start N with: ACCELERATE_USE_CPU=true torchrun --nproc_per_node N)"
                )
        if self.world > 1 and patience is not None:
            # On a CPU transformers opens the group without its ddp_timeout.
            dist.distributed_c10d._set_pg_timeout(timedelta(seconds=patience))

    @property
    def is_main(self) -> bool:
        """Whether this process writes files and shows progress."""
        return self.rank == 0

    def total(self, value: Tensor) -> Tensor:
        """Return the sum over all processes."""
        if self.world > 1:
            value = value.clone()
            dist.all_reduce(value)
        return value

    def total_on_host(self, value: Tensor) -> Tensor:
        """Return the sum over all processes of a tensor on the CPU, and leave it there."""
        if self.world == 1:
            return value
        return self.total(value.to(PartialState().device)).cpu()

    def largest(self, value: Tensor) -> Tensor:
        """Return the maximum over all processes."""
        if self.world > 1:
            value = value.clone()
            dist.all_reduce(value, op=dist.ReduceOp.MAX)
        return value

    def idle_passes(self, passes: int) -> int:
        """Return how many idle passes to add to ``passes`` to keep in step with the others."""
        if not self.sharded:
            return 0
        most = self.largest(torch.tensor(float(passes), device=PartialState().device))
        return int(most) - passes

    def gather(self, value: Any) -> list[Any]:
        """Return a list of every process's object, in order of rank."""
        return gather_object([value]) if self.world > 1 else [value]

    def from_main(self, make: Callable[[], T]) -> T:
        """Return what ``make`` returns in the main process; the others do not call it.

        Raises:
            InputError: the main process raised it; then all processes raise the same.
        """
        if self.world == 1:
            return make()

        found: list[Any] = [None]
        if self.is_main:
            try:
                found = [make()]
            except InputError as error:
                found = [error]
        dist.broadcast_object_list(found, src=0)
        if isinstance(found[0], InputError):
            raise found[0]
        return found[0]

    def check_same(self, settings: dict[str, object]) -> None:
        """Raise InputError in all processes unless each has the same settings.

        Otherwise a node that was given another command, or another copy of a file, would take part
        unnoticed.
        """
        mine = {
            name: hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
            for name, value in settings.items()
        }
        everyone = self.gather((socket.gethostname(), mine))
        for rank, (host, theirs) in enumerate(everyone):
            odd = sorted(k for k in mine | theirs if everyone[0][1].get(k) != theirs.get(k))
            if odd:
                raise InputError(
                    f"process {rank} on {host} has other settings or files than process 0: "
                    f"{', '.join(odd)} (give every node the same command and the same files)"
                )

    def share(self, count: int) -> slice:
        """Return the slice of ``count`` items of a global batch that belongs to this process."""
        size = count // self.world
        return slice(self.rank * size, (self.rank + 1) * size)

    def same_start(self, parameters: Iterable[nn.Parameter]) -> None:
        """Copy the main process's weights to all, because differently seeded ones would drift."""
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
        """Wait until all processes are here."""
        if self.world > 1:
            dist.barrier()
