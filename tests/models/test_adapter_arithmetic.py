"""Sums of adapters: against dense changes, against peft, and on the embedded model in fp64."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from toolkit.errors import Caution, InputError
from toolkit.maths.interpolation import slerp_in_turn
from toolkit.models.adapter_arithmetic import (
    LoraFile,
    add_ranks,
    inner_product,
    merge_adapters,
)
from toolkit.models.loading import load_base
from toolkit.models.roles import Roles
from toolkit.models.toolkit_json import adapter_digest, read_facts, start_of
from toolkit.random_state import torch_random_state

LAYER = "model.layers.0.self_attn.q_proj"
PREFIX = "base_model.model."
# Two changes of a layer and their scales (worked by hand).
B1, A1 = [[1.0, 0], [0, 2], [1, 1]], [[1.0, 2, 0, 1], [0, 1, 1, 0]]
B2, A2 = [[0.0, 1], [1, 0], [2, 0]], [[1.0, 0, 1, 0], [2, 1, 0, 1]]
IDS = torch.tensor([[5, 6, 7, 8, 9, 10, 11, 12], [40, 41, 5, 6, 7, 300, 301, 302]])
MASK = torch.ones_like(IDS, dtype=torch.bool)


def write(folder: Path, layers: dict[str, tuple[Any, Any]], **told: Any) -> Path:
    """An adapter's folder of these (B, A) by layer, with these fields of its configuration."""
    facts = {"start": None} | told.pop("facts", {})
    score = told.pop("score", None)
    folder.mkdir(parents=True)
    config = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": 2, "lora_alpha": 2,
              "target_modules": sorted({name.rpartition(".")[2] for name in layers}),
              "base_model_name_or_path": "some/base"} | told  # fmt: skip
    (folder / "adapter_config.json").write_text(json.dumps(config))
    state = {}
    for name, (b, a) in layers.items():
        state[f"{PREFIX}{name}.lora_A.weight"] = torch.as_tensor(a)
        state[f"{PREFIX}{name}.lora_B.weight"] = torch.as_tensor(b)
    if score is not None:
        state[f"{PREFIX}score.weight"] = score
    save_file({key: tensor.contiguous() for key, tensor in state.items()},
              folder / "adapter_model.safetensors")  # fmt: skip
    (folder / "toolkit.json").write_text(json.dumps(facts))
    return folder


def deltas(folder: Path) -> dict[str, Tensor]:
    """Each layer's dense change, in fp64."""
    layers = LoraFile.read(folder).layers
    return {name: f.scale * f.b.double() @ f.a.double() for name, f in layers.items()}


@pytest.fixture
def pair(tmp_path: Path) -> list[Path]:
    one = write(tmp_path / "one", {LAYER: (B1, A1)}, lora_alpha=4)
    return [one, write(tmp_path / "other", {LAYER: (B2, A2)})]


def test_the_mean_and_its_geometry_are_those_worked_by_hand(
    pair: list[Path], tmp_path: Path
) -> None:
    told = merge_adapters(pair, tmp_path / "mean").sentence()
    expected = torch.tensor([[2, 2.5, 0, 1.5], [0.5, 2, 2.5, 0], [2, 3, 2, 1]]).double()
    assert torch.equal(deltas(tmp_path / "mean")[LAYER], expected)
    assert "has rank 4 in 1 layer." in told and "57 to 57 degrees" in told

    one, other = (LoraFile.read(folder).layers[LAYER] for folder in pair)
    assert inner_product(one, other) == pytest.approx(22)
    assert math.sqrt(inner_product(one, one)) == pytest.approx(10.198039, abs=1e-6)
    assert inner_product(other, other) == pytest.approx(16)

    merge_adapters(pair, tmp_path / "half", "slerp")
    assert deltas(tmp_path / "half")[LAYER].norm().item() == pytest.approx(7.298650, abs=1e-6)
    merge_adapters(pair, tmp_path / "quarter", "slerp", [0.75, 0.25])
    assert deltas(tmp_path / "quarter")[LAYER].norm().item() == pytest.approx(8.952070, abs=1e-6)
    merge_adapters(pair, tmp_path / "lerp", weights=[0.75, 0.25])
    assert deltas(tmp_path / "lerp")[LAYER].norm().item() == pytest.approx(8.231039, abs=1e-6)


