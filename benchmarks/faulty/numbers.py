"""Numbers that are no numbers: told, read from files, or come out of a model."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file, save_file

from benchmarks.faulty.adapters import TENSOR, weights, write_adapter
from benchmarks.faulty.room import LEXICON, MODEL, Fault, Room

PROMPT = '{"prompt": "It rained."}\n{"prompt": "We went home."}\n'
WORDS = ("nan", "inf", "-inf", "1e999")
NONE = {"NaN": np.nan, "infinite": np.inf}
FLAGS = {
    "ppo": ("kl_coef", "reward_weights", "num_train_epochs"),
    "reward": ("warmup_steps", "logging_steps", "neftune_noise_alpha"),
    "sft": ("max_grad_norm", "adam_epsilon", "eval_delay"),
    "preference": ("weight_decay", "adam_beta1", "ld_alpha"),
    "rloo": ("reward_weights", "epsilon_high"),
    "label": ("noise",),
    "sample": ("temperature",),
    "evaluate": ("temperature",),
}


def _flag(recipe: str, flag: str, word: str) -> Any:
    def run(room: Room) -> str:
        return room.recipe(recipe, f"--{flag}={word}").refused(flag)

    return run


def _yaml(recipe: str, flag: str, word: str) -> Any:
    def run(room: Room) -> str:
        room.write("c.yaml", f"seed: 1\n{flag}: {word}\n")
        return room.recipe(recipe, "--config", "c.yaml").refused("c.yaml:2", flag)

    return run


def _lexicon(recipe: str, word: str) -> Any:
    def run(room: Room) -> str:
        room.write("l.txt", f"good\t1\nbad\t{word}\n")
        room.write("p.jsonl", PROMPT)
        rows = '{"prompt": "a", "completions": ["good", "bad"]}\n'
        room.write("s.jsonl", rows)
        prompts = ("--prompts", "p.jsonl", "--model_name_or_path", MODEL, "--output_dir", "out")
        words = {
            "label": ("--samples", "s.jsonl", "--output", "out.jsonl"),
            "evaluate": ("--contenders", "best_of_2", *prompts),
            "ppo": prompts,
        }[recipe]
        return room.recipe(recipe, "--lexicon", "l.txt", *words).refused("l.txt:2", "bad")

    return run


def _evaluate(room: Room, *words: object) -> Any:
    room.write("p.jsonl", PROMPT)
    return room.recipe(
        "evaluate",
        "--prompts",
        "p.jsonl",
        "--model_name_or_path",
        MODEL,
        "--lexicon",
        LEXICON,
        "--precision",
        "fp32",
        "--response_length",
        "4",
        "--output_dir",
        "out",
        *words,
    )


def _adapter(part: str, value: float) -> Any:
    def run(room: Room) -> str:
        tensors, name = weights(), TENSOR.format(1, "v_proj", part)
        tensors[name][1, 1] = value
        write_adapter(room, tensors=tensors)
        return _evaluate(room, "--adapter", "adapter").refused(name, "adapter_model.safetensors")

    return run


def _overflowing(room: Room) -> str:
    """Finite weights whose products are not: seen in the log-probs alone."""
    tensors = {k: (t if "lora_A" in k else np.full_like(t, 1e38)) for k, t in weights().items()}
    write_adapter(room, tensors=tensors)
    return _evaluate(room, "--contenders", "broken=adapter").refused("broken", "not finite")


def _reward_adapter(**facts: Any) -> Any:
    def run(room: Room) -> str:
        head = np.ones((1, 128), np.float32)
        value = facts.get("head", 1.0)
        head[0, 3] = value
        tensors = weights() | {"base_model.model.score.weight": head}
        write_adapter(room, {"task_type": "SEQ_CLS"}, "reward", tensors)
        told = {"precision": "fp32"} | {k: v for k, v in facts.items() if k != "head"}
        room.write("reward/toolkit.json", json.dumps(told))
        said = ("score.weight",) if "head" in facts else ("toolkit.json",)
        return _evaluate(room, "--contenders", "best_of_2", "--reward_adapter", "reward").refused(
            *said
        )

    return run


def _base(name: str, value: float, precision: str) -> Any:
    def run(room: Room) -> str:
        base = Path(shutil.copytree(MODEL, room.folder / "base"))
        tensors = dict(load_file(base / "model.safetensors"))
        tensors[name] = tensors[name].copy()
        tensors[name].reshape(-1)[5] = value
        save_file(tensors, base / "model.safetensors", metadata={"format": "pt"})
        room.write("p.jsonl", PROMPT)
        return room.recipe(
            "sample",
            "--prompts",
            "p.jsonl",
            "--model_name_or_path",
            "base",
            "--output",
            "out.jsonl",
            "--precision",
            precision,
        ).refused(name, "model.safetensors")

    return run


def _samples(line: str, said: str) -> Any:
    def run(room: Room) -> str:
        row = {
            "prompt": "a",
            "completions": {"reference": "b", "policy": "c"},
            "scores": {},
            "log_ratios": {"policy": 0.5},
            "tokens": {"reference": 1, "policy": 1},
        }
        room.write(
            "e/samples.jsonl",
            json.dumps(row) + "\n" + line.join(json.dumps(row).split('{"policy": 0.5}')) + "\n",
        )
        about = dict.fromkeys(
            (
                "tokens",
                "words",
                "distinct_1",
                "distinct_2",
                "repetition",
                "unique",
                "new_sentences",
                "copied_3grams",
                "copies_opening",
            ),
            0.5,
        ) | {"kind": "reference", "source": "", "n": 1, "kl": None, "scores": {}}
        contenders = [{"name": name} | about for name in ("reference", "policy")]
        room.write("e/evaluation.json", json.dumps({"contenders": contenders, "prompts": 2}))
        return _evaluate(room, "--samples", "e").refused("samples.jsonl:2", said)

    return run


def _undefined(room: Room) -> str:
    """An evaluation's files are JSON that every reader takes."""
    write_adapter(room)
    ended = _evaluate(room, "--adapter", "adapter").done()
    for path in [*(room.folder / "out").glob("*.json"), *(room.folder / "out").glob("*.jsonl")]:
        for line in [path.read_text()] if path.suffix == ".json" else path.read_text().splitlines():
            json.loads(line, parse_constant=lambda word: ended.expect(False, f"{word} in a file"))
    return "done, without NaN in a file"


