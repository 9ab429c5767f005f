"""Text completions that begin with their prompt: they repeat it, or they only seem to.

The rule for a row in which every completion begins with the prompt, ending at the end of a word:

    a prompt of 3 words, or 20 characters    is repeated, and is cut off
    a shorter prompt ("Yes")                 may begin an answer by chance. Other rows decide: it is
                                             cut off if the file's longer prompts are repeated, or
                                             if the file repeats ten different short prompts and has
                                             no others; it is kept if they are not; the row is
                                             refused if no other row can tell


A row in which one completion begins with the prompt and another does not is refused, unless the
prompt is short, or such rows are so few that they must be answers that echo a question.
"""

import itertools
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from toolkit.data.records import Placed, Row
from toolkit.errors import BadRows

REPEATED = ("auto", "cut", "keep")
HEAD = 1000  # rows of a file that decide how its short prompts are treated
LONG_WORDS, LONG_TEXT = 3, 20
FEW_PROMPTS = 10
ECHO_ROWS, ECHO_SHARE = 20, 0.05
CUT = "rows whose completions repeat the prompt, which was cut off there"


@dataclass(frozen=True)
class Habit:
    """Whether a file's completions repeat text prompts, judged by its first ``HEAD`` rows.

    Attributes:
        rule: auto, cut or keep.
        repeats: whether completions repeat the prompt; None if the file cannot tell.
        echoes: whether a row in which only one completion begins with the prompt is an answer
            that echoes it: no row repeats the prompt in all completions, and few do in one.
    """

    rule: str
    repeats: bool | None
    echoes: bool

    @classmethod
    def of(cls, rows: list[Row], rule: str) -> "Habit":
        """Determine the habit of these rows."""
        long, short = Counter[str](), Counter[str]()
        whole_prompts = set()
        for row in rows:
            kind = _kind(row)
            if kind is None:
                continue
            (long if _is_long(row["prompt"]) else short)[kind] += 1
            if kind == "whole":
                whole_prompts.add(row["prompt"])

        repeats: bool | None = None
        if long["whole"] or long["none"]:
            repeats = long["whole"] > long["none"]
        elif short["none"]:
            repeats = False
        elif len(whole_prompts) >= FEW_PROMPTS:
            repeats = True
        count = sum(long.values())
        few = count >= ECHO_ROWS and long["half"] <= ECHO_SHARE * count
        return cls(rule, repeats, few and not long["whole"])

    def verdict(self, row: Row) -> str:
        """What to do with a row: keep, cut, echo (keep, with a note), or refuse (half, unsure)."""
        kind = _kind(row)
        if kind in (None, "none") or self.rule == "keep":
            return "keep"
        if self.rule == "cut":
            return "cut" if kind == "whole" else "half"
        if _is_long(row["prompt"]):
            if kind == "whole":
                return "cut"
            return "echo" if self.echoes else "half"
        if kind == "whole":
            return {True: "cut", False: "keep", None: "unsure"}[self.repeats]
        return "half" if self.repeats else "keep"


def _is_long(prompt: str) -> bool:
    """Whether a prompt is too long for an answer to begin with it by chance."""
    return len(prompt.split()) >= LONG_WORDS or len(prompt.strip()) >= LONG_TEXT


def _kind(row: Row) -> str | None:
    """Whether whole, half or none of the completions begin with the prompt; None for messages."""
    prompt, completions = row.get("prompt"), row.get("completions")
    if not isinstance(prompt, str) or not prompt.strip() or not isinstance(completions, list):
        return None
    if not completions or not all(isinstance(text, str) for text in completions):
        return None
    if None not in [_rest(prompt, text) for text in completions]:
        return "whole"
    return "half" if any(_begins(prompt, text) for text in completions) else "none"


def _begins(prompt: str, text: str) -> bool:
    """Whether a text begins with the prompt itself, without a space before it as in an echo."""
    spaced = text[:1].isspace() and not prompt[:1].isspace()
    return not spaced and _rest(prompt, text) is not None


def _rest(prompt: str, text: str) -> str | None:
    """Return what follows the prompt in a text; None if the text does not begin with it."""
    start, text = prompt.strip(), text.lstrip()
    if not text.startswith(start):
        return None
    rest = text[len(start) :]
    return None if rest and _in_word(start[-1], rest[0]) else rest


def _in_word(before: str, after: str) -> bool:
    """Whether two characters belong to one word, in a script that separates words by spaces."""
    return before.isalnum() and after.isalnum() and max(before, after) < "\u2e80"


def _cut(row: Row) -> Row:
    """Cut the prompt from the row's completions; joined, prompt and rest stay the same text."""
    prompt = row["prompt"]
    start = prompt.rstrip()
    space = prompt[len(start) :]
    texts = [str(_rest(prompt, text)) for text in row["completions"]]
    if not all(text.startswith(space) for text in texts):
        return row | {"prompt": start, "completions": texts}
    return row | {"completions": [text[len(space) :] for text in texts]}


def without_repeats(
    rows: Iterable[Placed], rule: str, noted: Counter[str], bad: BadRows
) -> Iterator[Placed]:
    """Yield a file's rows, cutting repeated prompts from completions; half repeats are bad."""
    rows = iter(rows)
    head = list(itertools.islice(rows, HEAD))
    habit = Habit.of([row for _, row in head], rule)

    for place, row in itertools.chain(head, rows):
        verdict = habit.verdict(row)
        if verdict == "cut":
            noted[CUT] += 1
            row = _cut(row)
        elif verdict == "echo":
            noted["rows with an answer that echoes the prompt, kept as it is"] += 1
        elif verdict == "half":
            by_begin = {_begins(row["prompt"], text): text for text in row["completions"]}
            bad.add(
                f"{place}: completions: {by_begin[True]!r:.40} repeats the prompt, but "
                f"{by_begin[False]!r:.40} does not (correct one, or pass --repeated_prompt keep)"
            )
            continue
        elif verdict == "unsure":
            bad.add(
                f"{place}: prompt: {row['prompt']!r:.40} begins each completion, but is too short "
                "to tell whether they repeat it (pass --repeated_prompt cut, or keep)"
            )
            continue
        yield place, row
