"""Signals at moments drawn by lot, also while a recipe is imported; readers and disks that go away.

One line or none, the right exit code, nothing unfinished left; and where only the reader of what is
printed has gone, the same files as ever.
"""

import os
import random
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

from benchmarks.faulty.kills import in_room, undisturbed
from benchmarks.faulty.kit import STAGES, difference, expect_tidy, kit, results
from benchmarks.faulty.room import ROOT, Ended, Fault, Room, Wrong

CODES = {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGHUP: 129}
SIGNALS = list(CODES)
ALONE = "ended in one line, code 128 + the signal's number"
BEFORE = "it had ended before"
AT_WORK = ("sample", "best_of_n", "label into a store", "label by a judge", "convert", "reward",
           "sft", "dpo", "kto", "rloo", "ppo", "merge", "evaluate", "reward_report", "report",
           "publish (dry run)", "compare")  # fmt: skip
PRINTING = ("sample", "label by a lexicon", "convert", "ratings", "sft", "ppo", "evaluate",
            "report")  # fmt: skip


def expect_one_line(ended: Ended) -> None:
    """Raise Wrong unless standard error has one line that tells of the end, and no traceback."""
    for words in ("Exception ignored", "leaked", "Error in sys."):
        ended.expect(words not in ended.err, f"it says {words!r}")
    lines = [line for line in ended.err.splitlines() if "interrupted" in line]
    ended.expect(len(lines) <= 1, "more than one line")
    ended.expect(not lines or lines[0].startswith("interrupted"), "the line goes on behind a bar")


