"""A user's code leaves the process as it found it, and ends in one line."""

import multiprocessing
import os
import random
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from toolkit.errors import InputError
from toolkit.random_state import random_state, restore_random_state
from toolkit.scoring import guests
from toolkit.scoring.guest_state import new_guests
from toolkit.scoring.guests import as_guest, guests_state, set_guests_state

CHANGES: dict[str, tuple[Callable[[], Any], Callable[[], Any]]] = {
    "the working folder": (lambda: os.chdir("/"), os.getcwd),
    "torch's default dtype": (
        lambda: torch.set_default_dtype(torch.float64), torch.get_default_dtype),
    "torch's default device": (lambda: torch.set_default_device("meta"), torch.get_default_device),
    "torch's number of threads": (lambda: torch.set_num_threads(2), torch.get_num_threads),
    "whether torch keeps gradients": (
        lambda: torch.set_grad_enabled(False), torch.is_grad_enabled),
    "torch's precision of matrix products": (
        lambda: torch.set_float32_matmul_precision("medium"),
        torch.get_float32_matmul_precision),
    "whether torch is deterministic": (
        lambda: torch.use_deterministic_algorithms(True),
        torch.are_deterministic_algorithms_enabled),
    "numpy's handling of errors": (lambda: np.seterr(all="raise"), np.geterr),
    "standard output": (lambda: setattr(sys, "stdout", None), lambda: sys.stdout),
    "what SIGTERM does": (
        lambda: signal.signal(signal.SIGTERM, signal.SIG_IGN),
        lambda: signal.getsignal(signal.SIGTERM)),
}  # fmt: skip


@pytest.fixture(autouse=True)
def nobody_was_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guests, "_told", set())
    monkeypatch.setattr(guests, "PATIENCE", 20.0)


@pytest.mark.parametrize("what", CHANGES)
def test_what_a_guest_changes_is_put_back_and_said_once(
    what: str, capsys: pytest.CaptureFixture[str]
) -> None:
    change, read = CHANGES[what]
    before = read()
    for _ in range(2):
        with as_guest("reward function f"):
            change()
        assert read() == before
    assert capsys.readouterr().err == (
        f"note: reward function f changed {what}; this was restored\n"
    )


def test_it_is_put_back_as_well_when_the_guest_fails() -> None:
    with pytest.raises(InputError), as_guest("f"):
        torch.set_default_dtype(torch.float64)
        raise ValueError
    assert torch.get_default_dtype() == torch.float32


def test_a_working_folder_that_a_guest_deleted_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with as_guest("f"):
        os.mkdir("gone")
        os.chdir("gone")
        os.rmdir(tmp_path / "gone")
    assert Path.cwd() == tmp_path


def draws() -> list[float]:
    return [random.random(), np.random.rand(), torch.rand(1).item()]


def test_seeding_moves_nobody_elses_numbers() -> None:
    torch.manual_seed(3), random.seed(3), np.random.seed(3)
    kept = random_state()
    expected = draws()
    restore_random_state(kept)
    with as_guest("f"):
        torch.manual_seed(7), random.seed(7), np.random.seed(7)
        torch.rand(100)
    assert draws() == expected


def test_guests_draw_on_where_the_last_one_stopped() -> None:
    with new_guests():
        found = []
        for _ in range(3):
            with as_guest("f"):
                found.append(draws())
        assert len({str(numbers) for numbers in found}) == 3

        kept = guests_state()
        with as_guest("f"):
            after = draws()
        torch.manual_seed(99)
        set_guests_state(kept)  # as a run that is resumed
        with as_guest("f"):
            assert draws() == after


@pytest.mark.parametrize("code", [0, 3, None, "bye"])
def test_sys_exit_is_a_mistake(code: Any) -> None:
    with pytest.raises(InputError, match=r"^f: .*test_guests.py:\d+: it called sys.exit\("):  # noqa: SIM117
        with as_guest("f"):
            sys.exit(code)


class Odd(BaseException):
    """Neither Exception nor one of Python's own."""


