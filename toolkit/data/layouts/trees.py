"""OASST's message trees: each message may have several answers, which people ranked."""

from collections.abc import Iterable, Iterator
from itertools import groupby

from toolkit.data.dialogues import Dropped
from toolkit.data.layouts.fields import Reading, by_rank
from toolkit.data.records import Placed, Row
from toolkit.errors import BadRows

ROLES = {"prompter": "user", "assistant": "assistant"}


def from_tree(row: Row, reading: Reading) -> list[Row]:
    """Convert a tree to a comparison for each message of a user with two ranked answers or more.

    The prompt is the dialogue up to that message. Ranks count from 0, the best. Deleted answers and
    answers without a rank are left out; ranks of users' messages say nothing about a model.

    Source: LAION-AI/Open-Assistant oasst-data/oasst_data/schemas.py: ExportMessageTree.
    """
    found: list[Row] = []
    _walk(row["prompt"], [], found, reading)
    if not found:
        raise Dropped("no message has two ranked answers")
    return found


def first_message(row: Row) -> list[Row]:
    """Return the tree's first message as a prompt."""
    return [{"role": "user", "content": row["prompt"]["text"]}]


def _walk(node: Row, before: list[Row], found: list[Row], reading: Reading) -> None:
    """Add the comparisons at this message, and at those below it."""
    if node["role"] not in ROLES:
        raise ValueError(f"role: {node['role']!r:.40}, but must be prompter or assistant")
    messages = [*before, {"role": ROLES[node["role"]], "content": node["text"]}]
    replies = [reply for reply in node.get("replies") or [] if not reply.get("deleted")]
    answers = [reply for reply in replies if reply["role"] == "assistant"]
    ranked = [reply for reply in answers if reply.get("rank") is not None]

    if len(ranked) > 1:
        if len(ranked) < len(answers):
            reading.noted["replies without a rank left out"] += len(answers) - len(ranked)
        made: Row = {"prompt": messages, "completions": [reply["text"] for reply in ranked]}
        try:
            found.append(made | by_rank([reply["rank"] for reply in ranked]))
        except Dropped as reason:
            reading.dropped[str(reason)] += 1
        else:
            if node.get("message_id"):
                found[-1]["id"] = node["message_id"]
    for reply in replies:
        _walk(reply, messages, found, reading)


def trees_of(rows: Iterable[Placed], bad: BadRows) -> Iterator[Placed]:
    """Yield the trees of a table of messages, each with the place of its first message.

    The messages of a tree follow each other, as in the data set on the Hub; within a tree, their
    order does not matter. A tree with a message whose parent is missing is bad.
    """
    for tree, placed in groupby(rows, lambda each: each[1].get("message_tree_id")):
        messages = [(place, row | {"replies": []}) for place, row in placed]
        by_id = {row.get("message_id"): row for _, row in messages}
        tops = [row for _, row in messages if not row.get("parent_id")]

        lost = next((m for m in messages if m[1].get("parent_id") not in (None, "", *by_id)), None)
        if lost is not None:
            bad.add(
                f"{lost[0]}: parent_id: {lost[1]['parent_id']!r:.40}, which no message of its tree "
                "has (the messages of a tree must follow each other)"
            )
        elif len(tops) != 1:
            bad.add(f"{messages[0][0]}: its tree has {len(tops)} first messages, but must have one")
        else:
            for _, row in messages:
                if row is not tops[0]:
                    by_id[row["parent_id"]]["replies"].append(row)
            yield messages[0][0], {"message_tree_id": tree, "prompt": tops[0]}
