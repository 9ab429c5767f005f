"""Which comparisons are learned from, and what becomes of the long ones."""

from typing import get_args

import pytest

from toolkit.arguments.comparisons import ComparisonArguments, LongRows
from toolkit.data.encoding import Encoder
from toolkit.errors import InputError
from toolkit.models.loading import load_tokenizer


def test_the_flag_has_the_words_that_the_encoder_knows_and_no_other(demo_model: str) -> None:
    tokenizer = load_tokenizer(demo_model)
    row = {"prompt": "a b c d e f", "completions": [" g", " h"], "best": 0}
    kept = {}
    for word in get_args(LongRows):
        args = ComparisonArguments(long_rows=word)
        kept[word] = len(list(Encoder(tokenizer, 4, args.long_rows).pieces([("f:1", row)])))
    assert kept == {"drop": 0, "truncate_prompt": 1}
    with pytest.raises(InputError, match="long_rows is 'keep', but must be one of drop, trunc"):
        ComparisonArguments(long_rows="keep")  # type: ignore[arg-type]


def test_a_share_of_the_labels_may_be_all_of_them_but_not_none() -> None:
    assert ComparisonArguments(train_fraction=1.0).train_fraction == 1.0
    for share in (0.0, 1.01):
        with pytest.raises(InputError, match="train_fraction is"):
            ComparisonArguments(train_fraction=share)
