"""Shared by all tests: one torch thread, no network, and the embedded model's path."""

import contextlib
import gc
import io
import json
import os
import random
import shlex
import shutil
import signal
import socket
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

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

from tests.forks import Forked, Reloading

torch.set_num_threads(1)

# A fork has no threads, so torch makes its pool anew at the first use; two threads at once, such as
# those that load a model's weights, would find it half made ("Invalid thread pool!").
os.register_at_fork(after_in_child=lambda: torch.set_num_threads(1))

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


def pytest_collection_finish() -> None:
    """What is imported by now stays: the collections between stages need not look through it.

    Torch and transformers are half a million objects, which take a quarter of a second each time,
    and more in a fork, where every one of them is copied.
    """
    gc.collect()
    gc.freeze()


READ = ("samples", "comparisons", "run", "adapter", "policy_adapter", "reward_adapter", "lexicon",
        "evaluation", "runs", "rewards", "trainings", "prompts")  # fmt: skip


def _understood(line: str) -> dict[str, Any]:
    """What a printed command tells its recipe, whose parser must take it.

    What it reads must be there, and what it writes must not.
    """
    from toolkit.cli import bind, recipe
    from toolkit.next_step import YOURS

    program, *words = shlex.split(line)
    if program == "python":
        words[0] = Path(words[0]).stem
    name, words = words[0].replace("-", "_"), words[1:]
    told = {k: v for part in bind(recipe(name).main, words) for k, v in vars(part).items()}

    given = {word[2:] for word in words if word.startswith("--")}
    for flag in given & {*READ}:
        for value in told[flag] if isinstance(told[flag], list) else [told[flag]]:
            paths = value.rpartition("=")[2].replace("demo:", f"{ROOT}/data/").split(",")
            there = all(Path(path).exists() for path in paths)
            assert value in YOURS or there, f"{name}: no {flag} {value}"
    for flag in given & {"output", "output_dir"}:
        assert not Path(told[flag]).exists(), f"{name}: {flag} {told[flag]} is there"
    return told | {"recipe": name, "given": given}


@pytest.fixture(scope="session")
def understood() -> Callable[[str], dict[str, Any]]:
    """Checks the last lines of a recipe; returns what ``next:`` tells the recipe that it names."""

    def check(printed: str) -> dict[str, Any]:
        *_, before, last = ["", *printed.splitlines()]
        if last.startswith("or: "):
            _understood(last.removeprefix("or: "))
            last = before
        assert last.startswith("next: "), printed[-2000:]
        return _understood(last.removeprefix("next: "))

    return check


@pytest.fixture(scope="session")
def followed(understood: Callable[[str], dict[str, Any]]) -> Callable[..., dict[str, Any]]:
    """Calls a recipe; returns what its last line tells the next one, checked (``understood``).

    ``result`` in it is what the recipe returned.
    """

    def follow(main: Callable[..., Any], words: list[str]) -> dict[str, Any]:
        from toolkit.cli import call

        with contextlib.redirect_stdout(io.StringIO()) as printed:
            result = call(main, words)
        return understood(printed.getvalue()) | {"result": result}

    return follow


@pytest.fixture(autouse=True)
def seeded() -> None:
    """Every test draws the same numbers, whichever ran before it."""
    random.seed(0)
    torch.manual_seed(0)


@pytest.fixture(scope="session", autouse=True)
def reloading_in_forks() -> Iterator[None]:
    """A reward model is tried in a fork, and not in an interpreter that imports all again."""
    with mock.patch("toolkit.models.reload.subprocess", Reloading):
        yield


@pytest.fixture(scope="session")
def root() -> Path:
    return ROOT


@pytest.fixture(scope="session")
def demo_model() -> str:
    """The embedded model: 771 thousand parameters, Llama architecture."""
    return str(ROOT / "data" / "model")


@pytest.fixture(scope="session")
def reward_adapters(demo_model: str, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Three reward adapters of the embedded model with heads, gains and biases of their own."""
    from peft import get_peft_model

    from toolkit.models.adapters import lora_config
    from toolkit.models.loading import load_base
    from toolkit.models.toolkit_json import write_facts

    folders = []
    for seed in (1, 2, 3):
        torch.manual_seed(seed)
        base = load_base(demo_model, "fp32", score_head=True, seed=seed)
        model = get_peft_model(base, lora_config(4, 8, "all-linear", "SEQ_CLS"))
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter, std=0.05)
        folder = tmp_path_factory.mktemp(f"reward{seed}")
        model.save_pretrained(folder)
        write_facts(folder, demo_model, gain=float(seed), bias=0.5)
        folders.append(str(folder))
    return folders


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
        told = ("callbacks", "optimizers", "reward_weights", "algorithm", "ptx_dataset")
        more = {name: kwargs.pop(name) for name in told if name in kwargs}
        if isinstance(more.get("algorithm"), str):  # a flag's name, and no algorithm of one's own
            kwargs["algorithm"] = more.pop("algorithm")
        torch.manual_seed(0)
        config = PPOConfig(output_dir=str(folder / name), value=value, **(options | kwargs))
        roles = model or Roles(
            load_base(demo_model, precision),
            lora_config(4, 8, "all-linear", "CAUSAL_LM"),
            value=value,
            autocast_dtype=torch.bfloat16 if autocast else None,
            value_hidden=kwargs.get("value_hidden", ()),
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


@pytest.fixture
def forked(root: Path, tmp_path: Path) -> Iterator[Callable[..., list[Forked]]]:
    """Starts ppo.py with a list of words for each process; all of them make one run.

    One list alone is a run of one process. With ``nodes``, each is the only process of a node of
    its own, as torchrun says it. What is still there in the end is killed.
    """
    import toolkit.training.ppo.trainer  # noqa: F401  a fork would otherwise import it again

    started: list[Forked] = []

    def start(*each: Sequence[str], nodes: bool = False, **environment: str) -> list[Forked]:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = str(probe.getsockname()[1])
        for rank, words in enumerate(each):
            told = {"ACCELERATE_USE_CPU": "true"} | environment
            if len(each) > 1:
                told |= {"RANK": str(rank), "WORLD_SIZE": str(len(each)),
                         "LOCAL_RANK": "0" if nodes else str(rank),
                         "LOCAL_WORLD_SIZE": "1" if nodes else str(len(each)),
                         "GROUP_RANK": str(rank) if nodes else "0",
                         "GROUP_WORLD_SIZE": str(len(each)) if nodes else "1",
                         "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}  # fmt: skip
            said = tmp_path / f"said-{len(started)}.txt"
            started.append(Forked(root / "recipes" / "ppo.py", words, said, root, **told))
        return started[-len(each) :]

    yield start
    for process in started:
        process.signal(signal.SIGCONT)  # a stopped one would not end
        process.signal(signal.SIGKILL)
        process.wait()


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
