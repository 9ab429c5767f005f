"""What each cheaper pass (toolkit/models/fast) saves by itself: time, and memory that is kept.

    python benchmarks/ablation.py                            (an hour; half of it for the large one)
    python benchmarks/ablation.py --models demo --rounds 3   (a few minutes)

Two models: the one of ppo_vs_trl.py (random weights, 288 wide, 6 layers, 32,000 words) and the
embedded one (data/model); each in fp32, under bf16 autocast and in 4 bits, on one CPU thread. Each
makes a training pass (policy and value, forward and backward) and samples a batch, with all changes
and with all but one, in turns, in one process; counted is the process's own CPU time, so that what
else runs on the machine matters little. Printed is by how much each pass takes longer without the
change: medians of the rounds, with the quartiles of the ratios. 1.05 says that it saves 5 %.
"kept" is what autograd keeps of a training pass, counted without storage.
"""

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple
from unittest import mock

import torch
from ppo_vs_trl import LORA, NEW, PROMPT, SHAPE
from torch import Tensor
from transformers import AutoConfig, LlamaConfig, LlamaForCausalLM, PreTrainedConfig

from toolkit import Roles, load_base
from toolkit.models.adapters import lora_config
from toolkit.models.families import empty_model
from toolkit.models.fast import CHANGES, SWITCH, decoder, lora
from toolkit.models.generation import draw_uniforms, sample
from toolkit.models.memory_count import ShapesOnly, count_kept

DEMO = Path(__file__).parent.parent / "data" / "model"
PRECISIONS = ("fp32", "bf16", "4bit")
# Parts of a change, each of which can be taken out of it.
PARTS = ("lora: merging", "decoder: rotary", "decoder: gated MLP", "decoder: last layer")


class Batch(NamedTuple):
    """Rows of one length: ids and mask (B, P + C), and the sampling's noise (B, C)."""

    ids: Tensor
    mask: Tensor
    noise: Tensor

    def train(self, roles: Roles) -> None:
        completion = self.ids[:, -NEW:]
        with roles.optimizing():
            outputs = roles.policy_outputs(self.ids, self.mask, completion, 0.7)
            outputs.logprobs.sum().backward()
            roles.values(self.ids, self.mask, NEW).sum().backward()

    def decode(self, roles: Roles) -> None:
        sample(roles.step(), self.ids[:, :-NEW], self.mask[:, :-NEW], self.noise, 0.7, 0)


def seconds(work: Callable[[Roles], None], roles: Roles) -> float:
    start = time.process_time()
    work(roles)
    spent = time.process_time() - start
    roles.zero_grad(set_to_none=True)
    return spent


class _Rotary:
    """transformers' own rotation, in place of ``decoder._Rotary``."""

    @staticmethod
    def apply(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        half = x.shape[-1] // 2
        return x * cos + torch.cat([-x[..., half:], x[..., :half]], dim=-1) * sin


class _Gated:
    """transformers' own gated MLP, in place of ``decoder._Gated``."""

    @staticmethod
    def apply(gate: Tensor, up: Tensor) -> Tensor:
        return torch.nn.functional.silu(gate) * up


@contextmanager
def without(part: str) -> Iterator[None]:
    """Within, one part of a change is transformers' or peft's own."""
    patches = {
        "lora: merging": mock.patch.object(lora, "_is_frozen_fp32", lambda base: False),
        "decoder: rotary": mock.patch.object(decoder, "_Rotary", _Rotary),
        "decoder: gated MLP": mock.patch.object(decoder, "_Gated", _Gated),
        "decoder: last layer": mock.patch.object(decoder, "SHORT_QUERIES", ()),
    }
    if part not in patches:
        yield
        return
    with patches[part]:
        yield


@contextmanager
def switched(changes: tuple[str, ...]) -> Iterator[None]:
    """Within, roles are made with these changes alone."""
    with mock.patch.dict(os.environ, {SWITCH: ",".join(changes) or "0"}):
        yield


def roles_with(folder: Path, precision: str, changes: tuple[str, ...]) -> Roles:
    """Policy and value on the model at ``folder``, their adapters not zero."""
    torch.manual_seed(0)
    base = load_base(str(folder), "fp32" if precision == "bf16" else precision)
    with switched(changes):
        roles = Roles(
            base,
            lora_config(LORA["r"], LORA["lora_alpha"], LORA["target_modules"], "CAUSAL_LM"),
            value="adapter",
            autocast_dtype=torch.bfloat16 if precision == "bf16" else None,
        )
    for name, parameter in roles.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.02)
    return roles


