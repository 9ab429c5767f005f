"""Text that is shown has no secret in it, and keeps what only looks like one."""

import re

import pytest

from toolkit.data.secrets import SECRETS, known_secrets, scrub


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


# One of each form that a provider documents.
FORMS = [
    "hf_" + "aB3" * 10,
    "sk-proj-" + "x1" * 20,
    "ghp_" + "a1" * 18,
    "github_pat_" + "a1" * 11,
    "glpat-" + "a1" * 10,
    "xoxb-" + "1" * 12,
    "AIza" + "a1-_7" * 7,
    "AKIA" + "A1B2C3D4E5F6G7H8",
]


@pytest.mark.parametrize("secret", FORMS)
def test_each_providers_form_of_a_key_is_known_and_a_shorter_word_is_none(secret: str) -> None:
    assert scrub(f"key '{secret}'.") == "key '***'."
    assert sum(re.search(pattern, secret) is not None for pattern in SECRETS.values()) == 1
    assert scrub(secret[:9]) == secret[:9]


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("Authorization: Bearer abcdef123", "Authorization: Bearer ***"),
        ("https://ann:s3cret-word@hub.example/x", "https://ann:***@hub.example/x"),
        ("?api_key=abcdef123&model=m", "?api_key=***&model=m"),
        ('{"password": "abcdef123"}', '{"password": "***"}'),
        ("password: short", "password: short"),  # of fewer than six characters
    ],
)
def test_what_stands_in_the_place_of_a_secret_is_one_whatever_it_looks_like(
    text: str, shown: str
) -> None:
    assert scrub(text) == shown


def test_secrets_of_this_process_are_known_by_their_names() -> None:
    known = dict(known_secrets())
    assert (known["MY_API_KEY"], known[""]) == ("hunter2-hunter2", "login-token-0123")
    assert "SHORT_TOKEN" not in known
