"""Runs code that was written for TRL 1.12's PPO: its two classes, and its YAML files.

from toolkit.trl_compat import PPOConfig, PPOTrainer  # was: from trl.experimental.ppo ...
"""

import importlib
from typing import Any

_PUBLIC = {
    "PPOConfig": "toolkit.trl_compat.config",
    "PPOTrainer": "toolkit.trl_compat.trainer",
}
__all__ = sorted(_PUBLIC)


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'toolkit.trl_compat' has no attribute {name!r}")
    return getattr(importlib.import_module(_PUBLIC[name]), name)
