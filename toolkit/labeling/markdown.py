"""Show an answer's Markdown without trusting it: markdown-it-py reads it, and we write the tags.

No tag comes from a text. HTML in it is shown as text. A link is shown as its text with its address,
and an image as its description with its address, so nothing on the page can be followed or loaded.
All text goes through ``shown``, which writes out invisible characters.
"""

import html
from collections.abc import Iterator
from functools import lru_cache

from markdown_it import MarkdownIt
from markdown_it.rules_block import StateBlock, table
from markdown_it.token import Token
from markupsafe import Markup

from toolkit.labeling.escaping import shown

LONGEST = 100_000  # characters; a longer text takes seconds, and is shown as plain text
# Cells of all tables. A row of one cell is filled up to the width of the head, so that a short text
# could have 100,000 of them, which take seconds.
MOST_CELLS = 2_000

# All tags that a text can bring onto the page, by markdown-it's names for what it found. A heading
# of a text is below the page's own headings.
TAGS = {
    "paragraph_open": "<p>",
    "paragraph_close": "</p>",
    "blockquote_open": "<blockquote>",
    "blockquote_close": "</blockquote>",
    "bullet_list_open": "<ul>",
    "bullet_list_close": "</ul>",
    "ordered_list_open": "<ol>",
    "ordered_list_close": "</ol>",
    "list_item_open": "<li>",
    "list_item_close": "</li>",
    "hr": "<hr>",
    "hardbreak": "<br>",
    "softbreak": "<br>",
    "em_open": "<em>",
    "em_close": "</em>",
    "strong_open": "<strong>",
    "strong_close": "</strong>",
    "s_open": "<del>",
    "s_close": "</del>",
    "table_open": '<div class="wide" tabindex="0" role="region" aria-label="table"><table>',
    "table_close": "</table></div>",
    "thead_open": "<thead>",
    "thead_close": "</thead>",
    "tbody_open": "<tbody>",
    "tbody_close": "</tbody>",
    "tr_open": "<tr>",
    "tr_close": "</tr>",
    "th_open": "<th>",
    "th_close": "</th>",
    "td_open": "<td>",
    "td_close": "</td>",
}
CODE = Markup(
    '<div class="code"><p class="bar"><span>{}</span>'
    '<button type="button" class="copy">Copy</button></p><pre><code>{}</code></pre></div>'
)
ADDRESS = Markup(' <span class="address">({})</span>')
IMAGE = Markup('<span class="image">{} <span class="address">({})</span></span>')
PLAIN = Markup('<p class="why">{}</p><p class="text">{}</p>')


class _TooManyCells(Exception):
    """The tables of a text would have more than ``MOST_CELLS`` cells."""


def _small_table(state: StateBlock, start: int, end: int, silent: bool) -> bool:
    """Read a table as markdown-it does, unless it has too many cells together with earlier ones.

    Raises:
        _TooManyCells: before the table is read, if it is too large itself.
    """
    below = start + 1  # the line of dashes, which tells the number of columns
    if silent or below >= end:
        return table(state, start, end, silent)

    dashes = state.src[state.bMarks[below] + state.tShift[below] : state.eMarks[below]]
    columns = dashes.count("|") + 1
    if set(dashes) <= set("|:- \t"):
        last = next((line for line in range(below, end) if state.isEmpty(line)), end)
        if columns * (last - start) > MOST_CELLS:
            raise _TooManyCells

    found = table(state, start, end, silent)
    if found:
        state.env["cells"] = state.env.get("cells", 0) + columns * (state.line - start)
        if state.env["cells"] > MOST_CELLS:
            raise _TooManyCells
    return found


class _Reader(MarkdownIt):
    """CommonMark with tables and strikethrough; an address is kept as it was written."""

    def __init__(self) -> None:
        super().__init__("commonmark", {"html": False})
        self.enable(["table", "strikethrough"])

        # A definition ("[a]: address") would vanish from the page, and NUL would be replaced.
        self.disable(["reference", "normalize"])
        self.block.ruler.at("table", _small_table, {"alt": ["paragraph", "reference"]})

    def validateLink(self, url: str) -> bool:
        return True  # an address is only ever shown

    def normalizeLink(self, url: str) -> str:
        return url


_reader = _Reader()


def rendered(text: str) -> Markup:
    """Return a text's Markdown as HTML.

    Letters and digits that the Markdown would hide (a table's row may have more cells than its
    head) make it plain text with a note. So does a text of more than 100,000 characters, and one
    whose tables have more than 2,000 cells.
    """
    if len(text) > LONGEST:
        return PLAIN.format("This is a long text, so its Markdown is not rendered.", shown(text))
    return _rendered(text)


@lru_cache(maxsize=64)  # a page is looked at again, by the same person or by others
def _rendered(text: str) -> Markup:
    try:
        tokens = _reader.parse(text.replace("\r\n", "\n"))
    except _TooManyCells:
        return PLAIN.format(
            "This text has a large table, so its Markdown is not rendered.", shown(text)
        )

    written: list[Markup] = []
    seen: list[str] = []  # what can be read, without tags
    for tag, words in _pieces(tokens):
        written.append(tag)
        seen.append(words)

    if not _holds("".join(seen), text):
        return PLAIN.format("Its Markdown would hide a part of this text.", shown(text))
    return Markup("").join(written)


def _pieces(tokens: list[Token]) -> Iterator[tuple[Markup, str]]:
    """Yield the page's HTML, each piece with its readable text."""
    addresses: list[str] = []  # of the links that are open
    for token in tokens:
        kind, content = token.type, token.content
        if token.hidden:  # the paragraphs of a list without blank lines
            continue

        if kind == "inline":
            yield from _pieces(token.children or [])
        elif kind in ("fence", "code_block"):
            info = token.info.strip()
            yield CODE.format(shown(info), shown(content)), html.unescape(f"{info} {content}")
        elif kind == "code_inline":
            yield Markup("<code>{}</code>").format(shown(content)), html.unescape(content)
        elif kind == "image":
            address = _address(token, "src")
            yield IMAGE.format(shown(content), shown(address)), content + address
        elif kind == "link_open":
            addresses.append("" if token.info == "auto" else _address(token, "href"))
        elif kind == "link_close":
            if address := addresses.pop():
                yield ADDRESS.format(shown(address)), address
        elif kind == "list_item_open" and token.info:  # the number as it was written
            yield Markup('<li value="{}">').format(int(token.info)), token.info
        elif kind in ("heading_open", "heading_close"):
            level = min(int(token.tag[1]) + 2, 6)
            yield Markup(f"<{'/' * (token.nesting < 0)}h{level}>"), ""
        elif kind in TAGS:
            yield Markup(TAGS[kind]), ""
        else:  # text, and whatever else a newer version may find
            yield shown(content), content


def _address(token: Token, name: str) -> str:
    """Return a link's or an image's address, with its title if it has one."""
    title = token.attrs.get("title")
    return str(token.attrs[name]) + (f" \u201c{title}\u201d" if title else "")


def _holds(seen: str, text: str) -> bool:
    """Whether all letters and digits of a text can be seen, in their order."""
    letters = filter(str.isalnum, seen)
    return all(letter in letters for letter in filter(str.isalnum, html.unescape(text)))
