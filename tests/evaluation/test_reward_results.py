"""A report that is written and read again is the same, and old files are still read."""

import json
from pathlib import Path

from toolkit.data.records import to_row
from toolkit.evaluation.reward_analysis import analyze
from toolkit.evaluation.reward_results import CurvePoint, RewardReport


def test_a_report_survives_its_file_and_one_from_before_the_groups_is_read(tmp_path: Path) -> None:
    rows = [
        {
            "prompt": f"p{i}",
            "completions": ["a", "bb", "ccc"],
            "best": i % 3,
            "labeler": "xy"[i % 2],
        }
        for i in range(30)
    ]
    analysis = analyze(rows, [[0.0, 1.0, 0.5]] * 30, 1.0, 0.0)
    report = RewardReport(analysis, [CurvePoint(0.5, 15, 0.3, 0.1, 0.5, None)], {"a": 1}, "Yes.")
    path = tmp_path / "reward_report.json"
    report.write(path)
    assert RewardReport.read(path, "--run") == report
    assert [g.group for g in report.analysis.by_labeler] == ["x", "y"]

    old = to_row(report)
    for name in ("by_source", "by_labeler"):
        del old["analysis"][name]
    for name in ("equal_pairs", "all_pairs"):
        old["analysis"]["length_bias"].pop(name, None)
    path.write_text(json.dumps(old))
    read = RewardReport.read(path, "--run").analysis
    assert read.by_labeler == [] and read.accuracy == analysis.accuracy
