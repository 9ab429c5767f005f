"""Other people's files to comparisons, and comparisons to TRL's preference pairs.

    format     a row of it
    native     prompt, completions, best (data.comparisons), or scores in best's place
    pairs      chosen, rejected and perhaps prompt: TRL's, text or messages; HH's dialogue text
    ranked     prompt, responses, rank (rank of each response, the lowest is the best): OASST
    scored     prompt or instruction, completions: [{response, overall_score}, ...]: UltraFeedback
    columns    prompt or query, completion0 .. or sample0 .., best: text, as in CSV files
    openai     query, sample0 .., best: token ids, padded with 50259

Each converter takes a row and gives a comparison; ``Dropped`` says why a sound row makes none (a
tie, say), ValueError what is wrong with it.
"""

import hashlib
import json
import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer
from tqdm.auto import tqdm

from toolkit.data.comparisons import problems_of
from toolkit.data.sources import Placed, read_table
from toolkit.errors import BadRows, InputError

Row = dict[str, Any]
OPENAI_PAD = 50259  # vocabulary size + 2, openai/lm-human-preferences language/encodings.py:56
COLUMN = re.compile(r"(?:completion|sample|response|answer)[_ ]?(\d+)")
HH_TURN = re.compile(r"\n\n(Human|Assistant): ?")
KEPT = ("labeler", "source", "ratings", "models", "id")


class Dropped(Exception):
    """A sound row that makes no comparison; the message says why, the same for all of a kind."""


def convert(
    source: str | Path | Iterable[Placed],
    form: str | None = None,
    decode: Callable[[list[int]], str] | None = None,
    skip_invalid: bool = False,
    dropped: Counter[str] | None = None,
) -> Iterator[Row]:
    """Comparisons from rows of any one format; ``source`` names file and line if nothing does.

    Args:
        source: what ``read_table`` reads, or rows with their places.
        form: a name of ``FORMATS``; None tells it from the first row's fields.
        decode: token ids to text, for ``openai``.
        skip_invalid: count bad rows in ``dropped`` instead of refusing them.
        dropped: why rows made no comparison, and how many; filled as rows are read.

    Raises:
        InputError: bad rows (twenty shown, all counted; only once all are read), or a format that
            cannot be told.
    """
    dropped = Counter() if dropped is None else dropped
    bad = BadRows()
    if isinstance(source, str | Path):
        source = read_table(source, "--input", bad.add)
    for place, row in tqdm(source, desc="Converting", unit="row", mininterval=1):
        form = form or detect(row, place)
        try:
            if form == "openai" and decode is None:
                raise InputError("openai rows are token ids: give their --tokenizer", "tokenizer")
            made = FORMATS[form](row, decode)
            made |= {name: row[name] for name in KEPT if row.get(name) is not None}
            made.setdefault("source", Path(place).name)
            problems = problems_of(made, "best")
        except Dropped as reason:
            dropped[str(reason)] += 1
            continue
        except InputError:
            raise
        except (ValueError, TypeError, KeyError, IndexError, AttributeError) as error:
            named = f"{error.args[0]} is missing" if isinstance(error, KeyError) else str(error)
            problems = [f"{named} (is this a row of the format {form}?)"]
        if problems:
            bad.add(*(f"{place}: {problem}" for problem in problems))
            continue
        yield made
    if not skip_invalid:
        bad.refuse(" (--skip_invalid goes on without them)")
    if bad.count:
        dropped[f"bad, the first {bad.shown[0]}"] += bad.count


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
        return "scored"
    if "completions" in names:
        return "native"
    if any(COLUMN.fullmatch(name) for name in names):
        query = row.get("query")
        ids = isinstance(query, list) and query and isinstance(query[0], int)
        return "openai" if ids else "columns"
    raise InputError(
        f"{place}: no format known by the fields {', '.join(sorted(map(str, names)))[:120]} (name "
        "them as one: prompt, completions, best; chosen, rejected; prompt, responses, rank; or "
        "prompt, sample0, sample1, best)", "format",
    )  # fmt: skip


def from_native(row: Row, decode: Any = None) -> Row:
    """Comparisons as they are; without ``best``, the highest of ``scores`` is."""
    if row.get("best") is None and row.get("scores") is not None:
        return row | _best_by_score(row["scores"])
    return {name: value for name, value in row.items() if value is not None}


def from_pairs(row: Row, decode: Any = None) -> Row:
    """TRL's pairs: with or without a prompt of their own, text, dialogue text or messages.

    Which of the two comes first is drawn by a hash of the texts, so that position tells nothing.
    """
    chosen, rejected, prompt = row["chosen"], row["rejected"], row.get("prompt")
    if chosen == rejected:
        raise Dropped("chosen equals rejected")
    if isinstance(chosen, str) and isinstance(rejected, str):
        if prompt is None and HH_TURN.match(chosen) and HH_TURN.match(rejected):
            return _pair(*_split_messages(_hh_messages(chosen), _hh_messages(rejected)), row)
        if prompt is None:
            shared = os.path.commonprefix([chosen, rejected])
            cut = max(shared.rfind(" "), shared.rfind("\n"))
            if cut <= 0:
                raise ValueError("prompt: missing, and chosen and rejected begin otherwise")
            prompt, chosen, rejected = chosen[:cut], chosen[cut:], rejected[cut:]
        return _pair(prompt, chosen, rejected, row)
    if isinstance(prompt, list):
        chosen, rejected = prompt + chosen, prompt + rejected
    return _pair(*_split_messages(chosen, rejected), row)


