"""The checks of the libraries pass here, and fail where what they watch for comes."""

import logging

import pytest
import torch

from toolkit.models.library_checks import LIBRARY_CHECKS


@pytest.mark.parametrize("name", LIBRARY_CHECKS)
def test_canaries_sing_here(name: str) -> None:
    assert LIBRARY_CHECKS[name]() is None


def test_canaries_warn_of_nothing_that_is_about_themselves(
    caplog: pytest.LogCaptureFixture,
    recwarn: pytest.WarningsRecorder,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    caplog.set_level(logging.WARNING, "transformers")
    monkeypatch.setattr(logging.getLogger("transformers"), "propagate", True)
    for check in LIBRARY_CHECKS.values():
        check()
    assert [r.getMessage() for r in caplog.records if "token_id" in r.getMessage()] == []
    assert [str(w.message) for w in recwarn if "fan_in_fan_out" in str(w.message)] == []


def test_a_canary_dies_of_what_it_watches_for(monkeypatch: pytest.MonkeyPatch) -> None:
    from toolkit.models import actors

    monkeypatch.setattr(
        actors, "position_ids", lambda mask: torch.arange(mask.shape[1]).expand(mask.shape)
    )
    assert "left-padded" in (LIBRARY_CHECKS["padding on the left"]() or "")
    assert "captured" in (LIBRARY_CHECKS["captured log-probs"]() or "")
