"""The report: a real PNG, everything escaped, the verdict as it should be."""

from pathlib import Path

import pytest

from toolkit.evaluation.report import last_fifth, plot_curves, print_samples, verdict, write_report

ROWS = [
    {"episode": 10 * i, "objective/scores": i / 10, "objective/rlhf_reward": i / 20,
     "objective/kl": 5.0 + (i % 2) * 0.2, "objective/kl_target": 5.0, "objective/kl_coef": 0.1,
     "objective/entropy": 20.0}
    for i in range(1, 11)
]  # fmt: skip
SUMMARY = {
    "prompts": 10, "wins": 9, "ties": 0, "losses": 1, "win_rate": 0.9, "win_rate_low": 0.6,
    "win_rate_high": 0.98, "policy_score": 2.0, "reference_score": 0.0, "score_gain": 1.0,
    "kl": 5.0, "kl_error": 0.1,
}  # fmt: skip
METRICS = {"accuracy": 0.6, "accuracy_low": 0.5, "accuracy_high": 0.7, "chance": 0.25}
HOSTILE = "<script>alert(1)</script>[bold]{{ 7 * 7 }}\x1b[31m"


def test_curves_are_a_png_with_or_without_a_reward_history() -> None:
    for history in (None, [{"step": 5, "accuracy": 0.4}, {"step": 10, "accuracy": 0.5}]):
        png = plot_curves(ROWS, history)
        assert png.startswith(b"\x89PNG") and len(png) > 10_000


def test_hostile_text_is_inert_in_the_page(tmp_path: Path) -> None:
    sample = {"prompt": HOSTILE, "reference": HOSTILE, "policy": HOSTILE,
              "reference_score": 0.0, "policy_score": 1.0}  # fmt: skip
    write_report(tmp_path / "r.html", HOSTILE, [(HOSTILE, HOSTILE, "yes")], b"png", [sample])
    page = (tmp_path / "r.html").read_text()
    assert "<script" not in page and "&lt;script&gt;" in page
    assert "{{ 7 * 7 }}" in page and "49" not in page.split("base64")[0]
    assert "http" not in page  # no remote asset


def test_hostile_text_is_no_markup_in_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    print_samples([{"prompt": HOSTILE, "reference": "[red]x[/red]", "policy": "y",
                    "reference_score": 0.0, "policy_score": 1.0}])  # fmt: skip
    out = capsys.readouterr().out
    assert "[red]x[/red]" in out.replace("\n", "")
    assert "\x1b" not in out


@pytest.mark.parametrize(
    ("summary", "target", "good"),
    [({}, 5.0, True), ({"win_rate_low": 0.49}, 5.0, False), ({}, 5.7, False), ({}, 4.5, False)],
)
def test_verdict_needs_a_better_policy_and_a_held_kl(
    summary: dict, target: float, good: bool
) -> None:
    rows = [row | {"objective/kl_target": target} for row in ROWS]
    facts, outcome = verdict(SUMMARY | summary, rows, METRICS)
    assert outcome is good
    assert ("no" in [v for _, _, v in facts]) is not good


def test_last_fifth_rounds_up_and_never_is_empty() -> None:
    assert last_fifth(ROWS, "episode") == 95.0
    assert last_fifth(ROWS[:1], "episode") == 10.0
    assert last_fifth(ROWS[:6], "episode") == 55.0
