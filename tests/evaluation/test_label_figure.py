"""The page on what more labels are worth: its points, its table and its files."""

import json
from dataclasses import fields
from pathlib import Path

import pytest

from toolkit.errors import InputError
from toolkit.evaluation.label_figure import (
    headers_of,
    label_points,
    row_of,
    write_label_page,
)
from toolkit.evaluation.result import ContenderResult, Evaluation, JudgeResult, ScoreSummary


def contender(name: str, gain: float, **scores: ScoreSummary) -> ContenderResult:
    told = {"name": name, "kl": None if name == "untuned" else 3.0, "kl_error": 0.1}
    told["scores"] = scores or {"words": ScoreSummary(2 * gain, 0.4, gain, 3.0)}
    return ContenderResult(**{field.name: 0.0 for field in fields(ContenderResult)} | told)


def evaluation(*contenders: ContenderResult) -> Evaluation:
    return Evaluation(
        prompts=64,
        contenders=list(contenders),
        vocabulary=None,
        chat_template=None,
        chat_template_kwargs=None,
        reference="untuned",
        judges=[JudgeResult("words", "lexicon", False)],
        pairs=[],
    )


def test_the_points_stand_by_labels_with_the_direct_one_last_in_reference_deviations() -> None:
    untuned = contender("untuned", 0.0, words=ScoreSummary(0.0, 0.4, 0.0, 2.0))
    result = evaluation(untuned, contender("many", 1.5), contender("few", 0.5),
                        contender("direct", 2.0))  # fmt: skip
    points = label_points(result, {"many": 1000, "few": 50}, "direct")
    assert [(p.name, p.labels) for p in points] == [("few", 50), ("many", 1000), ("direct", None)]
    assert points[0].gains == {"words": 0.5}
    assert points[0].errors == {"words": pytest.approx(0.4 / 2.0)}  # not its own deviation, 3
    assert headers_of(["words"]) == ["policy", "labels", "KL, nats", "gain by words"]
    assert row_of(points[1]) == ["many", "1,000", "3.00 ± 0.10", "1.50 ± 0.20"]
    assert row_of(points[2])[1] == "none"


def test_the_page_has_the_picture_and_escapes_names(tmp_path: Path) -> None:
    untuned = contender("untuned", 0.0)
    result = evaluation(untuned, contender("<b>", 1.0), contender("direct", 2.0))
    points = label_points(result, {"<b>": 10}, "direct")
    text = write_label_page(tmp_path, "Labels", points, result).read_text()
    assert "&lt;b&gt;" in text and '<td class=""><b>' not in text
    assert "<picture>" in text and "same 64 prompts" in text
    assert (tmp_path / "labels-words.png").read_bytes().startswith(b"\x89PNG")
    assert json.loads((tmp_path / "labels.json").read_text())[0]["labels"] == 10


def test_a_policy_that_took_no_part_and_a_judge_without_scores_are_refused() -> None:
    untuned = contender("untuned", 0.0)
    with pytest.raises(InputError, match="lost is not among the contenders"):
        label_points(evaluation(untuned), {"lost": 10}, None)
    silent = evaluation(ContenderResult(**vars(untuned) | {"scores": {}}))
    with pytest.raises(InputError, match="no judge scores"):
        label_points(silent, {"lost": 10}, None)
