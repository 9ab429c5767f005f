"""Other people's files to comparisons, and comparisons to TRL's preference pairs.

    format     a row of it
    native     prompt, completions, best (data.comparisons), or scores in best's place
    pairs      chosen, rejected and perhaps prompt: TRL's, text or messages; HH's dialogue text
    ranked     prompt, responses, rank (rank of each response, the lowest is the best): OASST
    scored     prompt or instruction, completions: [{response, overall_score}, ...]: UltraFeedback
    columns    prompt or query, completion0 .. or sample0 .. or response_a .., best: as CSV has it
    openai     query, sample0 .., best: token ids, padded with 50259

``best`` and ``ranking`` are integers, or floats and text that spell some. In columns a number is
the one in the column's name, elsewhere the first completion is 0; ``first`` says otherwise. A
letter (A is the first completion) or the name of a column is understood too.

Completions that repeat the prompt are cut (``data.repeated_prompts``, ``data.dialogues``).

Each converter takes a row and gives a comparison; ``Dropped`` says why a sound row makes none (a
tie, say), ValueError what is wrong with it.
"""

import hashlib
import itertools
import json
import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer
from tqdm.auto import tqdm

from toolkit.data.comparisons import problems_of
from toolkit.data.dialogues import (
    HH_TURN,
    Dropped,
    from_dialogues,
    hh_messages,
    prompt_of,
    split_dialogues,
    unpacked,
)
from toolkit.data.numbering import Numbering, as_index, file_of, is_missing, pick_of
from toolkit.data.repeated_prompts import CUT, without_repeats
from toolkit.data.tables import Placed, read_table
from toolkit.errors import BadRows, InputError

Row = dict[str, Any]
OPENAI_PAD = 50259  # vocabulary size + 2, openai/lm-human-preferences language/encodings.py:56
COLUMN = re.compile(r"(?i:completion|sample|response|answer)[_ ]?(\d+)")
LETTERED = re.compile(r"(?i:completion|sample|response|answer)(?:[_ ]([a-z])|[_ ]?([A-Z]))")

KEPT = ("labeler", "source", "id", "tools", "chat_template_kwargs")
ALIGNED = ("ratings", "models", "contenders")  # one value for each completion
SCORES = ("overall_score", "fine-grained_score", "score")
UNSCORED = ("", "n/a", "na", "nan", "none", "null")
LABELS = ("best", "ranking", "scores", "margin", "labeler", "tools", "chat_template_kwargs")


@dataclass
class Reading:
    """What converters are told, and what they tell.

    Attributes:
        decode: token ids to text, for ``openai``.
        first: the number that the first completion has in ``best`` and ``ranking``; None for the
            format's own.
        noted: what was done to rows that were kept, and how often.
    """

    decode: Callable[[list[int]], str] | None = None
    first: int | None = None
    noted: Counter[str] = field(default_factory=Counter)


