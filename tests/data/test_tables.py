"""Tables from where people keep them, row by row with their places; and the bad ones."""

import csv
import gzip
import io
import json
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
from datasets import Dataset, DatasetDict

from toolkit.data.tables import read_table, write_table
from toolkit.errors import InputError

ROWS = [
    {"prompt": "Hi.", "completions": [" a", " b"], "best": 0},
    {"prompt": "Ho.", "completions": [" c", " d", " e"], "best": 2},
]


def write_lines(path: Path) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))


def test_every_kind_of_source_gives_the_same_rows_with_their_places(tmp_path: Path) -> None:
    write_lines(tmp_path / "a.jsonl")
    (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress((tmp_path / "a.jsonl").read_bytes()))
    (tmp_path / "c.json").write_text(json.dumps(ROWS, indent=1))
    (tmp_path / "d.json").write_bytes((tmp_path / "a.jsonl").read_bytes())  # lines by another name
    write_table(tmp_path / "e.parquet", ROWS, str)
    Dataset.from_list(ROWS).save_to_disk(tmp_path / "f")
    DatasetDict({"train": Dataset.from_list(ROWS)}).save_to_disk(tmp_path / "g")
    for name, first, second in (
        ("a.jsonl", 1, 2),
        ("b.jsonl.gz", 1, 2),
        ("c.json", 0, 1),
        ("d.json", 1, 2),
        ("e.parquet", 0, 1),
        ("f", 0, 1),
        ("g", 0, 1),
    ):
        source = tmp_path / name
        assert list(read_table(source, "--comparisons")) == [
            (f"{source}:{first}", ROWS[0]),
            (f"{source}:{second}", ROWS[1]),
        ], name


def test_the_splits_of_a_folder_are_those_that_load_dataset_finds(tmp_path: Path) -> None:
    """TRL's scripts name a folder of train.jsonl and validation.jsonl as a dataset."""
    folder = tmp_path / "mine"
    folder.mkdir()
    write_lines(folder / "train.jsonl")
    (folder / "validation.jsonl").write_text(json.dumps(ROWS[1]) + "\n")
    source = f"{folder}:validation"
    assert list(read_table(source, "--prompts")) == [(f"{source}:0", ROWS[1])]
    assert [row for _, row in read_table(f"{folder}:train", "--prompts")] == ROWS
    with pytest.raises(InputError, match="its splits are train, validation"):
        list(read_table(f"{folder}:test", "--prompts"))


def test_a_folder_is_all_the_files_in_it(tmp_path: Path) -> None:
    write_lines(tmp_path / "train.jsonl")
    write_table(tmp_path / "test.parquet", ROWS, str)
    (tmp_path / "z.csv").write_text("prompt,best\n\nHi.,0\n")
    (tmp_path / "README.md").write_text("what this is")
    places = [place for place, _ in read_table(tmp_path, "--input")]
    assert places == [
        f"{tmp_path / name}"
        for name in (
            "test.parquet:0",
            "test.parquet:1",
            "train.jsonl:1",
            "train.jsonl:2",
            "z.csv:3",
        )
    ]


def test_lines_that_are_no_rows_may_be_passed_over_and_told(tmp_path: Path) -> None:
    told: list[str] = []
    for name, content in (
        ("a.jsonl", b'{"a": 1}\nno\n[1]\n{"a": 2}\n'),
        ("b.csv", b"a,b\n1,2\n1\n3,4\n"),
        ("c.json", b'\xef\xbb\xbf[{"a": 1}, 7, {"a": 2}]'),
    ):
        (tmp_path / name).write_bytes(content)
        assert len(list(read_table(tmp_path / name, "--input", told.append))) == 2
    assert [t.split(": ")[0].rsplit("/")[-1] for t in told] == [
        "a.jsonl:2",
        "a.jsonl:3",
        "b.csv:3",
        "c.json:1",
    ]


