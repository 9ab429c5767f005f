"""Convert comparisons to and from the JSON of Label Studio and Argilla.

    Label Studio, a task     {"id": 1, "data": {"prompt": "...", "completion_1": "...", ...},
                              "annotations": [{"completed_by": {"email": "ann"}, "result": [
                                {"from_name": "best", "to_name": "prompt", "type": "choices",
                                 "value": {"choices": ["2"]}}], "was_cancelled": false}, ...]}
    Argilla 2, a record      {"id": "...", "fields": {"prompt": "...", "completion_1": "...", ...},
                              "responses": {"best": [{"value": "2", "user_id": "..."}, ...]}}

Both count completions from 1. An annotation without a choice is skipped and counted. An
annotation's time (``updated_at`` or ``created_at``; Argilla's ``inserted_at``) becomes the row's
``updated_at``, so that the later of one person's two labels counts.

Fields that the tool does not have (messages, source and the like) travel as an object in
``data.row`` or as JSON text in ``metadata.row``. The tools ignore them, and the rows come back
unchanged, with those of one item together.
"""

import hashlib
import json
import uuid
from collections.abc import Iterable
from pathlib import Path
from typing import TypeVar

from toolkit.data.layouts.columns import COLUMN
from toolkit.data.numbering import as_index
from toolkit.data.problems import problems_of
from toolkit.data.records import Row
from toolkit.data.text import prompt_text
from toolkit.errors import InputError
from toolkit.labeling.times import TIMES, label_time

T = TypeVar("T")
PERSONAL = ("best", "labeler", "updated_at")  # what differs between labelers of one item
NOBODY = str(uuid.UUID(int=0))  # Argilla wants a user for each response
WORDS: dict[type, str] = {dict: "an object", list: "a list", str: "text"}


class Imported(list[Row]):
    """Imported rows; ``skipped`` counts the annotations without a choice."""

    skipped = 0


def to_label_studio(rows: Iterable[Row]) -> list[Row]:
    """Make tasks with one annotation per labeler who picked; rows without ``best`` have none.

    Label Studio accepts annotations only from e-mail addresses of the organization's members
    (label_studio/tasks/serializers.py, ``_insert_valid_completed_by``). Rename other labelers, or
    leave their annotations out, before you import the file there.

    Args:
        rows: comparisons; rows that differ only in ``best`` and ``labeler`` make one task.
    """
    tasks = []
    annotations = 0
    for number, group in enumerate(_grouped(rows), start=1):
        kept = _kept(group[0])
        task: Row = {"id": number, "data": _fields(group[0]) | ({"row": kept} if kept else {})}
        task["annotations"] = []
        for row in group:
            if row.get("best") is None:
                continue
            annotations += 1
            made: Row = {"id": annotations, "was_cancelled": False}
            if row.get("labeler") is not None:
                made["completed_by"] = {"email": row["labeler"]}
            chosen = {"choices": [str(row["best"] + 1)]}
            made["result"] = [
                {"from_name": "best", "to_name": "prompt", "type": "choices", "value": chosen}
            ]
            task["annotations"].append(made)
        tasks.append(task)

    return tasks


def from_label_studio(tasks: object, path: str | Path) -> Imported:
    """Make a comparison of each annotation with a choice, and an item of each task without one.

    A pick is a choice named ``best``, or a Pairwise tag's choice between two completions (left is
    the lower number). Other results (ratings, comments), drafts and predictions are ignored.
    Completions may also be called sample, response or answer.

    Args:
        tasks: the content of the export "JSON" (not "JSON-MIN").
        path: the file, for messages.

    Raises:
        InputError: a task is malformed (the message names path, task from 1, and field), or the
            annotations hold results but not a single choice.
    """
    rows = Imported()
    chosen = 0
    other: str | None = None  # the place of the first result that is not a choice
    for place, task in _numbered(tasks, path, "task"):
        data = _need(task, "data", dict, place, " (export as JSON, not as JSON-MIN)")
        kept = data.get("row", {k: data[k] for k in ("source",) if data.get(k) is not None})
        row, numbers = _row(data, kept, f"{place}data.")
        picks = []
        annotations = _need(task, "annotations", list, place) if task.get("annotations") else []
        for i, annotation in enumerate(annotations):
            here = f"{place}annotations[{i}]."
            if not isinstance(annotation, dict) or annotation.get("result") is not None:
                result = _need(annotation, "result", list, here)
            else:
                result = []
            if annotation.get("was_cancelled"):
                continue
            pick = _result(result, numbers, here)
            if pick is None:
                rows.skipped += 1
                other = other or (f"{here}result" if result else None)
                continue
            chosen += 1
            picks.append(
                pick | _completed_by(annotation.get("completed_by"), here) | _when(annotation, here)
            )
        rows += _checked(row, picks, place)

    if other and not chosen:
        raise InputError(f"{other}: no choice is named best and none is pairwise (rename the tag)")
    return rows


