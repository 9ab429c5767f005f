"""The layouts in which people keep comparisons, and their conversion to ours.

    layout     a row of it
    native     prompt, completions, best (data.comparisons), or scores in best's place
    pairs      chosen, rejected and perhaps prompt: TRL's, text or messages; HH's dialogue text
    ranked     prompt, responses, rank (rank of each response, the lowest is the best): OASST
    scored     prompt or instruction, completions: [{response, overall_score}, ...]: UltraFeedback
    columns    prompt or query, completion0 .. or sample0 .. or response_a .., best: as CSV has it
    openai     query, sample0 .., best: token ids, padded with 50259

``best``, ``worst`` and ``ranking`` are integers, or floats and text that spell integers. In
``columns``, a number is the one in the column's name; elsewhere the first completion is 0, unless
``first`` says otherwise. A letter (A is the first completion) or the name of a column works, too.

A converter takes a row and returns a comparison. It raises ``Dropped`` if a valid row makes no
comparison (for example because of a tie), and ValueError if something is wrong with the row.
"""

import hashlib
import os
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from toolkit.data.dialogues import (
    HH_TURN,
    Dropped,
    from_dialogues,
    hh_messages,
    prompt_of,
    split_dialogues,
    unpacked,
)
from toolkit.data.numbering import as_index, is_missing, pick_of
from toolkit.data.records import Row
from toolkit.data.repeated_prompts import CUT
from toolkit.errors import InputError

OPENAI_PAD = 50259  # vocabulary size + 2, openai/lm-human-preferences language/encodings.py:56
COLUMN = re.compile(r"(?i:completion|sample|response|answer)[_ ]?(\d+)")
LETTERED = re.compile(r"(?i:completion|sample|response|answer)(?:[_ ]([a-z])|[_ ]?([A-Z]))")

KEPT = ("labeler", "source", "id", "tools", "chat_template_kwargs")
ALIGNED = ("ratings", "models", "contenders")  # one value for each completion
SCORES = ("overall_score", "fine-grained_score", "score")
UNSCORED = ("", "n/a", "na", "nan", "none", "null")
LABELS = (
    *("best", "ranking", "worst", "scores", "margin", "labeler"),
    *("tools", "chat_template_kwargs"),
)


@dataclass
class Reading:
    """What a converter needs besides the row, and what it reports.

    Attributes:
        decode: token ids to text, for ``openai``.
        first: the number of the first completion in ``best`` and ``ranking``; None for the
            layout's own.
        noted: changes to rows that were kept, with counts.
    """

    decode: Callable[[list[int]], str] | None = None
    first: int | None = None
    noted: Counter[str] = field(default_factory=Counter)


def detect(row: Row, place: str, first: int | None = None) -> str:
    """Return the name of the layout that a row's fields belong to.

    Args:
        row: the first one of a file.
        place: where it is, for messages.
        first: number of the first completion in ``best``, if it was given.

    Raises:
        InputError: the fields belong to no layout, or a table lacks what all of its rows need.
    """
    names = set(row)
    completions = row.get("completions")
    if {"chosen", "rejected"} <= names:
        return "pairs"
    if "rank" in names and names & {"responses", "replies", "completions"}:
        return "ranked"
    if isinstance(completions, list) and completions and isinstance(completions[0], dict):
        return "native" if all("role" in answer for answer in completions) else "scored"
    if "completions" in names:
        return "native"
    if any(COLUMN.fullmatch(name) or LETTERED.fullmatch(name) for name in map(str, names)):
        query = row.get("query")
        ids = isinstance(query, list) and query and isinstance(query[0], int)
        if ids:
            return "openai"
        _check_pick(row, place, first)
        return "columns"

    raise InputError(
        f"{place}: unknown format with the fields {_listed(row)} (rename them: a table of picks "
        "has prompt, completion_a, completion_b and so on, and best; pairs have prompt, chosen and "
        "rejected; rows of JSON have prompt, completions and best, or prompt, responses and rank)",
        "format",
    )


