"""A folder of configs becomes stages in order, told what each needs."""

from pathlib import Path

import pytest

from toolkit.cli import bind
from toolkit.pipeline.comparison import PREPARATION, last_stages, stages_of
from toolkit.training.methods import METHODS

ALL = [*PREPARATION, *METHODS]


@pytest.fixture(autouse=True)
def at_root(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(root)


def test_a_folder_of_configs_becomes_stages_in_order_and_all_that_is_trained_contends() -> None:
    configs = Path("recipes/configs/demo")
    stages = stages_of(configs, ALL, {"ppo": ["--seed", "3"]})
    assert [s.name for s in stages] == ["sample", "label", "reward", "sft", "dpo", "rloo", "ppo"]
    assert stages[-1].resumes and bind(stages[-1].main, stages[-1].words)[-1].seed == 3
    evaluation, page = last_stages(configs, stages, Path("out"), [], "Title")
    told = bind(evaluation.main, evaluation.words)[-1]
    assert told.contenders == [
        "best-of-4=best_of_4",
        "sft=outputs/demo/sft/adapter",
        "dpo=outputs/demo/dpo/adapter",
        "rloo=outputs/demo/rloo/adapter",
        "ppo=outputs/demo/ppo/adapters/policy",
    ]
    (shown,) = bind(page.main, page.words)
    assert shown.runs == ["ppo=outputs/demo/ppo"] and shown.rewards == [
        "reward=outputs/demo/reward"
    ]
    assert shown.trainings[0] == "sft=outputs/demo/sft"
    assert shown.comparisons == "outputs/demo/comparisons.jsonl"


def test_several_configs_of_one_kind_are_several_stages() -> None:
    stages = stages_of(Path("recipes/configs/tinystories"), ["dpo", "ppo"], {})
    assert [s.name for s in stages] == [
        "dpo-beta1",
        "dpo",
        "ppo-kl2.5",
        "ppo-kl4",
        "ppo-kl7.5",
        "ppo",
    ]
    assert len({s.made[0] for s in stages}) == 6


def test_a_method_of_preference_py_is_trained_by_its_row(tmp_path: Path) -> None:
    (tmp_path / "kto-short.yaml").write_text(f"output_dir: {tmp_path / 'kto'}\nmax_steps: 4\n")
    (stage,) = stages_of(tmp_path, ALL, {})
    config = bind(stage.main, stage.words)[-1]
    assert (stage.name, config.method, config.max_steps) == ("kto-short", "kto", 4)
    assert stage.made == [tmp_path / "kto" / "adapter"] and not stage.resumes
