"""The loader: the bitsandbytes canaries, heads in fp32, adapters that do not fit."""

import copy
import json
import shutil
from pathlib import Path

import bitsandbytes as bnb
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel

from toolkit.data.tokens import stop_ids
from toolkit.errors import InputError
from toolkit.models import tokenizer as tokenizer_file
from toolkit.models.adapters import check_adapter, lora_config
from toolkit.models.base_config import base_fingerprint, check_base
from toolkit.models.loading import (
    Fp32Head,
    cure_cpu_repacking,
    load_base,
    load_tokenizer,
    new_score_head,
    round_frozen_weights,
)
from toolkit.models.roles import Roles
from toolkit.models.toolkit_json import read_facts

IDS = torch.arange(2, 22).reshape(2, 10)
MASK = torch.ones_like(IDS, dtype=torch.bool)


def lora_gradients(roles: Roles) -> dict[str, torch.Tensor]:
    roles.zero_grad()
    roles.logits("policy", IDS, MASK, 5).logsumexp(-1).sum().backward()
    return {n: p.grad.clone() for n, p in roles.trainable() if p.grad is not None}


def generate(roles: Roles) -> None:
    roles.act_as("policy").generate(IDS, attention_mask=MASK, max_new_tokens=4, do_sample=True)


def test_canary_gradients_are_equal_before_and_after_a_generate(demo_model: str) -> None:
    lora = lora_config(4, 8, "all-linear", "CAUSAL_LM")
    roles = Roles(load_base(demo_model, "4bit"), lora)
    before = lora_gradients(roles)
    generate(roles)
    after = lora_gradients(roles)
    assert before and before.keys() == after.keys()
    for name in before:
        assert torch.equal(before[name], after[name]), name


def test_canary_logits_are_equal_before_and_after_a_save(demo_model: str, tmp_path: Path) -> None:
    base = load_base(demo_model, "4bit")
    with torch.no_grad():
        base.generate(IDS, attention_mask=MASK, max_new_tokens=4)
        before = base(IDS).logits
        base.save_pretrained(tmp_path)
        after = base(IDS).logits
        reloaded = AutoModelForCausalLM.from_pretrained(tmp_path)
        cure_cpu_repacking(reloaded)
        again = reloaded(IDS).logits
    assert torch.equal(before, after)
    assert torch.allclose(before, again, atol=1e-5)


def test_canary_train_and_eval_mode_agree(demo_model: str) -> None:
    base = load_base(demo_model, "4bit")
    with torch.no_grad():
        evaluating = base.eval()(IDS).logits
        training = base.train()(IDS).logits
    assert torch.equal(evaluating, training)


def test_four_bit_holds_the_blocks_in_four_bits_and_no_head(demo_model: str) -> None:
    base = load_base(demo_model, "4bit", score_head=True)
    assert isinstance(base.model.layers[0].mlp.up_proj, bnb.nn.Linear4bit)
    assert isinstance(base.score, Fp32Head) and base.score.weight.dtype == torch.float32
    assert not any(p.requires_grad for p in base.model.parameters())
    assert isinstance(load_base(demo_model, "4bit").lm_head, torch.nn.Linear)


@pytest.mark.parametrize("precision", ["bf16", "fp32"])
def test_other_precisions_hold_what_they_say(demo_model: str, precision: str) -> None:
    base = load_base(demo_model, precision)
    assert base.dtype == {"bf16": torch.bfloat16, "fp32": torch.float32}[precision]


def test_score_head_starts_as_the_paper_says_and_by_its_seed() -> None:
    head = new_score_head(4096, seed=3)
    assert head.weight.std().item() == pytest.approx(0.015623, rel=0.05)
    assert head.bias is None
    assert torch.equal(head.weight, new_score_head(4096, seed=3).weight)
    assert not torch.equal(head.weight, new_score_head(4096, seed=4).weight)


def test_score_head_computes_in_fp32_under_autocast() -> None:
    head = new_score_head(64, seed=0)
    hidden = torch.randn(3, 64).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        out = head(hidden)
    assert out.dtype == torch.float32
    assert torch.equal(out, hidden.float() @ head.weight.T)