def convert(
    source: str | Path | Iterable[Placed],
    form: str | None = None,
    decode: Callable[[list[int]], str] | None = None,
    skip_invalid: bool = False,
    dropped: Counter[str] | None = None,
    first: int | None = None,
    repeated_prompt: str = "auto",
    noted: Counter[str] | None = None,
) -> Iterator[Row]:
    """Comparisons from rows, of one format in each file.

    ``source`` names file and line if nothing does.

    Args:
        source: what ``read_table`` reads, or rows with their places.
        form: a name of ``FORMATS``; None tells it from the fields of each file's first row.
        decode: token ids to text, for ``openai``.
        skip_invalid: count bad rows in ``dropped`` instead of refusing them.
        dropped: why rows made no comparison, and how many; filled as rows are read.
        first: the number that the first completion has in ``best`` and ``ranking``, 0 or 1; None
            for the number in its column's name, or 0.
        repeated_prompt: whether completions that begin with a text prompt repeat it: "auto" as at
            the top of this file, "cut" all that do, or "keep" all.
        noted: what was done to rows that were kept, and how often; filled as rows are read.

    Raises:
        InputError: bad rows (twenty shown, all counted; only once all are read), a format that
            cannot be told, or, even with ``skip_invalid``, labels that seem to count from another
            number.
    """
    dropped = Counter() if dropped is None else dropped
    reading = Reading(decode, first, Counter() if noted is None else noted)
    bad, numbering = BadRows(), Numbering()
    if isinstance(source, str | Path):
        source = read_table(source, "--input", bad.add)
    rows = tqdm(source, desc="Converting", unit="row", mininterval=1)

    for _, of_file in itertools.groupby(rows, lambda placed: file_of(placed[0])):
        read = _read(of_file, form, reading, skip_invalid, dropped, bad, numbering)
        for place, made in without_repeats(read, repeated_prompt, reading.noted, bad):
            if problems := problems_of(made, "best"):
                bad.add(*(f"{place}: {problem}" for problem in problems))
            else:
                yield made

    if not skip_invalid:
        bad.refuse(" (--skip_invalid goes on without them)")
    elif shifted := numbering.shifted():
        raise InputError(shifted, "first")
    if bad.count:
        dropped[f"bad, the first {bad.shown[0]}"] += bad.count
    if note := numbering.note():
        print(note)


def _read(
    rows: Iterable[Placed], form: str | None, reading: Reading, skip_invalid: bool,
    dropped: Counter[str], bad: BadRows, numbering: Numbering,
) -> Iterator[Placed]:  # fmt: skip
    """What the converter makes of a file's rows, before it is checked."""
    for place, row in rows:
        try:
            form = form or detect(row, place)
        except InputError as error:
            if not skip_invalid:
                raise
            bad.add(str(error))
            continue

        if form == "openai" and reading.decode is None:
            raise InputError("openai rows are token ids: give their --tokenizer", "tokenizer")
        try:
            _note_labels(numbering, place, row, form, reading)
            made = FORMATS[form](row, reading)
        except Dropped as reason:
            dropped[str(reason)] += 1
        except ValueError as error:
            bad.add(f"{place}: {error}")
        except (TypeError, KeyError, IndexError, AttributeError, OverflowError) as error:
            named = f"{error.args[0]} is missing" if isinstance(error, KeyError) else str(error)
            bad.add(f"{place}: {named} (is this a row of the format {form}?)")
        else:
            for name in (*KEPT, *ALIGNED):
                if not is_missing(row.get(name)):
                    made.setdefault(name, row[name])
            made = {name: value for name, value in made.items() if value is not None}
            made.setdefault("source", Path(place).name)
            yield place, made


def _note_labels(numbering: Numbering, place: str, row: Row, form: str, reading: Reading) -> None:
    """Tell ``numbering`` what a row's ``best`` and ``ranking`` say, where a number names them."""
    if reading.first is not None or form not in ("native", "columns", "openai"):
        return
    if form == "native":
        if not isinstance(row.get("completions"), list):
            return
        first, count = 0, len(row["completions"])
    else:
        known = _numbers(_columns(row))
        if not known or known != list(range(known[0], known[0] + len(known))):
            return
        first, count = known[0], len(known)
    ranking = row.get("ranking")
    labels = [row.get("best"), *(ranking if isinstance(ranking, list) else [])]
    numbering.see(place, map(as_index, labels), first, count)


