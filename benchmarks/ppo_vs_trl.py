"""This project's PPO against TRL 1.12's, the last one that TRL had: the same work, side by side.

    make bench                                      # or: python benchmarks/ppo_vs_trl.py --pairs 3

A Llama of random weights, 288 wide, 6 layers, 32,000 words; 64 prompts of 64 tokens, 24 new
tokens, 4 epochs, LoRA on every linear layer of the policy, a reward model and a value model of its
shape. TRL 1.12.0 is put into an environment of its own (--peer, made if it is not there). Each
trainer runs in a process of its own, on one thread; they take turns, one update each (ABAB), so
that a busy machine slows both alike. Printed are medians, their ratios, seconds by phase, peak
resident memory, and what the bare matrix products of one update cost on this machine.

TRL's value model is always trained whole, and is a model of its own; its reward model is one too.
Here both are adapters on the policy's base, or, of the shared trunk, a head.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
SHAPE = {
    "hidden_size": 288,
    "intermediate_size": 768,
    "num_hidden_layers": 6,
    "num_attention_heads": 6,
    "num_key_value_heads": 6,
    "vocab_size": 32_000,
    "max_position_embeddings": 256,
}
LORA = {"r": 16, "lora_alpha": 32, "target_modules": "all-linear", "lora_dropout": 0.0}
COUNT, PROMPT, NEW, EPOCHS = 64, 64, 24, 4
PEER = "trl==1.12.0"


def prompts_of(updates: int) -> list[list[int]]:
    import torch

    generator = torch.Generator().manual_seed(0)
    return torch.randint(
        3, SHAPE["vocab_size"], (COUNT * updates, PROMPT), generator=generator
    ).tolist()


def tokenizer() -> Any:
    """As much of one as both trainers ask for: words w0, w1, ... of the same number."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = {f"w{i}": i for i in range(SHAPE["vocab_size"])}
    raw = Tokenizer(models.WordLevel(words, unk_token="w0"))
    raw.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(
        tokenizer_object=raw, pad_token="w0", bos_token="w1", eos_token="w2", padding_side="left"
    )


def settings(folder: str, updates: int, autocast: bool) -> dict[str, Any]:
    return {
        "output_dir": folder,
        "per_device_train_batch_size": COUNT,
        "num_ppo_epochs": EPOCHS,
        "local_rollout_forward_batch_size": COUNT,
        "response_length": NEW,
        "temperature": 0.7,
        "total_episodes": COUNT * updates,
        "learning_rate": 1e-4,
        "kl_coef": 0.05,
        "use_cpu": True,
        "num_sample_generations": 0,
        "report_to": "none",
        "save_strategy": "no",
        "seed": 0,
        "whiten_rewards": True,
        "bf16": autocast,
    }


def say(**facts: Any) -> None:
    print("@" + json.dumps(facts), flush=True)


def wait_for_turn() -> None:
    if sys.stdin.readline().strip() != "go":
        os._exit(0)


def peak_mb() -> float:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM"):
            return int(line.split()[1]) / 1024
    return 0.0


def resident_mb() -> float:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmRSS"):
            return int(line.split()[1]) / 1024
    return 0.0


