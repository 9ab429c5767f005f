"""The report's page: everything is in it, and nothing on it is alive."""

import json
import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from matplotlib.figure import Figure

from toolkit.data.records import from_row, to_row
from toolkit.errors import InputError
from toolkit.evaluation.ratings import Predicted, Rating, Ratings
from toolkit.evaluation.result import Evaluation
from toolkit.evaluation.run_page import (
    Report,
    draw_curves,
    draw_frontier,
    scaled_policies,
    write_run_report,
)
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
    assert "No contender was trained on any of them." in page
    for place in re.findall(r'<a href="#(\w+)"', page):  # the contents
        assert f'id="{place}"' in page
    assert "&lt;b&gt;base&lt;/b&gt;" in page and "ppo today" in page  # its model and date
    found = json.loads((report.parent / "report.json").read_text())
    assert found["samples"][0]["prompt"] == hostile[0]
    assert {p.name for p in report.parent.glob("*.png")} == {
        "learning_curves.png",
        "reward_training.png",
        "win_rates.png",
        "frontier_rm.png",
        "frontier__b_truth__b_.png",
    }


def test_models_by_peoples_choices_stand_on_the_page_escaped_with_their_predictions(
    tmp_path: Path,
) -> None:
    predicted = Predicted(1620.4, 1600, 1640, 1590)
    models = [
        Rating("<b>new", 1612.3, 1590, 1633, 40, 30, predicted),
        Rating("old", 1387.7, 1367, 1410, 40, 10, predicted),
    ]
    path = tmp_path / "ratings.json"
    Ratings("bradley_terry", models, "reward", 3).write(path)
    found = Ratings.read(path, "--ratings")
    page = write_run_report(tmp_path / "page", Report("T", [], ratings=found)).read_text()
    row = ["&lt;b&gt;new", "1612", "1590 to 1633", "40", "75%", "1620", "1600 to 1640", "1590"]
    cells = re.findall(r"<td[^>]*>(.*?)</td>", page.partition('id="rated"')[2])
    assert cells[: len(row)] == row
    assert "made by Bradley-Terry" in page and "(3 others are left out)" in page
    assert json.loads((tmp_path / "page" / "report.json").read_text())["ratings"]["left_out"] == 3

    alone = Report("T", [], ratings=Ratings("elo", [replace(models[1], predicted=None)]))
    page = write_run_report(tmp_path / "alone", alone).read_text()
    assert "predicted" not in page and '<a href="#rated">' in page

    path.write_text(path.read_text().replace("bradley_terry", "dice"))
    with pytest.raises(InputError, match="ratings.json: method is 'dice'"):
        Ratings.read(path, "--ratings")


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


def test_the_frontiers_picture_has_a_line_through_a_policy_at_several_factors(
    evaluation: Callable[..., Any],
) -> None:
    result, _ = evaluation(["a", "b", "c"])
    whole = next(c for c in result.contenders if c.name == "ppo")
    half = replace(whole, name="ppo*0.5", kind="merged", kl=0.25)
    scaled = replace(result, contenders=[result.contenders[0], replace(whole, name="ppo*1"), half])
    figure = Figure()
    draw_frontier(figure, scaled, "rm", {})
    (axis,) = figure.axes
    assert [text.get_text() for text in axis.texts][-2:] == ["×0.5", "×1"]
    (line,) = [one for one in axis.lines if one.get_marker() == "o" and one.get_linestyle() == "-"]
    assert list(line.get_xdata()) == [0.25, whole.kl]
    labels = {text.get_text() for text in figure.legends[0].get_texts()}
    assert "ppo, scaled" in labels and "ppo*1" not in labels


def test_a_runs_path_is_whole_and_few_points_are_marked(
    kept_runs: Path, evaluation: Callable[..., Any]
) -> None:
    run = read_ppo_run(kept_runs / "ppo")
    far = replace(run.log[-1], kl=40.0)
    back = replace(run.log[-1], kl=-0.5)  # an estimate may be below 0
    run = replace(run, log=[*run.log, far, back])
    result, _ = evaluation(["a", "b", "c"])
    figure = Figure()
    draw_frontier(figure, result, "rm", {"ppo": run})
    left, right = figure.axes[0].get_xlim()
    assert left < -0.5 and right > 40
    (path,) = [line for line in figure.axes[0].lines if "while" in str(line.get_label())]
    (end,) = [drawn for drawn in figure.axes[0].containers if drawn.get_label() == "ppo"]
    assert path.get_color() == end.lines[0].get_color()

    curves = Figure()
    draw_curves(curves, {"ppo": run})
    assert {axis.lines[0].get_marker() for axis in curves.axes} == {"o"}
    many = replace(run, log=run.log * 5)
    curves = Figure()
    draw_curves(curves, {"ppo": many})
    assert {axis.lines[0].get_marker() for axis in curves.axes} == {"None"}


@pytest.mark.parametrize(
    ("data", "said"),
    [({"held_out_trained_on": 0}, "held-out"), ({"held_out_trained_on": 3}, "evaluation"),
     ({}, "evaluation")],
)  # fmt: skip
def test_only_prompts_that_a_run_did_not_see_are_called_held_out(
    kept_runs: Path, data: dict[str, int], said: str
) -> None:
    run = read_ppo_run(kept_runs / "ppo")
    log = [replace(update, held_out_scores=1.0) for update in run.log]
    figure = Figure()
    draw_curves(figure, {"ppo": replace(run, log=log, identity={"data": data})})
    labels = [text.get_text() for text in figure.axes[0].get_legend().get_texts()]
    assert f"ppo, {said} prompts" in labels
