"""A CUDA device that is not there: tensors say that they are on cuda:0, and compute on the CPU.

Import this before torch, in a process of its own; it compiles and loads ``guard.cpp``, and then
imports torch. ``appear`` makes torch.cuda answer as if there were one card, ``move`` puts a module
on it, and inside ``with Pretended():`` new tensors that ask for the card get there. Meanwhile
``Counts`` has:

    mixes       operations whose tensors are on different devices; on a card they are errors
    syncs       waits of the host for the card: reading a number, copies that block, indexing by a
                bool mask
    uploads     copies to the card that do not block
    operations  what would launch at least one kernel

Syncs and mixes are counted by the line that caused them. Outside of ``counting`` a mix is an error.
Under deterministic algorithms ``cumsum`` of numbers with a fraction is one, as on a card.

What it cannot show: the time and the memory of anything, what kernels compute in their own types,
graph capture, pinned memory, several streams. Weights in 4 bits stay on the CPU, and bitsandbytes'
operations count once each, although some launch two to four kernels. Scaled dot product attention
is computed as a whole and counts once, by the kernel that CUDA would choose.
"""

import ctypes
import hashlib
import importlib.metadata
import importlib.util
import os
import subprocess
import sys
import tempfile
import types
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

HERE = Path(__file__).parent


def build_guard() -> Path:
    """Compile ``guard.cpp`` against torch's headers, unless that was done; return the library."""
    spec = importlib.util.find_spec("torch")
    assert spec is not None and spec.submodule_search_locations is not None
    torch_folder = Path(spec.submodule_search_locations[0])

    source = HERE / "guard.cpp"
    words = ["g++", "-shared", "-fPIC", "-std=c++20", "-O1", str(source)]
    words += [f"-I{torch_folder}/include", f"-L{torch_folder}/lib", "-ltorch_cpu", "-lc10"]
    words += [f"-Wl,-rpath,{torch_folder}/lib"]

    made_of = [source.read_text(), importlib.metadata.version("torch"), *words]
    digest = hashlib.sha256("\n".join(made_of).encode()).hexdigest()[:16]
    built = Path(tempfile.gettempdir()) / f"pretend_cuda_{os.getuid()}_{digest}.so"
    if not built.exists():
        aside = built.with_suffix(f".{os.getpid()}")
        subprocess.run([*words, "-o", str(aside)], check=True)
        aside.rename(built)  # whole or not at all, for processes that start at once
    return built


if "torch" in sys.modules:
    raise ImportError("import tests/pretend_cuda/device.py before torch, which looks for its guard")
ctypes.CDLL(str(build_guard()), ctypes.RTLD_GLOBAL)

import torch  # noqa: E402
from torch import Tensor, nn  # noqa: E402
from torch.optim.optimizer import _foreach_supported_types as types_of_optimizers  # noqa: E402
from torch.utils._foreach_utils import _foreach_supported_types as types_of_many  # noqa: E402
from torch.utils._python_dispatch import TorchDispatchMode  # noqa: E402
from torch.utils._pytree import tree_flatten, tree_map  # noqa: E402

CPU, CARD = torch.device("cpu"), torch.device("cuda", 0)

# Whose lines are named as the cause of a sync or a mix.
PLACES = ("/toolkit/", "/recipes/", "/transformers/", "/peft/", "/trl/", "/accelerate/")
# They make tensors without a kernel, besides views, which the schemas tell.
NO_KERNEL = {"empty", "empty_like", "new_empty", "empty_strided", "new_empty_strided"}
NO_KERNEL |= {"_unsafe_view", "is_same_size", "set_", "resize_", "_local_scalar_dense"}
# The size of what they return depends on values, so the host must read it.
SIZED_BY_VALUES = {"nonzero", "masked_select", "_unique2", "unique_dim", "repeat_interleave"}
SIZED_BY_VALUES |= {"unique_consecutive", "bincount", "equal"}
INDEXING = {"index", "index_put", "index_put_", "_index_put_impl_", "_unsafe_index_put"}


@dataclass(eq=False)
class Counts:
    """What was seen; syncs and mixes by cause and line, operations by name."""

    mixes: Counter[str] = field(default_factory=Counter)
    syncs: Counter[str] = field(default_factory=Counter)
    uploads: Counter[str] = field(default_factory=Counter)
    operations: Counter[str] = field(default_factory=Counter)

    def to_json(self) -> dict[str, dict[str, int]]:
        """Return all counters, the most frequent first."""
        return {name: dict(counter.most_common()) for name, counter in vars(self).items()}


