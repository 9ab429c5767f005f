"""Contenders that a critic steers: how they are named, what they write, and how far that is."""

import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from toolkit.errors import InputError
from toolkit.evaluation.contenders import Contender, Sampling, check_contenders, parse_contenders
from toolkit.evaluation.head_to_head import contender_results
from toolkit.evaluation.result import SeenPrompts
from toolkit.evaluation.steered import Steered, parse_steered
from toolkit.maths.ilql import steered
from toolkit.models.actors import CRITIC, POLICY, REFERENCE
from toolkit.models.adapters import lora_config
from toolkit.models.loading import load_base
from toolkit.models.roles import Roles
from toolkit.models.toolkit_json import read_facts
from toolkit.scoring.functions import as_scorer

Make = Callable[..., Sampling]


def spread(roles: Roles) -> None:
    """Give adapters and heads weights that show."""
    with torch.no_grad():
        for name, parameter in roles.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.1)
            if name.startswith("critic."):
                parameter.normal_(std=0.05)


@pytest.fixture(scope="module")
def trained(demo_model: str, tmp_path_factory: pytest.TempPathFactory) -> tuple[Roles, Path]:
    """Policy and critic, and the run's folder in which they were saved."""
    torch.manual_seed(0)
    roles = Roles(load_base(demo_model, "fp32"), lora_config(4, 8, "all-linear", "CAUSAL_LM"))
    roles.add_critic("own")
    spread(roles)
    run = tmp_path_factory.mktemp("ilql")
    roles.save(run / "adapters", precision="fp32")
    roles.save_critic(run / "adapters", precision="fp32", beta=2.5)
    return roles, run


def test_strengths_are_read_from_the_name_or_from_the_folder(
    trained: tuple[Roles, Path], demo_model: str
) -> None:
    run = trained[1]
    home = str(run / "adapters")
    specs = [f"q={run}:beta=0,4,1e2", f"alone={home}", f"w={home}:beta=16:clipped", "b=best_of_2:w"]
    found = {c.name: c for c in parse_contenders(specs)}
    assert list(found) == ["reference", "q:beta=0", "q:beta=4", "q:beta=100", "alone", "w", "b"]
    assert found["q:beta=4"] == Contender("q:beta=4", "ilql", f"{home}:beta=4")
    assert found["alone"].steered == Steered(home, 2.5)
    assert found["w"].steered == Steered(home, 16.0, True)
    assert str(found["w"].steered) == found["w"].source
    assert found["q:beta=0"].trained == [str(run / "adapters" / POLICY)]
    assert parse_contenders([f"{home}:beta=1"])[1].name == run.name
    check_contenders([*found.values()], demo_model, "fp32")
    # The policy by itself is an adapter like any other.
    assert parse_contenders([f"p={home}/policy"])[1].kind == "adapter"


@pytest.mark.parametrize(
    ("strength", "message"),
    [("", "'' is no strength"), ("one", "'one' is no strength"), ("1,,2", "'' is no strength"),
     ("-1", "'-1' is no strength"), ("nan", "'nan' is no strength"), ("inf", "no strength"),
     ("4:clip", "neither|no such folder|holds no critic|no strength")],
)  # fmt: skip
def test_a_wrong_strength_is_one_line(
    strength: str, message: str, trained: tuple[Roles, Path]
) -> None:
    with pytest.raises(InputError, match=message) as caught:
        parse_contenders([f"q={trained[1]}:beta={strength}"])
    assert "\n" not in str(caught.value)


def test_what_lacks_a_critic_or_fits_no_base_is_refused_before_anything_is_loaded(
    trained: tuple[Roles, Path], demo_model: str, tmp_path: Path
) -> None:
    home = trained[1] / "adapters"
    with pytest.raises(InputError, match="holds no critic that could steer"):
        parse_contenders([f"q={home}/policy:beta=4"])

    with pytest.raises(InputError, match="no strength before :clipped"):
        parse_contenders([f"q={home}:clipped"])

    shutil.copytree(home, tmp_path / "run")
    (tmp_path / "run" / CRITIC / "q_heads.safetensors").unlink()
    with pytest.raises(InputError, match="q_heads.safetensors: no such file"):
        check_contenders(parse_contenders([f"q={tmp_path}/run:beta=4"]), demo_model, "fp32")
    (tmp_path / "run" / CRITIC / "toolkit.json").unlink()
    with pytest.raises(InputError, match="names no strength"):
        parse_contenders([f"q={tmp_path}/run"])
    shutil.rmtree(tmp_path / "run" / POLICY)
    with pytest.raises(InputError, match="no adapter_config.json"):
        check_contenders(parse_contenders([f"q={tmp_path}/run:beta=4"]), demo_model, "fp32")

    with pytest.raises(InputError, match="cannot be merged"):
        parse_contenders([f"q={home}:beta=4", "half=q*0.5"])


def passage(sampling: Sampling) -> tuple[torch.Tensor, torch.Tensor, int]:
    ids = torch.tensor([sampling.prompts[0] + [5, 6, 7]])
    return ids, torch.ones_like(ids, dtype=torch.bool), 3


