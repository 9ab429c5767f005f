"""A folder of configs becomes stages in order, told what each needs."""

from dataclasses import dataclass
from pathlib import Path

import pytest

from toolkit.cli import bind, recipe
from toolkit.errors import InputError
from toolkit.pipeline.comparison import (
    PREPARATION,
    check_inputs,
    check_judges,
    last_stages,
    output_of,
    ppo_stage,
    stages_of,
    trained,
)
from toolkit.pipeline.stages import Stage
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
    names = [s.name for s in stages]
    assert names == ["dpo-beta1", "dpo", "ppo-kl2.5", "ppo-kl4", "ppo-kl7.5", "ppo"]
    assert all(s.resumes == s.name.startswith("ppo") for s in stages)
    assert len({s.made[0] for s in stages}) == len(names)


def test_an_algorithm_of_ppos_loop_is_a_config_of_ppo_with_a_title_of_its_own() -> None:
    stages = stages_of(Path("recipes/configs/methods"), ["dpo", "ppo", "grpo"], {})
    titles = {s.name: s.title for s in stages}
    assert titles["ppo-grpo"] == "Tune the policy with GRPO" and "grpo" not in titles
    assert titles["ppo-a2c"] == titles["ppo"] == "Tune the policy with PPO"


@pytest.mark.slow
def test_supervised_then_ppo_comes_after_the_adapter_that_it_starts_from() -> None:
    """METHODS has reward models before SFT; one that starts from SFT's adapter waits for it."""
    names = ["reward", "sft", "dpo", "ppo"]
    stages = stages_of(Path("recipes/configs/methods"), names, {})
    assert [s.name for s in stages][:4] == ["reward", "sft", "reward-sft", "dpo"]
    assert [s.name for s in stages][-2:] == ["ppo-sft", "ppo"]
    check_inputs(stages)
    with pytest.raises(InputError, match="reward-sft: start_adapter: .*sft/adapter does not exist"):
        check_inputs([s for s in stages if s.name != "sft"])
    evaluation, page = last_stages(Path("recipes/configs/methods"), stages, Path("o"), [], "T")
    told = bind(evaluation.main, evaluation.words)[-1].contenders
    assert "ppo-sft=outputs/methods/ppo-sft/adapters/policy" in told
    rewards = bind(page.main, page.words)[0].rewards
    assert rewards == [f"{r}=outputs/methods/{r}" for r in ("reward", "reward-sft")]


def test_a_reward_model_that_judges_is_there_or_is_made_by_a_stage(tmp_path: Path) -> None:
    adapter, others = tmp_path / "reward" / "adapter", tmp_path / "others"
    words = ["--judges", f"all=reward_adapter:{adapter},{others}", "list=lexicon:nowhere.txt"]
    judged = Stage("evaluate", "", recipe("evaluate").main, words)
    others.mkdir()
    with pytest.raises(InputError, match="the judge all is .*/reward/adapter, which does not"):
        check_judges([judged])
    check_judges([Stage("reward", "", recipe("reward").main, [], [adapter]), judged])
    adapter.mkdir(parents=True)
    check_judges([judged])


def test_stages_that_wait_for_each_other_are_refused(tmp_path: Path) -> None:
    for name, other in (("sft-a", "b"), ("sft-b", "a")):
        (tmp_path / f"{name}.yaml").write_text(
            f"output_dir: {tmp_path / name}\npolicy_adapter: {tmp_path / f'sft-{other}/adapter'}\n"
        )
    with pytest.raises(InputError, match="no order can be kept, since each of sft-a, sft-b reads"):
        stages_of(tmp_path, ALL, {})


def test_a_method_of_preference_py_is_trained_by_its_row(tmp_path: Path) -> None:
    (tmp_path / "kto-short.yaml").write_text(f"output_dir: {tmp_path / 'kto'}\nmax_steps: 4\n")
    (stage,) = stages_of(tmp_path, ALL, {})
    config = bind(stage.main, stage.words)[-1]
    assert (stage.name, config.method, config.max_steps) == ("kto-short", "kto", 4)
    assert stage.made == [tmp_path / "kto" / "adapter"] and not stage.resumes


def test_a_ppo_run_at_a_target_is_named_by_its_folder_and_made_when_its_adapter_is() -> None:
    stage = ppo_stage(2.5, ["--seed", "7"], Path("out/kl2.5"))
    told = bind(stage.main, stage.words)[-1]
    assert (told.kl_target, told.seed, told.output_dir) == (2.5, 7, "out/kl2.5")
    assert (stage.name, stage.made) == ("kl2.5", [Path("out/kl2.5/adapters/policy")])
    assert stage.title == "PPO, KL target 2.5 nats" and stage.resumes


def test_stages_that_train_are_known_by_the_beginning_of_their_names() -> None:
    def stage(name: str) -> Stage:
        return Stage(name, "Title", len, [], [])

    found = trained([stage("label"), stage("reward-2"), stage("ppo-kl4"), stage("evaluate")])
    assert [(s.name, m.name) for s, m in found] == [("reward-2", "reward"), ("ppo-kl4", "ppo")]


def test_a_stage_that_writes_nothing_cannot_be_compared() -> None:
    @dataclass
    class Told:
        seed: int = 0

    def silent(args: Told) -> None: ...

    silent.__annotations__["args"] = Told  # a class of this function's own
    with pytest.raises(InputError, match="1: output_dir or output is missing"):
        output_of(silent, ["--seed", "1"])