def test_the_folder_says_what_it_was_made_of(pair: list[Path], tmp_path: Path) -> None:
    merge_adapters(pair, tmp_path / "out", "slerp", [0.25, 0.75], scale=0.5)
    facts = read_facts(tmp_path / "out")
    assert facts["start"] is None
    assert facts["merged"] == {
        "how": "slerp",
        "scale": 0.5,
        "start": None,
        "parents": [
            {"adapter": str(folder), "digest": adapter_digest(folder), "weight": weight}
            for folder, weight in zip(pair, (0.25, 0.75), strict=True)
        ],
    }


@pytest.mark.parametrize("factor", [0.5, -1.0, 1.5, 0.0])
def test_a_factor_scales_the_change(factor: float, pair: list[Path], tmp_path: Path) -> None:
    merge_adapters(pair[:1], tmp_path / "out", scale=factor)
    expected = factor * deltas(pair[0])[LAYER]
    torch.testing.assert_close(deltas(tmp_path / "out")[LAYER], expected)


def test_from_a_starting_adapter_only_what_was_added_is_scaled_and_turned(
    tmp_path: Path,
) -> None:
    torch.manual_seed(0)
    start = write(tmp_path / "start", {LAYER: (torch.randn(3, 2), torch.randn(2, 4))})
    begun = {"facts": start_of(start)}
    parents = [
        write(tmp_path / name, {LAYER: (torch.randn(3, 2), torch.randn(2, 4))}, **begun)
        for name in "ab"
    ]
    zero, one, other = (deltas(folder)[LAYER] for folder in (start, *parents))
    away, far = one - zero, other - zero
    angle = torch.acos((away * far).sum() / away.norm() / far.norm())
    weight = torch.sin(angle / 2) / torch.sin(angle)

    merge_adapters(parents, tmp_path / "out", "slerp", scale=0.3, start=start)
    expected = zero + 0.3 * weight * (away + far)
    torch.testing.assert_close(deltas(tmp_path / "out")[LAYER], expected, atol=1e-6, rtol=1e-5)
    assert read_facts(tmp_path / "out")["start"] == adapter_digest(start)
    merge_adapters(parents, tmp_path / "link", "slerp", start=start, chained=True)
    assert read_facts(tmp_path / "link")["start"] is None  # as `start` itself

    merge_adapters(parents, tmp_path / "mean")
    torch.testing.assert_close(deltas(tmp_path / "mean")[LAYER], (one + other) / 2)
    assert read_facts(tmp_path / "mean")["start"] == adapter_digest(start)
    for how, scale in (("slerp", 1.0), ("linear", 0.5)):
        with pytest.raises(InputError, match="was trained from another adapter.*--start"):
            merge_adapters(parents, tmp_path / "no", how, scale=scale)  # type: ignore[arg-type]
    with pytest.raises(InputError, match=r"start: .*a is not the adapter that .*a was trained"):
        merge_adapters(parents, tmp_path / "no", "slerp", start=parents[0])


def test_new_ranks_change_nothing_until_they_are_trained(tmp_path: Path) -> None:
    torch.manual_seed(0)
    other = "model.layers.1.self_attn.q_proj"
    before = write(
        tmp_path / "before",
        {LAYER: (torch.randn(3, 2), torch.randn(2, 4)),
         other: (torch.randn(3, 1), torch.randn(1, 4))},
        lora_alpha=3, rank_pattern={"layers.1.self_attn.q_proj": 1},
    )  # fmt: skip
    add_ranks(before, tmp_path / "after", 5, scale=0.75, seed=3)
    added = LoraFile.read(tmp_path / "after")
    for name, change in deltas(before).items():
        torch.testing.assert_close(deltas(tmp_path / "after")[name], change)
        layer, old = added.layers[name], LoraFile.read(before).layers[name]
        assert layer.rank == old.rank + 5 and layer.scale == 0.75
        assert torch.equal(layer.a[: old.rank], old.a) and not layer.b[:, old.rank :].any()
        new = layer.a[old.rank :]
        assert new.abs().max() <= 0.5 and new.abs().mean() > 0.1  # 1 / sqrt(4)
    assert added.start == adapter_digest(before)
    add_ranks(before, tmp_path / "link", 5, scale=0.75, seed=3, chained=True)
    assert LoraFile.read(tmp_path / "link").start is None


