"""Label Studio's and Argilla's JSON."""

import copy
import json
import re
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from toolkit.errors import InputError
from toolkit.labeling.formats import (
    from_argilla,
    from_label_studio,
    prompt_text,
    to_argilla,
    to_label_studio,
)
from toolkit.labeling.store import Settings, Store

Row = dict[str, Any]
Codec = tuple[Callable[[list[Row]], list[Row]], Callable[[Any, str], list[Row]]]
CODECS: list[Codec] = [(to_label_studio, from_label_studio), (to_argilla, from_argilla)]
MESSAGES = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Hé \n\n“x”?"}]
ROWS: list[Row] = [
    {"prompt": "Once", "completions": [" a", " b"], "best": 1, "labeler": "ann", "source": "web"},
    {
        "prompt": "Once",
        "completions": [" a", " b"],
        "best": 0,
        "labeler": "b@x.org",
        "source": "web",
    },
    {"prompt": "Once", "completions": [" b", " a"], "best": 0, "labeler": "ann", "source": "web"},
    {
        "prompt": "Once",
        "completions": [" a", " b"],
        "best": 1,
        "labeler": "ann",
        "source": {"file": "x.csv", "line": 3},
        "contenders": ["old", "new"],
    },
    {"prompt": MESSAGES, "completions": ["1", "2", "  3\n"], "best": 2, "labeler": "7"},
    {"prompt": MESSAGES, "completions": [f"{k}" for k in range(12)], "best": 10},
    {"prompt": "No pick\u200b", "completions": ["é", "<View>"], "source": "s"},
    {
        "prompt": "By a user",
        "completions": ["x", "y"],
        "best": 0,
        "labeler": str(uuid.UUID(int=77)),
    },
]


def as_set(rows: list[Row]) -> list[str]:
    return sorted(json.dumps(row, sort_keys=True) for row in rows)


def through_a_file(value: list[Row], folder: Path) -> Any:
    (folder / "x.json").write_text(json.dumps(value))
    return json.loads((folder / "x.json").read_text())


@pytest.mark.parametrize("codec", CODECS, ids=["label_studio", "argilla"])
def test_rows_come_back_as_they_left(codec: Codec, tmp_path: Path) -> None:
    to, back = codec
    before = copy.deepcopy(ROWS)
    assert as_set(back(through_a_file(to(ROWS), tmp_path), "x.json")) == as_set(before)
    assert before == ROWS


@pytest.mark.parametrize("codec", CODECS, ids=["label_studio", "argilla"])
def test_what_a_store_says_comes_back(codec: Codec, tmp_path: Path) -> None:
    to, back = codec
    store = Store(tmp_path / "labels.sqlite", Settings())
    store.add_picks(row for row in ROWS if "best" in row)
    said = list(store.picks())
    store.close()
    assert len(said) == 7
    assert as_set(back(through_a_file(to(said), tmp_path), "x.json")) == as_set(said)


@pytest.mark.parametrize("codec", CODECS, ids=["label_studio", "argilla"])
def test_labelers_of_one_item_share_a_task(codec: Codec) -> None:
    tasks = codec[0](ROWS)
    assert len(tasks) == 7
    answers = tasks[0].get("annotations") or tasks[0]["responses"]["best"]
    assert len(answers) == 2


def test_label_studio_counts_completions_from_one() -> None:
    (task,) = to_label_studio([ROWS[0]])
    assert task["data"]["completion_2"] == " b"
    assert task["annotations"][0]["result"][0]["value"] == {"choices": ["2"]}
    assert task["annotations"][0]["completed_by"] == {"email": "ann"}


def test_argilla_knows_users_by_uuid_and_text_by_fields() -> None:
    for record in to_argilla(ROWS):
        assert all(isinstance(text, str) for text in record["fields"].values())
        assert all(isinstance(value, str) for value in record["metadata"].values())
        for answer in record["responses"].get("best", []):
            assert str(uuid.UUID(answer["user_id"])) == answer["user_id"]
    known = to_argilla([ROWS[7]])[0]["responses"]["best"][0]
    assert known["user_id"] == ROWS[7]["labeler"]


def test_an_argilla_record_keeps_its_id_when_another_labeler_has_picked() -> None:
    one, two = to_argilla(ROWS[:1]), to_argilla(ROWS[:2])
    assert one[0]["id"] == two[0]["id"]
    assert len({record["id"] for record in to_argilla(ROWS)}) == 7


def test_messages_are_shown_with_their_roles() -> None:
    assert prompt_text(MESSAGES) == "system: Be kind.\n\nuser: Hé \n\n“x”?"
    assert to_label_studio([ROWS[4]])[0]["data"]["prompt"] == prompt_text(MESSAGES)


def studio(*results: Any, **fields: Any) -> Row:
    """A task that was made in Label Studio, by its own names."""
    data = {"prompt": "p", "response_1": "one", "response_2": "two"} | fields
    annotations = [{"id": 9, "was_cancelled": False, "result": result} for result in results]
    return {"id": 4, "data": data, "annotations": annotations, "predictions": [], "drafts": [3]}