def run_trl(updates: int, autocast: str) -> None:
    """TRL's worker; a callback waits for its turn between updates."""
    import numpy as np
    import torch
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import (
        LlamaConfig,
        LlamaForCausalLM,
        LlamaForSequenceClassification,
        TrainerCallback,
    )
    from trl.experimental.ppo import PPOConfig, PPOTrainer, ppo_trainer

    phases: dict[str, float] = {}
    marks = {"training": 0.0}
    generation = ppo_trainer.batch_generation
    permutation = np.random.permutation

    def timed_generation(*args: Any, **kwargs: Any) -> Any:
        start = time.perf_counter()
        result = generation(*args, **kwargs)
        phases["sample"] = phases.get("sample", 0.0) + time.perf_counter() - start
        return result

    def marking_permutation(count: int) -> Any:
        marks["training"] = marks["training"] or time.perf_counter()
        return permutation(count)

    ppo_trainer.batch_generation, np.random.permutation = timed_generation, marking_permutation

    class Turns(TrainerCallback):
        started = 0.0

        def begin(self) -> None:
            wait_for_turn()
            phases.clear()
            marks["training"] = 0.0
            self.started = time.perf_counter()

        def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
            self.begin()

        def on_step_end(self, *args: Any, **kwargs: Any) -> None:
            now = time.perf_counter()
            optimize = now - marks["training"]
            rest = marks["training"] - self.started - phases["sample"]
            say(
                seconds=now - self.started,
                peak=peak_mb(),
                phases={
                    "sample": phases["sample"],
                    "reference, value, score": rest,
                    "optimize": optimize,
                },
            )
            self.begin()

    torch.manual_seed(0)
    base = resident_mb()
    config = LlamaConfig(**SHAPE, pad_token_id=0, bos_token_id=1, eos_token_id=2)
    policy = LlamaForCausalLM(config)
    value, reward = (LlamaForSequenceClassification(config_of(config)) for _ in range(2))
    with tempfile.TemporaryDirectory() as folder:
        args = PPOConfig(**(settings(folder, updates, False) | {"gradient_checkpointing": False}))
        rows = Dataset.from_dict({"input_ids": prompts_of(updates)})
        trainer = PPOTrainer(
            args,
            tokenizer(),
            policy,
            None,
            reward,
            rows,
            value,
            eval_dataset=rows.select(range(COUNT)),
            callbacks=[Turns()],
            peft_config=LoraConfig(task_type="CAUSAL_LM", **LORA),
        )
        say(ready=True, base=base)
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast == "everywhere"):
            trainer.train()


def config_of(config: Any) -> Any:
    import copy

    classifier = copy.deepcopy(config)
    classifier.num_labels = 1
    return classifier


