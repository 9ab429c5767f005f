"""Every way in which a family is unlike Llama, once: against plain transformers and plain peft.

A tiny random model stands for each mechanism. Its numbers are compared with those that the plain
libraries give for one row at a time, without padding and without a cache.
"""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as tf
from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn

from toolkit.errors import InputError
from toolkit.maths.sequences import pad
from toolkit.models.adapters import lora_config
from toolkit.models.families import LogitRule, family_of, logit_rule
from toolkit.models.generation import draw_uniforms, sample
from toolkit.models.loading import load_base, load_tokenizer, way_to_load
from toolkit.models.lora_targets import language_lora
from toolkit.models.reload import load_plain, plain_scores
from toolkit.models.roles import Roles
from toolkit.scoring.reward_models import RewardModel

SMALL: dict[str, Any] = {
    "vocab_size": 1024, "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "intermediate_size": 96, "max_position_embeddings": 128,
    "bos_token_id": None, "eos_token_id": 1, "pad_token_id": None, "initializer_range": 0.08,
}  # fmt: skip
DELTA = {
    "linear_num_value_heads": 4,
    "linear_num_key_heads": 2,
    "linear_key_head_dim": 16,
    "linear_value_head_dim": 16,
    "head_dim": 16,
    "layer_types": ["linear_attention", "full_attention"],
}
PIXTRAL = {
    "hidden_size": 32,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 28,
    "patch_size": 14,
}
MIXTURE = {"num_local_experts": 4, "num_experts_per_tok": 2}


def qwen3_5() -> Any:
    rope = {
        "rope_type": "default",
        "rope_theta": 1e4,
        "mrope_section": [2, 1, 1],
        "mrope_interleaved": True,
        "partial_rotary_factor": 0.5,
    }
    return tf.Qwen3_5ForConditionalGeneration(
        tf.Qwen3_5Config(
            text_config=SMALL | DELTA | {"rope_parameters": rope},
            vision_config={
                "depth": 1,
                "hidden_size": 32,
                "intermediate_size": 32,
                "num_heads": 2,
                "out_hidden_size": 64,
                "num_position_embeddings": 16,
            },
            image_token_id=5,
            video_token_id=6,
            vision_start_token_id=7,
            vision_end_token_id=8,
        )
    )


def ministral_3() -> Any:
    return tf.Mistral3ForConditionalGeneration(
        tf.Mistral3Config(
            text_config=tf.Ministral3Config(**SMALL, head_dim=16),
            vision_config=tf.PixtralVisionConfig(**PIXTRAL),
            image_token_index=5,
        )
    )


def gemma3() -> Any:
    text = SMALL | {
        "pad_token_id": 0,
        "head_dim": 16,
        "sliding_window": 6,
        "layer_types": ["sliding_attention", "full_attention"],
    }
    return tf.Gemma3ForConditionalGeneration(
        tf.Gemma3Config(
            text_config=text,
            vision_config=PIXTRAL,
            mm_tokens_per_image=4,
            boi_token_index=5,
            eoi_token_index=6,
            image_token_index=7,
        )
    )


def gemma4() -> Any:
    return tf.Gemma4ForCausalLM(
        tf.Gemma4TextConfig(
            **(SMALL | {"pad_token_id": 0, "num_hidden_layers": 4}),
            final_logit_softcapping=5.0,
            vocab_size_per_layer_input=1024,
            hidden_size_per_layer_input=16,
            head_dim=16,
            global_head_dim=16,
            sliding_window=6,
            num_kv_shared_layers=2,
            layer_types=["sliding_attention", "full_attention"] * 2,
        )
    )


