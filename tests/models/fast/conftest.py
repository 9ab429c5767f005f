"""Roles with the cheaper passes that a test asks for."""

import pytest
import torch
from torch import nn

from toolkit.models.adapters import lora_config
from toolkit.models.fast import SWITCH
from toolkit.models.loading import load_base
from toolkit.models.roles import Roles

IDS = torch.tensor([[5, 6, 7, 8, 9, 10], [12, 13, 14, 15, 16, 17]])
MASK = torch.ones_like(IDS, dtype=torch.bool)


def roles_with(
    monkeypatch: pytest.MonkeyPatch,
    model: str,
    said: str | None,
    precision: str = "fp32",
    autocast: torch.dtype | None = None,
) -> Roles:
    monkeypatch.delenv(SWITCH, raising=False)
    if said is not None:
        monkeypatch.setenv(SWITCH, said)
    torch.manual_seed(0)
    lora = lora_config(4, 8, "all-linear", "CAUSAL_LM")
    roles = Roles(load_base(model, precision), lora, value="adapter", autocast_dtype=autocast)
    for name, parameter in roles.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, std=0.1)
    return roles
