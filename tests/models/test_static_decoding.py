"""Steps of one shape: the growing step's numbers, and nothing that a graph would freeze."""

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as tf
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from toolkit.maths.sequences import pad
from toolkit.models import generation, static_decoding
from toolkit.models.adapters import lora_config
from toolkit.models.generation import Sampled, Step, draw_uniforms, sample, step_of
from toolkit.models.loading import load_base
from toolkit.models.roles import Roles
from toolkit.models.static_decoding import (
    StaticMasks,
    can_be_captured,
    room_for,
    static_cache,
    windows_of,
)

SMALL: dict[str, Any] = {
    "vocab_size": 64,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 48,
    "max_position_embeddings": 128,
    "initializer_range": 0.08,
    "bos_token_id": None,
    "eos_token_id": 1,
    "pad_token_id": 0,
}
TWO_KINDS = ["sliding_attention", "full_attention"]
MIXTURE = {"num_local_experts": 4, "num_experts_per_tok": 2}
# One family for each way in which a step may differ.
STATIC: dict[str, Callable[[], Any]] = {
    "grouped heads": lambda: tf.LlamaForCausalLM(tf.LlamaConfig(**SMALL)),
    "one window": lambda: tf.MistralForCausalLM(tf.MistralConfig(**SMALL, sliding_window=6)),
    "windows in some layers": lambda: tf.Gemma3ForCausalLM(
        tf.Gemma3TextConfig(**SMALL, head_dim=8, sliding_window=6, layer_types=TWO_KINDS)
    ),
    "keys of earlier layers": lambda: tf.Gemma4ForCausalLM(
        tf.Gemma4TextConfig(
            **SMALL | {"num_hidden_layers": 4},
            vocab_size_per_layer_input=64,
            hidden_size_per_layer_input=8,
            head_dim=8,
            global_head_dim=8,
            sliding_window=6,
            num_kv_shared_layers=2,
            layer_types=TWO_KINDS * 2,
        )
    ),
    "eager attention with sinks": lambda: tf.GptOssForCausalLM(
        tf.GptOssConfig(**SMALL, **MIXTURE, head_dim=8, sliding_window=6, layer_types=TWO_KINDS)
    ),
    "learned positions": lambda: tf.GPT2LMHeadModel(
        tf.GPT2Config(n_embd=32, n_layer=2, n_head=4, vocab_size=64, n_positions=64)
    ),
    "compressed keys": lambda: tf.DeepseekV3ForCausalLM(
        tf.DeepseekV3Config(
            **SMALL | {"num_key_value_heads": 4},
            q_lora_rank=16,
            kv_lora_rank=16,
            qk_rope_head_dim=8,
            qk_nope_head_dim=8,
            v_head_dim=8,
            n_routed_experts=4,
            num_experts_per_tok=2,
            n_group=1,
            topk_group=1,
            moe_intermediate_size=16,
            first_k_dense_replace=1,
        )
    ),
}
GROWING: dict[str, Callable[[], Any]] = {
    "states": lambda: tf.MambaForCausalLM(
        tf.MambaConfig(vocab_size=64, hidden_size=32, num_hidden_layers=2, state_size=8)
    ),
    "biases of the whole mask": lambda: tf.BloomForCausalLM(
        tf.BloomConfig(vocab_size=64, hidden_size=32, n_layer=2, n_head=4)
    ),
    "windows of its own making": lambda: tf.GPTNeoForCausalLM(
        tf.GPTNeoConfig(
            vocab_size=64,
            hidden_size=32,
            num_layers=2,
            num_heads=4,
            attention_types=[[["global", "local"], 1]],
            window_size=6,
        )
    ),
}
PROMPTS = [[5, 6, 7, 8, 9, 10, 11], [40, 41, 42, 43], [50, 51, 52, 53, 54, 55]]
NEW = 24


@dataclass(frozen=True)
class Growing(Step):
    """A step that keeps transformers' caches."""

    @property
    def is_static(self) -> bool:
        return False