def test_a_steered_contender_has_the_policys_logits_and_q_minus_v(
    new_sampling: Make, trained: tuple[Roles, Path]
) -> None:
    """Held against the parts, each read by itself from the roles that were saved."""
    roles, run = trained
    sampling = new_sampling()
    specs = [f"q={run}:beta=0,3", f"p={run}/adapters/policy"]
    off, on, policy = parse_contenders(specs)[1:]
    at, temperature = passage(sampling), sampling.rule.temperature
    found, none, plain = (
        sampling.roles.logits(sampling.role(c), *at, temperature) for c in (on, off, policy)
    )
    torch.testing.assert_close(none, plain)

    assert roles.critic is not None
    with torch.no_grad():
        states = roles.states(CRITIC, *at)
        low = torch.stack([head.mlp(states) for head in roles.critic.targets]).amin(dim=0)  # type: ignore[operator]
        u = low - roles.critic.value(states)
        expected = steered(roles.logits(POLICY, *at), u, 3.0, temperature)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    assert (found - plain).abs().max() > 0.1


def test_sampling_with_two_caches_gives_what_whole_passes_give(
    new_sampling: Make, trained: tuple[Roles, Path]
) -> None:
    sampling = new_sampling()
    (contender,) = parse_contenders([f"q={trained[1]}:beta=3"])[1:]
    roles, rule, role = sampling.roles, sampling.rule, sampling.role(contender)
    prompts = [sampling.prompts[0], sampling.prompts[1][:3]]
    noise = torch.Generator().manual_seed(0)
    step = roles.step(role, rule.temperature)
    assert not step.is_static
    mask, drawn = rule.sample(step, prompts, noise, roles.device)
    ids = torch.zeros(mask.shape, dtype=torch.long)
    for row, prompt in zip(ids, prompts, strict=True):
        row[-len(prompt) :] = torch.tensor(prompt)
    whole = torch.cat([ids, drawn.completion_ids], 1), torch.cat([mask, drawn.mask], 1)
    again = roles.logprobs(role, *whole, drawn.completion_ids, rule.temperature)
    torch.testing.assert_close(again * drawn.mask, drawn.logprobs, rtol=1e-4, atol=1e-4)
    with pytest.raises(ValueError, match="its temperature must be given"):
        roles.step(role)


def test_the_kl_is_exact_at_each_token_and_agrees_with_sampled_ratios(
    new_sampling: Make, trained: tuple[Roles, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    sampling = new_sampling()
    specs = parse_contenders([f"q={trained[1]}:beta=3", "b=best_of_2:q"])
    roles, role, temperature = sampling.roles, sampling.role(specs[1]), sampling.rule.temperature
    ids, mask, length = passage(sampling)
    found = roles.exact_kl(role, ids, mask, ids[:, -length:], temperature)
    own, there = (
        (roles.logits(each, ids, mask, length, temperature).double() / temperature).softmax(-1)
        for each in (role, REFERENCE)
    )
    torch.testing.assert_close(found, (own * (own / there).log()).sum(-1).float())
    twice = [torch.cat([t, t]) for t in (ids, mask, ids[:, -length:])]
    with monkeypatch.context() as patched:
        patched.setattr("toolkit.models.actors.MOST_LOGITS", 1)  # a row at a time
        in_parts = roles.exact_kl(role, *twice, temperature)
    torch.testing.assert_close(in_parts, torch.cat([found, found]))

    # Over many samples both have the same mean; the exact one varies less.
    generator = torch.Generator().manual_seed(0)
    drawn = sampling.sample(role, [i % 3 for i in range(192)], generator, "q")
    assert drawn.kls is not None and drawn.log_ratios is not None
    difference = np.array(drawn.kls) - np.array(drawn.log_ratios)
    assert abs(difference.mean()) < 4 * difference.std() / math.sqrt(len(difference))
    assert np.std(drawn.kls) < np.std(drawn.log_ratios)

    outputs = {c.name: sampling.write(c, specs, as_scorer(length_of)) for c in specs}
    assert outputs["reference"].kls is None and outputs["b"].kls is None
    seen = {name: SeenPrompts(trained_prompts=0, trained_prompts_note=None) for name in outputs}
    results = contender_results(specs, outputs, {}, sampling.texts, seen)
    assert results[1].kl == pytest.approx(np.mean(outputs["q"].kls))
    assert results[1].kind == "ilql" and results[1].adapter is None


def length_of(prompts: list[str], completions: list[str], **others: Any) -> list[float]:
    return [float(len(text)) for text in completions]


def test_a_folder_is_loaded_once_for_all_strengths(
    new_sampling: Make, trained: tuple[Roles, Path]
) -> None:
    sampling = new_sampling()
    contenders = parse_contenders([f"q={trained[1]}:beta=1,2,3"])[1:]
    names = [sampling.role(c) for c in contenders]
    assert len(set(names)) == 3
    assert len([n for n in sampling.roles.adapters if n.startswith("contender")]) == 2
    assert read_facts(trained[1] / "adapters" / CRITIC)["beta"] == 2.5
    assert parse_steered(str(trained[1]))[0].beta == 2.5