MECHANISMS = {
    "a hybrid's cache: convolutions": lambda: tf.Lfm2ForCausalLM(
        tf.Lfm2Config(
            **SMALL,
            layer_types=["conv", "full_attention"],
            block_ff_dim=96,
            block_auto_adjust_ff_dim=False,
        )
    ),
    "a hybrid's cache: linear attention, out of a composite checkpoint": qwen3_5,
    "a composite model, held whole": ministral_3,
    "a composite model with a classifier of its own": gemma3,
    "capped logits, shared keys, a head on the trunk": gemma4,
    "scaled logits": lambda: tf.GraniteForCausalLM(
        tf.GraniteConfig(**SMALL, logits_scaling=8.0, embedding_multiplier=12.0)
    ),
    "experts": lambda: tf.MixtralForCausalLM(tf.MixtralConfig(**SMALL, **MIXTURE)),
    "a cache by another name": lambda: tf.MambaForCausalLM(
        tf.MambaConfig(
            vocab_size=1024,
            hidden_size=32,
            num_hidden_layers=2,
            state_size=8,
            bos_token_id=None,
            eos_token_id=1,
            pad_token_id=0,
        )
    ),
    "an embedding of another width": lambda: tf.OPTForCausalLM(
        tf.OPTConfig(
            vocab_size=1024,
            hidden_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            ffn_dim=96,
            max_position_embeddings=128,
            word_embed_proj_dim=32,
            do_layer_norm_before=False,
            pad_token_id=0,
            bos_token_id=1,
            eos_token_id=1,
        )
    ),
}
LORA = lora_config(4, 8, "all-linear", "CAUSAL_LM")
PROMPTS = [[5, 6, 7, 8, 9, 10, 11], [40, 41, 42, 43], [90, 91, 92, 93, 94, 95]]


def save(model: Any, folder: Path) -> str:
    """With weights that all count, and the embedded model's tokenizer."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() >= 2 and parameter.std() < 0.03 and "A_log" not in name:
                parameter.copy_(0.08 * torch.randn(parameter.shape, generator=generator))
    model.save_pretrained(folder)
    demo = Path(__file__).parents[2] / "data" / "model"
    for file in demo.glob("*token*"):
        shutil.copy(file, folder)
    return str(folder)


@pytest.fixture(scope="module")
def name(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> str:
    torch.manual_seed(0)
    return save(MECHANISMS[request.param]().float().eval(), tmp_path_factory.mktemp("model"))


def speak(model: nn.Module) -> None:
    """Give adapters something to say."""
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.copy_(0.05 * torch.randn(parameter.shape, generator=generator))


def plain_model(name: str, precision: str) -> Any:
    way = way_to_load(name, precision, "cpu")
    model = way.load(name)
    way.settle(model)
    return model.eval()


@torch.no_grad()
def plain_logprobs(model: Any, completions: torch.Tensor, temperature: float) -> torch.Tensor:
    """Of each row alone: nothing padded, nothing cached, the model's own logits."""
    found = []
    for prompt, completion in zip(PROMPTS, completions, strict=True):
        row = torch.tensor([prompt + completion.tolist()])
        logits = model(input_ids=row, use_cache=False).logits[0, len(prompt) - 1 : -1].float()
        logprobs = (logits / temperature).log_softmax(-1)
        found.append(logprobs.gather(-1, completion.unsqueeze(1)).squeeze(1))
    return torch.stack(found)


PRECISIONS = [
    (mechanism, precision)
    for mechanism in MECHANISMS
    for precision in ("fp32", "4bit")
    if (mechanism, precision) != ("a cache by another name", "4bit")  # refused
]


def policy_gaps(name: str, precision: str, folder: Path) -> dict[str, float]:
    """How far policy, reference and value are from plain transformers and peft, at most.

    Sampled behind left padding, in a whole pass with gradients, and reloaded by plain peft.
    """
    roles = Roles(load_base(name, precision), LORA, value="adapter")
    speak(roles)
    ids, mask = pad(PROMPTS, 0, "left")
    noise = draw_uniforms(3, 6, torch.Generator().manual_seed(0))
    sampled = sample(roles.step(), ids, mask, noise, 0.7, 0)
    whole = torch.cat([ids, sampled.completion_ids], 1), torch.cat([mask, sampled.mask], 1)
    outputs = roles.policy_outputs(*whole, sampled.completion_ids, 0.7)
    outputs.logprobs.sum().backward()
    with torch.no_grad():
        reference = roles.reference_logprobs(*whole, sampled.completion_ids, 0.7)
        generator = torch.Generator().manual_seed(3)
        roles.value_head.weight.copy_(
            torch.randn(roles.value_head.weight.shape, generator=generator)
        )
        values = roles.values(*whole, 6)
        alone = [
            roles.values(torch.tensor([p + c]), torch.ones(1, len(p) + 6, dtype=torch.bool), 6)
            for p, c in zip(PROMPTS, sampled.completion_ids.tolist(), strict=True)
        ]
    gradients = [p.grad for _, p in roles.trainable() if p.grad is not None]
    roles.zero_grad()
    roles.right_padded = True  # as a GPU has its passes
    again = roles.policy_outputs(*whole, sampled.completion_ids, 0.7)
    again.logprobs.sum().backward()
    with torch.no_grad():
        passes = [
            (again.logprobs, outputs.logprobs),
            (roles.reference_logprobs(*whole, sampled.completion_ids, 0.7), reference),
            (roles.values(*whole, 6), values),
        ]
    grads_again = [p.grad for _, p in roles.trainable() if p.grad is not None]
    roles.save(folder)

    base = plain_model(name, precision)
    untuned = plain_logprobs(base, sampled.completion_ids, 0.7)
    tuned = PeftModel.from_pretrained(base, folder / "policy").eval()
    expected = plain_logprobs(tuned, sampled.completion_ids, 0.7)
    trained = {n: p.grad for n, p in roles.trainable() if ".policy." in n}
    return {
        "sampled": gap(sampled.logprobs, expected),
        "trained": gap(outputs.logprobs.detach(), expected),
        "reference": gap(reference, untuned),
        "value": gap(values, torch.cat(alone)),
        "padded right": max(relative(a, b) for a, b in passes),
        "trained, padded right": max(map(relative, grads_again, gradients)),
        "moved by the adapter": gap(expected, untuned),
        "without a gradient": sum(g is None or not g.isfinite().all() for g in trained.values()),
    }