class Recorder(TorchDispatchMode):
    """A captured graph, played on a CPU: operations, run again on the tensors they had."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, ...]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.overloadpacket.__name__ == "_local_scalar_dense":
            raise RuntimeError("the host asks the device, which no capture allows")
        made = func(*args, **(kwargs or {}))
        self.calls.append((func, args, kwargs or {}, made))
        return made

    def replay(self) -> None:
        for func, args, kwargs, made in self.calls:
            again = func(*args, **kwargs)
            for old, new in zip(tree_leaves(made), tree_leaves(again), strict=True):
                if isinstance(old, Tensor) and old.data_ptr() != new.data_ptr():
                    old.copy_(new)


def recorded(model: nn.Module, step: Callable[[], None], device: torch.device) -> Any:
    """In the place of ``replayed``: the first call records, the others replay."""
    recorder = Recorder()

    def run() -> None:
        if recorder.calls:
            recorder.replay()
        else:
            with recorder:
                step()

    return run


def roles_on(make: Callable[[], Any], folder: Path) -> Roles:
    torch.manual_seed(0)
    make().save_pretrained(folder)
    lora = lora_config(4, 8, "all-linear", "CAUSAL_LM")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        roles = Roles(load_base(str(folder), "fp32"), lora, value="trunk", checked=False)
    assert roles.value_head is not None
    nn.init.normal_(roles.value_head.weight, std=0.1)
    for name, parameter in roles.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, std=0.05)
    return roles


def drawn(step: Step, stops: tuple[int, ...] = ()) -> Sampled:
    noise = draw_uniforms(len(PROMPTS), NEW, torch.Generator().manual_seed(1))
    return sample(step, *pad(PROMPTS, 0, "left"), noise, 0.7, 0, stops)


def assert_equal(found: Sampled, expected: Sampled) -> None:
    assert torch.equal(found.completion_ids, expected.completion_ids)
    assert torch.equal(found.mask, expected.mask)
    assert (found.logprobs - expected.logprobs).abs().max() < 5e-6
    assert found.values is not None and expected.values is not None
    assert (found.values - expected.values).abs().max() < 1e-5


def growing(step: Step) -> Step:
    return Growing(step.run, step.model, step.exact)


@pytest.mark.parametrize("stops", [(), (7, 9)], ids=["", "stops"])
@pytest.mark.parametrize("family", STATIC)
def test_steps_of_one_shape_draw_what_growing_steps_draw(
    family: str, stops: tuple[int, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The widths are small here, so that a step's shape changes on the way."""
    monkeypatch.setattr(static_decoding, "WIDTHS", {"cpu": 16, "cuda": 16})
    step = roles_on(STATIC[family], tmp_path).step()
    assert step.is_static
    assert_equal(drawn(step, stops), drawn(growing(step), stops))


