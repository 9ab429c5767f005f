"""The list of subcommands: every recipe once, in plain words, and no wider than a terminal."""

from toolkit.commands import GROUPS, command_names, overview, shown_name, summary_of
from toolkit.embedded import RECIPES


def test_every_recipe_is_in_one_group() -> None:
    grouped = [name for names in GROUPS.values() for name in names]
    assert sorted(grouped) == command_names() == sorted(p.stem for p in RECIPES.glob("*.py"))


def test_the_list_has_a_line_of_every_recipes_own_and_fits_a_terminal() -> None:
    shown = overview()
    assert max(map(len, shown.splitlines())) <= 80
    for name in command_names():
        summary = summary_of(name)
        assert summary and "\n" not in summary
        assert f"\n  {shown_name(name)} " in shown
        assert " ".join(summary.split()) in " ".join(shown.split())
