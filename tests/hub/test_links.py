"""Nothing follows a link out of a folder that is published, and what is sent was looked through."""

import os
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from toolkit.data.links import shown
from toolkit.errors import InputError
from toolkit.hub import gate
from toolkit.hub.adapter_source import TrainedAdapter, read_adapter
from toolkit.hub.base_on_hub import TOKENIZER_FILES, Base, find_base
from toolkit.hub.connection import connect, model_info
from toolkit.hub.gate import pass_gate
from toolkit.hub.merge import merge
from toolkit.hub.package import describe, listing, pack, read_template
from toolkit.hub.upload import publish
from toolkit.models.merging import merge_adapter
from toolkit.record import RunRecord

# huggingface_hub 2.4.0 lfs.py:334 passes a file to httpx2 as data=, which that calls deprecated.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=<...>':DeprecationWarning")
SECRET = '{"a diary": "that nothing looks like a secret in"}'


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    """A file of this machine that is to stay on it."""
    path = tmp_path / "elsewhere" / "diary.json"
    path.parent.mkdir()
    path.write_text(SECRET)
    return path


@pytest.fixture
def local(tmp_path: Path, demo_model: str) -> Path:
    """A base in a folder that may be changed."""
    return Path(shutil.copytree(demo_model, tmp_path / "base"))


@pytest.fixture
def source(adapters: Path, tmp_path: Path) -> TrainedAdapter:
    folder = tmp_path / "ppo" / "adapters" / "policy"
    return read_adapter(shutil.copytree(adapters / "ppo" / "adapters" / "policy", folder))


def linked(path: Path, outside: Path) -> None:
    path.symlink_to(outside)


def linked_relatively(path: Path, outside: Path) -> None:
    path.symlink_to(os.path.relpath(outside, path.parent))


def linked_twice(path: Path, outside: Path) -> None:
    (path.parent / "between").symlink_to(outside)
    path.symlink_to("between")


def by_a_folder(path: Path, outside: Path) -> None:
    (path.parent / "more").symlink_to(outside.parent)
    path.symlink_to(f"more/{outside.name}")


def to_nothing(path: Path, outside: Path) -> None:
    path.symlink_to(outside.with_name("gone"))


def in_a_circle(path: Path, outside: Path) -> None:
    path.symlink_to(path.name)


def a_pipe(path: Path, outside: Path) -> None:
    os.mkfifo(path)


def a_device(path: Path, outside: Path) -> None:
    path.symlink_to("/dev/zero")


def a_folder(path: Path, outside: Path) -> None:
    path.mkdir()


WAYS: list[Callable[[Path, Path], None]] = [
    linked,
    linked_relatively,
    linked_twice,
    by_a_folder,
    to_nothing,
    in_a_circle,
    a_pipe,
    a_device,
    a_folder,
]


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
@pytest.mark.parametrize("name", ["vocab.txt", "chat_template.jinja"])
def test_a_tokenizers_file_that_leads_out_of_the_base_is_named_and_nothing_is_staged(
    way: Callable[[Path, Path], None],
    name: str,
    source: TrainedAdapter,
    local: Path,
    outside: Path,
    tmp_path: Path,
) -> None:
    way(local / name, outside)
    base = Base(local, "org/base", "a" * 40, {"license": "mit"})
    with pytest.raises(InputError, match=f"base/{name} is (a link|not a regular file)") as refusal:
        pack(source, base, "# Card\n", None, tmp_path / "out")
    assert "\n" not in str(refusal.value) and not (tmp_path / "out").exists()
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith(".out")] == []


@pytest.mark.parametrize("name", TOKENIZER_FILES)
def test_every_file_of_a_tokenizer_is_held_to_that(
    name: str, source: TrainedAdapter, local: Path, outside: Path, tmp_path: Path
) -> None:
    (local / name).unlink(missing_ok=True)
    (local / name).symlink_to(outside)
    base = Base(local, "org/base", "a" * 40, {"license": "mit"})
    with pytest.raises(InputError, match="a link out of its folder"):
        pack(source, base, "# Card\n", None, tmp_path / "out")
    with pytest.raises(InputError, match="a link out of its folder"):
        merge(source, base, tmp_path / "merged", "fp32", None)
    with pytest.raises(InputError, match="a link out of its folder"):  # before it is read at all
        find_base(str(local), lambda *_: pytest.fail("asked"), "org/base", "main")
    assert not (tmp_path / "merged").exists()


