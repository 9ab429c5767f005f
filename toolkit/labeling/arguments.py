"""The flags of the store of labels and of the page that people label on."""

from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import Annotated

from toolkit.errors import InputError, check_range
from toolkit.flags import Flags, Range, Share, flag
from toolkit.labeling.addresses import is_loopback
from toolkit.labeling.store import Settings, person_name

# What the extra `label` brings, by the names that Python imports.
WEB_SERVER = ("starlette", "uvicorn", "python_multipart")


@dataclass
class StoreArguments(Flags):
    """The store of labels and the page that people label on."""

    store: str | None = flag(
        None, "SQLite file of items and labels (outputs/labels.sqlite with --serve)."
    )
    serve: bool = flag(False, "Open the labeling page; Ctrl-C ends.")
    host: str = flag("127.0.0.1", "Address of the page.")
    port: Annotated[int, Range(low=0, high=65_535)] = flag(
        8000, "The page's port; 0 for any that is free."
    )
    public_host: list[str] = field(
        default_factory=list,
        metadata={"help": "Names (host:port) by which a page beyond this machine is reached."},
    )
    https: bool = flag(False, "A proxy before the page speaks https.")
    invite: str | None = flag(None, "Names, by commas: an invite link for each new one.")
    reinvite: bool = flag(False, "New links for names that have one; the old ones end.")
    backup: str | None = flag(
        None,
        "Copy --store to this file and end; also while people label. The copy is whole, or not "
        "there.",
    )
    guidelines: str | None = flag(None, "Text file of what to look for, shown above the items.")
    gold: str | None = flag(None, "JSONL of comparisons whose `best` is known: to check by.")
    overlap: Share = flag(0.15, "Share of items that two people see.")
    repeats: Share = flag(0.05, "Share of hidden repeats.")
    gold_share: Share = flag(0.05, "Share of gold items.")
    lease_minutes: Annotated[float, Range(above=0, high=60 * 24 * 365)] = flag(
        30.0, "How long an item waits for who has it on their screen."
    )
    requests_per_second: Annotated[float, Range(above=0, high=1e6)] = flag(
        20.0, "Requests of one session in a second, before it is told to wait."
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range("repeats + gold_share", self.repeats + self.gold_share, low=0, high=0.9)
        for name in self.public_host:
            if "/" in name or not name:
                raise InputError(f"public_host: {name!r} is not NAME:PORT", "public_host")

        if self.names and not self.serve:
            raise InputError("invite: a link is of the page, so give --serve too", "invite")
        if self.reinvite and not self.names:
            raise InputError("reinvite: whom? (--invite NAME,NAME)", "reinvite")
        if self.backup is not None and self.serve:
            raise InputError(
                "backup: does nothing but copy the store, also while another process serves it "
                "(leave out --serve)",
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
                f"host: {self.host} can be reached from other machines: say by which names, "
                "--public_host NAME:PORT (and put a proxy with https before it)",
                "host",
            )

    @property
    def names(self) -> list[str]:
        """Whom to invite, each once.

        Raises:
            InputError: what is no name.
        """
        given = [name for name in (self.invite or "").split(",") if name.strip()]
        return list(dict.fromkeys(map(person_name, given)))

    @property
    def path(self) -> str | None:
        """Where the store is; None for no store."""
        return self.store or ("outputs/labels.sqlite" if self.serve else None)

    def needed_by(self, judge_url: str | None) -> None:
        """Raise InputError if something was asked for that works in a store alone."""
        given = {
            "judge_url": judge_url,
            "invite": self.invite,
            "gold": self.gold,
            "backup": self.backup,
        }
        for name, value in given.items():
            if value is not None:
                raise InputError(f"{name} needs a --store", name)

    @property
    def settings(self) -> Settings:
        """How the store hands out items."""
        return Settings(self.overlap, self.repeats, self.gold_share, 60 * self.lease_minutes)
