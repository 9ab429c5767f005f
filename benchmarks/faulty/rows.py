"""Rows that are none."""

from benchmarks.faulty.room import MODEL, Fault, Room


def _a_number(room: Room) -> str:
    room.write("p.jsonl", '{"prompt": 7}\n')
    return room.recipe(
        "sample", "--prompts", "p.jsonl", "--output", "out.jsonl", "--model_name_or_path", MODEL
    ).refused("p.jsonl:1")


FAULTS = [Fault("rows", "a prompt that is a number", _a_number)]
