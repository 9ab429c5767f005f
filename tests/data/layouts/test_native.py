"""Our own layout, as convert reads it: picks by number, letter or text, or by scores."""

import pytest

from tests.data.layouts.one_row import one, picked
from toolkit.data.layouts.fields import Reading
from toolkit.data.layouts.native import from_native

ROW = {"prompt": "Tea?", "completions": ["Yes.", "No."]}


@pytest.mark.parametrize("best", [1, "1", "B", "No."])
def test_a_pick_is_a_number_a_letter_or_the_text(best: object) -> None:
    assert picked(one(ROW | {"best": best})) == "No."


def test_scores_pick_where_nobody_did_and_what_is_broken_is_left_for_the_check() -> None:
    assert one(ROW | {"scores": [0.5, 2]})["best"] == 1
    assert from_native({"prompt": "Tea?", "completions": "Yes."}, Reading()) == {
        "prompt": "Tea?",
        "completions": "Yes.",
    }
