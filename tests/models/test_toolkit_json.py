"""Facts beside an adapter: each of its type, when written and when read."""

from pathlib import Path

import pytest

from toolkit.errors import InputError
from toolkit.models.base_config import base_fingerprint
from toolkit.models.toolkit_json import adapter_digest, read_facts, start_of, write_facts


@pytest.mark.parametrize(
    ("fact", "said"),
    [('"gain": "2"', "gain is '2', but must be a finite"), ('"gain": true', "gain is True"),
     ('"gain": null', "gain is None"), ('"bias": [1]', r"bias is \[1\]"),
     ('"gain": 1e999', "1e999 is not a number"), ('"gain": Infinity', "Infinity is not a number"),
     ('"precision": 4', "precision is 4, but must be 4bit, bf16 or fp32"),
     ('"ends_with": 3', "ends_with is 3"), ('"whole_turns": "no"', "whole_turns is 'no'"),
     ('"trained_on": "all"', "trained_on is 'all'"), ('"chat_template": {}', "chat_template is"),
     ('"chat_template_kwargs": "x"', "chat_template_kwargs is 'x'"),
     ('"base_fingerprint": 1', "base_fingerprint is 1"), ('"start": 7', "start is 7"),
     ('"head_seed": "1"', "head_seed is '1'"), ('"merged": []', "merged is ")],
)  # fmt: skip
def test_facts_of_another_type_are_named_by_line(fact: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "toolkit.json").write_text(f"{{\n  {fact}\n}}")
    with pytest.raises(InputError, match=rf"toolkit.json:2: .*{said}"):
        read_facts(tmp_path)


@pytest.mark.parametrize("name", ["gain", "bias"])
def test_a_gain_or_bias_that_is_no_number_is_not_written(
    name: str, demo_model: str, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=f"{name} is nan, but must be a finite number"):
        write_facts(tmp_path, demo_model, **{name: float("nan")})
    assert list(tmp_path.iterdir()) == []


def test_facts_are_read_as_they_were_written_and_a_stock_adapter_has_none(
    demo_model: str, tmp_path: Path
) -> None:
    assert read_facts(tmp_path) == {}
    write_facts(tmp_path, demo_model, gain=2.0, bias=-1, trained_on="text")
    facts = {"gain": 2.0, "bias": -1, "trained_on": "text"}
    assert read_facts(tmp_path) == facts | {"base_fingerprint": base_fingerprint(demo_model)}


def test_an_adapter_is_known_by_its_weights_alone(tmp_path: Path) -> None:
    """SHA-256 of "abc", from FIPS 180-2, appendix B.1."""
    (tmp_path / "adapter_model.safetensors").write_bytes(b"abc")
    before = adapter_digest(tmp_path)
    (tmp_path / "adapter_config.json").write_text("{}")
    assert before == adapter_digest(tmp_path) == "ba7816bf8f01cfea"
    assert start_of(tmp_path) == {"start": before} and start_of(None) == {"start": None}
