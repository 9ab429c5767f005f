"""Shared by all tests: one torch thread, no network, and the embedded model's path."""

import json
import os
import random
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.update(
    HF_HUB_OFFLINE="1",
    HF_HUB_DISABLE_TELEMETRY="1",
    OMP_NUM_THREADS="1",
    ACCELERATE_USE_CPU="true",  # the same results with and without a GPU; test_gpu.py undoes it
)

import pytest
import torch
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
)

torch.set_num_threads(1)

# What a shell has its background jobs ignore (`make test &`) they would hand on to what is tested.
signal.signal(signal.SIGINT, signal.default_int_handler)
for signum in (signal.SIGTERM, signal.SIGHUP):
    signal.signal(signum, signal.SIG_DFL)

ROOT = Path(__file__).parent.parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What runs recipes is slow, wherever in tests/recipes it stands."""
    for item in items:
        if ROOT / "tests" / "recipes" in item.path.parents:
            item.add_marker(pytest.mark.slow)


@pytest.fixture(autouse=True)
def seeded() -> None:
    """Every test draws the same numbers, whichever ran before it."""
    random.seed(0)
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def root() -> Path:
    return ROOT


@pytest.fixture(scope="session")
def demo_model() -> str:
    """The embedded model: 771 thousand parameters, Llama architecture."""
    return str(ROOT / "data" / "model")


@pytest.fixture
def new_trainer(demo_model: str, tmp_path: Path) -> Callable[..., Any]:
    """Makes PPO trainers on the embedded model, rewarded by the lexicon."""
    from toolkit.data.prompts import Prompts
    from toolkit.models.adapters import lora_config
    from toolkit.models.loading import load_base, load_tokenizer
    from toolkit.models.roles import Roles
    from toolkit.scoring.functions import Lexicon
    from toolkit.training.ppo.config import PPOConfig
    from toolkit.training.ppo.trainer import PPOTrainer

    def make(
        name: str = "run",
        precision: str = "fp32",
        value: str = "trunk",
        eval_prompts: int = 0,
        folder: Path = tmp_path,
        autocast: bool = False,
        model: Any = None,
        **kwargs: Any,
    ) -> PPOTrainer:
        tokenizer = load_tokenizer(demo_model)
        lines = (ROOT / "data" / "prompts.jsonl").read_text().splitlines()[:64]
        prompts = Prompts([tokenizer(json.loads(line)["prompt"])["input_ids"] for line in lines])
        options: dict[str, Any] = {
            "per_device_train_batch_size": 8,
            "total_episodes": 16,
            "response_length": 8,
            "learning_rate": 1e-3,
            "use_cpu": True,
            "seed": 0,
            "disable_tqdm": True,
            "kl_horizon": 80,
            "bf16": autocast,
            "sample_every": 10**6,
        }
        reward = kwargs.pop("reward_model", Lexicon(ROOT / "data" / "lexicon.txt"))
        more = {
            k: kwargs.pop(k) for k in ("callbacks", "optimizers", "reward_weights") if k in kwargs
        }
        torch.manual_seed(0)
        config = PPOConfig(output_dir=str(folder / name), value=value, **(options | kwargs))
        roles = model or Roles(
            load_base(demo_model, precision),
            lora_config(4, 8, "all-linear", "CAUSAL_LM"),
            value=value,
            autocast_dtype=torch.bfloat16 if autocast else None,
        )
        held_out = prompts.pick(range(eval_prompts)) if eval_prompts else None
        return PPOTrainer(
            config,
            tokenizer,
            roles,
            reward_model=reward,
            train_dataset=prompts,
            eval_dataset=held_out,
            **more,
        )

    return make


@pytest.fixture
def new_sampling(demo_model: str) -> Callable[..., Any]:
    """Makes samplings for evaluations: three prompts on the embedded model."""
    from toolkit.data.prompts import Prompts
    from toolkit.evaluation.contenders import Sampling
    from toolkit.models.loading import load_base, load_tokenizer
    from toolkit.models.roles import Roles
    from toolkit.models.sampling import sampling_rule

    texts = ["We went to the market.", "I met my aunt at the cafe by the river.", "It rained."]

    def make(seed: int = 0, copies: int = 1, length: int = 8) -> Sampling:
        tokenizer = load_tokenizer(demo_model)
        prompts = Prompts([ids for ids in tokenizer(texts)["input_ids"] for _ in range(copies)])
        return Sampling(
            Roles(load_base(demo_model, "fp32")),
            tokenizer,
            prompts,
            lambda t: sampling_rule(t, length, 0.7),
            "fp32",
            seed,
            batch_size=64,
        )

    return make


SMALL = {
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "vocab_size": 1024,
    "intermediate_size": 128,
    "max_position_embeddings": 64,
}
FAMILIES = {
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**SMALL)),
    "mistral": lambda: MistralForCausalLM(MistralConfig(**SMALL, num_key_value_heads=2)),
    "qwen2": lambda: Qwen2ForCausalLM(Qwen2Config(**SMALL, num_key_value_heads=2)),
    "gpt_neox": lambda: GPTNeoXForCausalLM(GPTNeoXConfig(**SMALL)),
    "gpt2": lambda: GPT2LMHeadModel(
        GPT2Config(n_embd=64, n_layer=2, n_head=4, vocab_size=1024, n_positions=64)
    ),
}


@pytest.fixture(scope="session", params=FAMILIES)
def family_model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A tiny random model of each family, with the embedded model's tokenizer, saved."""
    folder = tmp_path_factory.mktemp(request.param)
    torch.manual_seed(0)
    FAMILIES[request.param]().save_pretrained(folder)
    for file in (ROOT / "data" / "model").glob("*token*"):
        shutil.copy(file, folder)
    return str(folder)