_open: list[Counts] = []  # the counts of all open ``counting`` blocks


@contextmanager
def counting() -> Iterator[Counts]:
    """Count what happens inside; blocks may be nested."""
    counts = Counts()
    _open.append(counts)
    try:
        yield counts
    finally:
        _open.remove(counts)


def _operation(name: str) -> None:
    for counts in _open:
        counts.operations[name] += 1


def _seen(kind: str, cause: str) -> None:
    if _open:
        place = f"{cause} at {_place()}"
        for counts in _open:
            getattr(counts, kind)[place] += 1


def _place() -> str:
    """Return the innermost line of the toolkit or of the libraries that it drives."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        file = frame.f_code.co_filename
        if any(place in file for place in PLACES):
            short = file.rpartition("site-packages/")[2]
            for room in ("/toolkit/", "/recipes/"):
                if "site-packages" not in file and room in file:
                    short = room[1:] + file.rpartition(room)[2]
            return f"{short}:{frame.f_lineno}"
        frame = frame.f_back
    return "?"


class OnCard(torch.Tensor):
    """A tensor that says that it is on cuda:0; ``inner`` holds its values on the CPU."""

    inner: Tensor

    @staticmethod
    def __new__(cls, inner: Tensor) -> "OnCard":
        return torch.Tensor._make_wrapper_subclass(
            cls,
            inner.shape,
            strides=inner.stride(),
            storage_offset=inner.storage_offset(),
            dtype=inner.dtype,
            device=CARD,
        )

    def __init__(self, inner: Tensor) -> None:
        self.inner = inner

    @classmethod
    def __torch_dispatch__(
        cls, func: Any, types: object, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        return _dispatch(func, args, kwargs or {})

    # These do not come by torch's dispatcher.

    @property
    def data(self) -> Tensor:
        return self.detach()

    @data.setter
    def data(self, value: Tensor) -> None:
        if not isinstance(value, OnCard):
            raise RuntimeError("a tensor on the card cannot get the data of one on the CPU")
        torch.Tensor.data.__set__(self, value)  # type: ignore[attr-defined]
        self.inner = value.inner

    def tolist(self) -> Any:
        _seen("syncs", "tolist")
        return self.inner.tolist()

    def numpy(self, *args: object, **kwargs: object) -> Any:
        raise TypeError(f"can't convert cuda:0 device type tensor to numpy, at {_place()}")

    def untyped_storage(self) -> torch.UntypedStorage:
        return self.inner.untyped_storage()

    def data_ptr(self) -> int:
        return self.inner.data_ptr()

    def __repr__(self, **kwargs: object) -> str:  # type: ignore[override]
        return f"OnCard({self.inner!r})"

    def __reduce_ex__(self, protocol: Any) -> Any:
        return self.inner.detach().__reduce_ex__(protocol)


def _bare(value: Any) -> Any:
    return value.inner if isinstance(value, OnCard) else value


def _on_card(value: Any) -> Any:
    return OnCard(value) if type(value) is Tensor else value


def _is_view(func: Any) -> bool:
    """Whether an operation only looks at memory that its arguments have."""
    found = func._schema.returns
    return bool(found) and all(
        one.alias_info is not None and not one.alias_info.is_write for one in found
    )


def _dispatch(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Run an operation on the CPU, and count what a card would have done."""
    name = func.overloadpacket.__name__
    tensors = [t for t in tree_flatten((args, kwargs))[0] if isinstance(t, Tensor)]
    asked = None if kwargs.get("device") is None else torch.device(kwargs["device"])

    if func.namespace == "bitsandbytes":  # its weights are on the CPU, and count as on the card
        _operation(f"bitsandbytes.{name}")
        return tree_map(_on_card, _run(func, args, kwargs))

    touches = any(isinstance(t, OnCard) for t in tensors)
    if not touches and (asked is None or asked.type != "cuda"):
        return func(*args, **kwargs)

    varies = name == "cumsum" and tensors[0].is_floating_point()
    if varies and torch.are_deterministic_algorithms_enabled():
        raise RuntimeError("cumsum_cuda_kernel does not have a deterministic implementation")
    if not _is_view(func) and name not in NO_KERNEL:
        _operation(name)
    if name == "_to_copy":
        return _copied(func, args, kwargs, asked)
    if name == "copy_":
        _count_copy(args[0], args[1], blocks=not (args[2:] and args[2]))
        func(_bare(args[0]), _bare(args[1]), *args[2:])
        return args[0]

    _count_syncs(name, args, tensors)
    _count_mixes(name, args, tensors, kwargs)
    result = _run(func, args, kwargs | ({} if asked is None else {"device": CPU}))

    if kwargs.get("out") is not None:
        return kwargs["out"]
    if name.endswith("_") and not name.endswith("__") and isinstance(args[0], Tensor):
        return args[0]
    return tree_map(_on_card, result) if asked is None or asked.type == "cuda" else result


