"""What is staged: those files and no others, with the Hub's names in them, whole or not at all."""

import json
import resource
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from toolkit.data.chat import PLAIN_TEMPLATE
from toolkit.errors import InputError
from toolkit.hub.adapter_source import TrainedAdapter, read_adapter
from toolkit.hub.base_on_hub import Base
from toolkit.hub.package import SENT, describe, pack, read_template
from toolkit.record import RunRecord

SHA = "a" * 40


@pytest.fixture
def base(demo_model: str) -> Base:
    return Base(Path(demo_model), "org/base", SHA, {"license": "mit"})


@pytest.fixture
def source(adapters: Path, tmp_path: Path) -> TrainedAdapter:
    """A policy's folder in which other things lie too."""
    folder = tmp_path / "ppo" / "adapters" / "policy"
    shutil.copytree(adapters / "ppo" / "adapters" / "policy", folder)
    (folder / "optimizer.pt").write_bytes(b"pickle")
    (folder / ".env").write_text("HF_TOKEN=x")
    (folder / "toolkit.json").write_text(
        json.dumps(
            {
                "precision": "fp32",
                "gain": 2.0,
                "base_fingerprint": "0123456789abcdef",
                "at": "/srv/x",
                "note": "hello",
                "deep": {"path": "~/x", "n": 3},
            }
        )
    )
    return read_adapter(folder)


@contextmanager
def room_for(size: int) -> Iterator[None]:
    """No file may grow beyond ``size`` bytes: the kernel fails the write, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_only_the_list_is_staged_and_the_rest_is_named(
    source: TrainedAdapter, base: Base, tmp_path: Path
) -> None:
    staged = pack(source, base, "# Card\n", None, tmp_path / "out")
    names = [file.name for file in staged.files]
    assert names == sorted(p.name for p in (tmp_path / "out").iterdir())
    assert set(names) == {
        "README.md",
        "adapter_config.json",
        "adapter_model.safetensors",
        "toolkit.json",
        "tokenizer.json",
        "tokenizer_config.json",
    }
    assert staged.left_out == [".env", "optimizer.pt"]
    text = describe(staged, "me/x", private=False)
    assert "PUBLIC" in text and "not sent from the adapter's folder: .env, optimizer.pt" in text
    for file in staged.files:
        assert f"{file.size:>13,}  {file.name}\n{'':15}{file.sha256}\n" in text
    listed = [line for line in text.splitlines() if str(staged.folder) not in line]
    assert max(map(len, listed)) <= 79  # fits a terminal of 80 columns


def test_the_weights_are_byte_for_byte_and_the_names_are_the_hubs(
    source: TrainedAdapter, base: Base, tmp_path: Path
) -> None:
    out = pack(source, base, "# Card\n", None, tmp_path / "out").folder
    for name in ("adapter_model.safetensors", "tokenizer.json"):
        there = source.folder if name.startswith("adapter") else base.files
        assert (out / name).read_bytes() == (there / name).read_bytes()
    before = json.loads((source.folder / "adapter_config.json").read_text())
    after = json.loads((out / "adapter_config.json").read_text())
    assert after == before | {"base_model_name_or_path": "org/base", "revision": SHA}
    assert json.loads((out / "toolkit.json").read_text()) == {
        "precision": "fp32",
        "gain": 2.0,
        "base_fingerprint": "0123456789abcdef",
        "deep": {"n": 3},
    }


def test_packing_twice_gives_the_same_bytes(
    source: TrainedAdapter, base: Base, tmp_path: Path
) -> None:
    first = pack(source, base, "# Card\n", "{{ x }}", tmp_path / "out")
    assert pack(source, base, "# Card\n", "{{ x }}", tmp_path / "out") == first
    assert (tmp_path / "out" / "chat_template.jinja").read_text() == "{{ x }}"


def test_a_folder_with_something_else_in_it_is_not_replaced(
    source: TrainedAdapter, base: Base, tmp_path: Path
) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.tex").write_text("years")
    with pytest.raises(InputError, match="holds thesis.tex, which this recipe did not write"):
        pack(source, base, "# Card\n", None, tmp_path / "out")
    assert (tmp_path / "out" / "thesis.tex").read_text() == "years"


def test_a_full_disk_is_one_line_and_leaves_what_was_there(
    source: TrainedAdapter, base: Base, tmp_path: Path
) -> None:
    first = pack(source, base, "# Card\n", None, tmp_path / "out")
    with (
        room_for(20_000),
        pytest.raises(InputError, match=r"out: was not written: File too large \("),
    ):
        pack(source, base, "# Another\n", None, tmp_path / "out")
    assert pack(source, base, "# Card\n", None, tmp_path / "out") == first
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith(".out")] == []


def test_a_reward_brings_the_template_that_it_was_trained_with(
    adapters: Path, tmp_path: Path
) -> None:
    source = read_adapter(adapters / "reward" / "adapter")
    assert read_template(source, None) is None
    source.record = RunRecord(settings={"chat_template": "plain"})
    assert read_template(source, None) == PLAIN_TEMPLATE
    (tmp_path / "there.jinja").write_text("{{ messages }}")
    named = str(tmp_path / "there.jinja")  # a file of anybody's
    source.record = RunRecord(settings={"chat_template": named})
    with pytest.raises(InputError, match="pass the one that the adapter was trained with"):
        read_template(source, None)
    assert read_template(source, "plain") == PLAIN_TEMPLATE


def test_a_values_head_is_staged_with_it(adapters: Path, base: Base, tmp_path: Path) -> None:
    value = read_adapter(adapters / "ppo/adapters/value")
    staged = pack(value, base, "# Card\n", None, tmp_path / "out")
    assert "value_head.safetensors" in [file.name for file in staged.files]
    assert {file.name for file in staged.files} <= SENT
