"""Sampling in steps of one shape against growing steps, on this machine: tokens a second, in turns.

    python benchmarks/decoding.py                     the embedded model and a wider one
    python benchmarks/decoding.py --rounds 15

Both steps sample the same completions with LoRA on all linear layers, one after the other (ABAB),
on one thread, so that a busy machine slows both alike. Printed are the medians of processor
seconds, and their ratio: above 1, the step of one shape is faster. On a GPU, where it is captured,
see benchmarks/gpu.py.
"""

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from toolkit.models.adapters import lora_config
from toolkit.models.generation import Step, draw_uniforms, sample
from toolkit.models.loading import load_base
from toolkit.models.roles import Roles

ROOT = Path(__file__).parent.parent
# As benchmarks/ppo_vs_trl.py has it, with grouped queries as today's models have.
WIDE = LlamaConfig(
    hidden_size=288,
    intermediate_size=768,
    num_hidden_layers=6,
    num_attention_heads=6,
    num_key_value_heads=2,
    vocab_size=32_000,
    max_position_embeddings=256,
)
CASES = [  # model, precision, bf16 autocast, rows, prompt tokens, new tokens
    ("demo", "fp32", False, 64, 16, 24),
    ("demo", "fp32", True, 64, 16, 24),
    ("demo", "4bit", False, 64, 16, 24),
    ("demo", "fp32", False, 4, 16, 128),
    ("wide", "fp32", False, 64, 64, 24),
    ("wide", "fp32", False, 32, 64, 128),
    ("wide", "4bit", False, 64, 64, 24),
]


class Growing(Step):
    """A step with transformers' caches."""

    @property
    def is_static(self) -> bool:
        """Never."""
        return False


def roles_of(folder: Path, precision: str, autocast: bool) -> Roles:
    torch.manual_seed(0)
    roles = Roles(
        load_base(str(folder), precision),
        lora_config(16, 32, "all-linear", "CAUSAL_LM"),
        autocast_dtype=torch.bfloat16 if autocast else None,
    )
    for name, parameter in roles.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.01)
    return roles


def measure(roles: Roles, rows: int, prompt: int, new: int, rounds: int) -> tuple[float, float]:
    """Median processor seconds of a batch: steps of one shape, growing steps."""
    ids = torch.randint(3, 500, (rows, prompt), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids, dtype=torch.bool)
    mask[::2, : prompt // 3] = False
    noise = draw_uniforms(rows, new, torch.Generator().manual_seed(0))
    step = roles.step()
    assert step.is_static
    growing = Growing(step.run, step.model, step.exact, step.prepared)

    seconds: list[list[float]] = [[], []]
    for _ in range(rounds + 1):
        for times, one in zip(seconds, (step, growing), strict=True):
            started = time.process_time()
            sample(one, ids, mask, noise, 0.7, 0)
            times.append(time.process_time() - started)
    first, second = (statistics.median(times[1:]) for times in seconds)  # the first warms up
    return first, second


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=9, help="timed pairs")
    args = parser.parse_args()
    torch.set_num_threads(1)
    print("| model | precision | rows | prompt | new | one shape, tokens/s | growing | ratio |")
    print("|---|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as wide:
        torch.manual_seed(0)
        LlamaForCausalLM(WIDE).save_pretrained(wide)
        folders = {"demo": ROOT / "data" / "model", "wide": Path(wide)}
        for model, precision, autocast, rows, prompt, new in CASES:
            roles = roles_of(folders[model], precision, autocast)
            one, growing = measure(roles, rows, prompt, new, args.rounds)
            said = precision + (", bf16 autocast" if autocast else "")
            rates = " | ".join(f"{rows * new / s:,.0f}" for s in (one, growing))
            print(
                f"| {model} | {said} | {rows} | {prompt} | {new} | {rates} | {growing / one:.2f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
