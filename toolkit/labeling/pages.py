"""The labeling page: one process, one SQLite file, no accounts.

A person opens an invite link and presses a button to begin a session. Each page shows one item in
a form with its own number, and an answer is on the disk before the next page is sent. The templates
escape all text, and write out invisible and bidirectional characters. The page loads nothing from
other addresses, and sends nothing that reveals the model, its step or a score.
"""

import hashlib
import hmac
import logging
import math
import sqlite3
import time
import urllib.parse
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, RedirectResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp

from toolkit.data.records import Row
from toolkit.data.text import apart, printable
from toolkit.errors import InputError
from toolkit.labeling.escaping import shown
from toolkit.labeling.guard import Guard, PageSettings, plain_text
from toolkit.labeling.logs import hide_secrets
from toolkit.labeling.markdown import rendered
from toolkit.labeling.store import Details, Labeler, Refused, Store, Task
from toolkit.labeling.store.answers import LONGEST_COMMENT, LONGEST_EDIT, SEEN, STRENGTHS, Order

logger = logging.getLogger(__name__)
hide_secrets(__name__)
HERE = Path(__file__).parent
COOKIE = "labelling"  # the old spelling stays, because a new name would end every session
MOST_FIELDS = 1_024  # of a form, which has one for each completion, and those have 3 digits at most
REASONS = ("too hard to tell", "not understandable", "offensive or private", "broken", "other")
NOTES = {
    "again": "You answered that item already, and your first answer stands. U takes it back.",
    "late": "You had that item for too long, so somebody else may have it now. Your answer was "
    "not recorded.",
    "undone": "Your answer was taken back. Here is the item again.",
    "nothing": "There is nothing to take back.",
}


def _page_of(request: Request) -> str:
    """Name the page of a request for the log; the path itself may hold a token."""
    endpoint = request.scope.get("endpoint")
    return "no page" if endpoint is None else endpoint.__name__


def csrf_of(secret: str) -> str:
    """Return the form token of a session, which only the holder of the cookie can know."""
    return hmac.new(secret.encode(), b"form", hashlib.sha256).hexdigest()


