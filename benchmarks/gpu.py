"""What only a GPU can show: numbers, speed and memory of PPO on it, one row for each measurement.

    python benchmarks/gpu.py                              everything, into gpu.jsonl
    python benchmarks/gpu.py --only numbers ppo:8b:4bit   some of it
    python benchmarks/gpu.py --only decode:8b:4bit:64     one batch
    python benchmarks/gpu.py --only resume:fp32:exact     one of its four cases
    python benchmarks/gpu.py --shapes tiny                on a CPU, to try the script itself

Each part runs in a process of its own, and its rows are written as they come, so nothing that was
measured is lost where a later part fails or the machine is taken away. The models have random
weights in a real shape (Llama 3.2 1B, Llama 3.1 8B), so what they write means nothing; how fast
they write it, what it takes and whether the numbers agree do not depend on the weights.

    checks     the doctor's checks of the libraries below
    numbers    the embedded model: log-probs and gradients on this device against fp32 on the CPU
    capture    log-probs captured while sampling against those of a training pass, batch of 64:
               with growing steps, steps of one shape, and an unpacked base
    decode     milliseconds a token by batch: transformers' generate, growing steps, steps of one
               shape, the same captured as a graph, and captured with an unpacked base
    passes     a training pass: as it is, without each fast pass, and compiled
    ppo        recipes/ppo.py: seconds by phase, and the peak of memory beside what was planned
    card       the shipped settings of an 8B model for 24 GB, with no more memory than that
    trl        what TRL 1.12's PPO would hold for the same model
    resume     a PPO run killed after two updates and taken up again, against one that ran through,
               with and without --full_determinism
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
    names = ["checks", "numbers"]
    for shape in shapes:
        names += [f"{part}:{shape}:4bit" for part in ("decode", "capture", "ppo", "passes")]
        names += [f"trl:{shape}"]
        if shape != "8b":
            names += [f"decode:{shape}:bf16", f"ppo:{shape}:bf16"]
        if shape != "1b":
            names += [f"card:{shape}"]
    return [*names, "resume"]


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


def make_prompts(work: Path, sentences_each: int = 12) -> Path:
    """Texts that are long enough for ``--prompt_tokens`` to cut prompts of one length out of them.

    Twelve sentences of the embedded prompts have more than ``PROMPT`` tokens.
    """
    path = work / "texts.jsonl"
    lines = (ROOT / "data" / "prompts.jsonl").read_text(encoding="utf-8").splitlines()
    sentences = [json.loads(line)["prompt"] for line in lines]
    texts = [" ".join((sentences * 4)[12 * i :][:sentences_each]) for i in range(BATCH)]
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


def growing(step: Any) -> Any:
    """The same step with transformers' growing caches."""
    from toolkit.models.generation import Step

    class Growing(Step):
        is_static = False

    return Growing(step.run, step.model, step.exact, step.prepared)


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
    step = roles.step(POLICY)
    for way, one, unpacks in (
        ("growing", growing(step), False),
        ("one shape", step, False),
        ("one shape, unpacked", step, True),
    ):
        roles.unpacks = unpacks
        sampled = sample(one, ids, mask, uniforms, 1.0, 0)
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
            "way": way,
            "batch": BATCH,
            "tokens": gap.numel(),
            "gap_max": gap.max().item(),
            "gap_mean": gap.mean().item(),
            "gap_999": gap.float().quantile(0.999).item(),
        }


def decode(work: Path, shape: str, precision: str, *only: str) -> Rows:
    """Milliseconds a token while sampling with LoRA, in each way; ``only`` these batches."""
    import torch

    from toolkit.models import generation
    from toolkit.models.actors import POLICY
    from toolkit.models.generation import draw_uniforms, sample
    from toolkit.models.static_decoding import replayed

    roles = roles_of(make_model(shape, work), precision)
    step = roles.step(POLICY)
    ways = ["transformers", "growing", "one shape", "captured"]
    ways += ["captured, unpacked"] if precision == "4bit" else []
    batches = (4, 16) if shape == "tiny" else (16, 64, 128, 256)
    for batch in map(int, only or batches):
        ids = torch.randint(3, 1000, (batch, PROMPT), device=roles.device)
        mask = torch.ones_like(ids, dtype=torch.bool)

        def generate(way: str, tokens: int, ids: Any = ids, mask: Any = mask) -> None:
            if way == "transformers":
                with torch.no_grad(), roles.precision():
                    roles.language_model(POLICY).generate(
                        input_ids=ids,
                        attention_mask=mask.long(),
                        do_sample=True,
                        top_k=0,
                        top_p=1.0,
                        max_new_tokens=tokens,
                        min_new_tokens=tokens,
                        pad_token_id=0,
                    )
                return
            roles.unpacks = way.endswith("unpacked")
            captured = way.startswith("captured")
            generation.replayed = replayed if captured else lambda model, step, device: step
            one = growing(step) if way == "growing" else step
            uniforms = draw_uniforms(len(ids), tokens, torch.Generator().manual_seed(0))
            sample(one, ids, mask, uniforms, 1.0, 0)

        for way in ways:
            seconds = {}
            for tokens in (4, 4, 4 + NEW):  # the first time warms up
                synchronize()
                started = time.perf_counter()
                try:
                    generate(way, tokens)
                except RuntimeError as error:  # too little memory, say
                    yield {"by": way, "batch": batch, "error": str(error)[:300]}
                    break
                synchronize()
                seconds[tokens] = time.perf_counter() - started
            else:
                # The prompt's pass, unpacking and capturing are in both and fall out.
                each = (seconds[4 + NEW] - seconds[4]) / NEW
                yield {
                    "by": way,
                    "batch": batch,
                    "ms_per_token": round(1000 * each, 2),
                    "tokens_per_second": round(batch / each),
                    "before_the_first_ms": round(1000 * (seconds[4] - 4 * each), 1),
                    "peak_mib": peak_mib(),
                }
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
                torch.cuda.reset_peak_memory_stats()
        gc.collect()


