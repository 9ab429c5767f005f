"""Decoding in steps of one shape, so that a GPU can replay a step as one graph.

A step of transformers' own loop grows: its keys and values are longer at each token, its mask is
built anew, and the host waits for the device twice. On a GPU the launching of its kernels then
takes longer than their work. Here keys and values lie in a buffer of full length, and what changes
(the slot that is written, the mask, the positions) changes in place, on the device. So each step is
the same list of kernels on the same memory. On CUDA that list is captured once and replayed; on a
CPU the same steps run one by one. Masked slots have no weight, so the numbers are those of the
growing step, apart from rounding.

Families whose step cannot be of one shape keep the growing one (``fits``).
"""

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.cache_utils import (
    Cache,
    DummyLayer,
    DynamicCache,
    DynamicLayer,
    DynamicSlidingWindowLayer,
)

from toolkit.errors import Caution
from toolkit.maths.sequences import position_ids
from toolkit.models.experts import holds_experts
from toolkit.models.families import FAILURES
from toolkit.models.peft_wrappers import base_of

Run = Callable[[Tensor, "Masks", Tensor, Cache | None], tuple[Tensor, Tensor | None]]
Masks = Tensor | dict[str, Tensor]

# Attention that takes an additive mask (B, 1, 1, slots). The last is this toolkit's, for CPUs.
IMPLEMENTATIONS = ("eager", "sdpa", "sdpa_fp32")
# Layers that get a buffer. A DummyLayer keeps nothing: it reads the keys of an earlier layer.
GROWING = (DynamicLayer, DynamicSlidingWindowLayer)
# A step reads the buffer up to a multiple of so many slots: fewer to read against fewer captures.
WIDTHS = {"cpu": 8, "cuda": 256}
# The buffer itself is a multiple of so many, to which CUDA's attention kernels align masks.
ALIGNED = 16


class BufferLayer(DynamicLayer):
    """Keys and values in a buffer of ``room`` slots: (B, heads, room, size).

    Passes fill it from its beginning; transformers' layer would copy all of it at each token. After
    ``fix``, a pass over one token writes to the slot that a tensor on the device names, and reads
    the first ``width`` slots.
    """

    def __init__(self, room: int) -> None:
        super().__init__()
        self.room, self.length, self.width = room, 0, 0
        self.slot: Tensor | None = None

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        self.dtype, self.device = key_states.dtype, key_states.device
        # Zeros, since 0 times what lies in a new buffer may be NaN.
        self._keys, self._values = (
            torch.zeros((*s.shape[:2], self.room, s.shape[3]), dtype=s.dtype, device=s.device)
            for s in (key_states, value_states)
        )
        self.is_initialized = True

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: object, **kwargs: object
    ) -> tuple[Tensor, Tensor]:
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)

        if self.slot is None:
            new = slice(self.length, self.length + key_states.shape[2])
            self._keys[:, :, new], self._values[:, :, new] = key_states, value_states
            self.length = self.width = new.stop
        else:
            self._keys.index_copy_(2, self.slot, key_states)
            self._values.index_copy_(2, self.slot, value_states)

        self.keys, self.values = self._keys[:, :, : self.width], self._values[:, :, : self.width]
        return self.keys, self.values

    def fix(self, slot: Tensor) -> None:
        """From now on, write to this slot: int64 (1,) on the device."""
        self.slot = slot

    def get_seq_length(self) -> int:
        """Return the tokens before ``fix``, also later: what is captured cannot ask the host."""
        return self.length


def static_cache(config: PreTrainedConfig, room: int) -> Cache | None:
    """Make an empty cache of ``room`` slots.

    Returns:
        None for layers that keep a state or chunks, and for windows of more than one size.
    """
    cache = DynamicCache(config=config)
    kinds = {type(layer) for layer in cache.layers}
    if not kinds or not kinds <= {*GROWING, DummyLayer}:
        return None
    if len(set(windows_of(config)) - {None}) > 1:
        return None
    text = config.get_text_config(decoder=True)
    if "chunked_attention" in (getattr(text, "layer_types", None) or ()):
        return None
    cache.layers = [
        BufferLayer(room) if type(layer) in GROWING else layer for layer in cache.layers
    ]
    return cache


def windows_of(config: PreTrainedConfig) -> list[int | None]:
    """List the windows of the model's layers, each once; None for a layer that reads everything."""
    found: set[int | None] = set()
    for layer in DynamicCache(config=config).layers:
        if isinstance(layer, DynamicSlidingWindowLayer):
            found.add(layer.sliding_window)
        elif isinstance(layer, DynamicLayer):
            found.add(None)
    return sorted(found, key=lambda window: window or 0)


