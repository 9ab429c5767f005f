"""Files that come into the store, as the page takes them."""

import json
from pathlib import Path
from typing import Any

import pytest

from toolkit.errors import InputError
from toolkit.labeling.exchange import EXPORTS, read_upload
from toolkit.labeling.store import Store

ROW = {"prompt": "Hi.", "completions": ["a", "b", "c"]}


def native(*rows: Any) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def test_a_native_row_without_a_choice_is_an_item_and_is_counted() -> None:
    rows = read_upload(native(ROW | {"best": 1}, ROW | {"best": None, "labeler": "ann"}), "native")
    assert [row.get("best") for row in rows] == [1, None]
    assert "best" not in rows[1] and rows.skipped == 1


def test_whole_numbers_come_in_as_integers() -> None:
    (row,) = read_upload(native(ROW | {"best": 2.0}), "native")
    assert row["best"] == 2 and isinstance(row["best"], int)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (ROW | {"best": 3}, "f:2: best: 3, out of range .*--first 1"),
        (ROW | {"best": 1, "updated_at": "noon"}, "f:2: updated_at: 'noon', but must be a time"),
        (ROW | {"best": "B"}, "f:2: best: 'B', but must be the index"),
    ],
)
def test_a_bad_native_row_is_named_by_its_line(row: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        read_upload(native(ROW, row), "native", "f")


@pytest.mark.parametrize("form", ["label_studio", "argilla"])
def test_a_stores_own_export_changes_nothing_when_it_comes_back(form: str, tmp_path: Path) -> None:
    with Store(tmp_path / "labels.sqlite") as store:
        store.add_picks([ROW | {"best": 1, "labeler": "ann", "updated_at": 1_704_110_400}])
        content = b"".join(EXPORTS[f"{form}.json"](store))
        before = list(store.events())
        assert store.add_picks(read_upload(content, form)) == (0, 1)
        assert list(store.events()) == before


def test_a_later_date_of_the_same_choice_takes_no_ranking_or_comment_away(tmp_path: Path) -> None:
    """Label Studio dates what it imports anew, and its format holds the choice alone."""
    said = {"ranking": [1, 2, 0], "margin": 1.0, "labeler_comment": "Short.", "labeler_edit": "b!"}
    row = ROW | {"best": 1, "labeler": "ann", "updated_at": 1_704_110_400} | said
    with Store(tmp_path / "labels.sqlite") as store:
        store.add_picks([row])
        tasks = json.loads(b"".join(EXPORTS["label_studio.json"](store)))
        for annotation in tasks[0]["annotations"]:
            annotation["created_at"] = annotation["updated_at"] = "2025-01-01T00:00:00Z"
        picks = read_upload(json.dumps(tasks).encode(), "label_studio")
        assert store.add_picks(picks) == (0, 1)
        (held,) = store.picks()
        assert {name: held[name] for name in said} == said

        # Another choice replaces all of it.
        assert store.add_picks([pick | {"best": 0} for pick in picks]) == (1, 0)
        (held,) = store.picks()
        assert held["best"] == 0 and not said.keys() & held.keys()


def test_the_later_annotation_of_a_person_counts_whatever_their_order(tmp_path: Path) -> None:
    """Label Studio shows annotations in no order that says which came last."""
    annotations = [
        {
            "completed_by": who,
            "updated_at": f"2024-01-0{day}T00:00:00Z",
            "result": [{"from_name": "best", "type": "choices", "value": {"choices": [pick]}}],
        }
        for who, day, pick in ((7, 3, "2"), (7, 1, "1"), (8, 2, "3"))
    ]
    data = {"prompt": "Hi.", "completion_1": "a", "completion_2": "b", "completion_3": "c"}
    content = json.dumps([{"data": data, "annotations": annotations}]).encode()
    with Store(tmp_path / "labels.sqlite") as store:
        store.add_picks(read_upload(content, "label_studio"))
        assert {(row["labeler"], row["best"]) for row in store.picks()} == {("7", 1), ("8", 2)}