def passes(work: Path, shape: str, precision: str) -> Rows:
    """Milliseconds and memory of a training pass: 16 rows, forward and backward."""
    import torch

    from toolkit.models.fast import CHANGES, SWITCH

    folder = make_model(shape, work)
    ways = {"all": ",".join(CHANGES), "none": "none"}
    ways |= {f"without {one}": ",".join(c for c in CHANGES if c != one) for one in CHANGES}
    rows = 4 if shape == "tiny" else 16
    for way in [*ways, "all, compiled"]:
        os.environ[SWITCH] = ways[way.removesuffix(", compiled")]
        roles = roles_of(folder, precision)
        ids = torch.randint(3, 1000, (rows, PROMPT + NEW), device=roles.device)
        mask = torch.ones_like(ids, dtype=torch.bool)
        mask[::2, : PROMPT // 4] = False
        outputs = roles.policy_outputs
        if way.endswith("compiled"):
            outputs = torch.compile(outputs)
        seconds = []
        try:
            for _ in range(4):
                if torch.cuda.is_available():
                    torch.cuda.reset_peak_memory_stats()
                synchronize()
                started = time.perf_counter()
                with roles.optimizing():
                    outputs(ids, mask, ids[:, -NEW:], 1.0).logprobs.sum().backward()
                synchronize()
                seconds.append(time.perf_counter() - started)
        except Exception as error:  # a compiler may fail in many ways
            yield {"way": way, "error": f"{type(error).__name__}: {str(error)[:300]}"}
        else:
            yield {
                "way": way,
                "rows": rows,
                "first_ms": round(1000 * seconds[0], 1),
                "ms": round(1000 * min(seconds[1:]), 2),
                "peak_mib": peak_mib(),
            }
        del roles, outputs
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def planned_mib(
    folder: Path, precision: str, micro: int, checkpointing: bool, unpacked: bool
) -> float:
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
        plain_scales=unpacked,
        unpack_base=unpacked,
    )
    return plan.peak / MIB


def ppo_words(folder: Path, output: Path, *more: str) -> list[str]:
    return [
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


def run_ppo(folder: Path, output: Path, *more: str) -> subprocess.CompletedProcess[str]:
    words = ppo_words(folder, output, *more)
    return subprocess.run(words, cwd=ROOT, text=True, capture_output=True)


def lines_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def ppo(work: Path, shape: str, precision: str) -> Rows:
    """``recipes/ppo.py`` on this shape, with and without gradient checkpointing and unpacking."""
    folder, texts = make_model(shape, work), make_prompts(work)
    for micro, checkpointing, unpacked in ((16, False, False), (64, True, False), (64, True, True)):
        if unpacked and precision != "4bit":
            continue
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
            "--unpack_base",
            str(unpacked).lower(),
            "--plain_scales",
            str(unpacked).lower(),
            "--overwrite",
            "true",
        )
        row: dict[str, Any] = {
            "micro_batch": micro,
            "gradient_checkpointing": checkpointing,
            "unpacked": unpacked,
            "planned_mib": round(planned_mib(folder, precision, micro, checkpointing, unpacked)),
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


def card(work: Path, shape: str) -> Rows:
    """The shipped settings for 24 GB: two updates in no more memory than such a card has."""
    import torch

    settings = ROOT / "recipes" / "configs" / "llama-3.1-8b-instruct" / "ppo.yaml"
    row_of_card = next(x for x in settings.read_text().splitlines() if x.startswith("#   24 GB"))
    more = row_of_card[row_of_card.index("--") :].split()
    tiny = shape == "tiny"
    if torch.cuda.is_available():
        total = torch.cuda.get_device_properties(0).total_memory
        share = min(1.0, 0.9 * (24 << 30) / total)  # 10 % is held back, as the plan does
        limit = f"import torch; torch.cuda.set_per_process_memory_fraction({share}); "
    else:
        limit = ""
    folder, output = make_model(shape, work), work / f"card-{shape}"
    words = [
        "recipes/ppo.py",
        *("--config", str(settings)),
        *("--model_name_or_path", str(folder)),
        *("--prompts", str(make_prompts(work, 60))),
        *("--prompt_tokens", "32" if tiny else "256"),
        *("--max_prompt_length", "32" if tiny else "256"),
        *("--response_length", "16" if tiny else "256"),
        *("--lexicon", "data/lexicon.txt"),
        *more,
        *("--total_episodes", str(2 * BATCH)),
        *("--bf16", "true" if device() == "cuda" else "false"),
        *("--output_dir", str(output)),
        *("--disable_tqdm", "true"),
        *("--overwrite", "true"),
    ]
    # The reward is a word list here: a reward adapter would take as much as the policy's.
    code = f"{limit}import runpy, sys; sys.argv = {words!r}; sys.path.insert(0, '.'); "
    code += "runpy.run_path('recipes/ppo.py', run_name='__main__')"
    text = settings.read_text().replace("reward_adapter:", "# reward_adapter:")
    kept = work / "card.yaml"
    kept.write_text(text)
    code = code.replace(str(settings), str(kept))
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, text=True, capture_output=True)
    row: dict[str, Any] = {"card": "24 GB", "planned": " ".join(row_of_card.split()[3:5])}
    if done.returncode:
        yield row | {"error": (done.stdout + done.stderr)[-1500:]}
        return
    times = lines_of(output / "timings.jsonl")
    yield row | {
        "peak_mib": times[-1]["peak_mb"],
        "last_update": {k: v for k, v in times[-1].items() if k.startswith("seconds")},
        "episodes_per_second": round(BATCH / times[-1]["seconds"], 2),
    }


