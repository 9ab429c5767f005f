"""What an ILQL run leaves: both adapters and the heads, loaded again before they count."""

import gc
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from toolkit.data.files import atomic_directory
from toolkit.errors import InputError, RunStopped
from toolkit.models.actors import CRITIC, POLICY
from toolkit.models.q_heads import HEADS_FILE
from toolkit.models.reload import TOLERANCE
from toolkit.models.roles import Roles
from toolkit.training.ilql.trainer import ILQLTrainer

FOLDER = "adapters"
STEERED = "steered"


def save(
    roles: Roles, tokenizer: PreTrainedTokenizerBase, out: Path, beta: float, **facts: object
) -> Path:
    """Write ``out/adapters``: ``policy``, which plain peft loads, and ``critic`` with its heads.

    Args:
        roles: with the critic.
        tokenizer: saved with the policy if it is not the base's own.
        out: folder of the run.
        beta: how strongly the critic steers if nothing else is said.
        facts: for both adapters' toolkit.json.

    Raises:
        RunStopped: a weight is not finite.
    """
    if not all(bool(weight.isfinite().all()) for _, weight in roles.changing()):
        raise RunStopped("the adapters are not finite (lower --learning_rate)")
    folder = out / FOLDER
    with atomic_directory(folder) as aside:
        roles.save(aside, **facts)
        roles.save_critic(aside, beta=beta, **facts)
        if getattr(tokenizer, "beside_base", False):
            tokenizer.save_pretrained(aside / POLICY)
    return folder


@torch.no_grad()
def check_reload(
    trainer: ILQLTrainer,
    probes: Sequence[list[int]],
    folder: Path,
    load: Callable[[], PreTrainedModel],
    precision: str,
    beta: float = 1.0,
) -> float:
    """Load the saved adapters and heads onto a fresh base; return the largest difference.

    The trainer gives up its base first, since a card holds one of them.

    Args:
        trainer: of the run.
        probes: token ids of texts, whose steered log-probs are compared.
        folder: of ``save``.
        load: loads the base.
        precision: of the base.
        beta: with which they are steered.

    Raises:
        InputError: the result differs from what was trained.
    """
    roles = trainer.roles
    exact = precision == "fp32" or (precision == "4bit" and roles.device.type == "cpu")
    exact = exact and roles.autocast_dtype is None
    roles.steer(STEERED, beta)
    before = _logprobs(roles, probes)
    kept = roles.autocast_dtype
    del roles
    trainer.let_go()
    gc.collect()

    fresh = Roles(load(), autocast_dtype=kept)
    fresh.add_steered(STEERED, folder, beta)
    after = _logprobs(fresh, probes)
    difference = (after - before).abs().max().item()
    allowed = TOLERANCE["exact" if exact else "rounded"] * max(1.0, before.abs().max().item())
    if not difference <= allowed:
        raise InputError(
            f"{folder}: after reloading, steered log-probs differ by up to {difference:.3g} "
            f"(allowed are {allowed:.3g}): {POLICY}, {CRITIC} or {HEADS_FILE} is not what was "
            "trained"
        )
    return difference


def _logprobs(roles: Roles, probes: Sequence[list[int]]) -> Tensor:
    """Steered log-probs of all tokens but each row's first, a row at a time, on the CPU."""
    found = []
    for row in probes:
        ids = torch.tensor([row], device=roles.device)
        mask = torch.ones_like(ids, dtype=torch.bool)
        found.append(roles.logprobs(STEERED, ids, mask, ids[:, 1:], 1.0).flatten().cpu())
    return torch.cat(found)
