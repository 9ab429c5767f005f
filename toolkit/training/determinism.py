"""Let torch use only operations that give the same bits in every run (``full_determinism``).

transformers' Trainer, behind the recipes of reward models and baselines, has the same flag for the
same thing. It also lets the host wait for every kernel, which equal bits do not need; here it does
not wait.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch

CUBLAS = "CUBLAS_WORKSPACE_CONFIG"


def prepare_determinism() -> None:
    """Give cuBLAS a workspace with which it repeats itself, unless the environment says which.

    It reads this at its first product in a process, so call this before a model is loaded.
    """
    os.environ.setdefault(CUBLAS, ":4096:8")


@contextmanager
def only_deterministic(wanted: bool) -> Iterator[None]:
    """Inside, an operation that could give other bits in the next run is replaced, or is an error.

    torch's settings are put back afterwards.
    """
    if not wanted:
        yield
        return

    prepare_determinism()
    cudnn = torch.backends.cudnn
    strict, warns = (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
    )
    before = cudnn.deterministic, cudnn.benchmark
    torch.use_deterministic_algorithms(True)
    cudnn.deterministic, cudnn.benchmark = True, False
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(strict, warn_only=warns)
        cudnn.deterministic, cudnn.benchmark = before
