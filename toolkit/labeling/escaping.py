"""Escape text for the page: whatever a text looks like, it is only data."""

import functools
import re
import sys
import unicodedata

from markupsafe import Markup, escape

from toolkit.data.text import printable

HIDDEN = Markup('<span class="hidden-character">{}</span>')


def shown(text: object) -> Markup:
    """Escape a text, and write out and mark its invisible characters."""
    whole = str(text)
    if whole.replace("\n", " ").replace("\t", " ").isprintable():  # the quick way, for most texts
        return escape(whole)

    pieces: list[Markup] = []
    end = 0
    for run in _hidden_characters().finditer(whole):
        pieces += [escape(whole[end : run.start()]), HIDDEN.format(printable(run[0]))]
        end = run.end()
    return Markup("").join([*pieces, escape(whole[end:])])


@functools.cache
def _hidden_characters() -> re.Pattern[str]:
    """Match runs of characters that ``printable`` writes out; a loop over a text took seconds."""
    every = (chr(c) for c in range(sys.maxunicode + 1) if chr(c) not in "\n\t")
    hidden = "".join(c for c in every if unicodedata.category(c) in ("Cc", "Cf", "Cs"))
    return re.compile(f"[{re.escape(hidden)}]+")
