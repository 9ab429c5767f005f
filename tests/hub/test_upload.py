"""Uploading, against a Hub on the loopback address that fails as told."""

import hashlib
import logging
import traceback
from pathlib import Path
from typing import Any

import pytest

from toolkit.hub.connection import HubError, connect
from toolkit.hub.package import listing
from toolkit.hub.upload import publish

CARD = "---\nlicense: apache-2.0\n---\n\n# A card\n"
# huggingface_hub 2.4.0 lfs.py:334 passes a file to httpx2 as data=, which that calls deprecated.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=<...>':DeprecationWarning")
MARKER = "hf_MARKERmarkerMARKERmarker0123456789"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Files as they are staged: two large ones, two small ones."""
    folder = tmp_path / "staged"
    folder.mkdir()
    (folder / "README.md").write_text(CARD)
    (folder / "adapter_config.json").write_text('{"r": 4}')
    (folder / "adapter_model.safetensors").write_bytes(b"weights" * 30_000)
    (folder / "value_head.safetensors").write_bytes(b"head" * 10_000)
    return folder


def send(folder: Path, private: bool = True, said: list[str] | None = None) -> str:
    say = (said if said is not None else []).append
    return publish(connect(), "me/model", folder, listing(folder), private, say)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_what_arrives_is_the_folder_byte_for_byte_in_one_private_commit(
    hub: Any, folder: Path
) -> None:
    url = send(folder)
    repo = hub.repos["me/model"]
    assert repo.files == contents(folder)
    assert repo.private and len(repo.commits) == 2  # the empty one, and ours
    assert url == f"{hub.url}/me/model/commit/{repo.sha(repo.files)}"


def test_public_only_if_asked_for(hub: Any, folder: Path) -> None:
    send(folder, private=False)
    assert not hub.repos["me/model"].private


@pytest.mark.parametrize("there", [True, False])
def test_the_visibility_of_what_exists_is_never_changed(
    hub: Any, folder: Path, tmp_path: Path, there: bool
) -> None:
    hub.add("me/model", tmp_path / "staged")
    hub.repos["me/model"].private = there
    with pytest.raises(HubError, match=f"is {'private' if there else 'public'} on the Hub, but"):
        send(folder, private=not there)
    assert hub.writes() == [] and hub.repos["me/model"].private == there


def test_other_files_stay_and_are_named(hub: Any, folder: Path, tmp_path: Path) -> None:
    send(folder)
    hub.repos["me/model"].files["notes.txt"] = b"mine"
    (folder / "README.md").write_text(CARD + "more\n")
    said: list[str] = []
    send(folder, said=said)
    assert hub.repos["me/model"].files == contents(folder) | {"notes.txt": b"mine"}
    assert said == ["me/model also holds, and keeps: notes.txt"]


def test_a_second_run_with_nothing_new_makes_no_commit(hub: Any, folder: Path) -> None:
    send(folder)
    assert send(folder) == f"{hub.url}/me/model/commit/" + hub.repos["me/model"].sha(
        contents(folder)
    )
    assert len(hub.repos["me/model"].commits) == 2


FINAL = {  # what the Hub says at which request: what is said to the user
    "401": ("POST", "create", 401, "the Hub answered 401, 'x' (the token is not valid"),
    "403": ("POST", "create", 403, "(this token cannot write there"),
    "402 of the storage": ("POST", "batch", 402, "the account's storage is used up"),
    "403 at the commit": ("POST", "commit", 403, "(this token cannot write there"),
    "400 at the commit": ("POST", "commit", 400, "the Hub answered 400"),
}


@pytest.mark.parametrize("case", FINAL)
def test_a_refusal_is_told_in_one_line_and_not_repeated(hub: Any, folder: Path, case: str) -> None:
    method, path, status, said = FINAL[case]
    hub.fail(method, path, (status, {"error": "x"}), times=2)
    with pytest.raises(HubError) as caught:
        send(folder)
    assert said in str(caught.value) and "\n" not in str(caught.value)
    assert len(hub.faults) == 1 and hub.waits == []
    if "me/model" in hub.repos:
        assert hub.repos["me/model"].files == {}
    hub.faults.clear()
    send(folder)
    assert hub.repos["me/model"].files == contents(folder)


@pytest.mark.parametrize("step", ["/api/models/me/model$", "create", "validate", "preupload",
                                  "batch", "storage", "verify", "commit"])  # fmt: skip
@pytest.mark.parametrize("fault", [(503, b"<html>"), (429, {}, {"Retry-After": "7"}), "cut"])
def test_what_passes_is_waited_out_at_every_step(
    hub: Any, folder: Path, step: str, fault: Any
) -> None:
    method = "PUT" if step == "storage" else "GET" if step.startswith("/api") else "POST"
    hub.fail(method, step, fault, times=2)
    send(folder)
    assert hub.repos["me/model"].files == contents(folder) and not hub.faults
    assert len(hub.waits) == 2
    if isinstance(fault, tuple) and fault[0] == 429:
        assert all(7 <= wait <= 8 for wait in hub.waits)


@pytest.mark.parametrize("fault", [(500, b"<html>"), (429, {}, {"Retry-After": "86400"}), "cut"])
def test_what_does_not_pass_ends_in_one_line_and_a_second_run_completes_it(
    hub: Any, folder: Path, fault: Any
) -> None:
    hub.fail("POST", "commit", fault, times=99)
    said: list[str] = []
    with pytest.raises(HubError) as caught:
        send(folder, said=said)
    line = str(caught.value)
    assert "\n" not in line and ("run the same command again" in line)
    assert 99 - len(hub.faults) == 4 and len(said) == 3 and sum(hub.waits) <= 3 * 300
    assert hub.repos["me/model"].files == {}  # nothing half-published
    hub.faults.clear()
    hub.seen.clear()
    send(folder)
    assert hub.repos["me/model"].files == contents(folder)
    assert not [line for line in hub.writes() if line.startswith("PUT")]  # none sent twice


def test_an_upload_cut_between_two_large_files_goes_on_with_the_second(
    hub: Any, folder: Path
) -> None:
    digest = hashlib.sha256((folder / "value_head.safetensors").read_bytes()).hexdigest()
    hub.fail("PUT", digest, "cut", times=99)
    with pytest.raises(HubError, match="the connection to the Hub failed"):
        send(folder)
    assert hub.repos["me/model"].files == {} and len(hub.repos["me/model"].objects) == 1
    hub.faults.clear()
    hub.seen.clear()
    send(folder)
    assert [line.split("/")[-1] for line in hub.writes() if line.startswith("PUT")] == [digest]
    assert hub.repos["me/model"].files == contents(folder)


def test_a_commit_whose_answer_is_lost_is_made_once(hub: Any, folder: Path) -> None:
    hub.fail("POST", "commit", "lost")
    send(folder)
    assert hub.repos["me/model"].files == contents(folder)
    assert len(hub.repos["me/model"].commits) == 2


def test_a_hub_that_kept_something_else_is_found_out(hub: Any, folder: Path) -> None:
    def spoil() -> None:
        hub.repos["me/model"].files["adapter_model.safetensors"] = b"other"

    send(folder)
    (folder / "README.md").write_text(CARD + "more\n")
    hub.fail("POST", "commit", spoil)
    with pytest.raises(HubError, match="other content in adapter_model.safetensors"):
        send(folder)


def test_a_repository_that_comes_out_public_gets_nothing(hub: Any, folder: Path) -> None:
    """An organization may make everything public, or somebody was faster."""
    hub.fail("GET", "me/model$", lambda: hub.add("me/model", folder.parent))
    hub.repos.clear()
    with pytest.raises(HubError, match="me/model is public on the Hub, but must be private"):
        send(folder)
    assert not [line for line in hub.writes() if "commit" in line or "PUT" in line]


@pytest.mark.parametrize("fault", [
    (403, {"error": f"the token {MARKER} is wrong"}),
    (400, {"error": f"Bearer {MARKER}"}, {"X-Error-Message": MARKER}),
    (200, {"url": None}), (200, [MARKER]), (500, MARKER.encode()), "cut",
])  # fmt: skip
def test_the_token_is_in_no_message_log_or_traceback(
    hub: Any,
    folder: Path,
    fault: Any,
    caplog: pytest.LogCaptureFixture,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Also where the Hub itself says it back, or answers what nobody understands."""
    caplog.set_level(logging.INFO)
    caplog.set_level(logging.DEBUG, "huggingface_hub")
    said: list[str] = []
    for step in ("commit", "create", "batch"):
        hub.repos.clear()
        hub.faults.clear()
        hub.fail("POST", step, fault, times=99)
        try:
            send(folder, said=said)
        except HubError as error:
            assert "\n" not in str(error)
            shown = traceback.TracebackException.from_exception(error, capture_locals=True)
            # The frames of this test hold the faults; those of the toolkit must not.
            frames = [f for f in shown.stack if "toolkit" in f.filename]
            text = "".join(traceback.StackSummary.from_list(frames).format())
            assert MARKER not in text + "".join(shown.format_exception_only())
            assert error.__cause__ is None and error.__suppress_context__
    printed = capsys.readouterr()
    assert MARKER not in caplog.text + "".join(said) + printed.out + printed.err
    # Nor, where a user would see it, the signature of an address to write to.
    warned = [r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING]
    assert "SIGNED" not in "".join(warned)