def test_pickled_weights_and_missing_folders_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no config.json"):
        check_base(str(tmp_path))
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(InputError, match="pickled weights are not loaded"):
        check_base(str(tmp_path))
    with pytest.raises(InputError, match="no such folder"):
        check_base("./nowhere")
    with pytest.raises(InputError, match="no such folder"):
        check_base("a/b/c")


def test_a_hub_model_that_cannot_be_had_is_one_line() -> None:
    with pytest.raises(InputError, match="no tokenizer loaded") as caught:
        load_tokenizer("nobody/nothing-of-this-name")
    assert "\n" not in str(caught.value)


def test_pad_token_is_not_end_of_text_where_that_can_be(demo_model: str) -> None:
    tokenizer = load_tokenizer(demo_model)
    assert tokenizer.pad_token_id != tokenizer.eos_token_id


def bare(demo_model: str, folder: Path, special: bool = True) -> Path:
    """The embedded model, whose tokenizer and configs name no special token."""
    shutil.copytree(demo_model, folder)
    (folder / "tokenizer_config.json").write_text("{}")
    (folder / "generation_config.json").unlink()
    edits: dict[str, dict] = {"config.json": {"eos_token_id": None, "pad_token_id": None}}
    edits["tokenizer.json"] = {} if special else {"added_tokens": []}
    for name, changes in edits.items():
        content = json.loads((folder / name).read_text()) | changes
        (folder / name).write_text(json.dumps(content))
    return folder


@pytest.mark.parametrize(("special", "pad"), [(True, "<|pad|>"), (False, "\u0100")])
def test_a_tokenizer_without_pad_and_end_token_pads_with_what_ends_no_text(
    demo_model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], special: bool, pad: str
) -> None:
    tokenizer = load_tokenizer(str(bare(demo_model, tmp_path / "bare", special)))
    assert tokenizer.pad_token == pad and tokenizer.eos_token is None
    assert f"has neither pad nor end token: {pad!r} pads" in capsys.readouterr().out
    text = "We met.\0"  # the byte that pads is a byte still
    ids = tokenizer(text)["input_ids"]
    assert ids == load_tokenizer(demo_model)(text)["input_ids"]
    assert tokenizer.decode(ids, skip_special_tokens=True) == text
    with pytest.raises(InputError, match="no end-of-text token"):
        stop_ids(tokenizer, "eos")


def test_the_models_end_token_pads_where_the_tokenizer_names_none(
    demo_model: str, tmp_path: Path
) -> None:
    folder = bare(demo_model, tmp_path / "bare", special=False)
    (folder / "generation_config.json").write_text('{"eos_token_id": 1}')
    (folder / "tokenizer_config.json").write_text('{"unk_token": "<unk>"}')  # beyond the embedding
    assert load_tokenizer(str(folder)).pad_token_id == 1


TEKKEN = """{"vocab": [{"rank": 0, "token_bytes": "YQ==", "token_str": "a"}], "config": {
"pattern": "a", "default_vocab_size": 3, "default_num_special_tokens": 2, "version": "v3"}}"""
LACKING = [
    ({"tokenizer.model": b"\n\x05"}, "pip install sentencepiece protobuf$"),
    ({"tiktoken.model": b"YQ== 0"}, "pip install tiktoken$"),
    ({"tekken.json": TEKKEN.encode()}, "needs mistral-common"),
    ({}, "no tokenizer.json or tokenizer.model"),
    ({"tokenizer.json": b"{}"}, r"files are broken \(KeyError"),
    ({"tokenizer.json": b'{"added_tokens": [], "model": {}}'}, "no tokenizer loaded: .*broken"),
    ({"tokenizer_config.json": b"[]"}, "files are broken"),
    ({"tokenizer_config.json": b'{"auto_map": {"AutoTokenizer": ["a.B", null]}}'},
     "--trust_remote_code runs it"),
]  # fmt: skip


