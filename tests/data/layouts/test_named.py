"""--columns gives a table's columns our names, and refuses a name that the table does not have."""

import pytest

from tests.data.layouts.one_row import demonstrations, one, picked
from tests.data.layouts.published import COMPARED
from toolkit.data.layouts.named import NamedColumns
from toolkit.data.layouts.reader import LayoutReader
from toolkit.errors import InputError

TABLE = {"Frage": "Tee?", "Links": "Ja.", "Rechts ": "Nein.", "Wahl": "Rechts", "Wer": "Anna"}
NAMED = NamedColumns({"prompt": ["Frage"], "completions": ["Links", "Rechts"], "best": ["Wahl"]})


def test_any_headers_will_do_and_spaces_around_them_do_not_matter() -> None:
    made = one(TABLE, columns=NAMED)
    assert made["prompt"] == "Tee?" and made["completions"] == ["Ja.", "Nein."]
    assert picked(made) == "Nein." and "labeler" not in made
    more = NamedColumns({**NAMED.mapping, "labeler": ["Wer"]})
    assert one(TABLE, columns=more)["labeler"] == "Anna"


def test_a_column_of_our_name_gives_way_to_the_one_that_was_named() -> None:
    row = TABLE | {"prompt": "not this", "best": "Links", "chosen": "x", "rejected": "y"}
    made = one(row, columns=NAMED)
    assert made["prompt"] == "Tee?" and picked(made) == "Nein."


def test_a_name_that_no_column_has_is_refused_once_with_the_nearest() -> None:
    columns = NamedColumns({"prompt": ["Fräge"]})
    with pytest.raises(InputError, match=r"^f:1: columns: prompt=Fräge, .*mean 'Frage'\?\)") as e:
        columns.check(TABLE, "f:1")
    assert "there are Frage, Links" in str(e.value) and e.value.field == "columns"


def test_one_column_of_completions_is_a_list_of_them_or_the_one_answer() -> None:
    listed = {"q": "Tea?", "answers": ["Yes.", "No."], "pick": 1}
    columns = NamedColumns({"prompt": ["q"], "completions": ["answers"], "best": ["pick"]})
    assert picked(one(listed, columns=columns)) == "No."
    assert columns.renamed({"q": "Tea?", "answers": "Yes.", "pick": None})["completion"] == "Yes."
    assert NamedColumns({}).renamed(TABLE) is TABLE
    assert LayoutReader().columns.completions == []
    assert demonstrations({"prompt": "Tea?", "completion": "Yes."})[0]["completions"] == ["Yes."]


def test_what_is_named_wins_over_what_the_layout_would_take_and_is_never_passed_over() -> None:
    arena = COMPARED["arena"] | {"Wer": "Anna"}
    assert one(arena, columns=NamedColumns({"labeler": ["Wer"]}))["labeler"] == "Anna"
    columns = NamedColumns({"best": ["Wer"]})
    with pytest.raises(InputError, match="best=Wer, but the layout arena .*says by itself"):
        one(arena, columns=columns)