def detect(row: Row, place: str) -> str:
    """The format that a row's fields speak of.

    Raises:
        InputError: none.
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
        return "openai" if ids else "columns"
    raise InputError(
        f"{place}: no format known by the fields {', '.join(sorted(map(str, names)))[:120]} (name "
        "them as one: prompt, completions, best; chosen, rejected; prompt, responses, rank; or "
        "prompt, sample0, sample1, best)", "format",
    )  # fmt: skip


# The formats


def from_native(row: Row, reading: Reading) -> Row:
    """Comparisons as they are; without ``best``, the highest of ``scores`` is."""
    made = {
        name: value for name, value in row.items()
        if value is not None and not (name in LABELS and is_missing(value))
    }  # fmt: skip
    if not isinstance(row.get("completions"), list):
        return made  # the check names what is wrong with it
    prompt, completions = _texts(row.get("prompt"), row["completions"], "completions", reading)
    made |= {"prompt": prompt, "completions": completions}

    known = list(range(len(completions)))
    if "best" in made:
        made["best"] = pick_of(row["best"], "best", known, [], completions, reading.first)
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
        raise ValueError(f"scores: none for completion {made['best']}, which is the best")
    if len(scored) < len(known):
        reading.noted["answers without a score left out"] += len(known) - len(scored)
        if len(scored) < 2:
            raise Dropped("fewer than two scored answers")
        made |= _only(made, scored, len(known))
    made["scores"] = [scores[k] for k in scored]
    return made if "best" in made else made | _best_by_score(made["scores"])


def _only(made: Row, kept: list[int], count: int) -> Row:
    """A native row's fields for those completions alone."""
    only: Row = {"completions": [made["completions"][k] for k in kept]} | _aligned(
        made, kept, count
    )
    if "best" in made:
        only["best"] = kept.index(made["best"])
    if "ranking" in made:
        only["ranking"] = [kept.index(k) for k in made["ranking"] if k in kept]
    return only


def from_pairs(row: Row, reading: Reading) -> Row:
    """TRL's pairs: with or without a prompt of their own, text, dialogue text or messages.

    Which of the two comes first is drawn by a hash of the texts, so that position tells nothing.
    """
    prompt = prompt_of(row)
    chosen, rejected = (unpacked(row[name], name) for name in ("chosen", "rejected"))
    if chosen == rejected:
        raise Dropped("chosen equals rejected")
    if isinstance(chosen, str) != isinstance(rejected, str):
        raise ValueError("chosen and rejected: one is text, the other is not")
    if isinstance(chosen, str):
        if prompt is None and HH_TURN.match(chosen) and HH_TURN.match(rejected):
            return _pair(*split_dialogues([hh_messages(chosen), hh_messages(rejected)]), row)
        if prompt is None:
            shared = os.path.commonprefix([chosen, rejected])
            cut = max(shared.rfind(" "), shared.rfind("\n"))
            if cut <= 0:
                raise ValueError("prompt: missing, and chosen and rejected begin otherwise")
            prompt, chosen, rejected = chosen[:cut], chosen[cut:], rejected[cut:]
        return _pair(prompt, [chosen, rejected], row)
    prompt, texts, repeated = from_dialogues(prompt, [chosen, rejected], ["chosen", "rejected"])
    reading.noted.update({CUT: 1} if repeated else {})
    return _pair(prompt, texts, row)


def _pair(prompt: Any, texts: list[str], row: Row) -> Row:
    chosen, rejected = texts
    digest = hashlib.blake2b(f"{chosen}\0{rejected}".encode("utf-8", "replace"), digest_size=1)
    best = digest.digest()[0] & 1
    completions = [rejected, chosen] if best else [chosen, rejected]
    made: Row = {"prompt": prompt, "completions": completions, "best": best}
    margin = _score(row.get("margin"), "margin")
    if margin is None:
        scores = [
            _score(row.get(f"score_{name}"), f"score_{name}") for name in ("chosen", "rejected")
        ]
        margin = None if None in scores else scores[0] - scores[1]  # type: ignore[operator]
    return made if margin is None else made | {"margin": margin}


def from_ranked(row: Row, reading: Reading) -> Row:
    """Ranked replies; one without a rank is left out, for nobody compared it."""
    replies = row.get("responses") or row.get("replies") or row["completions"]
    if len(row["rank"]) != len(replies):
        raise ValueError(f"rank: {len(row['rank'])} of them for {len(replies)} replies")
    ranks = [_score(rank, f"rank[{k}]") for k, rank in enumerate(row["rank"])]
    named = [k for k, rank in enumerate(ranks) if rank is not None]
    if len(named) < 2:
        raise Dropped("fewer than two ranked replies")
    if len(named) < len(ranks):
        reading.noted["replies without a rank left out"] += len(ranks) - len(named)
    prompt, texts = _texts(prompt_of(row), [replies[k] for k in named], "responses", reading)
    made = {"prompt": prompt, "completions": texts} | _aligned(row, named, len(replies))
    return made | _by_rank([ranks[k] for k in named])


