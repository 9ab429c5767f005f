"""What can be counted in completions without a judge: diversity, repetition, length, copying."""

import re
from collections import Counter
from collections.abc import Sequence

from toolkit.evaluation.result import TextMeasures

WORD = re.compile(r"\w+(?:'\w+)?")
SENTENCE = re.compile(r"[^.!?\n]+[.!?]*")
OPENING = 5  # words of a completion that make a copied opening


def words(text: str) -> list[str]:
    """Lower-case words, without punctuation."""
    return WORD.findall(text.lower())


def ngrams(tokens: Sequence[str], n: int) -> list[tuple[str, ...]]:
    """All runs of n words, in order."""
    return [tuple(tokens[i : i + n]) for i in range(len(tokens) - n + 1)]


def distinct(texts: Sequence[str], n: int) -> float:
    """Different n-grams over all n-grams of all texts together; 0 where there are none.

    Source: J. Li et al., arXiv 1510.03055, section 5.1. It falls with the amount of text, so only
    equal amounts can be compared.
    """
    counts = Counter(gram for text in texts for gram in ngrams(words(text), n))
    return len(counts) / counts.total() if counts else 0.0


def repetition(text: str, n: int = 3) -> float:
    """Share of a text's n-grams that it has had before; 0 where it is shorter than n."""
    grams = ngrams(words(text), n)
    return 1 - len(set(grams)) / len(grams) if grams else 0.0


def sentences(text: str) -> list[tuple[str, ...]]:
    """Sentences as tuples of words; those without a word are none."""
    found = (tuple(words(s)) for s in SENTENCE.findall(text))
    return [s for s in found if s]


def new_sentences(prompt: str, completion: str) -> tuple[int, int]:
    """How many of the completion's sentences do not stand in the prompt, and how many it has.

    As in the copying analysis of Ziegler et al. 2019 (arXiv 1909.08593, section 4.3), which calls
    this novelty.
    """
    known = set(sentences(prompt))
    own = sentences(completion)
    return sum(s not in known for s in own), len(own)


def copies_opening(prompt: str, completion: str) -> bool:
    """Whether the completion begins as the prompt does, word for word, for ``OPENING`` words."""
    ours, theirs = words(completion)[:OPENING], words(prompt)[:OPENING]
    return len(ours) == OPENING and ours == theirs


def copied_share(prompt: str, completion: str, n: int = 3) -> float:
    """Share of the completion's n-grams that stand in the prompt."""
    known = set(ngrams(words(prompt), n))
    grams = ngrams(words(completion), n)
    return sum(g in known for g in grams) / len(grams) if grams else 0.0


def describe(prompts: Sequence[str], completions: Sequence[str]) -> TextMeasures:
    """All of it for one contender's completions; means are over completions."""
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