def test_a_column_that_the_first_row_lacks_is_kept_in_parquet(tmp_path: Path) -> None:
    rows = [ROWS[0], ROWS[1] | {"ranking": [2, 0], "margin": 0.5}]
    write_table(tmp_path / "a.parquet", rows, str)
    (_, first), (_, second) = read_table(tmp_path / "a.parquet", "--input")
    assert second == rows[1] and first["ranking"] is None and first["best"] == 0


def test_csv_places_are_the_lines_where_rows_begin(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text('prompt,sample0,sample1,best\n"two\nlines",x,"a, b",0\nHi., a, b,1\n')
    assert list(read_table(path, "--input")) == [
        (f"{path}:2", {"prompt": "two\nlines", "sample0": "x", "sample1": "a, b", "best": "0"}),
        (f"{path}:4", {"prompt": "Hi.", "sample0": " a", "sample1": " b", "best": "1"}),
    ]


@pytest.mark.parametrize("separator", [";", "\t", ","])
def test_what_a_spreadsheet_exports_is_read_as_a_table_with_commas(
    tmp_path: Path, separator: str
) -> None:
    path = tmp_path / "a.csv"
    lines = [["prompt", "best"], ['"two\r\nlines; of, text"', "A"], ["", ""], ["Hi.", ""]]
    text = "".join(separator.join(fields) + "\r\n" for fields in lines)
    path.write_bytes(text.encode("utf-8-sig"))
    assert list(read_table(path, "--input")) == [
        (f"{path}:2", {"prompt": "two\r\nlines; of, text", "best": "A"}),
        (f"{path}:5", {"prompt": "Hi.", "best": ""}),
    ]


BAD_FILES: list[tuple[str, bytes, str]] = [
    ("cut.jsonl.gz", gzip.compress(b'{"prompt": "Hi."}\n' * 1000)[:40], "broken gzip file"),
    ("not.jsonl", b'{"prompt": "Hi."\n', r":1: not JSON, .* at column"),
    ("list.jsonl", b"{}\n[1, 2]\n", r":2: a list, not an object"),
    ("latin.jsonl", '{"prompt": "café"}\n'.encode("latin-1"), r":1: not UTF-8 at byte 15"),
    ("utf16.jsonl", '{"prompt": "Hi."}\n'.encode("utf-16"), r":1: not UTF-8 at byte 0"),
    ("deep.jsonl", b'{"a": ' + b"[" * 100_000, r":1: not JSON"),
    ("digits.jsonl", b'{"a": ' + b"9" * 5000 + b"}", r":1: not JSON that can be read"),
    ("not.json", b'[{"prompt": "Hi."},\n oops]', r":2: not JSON"),
    ("numbers.json", b"[1]", r":0: a int, not an object"),
    ("not.parquet", b"PAR1 this is none", "not readable as Parquet"),
    ("short.csv", b"prompt,sample0,best\nHi.,a\n", r":2: 2 fields, but line 1 has 3 columns"),
    ("long.csv", b"prompt,sample0\nok,a\nHi.,a,b\n", r":3: 3 fields, but line 1"),
    ("twice.csv", b"prompt,prompt\n", r":1: two columns have the same name"),
    ("latin.csv", "prompt,best\ncafé,1\n".encode("latin-1"), r"not UTF-8"),
    ("quote.csv", b'prompt,best\n"Hi."x,1\n', r":2: not CSV"),
    ("rows.xlsx", b"PK", r"does not end in one of \.jsonl, "),
]


@pytest.mark.parametrize(("name", "content", "message"), BAD_FILES, ids=[b[0] for b in BAD_FILES])
def test_a_bad_file_is_refused_with_its_place(
    tmp_path: Path, name: str, content: bytes, message: str
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=message) as caught:
        list(read_table(tmp_path / name, "--comparisons"))
    assert name in str(caught.value) and "\n" not in str(caught.value)


def test_a_folder_or_dataset_that_is_none_is_refused_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for source in (tmp_path / "empty", "no-such-owner/no-such-dataset", "nowhere.jsonl"):
        with pytest.raises(InputError, match="--comparisons: ") as caught:
            list(read_table(source, "--comparisons"))
        assert "\n" not in str(caught.value)
    DatasetDict({"a": Dataset.from_list(ROWS)}).save_to_disk(tmp_path / "g")
    assert len(list(read_table(tmp_path / "g", "--comparisons"))) == 2  # its only split


def test_nothing_is_written_where_rows_cannot_be(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="must end in .jsonl or .parquet"):
        write_table(tmp_path / "a.csv", ROWS, str)
    for name in ("a.jsonl", "a.parquet"):
        with pytest.raises(InputError, match="nothing there"):
            write_table(tmp_path / name, [], lambda: "nothing there")
    mixed = [ROWS[0], ROWS[1] | {"prompt": [{"role": "user", "content": "Hi."}]}]
    with pytest.raises(InputError, match="a column mixes two types of value"):
        write_table(tmp_path / "a.parquet", mixed, str)
    assert list(tmp_path.iterdir()) == []
    assert write_table(tmp_path / "a.jsonl", mixed, str) == 2


def test_a_parquet_file_is_read_a_batch_at_a_time(tmp_path: Path) -> None:
    table = pyarrow.table({"prompt": [f"p{i}" for i in range(5000)]})
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet")
    places = [place for place, _ in read_table(tmp_path / "a.parquet", "--input")]
    assert places[-1] == f"{tmp_path / 'a.parquet'}:4999" and len(places) == 5000


EXCEL = [
    ["Frage", "Antwort A", "Beste"],
    ["Tee, Kuchen?", "Süß; gut\nund warm", "A"],
    ["Ja?", "x", "B"],
]


def written(separator: str) -> str:
    stream = io.StringIO()
    csv.writer(stream, delimiter=separator, lineterminator="\r\n").writerows(EXCEL)
    return stream.getvalue()


@pytest.mark.parametrize(
    ("name", "content", "lines"),
    [
        ("semicolon.csv", written(";").encode("utf-8-sig"), (2, 4)),
        ("declared.csv", b"sep=;\r\n" + written(";").encode(), (3, 5)),
        ("tab.tsv", written("\t").encode(), (2, 4)),
        ("unicode.txt", written("\t").encode("utf-16"), (2, 4)),
        ("big_endian.csv", b"\xfe\xff" + written("\t").encode("utf-16-be"), (2, 4)),
        ("comma.csv", written(",").encode(), (2, 4)),
    ],
)
def test_a_table_as_excel_saves_it_is_read_with_its_lines(
    tmp_path: Path, name: str, content: bytes, lines: tuple[int, int]
) -> None:
    (tmp_path / name).write_bytes(content)
    rows = list(read_table(tmp_path / name, "--input"))
    assert [row for _, row in rows] == [
        dict(zip(EXCEL[0], fields, strict=True)) for fields in EXCEL[1:]
    ]
    assert [int(place.rpartition(":")[2]) for place, _ in rows] == list(lines)


def test_the_separator_is_what_the_header_has_most_of_outside_quotes(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    for header, names in (
        ('Which, if any;"A; B";Best;Who\n', ["Which, if any", "A; B", "Best", "Who"]),
        ('"a;b;c;d",x,y\n', ["a;b;c;d", "x", "y"]),
        ("a,b;c\n", ["a", "b;c"]),  # as many of each: a comma
        ("prompt\n", ["prompt"]),
    ):
        path.write_text(header + header)
        ((_, row),) = read_table(path, "--input")
        assert list(row) == names


def test_a_broken_table_of_excels_is_named_with_its_line(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes(b"sep=;\r\na;b\r\n1;2;3\r\n")
    with pytest.raises(InputError, match=r"a.csv:3: 3 fields, but line 2 has 2 columns"):
        list(read_table(path, "--input"))
    path.write_bytes("a\tb\n1\t2\n".encode("utf-16")[:-1])
    with pytest.raises(InputError, match="a.csv:.*broken UTF-16"):
        list(read_table(path, "--input"))
