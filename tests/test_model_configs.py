"""The settings for public models can be read, fit the cards that they name, and build the roles."""

from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

PUBLIC = Path(__file__).parent / "model_configs"

# What the Hub shows for each model's safetensors.
PARAMETERS = {
    "qwen3-0.6b": 596_049_920,
    "qwen3-4b": 4_022_468_096,
    "qwen3-8b": 8_190_735_360,
    "llama-3.1-8b-instruct": 8_030_261_248,
    "smollm3-3b": 3_075_098_624,
    "gemma-3-4b-it": 4_300_079_472,
}


@pytest.mark.parametrize("name", PARAMETERS)
def test_a_public_config_makes_a_model_of_the_public_size(name: str) -> None:
    config = AutoConfig.from_pretrained(PUBLIC / name)

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)

    assert sum(weight.numel() for weight in model.parameters()) == PARAMETERS[name]


def test_the_readme_names_every_public_config_and_its_size() -> None:
    table = (PUBLIC / "README.md").read_text(encoding="utf-8")

    assert {folder.name for folder in PUBLIC.iterdir() if folder.is_dir()} == set(PARAMETERS)
    for name, count in PARAMETERS.items():
        assert any(f"`{name}`" in row and f"{count:,}" in row for row in table.splitlines())


def test_what_is_unlike_llama_is_in_the_public_configs() -> None:
    smollm = AutoConfig.from_pretrained(PUBLIC / "smollm3-3b")
    gemma = AutoConfig.from_pretrained(PUBLIC / "gemma-3-4b-it").get_text_config()

    assert [i for i, rotary in enumerate(smollm.no_rope_layers) if not rotary] == list(
        range(3, 36, 4)
    )
    assert gemma.layer_types.count("sliding_attention") == 29
    assert gemma.layer_types[5::6] == ["full_attention"] * 5
    assert gemma.sliding_window == 1024
