"""Reading the rows of any layout as comparisons, as demonstrations, or as prompts.

This is the one way in: convert, reward, sft, preference, label and the prompts of PPO read by it.
"""

import itertools
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from toolkit.data.dialogues import Dropped
from toolkit.data.layouts.columns import columns_of, numbers_of
from toolkit.data.layouts.fields import ALIGNED, KEPT, Reading
from toolkit.data.layouts.named import NamedColumns
from toolkit.data.layouts.registry import LAYOUTS, detect, is_ours, refusal, told, unknown
from toolkit.data.layouts.sets import check_rank
from toolkit.data.numbering import Numbering, as_index, file_of, is_missing, with_whole_numbers
from toolkit.data.records import Placed, Row
from toolkit.data.repeated_prompts import without_repeats
from toolkit.errors import BadRows, InputError

Wanted = Literal["comparisons", "demonstrations", "prompts"]
LABELS = ("best", "ranking", "worst", "scores", "margin", "labeler")
PICKED = ("native", "columns", "openai", "safe_rlhf")  # layouts that have a field ``best``
HEAD = 20  # rows that are looked at if the first one is of no use and bad rows may be skipped


@dataclass
class LayoutReader:
    """Reads tables row by row, and counts what became of the rows.

    Attributes:
        wanted: what the rows are read as. Demonstrations are comparisons with one completion, and
            prompts are rows of ``prompt``.
        form: a name in ``LAYOUTS``; None detects it from the first row of each file.
        columns: what --columns says.
        decode: token ids to text, for ``openai``.
        first: number of the first completion in ``best`` and ``ranking``, 0 or 1; None for the
            number in its column's name, or 0.
        repeated_prompt: as in ``data.repeated_prompts``.
        as_messages: whether a text prompt becomes a user's message.
        skip_invalid: whether bad rows are skipped.
        native_as_is: whether rows of our own layout are passed on as they stand, but for whole
            numbers. Then rows of no layout are, too, so that the check of rows says what is wrong.
        picked: whether a row must say which completion is the best. If not, labels are left out
            of rows of other layouts.
        dropped, noted, labels: as in ``Reading``.
        bad: rows that could not be read.
        numbering: looks at the numbers in labels.
        forms: the layouts that were found, with the number of their files.
        lost: reasons of ``dropped`` by the rows' places; None if nobody asks for them.
    """

    wanted: Wanted = "comparisons"
    form: str | None = None
    columns: NamedColumns = field(default_factory=lambda: NamedColumns({}))
    decode: Callable[[list[int]], str] | None = None
    first: int | None = None
    repeated_prompt: str = "auto"
    as_messages: bool = False
    skip_invalid: bool = False
    native_as_is: bool = False
    picked: bool = True
    dropped: Counter[str] = field(default_factory=Counter)
    noted: Counter[str] = field(default_factory=Counter)
    labels: Counter[str] = field(default_factory=Counter)
    bad: BadRows = field(default_factory=BadRows)
    numbering: Numbering = field(default_factory=Numbering)
    forms: Counter[str] = field(default_factory=Counter)
    lost: dict[str, str] | None = None

    def anew(self) -> "LayoutReader":
        """Return a reader of the same settings that has counted nothing."""
        return replace(
            self,
            dropped=Counter(),
            noted=Counter(),
            labels=Counter(),
            bad=BadRows(),
            numbering=Numbering(),
            forms=Counter(),
        )

    def rows(self, placed: Iterable[Placed]) -> Iterator[Placed]:
        """Yield what the rows are read as, not yet checked; ``source`` becomes their place.

        Raises:
            InputError: a layout cannot be told, or does not hold what is wanted.
        """
        for _, of_file in itertools.groupby(placed, lambda each: file_of(each[0])):
            head, rest = _looked_at(of_file, HEAD if self.skip_invalid else 1)
            form = self._form(head)
            self.forms[form or "native"] += 1
            read = self._read(itertools.chain(head, rest), form)
            if self.native_as_is and form in (None, "native"):
                yield from map(self._finished, read)
            elif self.wanted == "comparisons":
                read = without_repeats(read, self.repeated_prompt, self.noted, self.bad)
                yield from map(self._finished, read)
            else:
                yield from map(self._finished, read)

    def _form(self, head: list[Placed]) -> str | None:
        """The layout of a file; None if only the check of rows can say what is wrong with it."""
        refused: InputError | None = None
        for place, row in head:
            self.columns.check(row, place)
            row = self.columns.renamed(row)
            recipe = self.native_as_is and self.wanted == "comparisons" and self.form is None
            if recipe and is_ours(row):
                return "native"
            try:
                form = detect(
                    row, place, self.first, self.columns.completions, self.picked, self.form
                )
                if not self._serves(form):
                    # A table of other headers has a prompt, too.
                    plain = form in ("prompt", "text") and len(row) > 1 and self.form is None
                    raise unknown(row, place) if plain else refusal(form, place, self.wanted)
                picks = self.wanted == "comparisons" and "best" in self.columns.mapping
                if picks and form not in PICKED:
                    raise InputError(
                        f"{place}: columns: best={self.columns.mapping['best'][0]}, but the layout "
                        f"{form} ({LAYOUTS[form].fields}) says by itself which is the best",
                        "columns",
                    )
                return form
            except InputError as error:
                refused = refused or error
        if refused is None:
            return None
        if self.native_as_is and told(self.columns.renamed(head[0][1])) is None:
            return None
        raise refused

    def _serves(self, form: str) -> bool:
        layout = LAYOUTS[form]
        if self.wanted == "prompts":
            return layout.prompt is not None or layout.comparisons is not None
        reader = layout.comparisons if self.wanted == "comparisons" else layout.demonstrations
        return reader is not None

    def _read(self, rows: Iterable[Placed], form: str | None) -> Iterator[Placed]:
        """Yield a file's rows, read."""
        reading = Reading(
            self.decode,
            self.first,
            self.noted,
            self.dropped,
            self.labels,
            self.columns.completions,
            self.picked,
        )
        renamed: Iterator[Placed] = ((place, self.columns.renamed(row)) for place, row in rows)
        if self.picked and self.wanted == "comparisons":
            renamed = self._ranked_as_picked(renamed)
        if form is None or (self.native_as_is and form == "native"):
            for place, row in renamed:
                row = with_whole_numbers(row)
                if self.picked:
                    self._note_labels(place, row, "native")
                yield place, row
            return
        layout = LAYOUTS[form]
        if form == "openai" and self.decode is None:
            raise InputError(
                "openai rows are token ids (give their --tokenizer, which preftune convert takes)",
                "tokenizer",
            )
        if layout.gather is not None:
            renamed = layout.gather(renamed, self.bad)

        for place, row in renamed:
            try:
                self._note_labels(place, row, form)
                found = self._made(row, form, reading)
            except Dropped as reason:
                self.dropped[str(reason)] += 1
                if self.lost is not None:
                    self.lost[place] = str(reason)
            except ValueError as error:
                self.bad.add(f"{place}: {error}")
            except (TypeError, KeyError, IndexError, AttributeError, OverflowError) as error:
                named = f"{error.args[0]} is missing" if isinstance(error, KeyError) else str(error)
                self.bad.add(f"{place}: {named} (is this a row of the format {form}?)")
            else:
                for made in found:
                    made |= {n: row[n] for n in KEPT if n in self.columns.mapping}
                    for name in (*KEPT, *ALIGNED):
                        if not is_missing(row.get(name)):
                            made.setdefault(name, row[name])
                    left_out = () if self.picked else LABELS
                    made = {
                        name: value
                        for name, value in made.items()
                        if value is not None and name not in left_out
                    }
                    made.setdefault("source", Path(place).name)
                    yield place, made

    def _ranked_as_picked(self, rows: Iterator[Placed]) -> Iterator[Placed]:
        """Pass rows on, but for those whose ``rank`` and ``best`` disagree, which are bad."""
        for place, row in rows:
            try:
                check_rank(row, self.first)
            except ValueError as error:
                self.bad.add(f"{place}: {error}")
            else:
                yield place, row

    def _made(self, row: Row, form: str, reading: Reading) -> list[Row]:
        """What a row is read as."""
        layout = LAYOUTS[form]
        if self.wanted == "prompts" and layout.prompt is not None:
            return [{"prompt": layout.prompt(row)}]
        reader = layout.demonstrations if self.wanted == "demonstrations" else layout.comparisons
        assert reader is not None
        made = reader(row, reading)
        found = made if isinstance(made, list) else [made]
        if self.wanted == "prompts":
            return [{"prompt": each["prompt"]} for each in found]
        return found

    def _finished(self, placed: Placed) -> Placed:
        """Make a text prompt a user's message, if that is asked for."""
        place, row = placed
        return place, as_message(row) if self.as_messages else row

    def _note_labels(self, place: str, row: Row, form: str) -> None:
        """Report the numbers in a row's ``best`` and ``ranking`` to ``numbering``."""
        if self.first is not None or form not in ("native", "columns", "openai", "safe_rlhf"):
            return
        if form == "native":
            if not isinstance(row.get("completions"), list):
                return
            first, count = 0, len(row["completions"])
        else:
            known = sorted(numbers_of(self.columns.completions or columns_of(row)))
            if not known or known != list(range(known[0], known[0] + len(known))):
                return
            first, count = known[0], len(known)
        ranking = row.get("ranking")
        labels = [row.get("best"), *(ranking if isinstance(ranking, list) else [])]
        if form == "native":
            labels.append(row.get("worst"))
        self.numbering.see(place, map(as_index, labels), first, count)

    def summary(self) -> list[str]:
        """Lines on what became of the rows: how picks were read, what was left out and changed."""
        lines = []
        if self.labels and not self.labels.keys() <= {"number"}:
            read = ", ".join(f"{times} by {how}" for how, times in self.labels.most_common())
            lines.append(f"best is read {read}")
        for reason, times in self.dropped.most_common():
            lines.append(f"{times} left out: {reason}")
        for what, times in self.noted.most_common():
            lines.append(f"{times} {what}")
        return lines


