"""ROUGE: Lin's own examples, counted by hand, and subsequences found by trying them all."""

import random
import unicodedata
from itertools import combinations

import pytest

from toolkit.evaluation.rouge import (
    Overlap,
    rouge,
    rouge_l,
    rouge_lsum,
    rouge_n,
    sentences,
    words,
)

POLICE = "police killed the gunman"  # C.-Y. Lin 2004, section 3.1


@pytest.mark.parametrize(
    ("text", "one", "two", "longest", "average"),
    [
        # Words police, the, gunman of 4; the pair "the gunman" of 3; the same 3 words in order.
        ("police kill the gunman", 0.75, 1 / 3, 0.75, 0.611111),
        # The same 3 words; the same pair; but in order only "the gunman".
        ("the gunman kill police", 0.75, 1 / 3, 0.5, 0.527778),
    ],
)
def test_lins_examples(text: str, one: float, two: float, longest: float, average: float) -> None:
    found = rouge([text], [POLICE])
    assert found.rouge_1 == pytest.approx(one)
    assert found.rouge_2 == pytest.approx(two)
    assert found.rouge_l == pytest.approx(longest)
    assert found.average == pytest.approx(average, abs=1e-6)


def test_a_sentences_hits_are_those_of_all_sentences_together() -> None:
    """abcde has ab of the first and cd of the second; xy has x of the second: 5 hits of 6 and 7."""
    found = rouge_lsum([["a", "b", "f"], ["c", "d", "x"]], [["a", "b", "c", "d", "e"], ["x", "y"]])
    assert found == pytest.approx((5 / 6, 5 / 7, 10 / 13))


def test_a_word_hits_only_as_often_as_both_have_it() -> None:
    assert rouge_n(["a"] * 4, ["a", "a", "b"], 1) == pytest.approx((2 / 4, 2 / 3, 4 / 7))
    twice = rouge_lsum([["a"]], [["a"], ["a"]])  # the candidate's only "a" hits once
    assert (twice.precision, twice.recall) == (1.0, 0.5)


def test_words_are_lower_case_letters_and_digits_without_stemming() -> None:
    found = words("The U.S. don't pay_3 Ünder-10%!")
    assert " ".join(found) == "the u s don t pay 3 ünder 10"
    assert rouge_n(words("killed"), words("kill"), 1).f == 0.0


def test_accents_and_vowel_signs_belong_to_their_letters() -> None:
    cafe = "Un CAFÉ fermé"
    assert words(unicodedata.normalize("NFD", cafe)) == words(cafe) == ["un", "café", "fermé"]
    assert words("हिन्दी में।") == ["हिन्दी", "में"]  # two words, and not four letters
    assert words("❤️ so\N{COMBINING ACUTE ACCENT}1 \u0301") == ["só1"]  # a sign by itself is no word


def test_empty_texts_share_nothing() -> None:
    nothing = Overlap(0.0, 0.0, 0.0)
    assert rouge_n([], ["a"], 1) == rouge_l(["a"], []) == rouge_lsum([], []) == nothing
    assert rouge_n(["a"], ["a"], 2) == nothing  # one word has no pair


def test_the_longest_common_subsequence_is_the_longest_of_all() -> None:
    rng = random.Random(0)
    for _ in range(60):
        a, b = (rng.choices("abc", k=rng.randint(1, 7)) for _ in range(2))
        parts = {
            part for size in range(len(b) + 1) for part in combinations(b, size)
        }  # every subsequence of b
        longest = max(
            size
            for size in range(len(a) + 1)
            if any(part in parts for part in combinations(a, size))
        )
        assert rouge_l(a, b).precision == pytest.approx(longest / len(a))
        # Of one sentence each, the union has one member.
        assert rouge_lsum([a], [b]) == rouge_l(a, b)


def test_means_are_over_texts_and_have_an_error() -> None:
    found = rouge(["a b", "c d", "x"], ["a b", "c d", "y"])
    assert found.rouge_1 == found.rouge_lsum == pytest.approx(2 / 3)
    assert found.average_error == pytest.approx(1 / 3)  # s = sqrt(1/3), over sqrt(3)


def test_sentences_end_with_marks_and_lines() -> None:
    assert sentences("We ate. He\nleft?! ") == [["we", "ate"], ["he"], ["left"]]
