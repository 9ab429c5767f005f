"""Sums, means and SLERPs of LoRA adapters, as functions from folders to a folder.

LoRA changes a weight by delta = s B A with s = alpha / r, or alpha / sqrt(r) for rsLoRA. Every
weighted sum of such changes is an adapter again, whatever the ranks and scales:

    sum_i w_i s_i B_i A_i  =  [w_1 s_1 B_1, w_2 s_2 B_2, ...] [A_1; A_2; ...]

Its rank is at most the sum of the ranks: ranks whose B is zero are left out, and what all parents
have from their start is written once. No base is loaded, and nothing but the last digit of a number
is rounded. The mean of the factors, and peft's ``add_weighted_adapter`` with "linear", are not the
sum of the changes; its "cat" is. Angles and norms come from the factors as well:

    <delta_1, delta_2> = s_1 s_2 sum((B_1' B_2) * (A_1 A_2'))

Sources: WARP, arXiv 2406.16768, sections 3.1 to 3.3, for policies; WARM, arXiv 2401.12187, for
reward models. (``merging.py`` merges an adapter into its base, which is another thing.)
"""

import math
import shutil
import warnings
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from peft import LoraConfig
from peft.utils.other import get_pattern_key
from safetensors.torch import load_file, save_file
from torch import Tensor

from toolkit.data.files import atomic_directory, write_json
from toolkit.errors import Caution, InputError
from toolkit.maths.interpolation import angle, slerp_in_turn, slerp_weights
from toolkit.models.adapter_config import CONFIG, Config, read_config
from toolkit.models.adapters import PREFIX, WEIGHTS, Parts, absolute_if_local
from toolkit.models.finite_weights import check_tensors
from toolkit.models.toolkit_json import FACTS, adapter_digest, read_facts

How = Literal["linear", "slerp"]
# The ends of LoRA's keys: A (r, in) and B (out, r), on a linear layer or on the embedding.
ENDS_OF_A = (".lora_A.weight", ".lora_embedding_A")
ENDS_OF_B = (".lora_B.weight", ".lora_embedding_B")
SCORE = "score.weight"
# Features of adapters whose changes have no exact sum of this form.
NO_SUM = {
    "use_dora": "is DoRA, whose magnitudes cannot be added",
    "lora_bias": "has biases in LoRA (lora_bias)",
    "target_parameters": "has LoRA on experts (target_parameters)",
}
# Fields of adapter_config.json that name the layers; parents that agree hand them on.
LAYERS = ("target_modules", "exclude_modules", "layers_to_transform", "layers_pattern")
# Facts of toolkit.json on which parents must agree, because they say how texts are read.
READING = ("ends_with", "whole_turns", "trained_on", "chat_template", "chat_template_kwargs")
CARRIED = (*READING, "base_fingerprint", "precision", "start", "head_seed")
TOKENIZER = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json",
    "tokenizer.model", "vocab.json", "merges.txt", "vocab.txt", "chat_template.jinja",
)  # fmt: skip
SUMS_TO_ONE = 1e-9


@dataclass(frozen=True)
class Factors:
    """One layer's change, scale * b @ a.

    Attributes:
        a: (r, in).
        b: (out, r).
        scale: alpha / r, or alpha / sqrt(r).
        keys: the names of a and b in the adapter's file.
    """

    a: Tensor
    b: Tensor
    scale: float
    keys: tuple[str, str]

    @property
    def rank(self) -> int:
        """The number of rows of a, and of columns of b."""
        return self.a.shape[0]

    def ranks(self, which: slice) -> "Factors":
        """Return the change of some of the ranks."""
        return replace(self, a=self.a[which], b=self.b[:, which])


