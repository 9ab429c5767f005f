"""Several reward adapters on one base: each scores as it does alone, then they are combined."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from toolkit.data.files import read_object, write_json
from toolkit.errors import InputError
from toolkit.evaluation.contenders import Contender
from toolkit.models.loading import load_base
from toolkit.models.roles import Roles
from toolkit.scoring.arguments import (
    CombiningArguments,
    RewardArguments,
    ScorerArguments,
    Spec,
    adapter_folders,
    load_scorer,
)
from toolkit.scoring.ensembles import RewardEnsemble
from toolkit.scoring.reward_models import RewardAdapter


def members(folders: list[str]) -> list[RewardAdapter]:
    return [RewardAdapter(folder) for folder in folders]


def test_three_models_on_one_base_are_combined_after_each_ones_gain_and_bias(
    new_sampling: Callable[..., Any], demo_model: str, reward_adapters: list[str]
) -> None:
    sampling = new_sampling()
    outputs = sampling.write(Contender("r", "reference"), [], None)

    alone = torch.zeros(3, len(sampling.prompts))
    for m, folder in enumerate(reward_adapters):
        roles = Roles(load_base(demo_model, "fp32"), reward_adapter=folder)
        for i, (prompt, ids) in enumerate(zip(sampling.prompts, outputs.ids, strict=True)):
            row = torch.tensor([prompt + ids])
            alone[m, i] = roles.scores(row, torch.ones_like(row, dtype=torch.bool)).item()
    spread = alone.std(dim=0, correction=0)
    assert spread.min() > 0.05  # the models differ

    for how, expected in [
        ("mean", alone.mean(dim=0)),
        ("min", alone.min(dim=0).values),
        ("mean_minus_std", alone.mean(dim=0) - 0.5 * spread),
    ]:
        scorer = RewardEnsemble(members(reward_adapters), how, 0.5)
        asked = sampling.completions(outputs)
        assert torch.allclose(scorer(asked), expected, atol=1e-4)
        assert torch.allclose(asked.noted["disagreement"], spread, atol=1e-4)


def test_a_run_knows_its_reward_models_by_weights_gain_bias_and_combination(
    reward_adapters: list[str], tmp_path: Path
) -> None:
    first = RewardEnsemble(members(reward_adapters[:2])).identity
    for folder in reward_adapters[:2]:
        shutil.copytree(folder, tmp_path / Path(folder).name)
    copies = [str(tmp_path / Path(folder).name) for folder in reward_adapters[:2]]
    assert RewardEnsemble(members(copies)).identity == first  # wherever they lie

    others = [
        RewardEnsemble(members(reward_adapters)).identity,
        RewardEnsemble(members(reward_adapters[1:])).identity,
        RewardEnsemble(members(copies), "min").identity,
        RewardEnsemble(members(copies), "mean_minus_std", 1.0).identity,
        RewardEnsemble(members(copies), "mean_minus_std", 2.0).identity,
    ]
    path = Path(copies[0]) / "toolkit.json"
    write_json(path, read_object(path, "adapter") | {"gain": 1.5})
    others.append(RewardEnsemble(members(copies)).identity)
    assert len({str(identity) for identity in [first, *others]}) == 7


@pytest.mark.parametrize(
    ("facts", "message"),
    [
        ({}, "has no gain and bias in its toolkit.json"),
        ({"gain": 1.0, "bias": 0.0, "samples": 0}, "has no gain and bias in its toolkit.json"),
        ({"gain": -2.0, "bias": 0.0}, "has the gain -2, so a better text gets a lower score"),
    ],
)
def test_scores_that_were_not_normalized_are_not_put_beside_others(
    reward_adapters: list[str], tmp_path: Path, facts: dict[str, float], message: str
) -> None:
    write_json(tmp_path / "toolkit.json", facts)
    with pytest.raises(InputError, match=message):
        RewardEnsemble([RewardAdapter(reward_adapters[0]), RewardAdapter(str(tmp_path))])


def test_folders_are_joined_by_commas_everywhere_and_one_may_have_a_comma(
    demo_model: str, reward_adapters: list[str], tmp_path: Path
) -> None:
    odd = tmp_path / "a,b"
    odd.mkdir()
    assert adapter_folders(None) == []
    assert adapter_folders(str(odd)) == [str(odd)]
    assert adapter_folders("a/adapter, b/adapter") == ["a/adapter", "b/adapter"]
    for wrong, message in [("a,,b", "comma without a folder"), ("a,b,a", "a is named twice")]:
        with pytest.raises(InputError, match=message):
            adapter_folders(wrong)

    joined = ",".join(reward_adapters)
    how = CombiningArguments(reward_combine="min")
    judge = load_scorer(Spec("r", "reward_adapter", joined), demo_model, "fp32", combining=how)
    flags: dict[str, Any] = {"reward_adapter": joined, "reward_combine": "min"}
    (reward,) = RewardArguments(**flags).load(demo_model, "fp32")
    picker = ScorerArguments(**flags).load(demo_model, "fp32")
    for scorer in (judge, reward, picker):
        assert isinstance(scorer, RewardEnsemble) and scorer.how == "min"
        assert [member.folder for member in scorer.members] == reward_adapters

    # One alone, merged from others or not, is used as it always was.
    (single,) = RewardArguments(reward_adapter=reward_adapters[0]).load(demo_model, "fp32")
    assert isinstance(single, RewardAdapter) and not single.folder


def test_a_combination_of_nothing_is_refused_before_a_model_is_loaded(
    demo_model: str, reward_adapters: list[str]
) -> None:
    for given in ({"reward_adapter": reward_adapters[0]}, {"lexicon": "w.txt"}):
        flags: dict[str, Any] = given | {"reward_combine": "min"}
        for arguments in (RewardArguments(**flags), ScorerArguments(**flags)):
            with pytest.raises(InputError, match="there are not several reward adapters"):
                arguments.load(demo_model, "fp32")
    with pytest.raises(InputError, match="reward_std_weight is read by reward_combine"):
        CombiningArguments(reward_std_weight=2.0)
