"""ROUGE: how many words, pairs of words and subsequences a text shares with a person's.

    rouge_n(words("police kill the gunman"), words("police killed the gunman"), 2)  # f 1/3
    rouge_l(...)     the longest common subsequence
    rouge_lsum(...)  the same over sentences: the union of a sentence's subsequences

Source: C.-Y. Lin, ROUGE, 2004 (aclanthology.org/W04-1013), sections 2 and 3. Words are lower-case
runs of letters and digits; nothing is stemmed, and no word is left out. On ASCII text the figures
are those of google-research's ``rouge_score`` 0.1.2 without its stemmer. That one drops letters
outside ASCII ("café" is "caf" to it), which are kept here. A script without blanks between words
(Chinese, Thai) gives one word for each run of letters, so that nearly nothing is shared there.
"""

import re
import unicodedata
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

from toolkit.evaluation.result import Rouge
from toolkit.maths.statistics import mean_and_error

MARKS = ("Mn", "Mc")  # categories of accents and vowel signs, which belong to the letter before


class Overlap(NamedTuple):
    """The share of the candidate that is in the reference, of the reference that is in the
    candidate, and their harmonic mean."""

    precision: float
    recall: float
    f: float


def words(text: str) -> list[str]:
    """Return the lower-case runs of letters and digits of a text.

    A letter with its accent is one letter, however it was typed (Unicode's NFC), and a sign of its
    own, such as a vowel's in Hindi, does not end a word.
    """
    kept, inside = [], False
    for sign in unicodedata.normalize("NFC", text.lower()):
        inside = sign.isalnum() or (inside and unicodedata.category(sign) in MARKS)
        kept.append(sign if inside else " ")
    return "".join(kept).split()


def overlap(hits: int, candidate: int, reference: int) -> Overlap:
    """Return precision, recall and F of so many hits; all are 0 if a side is empty."""
    precision = hits / candidate if candidate else 0.0
    recall = hits / reference if reference else 0.0
    total = precision + recall
    return Overlap(precision, recall, 2 * precision * recall / total if total else 0.0)


def rouge_n(candidate: Sequence[str], reference: Sequence[str], n: int) -> Overlap:
    """Compare the n-grams of two texts; each counts as often as it is in both."""
    ours, theirs = (
        Counter(tuple(tokens[i : i + n]) for i in range(len(tokens) - n + 1))
        for tokens in (candidate, reference)
    )
    return overlap((ours & theirs).total(), ours.total(), theirs.total())


def rouge_l(candidate: Sequence[str], reference: Sequence[str]) -> Overlap:
    """Compare two texts by their longest common subsequence."""
    hits = _lengths(reference, candidate)[-1][-1]
    return overlap(hits, len(candidate), len(reference))


def rouge_lsum(candidates: Sequence[Sequence[str]], references: Sequence[Sequence[str]]) -> Overlap:
    """Compare two texts sentence by sentence.

    For each sentence of the reference, the words that are in its longest common subsequence with
    any sentence of the candidate are hits, each at most as often as either text has it.

    Source: Lin 2004, section 3.2, and rouge_score/rouge_scorer.py: _summary_level_lcs.
    """
    left = Counter(word for sentence in candidates for word in sentence)
    there = Counter(word for sentence in references for word in sentence)
    sizes = left.total(), there.total()

    hits = 0
    for sentence in references:
        union: set[int] = set()
        for other in candidates:
            union |= _common(sentence, other)
        for word in (sentence[i] for i in sorted(union)):
            if left[word] > 0 and there[word] > 0:
                left[word] -= 1
                there[word] -= 1
                hits += 1
    return overlap(hits, *sizes)


def sentences(text: str) -> list[list[str]]:
    """Return the words of each sentence, which ends at . ! ? or with its line, for Lsum."""
    found = (words(part) for part in re.split(r"[.!?\n]", text))
    return [sentence for sentence in found if sentence]


def rouge(candidates: Sequence[str], references: Sequence[str]) -> Rouge:
    """Return the means over texts of F, with the standard error of R-AVG.

    R-AVG is the mean of ROUGE-1, -2 and -L (Ziegler et al. 2019, arXiv 1909.08593, table 2).

    Args:
        candidates, references: texts in the same order, at least one.
    """
    rows = []
    for candidate, reference in zip(candidates, references, strict=True):
        ours, theirs = words(candidate), words(reference)
        rows.append(
            (
                rouge_n(ours, theirs, 1).f,
                rouge_n(ours, theirs, 2).f,
                rouge_l(ours, theirs).f,
                rouge_lsum(sentences(candidate), sentences(reference)).f,
            )
        )

    columns = zip(*rows, strict=True)
    first, second, longest, by_sentence = (sum(column) / len(rows) for column in columns)
    average, error = mean_and_error([sum(row[:3]) / 3 for row in rows])
    return Rouge(
        rouge_1=first,
        rouge_2=second,
        rouge_l=longest,
        rouge_lsum=by_sentence,
        average=average,
        average_error=error,
    )


def _lengths(a: Sequence[str], b: Sequence[str]) -> list[list[int]]:
    """Return the table (len(a) + 1, len(b) + 1) of the longest common subsequences' lengths."""
    table = [[0] * (len(b) + 1)]
    for word in a:
        above, row = table[-1], [0]
        for j, other in enumerate(b):
            row.append(above[j] + 1 if word == other else max(above[j + 1], row[j]))
        table.append(row)
    return table


def _common(a: Sequence[str], b: Sequence[str]) -> set[int]:
    """Return the places in ``a`` of its longest common subsequence with ``b``.

    Of several such subsequences, this takes the one that ``rouge_score`` takes.
    """
    table, i, j = _lengths(a, b), len(a), len(b)
    places = set()
    while i and j:
        if a[i - 1] == b[j - 1]:
            i, j = i - 1, j - 1
            places.add(i)
        elif table[i][j - 1] > table[i - 1][j]:
            j -= 1
        else:
            i -= 1
    return places