@dataclass
class LoraFile:
    """An adapter's folder, read whole.

    Attributes:
        folder: the folder.
        config: of adapter_config.json, checked.
        facts: of toolkit.json.
        layers: each layer's change, by the layer's name in the base.
        score: a reward adapter's head (1, d), times the gain; None for a policy.
        score_key: the head's name in the file.
        bias: a reward adapter's bias.
        copies: the base's embedding or head, which peft saves beside LoRA on them.
    """

    folder: Path
    config: Config
    facts: dict[str, Any]
    layers: dict[str, Factors]
    score: Tensor | None
    score_key: str
    bias: float
    copies: dict[str, Tensor]

    @classmethod
    def read(cls, folder: str | Path, what: str = "adapters") -> "LoraFile":
        """Read an adapter of which exact sums can be made.

        Args:
            folder: with adapter_config.json and adapter_model.safetensors.
            what: the argument that names it, for messages.

        Raises:
            InputError: it is not there, not LoRA, broken, or has a part that has no exact sum.
        """
        folder = Path(folder)
        for name in (CONFIG, WEIGHTS):
            if not (folder / name).is_file():
                raise InputError(f"{what}: {folder} has no {name} (give an adapter's folder)")
        config = read_config(folder, what)
        for name, told in NO_SUM.items():
            if config.get(name):
                raise InputError(f"{what}: {folder}: the adapter {told}, so it has no exact sum")

        state = load_file(folder / WEIGHTS)
        check_tensors(state.items(), f"{folder / WEIGHTS}")
        parts = Parts.of(state, config)
        if beside := parts.saved + parts.tokens + parts.biases + parts.unknown:
            raise InputError(
                f"{what}: {folder}: the adapter has weights beside LoRA ("
                f"{_without_copies(parts).beside_lora() or 'unknown ones'}, for example "
                f"{beside[0]}), which have no exact sum without the base"
            )

        rewards = config.get("task_type") == "SEQ_CLS"
        if rewards != (len(parts.score) == 1):
            raise InputError(
                f"{what}: {folder}: it has {len(parts.score)} score heads, but its task_type is "
                f"{config.get('task_type')}"
            )

        facts, score = read_facts(folder), None
        if rewards:
            score = float(facts.get("gain", 1.0)) * state[parts.score[0]].double()
        return cls(
            folder,
            config,
            facts,
            _layers(state, parts.lora, config, f"{what}: {folder / WEIGHTS}"),
            score,
            parts.score[0] if rewards else "",
            float(facts.get("bias", 0.0)),
            {key: state[key] for key in parts.copies},
        )

    @property
    def base(self) -> str:
        """The name of the base, as a full path if it is a folder."""
        return absolute_if_local(str(self.config.get("base_model_name_or_path") or ""))

    @property
    def start(self) -> str | None:
        """The digest of the adapter that it was trained from; None for the base alone."""
        return self.facts.get("start")


def _without_copies(parts: Parts) -> Parts:
    return Parts(parts.lora, parts.saved, parts.tokens, parts.biases, [], [], [])


def _layers(
    state: dict[str, Tensor], keys: Sequence[str], config: Config, place: str
) -> dict[str, Factors]:
    """Pair the matrices of a file by layer."""
    ranks: dict[str, int] = config.get("rank_pattern") or {}
    alphas: dict[str, float] = config.get("alpha_pattern") or {}
    found: dict[str, Factors] = {}
    known: set[str] = set()
    for key in keys:
        which = next((i for i, end in enumerate(ENDS_OF_A) if key.endswith(end)), None)
        if which is None:
            continue
        stem = key.removesuffix(ENDS_OF_A[which])
        other = stem + ENDS_OF_B[which]
        if other not in state or state[key].ndim != 2 or state[other].ndim != 2:
            raise InputError(f"{place}: {key} has no B matrix beside it, or is not a matrix")

        a, b = state[key], state[other]
        if a.shape[0] != b.shape[1]:
            raise InputError(
                f"{place}: {key} has rank {a.shape[0]}, but {other} has rank {b.shape[1]}"
            )
        known |= {key, other}

        # As peft computes the scale: by the rank of the configuration, which is the file's.
        name = stem.removeprefix(PREFIX)
        rank = ranks.get(get_pattern_key([*ranks], name), config.get("r", 8))
        pattern = get_pattern_key([*alphas], name)
        alpha = float(alphas[pattern] if pattern in alphas else config.get("lora_alpha", 8))
        if rank != a.shape[0]:
            raise InputError(f"{place}: {key} has rank {a.shape[0]}, but {CONFIG} says {rank}")
        scale = alpha / math.sqrt(rank) if config.get("use_rslora") else alpha / rank
        found[name] = Factors(a, b, scale, (key, other))

    if rest := set(keys) - known:
        raise InputError(f"{place}: {min(rest)} is of a kind of LoRA that has no exact sum")
    if not found:
        raise InputError(f"{place}: it has no LoRA matrices")
    return found