def while_imported(recipe: str, signum: int, seconds: float, room: Room) -> str:
    """A signal so many seconds after the first line of a recipe has been run."""
    before = room.files()
    process = subprocess.Popen(
        [sys.executable, ROOT / "recipes" / f"{recipe}.py"],
        cwd=room.folder,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    room.until(lambda: process.poll() is not None or _handles(process.pid, signum))
    time.sleep(seconds)
    process.send_signal(signum)
    out, err = process.communicate(timeout=60)
    ended = Ended(room, process.returncode, out, err, before)
    expect_one_line(ended)
    if ended.code == CODES[signum]:
        ended.expect(err.startswith("interrupted") and err.count("\n") == 1, "not one line alone")
        return ALONE
    ended.expect(ended.code in (0, 2), "neither interrupted nor ended by itself")
    return BEFORE


def _handles(pid: int, signum: int) -> bool:
    """Whether this process has a handler for the signal."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    mask = next((line.split()[1] for line in lines if line.startswith("SigCgt")), "0")
    return bool(int(mask, 16) >> (signum - 1) & 1)


def at_work(name: str, signum: int, share: float, room: Room) -> str:
    """A signal after this share of a stage's time."""
    stage = STAGES[name]
    _, seconds = undisturbed(name)
    ended = room.killed(
        stage.recipe, *stage.words(kit()), after=share * seconds, by=signum, **in_room(room)
    )
    expect_one_line(ended)
    expect_tidy(room)
    if ended.code == CODES[signum]:
        ended.expect("interrupted" in ended.err, "it does not say so")
        return ALONE
    # The signal may have come before there was a handler for it.
    ended.expect(ended.code in (stage.code, -signum), "another exit code")
    return BEFORE if ended.code == stage.code else "ended by the signal before it was heard"


def twice(name: str, signum: int, share: float, pause: float, room: Room) -> str:
    """The same signal again after a pause: it ends at once."""
    stage = STAGES[name]
    _, seconds = undisturbed(name)
    process = room.start(stage.recipe, *stage.words(kit()), **in_room(room))
    process.join(share * seconds)
    for _ in range(2):
        if process.is_alive():
            os.kill(process.pid, signum)
        process.join(pause)
    process.join(5)
    if process.is_alive():
        raise Wrong("five seconds after the second signal it goes on")
    ended = room.wait(process)
    expect_one_line(ended)
    ended.expect(ended.code in (CODES[signum], stage.code, -signum), "another exit code")
    return ALONE if ended.code == CODES[signum] else BEFORE


def ignored(name: str, room: Room) -> str:
    """SIGHUP, to a process that was started by nohup."""
    stage = STAGES[name]
    expected, seconds = undisturbed(name)
    process = room.start(stage.recipe, *stage.words(kit()), first=_nohup, **in_room(room))
    process.join(0.5 * seconds)
    if process.is_alive() and (room.folder / "stderr").exists():
        os.kill(process.pid, signal.SIGHUP)
    ended = room.wait(process).done()
    return _same(ended, expected, "went on to the same files")


def without(what: str, name: str, room: Room) -> str:
    """A stage whose output cannot be written any more."""
    stage = STAGES[name]
    expected, _ = undisturbed(name)
    ended = room.recipe(
        stage.recipe, *stage.words(kit()), first=partial(_take_away, what), **in_room(room)
    ).done()
    expect_one_line(ended)
    warned = "warning: standard output: No space left" in ended.err
    ended.expect(
        warned == (what == "room on its disk"), "it does not tell of a full disk, and alone"
    )
    return _same(ended, expected, "went on to the same files")


def _same(ended: Ended, expected: dict[str, object], said: str) -> str:
    found = results(ended.room.folder)
    if found != expected:
        raise Wrong(f"not as undisturbed: {difference(found, expected)}")
    expect_tidy(ended.room)
    return said


def _nohup() -> None:
    signal.signal(signal.SIGHUP, signal.SIG_IGN)


def _take_away(what: str) -> None:
    """In the process of a recipe: put something in place of its standard output."""
    if what == "room on its disk":
        os.dup2(os.open("/dev/full", os.O_WRONLY), 1)
    elif what == "a stream":
        os.close(1)
    else:
        lines = {"a reader": "0", "a reader behind the first line": "1"}[what]
        head = subprocess.Popen(
            ["head", "-n", lines], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL
        )
        assert head.stdin is not None
        os.dup2(head.stdin.fileno(), 1)
        head.stdin.close()
        if lines == "0":
            head.wait()


def _faults() -> list[Fault]:
    lots = random.Random(9)
    faults = []
    recipes = sorted(path.stem for path in (ROOT / "recipes").glob("*.py"))
    for i, recipe in enumerate(recipes):
        signum, seconds = SIGNALS[i % 3], round(lots.uniform(0.0, 3.0), 2)
        name = f"{recipe}, {signum.name} after {seconds} s"
        run = partial(while_imported, recipe, signum, seconds)
        faults.append(Fault("endings: while it is imported", name, run))
    for i, stage in enumerate((*AT_WORK, *AT_WORK)):
        signum, share = SIGNALS[(i + i // len(AT_WORK)) % 3], lots.uniform(0.05, 0.95)
        name = f"{stage}, {signum.name} at {share:.0%}"
        run = partial(at_work, stage, signum, share)
        faults.append(Fault("endings: at work", name, run))
    for i, stage in enumerate(("sample", "sft", "evaluate", "ppo", "reward", "merge")):
        signum, share, pause = SIGNALS[i % 3], lots.uniform(0.3, 0.7), lots.uniform(0.01, 0.2)
        name = f"{stage}, {signum.name} at {share:.0%} and {pause:.2f} s later"
        run = partial(twice, stage, signum, share, pause)
        faults.append(Fault("endings: a second signal", name, run))
    for stage in ("sft", "ppo", "evaluate"):
        faults.append(Fault("endings: nohup", stage, partial(ignored, stage)))
    for what, count in (
        ("a reader", 8),
        ("a reader behind the first line", 8),
        ("room on its disk", 4),
        ("a stream", 4),
    ):
        for stage in PRINTING[:count]:
            run = partial(without, what, stage)
            faults.append(Fault(f"endings: output without {what}", stage, run))
    return faults


FAULTS = _faults()