def pairwise(selected: Any) -> list[Row]:
    value = {"selected": selected}
    return [{"from_name": "pw", "to_name": "a,b", "type": "pairwise", "value": value}]


def choice(*values: Any) -> list[Row]:
    return [{"from_name": "best", "type": "choices", "value": {"choices": list(values)}}]


def test_label_studios_own_pairwise_results_are_read() -> None:
    rows = from_label_studio([studio(pairwise("left"), pairwise("right"))], "p.json")
    assert [row["best"] for row in rows] == [0, 1]
    assert rows[0] == {"prompt": "p", "completions": ["one", "two"], "best": 0}


@pytest.mark.parametrize(
    ("who", "labeler"),
    [({"id": 3, "email": "a@b.c", "first_name": "A"}, "a@b.c"), ({"id": 3}, "3"), (10, "10"),
     ("ann", "ann"), (None, None)],
)  # fmt: skip
def test_label_studio_names_labelers_in_several_ways(who: Any, labeler: str | None) -> None:
    task = studio(choice("2"))
    task["annotations"][0]["completed_by"] = who
    (row,) = from_label_studio([task], "p.json")
    assert row.get("labeler") == labeler and row["best"] == 1


def test_cancelled_and_empty_annotations_and_other_results_are_passed_over() -> None:
    rating = {"from_name": "stars", "type": "rating", "value": {"rating": 3}}
    task = studio(choice("1"), [], [rating, *choice("2")], source="s")
    task["annotations"][0]["was_cancelled"] = True
    assert [row["best"] for row in from_label_studio([task], "p.json")] == [1]
    assert from_label_studio([studio([], source="s")], "p.json") == [
        {"prompt": "p", "completions": ["one", "two"], "source": "s"}
    ]


def test_drafts_and_discarded_responses_are_passed_over() -> None:
    answers = [
        {"value": "1", "user_id": "u", "status": "draft"},
        {"value": "1", "user_id": "v", "status": "discarded"},
        {"value": 2, "user_id": "w"},
    ]
    fields = {"prompt": "p", "completion_1": "one", "completion_2": "two"}
    record = {"fields": fields, "responses": {"best": answers}, "metadata": {"source": "s"}}
    assert from_argilla([record], "a.json") == [
        {"prompt": "p", "completions": ["one", "two"], "best": 1, "labeler": "w", "source": "s"}
    ]
    record["responses"] = {}
    assert "best" not in from_argilla([record], "a.json")[0]


def with_data(**fields: Any) -> Row:
    return studio(choice("1"), **fields)


@pytest.mark.parametrize(
    ("task", "message"),
    [
        (7, "task 2: 7, but must be an object"),
        ({"prompt": "p", "best": "1"}, r"task 2: data: missing.*not as JSON-MIN"),
        (with_data(prompt=3), "task 2: prompt: 3"),
        (with_data(prompt=" "), "task 2: prompt: empty"),
        (with_data(response_2=None), "task 2: data.response_2: missing"),
        (with_data(response_2=["x"]), r"task 2: data.response_2: \['x'\], but must be text"),
        (with_data(response_2="\n"), r"task 2: completions\[1\]: empty"),
        (with_data(response_2="one"), "task 2: completions: all 2 are 'one'"),
        (with_data(completion_2="x"), "task 2: data.completion_2: has the same number as resp"),
        (with_data(row=[]), r"task 2: data.row: \[\], but must be an object"),
        (with_data(row={"margin": "x"}), "task 2: margin: 'x'"),
        (with_data(row={"prompt": [{"role": "dog", "content": "x"}]}), r"task 2: prompt\[0\].role"),
        ({"data": {"prompt": "p"}}, "task 2: data.completion_1: missing"),
        ({"data": {"prompt": "p", "completion_1": "x"}}, "task 2: completions: only 1"),
        (studio(choice("3")), r"\[0\].result\[0\].value.choices: '3', but the completions are"),
        (studio(choice("one")), r"choices: 'one', but the completions are \[1, 2\]"),
        (studio(choice(True)), "choices: True, but the completions are"),
        (studio(choice("1", "2")), r"value.choices: 2 choices"),
        (studio([{"type": "choices", "from_name": "best", "value": 3}]), "value: 3, but must be"),
        (studio([3]), r"annotations\[0\].result\[0\]: 3, but must be an object"),
        (studio("x"), r"annotations\[0\].result: 'x', but must be a list"),
        (studio(pairwise("both")), "value.selected: 'both' of 2 completions"),
        (studio(pairwise("left"), response_3="three"), "'left' of 3 completions"),
        (studio() | {"annotations": {"a": 1}}, "annotations: {'a': 1}, but must be a list"),
        (studio() | {"annotations": [5]}, r"task 2: annotations\[0\].result: 5"),
        (studio() | {"annotations": [{"result": choice("1"), "completed_by": {}}]},
         r"annotations\[0\].completed_by: ''"),
        (studio() | {"annotations": [{"result": choice("1"), "created_at": [1]}]},
         r"annotations\[0\].created_at: \[1\], but must be a time"),
        (with_data(**{"completion_" + "1" * 5000: "x", "response_1": 3}), "response_1: 3"),
    ],
)  # fmt: skip
def test_a_broken_task_is_named_by_number_and_field(task: Any, message: str) -> None:
    with pytest.raises(InputError, match=r"^p\.json: task 2: ") as error:
        from_label_studio([studio(choice("1")), task], "p.json")
    assert re.search(message, str(error.value)) and "\n" not in str(error.value)
    assert len(str(error.value)) < 250