@dataclass(frozen=True)
class Outcome:
    """What a merge came to.

    Attributes:
        ranks: the number of layers by rank.
        angles: degrees between the first two parents' changes, by layer; empty for one parent.
        parents: the number of parents.
        rewards: whether they are reward adapters.
    """

    ranks: dict[int, int]
    angles: dict[str, float]
    parents: int
    rewards: bool

    def sentence(self) -> str:
        """Say it in a sentence or two."""
        ranks = ", ".join(
            f"{rank} in {count} layer{'s' if count > 1 else ''}"
            for rank, count in sorted(self.ranks.items())
        )
        told = f"The merged adapter has rank {ranks}."
        if self.angles:
            found = list(self.angles.values())
            told += (
                f" The changes of the {'parents' if self.parents == 2 else 'first two parents'} "
                f"are at {min(found):.0f} to {max(found):.0f} degrees to each other "
                f"(mean {sum(found) / len(found):.0f})."
            )
        return told


def merge_adapters(
    folders: Sequence[str | Path],
    out: str | Path,
    how: How = "linear",
    weights: Sequence[float] | None = None,
    scale: float = 1.0,
    start: str | Path | None = None,
    what: str = "adapters",
    chained: bool = False,
) -> Outcome:
    """Write one adapter that is the sum, mean or SLERP of others.

    With d_i = delta_i - start, each layer's change is start + scale * sum_i w_i d_i. For "linear"
    the w_i are ``weights``; for "slerp" they are SLERP's, layer by layer. The layers of all
    parents take part; where a parent has none, its change is zero.

    Args:
        folders: the parents' folders.
        out: the folder to write; it appears when everything is done.
        how: "linear", or "slerp".
        weights: one for each parent; by default 1 / n each. For "slerp" of two they are 1 - l and
            l; more than two are merged in turn, with 1 / n each.
        scale: eta: below 1 it interpolates towards the start, above 1 it extrapolates.
        start: the adapter that all parents were trained from; None for the base.
        what: the argument that names the parents, for messages.
        chained: whether toolkit.json says of the result that it started where ``start`` did, as of
            a later link of a chain (WARP), and not from ``start`` itself.

    Returns:
        ranks and angles.

    Raises:
        InputError: parents do not share their base, their start, their reading or their head; a
            part has no exact sum; or two changes point in opposite directions.
    """
    if not folders:
        raise InputError(f"{what}: none is given")
    read = [*folders, *([] if start is None else [start])]
    if Path(out).resolve() in {Path(folder).resolve() for folder in read}:
        raise InputError(
            f"output_dir: {out} is one of those that are merged (name another folder)", "output_dir"
        )
    parents = [LoraFile.read(folder, what) for folder in folders]
    shares = _shares(weights, len(parents), how, what)
    check_related(parents, what)
    origin = _origin(parents, start, how, shares, scale, what)
    if parents[0].score is not None:
        _check_rewards(parents, how, shares, scale, what)

    # One coefficient for each parent and layer, and one for the start.
    terms: dict[str, list[tuple[float, Factors]]] = {}
    angles: dict[str, float] = {}
    everyone = parents + ([origin] if origin is not None else [])
    for name in sorted({name for parent in everyone for name in parent.layers}):
        held = [parent.layers.get(name) for parent in parents]
        before = None if origin is None else origin.layers.get(name)
        shared, held, before = _without_shared(held, before)
        gram = _gram(held, before)
        try:
            found = _coefficients(gram, how, shares)
        except ValueError as problem:
            raise InputError(f"{what}: the changes of {name}: {problem}") from None
        if len(parents) > 1 and not math.isnan(between := angle(gram[:2, :2])):
            angles[name] = math.degrees(between)

        coefficients = [scale * weight for weight in found]
        rest = 1.0 - math.fsum(coefficients)
        pairs = list(zip(coefficients, held, strict=True))
        if abs(rest) > SUMS_TO_ONE:
            pairs.append((rest, before))
        if shared is not None:  # its coefficients sum to 1
            pairs.insert(0, (1.0, shared))
        terms[name] = [(c, factors) for c, factors in pairs if factors is not None]

    merged = {name: _concatenated(part) for name, part in terms.items() if part}
    _write(Path(out), parents, origin, merged, how, shares, scale, chained)
    ranks = Counter(a.shape[0] for a, _ in merged.values())
    return Outcome(dict(ranks), angles, len(parents), parents[0].score is not None)


