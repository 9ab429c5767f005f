"""recipes/publish.py from end to end: a dry run, then the same for true, against a stub of the Hub.

The gate's two sides are tested in tests/hub/test_gate.py; here they agree without being asked.
"""

import fcntl
import hashlib
import importlib.util
import json
import re
import shlex
import sys
from pathlib import Path
from typing import Any

import pytest

from toolkit import cli
from toolkit.cli import call, recipe
from toolkit.errors import InputError
from toolkit.hub import gate
from toolkit.models.adapters import lora_config
from toolkit.models.loading import load_base
from toolkit.models.roles import Roles
from toolkit.models.toolkit_json import write_facts

publish = recipe("publish")

# huggingface_hub 2.4.0 lfs.py:334 passes a file to httpx2 as data=, which that calls deprecated.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=<...>':DeprecationWarning")


def the_hubs_fixtures() -> Any:
    """tests/hub/conftest.py: tests are files here, not a package."""
    path = Path(__file__).parent.parent / "hub" / "conftest.py"
    spec = importlib.util.spec_from_file_location("hub_fixtures", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


hub = the_hubs_fixtures().hub
MARKER = the_hubs_fixtures().load_stub().TOKEN


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, demo_model: str) -> Path:
    """A PPO run's folder as ppo.py leaves it, with a record whose paths must not get out."""
    folder = tmp_path_factory.mktemp("run")
    lora = lora_config(4, 8, "all-linear", "CAUSAL_LM")
    roles = Roles(load_base(demo_model, "fp32"), lora)
    roles.save(folder / "adapters")
    write_facts(folder / "adapters" / "policy", demo_model, precision="fp32", kl_coef=0.1)
    (folder / "run.json").write_text(
        json.dumps(
            {
                "arguments": {},
                "seed": 3,
                "data": {"source": "/home/ann/prompts.jsonl", "prompts": 512},
                "settings": {"lexicon": "/home/ann/lexicon.txt", "kl_controller": "adaptive"},
            }
        )
    )
    return folder


