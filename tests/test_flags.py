"""A flag's default, its help and what it may hold stand at its field, and one check reads them."""

import dataclasses
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Annotated, ClassVar, Literal

import pytest
from transformers import HfArgumentParser, TrainingArguments

from toolkit.cli import parse
from toolkit.errors import InputError
from toolkit.flags import (
    Count,
    Finite,
    Flags,
    Named,
    Positive,
    Range,
    Seed,
    Share,
    check_flags,
    flag,
    named_of,
    other_default,
)


@dataclass
class Toy(Flags):
    words: Literal["drop", "random"] = flag("drop", "What becomes of ties.")
    count: Count | None = flag(None, "How many.")
    share: Share = flag(0.5, "Which part.")
    targets: list[Positive] = flag([1.0], "Each above 0.")
    penalty: Finite = flag(-1.0, "Any number.")
    half: Annotated[float, Range(above=0, high=0.5)] = flag(0.5, "Above 0, and at most a half.")
    seed: Seed = flag(0, "Of the draws.")


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"words": "keep"}, "words is 'keep', but must be one of drop, random"),
        ({"count": 0}, "count is 0, but must be at least 1"),
        ({"share": 1.5}, "share is 1.5, but must be at most 1"),
        ({"share": -1}, "share is -1, but must be at least 0"),
        ({"targets": [2.0, 0.0]}, "targets is 0, but must be above 0"),
        ({"penalty": float("nan")}, "penalty is nan, but must be finite"),
        ({"half": 0.0}, "half is 0, but must be above 0"),
        ({"half": 0.6}, "half is 0.6, but must be at most 0.5"),
        ({"seed": -1}, "seed is -1, but must be at least 0"),
    ],
)
def test_a_value_that_the_type_forbids_is_refused_by_name(
    wrong: dict[str, object], message: str
) -> None:
    with pytest.raises(InputError) as caught:
        Toy(**wrong)  # type: ignore[arg-type]
    assert str(caught.value) == message and caught.value.field == next(iter(wrong))


def test_the_ends_of_a_range_and_none_are_taken() -> None:
    for good in (
        {"share": 0.0},
        {"share": 1.0},
        {"count": 1},
        {"count": None},
        {"seed": 2**32 - 1},
    ):
        Toy(**good)  # type: ignore[arg-type]


def test_instances_share_no_list() -> None:
    first, second = Toy(), Toy()
    first.targets.append(7.0)
    assert second.targets == [1.0]


@dataclass
class Later(Toy):
    share: float = other_default(0.25, Toy, "share")
    count: Annotated[int, Range(low=5)] | None = other_default(5, Toy, "count")


def test_another_default_keeps_help_and_range_and_another_range_replaces_it() -> None:
    help_of = {f.name: f.metadata["help"] for f in dataclasses.fields(Later)}
    assert Later().share == 0.25 and help_of["share"] == "Which part."
    with pytest.raises(InputError, match="share is 2, but must be at most 1"):
        Later(share=2)
    with pytest.raises(InputError, match="count is 4, but must be at least 5"):
        Later(count=4)


class Word(Enum):
    DROP = "drop"


def test_an_enum_counts_as_its_value() -> None:
    toy = Toy()
    toy.words = Word.DROP  # type: ignore[assignment]  # as transformers' arguments hold theirs
    check_flags(toy)


@dataclass
class Training(TrainingArguments):
    INHERITED: ClassVar[dict[str, object]] = {"weight_decay": Share, "not_a_field": Share}

    output_dir: str | None = flag("out", "Folder.")
    loss: Literal["a", "b"] = flag("a", "Which loss.")
    untold: int = field(default=0, init=False)


def test_a_librarys_own_field_is_checked_where_the_class_says_so() -> None:
    check_flags(Training(weight_decay=1.0, use_cpu=True))
    with pytest.raises(InputError, match="weight_decay is 1.5, but must be at most 1"):
        check_flags(Training(weight_decay=1.5, use_cpu=True))


def test_help_shows_default_and_choices(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse(Toy, argv=["--help"])
    assert "--words {drop,random}" in capsys.readouterr().out


def test_a_stock_parser_reads_the_same_dataclasses() -> None:
    (toy,) = HfArgumentParser(Toy).parse_args_into_dataclasses(["--share", "0.25", "--count", "3"])
    assert (toy.share, toy.count) == (0.25, 3)


@dataclass
class NumberOrWord(Flags):
    rate: Annotated[float | str, Range(low=0, words=("auto",))] = flag(0.5, "A rate, or auto.")


def test_a_field_may_hold_a_number_or_a_word() -> None:
    assert NumberOrWord(rate="auto").rate == "auto" and NumberOrWord(rate=2.0).rate == 2.0
    with pytest.raises(InputError, match="rate is 'fast', but must be one of a number, auto"):
        NumberOrWord(rate="fast")
    with pytest.raises(InputError, match="rate is -1, but must be at least 0"):
        NumberOrWord(rate=-1.0)


@pytest.mark.parametrize("words", [["--rate", "auto"], ["--config", "FILE"]])
def test_a_number_or_a_word_from_the_command_line_or_a_file(
    words: list[str], tmp_path: Path
) -> None:
    path = tmp_path / "c.yaml"
    path.write_text("rate: auto\n")
    words = [str(path) if word == "FILE" else word for word in words]
    assert parse(NumberOrWord, argv=words)[0].rate == "auto"
    assert parse(NumberOrWord, argv=["--config", str(path), "--rate", "3"])[0].rate == 3.0
    path.write_text("rate: fast\n")
    with pytest.raises(InputError, match="c.yaml:1: rate is 'fast'"):
        parse(NumberOrWord, argv=["--config", str(path)])


@dataclass
class Naming(Flags):
    columns: Named = flag([], "Which is which.")
    show: Count | None = flag(None, "How many.", bare=5)


def test_words_with_names_may_be_a_mapping_in_yaml_and_only_there(tmp_path: Path) -> None:
    assert named_of(Naming) == ["columns"] and named_of(Toy) == []
    (typed,) = parse(Naming, argv=["--columns", "a=1", "b=2"])
    assert typed.columns == ["a=1", "b=2"]
    (tmp_path / "c.yaml").write_text("columns: {a: [1, 2]}")
    (given,) = parse(Naming, argv=["--config", str(tmp_path / "c.yaml")])
    assert given.columns == {"a": [1, 2]}  # for the class to turn into words
    (tmp_path / "c.yaml").write_text("targets: {a: 1}")
    with pytest.raises(InputError, match="targets is .*but must be of type"):
        parse(Toy, argv=["--config", str(tmp_path / "c.yaml")])


@pytest.mark.parametrize(("words", "value"), [([], None), (["--show"], 5), (["--show", "2"], 2)])
def test_a_flag_for_a_number_may_stand_without_one(words: list[str], value: int | None) -> None:
    (toy,) = parse(Naming, argv=words)
    assert toy.show == value
