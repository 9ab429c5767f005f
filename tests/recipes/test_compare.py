"""compare.py and sweep.py: which stages, in which order, told what. (CI runs them whole.)"""

from pathlib import Path

import pytest

from toolkit.cli import bind, call, recipe
from toolkit.errors import InputError
from toolkit.pipeline.stages import Stage

compare = recipe("compare")
sweep = recipe("sweep")


@pytest.fixture(autouse=True)
def at_root(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(root)


@pytest.mark.parametrize(
    ("words", "message"),
    [(["--stages", "ppo,magic"], "stages: 'magic' is not one of sample"),
     (["--configs", "data"], "configs: data: holds no YAML for sample"),
     (["--configs", "nowhere"], "configs: nowhere: no such folder")],
)  # fmt: skip
def test_a_mistake_is_one_line(words: list[str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        call(compare.main, words)


def untrained(folder: Path) -> Path:
    """An evaluation's config with a reward model that nobody trained."""
    path = folder / "evaluate.yaml"
    path.write_text(f"reward_adapter: {folder / 'reward' / 'adapter'}\n")
    return path


def test_a_sweep_is_a_run_for_each_target_then_evaluation_and_report(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    kept: list[Stage] = []
    with pytest.raises(InputError, match="judge reward is .* does not exist"):  # before any run
        call(sweep.main, ["--evaluate_config", str(untrained(tmp_path))])
    monkeypatch.setattr(sweep, "check_judges", lambda stages: None)
    monkeypatch.setattr(sweep, "run_stages", lambda stages, out, again: kept.extend(stages))
    call(sweep.main, ["--kl_targets", "4", "0.5", "--output_dir", "out", "--seed", "7"])
    assert capsys.readouterr().out == "open: out/report/report.html\n"
    assert [s.name for s in kept] == ["kl0.5", "kl4", "evaluate", "report"]
    # A target that is added later does not have those behind it trained again.
    assert [s.after for s in kept] == [(), (), None, None]
    assert kept[0].given["prompts"].name == "prompts.jsonl" and "lexicon" in kept[2].given
    config = bind(kept[1].main, kept[1].words)[-1]
    assert (config.kl_target, config.output_dir, config.seed) == (4.0, "out/kl4", 7)
    told = bind(kept[2].main, kept[2].words)[-1]
    assert told.contenders[-2:] == [
        "kl0.5=out/kl0.5/adapters/policy",
        "kl4=out/kl4/adapters/policy",
    ]
    assert bind(kept[3].main, kept[3].words)[0].runs == ["out/kl0.5", "out/kl4"]
    with pytest.raises(InputError, match="kl_targets: give at least one"):
        call(sweep.main, ["--kl_targets", "1", "1"])