def _check_pick(row: Row, place: str, first: int | None) -> None:
    """Refuse a table in which no row's pick can be read: once, not once for each row."""
    if "best" not in row:
        raise InputError(
            f"{place}: no column is called best; there are {_listed(row)} (rename them: the pick "
            "is read from best, the prompt from prompt)",
            "format",
        )
    lettered = not any(COLUMN.fullmatch(str(name)) for name in row)
    if first is None and lettered and as_index(row["best"]) is not None:
        raise InputError(
            f"{place}: best is the number {row['best']}, but the completions have letters (pass "
            "--first 1 if the first of them is number 1, or --first 0 if it is number 0)",
            "first",
        )


def _listed(row: Row) -> str:
    return ", ".join(map(str, row))[:120]


def from_native(row: Row, reading: Reading) -> Row:
    """Keep a native comparison; without ``best``, the highest of ``scores`` decides."""
    made = {
        name: value
        for name, value in row.items()
        if value is not None and not (name in LABELS and is_missing(value))
    }
    if not isinstance(row.get("completions"), list):
        return made  # the check reports what is wrong
    prompt, completions = _texts(row.get("prompt"), row["completions"], "completions", reading)
    made |= {"prompt": prompt, "completions": completions}

    known = list(range(len(completions)))
    for name in ("best", "worst"):
        if name in made:
            made[name] = pick_of(row[name], name, known, [], completions, reading.first)
    if isinstance(row.get("ranking"), list):
        made["ranking"] = [
            pick_of(value, "ranking", known, [], completions, reading.first)
            for value in row["ranking"]
        ]
    if not isinstance(row.get("scores"), list):
        return made

    # Answers without a score are left out, unless somebody picked one of them.
    scores = [_score(value, f"scores[{k}]") for k, value in enumerate(row["scores"])]
    if len(scores) != len(completions):
        return made
    scored = [k for k in known if scores[k] is not None]
    if made.get("best") is not None and made["best"] not in scored:
        raise ValueError(f"scores: completion {made['best']} is the best, but has no score")
    if len(scored) < len(known):
        reading.noted["answers without a score left out"] += len(known) - len(scored)
        if len(scored) < 2:
            raise Dropped("fewer than two scored answers")
        made |= _only(made, scored, len(known))
    made["scores"] = [scores[k] for k in scored]
    return made if "best" in made else made | _best_by_score(made["scores"])


def _only(made: Row, kept: list[int], count: int) -> Row:
    """The fields of a native row, for the completions in ``kept`` alone."""
    only: Row = {"completions": [made["completions"][k] for k in kept]} | _aligned(
        made, kept, count
    )
    if "best" in made:
        only["best"] = kept.index(made["best"])
    if "worst" in made:  # of those that are kept, another may be the worst now
        only["worst"] = kept.index(made["worst"]) if made["worst"] in kept else None
    if "ranking" in made:
        only["ranking"] = [kept.index(k) for k in made["ranking"] if k in kept]
    return only


def from_pairs(row: Row, reading: Reading) -> Row:
    """Convert TRL's pairs: with or without a prompt; text, dialogue text or messages.

    A hash of the texts decides which of the two comes first, so that position reveals nothing.
    """
    prompt = prompt_of(row)
    chosen, rejected = (unpacked(row[name], name) for name in ("chosen", "rejected"))
    if chosen == rejected:
        raise Dropped("chosen equals rejected")
    if isinstance(chosen, str) != isinstance(rejected, str):
        raise ValueError("chosen and rejected: one is text and the other is not")
    if isinstance(chosen, str):
        if prompt is None and HH_TURN.match(chosen) and HH_TURN.match(rejected):
            return _pair(*split_dialogues([hh_messages(chosen), hh_messages(rejected)]), row)
        if prompt is None:
            shared = os.path.commonprefix([chosen, rejected])
            cut = max(shared.rfind(" "), shared.rfind("\n"))
            if cut <= 0:
                raise ValueError("prompt: missing, and chosen and rejected begin differently")
            prompt, chosen, rejected = chosen[:cut], chosen[cut:], rejected[cut:]
        return _pair(prompt, [chosen, rejected], row)
    prompt, texts, repeated = from_dialogues(prompt, [chosen, rejected], ["chosen", "rejected"])
    reading.noted.update({CUT: 1} if repeated else {})
    return _pair(prompt, texts, row)


