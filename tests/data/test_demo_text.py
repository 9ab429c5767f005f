"""The generator: seeded, varied, with real differences of sentiment."""

import json
from pathlib import Path
from statistics import pstdev

from toolkit.data.demo_text import reviews
from toolkit.scoring.functions import Lexicon


def test_equal_seeds_give_equal_text_and_others_do_not() -> None:
    assert list(reviews(20, 3)) == list(reviews(20, 3))
    assert list(reviews(20, 3)) != list(reviews(20, 4))


def test_reviews_are_varied_sentences_of_either_sentiment(root: Path) -> None:
    texts = list(reviews(400, 0))
    assert len({rest for _, rest in texts}) > 390
    assert all(o.endswith(".") and r.endswith(".") and " a a" not in r for o, r in texts)
    scores = Lexicon(root / "data" / "lexicon.txt").of_texts(rest for _, rest in texts)
    assert sum(s > 2 for s in scores) > 100 and sum(s < -2 for s in scores) > 100
    assert pstdev(scores) > 3
    openings = Lexicon(root / "data" / "lexicon.txt").of_texts(o for o, _ in texts)
    assert not any(openings)  # a prompt gives nothing away


def test_prompts_are_of_reviews_that_the_model_never_saw(root: Path) -> None:
    seen = {opening for opening, _ in reviews(20_000, 0)}
    train, held_out = (
        [json.loads(line)["prompt"] for line in (root / "data" / name).read_text().splitlines()]
        for name in ("prompts.jsonl", "prompts.heldout.jsonl")
    )
    assert len(train) == 2000 and len(held_out) == 600
    assert not seen & set(train + held_out)
    assert not set(train) & set(held_out)