def _run(func: Any, args: Any, kwargs: Any) -> Any:
    return func(*tree_map(_bare, args), **tree_map(_bare, kwargs))


def _copied(func: Any, args: Any, kwargs: dict[str, Any], asked: torch.device | None) -> Tensor:
    source = args[0]
    target = source.device if asked is None else asked
    if kwargs.get("device") is not None:
        kwargs = kwargs | {"device": CPU}

    result: Tensor = _run(func, args, kwargs)
    result = OnCard(result) if target.type == "cuda" else result
    _count_copy(result, source, blocks=not kwargs.get("non_blocking"))
    return result


def _count_copy(to: Tensor, source: Tensor, blocks: bool) -> None:
    """Count a copy between the devices; one from the card makes the host wait in any case."""
    if isinstance(source, OnCard) and not isinstance(to, OnCard):
        _seen("syncs", "copy from the card")
    if isinstance(to, OnCard) and not isinstance(source, OnCard):
        _seen("syncs" if blocks else "uploads", "copy to the card")


def _count_syncs(name: str, args: Any, tensors: list[Tensor]) -> None:
    if name == "_local_scalar_dense":
        _seen("syncs", "item")
    elif name in SIZED_BY_VALUES:
        _seen("syncs", name)
    elif name in INDEXING:
        # torch fills by a mask without reading it if there is one value.
        fills = len(args) > 2 and args[2].numel() == 1
        for index in args[1]:
            if isinstance(index, OnCard) and index.dtype == torch.bool and not fills:
                _seen("syncs", "indexing by a bool mask")
            if isinstance(index, Tensor) and not isinstance(index, OnCard) and index.dim():
                _seen("syncs", "indexing by a tensor on the CPU")


def _count_mixes(name: str, args: Any, tensors: list[Tensor], kwargs: dict[str, Any]) -> None:
    if kwargs.get("generator") is not None:
        _seen("mixes", f"{name} with the CPU's generator")
    if name in INDEXING:
        # torch copies an index that is on the CPU, but not the other way round.
        values = [t for t in args if isinstance(t, Tensor) and t.dim()]
        strange = not isinstance(args[0], OnCard) or any(not isinstance(t, OnCard) for t in values)
    else:
        # A number on the CPU may go with anything.
        strange = any(not isinstance(t, OnCard) and t.dim() for t in tensors)
    if strange:
        _seen("mixes", name)
        if not _open:
            raise RuntimeError(f"{name} got tensors on different devices, at {_place()}")


class Pretended(TorchDispatchMode):
    """Inside, tensors that are made for the card are on it."""

    def __torch_dispatch__(
        self, func: Any, types: object, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if _absent:
            return func(*args, **(kwargs or {}))
        return _dispatch(func, args, kwargs or {})


_absent = False


@contextmanager
def absent() -> Iterator[None]:
    """Inside, nothing goes to the card, although ``Pretended`` is on outside."""
    global _absent
    _absent = True
    try:
        yield
    finally:
        _absent = False


class _Attention(torch.autograd.Function):
    """Scaled dot product attention as one operation forward and one backward."""

    @staticmethod
    def forward(
        ctx: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, options: Any
    ) -> Tensor:
        kernel = _kernel(query, key, mask, options)
        _operation(f"attention ({kernel})")
        ctx.save_for_backward(query, key, value)
        ctx.mask, ctx.options, ctx.kernel = mask, options, kernel
        inner = [_bare(t) for t in (query, key, value)]
        return OnCard(_attend(*inner, attn_mask=_bare(mask), **options))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        _operation(f"attention backward ({ctx.kernel})")
        inner = [_bare(t).detach().requires_grad_() for t in ctx.saved_tensors]
        with torch.enable_grad():
            output = _attend(*inner, attn_mask=_bare(ctx.mask), **ctx.options)
        found = torch.autograd.grad(output, inner, _bare(grads[0]))
        return *(OnCard(grad) for grad in found), None, None


def _kernel(query: Tensor, key: Tensor, mask: Tensor | None, options: dict[str, Any]) -> str:
    """Name the kernel that CUDA would choose, by the rules of torch's sdp_utils.cpp."""
    half = query.dtype in (torch.bfloat16, torch.float16)
    same = query.shape[2] == key.shape[2] or not options.get("is_causal")
    if mask is None and half and same and query.shape[-1] <= 256:
        return "flash"
    return "math" if options.get("enable_gqa") else "efficient"


_attend = torch.nn.functional.scaled_dot_product_attention


def _attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    **options: Any,
) -> Tensor:
    if not isinstance(query, OnCard):
        return _attend(query, key, value, attn_mask=attn_mask, **options)
    for tensor in (key, value, attn_mask):
        if tensor is not None and not isinstance(tensor, OnCard):
            _seen("mixes", "attention")
    if torch.is_autocast_enabled("cuda"):
        dtype = torch.get_autocast_dtype("cuda")
        query, key, value = query.to(dtype), key.to(dtype), value.to(dtype)
    attended: Any = _Attention
    return attended.apply(query, key, value, attn_mask, options)


