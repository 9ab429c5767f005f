"""What only a GPU can show: numbers, speed and memory of PPO on it, one row for each measurement.

    python benchmarks/gpu.py                              everything, into gpu.jsonl
    python benchmarks/gpu.py --only numbers ppo:8b:4bit   some of it
    python benchmarks/gpu.py --shapes tiny                on a CPU, to try the script itself

Each part runs in a process of its own, and its rows are written as they come, so nothing that was
measured is lost where a later part fails or the machine is taken away. The models have random
weights in a real shape (Llama 3.2 1B, Llama 3.1 8B), so what they write means nothing; how fast
they write it, what it takes and whether the numbers agree do not depend on the weights.

    checks     the doctor's checks of the libraries below
    numbers    the embedded model: log-probs and gradients on this device against fp32 on the CPU
    capture    log-probs captured while sampling against those of a training pass, batch of 64
    decode     milliseconds a token, ours and transformers' generate, by batch
    ppo        recipes/ppo.py: seconds by phase, and the peak of memory beside what was planned
    resume     a PPO run stopped after two updates and taken up again, against one that ran through
"""

import argparse
import gc
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
LLAMA = {"rms_norm_eps": 1e-5, "rope_parameters": {"rope_type": "default", "rope_theta": 500_000.0}}
SHAPES: dict[str, dict[str, Any]] = {
    "tiny": {
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": 2_048,
    },
    "1b": {
        "hidden_size": 2048,
        "intermediate_size": 8192,
        "num_hidden_layers": 16,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "head_dim": 64,
        "vocab_size": 128_256,
        "tie_word_embeddings": True,
    },
    "8b": {
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "vocab_size": 128_256,
    },
}
PROMPT, NEW = 64, 64  # tokens of a prompt, and of a completion
BATCH = 64  # episodes of an update
UPDATES = 3
Rows = Iterator[dict[str, Any]]


def parts_of(shapes: list[str]) -> list[str]:
    """The names of all parts, those that need no large model first."""
    names = ["checks", "numbers", "resume"]
    for shape in shapes:
        names += [f"ppo:{shape}:4bit", f"capture:{shape}:4bit", f"decode:{shape}:4bit"]
        if shape != "8b":
            names += [f"ppo:{shape}:bf16", f"decode:{shape}:bf16"]
    return names


def device() -> str:
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def synchronize() -> None:
    import torch

    if torch.cuda.is_available():
        torch.cuda.synchronize()


def peak_mib() -> int:
    import torch

    return torch.cuda.max_memory_allocated() >> 20 if torch.cuda.is_available() else 0


def make_model(shape: str, work: Path) -> Path:
    """A folder with random weights of this shape, in bf16, and the embedded model's tokenizer."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    folder = work / f"model-{shape}"
    if (folder / "config.json").is_file():
        return folder
    config = LlamaConfig(
        **LLAMA, **SHAPES[shape], max_position_embeddings=2048, bos_token_id=1, eos_token_id=1
    )
    torch.manual_seed(0)
    torch.set_default_dtype(torch.bfloat16)
    with torch.device(device()):
        model = LlamaForCausalLM(config)
    torch.set_default_dtype(torch.float32)
    model.save_pretrained(folder)
    for file in (ROOT / "data" / "model").glob("*token*"):
        shutil.copy(file, folder)
    return folder


def make_prompts(work: Path) -> Path:
    """Prompts of exactly ``PROMPT`` tokens, cut out of the embedded ones by ``--prompt_tokens``."""
    path = work / "texts.jsonl"
    lines = (ROOT / "data" / "prompts.jsonl").read_text(encoding="utf-8").splitlines()
    sentences = [json.loads(line)["prompt"] for line in lines]
    texts = [" ".join(sentences[i : i + 12]) for i in range(0, 12 * BATCH, 12)]
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")
    return path


def roles_of(folder: Path, precision: str, autocast: bool = True) -> Any:
    """Roles on this base, whose adapters say something: their second factor is not zero."""
    import torch

    from toolkit import Roles, load_base
    from toolkit.models.adapters import lora_config

    torch.manual_seed(0)
    dtype = torch.bfloat16 if autocast and torch.cuda.is_available() else None
    lora = lora_config(16, 32, "all-linear", "CAUSAL_LM")
    roles = Roles(load_base(str(folder), precision), lora, value="adapter", autocast_dtype=dtype)
    for name, parameter in roles.named_parameters():
        if "lora_B" in name and parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=0.01)
    return roles


def checks(work: Path) -> Rows:
    """The doctor's checks of bitsandbytes, peft and transformers on this device."""
    words = [sys.executable, "recipes/doctor.py", "--precision", "4bit"]
    done = subprocess.run(words, cwd=ROOT, text=True, capture_output=True)
    for line in (done.stdout + done.stderr).splitlines():
        if line.startswith(("ok  ", "FAIL")):
            yield {"check": line[6:], "ok": line.startswith("ok")}
    yield {"check": "all of them", "ok": done.returncode == 0, "error": done.stderr[-400:]}


