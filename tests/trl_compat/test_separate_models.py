"""Whole models for the four roles, with adapters and in 4-bit: what transformers and peft say."""

import copy
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, PromptTuningConfig, get_peft_model
from torch import Tensor, nn
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    BitsAndBytesConfig,
)

from toolkit.errors import InputError
from toolkit.models.actors import POLICY, REFERENCE
from toolkit.trl_compat.separate_models import SeparateModels

IDS = torch.tensor([[3, 4, 5, 6, 7, 8], [0, 0, 9, 10, 11, 12]])
MASK = torch.tensor([[1, 1, 1, 1, 1, 1], [0, 0, 1, 1, 1, 1]], dtype=torch.bool)


def causal(model: str, **kwargs: Any) -> Any:
    return AutoModelForCausalLM.from_pretrained(model, **kwargs)


def classifier(model: str, seed: int, **kwargs: Any) -> Any:
    torch.manual_seed(seed)
    return AutoModelForSequenceClassification.from_pretrained(model, num_labels=1, **kwargs)


def lora(task: str = "SEQ_CLS", **kwargs: Any) -> LoraConfig:
    return LoraConfig(r=4, target_modules=["q_proj", "up_proj"], task_type=task, **kwargs)


def stirred(model: Any, seed: int = 0) -> Any:
    """Adapters that do something: peft starts them at nothing."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name or "modules_to_save" in name:
                parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    return model


def separate(model: str, **kwargs: Any) -> SeparateModels:
    given: dict[str, Any] = {
        "policy": causal(model),
        "reference": None,
        "reward_model": classifier(model, 1),
        "value_model": classifier(model, 2),
    }
    return SeparateModels(**(given | kwargs))


def stock_scores(model: Any) -> Tensor:
    """The logit that the model's own forward pass gives on each row's last token."""
    with torch.no_grad():
        return torch.stack(
            [
                model(input_ids=row[keep].unsqueeze(0)).logits[0, 0]
                for row, keep in zip(IDS, MASK, strict=True)
            ]
        )


@torch.no_grad()
def test_an_adapters_reward_and_value_are_those_of_its_own_forward_pass(demo_model: str) -> None:
    """LoRA in the trunk and a head in modules_to_save: both count."""
    reward, value = (
        stirred(get_peft_model(classifier(demo_model, seed), lora()), seed) for seed in (1, 2)
    )
    plain = stock_scores(reward)
    values = stock_scores(value)
    with reward.disable_adapter():
        assert (stock_scores(reward) - plain).abs().min() > 1e-3
    actors = separate(demo_model, reward_model=reward, value_model=value)
    torch.testing.assert_close(actors.scores(IDS, MASK), plain, rtol=0, atol=2e-5)
    # The value before token t is what the row up to t would score: the last but one, here.
    longer = torch.cat([IDS, torch.full((2, 1), 3)], 1), torch.cat([MASK, MASK[:, :1] | True], 1)
    torch.testing.assert_close(actors.values(*longer, 1)[:, 0], values, rtol=0, atol=2e-5)


def test_of_two_adapters_the_active_one_scores(demo_model: str) -> None:
    reward = get_peft_model(classifier(demo_model, 1), lora())
    reward.add_adapter("other", lora())
    stirred(reward)
    expected = {}
    for name in ("default", "other"):
        reward.set_adapter(name)
        expected[name] = stock_scores(reward)
    assert (expected["default"] - expected["other"]).abs().max() > 1e-3
    with torch.no_grad():
        scores = separate(demo_model, reward_model=reward).scores(IDS, MASK)
    torch.testing.assert_close(scores, expected["other"], rtol=0, atol=2e-5)


def test_a_value_adapter_trains_its_lora_and_head_and_nothing_else(demo_model: str) -> None:
    value = get_peft_model(classifier(demo_model, 2), lora())
    trained = [name for name, _ in separate(demo_model, value_model=value).trainable()]
    of_value = [name for name in trained if name.startswith("value_model")]
    assert of_value and all("lora_" in n or "score.modules_to_save" in n for n in of_value)


def test_a_saved_value_adapter_without_gradients_is_refused(
    demo_model: str, tmp_path: Path
) -> None:
    """peft loads it frozen unless told otherwise, and it would never learn, in silence."""
    get_peft_model(classifier(demo_model, 2), lora()).save_pretrained(tmp_path)
    frozen = PeftModel.from_pretrained(classifier(demo_model, 2), str(tmp_path))
    with pytest.raises(InputError, match="value_model: .*is_trainable=True"):
        separate(demo_model, value_model=frozen)
    live = PeftModel.from_pretrained(classifier(demo_model, 2), str(tmp_path), is_trainable=True)
    separate(demo_model, value_model=live)


@pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`")
@torch.no_grad()
def test_a_policy_that_saves_its_head_whole_has_the_base_as_its_reference(demo_model: str) -> None:
    """Off means off for modules_to_save too; TRL asked peft for the same."""
    base = causal(demo_model)
    expected = torch.log_softmax(base(input_ids=IDS[:1]).logits[0, 2:5].float(), -1)
    config = lora("CAUSAL_LM", modules_to_save=["lm_head"])
    policy = stirred(get_peft_model(base, config))
    own = torch.log_softmax(policy(input_ids=IDS[:1]).logits[0, 2:5].float(), -1)
    actors = separate(demo_model, policy=policy)
    tokens = IDS[:1, 3:]
    at = tokens.transpose(0, 1)
    found = actors.reference_logprobs(IDS[:1], MASK[:1], tokens, 1.0)
    torch.testing.assert_close(found[0], expected.gather(1, at)[:, 0], rtol=0, atol=1e-4)
    found = actors.policy_outputs(IDS[:1], MASK[:1], tokens, 1.0).logprobs
    torch.testing.assert_close(found[0], own.gather(1, at)[:, 0], rtol=0, atol=1e-4)
    assert (own - expected).abs().max() > 0.1


def test_the_adapters_that_are_named_play_policy_and_reference(demo_model: str) -> None:
    policy = get_peft_model(causal(demo_model), lora("CAUSAL_LM"), adapter_name="start")
    policy.add_adapter("tuned", lora("CAUSAL_LM"))
    stirred(policy)
    policy.set_adapter("start")
    actors = separate(
        demo_model, policy=policy, model_adapter_name="tuned", ref_adapter_name="start"
    )
    assert all(".tuned." in name for name, _ in actors.trainable() if name.startswith("policy"))
    for role, name in ((POLICY, "tuned"), (REFERENCE, "start")):
        policy.set_adapter(name)
        with torch.no_grad():
            expected = policy(input_ids=IDS[:1]).logits[:, 2:5]
            found = actors.logits(role, IDS[:1], MASK[:1], 3)
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)


def shared(model: str) -> dict[str, Any]:
    trunk = classifier(model, 1)
    twin = copy.copy(trunk)
    return {"reward_model": trunk, "value_model": twin}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda m: {
                "reward_model": AutoModelForSequenceClassification.from_pretrained(m, num_labels=2)
            },
            "reward_model: its head has 2 outputs",
        ),
        (lambda m: {"reward_model": causal(m)}, "reward_model: a LlamaForCausalLM has no head"),
        (lambda m: {"value_model": nn.Linear(2, 1)}, "value_model: a Linear has no head"),
        (
            lambda m: {
                "policy": get_peft_model(
                    causal(m), PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2)
                )
            },
            "prompt tuning",
        ),
        (lambda m: {"model_adapter_name": "tuned"}, "the model has no adapter"),
        (
            lambda m: {
                "policy": get_peft_model(causal(m), lora("CAUSAL_LM")),
                "model_adapter_name": "tuned",
            },
            "no adapter 'tuned' .there are: default",
        ),
        (
            lambda m: {
                "policy": get_peft_model(causal(m), lora("CAUSAL_LM")),
                "ref_adapter_name": "default",
            },
            "the KL would always be 0",
        ),
        (shared, "value_model and reward_model share weights"),
    ],
)
def test_models_that_cannot_play_their_role_are_refused(
    demo_model: str, change: Any, message: str
) -> None:
    with pytest.raises(InputError, match=message):
        separate(demo_model, **change(demo_model))


def four_bit(loader: Any, model: str, nested: bool) -> Any:
    """As a script loads it, with nothing of this project's."""
    quantization = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_compute_dtype=torch.float32,
        bnb_4bit_use_double_quant=nested,
    )
    return loader(model, quantization_config=quantization, dtype=torch.float32)