class StaticMasks:
    """Additive attention masks of one query, (B, 1, 1, room): 0 for what it reads.

    Args:
        prompt_mask: bool (B, P).
        room: slots.
        dtype: of queries and keys.
        windows: of the model's layers (``windows_of``).
    """

    def __init__(
        self, prompt_mask: Tensor, room: int, dtype: torch.dtype, windows: list[int | None]
    ) -> None:
        batch, length = prompt_mask.shape
        self.closed = torch.finfo(dtype).min
        self.real = torch.full(
            (batch, 1, 1, room), self.closed, dtype=dtype, device=prompt_mask.device
        )
        self.real[:, 0, 0, :length].masked_fill_(prompt_mask, 0.0)
        self.slots = torch.arange(room, device=prompt_mask.device)
        self.windows = windows

    def at(self, slot: Tensor, width: int) -> Masks:
        """Open the slot (1,), and return the masks (B, 1, 1, width) of the query that stands there.

        Layers of two kinds want them by transformers' names of these kinds.
        """
        self.real.index_fill_(3, slot, 0.0)
        masks = [self._narrowed(window, slot, width) for window in self.windows]
        if len(masks) == 1:
            return masks[0]
        names = ("full_attention" if w is None else "sliding_attention" for w in self.windows)
        return dict(zip(names, masks, strict=True))

    def _narrowed(self, window: int | None, slot: Tensor, width: int) -> Tensor:
        real = self.real[..., :width]
        if window is None:
            return real
        return real.masked_fill(self.slots[:width] <= slot - window, self.closed)


