"""Prompts for PPO and sampling: token ids, and the other columns of their rows."""

from collections.abc import Collection, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from toolkit.arguments.layouts import ColumnArguments
from toolkit.data.chat import Chat, kind_of, rendering
from toolkit.data.dialogues import SYSTEMS, prompt_of, unpacked
from toolkit.data.encoding import Encoder, last_whole
from toolkit.data.files import require_file
from toolkit.data.layouts.named import NamedColumns
from toolkit.data.layouts.reader import as_message, prompt_in
from toolkit.data.problems import problems_of
from toolkit.data.records import Messages, Row
from toolkit.data.tables import UTF_16, read_table
from toolkit.data.tokens import decode_pair
from toolkit.errors import BadRows, InputError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# Fields about other completions, or about the text that a prompt was cut from.
NOT_HANDED_ON = (
    "text",
    "best",
    "ranking",
    "worst",
    "labeler_comment",
    "labeler_edit",
    "scores",
    "margin",
    "labeler",
    "models",
    "ratings",
    "turn",
    "sides",
)
DIALOGUES = ("messages", "conversations")  # of which the prompt was made
TAKEN = ("prompt", "prompts", "completion", "completions")  # names that reward functions have


def kept_as(name: str) -> str:
    """Return the name of a field's column, if reward functions have one of the field's name."""
    return f"given_{name}" if name in TAKEN else name


class Prompts(list[list[int]]):
    """Prompts as token ids, with the other fields of their rows.

    Attributes:
        columns: name -> one value for each prompt; reward functions get them by name.
        given: the prompts as they were read, text or messages, by index. A prompt that was cut from
            a longer text, or came as token ids, is missing.
        places: where they were read, as file:line, by index; empty if nothing was read.
        chat: how messages became text.
    """

    def __init__(
        self, ids: Iterable[list[int]] = (), columns: dict[str, list[Any]] | None = None
    ) -> None:
        super().__init__(ids)
        self.columns = columns or {}
        self.given: dict[int, str | Messages] = {}
        self.places: dict[int, str] = {}
        self.chat = Chat()

    @property
    def messages(self) -> dict[int, Messages]:
        """The prompts that are messages, by index."""
        return {i: given for i, given in self.given.items() if not isinstance(given, str)}

    def pick(self, indices: Sequence[int]) -> "Prompts":
        """Return the prompts at these indices, with their columns."""
        chosen = Prompts(
            [self[i] for i in indices],
            {name: [values[i] for i in indices] for name, values in self.columns.items()},
        )
        chosen.chat = self.chat
        chosen.given = {
            new: self.given[old] for new, old in enumerate(indices) if old in self.given
        }
        chosen.places = {
            new: self.places[old] for new, old in enumerate(indices) if old in self.places
        }
        return chosen

    def place(self, i: int) -> str:
        """Where a prompt was read, as file:line, for messages; if that is not known, its number."""
        return self.places.get(i, f"the prompt at place {i + 1}")

    def row(self, i: int) -> Row:
        """The other fields of a prompt's row."""
        return {name: values[i] for name, values in self.columns.items()}

    def handed_on(self, i: int) -> Row:
        """The fields of a prompt's row to keep with new completions: all but labels of old ones."""
        row = self.row(i)
        if not isinstance(self.given.get(i, ""), str):
            row |= {
                "chat_template_kwargs": self.told(i) or None
            }  # so that later stages render alike
        return {
            name: value
            for name, value in row.items()
            if value is not None and name not in NOT_HANDED_ON
        }

    def rendering(self) -> Row:
        """How the prompts were rendered, for toolkit.json; empty if that is not known."""
        if not self.given:
            return {}
        kinds = {kind_of(given) for given in self.given.values()}
        return rendering(self.chat, kinds, [self.told(i) for i in self.messages])

    def told(self, i: int) -> Row:
        """The template's arguments for a prompt of messages (``Chat.told``)."""
        return self.chat.told(self.row(i))

    def shown(self, i: int, tokenizer: "PreTrainedTokenizerBase") -> str | Messages:
        """A prompt as functions, judges and people see it: as it was read, or decoded."""
        given = self.given.get(i)
        return decode_pair(tokenizer, self[i], [])[0] if given is None else given

    def asked(self, tokenizer: "PreTrainedTokenizerBase") -> list[Row]:
        """Rows of each prompt as shown, with its other fields; ``given_prompts`` reads them."""
        return [{"prompt": self.shown(i, tokenizer)} | self.row(i) for i in range(len(self))]

    def once(self) -> "Prompts":
        """Drop repeated prompts, since pairing by prompt must not count one twice."""
        places: dict[tuple[int, ...], int] = {}
        for i, ids in enumerate(self):
            places.setdefault(tuple(ids), i)
        return self.pick(list(places.values()))