class Pages:
    """The pages and the forms that they send.

    Args:
        store: the label store.
        settings: the page's texts and limits.
    """

    def __init__(self, store: Store, settings: PageSettings) -> None:
        self.store = store
        self.settings = settings
        self.templates = Environment(
            loader=FileSystemLoader(HERE / "templates"), autoescape=True, undefined=StrictUndefined
        )
        self.templates.filters |= {"shown": shown, "markdown": rendered}
        self.templates.globals |= {"title": printable(settings.title), "reasons": REASONS}
        self.templates.globals |= {"apart": apart, "strengths": STRENGTHS}
        self.templates.globals |= {"longest_comment": LONGEST_COMMENT, "longest_edit": LONGEST_EDIT}

        # Read once, by name, so that no path of a request reaches the file system.
        self.static = {path.name: path.read_bytes() for path in (HERE / "static").iterdir()}
        self._totals: tuple[float, dict[str, float]] = (0.0, {})

    def app(self) -> ASGIApp:
        """Return the guarded application."""
        handlers: dict[type[Exception], Callable[[Request, Exception], Response]] = {
            ClientDisconnect: self.gone,
            HTTPException: self.failed,
            Refused: self.refused,
            InputError: self.wrong_input,
            sqlite3.Error: self.unsaved,
            OSError: self.unsaved,
            Exception: self.broken,
        }

        return Guard(Starlette(routes=self.routes(), exception_handlers=handlers), self.settings)

    def routes(self) -> list[Route]:
        """Return the paths, and which page answers each."""
        return [
            Route("/", self.label),
            Route("/label", self.answer, methods=["POST"]),
            Route("/undo", self.undo, methods=["POST"]),
            Route("/leave", self.leave, methods=["POST"]),
            Route("/invite/{token}", self.invited),
            Route("/invite", self.join, methods=["POST"]),
            Route("/static/{name}", self.asset),
            Route("/favicon.ico", lambda request: Response(status_code=204)),
        ]

    # Errors: the client gets one plain line, the log gets the rest

    def failed(self, request: Request, error: Exception) -> Response:
        """Answer 404, 405, 413 and the like."""
        assert isinstance(error, HTTPException)
        return plain_text(str(error.detail), error.status_code)

    def refused(self, request: Request, error: Exception) -> Response:
        """Say that a label cannot be recorded."""
        assert isinstance(error, Refused)
        if error.status == 409:
            return RedirectResponse("/?note=late", 303)
        return plain_text(str(error), error.status)

    def gone(self, request: Request, error: Exception) -> Response:
        """Answer half a form; its sender has gone and will not read this."""
        return plain_text("the request ended too early", 400)

    def wrong_input(self, request: Request, error: Exception) -> Response:
        """Say what is wrong with an imported file."""
        return plain_text(" ".join(printable(str(error)).split()), 422)

    def unsaved(self, request: Request, error: Exception) -> Response:
        """Say that the disk is full, or the store's file is locked, read-only or gone."""
        logger.error("%s: %s", _page_of(request), error)
        return plain_text(
            "your answer was not saved, because the store cannot be written now: try again", 503
        )

    def broken(self, request: Request, error: Exception) -> Response:
        """Log any other error as a bug."""
        logger.error("%s: this is a bug", _page_of(request), exc_info=error)
        return plain_text("the page has a bug, which was logged", 500)

    # Sessions

    async def session(self, request: Request, kinds: tuple[str, ...]) -> tuple[str, Labeler]:
        """Return the session's secret and its labeler.

        Raises:
            HTTPException: 401 without a session, 403 for a labeler of another kind.
        """
        secret = request.cookies.get(COOKIE, "")
        who = await run_in_threadpool(self.store.by_session, secret, self.settings.session)
        if who is None:
            raise HTTPException(401, "please open your invite link")
        if who.kind not in kinds:
            raise HTTPException(403, f"this page is not for a {who.kind}")
        return secret, who

    async def form(
        self, request: Request, kinds: tuple[str, ...] = ("person", "admin")
    ) -> tuple[Labeler, dict[str, str]]:
        """Return the session's secret, the sender of a form, and its fields.

        Raises:
            HTTPException: there is no session or no form, or the form belongs to another session.
        """
        secret, who = await self.session(request, kinds)
        fields = await _fields(request)
        if not hmac.compare_digest(fields.get("csrf", "").encode(), csrf_of(secret).encode()):
            raise HTTPException(403, "this form belongs to another session: please reload the page")
        return who, fields

    def page(self, name: str, status: int = 200, **values: object) -> HTMLResponse:
        """Render a template."""
        return HTMLResponse(self.templates.get_template(name).render(values), status)

    # Pages

    async def label(self, request: Request) -> Response:
        """Show the labeler's current item."""
        try:
            secret, who = await self.session(request, ("person", "admin"))
        except HTTPException as error:
            if error.status_code != 401:
                raise
            return self.page("welcome.html", 401)
        if who.kind == "admin":
            return RedirectResponse("/admin", 303)
        task, undoable, last, progress = await run_in_threadpool(self._state, who)
        return await run_in_threadpool(  # a long text takes a while
            self.page,
            "label.html" if task else "done.html",
            task=task,
            csrf=csrf_of(secret),
            who=who.name,
            guidelines=self.settings.guidelines,
            undoable=undoable,
            last=last,
            progress=progress,
            raw="raw" in request.query_params,
            note=NOTES.get(request.query_params.get("note", ""), ""),
        )

    def _state(
        self, who: Labeler
    ) -> tuple[Task | None, int | None, Row | None, dict[str, float | None]]:
        task = self.store.next_task(who)

        # The number of items this person may still get, with the one on their screen.
        own = self.store.own_progress(who)
        totals = self.totals()
        left = int(max(0, min(totals["left"] + (task is not None), totals["items"] - own["own"])))
        minutes = left * own["seconds"] / 60
        known = not math.isnan(minutes)
        shown = {
            "left": left,
            "minutes": math.ceil(minutes) if known else None,
            "pace": round(own["seconds"]) if known else None,
        }

        last = self.store.last_answer(who)
        if last is not None:
            last["texts"] = [_beginning(apart(last["prompt"], text)) for text in last["texts"]]
        return task, self.store.last_event(who), last, own | shown

    def totals(self) -> dict[str, float]:
        """Return the store's progress, at most two seconds old, since the sum takes a while."""
        at, totals = self._totals
        if not totals or time.monotonic() - at > 2:
            totals = self.store.progress()
            self._totals = (time.monotonic(), totals)
        return totals

    async def answer(self, request: Request) -> Response:
        """Record an answer, then go to the next page."""
        who, fields = await self.form(request, ("person",))
        action = fields.get("action", "")
        position = None
        if action.startswith("pick "):
            number = action.removeprefix("pick ")
            if not (number.isascii() and number.isdigit() and len(number) < 4):
                raise HTTPException(400, "there is no such completion")
            action, position = "pick", int(number)
        details = _details(fields)
        if action == "save":
            action = "pick"
            asked = await run_in_threadpool(self.store.asked)
            position, details = _with_places(fields, details, asked.order)
        elif action != "pick":
            details = replace(details, strength=None)

        reason = fields.get("reason") if action == "skip" else None
        if reason is not None and reason not in REASONS:
            raise HTTPException(400, "there is no such reason")
        new = await run_in_threadpool(
            self.store.record, who, fields.get("form", ""), action, position, reason, details
        )
        return RedirectResponse("/" if new else "/?note=again", 303)

    async def undo(self, request: Request) -> Response:
        """Take the last answer back."""
        who, fields = await self.form(request, ("person",))
        after = fields.get("after", "")
        if not (after.isascii() and after.isdigit() and len(after) < 16):
            return RedirectResponse("/?note=nothing", 303)
        done = await run_in_threadpool(self.store.undo, who, int(after))
        return RedirectResponse("/?note=undone" if done else "/?note=nothing", 303)

    async def invited(self, request: Request) -> Response:
        """Show a button to begin, so that a preview of the invite link signs nobody in."""
        token = request.path_params["token"]
        who = await run_in_threadpool(self.store.by_token, token)
        if who is None:
            raise HTTPException(404, "this invitation is unknown or was replaced by a newer one")
        return self.page("invited.html", token=token, who=who.name, kind=who.kind)

    async def join(self, request: Request) -> Response:
        """Exchange an invite token for a session."""
        fields = await _fields(request)
        who = await run_in_threadpool(self.store.by_token, fields.get("token", ""))
        if who is None:
            raise HTTPException(404, "this invitation is unknown or was replaced by a newer one")
        secret = await run_in_threadpool(self.store.start_session, who)
        response = RedirectResponse("/", 303)
        response.set_cookie(
            COOKIE,
            secret,
            max_age=int(self.settings.session),
            httponly=True,
            samesite="strict",
            secure=self.settings.https,
        )
        return response

    async def leave(self, request: Request) -> Response:
        """Sign out."""
        await self.form(request)
        await run_in_threadpool(self.store.end_session, request.cookies[COOKIE])
        response = RedirectResponse("/", 303)
        response.delete_cookie(COOKIE)
        return response

    async def asset(self, request: Request) -> Response:
        """Send the style sheet or the script."""
        name = request.path_params["name"]
        if name not in self.static:
            raise HTTPException(404, "there is nothing here")
        kind = "text/css" if name.endswith(".css") else "text/javascript"
        return Response(self.static[name], media_type=kind)