class StaticState:
    """What the steps of one batch have in common, all of it on the device and changed in place.

    Args:
        run: the model's pass (``Step.run``).
        cache: filled by the prompts' pass (``static_cache``).
        config: of the model.
        prompt_mask: bool (B, P).
        response_length: C.
    """

    def __init__(
        self,
        run: Run,
        cache: Cache,
        config: PreTrainedConfig,
        prompt_mask: Tensor,
        response_length: int,
    ) -> None:
        batch, length = prompt_mask.shape
        device = prompt_mask.device
        self._run, self.cache = run, cache
        self.layers = [layer for layer in cache.layers if isinstance(layer, BufferLayer)]
        self.inputs = torch.zeros((batch, 1), dtype=torch.long, device=device)
        self.positions = prompt_mask.sum(dim=1, keepdim=True)
        self.slot = torch.full((1,), length, dtype=torch.long, device=device)
        self.width = length
        self.room = room_for(length + response_length)

        wide = attention_of(config) == "sdpa_fp32"
        dtype = torch.float32 if wide else self.layers[0].dtype
        self.masks = StaticMasks(prompt_mask, self.room, dtype, windows_of(config))
        for layer in self.layers:
            layer.fix(self.slot)

    def widen(self, tokens: int) -> bool:
        """Make the steps read at least so many slots; return whether their shape changed."""
        unit = WIDTHS.get(self.slot.device.type, WIDTHS["cuda"])
        width = min(unit * -(-tokens // unit), self.room)
        changed, self.width = width != self.width, width
        for layer in self.layers:
            layer.width = width
        return changed

    def step(self) -> tuple[Tensor, Tensor | None]:
        """Run the model on the token that ``follow`` was given last."""
        mask = self.masks.at(self.slot, self.width)
        return self._run(self.inputs, mask, self.positions, self.cache)

    def follow(self, token: Tensor) -> None:
        """Take the token (B,) as the next step's input."""
        self.inputs.copy_(token.unsqueeze(1))

    def move(self) -> None:
        """Move on to the next slot."""
        self.positions.add_(1)
        self.slot.add_(1)


def room_for(tokens: int) -> int:
    """The slots of a buffer for so many tokens."""
    return ALIGNED * -(-tokens // ALIGNED)


_FITS: WeakKeyDictionary[nn.Module, dict[str, bool]] = WeakKeyDictionary()
_NOT_CAPTURED: WeakKeyDictionary[nn.Module, bool] = WeakKeyDictionary()


def fits(run: Run, model: PreTrainedModel, growing: Callable[[int], Cache], exact: bool) -> bool:
    """Whether the model's steps can be of one shape, with the same numbers.

    transformers says of a family whether its passes can be compiled with a static cache. Then
    a few tokens are decoded in both ways, once for each model.

    Args:
        run: the model's pass.
        model: the language model, perhaps in peft's wrapper.
        growing: makes an empty cache of the growing step, for so many tokens.
        exact: whether passes run in fp32.
    """
    family: PreTrainedModel = base_of(model)
    implementation = attention_of(family.config)
    known = _FITS.setdefault(family, {})
    if implementation not in known:
        known[implementation] = (
            implementation in IMPLEMENTATIONS
            and family._can_compile_fullgraph
            and static_cache(family.config, 1) is not None
        )
        if known[implementation]:
            with _narrow_window(family.config):
                known[implementation] = _equal(run, family, growing, exact)
    return known[implementation]


@contextmanager
def _narrow_window(config: PreTrainedConfig) -> Iterator[None]:
    """Let windows be so narrow inside that the trial's few tokens reach beyond them."""
    text = config.get_text_config(decoder=True)
    own = getattr(text, "sliding_window", None)
    if own is None:
        yield
        return
    text.sliding_window = _WINDOW
    try:
        yield
    finally:
        text.sliding_window = own


def attention_of(config: PreTrainedConfig) -> str:
    """Return the name of the attention that the language model uses."""
    name: str = config.get_text_config(decoder=True)._attn_implementation
    return name


# The trial: two prompts, one padded on the left, and tokens that follow.
_PROMPT = [[0, 0, 1, 2, 3], [4, 5, 6, 7, 8]]
_MASK = [[False, False, True, True, True], [True] * 5]
_FOLLOWING = [[9, 10], [11, 12], [13, 14]]
_WINDOW = 3


# Rounding, in the mean over logits, as a part of the largest: in fp32, and in other types.
_ROUNDING = {True: 1e-5, False: 1e-2}


@torch.no_grad()
def _equal(run: Run, model: PreTrainedModel, growing: Callable[[int], Cache], exact: bool) -> bool:
    """Whether both steps give the same logits of a few tokens."""
    weight = next(model.get_input_embeddings().parameters())
    device, rows = weight.device, weight.shape[0]
    ids = torch.tensor(_PROMPT, device=device) % rows
    mask = torch.tensor(_MASK, device=device)
    tokens = torch.tensor(_FOLLOWING, device=device) % rows
    length, count = ids.shape[1], len(tokens)

    try:
        static = static_cache(model.config, room_for(length + count))
        assert static is not None
        grown = growing(length + count)
        whole = torch.cat([mask, torch.ones((2, count), dtype=torch.bool, device=device)], dim=1)
        positions = position_ids(whole)
        for cache in (grown, static):
            run(ids, mask, positions[:, :length], cache)

        state = StaticState(run, static, model.config, mask, count)
        for i, token in enumerate(tokens):
            end = length + i + 1
            expected, _ = run(
                token.unsqueeze(1), whole[:, :end], positions[:, end - 1 : end], grown
            )
            state.widen(end)
            state.follow(token)
            found, _ = state.step()
            state.move()
            if not _close(found.float(), expected.float(), _ROUNDING[exact]):
                return False
    except torch.OutOfMemoryError:  # says nothing of the model
        raise
    except FAILURES:
        return False
    return True


def _close(found: Tensor, expected: Tensor, rounding: float) -> bool:
    """Whether logits agree up to rounding; banned ids, whose logits are huge, are left out."""
    there = expected > -1e6
    found, expected = found[there], expected[there]
    return bool((found - expected).abs().mean() <= rounding * (1 + expected.abs().max()))


def replayed(
    model: nn.Module, step: Callable[[], None], device: torch.device
) -> Callable[[], None]:
    """Return a function that does what ``step`` does, on CUDA as one captured graph.

    ``step`` must have run once before, so that no library sets itself up while it is captured.
    What the host must decide at each token is not captured (``can_be_captured``).
    """
    if device.type != "cuda" or not can_be_captured(model):
        return step
    graph = torch.cuda.CUDAGraph()
    stream = torch.cuda.current_stream()
    try:
        with torch.cuda.graph(graph):
            step()
    except RuntimeError as error:
        torch.cuda.set_stream(stream)  # a capture that fails at its end leaves its own in place
        torch.cuda.synchronize()
        _NOT_CAPTURED[model] = True
        warnings.warn(
            f"{type(model).__name__}: sampling goes without a captured graph, which is slower "
            f"({str(error).splitlines()[0]})",
            Caution,
            stacklevel=2,
        )
        return step
    return graph.replay


def can_be_captured(model: nn.Module) -> bool:
    """Whether a step of the model is the same list of kernels at each token.

    It is not with experts (the host asks which are wanted), with rotary frequencies that are chosen
    by the largest position, and with a base that is shared by processes, which wait for each other.
    """
    if model not in _NOT_CAPTURED:
        _NOT_CAPTURED[model] = any(
            holds_experts(module) or _chooses_frequencies(module) for module in model.modules()
        )
    # A base may be shared only after it was sampled for the first time.
    sharded = any(isinstance(module, FSDPModule) for module in model.modules())
    return not sharded and not _NOT_CAPTURED[model]


def _chooses_frequencies(module: nn.Module) -> bool:
    kinds = vars(module).get("rope_type", "")
    names = kinds.values() if isinstance(kinds, dict) else [kinds]
    return any("dynamic" in str(name) or name == "longrope" for name in names)