def read_prompts(
    source: str | Path,
    tokenizer: "PreTrainedTokenizerBase",
    max_prompt_length: int,
    prompt_tokens: int | None = None,
    limit: int | None = None,
    skip: int = 0,
    what: str = "--prompts",
    chat: Chat | None = None,
    skip_invalid: bool = False,
    columns: ColumnArguments | None = None,
    keep: Collection[str] = (),
) -> tuple[Prompts, int]:
    """Read prompts with their rows' other columns; also return how many were left out.

    Args:
        source: what ``read_table`` reads (JSON Lines, Parquet, CSV, a folder, a dataset on disk or
            on the Hub), or a .txt file with one prompt a line. Rows have ``prompt`` (text or
            messages) or ``messages``, from which a last message of the assistant is removed; with
            ``prompt_tokens`` they may have ``text`` instead. The prompts of the layouts in
            ``data.layouts`` are read, too.
        tokenizer: its own special tokens (a BOS, say) are added to text.
        max_prompt_length: longer prompts are left out and counted.
        prompt_tokens: cut each text to its first tokens, this many with the BOS (fewer if the last
            would split a character); shorter texts are left out and counted.
        limit: stop once this many are kept.
        skip: skip this many rows first (held-out text in the same file).
        what: the argument that named the source, for messages.
        chat: for prompts of messages, as for ``Encoder``.
        skip_invalid: skip broken rows and print their number, instead of raising.
        columns: which column is the prompt, and whether its text is a user's message.
        keep: fields to keep though reward functions have other things of their names, such as
            ``completion``; their columns are called ``kept_as``.

    Raises:
        InputError: a row is broken (file:line), or no prompt is left.
    """
    encoder = Encoder(tokenizer, None, chat=chat)
    bad = BadRows()
    kept = Prompts()
    rows: list[Row] = []
    left_out = 0
    columns = ColumnArguments() if columns is None else columns
    named = _named(columns)
    for number, (place, raw) in enumerate(_rows(source, what, bad, skip_invalid)):
        if number == 0:
            named.check(raw, place)
        if number < skip:
            continue
        if len(kept) == limit:
            break

        try:
            row = _with_prompt(named.renamed(raw), prompt_tokens is not None)
            if columns.as_messages:
                row = as_message(row)
            ids, problem = _encoded(encoder, row, prompt_tokens)
        except InputError:
            raise
        except ValueError as error:
            problem = str(error)
        if problem and skip_invalid:
            bad.add(f"{place}: {problem}")
            continue
        if problem:
            raise InputError(f"{place}: {problem}")

        # If the prompt is cut, the row's text is not the prompt.
        given: str | Messages | None = row["prompt"]
        if prompt_tokens:
            whole = ids
            fits = len(whole) >= prompt_tokens
            ids = whole[: last_whole(tokenizer, whole, prompt_tokens)]
            given = given if len(ids) == len(whole) else None
        else:
            fits = 0 < len(ids) <= max_prompt_length

        if fits and ids:
            if given is not None:
                kept.given[len(kept)] = given
            kept.places[len(kept)] = place
            kept.append(ids)
            rows.append(
                {
                    kept_as(name): value
                    for name, value in row.items()
                    if name not in TAKEN or name in keep
                }
            )
        else:
            left_out += 1

    notes = encoder.notes()
    plain = any(kind_of(given) == "text" for given in kept.given.values())
    if plain and getattr(tokenizer, "chat_template", None):
        notes.append(
            "the prompts are text, but the model has a chat template: the model continues them and "
            'does not answer (if you want answers, write rows of {"messages": [{"role": "user", '
            '"content": ...}]})'
        )
    for line in notes:
        print(f"{source}: {line}")
    if bad.count:
        print(f"{source}: {bad.count} bad rows skipped; the first: {bad.shown[0]}")

    if not kept and not left_out:
        raise InputError(
            f"{source}: there is no row {f'after the first {skip}' if skip else 'in it'}"
        )
    if not kept:
        raise InputError(
            f"{source}: none of the {left_out} prompts after the first {skip} rows is left "
            f"(max_prompt_length is {max_prompt_length}, prompt_tokens {prompt_tokens})"
        )

    names = sorted(set().union(*rows))
    kept.columns = {name: [row.get(name) for row in rows] for name in names}
    kept.chat = encoder.chat
    return kept, left_out


