"""Shared by all tests: one torch thread, no network, and the embedded model's path."""

import os
from pathlib import Path

os.environ.update(
    HF_HUB_OFFLINE="1",
    HF_HUB_DISABLE_TELEMETRY="1",
    OMP_NUM_THREADS="1",
    ACCELERATE_USE_CPU="true",  # the same results with and without a GPU; test_gpu.py undoes it
)

import pytest
import torch

torch.set_num_threads(1)

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="session")
def root() -> Path:
    return ROOT


@pytest.fixture(scope="session")
def demo_model() -> str:
    """The embedded model: 771 thousand parameters, Llama architecture."""
    return str(ROOT / "data" / "model")
