"""Talk to the Hub: retry requests if that helps, and report failures in one line.

This module never holds the token: huggingface_hub reads it from HF_TOKEN or the login for each
request. A failure becomes a HubError of one line without the token.
"""

import json
import logging
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import httpx2
from huggingface_hub import HfApi, ModelInfo, get_token, set_client_factory
from huggingface_hub.errors import (
    HfHubHTTPError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils._http import default_client_factory

from toolkit.data.secrets import scrub
from toolkit.errors import InputError

ATTEMPTS = 4  # within each one, huggingface_hub tries some requests six times
LONGEST_WAIT = 300.0  # seconds; the Hub's rate limits last five minutes
STALL = 120.0  # seconds without a byte; huggingface_hub would wait forever
CURES = {
    401: "the token is not valid: log in again with `hf auth login`, or correct HF_TOKEN",
    402: "the account's storage is used up",
    403: "this token cannot write there: give it write access to this owner's repositories",
    404: "the repository does not exist, or this token cannot see it",
    413: "a file is too large for the Hub",
    429: "there were too many requests: run the same command again in a few minutes",
}
AGAIN = "run the same command again: files that have arrived are not sent twice"

Result = TypeVar("Result")


class HubError(InputError):
    """The Hub could not be reached, or rejected a request.

    Args:
        message: one line.
        missing: the repository or revision does not exist, or this token cannot see it.
    """

    def __init__(self, message: str, missing: bool = False) -> None:
        super().__init__(message)
        self.missing = missing


def require_token() -> None:
    """Raise InputError if neither the environment nor the login has a token."""
    if not get_token():
        raise InputError(
            "no Hub token: set HF_TOKEN, log in with `hf auth login`, or pass --dry_run"
        )


def connect() -> HfApi:
    """Connect to the Hub at HF_ENDPOINT; end stalled connections, and shorten log lines."""

    def client() -> httpx2.Client:
        made = default_client_factory()
        made.timeout = httpx2.Timeout(STALL)
        return made

    set_client_factory(client)
    # huggingface_hub logs each of its retries; leave out the signature in the address.
    logging.getLogger("huggingface_hub.utils._http").addFilter(_shorten)
    return HfApi(library_name="preference-toolkit")


def _shorten(record: logging.LogRecord) -> bool:
    record.msg, record.args = scrub(re.sub(r"\?\S+", "", record.getMessage())), ()
    return True


def model_info(api: HfApi, repo_id: str, revision: str | None = None) -> ModelInfo:
    """Ask the Hub about a model, with its files' sizes and hashes; retry a few times.

    Raises:
        HubError: the Hub did not answer.
    """
    return persist(lambda: api.model_info(repo_id, revision=revision, files_metadata=True), repo_id)


def persist(
    call: Callable[[], Result], repo_id: str, say: Callable[[str], None] = lambda line: None
) -> Result:
    """Return ``call()``; retry after temporary failures: 429, 5xx, a cut connection."""
    for attempt in range(1, ATTEMPTS + 1):
        try:
            return call()
        # For a strange answer huggingface_hub may raise any exception (KeyError for a missing
        # field). Each one must end in a line without the token.
        except Exception as error:
            line, wait, missing = _explain(error, 2.0**attempt / 2)
        if wait is None or attempt == ATTEMPTS:
            raise HubError(f"{repo_id}: {line}", missing) from None
        say(f"{repo_id}: {line.split(' (')[0]}; trying again in {wait:.0f} s")
        time.sleep(wait)
    raise AssertionError


def _explain(error: Exception, wait: float) -> tuple[str, float | None, bool]:
    """Return what happened, the seconds to wait before a retry, and whether it is missing."""
    chain: list[BaseException] = [error]
    while (cause := chain[-1].__cause__ or chain[-1].__context__) and cause not in chain:
        chain.append(cause)
    if any(isinstance(e, OfflineModeIsEnabled) for e in chain):
        return "the Hub was not asked (HF_HUB_OFFLINE is set)", None, False
    for e in chain:
        if isinstance(e, HfHubHTTPError) and e.response is not None:
            return _explain_answer(e, e.response, wait)
    local = next((e for e in chain if isinstance(e, OSError) and e.filename), None)
    if local is not None:
        return scrub(f"{Path(str(local.filename)).name}: {local.strerror}"), None, False
    # hf_xet, which transfers large files, raises RuntimeError for every failure.
    last = scrub(f"{type(chain[-1]).__name__}: {chain[-1]}")[:200]
    cut = any(isinstance(e, httpx2.TransportError) for e in chain)
    if cut or isinstance(chain[-1], OSError | RuntimeError):
        return f"the connection to the Hub failed ({last}; {AGAIN})", wait, False
    if any(isinstance(e, json.JSONDecodeError) for e in chain):
        return f"the Hub answered without JSON ({AGAIN})", wait, False
    return (
        f"the Hub's answer was not understood ({scrub(f'{type(error).__name__}: {error}')[:200]})",
        None,
        False,
    )


def _explain_answer(
    error: HfHubHTTPError, response: httpx2.Response, wait: float
) -> tuple[str, float | None, bool]:
    status = response.status_code
    said = scrub(error.server_message or "")[:200]
    said = f", {said!r}" if said else ""
    if status == 429 or status >= 500:
        after = response.headers.get("Retry-After", "")
        wait = min(LONGEST_WAIT, max(wait, float(after))) if after.isdigit() else wait
        cure = CURES.get(status, f"the Hub has a problem: {AGAIN}")
        return f"the Hub answered {status}{said} ({cure})", wait, False
    missing = isinstance(error, RepositoryNotFoundError | RevisionNotFoundError) or status == 404
    # huggingface_hub reads 401 as "missing", because the Hub hides private models from strangers.
    # With a token, the Hub answers 404 for a missing model.
    missing = missing and status != 401
    cure = CURES.get(status, "correct that, and run the same command again")
    return f"the Hub answered {status}{said} ({cure})", None, missing