def _shares(weights: Sequence[float] | None, count: int, how: How, what: str) -> list[float]:
    if weights is None:
        return [1 / count] * count
    if len(weights) != count:
        raise InputError(f"weights: {len(weights)} for {count} {what} (give one for each)")
    if how == "slerp" and count != 2:
        raise InputError(
            "weights: SLERP takes them for two adapters only (more are merged in turn, with the "
            "same weight each)",
            "weights",
        )
    if how == "slerp" and (abs(sum(weights) - 1) > SUMS_TO_ONE or min(weights) < 0):
        raise InputError("weights: for SLERP they must be shares that sum to 1", "weights")
    return list(weights)


def check_related(parents: Sequence[LoraFile], what: str) -> None:
    """Raise InputError unless these adapters share task, base, start and reading."""
    first = parents[0]
    for other in parents[1:]:
        both = f"{what}: {first.folder} and {other.folder}"
        if (first.score is None) != (other.score is None):
            raise InputError(f"{both}: one is a reward adapter, the other a policy")

        prints = [p.facts.get("base_fingerprint") for p in (first, other)]
        same = prints[0] == prints[1] if None not in prints else first.base == other.base
        if not same or not first.base:
            raise InputError(
                f"{both} were trained on other bases ({first.base or 'unnamed'}, "
                f"{other.base or 'unnamed'}), so their changes have no common sum"
            )
        if first.start != other.start:
            raise InputError(
                f"{both} were trained from other starting adapters ({first.start or 'none'}, "
                f"{other.start or 'none'}, by their {FACTS}), so they have no common start"
            )

        for name in READING:
            if first.facts.get(name) != other.facts.get(name):
                raise InputError(
                    f"{both} read texts differently ({name} is {first.facts.get(name)!r:.60} and "
                    f"{other.facts.get(name)!r:.60})"
                )
        for name in ("fan_in_fan_out", "revision"):
            if (first.config.get(name) or None) != (other.config.get(name) or None):
                raise InputError(f"{both}: {name} differs in their {CONFIG}")
        if first.copies.keys() != other.copies.keys() or not all(
            torch.equal(first.copies[key], other.copies[key]) for key in first.copies
        ):
            raise InputError(f"{both} were saved with other embeddings or output heads")
        if _tokenizer_files(first.folder) != _tokenizer_files(other.folder):
            raise InputError(f"{both} were trained with other tokenizers")