def _pair(prompt: object, texts: list[str], row: Row) -> Row:
    chosen, rejected = texts
    digest = hashlib.blake2b(f"{chosen}\0{rejected}".encode("utf-8", "replace"), digest_size=1)
    best = digest.digest()[0] & 1
    completions = [rejected, chosen] if best else [chosen, rejected]
    made: Row = {"prompt": prompt, "completions": completions, "best": best}
    margin = _score(row.get("margin"), "margin")
    if margin is None:
        high, low = (_score(row.get(name), name) for name in ("score_chosen", "score_rejected"))
        margin = None if high is None or low is None else high - low
    return made if margin is None else made | {"margin": margin}


def from_ranked(row: Row, reading: Reading) -> Row:
    """Convert ranked replies; a reply without a rank is left out, since nobody compared it."""
    replies = row.get("responses") or row.get("replies") or row["completions"]
    if len(row["rank"]) != len(replies):
        raise ValueError(f"rank: {len(row['rank'])} given for {len(replies)} replies")
    ranks = [_score(rank, f"rank[{k}]") for k, rank in enumerate(row["rank"])]
    named = [k for k, rank in enumerate(ranks) if rank is not None]
    if len(named) < 2:
        raise Dropped("fewer than two ranked replies")
    if len(named) < len(ranks):
        reading.noted["replies without a rank left out"] += len(ranks) - len(named)
    prompt, texts = _texts(prompt_of(row), [replies[k] for k in named], "responses", reading)
    made = {"prompt": prompt, "completions": texts} | _aligned(row, named, len(replies))
    return made | _by_rank([rank for rank in ranks if rank is not None])


def _by_rank(ranks: list[float]) -> Row:
    if len(set(ranks)) < len(ranks):
        raise Dropped("two replies have the same rank")
    ranking = sorted(range(len(ranks)), key=ranks.__getitem__)
    return {"best": ranking[0], "ranking": ranking}


def from_scored(row: Row, reading: Reading) -> Row:
    """Convert scored completions: the highest score is the best; a tie at the top is dropped.

    An answer without a score is left out. So is an answer to which UltraFeedback gives 10 overall
    but a mean of 2 or less in its finer ratings: by a mistake, its ratings of 1 became 10
    (github.com/OpenBMB/UltraFeedback, issue 8).
    """
    answers = row["completions"]
    name = next((n for n in SCORES if any(n in answer for answer in answers)), None)
    if name is None:
        raise ValueError(f"completions[0]: must have {' or '.join(SCORES)}")

    scores, kept = [], []
    for k, answer in enumerate(answers):
        score = _score(answer.get(name), f"completions[{k}].{name}")
        finer = None
        if name == "overall_score" and score == 10:
            finer = _score(answer.get("fine-grained_score"), f"completions[{k}].fine-grained_score")
        if score is None:
            reading.noted["answers without a score left out"] += 1
        elif finer is not None and finer <= 2:
            reading.noted["answers of overall_score 10, fine-grained_score 2 or less left out"] += 1
        else:
            scores.append(score)
            kept.append(k)
    if len(kept) < 2:
        raise Dropped("fewer than two scored answers")

    texts = [_answer_text(answers[k]) for k in kept]
    prompt, texts = _texts(prompt_of(row), texts, "completions", reading)
    made = {"prompt": prompt, "completions": texts} | _best_by_score(scores)
    made |= _aligned(row, kept, len(answers))
    if all("model" in answers[k] for k in kept):
        made["models"] = [answers[k]["model"] for k in kept]
    return made


def _answer_text(answer: Row) -> object:
    return next((answer[n] for n in ("response", "text", "content") if answer.get(n)), None)


def _best_by_score(scores: Sequence[float | None]) -> Row:
    numbers = [float(score) for score in scores]  # type: ignore[arg-type]
    ranking = sorted(range(len(numbers)), key=lambda k: -numbers[k])
    if len(numbers) > 1 and numbers[ranking[0]] == numbers[ranking[1]]:
        raise Dropped("a tie at the top")
    made: Row = {"best": ranking[0], "scores": list(scores)}
    return made | ({"ranking": ranking} if len(set(numbers)) == len(numbers) else {})