def reward_gaps(name: str, precision: str, folder: Path) -> dict[str, float]:
    """How far a reward adapter's scores are from plain peft's: in training, and as PPO scores.

    Trained on what ``load_base`` gives the trainer.
    """
    model = load_base(name, precision, score_head=True)
    lora = language_lora(model, lora_config(4, 8, "all-linear", "SEQ_CLS"))
    trained = get_peft_model(model, lora)
    speak(trained)
    ids, mask = pad(PROMPTS, 3)
    model.config.get_text_config().pad_token_id = 3  # as the trainer sets it
    scores = trained(input_ids=ids, attention_mask=mask.long()).logits.squeeze(-1)
    scores.square().sum().backward()
    missing = [n for n, p in trained.named_parameters() if p.requires_grad and p.grad is None]
    trained.save_pretrained(str(folder))

    plain = torch.tensor(plain_scores(load_plain(folder, name, precision), PROMPTS))
    roles = Roles(load_base(name, precision), reward_adapter=folder)
    with torch.no_grad():
        left, right = (roles.scores(*pad(PROMPTS, 0, side)) for side in ("left", "right"))
        roles.right_padded = True
        no_mask = roles.scores(*pad(PROMPTS, 0, "left"))
    beside = RewardModel(str(folder), precision)  # as the reward of a policy on another base
    return {
        "in training": gap(scores.detach(), plain),
        "padded left": gap(left, plain),
        "padded right": gap(right, plain),
        "without a mask": relative(no_mask, right),
        "without a gradient": len(missing),
        "beside": gap(beside.score_rows(PROMPTS), plain),
    }


def gap(found: torch.Tensor, expected: torch.Tensor) -> float:
    return (found - expected).abs().max().item()


def relative(found: torch.Tensor, expected: torch.Tensor) -> float:
    return gap(found, expected) / max(1.0, expected.abs().max().item())


@pytest.mark.slow
@pytest.mark.parametrize(("name", "precision"), PRECISIONS, indirect=["name"])
def test_policy_reference_and_value_are_what_plain_libraries_give(
    name: str, precision: str, tmp_path: Path
) -> None:
    gaps = policy_gaps(name, precision, tmp_path)
    assert gaps.pop("moved by the adapter") > 1e-2
    assert gaps.pop("without a gradient") == 0
    assert gaps.pop("padded right") < 1e-6
    assert gaps.pop("trained, padded right") < 1e-5
    assert max(gaps.values()) < 1e-4, gaps


@pytest.mark.slow
@pytest.mark.parametrize(("name", "precision"), PRECISIONS, indirect=["name"])
def test_a_reward_adapter_scores_as_trained_and_by_plain_peft(
    name: str, precision: str, tmp_path: Path
) -> None:
    gaps = reward_gaps(name, precision, tmp_path)
    assert gaps.pop("without a gradient") == 0
    assert gaps.pop("without a mask") < 1e-6
    assert max(gaps.values()) < 1e-4, gaps


