"""A stub of the Hub, and adapters of all three kinds on the embedded model."""

import importlib.util
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import huggingface_hub.constants
import huggingface_hub.hf_api
import pytest
import torch

from toolkit.hub.adapter_source import TrainedAdapter, read_adapter
from toolkit.models.adapters import lora_config
from toolkit.models.loading import load_base, new_score_head
from toolkit.models.roles import Roles
from toolkit.models.toolkit_json import write_facts

RESOLVE = "{repo_id}/resolve/{revision}/{filename}"


def load_stub() -> ModuleType:
    """tests/hub/stub_hub.py: tests are files here, not a package."""
    if "stub_hub" not in sys.modules:
        path = Path(__file__).with_name("stub_hub.py")
        spec = importlib.util.spec_from_file_location("stub_hub", path)
        assert spec is not None and spec.loader is not None
        sys.modules["stub_hub"] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules["stub_hub"])
    return sys.modules["stub_hub"]


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Any]:
    """A Hub of one's own, with a token that may write; waits are noted, not waited."""
    stub = load_stub()
    with stub.serving() as server:
        constants = huggingface_hub.constants
        # What HF_ENDPOINT sets, read when huggingface_hub is imported.
        monkeypatch.setattr(constants, "ENDPOINT", server.url)
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", f"{server.url}/{RESOLVE}")
        monkeypatch.setattr(huggingface_hub.hf_api.api, "endpoint", server.url)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no-login"))
        monkeypatch.setenv("HF_TOKEN", stub.TOKEN)
        server.waits = []
        monkeypatch.setattr("time.sleep", server.waits.append)
        yield server


@pytest.fixture(scope="session")
def adapters(tmp_path_factory: pytest.TempPathFactory, root: Path, demo_model: str) -> Path:
    """A folder as ppo.py and reward.py leave them: ppo/adapters/{policy,value}, reward/adapter.

    The adapters are random: B is not zero, so each changes what the base says.
    """
    from peft import get_peft_model

    folder = tmp_path_factory.mktemp("adapters")
    torch.manual_seed(0)
    lora = lora_config(4, 8, "all-linear", "CAUSAL_LM")
    roles = Roles(load_base(demo_model, "fp32"), lora, value="adapter")
    with torch.no_grad():
        for name, parameter in roles.trainable():
            if "lora_B" in name or "value_head" in name:
                parameter.normal_(0, 0.05)
    roles.save(folder / "ppo" / "adapters", precision="fp32", kl_coef=0.1)

    model = load_base(demo_model, "fp32", score_head=True)
    model = get_peft_model(model, lora_config(4, 8, "all-linear", "SEQ_CLS"))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(0, 0.05)
        head = new_score_head(128, 1).weight
        model.get_base_model().score.modules_to_save["default"].weight.copy_(head)
    reward = folder / "reward" / "adapter"
    model.peft_config["default"].base_model_name_or_path = demo_model
    model.save_pretrained(reward)
    (reward / "README.md").unlink()
    write_facts(reward, demo_model, precision="fp32", gain=2.5, bias=-0.75)
    return folder


@pytest.fixture
def policy(adapters: Path) -> TrainedAdapter:
    """The policy, as it is read to be published."""
    return read_adapter(adapters / "ppo" / "adapters" / "policy")


def _evaluation(adapter: Path) -> dict[str, Any]:
    """evaluation.json, as evaluate.py would have written it."""
    like = dict.fromkeys(
        ("words", "distinct_1", "distinct_2", "repetition", "unique", "new_sentences",
         "copied_3grams", "copies_opening"), 0.4,
    ) | {"n": 1, "tokens": 24.0}  # fmt: skip
    return {
        "prompts": 512,
        "seed": 0,
        "reference": "reference",
        "judges": [{"name": "vader", "kind": "lexicon", "training_reward": True}],
        "contenders": [
            like
            | {
                "name": "ppo",
                "kind": "adapter",
                "source": "x",
                "adapter": str(adapter),
                "kl": 4.9,
                "kl_error": 0.1,
                "scores": {"vader": {"mean": 8.1, "error": 0.1, "gain": 1.8, "std": 1.0}},
            },
            like
            | {
                "name": "reference",
                "kind": "reference",
                "source": "",
                "adapter": None,
                "kl": 0.0,
                "kl_error": 0.0,
                "scores": {},
            },
        ],
        "pairs": [
            {
                "judge": "vader",
                "a": "reference",
                "b": "ppo",
                "wins": 100,
                "ties": 12,
                "losses": 400,
                "not_judged": 0,
                "win_rate": 0.2,
                "low": 0.17,
                "high": 0.24,
                "p_value": 1e-9,
                "p_holm": 1e-9,
            }
        ],
    }


@pytest.fixture
def evaluation() -> Callable[[Path], dict[str, Any]]:
    """Makes evaluation.json of this policy beside the reference."""
    return _evaluation
