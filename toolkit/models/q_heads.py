"""The heads of an ILQL critic: two of Q with slowly moving targets, and one of V.

    kind     Q(h, .)                            weights
    own      MLP(h): d to 2d, ReLU, to V        2d V in each of four copies
    tied     W MLP(h) + b: d to 2d to d         2 x 2d^2 and V in each; W is the base's output head

V is d to 2d, ReLU, to 1. All compute in fp32, whatever the trunk's type. The last layers start at
zero: Q and V are 0 at first. Source of the shapes: trlX (trlx/models/modeling_ilql.py); the
tied form is this project's, since V-wide heads on a large vocabulary would outweigh the model.
"""

import copy
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from toolkit.errors import InputError
from toolkit.maths.distributions import Head, head_distribution
from toolkit.maths.ilql import advantages, polyak
from toolkit.maths.precision import autocast_device
from toolkit.models.finite_weights import check_tensors

QKind = Literal["own", "tied"]
HEADS_FILE = "q_heads.safetensors"
LARGEST_OWN = 10_000  # tokens of a vocabulary up to which heads of their own are the default


class Taken(NamedTuple):
    """Of each token that was taken, fp32 (B, C).

    Attributes:
        q: Q of each head, with gradients.
        logprobs: of each head, log softmax(Q(h, .) / temperature) at the token, with gradients.
        targets: Q' of each target head, without.
        values: V of the state before the token, with gradients.
    """

    q: list[Tensor]
    logprobs: list[Tensor]
    targets: list[Tensor]
    values: Tensor


class QHead(nn.Module):
    """One head of Q: (..., d) to a number for each token of the vocabulary.

    Args:
        size: d, of the hidden states.
        vocabulary: V, tokens that the base's output head knows.
        kind: "own" or "tied".
    """

    def __init__(self, size: int, vocabulary: int, kind: QKind) -> None:
        super().__init__()
        self.tied = kind == "tied"
        self.mlp = _mlp(size, size if self.tied else vocabulary)
        self.bias = nn.Parameter(torch.zeros(vocabulary)) if self.tied else None

    def whole(self, states: Tensor, weight: Tensor) -> Tensor:
        """Return Q (..., V) of all next tokens.

        Args:
            states: fp32 (..., d).
            weight: (V, d) of the base's output head; read only if the head is tied.
        """
        if self.bias is None:
            return self.mlp(states)
        return nn.functional.linear(self.mlp(states), weight.float(), self.bias)

    def taken(
        self, states: Tensor, ids: Tensor, weight: Tensor, temperature: float | None
    ) -> tuple[Tensor, Tensor]:
        """Return Q of these tokens, and their log softmax(Q / temperature), each (B, C).

        Args:
            states: fp32 (B, C, d).
            ids: int (B, C).
            weight: as above.
            temperature: > 0; None leaves the log-probs out (they are then 0).
        """
        if self.bias is None:
            q = self.mlp(states)
            chosen = q.gather(-1, ids.unsqueeze(-1)).squeeze(-1)
            if temperature is None:
                return chosen, torch.zeros_like(chosen)
            return chosen, chosen / temperature - (q / temperature).logsumexp(dim=-1)

        # No tensor with a number for each token of the vocabulary is whole here.
        made = self.mlp(states)
        chosen = (made * weight[ids].float()).sum(dim=-1) + self.bias[ids]
        if temperature is None:
            return chosen, torch.zeros_like(chosen)
        head = Head(made, weight.float(), self.bias)
        return chosen, head_distribution(head, ids, temperature).logprobs


