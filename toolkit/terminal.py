"""What a person reads in a terminal: tables and lines that fit its width with their words whole.

The width is the terminal's, or that of the variable COLUMNS; 80 where neither is known.
"""

import re
import shutil
import sys
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rich import box
from rich.cells import cell_len
from rich.console import Console
from rich.table import Table
from rich.text import Text

from toolkit.data.text import printable

GAP = 2  # columns of a table are so many characters apart
WHOLE = 16  # a cell of at most so many characters ("-0.25 ± 0.03") stays in one line
WORD = re.compile(r"\[[^\[\]\s]+, [^\[\]\s]+\]\S*|\S+")  # "[89.5%, 94.2%]," is one
JOINT = re.compile(r"(?<=[/_.:-])")  # where a word that is too long is broken first


def counted(number: float, one: str, several: str | None = None) -> str:
    """Return a number with its noun: 1 update, 4 updates, 0.5 passes."""
    shown = str(number) if isinstance(number, int) else f"{number:g}"
    return f"{shown} {one if number == 1 else several or one + 's'}"


@dataclass(frozen=True)
class Cell:
    """A cell's text and how it looks."""

    text: str
    style: str = ""


def print_table(
    title: str,
    headers: Sequence[str],
    rows: Sequence[Sequence[str | Cell]],
    caption: str = "",
    right: Sequence[int] = (),
    lines: bool = False,
) -> None:
    """Print a table whose columns are as wide as their longest words at least.

    Where not all columns have room beside one another, it becomes several tables, one below the
    other, and each begins with the first column. Names and texts are shown as they are, never as
    markup.

    Args:
        title: stands above it, and above each of several.
        headers: of the columns; none for a table without a head.
        rows: as many cells each as there are columns.
        caption: stands below it, once.
        right: the numbers of the columns that are set flush right.
        lines: a line between the rows.
    """
    console = Console(width=terminal_width())
    cells = [[_shown(cell) for cell in row] for row in rows]
    heads = [printable(header) for header in headers]
    count = len(heads) or (len(cells[0]) if cells else 0)
    columns = [
        Column.of([heads[i]] if heads else [], [row[i].text for row in cells]) for i in range(count)
    ]

    for block in layout(columns, console.width):
        table = Table(
            box=box.SIMPLE_HEAD if heads or lines else None,
            show_header=bool(heads),
            show_edge=False,
            show_lines=lines,
            padding=(0, GAP - 1 if heads or lines else GAP, 0, 0),
            pad_edge=False,
        )
        for i, width in block:
            table.add_column(
                Text(heads[i]) if heads else "",
                width=width,
                justify="right" if i in right else "left",
                overflow="fold",
            )
        for row in cells:
            table.add_row(*(Text(broken(row[i].text, w), row[i].style) for i, w in block))
        console.print()
        console.print(Text(broken(printable(title), console.width), style="bold"))
        console.print(table)
    if caption:
        console.print(Text(broken(printable(caption), console.width), style="dim"))


@dataclass(frozen=True)
class Column:
    """How many characters a column needs.

    Attributes:
        least: so that no word of it is broken, and no short cell takes a second line.
        cells: so that no cell takes a second line.
        head: so that its header takes no second line either.
    """

    least: int
    cells: int
    head: int

    @classmethod
    def of(cls, headers: Sequence[str], cells: Sequence[str]) -> "Column":
        """The column of these texts; a header may be broken at any space."""
        pieces = [word for text in (*headers, *cells) for word in WORD.findall(text)]
        pieces += [cell for cell in cells if "\n" not in cell and cell_len(cell) <= WHOLE]
        lines = _longest([line for cell in cells for line in cell.splitlines()])
        return cls(_longest(pieces), lines, max(lines, _longest(headers)))


