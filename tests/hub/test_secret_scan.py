"""What must not leave the machine is found, named, and not repeated."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from toolkit.hub.secret_scan import find_secrets

SECRETS = {
    "hf_" + "aB3" * 10: "what looks like a Hub token",
    "sk-proj-" + "x1" * 20: "what looks like an API key",
    "ghp_" + "a1" * 18: "what looks like a GitHub token",
    "AKIA" + "A1B2C3D4E5F6G7H8": "what looks like an AWS key",
    "-----BEGIN OPENSSH PRIVATE KEY-----": "a private key",
    "/home/ann/data": "a path in somebody's home folder",
    "/Users/ann/data": "a path in somebody's home folder",
    "C:\\Users\\ann": "a path in somebody's home folder",
    "see /root/x": "a path in somebody's home folder",
    "hunter2-hunter2": "the value of the environment variable MY_API_KEY",
    "login-token-0123": "the Hub token",
    "/srv/models/base": "the path of a folder of this machine",
}


@pytest.fixture(autouse=True)
def secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_API_KEY", "hunter2-hunter2")
    monkeypatch.setenv("SHORT_TOKEN", "card")  # too short to be one: every text would have it
    monkeypatch.setattr("toolkit.data.secrets.get_token", lambda: "login-token-0123")


@pytest.mark.parametrize("secret", SECRETS)
@pytest.mark.parametrize("kind", ["text", "json", "escaped", "safetensors"])
def test_each_is_found_in_each_kind_of_file(tmp_path: Path, secret: str, kind: str) -> None:
    if kind == "text":
        (tmp_path / "file").write_text(f"a card\n{secret}\n")
    elif kind == "json":
        (tmp_path / "file").write_text(json.dumps({"a": [{"b": secret}]}))
    elif kind == "escaped":  # as no search in the bytes would find it
        escaped = "".join(f"\\u{ord(c):04x}" for c in secret)
        (tmp_path / "file").write_text(f'{{"a": "{escaped}"}}')
    else:
        save_file({"a": torch.zeros(1)}, tmp_path / "file.safetensors", metadata={"note": secret})
    problems = find_secrets(tmp_path, ["/srv/models/base"])
    assert any(SECRETS[secret] in line for line in problems)
    assert all(line.startswith("file") and secret not in line for line in problems)


def test_a_clean_folder_passes(tmp_path: Path, demo_model: str) -> None:
    (tmp_path / "README.md").write_text(
        "# A card\n\nSee https://huggingface.co/home/ann and home/x; hf_hub_download; task-42; "
        "/rootless; a risk-free-and-desk-bound-thing\n"
    )
    assert find_secrets(tmp_path) == []
    assert find_secrets(Path(demo_model)) == []


NAMES = ["tokenizer.json", "vocab.json", "vocab.txt", "merges.txt", "tokenizer.model"]


@pytest.mark.parametrize("name", NAMES)
def test_a_word_list_is_looked_through_like_any_other_file(tmp_path: Path, name: str) -> None:
    """But for one that everybody has from the Hub, which may hold what looks like a path."""
    (tmp_path / name).write_text(json.dumps({"vocab": {"/root": 1, "/home/x": 2}}))
    assert [line.partition(" (")[0] for line in find_secrets(tmp_path)] == [
        f"{name}: a path in somebody's home folder"
    ]
    assert find_secrets(tmp_path, public=[name]) == []
    (tmp_path / name).write_text(json.dumps({"vocab": {"hunter2-hunter2": 1}}))
    assert len(find_secrets(tmp_path)) == len(find_secrets(tmp_path, public=[name])) == 1


def test_a_public_piece_of_text_is_passed_over_where_it_stands_alone(tmp_path: Path) -> None:
    words = ["/root", "/home/x", "a"]
    (tmp_path / "tokenizer.json").write_text(json.dumps({"/root": 1, "/home/x": 2}))
    (tmp_path / "vocab.txt").write_text("/root\nx\n")
    assert find_secrets(tmp_path, words=words) == []
    (tmp_path / "vocab.txt").write_text("see /root\n")
    (tmp_path / "tokenizer.json").write_text(json.dumps({"/root/x": 1}))
    assert len(find_secrets(tmp_path, words=words)) == 2


def test_the_working_folder_is_found(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(json.dumps({"at": str(Path.cwd() / "outputs")}))
    assert any("a folder of this machine" in line for line in find_secrets(tmp_path))
