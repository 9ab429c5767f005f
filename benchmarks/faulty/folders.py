"""Outputs that another run holds, that a dead one left locked, or that cannot be written."""

import fcntl
import json
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path

from benchmarks.faulty.room import LEXICON, ROOT, Fault, Room, Wrong

# Each recipe that writes: the flag of its output, and what else it needs to be told.
FOLDERS: dict[str, list[object]] = {
    "reward": [], "ppo": ["--lexicon", LEXICON], "sft": [], "preference": [], "rloo": [],
    "evaluate": ["--lexicon", LEXICON], "merge": ["--adapter", "a"], "report": ["--runs", "r"],
    "demo": [], "sweep": [], "demo_model": [],
}  # fmt: skip
FILES: dict[str, list[object]] = {
    "sample": [],
    "label": ["--lexicon", LEXICON],
    "best_of_n": ["--reward_adapter", "r"],
    "convert": ["--input", "i.jsonl"],
    "ratings": ["--comparisons", "c.jsonl"],
    "trl_config": ["--input", "recipes/configs/demo/ppo.yaml"],
}
WHOLE = ("merge", "demo_model")  # replaced as a whole, and so locked beside their place
WHERE_DEMO_WRITES = Path("outputs/demo")


def _words(recipe: str, output: str | Path) -> list[object]:
    if recipe == "publish":
        return ["--repo_id", "a/x", "--output_dir", Path(output).parent, "--dry_run"]
    if recipe == "demo":  # writes where it writes
        return []
    flag = "--output_dir" if recipe in FOLDERS else "--output"
    return [*({**FOLDERS, **FILES}[recipe]), flag, output]


def _lock_of(recipe: str, output: Path) -> Path:
    if recipe == "publish":
        return output.with_name(".lock-a--x")
    inside = recipe in FOLDERS and recipe not in WHOLE
    return output / ".lock" if inside else output.with_name(f".lock-{output.name}")


def _output(room: Room, recipe: str) -> Path:
    """A place in the room, and what recipes look for from the repository's folder."""
    for name in ("data", "recipes"):
        (room.folder / name).symlink_to(ROOT / name)
    return WHERE_DEMO_WRITES if recipe == "demo" else Path("out/x.jsonl")


def held(room: Room, recipe: str) -> str:
    output = _output(room, recipe)
    marker = room.write(
        str(_lock_of(recipe, output)),
        json.dumps({"host": "elsewhere", "pid": 7, "start": "2026-01-01T00:00:00+00:00"}),
    )
    with open(marker, "r+b") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        ended = room.recipe(recipe, *_words(recipe, output))
        return ended.refused(
            "is being written by another run, process 7 on elsewhere, begun 2026-01-01"
        )


def name_too_long(room: Room, recipe: str) -> str:
    _output(room, recipe)
    return room.recipe(recipe, *_words(recipe, "n" * 300 + ".jsonl")).refused("File name too long")


def below_a_file(room: Room, recipe: str) -> str:
    _output(room, recipe)
    room.write("file", "x")
    return room.recipe(recipe, *_words(recipe, "file/x.jsonl")).refused()


def not_writable(room: Room, recipe: str) -> str:
    _output(room, recipe)
    return room.recipe(recipe, *_words(recipe, "/proc/x/y.jsonl")).refused("cannot be written")


def no_room(room: Room, recipe: str) -> str:
    """No file may grow to what is tried, as under a quota."""
    _output(room, recipe)
    return room.recipe(recipe, *_words(recipe, "out/x.jsonl"), FAULTY_FILE_SIZE="4096").refused(
        "cannot be written"
    )


def something_there(room: Room, recipe: str) -> str:
    output = _output(room, recipe)
    room.write(str(output if recipe in FILES else output / "mine.txt"), "mine")
    return room.recipe(recipe, *_words(recipe, output)).refused("exists (pass --overwrite")


def foreign_lock(room: Room, recipe: str) -> str:
    """Another program's file, which has a second name elsewhere: it stays as it is."""
    output = _output(room, recipe)
    marker = room.write(str(_lock_of(recipe, output)), "12345 of another program")
    os.link(marker, room.folder / "precious")
    ended = room.recipe(recipe, *_words(recipe, output))
    ended.expect((room.folder / "precious").read_text() == "12345 of another program", "lost")
    ended.expect(marker.samefile(room.folder / "precious"), "the lock's file is gone")
    return ended.refused("was not written by this toolkit (delete it")


def no_lock(room: Room, recipe: str, kind: str) -> str:
    """What has the lock's name is no file: it is neither followed nor waited for."""
    output = _output(room, recipe)
    marker = room.folder / _lock_of(recipe, output)
    marker.parent.mkdir(parents=True, exist_ok=True)
    room.write("precious", "mine")
    if kind == "link":
        marker.symlink_to(room.folder / "precious")
    else:
        os.mkfifo(marker)
    ended = room.recipe(recipe, *_words(recipe, output), seconds=60)
    ended.expect((room.folder / "precious").read_text() == "mine", "followed the link")
    ended.expect(os.path.lexists(marker), "took it away")
    return ended.refused("must be a lock file, but is a link, a folder or the like")


