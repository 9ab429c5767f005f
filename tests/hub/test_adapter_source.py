"""An adapter that is to be published is told by its folder, without loading a model."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from toolkit.errors import InputError
from toolkit.hub.adapter_source import TrainedAdapter, read_adapter, read_results


def test_kinds_are_told_from_the_folder(adapters: Path) -> None:
    found = {
        name: read_adapter(adapters / name)
        for name in ("ppo/adapters/policy", "ppo/adapters/value", "reward/adapter")
    }
    assert [s.kind for s in found.values()] == ["policy", "value", "reward"]
    # The value's precision is written beside the policy.
    assert {s.precision for s in found.values()} == {"fp32"}


def test_what_is_no_adapter_is_refused(adapters: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no adapter_config.json"):
        read_adapter(tmp_path)
    shutil.copy(adapters / "ppo/adapters/value/value_head.safetensors", tmp_path)
    with pytest.raises(InputError, match="a value head on the policy's trunk, without an adapter"):
        read_adapter(tmp_path)
    other = tmp_path / "other"
    shutil.copytree(adapters / "ppo/adapters/policy", other)
    (other / "toolkit.json").unlink()
    with pytest.raises(InputError, match="pass --precision 4bit, bf16 or fp32"):
        read_adapter(other)
    assert read_adapter(other, "bf16").precision == "bf16"
    (other / "adapter_model.safetensors").write_bytes(b"not one")
    with pytest.raises(InputError, match="cannot be read"):
        read_adapter(other, "bf16")


@pytest.mark.parametrize(
    "name", ["adapter_config.json", "adapter_model.safetensors", "toolkit.json"]
)
def test_a_file_of_the_adapter_that_leads_out_of_its_folder_is_named(
    name: str, adapters: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(adapters / "ppo" / "adapters" / "policy", tmp_path / "policy")
    (folder / name).rename(tmp_path / name)
    (folder / name).symlink_to(tmp_path / name)
    with pytest.raises(InputError, match=f"{name} is a link out of its folder, to"):
        read_adapter(folder)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda e: e.pop("pairs"),
        lambda e: e.update(contenders=3),
        lambda e: e.update(prompts="x"),
        lambda e: e["pairs"][0].update(wins="<b>"),
        lambda e: e["pairs"][0].update(low=None),
        lambda e: e["contenders"][0]["scores"]["vader"].update(mean=float("nan")),
    ],
)
def test_an_evaluation_of_another_form_is_refused(
    evaluation: Any, policy: TrainedAdapter, tmp_path: Path, spoil: Any
) -> None:
    whole = evaluation(policy.folder)
    spoil(whole)
    (tmp_path / "evaluation.json").write_text(json.dumps(whole))
    with pytest.raises(
        InputError, match="was not written by preftune evaluate|is not a number|is no number"
    ):
        read_results(tmp_path, policy.folder)
