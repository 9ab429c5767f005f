"""adapter_config.json is data: what is not held exactly is named; nothing is run or asked for."""

import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from toolkit.errors import InputError
from toolkit.models import adapter_config
from toolkit.models.adapters import check_adapter, lora_config
from toolkit.models.loading import load_base
from toolkit.models.merging import merge_adapter
from toolkit.models.roles import Roles

UNSLOTH = (
    r"(?:.*?(?:language|text|model).*?(?:self_attn|attention|attn|mlp|ffn|dense).*?"
    r"(?:q_proj|v_proj).*?)|(?:\bmodel\.layers\.[\d]{1,}\.(?:self_attn|mlp)\.(?:(?:q_proj|v_proj)))"
)


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory, demo_model: str) -> Path:
    """An adapter as plain peft saves it."""
    folder = tmp_path_factory.mktemp("plain")
    config = LoraConfig(
        r=4, lora_alpha=8, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM"
    )
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(demo_model), config)
    torch.manual_seed(1)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data += 0.1 * torch.randn_like(parameter)
    model.save_pretrained(str(folder))
    return folder


Make = Callable[..., Path]


@pytest.fixture
def adapter(plain: Path, tmp_path: Path) -> Make:
    """The same adapter with other fields in its configuration, or one taken away (...)."""

    def make(**changes: Any) -> Path:
        folder = Path(shutil.copytree(plain, tmp_path / "adapter"))
        config = json.loads((folder / "adapter_config.json").read_text()) | changes
        config = {name: value for name, value in config.items() if value is not ...}
        (folder / "adapter_config.json").write_text(json.dumps(config, indent=2))
        return folder

    return make


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "a rank in words": ({"r": "4"}, 'r is "4", but must be a whole number from 1'),
    "a rank that is true": ({"r": True}, "r is true"),
    "a rank below 1": ({"r": -4}, "r is -4"),
    "a rank of a half": ({"r": 4.5}, "r is 4.5"),
    "no alpha": ({"lora_alpha": None}, "lora_alpha is null"),
    "an alpha of a list": ({"lora_alpha": [8]}, r"lora_alpha is \[8\]"),
    "an alpha below 0": ({"lora_alpha": -8}, "lora_alpha is -8, but must be a finite number above"),
    "targets of an object": ({"target_modules": {"a": 1}}, "target_modules is"),
    "targets of numbers": ({"target_modules": [1, 2]}, "target_modules is"),
    "dropout of all": ({"lora_dropout": 1.0}, "lora_dropout is 1.0"),
    "a bias of its own": ({"bias": "some"}, 'bias is "some"'),
    "a bias of a list": ({"bias": []}, r"bias is \[\]"),
    "rank-stabilized by a word": ({"use_rslora": "yes"}, 'use_rslora is "yes"'),
    "modules with a path": ({"modules_to_save": ["../../x"]}, "modules_to_save is"),
    "modules with dunders": ({"modules_to_save": ["__class__"]}, "modules_to_save is"),
    "modules by a pattern": ({"modules_to_save": ["(a+)+$"]}, "modules_to_save is"),
    "modules of a text": ({"modules_to_save": "norm"}, 'modules_to_save is "norm"'),
    "layers by a pattern": (
        {"layers_pattern": "(a|a)*", "layers_to_transform": [0]},
        "layers_pattern is",
    ),
    "layers below 0": ({"layers_to_transform": [-1]}, "layers_to_transform is"),
    "ranks of a list": ({"rank_pattern": [4]}, "rank_pattern is"),
    "ranks of words": ({"rank_pattern": {"q_proj": "4"}}, "rank_pattern is"),
    "alphas below 0": ({"alpha_pattern": {"q_proj": -1}}, "alpha_pattern is"),
    "tokens below 0": ({"trainable_token_indices": [-1]}, "trainable_token_indices is"),
    "a base up the tree": (
        {"base_model_name_or_path": "../../etc"},
        "base_model_name_or_path is",
    ),
    "a base of two lines": ({"base_model_name_or_path": "a\nb"}, "base_model_name_or_path is"),
    "a base of a number": ({"base_model_name_or_path": 7}, "base_model_name_or_path is 7"),
    "a revision up the tree": ({"revision": "a/../../b"}, "revision is"),
    "a revision that is an option": ({"revision": "--upload"}, "revision is"),
    "a library to import": (
        {"auto_mapping": {"base_model_class": "X", "parent_library": "os"}},
        "auto_mapping is",
    ),
    "a field of the mapping's": ({"auto_mapping": {"run": "x"}}, "auto_mapping is"),
    "Megatron's module": ({"megatron_core": "os"}, 'megatron_core is "os", which is not supported'),
    "Megatron's settings": ({"megatron_config": {"a": 1}}, "of Megatron's layers"),
    "a field of the future": (
        {"use_mystery": {"x": 1}},
        "'use_mystery' is not known to the installed peft",
    ),
    "a field with a newline": ({"a\nb": 1}, "is not known to the installed peft"),
    "LoftQ's settings": (
        {"loftq_config": {"loftq_bits": 4}},
        "loftq_config belongs to an initialization",
    ),
    "CorDA's settings": (
        {"corda_config": {"cache_file": "/tmp/x", "corda_method": "kpm"}},
        "corda_config belongs to a",
    ),
    "LoRA-GA's settings": (
        {"lora_ga_config": {"direction": "ArB2r"}},
        "lora_ga_config belongs to a",
    ),
    "EVA's settings of another": ({"eva_config": {"file": "/etc/passwd"}}, "eva_config is"),
    "KaSA": ({"kasa_config": {"beta": 1e-4}}, "takes a part of the base's own weights"),
    "BD-LoRA": ({"use_bdlora": {"nblocks": 2}}, "has matrices of blocks"),
    "VeLoRA": ({"velora_config": {"num_groups": 2}}, "compresses what it is trained on"),
    "QALoRA": ({"use_qalora": True}, "pools what it reads"),
    **{
        start: (
            {"init_lora_weights": start},
            f"initialized by {start}, which changed the base's weights",
        )
        for start in (
            "olora",
            "OLoRA",
            "pissa",
            "pissa_niter_4",
            "loftq",
            "corda",
            "lora_ga",
            "mica",
            "something new",
        )
    },
    "a start of a number": ({"init_lora_weights": 1}, "initialized by 1"),
    "a start of an object": ({"init_lora_weights": {"olora": 1}}, "initialized by"),
    "a rank of a billion": ({"r": 10**9}, "q_proj has rank 1000000000, but the file has"),
    "a rank of another": ({"r": 8}, r"q_proj has rank 8, but the file has .* \[4, 128\]"),
    "a rank pattern of a billion": (
        {"rank_pattern": {"k_proj": 10**9}},
        "rank 1000000000 is above the largest",
    ),
    "a huge rank by name": ({"rank_pattern": {"v_proj": 10**9}}, "v_proj has rank 1000000"),
    "no regular expression": ({"target_modules": "(q_proj"}, "is not a regular expression"),
    "a kind of its own": ({"peft_type": ["LORA"]}, "adapter, but must be LoRA"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_is_not_held_exactly_is_named_before_a_model_is_loaded(
    name: str, adapter: Make, demo_model: str
) -> None:
    changes, said = BAD[name]
    folder = adapter(**changes)
    with pytest.raises(InputError, match=said) as refusal:
        check_adapter(folder, demo_model, "CAUSAL_LM", "--policy_adapter")
    assert str(folder) in str(refusal.value) and "\n" not in str(refusal.value)


@pytest.mark.parametrize("name", ["olora", "KaSA", "a rank of a billion", "a field of the future"])
def test_roles_that_are_made_without_a_check_before_refuse_the_same(
    name: str, adapter: Make, demo_model: str
) -> None:
    changes, said = BAD[name]
    folder = adapter(**changes)
    with pytest.raises(InputError, match=said):
        Roles(load_base(demo_model, "fp32"), policy_adapter=folder)


def test_the_line_is_named(adapter: Make, demo_model: str) -> None:
    folder = adapter(r="4")
    lines = (folder / "adapter_config.json").read_text().splitlines()
    number = next(i for i, line in enumerate(lines, start=1) if line.startswith('  "r":'))
    with pytest.raises(InputError, match=f"adapter_config.json:{number}: r is"):
        check_adapter(folder, demo_model, "CAUSAL_LM", "--policy_adapter")


GOOD: dict[str, dict[str, Any]] = {
    "as it is": {},
    "names by a pattern": {"target_modules": r".*\.(q_proj|v_proj)"},
    "Unsloth's pattern and mapping": {
        "target_modules": UNSLOTH,
        "auto_mapping": {
            "base_model_class": "LlamaForCausalLM",
            "unsloth_fixed": True,
            "parent_library": "transformers.models.llama.modeling_llama",
        },
    },
    "of remote code": {
        "auto_mapping": {
            "base_model_class": "ChatGLMForConditionalGeneration",
            "parent_library": "transformers_modules.THUDM.chatglm3-6b.103caa40027ebfd8."
            "modeling_chatglm",
        }
    },
    "Unsloth's own module": {
        "auto_mapping": {
            "base_model_class": "Gemma3ForCausalLM",
            "unsloth_fixed": True,
            "parent_library": "unsloth_compiled_module_gemma3",
        }
    },
    "of peft long ago": {
        "enable_lora": None,
        "merge_weights": False,
        "eva_config": ...,
        "corda_config": ...,
        "lora_bias": ...,
        "peft_version": ...,
    },
    "begun by EVA": {
        "init_lora_weights": "eva",
        "eva_config": {
            "rho": 2.0,
            "tau": 0.99,
            "use_label_mask": True,
            "label_mask_value": -100,
            "whiten": False,
            "adjust_scaling_factors": True,
        },
    },
    "a start of nothing": {"init_lora_weights": False},
    "an alpha of a half": {"lora_alpha": 0.5},
    "ranks by name": {"r": 2, "rank_pattern": {"q_proj": 4, "v_proj": 4}},
    "ranks by full name": {"rank_pattern": {"model.layers.0.self_attn.q_proj": 4}},
    "of a future that says nothing": {"use_mystery": None, "mystery_config": {}},
}


@pytest.mark.parametrize("name", GOOD)
def test_what_peft_and_others_write_passes(name: str, adapter: Make, demo_model: str) -> None:
    folder = adapter(**GOOD[name])
    check_adapter(folder, demo_model, "CAUSAL_LM", "--policy_adapter")
    Roles(load_base(demo_model, "fp32"), policy_adapter=folder)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("field", "value"),
    [("target_modules", "(([a-z_.0-9]+)+)+!|.*q_proj"), ("exclude_modules", "(.*)*(.*)*(.*)*9"),
     ("rank_pattern", {"(([a-z.0-9_]+)+)+!": 4}), ("alpha_pattern", {"(([a-z.0-9_]+)+)+!": 4})],
)  # fmt: skip
def test_a_pattern_without_end_is_stopped(
    field: str, value: Any, adapter: Make, demo_model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(adapter_config, "SECONDS", 0.5)
    folder = adapter(**{field: value})
    started = time.monotonic()
    with pytest.raises(InputError, match=f"{field}: .*takes more than .* on the names of"):
        check_adapter(folder, demo_model, "CAUSAL_LM", "--policy_adapter")
    assert time.monotonic() - started < 30  # and not for ever


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("key", ["lora_A", "lora_B"])
def test_weights_that_are_no_numbers_are_named_by_tensor_and_file(
    key: str, value: float, adapter: Make, demo_model: str
) -> None:
    folder = adapter()
    path = folder / "adapter_model.safetensors"
    state = load_file(path)
    name = next(k for k in state if key in k and "v_proj" in k)
    state[name][1, 1] = value
    save_file(state, path)
    said = f"adapter_model.safetensors: {name}: 1 of .* numbers are NaN or infinite"
    with pytest.raises(InputError, match=said):
        check_adapter(folder, demo_model, "CAUSAL_LM", "--policy_adapter")
    with pytest.raises(InputError, match=said):
        Roles(load_base(demo_model, "fp32"), policy_adapter=folder)
    with pytest.raises(InputError, match=said):
        merge_adapter(str(folder), demo_model, folder.parent / "merged", "fp32")


@pytest.mark.parametrize(
    ("start", "precision"), [("pissa", "fp32"), ("olora", "fp32"), ("olora", "4bit")]
)
def test_a_start_that_changes_the_base_is_seen_in_the_bases_weights(
    start: str, precision: str, demo_model: str
) -> None:
    """Where no file says so: a configuration that a script made."""
    lora = lora_config(4, 8, "q_proj", "CAUSAL_LM")
    lora.init_lora_weights = start  # type: ignore[assignment]
    with pytest.raises(InputError, match=r"new adapter: putting it on changed .*q_proj.weight of"):
        Roles(load_base(demo_model, precision), lora)


def test_a_saved_start_that_slips_through_is_seen_too(
    adapter: Make, demo_model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = adapter()

    def changed(*arguments: Any, **options: Any) -> Any:
        made = put(*arguments, **options)
        made.base_model.model.model.layers[1].mlp.up_proj.weight.data[3] += 1
        return made

    from toolkit.models import adapters

    put = adapters.put_adapter
    monkeypatch.setattr(adapters, "put_adapter", changed)
    with pytest.raises(InputError, match=r"adapter: putting it on changed .*layers.1.mlp.up_proj"):
        Roles(load_base(demo_model, "fp32"), policy_adapter=folder)


MERGES: dict[str, tuple[dict[str, Any], str]] = {
    "a kind of nobody's": ({"peft_type": "MYSTERY"}, 'peft_type is "MYSTERY"'),
    "no kind": ({"peft_type": ...}, "peft_type is null"),
    "a field of the future": (
        {"use_mystery": True},
        "'use_mystery' is not known to the installed peft",
    ),
    "Megatron's module": ({"megatron_core": "os"}, "megatron_core is"),
    "a rank of a billion": ({"r": 10**9}, "has rank"),
    "a base up the tree": ({"base_model_name_or_path": "../x"}, "base_model_name_or_path is"),
    "no pattern": ({"target_modules": "(q"}, "is not a regular expression"),
}


@pytest.mark.parametrize("name", MERGES)
def test_merging_takes_any_kind_but_not_any_configuration(
    name: str, adapter: Make, demo_model: str
) -> None:
    changes, said = MERGES[name]
    folder = adapter(**changes)
    with pytest.raises(InputError, match=said):
        merge_adapter(str(folder), demo_model, folder.parent / "merged", "fp32")
    assert not (folder.parent / "merged").exists()


def test_finite_weights_whose_products_are_not_are_told_of_as_such(
    adapter: Make, demo_model: str
) -> None:
    folder = adapter()
    path = folder / "adapter_model.safetensors"
    state = load_file(path)
    save_file({k: torch.full_like(v, 1e38) if "lora_B" in k else v for k, v in state.items()}, path)
    with pytest.raises(InputError, match="as the policy it has hidden states that are not fin"):
        Roles(load_base(demo_model, "fp32"), policy_adapter=folder)


@pytest.mark.parametrize("key", ["lora_A", "lora_B", "score"])
def test_a_weight_without_dimensions_is_named(key: str, adapter: Make, demo_model: str) -> None:
    folder = adapter(task_type="SEQ_CLS" if key == "score" else "CAUSAL_LM")
    path = folder / "adapter_model.safetensors"
    state = load_file(path) | {"base_model.model.score.weight": torch.ones(1, 128)}
    if key != "score":
        state.pop("base_model.model.score.weight")
    name = next(k for k in state if key in k)
    save_file(state | {name: torch.tensor(1.0)}, path)
    with pytest.raises(InputError, match=f"{name} is a single number"):
        check_adapter(folder, demo_model, "SEQ_CLS" if key == "score" else "CAUSAL_LM", "--adapter")
