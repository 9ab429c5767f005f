"""Run parts of the toolkit on the pretended card, and print what was seen as JSON, on one line.

    python tests/pretend_cuda/run.py ppo --precision 4bit --autocast --layers 32
    python tests/pretend_cuda/run.py decode --precision 4bit --autocast --layers 32
    python tests/pretend_cuda/run.py recipe reward --config demo:reward.yaml ...
    python tests/pretend_cuda/run.py plant mix
    python tests/pretend_cuda/run.py forks

ppo and decode use a Llama with random weights: as many layers as asked for, but narrow. ppo prints
the counts of its last update but one, by phase, and of the whole run; decode those of one token.
``device.py`` says what is counted. forks does what each line of stdin names, in a fork of its own.
"""

import argparse
import contextlib
import json
import os
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent.parent
sys.path.insert(0, str(ROOT))
os.environ.pop("ACCELERATE_USE_CPU", None)
os.environ |= {"HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}

from tests.pretend_cuda import device  # noqa: E402, I001
from tests.forks import Forked  # noqa: E402  imports torch, so it stands behind device

import torch  # noqa: E402
from transformers import LlamaConfig, LlamaForCausalLM  # noqa: E402

from toolkit.data.prompts import Prompts  # noqa: E402
from toolkit.models import generation, loading  # noqa: E402
from toolkit.models.actors import POLICY, Actors  # noqa: E402
from toolkit.models.adapters import lora_config  # noqa: E402
from toolkit.models.loading import load_base, load_tokenizer  # noqa: E402
from toolkit.models.roles import Roles  # noqa: E402
from toolkit.models.sampling import SamplingRule  # noqa: E402

torch.set_num_threads(1)


@contextlib.contextmanager
def card() -> Iterator[None]:
    """Let the card be there; models are loaded on the CPU and then moved to it."""
    load = loading.Way.load

    def load_and_move(way: loading.Way, name: str, **more: object) -> Any:
        way.arguments["device_map"] = {"": "cpu"}
        with device.absent():
            loaded = load(way, name, **more)
        device.move(loaded[0] if isinstance(loaded, tuple) else loaded)
        return loaded

    loading.Way.load = load_and_move  # type: ignore[method-assign]
    generation.replayed = lambda model, step, device: step  # there is nothing to capture it
    device.appear()
    with device.Pretended():
        yield


def tiny_llama(folder: Path, layers: int) -> str:
    """Save a narrow Llama with grouped queries and the embedded model's tokenizer."""
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=512,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    for file in (ROOT / "data" / "model").glob("*token*"):
        shutil.copy(file, folder)
    return str(folder)


def roles_of(args: argparse.Namespace, model: str) -> Roles:
    """Load the base and put policy and value on it, with LoRA on all linear layers."""
    torch.manual_seed(0)
    return Roles(
        load_base(model, args.precision),
        lora_config(8, 16, "all-linear", "CAUSAL_LM"),
        value=None if args.settings.get("algorithm") else args.value,
        autocast_dtype=torch.bfloat16 if args.autocast else None,
        value_hidden=args.settings.get("value_hidden", ()),
    )


def on_cpu(model: Actors) -> list[str]:
    """Name the parameters that are not on the card."""
    return [name for name, p in model.named_parameters() if p.device.type != "cuda"]


def summary(counts: device.Counts) -> dict[str, Any]:
    """Return the counts with the number of operations and of syncs."""
    found: dict[str, Any] = counts.to_json()
    totals = {"launches": counts.operations.total(), "waits": counts.syncs.total()}
    return totals | found


def ppo(args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Train for some updates with evaluation and checkpoints, resume, evaluate, sample, save."""
    from toolkit.training.ppo.config import PPOConfig
    from toolkit.training.ppo.trainer import PPOTrainer

    model = tiny_llama(folder / "model", args.layers)
    tokenizer, roles = load_tokenizer(model), roles_of(args, model)
    lengths = (5, 9, 7, 9, 6, 5, 8, 9)
    generator = torch.Generator().manual_seed(0)
    prompts = Prompts(
        [torch.randint(3, 500, (lengths[i % 8],), generator=generator).tolist() for i in range(64)]
    )

    def trainer(**more: Any) -> PPOTrainer:
        config = PPOConfig(
            output_dir=str(folder / "run"),
            per_device_train_batch_size=args.micro_batch,
            gradient_accumulation_steps=args.episodes // args.micro_batch,
            total_episodes=args.episodes * (args.updates + 1),
            num_ppo_epochs=args.epochs,
            num_mini_batches=1,
            response_length=8,
            value=args.value,
            bf16=args.autocast,
            gradient_checkpointing=args.checkpointing,
            save_steps=1 if args.resume else 10**9,
            sample_every=10**9,
            disable_tqdm=True,
            eval_every=1 if args.evaluate else 10**9,
            stop_token_id=7 if args.stop else None,
            recompute_logprobs=args.recompute,
            full_determinism=args.deterministic,
            **args.settings,
            **more,
        )
        return PPOTrainer(
            config,
            tokenizer,
            roles,
            reward_model=lambda prompts, completions: [float(len(text)) for text in completions],
            train_dataset=prompts,
            eval_dataset=prompts.pick(range(4)),
        )

    if args.plant:
        read = roles.read_values

        def faulty(hidden: torch.Tensor) -> torch.Tensor:
            values = read(hidden)
            if args.plant == "mix":
                return values + torch.zeros(values.shape)
            return values + 0.0 * values.sum().item()

        roles.read_values = faulty  # type: ignore[method-assign]

    first = trainer(stop_at_update=args.updates)
    phases = {name: _counted(first, name) for name in ("collect", "optimize")}
    updates: list[device.Counts] = []
    numbers = first.updates

    def counted(resume: Any) -> Iterator[int]:
        for number in numbers(resume):
            with device.counting() as counts:
                yield number
            updates.append(counts)

    first.updates = counted  # type: ignore[method-assign]
    with device.counting() as whole:
        rows = first.train()
        if args.resume:
            second = trainer(resume="auto")
            rows = second.train()
            second.generate_completions()
            second.save_model()

    place = max(0, len(updates) - 2)
    return {
        "on_cpu": on_cpu(roles),
        "updates": len(rows),
        "kl": [row["objective/kl"] for row in rows],
        "first_gap": rows[0]["val/first_max_log_ratio"],
        "update": summary(updates[place]),
        "phases": {name: summary(counts[place]) for name, counts in phases.items()},
        "whole": summary(whole),
    }


def _counted(trainer: Any, name: str) -> list[device.Counts]:
    """Count what each call of a trainer's method does; return the list that the counts go to."""
    method: Callable[..., Any] = getattr(trainer, name)
    found: list[device.Counts] = []

    def call(*args: Any) -> Any:
        with device.counting() as counts:
            result = method(*args)
        found.append(counts)
        return result

    setattr(trainer, name, call)
    return found


def decode(args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Sample short and longer completions; the difference is what one token costs."""
    model = tiny_llama(folder / "model", args.layers)
    tokenizer, roles = load_tokenizer(model), roles_of(args, model)
    roles.keep_only(tokenizer)
    prompts = [[5, 6, 7, 8], [9, 10, 11]]
    short, longer = 8, 24  # a sampler may look for ends every few tokens only

    def sampled(length: int) -> device.Counts:
        rule = SamplingRule(length, 0.7, tokenizer.pad_token_id, (7,) if args.stop else ())
        with device.counting() as counts:
            generator = torch.Generator().manual_seed(0)
            rule.sample(roles.step(POLICY), prompts, generator, roles.device)
        return counts

    sampled(short)
    before, after = sampled(short), sampled(longer)
    tokens = longer - short

    def of_one(name: str) -> dict[str, float]:
        more: Counter[str] = Counter(getattr(after, name))
        more.subtract(getattr(before, name))
        return {key: count / tokens for key, count in more.most_common() if count}

    counts = {name: of_one(name) for name in ("mixes", "syncs", "uploads", "operations")}
    launches, waits = sum(counts["operations"].values()), sum(counts["syncs"].values())
    return {"on_cpu": on_cpu(roles), "launches": launches, "waits": waits, **counts}


def run_recipe(args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Run a recipe with these words."""
    from toolkit.cli import call, recipe

    with device.counting() as counts:
        code = call(recipe(args.name).main, args.words)
    return {"code": code if isinstance(code, int) else 0, **summary(counts)}


def plant(args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Do what must be seen: a mix of devices, a sync of each kind, an upload."""
    here, there = torch.arange(4.0), torch.arange(4.0, device="cuda")
    picks = torch.tensor([0, 2]).to("cuda", non_blocking=True)
    planted: dict[str, Callable[[], object]] = {
        "nothing": lambda: (there + there.sum())[1:] * torch.tensor(2.0),
        "mix": lambda: there + here,
        "index mix": lambda: here[picks],
        "item": lambda: there.sum().item(),
        "bool": lambda: bool(there.any()),
        "tolist": lambda: there.tolist(),
        "mask": lambda: there[there > 1],
        "copy from": lambda: there.cpu(),
        "copy to": lambda: here.to("cuda"),
        "upload": lambda: here.to("cuda", non_blocking=True),
        "tensor": lambda: torch.tensor([1, 2], device="cuda"),
        "numpy": lambda: there.numpy(),
    }
    found: dict[str, Any] = {}
    for name, act in planted.items():
        with device.counting() as counts:
            try:
                act()
            except TypeError as error:
                found[name] = str(error)
                continue
        found[name] = summary(counts)
    refused: dict[str, Callable[[], object]] = {
        "uncounted mix": lambda: there + here,
        "varying order": lambda: there.cumsum(0),
    }
    torch.use_deterministic_algorithms(True)
    for name, act in refused.items():
        try:
            act()
        except RuntimeError as error:
            found[name] = str(error)
    return found


def forks() -> None:
    """Run each line of stdin, [words, a file for what is said], in a fork: imports are made once.

    The exit code of each goes to stdout; what it prints on stdout is the file's last line.
    """
    for line in sys.stdin:
        words, said = json.loads(line)
        process = Forked(Path(__file__), words, Path(said), ROOT)
        process.wait(timeout=300)
        print(process.returncode, flush=True)


def main(words: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    commands = parser.add_subparsers(required=True)

    for name, act in (("ppo", ppo), ("decode", decode)):
        command = commands.add_parser(name)
        command.set_defaults(act=act)
        command.add_argument("--precision", default="fp32")
        command.add_argument("--autocast", action="store_true")
        command.add_argument("--value", default="adapter")
        command.add_argument("--settings", type=json.loads, default={})
        command.add_argument("--stop", action="store_true")
        command.add_argument("--layers", type=int, default=2)
        command.add_argument("--episodes", type=int, default=16)
        command.add_argument("--micro_batch", type=int, default=8)
        command.add_argument("--updates", type=int, default=2)
        command.add_argument("--epochs", type=int, default=4)
        command.add_argument("--checkpointing", action="store_true")
        command.add_argument("--recompute", action="store_true")
        command.add_argument("--resume", action="store_true")
        command.add_argument("--evaluate", action="store_true")
        command.add_argument("--deterministic", action="store_true")
        command.add_argument("--plant", choices=["mix", "sync"])

    command = commands.add_parser("recipe")
    command.set_defaults(act=run_recipe)
    command.add_argument("name")
    command.add_argument("words", nargs=argparse.REMAINDER)
    commands.add_parser("plant").set_defaults(act=plant)

    args = parser.parse_args(words)
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        stack.enter_context(contextlib.redirect_stdout(sys.stderr))
        stack.enter_context(card())
        found = args.act(args, Path(folder))
    print(json.dumps(found))


if __name__ == "__main__":
    if sys.argv[1:] == ["forks"]:
        forks()
    else:
        main(sys.argv[1:])
