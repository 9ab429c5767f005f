"""label_sweep.py: which stages, in which order, told what. (docs/paper.md says how it was run.)"""

from pathlib import Path

import pytest

from toolkit.cli import bind, call, recipe
from toolkit.errors import InputError
from toolkit.pipeline.stages import Stage

sweep = recipe("label_sweep")


@pytest.fixture(autouse=True)
def at_root(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(root)


def stages(monkeypatch: pytest.MonkeyPatch, *words: str) -> list[Stage]:
    kept: list[Stage] = []
    monkeypatch.setattr(sweep, "run_stages", lambda made, out, again: kept.extend(made))
    monkeypatch.setattr(sweep, "draw", lambda out, rewards, policies: [])
    monkeypatch.setattr(sweep, "check_judges", lambda stages: None)  # `make demo` trains them
    call(sweep.main, ["--output_dir", "out", *words])
    return kept


def test_each_share_has_a_reward_model_and_a_policy_and_the_labeler_one_of_its_own(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    kept = stages(monkeypatch, "--label_fractions", "1", "0.1", "--seed", "7")
    assert [stage.name for stage in kept] == [
        *("reward-0.1", "reward-1", "labels-0.1", "labels-1", "direct", "evaluate", "report"),
    ]
    # A share that is added later has nothing trained again but what reads its reward model.
    assert [stage.after for stage in kept[:5]] == [
        *((), (), ("reward-0.1",), ("reward-1",), ("reward-1",)),
    ]
    told = [{k: v for part in bind(s.main, s.words) for k, v in vars(part).items()} for s in kept]
    assert [t["train_fraction"] for t in told[:2]] == [0.1, 1.0]
    assert [t["reward_adapter"] for t in told[2:4]] == [
        "out/reward-0.1/adapter",
        "out/reward-1/adapter",
    ]
    assert told[2]["lexicon"] is None and told[2]["seed"] == 7
    assert told[4]["lexicon"] == "data/lexicon.txt" and told[4]["reward_weights"] == [0, 1]
    assert [stage.given.get("comparisons") for stage in kept[:2]] == [
        Path(told[0]["comparisons"])
    ] * 2  # other labels in that file are noticed
    assert told[2]["prompts"] is None or kept[2].given["prompts"] == Path(told[2]["prompts"])
    assert told[5]["contenders"][-3:] == [
        f"{name}=out/{name}/adapters/policy" for name in ("labels-0.1", "labels-1", "direct")
    ]


def test_without_a_script_there_is_no_direct_policy_and_it_is_said(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "evaluate.yaml"
    config.write_text("prompts: demo:prompts.heldout.jsonl\njudges: [p=people:x.sqlite]\n")
    kept = stages(monkeypatch, "--label_fractions", "1", "--evaluate_config", str(config))
    assert [s.name for s in kept] == ["reward-1", "labels-1", "evaluate", "report"]
    assert "there is no direct policy" in capsys.readouterr().out


def test_a_judge_that_nobody_trained_is_named_before_anything_is_trained(tmp_path: Path) -> None:
    config, out = tmp_path / "evaluate.yaml", tmp_path / "out"
    config.write_text(f"reward_adapter: {tmp_path / 'adapter'}\nlexicon: demo:lexicon.txt\n")
    with pytest.raises(InputError, match="judge reward is .*adapter, which does not exist"):
        call(sweep.main, ["--evaluate_config", str(config), "--output_dir", str(out)])
    assert not out.exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--label_fractions", "0.1", "0.1"], "each only once"),
        (["--label_fractions", "2"], "label_fractions"),
        (["--ppo_config", "nowhere.yaml"], "nowhere.yaml: no such file"),
    ],
)
def test_a_mistake_is_one_line(words: list[str], said: str) -> None:
    with pytest.raises(InputError, match=said):
        call(sweep.main, words)
