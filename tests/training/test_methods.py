"""A method's row says what its recipe does."""

import re

import pytest

from toolkit.cli import RECIPES, bind, recipe
from toolkit.training.baselines.config import LOSSES
from toolkit.training.methods import METHODS, ROWS, Method


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_a_recipe_is_there_and_is_told_the_method(row: Method) -> None:
    assert (RECIPES / f"{row.recipe}.py").is_file()
    if row.recipe == "preference":
        assert bind(recipe("preference").main, list(row.words))[-1].method == row.name


def test_each_method_of_preference_py_has_a_row() -> None:
    assert {row.name for row in ROWS if row.recipe == "preference"} == set(LOSSES)


def test_the_card_shows_settings_that_some_recipe_has() -> None:
    """A misspelled setting would silently be missing from every card."""
    known = {
        name
        for row in ROWS
        for part in bind(recipe(row.recipe).main, list(row.words))
        for name in vars(part)
    }
    for row in ROWS:
        assert set(row.settings) <= known


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_papers_are_cited_by_their_ids(row: Method) -> None:
    assert "{" not in row.sentence
    if row.paper is not None:
        assert re.fullmatch(r"\d{4}\.\d{5}", row.paper.arxiv)
        assert row.paper.arxiv in row.source


def test_names_begin_with_no_other_name() -> None:
    """compare.py knows a stage's method by how its config's name begins."""
    names = [*METHODS, "sample", "label", "evaluate", "report"]
    for name in names:
        assert [other for other in names if other.startswith(name)] == [name]


def test_publish_looks_for_ppos_adapter_where_ppo_leaves_it() -> None:
    (args,) = bind(recipe("publish").main, [])
    assert args.adapter == f"outputs/ppo/{METHODS['ppo'].adapter}"