@pytest.mark.parametrize("error", [Odd("x"), MemoryError(), RecursionError("deep"), StopIteration])
def test_any_exception_is_one_line(error: BaseException) -> None:
    with pytest.raises(InputError, match=r"^f: ") as caught, as_guest("f"):
        raise error
    assert "\n" not in str(caught.value)


def test_ctrl_c_passes() -> None:
    with pytest.raises(KeyboardInterrupt), as_guest("f"):
        raise KeyboardInterrupt


SAID = {
    "an environment variable's value": "no answer for hunter2-hunter2",
    "a Hub token": "hf_" + "aB3" * 10,
    "a header": "{'Authorization': 'Bearer abcdef-123456'}",
    "a password in an address": "https://ann:s3cr3t-word@host/x",
    "a key in an address": "https://host/x?api_key=abcdef123456&y=1",
    "a key in a dictionary": "{'openai_token': 'abcdef123456'}",
}


@pytest.mark.parametrize("kind", SAID)
def test_an_exception_is_shown_without_secrets(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SCORES_API_KEY", "hunter2-hunter2")
    with pytest.raises(InputError) as caught, as_guest("f"):
        raise RuntimeError(SAID[kind])
    for secret in ("hunter2", "aB3aB3", "abcdef", "s3cr3t"):
        assert secret not in str(caught.value)
    assert "***" in str(caught.value)


def ended_child() -> None:
    if not os.fork():
        os._exit(0)


def exiting_child() -> None:
    if not os.fork():
        sys.exit(0)


def failing_child() -> None:
    if not os.fork():
        raise ValueError


TOLD = "f forked, and both processes returned from it"


@pytest.mark.parametrize(
    ("guest", "said"),
    [(os.fork, TOLD), (failing_child, TOLD), (ended_child, "came out"),
     (exiting_child, "came out"), (lambda: subprocess.run(["true"], check=True), "came out")],
)  # fmt: skip
def test_a_fork_that_comes_back_is_ended_and_told(
    guest: Callable[[], Any], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if said == "came out":
        monkeypatch.setattr(guests, "PATIENCE", 0.2)
    if (child := os.fork()) == 0:  # the program that has the guest
        for number in (1, 2):
            os.dup2(os.open(tmp_path / "said", os.O_WRONLY | os.O_CREAT | os.O_APPEND), number)
        sys.stderr = os.fdopen(2, "w")
        try:
            with as_guest("f"):
                guest()
            os.write(1, b"came out\n")
        except InputError as error:
            os.write(1, f"{error}\n".encode())
        finally:
            os.write(1, b"cleaned up\n")
            os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    words = (tmp_path / "said").read_text()
    assert said in words
    assert words.count("cleaned up") == 1  # by one process only


def test_processes_of_a_pool_are_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guests, "_wait_for_a_fork", lambda _: pytest.fail("it waits"))
    with as_guest("reward function f"):
        process = multiprocessing.get_context("fork").Process(target=int)
        process.start()
        process.join()
        subprocess.run(["true"], preexec_fn=lambda: None, check=True)  # noqa: PLW1509


def test_a_fork_that_has_ended_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_children(*_: int) -> None:
        raise ChildProcessError

    with as_guest("reward function f"):
        if not (child := os.fork()):
            os._exit(0)
        os.waitpid(child, 0)
        monkeypatch.setattr(os, "waitid", no_children)  # those of other tests may be there
        monkeypatch.setattr(guests.time, "sleep", lambda _: pytest.fail("it waits"))


def test_a_gpu_that_is_not_in_use_is_not_asked_for_its_random_state(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 8)
    monkeypatch.setattr(torch.cuda, "get_rng_state", lambda _: pytest.fail("it takes the GPU"))
    with as_guest("reward function f"):
        pass
    assert [*random_state()["torch"]] == ["cpu"]


def test_a_gpu_that_a_guest_takes_into_use_begins_anew_for_us(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seeds: list[int] = []
    monkeypatch.setattr(torch.cuda, "manual_seed_all", seeds.append)
    torch.manual_seed(11)
    seeds.clear()
    with as_guest("reward function f"):
        monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    assert seeds == [11]
