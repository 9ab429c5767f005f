"""Recognizing secrets, and removing them from texts."""

import os
import re
from collections.abc import Iterator

from huggingface_hub import get_token

SECRETS = {
    "what looks like a Hub token (hf_...)": r"hf_[A-Za-z0-9]{16,}",
    "what looks like an API key (sk-...)": r"\bsk-[A-Za-z0-9_-]{16,}",
    "what looks like a GitHub token": r"\b(gh[pousr]_[A-Za-z0-9]{20,}|github_pat_\w{20,})",
    "what looks like a GitLab token": r"\bglpat-[A-Za-z0-9_-]{20,}",
    "what looks like a Slack token": r"\bxox[abprs]-[A-Za-z0-9-]{10,}",
    "what looks like a Google key": r"\bAIza[A-Za-z0-9_-]{35}",
    "what looks like an AWS key (AKIA...)": r"\bAKIA[0-9A-Z]{16}\b",
    "a private key": r"-----BEGIN [A-Z ]*PRIVATE KEY",
}
SECRET_NAMES = ("TOKEN", "KEY", "SECRET", "PASSWORD")
# Secrets known only by their context, as in the error messages of HTTP clients.
_GIVEN_AWAY = re.compile(
    r"(?i)(?P<before>\b(?:bearer|basic)\s+|://[^/\s:@]*:(?=[^\s@]+@)|"
    r"\b[\w-]*(?:token|api[_-]?key|secret|password|passwd)\b[\"']?\s*[=:]\s*[\"']?)"
    r"(?P<secret>(?![<\[])[^\s\"',;&)}\]@]{6,})"  # <|endoftext|> and [MASK] are tokens of a text
)


def known_secrets() -> Iterator[tuple[str, str]]:
    """Names and values of environment variables that look like secrets, and the login's token."""
    for name, value in os.environ.items():
        if name.upper().endswith(SECRET_NAMES) and len(value.strip()) >= 8:
            yield name, value.strip()
    if login := get_token():
        yield "", login


def scrub(text: str) -> str:
    """Return the text in one line, with every secret of this process replaced by ***."""
    for _, secret in known_secrets():
        text = text.replace(secret, "***")
    for pattern in SECRETS.values():
        text = re.sub(pattern, "***", text)
    text = _GIVEN_AWAY.sub(r"\g<before>***", text)
    return " ".join(text.split())
