"""Links out of folders that are published, and files that are swapped before they are sent."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from benchmarks.faulty.adapters import weights, write_adapter
from benchmarks.faulty.room import MODEL, REFUSED, Fault, Room, Wrong
from toolkit.hub.base_on_hub import TOKENIZER_FILES

DIARY = "a diary that looks like no secret at all\n"
OF_ADAPTERS = ("adapter_config.json", "adapter_model.safetensors", "toolkit.json")


def link(path: Path, diary: Path) -> None:
    path.symlink_to(diary)


def relative_link(path: Path, diary: Path) -> None:
    path.symlink_to(os.path.relpath(diary, path.parent))


def link_to_a_link(path: Path, diary: Path) -> None:
    (path.parent / "between").symlink_to(diary)
    path.symlink_to("between")


def link_by_a_folder(path: Path, diary: Path) -> None:
    (path.parent / "more").symlink_to(diary.parent)
    path.symlink_to(f"more/{diary.name}")


def link_to_nothing(path: Path, diary: Path) -> None:
    path.symlink_to("/nowhere/at/all")


def link_to_itself(path: Path, diary: Path) -> None:
    path.symlink_to(path.name)


def pipe(path: Path, diary: Path) -> None:
    os.mkfifo(path)


def device(path: Path, diary: Path) -> None:
    path.symlink_to("/dev/zero")


def key(path: Path, diary: Path) -> None:
    diary.write_text("-----BEGIN OPENSSH PRIVATE KEY-----\nb3BlbnNzaC1rZXk\n")
    path.symlink_to(diary)


WAYS: tuple[Callable[[Path, Path], None], ...] = (
    link,
    relative_link,
    link_to_a_link,
    link_by_a_folder,
    link_to_nothing,
    link_to_itself,
    pipe,
    device,
    key,
)


def _diary(room: Room) -> Path:
    return room.write("elsewhere/diary", DIARY)


def _publish(room: Room, *words: object) -> Any:
    return room.recipe(
        "publish",
        "--adapter",
        "adapter",
        "--model_name_or_path",
        "base",
        "--repo_id",
        "me/x",
        "--base_model_id",
        "org/base",
        "--license",
        "mit",
        "--output_dir",
        "out",
        "--dry_run",
        "true",
        *words,
        seconds=60,
    )


def _of_the_base(name: str, way: Callable[[Path, Path], None]) -> Any:
    def run(room: Room) -> str:
        write_adapter(room)
        base = Path(shutil.copytree(MODEL, room.folder / "base"))
        (base / name).unlink(missing_ok=True)
        way(base / name, _diary(room))
        return _publish(room).refused(name)

    return run


def _of_the_adapter(name: str, way: Callable[[Path, Path], None]) -> Any:
    def run(room: Room) -> str:
        adapter = write_adapter(room)
        shutil.copytree(MODEL, room.folder / "base")
        moved = room.write("elsewhere/moved", (adapter / name).read_bytes())
        (adapter / name).unlink()
        way(adapter / name, moved)
        return _publish(room).refused(name)

    return run


def _merged(name: str) -> Any:
    def run(room: Room) -> str:
        write_adapter(room)
        base = Path(shutil.copytree(MODEL, room.folder / "base"))
        (base / name).unlink(missing_ok=True)
        (base / name).parent.mkdir(exist_ok=True)
        (base / name).symlink_to(_diary(room))
        return room.recipe(
            "merge", "--adapter", "adapter", "--model_name_or_path", "base", "--output_dir", "out"
        ).refused(Path(name).name)

    return run


def _told_by_run_json(where: str) -> Any:
    def run(room: Room) -> str:
        head = {"base_model.model.score.weight": weights()[next(iter(weights()))][:1]}
        write_adapter(room, {"task_type": "SEQ_CLS"}, "run/adapter", weights() | head)
        shutil.copytree(MODEL, room.folder / "base")
        diary = room.write("elsewhere/diary", "{{ a diary }}")
        named = {"whole": str(diary), "relative": "elsewhere/diary", "device": "/dev/zero"}[where]
        room.write("run/run.json", json.dumps({"settings": {"chat_template": named}}))
        return _publish(room, "--adapter", "run/adapter").refused("chat_template")

    return run


def _swapped(name: str, swap: Callable[[Path, Path], None]) -> Any:
    """Between the look through the files and their sending, against a Hub that takes all."""

    def run(room: Room) -> str:
        from toolkit.errors import InputError
        from toolkit.hub import upload
        from toolkit.hub.package import listing

        for file in ("README.md", "adapter_config.json", "tokenizer.json"):
            room.write(f"staged/{file}", f"what was looked through in {file}")
        files, sent = listing(room.folder / "staged"), []

        def take(repo: str, operations: list[Any], **_: Any) -> Any:
            sent.extend(operations)
            return SimpleNamespace(oid="0" * 40)

        there = SimpleNamespace(private=True, siblings=[], sha="0" * 40)
        hub = SimpleNamespace(
            create_commit=take, model_info=lambda *_, **__: there, endpoint="https://hub"
        )
        swap(room.folder / "staged" / name, _diary(room))
        try:
            upload.publish(hub, "me/x", room.folder / "staged", files)  # type: ignore[arg-type]
        except InputError as error:
            if sent or name not in str(error) or "\n" in str(error):
                raise Wrong(f"sent {len(sent)} files; {error}") from None
            return REFUSED
        raise Wrong("it was sent")

    return run


def changed(path: Path, diary: Path) -> None:
    path.write_text(DIARY)


def one_bit(path: Path, diary: Path) -> None:
    content = bytearray(path.read_bytes())
    content[3] ^= 1
    path.write_bytes(content)


def longer(path: Path, diary: Path) -> None:
    path.write_bytes(path.read_bytes() + b"\n")


def gone(path: Path, diary: Path) -> None:
    path.unlink()


def linked(path: Path, diary: Path) -> None:
    path.unlink()
    path.symlink_to(diary)


def piped(path: Path, diary: Path) -> None:
    path.unlink()
    os.mkfifo(path)


KIND = "publishing: "
FAULTS = [
    *(
        Fault(f"{KIND}links in the base", f"{way.__name__} {name}", _of_the_base(name, way))
        for name in TOKENIZER_FILES
        for way in (WAYS if name in ("vocab.txt", "chat_template.jinja") else (link,))
    ),
    *(
        Fault(f"{KIND}links in the adapter", f"{way.__name__} {name}", _of_the_adapter(name, way))
        for name in OF_ADAPTERS
        for way in (link, relative_link, link_to_a_link)
    ),
    *(
        Fault(f"{KIND}links in what is merged", name, _merged(name))
        for name in (
            "tokenizer.json",
            "chat_template.jinja",
            "special_tokens_map.json",
            "additional_chat_templates/tools.jinja",
        )
    ),
    *(
        Fault(f"{KIND}a template that run.json names", where, _told_by_run_json(where))
        for where in ("whole", "relative", "device")
    ),
    *(
        Fault(f"{KIND}swapped before it is sent", f"{swap.__name__} {name}", _swapped(name, swap))
        for name in ("README.md", "adapter_config.json", "tokenizer.json")
        for swap in (changed, one_bit, longer, gone, linked, piped)
    ),
]
