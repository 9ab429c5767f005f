"""Adapters that other tools saved: whole, exactly as plain peft has them, or refused by name."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import IA3Config, LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, MixtralConfig, MixtralForCausalLM

from tests.models.conftest import IDS, KINDS, MASK, by_roles, plain, saved
from toolkit.errors import InputError
from toolkit.models.adapters import (
    Parts,
    check_adapter,
    check_copyable,
    check_for_trl,
    copy_lora,
    lora_config_like,
    other_start,
)
from toolkit.models.loading import load_base
from toolkit.models.merging import merge_adapter
from toolkit.models.roles import Roles
from toolkit.models.toolkit_json import adapter_digest
from toolkit.training.ppo.checkpoints import export_policy

pytestmark = [
    # What peft says of adapters as other tools save them; it saves and loads them all the same.
    pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`:UserWarning"),
    pytest.mark.filterwarnings("ignore:You have requested `ensure_weight_tying`, but no tied"),
    pytest.mark.filterwarnings("ignore:The following .*_pattern keys did not match any"),
    pytest.mark.filterwarnings("ignore:Setting `save_embedding_layers` to `True`:UserWarning"),
    pytest.mark.filterwarnings("ignore:.lora_bias=True. was passed"),
    pytest.mark.filterwarnings("ignore:Adapter '.*'. . LoRA tensor.s. have invalid shape"),
]


@pytest.mark.slow
@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_policy_and_its_frozen_start_have_plain_pefts_logprobs_and_the_base_stays_the_base(
    kind: str, tied: bool, demo_model: str, untied: str, tmp_path: Path
) -> None:
    base = demo_model if tied else untied
    folder = saved(base, tmp_path / "adapter", **KINDS[kind])
    expected, bare = plain(base, folder), plain(base, None)
    if not (kind == "biases" and tied):  # the embedded model has none
        assert (expected - bare).abs().max() > 1e-2
    check_adapter(folder, base, "CAUSAL_LM", "--policy_adapter")
    frozen = Roles(
        load_base(base, "fp32"), value="adapter", policy_adapter=folder, reference="policy_adapter"
    )
    for role in ("policy", "reference", "policy"):
        torch.testing.assert_close(by_roles(frozen, role), expected, rtol=0, atol=1e-4)
    from_base = Roles(load_base(base, "fp32"), policy_adapter=folder)
    torch.testing.assert_close(by_roles(from_base, "policy"), expected, rtol=0, atol=1e-4)
    torch.testing.assert_close(by_roles(from_base, "reference"), bare, rtol=0, atol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_the_sampler_reads_what_the_trainer_reads(kind: str, untied: str, tmp_path: Path) -> None:
    """One step of sampling without a cache: the policy's logits at the last position."""
    folder = saved(untied, tmp_path / "adapter", **KINDS[kind])
    roles = Roles(load_base(untied, "fp32"), policy_adapter=folder)
    with torch.no_grad():
        logits, _ = roles.step().run(IDS, MASK, torch.arange(8).expand(2, -1), None)
        model: Any = PeftModel.from_pretrained(
            AutoModelForCausalLM.from_pretrained(untied), str(folder)
        ).eval()
        torch.testing.assert_close(logits, model(IDS).logits[:, -1], rtol=0, atol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_all_of_an_adapter_is_trained_and_saved_and_plain_peft_loads_it(
    kind: str, untied: str, tmp_path: Path
) -> None:
    folder = saved(untied, tmp_path / "adapter", **KINDS[kind])
    roles = Roles(
        load_base(untied, "fp32"),
        value="adapter",
        policy_adapter=folder,
        reference="policy_adapter",
    )
    trained = dict(roles.trainable())
    optimizer = torch.optim.SGD(trained.values(), lr=0.05)
    outputs = roles.policy_outputs(IDS, MASK, IDS[:, 4:], 1.0)
    (-outputs.logprobs.sum()).backward()
    still = [name for name, p in trained.items() if ".policy." in name or name.endswith(".policy")]
    still = [name for name in still if trained[name].grad is None]
    # Layers behind the last attention's queries and keys of one position still get theirs.
    assert not still, still
    optimizer.step()
    after = by_roles(roles, "policy")
    assert (after - outputs.logprobs).abs().max() > 1e-3
    torch.testing.assert_close(
        by_roles(roles, "reference"), plain(untied, folder), rtol=0, atol=1e-4
    )
    roles.save(tmp_path / "saved")
    torch.testing.assert_close(
        plain(untied, tmp_path / "saved" / "policy"), after, rtol=0, atol=1e-4
    )


def test_gradients_are_plain_pefts_for_weights_beside_lora(untied: str, tmp_path: Path) -> None:
    folder = saved(untied, tmp_path / "adapter", modules_to_save=["lm_head", "norm"], bias="all")
    roles = Roles(load_base(untied, "fp32"), policy_adapter=folder)
    model: Any = PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(untied), str(folder), is_trainable=True
    ).eval()
    logits = model(input_ids=IDS).logits[:, 3:7].log_softmax(-1)
    (-logits.gather(-1, IDS[:, 4:, None])).sum().backward()
    (-roles.policy_outputs(IDS, MASK, IDS[:, 4:], 1.0).logprobs).sum().backward()
    theirs = {n.replace(".default", ""): p.grad for n, p in model.named_parameters()}
    keys = roles.overrides.keys["policy"]
    ours = {
        n.removeprefix("model.").replace(".policy", ""): p.grad
        for n, p in roles.trainable()
        if n.startswith("model.")
    }
    ours |= {k: p.grad for k, p in zip(keys, roles.overrides.tensors("policy"), strict=True)}
    held = [name for name in theirs if "lm_head" in name or "model.norm" in name or "bias" in name]
    compared = [name for name in held if theirs[name] is not None and name in ours]
    assert len([n for n in compared if "bias" in n]) == 6 and len(compared) >= 8
    for name in compared:
        torch.testing.assert_close(ours[name], theirs[name], rtol=1e-3, atol=1e-4, msg=name)