def _pair(prompt: Any, chosen: str, rejected: str, row: Row) -> Row:
    digest = hashlib.blake2b(f"{chosen}\0{rejected}".encode("utf-8", "replace"), digest_size=1)
    best = digest.digest()[0] & 1
    completions = [rejected, chosen] if best else [chosen, rejected]
    made: Row = {"prompt": prompt, "completions": completions, "best": best}
    margin = row.get("margin")
    if margin is None and row.get("score_chosen") is not None:
        margin = row["score_chosen"] - row["score_rejected"]
    return made if margin in (None, "") else made | {"margin": float(margin)}


def _hh_messages(text: str) -> list[dict[str, str]]:
    parts = HH_TURN.split(text)[1:]
    roles = {"Human": "user", "Assistant": "assistant"}
    return [
        {"role": roles[who], "content": said.strip()}
        for who, said in zip(parts[::2], parts[1::2], strict=True)
    ]


def _split_messages(
    chosen: list[dict[str, str]], rejected: list[dict[str, str]]
) -> tuple[list[dict[str, str]], str, str]:
    if chosen == rejected:
        raise Dropped("chosen equals rejected")
    if chosen[:-1] != rejected[:-1]:
        raise Dropped("the dialogues differ before their last turn")
    if chosen[-1]["role"] != "assistant" or rejected[-1]["role"] != "assistant":
        raise Dropped("the last turn is not the assistant's")
    texts = chosen[-1]["content"], rejected[-1]["content"]
    if not all(text.strip() for text in texts):
        raise Dropped("an empty completion")
    return chosen[:-1], *texts


def from_ranked(row: Row, decode: Any = None) -> Row:
    """Ranked replies; one without a rank is left out, for nobody compared it."""
    replies = row.get("responses") or row.get("replies") or row["completions"]
    if len(row["rank"]) != len(replies):
        raise ValueError(f"rank: {len(row['rank'])} of them for {len(replies)} replies")
    ranks = [None if rank is None else float(rank) for rank in row["rank"]]
    named = [k for k, rank in enumerate(ranks) if rank is not None and rank == rank]  # no NaN
    if len(named) < 2:
        raise Dropped("fewer than two ranked replies")
    return {"prompt": row["prompt"], "completions": [replies[k] for k in named]} | _by_rank(
        [ranks[k] for k in named]
    )


def _by_rank(ranks: list[Any]) -> Row:
    if len(set(ranks)) < len(ranks):
        raise Dropped("two replies of one rank")
    ranking = sorted(range(len(ranks)), key=ranks.__getitem__)
    return {"best": ranking[0], "ranking": ranking}


def from_scored(row: Row, decode: Any = None) -> Row:
    """Completions with a score each: the best by score; a tie at the top makes no comparison."""
    answers = row["completions"]
    prompt = row.get("prompt") or row.get("instruction")
    names = ("overall_score", "fine-grained_score", "score")
    name = next((n for n in names if answers and n in answers[0]), None)
    if name is None:
        raise ValueError(f"completions[0]: no {' or '.join(names)} in it")
    scores = [float(answer[name]) for answer in answers]
    texts = [answer.get("response") or answer.get("text") for answer in answers]
    made = {"prompt": prompt, "completions": texts} | _best_by_score(scores)
    if all("model" in answer for answer in answers):
        made["models"] = [answer["model"] for answer in answers]
    return made


def _best_by_score(scores: list[float]) -> Row:
    ranking = sorted(range(len(scores)), key=lambda k: -scores[k])
    if len(scores) > 1 and scores[ranking[0]] == scores[ranking[1]]:
        raise Dropped("a tie at the top")
    made: Row = {"best": ranking[0], "scores": scores}
    return made | ({"ranking": ranking} if len(set(scores)) == len(scores) else {})


def from_columns(row: Row, decode: Any = None) -> Row:
    """One completion a column; ``best`` is the number in a column's name."""
    numbers = _numbered(row)
    best = row["best"]
    if isinstance(best, str):
        if not best.strip().isdigit():
            raise ValueError(f"best: {best!r:.40}, but must be the number of a column")
        best = int(best)
    if best not in numbers:
        raise ValueError(f"best: {best!r:.40}, but the completions are {sorted(numbers)}")
    order = sorted(numbers)
    prompt = row.get("query") or row.get("prompt")
    made: Row = {
        "prompt": prompt, "completions": [row[numbers[n]] for n in order],
        "best": order.index(best),
    }  # fmt: skip
    if row.get("mean_rating") is not None:
        made["scores"] = row["mean_rating"]
    if isinstance(row.get("rank"), list) and len(row["rank"]) == len(order):
        made |= {"ranking": _by_rank([float(rank) for rank in row["rank"]])["ranking"]}
    margin = row.get("margin")
    if margin not in (None, ""):
        made["margin"] = float(margin)
    return made


def from_openai(row: Row, decode: Callable[[list[int]], str]) -> Row:
    """Token ids back to text; padding is dropped."""
    texts = {}
    for name in ("query", *_numbered(row).values()):
        ids = row[name]
        if not isinstance(ids, list) or not all(type(i) is int and i >= 0 for i in ids):
            raise ValueError(f"{name}: {ids!r:.40}, but must be a list of token ids")
        texts[name] = decode([i for i in ids if i != OPENAI_PAD])
    return from_columns(row | texts)


def _numbered(row: Row) -> dict[int, str]:
    matches = [match for name in row if (match := COLUMN.fullmatch(name))]
    numbers = {int(match[1]): match[0] for match in matches}
    if len(numbers) < len(matches):
        raise ValueError(f"two columns of one number among {', '.join(m[0] for m in matches)}")
    return numbers


FORMATS: dict[str, Callable[[Row, Any], Row]] = {
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