def _when(holder: Row, here: str) -> Row:
    """Return a label's time as its own text; nothing if it has none."""
    if label_time(holder, here) is None:
        return {}
    return {"updated_at": next(holder[n] for n in TIMES if holder.get(n) not in (None, ""))}


def _result(result: list[object], numbers: list[int], here: str) -> Row | None:
    """Return an annotation's pick; None if it holds no choice."""
    for i, entry in enumerate(result):
        spot = f"{here}result[{i}]."
        if not isinstance(entry, dict):
            raise InputError(f"{here}result[{i}]: {entry!r:.40}, but must be an object")
        if entry.get("type") == "choices" and entry.get("from_name") == "best":
            choices = _need(_need(entry, "value", dict, spot), "choices", list, f"{spot}value.")
            if not choices:
                continue
            if len(choices) != 1:
                raise InputError(f"{spot}value.choices: {len(choices)} choices, but must be one")
            return {"best": _index(choices[0], numbers, f"{spot}value.choices")}
        if entry.get("type") == "pairwise":
            selected = _need(entry, "value", dict, spot).get("selected")
            if selected not in ("left", "right") or len(numbers) != 2:
                raise InputError(
                    f"{spot}value.selected: {selected!r:.40} of {len(numbers)} completions, but "
                    "must be left or right of two completions"
                )
            return {"best": int(selected == "right")}

    return None


def _completed_by(who: object, here: str) -> Row:
    if isinstance(who, dict):
        who = who.get("email") or who.get("id") or ""
    if who is None:
        return {}
    if not isinstance(who, str | int) or isinstance(who, bool) or who == "":
        raise InputError(f"{here}completed_by: {who!r:.40}, but must be a name, an id or an email")
    return {"labeler": str(who)}


def to_argilla(rows: Iterable[Row]) -> list[Row]:
    """Make records (``rg.Record.from_dict``) with one response to the question ``best`` per pick.

    A record's id depends only on its content, so logging it again adds no record. Argilla knows
    users by UUID, so a labeler's name becomes a UUID, and ``metadata.labelers`` maps it back. Its
    server accepts responses only from users it knows. The dataset needs text fields, a label
    question ``best`` with "1" to "K", and extra metadata allowed.

    Args:
        rows: comparisons; rows that differ only in ``best`` and ``labeler`` make one record.
    """
    records = []
    for group in _grouped(rows):
        kept, users = _kept(group[0]), {}
        responses = []
        for row in group:
            if row.get("best") is None:
                continue
            user = _user(row.get("labeler"))
            if row.get("labeler") not in (None, user):
                users[user] = row["labeler"]
            value = str(row["best"] + 1)
            responses.append({"value": value, "user_id": user, "status": "submitted"})
        about = {"row": kept} if kept else {}
        about |= {"labelers": users} if users else {}
        record: Row = {
            "id": hashlib.sha256(_key(group[0]).encode()).hexdigest()[:32],
            "fields": _fields(group[0]),
            "responses": {"best": responses} if responses else {},
            "metadata": {name: json.dumps(value) for name, value in about.items()},
        }
        records.append(record)

    return records


def from_argilla(records: object, path: str | Path) -> Imported:
    """Make a comparison of each response to ``best``, and an item of each record without one.

    Drafts and discarded responses are left out if their status is given; Argilla's own ``to_json``
    does not write it.

    Args:
        records: what ``dataset.records.to_json`` wrote.
        path: the file, for messages.

    Raises:
        InputError: a record is malformed (the message names path, record from 1, and field), or
            there are responses but none answers the question ``best``.
    """
    rows = Imported()
    chosen = 0
    other: str | None = None  # the place of the first response to another question
    for place, record in _numbered(records, path, "record"):
        fields = _need(record, "fields", dict, place)
        metadata = _need(record, "metadata", dict, place) if record.get("metadata") else {}
        source = {k: metadata[k] for k in ("source",) if metadata.get(k) is not None}
        kept = _parsed(metadata["row"], f"{place}metadata.row") if "row" in metadata else source
        row, numbers = _row(fields, kept, f"{place}fields.")
        spot = f"{place}metadata.labelers"
        users = _parsed(metadata["labelers"], spot) if "labelers" in metadata else {}
        responses = _need(record, "responses", dict, place) if record.get("responses") else {}
        picks = []
        if responses.get("best") is None:
            answers = []
            other = other or (place if any(responses.values()) else None)
            rows.skipped += bool(any(responses.values()))
        else:
            answers = _need(responses, "best", list, f"{place}responses.")
        for i, answer in enumerate(answers):
            here = f"{place}responses.best[{i}]."
            if not isinstance(answer, dict):
                raise InputError(f"{here[:-1]}: {answer!r:.40}, but must be an object")
            if answer.get("status", "submitted") != "submitted":
                continue
            user = answer.get("user_id")
            if not isinstance(user, str | None):
                raise InputError(f"{here}user_id: {user!r:.40}, but must be text")
            if answer.get("value") in (None, "", []):
                rows.skipped += 1
                continue
            chosen += 1
            pick: Row = {"best": _index(answer["value"], numbers, f"{here}value")}
            if user not in (None, NOBODY):
                pick["labeler"] = users.get(user, user)
            picks.append(pick | _when(answer, here))
        rows += _checked(row, picks, place)

    if other and not chosen:
        raise InputError(f"{other}responses.best: missing (name the question best)")
    return rows