def _encoded(encoder: Encoder, row: Row, prompt_tokens: int | None) -> tuple[list[int], str | None]:
    """Encode a row's prompt; return its token ids, and what is wrong with it.

    Raises:
        InputError: there is no chat template for messages: a mistake of the run, not of the row.
    """
    problem = next(iter(problems_of(row, "prompt")), None)
    if problem is None and prompt_tokens and not isinstance(row["prompt"], str):
        problem = "prompt: prompt_tokens works only on text, not on messages"
    if problem is not None:
        hint = "text" in row and not prompt_tokens
        return [], problem + ('; for rows of "text", pass --prompt_tokens N' if hint else "")
    try:
        ids = encoder.prompt_ids(row["prompt"], row)
    except InputError as error:
        if "no chat template" in str(error):
            raise
        return [], str(error)
    return ids, _outside(ids, encoder.tokenizer)


def joined(parts: Sequence[Prompts]) -> Prompts:
    """Join the parts in order; a column that a part lacks is None there."""
    whole = Prompts()
    names = sorted({name for part in parts for name in part.columns})
    whole.columns = {name: [] for name in names}
    for part in parts:
        whole.given |= {len(whole) + i: given for i, given in part.given.items()}
        whole.places |= {len(whole) + i: place for i, place in part.places.items()}
        whole.chat = part.chat if part.messages else whole.chat
        for name in names:
            whole.columns[name] += part.columns.get(name, [None] * len(part))
        whole += part
    return whole


def given_prompts(
    rows: Sequence[Row],
    tokenizer: "PreTrainedTokenizerBase",
    chat: Chat | None = None,
    ids: Sequence[list[int]] | None = None,
) -> Prompts:
    """Make prompts from rows of ``Prompts.asked`` that were stored earlier.

    Args:
        rows: of ``Prompts.asked``.
        tokenizer, chat: as for ``Encoder``.
        ids: token ids of each prompt, if they were stored, too. For a prompt that was cut from a
            longer text, the tokenizer would make other ids.
    """
    encoder = Encoder(tokenizer, None, chat=chat)
    if ids is None:
        ids = [encoder.prompt_ids(row["prompt"], row) for row in rows]
    prompts = Prompts(ids)
    prompts.given = {i: row["prompt"] for i, row in enumerate(rows)}
    prompts.chat = encoder.chat
    names = sorted({name for row in rows for name in row} - set(TAKEN))
    prompts.columns = {name: [row.get(name) for row in rows] for name in names}
    return prompts


