"""No token, session or form reaches a log."""

import hashlib
import logging
import secrets
from collections.abc import Iterator

import pytest

from toolkit.labeling.logs import hide_secrets, without_secrets
from toolkit.labeling.serving import server_of


class Locals(logging.Handler):
    """A handler that writes all that a record carries, the local variables of its traceback too."""

    def __init__(self) -> None:
        super().__init__()
        self.text = ""

    def emit(self, record: logging.LogRecord) -> None:
        self.text += logging.Formatter().format(record) + repr(vars(record))
        trace = record.exc_info[2] if record.exc_info else None
        while trace is not None:
            self.text += repr(trace.tb_frame.f_locals)
            trace = trace.tb_next


@pytest.fixture
def logged() -> Iterator[Locals]:
    handler = Locals()
    logging.getLogger().addHandler(handler)
    yield handler
    logging.getLogger().removeHandler(handler)


def test_what_uvicorn_and_asyncio_log_holds_no_secret(logged: Locals) -> None:
    server_of(lambda *_: None)  # type: ignore[arg-type,return-value]
    token = "Xy_9-" * 9
    for name in ("uvicorn.error", "asyncio"):
        try:
            raise KeyError(token)
        except KeyError as error:
            logging.getLogger(name).error("of %s", token, exc_info=error)
    assert "[hidden]" in logged.text and "Xy_9-Xy" not in logged.text


def test_the_tokens_that_python_makes_are_hidden_and_words_are_not() -> None:
    token, form = secrets.token_urlsafe(32), hashlib.sha256(b"form").hexdigest()
    assert (len(token), len(form)) == (43, 64)
    assert (
        without_secrets(f"GET /invite/{token}?f={form} 404")
        == "GET /invite/[hidden]?f=[hidden] 404"
    )
    assert without_secrets("the_longest_word_of_31_letters_") == "the_longest_word_of_31_letters_"


def test_the_filter_is_put_on_once() -> None:
    hide_secrets("toolkit.tested", "toolkit.tested")
    hide_secrets("toolkit.tested")
    assert len(logging.getLogger("toolkit.tested").filters) == 1
