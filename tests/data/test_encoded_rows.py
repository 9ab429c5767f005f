"""The file of token ids that a trainer reads from."""

import json
from pathlib import Path
from typing import Any

import pytest

from toolkit.data.encoded_rows import encode_to_disk
from toolkit.data.encoding import Encoder
from toolkit.models.loading import load_tokenizer

GOOD = {"prompt": "Hi.", "completions": [" a", " b", " c"], "best": 2}


@pytest.fixture(scope="module")
def tokenizer(demo_model: str) -> Any:
    return load_tokenizer(demo_model)


def test_what_lies_on_disk_is_what_was_encoded(tokenizer: Any, tmp_path: Path) -> None:
    rows = [GOOD | {"prompt": f"Hi {i}."} for i in range(1100)]  # more than two chunks
    rows[3] |= {"completions": [" a", " b"], "best": 0, "ranking": [0, 1]}
    placed = [("", row) for row in rows]
    data = encode_to_disk(Encoder(tokenizer, 64), placed, tmp_path / "t.arrow", 1100)
    assert len(data) == 1100
    expected = list(Encoder(tokenizer, 64).encode(placed))
    assert json.loads(json.dumps(data[:])) == {
        name: [row[name] for row in expected] for name in expected[0]
    }