def test_weights_that_peft_would_not_load_again_are_refused_before_training(
    demo_model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As with Laguna, where peft writes shared_experts..down_proj for shared_experts.down_proj."""
    from toolkit.models import adapters

    honest = adapters.get_peft_model_state_dict

    def renamed(*args: Any, **kwargs: Any) -> dict[str, torch.Tensor]:
        return {key.replace("o_proj", ".o_proj"): t for key, t in honest(*args, **kwargs).items()}

    monkeypatch.setattr(adapters, "get_peft_model_state_dict", renamed)
    with pytest.raises(InputError, match="peft could not load 12 weights .* again, .*[.][.]o_proj"):
        Roles(load_base(demo_model, "fp32"), LORA)


def test_no_adapter_is_put_on_where_none_is_wanted(demo_model: str) -> None:
    base = load_base(demo_model, "fp32")
    before = {n for n, _ in base.named_parameters()}
    roles = Roles(base)
    assert {n.removeprefix("model.") for n, _ in roles.named_parameters()} == {
        n.removeprefix("model.") if n.startswith("model.model.") else n for n in before
    }
    assert roles.trainable() == [] and roles.adapters == {}


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        (tf.T5Config(), "encoder and a decoder"), (tf.BartConfig(), "encoder and a decoder"),
        (tf.BertConfig(), "reads in both directions"), (tf.RwkvConfig(), "does not accept a cache"),
        (tf.CLIPConfig(), "no causal language model"),
        (tf.MiniMaxConfig(), "keeps its cache in its own form"),
        (tf.PaliGemmaConfig(), "reads its prompt in both directions"),
    ],
)  # fmt: skip
def test_what_is_no_causal_language_model_is_refused_by_its_config(
    config: tf.PreTrainedConfig, reason: str
) -> None:
    with pytest.raises(InputError, match=reason) as refused:
        family_of(config, "some/model")
    assert str(refused.value).startswith(f"some/model: a {config.model_type} model")


def test_what_is_done_to_logits_is_read_from_the_config() -> None:
    small = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "vocab_size": 9}
    assert logit_rule(tf.LlamaConfig(**small)) == LogitRule()
    assert logit_rule(tf.GraniteConfig(**small, logits_scaling=8.0)) == LogitRule(0.125)
    assert logit_rule(tf.CohereConfig(**small, logit_scale=0.0625)) == LogitRule(0.0625)
    assert logit_rule(tf.FalconH1Config(**small, lm_head_multiplier=0.5)) == LogitRule(0.5)
    assert logit_rule(tf.Gemma2Config(**small)) == LogitRule(1.0, 30.0)
    assert LogitRule(2.0, 3.0)(torch.tensor([1.5])).item() == pytest.approx(3 * 0.761594, rel=1e-5)
    assert LogitRule(0.5, 30.0).said() == "multiplied by 0.5 and capped at 30"


def test_an_adapter_on_experts_is_refused_where_they_are_in_4_bits(tmp_path: Path) -> None:
    name = save(MECHANISMS["experts"](), tmp_path / "base")
    lora = LoraConfig(
        r=2,
        task_type="CAUSAL_LM",
        target_modules=["q_proj"],
        target_parameters=["mlp.experts.down_proj"],
    )
    trained = get_peft_model(load_base(name, "fp32"), lora)
    trained.save_pretrained(str(tmp_path / "adapter"))
    with pytest.raises(InputError, match="LoRA on experts, which are in 4 bits here .pass --prec"):
        Roles(load_base(name, "4bit"), policy_adapter=tmp_path / "adapter")


@pytest.mark.slow
def test_a_merged_checkpoint_is_the_language_model(tmp_path: Path) -> None:
    """Of a composite checkpoint whose language model alone is held."""
    from toolkit.models.merging import merge_adapter

    name = save(qwen3_5(), tmp_path / "base")
    roles = Roles(load_base(name, "fp32"), LORA)
    speak(roles)
    roles.save(tmp_path)
    said = merge_adapter(str(tmp_path / "policy"), None, tmp_path / "merged", "fp32")
    assert said.startswith("merged in fp32")
    tokenizer = load_tokenizer(str(tmp_path / "merged"))
    ids = torch.tensor([tokenizer("We went to the market.")["input_ids"]])
    merged = Roles(load_base(str(tmp_path / "merged"), "fp32"))
    mask = torch.ones_like(ids, dtype=torch.bool)
    with torch.no_grad():
        ours, theirs = (r.logits("policy", ids, mask, 4) for r in (roles, merged))
    assert torch.allclose(ours, theirs, atol=1e-4)


def opt() -> Any:
    """Dropout is a number in its layers, and no module."""
    return tf.OPTForCausalLM(
        tf.OPTConfig(
            vocab_size=1024,
            hidden_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            ffn_dim=96,
            max_position_embeddings=128,
            word_embed_proj_dim=64,
            dropout=0.5,
            attention_dropout=0.5,
            layerdrop=0.5,
            pad_token_id=0,
            bos_token_id=1,
            eos_token_id=1,
        )
    )


def phimoe() -> Any:
    """Its router draws experts at random in training mode."""
    return tf.PhimoeForCausalLM(tf.PhimoeConfig(**SMALL, **MIXTURE, router_jitter_noise=0.5))


@pytest.mark.parametrize("model", [opt, phimoe])
def test_recomputed_activations_are_those_of_sampling(model: Any, tmp_path: Path) -> None:
    """Training mode, in which transformers checkpoints, changes nothing else."""
    roles = Roles(load_base(save(model().float().eval(), tmp_path), "fp32"), LORA)
    ids, mask = pad(PROMPTS, 0, "left")
    expected = roles.policy_outputs(ids, mask, ids[:, -3:], 1.0).logprobs
    roles.use_checkpointing()
    with roles.optimizing():
        found = roles.policy_outputs(ids, mask, ids[:, -3:], 1.0).logprobs
    assert gap(found, expected) < 1e-5


def gemma3n() -> Any:
    return tf.Gemma3nForCausalLM(
        tf.Gemma3nTextConfig(
            **(SMALL | {"pad_token_id": 0, "num_hidden_layers": 4}),
            head_dim=16,
            laurel_rank=8,
            vocab_size_per_layer_input=1024,
            hidden_size_per_layer_input=16,
            sliding_window=6,
            num_kv_shared_layers=2,
            layer_types=["sliding_attention", "full_attention"] * 2,
            activation_sparsity_pattern=[0.0] * 4,
            altup_coef_clip=0.01,
        )
    )


@pytest.mark.parametrize("precision", ["fp32", "4bit"])
def test_gemma_3n_learns_behind_padding(precision: str, tmp_path: Path) -> None:
    """It takes a root of the embedding's norm, which is 0 for the padding token."""
    roles = Roles(load_base(save(gemma3n().float().eval(), tmp_path), precision), LORA)
    speak(roles)
    roles.use_checkpointing()
    ids, mask = pad(PROMPTS, 0, "left")
    with roles.optimizing():
        roles.policy_outputs(ids, mask, ids[:, -3:], 1.0).logprobs.sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for _, p in roles.trainable())


