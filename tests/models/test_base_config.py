"""What a base says of itself before its weights are loaded."""

from pathlib import Path

import pytest
from transformers import GPT2Config

from tests.models.conftest import save_tiny
from toolkit.errors import InputError
from toolkit.models.base_config import base_fingerprint, check_base, context_length, vocabulary_size


def test_pickled_weights_and_missing_folders_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no config.json"):
        check_base(str(tmp_path))
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(InputError, match="pickled weights are not loaded"):
        check_base(str(tmp_path))
    with pytest.raises(InputError, match="no such folder"):
        check_base("./nowhere")
    with pytest.raises(InputError, match="no such folder"):
        check_base("a/b/c")


def test_fingerprint_tells_bases_apart_and_knows_a_moved_one(tmp_path: Path) -> None:
    first, second = save_tiny(tmp_path / "a", 0), save_tiny(tmp_path / "b", 1)
    assert base_fingerprint(first) != base_fingerprint(second)
    (tmp_path / "a").rename(tmp_path / "moved")
    assert base_fingerprint(str(tmp_path / "moved")) != base_fingerprint(second)
    assert base_fingerprint("some-org/some-model") is None
    first_again = save_tiny(tmp_path / "a", 0)
    assert base_fingerprint(first_again) == base_fingerprint(str(tmp_path / "moved"))


def test_context_and_vocabulary_are_the_configs_of_the_text_model(tmp_path: Path) -> None:
    GPT2Config(n_positions=48, vocab_size=77).save_pretrained(tmp_path)
    assert context_length(str(tmp_path)) == 48
    assert vocabulary_size(str(tmp_path)) == 77
    assert vocabulary_size("./nowhere") is None
