"""Keeps secrets out of logs: invite tokens, sessions' secrets and the tokens of their forms.

Whoever reads one can label, or administer, in somebody's name. None is written to a log on purpose,
but a path, an error's text or a traceback may hold one.
"""

import logging
import re
import traceback

# Tokens and secrets have 43 characters, form tokens 64.
SECRET = re.compile(r"[\w-]{32,}", re.ASCII)
HIDDEN = "[hidden]"


def without_secrets(text: str) -> str:
    """The text, with each long run of letters and digits replaced."""
    return SECRET.sub(HIDDEN, text)


class HideSecrets(logging.Filter):
    """Lets every record pass without secrets: its message, and its traceback as text.

    The exception itself does not go on: a handler that prints local variables would print secrets.
    """

    def filter(self, record: logging.LogRecord) -> bool:
        """True; the record is changed."""
        record.msg, record.args = without_secrets(record.getMessage()), None
        if record.exc_info and record.exc_info[0] is not None:
            trace = "".join(traceback.format_exception(*record.exc_info))
            record.exc_text = without_secrets(trace).rstrip("\n")
        record.exc_info = None
        return True


def hide_secrets(*names: str) -> None:
    """Put the filter on the loggers of these names, once."""
    for name in names:
        logger = logging.getLogger(name)
        if not any(isinstance(one, HideSecrets) for one in logger.filters):
            logger.addFilter(HideSecrets())