def test_a_swap_for_a_link_after_reading_is_seen_when_staging(
    source: TrainedAdapter, local: Path, tmp_path: Path
) -> None:
    path = source.folder / "adapter_model.safetensors"
    path.rename(tmp_path / "moved")
    path.symlink_to(tmp_path / "moved")
    with pytest.raises(InputError, match="a link out of its folder"):
        pack(source, Base(local, "org/base", "a" * 40), "# Card\n", None, tmp_path / "out")


def test_the_hubs_cache_which_is_made_of_links_goes_on_working(
    source: TrainedAdapter, local: Path, outside: Path, tmp_path: Path
) -> None:
    repository = tmp_path / "hub" / "models--org--base"
    snapshot = repository / "snapshots" / ("a" * 40)
    snapshot.mkdir(parents=True)
    (repository / "blobs").mkdir()
    for i, file in enumerate(sorted(local.iterdir())):
        shutil.copy(file, repository / "blobs" / str(i))
        (snapshot / file.name).symlink_to(f"../../blobs/{i}")
    base = Base(snapshot, "org/base", "a" * 40, {"license": "mit"})
    staged = pack(source, base, "# Card\n", None, tmp_path / "out")
    held = {file.name for file in staged.files}
    assert {"tokenizer.json", "tokenizer_config.json"} <= held
    for name in held & set(TOKENIZER_FILES):
        path = staged.folder / name
        assert not path.is_symlink() and path.read_bytes() == (local / name).read_bytes()

    other = tmp_path / "hub" / "models--org--private" / "blobs"
    other.mkdir(parents=True)
    (other / "1").write_text(SECRET)
    (snapshot / "vocab.txt").symlink_to("../../../models--org--private/blobs/1")
    with pytest.raises(InputError, match="vocab.txt is a link out of its folder"):
        pack(source, base, "# Card\n", None, tmp_path / "out")


def agreed(monkeypatch: pytest.MonkeyPatch) -> None:
    """For the gate both sides agree."""
    numbers = gate.Probes([[1, 2]], [[-1.0]])
    monkeypatch.setattr(gate, "measure", lambda *_: numbers)
    monkeypatch.setattr(gate, "run_lines", lambda *_: numbers)


