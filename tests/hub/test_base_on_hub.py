"""The base's id is that of the base: compared by hash with what the Hub has."""

import shutil
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from toolkit.errors import InputError
from toolkit.hub.base_on_hub import UNKNOWN_ID, UNKNOWN_SHA, Base, check_repo_id, find_base
from toolkit.hub.connection import connect, model_info


@pytest.fixture
def local(tmp_path: Path, demo_model: str) -> Path:
    """A base in a folder that may be changed."""
    return Path(shutil.copytree(demo_model, tmp_path / "base"))


def find(name: Path | str, base_id: str | None = "org/base", **kwargs: Any) -> Base:
    return find_base(str(name), partial(model_info, connect()), base_id, **kwargs)


def test_a_folder_that_is_the_hubs_model_gets_its_commit_and_license(hub: Any, local: Path) -> None:
    sha = hub.add("org/base", local, {"license": "other", "license_name": "mine"})
    base = find(local)
    assert base == Base(local, "org/base", sha, {"license": "other", "license_name": "mine"})


def test_an_older_commit_is_found_by_its_revision(hub: Any, local: Path) -> None:
    sha = hub.add("org/base", local, {"license": "mit"})
    hub.repos["org/base"].commits.append({"config.json": b"{}"})
    assert len(find(local).problems) == 2  # the config is another, the weights are gone
    base = find(local, revision=sha)
    assert base.problems == [] and base.sha == sha


@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
def test_other_weights_or_another_config_are_refused(hub: Any, local: Path, name: str) -> None:
    hub.add("org/base", local, {"license": "mit"})
    content = bytearray((local / name).read_bytes())
    content[-2] ^= 1  # one bit
    (local / name).write_bytes(content)
    (problem,) = find(local).problems
    assert f"its {name} differs from the local one" in problem


def test_what_is_not_known_is_said_and_marked(hub: Any, local: Path) -> None:
    base = find(local, None)
    assert (base.repo_id, base.sha) == (UNKNOWN_ID, UNKNOWN_SHA)
    assert [line.split(":")[0] for line in base.problems] == ["base_model_id", "license"]
    assert "org/base: not verified" in find(local).problems[0]  # no such repository
    assert hub.waits == []


def test_offline_the_problem_is_a_line_and_not_an_error(
    hub: Any, local: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    base = find(local, revision="a" * 40, license="mit")
    assert base.problems == [
        "base org/base: not verified on the Hub: org/base: the Hub was not asked (HF_HUB_OFFLINE "
        "is set)"
    ]
    assert base.sha == "a" * 40 and base.license == {"license": "mit"} and hub.seen == []


def test_a_base_of_the_hub_is_the_commit_in_the_cache_not_the_newest(
    hub: Any, local: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sha = hub.add("org/base", local, {"license": "mit"})
    hub.repos["org/base"].commits.append({"config.json": b"{}"})
    cache = tmp_path / "cache"
    snapshot = cache / "models--org--base" / "snapshots" / sha
    shutil.copytree(local, snapshot)
    (cache / "models--org--base" / "refs").mkdir()
    (cache / "models--org--base" / "refs" / "main").write_text(sha)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(cache))
    assert find("org/base", None) == Base(snapshot, "org/base", sha, {"license": "mit"})
    with pytest.raises(InputError, match="but the adapter was trained on org/base"):
        find("org/base", "org/other")
    with pytest.raises(InputError, match="org/base at v9 is not in the Hub's cache"):
        find("org/base", None, revision="v9")


def test_the_license_is_the_bases_or_the_given_one_where_that_says_none(
    hub: Any, local: Path
) -> None:
    hub.add("org/base", local)
    assert find(local, license="mit").license == {"license": "mit"}
    assert find(local, license="mit\nmore: x").problems[0].startswith("license: 'mit")
    (local / "README.md").write_text("---\nlicense: apache-2.0\n---\n# Base\n")
    assert find(local).license == {"license": "apache-2.0"}
    assert find(local, license="mit").problems == [
        "license: mit, but the base has 'apache-2.0' (leave it out)"
    ]
    hub.repos["org/base"].card = {"license": "gpl-3.0"}
    assert find(local).license == {"license": "gpl-3.0"}


def test_a_base_that_changed_since_the_training_is_refused(hub: Any, local: Path) -> None:
    with pytest.raises(InputError, match="not the base that the adapter was trained on"):
        find(local, fingerprint="0" * 16)
    with pytest.raises(InputError, match="no such folder"):
        find(local / "moved")


@pytest.mark.parametrize("bad", [None, "", "name", "a/b/c", "/abs/path", "a/..", "a b/c", "a/b`"])
def test_an_id_is_owner_and_name(bad: str | None) -> None:
    with pytest.raises(InputError, match="must be OWNER/NAME"):
        check_repo_id(bad, "repo_id")
    assert check_repo_id("me/my-model_1.5", "repo_id") == "me/my-model_1.5"
