"""Keep secrets out of logs: invite tokens, session secrets and form tokens.

A person who reads one can label or administer in somebody's name. No secret is logged on purpose,
but a path, an error's text or a traceback may hold one.
"""

import logging
import re
import traceback

# Tokens and secrets have 43 characters, form tokens 64.
SECRET = re.compile(r"[\w-]{32,}", re.ASCII)
HIDDEN = "[hidden]"


def without_secrets(text: str) -> str:
    """Replace each long run of letters and digits."""
    return SECRET.sub(HIDDEN, text)


class HideSecrets(logging.Filter):
    """A filter that removes secrets from each record's message and traceback.

    The exception object is dropped, because a handler that prints local variables would print
    secrets.
    """

    def filter(self, record: logging.LogRecord) -> bool:
        """Clean the record, and return True."""
        record.msg, record.args = without_secrets(record.getMessage()), None
        if record.exc_info and record.exc_info[0] is not None:
            trace = "".join(traceback.format_exception(*record.exc_info))
            record.exc_text = without_secrets(trace).rstrip("\n")
        record.exc_info = None
        return True


def hide_secrets(*names: str) -> None:
    """Put the filter on these loggers, once."""
    for name in names:
        logger = logging.getLogger(name)
        if not any(isinstance(one, HideSecrets) for one in logger.filters):
            logger.addFilter(HideSecrets())