def test_what_parents_have_from_their_start_is_written_once(tmp_path: Path) -> None:
    torch.manual_seed(0)
    before = write(tmp_path / "before", {LAYER: (torch.randn(3, 2), torch.randn(2, 4))})
    start = tmp_path / "start"
    add_ranks(before, start, 2, scale=2.0, seed=3)
    held = LoraFile.read(start).layers[LAYER]
    parents = []
    for i in range(3):  # each trains the two last ranks
        b, a = held.b.clone(), held.a.clone()
        b[:, 2:], a[2:] = torch.randn(3, 2), torch.randn(2, 4)
        told = {"r": 4, "lora_alpha": 8, "facts": start_of(start)}
        parents.append(write(tmp_path / f"p{i}", {LAYER: (b, a)}, **told))

    outcome = merge_adapters(parents, tmp_path / "out", "slerp", scale=0.3, start=start)
    assert outcome.ranks == {2 + 3 * 2: 1}
    zero = deltas(start)[LAYER]
    tasks = torch.stack([deltas(p)[LAYER] - zero for p in parents])
    weights = slerp_in_turn(torch.einsum("iab,jab->ij", tasks, tasks))
    expected = zero + 0.3 * torch.einsum("i,iab->ab", weights, tasks)
    torch.testing.assert_close(deltas(tmp_path / "out")[LAYER], expected, atol=1e-6, rtol=1e-5)
    between = torch.acos((tasks[0] * tasks[1]).sum() / tasks[0].norm() / tasks[1].norm())
    assert outcome.angles[LAYER] == pytest.approx(math.degrees(between), abs=1e-3)


# On the embedded model.


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("tiny")
    torch.manual_seed(0)
    LlamaForCausalLM(
        LlamaConfig(
            vocab_size=320,
            hidden_size=16,
            intermediate_size=24,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=1,
            max_position_embeddings=32,
        )
    ).save_pretrained(folder)
    return str(folder)


Saved = Callable[..., Path]
# Ranks, scales and layers of all kinds that two parents may have.
MIXED: list[dict[str, Any]] = [
    {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj", "lm_head"],
     "rank_pattern": {"layers.1.self_attn.v_proj": 2}, "alpha_pattern": {"q_proj": 3}},
    {"r": 3, "lora_alpha": 5, "use_rslora": True, "target_modules": ["q_proj", "up_proj"],
     "layers_to_transform": [0]},
    {"r": 2, "lora_alpha": 2, "target_modules": ["embed_tokens", "q_proj"]},
]  # fmt: skip


@pytest.fixture
def saved(tmp_path: Path) -> Saved:
    """Writes an adapter as plain peft saves it, every weight of it moved."""

    def make(base: str, name: str, seed: int, **told: Any) -> Path:
        from peft import LoraConfig, get_peft_model

        config = LoraConfig(task_type="CAUSAL_LM", **told)
        model = get_peft_model(AutoModelForCausalLM.from_pretrained(base), config)
        generator = torch.Generator().manual_seed(seed)
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.data = 0.3 * torch.randn(parameter.shape, generator=generator)
        model.save_pretrained(str(tmp_path / name), save_embedding_layers=False)
        (tmp_path / name / "toolkit.json").write_text('{"start": null}')
        return tmp_path / name

    return make


@torch.no_grad()
def logprobs(model: Any) -> Tensor:
    logits = model.eval()(input_ids=IDS).logits[:, 3:7]
    return logits.log_softmax(-1).gather(-1, IDS[:, 4:, None]).squeeze(-1)


