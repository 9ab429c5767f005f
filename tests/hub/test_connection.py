"""What fails on the way to the Hub is tried again where that helps, and told in one line."""

from typing import Any

import httpx2
import pytest
from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

from toolkit.errors import InputError
from toolkit.hub.connection import ATTEMPTS, HubError, persist, require_token


def test_no_token_is_said_before_anything_else(hub: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    require_token()
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(InputError, match=r"^no Hub token: set HF_TOKEN, log in"):
        require_token()


class Calls:
    """Fails as told, one after the other, and then answers."""

    def __init__(self, *failures: Exception) -> None:
        self.left = list(failures)
        self.count = 0

    def __call__(self) -> str:
        self.count += 1
        if self.left:
            raise self.left.pop(0)
        return "answer"


def says(status: int, **headers: str) -> HfHubHTTPError:
    request = httpx2.Request("GET", "http://127.0.0.1/api")
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return HfHubHTTPError("x", response=httpx2.Response(status, headers=named, request=request))


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The seconds that would have been waited."""
    waited: list[float] = []
    monkeypatch.setattr("time.sleep", waited.append)
    return waited


@pytest.mark.parametrize(
    "failure", [says(429), says(503), httpx2.ConnectError("cut"), RuntimeError("hf_xet")]
)
def test_what_may_pass_is_tried_four_times_each_after_twice_the_wait(
    failure: Exception, waits: list[float]
) -> None:
    said: list[str] = []
    assert persist(Calls(failure, failure, failure), "me/x", said.append) == "answer"
    assert waits == [1, 2, 4] and len(said) == 3 and all("me/x: " in line for line in said)
    calls = Calls(*[failure] * 9)
    with pytest.raises(HubError, match=r"^me/x: .*run the same command again"):
        persist(calls, "me/x")
    assert calls.count == ATTEMPTS == 4


@pytest.mark.parametrize(("after", "waited"), [("7", 7), ("86400", 300), ("0", 1), ("soon", 1)])
def test_the_hub_says_how_long_to_wait_up_to_five_minutes(
    after: str, waited: float, waits: list[float]
) -> None:
    assert persist(Calls(says(429, retry_after=after)), "me/x") == "answer"
    assert waits == [waited]


@pytest.mark.parametrize(
    ("failure", "said", "missing"),
    [
        (says(401), "the Hub answered 401 .the token is not valid", False),
        (says(403), "this token cannot write there", False),
        (says(404), "does not exist, or this token cannot see it", True),
        (
            FileNotFoundError(2, "No such file or directory", "/a/b.json"),
            "^me/x: b.json: No",
            False,
        ),
        (OfflineModeIsEnabled("x"), "HF_HUB_OFFLINE is set", False),
        (KeyError("field"), "answer was not understood .KeyError: 'field'", False),
    ],
)
def test_what_does_not_pass_is_told_at_once(
    failure: Exception, said: str, missing: bool, waits: list[float]
) -> None:
    calls = Calls(failure)
    with pytest.raises(HubError, match=said) as caught:
        persist(calls, "me/x")
    assert (calls.count, waits, caught.value.missing) == (1, [], missing)
    assert "\n" not in str(caught.value)


def test_the_cause_of_an_error_is_told_not_its_wrapping(waits: list[float]) -> None:
    try:
        raise ValueError("something went wrong") from says(402)
    except ValueError as error:
        wrapped = error
    with pytest.raises(HubError, match="402 .the account's storage is used up"):
        persist(Calls(wrapped), "me/x")
