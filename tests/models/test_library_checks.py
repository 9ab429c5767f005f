"""The checks of the libraries pass here, and fail where what they watch for comes."""

import pytest
import torch

from toolkit.models.library_checks import LIBRARY_CHECKS


@pytest.mark.parametrize("name", LIBRARY_CHECKS)
def test_canaries_sing_here(name: str) -> None:
    assert LIBRARY_CHECKS[name]() is None


def test_a_canary_dies_of_what_it_watches_for(monkeypatch: pytest.MonkeyPatch) -> None:
    from toolkit.models import actors

    monkeypatch.setattr(
        actors, "position_ids", lambda mask: torch.arange(mask.shape[1]).expand(mask.shape)
    )
    assert "left-padded" in (LIBRARY_CHECKS["padding on the left"]() or "")
    assert "captured" in (LIBRARY_CHECKS["captured log-probs"]() or "")