def _tensor(data: Any, *args: Any, device: Any = None, **kwargs: Any) -> Tensor:
    """torch.tensor, which makes the values on the CPU and then copies them to the card."""
    made: Tensor = _make_tensor(data, *args, **kwargs)
    if device is None or torch.device(device).type != "cuda":
        return made
    _seen("syncs", "torch.tensor on the card")
    _operation("_to_copy")
    return OnCard(made)


_make_tensor = torch.tensor


def appear(free: int = 80 << 30) -> None:
    """Make torch.cuda answer as if there were one card with ``free`` bytes."""
    state = torch.zeros(16, dtype=torch.uint8)
    answers: dict[str, Any] = {
        "_lazy_init": lambda: None,
        "init": lambda: None,
        "is_available": lambda: True,
        "is_initialized": lambda: True,
        "is_bf16_supported": lambda *args, **kwargs: True,
        "device_count": lambda: 1,
        "current_device": lambda: 0,
        "set_device": lambda device: None,
        "get_device_name": lambda *args: "a card that is not there",
        "get_device_capability": lambda *args: (9, 0),
        "mem_get_info": lambda *args: (free, free),
        "get_device_properties": lambda *args: types.SimpleNamespace(total_memory=free),
        "memory_allocated": lambda *args: 0,
        "memory_reserved": lambda *args: 0,
        "max_memory_allocated": lambda *args: 0,
        "reset_peak_memory_stats": lambda *args: None,
        "empty_cache": lambda: None,
        "synchronize": lambda *args: _seen("syncs", "torch.cuda.synchronize"),
        "manual_seed": lambda seed: None,
        "manual_seed_all": lambda seed: None,
        "get_rng_state": lambda *args: state.clone(),
        "set_rng_state": lambda *args: None,
        "get_rng_state_all": lambda: [state.clone()],
        "set_rng_state_all": lambda states: None,
    }
    for name, answer in answers.items():
        setattr(torch.cuda, name, answer)
    for name in ("get_rng_state", "set_rng_state", "get_rng_state_all", "set_rng_state_all"):
        setattr(torch.cuda.random, name, answers[name])

    # torch makes one operation of many tensors only if it knows their type.
    types_of_optimizers.append(OnCard)
    types_of_many.append(OnCard)  # type: ignore[arg-type]
    torch.cuda.amp.common.amp_definitely_not_available = lambda: False
    # A parameter on the CPU cannot become one on the card in place.
    torch.__future__.set_overwrite_module_params_on_conversion(True)
    # ``with torch.device(...)`` knows the functions that make tensors by a list that it makes once:
    # it must have torch's own. transformers asks torch.tensor whether it is on the meta device, and
    # otherwise leaves the frequencies of rotary positions as memory that nobody has written.
    torch.utils._device._device_constructors()
    torch.tensor = _tensor
    torch.nn.functional.scaled_dot_product_attention = _attention


def move(module: nn.Module) -> None:
    """Put a module's parameters and buffers on the card; weights in 4 bits only say so."""
    moved: dict[int, nn.Parameter] = {}
    for part in module.modules():
        for name, parameter in list(part._parameters.items()):
            if parameter is None:
                continue
            if type(parameter).__name__ == "Params4bit":
                kind: Any = type(parameter)
                kind.device = property(lambda weight: CARD)
                continue
            if id(parameter) not in moved:  # tied weights stay tied
                inner = parameter.detach()
                moved[id(parameter)] = nn.Parameter(_on_card(inner), parameter.requires_grad)
            part._parameters[name] = moved[id(parameter)]
        for name, buffer in list(part._buffers.items()):
            if buffer is not None:
                part._buffers[name] = _on_card(buffer)