def from_columns(row: Row, reading: Reading) -> Row:
    """Convert one completion a column; ``best`` is a column's number, letter or name."""
    columns = columns_of(row)
    known = numbers_of(columns)
    prompt, texts = _texts(prompt_of(row), [row[c] for c in columns], "completions", reading)
    made: Row = {"prompt": prompt, "completions": texts}
    made["best"] = pick_of(row["best"], "best", known, columns, texts, reading.first)
    if row.get("mean_rating") is not None:
        made["scores"] = row["mean_rating"]

    ranking: Any = row.get("ranking")
    if not is_missing(ranking):
        if isinstance(ranking, str):
            ranking = re.findall(r"[^\s,;>\[\]'\"]+", ranking)
        made["ranking"] = [
            pick_of(v, "ranking", known, columns, texts, reading.first) for v in ranking
        ]
    elif isinstance(row.get("rank"), list) and len(row["rank"]) == len(columns):
        ranks = [_score(rank, f"rank[{k}]") for k, rank in enumerate(row["rank"])]
        named = [rank for rank in ranks if rank is not None]
        if len(named) == len(ranks):
            made["ranking"] = _by_rank(named)["ranking"]

    if not is_missing(row.get("worst")):
        made["worst"] = pick_of(row["worst"], "worst", known, columns, texts, reading.first)
    margin = _score(row.get("margin"), "margin")
    return made if margin is None else made | {"margin": margin}


def from_openai(row: Row, reading: Reading) -> Row:
    """Convert token ids back to text, without padding."""
    assert reading.decode is not None
    texts = {}
    for name in ("query", *columns_of(row)):
        ids = row[name]
        if not isinstance(ids, list) or not all(type(i) is int and i >= 0 for i in ids):
            raise ValueError(f"{name}: {ids!r:.40}, but must be a list of token ids")
        texts[name] = reading.decode([i for i in ids if i != OPENAI_PAD])
    return from_columns(row | texts, reading)


# Fields that several formats have


def _score(value: Any, name: str) -> float | None:
    """A score as a number; None for null, NaN, an empty text or N/A."""
    if is_missing(value) or (isinstance(value, str) and value.strip().lower() in UNSCORED):
        return None
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = float("inf")
    if isinstance(value, bool) or abs(number) > 1e300:
        raise ValueError(f"{name}: {value!r:.40}, but must be a number")
    return value if isinstance(value, int | float) else number


def _aligned(row: Row, kept: list[int], count: int) -> Row:
    """The fields with one value for each of ``count`` completions, for those in ``kept``."""
    lists = {name: row[name] for name in ALIGNED if isinstance(row.get(name), list)}
    if len(kept) == count:
        return lists
    return {
        name: [values[k] for k in kept] if len(values) == count else None
        for name, values in lists.items()
    }


def columns_of(row: Row) -> list[str]:
    """The columns that hold completions, in the order of their numbers or letters."""
    names = [name for name in row if isinstance(name, str)]
    numbered = {name: int(match[1]) for name in names if (match := COLUMN.fullmatch(name))}
    if numbered:
        if len(set(numbered.values())) < len(numbered):
            raise ValueError(f"two columns have the same number: {', '.join(numbered)}")
        return sorted(numbered, key=numbered.__getitem__)
    matches = [match for name in names if (match := LETTERED.fullmatch(name))]
    lettered = {match[0]: (match[1] or match[2]).upper() for match in matches}
    if len(set(lettered.values())) < len(lettered):
        raise ValueError(f"two columns have the same letter: {', '.join(lettered)}")
    return sorted(lettered, key=lettered.__getitem__)


def numbers_of(columns: list[str]) -> list[int]:
    """The numbers in the columns' names; empty if they have letters."""
    return [int(match[1]) for name in columns if (match := COLUMN.fullmatch(name))]


def _texts(
    prompt: object, completions: list[object], name: str, reading: Reading
) -> tuple[object, list[Any]]:
    """The prompt, and completions as text; messages become text."""
    completions = [unpacked(completion, name) for completion in completions]
    if not completions or not all(isinstance(c, list | dict) for c in completions):
        return prompt, completions
    names = [f"{name}[{k}]" for k in range(len(completions))]
    prompt, texts, repeated = from_dialogues(prompt, completions, names)
    reading.noted.update({CUT: 1} if repeated else {})
    return prompt, texts


FORMATS: dict[str, Callable[[Row, Reading], Row]] = {
    "native": from_native,
    "pairs": from_pairs,
    "ranked": from_ranked,
    "scored": from_scored,
    "columns": from_columns,
    "openai": from_openai,
}
