"""What --help shows: every flag of ours once, in a group, within the terminal's width."""

import re
from collections import Counter
from dataclasses import dataclass, field
from typing import ClassVar, Literal

import pytest

from toolkit.arguments.kl import KLArguments
from toolkit.arguments.prompts import SampledPromptArguments
from toolkit.cli import parse
from toolkit.flags import Count, Flags, flag, other_default
from toolkit.help_text import ORDER, PLAINER, group_of
from toolkit.training.baselines.config import (
    PreferenceConfig,
    RLOOBaselineConfig,
    SFTBaselineConfig,
)
from toolkit.training.ppo.config import PPOConfig
from toolkit.training.reward.config import BestOfKConfig

PATH = " " + "deep/" * 20
Many = Literal["a_word_of_some_length", "another_word_of_length", "a_third_word_of_length"]


@dataclass
class Base(Flags):
    HELP_GROUP: ClassVar[str] = "model"

    size: Count = flag(3, "How large it is.")
    on: bool = flag(True, "Whether it is on.")


@dataclass
class Recipe(Base):
    size: Count = other_default(4, Base, "size")
    own: Literal["left", "right"] = flag("left", "Which way.")
    many: Many = flag("a_word_of_some_length", "Which word.")
    output: str = flag("out.jsonl", "File to write.")


def help_of(
    *types: type, capsys: pytest.CaptureFixture[str], words: tuple[str, ...] = ("--help",)
) -> str:
    with pytest.raises(SystemExit):
        parse(*types, argv=list(words), description="Does it.\n\n    a command\n\nAnd more.")
    return capsys.readouterr().out


def flags_by_group(text: str) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    title = ""
    for line in text.splitlines():
        if re.fullmatch(r"[a-zA-Z][\w ,]*:", line):
            title = line[:-1]
        elif match := re.match(r"  --(\w+)", line):
            found.setdefault(title, []).append(match[1])
    return found


def test_a_flag_stands_in_the_group_of_the_class_that_had_it_first(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert flags_by_group(help_of(Recipe, capsys=capsys)) == {
        "this command": ["own", "many"],
        "model": ["size", "on"],
        "output, saving and resuming": ["output"],
        "general": ["help", "config", "help_all"],
    }


def test_what_stands_beside_a_flag(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    text = " ".join(help_of(Recipe, capsys=capsys).split())
    assert "--size N How large it is. (default: 4)" in text
    assert "--on [true|false] Whether it is on. (default: true)" in text
    assert "--own {left,right} Which way. (default: left)" in text
    assert "--many MANY Which word. One of: a_word_of_some_length, another_word_of_length," in text
    assert "no_on" not in text  # it would say the opposite of its help


def test_the_opposite_is_still_taken() -> None:
    assert parse(Recipe, argv=["--no_on"])[0].on is False
    assert parse(Recipe, argv=["--on", "false"])[0].on is False


@pytest.mark.parametrize(
    "config",
    [PPOConfig, BestOfKConfig, SFTBaselineConfig, PreferenceConfig, RLOOBaselineConfig],
)
@pytest.mark.parametrize("words", ["--help", "--help_all"])
def test_each_flag_is_shown_once_in_eighty_columns(
    config: type,
    words: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    text = help_of(config, capsys=capsys, words=(words,))
    groups = flags_by_group(text)
    assert set(groups) <= set(ORDER)
    shown = Counter(name for names in groups.values() for name in names)
    assert max(shown.values()) == 1 and len(shown) > 20
    whole = [line for line in text.splitlines() if "http" not in line and "`" not in line]
    assert all(len(line) <= 80 for line in whole)


def test_only_ours_are_shown_unless_all_are_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    ours = help_of(BestOfKConfig, capsys=capsys)
    everything = help_of(BestOfKConfig, capsys=capsys, words=("--help_all",))
    assert "--loss_type" in ours and "--fsdp" not in ours
    assert "--loss_type" in everything and "--fsdp" in everything


def test_the_description_keeps_its_commands_and_wraps_the_rest(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert "Does it.\n\n    a command\n\nAnd more.\n" in help_of(Recipe, capsys=capsys)


def test_groups_of_some_flags() -> None:
    assert (
        group_of("kl_coef", (PPOConfig,)) == group_of("kl_target", (KLArguments,)) == "KL penalty"
    )
    assert group_of("kl_coef_max", (PPOConfig,)) == "KL penalty"
    assert group_of("resume", (PPOConfig,)) == "output, saving and resuming"
    assert group_of("prompts", (SampledPromptArguments,)) == "prompts and data"


def test_a_flag_without_a_help_text_is_no_mistake(capsys: pytest.CaptureFixture[str]) -> None:
    @dataclass
    class Bare:
        x: int = field(default=1)

    assert "--x N" in help_of(Bare, capsys=capsys)


def test_the_words_of_other_libraries_are_put_plainly(capsys: pytest.CaptureFixture[str]) -> None:
    for config in (SFTBaselineConfig, RLOOBaselineConfig, BestOfKConfig, PPOConfig):
        text = " ".join(help_of(config, capsys=capsys).split())
        assert PLAINER["seed"] in text and "--report_to TRACKER" in text
        assert not re.search("__len__|SchedulerType|https:|`None`|truncation_mode", text)
    # A text of the toolkit's own stays.
    text = " ".join(help_of(PreferenceConfig, capsys=capsys).split())
    assert "temperature (cpo)" in text and PLAINER["beta"] not in text


def test_a_word_with_a_hyphen_or_a_long_path_stays_whole(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    @dataclass
    class Long(Flags):
        x: str = flag("y", " ".join("a" * (i % 7) + " log-probs" for i in range(30)) + PATH)

    monkeypatch.setenv("COLUMNS", "80")
    words = help_of(Long, capsys=capsys).split()
    assert words.count("log-probs") == 30 and PATH.strip() in words
