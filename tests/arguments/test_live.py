"""--live: a missing web server is one line, before a model is loaded."""

import pytest

from toolkit.arguments import live
from toolkit.arguments.live import LiveArguments
from toolkit.errors import InputError


def test_a_page_without_its_web_server_is_refused_with_the_cure(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(live, "find_spec", lambda name: None if name == "uvicorn" else name)
    assert not LiveArguments().live
    with pytest.raises(InputError) as caught:
        LiveArguments(live=True)
    said = 'live: the page needs uvicorn (pip install "preference-toolkit[label]")'
    assert str(caught.value) == said and caught.value.field == "live"
