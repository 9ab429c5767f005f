"""Talking to the Hub: requests tried again where that helps, and failures told in one line.

The token is never held here: huggingface_hub takes it from HF_TOKEN or the login, request by
request. What fails ends as a HubError of one line without it.
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

ATTEMPTS = 4  # huggingface_hub itself tries some of its requests six times, within each of these
LONGEST_WAIT = 300.0  # seconds; the Hub's limits are of five minutes
STALL = 120.0  # seconds without a byte; huggingface_hub would wait for ever
CURES = {
    401: "the token is not valid: log in anew by `hf auth login`, or mend HF_TOKEN",
    402: "the account's storage is used up",
    403: "this token may not write there: give it write access to this owner's repositories",
    404: "no such repository for this token",
    413: "too large for the Hub",
    429: "too many requests: run the same command again in a few minutes",
}
AGAIN = "run the same command again: what has arrived is not sent twice"

Result = TypeVar("Result")


class HubError(InputError):
    """The Hub could not be asked, or said no.

    Args:
        message: the line.
        missing: there is no such repository or revision, or none that this token may see.
    """

    def __init__(self, message: str, missing: bool = False) -> None:
        super().__init__(message)
        self.missing = missing


def require_token() -> None:
    """Raise InputError if neither the environment nor the login has a token."""
    if not get_token():
        raise InputError(
            "no Hub token: set HF_TOKEN or log in by `hf auth login` (or pass --dry_run)"
        )


def connect() -> HfApi:
    """The Hub at HF_ENDPOINT; from now on a stalled connection ends, and log lines are short."""

    def client() -> httpx2.Client:
        made = default_client_factory()
        made.timeout = httpx2.Timeout(STALL)
        return made

    set_client_factory(client)
    # huggingface_hub tells of each of its own retries: without the signature in the address.
    logging.getLogger("huggingface_hub.utils._http").addFilter(_shorten)
    return HfApi(library_name="preference-toolkit")


def _shorten(record: logging.LogRecord) -> bool:
    record.msg, record.args = scrub(re.sub(r"\?\S+", "", record.getMessage())), ()
    return True


def model_info(api: HfApi, repo_id: str, revision: str | None = None) -> ModelInfo:
    """The Hub's facts of a model, with its files' sizes and hashes; tried a few times.

    Raises:
        HubError: it could not be had.
    """
    return persist(lambda: api.model_info(repo_id, revision=revision, files_metadata=True), repo_id)


def persist(
    call: Callable[[], Result], repo_id: str, say: Callable[[str], None] = lambda line: None
) -> Result:
    """``call``'s result, tried again after what may pass: 429, 5xx, a cut connection."""
    for attempt in range(1, ATTEMPTS + 1):
        try:
            return call()
        # A server may answer anything, and huggingface_hub then raises anything (KeyError for a
        # field that is not there). Whatever it is must end in a line without the token.
        except Exception as error:
            line, wait, missing = _explain(error, 2.0**attempt / 2)
        if wait is None or attempt == ATTEMPTS:
            raise HubError(f"{repo_id}: {line}", missing) from None
        say(f"{repo_id}: {line.split(' (')[0]}; trying again in {wait:.0f} s")
        time.sleep(wait)
    raise AssertionError


def _explain(error: Exception, wait: float) -> tuple[str, float | None, bool]:
    """What happened, after how many seconds it is worth trying again, whether nothing is there."""
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
    # hf_xet, which carries large files, has RuntimeError for all that goes wrong on its way.
    last = scrub(f"{type(chain[-1]).__name__}: {chain[-1]}")[:200]
    cut = any(isinstance(e, httpx2.TransportError) for e in chain)
    if cut or isinstance(chain[-1], OSError | RuntimeError):
        return f"the connection to the Hub failed ({last}; {AGAIN})", wait, False
    if any(isinstance(e, json.JSONDecodeError) for e in chain):
        return f"the Hub answered without JSON ({AGAIN})", wait, False
    return (
        f"not understood of the Hub ({scrub(f'{type(error).__name__}: {error}')[:200]})",
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
        cure = CURES.get(status, f"the Hub is in trouble: {AGAIN}")
        return f"the Hub says {status}{said} ({cure})", wait, False
    missing = isinstance(error, RepositoryNotFoundError | RevisionNotFoundError) or status == 404
    # huggingface_hub takes a 401 for "not there", as the Hub hides private models from strangers;
    # to whoever brings a token the Hub says 404 for that.
    missing = missing and status != 401
    cure = CURES.get(status, "mend that, and run the same command again")
    return f"the Hub says {status}{said} ({cure})", None, missing