def _beginning(text: str, longest: int = 60) -> str:
    """Return the beginning of a text, on one line."""
    line = " ".join(text[: 4 * longest].split())
    return line if len(line) <= longest else f"{line[:longest].rstrip()}\u2026"


def _details(fields: dict[str, str]) -> Details:
    """Return what a form says besides its action; the store checks whether it was asked for."""

    def text(name: str) -> str | None:
        said = fields.get(name, "").replace("\r\n", "\n").strip()
        return said or None

    strength, seen = fields.get("strength"), fields.get("seen")
    if strength is not None and strength not in map(str, STRENGTHS):
        raise HTTPException(400, "there is no such strength")
    if seen and seen not in SEEN:
        raise HTTPException(400, "the form does not say what was seen")
    return Details(
        strength=None if strength is None else int(strength),
        comment=text("comment"),
        edited=text("edited"),
        seen=next((word for word in SEEN if word == seen), None),
    )


def _with_places(fields: dict[str, str], details: Details, order: Order) -> tuple[int, Details]:
    """Return the best completion's position, and the details with what else has a place.

    A form has a field for each position, "place 0" and so on, which holds 1 for the best, K for the
    worst, or nothing. The store checks whether all that was asked for is there.

    Raises:
        HTTPException: no completion is the best, two have the same place, or a place is no number.
    """
    positions: dict[int, int] = {}  # by place
    count = 0
    for name, value in fields.items():
        if not name.startswith("place "):
            continue
        count += 1
        position = name.removeprefix("place ")
        if not all(
            text.isascii() and text.isdigit() and len(text) < 4 for text in (position, value or "0")
        ):
            raise HTTPException(400, "there is no such place")
        if value and int(value) in positions:
            raise HTTPException(400, f"two have the place {value}: please go back and change one")
        if value:
            positions[int(value)] = int(position)

    if not all(1 <= place <= count for place in positions):
        raise HTTPException(400, "there is no such place")
    if 1 not in positions:
        raise HTTPException(400, "no completion is the best: please go back and choose one")
    if order == "ranking":
        details = replace(details, ranking=[positions[place] for place in sorted(positions)])
    elif order == "best_and_worst":
        details = replace(details, worst=positions.get(count))
    return positions[1], details


async def _fields(request: Request) -> dict[str, str]:
    """Read the fields of a small form."""
    kind = request.headers.get("content-type", "").split(";")[0].strip()
    if kind != "application/x-www-form-urlencoded":
        raise HTTPException(415, "the request must be a form")
    try:
        pairs = urllib.parse.parse_qsl(
            (await request.body()).decode("ascii"),
            keep_blank_values=True,
            strict_parsing=False,
            encoding="utf-8",
            errors="strict",
            max_num_fields=MOST_FIELDS,
        )
    except (UnicodeDecodeError, ValueError, ClientDisconnect):
        raise HTTPException(400, "the request is not a valid form") from None
    if len({name for name, _ in pairs}) != len(pairs):
        raise HTTPException(400, "a field was sent twice")
    return dict(pairs)
