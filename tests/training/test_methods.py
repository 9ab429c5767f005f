"""A method's row says what its recipe does."""

import re
from typing import get_args, get_type_hints

import pytest

from toolkit.cli import RECIPES, bind, recipe
from toolkit.training.baselines.config import LOSSES
from toolkit.training.methods import ALGORITHMS, METHODS, ROWS, Method, method_of
from toolkit.training.ppo.algorithms import AlgorithmArguments


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_a_recipe_is_there_and_is_told_the_method(row: Method) -> None:
    assert (RECIPES / f"{row.recipe}.py").is_file()
    if "--method" in row.words:
        assert bind(recipe(row.recipe).main, list(row.words))[-1].method == row.name


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
    for row in (*ROWS, *ALGORITHMS.values()):
        assert set(row.settings) <= known


def test_a_run_of_ppos_loop_is_named_after_its_algorithm() -> None:
    """Otherwise a card would say that PPO had trained what GRPO did."""
    flags = get_args(get_type_hints(AlgorithmArguments)["algorithm"])
    assert {"ppo", *ALGORITHMS} == set(flags)
    grpo = method_of("ppo", {"algorithm": "grpo"})
    assert grpo is not None and "GRPO (arXiv 2402.03300)" in grpo.sentence
    assert (grpo.recipe, grpo.adapter) == ("ppo", "adapters/policy")
    for settings in ({}, {"algorithm": "ppo"}):
        assert method_of("ppo", settings) is METHODS["ppo"]
    assert method_of("grpo", {"algorithm": "grpo"}) is METHODS["grpo"]  # TRL's
    assert method_of("evaluate", {}) is None and method_of(None, {}) is None


@pytest.mark.parametrize("row", [*ROWS, *ALGORITHMS.values()], ids=lambda row: row.name)
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