def gradients(actors: SeparateModels) -> list[Tensor]:
    completion = IDS[:, 3:]
    outputs = actors.policy_outputs(IDS, MASK, completion, 1.0)
    outputs.logprobs.sum().backward()
    actors.values(IDS, MASK, 3).sum().backward()
    return [p.grad for _, p in actors.trainable() if p.grad is not None]


@pytest.mark.slow
@pytest.mark.parametrize(("tried", "nested"), [(False, False), (True, False), (True, True)])
def test_gradients_of_models_loaded_in_4_bit_by_the_script_are_right_after_sampling(
    demo_model: str, tried: bool, nested: bool
) -> None:
    """bitsandbytes repacks 4-bit weights in a pass without gradients, on CPUs with AVX512_BF16.

    The truth are the same weights, dequantized. ``tried``: the script ran its model before, so
    that its scales were rounded to bf16 already (hence the wider tolerance).
    """

    def models() -> dict[str, Any]:
        made = {"policy": four_bit(causal, demo_model, nested)}
        for name, seed in (("reward_model", 1), ("value_model", 2)):
            loader = partial(classifier, seed=seed)
            made[name] = four_bit(loader, demo_model, nested)
        return made

    def actors_of(made: dict[str, Any]) -> SeparateModels:
        torch.manual_seed(0)
        policy = stirred(get_peft_model(made.pop("policy"), lora("CAUSAL_LM")))
        value = stirred(get_peft_model(made.pop("value_model"), lora()))
        return separate(demo_model, policy=policy, value_model=value, **made)

    whole = models()
    if tried:
        for model in whole.values():
            with torch.no_grad():
                model.eval()(input_ids=IDS)
    plain = {name: model.dequantize() for name, model in models().items()}
    actors, truth = actors_of(whole), actors_of(plain)
    for each in (actors, truth):
        with torch.no_grad():  # what sampling and scoring do
            each.reference_logprobs(IDS, MASK, IDS[:, 3:], 1.0)
            each.policy_outputs(IDS, MASK, IDS[:, 3:], 1.0)
            each.values(IDS, MASK, 3)
            each.scores(IDS, MASK)
    found, expected = gradients(actors), gradients(truth)
    assert len(found) == len(expected) > 20
    for a, b in zip(found, expected, strict=True):
        error = (a - b).norm() / b.norm().clamp(min=1e-6)
        assert error < (0.05 if tried else 1e-4)
    with torch.no_grad():
        a, b = actors.scores(IDS, MASK), truth.scores(IDS, MASK)
    torch.testing.assert_close(a, b, rtol=0, atol=0.05 if tried else 1e-4)


@pytest.mark.parametrize("reentrant", [False, True])
def test_gradients_are_the_same_with_checkpointing_of_either_kind(
    demo_model: str, reentrant: bool
) -> None:
    """TRL's PPO read neither; the reentrant kind loses gradients behind a frozen embedding, unless
    its inputs are made to require them."""

    def actors() -> SeparateModels:
        torch.manual_seed(0)
        policy = stirred(get_peft_model(causal(demo_model), lora("CAUSAL_LM")))
        value = stirred(get_peft_model(classifier(demo_model, 2), lora()))
        return separate(demo_model, policy=policy, value_model=value)

    plain, checkpointed = actors(), actors()
    checkpointed.use_checkpointing({"use_reentrant": reentrant})
    layer = checkpointed.policy.get_base_model().model.layers[0]
    assert layer.gradient_checkpointing
    assert layer._gradient_checkpointing_func.keywords["use_reentrant"] is reentrant
    with checkpointed.optimizing():
        found = gradients(checkpointed)
    expected = gradients(plain)
    assert len(found) == len(expected) > 20
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)
