"""Contenders made of others: what is read, what is refused, and what is written."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.models.test_adapter_arithmetic import LAYER, deltas, write
from toolkit.errors import InputError
from toolkit.evaluation.merged import Merged, is_merged, parse_merged, split_factors, written
from toolkit.models.toolkit_json import start_of


def no_names(word: str) -> None:
    return None


@pytest.fixture
def ab(tmp_path: Path) -> tuple[Path, Path]:
    torch.manual_seed(0)
    one, other = (
        write(tmp_path / name, {LAYER: (torch.randn(3, 2), torch.randn(2, 4))}) for name in "ab"
    )
    return one, other


def change(expression: str) -> Tensor:
    with written(parse_merged(expression, no_names), "contenders") as folder:
        return deltas(folder)[LAYER]


@pytest.mark.parametrize(
    ("what", "head", "factors"),
    [
        ("a/b*0.5", "a/b", [0.5]),
        ("a/b * -.5, 1,2e-1", "a/b", [-0.5, 1, 0.2]),
        ("run/checkpoint-*", "run/checkpoint-*", []),
        ("run/checkpoint-*0", "run/checkpoint-*0", []),
        ("run/checkpoint-000040*0.5", "run/checkpoint-000040", [0.5]),
        ("slerp(a*2,b)*0.75", "slerp(a*2,b)", [0.75]),
        ("a/b", "a/b", []),
        ("org/model", "org/model", []),
    ],
)
def test_factors_are_told_from_wildcards(what: str, head: str, factors: list[float]) -> None:
    assert split_factors(what) == (head, factors)
    assert is_merged(what) == bool(factors)


def test_a_folder_with_such_a_name_is_a_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("a*2").mkdir()
    Path("mean(a,b)").mkdir()
    assert not is_merged("a*2") and not is_merged("mean(a,b)") and is_merged("b*2")


def test_expressions_are_the_changes_that_they_say(ab: tuple[Path, Path]) -> None:
    one, other = (deltas(folder)[LAYER] for folder in ab)
    a, b = map(str, ab)
    torch.testing.assert_close(change(f"{a}*-0.5"), -0.5 * one)
    torch.testing.assert_close(change(f"mean({a}, {b})"), (one + other) / 2)
    torch.testing.assert_close(change(f"mean({a}*0.5,mean({a},{b}))*2"), one + other / 2)
    angle = torch.acos((one * other).sum() / one.norm() / other.norm())
    turned = (one + other) * torch.sin(angle / 2) / torch.sin(angle)
    torch.testing.assert_close(change(f"slerp({a},{b})*0.75"), 0.75 * turned)


def test_names_of_others_stand_for_what_they_are_and_the_text_reads_back(
    ab: tuple[Path, Path],
) -> None:
    a, b = map(str, ab)
    known: dict[str, str | Merged] = {"ppo": a, "half": Merged((b,), None, 0.5)}
    found = parse_merged("slerp(ppo,half)*0.3", known.get)
    assert found == Merged((a, Merged((b,), None, 0.5)), "slerp", 0.3)
    assert str(found) == f"slerp({a},{b}*0.5)*0.3"
    assert parse_merged(str(found), no_names) == found and found.folders() == [a, b]


def test_a_factor_keeps_its_digits(ab: tuple[Path, Path]) -> None:
    text = str(parse_merged(f"{ab[0]}*0.12345678", no_names))
    assert text == f"{ab[0]}*0.12345678" and str(Merged(("a",), None, 0.5)) == "a*0.5"


@pytest.mark.parametrize(
    ("what", "said"),
    [
        ("mean(nowhere,{b})", "'nowhere' is not the folder of an adapter"),
        ("mean({a})", "mean needs two adapters or more"),
        ("mean({a},)", "'' is not the folder"),
        ("mean({a},mean({b},{a}*1)", "is not the folder"),
        ("some-org/some-model*0.5", "'some-org/some-model' is not the folder"),
        ("slerp({a},{b}", ".*a merge is written mean"),
        ("{a}*1e999", "a factor must be finite"),
        ("{a}*0.5,1", "only a whole contender may have several factors"),
    ],
)
def test_what_is_no_adapter_cannot_be_merged(what: str, said: str, ab: tuple[Path, Path]) -> None:
    with pytest.raises(InputError, match=f"contenders: .*{said}"):
        parse_merged(what.format(a=ab[0], b=ab[1]), no_names)


def test_a_policy_that_started_from_an_adapter_is_scaled_towards_that_one(
    ab: tuple[Path, Path], tmp_path: Path
) -> None:
    start, _ = ab
    facts: dict[str, Any] = {"facts": start_of(start)}
    torch.manual_seed(1)
    policies = [
        write(tmp_path / name / "adapters" / "policy",
              {LAYER: (torch.randn(3, 2), torch.randn(2, 4))}, **facts)
        for name in ("run", "other")
    ]  # fmt: skip
    policy = policies[0]
    with pytest.raises(InputError, match="was trained from another adapter"):
        change(f"{policy}*0.5")  # nobody knows where that adapter is

    for name in ("run", "other"):
        record = {"settings": {"policy_adapter": str(start)}}
        (tmp_path / name / "run.json").write_text(json.dumps(record))
    zero, one, two = (deltas(folder)[LAYER] for folder in (start, *policies))
    torch.testing.assert_close(change(f"{policy}*0.5"), (zero + one) / 2)
    both = change(f"mean({policies[0]},{policies[1]})*0.5")
    torch.testing.assert_close(both, zero / 2 + (one + two) / 4)

    # Another adapter lies there now.
    (start / "adapter_model.safetensors").write_bytes(
        (policies[1] / "adapter_model.safetensors").read_bytes()
    )
    with pytest.raises(InputError, match="was trained from another adapter"):
        change(f"{policy}*0.5")