def a_pipe(room: Room, recipe: str) -> str:
    """Where a pipe is, no file takes its place, not even when told to overwrite."""
    _output(room, recipe)
    os.mkfifo(room.folder / "pipe.jsonl")
    ended = room.recipe(recipe, *_words(recipe, "pipe.jsonl"), "--overwrite", "true", seconds=60)
    ended.expect((room.folder / "pipe.jsonl").is_fifo(), "the pipe is gone")
    return ended.refused("a pipe, a device or the like")


def rank_left(room: Room, recipe: str) -> str:
    """RANK=1 in the environment of a process that is alone: nothing is overwritten unasked."""
    output = _output(room, recipe)
    there = room.write(str(output if recipe in FILES else output / "mine.txt"), "mine")
    ended = room.recipe(recipe, *_words(recipe, output), RANK="1")
    ended.expect(there.read_text() == "mine", "overwritten")
    return ended.refused("exists (pass --overwrite")


SAMPLE = ["--limit", 8, "--completions", 2, "--response_length", 4, "--output", "s.jsonl"]


def left_locked(room: Room, recipe: str) -> str:
    """By a run that is dead: the next one says so, and comes to what it would have come to."""
    _output(room, recipe)
    room.recipe("sample", *SAMPLE).done()
    expected = (room.folder / "s.jsonl").read_bytes()
    os.remove(room.folder / "s.jsonl")
    room.write(".lock-s.jsonl", '{"host": "h", "pid": 1, "start": "2026"}')
    ended = room.recipe("sample", *SAMPLE).done()
    ended.expect("was being written by process 1 on h, begun 2026" in ended.err, "not a word")
    ended.expect((room.folder / "s.jsonl").read_bytes() == expected, "another result")
    ended.expect(list(room.files()) == ["s.jsonl"], "the lock stayed")
    return "taken over, and said"


def two_at_once(room: Room, recipe: str) -> str:
    """Started at the same moment, as a scheduler does: one works, one is refused."""
    _output(room, recipe)
    words = {
        "sample": ["sample", *SAMPLE],
        "ppo": [
            "ppo",
            "--lexicon",
            LEXICON,
            "--total_episodes",
            64,
            "--per_device_train_batch_size",
            32,
            "--response_length",
            4,
            "--output_dir",
            "out",
            "--resume",
            "auto",
        ],
    }[recipe]
    first = room.start(*words)
    marker = room.folder / ("out/.lock" if recipe == "ppo" else ".lock-s.jsonl")
    room.until(marker.exists)
    second = Room(room.folder / "second")
    second.folder.mkdir()
    words[-1 if recipe == "sample" else words.index("out")] = str(
        room.folder / ("s.jsonl" if recipe == "sample" else "out")
    )
    said = second.recipe(*words).refused("is being written by another run")
    room.wait(first).done()
    if recipe == "ppo":
        rows = (room.folder / "out" / "log.jsonl").read_text().splitlines()
        if [json.loads(row)["update"] for row in rows] != [1, 2]:
            raise Wrong(f"log.jsonl: {rows}")
    return said


def _each(
    kind: str, tried: Callable[[Room, str], str], recipes: list[str], name: str
) -> list[Fault]:
    return [Fault(kind, f"{recipe}: {name}", partial(tried, recipe=recipe)) for recipe in recipes]


KINDS = "two runs in one place", "outputs that cannot be written"
TAKEN = "outputs that are taken"
NAMED = [name for name in [*FOLDERS, *FILES] if name != "demo"]
FAULTS = [
    *_each(KINDS[0], held, [*FOLDERS, *FILES, "publish"], "its output is another's"),
    *_each(KINDS[0], two_at_once, ["sample", "ppo"], "started twice at once"),
    *_each(KINDS[0], left_locked, ["sample"], "left locked by a run that was killed"),
    *_each(KINDS[1], name_too_long, NAMED, "a name too long"),
    *_each(KINDS[1], below_a_file, NAMED, "in a file as if it were a folder"),
    *_each(KINDS[1], not_writable, NAMED, "where nothing can be written"),
    *_each(KINDS[1], no_room, NAMED, "no room"),
    *_each(KINDS[1], a_pipe, [*FILES], "a pipe"),
    *_each(TAKEN, something_there, [n for n in NAMED if n != "sweep"], "somebody's file is there"),
    *_each(TAKEN, rank_left, [n for n in NAMED if n != "sweep"], "a RANK is left over"),
    *_each(TAKEN, foreign_lock, [*NAMED, "publish"], "another program's lock is there"),
    *_each(TAKEN, partial(no_lock, kind="link"), [*NAMED, "publish"], "its lock is a link"),
    *_each(TAKEN, partial(no_lock, kind="pipe"), [*NAMED, "publish"], "its lock is a pipe"),
]