@pytest.mark.parametrize("name", ["vocab.txt", "tokenizer_config.json", "chat_template.jinja"])
def test_a_file_that_the_bases_commit_has_not_is_not_sent(
    name: str,
    hub: Any,
    source: TrainedAdapter,
    local: Path,
    outside: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A hard link cannot be told from a file: the comparison with the Hub tells it."""
    agreed(monkeypatch)
    hub.add("org/base", local, {"license": "mit"})
    (local / name).unlink(missing_ok=True)
    os.link(outside, local / name)
    base = find_base(str(local), partial(model_info, connect()), "org/base")
    staged = pack(source, base, "# Card\n", None, tmp_path / "out")
    problems = base.problems + pass_gate(source, base, "me/x", "# Card\n", staged.folder)
    (problem,) = problems
    assert problem.startswith("base org/base: ") and name in problem


def test_a_template_that_was_given_is_no_file_of_the_bases(
    hub: Any, source: TrainedAdapter, local: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    agreed(monkeypatch)
    hub.add("org/base", local, {"license": "mit"})
    base = find_base(str(local), partial(model_info, connect()), "org/base")
    staged = pack(source, base, "# Card\n", "{{ messages }}", tmp_path / "out")
    assert pass_gate(source, base, "me/x", "# Card\n", staged.folder) == []


def changed(path: Path, outside: Path) -> None:
    path.write_text("other")


def same_size(path: Path, outside: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def swapped_for_a_link(path: Path, outside: Path) -> None:
    path.unlink()
    path.symlink_to(outside)


def added(path: Path, outside: Path) -> None:
    path.with_name("vocab.txt").write_text(SECRET)


def taken_away(path: Path, outside: Path) -> None:
    path.unlink()


@pytest.mark.parametrize("name", ["README.md", "adapter_model.safetensors"])
@pytest.mark.parametrize(
    "swap", [changed, same_size, swapped_for_a_link, added, taken_away], ids=lambda f: f.__name__
)
def test_what_was_changed_after_it_was_looked_through_is_not_sent(
    swap: Callable[[Path, Path], None],
    name: str,
    hub: Any,
    source: TrainedAdapter,
    local: Path,
    outside: Path,
    tmp_path: Path,
) -> None:
    base = Base(local, "org/base", "a" * 40, {"license": "mit"})
    staged = pack(source, base, "# Card\n", None, tmp_path / "out")
    swap(staged.folder / name, outside)
    with pytest.raises(InputError, match="was changed after|a link out of its folder|is gone"):
        publish(connect(), "me/x", staged.folder, staged.files)
    assert hub.writes() == []


def test_a_swap_in_the_middle_of_sending_is_seen(
    hub: Any, source: TrainedAdapter, local: Path, outside: Path, tmp_path: Path
) -> None:
    """The files are held against their hashes again when they are read to be sent."""
    base = Base(local, "org/base", "a" * 40, {"license": "mit"})
    staged = pack(source, base, "# Card\n", None, tmp_path / "out")
    api = connect()

    def late(*arguments: Any, **options: Any) -> Any:
        (staged.folder / "README.md").write_text(SECRET)
        return made(*arguments, **options)

    made, api.create_repo = api.create_repo, late  # type: ignore[method-assign]
    with pytest.raises(InputError, match=r"README.md was changed after it was checked"):
        publish(api, "me/x", staged.folder, staged.files)
    assert SECRET not in str([repo.files for repo in hub.repos.values()])


def test_merging_a_foreign_adapter_copies_nothing_from_elsewhere(
    adapters: Path, local: Path, outside: Path, tmp_path: Path
) -> None:
    adapter = shutil.copytree(adapters / "ppo" / "adapters" / "policy", tmp_path / "adapter")
    templates = local / "additional_chat_templates"
    templates.mkdir()
    (templates / "tools.jinja").symlink_to(outside)
    with pytest.raises(InputError, match=r"tools.jinja is a link out of its folder"):
        merge_adapter(str(adapter), str(local), tmp_path / "merged", "fp32")
    shutil.rmtree(templates)
    (local / "chat_template.jinja").symlink_to(outside)
    with pytest.raises(InputError, match=r"chat_template.jinja is a link out of its folder"):
        merge_adapter(str(adapter), str(local), tmp_path / "merged", "fp32")
    assert not (tmp_path / "merged").exists()


@pytest.mark.parametrize("kind", ["a device", "a pipe", "a folder", "no template", "a big file"])
def test_a_template_that_is_none_is_refused_without_waiting(
    kind: str, source: TrainedAdapter, tmp_path: Path
) -> None:
    path = tmp_path / "t.jinja"
    if kind == "a device":
        path.symlink_to("/dev/zero")
    elif kind == "a pipe":
        os.mkfifo(path)
    elif kind == "a folder":
        path.mkdir()
    else:
        path.write_text(SECRET if kind == "no template" else "{{ x }}" * 200_000)
    with pytest.raises(InputError, match="neither plain nor a Jinja file"):
        read_template(source, str(path))


def test_run_json_names_no_file_of_this_machine(source: TrainedAdapter, tmp_path: Path) -> None:
    (tmp_path / "diary").write_text("{{ a diary }}")
    source.record = RunRecord(settings={"chat_template": str(tmp_path / "diary")})
    source.toolkit_json.pop("chat_template", None)
    with pytest.raises(InputError, match="run.json names the file .*pass the one"):
        read_template(source, None)


@pytest.mark.parametrize("name", ["a\nb", "a\x1b[2Jb", "a\rb", "a\u202eb"])
def test_a_name_with_control_characters_is_shown_in_one_line(
    name: str, source: TrainedAdapter, local: Path, tmp_path: Path
) -> None:
    (source.folder / name).write_text("x")
    base = Base(local, "org/base", "a" * 40, {"license": "mit"})
    staged = pack(source, base, "# Card\n", None, tmp_path / "out")
    text = describe(staged, "me/x", True)
    assert name not in text and text.splitlines()[-1].endswith(shown(name))
    assert listing(staged.folder) == staged.files