def numbers(work: Path) -> Rows:
    """The embedded model on this device against fp32 on the CPU: log-probs and gradients."""
    code = f"import sys; sys.path[:0] = [{str(ROOT)!r}]; import benchmarks.gpu as g; g.exact()"
    cpu: dict[str, Any] = {}
    for use_cpu, precision, autocast in (
        (True, "fp32", False),
        (True, "4bit", False),
        (False, "fp32", False),
        (False, "bf16", True),
        (False, "4bit", False),
        (False, "4bit", True),
    ):
        env = os.environ | {"PRECISION": precision, "AUTOCAST": str(int(autocast))}
        env |= {"ACCELERATE_USE_CPU": "true", "CUDA_VISIBLE_DEVICES": ""} if use_cpu else {}
        done = subprocess.run(
            [sys.executable, "-c", code], cwd=ROOT, env=env, text=True, capture_output=True
        )
        line = next((x for x in done.stdout.splitlines() if x.startswith("@{")), None)
        if line is None:
            yield {"precision": precision, "error": done.stderr[-600:]}
            continue
        found = json.loads(line[1:])
        if use_cpu:
            cpu[precision] = found
            continue
        against = cpu["4bit" if precision == "4bit" else "fp32"]
        gaps = [abs(a - b) for a, b in zip(found["logprobs"], against["logprobs"], strict=True)]
        size = sum(x * x for x in against["gradient"]) ** 0.5
        both = zip(found["gradient"], against["gradient"], strict=True)
        yield {
            "precision": precision,
            "autocast": autocast,
            "against": f"CPU, {'4bit' if precision == '4bit' else 'fp32'}",
            "logprob_gap_max": max(gaps),
            "logprob_gap_mean": sum(gaps) / len(gaps),
            "gradient_gap_relative": sum((a - b) ** 2 for a, b in both) ** 0.5 / size,
        }


