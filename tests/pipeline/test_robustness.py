"""preftune robustness: which stages, with what words, and what is refused in a config."""

from pathlib import Path
from typing import Any

import pytest

from toolkit.cli import recipe
from toolkit.errors import InputError
from toolkit.pipeline.robustness import (
    RobustnessArguments,
    check_configs,
    check_judges,
    robustness_stages,
)

MAINS = {name: recipe(name).main for name in ("reward", "ppo", "evaluate")}
PATHS = {name: f"{name}.yaml" for name in MAINS}


def words_of(stage: Any) -> dict[str, str]:
    return {w[2:]: v for w, v in zip(stage.words, stage.words[1:], strict=False) if w[:2] == "--"}


def test_the_policy_is_trained_on_one_half_and_watched_by_the_other() -> None:
    args = RobustnessArguments(output_dir="o", seed=3, shared_samples=3)
    stages = robustness_stages(args, MAINS, "e.yaml", ["v=lexicon:w.txt"], "c.jsonl", lambda: None)
    told = {stage.name: words_of(stage) for stage in stages}
    assert list(told) == ["reward-a", "reward-b", "ppo", "evaluate", "page"]
    assert [told[f"reward-{half}"]["half"] for half in "ab"] == ["a", "b"]
    assert {told[f"reward-{half}"]["comparisons"] for half in "ab"} == {"c.jsonl"}
    assert told["ppo"]["reward_adapter"] == str(Path("o/reward-a/adapter"))
    assert int(told["ppo"]["save_total_limit"]) > 1000
    assert {each["seed"] for each in told.values()} == {"3"}

    words = stages[3].words
    judges = words[words.index("--judges") + 1 : words.index("--training_reward")]
    assert judges == [
        f"train=reward_adapter:{Path('o/reward-a/adapter')}",
        f"test=reward_adapter:{Path('o/reward-b/adapter')}",
        "v=lexicon:w.txt",
    ]
    contenders = words[words.index("--contenders") + 1 : words.index("--judges")]
    assert contenders == [
        "reference",
        "reference-2=reference",
        "reference-3=reference",
        f"ppo={Path('o/ppo')}/checkpoint-*",
    ]
    # The other half's model can be trained again without the policy.
    assert [stage.after for stage in stages] == [(), (), ("reward-a",), None, None]


@pytest.mark.parametrize(
    ("stage", "told", "said"),
    [
        ("reward", {"half": "a"}, "reward_config: reward.yaml: leave out half"),
        ("ppo", {"resume": "auto"}, "ppo_config: ppo.yaml: leave out resume"),
        ("ppo", {"lexicon": "w.txt"}, "leave out lexicon, since the policy is trained against"),
        ("ppo", {"save_strategy": "no"}, "save_strategy must be steps"),
        ("evaluate", {"samples": "s"}, "evaluate_config: evaluate.yaml: leave out samples"),
        ("ppo", {"model_name_or_path": "m"}, "model_name_or_path: the configs differ: .* ppo m"),
        ("reward", {"precision": "fp32"}, "precision: the configs differ: reward fp32, ppo the"),
    ],
)
def test_what_the_recipe_sets_and_what_disagrees_is_refused(
    stage: str, told: dict[str, object], said: str
) -> None:
    every: dict[str, dict[str, object]] = {name: {} for name in MAINS}
    check_configs(every | {"ppo": {"reward_adapter": "x", "output_dir": "y"}}, PATHS)
    with pytest.raises(InputError, match=said):
        check_configs(every | {stage: told}, PATHS)


def test_judges_may_not_take_the_reward_models_names() -> None:
    check_judges(["truth=lexicon:w.txt"])
    with pytest.raises(InputError, match="a judge is called test"):
        check_judges(["test=lexicon:w.txt"])
