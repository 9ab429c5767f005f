"""Prompts come in turn, and validation items have two completions of each side."""

from pathlib import Path

from toolkit.data.files import write_jsonl
from toolkit.pipeline.samples import draw_prompts, mixed, with_sides

SIDES = ["reference", "reference", "policy", "policy"]


def test_prompts_come_in_turn_through_all_rounds(tmp_path: Path) -> None:
    prompts = [{"prompt": str(i)} for i in range(7)]
    seen = []
    for number, batch, count in ((0, 0, 3), (0, 1, 2), (1, 0, 4)):
        folder = tmp_path / f"round-{number:03d}"
        chosen = draw_prompts(prompts, count, folder, batch)
        write_jsonl(folder / f"prompts-{batch:02d}.jsonl", chosen)
        assert draw_prompts(prompts, count, folder, batch) == chosen  # a second time as well
        seen += [int(row["prompt"]) for row in chosen]
    assert seen == [0, 1, 2, 3, 4, 5, 6, 0, 1]


def test_validation_items_have_two_of_each_side() -> None:
    policy = [{"prompt": p, "completions": [p + str(k) for k in range(4)]} for p in "abc"]
    rows = with_sides(policy, [{"prompt": "b", "completions": ["x", "y"]}])
    assert rows[0] == policy[0] and rows[2] == policy[2]
    assert rows[1]["completions"] == ["x", "y", "b0", "b1"] and rows[1]["sides"] == SIDES


def test_what_several_wrote_becomes_rows_that_name_the_writers() -> None:
    one = [{"prompt": p, "completions": [p + "1", p + "2"], "id": p} for p in "aabc"]
    other = [{"prompt": p, "completions": [p + "3"]} for p in "aac"]  # b did not end
    rows = mixed([one, other], ["new", "old"])
    assert [row["completions"] for row in rows] == [
        ["a1", "a2", "a3"], ["a1", "a2", "a3"], ["c1", "c2", "c3"],
    ]  # fmt: skip
    assert all(row["models"] == ["new", "new", "old"] and "id" in row for row in rows)