def layout(columns: Sequence[Column], width: int) -> list[list[tuple[int, int]]]:
    """Which columns stand beside one another in ``width`` characters, and how wide each is.

    Returns:
        The tables, each a list of ``(column, its width)``; the first column is in all of them. A
        word is broken only if it is longer than what the first column leaves of the width.
    """
    if not columns:
        return []
    first = min(columns[0].least, width // 2)
    least = [first, *(min(c.least, width - first - GAP) for c in columns[1:])]

    # As many columns in a table as have room with their longest words.
    groups: list[list[int]] = [[0]]
    for i in range(1, len(columns)):
        together = [*groups[-1], i]
        if sum(least[j] + GAP for j in together) - GAP <= width:
            groups[-1] = together
        else:
            groups.append([0, i])

    # What is left of the width goes to the cells, and then to the headers: first to those that
    # need least to stand in one line, so that most of them do.
    tables = []
    for group in groups:
        widths = {i: least[i] for i in group}
        spare = width - sum(widths.values()) - GAP * (len(group) - 1)
        for wanted in ({i: columns[i].cells for i in group}, {i: columns[i].head for i in group}):
            for i in sorted(group, key=lambda i: wanted[i] - widths[i]):
                more = min(max(wanted[i] - widths[i], 0), spare)
                widths[i] += more
                spare -= more
        tables.append(list(widths.items()))
    return tables


def broken(text: str, width: int) -> str:
    """``text`` with those of its lines broken that are longer than ``width``, at spaces.

    A word that is longer than that is broken too, behind a slash, a dash or a dot if it has any.
    """
    lines: list[str] = []
    for line in text.splitlines():
        if cell_len(line) <= width:
            lines.append(line)
            continue

        row = ""
        for word in WORD.findall(line):
            if row and cell_len(row) + 1 + cell_len(word) <= width:
                row += f" {word}"
                continue
            if row:
                lines.append(row)
            row = ""
            for piece in JOINT.split(word) if cell_len(word) > width else [word]:
                if row and cell_len(row) + cell_len(piece) > width:
                    lines.append(row)
                    row = ""
                row += piece
        lines.append(row)
    return "\n".join(lines)


def say(line: str, indent: int = 2) -> None:
    """Print one line; in a terminal that is narrower than it, broken at spaces alone.

    In a file or a pipe it stays one line, as programs that read it expect.

    Args:
        line: without a newline at its end.
        indent: of the second line and those after it, in spaces.
    """
    print(wrapped(line, terminal_width(), indent) if sys.stdout.isatty() else line, flush=True)


def say_figures(title: str, figures: Mapping[str, object]) -> None:
    """Print figures in a line, with their names in words.

    Counts of 0 and what is None are left out: they say that there was nothing to tell. The files
    that a recipe writes hold all of them.
    """
    shown = {
        name: value
        for name, value in figures.items()
        if value is not None and not (isinstance(value, int) and value == 0)
    }
    line = ", ".join(
        f"{name.replace('_', ' ')} {figure_text(value)}" for name, value in shown.items()
    )
    say(f"{title}: {line}")


def figure_text(value: object) -> str:
    """A figure as text: floats with four digits.

    >>> figure_text(0.434871), figure_text(1160)
    ('0.4349', '1160')
    """
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def wrapped(line: str, width: int, indent: int = 2) -> str:
    """``line`` broken at spaces into lines of at most ``width`` characters.

    A word that is longer than that (a path, a link) has a line of its own, whole.

    >>> print(wrapped("note: nothing is lost", 12))
    note:
      nothing is
      lost
    """
    return textwrap.fill(
        line,
        width,
        subsequent_indent=" " * indent,
        break_long_words=False,
        break_on_hyphens=False,
    )


def terminal_width() -> int:
    """The width of the terminal in characters, 40 at least."""
    return max(shutil.get_terminal_size((80, 24)).columns, 40)


def _longest(texts: Sequence[str]) -> int:
    return max(1, *map(cell_len, texts)) if texts else 1


def _shown(cell: str | Cell) -> Cell:
    text, style = (cell, "") if isinstance(cell, str) else (cell.text, cell.style)
    return Cell(printable(text), style)
