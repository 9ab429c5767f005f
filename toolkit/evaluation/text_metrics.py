"""Measure completions without a judge: diversity, repetition, length, copying."""

import re
from collections import Counter
from collections.abc import Sequence

from toolkit.evaluation.result import Copying, TextMeasures

WORD = re.compile(r"\w+(?:'\w+)?")
SENTENCE = re.compile(r"[^.!?\n]+[.!?]*")
OPENING = 5  # number of words in a copied opening
PREAMBLE = ("hi", "hello", "hey", "ok", "okay", "so")  # first words that say nothing yet
PLACES = 3  # sentences of a text whose copies are counted one by one


def words(text: str) -> list[str]:
    """Split a text into lower-case words without punctuation."""
    return WORD.findall(text.lower())


def ngrams(tokens: Sequence[str], n: int) -> list[tuple[str, ...]]:
    """Return all runs of n words in order."""
    return [tuple(tokens[i : i + n]) for i in range(len(tokens) - n + 1)]


def distinct(texts: Sequence[str], n: int) -> float:
    """Return the number of different n-grams over all n-grams of all texts; 0 without n-grams.

    Source: J. Li et al., arXiv 1510.03055, section 5.1. The value falls with the amount of text, so
    compare only equal amounts.
    """
    counts = Counter(gram for text in texts for gram in ngrams(words(text), n))
    return len(counts) / counts.total() if counts else 0.0


def repetition(text: str, n: int = 3) -> float:
    """Return the share of a text's n-grams that occurred before; 0 if it is shorter than n."""
    grams = ngrams(words(text), n)
    return 1 - len(set(grams)) / len(grams) if grams else 0.0


def sentences(text: str) -> list[tuple[str, ...]]:
    """Return the sentences as tuples of words, without empty ones."""
    found = (tuple(words(s)) for s in SENTENCE.findall(text))
    return [s for s in found if s]


def new_sentences(prompt: str, completion: str) -> tuple[int, int]:
    """Count the completion's sentences that are not in the prompt, and all its sentences.

    Ziegler et al. 2019 (arXiv 1909.08593, section 4.3) call this novelty.
    """
    known = set(sentences(prompt))
    own = sentences(completion)
    return sum(s not in known for s in own), len(own)


def copies_opening(prompt: str, completion: str) -> bool:
    """Whether the first ``OPENING`` words of the completion and of the prompt are the same."""
    ours, theirs = words(completion)[:OPENING], words(prompt)[:OPENING]
    return len(ours) == OPENING and ours == theirs


def has_preamble(text: str) -> bool:
    """Whether a text begins with hi, hello, hey, ok, okay or so, or has a colon in three words.

    Source: openai.com/index/fine-tuning-gpt-2, on arXiv 1909.08593: a policy that copies the start
    of a text should not do so here. Every colon counts, that of "At 3:30 we" too.
    """
    first = words(text)[:1]
    begun = " ".join(text.split()[:3])
    return ":" in begun or (bool(first) and first[0] in PREAMBLE)


def copying(sources: Sequence[str], completions: Sequence[str]) -> Copying:
    """Find out where completions copy the texts that they sum up.

    A sentence is copied if it has the words of one of the text, whatever their case and the marks
    between them; it is taken to be the first such sentence of the text.
    """
    openings: dict[bool, list[bool]] = {True: [], False: []}
    places = [0] * (PLACES + 1)
    depths: list[float] = []

    for source, completion in zip(sources, completions, strict=True):
        openings[has_preamble(source)].append(copies_opening(source, completion))
        known = sentences(source)
        for sentence in sentences(completion):
            if sentence in known:
                place = known.index(sentence)
                places[min(place, PLACES)] += 1
                depths.append(place / max(1, len(known) - 1))

    shares = {begun: sum(row) / len(row) if row else None for begun, row in openings.items()}
    return Copying(
        with_preamble=len(openings[True]),
        opening_plain=shares[False],
        opening_preamble=shares[True],
        copied=len(depths),
        places=places,
        mean_place=sum(depths) / len(depths) if depths else None,
    )


def copied_share(prompt: str, completion: str, n: int = 3) -> float:
    """Return the share of the completion's n-grams that are in the prompt."""
    known = set(ngrams(words(prompt), n))
    grams = ngrams(words(completion), n)
    return sum(g in known for g in grams) / len(grams) if grams else 0.0


def describe(prompts: Sequence[str], completions: Sequence[str]) -> TextMeasures:
    """Compute all measures of one contender's completions; means are over completions."""
    count = len(completions)
    pairs = list(zip(prompts, completions, strict=True))
    new = [new_sentences(p, c) for p, c in pairs]
    total = sum(n for _, n in new)

    return TextMeasures(
        words=sum(len(words(c)) for c in completions) / count,
        distinct_1=distinct(completions, 1),
        distinct_2=distinct(completions, 2),
        repetition=sum(map(repetition, completions)) / count,
        unique=len(set(completions)) / count,
        new_sentences=sum(n for n, _ in new) / total if total else 0.0,
        copied_3grams=sum(copied_share(p, c) for p, c in pairs) / count,
        copies_opening=sum(copies_opening(p, c) for p, c in pairs) / count,
    )
