"""Base and adapter, made one model: the same log-probs, or nothing is written."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.models.conftest import KINDS, plain, saved
from toolkit.errors import InputError
from toolkit.models.loading import load_base
from toolkit.models.merging import merge_adapter, tie_again, untie


# peft says this of adapters as other tools save them; it saves and loads them all the same.
@pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`:UserWarning")
@pytest.mark.filterwarnings("ignore:Setting `save_embedding_layers` to `True`:UserWarning")
@pytest.mark.slow
@pytest.mark.parametrize("kind", ["LoRA on the head", "LoRA on the embedding"])
def test_merging_an_adapter_on_one_of_two_tied_weights_unties_them(
    kind: str, demo_model: str, tmp_path: Path
) -> None:
    folder = saved(demo_model, tmp_path / "adapter", **KINDS[kind])
    merge_adapter(str(folder), demo_model, tmp_path / "merged", "fp32")
    torch.testing.assert_close(
        plain(str(tmp_path / "merged"), None), plain(demo_model, folder), rtol=0, atol=1e-3
    )


@pytest.mark.slow
def test_merging_into_another_base_than_the_adapters_is_said(
    untied: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = saved(untied, tmp_path / "adapter")
    shutil.copytree(untied, tmp_path / "moved")
    merge_adapter(str(folder), str(tmp_path / "moved"), tmp_path / "merged", "fp32")
    said = capsys.readouterr().out
    assert f"names {untied}, but is merged into {tmp_path / 'moved'}" in said


def test_merging_refuses_what_is_no_policy_and_leaves_nothing(untied: str, tmp_path: Path) -> None:
    folder = saved(untied, tmp_path / "adapter")
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps(config | {"task_type": "SEQ_CLS"}))
    with pytest.raises(InputError, match="is a reward adapter, but must be a language model's"):
        merge_adapter(str(folder), untied, tmp_path / "merged", "fp32")
    assert not (tmp_path / "merged").exists()


def test_a_tied_head_becomes_a_copy_and_equal_weights_become_one_again(demo_model: str) -> None:
    model: Any = load_base(demo_model, "fp32")
    head, embedding = model.get_output_embeddings(), model.get_input_embeddings()
    assert head.weight is embedding.weight

    untie(model)
    assert head.weight is not embedding.weight and torch.equal(head.weight, embedding.weight)
    assert not model.config.tie_word_embeddings
    tie_again(model)
    assert head.weight is embedding.weight and model.config.tie_word_embeddings

    untie(model)
    head.weight[0, 0] += 1
    tie_again(model)
    assert head.weight is not embedding.weight  # they say different things now
