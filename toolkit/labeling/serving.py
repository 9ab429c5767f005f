"""Print the page's links, then serve it until it is stopped."""

import socket
from collections.abc import Sequence

import uvicorn
from starlette.types import ASGIApp

from toolkit.errors import InputError
from toolkit.labeling.addresses import host_names, listen
from toolkit.labeling.admin_pages import AdminPages, Commands
from toolkit.labeling.connections import AT_ONCE, Connection, Server, allow_descriptors
from toolkit.labeling.guard import PageSettings
from toolkit.labeling.logs import hide_secrets
from toolkit.labeling.store import Asked, Refused, Store

GUIDELINES = {
    "best": PageSettings.guidelines,
    "best_and_worst": "Choose the best completion first, then the worst one.",
    "ranking": "Put the completions in order, from the best to the worst.",
}
BODY_LIMIT = 640 * 1024  # a comment and an edited answer, of characters that take 12 bytes each
ADMIN = " admin"  # with a space in front, so that no person can have this name


def serve_page(
    store: Store,
    host: str,
    port: int,
    names: Sequence[str] = (),
    reinvite: bool = False,
    public_host: Sequence[str] = (),
    https: bool = False,
    guidelines: str | None = None,
    requests_per_second: float = 20.0,
    commands: Commands | None = None,
) -> None:
    """Print the links and serve the page until Ctrl-C.

    Args:
        store: the label store.
        host, port: address of the page; port 0 takes any free port.
        names: people to invite.
        reinvite: make new links also for names that have one; the old ones end.
        public_host: names (host:port) by which other machines reach the page.
        https: a proxy in front of the page speaks https.
        guidelines: text above the items.
        requests_per_second: requests that one session may send before it has to wait.
        commands: returns the lines that train on the picks, for the admin to copy.

    Raises:
        InputError: a name belongs to a script or an admin (no link is made then), the address is
            not available, or another process is making links.
    """
    asked = store.asked()
    print(f"people are asked for: {str(asked).replace(',', ', ')}")
    for name in names:
        if (kind := store.kind_of(name)) not in (None, "person"):
            raise InputError(f"invite: {name!r} is a {kind} (choose another name)", "invite")

    listening = listen(host, port)
    hosts = host_names(listening, list(public_host))
    address = f"{'https' if https else 'http'}://{(public_host or hosts)[0]}"
    settings = PageSettings(
        hosts,
        https=https,
        rate=requests_per_second,
        burst=int(3 * requests_per_second) + 1,
        guidelines=guidelines or _guidelines(store, asked),
        body_limit=BODY_LIMIT if asked.comment or asked.edit else PageSettings.body_limit,
    )
    try:
        _print_links(store, address, names, reinvite)
    except Refused as problem:
        raise InputError(f"invite: {problem} (another process is inviting people)") from None

    print("open your link in a browser; Ctrl-C stops the page and keeps all labels", flush=True)
    serve(AdminPages(store, settings, commands).app(), listening)


def _guidelines(store: Store, asked: Asked) -> str:
    """Return what the page says above the items if nobody wrote guidelines."""
    if asked.order == "best" and store.has_chats():
        return "Pick the best answer."
    return GUIDELINES[asked.order]


def _print_links(store: Store, address: str, names: Sequence[str], reinvite: bool) -> None:
    for name in names:
        known = store.invitation(name)
        if known is not None and not reinvite:
            print(f"{name} already has a link (--reinvite makes a new one and ends the old one)")
        else:
            token = store.invite(name, replaces=known)
            print(f"invite link for {name}: {address}/invite/{token}")

    # Each start prints a new admin link, but the administrator's sessions stay valid.
    admin = store.invite(ADMIN, "admin", end_sessions=False, replaces=store.invitation(ADMIN))
    print(f"admin link: {address}/invite/{admin}")


def server_of(app: ASGIApp) -> Server:
    """Make the server of an application. It logs no requests."""
    Connection.most = allow_descriptors()
    config = uvicorn.Config(
        app,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        log_level="error",
        limit_concurrency=None,
        timeout_keep_alive=15,
        h11_max_incomplete_event_size=16 * 1024,
        timeout_graceful_shutdown=5,
        http=Connection,
        loop="asyncio",
        ws="none",
        lifespan="off",
        backlog=AT_ONCE,
    )
    hide_secrets("uvicorn", "uvicorn.error", "uvicorn.access", "asyncio")
    return Server(config)


def serve(app: ASGIApp, listening: socket.socket) -> None:
    """Serve until SIGINT, SIGTERM or SIGHUP."""
    server_of(app).run(sockets=[listening])
