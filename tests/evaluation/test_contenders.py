"""Who is compared, and what each writes: on the embedded model."""

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from toolkit.arguments.sampling import SamplingArguments
from toolkit.data.prompts import Prompts
from toolkit.errors import InputError
from toolkit.evaluation.contenders import (
    Contender,
    Sampling,
    check_contenders,
    given_texts,
    other_settings,
    parse_contenders,
)
from toolkit.maths.frontier import best_of_n_kl
from toolkit.models.actors import POLICY, REFERENCE
from toolkit.models.adapters import lora_config
from toolkit.models.loading import load_base, load_tokenizer
from toolkit.models.roles import Roles
from toolkit.scoring.functions import as_scorer

Make = Callable[..., Sampling]


@pytest.fixture(scope="module")
def adapter(demo_model: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    """An adapter that changes what is written."""
    torch.manual_seed(0)
    roles = Roles(load_base(demo_model, "fp32"), lora_config(4, 8, "all-linear", "CAUSAL_LM"))
    for name, parameter in roles.named_parameters():
        if "lora_B.policy" in name:
            torch.nn.init.normal_(parameter, std=0.25)
    folder = tmp_path_factory.mktemp("adapter")
    roles.save(folder)
    return str(folder / "policy")


def test_specs_are_read_and_the_reference_comes_first(adapter: str, demo_model: str) -> None:
    found = parse_contenders([f"a={adapter}", "b16=best_of_16", "c=best_of_2:a", demo_model])
    assert [c.kind for c in found] == ["reference", "adapter", "best_of_n", "best_of_n", "model"]
    assert found[2] == Contender("b16", "best_of_n", "reference", 16)
    assert found[3].source == "a" and found[1].adapter == str(Path(adapter).resolve())
    renamed = parse_contenders(["x=reference", "best_of_4", "again=reference"])
    assert [c.name for c in renamed] == ["x", "again", "best_of_4"] and renamed[2].source == "x"
    check_contenders(found, demo_model, "fp32")


def test_leads_and_columns_are_contenders_without_a_model(demo_model: str) -> None:
    found = parse_contenders(["lead-1", "short=lead-2", "human=column: my summary", "column:post"])
    assert found[1:] == [
        Contender("lead-1", "lead", "1"),
        Contender("short", "lead", "2"),
        Contender("human", "column", "my summary"),
        Contender("post", "column", "post"),
    ]
    check_contenders(found, demo_model, "fp32")
    assert all(c.trained == [] and c.adapter is None for c in found)


def test_given_texts_continue_their_prompts_and_have_no_kl(demo_model: str) -> None:
    tokenizer = load_tokenizer(demo_model)
    given = ["We went home. It rained. TL;DR:", "It rained. We came by bus. TL;DR:"]
    prompts = Prompts(tokenizer(given)["input_ids"], {"summary": ["It rained.", " We came. "]})
    prompts.given = dict(enumerate(given))
    sources = ["We went home. It rained.", "It rained. We came by bus."]

    lead = given_texts(Contender("lead-1", "lead", "1"), prompts, sources, tokenizer)
    assert lead.texts == [" We went home.", " It rained."]
    assert lead.log_ratios is None and lead.tokens == [0, 0]
    whole = [tokenizer(a + b)["input_ids"] for a, b in zip(given, lead.texts, strict=True)]
    assert lead.ids is not None
    assert [p + i for p, i in zip(prompts, lead.ids, strict=True)] == whole

    human = given_texts(Contender("h", "column", "summary"), prompts, [], tokenizer)
    assert human.texts == [" It rained.", " We came."]
    with pytest.raises(InputError, match="no column 'title'"):
        given_texts(Contender("h", "column", "title"), prompts, [], tokenizer)
    prompts.places[1] = "posts.jsonl:7"
    with pytest.raises(InputError, match="contenders: lead-1: posts.jsonl:7: the text to sum up"):
        given_texts(Contender("lead-1", "lead", "1"), prompts, ["It rained.", " "], tokenizer)


@pytest.mark.parametrize(
    ("specs", "message"),
    [(["a="], "not NAME=WHAT"), (["best_of_1"], "at least 2"), (["./nowhere"], "no such folder"),
     (["b=best_of_4:nobody"], "no contender is called 'nobody'"), (["tests"], "neither an adapter"),
     (["a=best_of_2", "a=best_of_3"], "two are called 'a'"), (["x/checkpoint-*"], "no such check"),
     (["a=best_of_4", "b=best_of_2:a"], "best-of-n of best-of-n"),
     (["a=mean(b,reference)", "b=a*2"], "a is made of itself"), (["a=nowhere*2"], "'nowhere' is"),
     (["a=best_of_4", "b=a*0.5"], "a is no adapter"), (["lead-0"], "must be at least 1"),
     (["lead-2", "b=best_of_4:lead-2"], "one text for each prompt"),
     (["lead-2", "b=lead-2*0.5"], "lead-2 is no adapter"), (["column:"], "no such folder"),
     (["lead-2", "lead-2=column:summary"], "two are called 'lead-2'")],
)  # fmt: skip
def test_a_mistake_in_a_spec_is_one_line(
    specs: list[str], message: str, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(root)
    with pytest.raises(InputError, match=message) as caught:
        parse_contenders(specs)
    assert "\n" not in str(caught.value)


def test_what_one_writes_does_not_depend_on_who_else_takes_part(
    new_sampling: Make, adapter: str
) -> None:
    both = parse_contenders([f"a={adapter}", f"b={adapter}"])
    first = new_sampling()
    a = first.write(both[1], both, None)
    b = first.write(both[2], both, None)
    alone = new_sampling().write(both[2], both, None)
    assert alone.texts == b.texts and alone.log_ratios == pytest.approx(b.log_ratios)
    assert a.texts != b.texts  # the same policy, another name: a draw of its own
    assert new_sampling(seed=1).write(both[2], both, None).texts != b.texts


def test_merged_contenders_are_named_by_their_factors_and_take_others_by_name(
    adapter: str, demo_model: str
) -> None:
    specs = [f"p={adapter}*0.5,1,2", "b=best_of_2:soup", "soup=mean(q,p*2)*0.5", f"q={adapter}"]
    found = {c.name: c for c in parse_contenders(specs)}
    assert list(found) == ["reference", "p*0.5", "p*1", "p*2", "b", "soup", "q"]
    assert found["p*1"].kind == "adapter" and found["p*1"].source == adapter
    assert found["p*2"] == Contender("p*2", "merged", f"{adapter}*2")
    assert found["soup"].source == f"mean({adapter},{adapter}*2)*0.5"
    assert found["soup"].trained == [adapter, adapter] and found["p*2"].adapter is None
    check_contenders([*found.values()], demo_model, "fp32")


def test_a_scaled_contender_has_the_logits_of_the_scaled_change(
    new_sampling: Make, adapter: str
) -> None:
    sampling = new_sampling()
    contenders = parse_contenders([f"p={adapter}*0,1,0.5"])
    ids = torch.tensor([sampling.prompts[0] + [5, 6, 7]])
    mask = torch.ones_like(ids, dtype=torch.bool)
    none, whole, half = (
        sampling.roles.logits(sampling.role(c), ids, mask, 3) for c in contenders[1:]
    )
    torch.testing.assert_close(none, sampling.roles.logits(REFERENCE, ids, mask, 3))

    # The same by hand: B halved where it is held.
    role = sampling.role(contenders[2])
    with torch.no_grad():
        for name, parameter in sampling.roles.named_parameters():
            if f"lora_B.{role}." in name:
                parameter.mul_(0.5)
    by_hand = sampling.roles.logits(role, ids, mask, 3)
    torch.testing.assert_close(half, by_hand, atol=1e-5, rtol=1e-5)
    assert not torch.allclose(half, whole, atol=1e-2)


@pytest.mark.slow
def test_the_kl_is_that_of_the_whole_distributions(new_sampling: Make, adapter: str) -> None:
    """Two tokens: KL = KL of the first + mean KL of the second, by whole vocabularies."""
    sampling = new_sampling(copies=400, length=1)
    contenders = parse_contenders([f"a={adapter}"])
    ratios = sampling.write(contenders[1], contenders, None).log_ratios
    assert ratios is not None
    exact = []
    for prompt in sampling.prompts[::400]:
        ids = torch.tensor([prompt + [0]])
        mask = torch.ones_like(ids, dtype=torch.bool)
        logits = [
            sampling.roles.logits(role, ids, mask, 1)[0, 0] / 0.7
            for role in (sampling.role(contenders[1]), REFERENCE)
        ]
        p, q = (torch.log_softmax(x.double(), dim=-1) for x in logits)
        exact.append((p.exp() * (p - q)).sum().item())
    mean = sum(ratios) / len(ratios)
    error = (sum((r - mean) ** 2 for r in ratios) / len(ratios) ** 2) ** 0.5
    assert mean == pytest.approx(sum(exact) / 3, abs=4 * error) and mean > 4 * error


def test_the_reference_has_no_kl_and_best_of_n_that_of_its_picking(new_sampling: Make) -> None:
    sampling = new_sampling()
    contenders = parse_contenders(["b3=best_of_3"])
    assert sampling.write(contenders[0], contenders, None).log_ratios == [0.0] * 3
    best = sampling.write(contenders[1], contenders, longest)
    assert best.kl_of_picking == best_of_n_kl(3) and best.log_ratios == [0.0] * 3
    drawn, scores = sampling.draw(Contender("b3", "reference"), 3, longest)
    for i, text in enumerate(best.texts):
        assert text == max(drawn.texts[3 * i : 3 * i + 3], key=len)
    assert scores == [float(len(text)) for text in drawn.texts]


longest = as_scorer(lambda prompts, completions: [float(len(text)) for text in completions])


def test_best_of_n_of_a_policy_adds_the_policys_kl(new_sampling: Make, adapter: str) -> None:
    sampling = new_sampling(copies=40)
    contenders = parse_contenders([f"a={adapter}", "b=best_of_2:a"])
    best = sampling.write(contenders[2], contenders, longest)
    assert best.log_ratios is not None and sum(best.log_ratios) / 120 > 0.1
    assert best.kl_of_picking == pytest.approx(math.log(2) - 1 / 2)


def test_a_whole_model_of_the_same_tokens_has_a_kl(new_sampling: Make, demo_model: str) -> None:
    sampling = new_sampling()
    same = sampling.write(Contender("m", "model", demo_model), [], None)
    assert same.log_ratios == pytest.approx([0.0] * 3, abs=1e-4) and same.ids is not None


def test_a_model_of_other_tokens_writes_text_and_has_none(
    new_sampling: Make, demo_model: str, tmp_path: Path
) -> None:
    other = tmp_path / "other"
    shutil.copytree(demo_model, other)
    whole = json.loads((other / "tokenizer.json").read_text())
    vocabulary = whole["model"]["vocab"]
    vocabulary["Ġthe"], vocabulary["Ġwas"] = vocabulary["Ġwas"], vocabulary["Ġthe"]
    (other / "tokenizer.json").write_text(json.dumps(whole))
    made = new_sampling().write(Contender("m", "model", str(other)), [], None)
    assert made.log_ratios is None and made.ids is None and len(made.texts) == 3


@pytest.mark.slow
def test_a_checkpoints_policy_is_the_trainers(
    new_sampling: Make, new_trainer: Callable[..., Any], demo_model: str, tmp_path: Path
) -> None:
    trainer = new_trainer(save_steps=1)
    trainer.train()
    checkpoint = tmp_path / "run" / "checkpoint-000002"
    contenders = parse_contenders([f"ppo={tmp_path / 'run' / 'checkpoint-*'}"])
    assert [c.name for c in contenders] == ["reference", "ppo@1", "ppo@2"]
    check_contenders(contenders, demo_model, "fp32")
    sampling = new_sampling()
    ids = torch.tensor([sampling.prompts[0] + [5, 6, 7]])
    mask = torch.ones_like(ids, dtype=torch.bool)
    ours = sampling.roles.logits(sampling.role(contenders[2]), ids, mask, 3)
    assert torch.allclose(ours, trainer.model.logits(POLICY, ids, mask, 3), atol=1e-5)
    earlier = sampling.roles.logits(sampling.role(contenders[1]), ids, mask, 3)
    assert not torch.allclose(ours, earlier, atol=1e-5)
    mean = parse_contenders([f"m=mean({tmp_path / 'run' / 'checkpoint-000001'},{checkpoint})"])
    check_contenders(mean, demo_model, "fp32")
    between = sampling.roles.logits(sampling.role(mean[1]), ids, mask, 3)
    assert not torch.allclose(between, ours, atol=1e-6) and between.isfinite().all()
    (checkpoint / "weights.safetensors").write_bytes(b"broken")
    with pytest.raises(InputError, match="weights.safetensors is not what was written"):
        check_contenders(contenders, demo_model, "fp32")


def test_a_contender_trained_with_another_sampling_is_told(tmp_path: Path) -> None:
    adapter = tmp_path / "run" / "adapters" / "policy"
    adapter.mkdir(parents=True)
    settings = {
        "response_length": 24,
        "temperature": 0.7,
        "stop_token": None,
        "truncate_token": ".",
        "truncate_after": 12,
    }
    (tmp_path / "run" / "run.json").write_text(json.dumps({"settings": settings}))
    contenders = [Contender("reference", "reference"), Contender("p", "adapter", str(adapter))]
    same = SamplingArguments(truncate_token=".", truncate_after=12)
    assert other_settings(contenders, vars(same), Prompts()) == []
    assert other_settings(contenders, vars(SamplingArguments(temperature=1.0)), Prompts()) == [
        "p was trained with temperature 0.7, but is judged with 1.0",
        "p was trained with truncate_token '.', but is judged with None",
    ]
    (tmp_path / "run" / "run.json").unlink()
    assert other_settings(contenders, vars(SamplingArguments()), Prompts()) == []


def test_a_policy_whose_logits_are_no_numbers_takes_no_part(
    new_sampling: Make, adapter: str
) -> None:
    sampling, contenders = new_sampling(), parse_contenders([f"broken={adapter}"])
    role = sampling.role(contenders[1])
    for name, parameter in sampling.roles.named_parameters():
        if f"lora_B.{role}" in name:
            parameter.data.fill_(1e38)  # finite, but no product of it is
    with pytest.raises(InputError, match=r"broken: its log-probs on .* are not finite"):
        sampling.write(contenders[1], contenders, None)
    assert sampling.write(contenders[0], contenders, None).log_ratios == [0.0] * 3


def test_a_base_whose_logits_are_no_numbers_takes_no_part(new_sampling: Make) -> None:
    sampling, contenders = new_sampling(), parse_contenders(["best_of_2"])
    sampling.roles.output_head(REFERENCE).weight.data[7] = math.nan
    with pytest.raises(InputError, match=r"reference: its log-probs on .* are not finite"):
        sampling.write(contenders[0], contenders, None)
