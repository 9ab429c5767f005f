"""What fails on the way to the Hub is tried again where that helps, and told in one line."""

from typing import Any

import pytest

from toolkit.errors import InputError
from toolkit.hub.connection import require_token

# huggingface_hub 2.4.0 lfs.py:334 passes a file to httpx2 as data=, which that calls deprecated.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=<...>':DeprecationWarning")


def test_no_token_is_said_before_anything_else(hub: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    require_token()
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(InputError, match=r"^no Hub token: set HF_TOKEN or log in"):
        require_token()
