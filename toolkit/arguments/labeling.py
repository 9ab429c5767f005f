"""The flags of the store of labels and of the page that people label on."""

from dataclasses import dataclass, field
from pathlib import Path

from toolkit.data.comparisons import read_rows
from toolkit.data.files import require_file
from toolkit.errors import InputError, check_range
from toolkit.labeling.backup import backup
from toolkit.labeling.quality import quality
from toolkit.labeling.server import (
    Pages,
    PageSettings,
    host_names,
    is_loopback,
    listen,
    serve,
)
from toolkit.labeling.store import Refused, Settings, Store, person_name

ADMIN = " admin"  # no name that anybody could type or import


@dataclass
class StoreArguments:
    """The store of labels and the page that people label on."""

    store: str | None = field(
        default=None,
        metadata={"help": "SQLite file of items and labels (outputs/labels.sqlite with --serve)."},
    )
    serve: bool = field(default=False, metadata={"help": "Open the labelling page; Ctrl-C ends."})
    host: str = field(default="127.0.0.1", metadata={"help": "Address of the page."})
    port: int = field(default=8000, metadata={"help": "Its port; 0 for any that is free."})
    public_host: list[str] = field(
        default_factory=list,
        metadata={"help": "Names (host:port) by which a page beyond this machine is reached."},
    )
    https: bool = field(default=False, metadata={"help": "A proxy before the page speaks https."})
    invite: str | None = field(
        default=None, metadata={"help": "Names, by commas: an invite link for each new one."}
    )
    reinvite: bool = field(
        default=False, metadata={"help": "New links for names that have one; the old ones end."}
    )
    backup: str | None = field(
        default=None,
        metadata={"help": "Copy --store to this file and end; also while people label. The copy is "
                  "whole, or not there."},
    )  # fmt: skip
    guidelines: str | None = field(
        default=None, metadata={"help": "Text file of what to look for, shown above the items."}
    )
    gold: str | None = field(
        default=None, metadata={"help": "JSONL of comparisons whose `best` is known: to check by."}
    )
    overlap: float = field(default=0.15, metadata={"help": "Share of items that two people see."})
    repeats: float = field(default=0.05, metadata={"help": "Share of hidden repeats."})
    gold_share: float = field(default=0.05, metadata={"help": "Share of gold items."})
    lease_minutes: float = field(
        default=30.0, metadata={"help": "How long an item waits for who has it on their screen."}
    )
    requests_per_second: float = field(
        default=20.0, metadata={"help": "Of one session, before it is told to wait."}
    )

    def __post_init__(self) -> None:
        check_range("port", self.port, low=0, high=65535)
        for name in ("overlap", "repeats", "gold_share"):
            check_range(name, getattr(self, name), low=0, high=1)
        check_range("repeats + gold_share", self.repeats + self.gold_share, low=0, high=0.9)
        check_range("lease_minutes", self.lease_minutes, above=0, high=60 * 24 * 365)
        check_range("requests_per_second", self.requests_per_second, above=0, high=1e6)
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
                "(leave out --serve)", "backup",
            )  # fmt: skip
        if self.serve and not is_loopback(self.host) and not self.public_host:
            raise InputError(
                f"host: {self.host} can be reached from other machines: say by which names, "
                "--public_host NAME:PORT (and put a proxy with https before it)", "host",
            )  # fmt: skip

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
        given = {"judge_url": judge_url, "invite": self.invite, "gold": self.gold,
                 "backup": self.backup}  # fmt: skip
        for name, value in given.items():
            if value is not None:
                raise InputError(f"{name} needs a --store", name)

    def make_backup(self, overwrite: bool) -> None:
        """Copy the store to ``backup``, and say so."""
        assert self.path is not None and self.backup is not None
        copy = backup(self.path, self.backup, overwrite)
        print(f"{copy}: a copy of {self.path}, {copy.stat().st_size:,} bytes")

    def open(self, filled: bool = True) -> Store:
        """The store, with the gold items in it.

        Args:
            filled: there are items to put in; without any a new store is a mistyped path.

        Raises:
            InputError: a file that is no store, or a gold or guidelines file with mistakes.
        """
        if not filled and not Path(self.path or "").is_file():
            raise InputError(f"store: {self.path}: no such file, and no --samples to fill one")
        gold = [] if self.gold is None else read_rows(self.gold, "best", "--gold")
        self.text()
        assert self.path is not None
        store = Store(
            self.path,
            Settings(self.overlap, self.repeats, self.gold_share, 60 * self.lease_minutes),
        )
        store.add_items(gold, gold=True)
        return store

    def text(self) -> str | None:
        """The guidelines."""
        if self.guidelines is None:
            return None
        try:
            return require_file(self.guidelines, "--guidelines").read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            raise InputError(
                f"{self.guidelines}: not UTF-8 at byte {error.start} (save it as UTF-8)"
            ) from None

    def run(self, store: Store) -> None:
        """Print the links and serve the page until Ctrl-C.

        Raises:
            InputError: a name that a script or the like has, before any link is made; or an address
                that can not be had; or somebody else is making links at this moment.
        """
        for name in self.names:
            if (kind := store.kind_of(name)) not in (None, "person"):
                raise InputError(f"invite: {name!r} is a {kind}: take another name", "invite")
        listening = listen(self.host, self.port)
        hosts = host_names(listening, self.public_host)
        address = f"{'https' if self.https else 'http'}://{(self.public_host or hosts)[0]}"
        settings = PageSettings(
            hosts, https=self.https, rate=self.requests_per_second,
            burst=int(3 * self.requests_per_second) + 1,
            guidelines=self.text() or PageSettings.guidelines,
        )  # fmt: skip
        try:
            self._print_links(store, address)
        except Refused as problem:
            raise InputError(f"invite: {problem} (another process is inviting, too)") from None
        print("open your link in a browser; Ctrl-C ends this, and keeps all labels", flush=True)
        serve(Pages(store, settings, quality).app(), listening)

    def _print_links(self, store: Store, address: str) -> None:
        for name in self.names:
            known = store.invitation(name)
            if known is not None and not self.reinvite:
                print(f"{name} has a link already (--reinvite makes a new one and ends the old)")
            else:
                token = store.invite(name, replaces=known)
                print(f"invite link for {name}: {address}/invite/{token}")
        admin = store.invite(ADMIN, "admin", end_sessions=False, replaces=store.invitation(ADMIN))
        print(f"admin link: {address}/invite/{admin}")