def trl(work: Path, shape: str) -> Rows:
    """What TRL 1.12's PPOTrainer must hold for this shape: it was not run.

    Its value model is a model of its own that is trained whole, which 4-bit weights cannot be; the
    reward model is another. Policy and reference may share a 4-bit base.
    """
    from transformers import LlamaConfig

    config = LlamaConfig(**LLAMA, **SHAPES[shape])
    width, inner = config.hidden_size, config.intermediate_size
    size = config.head_dim or width // config.num_attention_heads
    heads = config.num_attention_heads + 2 * config.num_key_value_heads
    layer = width * size * (heads + config.num_attention_heads) + 3 * width * inner
    weights = config.num_hidden_layers * layer + config.vocab_size * width
    gib = 1 << 30
    yield {
        "run": False,
        "why": "TRL 1.12 trains the whole value model, in bf16: weights, gradients and two moments",
        "value_model_gib": round(4 * 2 * weights / gib, 1),
        "reward_model_4bit_gib": round(0.53 * weights / gib, 1),
        "fits_24_gb": 8 * weights < 0.9 * 24 * gib,
    }


def resume(work: Path, *only: str) -> Rows:
    """The embedded model: a run killed after two updates and resumed, against one that was not."""
    for precision, exact in (("fp32", False), ("4bit", False), ("fp32", True), ("4bit", True)):
        if only and only != (precision, "exact" if exact else "plain"):
            continue
        more = [
            *("--precision", precision),
            *("--total_episodes", "256"),
            *("--per_device_train_batch_size", "64"),
            *("--save_steps", "1"),
            *("--full_determinism", str(exact).lower()),
        ]
        folder, row = ROOT / "data" / "model", {"precision": precision, "full_determinism": exact}
        name = f"{precision}-{exact}"
        whole, again, cut = (work / f"{kind}-{name}" for kind in ("whole", "again", "cut"))
        killed = kill_ppo(folder, cut, *more)
        for output, extra in ((whole, []), (again, []), (cut, ["--resume", "auto"])):
            done = run_ppo(folder, output, *more, *extra)
            if done.returncode:
                yield row | {"error": done.stderr[-1000:]}
                break
        else:
            logs = [(f / "log.jsonl").read_bytes() for f in (whole, cut, again)]
            file = Path("adapters") / "policy" / "adapter_model.safetensors"
            yield row | {
                "killed_after": killed,
                "same_log": logs[0] == logs[1],
                "same_policy": (whole / file).read_bytes() == (cut / file).read_bytes(),
                "same_log_of_two_whole_runs": logs[0] == logs[2],
            }


def kill_ppo(folder: Path, output: Path, *more: str) -> int:
    """Start a run and kill it (SIGKILL) once two updates are logged; return how many were."""
    log = output / "log.jsonl"
    with subprocess.Popen(
        ppo_words(folder, output, *more),
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ) as run:
        while run.poll() is None:
            if log.exists() and log.read_bytes().count(b"\n") >= 2:
                run.kill()
            time.sleep(0.01)
    return log.read_bytes().count(b"\n") if log.exists() else 0


PARTS = {
    "checks": checks,
    "numbers": numbers,
    "capture": capture,
    "decode": decode,
    "passes": passes,
    "ppo": ppo,
    "card": card,
    "trl": trl,
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
