"""The admin's pages: progress, items, labelers, invitations, imports, exports and what comes next.

    /admin                 progress, quality, invitations, imports
    /admin/items           lists of items: disputed, skipped, gold, all
    /admin/items/ID        one item with all that was said of it
    /admin/labelers/ID     one labeler
    /admin/export          downloads, and the commands that train on the picks
    /admin/export/NAME     one download

Only an admin's session opens them. Nothing changes by GET: invitations and imports are forms with
the session's token.
"""

import hmac
import json
import logging
import sqlite3
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import UTC, datetime
from functools import partial
from typing import BinaryIO

from starlette.concurrency import run_in_threadpool
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from toolkit.data.records import Row
from toolkit.errors import InputError
from toolkit.labeling.exchange import EXPORTS, read_upload
from toolkit.labeling.guard import PageSettings
from toolkit.labeling.pages import COOKIE, Pages, csrf_of
from toolkit.labeling.quality import quality
from toolkit.labeling.review import SHOWS, item_of, items, labeler_ids, work_of
from toolkit.labeling.store import Labeler, Refused, Store, StoreReader, person_name

logger = logging.getLogger(__name__)
PIECE = 1 << 16  # bytes of a download that are read at a time
Commands = Callable[[Sequence[Row]], Sequence[str]]


def when(at: float | None) -> str:
    """Return a time as the admin pages show it, in UTC."""
    return "–" if at is None else f"{datetime.fromtimestamp(at, UTC):%Y-%m-%d %H:%M:%S}"