def test_four_bits_hold_what_is_beside_lora_too(untied: str, tmp_path: Path) -> None:
    folder = saved(untied, tmp_path / "adapter", modules_to_save=["embed_tokens", "lm_head"])
    base = load_base(untied, "4bit")
    roles = Roles(base, policy_adapter=folder)
    after = by_roles(roles, "policy")
    again: Any = PeftModel.from_pretrained(load_base(untied, "4bit"), str(folder)).eval()
    with torch.no_grad():
        logits = again(input_ids=IDS).logits[:, 3:7].float().log_softmax(-1)
    expected = logits.gather(-1, IDS[:, 4:, None]).squeeze(-1)
    torch.testing.assert_close(after, expected, rtol=0, atol=1e-4)


def test_a_reward_adapter_with_an_embedding_of_its_own_scores_as_plain_peft(
    demo_model: str, tmp_path: Path
) -> None:
    from transformers import AutoModelForSequenceClassification

    base: Any = AutoModelForSequenceClassification.from_pretrained(demo_model, num_labels=1)
    config = LoraConfig(
        r=4, target_modules=["q_proj"], task_type="SEQ_CLS", modules_to_save=["embed_tokens"]
    )
    model = get_peft_model(base, config)
    torch.manual_seed(1)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data += 0.1 * torch.randn_like(parameter)
    model.eval().save_pretrained(str(tmp_path / "reward"))
    check_adapter(tmp_path / "reward", demo_model, "SEQ_CLS", "--reward_adapter")
    roles = Roles(load_base(demo_model, "fp32"), reward_adapter=tmp_path / "reward")
    with torch.no_grad():
        for row in IDS:
            expected = model(input_ids=row[None]).logits.item()
            found = roles.scores(row[None], torch.ones(1, 8, dtype=torch.bool)).item()
            assert found == pytest.approx(expected, abs=1e-4)
        bare = plain(demo_model, None)
        torch.testing.assert_close(by_roles(roles, "reference"), bare, rtol=0, atol=1e-4)


def test_two_policies_on_one_base_keep_their_own_heads(untied: str, tmp_path: Path) -> None:
    one = saved(untied, tmp_path / "one", modules_to_save=["norm"])
    other = saved(untied, tmp_path / "other", 0.2, bias="all")
    roles = Roles(load_base(untied, "fp32"), policy_adapter=one)
    roles.add_policy("rival", other)
    rows = saved(untied, tmp_path / "rows", trainable_token_indices=[5, 6])
    roles.add_policy("rows", rows)
    with torch.no_grad():
        for role, folder in (
            ("rival", other),
            ("policy", one),
            ("reference", None),
            ("rows", rows),
            ("rival", other),
        ):
            logits = roles.logits(role, IDS, MASK, 4).float().log_softmax(-1)
            found = logits.gather(-1, IDS[:, 4:, None]).squeeze(-1)
            torch.testing.assert_close(found, plain(untied, folder), rtol=0, atol=1e-4)


