"""How much memory there is for a run: on this machine, or on a card that one only knows by name."""

import os
import re
from dataclasses import dataclass
from pathlib import Path

import torch

from toolkit.errors import InputError

GB = 10**9
# What CUDA itself takes on a card before the first tensor. It depends on card, driver and torch;
# 300 to 600 MiB are common. This is an assumption, not a measurement.
CONTEXT = 500 << 20
# Kept free on a card, as a share of its memory: blocks between tensors that no tensor fits
# (fragmentation), and workspaces of matrix products and attention, which no plan counts.
HELD_BACK = 0.1

# Memory in GB as sold, by NVIDIA's product pages and data sheets. A few come in two sizes.
CARDS: dict[str, tuple[int, ...]] = {
    "2080 ti": (11,),
    "3060": (12,),
    "3070": (8,),
    "3080": (10, 12),
    "3090": (24,),
    "3090 ti": (24,),
    "4060 ti": (8, 16),
    "4070": (12,),
    "4070 ti super": (16,),
    "4080": (16,),
    "4080 super": (16,),
    "4090": (24,),
    "5060 ti": (8, 16),
    "5070": (12,),
    "5070 ti": (16,),
    "5080": (16,),
    "5090": (32,),
    "a10": (24,),
    "a10g": (24,),
    "a30": (24,),
    "a40": (48,),
    "a100": (40, 80),
    "a4000": (16,),
    "a5000": (24,),
    "a6000": (48,),
    "6000 ada": (48,),
    "h100": (80,),
    "h100 nvl": (94,),
    "h200": (141,),
    "l4": (24,),
    "l40": (48,),
    "l40s": (48,),
    "t4": (16,),
    "v100": (16, 32),
}
# Cards before Ampere, which only imitate arithmetic in bf16.
WITHOUT_BF16 = ("2080 ti", "t4", "v100")


@dataclass(frozen=True)
class Room:
    """The memory that a run may use.

    Attributes:
        where: the name of the device.
        size: bytes that are free, or of a card that is not here: all of it.
        held_back: bytes of these that are kept for fragmentation and workspaces.
        context: bytes of these that CUDA itself will take.
        bf16: whether the device computes in bf16 by itself.
    """

    where: str
    size: int
    held_back: int = 0
    context: int = 0
    bf16: bool = False

    @property
    def usable(self) -> int:
        """Bytes that a plan may fill."""
        return self.size - self.held_back - self.context

    def line(self) -> str:
        """Say how much there is, and what is taken off it."""
        said = f"{self.where}, {_mib(self.size)}"
        if not self.held_back:
            return f"{said} free"
        said += " free" if not self.context else " as sold"
        taken = [f"{_mib(self.held_back)} ({HELD_BACK:.0%}) for fragmentation and workspaces"]
        if self.context:
            taken.append(f"{_mib(self.context)} for CUDA itself (assumed)")
        return f"{said}; held back are {' and '.join(taken)}: {_mib(self.usable)} are left"


def free_room(device: str) -> Room:
    """Return what is free on this machine now.

    Args:
        device: "cuda" or "cpu". On a CPU nothing is held back.
    """
    if device == "cuda":
        free, size = torch.cuda.mem_get_info()
        name, bf16 = torch.cuda.get_device_name(), _computes_bf16()
        return Room(name, free, int(size * HELD_BACK), bf16=bf16)
    return Room("CPU", _free_on_cpu())


def whole_room() -> Room:
    """Return this machine's card as if nothing else ran on it: the same at each start."""
    size = torch.cuda.get_device_properties(torch.cuda.current_device()).total_memory
    name, bf16 = torch.cuda.get_device_name(), _computes_bf16()
    return Room(name, size, int(size * HELD_BACK), CONTEXT, bf16)


def room_of(gpu: str) -> Room:
    """Return the room of a card that need not be here.

    A GB counts as 10^9 bytes. By that a card has a little less than its driver reports, and no more
    than it has with error correction on.

    Args:
        gpu: a size ("24GB") or a name ("4090", "RTX A6000", "a100-80gb").

    Raises:
        InputError: no such card is known, or it comes in several sizes.
    """
    words = re.sub(r"\b(nvidia|geforce|rtx|tesla|quadro)\b|[-_\s]+", " ", gpu.lower())
    name = " ".join(words.split())
    sized = re.fullmatch(r"(.*?) ?\b(\d+(?:\.\d+)?) ?(?:gb|gib|g)", name)
    if sized is not None and not sized[1]:
        return _sold(f"a card of {sized[2]} GB", float(sized[2]), True)

    size = None if sized is None else float(sized[2])
    name = name if sized is None else sized[1]
    sizes = CARDS.get(name)
    if sizes is None or (size is not None and size not in sizes):
        raise InputError(
            f"gpu: no card is known as {gpu} (give its memory, for example 24GB; known are "
            f"{', '.join(CARDS)})",
            "gpu",
        )
    if size is None and len(sizes) > 1:
        choices = " or ".join(f"{name.replace(' ', '-')}-{each}gb" for each in sizes)
        raise InputError(f"gpu: {gpu} comes in several sizes (say {choices})", "gpu")
    return _sold(f"NVIDIA {name.upper()}", size or sizes[0], name not in WITHOUT_BF16)


def _sold(where: str, gigabytes: float, bf16: bool) -> Room:
    size = int(gigabytes * GB)
    return Room(where, size, int(size * HELD_BACK), CONTEXT, bf16)


def _computes_bf16() -> bool:
    return torch.cuda.get_device_capability() >= (8, 0)


def _free_on_cpu() -> int:
    meminfo = Path("/proc/meminfo")
    for line in meminfo.read_text(encoding="ascii").splitlines() if meminfo.is_file() else ():
        if line.startswith("MemAvailable"):
            return int(line.split()[1]) * 1024
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _mib(size: int) -> str:
    return f"{size / (1 << 20):,.0f} MiB"
