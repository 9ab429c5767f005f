"""Adapters from elsewhere whose configuration asks for what no role on a shared base can have."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from benchmarks.faulty.room import LEXICON, MODEL, Fault, Room

CONFIG = json.loads((MODEL / "config.json").read_text(encoding="utf-8"))
HELD_OUT = MODEL.parent / "prompts.heldout.jsonl"
HEAD = CONFIG["hidden_size"] // CONFIG["num_attention_heads"]
SHAPES = {"q_proj": CONFIG["hidden_size"], "v_proj": HEAD * CONFIG["num_key_value_heads"]}
TENSOR = "base_model.model.model.layers.{}.self_attn.{}.lora_{}.weight"
TOUCHES_THE_BASE = (
    "olora", "OLoRA", "pissa", "pissa_niter_4", "loftq", "corda", "lora_ga", "mica", "tomorrow",
)  # fmt: skip


def weights(rank: int = 4, scale: float = 0.05) -> dict[str, np.ndarray]:
    """LoRA on queries and values of every layer, as plain peft names it; the same each time."""
    random, found = np.random.default_rng(0), {}
    for layer in range(CONFIG["num_hidden_layers"]):
        for name, width in SHAPES.items():
            shapes = {"A": (rank, CONFIG["hidden_size"]), "B": (width, rank)}
            for part, shape in shapes.items():
                drawn = scale * random.standard_normal(shape)
                found[TENSOR.format(layer, name, part)] = drawn.astype(np.float32)
    return found


def write_adapter(
    room: Room,
    changes: dict[str, Any] | None = None,
    name: str = "adapter",
    tensors: dict[str, np.ndarray] | None = None,
    **facts: Any,
) -> Path:
    """An adapter on the embedded model; None takes a field out of its configuration."""
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": str(MODEL),
        "r": 4,
        "lora_alpha": 8,
        "target_modules": ["q_proj", "v_proj"],
        "bias": "none",
        "lora_dropout": 0.0,
        "inference_mode": True,
        "peft_version": "0.21.2",
    } | (changes or {})
    room.write(f"{name}/adapter_config.json", json.dumps(config, indent=2))
    save_file(tensors or weights(), room.folder / name / "adapter_model.safetensors")
    room.write(f"{name}/toolkit.json", json.dumps({"precision": "fp32"} | facts))
    return room.folder / name


def _refused(said: str, **changes: Any) -> Any:
    def run(room: Room) -> str:
        write_adapter(room, changes)
        return room.recipe(
            "evaluate",
            "--adapter",
            "adapter",
            "--lexicon",
            LEXICON,
            "--limit",
            "4",
            "--model_name_or_path",
            MODEL,
            "--prompts",
            HELD_OUT,
            "--precision",
            "fp32",
            "--output_dir",
            "out",
        ).refused(said, "adapter")

    return run


def _merge_refused(said: str, **changes: Any) -> Any:
    def run(room: Room) -> str:
        write_adapter(room, changes)
        return room.recipe(
            "merge",
            "--adapter",
            "adapter",
            "--model_name_or_path",
            MODEL,
            "--output_dir",
            "out",
        ).refused(said)

    return run


def _passes(**changes: Any) -> Any:
    def run(room: Room) -> str:
        write_adapter(room, changes)
        ended = room.recipe(
            "evaluate",
            "--adapter",
            "adapter",
            "--lexicon",
            LEXICON,
            "--limit",
            "4",
            "--model_name_or_path",
            MODEL,
            "--prompts",
            HELD_OUT,
            "--precision",
            "fp32",
            "--response_length",
            "4",
            "--output_dir",
            "out",
        ).done()
        rows = json.loads((room.folder / "out" / "evaluation.json").read_text("utf-8"))
        ended.expect(rows["contenders"][1]["kl"] != 0, "the adapter changed nothing")
        return "held, as peft has it"

    return run


STARTS = {start: {"init_lora_weights": start} for start in TOUCHES_THE_BASE} | {
    "an object": {"init_lora_weights": {"olora": True}},
    "a number": {"init_lora_weights": 2},
}
OTHERS: dict[str, tuple[str, dict[str, Any]]] = {
    "LoftQ's settings": ("loftq_config", {"loftq_config": {"loftq_bits": 4}}),
    "CorDA's settings": ("corda_config", {"corda_config": {"cache_file": "/tmp/x"}}),
    "LoRA-GA's settings": ("lora_ga_config", {"lora_ga_config": {"scale": "stable"}}),
    "settings of EVA's that name a file": ("eva_config", {"eva_config": {"file": "/etc/passwd"}}),
    "KaSA": ("KaSA", {"kasa_config": {"beta": 0.1}}),
    "aLoRA": ("aLoRA", {"alora_invocation_tokens": [5]}),
    "Arrow": ("Arrow", {"arrow_config": {"top_k": 1}}),
    "MonteCLoRA": ("MonteCLoRA", {"monteclora_config": {"num_samples": 2}}),
    "BD-LoRA": ("BD-LoRA", {"use_bdlora": {"nblocks": 2}}),
    "VeLoRA": ("VeLoRA", {"velora_config": {"num_groups": 2}}),
    "QALoRA": ("QALoRA", {"use_qalora": True}),
    "layers that are repeated": ("repeats layers", {"layer_replication": [[0, 2]]}),
    "Megatron's module": ("megatron_core", {"megatron_core": "os"}),
    "a field of the future": ("use_mystery", {"use_mystery": True}),
    "a library to import": (
        "auto_mapping", {"auto_mapping": {"base_model_class": "X", "parent_library": "os"}},
    ),
    "a base up the tree": ("base_model_name", {"base_model_name_or_path": "../../etc"}),
    "a revision up the tree": ("revision", {"revision": "../x"}),
    "a rank of a billion by name": ("has rank", {"rank_pattern": {"v_proj": 10**9}}),
    "a rank of a billion of nothing": ("rank 1000000000", {"rank_pattern": {"x": 10**9}}),
    "a module with dunders": ("modules_to_save", {"modules_to_save": ["__class__"]}),
    "a module with a path": ("modules_to_save", {"modules_to_save": ["../embed"]}),
    "a pattern of layers": (
        "layers_pattern", {"layers_pattern": "(a+)+", "layers_to_transform": [0]},
    ),
}  # fmt: skip
WRONG: dict[str, tuple[str, dict[str, Any]]] = {
    f"{name}: {json.dumps(value)}": (name, {name: value})
    for name, values in {
        "r": ["4", 0, -4, 4.5, True, None, [4], 10**9, 10**40],
        "lora_alpha": ["8", None, 0, -1, True, [8]],
        "target_modules": [{"a": 1}, 7, [1], True, [None]],
        "lora_dropout": ["0", 1, -0.1, None],
        "bias": ["some", True, [], {}],
        "use_rslora": ["yes", 1, None],
        "use_dora": ["no", 0.5],
        "rank_pattern": [[4], {"q_proj": "4"}, {"q_proj": -1}, "q_proj"],
        "alpha_pattern": [{"q_proj": None}, {"q_proj": -8}, [8]],
        "modules_to_save": ["norm", [1], {"norm": 1}],
        "trainable_token_indices": [[-1], ["5"], [1.5], "5"],
        "layers_to_transform": [[-1], "0", 1.5],
    }.items()
    for value in values
}
ENDLESS = {
    "target_modules": "(([a-z_.0-9]+)+)+!|.*q_proj",
    "exclude_modules": "(([a-z_.0-9]+)+)+!",
    "rank_pattern": {"(([a-z_.0-9]+)+)+!": 4},
}
PASSING: dict[str, dict[str, Any]] = {
    "a pattern that ends": {"target_modules": r".*\.(q_proj|v_proj)"},
    "a start by EVA": {"init_lora_weights": "eva", "eva_config": {"rho": 2.0, "tau": 0.99}},
    "fields of old that say nothing": {"enable_lora": None, "merge_weights": False},
    "ranks by name": {"r": 2, "rank_pattern": {"q_proj": 4, "v_proj": 4}},
}
KIND = "foreign adapters: "
FAULTS = [
    *(
        Fault(f"{KIND}begun by", name, _refused("initialized by", **changes))
        for name, changes in STARTS.items()
    ),
    *(
        Fault(f"{KIND}what one base cannot hold", name, _refused(said, **changes))
        for name, (said, changes) in OTHERS.items()
    ),
    *(
        Fault(f"{KIND}types and ranges", name, _refused(said, **changes))
        for name, (said, changes) in WRONG.items()
    ),
    *(
        Fault(f"{KIND}patterns without end", name, _refused("on the names of", **{name: of}))
        for name, of in ENDLESS.items()
    ),
    *(Fault(f"{KIND}sound ones", name, _passes(**changes)) for name, changes in PASSING.items()),
    *(
        Fault(f"{KIND}to be merged", name, _merge_refused(said, **changes))
        for name, (said, changes) in {
            "a field of the future": ("use_mystery", {"use_mystery": True}),
            "no kind": ("peft_type", {"peft_type": None}),
            "a rank of a billion": ("has rank", {"r": 10**9}),
            "Megatron's module": ("megatron_core", {"megatron_core": "os"}),
            "a base up the tree": ("base_model_name", {"base_model_name_or_path": "../x"}),
        }.items()
    ),
]