def record(**changes: Any) -> Row:
    fields = {"prompt": "p", "completion_1": "one", "completion_2": "two"}
    best = [{"value": "1", "user_id": "u"}]
    return {"id": "1", "fields": fields, "responses": {"best": best}, "metadata": {}} | changes


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        ([], r"\[\], but must be an object"),
        (record(fields="x"), "fields: 'x', but must be an object"),
        (record(fields={"prompt": "p", "completion_1": 3}), "fields.completion_1: 3"),
        (record(responses=[1]), r"responses: \[1\], but must be an object"),
        (record(responses={"best": {"value": "1"}}), "responses.best: {'value'.*must be a list"),
        (record(responses={"best": ["1"]}), r"responses.best\[0\]: '1', but must be an object"),
        (record(responses={"best": [{"value": "0"}]}), r"best\[0\].value: '0', but the completion"),
        (record(responses={"best": [{"value": 1.5}]}), r"best\[0\].value: 1.5"),
        (record(responses={"best": [{"value": "1", "updated_at": "noon"}]}),
         r"best\[0\].updated_at: 'noon', but must be a time"),
        (record(responses={"best": [{"value": "1", "user_id": 5}]}), r"best\[0\].user_id: 5"),
        (record(metadata={"row": "{"}), "metadata.row: '{', but must be a JSON object"),
        (record(metadata={"row": {"a": 1}}), "metadata.row: .*, but must be a JSON object as"),
        (record(metadata={"labelers": '{"u": 5}'}), "labeler: 5, but must be a string"),
    ],
)  # fmt: skip
def test_a_broken_record_is_named_by_number_and_field(broken: Any, message: str) -> None:
    with pytest.raises(InputError, match=r"^a\.json: record 2: ") as error:
        from_argilla([record(), broken], "a.json")
    assert re.search(message, str(error.value)) and "\n" not in str(error.value)


@pytest.mark.parametrize("codec", CODECS, ids=["label_studio", "argilla"])
def test_a_file_that_is_no_list_is_refused(codec: Codec) -> None:
    with pytest.raises(InputError, match=r"^x\.json: a dict, but must be a list"):
        codec[1]({"data": {}}, "x.json")


@pytest.mark.parametrize("codec", CODECS, ids=["label_studio", "argilla"])
def test_a_files_row_says_nothing_of_who_picked_what(codec: Codec) -> None:
    (task,) = codec[0]([ROWS[6]])
    kept = {"best": 1, "labeler": "mallory", "completions": ["x", "y"]}
    if "data" in task:
        task["data"]["row"] = kept
    else:
        task["metadata"]["row"] = json.dumps(kept)
    assert codec[1]([task], "x") == [{"prompt": "No pick\u200b", "completions": ["é", "<View>"]}]


def test_an_annotation_without_a_choice_is_one_skipped_annotation() -> None:
    """A rating alone, nothing at all, or a choice of none: the task's other annotations count."""
    stars = [{"from_name": "stars", "type": "rating", "value": {"rating": 3}}]
    rows = from_label_studio([studio(stars, choice("2"), [], choice(), None)], "p.json")
    assert ([row["best"] for row in rows], rows.skipped) == ([1], 4)
    answers = [{"value": None, "user_id": "u"}, {"value": "2", "user_id": "v"}]
    rows = from_argilla(
        [record(responses={"best": answers}), record(responses={"comment": [{"value": "so"}]})],
        "a.json",
    )
    assert ([row.get("best") for row in rows], rows.skipped) == ([1, None], 2)


def test_a_file_whose_every_choice_has_another_name_is_refused() -> None:
    other = [{"from_name": "winner", "type": "choices", "value": {"choices": ["1"]}}]
    with pytest.raises(InputError, match=r"p.json: task 1: annotations\[0\].result: no choice"):
        from_label_studio([studio(other), studio(other)], "p.json")
    with pytest.raises(InputError, match="a.json: record 1: responses.best: missing"):
        from_argilla([record(responses={"winner": [{"value": "1"}]})], "a.json")


def test_the_time_of_an_annotation_comes_along() -> None:
    task = studio(choice("1"), choice("2"), choice("2"))
    early, late = "2024-01-01T10:00:00Z", "2024-01-02T10:00:00Z"
    task["annotations"][0] |= {"created_at": early, "updated_at": late}
    task["annotations"][1] |= {"created_at": early}
    rows = from_label_studio([task], "p.json")
    assert [row.get("updated_at") for row in rows] == [late, early, None]
    answers = [{"value": "1", "user_id": "u", "inserted_at": early}]
    (row,) = from_argilla([record(responses={"best": answers})], "a.json")
    assert row["updated_at"] == early