@pytest.mark.parametrize("family", STATIC)
def test_a_replayed_step_draws_what_a_growing_step_draws(
    family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A graph knows nothing of Python: a number that the host would have to change shows here."""
    monkeypatch.setattr(static_decoding, "WIDTHS", {"cpu": 16, "cuda": 16})
    monkeypatch.setattr(generation, "replayed", recorded)
    step = roles_on(STATIC[family], tmp_path).step()
    assert_equal(drawn(step), drawn(growing(step)))


@pytest.mark.parametrize("family", GROWING)
def test_families_whose_steps_have_no_fixed_shape_keep_the_growing_one(
    family: str, tmp_path: Path
) -> None:
    make = GROWING[family]
    torch.manual_seed(0)
    model = make().eval()
    assert not step_of(model).is_static


def test_a_step_that_asks_the_cache_how_far_it_is_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A graph would freeze the answer. So the answer never changes, and the trial sees that."""
    step = roles_on(STATIC["learned positions"], tmp_path).step()

    def asks(inputs: Tensor, mask: Any, positions: Tensor, cache: Any) -> Any:
        first = cache.get_seq_length()
        own = torch.arange(first, first + inputs.shape[1]).expand(inputs.shape)
        return step.run(inputs, mask, own, cache)

    assert not Step(asks, step.model.__class__(step.config).eval()).is_static
    assert step.is_static


def test_the_trial_reaches_beyond_wide_windows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A window that a few tokens would never fill is narrowed for the trial, and then restored."""
    windows = tf.MistralConfig(**SMALL, sliding_window=64)
    roles = roles_on(lambda: tf.MistralForCausalLM(windows), tmp_path)
    assert roles.step().is_static and roles.step().config.sliding_window == 64

    def forgets(masks: StaticMasks, window: int | None, slot: Tensor, width: int) -> Tensor:
        return masks.real[..., :width]

    monkeypatch.setattr(StaticMasks, "_narrowed", forgets)
    again = roles_on(lambda: tf.MistralForCausalLM(windows), tmp_path)
    assert not again.step().is_static


def test_under_autocast_steps_of_one_shape_differ_by_rounding_alone(tmp_path: Path) -> None:
    roles = roles_on(STATIC["grouped heads"], tmp_path)
    roles.autocast_dtype = torch.bfloat16
    step = roles.step()
    found, expected = drawn(step), drawn(growing(step))
    same = (found.completion_ids == expected.completion_ids).long().cumprod(dim=1).bool()
    assert same.float().mean() > 0.5
    assert (found.logprobs - expected.logprobs)[same].abs().max() < 0.1


def test_a_window_hides_what_lies_before_it() -> None:
    """Against the definition: a query at q reads k where k <= q and k > q - window."""
    prompt = torch.tensor([[False, True, True], [True, True, True]])
    masks = StaticMasks(prompt, 16, torch.float32, [None, 3])
    for q in range(3, 9):
        both: Any = masks.at(torch.tensor([q]), 12)
        for kind, window in (("full_attention", 99), ("sliding_attention", 3)):
            real = torch.cat([prompt, torch.ones(2, 9, dtype=torch.bool)], dim=1)
            k = torch.arange(12)
            expected = real & (k <= q) & (k > q - window)
            assert torch.equal(both[kind][:, 0, 0] == 0, expected)


def test_what_the_host_must_decide_is_not_captured(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = tf.LlamaForCausalLM(tf.LlamaConfig(**SMALL))
    assert can_be_captured(plain)
    assert not can_be_captured(tf.MixtralForCausalLM(tf.MixtralConfig(**SMALL, **MIXTURE)))
    rope = {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}
    assert not can_be_captured(tf.LlamaForCausalLM(tf.LlamaConfig(**SMALL, rope_parameters=rope)))

    # A base that is sharded after it was sampled: this stands in for FSDP's own class.
    monkeypatch.setattr(static_decoding, "FSDPModule", tf.LlamaModel)
    assert not can_be_captured(plain)


def test_chunks_and_states_get_no_buffer_and_windows_are_listed_once() -> None:
    chunks = tf.Llama4TextConfig(**SMALL, num_local_experts=2, attention_chunk_size=4)
    assert static_cache(chunks, 32) is None
    assert static_cache(tf.MambaConfig(num_hidden_layers=2), 32) is None
    assert static_cache(tf.LlamaConfig(**SMALL), 32) is not None
    assert windows_of(tf.LlamaConfig(**SMALL)) == [None]
    assert windows_of(tf.MistralConfig(**SMALL, sliding_window=6)) == [6]
    both = tf.Gemma3TextConfig(**SMALL, sliding_window=6, layer_types=TWO_KINDS)
    assert windows_of(both) == [None, 6]


def test_a_buffer_is_a_multiple_of_what_kernels_align_to() -> None:
    assert [room_for(tokens) for tokens in (1, 16, 17, 120)] == [16, 16, 32, 128]
