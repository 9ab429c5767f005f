"""Flags of the label store and the labeling page."""

import re
from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import Annotated, ClassVar

from toolkit.errors import InputError, check_range
from toolkit.flags import Flags, Range, Share, flag
from toolkit.labeling.addresses import is_loopback
from toolkit.labeling.store import Asked, Settings, person_name

# What the extra `label` brings, by the names that Python imports.
WEB_SERVER = ("starlette", "uvicorn", "python_multipart")


@dataclass
class StoreArguments(Flags):
    """The label store and the labeling page."""

    HELP_GROUP: ClassVar[str] = "store and labeling page"

    store: str | None = flag(
        None, "SQLite file for items and labels. With --serve: outputs/labels.sqlite unless named."
    )
    serve: bool = flag(False, "Serve the labeling page until Ctrl-C.")
    host: str = flag("127.0.0.1", "Address at which to serve the page.")
    port: Annotated[int, Range(low=0, high=65_535)] = flag(
        8000, "Port of the page; 0 takes any free port."
    )
    public_host: list[str] = field(
        default_factory=list,
        metadata={
            "help": "Names by which other machines reach the page, as browsers show them: "
            "label.example.org, or 192.168.1.5:8000 if the port is not the usual one."
        },
    )
    https: bool = flag(
        False,
        "Set this if a proxy or a tunnel speaks https in front of the page. Needs --public_host.",
    )
    invite: str | None = flag(
        None, "People to invite, separated by commas. Each new name gets an invite link."
    )
    reinvite: bool = flag(False, "Make new links for invited names too. Their old links end.")
    backup: str | None = flag(
        None,
        "Copy --store to this file, then exit. This is safe while people label: the copy is "
        "written whole or not at all.",
    )
    guidelines: str | None = flag(
        None, "Text file that tells people what to look for. The page shows it above the items."
    )
    ask: str | None = flag(
        None,
        "What the page asks of people: best, best_and_worst, or ranking (of at most 8); and any of "
        "strength (how much better the best is), comment, edit (a better answer of their own), "
        "separated by commas. The store keeps it; a new store asks for the best.",
    )
    gold: str | None = flag(
        None, "JSONL of comparisons whose `best` is known, to check the labelers with."
    )
    overlap: Share = flag(0.15, "Share of the items that two people label.")
    repeats: Share = flag(0.05, "Share of hidden repeats among the items that a person sees.")
    gold_share: Share = flag(0.05, "Share of gold items among the items that a person sees.")
    lease_minutes: Annotated[float, Range(above=0, high=60 * 24 * 365)] = flag(
        30.0, "Minutes for which an item stays reserved for the person who is looking at it."
    )
    requests_per_second: Annotated[float, Range(above=0, high=1e6)] = flag(
        20.0, "Requests per second that one session may send before it has to wait."
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range("repeats + gold_share", self.repeats + self.gold_share, low=0, high=0.9)
        self.public_host = [browsers_name(name, self.https) for name in self.public_host]
        if self.https and not self.public_host:
            raise InputError(
                "https: browsers reach the page by the proxy's name (add --public_host NAME)",
                "https",
            )

        if self.names and not self.serve:
            raise InputError("invite: links need the page (add --serve)", "invite")
        if self.asked is not None and not self.serve:
            raise InputError("ask: only people are asked (add --serve)", "ask")
        if self.reinvite and not self.names:
            raise InputError("reinvite: no names are given (add --invite NAME,NAME)", "reinvite")
        if self.backup is not None and self.serve:
            raise InputError(
                "backup: only copies the store, which another process may be serving (leave out "
                "--serve)",
                "backup",
            )

        missing = [name for name in WEB_SERVER if self.serve and not find_spec(name)]
        if missing:
            raise InputError(
                f"serve: the labeling page needs {', '.join(missing).replace('_', '-')} "
                '(pip install "preference-toolkit[label]")',
                "serve",
            )

        if self.serve and not is_loopback(self.host) and not self.public_host:
            raise InputError(
                f"host: other machines can reach {self.host} (add --public_host NAME:PORT with the "
                "names that they use, and put an https proxy in front of the page)",
                "host",
            )

    @property
    def names(self) -> list[str]:
        """The names to invite, without duplicates."""
        given = [name for name in (self.invite or "").split(",") if name.strip()]
        return list(dict.fromkeys(map(person_name, given)))

    @property
    def asked(self) -> Asked | None:
        """What to ask of people; None if no flag says so, or an empty one."""
        return Asked.of(self.ask) if self.ask else None

    @property
    def path(self) -> str | None:
        """The store's file; None if no store is used."""
        return self.store or ("outputs/labels.sqlite" if self.serve else None)

    def needed_by(self, judge_url: str | None) -> None:
        """Raise InputError if a flag is given that needs a store."""
        given = {
            "judge_url": judge_url,
            "invite": self.invite,
            "gold": self.gold,
            "backup": self.backup,
        }
        for name, value in given.items():
            if value is not None:
                raise InputError(f"{name}: needs a store (add --store FILE)", name)

    @property
    def settings(self) -> Settings:
        """The store's settings for handing out items."""
        return Settings(self.overlap, self.repeats, self.gold_share, 60 * self.lease_minutes)


def browsers_name(name: str, https: bool) -> str:
    """Return a host name as browsers send it: in small letters, without the scheme's usual port.

    >>> browsers_name("Label.Example.org:443", https=True)
    'label.example.org'

    Raises:
        InputError: the text is not a host name with or without a port.
    """
    if not re.fullmatch(r"([\w.-]+|\[[\da-fA-F:.]+\])(:\d{1,5})?", name, re.ASCII):
        raise InputError(
            f"public_host: {name!r} is not NAME or NAME:PORT (leave out https:// and what follows "
            "the name; write letters other than a to z as browsers do, as xn--...)",
            "public_host",
        )
    return name.lower().removesuffix(":443" if https else ":80")
