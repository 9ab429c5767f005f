"""Which prompts are unlike others, on the embedded model; and what is refused."""

import json
from pathlib import Path

import pytest

from toolkit.cli import call, recipe
from toolkit.embedded import embedded
from toolkit.errors import InputError

main = recipe("ood").main


def prompts(name: str, count: int, skip: int = 0) -> list[dict[str, str]]:
    lines = Path(embedded(name)).read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines[skip : skip + count]]


def write(path: Path, rows: list[dict[str, str]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def test_words_in_disorder_are_found_and_the_best_layer_and_score_are_used(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    like = write(tmp_path / "like.jsonl", prompts("prompts.jsonl", 400))
    strange = [
        {"prompt": " ".join(reversed(row["prompt"].split()))}
        for row in prompts("prompts.jsonl", 100, 400)
    ]
    known, others = write(tmp_path / "known.jsonl", strange[:50]), strange[50:]
    usual = prompts("prompts.heldout.jsonl", 50)
    asked = write(tmp_path / "asked.jsonl", usual + others)
    output = tmp_path / "ood.jsonl"
    words = ["--like", like, "--prompts", asked, "--precision", "fp32", "--output", str(output)]

    assert call(main, [*words, "--outliers", known]) is None  # a number would be the exit code
    said = capsys.readouterr().out
    assert "The best is" in said and "A linear classifier that knows 10" in said
    rows = [json.loads(line) for line in output.read_text().splitlines()]
    scores = [row["ood_score"] for row in rows]
    assert len(rows) == 100 and scores == sorted(scores, reverse=True)
    of_others = {row["prompt"] for row in others}
    found = [row["ood"] for row in rows if row["prompt"] in of_others]
    wrong = [row["ood"] for row in rows if row["prompt"] not in of_others]
    assert sum(found) > 0.6 * len(found) and sum(wrong) < 0.3 * len(wrong)

    # Without known outliers it is the last layer and the plain distance, and the same each time.
    call(main, [*words, "--overwrite"])
    said = capsys.readouterr().out
    assert "AUROC" not in said and "(mahalanobis, layer" in said
    once = output.read_text()
    call(main, [*words, "--overwrite"])
    assert output.read_text() == once


def test_prompts_that_are_asked_about_are_not_fitted_to(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The scores are those of a run whose --like lacks them."""
    like, asked = prompts("prompts.jsonl", 240), prompts("prompts.heldout.jsonl", 20)
    told = ["--prompts", write(tmp_path / "asked.jsonl", asked), "--precision", "fp32"]
    found = []
    for name, rows in (("apart", like), ("both", asked[:15] + like + asked[15:])):
        words = ["--like", write(tmp_path / f"{name}.jsonl", rows), *told]
        call(main, [*words, "--output", str(tmp_path / f"{name}-ood.jsonl")])
        found.append((tmp_path / f"{name}-ood.jsonl").read_text())
        noted = "note: 20 prompts of --like will not be fitted to" in capsys.readouterr().out
        assert noted == (name == "both")
    assert found[0] == found[1]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("", "like: name prompts that are as they should be"),
        ("--like demo:prompts.jsonl", "like: name prompts"),
        ("--like demo:prompts.jsonl --like_limit 150 --prompts demo:prompts.heldout.jsonl",
         "has 150 prompts, but the model is 128 wide, .* 162 or more"),
        ("--like demo:prompts.jsonl --like_limit 300 --prompts demo:prompts.jsonl --limit 150",
         r"has 150 prompts besides the 150 that are in --prompts, too, but the model is 128"),
        ("--like demo:prompts.jsonl --prompts demo:prompts.heldout.jsonl --layer 99",
         "layer: 99, but the model has layers 0"),
        ("--like demo:prompts.jsonl --outliers demo:prompts.jsonl --outliers_limit 5",
         "outliers: 5 of the 5 prompts of .* are also in"),
        ("--like demo:prompts.jsonl --like_limit 170 --outliers demo:prompts.heldout.jsonl "
         "--few 140", "few: a classifier from 140 outliers .* there are 136 without"),
        ("--like nowhere.jsonl --prompts demo:prompts.jsonl", "nowhere.jsonl"),
        ("--like demo:prompts.jsonl --prompts demo:prompts.jsonl --quantile 1.5", "quantile"),
    ],
)  # fmt: skip
def test_a_mistake_is_said_before_a_model_is_loaded(
    words: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "ood.jsonl"

    def loaded(*args: object) -> None:
        raise AssertionError("a model was loaded")

    monkeypatch.setattr("toolkit.models.from_arguments.base_of", loaded)
    with pytest.raises(InputError, match=said):
        call(main, [*words.split(), "--output", str(output)])
    assert not output.exists()