@pytest.fixture
def words(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The command line; for the gate both sides agree."""
    numbers = gate.Probes([[1, 2]], [[-1.0]])
    monkeypatch.setattr(gate, "measure", lambda *_: numbers)
    monkeypatch.setattr(gate, "run_lines", lambda *_: numbers)
    return ["--adapter", str(run / "adapters" / "policy"), "--repo_id", "me/policy",
           "--base_model_id", "org/base", "--license", "apache-2.0",
           "--output_dir", str(tmp_path / "out")]  # fmt: skip


def shown_files(text: str) -> dict[str, tuple[str, int]]:
    rows = re.findall(r"^([0-9a-f]{64}) +([\d,]+)  (\S+)$", text, flags=re.M)
    return {name: (sha, int(size.replace(",", ""))) for sha, size, name in rows}


def test_what_arrives_is_what_the_dry_run_showed_and_the_token_is_nowhere(
    hub: Any,
    words: list[str],
    demo_model: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    hub.add("org/base", Path(demo_model))
    assert cli.call(publish.main, [*words, "--dry_run", "true"]) == 0
    dry = capsys.readouterr().out
    assert hub.writes() == [] and "me/policy" not in hub.repos
    assert "to me/policy (private), 6 files" in dry and "\nwould be sent\n" in dry
    following = shlex.split(dry.splitlines()[-1])
    assert following[-len(words) :] == words and "--dry_run" not in following

    assert cli.call(publish.main, words) == 0
    repo = hub.repos["me/policy"]
    arrived = {n: (hashlib.sha256(c).hexdigest(), len(c)) for n, c in repo.files.items()}
    assert arrived == shown_files(dry) and repo.private
    assert repo.files["README.md"].decode() in dry
    printed = capsys.readouterr()
    assert f"published: {hub.url}/me/policy/commit/" in printed.out
    assert "| `lexicon` | `lexicon.txt` |" in dry and "/home/ann" not in dry

    everything = [p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()]
    everything += [*repo.files.values(), (dry + caplog.text + "".join(printed)).encode()]
    assert not [content for content in everything if MARKER.encode() in content]


def exit_code(monkeypatch: pytest.MonkeyPatch, words: list[str]) -> Any:
    monkeypatch.setattr(sys, "argv", ["publish.py", *words])
    with pytest.raises(SystemExit) as caught:
        cli.run(publish.main)
    return caught.value.code


def test_offline_a_dry_run_shows_all_says_what_is_missing_and_exits_with_2(
    hub: Any,
    words: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.delenv("HF_TOKEN")
    words = [*words[:4], *words[-2:], "--dry_run", "true"]  # neither base id nor license
    assert exit_code(monkeypatch, words) == 2
    out, err = capsys.readouterr()
    assert len(shown_files(out)) == 6 and "# policy" in out and "Traceback" not in err
    refused = re.findall("^would be refused: (\\w+)", out, flags=re.M)
    assert refused == ["base_model_id", "license"]
    assert hub.seen == []


def test_a_run_for_true_is_refused_for_the_same_reasons(
    hub: Any,
    words: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert exit_code(monkeypatch, words) == 2
    err = capsys.readouterr().err.splitlines()[-1]
    assert err.startswith(
        "error: base org/base: not verified on the Hub: org/base: the Hub answered"
    )
    assert hub.writes() == []


def test_without_a_token_nothing_is_loaded(
    words: list[str], hub: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr(gate, "pass_gate", lambda *_: pytest.fail("a model was loaded"))
    with pytest.raises(InputError, match="no Hub token"):
        cli.call(publish.main, words)
    assert hub.seen == []


@pytest.mark.parametrize("fault", [(401, {"error": MARKER}), (403, {}), (503, b""), "cut"])
def test_a_failed_upload_is_one_line_and_the_same_command_completes_it(
    hub: Any,
    words: list[str],
    fault: Any,
    demo_model: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    hub.add("org/base", Path(demo_model))
    hub.fail("POST", "/commit/", fault, times=9)
    assert exit_code(monkeypatch, words) == 2
    out, err = capsys.readouterr()
    lines = [line for line in err.splitlines() if line.startswith(("error", "Traceback", "  "))]
    assert len(lines) == 1 and lines[0].startswith("error: me/policy: ")
    assert MARKER not in out + err and hub.repos["me/policy"].files == {}
    hub.faults.clear()
    assert exit_code(monkeypatch, words) == 0
    assert len(hub.repos["me/policy"].files) == 6


def test_a_secret_in_a_staged_file_stops_it(
    hub: Any, words: list[str], run: Path, demo_model: str, capsys: pytest.CaptureFixture[str]
) -> None:
    hub.add("org/base", Path(demo_model))
    path = run / "adapters" / "policy" / "adapter_config.json"
    before = path.read_text()
    path.write_text(json.dumps(json.loads(before) | {"peft_version": MARKER}))
    try:
        with pytest.raises(InputError, match=r"^adapter_config.json: what looks like a Hub token"):
            cli.call(publish.main, words)
    finally:
        path.write_text(before)
    assert hub.writes() == [] and MARKER not in "".join(capsys.readouterr())


def test_a_repository_must_be_named(words: list[str]) -> None:
    with pytest.raises(InputError, match="repo_id: must be OWNER/NAME"):
        cli.call(publish.main, words[:2])


def test_two_do_not_stage_in_one_folder(tmp_path: Path) -> None:
    words = ["--adapter", "none", "--repo_id", "ann/x", "--output_dir", str(tmp_path), "--dry_run"]
    with open(tmp_path / ".lock-ann--x", "w") as held:  # as another run holds it
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(InputError, match="output_dir: .*ann--x is being written by another"):
            call(publish.main, words)
