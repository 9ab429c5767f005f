"""The terminal: everything fits its width, and words stay whole."""

import re
from collections.abc import Callable

import pytest
from rich.cells import cell_len

from toolkit.terminal import (
    Cell,
    Column,
    broken,
    counted,
    layout,
    print_table,
    say,
    say_figures,
    wrapped,
)

Printed = Callable[..., list[str]]


@pytest.fixture
def printed(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Printed:
    """The lines of a table in a terminal of so many columns."""

    def lines(*table: object, width: int = 80, **options: object) -> list[str]:
        monkeypatch.setenv("COLUMNS", str(width))
        print_table(*table, **options)  # type: ignore[arg-type]
        return capsys.readouterr().out.splitlines()

    return lines


HEADERS = ["contender", "KL, nats", *(f"judge{i} of many words" for i in range(6))]
ROWS = [
    [name, "0.64 ± 0.01", *(f"{i}2.00 ± 0.7{i}" for i in range(6))]
    for name in ("reference", "ppo@checkpoint-000025")
]


@pytest.mark.parametrize("width", [40, 60, 80, 100, 200])
def test_a_table_fits_and_breaks_no_word_and_no_number_from_its_error(
    printed: Printed, width: int
) -> None:
    lines = printed("A title", HEADERS, ROWS, width=width)
    assert max(map(cell_len, lines)) <= width

    text = "\n".join(lines)
    for row in ROWS:
        for cell in row:
            assert re.search(rf"(^|\s){re.escape(cell)}(\s|$)", text), cell
    for word in " ".join(HEADERS).split():
        assert re.search(rf"(^|\s){re.escape(word)}(\s|$)", text), word


def test_what_has_no_room_beside_the_rest_comes_below_with_the_first_column_again(
    printed: Printed,
) -> None:
    lines = printed("A title", HEADERS, ROWS, caption="The end.", width=80)
    tables = [line for line in lines if line.startswith("ppo@checkpoint-000025")]
    # 21 for the name, 11 for the KL, 12 for a judge, gaps of 2: three judges make 76, four 90.
    assert len(tables) == 2 and tables[0].count("±") == 4 and tables[1].count("±") == 3
    assert sum(line.rstrip() == "A title" for line in lines) == 2
    assert [line.rstrip() for line in lines].count("The end.") == 1
    assert len(printed("A title", HEADERS, ROWS, width=200)) < len(lines)


def test_what_is_left_of_the_width_goes_to_cells_first_and_to_those_that_need_least() -> None:
    short, text = Column(least=4, cells=4, head=4), Column(least=5, cells=300, head=300)
    assert layout([short, text, short], 40) == [[(0, 4), (1, 28), (2, 4)]]  # 40 - 2 x 2 - 2 x 4
    assert layout([short, short], 40) == [[(0, 4), (1, 4)]]  # no wider than it need be
    assert layout([], 40) == []

    # 40 - 4 - 4 - 5 - 2 x 2 = 23 are left: 6 for the second's cells, 17 of 295 for the third's.
    middling = Column(least=4, cells=10, head=20)
    assert layout([short, middling, text], 40) == [[(0, 4), (1, 10), (2, 22)]]
    assert layout([short, middling], 40) == [[(0, 4), (1, 20)]]  # now its header has room too


def test_a_word_longer_than_the_terminal_is_broken_where_nothing_else_helps(
    printed: Printed,
) -> None:
    lines = printed("Samples", [], [["prompt", "x" * 300], ["ppo", "It was good."]], width=60)
    assert max(map(cell_len, lines)) <= 60
    assert "".join(lines).count("x") == 300


def test_long_names_are_broken_at_their_slashes_and_intervals_stay_together() -> None:
    assert broken("an-organization/its-model", 20) == "an-organization/its-\nmodel"
    assert broken("92.1% [89.5%, 94.2%], yes", 17) == "92.1%\n[89.5%, 94.2%],\nyes"
    assert broken(" as it  stands\nand so", 20) == " as it  stands\nand so"
    assert broken("漢字" * 4, 8).split("\n")[0] == "漢字漢字漢字漢字"  # no joint: left to rich


def test_text_is_no_markup_and_obeyed_by_no_terminal(printed: Printed) -> None:
    text = "\n".join(printed("[b]t[/b]", ["[i]h[/i]"], [["[red]x\x1b[31m[/red]"]]))
    assert "[b]t[/b]" in text and "[i]h[/i]" in text and "[red]x\\x1b[31m[/red]" in text
    assert "\x1b" not in text
    assert any("yes" in line for line in printed("t", [], [["name", Cell("yes", "green")]]))


def test_numbers_stand_flush_right_under_their_header(printed: Printed) -> None:
    lines = printed("Ratings", ["model", "rating"], [["a", "7"], ["b", "1515"]], right=(1,))
    ends = {len(line.rstrip()) for line in lines if line.rstrip().endswith(("rating", "7", "15"))}
    assert len(ends) == 1


def test_a_line_is_broken_at_spaces_and_a_path_stays_whole() -> None:
    path = "/a/very/long/path/that/is-longer/than/forty/characters"
    line = f"note: the labels of yesterday are kept in {path} for now"
    lines = wrapped(line, 40).split("\n")
    assert "  " + path in lines
    assert all(len(part) <= 40 for part in lines if path not in part)
    assert " ".join(part.strip() for part in lines) == line


def test_in_a_file_a_line_stays_one(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    line = "word " * 40 + "end"
    say(line)
    assert capsys.readouterr().out == line + "\n"
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "50")
    say(line)
    assert max(map(len, capsys.readouterr().out.splitlines())) <= 50


@pytest.mark.parametrize(
    ("said", "expected"),
    [(counted(1, "update"), "1 update"), (counted(1_000_000, "update"), "1000000 updates"),
     (counted(0, "judge"), "0 judges"), (counted(1.0, "pass", "passes"), "1 pass"),
     (counted(0.5, "pass", "passes"), "0.5 passes")],
)  # fmt: skip
def test_a_number_has_its_noun(said: str, expected: str) -> None:
    assert said == expected


def test_figures_are_one_line_in_words_without_what_is_nothing(
    capsys: pytest.CaptureFixture[str],
) -> None:
    figures = {
        "rows": 200,
        "rows_too_long": 0,
        "source": "c.jsonl",
        "eval_loss": 0.693147,
        "p": 0.0,
    }
    say_figures("data", figures | {"seconds": None, "skipped": False})
    assert capsys.readouterr().out == "data: rows 200, source c.jsonl, eval loss 0.6931, p 0\n"
