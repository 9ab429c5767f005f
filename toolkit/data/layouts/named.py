"""Columns that --columns names: a row gets our names, whatever its headers are."""

from dataclasses import dataclass

from toolkit.arguments.layouts import nearest
from toolkit.data.records import Row
from toolkit.errors import InputError


@dataclass(frozen=True)
class NamedColumns:
    """What --columns says of a file.

    Attributes:
        mapping: our names, each with the headers that stand for it.
    """

    mapping: dict[str, list[str]]

    @property
    def completions(self) -> list[str]:
        """The columns of the completions, if there is one for each."""
        named = self.mapping.get("completions", [])
        return named if len(named) > 1 else []

    def check(self, row: Row, place: str) -> None:
        """Refuse a file once whose first row lacks a column that was named.

        Raises:
            InputError: with the nearest of its headers.
        """
        headers = [str(name) for name in row]
        stripped = {header.strip() for header in headers}
        for name, wanted in self.mapping.items():
            for header in wanted:
                if header not in stripped:
                    raise InputError(
                        f"{place}: columns: {name}={header}, but no column has this "
                        f"name{nearest(header, headers)}; there are {', '.join(headers)[:200]}",
                        "columns",
                    )

    def renamed(self, row: Row) -> Row:
        """Return the row under our names. Columns of completions keep theirs.

        A column that has one of our names, but was not named, gives way to the one that was.
        """
        if not self.mapping:
            return row
        theirs = {str(name).strip(): value for name, value in row.items()}
        ours = {
            name: theirs.get(headers[0])
            for name, headers in self.mapping.items()
            if len(headers) == 1
        }
        # A single column of completions holds a list of them, or the one answer to the prompt.
        if "completions" in ours and not isinstance(ours["completions"], list):
            ours["completion"] = ours.pop("completions")
        used = {headers[0] for headers in self.mapping.values() if len(headers) == 1}
        rest = {name: value for name, value in theirs.items() if name not in used}
        return rest | ours
