"""The accuracy on groups of comparisons, counted by hand."""

from toolkit.evaluation.reward_groups import MOST, by_k, by_labeler, by_quarter, by_source, margin


def row(number: int, **more: object) -> dict:
    return {"prompt": f"p{number}", "completions": ["a", "b"], "best": 0, **more}


def test_each_source_and_each_labeler_has_its_accuracy_with_an_interval() -> None:
    rows = [row(i, source="web", labeler="ann") for i in range(6)]
    rows += [row(10 + i, source={"shop": 1}) for i in range(2)]
    rows += [row(20 + i, labeler="ben") for i in range(4)]
    right = [1.0] * 3 + [0.0] * 3 + [1.0] * 2 + [0.0] * 4
    found = [(g.group, g.n, g.value) for g in by_source(rows, right)]
    assert found == [("web", 6, 0.5), ("not known", 4, 0.0), ('{"shop": 1}', 2, 1.0)]
    ann, ben, unknown = by_labeler(rows, right)
    assert (ann.group, ann.value, ann.chance) == ("ann", 0.5, 0.5)
    assert (ben.group, ben.n, unknown.group, unknown.value) == ("ben", 4, "not known", 1.0)
    # Wilson's interval of 3 of 6: (0.5 + z^2/12 -+ z sqrt(1/24 + z^2/144)) / (1 + z^2/6), z = 1.96
    assert (round(ann.low, 3), round(ann.high, 3)) == (0.188, 0.812)


def test_one_source_is_no_group_and_the_lines_of_a_file_are_one_source() -> None:
    rows = [row(i, source=f"picks.jsonl:{i}", labeler="ann") for i in range(4)]
    assert by_source(rows, [1.0] * 4) == by_labeler(rows, [1.0] * 4) == []
    rows[0]["source"] = "https://example.org:8080"  # a port looks like a line
    assert [g.n for g in by_source(rows, [1.0] * 4)] == [3, 1]


def test_many_small_groups_are_put_together() -> None:
    rows = [row(i, source=f"s{i % (MOST + 3)}") for i in range(2 * (MOST + 3))]
    found = by_source(rows, [1.0] * len(rows))
    assert len(found) == MOST + 1
    assert (found[-1].group, found[-1].n) == ("3 others together", 6)
    rows = [row(i, source=f"s{i}") for i in range(MOST + 1)]
    assert len(by_source(rows, [1.0] * len(rows))) == MOST + 1


def test_quarters_are_of_the_rows_that_have_a_margin() -> None:
    rows = [row(i, margin=float(i)) for i in range(8)] + [row(9)]
    found = by_quarter(rows, [0.0] * 4 + [1.0] * 4 + [0.0], margin)
    assert [(g.group, g.n, g.value) for g in found] == [
        ("0 to 1", 2, 0.0),
        ("2 to 3", 2, 0.0),
        ("4 to 5", 2, 1.0),
        ("6 to 7", 2, 1.0),
    ]
    assert margin(row(0, scores=[1.0, 4.0, 2.5])) == 1.5 and margin(row(0)) is None
    assert [g.group for g in by_k(rows, [1.0] * 9)] == ["2 completions"]