def by_hand(base: str, folders: list[Path], weights: list[float]) -> Tensor:
    """Log-probs fp64 of the base with the sum of the changes written into its weights."""
    model: Any = AutoModelForCausalLM.from_pretrained(base).double()
    head = model.get_output_embeddings()
    if head.weight is model.get_input_embeddings().weight:
        head.weight = torch.nn.Parameter(head.weight.detach().clone())
    for folder, weight in zip(folders, weights, strict=True):
        config = json.loads((folder / "adapter_config.json").read_text())
        state = load_file(folder / "adapter_model.safetensors")
        for key, a in state.items():
            if ".lora_A." not in key and not key.endswith("lora_embedding_A"):
                continue
            b = state[key.replace("_A", "_B")].double()
            name = key.removeprefix(PREFIX).partition(".lora_")[0]
            alpha = next((v for k, v in config["alpha_pattern"].items() if name.endswith(k)),
                         config["lora_alpha"])  # fmt: skip
            rank = len(a)
            scale = alpha / math.sqrt(rank) if config["use_rslora"] else alpha / rank
            change = scale * b @ a.double()
            module = model.get_submodule(name)
            module.weight.data += weight * (change.T if "embedding" in key else change)
    return logprobs(model)


def test_a_merged_folder_is_the_sum_of_the_changes_in_plain_peft_and_here(
    tiny: str, saved: Saved, tmp_path: Path
) -> None:
    folders = [saved(tiny, f"p{i}", i, **told) for i, told in enumerate(MIXED)]
    weights = [0.5, -0.25, 1.5]
    merge_adapters(folders, tmp_path / "sum", weights=weights)
    expected = by_hand(tiny, folders, weights)
    alone = by_hand(tiny, folders[:1], [1.0])
    assert (expected - alone).abs().max() > 0.1

    model: Any = AutoModelForCausalLM.from_pretrained(tiny).double()
    model = PeftModel.from_pretrained(model, str(tmp_path / "sum")).double()
    torch.testing.assert_close(logprobs(model), expected, atol=2e-6, rtol=0)

    roles = Roles(load_base(tiny, "fp32"), policy_adapter=tmp_path / "sum", checked=False)
    outputs = roles.policy_outputs(IDS, MASK, IDS[:, 4:], 1.0)
    torch.testing.assert_close(outputs.logprobs.double(), expected, atol=2e-5, rtol=0)


def test_on_the_embedded_model_a_mean_is_the_mean_of_the_changes(
    demo_model: str, saved: Saved, tmp_path: Path
) -> None:
    told: dict[str, Any] = {"r": 4, "lora_alpha": 8, "target_modules": "all-linear"}
    folders = [saved(demo_model, f"p{i}", i, **told) for i in range(2)]
    before = torch_random_state()["cpu"].clone()
    merge_adapters(folders, tmp_path / "mean")
    assert torch.equal(before, torch_random_state()["cpu"])  # it draws nothing
    config = json.loads((tmp_path / "mean" / "adapter_config.json").read_text())
    assert config["r"] == config["lora_alpha"] == 8 and not config["rank_pattern"]
    assert config["target_modules"] == json.loads(
        (folders[0] / "adapter_config.json").read_text()
    )["target_modules"]  # fmt: skip

    expected = by_hand(demo_model, folders, [0.5, 0.5])
    roles = Roles(load_base(demo_model, "fp32"), policy_adapter=tmp_path / "mean", checked=False)
    found = roles.policy_outputs(IDS, MASK, IDS[:, 4:], 1.0).logprobs.double()
    torch.testing.assert_close(found, expected, atol=5e-5, rtol=0)


def test_pefts_own_concatenation_agrees(tiny: str, saved: Saved, tmp_path: Path) -> None:
    told: list[dict[str, Any]] = [
        {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj"]},
        {"r": 2, "lora_alpha": 3, "use_rslora": True, "target_modules": ["q_proj", "v_proj"]},
    ]
    folders = [
        saved(tiny, name, i, **t) for i, (name, t) in enumerate(zip("ab", told, strict=True))
    ]
    model: Any = AutoModelForCausalLM.from_pretrained(tiny)
    model = PeftModel.from_pretrained(model, str(folders[0]), adapter_name="a")
    model.load_adapter(str(folders[1]), adapter_name="b")
    model.add_weighted_adapter(["a", "b"], [0.7, 0.4], "both", combination_type="cat")
    model.set_adapter("both")
    expected = logprobs(model)

    merge_adapters(folders, tmp_path / "sum", weights=[0.7, 0.4])
    merged = PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(tiny), str(tmp_path / "sum")
    )
    torch.testing.assert_close(logprobs(merged), expected, atol=1e-5, rtol=0)


