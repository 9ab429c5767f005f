"""benchmarks/digests.py: the facts of a review are those that the generator put into it."""

import importlib.util
import random
from pathlib import Path
from types import ModuleType

import pytest

from toolkit.data import demo_text


@pytest.fixture(scope="module")
def digests() -> ModuleType:
    path = Path(__file__).parent.parent / "benchmarks" / "digests.py"
    spec = importlib.util.spec_from_file_location("digests", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_sentence_praises_or_blames_what_the_generator_meant(digests: ModuleType) -> None:
    rng = random.Random(0)
    for number in range(2_000):
        place, pleasant = rng.choice(list(demo_text.PLACES)), bool(number % 2)
        things = {thing for row in demo_text.PLACES[place] for thing in row}
        facts = digests.facts_of(demo_text._feeling(rng, place, pleasant))
        assert facts and {good for _, good in facts} == {pleasant}
        assert {thing for thing, _ in facts} <= things


def test_a_plain_sentence_says_nothing_and_a_verdict_says_its_own(digests: ModuleType) -> None:
    rng = random.Random(0)
    assert not any(digests.facts_of(demo_text._plain(rng, "cafe")) for _ in range(500))
    for verdict in demo_text.GOOD_VERDICT:
        assert digests.facts_of(verdict.format(place="cafe")) == [("verdict", True)]
    for verdict in demo_text.BAD_VERDICT:
        assert digests.facts_of(verdict.format(place="cafe")) == [("verdict", False)]


def test_what_is_shown_is_not_judged_and_every_half_is_read(digests: ModuleType) -> None:
    assert digests.facts_of("The porter who showed us the bed was rude.") == [("porter", False)]
    assert digests.facts_of("The great hall was dirty.") == [("great hall", False)]
    both = "The soup was great and the vegetables were nice."
    assert digests.facts_of(both) == [("soup", True), ("vegetables", True)]


def test_a_digest_says_the_facts_of_its_review(digests: ModuleType) -> None:
    rng = random.Random(1)
    for _ in range(300):
        prompt, facts = digests.review(rng)
        assert prompt.endswith(". TL;DR:") and 4 <= prompt.count(".") <= 6
        assert digests.facts_of(digests.digest(facts)) == facts
        assert digests.facts_of(prompt) == facts
