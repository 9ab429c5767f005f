"""The memory plan against what a run takes: predicted and measured peaks on several shapes.

    python benchmarks/memory_plan.py

Each shape runs one PPO update in a process of its own, with random weights, on one thread; measured
is the highest resident set above what the imports had taken. The plan knows no more than
recipes/doctor.py does.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
SHAPES: dict[str, dict[str, Any]] = {
    "wide, large vocabulary": {
        "hidden_size": 512,
        "intermediate_size": 1376,
        "num_hidden_layers": 8,
        "num_attention_heads": 8,
        "vocab_size": 32_000,
        "micro": 24,
        "prompt": 64,
        "new": 32,
        "value": "trunk",
    },
    "deep, own value adapter": {
        "hidden_size": 288,
        "intermediate_size": 768,
        "num_hidden_layers": 12,
        "num_attention_heads": 6,
        "vocab_size": 8_000,
        "micro": 48,
        "prompt": 80,
        "new": 24,
        "value": "adapter",
    },
    "long prompts, grouped heads": {
        "hidden_size": 384,
        "intermediate_size": 1024,
        "num_hidden_layers": 6,
        "num_attention_heads": 12,
        "num_key_value_heads": 4,
        "vocab_size": 16_000,
        "micro": 16,
        "prompt": 320,
        "new": 48,
        "value": "trunk",
    },
}
RUN = ("micro", "prompt", "new", "value")


def resident_mb(field: str) -> float:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field):
            return int(line.split()[1]) / 1024
    return 0.0


def measure(name: str, precision: str) -> None:
    """One update of a shape; prints both peaks as JSON."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from toolkit import PPOConfig, PPOTrainer, Roles, load_base, load_tokenizer
    from toolkit.models.adapters import lora_config
    from toolkit.models.memory import MIB, plan_memory

    shape = SHAPES[name]
    torch.set_num_threads(1)
    config = LlamaConfig(**{k: v for k, v in shape.items() if k not in RUN})
    lora = lora_config(16, 32, "all-linear", "CAUSAL_LM")
    sizes = (shape["prompt"], shape["new"], shape["micro"], shape["micro"])
    plan = plan_memory(config, precision, lora, shape["value"], *sizes, reward=False)
    tokenizer = load_tokenizer(str(ROOT / "data" / "model"))
    with tempfile.TemporaryDirectory() as folder:
        if os.fork() == 0:  # written by another process, whose memory is not counted
            LlamaForCausalLM(config).save_pretrained(folder)
            os._exit(0)
        os.wait()
        for file in (ROOT / "data" / "model").glob("*token*"):
            (Path(folder) / file.name).write_bytes(file.read_bytes())
        before = resident_mb("VmRSS")
        roles = Roles(load_base(folder, precision), lora, value=shape["value"])
        prompts = torch.randint(3, 1000, (shape["micro"], shape["prompt"])).tolist()
        args = PPOConfig(
            output_dir=f"{folder}/run",
            per_device_train_batch_size=shape["micro"],
            total_episodes=shape["micro"],
            response_length=shape["new"],
            use_cpu=True,
            local_rollout_forward_batch_size=shape["micro"],
            value=shape["value"],
            save_strategy="no",
            sample_every=10**9,
            disable_tqdm=True,
        )

        def reward(prompts: list[str], completions: list[str]) -> list[float]:
            return [float(len(text)) for text in completions]

        PPOTrainer(args, tokenizer, roles, reward_model=reward, train_dataset=prompts).train()
        print(
            "@"
            + json.dumps({"measured": resident_mb("VmHWM") - before, "predicted": plan.peak / MIB}),
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--precision", default="fp32", help="fp32, bf16 or 4bit")
    parser.add_argument(
        "--threshold", default="1048576", help="glibc: from how many bytes on memory is given back"
    )
    parser.add_argument("--shape", choices=SHAPES, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.shape:
        return measure(args.shape, args.precision)
    print(f"{'shape':32}{'predicted MiB':>14}{'measured MiB':>14}{'ratio':>8}")
    for name in SHAPES:
        words = [sys.executable, __file__, "--shape", name, "--precision", args.precision]
        env = os.environ | {
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": str(ROOT),
            "HF_HUB_OFFLINE": "1",
            "MALLOC_MMAP_THRESHOLD_": args.threshold,
        }
        out = subprocess.run(words, env=env, text=True, capture_output=True)
        line = next((x for x in out.stdout.splitlines() if x.startswith("@{")), None)
        if line is None:
            raise SystemExit(out.stderr)
        facts = json.loads(line[1:])
        ratio = facts["predicted"] / facts["measured"]
        print(
            f"{name:32}{facts['predicted']:14.0f}{facts['measured']:14.0f}{ratio:8.2f}", flush=True
        )
    return None


if __name__ == "__main__":
    main()
