"""Fine-tuning from human preferences on one GPU.

The public names are imported at first use: ``from toolkit import PPOTrainer`` loads what it needs.
"""

import gc
import importlib
import logging
import sys
import warnings
from pathlib import Path
from typing import Any

from toolkit import endings


def _recipe() -> Path | None:
    """Return the script that Python runs if it is a recipe, else None."""
    script = getattr(sys.modules.get("__main__"), "__file__", None)
    if script is None:
        return None

    path = Path(script).resolve()
    folder = path.parent
    around = folder.parent  # of a checkout; of an installed package, toolkit/ itself
    doors = (around / "toolkit" / "cli.py", around / "cli.py")
    of_toolkit = folder.name == "recipes" and any(door.is_file() for door in doors)
    return path if of_toolkit else None


def _leave_recipes(folder: Path) -> None:
    """Take recipes/ off ``sys.path``.

    Python puts the folder of a script first on the path. If it stayed there, a library's ``import
    evaluate`` would load recipes/evaluate.py, and ``--reward_function reward:score`` would load
    recipes/reward.py. Recipes find each other by their path (``cli.recipe``).
    """
    if sys.path and sys.path[0] and Path(sys.path[0]).resolve() == folder:
        del sys.path[0]


if (_script := _recipe()) is not None:
    _leave_recipes(_script.parent)
    endings.prepare()
    gc.disable()  # until the flags are read: it takes a fifth of the time of the imports

_PUBLIC = {
    "PPOConfig": "toolkit.training.ppo.config",
    "PPOTrainer": "toolkit.training.ppo.trainer",
    "BestOfKConfig": "toolkit.training.reward.config",
    "BestOfKTrainer": "toolkit.training.reward.trainer",
    "Roles": "toolkit.models.roles",
    "load_base": "toolkit.models.loading",
    "load_tokenizer": "toolkit.models.loading",
    "InputError": "toolkit.errors",
}
__all__ = sorted(_PUBLIC)

# On every CPU start, bitsandbytes 0.50.2 advises to install `kernels`, with which it would fetch
# native code from the Hub at import. The toolkit does not need it.
logging.getLogger("bitsandbytes.backends.cpu.ops").addFilter(
    lambda record: "gemm_4bit_forward" not in str(record.msg)
)
# At every start, peft 0.21.2 reads a name that transformers 5.23 calls deprecated.
warnings.filterwarnings("ignore", message="`is_gradient_checkpointing` is deprecated")


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'toolkit' has no attribute {name!r}")
    return getattr(importlib.import_module(_PUBLIC[name]), name)
