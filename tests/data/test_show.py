"""What --show prints of a file's first rows: what they are read as, or why they are not."""

from pathlib import Path

from toolkit.data.layouts.reader import LayoutReader
from toolkit.data.show import shown

PAIR = {"prompt": "How was the tea?", "chosen": "We loved it.", "rejected": "It was fine."}


def test_rows_stand_in_their_order_with_what_became_of_them() -> None:
    rows = [
        PAIR,
        PAIR | {"rejected": "We loved it."},
        PAIR | {"chosen": 3},
        PAIR | {"prompt": [{"role": "user", "content": "Tea?\x1b[31m"}], "margin": 2},
    ]
    placed = [(f"f:{n}", row) for n, row in enumerate(rows, start=1)]
    lines = list(shown(placed, LayoutReader(), 4))
    text = "\n".join(lines)
    assert lines[0] == "layout: pairs; read as comparisons"
    parts = text.split("\n\n")
    assert parts[1].startswith("f:1\n  prompt: How was the tea?\n  0")
    assert "(best): We loved it." in parts[1] and ": It was fine." in parts[1]
    assert parts[2] == "f:2\n  left out: chosen equals rejected"
    assert parts[3] == "f:3\n  bad: chosen and rejected: one is text and the other is not"
    assert "prompt, user: Tea?\\x1b[31m" in parts[4] and "margin: 2" in parts[4]
    assert parts[5].startswith("In the first 4 rows: 2 comparisons, 1 bad row.")
    assert "1 left out: chosen equals rejected" in parts[5]


def test_long_texts_are_cut_and_a_space_before_a_text_is_seen() -> None:
    row = PAIR | {"chosen": " We loved it.", "rejected": " x" * 500}
    text = "\n".join(shown([("f:1", row)], LayoutReader(), 1))
    assert '" We loved it."' in text and "(1,000 characters)" in text
    assert max(map(len, text.split("\n"))) <= 80


def test_the_messages_of_a_tree_belong_to_its_first_row() -> None:
    from tests.data.layouts.test_trees import TABLE, placed

    text = "\n".join(shown(placed(TABLE), LayoutReader(), 2))
    assert "f:1\n  prompt, user: How was the tea?" in text
    assert "f:2\n  belongs to a row above" in text


def test_a_line_that_is_no_row_is_counted(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("prompt,chosen,rejected\nHi., a, b\nHo., a\n")
    lines = list(shown(tmp_path / "a.csv", LayoutReader(), 5))
    assert "In the first 1 row: 1 comparison, 1 bad row." in lines
    assert any("a.csv:3: 2 fields" in line for line in lines)


def test_prompts_and_demonstrations_show_no_pick() -> None:
    row = {"instruction": "Translate.", "input": "Tee", "output": "tea"}
    text = "\n".join(shown([("f:1", row)], LayoutReader("demonstrations"), 1))
    assert "answer: tea" in text and "best" not in text
    text = "\n".join(shown([("f:1", row)], LayoutReader("prompts"), 1))
    assert "prompt: Translate." in text and "answer" not in text
