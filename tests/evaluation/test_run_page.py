"""The report's page: everything is in it, and nothing on it is alive."""

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from toolkit.data.records import from_row, to_row
from toolkit.evaluation.result import Evaluation
from toolkit.evaluation.run_page import Report, scaled_policies, write_run_report
from toolkit.evaluation.run_report import (
    data_sheet,
    read_evaluation,
    read_ppo_run,
    read_reward_run,
    verdicts,
)


@pytest.fixture(scope="module")
def report(kept_runs: Path, hostile: list[str]) -> Path:
    """The report on all of that."""
    folder = kept_runs
    runs = {"ppo": read_ppo_run(folder / "ppo")}
    rewards = {hostile[0]: read_reward_run(folder / "reward")}
    result, samples = read_evaluation(folder / "evaluation", 30)
    facts = verdicts(runs, rewards, result)
    sheet = data_sheet(folder / "comparisons.jsonl")
    return write_run_report(
        folder / "report", Report(hostile[0], facts, runs, rewards, result, samples, sheet)
    )


@pytest.mark.slow
def test_the_page_is_self_contained_and_escaped_and_json_and_pictures_lie_beside(
    report: Path, hostile: list[str]
) -> None:
    page = report.read_text(encoding="utf-8")
    for tag in ("<script", "<img src=x", "<iframe", "<link", "<svg", "<form", "<meta http"):
        assert tag not in page
    assert page.count("<img ") == page.count('src="data:image/png;base64,') == 5
    assert "{{ 7 * 7 }}" in page and "\x1b" not in page and "\u202e" not in page
    assert "\\u202e" in page  # what would hide is written out
    assert "Prompt: <strong>&lt;script&gt;document" in page
    found = json.loads((report.parent / "report.json").read_text())
    assert found["samples"][0]["prompt"] == hostile[0]
    assert {p.name for p in report.parent.glob("*.png")} == {
        "learning_curves.png",
        "reward_training.png",
        "win_rates.png",
        "frontier_rm.png",
        "frontier__b_truth__b_.png",
    }


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.skip("no chromium on this machine")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        yield opened
        opened.close()


@pytest.mark.slow
@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_hostile_completions_are_inert_in_a_browser(
    browser: Any, report: Path, hostile: list[str], width: int, scheme: str
) -> None:
    context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
    page = context.new_page()
    asked: list[str] = []
    said: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.on("dialog", lambda dialog: said.append(dialog.message))
    page.goto(f"file://{report}")
    assert [url for url in asked if not url.startswith(("file://", "data:"))] == []
    assert said == [] and page.title() == hostile[0]
    assert page.locator("script, iframe, form, link, svg, meta[http-equiv]").count() == 0
    assert page.locator("h1").count() == 1  # none got out of its cell
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    shown = page.locator("td.text").all_inner_texts()
    assert any(hostile[3] in text for text in shown)
    background = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (background == "rgb(22, 24, 27)") is (scheme == "dark")
    context.close()


@pytest.mark.slow
def test_names_that_are_formulas_to_matplotlib_are_drawn(
    tmp_path: Path, evaluation: Callable[..., Any]
) -> None:
    result, _ = evaluation(["a", "b", "c"])
    text = json.dumps(to_row(result))
    text = text.replace('"ppo"', '"$x_{1}$ $"').replace('": "reference"', '": "_ref"')
    odd = from_row(Evaluation, json.loads(text), "evaluation.json")
    write_run_report(tmp_path, Report("T", [], evaluation=odd))
    assert (tmp_path / "win_rates.png").is_file()


def test_a_policy_at_several_factors_is_one_line_in_the_order_of_the_factors(
    contender_result: Callable[..., Any],
) -> None:
    names = {"ppo*1": "adapter", "ppo*0.5": "merged", "ppo*-1": "merged", "sft*2": "merged",
             "best*2": "best_of_n", "ppo": "adapter"}  # fmt: skip
    found = scaled_policies([contender_result(name, kind=kind) for name, kind in names.items()])
    assert {name: [factor for factor, _ in row] for name, row in found.items()} == {
        "ppo": [-1.0, 0.5, 1.0]
    }
