"""The page on a run: one address with a token in it, reachable from this machine alone.

What is shown comes from files, and the texts among it are hostile: the template escapes all of it,
and the headers of ``labeling.guard`` allow nothing from elsewhere. The script only asks for the
page's middle again, every two seconds.
"""

import hmac
from collections.abc import Sequence
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp

from toolkit.data.records import Row
from toolkit.labeling.escaping import shown
from toolkit.labeling.guard import HEADERS, Guard, PageSettings, plain_text
from toolkit.live.curves import Curve, chart, number
from toolkit.live.run_so_far import RECENT, RunSoFar, Watched

HERE = Path(__file__).parent
SAMPLES = 12  # newest samples that are shown
LONGEST = 2000  # characters of a text that are shown
# The labeling page's policy, and this page's script may ask its own server for the run's state.
POLICY = {"content-security-policy": f"{HEADERS['content-security-policy']}; connect-src 'self'"}
# run.json's settings that name the reward.
REWARDS = ("reward_adapter", "reward_model", "lexicon", "reward_function")


class LivePage:
    """The page's routes.

    Args:
        folder: the run's folder.
        token: stands in each address; without it nothing is shown.
        hosts: accepted values of the Host header.
    """

    def __init__(self, folder: Path, token: str, hosts: Sequence[str]) -> None:
        self.watched, self.token, self.hosts = Watched(folder), token, tuple(hosts)
        self.templates = Environment(
            loader=FileSystemLoader(HERE / "templates"), autoescape=True, undefined=StrictUndefined
        )
        self.templates.filters |= {"shown": shown, "number": number, "duration": duration}

        # Read once, by name, so that no path of a request reaches the file system.
        self.static = {path.name: path.read_bytes() for path in (HERE / "static").iterdir()}

    def app(self) -> ASGIApp:
        """Return the guarded application."""
        routes = [
            Route("/favicon.ico", lambda request: Response(status_code=204)),
            Route("/{token}/", self.whole),
            Route("/{token}/now", self.now),
            Route("/{token}/{name}", self.asset),
        ]
        handlers = {HTTPException: _failed}
        return Guard(
            Starlette(routes=routes, exception_handlers=handlers), PageSettings(self.hosts)
        )

    def check(self, request: Request) -> None:
        """Raise HTTPException unless the address has the token."""
        token = request.path_params["token"]
        if not hmac.compare_digest(token.encode(), self.token.encode()):
            raise HTTPException(404, "there is nothing here")

    def whole(self, request: Request) -> Response:
        """Send the page."""
        return self._rendered("live.html", request)

    def now(self, request: Request) -> Response:
        """Send the page's middle, as the run stands now."""
        return self._rendered("now.html", request)

    def _rendered(self, template: str, request: Request) -> Response:
        self.check(request)
        values = content(self.watched.look())
        return HTMLResponse(self.templates.get_template(template).render(values), headers=POLICY)

    def asset(self, request: Request) -> Response:
        """Send the style sheet or the script."""
        self.check(request)
        name = request.path_params["name"]
        if name not in self.static:
            raise HTTPException(404, "there is nothing here")
        kind = "text/css" if name.endswith(".css") else "text/javascript"
        return Response(self.static[name], media_type=kind)


