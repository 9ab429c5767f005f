"""A family that is unlike Llama, from messages to a publication: Granite.

Its logits are scaled, and transformers has no sequence classifier for it, so the score head is on
the language model's trunk; the reload in a clean process and the card's lines prove that plain peft
loads it.
"""

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from transformers import GraniteConfig, GraniteForCausalLM, MixtralConfig, MixtralForCausalLM

from tests.recipes.test_chat import make_base
from toolkit.cli import call, recipe
from toolkit.data.files import read_jsonl
from toolkit.models.adapters import lora_config
from toolkit.models.loading import load_base
from toolkit.models.roles import Roles


@pytest.fixture(scope="module")
def chain(tmp_path_factory: pytest.TempPathFactory, root: Path, demo_model: str) -> Path:
    out = tmp_path_factory.mktemp("granite")
    make_base(demo_model, out / "base")
    torch.manual_seed(0)
    model = GraniteForCausalLM(
        GraniteConfig(
            vocab_size=1088,
            hidden_size=64,
            intermediate_size=96,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=128,
            bos_token_id=1024,
            eos_token_id=1,
            pad_token_id=None,
            initializer_range=0.2,
            logits_scaling=4.0,
            embedding_multiplier=2.0,
        )
    )
    model.generation_config.eos_token_id = [1, 1026]
    model.save_pretrained(out / "base")
    lines = (root / "data" / "prompts.jsonl").read_text().splitlines()[:60]
    rows = [
        {"messages": [{"role": "user", "content": json.loads(line)["prompt"]}]} for line in lines
    ]
    (out / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    base = ["--model_name_or_path", str(out / "base"), "--precision", "4bit"]
    length = ["--response_length", "8", "--temperature", "1"]
    quiet = ["--use_cpu", "--disable_tqdm", "true"]
    before = os.getcwd()
    os.chdir(out)
    try:
        call(
            recipe("sample").main,
            [*base, *length, "--prompts", "prompts.jsonl", "--output", "samples.jsonl"],
        )
        call(
            recipe("label").main,
            [
                "--samples",
                "samples.jsonl",
                "--lexicon",
                str(root / "data" / "lexicon.txt"),
                "--noise",
                "0.5",
                "--output",
                "comparisons.jsonl",
            ],
        )
        call(
            recipe("reward").main,
            [
                *base,
                *length,
                *quiet,
                "--comparisons",
                "comparisons.jsonl",
                "--folds",
                "0",
                "--eval_rows",
                "10",
                "--learning_rate",
                "1e-2",
                "--normalize_samples",
                "16",
                "--output_dir",
                "reward",
            ],
        )
        call(
            recipe("ppo").main,
            [
                *base,
                *length,
                *quiet,
                "--prompts",
                "prompts.jsonl",
                "--reward_adapter",
                "reward/adapter",
                "--total_episodes",
                "16",
                "--per_device_train_batch_size",
                "8",
                "--learning_rate",
                "1e-2",
                "--allow_untrusted_reward",
                "true",
                "--output_dir",
                "ppo",
            ],
        )
    finally:
        os.chdir(before)
    return out


def test_the_first_step_of_ppo_finds_the_sampled_logprobs(chain: Path) -> None:
    """With another scale in one of the two, the ratio would not be 1."""
    rows = [row for _, row in read_jsonl(chain / "ppo" / "log.jsonl")]
    assert len(rows) == 2 and max(row["val/first_max_log_ratio"] for row in rows) < 1e-4


@pytest.mark.parametrize("adapter", ["reward/adapter", "ppo/adapters/policy", "ppo/adapters/value"])
def test_the_cards_lines_give_trainings_numbers(
    chain: Path, adapter: str, capsys: pytest.CaptureFixture[str]
) -> None:
    code = call(recipe("publish").main, [
        "--adapter", str(chain / adapter), "--repo_id", "me/it", "--base_model_id", "me/base",
        "--license", "apache-2.0", "--output_dir", str(chain / f"staged-{Path(adapter).name}"),
        "--dry_run",
    ])  # fmt: skip
    said = capsys.readouterr().out
    assert "gate: loaded in a clean process by the card's lines" in said, said
    refusals = [line for line in said.splitlines() if line.startswith("would be refused")]
    assert code == 2 and len(refusals) == 1 and "the Hub was not asked" in refusals[0]
    card = next((chain / f"staged-{Path(adapter).name}").rglob("README.md")).read_text()
    assert "Granite: its logits are multiplied by 0.25." in card
    assert ("model.score = torch.nn.Linear(" in card) == (adapter == "reward/adapter")
    assert "apply_chat_template" in card


def test_a_policy_on_experts_in_4_bits_is_loaded_by_its_cards_lines(
    tmp_path: Path, demo_model: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """By bitsandbytes' own parametrisation, which transformers does not put on by itself."""
    shutil.copytree(demo_model, tmp_path / "base")
    torch.manual_seed(0)
    MixtralForCausalLM(
        MixtralConfig(
            vocab_size=1024,
            hidden_size=64,
            intermediate_size=128,
            num_hidden_layers=1,
            num_attention_heads=4,
            num_key_value_heads=2,
            num_local_experts=4,
            num_experts_per_tok=2,
            max_position_embeddings=128,
            initializer_range=0.1,
            bos_token_id=None,
        )
    ).save_pretrained(tmp_path / "base")
    roles = Roles(
        load_base(str(tmp_path / "base"), "4bit"), lora_config(4, 8, "all-linear", "CAUSAL_LM")
    )
    for name, parameter in roles.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.05)
    roles.save(tmp_path, precision="4bit")
    call(recipe("publish").main, [
        "--adapter", str(tmp_path / "policy"), "--repo_id", "me/it", "--base_model_id", "me/base",
        "--license", "apache-2.0", "--output_dir", str(tmp_path / "staged"), "--dry_run",
    ])  # fmt: skip
    said = capsys.readouterr().out
    assert "gate: loaded in a clean process by the card's lines" in said, said
    assert "replace_parameter_4bit" in (tmp_path / "staged" / "me--it" / "README.md").read_text()