LINEAR = "model.layers.1.mlp.up_proj.weight"
KIND = "no numbers: "
FAULTS = [
    *(
        Fault(f"{KIND}flags", f"{recipe} --{flag}={word}", _flag(recipe, flag, word))
        for recipe, flags in FLAGS.items()
        for flag in flags
        for word in WORDS[: 4 if recipe == "ppo" else 2]
    ),
    *(
        Fault(f"{KIND}YAML", f"{recipe} {flag}: {word}", _yaml(recipe, flag, word))
        for recipe in ("ppo", "reward", "sft")
        for flag in ("learning_rate", "weight_decay")
        for word in (".nan", ".inf", "-.inf")
    ),
    *(
        Fault(f"{KIND}lexicons", f"{recipe} {word}", _lexicon(recipe, word))
        for recipe in ("label", "evaluate", "ppo")
        for word in WORDS
    ),
    *(
        Fault(f"{KIND}adapters", f"{name} in {part}", _adapter(part, value))
        for part in "AB"
        for name, value in NONE.items()
    ),
    Fault(f"{KIND}log-probs", "weights that overflow", _overflowing),
    *(
        Fault(f"{KIND}reward models", name, _reward_adapter(**facts))
        for name, facts in {
            "a head with NaN": {"head": np.nan},
            "a head with infinity": {"head": np.inf},
            "a gain of NaN": {"gain": np.nan},
            "a gain of infinity": {"gain": np.inf},
            "a gain in words": {"gain": "2"},
            "a bias of a list": {"bias": [1]},
            "a bias of null": {"bias": None},
            "a gain that is true": {"gain": True},
        }.items()
    ),
    *(
        Fault(f"{KIND}bases", f"{what} in {name}, {precision}", _base(name, value, precision))
        for name in (LINEAR, "model.norm.weight", "model.embed_tokens.weight")
        for what, value in NONE.items()
        for precision in ("fp32", "bf16", "4bit")
    ),
    *(
        Fault(f"{KIND}samples", line, _samples(line, said))
        for line, said in {
            '{"policy": NaN}': "NaN",
            '{"policy": Infinity}': "Infinity",
            '{"policy": 1e999}': "1e999",
            '{"policy": "nan"}': "policy",
            '{"policy": true}': "policy",
            '{"policy": null}': "policy",
        }.items()
    ),
    Fault(f"{KIND}what is written", "an evaluation", _undefined),
]