def _origin(
    parents: Sequence[LoraFile],
    start: str | Path | None,
    how: How,
    shares: Sequence[float],
    scale: float,
    what: str,
) -> LoraFile | None:
    """Read the adapter from which changes are counted; None for the base."""
    begun = parents[0].start
    # A mean does not depend on where changes are counted from.
    matters = how == "slerp" or abs(scale * math.fsum(shares) - 1) > SUMS_TO_ONE
    if start is None:
        if begun is not None and matters:
            raise InputError(
                f"{what}: {parents[0].folder} was trained from another adapter, so that one would "
                "be scaled or turned too (name it by --start of preftune merge, or merge by the "
                "mean)"
            )
        silent = [p for p in parents if "start" not in p.facts]
        if silent and matters:
            warnings.warn(
                f"{what}: {silent[0].folder} does not say what it was trained from; it is taken "
                "to be the base",
                Caution,
                stacklevel=3,
            )
        return None

    origin = LoraFile.read(start, "start")
    if adapter_digest(origin.folder) != begun:
        raise InputError(
            f"start: {origin.folder} is not the adapter that {parents[0].folder} was trained from "
            f"(its {FACTS} says {begun or 'the base'})",
            "start",
        )
    _check_origin(origin, parents[0])
    return origin


def _check_origin(origin: LoraFile, parent: LoraFile) -> None:
    both = f"start: {origin.folder} and {parent.folder}"
    if origin.score is not None or parent.score is not None:
        raise InputError(f"{both}: reward adapters are merged by their mean, without a start")
    if origin.copies.keys() != parent.copies.keys() or not all(
        torch.equal(origin.copies[key], parent.copies[key]) for key in origin.copies
    ):
        raise InputError(f"{both} were saved with other embeddings or output heads")


def _check_rewards(
    parents: Sequence[LoraFile], how: How, shares: Sequence[float], scale: float, what: str
) -> None:
    """Raise InputError unless these reward adapters can be averaged, heads included."""
    if how != "linear" or abs(scale * math.fsum(shares) - 1) > SUMS_TO_ONE:
        raise InputError(
            f"{what}: reward adapters are merged by a weighted mean alone (weights that sum to 1, "
            "no SLERP and no scale)"
        )
    seeds = [parent.facts.get("head_seed") for parent in parents]
    if len(parents) > 1 and (None in seeds or len(set(seeds)) > 1):
        raise InputError(
            f"{what}: the heads of these reward adapters did not begin as one (head_seed in their "
            f"{FACTS}: {', '.join(str(seed) for seed in seeds)}; train them with one --head_seed, "
            "or average their scores instead)"
        )


def _without_shared(
    held: list[Factors | None], before: Factors | None
) -> tuple[Factors | None, list[Factors | None], Factors | None]:
    """Split off the first ranks that all parents have from the start, bit for bit.

    Returns:
        what is shared, or None; what each parent has besides; and the rest of the start.
    """
    parents = [one for one in held if one is not None]
    if before is None or len(parents) < len(held):
        return None, held, before
    count = min(_alike(one, before) for one in parents)
    if not count:
        return None, held, before
    rest = slice(count, None)
    return before.ranks(slice(count)), [one.ranks(rest) for one in parents], before.ranks(rest)


def _alike(one: Factors, other: Factors) -> int:
    """Return how many of the first ranks of two changes are the same."""
    most = min(one.rank, other.rank)
    same = (one.a[:most] == other.a[:most]).all(dim=1)
    scaled = (one.scale * one.b.double(), other.scale * other.b.double())
    same &= (scaled[0][:, :most] == scaled[1][:, :most]).all(dim=0)
    return int(same.int().cumprod(0).sum())


def _coefficients(gram: Tensor, how: How, shares: list[float]) -> list[float]:
    """Return the parents' weights in one layer."""
    if how == "linear":
        return shares
    if len(shares) == 2:
        return [float(weight) for weight in slerp_weights(gram, shares[1])]
    return [float(weight) for weight in slerp_in_turn(gram)]