def run_ours(updates: int, autocast: bool, value: str) -> None:
    """Our worker: one update a turn."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM, TrainerCallback

    from toolkit import PPOConfig, PPOTrainer, Roles
    from toolkit.models.adapters import lora_config
    from toolkit.training.run_log import read_rows

    torch.manual_seed(0)
    base_mb = resident_mb()
    config = LlamaConfig(**SHAPE, pad_token_id=0, bos_token_id=1, eos_token_id=2)
    base = LlamaForCausalLM(config).requires_grad_(False)
    lora = lora_config(LORA["r"], LORA["lora_alpha"], LORA["target_modules"], "CAUSAL_LM")
    with tempfile.TemporaryDirectory() as folder:
        reward = reward_adapter(Path(folder) / "reward", config)
        roles = Roles(
            base,
            lora,
            value=value,
            reward_adapter=reward,
            autocast_dtype=torch.bfloat16 if autocast else None,
        )

        class Turns(TrainerCallback):
            def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
                wait_for_turn()
                trainer.run_log.last = time.perf_counter()

            def on_step_end(self, *args: Any, **kwargs: Any) -> None:
                row = read_rows(Path(folder) / "timings.jsonl")[-1]
                phases = {n[8:]: s for n, s in row.items() if n.startswith("seconds/")}
                rest = sum(phases.get(n, 0.0) for n in ("value", "reference", "score"))
                say(
                    seconds=row["seconds"],
                    peak=peak_mb(),
                    phases={
                        "sample": phases["sample"],
                        "reference, value, score": rest,
                        "optimize": phases["optimize"],
                    },
                )
                wait_for_turn()
                trainer.run_log.last = time.perf_counter()

        args = PPOConfig(
            **settings(folder, updates, autocast),
            kl_controller="fixed",
            value=value,
            sample_every=10**9,
            disable_tqdm=True,
        )
        trainer = PPOTrainer(
            args, tokenizer(), roles, train_dataset=prompts_of(updates), callbacks=[Turns()]
        )
        say(ready=True, base=base_mb)
        trainer.train()


def reward_adapter(folder: Path, config: Any) -> Path:
    """A reward adapter of random weights, saved as reward.py saves one."""
    from peft import LoraConfig, get_peft_model
    from transformers import LlamaForSequenceClassification

    model = get_peft_model(
        LlamaForSequenceClassification(config_of(config)), LoraConfig(task_type="SEQ_CLS", **LORA)
    )
    model.save_pretrained(str(folder))
    return folder


def matmul_floor(autocast: bool) -> dict[str, float]:
    """Seconds of the bare matrix products of one shared-trunk update, by phase, on this machine.

    Sampling, reference and score forward; in training forward and, through frozen weights, one
    product as large backward, plus those of the adapters.
    """
    import torch

    dtype = torch.bfloat16 if autocast else torch.float32
    h, m, v, layers = (
        SHAPE[n] for n in ("hidden_size", "intermediate_size", "vocab_size", "num_hidden_layers")
    )
    shapes = [(h, h)] * 4 + [(h, m)] * 2 + [(m, h)]

    def seconds(rows: int, width: int, out: int) -> float:
        x, w = torch.randn(rows, width, dtype=dtype), torch.randn(width, out, dtype=dtype)
        torch.mm(x, w)
        start = time.perf_counter()
        for _ in range(3):
            torch.mm(x, w)
        return (time.perf_counter() - start) / 3

    def trunk(rows: int) -> float:
        return layers * sum(seconds(rows, i, o) for i, o in shapes)

    def adapters(rows: int) -> float:
        r = LORA["r"]
        return layers * sum(seconds(rows, i, r) + seconds(rows, r, o) for i, o in shapes)

    tokens, new = COUNT * (PROMPT + NEW), COUNT * NEW
    head = seconds(new, h, v)
    sample = trunk(COUNT * PROMPT) + adapters(COUNT * PROMPT)
    sample += (NEW - 1) * (trunk(COUNT) + adapters(COUNT)) + NEW * seconds(COUNT, h, v)
    forward = trunk(tokens) + adapters(tokens)
    backward = trunk(tokens) + 2 * adapters(tokens) + seconds(new, v, h)
    return {
        "sample": sample,
        "reference, value, score": trunk(tokens) + head + forward,
        "optimize": EPOCHS * (forward + head + backward),
    }


class Worker:
    """A trainer in a process of its own, which makes an update when told to."""

    def __init__(
        self, python: str, kind: str, updates: int, autocast: bool, trl_autocast: str = ""
    ) -> None:
        words = [python, __file__, "--worker", kind, "--updates", str(updates)]
        if trl_autocast:
            words += ["--trl_autocast", trl_autocast]
        env = os.environ | {
            "OMP_NUM_THREADS": "1",
            "HF_HUB_OFFLINE": "1",
            "CI": "1",
            "ACCELERATE_USE_CPU": "true",
            "PYTHONPATH": str(ROOT),
        }
        if autocast and trl_autocast == "launcher":
            env["ACCELERATE_MIXED_PRECISION"] = "bf16"
        self.process = subprocess.Popen(
            words + ["--autocast"] * autocast,
            env=env,
            text=True,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=None if os.environ.get("SHOW") else subprocess.DEVNULL,
        )
        self.base = self.read()["base"]
        self.results: list[dict[str, Any]] = []

    def read(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.startswith("@{"):
                return json.loads(line[1:])
        raise SystemExit(f"a worker ended: {self.process.wait()} (set SHOW=1 to see why)")

    def turn(self) -> dict[str, Any]:
        assert self.process.stdin is not None
        self.process.stdin.write("go\n")
        self.process.stdin.flush()
        self.results.append(self.read())
        return self.results[-1]

    def stop(self) -> None:
        self.process.kill()
        self.process.wait()

    def median(self, phase: str | None = None) -> float:
        timed = self.results[1:]  # the first warms up
        return statistics.median(r["phases"][phase] if phase else r["seconds"] for r in timed)


def peer_python(folder: Path) -> str:
    """The peer's interpreter; its environment is made if it is not there."""
    python = folder / "bin" / "python"
    if not python.exists():
        print(f"making {folder} with {PEER}", flush=True)
        pins = [
            line
            for line in (ROOT / "constraints.txt").read_text().splitlines()
            if not line.startswith("trl==")
        ]
        subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
        constraints = folder / "constraints.txt"
        constraints.write_text("\n".join(pins) + "\n")
        packages = [PEER, "peft", "torch", "transformers", "accelerate", "pandas", "rich"]
        subprocess.run(
            [str(python), "-m", "pip", "install", "--quiet", *packages, "-c", str(constraints)],
            check=True,
        )
    return str(python)