def exact() -> None:
    """Prints log-probs and a gradient of the embedded model on real prompts (``numbers``)."""
    import torch

    from toolkit import load_tokenizer
    from toolkit.maths.sequences import pad

    roles = roles_of(
        ROOT / "data" / "model", os.environ["PRECISION"], os.environ["AUTOCAST"] == "1"
    )
    # The same adapters on every device: a CUDA generator draws other numbers than the CPU's.
    torch.manual_seed(1)
    with torch.no_grad():
        for name, parameter in roles.named_parameters():
            if "lora_" in name and parameter.requires_grad:
                parameter.copy_(torch.randn(parameter.shape) * 0.02)
    tokenizer = load_tokenizer(str(ROOT / "data" / "model"))
    lines = (ROOT / "data" / "prompts.jsonl").read_text(encoding="utf-8").splitlines()[:32]
    rows = [tokenizer(json.loads(line)["prompt"])["input_ids"] for line in lines]
    length = 6  # the last tokens of each sentence play the completion
    ids, mask = pad(rows, tokenizer.pad_token_id, "left")
    ids, mask = ids.to(roles.device), mask.to(roles.device)
    with roles.optimizing():
        outputs = roles.policy_outputs(ids, mask, ids[:, -length:], 1.0)
        outputs.logprobs.sum().backward()
    gradient = torch.cat(
        [p.grad.flatten() for n, p in roles.trainable() if p.grad is not None and "lora_A" in n]
    )
    found = {
        "logprobs": outputs.logprobs.flatten().tolist(),
        "gradient": gradient[:: max(1, gradient.numel() // 4000)].tolist(),
    }
    print("@" + json.dumps(found), flush=True)


def capture(work: Path, shape: str, precision: str) -> Rows:
    """Log-probs captured while sampling against those of a training pass of the same tokens."""
    import torch

    from toolkit.models.actors import POLICY
    from toolkit.models.generation import draw_uniforms, sample

    roles = roles_of(make_model(shape, work), precision)
    ids = torch.randint(3, 1000, (BATCH, PROMPT), device=roles.device)
    mask = torch.ones_like(ids, dtype=torch.bool)
    mask[::2, : PROMPT // 4] = False  # left padding in every other row
    uniforms = draw_uniforms(BATCH, NEW, torch.Generator().manual_seed(0))
    sampled = sample(roles.step(POLICY), ids, mask, uniforms, 1.0, 0)
    passage = torch.cat([ids, sampled.completion_ids], dim=1)
    attention = torch.cat([mask, sampled.mask], dim=1)
    gaps = []
    for index in torch.arange(BATCH, device=roles.device).split(16):
        with torch.no_grad():
            outputs = roles.policy_outputs(
                passage[index], attention[index], sampled.completion_ids[index], 1.0
            )
        gaps.append((outputs.logprobs - sampled.logprobs[index]).abs().flatten())
    gap = torch.cat(gaps)
    yield {
        "batch": BATCH,
        "tokens": gap.numel(),
        "gap_max": gap.max().item(),
        "gap_mean": gap.mean().item(),
        "gap_999": gap.float().quantile(0.999).item(),
    }


def decode(work: Path, shape: str, precision: str) -> Rows:
    """Milliseconds a token while sampling: our loop with LoRA, and transformers' generate."""
    import torch

    from toolkit.models.actors import POLICY
    from toolkit.models.generation import draw_uniforms, sample

    roles = roles_of(make_model(shape, work), precision)
    step = roles.step(POLICY)
    tiny = shape == "tiny"
    for batch in (4, 16) if tiny else (16, 64, 128, 256):
        ids = torch.randint(3, 1000, (batch, PROMPT), device=roles.device)
        mask = torch.ones_like(ids, dtype=torch.bool)

        def ours(tokens: int, ids: Any = ids, mask: Any = mask, batch: int = batch) -> None:
            uniforms = draw_uniforms(batch, tokens, torch.Generator().manual_seed(0))
            sample(step, ids, mask, uniforms, 1.0, 0)

        def theirs(tokens: int, ids: Any = ids, mask: Any = mask) -> None:
            model = roles.language_model(POLICY)
            with torch.no_grad(), roles.precision():
                model.generate(
                    input_ids=ids,
                    attention_mask=mask.long(),
                    do_sample=True,
                    top_k=0,
                    top_p=1.0,
                    max_new_tokens=tokens,
                    min_new_tokens=tokens,
                    pad_token_id=0,
                )

        for name, generate in (("toolkit", ours), ("transformers", theirs)):
            seconds = {}
            for tokens in (4, 4, 4 + NEW // 2):  # the first time warms up
                synchronize()
                started = time.perf_counter()
                generate(tokens)
                synchronize()
                seconds[tokens] = time.perf_counter() - started
            # The prompt's pass is in both and falls out.
            each = (seconds[4 + NEW // 2] - seconds[4]) / (NEW // 2)
            yield {
                "by": name,
                "batch": batch,
                "ms_per_token": round(1000 * each, 2),
                "tokens_per_second": round(batch / each),
                "peak_mib": peak_mib(),
            }
        gc.collect()


def planned_mib(folder: Path, precision: str, micro: int, checkpointing: bool) -> float:
    """The peak that ``recipes/doctor.py`` would plan for this run."""
    from transformers import AutoConfig

    from toolkit.models.adapters import lora_config
    from toolkit.models.memory import MIB, plan_memory

    plan = plan_memory(
        AutoConfig.from_pretrained(folder),
        precision,
        lora_config(16, 32, "all-linear", "CAUSAL_LM"),
        "adapter",
        PROMPT,
        NEW,
        micro,
        BATCH,
        reward=False,
        bf16=True,
        checkpointing=checkpointing,
        device=device(),
    )
    return plan.peak / MIB


def run_ppo(folder: Path, output: Path, *more: str) -> subprocess.CompletedProcess[str]:
    words = [
        sys.executable,
        "recipes/ppo.py",
        "--model_name_or_path",
        str(folder),
        "--lexicon",
        "data/lexicon.txt",
        "--output_dir",
        str(output),
        "--disable_tqdm",
        "true",
        *more,
    ]
    return subprocess.run(words, cwd=ROOT, text=True, capture_output=True)


def lines_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def ppo(work: Path, shape: str, precision: str) -> Rows:
    """``recipes/ppo.py`` on this shape, with and without gradient checkpointing."""
    folder, texts = make_model(shape, work), make_prompts(work)
    for micro, checkpointing in ((16, False), (64, True)):
        output = work / f"ppo-{shape}-{precision}-{micro}"
        done = run_ppo(
            folder,
            output,
            "--precision",
            precision,
            "--prompts",
            str(texts),
            "--prompt_tokens",
            str(PROMPT),
            "--response_length",
            str(NEW),
            "--per_device_train_batch_size",
            str(micro),
            "--gradient_accumulation_steps",
            str(BATCH // micro),
            "--total_episodes",
            str(BATCH * UPDATES),
            "--local_rollout_forward_batch_size",
            str(BATCH),
            "--bf16",
            "true" if device() == "cuda" else "false",
            "--gradient_checkpointing",
            str(checkpointing).lower(),
            "--overwrite",
            "true",
        )
        row: dict[str, Any] = {
            "micro_batch": micro,
            "gradient_checkpointing": checkpointing,
            "planned_mib": round(planned_mib(folder, precision, micro, checkpointing)),
        }
        if done.returncode:
            yield row | {"error": (done.stdout + done.stderr)[-1500:]}
            continue
        times, log = lines_of(output / "timings.jsonl"), lines_of(output / "log.jsonl")
        yield row | {
            "peak_mib": times[-1]["peak_mb"],
            "last_update": {k: v for k, v in times[-1].items() if k.startswith("seconds")},
            "episodes_per_second": round(BATCH / times[-1]["seconds"], 2),
            "first_kl": log[0]["objective/kl"],
            "first_max_log_ratio": log[0]["val/first_max_log_ratio"],
            "warnings": [x for x in done.stderr.splitlines() if "arn" in x][:5],
        }
        shutil.rmtree(output, ignore_errors=True)


def resume(work: Path) -> Rows:
    """The embedded model: a run stopped after two updates and resumed, against one without stop."""
    for precision in ("fp32", "4bit"):
        more = [
            "--precision",
            precision,
            "--total_episodes",
            "256",
            "--per_device_train_batch_size",
            "64",
            "--save_steps",
            "1",
        ]
        folder = ROOT / "data" / "model"
        whole, cut = work / f"whole-{precision}", work / f"cut-{precision}"
        for output, extra in (
            (whole, []),
            (work / f"again-{precision}", []),
            (cut, ["--stop_at_update", "2"]),
            (cut, ["--resume", "auto"]),
        ):
            done = run_ppo(folder, output, *more, *extra)
            if done.returncode:
                yield {"precision": precision, "error": done.stderr[-1000:]}
                break
        else:
            logs = [(f / "log.jsonl").read_bytes() for f in (whole, cut)]
            again = (work / f"again-{precision}" / "log.jsonl").read_bytes()
            file = Path("adapters") / "policy" / "adapter_model.safetensors"
            yield {
                "precision": precision,
                "same_log": logs[0] == logs[1],
                "same_policy": (whole / file).read_bytes() == (cut / file).read_bytes(),
                "same_log_of_two_whole_runs": logs[0] == again,
            }


PARTS = {
    "checks": checks,
    "numbers": numbers,
    "capture": capture,
    "decode": decode,
    "ppo": ppo,
    "resume": resume,
}


def run_part(name: str, work: Path, output: Path) -> None:
    """One part, in this process; each row is appended to the output as it comes."""
    kind, *sizes = name.split(":")
    for row in PARTS[kind](work, *sizes):
        line = json.dumps({"part": name} | row)
        with open(output, "a", encoding="utf-8") as stream:
            stream.write(line + "\n")
        print(line, flush=True)


def machine() -> dict[str, Any]:
    """What it ran on."""
    import importlib.metadata

    import torch

    packages = ("torch", "transformers", "peft", "bitsandbytes", "trl", "accelerate")
    found: dict[str, Any] = {name: importlib.metadata.version(name) for name in packages}
    if torch.cuda.is_available():
        found |= {"device": torch.cuda.get_device_name(), "cuda": torch.version.cuda}
        found["memory_mib"] = torch.cuda.get_device_properties(0).total_memory >> 20
    else:
        found["device"] = "CPU"
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shapes", nargs="+", default=["1b", "8b"], choices=SHAPES)
    parser.add_argument("--only", nargs="+", metavar="PART", help="parts by name, as printed")
    parser.add_argument("--output", type=Path, default=Path("gpu.jsonl"), help="rows, appended")
    parser.add_argument("--work", type=Path, help="folder for the models (by default a temporary)")
    parser.add_argument("--seconds", type=float, default=1500, help="start no part after so many")
    parser.add_argument("--part", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.part:
        return run_part(args.part, args.work, args.output)

    started = time.monotonic()
    print(json.dumps(machine()), flush=True)
    with open(args.output, "a", encoding="utf-8") as stream:
        stream.write(json.dumps({"part": "machine"} | machine()) + "\n")
    with tempfile.TemporaryDirectory() as temporary:
        work = args.work or Path(temporary)
        work.mkdir(parents=True, exist_ok=True)
        for name in args.only or parts_of(args.shapes):
            left = args.seconds - (time.monotonic() - started)
            if left <= 0:
                print(f"{name}: not started, the time is over", flush=True)
                continue
            words = [sys.executable, __file__, "--part", name, "--work", str(work)]
            env = os.environ | {
                "PYTHONPATH": os.pathsep.join(
                    filter(None, [str(ROOT), os.environ.get("PYTHONPATH")])
                ),
                "HF_HUB_OFFLINE": "1",
                "TOKENIZERS_PARALLELISM": "false",
            }
            begun = time.monotonic()
            try:
                done = subprocess.run(
                    [*words, "--output", str(args.output)],
                    env=env,
                    timeout=max(left, 1),
                    stderr=subprocess.PIPE,
                    text=True,
                )
                if done.returncode:
                    print(f"{name} FAILED:\n{done.stderr[-2500:]}", flush=True)
            except subprocess.TimeoutExpired:
                print(f"{name}: stopped, the time is over", flush=True)
            print(f"# {name}: {time.monotonic() - begun:.0f} s", flush=True)
    return None


if __name__ == "__main__":
    main()
