"""The report on runs: verdicts, alarms, the data sheet, and a page on which nothing is alive."""

import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from toolkit.data.files import write_json, write_jsonl
from toolkit.data.prompts import Prompts
from toolkit.data.records import from_row, to_row
from toolkit.errors import InputError
from toolkit.evaluation.contenders import Contender, Outputs
from toolkit.evaluation.frontier import frontier
from toolkit.evaluation.head_to_head import (
    compare,
    contender_results,
    gaps,
)
from toolkit.evaluation.result import Evaluation, JudgeResult, SeenPrompts
from toolkit.evaluation.run_page import Report, write_run_report
from toolkit.evaluation.run_report import (
    data_sheet,
    last_fifth,
    overoptimised,
    read_evaluation,
    read_ppo_run,
    read_reward_run,
    verdicts,
)
from toolkit.evaluation.samples import SampleRow, read_samples, sample_rows, write_samples
from toolkit.evaluation.tables import place_table, print_evaluation
from toolkit.training.log_rows import read_log

HOSTILE = [
    "<script>document.title='owned'</script>", "<img src=x onerror=\"document.title='owned'\">",
    "</table></details><h1>out</h1>", "<svg onload=document.title='owned'>",
    "<iframe src=http://127.0.0.1:9/x></iframe>", "<a href=\"javascript:alert(1)\">x</a>",
    "<style>body{display:none}</style>", "<link rel=stylesheet href=http://127.0.0.1:9/y.css>",
    "{{ 7 * 7 }}{% for x in y %}", "\x1b[31mred\x1b[0m \x1b]0;owned\x07", "\u202egnp.exe\u202c",
    "\u200bzero\u200bwidth\ufeff", "&lt;script&gt;", "\x00null\x08back", "' onmouseover='alert(1)",
    "<!-- comment", "]]><![CDATA[", "<meta http-equiv=refresh content='0;url=http://127.0.0.1:9'>",
    "a" * 300_000, "\ud800 half <b>bold</b>", "<form action=http://127.0.0.1:9><input name=q>",
]  # fmt: skip
LOG = [
    {"update": i, "episode": 10 * i, "objective/scores": i / 10, "objective/kl": 5 + (i % 2) * 0.2,
     "objective/kl_target": 5.0, "objective/kl_coef": 0.1, "objective/entropy": 20.0}
    for i in range(1, 11)
]  # fmt: skip
METRICS = {"accuracy": 0.6, "accuracy_low": 0.5, "accuracy_high": 0.7, "chance": 0.25, "p": 1e-9,
           "comparisons": 100, "loss": 1.0, "prompts": 90}  # fmt: skip


def evaluation(
    texts: list[str], shift: float = 1.0, kind: str = "adapter"
) -> tuple[Evaluation, list[SampleRow]]:
    """A result and its sample rows: the reference, and one that is better by ``shift``."""
    name = "ppo" if kind == "adapter" else "ppo@2"
    contenders = [Contender("reference", "reference"), Contender(name, kind, "x")]
    if kind == "checkpoint":
        contenders.insert(1, Contender("ppo@1", kind, "y"))
    count = len(texts)
    made, scores = {}, {"rm": {}, "<b>truth</b>": {}}
    for place, c in enumerate(contenders):
        made[c.name] = Outputs(texts, None, [0.5 * place] * count, [3] * count)
        scores["rm"][c.name] = [(i * 7 % 5) + shift * place for i in range(count)]
        scores["<b>truth</b>"][c.name] = [(i * 3 % 5) + place for i in range(count)]
    not_trained = SeenPrompts(trained_prompts=0, trained_prompts_note=None)
    results = contender_results(contenders, made, scores, texts, dict.fromkeys(made, not_trained))
    pairs, ratings = compare([c.name for c in contenders], scores, {})
    curve = frontier(torch.randn(4, 64, generator=torch.Generator().manual_seed(0)), 1.0)
    result = Evaluation(
        prompts=count,
        contenders=results,
        vocabulary=None,
        chat_template=None,
        chat_template_kwargs={},
        reference="reference",
        judges=[JudgeResult(name, "function", name == "rm") for name in scores],
        pairs=pairs,
        ratings=ratings,
        gaps=gaps(results, pairs, "rm"),
        frontier={"rm": curve},
    )
    asked = Prompts([[i] for i in range(count)])
    asked.given = dict(enumerate(texts))
    tokenizer: Any = None  # nothing is decoded
    return result, sample_rows(asked, tokenizer, made, scores)


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    return leave_behind(tmp_path)