def as_message(row: Row) -> Row:
    """Return the row with a prompt of text as a user's message."""
    prompt = row.get("prompt")
    if not isinstance(prompt, str) or not prompt.strip():
        return row
    return row | {"prompt": [{"role": "user", "content": prompt.strip()}]}


def prompt_in(row: Row) -> object:
    """Return the prompt of one row, of any layout that keeps a prompt's text in one row.

    Raises:
        ValueError: the row has no prompt, or only several rows together have one.
    """
    form = told(row)
    layout = None if form is None else LAYOUTS[form]
    if layout is not None and layout.gather is not None:
        raise ValueError(
            f"prompt: a row of the layout {form} has none (preftune convert --to prompts helps)"
        )
    if layout is not None and layout.prompt is not None:
        return layout.prompt(row)
    if layout is None or layout.comparisons is None:
        return None
    try:
        made = layout.comparisons(row, Reading())
    except Dropped as reason:
        raise ValueError(f"prompt: missing, and {reason}") from None
    return made["prompt"] if isinstance(made, dict) else made[0]["prompt"]


def _looked_at(rows: Iterator[Placed], count: int) -> tuple[list[Placed], Iterator[Placed]]:
    """Take the first rows of a file; return them and the rest."""
    return list(itertools.islice(rows, count)), rows