class QHeads(nn.Module):
    """Two heads of Q, their targets, and the head of V.

    Args:
        size: d, of the hidden states.
        vocabulary: V, tokens that the base's output head knows.
        kind: "own" or "tied" (see the top of this file).

    Attributes:
        online, targets: the two heads of Q, and their targets, which have no gradient.
    """

    def __init__(self, size: int, vocabulary: int, kind: QKind) -> None:
        super().__init__()
        self.size, self.vocabulary, self.kind = size, vocabulary, kind
        self.online = nn.ModuleList(QHead(size, vocabulary, kind) for _ in range(2))
        self.value = _mlp(size, 1)
        self.targets = copy.deepcopy(self.online).requires_grad_(False)

    def taken(self, states: Tensor, ids: Tensor, weight: Tensor, temperature: float = 1.0) -> Taken:
        """Read the states before these tokens.

        Args:
            states: (B, C, d) of any type.
            ids: int (B, C), the tokens that were taken there.
            weight: (V, d) of the base's output head, frozen.
            temperature: of CQL's softmax.
        """
        with torch.autocast(autocast_device(states.device), enabled=False):
            states = states.float()
            found = [head.taken(states, ids, weight, temperature) for head in self._of("online")]
            with torch.no_grad():
                targets = [head.taken(states, ids, weight, None)[0] for head in self._of("targets")]
            return Taken(
                [q for q, _ in found],
                [logprobs for _, logprobs in found],
                targets,
                self.value(states).squeeze(-1),
            )

    @torch.no_grad()
    def advantages(self, states: Tensor, weight: Tensor) -> Tensor:
        """Return min Q' - V (..., V) fp32 of all next tokens, for states (..., d) of any type."""
        with torch.autocast(autocast_device(states.device), enabled=False):
            states = states.float()
            targets = [head.whole(states, weight) for head in self._of("targets")]
            return advantages(targets, self.value(states))

    def sync(self, alpha: float) -> None:
        """Move the targets this share of the way to the online heads."""
        polyak(self.targets.parameters(), self.online.parameters(), alpha)

    def _of(self, name: Literal["online", "targets"]) -> Iterator[QHead]:
        for head in getattr(self, name):
            assert isinstance(head, QHead)
            yield head

    def save(self, folder: str | Path) -> None:
        """Write all heads, with the targets, into a file of the folder."""
        state = {name: t.detach().cpu().contiguous() for name, t in self.state_dict().items()}
        save_file(state, Path(folder) / HEADS_FILE, metadata={"format": "pt", "kind": self.kind})

    @classmethod
    def load(cls, folder: str | Path, size: int, vocabulary: int) -> "QHeads":
        """Load the heads that ``save`` wrote.

        Args:
            folder: the critic's.
            size, vocabulary: of the base that they will read.

        Raises:
            InputError: the file is missing or broken, or belongs to another base.
        """
        kind = kind_of(folder)
        path = Path(folder) / HEADS_FILE
        state = load_file(path)
        check_tensors(state.items(), str(path))
        heads = cls(size, vocabulary, kind)
        wanted = {name: tuple(tensor.shape) for name, tensor in heads.state_dict().items()}
        found = {name: tuple(tensor.shape) for name, tensor in state.items()}
        if wanted != found:
            odd = sorted(n for n in wanted | found if wanted.get(n) != found.get(n))[0]
            raise InputError(
                f"{path}: {odd} is {_shown(found.get(odd))}, but a base of width {size} with "
                f"{vocabulary} tokens needs {_shown(wanted.get(odd))} (give the base that the "
                "critic was trained on)"
            )
        heads.load_state_dict(state)
        return heads


def kind_of(folder: str | Path) -> QKind:
    """Return how the heads in a critic's folder are made, without reading their weights.

    Raises:
        InputError: there are no heads, or the file was written by something else.
    """
    path = Path(folder) / HEADS_FILE
    if not path.is_file():
        raise InputError(f"{path}: no such file (give the folder that preftune ilql wrote)")
    try:
        with safe_open(path, framework="pt") as weights:
            kind = (weights.metadata() or {}).get("kind")
    except (SafetensorError, OSError) as error:
        raise InputError(f"{path} cannot be read: {error}") from None
    if kind == "own":
        return "own"
    if kind == "tied":
        return "tied"
    raise InputError(f"{path}: holds no heads of a critic (give the folder of preftune ilql)")


def kind_for(vocabulary: int) -> QKind:
    """Return the default kind of heads for a vocabulary of this many tokens."""
    return "own" if vocabulary <= LARGEST_OWN else "tied"


def _mlp(size: int, outputs: int) -> nn.Sequential:
    """d to 2d, ReLU, to ``outputs``; the last layer starts at zero."""
    last = nn.Linear(2 * size, outputs)
    nn.init.zeros_(last.weight)
    nn.init.zeros_(last.bias)
    return nn.Sequential(nn.Linear(size, 2 * size), nn.ReLU(), last)


def _shown(shape: Sequence[int] | None) -> str:
    return "missing" if shape is None else str(list(shape))