def _by_rank(ranks: list[Any]) -> Row:
    if len(set(ranks)) < len(ranks):
        raise Dropped("two replies of one rank")
    ranking = sorted(range(len(ranks)), key=ranks.__getitem__)
    return {"best": ranking[0], "ranking": ranking}


def from_scored(row: Row, reading: Reading) -> Row:
    """Completions with a score each: the best by score; a tie at the top makes no comparison.

    An answer without a score is left out. So is one to which UltraFeedback gives 10 overall and 2
    or less in the mean of its finer ratings: its ratings of 1 became 10 by a mistake
    (github.com/OpenBMB/UltraFeedback, issue 8).
    """
    answers = row["completions"]
    name = next((n for n in SCORES if any(n in answer for answer in answers)), None)
    if name is None:
        raise ValueError(f"completions[0]: no {' or '.join(SCORES)} in it")

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


def _answer_text(answer: Row) -> Any:
    return next((answer[n] for n in ("response", "text", "content") if answer.get(n)), None)


def _best_by_score(scores: Sequence[float | None]) -> Row:
    numbers = [float(score) for score in scores]  # type: ignore[arg-type]
    ranking = sorted(range(len(numbers)), key=lambda k: -numbers[k])
    if len(numbers) > 1 and numbers[ranking[0]] == numbers[ranking[1]]:
        raise Dropped("a tie at the top")
    made: Row = {"best": ranking[0], "scores": list(scores)}
    return made | ({"ranking": ranking} if len(set(numbers)) == len(numbers) else {})


def from_columns(row: Row, reading: Reading) -> Row:
    """One completion a column; ``best`` is the number, letter or name of a column."""
    columns = _columns(row)
    known = _numbers(columns)
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
        if None not in ranks:
            made["ranking"] = _by_rank(ranks)["ranking"]

    margin = _score(row.get("margin"), "margin")
    return made if margin is None else made | {"margin": margin}


def from_openai(row: Row, reading: Reading) -> Row:
    """Token ids back to text; padding is dropped."""
    assert reading.decode is not None
    texts = {}
    for name in ("query", *_columns(row)):
        ids = row[name]
        if not isinstance(ids, list) or not all(type(i) is int and i >= 0 for i in ids):
            raise ValueError(f"{name}: {ids!r:.40}, but must be a list of token ids")
        texts[name] = reading.decode([i for i in ids if i != OPENAI_PAD])
    return from_columns(row | texts, reading)


# Fields that several formats have


def _score(value: Any, name: str) -> float | None:
    """A number, or None where there is none: null, NaN, an empty text or N/A."""
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
    """The fields with a value for each of ``count`` completions, for those that are kept."""
    lists = {name: row[name] for name in ALIGNED if isinstance(row.get(name), list)}
    if len(kept) == count:
        return lists
    return {
        name: [values[k] for k in kept] if len(values) == count else None
        for name, values in lists.items()
    }


def _columns(row: Row) -> list[str]:
    """The names of the columns that hold completions, by their numbers or letters."""
    names = [name for name in row if isinstance(name, str)]
    numbered = {name: int(match[1]) for name in names if (match := COLUMN.fullmatch(name))}
    if numbered:
        if len(set(numbered.values())) < len(numbered):
            raise ValueError(f"two columns of one number among {', '.join(numbered)}")
        return sorted(numbered, key=numbered.__getitem__)
    matches = [match for name in names if (match := LETTERED.fullmatch(name))]
    lettered = {match[0]: (match[1] or match[2]).upper() for match in matches}
    if len(set(lettered.values())) < len(lettered):
        raise ValueError(f"two columns of one letter among {', '.join(lettered)}")
    return sorted(lettered, key=lettered.__getitem__)