# Reward adapters.


def reward(folder: Path, score: Tensor, a: Tensor, b: Tensor, **facts: Any) -> Path:
    known: dict[str, Any] = {"head_seed": 3, "gain": 2.0, "bias": 1.0, "ends_with": None}
    layer = {LAYER: (b, a)}
    return write(folder, layer, task_type="SEQ_CLS", modules_to_save=["score"], score=score,
                 facts=known | facts)  # fmt: skip


def test_reward_adapters_of_one_trunk_merge_to_the_mean_of_their_scores(
    tiny: str, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    a, b = torch.randn(2, 16), torch.randn(16, 2)
    heads = torch.randn(2, 1, 16)
    base = {"base_model_name_or_path": tiny, "layers_to_transform": [0]}
    folders = []
    for i, (gain, bias) in enumerate([(2.0, 1.0), (0.5, -3.0)]):
        folder = reward(tmp_path / f"r{i}", heads[i], a, b, gain=gain, bias=bias)
        config = json.loads((folder / "adapter_config.json").read_text()) | base
        (folder / "adapter_config.json").write_text(json.dumps(config))
        folders.append(folder)
    merge_adapters(folders, tmp_path / "warm", weights=[0.25, 0.75])

    def scores(folder: Path) -> Tensor:
        roles = Roles(load_base(tiny, "fp32"), reward_adapter=folder, checked=False)
        with torch.no_grad():
            return roles.scores(IDS, MASK)

    expected = 0.25 * scores(folders[0]) + 0.75 * scores(folders[1])
    torch.testing.assert_close(scores(tmp_path / "warm"), expected, atol=1e-5, rtol=1e-5)
    assert read_facts(tmp_path / "warm")["gain"] == 1.0


def test_rewards_whose_heads_did_not_begin_as_one_are_refused(tmp_path: Path) -> None:
    torch.manual_seed(0)
    parts = torch.randn(1, 4), torch.randn(2, 4), torch.randn(3, 2)
    one = reward(tmp_path / "one", *parts)
    for i, (facts, said) in enumerate(
        [
            ({"head_seed": 4}, r"did not begin as one \(head_seed.*: 3, 4"),
            ({"ends_with": "</s>"}, "read texts differently"),
        ]
    ):
        other = reward(tmp_path / f"other{i}", *parts, **facts)
        with pytest.raises(InputError, match=said):
            merge_adapters([one, other], tmp_path / "out")
    same = reward(tmp_path / "same", *parts)
    with pytest.raises(InputError, match="weighted mean alone"):
        merge_adapters([one, same], tmp_path / "out", "slerp")
    with pytest.raises(InputError, match="weighted mean alone"):
        merge_adapters([one, same], tmp_path / "out", scale=0.5)
    policy = write(tmp_path / "policy", {LAYER: (B1, A1)})
    with pytest.raises(InputError, match="one is a reward adapter, the other a policy"):
        merge_adapters([one, policy], tmp_path / "out")
    assert not (tmp_path / "out").exists()


# What is refused.


@pytest.mark.parametrize(
    ("told", "said"),
    [
        ({"base_model_name_or_path": "another/base"}, "trained on other bases"),
        ({"facts": {"start": "0123456789abcdef"}}, "trained from other starting adapters"),
        ({"facts": {"chat_template": "x"}}, "read texts differently"),
        ({"use_dora": True}, "is DoRA"),
        ({"lora_bias": True}, "has biases in LoRA"),
        ({"target_parameters": ["experts.up"]}, "has LoRA on experts"),
        ({"revision": "v2"}, "revision differs"),
        ({"r": 3}, "has rank 2, but"),
    ],
)
def test_parents_without_an_exact_sum_are_refused_by_name(
    told: dict[str, Any], said: str, pair: list[Path], tmp_path: Path
) -> None:
    odd = write(tmp_path / "odd", {LAYER: (B2, A2)}, **told)
    with pytest.raises(InputError, match=said):
        merge_adapters([pair[0], odd], tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("key", "config", "said"),
    [
        ("model.norm.weight", {"modules_to_save": ["norm"]}, "modules trained whole"),
        (f"{LAYER}.bias", {"bias": "all"}, "biases"),
        ("model.embed_tokens.token_adapter.trainable_tokens_delta", {}, "rows of the embedding"),
        ("model.norm.weight", {}, "unknown"),
        (f"{LAYER}.lora_magnitude_vector", {}, "a kind of LoRA that has no exact sum"),
    ],
)
def test_weights_beside_lora_are_refused_by_name(
    key: str, config: dict[str, Any], said: str, pair: list[Path], tmp_path: Path
) -> None:
    odd = write(tmp_path / "odd", {LAYER: (B2, A2)}, **config)
    state = load_file(odd / "adapter_model.safetensors")
    save_file(state | {PREFIX + key: torch.ones(4)}, odd / "adapter_model.safetensors")
    with pytest.raises(InputError, match=said):
        merge_adapters([pair[0], odd], tmp_path / "out")


def test_weights_that_do_not_fit_are_refused(pair: list[Path], tmp_path: Path) -> None:
    for how, weights, said in (
        ("linear", [1.0], "1 for 2 adapters"),
        ("slerp", [0.5, 0.6], "shares that sum to 1"),
        ("slerp", [1.5, -0.5], "shares that sum to 1"),
    ):
        with pytest.raises(InputError, match=said):
            merge_adapters(pair, tmp_path / "out", how, weights)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="two adapters only"):
        merge_adapters([*pair, pair[0]], tmp_path / "out", "slerp", [0.2, 0.3, 0.5])

    minus = write(tmp_path / "minus", {LAYER: ((-torch.tensor(B1)).tolist(), A1)})
    with pytest.raises(InputError, match=f"changes of {LAYER}: they point in opposite"):
        merge_adapters([pair[0], minus], tmp_path / "out", "slerp")