@pytest.mark.parametrize("precision", ["fp32", "4bit"])
def test_training_mode_does_not_clip_a_frozen_base(precision: str, tmp_path: Path) -> None:
    """Gemma 3n clips weights of its own while it trains, as a reward model does."""
    model = load_base(save(gemma3n().float().eval(), tmp_path), precision, score_head=True)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    ids, mask = pad(PROMPTS, 0)
    model.train()(input_ids=ids, attention_mask=mask.long())
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())


def test_right_padding_does_not_change_which_rotary_factors_are_chosen(tmp_path: Path) -> None:
    """Some families choose by the largest position, which padding must not raise."""
    rope = {
        "rope_type": "longrope",
        "rope_theta": 1e4,
        "short_factor": [1.0] * 8,
        "long_factor": [4.0] * 8,
        "original_max_position_embeddings": 12,
    }
    config = tf.Phi3Config(
        **(SMALL | {"pad_token_id": 0}),
        rope_parameters=rope,
        original_max_position_embeddings=12,
    )
    torch.manual_seed(0)
    roles = Roles(load_base(save(tf.Phi3ForCausalLM(config), tmp_path), "fp32"), LORA)
    ids = torch.arange(5, 41).view(2, 18)
    mask = torch.ones_like(ids, dtype=torch.bool)
    mask[:, 11:] = False  # completions that end early: 11 real tokens of 18
    found = []
    for roles.right_padded in (False, True):
        with torch.no_grad():
            found.append(roles.logprobs("policy", ids, mask, ids[:, -10:], 1.0)[:, :2])
    assert torch.allclose(*found, atol=1e-5)