def leave_behind(tmp_path: Path) -> Path:
    """Folders as ppo.py, reward.py, evaluate.py and label.py leave them, with hostile texts."""
    write_jsonl(tmp_path / "ppo" / "log.jsonl", LOG)
    timings = [{"update": i, "seconds": 2.0, "peak_mb": 100 + i} for i in range(1, 11)]
    write_jsonl(tmp_path / "ppo" / "timings.jsonl", timings)
    facts = {
        "settings": {"model_name_or_path": "<b>base</b>", "precision": "fp32"},
        "versions": {"torch": "2"},
    } | {"seed": 3, "git": "abc", "device": "cpu", "written": "today"}
    write_json(tmp_path / "ppo" / "run.json", facts)
    history = [{"step": 5, "loss": 1.3, "accuracy": 0.4}, {"step": 9, "loss": 1.1, "accuracy": 0.5}]
    write_json(tmp_path / "reward" / "run.json", facts | {"metrics": METRICS, "history": history})
    result, samples = evaluation(HOSTILE)
    result.write(tmp_path / "evaluation" / "evaluation.json")
    write_samples(tmp_path / "evaluation", samples)
    comparisons = [
        {"prompt": p, "completions": ["a b", "c"], "best": b, "labeler": who}
        for p, b, who in [("p", 0, "ann"), ("p", 0, "bob"), ("q", 1, "ann"), ("q", 0, "bob"),
                          ("r", 1, HOSTILE[0])]
    ]  # fmt: skip
    write_jsonl(tmp_path / "comparisons.jsonl", comparisons)
    return tmp_path


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report on all of that."""
    folder = leave_behind(tmp_path_factory.mktemp("runs"))
    runs = {"ppo": read_ppo_run(folder / "ppo")}
    rewards = {HOSTILE[0]: read_reward_run(folder / "reward")}
    result, samples = read_evaluation(folder / "evaluation", 30)
    facts = verdicts(runs, rewards, result)
    sheet = data_sheet(folder / "comparisons.jsonl")
    return write_run_report(
        folder / "report", Report(HOSTILE[0], facts, runs, rewards, result, samples, sheet)
    )


def test_the_page_is_self_contained_and_escaped_and_json_and_pictures_lie_beside(
    report: Path,
) -> None:
    page = report.read_text(encoding="utf-8")
    for tag in ("<script", "<img src=x", "<iframe", "<link", "<svg", "<form", "<meta http"):
        assert tag not in page
    assert page.count("<img ") == page.count('src="data:image/png;base64,') == 5
    assert "{{ 7 * 7 }}" in page and "\x1b" not in page and "\u202e" not in page
    assert "\\u202e" in page  # what would hide is written out
    found = json.loads((report.parent / "report.json").read_text())
    assert found["samples"][0]["prompt"] == HOSTILE[0]
    assert {p.name for p in report.parent.glob("*.png")} == {
        "learning_curves.png", "reward_training.png", "win_rates.png", "frontier_rm.png",
        "frontier__b_truth__b_.png",
    }  # fmt: skip


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


@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_hostile_completions_are_inert_in_a_browser(
    browser: Any, report: Path, width: int, scheme: str
) -> None:
    context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
    page = context.new_page()
    asked: list[str] = []
    said: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.on("dialog", lambda dialog: said.append(dialog.message))
    page.goto(f"file://{report}")
    assert [url for url in asked if not url.startswith(("file://", "data:"))] == []
    assert said == [] and page.title() == HOSTILE[0]
    assert page.locator("script, iframe, form, link, svg, meta[http-equiv]").count() == 0
    assert page.locator("h1").count() == 1  # none got out of its cell
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    shown = page.locator("td.text").all_inner_texts()
    assert any(HOSTILE[3] in text for text in shown)
    background = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (background == "rgb(22, 24, 27)") is (scheme == "dark")
    context.close()


def test_hostile_text_is_no_markup_in_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    result, samples = evaluation(["[red]x[/red]", "\x1b[31my", "z"])
    result.judges.append(JudgeResult("people", "people", False))
    print_evaluation(result, samples)  # people have no scores, and no curve
    out = capsys.readouterr().out
    assert "[red]x[/red]" in out.replace("\n", "") and "\x1b" not in out


def test_verdicts_say_no_where_it_is_no(runs: Path) -> None:
    good = {f[0]: f[2] for f in verdicts({"ppo": read_ppo_run(runs / "ppo")}, {}, None)}
    assert good == {"ppo: the KL was held": "yes"}
    write_jsonl(runs / "ppo" / "log.jsonl", [row | {"objective/kl_target": 5.7} for row in LOG])
    missed = {f[0]: f[2] for f in verdicts({"ppo": read_ppo_run(runs / "ppo")}, {}, None)}
    assert missed == {"ppo: the KL was held": "no"}
    reward = read_reward_run(runs / "reward")
    lost = replace(reward.verdict, answer="no")
    assert verdicts({}, {"r": reward}, None)[0][2] == "yes"
    assert verdicts({}, {"r": replace(reward, verdict=lost)}, None)[0][2] == "no"
    result, _ = evaluation([str(i) for i in range(40)], shift=0.0)
    facts = {f[0]: f[2] for f in verdicts({}, {}, result)}  # by whom it was not trained on
    assert facts["ppo better than reference, says <b>truth</b>"] == "yes"
    result = replace(result, judges=[replace(j, training_reward=False) for j in result.judges])
    facts = {f[0]: f[2] for f in verdicts({}, {}, result)}  # by the first
    assert facts["ppo better than reference, says rm"] == "no"
    assert facts["free of over-optimisation"] == ""


def test_a_later_checkpoint_that_only_the_training_reward_likes_raises_the_alarm() -> None:
    result, _ = evaluation([str(i) for i in range(60)], kind="checkpoint")
    assert overoptimised(result) == []
    place = next(
        i for i, p in enumerate(result.pairs)
        if (p.a, p.b, p.judge) == ("ppo@2", "ppo@1", "<b>truth</b>")
    )  # fmt: skip
    result.pairs[place] = replace(
        result.pairs[place], difference=-(result.pairs[place].difference or 0.0)
    )
    (alarm,) = overoptimised(result)
    assert alarm.startswith("ppo@2: <b>truth</b> finds it worse than ppo@1")


def test_the_data_sheet_counts_labellers_and_how_far_they_agree(runs: Path) -> None:
    sheet = data_sheet(runs / "comparisons.jsonl")
    assert sheet.comparisons == 5 and sheet.prompts == 3
    assert sheet.labellers == {"ann": 2, "bob": 2, HOSTILE[0]: 1}
    assert sheet.positions == [3, 2] and sheet.completions == {"2": 5}
    assert sheet.items_twice == 2 and sheet.agreement == 0.5
    # Units (0, 0) and (1, 0): D_o = 1/4 * 2 = 1/2, D_e = 6 / 12, so alpha is 0.
    assert sheet.alpha == pytest.approx(0.0)


def test_places_below_the_curve_stop_where_its_samples_do() -> None:
    result, _ = evaluation([str(i) for i in range(40)])
    found = place_table(result, "rm")
    assert found is not None
    (row,) = found[1]
    assert row[0] == "ppo" and "% ± " in row[4]
    result.contenders[1] = replace(result.contenders[1], kl=9.0)
    found = place_table(result, "rm")
    assert found is not None and found[1][0][3:] == ["beyond what the samples support", ""]
    assert place_table(result, "<b>truth</b>") is None  # no curve was made for it


def test_a_few_wins_are_no_verdict_and_an_unfinished_run_says_so(runs: Path) -> None:
    result, _ = evaluation(["a", "b", "c", "d"])  # 4 wins of 4: p is 0.125
    assert {f[0]: f[2] for f in verdicts({}, {}, result)}[
        "ppo better than reference, says <b>truth</b>"
    ] == "no"
    run = read_ppo_run(runs / "ppo")
    run.identity["settings"]["total_episodes"] = 2560
    assert verdicts({"ppo": run}, {}, None)[0] == ("ppo: finished", "100 of 2,560 episodes", "no")


@pytest.mark.parametrize(
    ("edit", "message"),
    [(lambda r: r[:3], "3 rows, but evaluation.json beside it is of 21"),
     (lambda r: [r[0] | {"completions": {"reference": "x"}}, *r[1:]], "jsonl:1: no prompt with a"),
     (lambda r: [r[0], r[1] | {"prompt": 5}, *r[2:]], "jsonl:2: no prompt with a text"),
     (lambda r: [*r[:2], r[2] | {"scores": None}, *r[3:]], "jsonl:3: scores: missing"),
     (lambda r: [], "0 rows")],
)  # fmt: skip
def test_samples_that_were_edited_are_found_out(runs: Path, edit: Any, message: str) -> None:
    path = runs / "evaluation" / "samples.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    write_jsonl(path, edit(rows))
    with pytest.raises(InputError, match=message):
        read_evaluation(runs / "evaluation", 3)
    with pytest.raises(InputError, match=message):
        read_samples(path)


def test_names_that_are_formulas_to_matplotlib_are_drawn(tmp_path: Path) -> None:
    result, _ = evaluation(["a", "b", "c"])
    text = json.dumps(to_row(result))
    text = text.replace('"ppo"', '"$x_{1}$ $"').replace('": "reference"', '": "_ref"')
    odd = from_row(Evaluation, json.loads(text), "evaluation.json")
    write_run_report(tmp_path, Report("T", [], evaluation=odd))
    assert (tmp_path / "win_rates.png").is_file()


@pytest.mark.parametrize(
    ("read", "message"),
    [(lambda p: read_ppo_run(p), "no log.jsonl"),
     (lambda p: read_ppo_run(p / "x"), "no such folder"),
     (lambda p: read_reward_run(p), "run.json"),
     (lambda p: read_evaluation(p, 3), "evaluation.json"),
     (lambda p: data_sheet(p / "x.jsonl"), "no such file")],
)  # fmt: skip
def test_a_folder_of_something_else_is_one_line(read: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=message) as caught:
        read(tmp_path)
    assert "\n" not in str(caught.value)


def test_last_fifth_rounds_up_and_never_is_empty(runs: Path) -> None:
    log = read_log(runs / "ppo" / "log.jsonl")
    assert last_fifth(log, lambda update: update.episode) == 95.0
    assert last_fifth(log[:1], lambda update: update.episode) == 10.0
    assert last_fifth(log[:6], lambda update: update.episode) == 55.0


def test_what_was_no_number_in_the_last_fifth_is_left_out_of_its_mean(runs: Path) -> None:
    log = read_log(runs / "ppo" / "log.jsonl")
    lost = [*log[:-1], replace(log[-1], scores=None)]
    assert last_fifth(lost, lambda update: update.scores) == pytest.approx(0.9)  # of 0.9 and None
    assert last_fifth(lost[-1:], lambda update: update.scores) is None
