"""The type in which autocast computes."""

import torch
from torch import Tensor


def autocast_device(device: torch.device) -> str:
    """The device type for autocast; tensors without storage (meta) count as the CPU's."""
    return "cpu" if device.type == "meta" else device.type


def autocast_type(tensor: Tensor) -> torch.dtype | None:
    """The type in which autocast computes products of this tensor; None where it is off."""
    device = autocast_device(tensor.device)
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None
