"""The page on a run: what it says, who sees it, and what hostile texts come to."""

import os
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from tests.labeling.test_pages import HOSTILE
from tests.live.conftest import lines, log_row, timing_row
from tests.live.test_run_so_far import hold
from toolkit.live.page import LivePage, duration

TOKEN = "t" * 43
HOST = "127.0.0.1:8001"
Make = Callable[..., Path]


def visit(folder: Path, host: str = HOST) -> TestClient:
    return TestClient(LivePage(folder, TOKEN, [HOST]).app(), f"http://{host}")


def test_the_page_says_where_the_run_stands(run_folder: Make) -> None:
    rows = [{"update": 4, "score": 1.5, "prompt": "The owl", "completion": " hoots."}]
    folder = run_folder(4, rows)
    hold(folder, os.getpid())
    page = visit(folder).get(f"/{TOKEN}/").text
    for said in (
        "The run is at update 4 of 10.", "KL, target 5.00", "0.0700", "12 s",  # 6 of 2 s each
        "update 4, score\n+1.50", "The owl", " hoots.", "p.jsonl (3 prompts)", "optimize",
    ):  # fmt: skip
        assert said in page, said
    assert page.count('<svg class="chart"') == 4


def test_it_follows_the_run(run_folder: Make) -> None:
    folder = run_folder(4)
    client = visit(folder)
    assert "stands still after update 4 of 10" in client.get(f"/{TOKEN}/now").text
    with open(folder / "log.jsonl", "a") as stream:
        stream.write(lines([log_row(5, **{"guard/skipped": 2})]))
    now = client.get(f"/{TOKEN}/now").text
    assert "after update 5 of 10" in now and "The last 2 updates were skipped" in now
    assert "<html" not in now


def test_huge_numbers_are_not_measured_and_break_no_page(run_folder: Make) -> None:
    folder = run_folder(4)
    rows = [log_row(u, **{"objective/scores": x}) for u, x in ((5, 1e308), (6, -1e308))]
    rows += [log_row(7, **{"objective/kl": 10**400}), log_row(8, **{"objective/scores": 1e300})]
    rows += [log_row(9, **{"objective/scores": -1e300}), log_row(10) | {"update": 10**400}]
    with open(folder / "log.jsonl", "a") as stream:
        stream.write(lines(rows))
    with open(folder / "timings.jsonl", "a") as stream:
        stream.write(lines([timing_row(5, **{"seconds/sample": 10**400, "peak_mb": 1e308})]))
    answer = visit(folder).get(f"/{TOKEN}/")
    assert answer.status_code == 200 and "update 9 of 10" in answer.text
    assert "1e+300" in answer.text and "1e+308" not in answer.text


@pytest.mark.parametrize("state", ["empty", "broken"])
def test_a_folder_without_a_good_log_is_a_page_too(tmp_path: Path, state: str) -> None:
    if state == "broken":
        (tmp_path / "log.jsonl").write_text('{"update": 1, "episode": 8}\nnot JSON\n{"half')
        (tmp_path / "run.json").write_text('{"settings": {"total_episodes": "many"}, "data": 3}')
    answer = visit(tmp_path).get(f"/{TOKEN}/")
    assert answer.status_code == 200
    said = "This folder has no log" if state == "empty" else "cannot be read, and are left out: 1."
    assert said in answer.text


@pytest.mark.parametrize(
    "path", ["/", "/x/", f"/{TOKEN[1:]}/", "/é/", f"/{TOKEN}x/now", "/x/live.js"]
)
def test_without_the_token_there_is_nothing(run_folder: Make, path: str) -> None:
    answer = visit(run_folder()).get(path)
    assert answer.status_code == 404 and "update" not in answer.text


def test_another_host_name_and_a_form_are_refused(run_folder: Make) -> None:
    folder = run_folder()
    assert visit(folder, "evil.example:8001").get(f"/{TOKEN}/").status_code == 421
    assert visit(folder).post(f"/{TOKEN}/").status_code == 403


def test_the_page_takes_nothing_from_elsewhere_and_no_file_but_its_own(run_folder: Make) -> None:
    client = visit(run_folder())
    policy = client.get(f"/{TOKEN}/").headers["content-security-policy"]
    assert policy.startswith("default-src 'none'") and "connect-src 'self'" in policy
    assert "unsafe" not in policy
    for name, kind in (("live.css", "text/css"), ("live.js", "text/javascript")):
        answer = client.get(f"/{TOKEN}/{name}")
        assert answer.status_code == 200 and answer.headers["content-type"].startswith(kind)
    for name in ("..%2frun.json", "run.json", "%2e%2e", "log.jsonl"):
        assert client.get(f"/{TOKEN}/{name}").status_code == 404


class Tags(HTMLParser):
    """The tags of a page, with the names of their attributes."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[tuple[str, tuple[str, ...]]] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, tuple(name for name, _ in attrs)))


def test_hostile_texts_are_only_text(run_folder: Make, tmp_path: Path) -> None:
    calm = [{"update": 1, "score": 0.0, "prompt": "p", "completion": "c"} for _ in HOSTILE[:12]]
    bad = [row | {"prompt": t, "completion": t} for row, t in zip(calm, HOSTILE[:12], strict=True)]
    expected = visit(run_folder(2, calm)).get(f"/{TOKEN}/").text
    page = visit(run_folder(2, bad)).get(f"/{TOKEN}/").text
    marks = ("span", ("class",))  # what marks an invisible character
    assert [t for t in Tags(page).found if t != marks] == [
        t for t in Tags(expected).found if t != marks
    ]
    assert "\u202e" not in page and "\x1b" not in page


@pytest.mark.parametrize(
    ("seconds", "said"),
    [(None, "not known"), (42.4, "42 s"), (200, "3 min 20 s"), (9000, "2 h 30 min"),
     (200_000, "2 d 7 h")],
)  # fmt: skip
def test_durations_are_said_in_two_units(seconds: float | None, said: str) -> None:
    assert duration(seconds) == said
