"""The store's flags: what goes with what, and what the page is told of them."""

import importlib.util
import re
import tomllib
from pathlib import Path

import pytest

from toolkit.cli import parse
from toolkit.errors import InputError
from toolkit.labeling import arguments
from toolkit.labeling.arguments import WEB_SERVER, StoreArguments


@pytest.mark.parametrize(
    ("told", "said"),
    [
        ({"invite": "ann"}, "add --serve"),
        ({"serve": True, "reinvite": True}, "reinvite: no names"),
        ({"ask": "ranking"}, "ask: only people are asked"),
        ({"serve": True, "ask": "rank"}, "ask: 'rank', but must be one of best, best_and_worst"),
        ({"serve": True, "invite": "a\u202eb"}, "printable"),
        ({"serve": True, "invite": "x" * 61}, "1 to 60"),
        ({"serve": True, "host": "0.0.0.0"}, "other machines can reach"),
        ({"public_host": ["https://labels.example"]}, "is not NAME or NAME:PORT .leave out https"),
        ({"public_host": [""]}, "public_host: '' is not NAME"),
        ({"public_host": ["l\u00e4bel.example"]}, "as xn--"),
        ({"serve": True, "https": True}, "https: browsers reach .* .add --public_host NAME"),
        ({"serve": True, "backup": "b.sqlite"}, "backup: only copies the store"),
        ({"repeats": 0.5, "gold_share": 0.5}, r"repeats \+ gold_share is 1, but must be at most"),
        ({"port": 65_536}, "port is 65536, but must be at most 65535"),
    ],
)
def test_flags_that_make_no_sense_together_are_refused(told: dict[str, object], said: str) -> None:
    with pytest.raises(InputError, match=said):
        StoreArguments(**told)  # type: ignore[arg-type]


def test_a_page_for_other_machines_is_served_by_the_names_that_were_given() -> None:
    args = StoreArguments(serve=True, host="0.0.0.0", public_host=["labels.example:443"])
    assert args.public_host == ["labels.example:443"]


@pytest.mark.parametrize(
    ("given", "https", "sent"),
    [  # RFC 9110, 7.2: the Host header leaves out the scheme's own port
        ("Label.Example.org", True, "label.example.org"),
        ("label.example.org:443", True, "label.example.org"),
        ("label.example.org:443", False, "label.example.org:443"),
        ("label.example.org:80", False, "label.example.org"),
        ("label.example.org:4443", True, "label.example.org:4443"),
        ("192.168.1.5:8000", False, "192.168.1.5:8000"),
        ("[2001:db8::1]:8000", False, "[2001:db8::1]:8000"),
    ],
)
def test_a_public_name_is_what_browsers_send(given: str, https: bool, sent: str) -> None:
    assert StoreArguments(serve=True, public_host=[given], https=https).public_host == [sent]


def test_who_is_invited_is_invited_once_whatever_spaces_stand_around_the_name() -> None:
    assert StoreArguments(serve=True, invite="ann, bob,ann,, Bob ").names == ["ann", "bob", "Bob"]
    assert StoreArguments().names == []


def test_what_people_are_asked_is_told_or_left_to_the_store() -> None:
    assert StoreArguments(serve=True).asked is None
    assert str(StoreArguments(serve=True, ask="edit,ranking").asked) == "ranking,edit"


def test_a_page_has_a_store_and_without_a_page_there_is_one_only_if_named() -> None:
    assert StoreArguments().path is None
    assert StoreArguments(serve=True).path == "outputs/labels.sqlite"
    assert StoreArguments(serve=True, store="mine.sqlite").path == "mine.sqlite"


def test_minutes_become_the_seconds_for_which_an_item_waits() -> None:
    settings = StoreArguments(lease_minutes=0.5, overlap=0.25, gold_share=0.1).settings
    assert (settings.lease, settings.overlap, settings.gold) == (30, 0.25, 0.1)


@pytest.mark.parametrize("name", ["gold", "backup"])
def test_what_works_in_a_store_alone_asks_for_one(name: str) -> None:
    with pytest.raises(InputError, match=f"^{name}: needs a store"):
        StoreArguments(**{name: "x"}).needed_by(None)
    with pytest.raises(InputError, match=r"^judge_url: needs a store"):
        StoreArguments().needed_by("http://localhost")
    StoreArguments().needed_by(None)


def test_without_the_web_server_the_page_is_refused_with_the_extra_that_brings_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(
        arguments, "find_spec", lambda name: None if name == "uvicorn" else found(name)
    )
    path = tmp_path / "c.yaml"
    path.write_text("port: 0\nserve: true\n")
    with pytest.raises(InputError) as caught:
        parse(StoreArguments, argv=["--config", str(path)])
    assert str(caught.value) == (
        f"{path}:2: serve: the labeling page needs uvicorn "
        '(pip install "preference-toolkit[label]")'
    )
    assert StoreArguments(store="labels.sqlite").path == "labels.sqlite"  # a script needs no page


def test_the_extra_brings_what_the_page_needs(root: Path) -> None:
    project = tomllib.loads((root / "pyproject.toml").read_text())["project"]
    names = [re.split("[<>=]", line)[0] for line in project["optional-dependencies"]["label"]]
    assert sorted(name.replace("-", "_") for name in names) == sorted(WEB_SERVER)
    assert not set(names) & {re.split("[<>=]", line)[0] for line in project["dependencies"]}