def _numbers(columns: list[str]) -> list[int]:
    """The numbers in the columns' names; none where they have letters."""
    return [int(match[1]) for name in columns if (match := COLUMN.fullmatch(name))]


def _texts(
    prompt: Any, completions: list[Any], name: str, reading: Reading
) -> tuple[Any, list[Any]]:
    """Completions as text, and the prompt before them; text stays as it is."""
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


def with_space(row: Row) -> Row:
    """The row with a space before each completion of a text prompt, where there is none."""
    if not isinstance(row["prompt"], str) or row["prompt"][-1:].isspace():
        return row
    spaced = [text if text[:1].isspace() else f" {text}" for text in row["completions"]]
    return row | {"completions": spaced}


def to_pairs(row: Row) -> list[Row]:
    """A comparison as TRL's preference pairs: its best against each of the others.

    Rows with messages become conversational ones. ``group`` is a hash of the prompt: a split by
    group tears no comparison, and no prompt, apart. ``margin`` is there where scores are and agree
    with the pick.
    """
    chat = not isinstance(row["prompt"], str)
    group = hashlib.blake2b(json.dumps(row["prompt"]).encode(), digest_size=8).hexdigest()
    pairs = []
    for k, completion in enumerate(row["completions"]):
        if k == row["best"] or completion == row["completions"][row["best"]]:
            continue
        texts = {"chosen": row["completions"][row["best"]], "rejected": completion}
        pair: Row = {"prompt": row["prompt"]}
        for name, text in texts.items():
            pair[name] = [{"role": "assistant", "content": text}] if chat else text
        pair |= {
            name: row[name]
            for name in ("tools", "chat_template_kwargs") if row.get(name) is not None
        }  # fmt: skip
        pair["group"] = group
        if row.get("scores") is not None and row["scores"][row["best"]] == max(row["scores"]):
            pair["margin"] = round(row["scores"][row["best"]] - row["scores"][k], 6)
        pairs.append(pair)
    return pairs


def load_decoder(name: str) -> Callable[[list[int]], str]:
    """Token ids to text by a tokenizer's files.

    Args:
        name: a folder with tokenizer.json, or with encoder.json (or vocab.json) and vocab.bpe (or
            merges.txt), GPT-2's byte-level BPE; or a tokenizer's id on the Hub.

    Raises:
        InputError: no tokenizer there; decoding raises it for an id that the vocabulary lacks.
    """
    folder = Path(name)
    pairs = [("encoder.json", "vocab.bpe"), ("vocab.json", "merges.txt")]
    try:
        if (folder / "tokenizer.json").is_file():
            tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        elif folder.is_dir():
            files = [(folder / v, folder / m) for v, m in pairs]
            found = next(((v, m) for v, m in files if v.is_file() and m.is_file()), None)
            if found is None:
                raise InputError(
                    f"tokenizer: {name}: neither tokenizer.json nor encoder.json and vocab.bpe "
                    "in it", "tokenizer",
                )  # fmt: skip
            tokenizer = _byte_level(*found)
        else:
            tokenizer = Tokenizer.from_pretrained(name)
    except InputError:
        raise
    except Exception as error:  # tokenizers raises bare Exceptions
        reason = str(error).split("\n")[0]
        raise InputError(f"tokenizer: {name}: not loaded: {reason}", "tokenizer") from None
    size = tokenizer.get_vocab_size()

    def decode(ids: list[int]) -> str:
        if ids and max(ids) >= size:
            raise ValueError(f"token id {max(ids)}, but the tokenizer has {size}")
        return tokenizer.decode(ids, skip_special_tokens=False)

    return decode


def _byte_level(vocabulary: Path, merges: Path) -> Tokenizer:
    from tokenizers import decoders, models, pre_tokenizers

    tokenizer = Tokenizer(models.BPE.from_file(str(vocabulary), str(merges)))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer
