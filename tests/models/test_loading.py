"""The loader: the bitsandbytes canaries, heads in fp32, adapters that do not fit."""

import copy
import json
from pathlib import Path

import bitsandbytes as bnb
import pytest
import torch
from peft import get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from tests.models.conftest import save_tiny
from toolkit.errors import InputError
from toolkit.models.adapters import check_adapter, lora_config
from toolkit.models.base_config import base_fingerprint
from toolkit.models.loading import (
    Fp32Head,
    cure_cpu_repacking,
    load_base,
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


def test_a_base_that_a_script_named_by_a_relative_path_is_the_same_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As plain peft and TRL's scripts save it, without a fingerprint; it depends on the folder."""
    base = save_tiny(tmp_path / "a", 0)
    monkeypatch.chdir(tmp_path)
    get_peft_model(
        AutoModelForCausalLM.from_pretrained("a"), lora_config(4, 8, "c_attn", "CAUSAL_LM")
    ).save_pretrained("plain")
    for named in ("a", base):
        with pytest.warns(UserWarning, match="names its base a, a path that depends on the folder"):
            check_adapter("plain", named, "CAUSAL_LM", "--adapter")

    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    with pytest.raises(InputError, match="was trained on a, not "):
        check_adapter(tmp_path / "plain", base, "CAUSAL_LM", "--adapter")


def test_an_adapter_for_another_base_is_refused_before_loading(tmp_path: Path) -> None:
    first, second = save_tiny(tmp_path / "a", 0), save_tiny(tmp_path / "b", 1)
    roles = Roles(load_base(first, "fp32"), lora_config(4, 8, "c_attn", "CAUSAL_LM"))
    roles.save(tmp_path / "out")
    adapter = tmp_path / "out" / "policy"
    check_adapter(adapter, first, "CAUSAL_LM", "--adapter")
    with pytest.raises(InputError, match=r"--adapter: .*was trained on .*a, not .*b"):
        check_adapter(adapter, second, "CAUSAL_LM", "--adapter")
    with pytest.raises(
        InputError, match="task_type is CAUSAL_LM, but must be that of a reward adapter"
    ):
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
    ({"weights": {"a.lora_A.weight": torch.zeros(1)}}, "the score head must have one output"),
    ({"weights": {"m.score.weight": torch.zeros(2, 8)}}, "the score head must have one output"),
    ({"weights": {"m.score.weight": torch.zeros(1, 8), "m.score.bias": torch.zeros(1)}},
     "the score head must have one output and no bias"),
    ({"config": {"peft_type": "IA3"}}, "a IA3 adapter, but must be LoRA .merge it"),
    ({"toolkit_json": "{"}, "toolkit.json: not JSON"),
    ({"toolkit_json": "[]"}, "a list, not a JSON object"),
    ({"toolkit_json": '{"gain": null}'}, "gain is None, but must be a finite number"),
    ({"toolkit_json": '{"bias": NaN}'}, "toolkit.json:1: not JSON .*: NaN is not a number"),
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
    with pytest.raises(InputError, match="cannot be read"):
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
    with pytest.raises(InputError, match="the model cannot be loaded"):
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