def read_prompt_rows(
    source: str | Path, what: str = "--prompts", columns: ColumnArguments | None = None
) -> list[Row]:
    """Read the rows that ``read_prompts`` would read, unchanged, with ``prompt`` or ``text``."""
    named = _named(columns)
    found = []
    for number, (place, raw) in enumerate(_rows(source, what, BadRows(), False)):
        if number == 0:
            named.check(raw, place)
        row = named.renamed(raw)
        prompt = _with_prompt(row, False)["prompt"]
        found.append(row | {"prompt": prompt} if prompt else row)
    return found


def _named(columns: ColumnArguments | None) -> NamedColumns:
    """What --columns says of prompts; the columns of answers are of no interest here."""
    mapping = {} if columns is None else columns.mapping
    return NamedColumns({n: headers for n, headers in mapping.items() if n in ("prompt", "system")})


def _rows(
    source: str | Path, what: str, bad: BadRows, skip_invalid: bool
) -> Iterator[tuple[str, Row]]:
    """Yield the rows of a source with their places; a text file has one prompt a line."""
    if Path(source).suffix != ".txt" or Path(source).is_dir():
        yield from read_table(source, what, bad.add if skip_invalid else None)
        return
    raw = require_file(source, what).read_bytes()
    if raw.lstrip()[:1] == b"{":  # JSON Lines with another suffix
        yield from read_table(source, what, bad.add if skip_invalid else None)
        return
    encoding = "utf-16" if raw.startswith(UTF_16) else "utf-8-sig"
    try:
        text = raw.decode(encoding)
    except UnicodeDecodeError as error:
        line = raw[: error.start].count(b"\n") + 1
        raise InputError(f"{source}:{line}: not UTF-8 (save the file as UTF-8)") from None
    if encoding == "utf-16" and "\t" in text.split("\n", 1)[0]:  # a table that Excel saved
        yield from read_table(source, what, bad.add if skip_invalid else None)
        return
    for number, line_text in enumerate(text.split("\n"), start=1):
        if line_text.strip():
            yield f"{source}:{number}", {"prompt": line_text.removesuffix("\r")}


def _with_prompt(row: Row, cut: bool) -> Row:
    """Return the row with ``prompt``, as ``convert.py`` reads it, or from ``messages`` or ``text``.

    Raises:
        ValueError: prompt and messages do not begin alike, or a program wrote the messages as text.
    """
    prompt = prompt_of(row)
    messages = unpacked(row.get("messages"), "messages")
    if isinstance(messages, list) and messages:
        asked = _asked(messages)
        first = next(
            (m.get("content") for m in asked if isinstance(m, dict) and m.get("role") == "user"),
            None,
        )
        if prompt is None or prompt == asked:
            prompt = asked
        elif (
            isinstance(prompt, str) and prompt == first
        ):  # the prompt is the first turn of a whole dialogue
            roles = [m.get("role") if isinstance(m, dict) else None for m in messages]
            prompt = messages[: roles.index("user") + 1]
        else:
            raise ValueError("prompt and messages begin differently (drop one of the columns)")
    if prompt is None and cut:
        prompt = row.get("text")
    if not isinstance(prompt, str | list) and (found := prompt_in(row)) is not None:
        prompt = found
    rest = {name: value for name, value in row.items() if name not in (*DIALOGUES, *SYSTEMS)}
    return rest | {"prompt": prompt}


def _asked(messages: list[object]) -> list[object]:
    """Return the messages without a final answer of the assistant."""
    last = messages[-1]
    return messages[:-1] if isinstance(last, dict) and last.get("role") == "assistant" else messages


def _outside(ids: list[int], tokenizer: "PreTrainedTokenizerBase") -> str | None:
    """What is wrong if a token has no row in the embedding; else None."""
    rows = getattr(tokenizer, "embedding_rows", None)
    beyond = next((i for i in ids if rows is not None and i >= rows), None)
    if beyond is None:
        return None
    return (
        f"prompt: {tokenizer.convert_ids_to_tokens(beyond)!r} is token {beyond}, but the model's "
        f"embedding has {rows} rows (the tokenizer is not this model's)"
    )
