"""The tokenizer: what pads, and what it lacks is told in one line."""

import json
import shutil
from pathlib import Path

import pytest

from toolkit.data.tokens import stop_ids
from toolkit.errors import InputError
from toolkit.models import tokenizer as tokenizer_file
from toolkit.models.loading import load_tokenizer


def test_a_hub_model_that_cannot_be_had_is_one_line() -> None:
    with pytest.raises(InputError, match="the tokenizer cannot be loaded") as caught:
        load_tokenizer("nobody/nothing-of-this-name")
    assert "\n" not in str(caught.value)


def test_pad_token_is_not_end_of_text_where_that_can_be(demo_model: str) -> None:
    tokenizer = load_tokenizer(demo_model)
    assert tokenizer.pad_token_id != tokenizer.eos_token_id


def bare(demo_model: str, folder: Path, special: bool = True) -> Path:
    """The embedded model, whose tokenizer and configs name no special token."""
    shutil.copytree(demo_model, folder)
    (folder / "tokenizer_config.json").write_text("{}")
    (folder / "generation_config.json").unlink()
    edits: dict[str, dict] = {"config.json": {"eos_token_id": None, "pad_token_id": None}}
    edits["tokenizer.json"] = {} if special else {"added_tokens": []}
    for name, changes in edits.items():
        content = json.loads((folder / name).read_text()) | changes
        (folder / name).write_text(json.dumps(content))
    return folder


@pytest.mark.parametrize(("special", "pad"), [(True, "<|pad|>"), (False, "\u0100")])
def test_a_tokenizer_without_pad_and_end_token_pads_with_what_ends_no_text(
    demo_model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], special: bool, pad: str
) -> None:
    tokenizer = load_tokenizer(str(bare(demo_model, tmp_path / "bare", special)))
    assert tokenizer.pad_token == pad and tokenizer.eos_token is None
    assert f"has neither pad nor end token: {pad!r} is used" in capsys.readouterr().out
    text = "We met.\0"  # the byte that pads is a byte still
    ids = tokenizer(text)["input_ids"]
    assert ids == load_tokenizer(demo_model)(text)["input_ids"]
    assert tokenizer.decode(ids, skip_special_tokens=True) == text
    with pytest.raises(InputError, match="no end-of-text token"):
        stop_ids(tokenizer, "eos")


def test_the_models_end_token_pads_where_the_tokenizer_names_none(
    demo_model: str, tmp_path: Path
) -> None:
    folder = bare(demo_model, tmp_path / "bare", special=False)
    (folder / "generation_config.json").write_text('{"eos_token_id": 1}')
    (folder / "tokenizer_config.json").write_text('{"unk_token": "<unk>"}')  # beyond the embedding
    assert load_tokenizer(str(folder)).pad_token_id == 1


TEKKEN = """{"vocab": [{"rank": 0, "token_bytes": "YQ==", "token_str": "a"}], "config": {
"pattern": "a", "default_vocab_size": 3, "default_num_special_tokens": 2, "version": "v3"}}"""

LACKING = [
    ({"tokenizer.model": b"\n\x05"}, "pip install sentencepiece protobuf$"),
    ({"tiktoken.model": b"YQ== 0"}, "pip install tiktoken$"),
    ({"tekken.json": TEKKEN.encode()}, "needs mistral-common"),
    ({}, "no tokenizer.json or tokenizer.model"),
    ({"tokenizer.json": b"{}"}, r"files are broken \(KeyError"),
    ({"tokenizer.json": b'{"added_tokens": [], "model": {}}'}, "cannot be loaded: .*broken"),
    ({"tokenizer_config.json": b"[]"}, "files are broken"),
    ({"tokenizer_config.json": b'{"auto_map": {"AutoTokenizer": ["a.B", null]}}'},
     "--trust_remote_code runs it"),
]  # fmt: skip


@pytest.mark.parametrize(("files", "message"), LACKING)
def test_what_a_tokenizer_lacks_is_one_line(
    demo_model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, files: dict, message: str
) -> None:
    monkeypatch.setattr(tokenizer_file, "is_sentencepiece_available", lambda: False)
    monkeypatch.setattr(tokenizer_file, "is_protobuf_available", lambda: False)
    shutil.copy(Path(demo_model) / "config.json", tmp_path)
    (tmp_path / "model.safetensors").touch()
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=message) as caught:
        load_tokenizer(str(tmp_path))
    assert "\n" not in str(caught.value)


def test_a_tokenizer_class_that_is_not_there_loads_by_tokenizer_json(
    demo_model: str, tmp_path: Path
) -> None:
    folder = bare(demo_model, tmp_path / "bare")
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "NoSuchTokenizer"}')
    assert load_tokenizer(str(folder)).vocab_size == 1024