def test_an_adapter_that_does_not_say_its_start_is_taken_from_the_base_with_a_warning(
    pair: list[Path], tmp_path: Path
) -> None:
    (pair[0] / "toolkit.json").unlink()
    with pytest.warns(Caution, match="does not say what it was trained from"):
        merge_adapters(pair[:1], tmp_path / "half", scale=0.5)


def test_three_parents_with_different_layers_are_turned_layer_by_layer(tmp_path: Path) -> None:
    torch.manual_seed(0)
    other = "model.layers.1.self_attn.q_proj"
    names = [[LAYER, other], [LAYER], [LAYER, other]]
    parents = [
        write(tmp_path / str(i), {n: (torch.randn(3, 2), torch.randn(2, 4)) for n in held})
        for i, held in enumerate(names)
    ]
    merge_adapters(parents, tmp_path / "out", "slerp")
    found, held = deltas(tmp_path / "out"), [deltas(p) for p in parents]

    def slerp(a: Tensor, b: Tensor, share: float) -> Tensor:
        if not a.any() or not b.any():
            return (1 - share) * a + share * b
        angle = torch.acos((a * b).sum() / a.norm() / b.norm())
        return (torch.sin((1 - share) * angle) * a + torch.sin(share * angle) * b) / angle.sin()

    zero = torch.zeros(3, 4).double()
    for name in (LAYER, other):
        first, second, third = (h.get(name, zero) for h in held)
        expected = slerp(slerp(first, second, 1 / 2), third, 1 / 3)
        torch.testing.assert_close(found[name], expected, atol=1e-6, rtol=1e-5)
    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert config["rank_pattern"] in ({rf"^{other}".replace(".", r"\."): 4},
                                      {rf"^{LAYER}".replace(".", r"\."): 6})  # fmt: skip