def grown(base: str, folder: Path) -> Path:
    """An adapter for which two tokens were added to the vocabulary, with its tokenizer."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(base)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    model: Any = AutoModelForCausalLM.from_pretrained(base)
    model.resize_token_embeddings(len(tokenizer))
    model = get_peft_model(
        model,
        LoraConfig(
            r=4,
            target_modules=["q_proj"],
            task_type="CAUSAL_LM",
            modules_to_save=["embed_tokens", "lm_head"],
        ),
    )
    torch.manual_seed(1)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data += 0.1 * torch.randn_like(parameter)
    model.save_pretrained(str(folder))
    tokenizer.save_pretrained(str(folder))
    return folder


def other_kind(base: str, folder: Path) -> Path:
    config = IA3Config(
        task_type="CAUSAL_LM", target_modules=["k_proj", "v_proj"], feedforward_modules=[]
    )
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(base), config)
    model.save_pretrained(str(folder))
    return folder


def whole_block(base: str, folder: Path) -> Path:
    return saved(base, folder, modules_to_save=["mlp"])


def stray_weight(base: str, folder: Path) -> Path:
    saved(base, folder)
    path = folder / "adapter_model.safetensors"
    save_file(load_file(path) | {"base_model.model.model.norm.weight": torch.ones(64)}, path)
    return folder


def begun_by(start: str) -> Callable[[str, Path], Path]:
    """An adapter relative to a base that its own start changed."""

    def make(base: str, folder: Path) -> Path:
        return saved(base, folder, init_lora_weights=start)

    return make


def by_tokens(base: str, folder: Path) -> Path:
    saved(base, folder)
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(
        json.dumps(config | {"alora_invocation_tokens": [5, 6]})
    )
    return folder


def linear_layer(base: str, folder: Path) -> Path:
    return saved(base, folder, modules_to_save=["o_proj"])


def rows_of_new_tokens(base: str, folder: Path) -> Path:
    """Rows 1024 and 1025, for which the base was resized."""
    model: Any = AutoModelForCausalLM.from_pretrained(base)
    model.resize_token_embeddings(1026)
    model = get_peft_model(
        model,
        LoraConfig(
            r=4,
            target_modules=["q_proj"],
            task_type="CAUSAL_LM",
            trainable_token_indices=[1024, 1025],
        ),
    )
    model.save_pretrained(str(folder), save_embedding_layers=False)
    return folder


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (linear_layer, "o_proj.weight was trained whole, but is a linear layer"),
        (rows_of_new_tokens, "it has a row for token 1025, but the base has 1024"),
        (begun_by("pissa"), "initialized by pissa, which changed the base's weights"),
        (begun_by("olora"), "initialized by olora"),
        (by_tokens, "switched on by tokens of the prompt"),
        (grown, "has 1026 rows, but the base has 1024: the vocabulary was resized"),
        (other_kind, "a IA3 adapter, but must be LoRA"),
        (whole_block, "for example .*mlp.down_proj.weight; they would be lost"),
        (stray_weight, "model.norm.weight; they would be lost"),
    ],
)
def test_what_one_base_cannot_hold_is_named_before_a_model_is_loaded_with_the_cure(
    make: Callable[[str, Path], Path], said: str, untied: str, tmp_path: Path
) -> None:
    folder = make(untied, tmp_path / "adapter")
    with pytest.raises(InputError, match=said) as refusal:
        check_adapter(folder, untied, "CAUSAL_LM", "--policy_adapter")
    assert f"preftune merge --adapter {folder}" in str(refusal.value)


@pytest.mark.slow
@pytest.mark.parametrize("make", [grown, other_kind, whole_block, begun_by("pissa")])
def test_the_cure_gives_a_model_with_the_logprobs_of_base_and_adapter(
    make: Callable[[str, Path], Path], untied: str, tmp_path: Path
) -> None:
    folder = make(untied, tmp_path / "adapter")
    said = merge_adapter(str(folder), untied, tmp_path / "merged", "fp32")
    assert "differ by up to" in said
    model: Any = AutoModelForCausalLM.from_pretrained(untied)
    if make is grown:
        model.resize_token_embeddings(1026)
    model = PeftModel.from_pretrained(model, str(folder)).eval()
    merged: Any = AutoModelForCausalLM.from_pretrained(tmp_path / "merged").eval()
    ids = torch.tensor([[5, 6, 7, model.get_input_embeddings().weight.shape[0] - 1, 8]])
    with torch.no_grad():
        torch.testing.assert_close(merged(ids).logits, model(ids).logits, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("kind", "tied", "copied", "said"),
    [("biases", False, True, "trained biases, of which TRL keeps no frozen copy"),
     ("rows of the embedding", False, True, "trained rows of the embedding, of which"),
     ("LoRA on the head", False, False, "LoRA on the output head, which TRL's trainers refuse"),
     ("rows of the embedding", True, False, "rows of an embedding that is also the output head"),
     ("rows of the embedding", False, False, None), ("norms", True, True, None)],
)  # fmt: skip
def test_what_trls_trainers_cannot_go_on_from_is_refused_before_a_model_is_loaded(
    kind: str,
    tied: bool,
    copied: bool,
    said: str | None,
    demo_model: str,
    untied: str,
    tmp_path: Path,
) -> None:
    base = demo_model if tied else untied
    folder = saved(base, tmp_path / "adapter", **KINDS[kind])
    if said is None:
        return check_for_trl(folder, base, "--policy_adapter", copied, head=True)
    with pytest.raises(InputError, match=said):
        check_for_trl(folder, base, "--policy_adapter", copied, head=True)
    return None


def test_keys_are_sorted_by_what_the_config_names() -> None:
    at = "base_model.model.model.layers.0."
    parts = Parts.of(
        [
            f"{at}self_attn.q_proj.lora_A.weight",
            f"{at}input_layernorm.weight",
            f"{at}mlp.up.bias",
            "base_model.model.lm_head.base_layer.weight",
            "base_model.model.score.weight",
        ],
        {"modules_to_save": ["norm", "score"], "bias": "none"},
    )
    assert parts.lora == [f"{at}self_attn.q_proj.lora_A.weight"]
    assert parts.saved == [f"{at}input_layernorm.weight"]  # peft matches the end of a name
    assert parts.copies == ["base_model.model.lm_head.base_layer.weight"]
    assert parts.score == ["base_model.model.score.weight"]
    assert parts.unknown == [f"{at}mlp.up.bias"]  # biases, but bias is "none"


@pytest.mark.parametrize(
    "kind", ["DoRA", "biases", "norms", "rows of the embedding", "rank-stabilized LoRA on the head"]
)
def test_a_checkpoints_policy_is_the_one_that_the_run_saved(
    kind: str, demo_model: str, untied: str, tmp_path: Path, new_trainer: Any
) -> None:
    """Exported for an evaluation: by rank and alpha alone, other scales and weights were lost."""
    base = untied if kind == "biases" else demo_model
    folder = saved(base, tmp_path / "adapter", 0.01, **KINDS[kind])
    roles = Roles(
        load_base(base, "fp32"), value="trunk", policy_adapter=folder, reference="policy_adapter"
    )
    trainer = new_trainer(model=roles, total_episodes=8, save_steps=1)
    trainer.train()
    finished = trainer.save_model()
    export_policy(tmp_path / "run" / "checkpoint-000001", tmp_path / "exported")
    config = json.loads((tmp_path / "exported" / "adapter_config.json").read_text())
    assert config["use_rslora"] == KINDS[kind].get("use_rslora", False)
    before, after = plain(base, finished), plain(base, tmp_path / "exported")
    torch.testing.assert_close(after, before, rtol=0, atol=0)
    assert (after - plain(base, folder)).abs().max() > 1e-4  # it has learned


@pytest.mark.slow
def test_a_run_on_such_an_adapter_resumes_exactly(
    untied: str, tmp_path: Path, new_trainer: Any
) -> None:
    folder = saved(
        untied, tmp_path / "adapter", 0.01, bias="all", modules_to_save=["lm_head", "norm"]
    )

    def trainer(name: str, **kwargs: Any) -> Any:
        roles = Roles(
            load_base(untied, "fp32"),
            value="trunk",
            policy_adapter=folder,
            reference="policy_adapter",
        )
        return new_trainer(name, model=roles, total_episodes=24, save_steps=1, **kwargs)

    whole = trainer("whole")
    rows = whole.train()
    trainer("cut", stop_at_update=1).train()
    resumed = trainer("cut", resume="auto")
    assert resumed.train() == rows
    for (name, a), (_, b) in zip(whole.model.trainable(), resumed.model.trainable(), strict=True):
        assert torch.equal(a, b), name


def test_lora_on_the_parameters_of_experts_is_held(demo_model: str, tmp_path: Path) -> None:
    """peft puts it there by itself, on all linear layers of a mixture."""
    torch.manual_seed(0)
    MixtralForCausalLM(
        MixtralConfig(
            vocab_size=1024,
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            num_local_experts=4,
            max_position_embeddings=64,
        )
    ).save_pretrained(tmp_path / "base")
    base = str(tmp_path / "base")
    folder = saved(base, tmp_path / "adapter", target_modules="all-linear")
    config = json.loads((folder / "adapter_config.json").read_text())
    assert config["target_parameters"]
    check_adapter(folder, base, "CAUSAL_LM", "--policy_adapter")
    roles = Roles(load_base(base, "fp32"), policy_adapter=folder, value="adapter")
    torch.testing.assert_close(by_roles(roles, "policy"), plain(base, folder), rtol=0, atol=1e-4)
    torch.testing.assert_close(by_roles(roles, "reference"), plain(base, None), rtol=0, atol=1e-4)


NOT_COPIED = {
    "embedding and head": "modules trained whole",
    "head alone": "modules trained whole",
    "norms": "modules trained whole",
    "biases": "biases",
    "rows of the embedding": "rows of the embedding",
    "LoRA on the head": "copies of embedding or head",
    "LoRA on the embedding": "copies of embedding or head",
    "an embedding that ties the head": "modules trained whole",
    "rank-stabilized LoRA on the head": "copies of embedding or head",
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_a_reward_model_starts_as_an_exact_copy_of_a_policy_adapter_or_it_is_refused(
    kind: str, untied: str, tmp_path: Path
) -> None:
    """Plain peft on the language model says what the states of the classifier's trunk must be."""
    folder = saved(untied, tmp_path / "adapter", **KINDS[kind])
    if kind in NOT_COPIED:
        with pytest.raises(InputError, match=f"--start_adapter: .*{NOT_COPIED[kind]}"):
            check_copyable(folder, "--start_adapter")
        return
    check_copyable(folder, "--start_adapter")
    model: Any = get_peft_model(
        load_base(untied, "fp32", score_head=True), lora_config_like(folder, "SEQ_CLS")
    )
    model.config.pad_token_id = 0
    policy: Any = AutoModelForCausalLM.from_pretrained(untied)
    with torch.no_grad():
        before = model(IDS, output_hidden_states=True).hidden_states[-1]
        copy_lora(model, folder)
        copied = model.eval()(IDS, output_hidden_states=True).hidden_states[-1]
        policy = PeftModel.from_pretrained(policy, str(folder)).eval()
        theirs = policy(IDS, output_hidden_states=True).hidden_states[-1]
    torch.testing.assert_close(copied, theirs, rtol=0, atol=1e-5)
    assert (before - theirs).abs().max() > 1e-2
    assert any(p.requires_grad and "score" in n for n, p in model.named_parameters())


