"""Signals during a run: the first is noted, the second obeyed, and all is put back afterwards."""

import signal
import threading
from pathlib import Path

import pytest

from toolkit.endings import SIGNALS, Stopped
from toolkit.errors import Interrupted
from toolkit.training.ppo.signals import Signals


@pytest.mark.parametrize("signum", SIGNALS)
def test_the_first_signal_is_noted_and_the_second_stops_at_once(
    signum: signal.Signals, capfd: pytest.CaptureFixture[str]
) -> None:
    signals = Signals(is_main=True)
    before = signal.getsignal(signum)
    with pytest.raises(Stopped) as stopped, signals.heard():
        signal.raise_signal(signum)
        assert signals.came == signum
        signal.raise_signal(signum)
    assert stopped.value.signum == signum
    assert signal.getsignal(signum) is before
    assert capfd.readouterr().err.count("finishing this update") == 1


def test_only_the_main_process_says_so(capfd: pytest.CaptureFixture[str]) -> None:
    signals = Signals(is_main=False)
    with signals.heard():
        signal.raise_signal(signal.SIGTERM)
    assert signals.came == signal.SIGTERM
    assert capfd.readouterr() == ("", "")


def test_what_is_ignored_stays_ignored() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        signals = Signals(is_main=False)
        with signals.heard():
            signal.raise_signal(signal.SIGHUP)
            assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
        assert signals.came == 0
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_signal_of_the_last_run_is_forgotten() -> None:
    signals = Signals(is_main=False)
    with signals.heard():
        signal.raise_signal(signal.SIGTERM)
    with signals.heard():
        assert signals.came == 0


def test_beside_the_main_thread_no_handler_is_set() -> None:
    found: list[object] = []

    def run() -> None:
        with Signals(is_main=True).heard():
            found.extend(signal.getsignal(s) for s in SIGNALS)

    before = [signal.getsignal(s) for s in SIGNALS]
    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert found == before


def test_the_exit_code_is_the_shells_for_the_signal() -> None:
    assert Interrupted(15, None).code == 143 and Interrupted(2, None).code == 130
    assert "SIGTERM: saved a/b (--resume auto continues)" in str(Interrupted(15, Path("a/b")))
    assert "SIGINT: nothing had to be saved" in str(Interrupted(2, None))