def _gram(held: Sequence[Factors | None], before: Factors | None) -> Tensor:
    """Return fp64 (n, n): the inner products of the parents' changes, counted from ``before``."""
    everyone = [*held, before]
    inner = torch.zeros(len(everyone), len(everyone), dtype=torch.float64)
    for i, one in enumerate(everyone):
        for j, other in enumerate(everyone[: i + 1]):
            if one is not None and other is not None:
                inner[i, j] = inner[j, i] = inner_product(one, other)
    if before is None:
        return inner[:-1, :-1]
    count = len(held)
    away = torch.cat([torch.eye(count), -torch.ones(count, 1)], dim=1).double()
    return away @ inner @ away.T


def inner_product(one: Factors, other: Factors) -> float:
    """Return the inner product of two changes of one layer, without building them."""
    left = one.b.double().T @ other.b.double()
    right = one.a.double() @ other.a.double().T
    return one.scale * other.scale * float((left * right).sum())


def _concatenated(terms: Sequence[tuple[float, Factors]]) -> tuple[Tensor, Tensor]:
    """Return a (R, in) and b (out, R) of the sum; its scale is 1, and R at most the sum of ranks.

    A rank without an effect is left out, but one always stays, since no adapter has rank 0.
    """
    a = torch.cat([factors.a.float() for _, factors in terms])
    columns = [weight * factors.scale * factors.b.double() for weight, factors in terms]
    b = torch.cat(columns, dim=1).float()
    acts = b.any(dim=0) & a.any(dim=1)
    acts[0] |= not acts.any()
    return a[acts], b[:, acts]


def _write(
    out: Path,
    parents: Sequence[LoraFile],
    origin: LoraFile | None,
    merged: dict[str, tuple[Tensor, Tensor]],
    how: How,
    shares: Sequence[float],
    scale: float,
    chained: bool,
) -> None:
    """Write the folder: configuration, weights, facts, and the parents' tokenizer if they had one.

    Args:
        out: the folder.
        parents, origin: what was merged, and where changes were counted from.
        merged: a and b by layer.
        how, shares, scale: of the merge, for the record.
        chained: as for ``merge_adapters``.
    """
    first = parents[0]
    everyone = [*parents, *([] if origin is None else [origin])]
    keys = {name: f.keys for parent in everyone for name, f in parent.layers.items()}
    state = dict(first.copies)
    for name, (a, b) in merged.items():
        state |= {keys[name][0]: a.contiguous(), keys[name][1]: b.contiguous()}

    facts: dict[str, Any] = {
        name: first.facts[name]
        for name in CARRIED
        if name in first.facts
        and all(parent.facts.get(name) == first.facts[name] for parent in parents)
    }
    if first.score is not None:
        heads = [parent.score for parent in parents]
        weighted = [w * h for w, h in zip(shares, heads, strict=True) if h is not None]
        state[first.score_key] = torch.stack(weighted).sum(0).float()
        biases = [share * parent.bias for share, parent in zip(shares, parents, strict=True)]
        facts |= {"gain": 1.0, "bias": math.fsum(biases)}
    if chained and origin is not None:
        facts["start"] = origin.start
    facts["merged"] = {
        "how": how,
        "scale": scale,
        "start": None if origin is None else str(origin.folder),
        "parents": [
            {"adapter": str(p.folder), "digest": adapter_digest(p.folder), "weight": share}
            for p, share in zip(parents, shares, strict=True)
        ],
    }

    ranks = {name: a.shape[0] for name, (a, _) in merged.items()}
    _save(out, _config(everyone, ranks, 1.0), state, facts, first.folder)


def _save(
    out: Path, config: LoraConfig, state: dict[str, Tensor], facts: dict[str, Any], like: Path
) -> None:
    """Write an adapter's folder, with the tokenizer of the folder ``like`` if that has one."""
    with atomic_directory(out) as aside:
        config.save_pretrained(str(aside))
        save_file(state, aside / WEIGHTS, metadata={"format": "pt"})
        write_json(aside / FACTS, facts)
        for file in _tokenizer_files(like):
            shutil.copy(like / file, aside / file)
    read_config(out, "adapters")  # what was written must be what this toolkit takes