def test_lora_on_a_head_that_peft_did_not_copy_is_no_start_either(
    untied: str, tmp_path: Path
) -> None:
    folder = saved(untied, tmp_path / "adapter", target_modules=["q_proj", "lm_head"])
    kept = {
        k: v for k, v in load_file(folder / "adapter_model.safetensors").items() if ".lora_" in k
    }
    save_file(kept, folder / "adapter_model.safetensors")
    with pytest.raises(InputError, match="LoRA on the output head, which a reward model lacks"):
        check_copyable(folder, "--start_adapter")


def test_a_copy_that_would_leave_something_out_is_refused(untied: str, tmp_path: Path) -> None:
    folder = saved(untied, tmp_path / "adapter")
    fewer = lora_config_like(folder, "SEQ_CLS")
    fewer.target_modules = {"q_proj"}
    model = get_peft_model(load_base(untied, "fp32", score_head=True), fewer)
    with pytest.raises(InputError, match="cannot start as an exact copy .*v_proj.lora_A"):
        copy_lora(model, folder)


def test_scores_that_were_normalized_on_another_start_are_said(tmp_path: Path) -> None:
    reward, sft, other = tmp_path / "reward", tmp_path / "sft", tmp_path / "other"
    for folder in (sft, other):
        folder.mkdir()
        (folder / "adapter_model.safetensors").write_bytes(folder.name.encode())
    reward.mkdir()

    def noted(policy: Path | None, **facts: object) -> str:
        (reward / "toolkit.json").write_text(json.dumps(facts))
        return " ".join(other_start(reward, policy))

    on_sft: dict[str, object] = {"samples": 512, "start": adapter_digest(sft)}
    assert not noted(None, samples=512) and not noted(sft, **on_sft)
    assert not noted(sft) and not noted(None, samples=0, start=adapter_digest(sft))
    assert "samples of the base, but the policy starts as" in noted(sft, samples=512)
    assert f"--start_adapter {sft}" in noted(sft, samples=512)
    assert "--start_adapter" in noted(other, **on_sft)
    assert "starts as the base" in noted(None, **on_sft)