def _user(labeler: str | None) -> str:
    """Return the name itself if it is a UUID, else a UUID made of it."""
    if labeler is None:
        return NOBODY
    try:
        if str(uuid.UUID(labeler)) == labeler != NOBODY:
            return labeler
    except ValueError:
        pass
    return str(uuid.uuid5(uuid.NAMESPACE_OID, f"labeler {labeler}"))


def _parsed(text: object, place: str) -> Row:
    try:
        value = json.loads(text) if isinstance(text, str) else None
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise InputError(f"{place}: {text!r:.40}, but must be a JSON object as text")
    return value


def _fields(row: Row) -> Row:
    completions = {f"completion_{i}": text for i, text in enumerate(row["completions"], start=1)}
    return {"prompt": prompt_text(row["prompt"])} | completions


def _kept(row: Row) -> Row:
    """Return the part of a row that the tool's fields cannot hold."""
    kept = {k: v for k, v in row.items() if k not in ("prompt", "completions", *PERSONAL)}
    return kept if isinstance(row["prompt"], str) else kept | {"prompt": row["prompt"]}


def _key(row: Row) -> str:
    shared = {name: value for name, value in row.items() if name not in PERSONAL}
    return json.dumps(shared, sort_keys=True)


def _grouped(rows: Iterable[Row]) -> list[list[Row]]:
    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault(_key(row), []).append(row)
    return list(groups.values())


def _numbered(items: object, path: str | Path, what: str) -> Iterable[tuple[str, Row]]:
    """Yield each item with its place for messages, to which a field's name can be added."""
    if not isinstance(items, list):
        raise InputError(f"{path}: a {type(items).__name__}, but must be a list of {what}s")
    for number, item in enumerate(items, start=1):
        if not isinstance(item, dict):
            raise InputError(f"{path}: {what} {number}: {item!r:.40}, but must be an object")
        yield f"{path}: {what} {number}: ", item


def _need(holder: object, name: str, kind: type[T], place: str, cure: str = "") -> T:
    value = holder.get(name) if isinstance(holder, dict) else holder
    if not isinstance(holder, dict) or not isinstance(value, kind):
        found = "missing" if value is None else f"{value!r:.40}"
        raise InputError(f"{place}{name}: {found}, but must be {WORDS[kind]}{cure}")
    return value


def _row(fields: Row, kept: object, place: str) -> tuple[Row, list[int]]:
    """Return the item that the fields hold, and its completions' numbers in order."""
    if not isinstance(kept, dict):
        raise InputError(f"{place}row: {kept!r:.40}, but must be an object")
    names: dict[int, str] = {}
    for name in fields:
        if match := COLUMN.fullmatch(name[:40]):
            if int(match[1]) in names:
                raise InputError(f"{place}{name}: has the same number as {names[int(match[1])]}")
            names[int(match[1])] = name
    if not names:
        raise InputError(f"{place}completion_1: missing")
    numbers = sorted(names)
    row = {name: value for name, value in kept.items() if name not in PERSONAL}
    row["prompt"] = kept.get("prompt", fields.get("prompt"))
    row["completions"] = [_need(fields, names[n], str, place) for n in numbers]
    return row, numbers


def _index(value: object, numbers: list[int], place: str) -> int:
    """Return the index of the completion with this number, which may be text."""
    number = as_index(value)
    if number not in numbers:
        raise InputError(f"{place}: {value!r:.40}, but the completions are {numbers}")
    return numbers.index(number)


def _checked(row: Row, picks: list[Row], place: str) -> list[Row]:
    made = [row | pick for pick in picks] or [row]
    for one in made:
        if problems := problems_of(one, "best" if picks else "completions"):
            raise InputError(f"{place}{problems[0]}")
    return made