@pytest.mark.parametrize(("files", "message"), LACKING)
def test_what_a_tokenizer_lacks_is_one_line(
    demo_model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, files: dict, message: str
) -> None:
    monkeypatch.setattr(tokenizer_file, "is_sentencepiece_available", lambda: False)
    monkeypatch.setattr(tokenizer_file, "is_protobuf_available", lambda: False)
    shutil.copy(Path(demo_model) / "config.json", tmp_path)
    (tmp_path / "model.safetensors").touch()
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=message) as caught:
        load_tokenizer(str(tmp_path))
    assert "\n" not in str(caught.value)


def test_a_tokenizer_class_that_is_not_there_loads_by_tokenizer_json(
    demo_model: str, tmp_path: Path
) -> None:
    folder = bare(demo_model, tmp_path / "bare")
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "NoSuchTokenizer"}')
    assert load_tokenizer(str(folder)).vocab_size == 1024


def save_tiny(folder: Path, seed: int) -> str:
    torch.manual_seed(seed)
    config = GPT2Config(n_embd=64, n_layer=1, n_head=2, vocab_size=64, n_positions=64)
    GPT2LMHeadModel(config).save_pretrained(folder)
    return str(folder)


def test_fingerprint_tells_bases_apart_and_knows_a_moved_one(tmp_path: Path) -> None:
    first, second = save_tiny(tmp_path / "a", 0), save_tiny(tmp_path / "b", 1)
    assert base_fingerprint(first) != base_fingerprint(second)
    (tmp_path / "a").rename(tmp_path / "moved")
    assert base_fingerprint(str(tmp_path / "moved")) != base_fingerprint(second)
    assert base_fingerprint("some-org/some-model") is None
    first_again = save_tiny(tmp_path / "a", 0)
    assert base_fingerprint(first_again) == base_fingerprint(str(tmp_path / "moved"))


def test_an_adapter_for_another_base_is_refused_before_loading(tmp_path: Path) -> None:
    first, second = save_tiny(tmp_path / "a", 0), save_tiny(tmp_path / "b", 1)
    roles = Roles(load_base(first, "fp32"), lora_config(4, 8, "c_attn", "CAUSAL_LM"))
    roles.save(tmp_path / "out")
    adapter = tmp_path / "out" / "policy"
    check_adapter(adapter, first, "CAUSAL_LM", "--adapter")
    with pytest.raises(InputError, match=r"--adapter: .*: trained on .*a, not on .*b"):
        check_adapter(adapter, second, "CAUSAL_LM", "--adapter")
    with pytest.raises(InputError, match="task_type is CAUSAL_LM, but a reward adapter"):
        check_adapter(adapter, first, "SEQ_CLS", "--reward_adapter")
    (tmp_path / "a").rename(tmp_path / "moved")
    check_adapter(adapter, str(tmp_path / "moved"), "CAUSAL_LM", "--adapter")
    assert read_facts(adapter)["base_fingerprint"] == base_fingerprint(str(tmp_path / "moved"))


def test_broken_adapter_folders_are_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no adapter_config.json"):
        check_adapter(tmp_path, "x/y", "CAUSAL_LM", "--adapter")
    (tmp_path / "adapter_config.json").write_text("{")
    with pytest.raises(InputError, match="no adapter_model.safetensors"):
        check_adapter(tmp_path, "x/y", "CAUSAL_LM", "--adapter")
    (tmp_path / "adapter_model.safetensors").write_bytes(b"")
    with pytest.raises(InputError, match="not JSON"):
        check_adapter(tmp_path, "x/y", "CAUSAL_LM", "--adapter")
    (tmp_path / "adapter_config.json").write_text(json.dumps({"task_type": "CAUSAL_LM"}))
    save_file({"a.lora_A.weight": torch.zeros(8, 1)}, tmp_path / "adapter_model.safetensors")
    with pytest.raises(InputError, match="trained on an unnamed base"):
        check_adapter(tmp_path, "x/y", "CAUSAL_LM", "--adapter")


