"""Estimates: near what is counted, by the sizes of layers."""

from typing import Any

import pytest
import transformers
from transformers import (
    LlamaConfig,
    MistralConfig,
    MixtralConfig,
    Qwen3_5TextConfig,
    Qwen3MoeConfig,
)

from tests.models.conftest import LINEAR, SMALL, WIDE_CONFIGS, kept, no_count, plan_of
from toolkit.models import memory
from toolkit.models.memory_estimate import estimate_cache, number_in


@pytest.mark.slow
@pytest.mark.parametrize("value", ["trunk", "adapter"])
@pytest.mark.parametrize("checkpointing", [False, True], ids=["kept", "recomputed"])
@pytest.mark.parametrize("name", WIDE_CONFIGS)
def test_an_estimate_is_near_what_is_counted(
    name: str, checkpointing: bool, value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    counted = plan_of(WIDE_CONFIGS[name], 4, checkpointing, value=value)
    monkeypatch.setattr(memory, "count_kept", no_count)
    monkeypatch.setattr(memory, "count_cache", no_count)
    estimated = plan_of(WIDE_CONFIGS[name], 4, checkpointing, value=value)
    assert counted.counted and not estimated.counted
    assert estimated.lines()[0] == "estimated from sizes (needs real numbers)"
    assert estimated.held == counted.held
    assert 0.75 < kept(estimated) / kept(counted) < 1.4
    assert 0.75 < estimated.peak / counted.peak < 1.3
    caches = [plan.phases["sampling"]["KV cache"] for plan in (estimated, counted)]
    assert caches[0] == pytest.approx(caches[1], rel=0.01)


def test_cache_is_estimated_by_the_kinds_of_layers() -> None:
    """Buffers of keys have full length, with a window, too; states do not grow at all."""
    full, slides = LlamaConfig(**SMALL), MistralConfig(**SMALL, sliding_window=6)
    hybrid = Qwen3_5TextConfig(**SMALL, **LINEAR, head_dim=8)
    assert estimate_cache(full, 2, 64, 4) == 2 * estimate_cache(full, 2, 32, 4)
    assert estimate_cache(slides, 2, 64, 4) == estimate_cache(full, 2, 64, 4)
    grown = estimate_cache(hybrid, 2, 64, 4) - estimate_cache(hybrid, 2, 32, 4)
    assert grown == estimate_cache(full, 2, 32, 4) // 2  # one of its two layers has keys


def test_a_model_that_cannot_be_made_is_planned_by_its_numbers(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def broken(*args: Any, **kwargs: Any) -> None:
        raise ImportError("needs a package")

    whole = plan_of(MixtralConfig(**SMALL, num_local_experts=4), 4)
    config = Qwen3MoeConfig(**SMALL, num_experts=4, moe_intermediate_size=48, head_dim=8)
    monkeypatch.setattr(transformers.Qwen3MoeForCausalLM, "__init__", broken)
    plan = plan_of(config, 4)
    assert not plan.counted and "needs a package" in plan.facts["kind"]
    assert plan.held["base (fp32)"] == whole.held["base (fp32)"]


def test_a_number_is_the_first_field_that_is_set_and_the_most_where_layers_differ() -> None:
    config = LlamaConfig(intermediate_size=48)
    config.n_inner, config.sizes, config.nothing = 7, [3, None, 5], 0
    assert number_in(config, "missing", "nothing", "intermediate_size", "n_inner") == 48
    assert number_in(config, "sizes") == 5
    assert number_in(config, "missing", "nothing") is None
