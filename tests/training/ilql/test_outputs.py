"""What an ILQL run leaves is loaded again, and compared, before it counts."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

from toolkit.errors import InputError, RunStopped
from toolkit.models.adapters import lora_config
from toolkit.models.loading import load_tokenizer
from toolkit.models.q_heads import HEADS_FILE
from toolkit.models.roles import Roles
from toolkit.training.ilql.config import ILQLConfig
from toolkit.training.ilql.outputs import check_reload, save
from toolkit.training.ilql.trainer import ILQLTrainer

PROBES = [[1, 5, 6, 7], [2, 3]]


def base_in(folder: Path) -> PreTrainedModel:
    if not (folder / "config.json").exists():
        torch.manual_seed(0)
        config = LlamaConfig(
            vocab_size=22, hidden_size=32, intermediate_size=64, num_hidden_layers=1,
            num_attention_heads=2, max_position_embeddings=16, bos_token_id=None,
            eos_token_id=None, pad_token_id=None,
        )  # fmt: skip
        LlamaForCausalLM(config).save_pretrained(folder)
    return LlamaForCausalLM.from_pretrained(folder).requires_grad_(False).eval()


def trained(tmp_path: Path) -> ILQLTrainer:
    base = base_in(tmp_path / "base")
    roles = Roles(base, lora_config(4, 8, "all-linear", "CAUSAL_LM"), checked=False)
    roles.add_critic("own")
    with torch.no_grad():
        for name, parameter in roles.named_parameters():
            if "lora_B" in name or name.startswith("critic."):
                parameter.normal_(std=0.3)
    rows = [{"prompt_ids": [1], "completion_ids": [2], "reward": 1.0}]
    return ILQLTrainer(ILQLConfig(output_dir=str(tmp_path / "run")), roles, rows, [], 0)


def test_what_was_saved_steers_as_what_was_trained(tmp_path: Path, demo_model: str) -> None:
    trainer = trained(tmp_path)
    folder = save(trainer.roles, load_tokenizer(demo_model), tmp_path / "run", 4.0)
    assert sorted(p.name for p in folder.iterdir()) == ["critic", "policy"]
    found = check_reload(trainer, PROBES, folder, lambda: base_in(tmp_path / "base"), "fp32")
    assert found < 1e-5
    assert not hasattr(trainer, "roles")  # the first base is given up before the second is loaded


def test_a_file_that_differs_is_refused_by_name(tmp_path: Path, demo_model: str) -> None:
    trainer = trained(tmp_path)
    folder = save(trainer.roles, load_tokenizer(demo_model), tmp_path / "run", 4.0)
    path = folder / "critic" / HEADS_FILE
    state = load_file(path)
    # The online heads do not steer; the targets do.
    for name in [name for name in state if name.startswith("targets.")]:
        state[name] = state[name] + 0.1
    save_file(state, path, metadata={"kind": "own"})
    with pytest.raises(InputError, match="after reloading, steered log-probs differ by up to"):
        check_reload(trainer, PROBES, folder, lambda: base_in(tmp_path / "base"), "fp32")


def test_weights_that_are_not_finite_are_not_saved(tmp_path: Path, demo_model: str) -> None:
    trainer = trained(tmp_path)
    with torch.no_grad():
        next(trainer.heads.targets.parameters())[0, 0] = float("inf")
    with pytest.raises(RunStopped, match="not finite"):
        save(trainer.roles, load_tokenizer(demo_model), tmp_path / "run", 4.0)
    assert not (tmp_path / "run" / "adapters").exists()