class AdminPages(Pages):
    """The labeling page together with the admin's pages.

    Args:
        store: the label store.
        settings: the page's texts and limits.
        commands: returns the lines that train on the picks as they are now, to be copied into a
            terminal, of what was said beside each pick (``StoreReader.said_beside``); None if
            nothing trains on them.
    """

    def __init__(
        self, store: Store, settings: PageSettings, commands: Commands | None = None
    ) -> None:
        super().__init__(store, settings)
        self.commands = commands
        self.templates.filters |= {"when": when, "json": partial(json.dumps, ensure_ascii=False)}

    def routes(self) -> list[Route]:
        """Return the paths of all pages."""
        return [
            *super().routes(),
            Route("/admin", self.admin),
            Route("/admin/items", self.item_list),
            Route("/admin/items/{number}", self.item),
            Route("/admin/labelers/{number}", self.labeler),
            Route("/admin/export", self.exports),
            Route("/admin/export/{name}", self.export),
            Route("/admin/invite", self.invite, methods=["POST"]),
            Route("/admin/import", self.take_in, methods=["POST"]),
        ]

    # The first page

    async def admin(self, request: Request) -> Response:
        """Show progress and quality."""
        _, who = await self.session(request, ("admin",))
        return await self.admin_page(request, who)

    async def admin_page(
        self,
        request: Request,
        who: Labeler,
        note: str = "",
        link: str | None = None,
        known: str | None = None,
        replaces: str = "",
    ) -> Response:
        """Render the admin page with a note, and below it a link or a question.

        The question is whether to replace the link of the person ``known``.
        """
        return self.page(
            "admin.html",
            q=await run_in_threadpool(quality, self.store),
            ids=await run_in_threadpool(labeler_ids, self.store),
            csrf=csrf_of(request.cookies[COOKIE]),
            who=who.name,
            note=note,
            link=link,
            known=known,
            replaces=replaces,
        )

    async def invite(self, request: Request) -> Response:
        """Make an invite link and show it once; ask first if the name already has one."""
        who, fields = await self.form(request, ("admin",))
        try:
            name = person_name(fields.get("name", ""))
        except InputError as error:
            raise HTTPException(400, str(error)) from None
        replaces = fields.get("replaces") or None
        try:
            token = await run_in_threadpool(self.store.invite, name, replaces=replaces)
        except Refused:
            present = await run_in_threadpool(self.store.invitation, name)
            return await self.admin_page(request, who, known=name, replaces=present or "")
        scheme = "https" if self.settings.https else "http"
        link = f"{scheme}://{request.headers['host']}/invite/{token}"
        return await self.admin_page(
            request, who, f"Invite link for {name}, shown only this once:", link=link
        )

    async def take_in(self, request: Request) -> Response:
        """Import an uploaded file: items, or comparisons with their picks."""
        secret, who = await self.session(request, ("admin",))
        async with request.form(max_files=1, max_fields=8) as form:
            given, upload = form.get("csrf", ""), form.get("file")
            if not hmac.compare_digest(str(given).encode(), csrf_of(secret).encode()):
                raise HTTPException(
                    403, "this form belongs to another session: please reload the page"
                )
            if not isinstance(upload, UploadFile):
                raise HTTPException(400, "no file was sent")
            content = await upload.read()
            rows = await run_in_threadpool(read_upload, content, str(form.get("format", "")))

        picked = [row for row in rows if "best" in row]
        others = [row for row in rows if "best" not in row]
        items = await run_in_threadpool(self.store.add_items, others)
        picks = await run_in_threadpool(self.store.add_picks, picked)
        note = (
            f"{items[0]} items and {picks[0]} picks were added; "
            f"{items[1] + picks[1]} were there already."
        )
        if rows.skipped:
            note += f" Skipped annotations without a choice: {rows.skipped}."
        return await self.admin_page(request, who, note)

    # Items and labelers

    async def item_list(self, request: Request) -> Response:
        """Show one page of a list of items."""
        _, who = await self.session(request, ("admin",))
        show = request.query_params.get("show", SHOWS[0])
        if show not in SHOWS:
            raise HTTPException(404, "there is no such list")
        page = number_of(request.query_params.get("page", "1"))
        found = await run_in_threadpool(items, self.store, show, page)
        return await run_in_threadpool(
            self.page, "items.html", who=who.name, show=show, found=found
        )

    async def item(self, request: Request) -> Response:
        """Show one item."""
        _, who = await self.session(request, ("admin",))
        number = number_of(request.path_params["number"])
        found = await run_in_threadpool(item_of, self.store, number, time.time())
        if found is None:
            raise HTTPException(404, "there is no such item")
        return await run_in_threadpool(self.page, "item.html", who=who.name, i=found)

    async def labeler(self, request: Request) -> Response:
        """Show one labeler."""
        _, who = await self.session(request, ("admin",))
        number = number_of(request.path_params["number"])
        work = await run_in_threadpool(work_of, self.store, number, time.time())
        if work is None:
            raise HTTPException(404, "there is no such labeler")
        all_figures = await run_in_threadpool(quality, self.store)
        figures = next((q for q in all_figures.labelers if q.name == work.name), None)
        if figures is None:  # renamed between the two readings
            raise HTTPException(404, "there is no such labeler")
        return await run_in_threadpool(self.page, "labeler.html", who=who.name, w=work, q=figures)

    # What goes out

    async def exports(self, request: Request) -> Response:
        """Show the downloads, and the commands that train on the picks."""
        _, who = await self.session(request, ("admin",))
        said = await run_in_threadpool(self.store.said_beside)
        commands = await run_in_threadpool(self.commands, said) if self.commands else []
        return self.page(
            "export.html",
            who=who.name,
            picks=len(said),
            edited=sum("labeler_edit" in row for row in said),
            commands=commands,
        )

    async def export(self, request: Request) -> Response:
        """Send the labels of one moment as a file.

        The file is made whole before its first byte is sent, and its length is told. So a download
        that breaks off is seen to be broken, also behind a proxy that speaks HTTP/1.0, in which a
        shorter file without a length would look complete.
        """
        await self.session(request, ("admin",))
        name = request.path_params["name"]
        if name not in EXPORTS:
            raise HTTPException(404, "there is nothing here")
        try:
            file, length = await run_in_threadpool(_made, self.store, EXPORTS[name])
        except (OSError, sqlite3.Error) as error:
            logger.error("export: %s", error)
            raise HTTPException(
                503,
                "the file was not made, because the store cannot be read, or its disk is full: "
                "try again",
            ) from None
        headers = {
            "content-disposition": f'attachment; filename="{name}"',
            "content-length": str(length),
        }
        return StreamingResponse(_pieces(file), headers=headers, media_type="application/json")


def number_of(text: str) -> int:
    """Return a number from an address.

    Raises:
        HTTPException: 404, the text is not a number of up to 15 digits.
    """
    if not (text.isascii() and text.isdigit() and len(text) < 16):
        raise HTTPException(404, "there is nothing here")
    return int(text)


def _made(
    store: StoreReader, export: Callable[[StoreReader], Iterable[bytes]]
) -> tuple[BinaryIO, int]:
    """Write an export to a nameless file beside the store; return it and its length in bytes."""
    file = tempfile.TemporaryFile(dir=store.path.parent)  # noqa: SIM115  # who reads it closes it
    try:
        for piece in export(store):
            file.write(piece)
        length = file.tell()
        file.seek(0)
    except BaseException:
        file.close()
        raise
    return file, length


def _pieces(file: BinaryIO) -> Iterator[bytes]:
    """Read a file to its end, then close it."""
    with file:
        while piece := file.read(PIECE):
            yield piece