def add_ranks(
    folder: str | Path,
    out: str | Path,
    rank: int,
    scale: float,
    seed: int,
    chained: bool = False,
) -> None:
    """Write an adapter with further ranks that do not change anything yet, to be trained.

    The new B is zero and the new A is drawn as peft draws it, from U(-1, 1) / sqrt(in). The layers
    are those of the adapter.

    Args:
        folder: the adapter.
        out: the folder to write.
        rank: the number of new ranks in each layer.
        scale: alpha / r of the new ranks; B of the others is divided by it.
        seed: for A.
        chained: as for ``merge_adapters``: whether toolkit.json says that the result started where
            the adapter did, and not from the adapter.

    Raises:
        InputError: as for ``LoraFile.read``.
    """
    before = LoraFile.read(folder, "policy_adapter")
    generator = torch.Generator().manual_seed(seed)
    state = dict(before.copies)
    for factors in before.layers.values():
        width = factors.a.shape[1]
        new_a = (2 * torch.rand(rank, width, generator=generator) - 1) / math.sqrt(width)
        b = (factors.scale / scale * factors.b.double()).float()
        new_b = torch.zeros(b.shape[0], rank)
        state[factors.keys[0]] = torch.cat([factors.a.float(), new_a])
        state[factors.keys[1]] = torch.cat([b, new_b], dim=1)

    facts = {name: before.facts[name] for name in CARRIED if name in before.facts}
    if "merged" in before.facts:
        facts["merged"] = before.facts["merged"]
    if not chained:
        facts["start"] = adapter_digest(before.folder)
    ranks = {name: factors.rank + rank for name, factors in before.layers.items()}
    _save(Path(out), _config([before], ranks, scale), state, facts, before.folder)


def _config(everyone: Sequence[LoraFile], ranks: dict[str, int], scale: float) -> LoraConfig:
    """Configure an adapter with these ranks by layer, and one scale everywhere."""
    first = everyone[0].config
    usual = Counter(ranks.values()).most_common(1)[0][0]
    # peft searches a pattern at the end of a layer's name; this one matches one whole name alone.
    others = {
        f"^{name.replace('.', chr(92) + '.')}": rank
        for name, rank in sorted(ranks.items())
        if rank != usual
    }

    alphas: Any = {pattern: scale * rank for pattern, rank in others.items()}
    told = [{name: _plain(one.config.get(name)) for name in LAYERS} for one in everyone]
    layers: dict[str, Any] = {"target_modules": sorted(ranks)}
    if all(other == told[0] for other in told):
        layers = {name: first.get(name) for name in LAYERS}
    return LoraConfig(
        task_type=first.get("task_type"),
        base_model_name_or_path=first.get("base_model_name_or_path"),
        revision=first.get("revision"),
        fan_in_fan_out=first.get("fan_in_fan_out", False),
        modules_to_save=first.get("modules_to_save"),
        inference_mode=True,
        r=usual,
        lora_alpha=_whole(scale * usual),
        rank_pattern=others,
        alpha_pattern={pattern: _whole(alpha) for pattern, alpha in alphas.items()},
        lora_dropout=0.0,
        **layers,
    )


def _whole(alpha: float) -> Any:
    """Return a whole number as an int; peft takes a fraction too, though its type says int."""
    return int(alpha) if alpha == int(alpha) else alpha


def _plain(value: object) -> object:
    """Return names in one order, since their order means nothing."""
    return sorted(value, key=str) if isinstance(value, list | set) else value


def _tokenizer_files(folder: Path) -> dict[str, bytes]:
    """Return the content of the tokenizer's files in an adapter's folder, by name."""
    return {name: (folder / name).read_bytes() for name in TOKENIZER if (folder / name).is_file()}
