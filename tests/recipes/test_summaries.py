"""Summaries from prompts to report, and the settings of TL;DR and CNN/DM."""

import json
from pathlib import Path

import pytest

from toolkit.cli import bind, call, recipe
from toolkit.errors import InputError
from toolkit.evaluation.result import Evaluation

CONFIGS = Path(__file__).parent.parent.parent / "recipes" / "configs"
NEVER_RUN = sorted(path for name in ("tldr", "cnndm") for path in (CONFIGS / name).glob("*.yaml"))
TEXTS = [
    "Hello my dear old friends. The bread was lovely. We came by bus.",
    "Last week we visited the cafe by the lake. The coffee was awful. It rained.",
    "On Monday we visited the hotel near the station. I liked the bed. We paid at the door.",
]


@pytest.mark.parametrize("path", NEVER_RUN, ids=lambda p: f"{p.parent.name}/{p.stem}")
def test_each_setting_is_understood_and_says_that_it_never_ran(path: Path) -> None:
    on_a_cpu = [] if path.stem == "evaluate" else ["--bf16", "false", "--use_cpu", "true"]
    bind(recipe(path.stem.split("-")[0]).main, ["--config", str(path), *on_a_cpu])
    assert "Never run here." in path.read_text()


def write_prompts(path: Path, form: str = "{} TL;DR:") -> Path:
    rows = [
        {"prompt": form.format(text), "completion": f"Digest {i}.", "note": None}
        for i, text in enumerate(TEXTS)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


CONTENDERS = ["--contenders", "lead-1", "lead-2", "human=column:completion"]
WORDS = ["--reference_column", "completion", "--prompt_form", "{prompt} TL;DR:",
         "--lexicon", "demo:lexicon.txt", "--response_length", "8", "--precision", "fp32",
         "--show", "0"]  # fmt: skip


@pytest.mark.slow
def test_leads_and_people_take_part_in_an_evaluation_and_its_report(
    tmp_path: Path, root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(root)
    prompts, out = write_prompts(tmp_path / "p.jsonl"), tmp_path / "evaluation"
    call(
        recipe("evaluate").main,
        ["--prompts", str(prompts), *CONTENDERS, *WORDS, "--output_dir", str(out)],
    )
    said = capsys.readouterr().out
    assert "3 completions are sampled for this first." in said  # of the reference alone
    assert "ROUGE-1, not" in said and "that are not stemmed" in " ".join(said.split())

    found = Evaluation.read(out / "evaluation.json", "test")
    by_name = {c.name: c for c in found.contenders}
    assert list(by_name) == ["reference", "lead-1", "lead-2", "human"]
    assert [c.kl for c in found.contenders] == [0.0, None, None, None]
    assert [c.rouge is None for c in found.contenders] == [False, False, False, True]
    assert {c.trained_prompts for c in found.contenders} == {0}
    lead = by_name["lead-2"].copying
    assert lead is not None and lead.places == [3, 3, 0, 0] and lead.with_preamble == 1
    assert lead.opening_plain == lead.opening_preamble == 1.0
    assert by_name["lead-1"].new_sentences == 0.0 and by_name["human"].new_sentences == 1.0
    # The word list: lovely 2.5, awful -3 and liked 1.5 stand in the second sentences.
    assert by_name["lead-1"].scores["lexicon"].mean == 0.0
    assert by_name["lead-2"].scores["lexicon"].mean == pytest.approx(1 / 3)
    assert {(p.a, p.b) for p in found.pairs} >= {("lead-2", "lead-1"), ("human", "lead-2")}

    # Judged again from the samples, without the contenders.
    again = tmp_path / "again"
    call(
        recipe("evaluate").main,
        ["--samples", str(out), *WORDS, "--output_dir", str(again)],
    )
    assert Evaluation.read(again / "evaluation.json", "test").contenders == found.contenders

    page = tmp_path / "report"
    call(recipe("report").main, ["--evaluation", str(out), "--output_dir", str(page)])
    text = (page / "report.html").read_text()
    assert "R-AVG, not stemmed" in text and "A preamble is hi, hello" in text


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--reference_column", "summary"], "reference_column: the prompts have no column 'summ"),
        (["--reference_column", "note"], "p.jsonl:1: note is None, but must be a text"),
        (["--contenders", "human=column:title"], "contenders: the prompts have no column 'title'"),
        (["--contenders", "lead-3", "--prompt_form", "{prompt}\\nTL;DR:"], "is not in the form"),
        (["--prompt_form", "TL;DR:"], "prompt_form: 'TL;DR:' must have {prompt} in it, once"),
    ],
)
def test_what_cannot_be_measured_is_refused_before_a_model_is_loaded(
    words: list[str],
    said: str,
    tmp_path: Path,
    root: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(root)
    monkeypatch.setattr("toolkit.models.from_arguments.base_of", lambda args: pytest.fail("loaded"))
    told = ["--prompts", str(write_prompts(tmp_path / "p.jsonl")), "--lexicon", "demo:lexicon.txt"]
    told += words if "--contenders" in words else ["--contenders", "best_of_2", *words]
    with pytest.raises(InputError) as caught:
        call(recipe("evaluate").main, [*told, "--output_dir", str(tmp_path / "e")])
    assert said in str(caught.value) and "\n" not in str(caught.value)
    assert not list((tmp_path / "e").glob("*.json*"))