def reward_adapter(folder: Path, **changes: object) -> Path:
    """A reward adapter's folder, whole but for what ``changes`` says."""
    folder.mkdir()
    config = {"task_type": "SEQ_CLS", "peft_type": "LORA", "base_model_name_or_path": "x/y"}
    config |= changes.pop("config", {})  # type: ignore[arg-type]
    weights = changes.pop("weights", {"base_model.model.score.weight": torch.zeros(1, 8)})
    (folder / "adapter_config.json").write_text(json.dumps(config))
    save_file(weights, folder / "adapter_model.safetensors")
    for name, content in changes.items():
        (folder / name.replace("_json", ".json")).write_text(str(content))
    return folder


BROKEN_ADAPTERS = [
    ({"weights": {"a.lora_A.weight": torch.zeros(1)}}, "no score head with one output"),
    ({"weights": {"m.score.weight": torch.zeros(2, 8)}}, "no score head with one output"),
    ({"weights": {"m.score.weight": torch.zeros(1, 8), "m.score.bias": torch.zeros(1)}},
     "no score head with one output and no bias"),
    ({"config": {"peft_type": "IA3"}}, "a IA3 adapter, but LoRA is wanted .merge it"),
    ({"toolkit_json": "{"}, "toolkit.json: not JSON"),
    ({"toolkit_json": "[]"}, "a list, not a JSON object"),
    ({"toolkit_json": '{"gain": null}'}, "gain is None, but must be a finite number"),
    ({"toolkit_json": '{"bias": NaN}'}, "toolkit.json:1: not JSON .*: NaN is no number"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "message"), BROKEN_ADAPTERS, ids=[m for _, m in BROKEN_ADAPTERS]
)
def test_a_broken_reward_adapter_is_named_before_loading(
    tmp_path: Path, changes: dict, message: str
) -> None:
    folder = reward_adapter(tmp_path / "adapter", **changes)
    with pytest.raises(InputError, match=message):
        check_adapter(folder, "x/y", "SEQ_CLS", "--reward_adapter")


def test_a_truncated_adapter_is_named_and_a_whole_one_passes(tmp_path: Path) -> None:
    folder = reward_adapter(tmp_path / "adapter")
    check_adapter(folder, "x/y", "SEQ_CLS", "--reward_adapter", precision="4bit")
    path = folder / "adapter_model.safetensors"
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(InputError, match="not readable"):
        check_adapter(folder, "x/y", "SEQ_CLS", "--reward_adapter")


def test_another_precision_than_in_training_is_warned_of(tmp_path: Path) -> None:
    folder = reward_adapter(tmp_path / "adapter", toolkit_json='{"precision": "4bit"}')
    check_adapter(folder, "x/y", "SEQ_CLS", "--reward_adapter", precision="4bit")
    with pytest.warns(UserWarning, match="trained on a base in 4bit; this one is in fp32"):
        check_adapter(folder, "x/y", "SEQ_CLS", "--reward_adapter", precision="fp32")


def test_weights_that_are_missing_or_cut_off_are_not_made_up(tmp_path: Path) -> None:
    name = save_tiny(tmp_path / "a", 0)
    path = tmp_path / "a" / "model.safetensors"
    state = load_file(path)
    save_file({k: v for k, v in state.items() if "c_fc" not in k}, path, {"format": "pt"})
    with pytest.raises(InputError, match="2 weights are missing"):
        load_base(name, "fp32")
    save_file(state, path, {"format": "pt"})
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(InputError, match="model not loaded"):
        load_base(name, "fp32")


def test_the_embedded_model_is_safetensors_in_fp32(demo_model: str) -> None:
    state = load_file(Path(demo_model) / "model.safetensors")
    assert {t.dtype for t in state.values()} == {torch.float32}


def test_rounding_frozen_weights_changes_nothing_under_autocast(demo_model: str) -> None:
    plain = load_base(demo_model, "fp32")
    rounded = copy.deepcopy(plain)
    assert round_frozen_weights(rounded, torch.bfloat16) > 10
    tied = rounded.get_output_embeddings().weight is rounded.get_input_embeddings().weight
    assert rounded.get_input_embeddings().weight.dtype == torch.float32 or not tied
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(plain(input_ids=IDS).logits, rounded(input_ids=IDS).logits)
    trained = copy.deepcopy(plain).requires_grad_(True)
    assert round_frozen_weights(trained, torch.bfloat16) == 0
