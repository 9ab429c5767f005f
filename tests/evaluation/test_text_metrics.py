"""Counted by hand on small texts."""

import pytest

from toolkit.evaluation.text_metrics import (
    copied_share,
    copies_opening,
    copying,
    describe,
    distinct,
    has_preamble,
    new_sentences,
    repetition,
)


def test_distinct_counts_different_ngrams_over_all_texts_together() -> None:
    assert distinct(["a b a", "a b"], 1) == pytest.approx(2 / 5)
    assert distinct(["a b a", "a b"], 2) == pytest.approx(2 / 3)  # ab, ba, ab
    assert distinct(["", "x"], 2) == 0.0


def test_repetition_is_the_share_of_trigrams_seen_before() -> None:
    assert repetition("a b c a b c") == pytest.approx(1 / 4)  # abc bca cab abc
    assert repetition("a b c d") == 0.0 and repetition("a b") == 0.0


def test_a_sentence_of_the_prompt_is_no_new_one_whatever_its_case_and_marks() -> None:
    assert new_sentences("We went home. It rained.", "It rained! We slept.") == (1, 2)
    assert new_sentences("It rained.", "...") == (0, 0)


def test_copying_the_opening_takes_five_words() -> None:
    prompt = "Once upon a time there was a cat."
    assert copies_opening(prompt, "once upon a time there lived a dog")
    assert not copies_opening(prompt, "once upon a time")
    assert not copies_opening("Once upon a time", "Once upon a time")


def test_copied_share_is_of_the_completions_trigrams() -> None:
    assert copied_share("a b c d", "b c d e") == pytest.approx(1 / 2)
    assert copied_share("a b c d", "x") == 0.0


def test_a_policy_that_copies_and_one_that_repeats_itself_are_found_out() -> None:
    prompts = ["Tom had a red ball. He lost it."] * 2
    copy = describe(prompts, ["Tom had a red ball. He lost it."] * 2)
    assert copy.copied_3grams == 1.0 and copy.new_sentences == 0.0
    assert copy.copies_opening == 1.0 and copy.unique == 0.5
    stuck = describe(prompts, ["so so so so so so", "good good good good"])
    assert stuck.repetition > 0.6 and stuck.distinct_1 == pytest.approx(2 / 10)
    assert stuck.words == 5.0 and stuck.new_sentences == 1.0


@pytest.mark.parametrize(
    "text",
    ["Hi all", "hello, I", "HEY.", "ok so", "Okay", "So I did", "Quick question: I", "a b c: d"],
)
def test_a_preamble_is_a_greeting_or_a_colon_within_three_words(text: str) -> None:
    assert has_preamble(text)


@pytest.mark.parametrize("text", ["", "I said hi", "Some", "Hire me", "a b c d: e", "\u2026"])
def test_other_openings_are_no_preamble(text: str) -> None:
    assert not has_preamble(text)


def test_copies_are_counted_where_they_stand_in_the_text() -> None:
    plain = "We all went home at six. It rained. He left. It rained. She slept."
    hello = "Hello my dear old friends. It rained."
    found = copying(
        [plain, plain, hello, hello],
        [
            " We all went home at six! she SLEPT",  # the first and the last of five
            "It rained. Nobody knows.",  # the second: the first of two places
            "Hello my dear old friends.",
            "",
        ],
    )
    assert found.with_preamble == 2
    assert (found.opening_plain, found.opening_preamble) == (0.5, 0.5)
    assert found.copied == 4 and found.places == [2, 1, 0, 1]
    assert found.mean_place == pytest.approx((0 + 1 + 1 / 4 + 0) / 4)


def test_without_copies_or_preambles_their_shares_are_not_known() -> None:
    found = copying(["It rained."], ["It did not."])
    assert found.opening_preamble is None and found.mean_place is None
    assert found.opening_plain == 0.0 and found.places == [0, 0, 0, 0]
