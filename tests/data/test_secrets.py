"""Text that is shown has no secret in it, and keeps what only looks like one."""

import pytest

from toolkit.data.secrets import scrub


@pytest.fixture(autouse=True)
def secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_API_KEY", "hunter2-hunter2")
    monkeypatch.setenv("SHORT_TOKEN", "card")  # too short to be one: every text would have it
    monkeypatch.setattr("toolkit.data.secrets.get_token", lambda: "login-token-0123")


def test_scrubbed_text_is_one_line_without_secrets() -> None:
    text = scrub("a\nhunter2-hunter2 and hf_" + "aB3" * 10 + "\tand login-token-0123.")
    assert text == "a *** and *** and ***."


@pytest.mark.parametrize(
    "text",
    [
        "ConnectError: http://localhost:8000/v1/score refused",
        "eos_token = <|endoftext|> is not in the vocabulary",
        "mask_token: [MASK_1] is missing",
    ],
)
def test_what_only_looks_like_the_place_of_a_secret_stays(text: str) -> None:
    assert scrub(text) == text
