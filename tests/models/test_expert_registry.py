"""Registries of experts: what is kept, and which experts are refused, by name."""

import json
from pathlib import Path

import pytest
import torch

from tests.models.test_adapter_arithmetic import LAYER, write
from toolkit.errors import InputError
from toolkit.models.expert_registry import (
    Expert,
    check_experts,
    read_registry,
    with_expert,
    write_registry,
)
from toolkit.models.toolkit_json import adapter_digest

LIBRARY = [{"prompt": "On Monday we visited the hotel."}, {"prompt": "We went to the hotel."}]


def expert(folder: Path, name: str, **told: object) -> Expert:
    torch.manual_seed(len(name))
    adapter = write(folder / name, {LAYER: (torch.randn(3, 2), torch.randn(2, 4))}, **told)
    return Expert.of(name, str(adapter), LIBRARY)


def test_a_registry_comes_back_as_it_was_written(tmp_path: Path) -> None:
    experts = [expert(tmp_path, "hotel"), expert(tmp_path, "cafe")]
    write_registry(tmp_path / "experts.jsonl", experts)
    found = read_registry(tmp_path / "experts.jsonl")
    assert found == experts
    assert found[0].digest == adapter_digest(tmp_path / "hotel")


def test_an_expert_of_the_same_name_is_replaced_only_when_asked(tmp_path: Path) -> None:
    hotel, cafe = expert(tmp_path, "hotel"), expert(tmp_path, "cafe")
    other = Expert.of("hotel", cafe.adapter, LIBRARY[:1])
    with pytest.raises(InputError, match="there is an expert hotel"):
        with_expert([hotel, cafe], other, overwrite=False)
    assert with_expert([hotel, cafe], other, overwrite=True) == [other, cafe]
    assert with_expert([hotel], cafe, overwrite=False) == [hotel, cafe]


@pytest.mark.parametrize(
    ("told", "said"),
    [
        ({"base_model_name_or_path": "another/base"}, "trained on other bases"),
        ({"facts": {"start": "0123456789abcdef"}}, "trained from other starting adapters"),
        ({"facts": {"start": None, "trained_on": "messages"}}, "read texts differently"),
    ],
)
def test_experts_that_have_no_common_sum_are_refused_by_name(
    tmp_path: Path, told: dict[str, object], said: str
) -> None:
    hotel, odd = expert(tmp_path, "hotel"), expert(tmp_path, "odd", **told)
    with pytest.raises(InputError, match=said) as raised:
        with_expert([hotel], odd, overwrite=False)
    assert "hotel" in str(raised.value) and "odd" in str(raised.value)


def test_a_reward_adapter_is_no_expert(tmp_path: Path) -> None:
    reward = expert(tmp_path, "rm", task_type="SEQ_CLS", score=torch.ones(1, 4))
    with pytest.raises(InputError, match="expert rm: .* is a reward adapter"):
        check_experts([reward])


def test_an_adapter_that_changed_or_went_is_noticed(tmp_path: Path) -> None:
    hotel = expert(tmp_path, "hotel")
    write_registry(tmp_path / "experts.jsonl", [hotel])
    again = expert(tmp_path / "new", "other name")
    weights = Path(again.adapter, "adapter_model.safetensors").read_bytes()
    Path(hotel.adapter, "adapter_model.safetensors").write_bytes(weights)
    with pytest.raises(InputError, match=r"experts.jsonl:1: adapter: .*hotel has changed since"):
        read_registry(tmp_path / "experts.jsonl")
    Path(hotel.adapter, "adapter_model.safetensors").unlink()
    with pytest.raises(InputError, match="is not the folder of an adapter"):
        read_registry(tmp_path / "experts.jsonl")
    # Only the one that is being replaced may be so.
    assert read_registry(tmp_path / "experts.jsonl", replaced="hotel") == [hotel]
    with pytest.raises(InputError, match="is not the folder of an adapter"):
        read_registry(tmp_path / "experts.jsonl", replaced="cafe")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"name": ""}, ":1: name: ''"),
        ({"library": []}, ":1: library: "),
        ({"library": [{"text": "x"}]}, ":1: library: a row has no prompt"),
        ({"digest": None}, ":1: digest: None"),
    ],
)
def test_a_broken_row_is_named_with_its_line(
    tmp_path: Path, change: dict[str, object], said: str
) -> None:
    row = dict(vars(expert(tmp_path, "hotel"))) | change
    (tmp_path / "experts.jsonl").write_text(json.dumps(row) + "\n")
    with pytest.raises(InputError, match=said):
        read_registry(tmp_path / "experts.jsonl")


def test_an_empty_registry_and_a_second_name_are_refused(tmp_path: Path) -> None:
    hotel = expert(tmp_path, "hotel")
    write_registry(tmp_path / "experts.jsonl", [hotel, hotel])
    with pytest.raises(InputError, match=":2: name: a second 'hotel'"):
        read_registry(tmp_path / "experts.jsonl")
    (tmp_path / "experts.jsonl").write_text("\n")
    with pytest.raises(InputError, match="holds no expert"):
        read_registry(tmp_path / "experts.jsonl")