def kept(config: PreTrainedConfig, precision: str, changes: tuple[str, ...], part: str) -> int:
    """Bytes that autograd keeps of a pass; of 4 bits as on a GPU, where the rest is bf16."""
    device = "cuda" if precision == "4bit" else "cpu"
    dtype = torch.bfloat16 if precision == "4bit" else torch.float32
    with torch.device("meta"), switched(changes), without(part), ShapesOnly(device):
        roles = Roles(
            empty_model(config, dtype=dtype),
            lora_config(LORA["r"], LORA["lora_alpha"], LORA["target_modules"], "CAUSAL_LM"),
            value="adapter",
            autocast_dtype=torch.bfloat16 if precision == "bf16" else None,
            checked=False,
        )
        return int(count_kept(roles, 64, PROMPT, NEW))


def ablate(model: str, precision: str, rows: int, rounds: int) -> None:
    """Print the table of one model in one precision."""
    folder = DEMO
    with tempfile.TemporaryDirectory() as scratch:
        if model == "bench":
            folder = Path(scratch)
            torch.manual_seed(0)
            config = LlamaConfig(**SHAPE, pad_token_id=0, bos_token_id=1, eos_token_id=2)
            LlamaForCausalLM(config).save_pretrained(folder)
        config = AutoConfig.from_pretrained(folder)
        names = [name for name in CHANGES if name != "attention" or precision == "bf16"]
        makers = {name: tuple(c for c in CHANGES if c != name) for name in names}
        whole = roles_with(folder, precision, CHANGES)
        made = {name: roles_with(folder, precision, rest) for name, rest in makers.items()}
        made["all of them"] = roles_with(folder, precision, ())
    makers["all of them"] = ()
    parts = PARTS if precision == "fp32" else PARTS[1:]  # updates are merged in fp32 alone

    generator = torch.Generator().manual_seed(0)
    shape = (rows, PROMPT + NEW)
    ids = torch.randint(3, config.vocab_size, shape, generator=generator)
    mask = torch.ones_like(ids, dtype=torch.bool)
    batch = Batch(ids, mask, draw_uniforms(rows, NEW, generator))

    print(f"\n{model}, {precision}, {rows} rows, {rounds} rounds: longer without", flush=True)
    print(f"{'':22}{'training':>24}{'sampling':>24}{'kept':>9}")
    all_kept = kept(config, precision, CHANGES, "")
    for name in (*made, *parts):
        line = f"{name:22}"
        for work in (batch.train, batch.decode):
            ratios = []
            for _ in range(rounds + 1):
                with_it = seconds(work, whole)
                with without(name):
                    alone = seconds(work, made.get(name, whole))
                ratios.append(alone / with_it)
            low, middle, high = statistics.quantiles(ratios[1:], n=4)
            line += f"{middle:12.3f} ({low:.2f}-{high:.2f})"
        more = kept(config, precision, makers.get(name, CHANGES), name) / all_kept
        print(f"{line}{more:9.3f}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", nargs="+", choices=["demo", "bench"], default=["demo", "bench"])
    parser.add_argument("--precisions", nargs="+", choices=PRECISIONS, default=PRECISIONS)
    parser.add_argument("--rows", type=int, default=32, help="of a batch")
    parser.add_argument("--rounds", type=int, default=9, help="timed turns, after one to warm up")
    args = parser.parse_args()
    torch.set_num_threads(1)
    for model in args.models:
        for precision in args.precisions:
            ablate(model, precision, args.rows, args.rounds)


if __name__ == "__main__":
    main()