def compare(
    python: str, pairs: int, autocast: bool, value: str, trl_autocast: str
) -> dict[str, Any]:
    """One table: TRL and ours in turns, and their ratios."""
    theirs = Worker(python, "trl", pairs + 2, autocast, trl_autocast)
    ours = Worker(sys.executable, value, pairs + 2, autocast)
    for _ in range(pairs + 1):
        theirs.turn()
        ours.turn()
    for worker in (theirs, ours):
        worker.stop()
    floor = matmul_floor(autocast)
    kind = f"bf16 autocast (TRL's: {trl_autocast})" if autocast else "fp32"
    print(f"\n{kind}, value: {value}; medians of {pairs} pairs")
    print(f"{'seconds':26}{'TRL 1.12':>10}{'ours':>10}{'ratio':>8}{'matmuls':>10}")
    for phase in (*floor, None):
        a, b = theirs.median(phase), ours.median(phase)
        bare = sum(floor.values()) if phase is None else floor[phase]
        print(f"{phase or 'whole update':26}{a:10.2f}{b:10.2f}{a / b:8.2f}{bare:10.2f}")
    peaks = [max(r["peak"] for r in w.results) for w in (theirs, ours)]
    above = [peak - w.base for peak, w in zip(peaks, (theirs, ours), strict=True)]
    print(f"{'peak resident MB':26}{peaks[0]:10.0f}{peaks[1]:10.0f}{peaks[1] / peaks[0]:8.2f}")
    print(f"{'  above the imports':26}{above[0]:10.0f}{above[1]:10.0f}{above[1] / above[0]:8.2f}")
    by_pair = [
        a["seconds"] / b["seconds"]
        for a, b in zip(theirs.results[1:], ours.results[1:], strict=True)
    ]
    print(f"ratio by pair: {', '.join(f'{r:.2f}' for r in by_pair)}", flush=True)
    return {
        "kind": kind,
        "value": value,
        "ratio": theirs.median() / ours.median(),
        "memory": peaks[1] / peaks[0],
        "by_pair": by_pair,
        "floor": sum(floor.values()),
        "ours": ours.median(),
        "trl": theirs.median(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--pairs", type=int, default=3, help="timed pairs, after one to warm up")
    parser.add_argument(
        "--peer", type=Path, default=ROOT / ".venv-trl-1.12", help="its environment"
    )
    parser.add_argument("--only", choices=["fp32", "bf16"], help="one precision")
    parser.add_argument("--value", choices=["trunk", "adapter"], help="one of both")
    parser.add_argument("--output", type=Path, help="write the ratios here as JSON")
    parser.add_argument(
        "--trl_autocast",
        choices=["launcher", "everywhere"],
        default="launcher",
        help="TRL's bf16: as accelerate's mixed precision gives it (its passes with gradients), or "
        "around all of its passes, which no setting of TRL's does",
    )
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    parser.add_argument("--updates", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--autocast", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    import torch

    torch.set_num_threads(1)
    if args.worker == "trl":
        return run_trl(args.updates, args.trl_autocast if args.autocast else "")
    if args.worker:
        return run_ours(args.updates, args.autocast, args.worker)
    python = peer_python(args.peer)
    results = [
        compare(python, args.pairs, precision == "bf16", value, args.trl_autocast)
        for precision in ([args.only] if args.only else ["fp32", "bf16"])
        for value in ([args.value] if args.value else ["trunk", "adapter"])
    ]
    if args.output:
        args.output.write_text(json.dumps(results, indent=2) + "\n")
    return None


if __name__ == "__main__":
    main()