def _failed(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return plain_text(str(error.detail), error.status_code)


def content(run: RunSoFar) -> dict[str, object]:
    """Return what the templates show of a run."""
    last = run.last
    return {
        "run": run,
        "name": str(run.folder),
        "last": last,
        "headline": headline(run),
        "done": 0.0 if last is None or not run.planned else last.update / run.planned,
        "target": None if last is None else last.kl_target,
        "speed": _speed(run),
        "charts": charts(run),
        "phases": _bars(run.phases),
        "recent": min(RECENT, len(run.updates)),
        "samples": run.samples[:SAMPLES],
        "longest": LONGEST,
        "facts": facts(run.record),
        "alarms": alarms(run),
    }


def headline(run: RunSoFar) -> str:
    """Say in a sentence where the run stands."""
    if run.last is None:
        if run.state == "running":
            return "The run has begun. Its first update is not done yet."
        return "This folder has no log of a PPO run yet."
    of = "" if run.planned is None else f" of {run.planned:,}"
    at = f"update {run.last.update:,}{of}"
    if run.state == "done":
        return f"The run has made all its updates: {at}."
    if run.state == "stopped":
        return f"The run stands still after {at}. Its command goes on with --resume auto."
    if run.state == "unknown":
        return f"The run is at {at}. Another machine may be at work on it."
    return f"The run is at {at}."


def charts(run: RunSoFar) -> list[tuple[str, Markup]]:
    """Draw score, KL with its target, KL coefficient and entropy over the updates."""
    updates = run.updates
    target = None if run.last is None else run.last.kl_target
    held_out = [(u.update, u.held_out_scores) for u in updates if u.held_out_scores is not None]

    scores = [Curve("score", [(u.update, u.scores) for u in updates])]
    score_title = "Score of the samples"
    if held_out:
        scores.append(Curve("on evaluation prompts", held_out, "other", always_marked=True))
        score_title = "Score of the samples (line), and on the evaluation prompts (dotted)"

    kl_title = "KL from the reference, nats per completion"
    if target is not None:
        kl_title += f" (dashed: target {number(target)})"
    kl = [Curve("KL", [(u.update, u.kl) for u in updates])]
    coefficient = [Curve("kl_coef", [(u.update, u.kl_coef) for u in updates])]
    entropy = [Curve("entropy", [(u.update, u.entropy) for u in updates])]
    return [
        (score_title, chart(score_title, scores)),
        (kl_title, chart(kl_title, kl, target)),
        ("KL coefficient (kl_coef)", chart("KL coefficient", coefficient)),
        ("Entropy, nats per completion", chart("Entropy", entropy)),
    ]


def alarms(run: RunSoFar) -> list[str]:
    """Return a sentence for each thing in the log that asks for a look."""
    said = []
    if run.last is not None and run.last.row.get("guard/skipped"):
        said.append(
            f"The last {run.last.row['guard/skipped']} updates were skipped because of a fault. "
            "The run's own output says which."
        )
    if run.last is not None and run.last.row.get("reward/alarm") is True:
        said.append("The reward models disagree much more than they did at the start.")
    if run.unreadable:
        said.append(f"Rows of the log that cannot be read, and are left out: {run.unreadable}.")
    return said


def facts(record: Row) -> list[tuple[str, str]]:
    """Return what run.json says about model, data and reward."""
    settings, data = record.get("settings"), record.get("data")
    if not isinstance(settings, dict):
        return []
    found = [("model", settings.get("model_name_or_path"))]
    if settings.get("policy_adapter"):
        found.append(("starts from", settings["policy_adapter"]))
    prompts = settings.get("prompts")
    if prompts and isinstance(data, dict) and data.get("prompts") is not None:
        prompts = f"{prompts} ({data['prompts']} prompts)"
    found.append(("prompts", prompts))
    rewards = [str(settings[name]) for name in REWARDS if settings.get(name)]
    found += [
        ("reward", ", ".join(rewards)),
        ("method", settings.get("algorithm")),
        ("begun", record.get("written")),
        ("device", record.get("device")),
    ]
    return [(name, str(value)) for name, value in found if value]


def _speed(run: RunSoFar) -> float | None:
    """Return the episodes of a second; None if that is not known."""
    if run.last is None or not run.seconds or run.last.update < 1:
        return None
    return run.last.episode / run.last.update / run.seconds


def _bars(phases: dict[str, float]) -> list[tuple[str, float, float]]:
    """Return each phase with its seconds and its share of the whole, 0 to 1."""
    total = sum(phases.values())
    return [(name, seconds, seconds / total) for name, seconds in phases.items()] if total else []


def duration(seconds: float | None) -> str:
    """A duration in words.

    >>> duration(42.4), duration(200), duration(9000), duration(200000)
    ('42 s', '3 min 20 s', '2 h 30 min', '2 d 7 h')
    """
    if seconds is None:
        return "not known"
    whole = round(seconds)
    for size, large, small, part in ((86_400, "d", "h", 3600), (3600, "h", "min", 60)):
        if whole >= size:
            return f"{whole // size} {large} {whole % size // part} {small}"
    return f"{whole // 60} min {whole % 60} s" if whole >= 60 else f"{whole} s"
