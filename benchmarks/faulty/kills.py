"""SIGKILL at a moment drawn by lot; then the same command again.

It must come to the files of a run that nobody disturbed (times apart), or say in one line that
something is there, and then do so with --overwrite; and nothing unfinished may stay.
"""

import functools
import random
import signal
import tempfile
import threading
import time
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.faulty.kit import STAGES, Stage, difference, expect_tidy, kit, results
from benchmarks.faulty.room import Ended, Fault, Room, Wrong

MOMENTS = {"compare": 3, "sweep": 3, "reward_report": 4, "publish (dry run)": 4}
EACH = 6
_measuring = {name: threading.Lock() for name in STAGES}


def in_room(room: Room) -> dict[str, str]:
    """The environment of a run whose scratch folders are the room's."""
    (room.folder / "tmp").mkdir(exist_ok=True)
    return {"TMPDIR": str(room.folder / "tmp")}


def undisturbed(name: str) -> tuple[dict[str, Any], float]:
    """What a stage writes when nobody disturbs it, and the seconds that it takes."""
    with _measuring[name]:
        return _undisturbed(name)


@functools.cache
def _undisturbed(name: str) -> tuple[dict[str, Any], float]:
    stage, inputs = STAGES[name], kit()
    seconds = float("inf")
    for _ in range(2):  # the shorter time: the machine may have been busy with other faults
        with tempfile.TemporaryDirectory() as folder:
            room = Room(Path(folder))
            started = time.monotonic()
            ended = room.recipe(stage.recipe, *stage.words(inputs), **in_room(room))
            seconds = min(seconds, time.monotonic() - started)
            ended.expect(ended.code == stage.code, "undisturbed it did not end well")
            expect_tidy(room)
            found = results(room.folder)
    return found, seconds


def again(room: Room, stage: Stage) -> tuple[Ended, str]:
    """The same command, and, if it says that something is there, with what it then wants."""
    words = stage.words(kit())
    ended = room.recipe(stage.recipe, *words, **in_room(room))
    asked = next((more for more in stage.again if f"(pass {more}" in ended.err), None)
    if ended.code == 2 and asked is not None:
        lines = [line for line in ended.err.splitlines() if not line.startswith("note: ")]
        ended.expect(len(lines) == 1 and lines[0].startswith("error: "), "not one line")
        more = room.recipe(stage.recipe, *words, *asked.split(), **in_room(room))
        return more, f"told to pass {asked}, and then the same files"
    return ended, "the same files by the same command"


def killed(name: str, share: float, room: Room) -> str:
    """Kill a stage after this share of its time, and run it again."""
    stage = STAGES[name]
    expected, seconds = undisturbed(name)
    first = room.killed(stage.recipe, *stage.words(kit()), after=share * seconds, **in_room(room))
    was_killed = first.code == -signal.SIGKILL
    if not was_killed:
        first.expect(first.code == stage.code, "it did not end well before it was killed")
    ended, how = again(room, stage)
    if not was_killed and not stage.again and stage.code == 0:
        return "it had ended before"
    ended.expect(ended.code == stage.code, "the same command again did not end well")
    found = results(room.folder)
    if found != expected:
        raise Wrong(f"not as undisturbed: {difference(found, expected)}")
    expect_tidy(room)
    return how


def _faults() -> list[Fault]:
    lots = random.Random(9)
    faults = []
    for name in STAGES:
        count = MOMENTS.get(name, EACH)
        for i in range(count):
            share = (i + lots.random()) / count
            faults.append(
                Fault(f"kills: {name}", f"at {share:.0%} of its time", partial(killed, name, share))
            )
    return faults


FAULTS = _faults()
