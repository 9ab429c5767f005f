"""The page: what is shown and what is not, and what hostile or broken requests come to."""

import json
import logging
import random
import re
import sqlite3
import urllib.parse
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from toolkit.data.problems import problems_of
from toolkit.labeling.admin_pages import AdminPages
from toolkit.labeling.guard import HEADERS, PageSettings
from toolkit.labeling.store import Asked, Settings, Store

HOST = "127.0.0.1:8000"
BASE = f"http://{HOST}"
HOSTILE = [
    "<script>alert(1)</script>", "<img src=x onerror=alert(1)>", "'\"><svg onload=alert(1)>",
    "{{ 7 * 7 }} {% include 'label.html' %}", "</p></article></form><form action=//evil.example>",
    "javascript:alert(1)", "<!--", "]]>", "&lt;b&gt; &amp;", "\u202egnp.exe", "\u200b\u2066hid",
    "\x1b[31mred\x1b[0m", "a\x00b", "\ud800 half", "<style>*{display:none}</style>",
    "<base href=//evil.example>", "<meta http-equiv=refresh content='0;url=//evil.example'>",
    "x" * 50_000, "<textarea>", "\u2028\u2029",
]  # fmt: skip


def rows(count: int) -> list[dict[str, Any]]:
    secret = {
        "model": "secret-model",
        "adapter": "secret-adapter",
        "update": 987654,
        "temperature": 0.77,
        "seed": 55,
    }
    return [
        {
            "prompt": f"Text {i}.",
            "completions": [f" {word} {i}" for word in "abcd"],
            "source": secret,
            "scores": [0.123456, 2.0, 3.0, 4.0],
            "side": ["policy"],
        }
        for i in range(count)
    ]


class Site:
    """A store, its page, and people with sessions."""

    def __init__(self, folder: Path, count: int = 6, **options: Any) -> None:
        self.store = Store(folder / "labels.sqlite", Settings(overlap=0.0, repeats=0.0))
        self.store.add_items(rows(count))
        settings = PageSettings(hosts=(HOST,), **options)
        self.app = AdminPages(self.store, settings).app()
        self.ann, self.bob = self.person("ann"), self.person("bob")
        self.admin = self.person("root", "admin")

    def client(self) -> TestClient:
        return TestClient(self.app, BASE, raise_server_exceptions=False, follow_redirects=False)

    def person(self, name: str, kind: str = "person") -> TestClient:
        client = self.client()
        token = self.store.invite(name, kind)
        joined = client.post("/invite", data={"token": token}, headers={"Origin": BASE})
        assert joined.status_code == 303
        return client

    def form(self, client: TestClient, **changes: Any) -> dict[str, str]:
        page = client.get("/").text
        fields = {
            name: re.search(rf'name="{name}" value="([^"]*)"', page)[1]  # type: ignore[index]
            for name in ("csrf", "form", "after")
        }
        return fields | {"action": "pick 1"} | changes


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    site = Site(tmp_path)
    yield site
    site.store.close()


def post(client: TestClient, path: str, fields: dict[str, Any], **headers: str) -> Any:
    return client.post(path, data=fields, headers={"Origin": BASE} | headers)


def test_what_is_picked_is_what_stood_there(site: Site) -> None:
    form = site.form(site.ann)
    page = site.ann.get("/").text
    shown_texts = re.findall(r'id="text-\d">([^<]*)<', page)
    answer = post(site.ann, "/label", form | {"action": "pick 2"})
    assert (answer.status_code, answer.headers["location"]) == (303, "/")
    (pick,) = site.store.picks()
    assert pick["completions"][pick["best"]] == " " + shown_texts[2]
    assert pick["labeler"] == "ann"


@pytest.mark.slow
def test_two_people_rank_forty_items_and_the_export_is_what_they_said(tmp_path: Path) -> None:
    """Two orders of eight and fewer, with all that can be said; some are taken back or no order."""
    site, rng = Site(tmp_path, count=0, rate=1e6, burst=10**6, body_limit=1 << 19), random.Random(0)
    site.store.settings = Settings(overlap=1.0, repeats=0.0)
    site.store.add_items(
        {
            "prompt": [{"role": "user", "content": f"Item {i}?"}],
            "completions": [f"Answer *{i}* {word}." for word in "abcdefgh"[: 2 + i % 7]],
        }
        for i in range(40)
    )
    site.store.settle(Asked("ranking", strength=True, comment=True, edit=True))

    said: dict[tuple[str, str], dict[str, Any]] = {}
    for name, client in (("ann", site.ann), ("bob", site.bob)):
        while "You have labeled everything" not in (page := client.get("/").text):
            prompt = re.search(r"Item \d+\?", page)[0]  # type: ignore[index]
            texts = re.findall(r'class="text raw">([^<]*)<', page)
            fields = dict(re.findall(r'name="(csrf|form)" value="([^"]*)"', page))
            fields |= {"seen": rng.choice(["all", "enough", ""]), "comment": "", "edited": ""}
            assert len(texts) == page.count('<select name="place ') == page.count("<article")
            kind = rng.choice(["save", "save", "save", "tie", "skip"])
            if kind != "save":
                assert post(client, "/label", fields | {"action": kind}).status_code == 303
                said[name, prompt] = {}
                continue

            order, strength = rng.sample(range(len(texts)), len(texts)), rng.choice([1, 2, 3])
            fields |= {f"place {p}": str(order.index(p) + 1) for p in order}
            fields |= {"action": "save", "strength": str(strength)}
            want = {
                "ranking": [texts[p] for p in order],
                "margin": {1: 0.333333, 2: 0.666667, 3: 1.0}[strength],
            }
            if rng.random() < 0.5:
                fields["comment"] = f" \u00dcber {prompt}\r\nline two "
                want["labeler_comment"] = f"\u00dcber {prompt}\nline two"
            if rng.random() < 0.3:
                fields["edited"] = want["labeler_edit"] = f"Better, {name}. " + "\u4f60" * 3_000
            assert post(client, "/label", fields).headers["location"] == "/"
            said[name, prompt] = want

            if rng.random() < 0.2:  # taken back, and asked again
                undo = {"csrf": fields["csrf"], "after": site.form(client)["after"]}
                assert post(client, "/undo", undo).headers["location"] == "/?note=undone"
                assert prompt in client.get("/").text
                del said[name, prompt]

    assert len(said) == 80
    exported = site.admin.get("/admin/export/comparisons.jsonl").text.splitlines()
    found = {}
    for row in map(json.loads, exported):
        assert problems_of(row, "best") == [] and row["best"] == row["ranking"][0]
        named = {k: row[k] for k in ("margin", "labeler_comment", "labeler_edit") if k in row}
        named["ranking"] = [row["completions"][k] for k in row["ranking"]]
        found[row["labeler"], row["prompt"][0]["content"]] = named
    assert found == {key: want for key, want in said.items() if want}

    edited = list(map(json.loads, site.admin.get("/admin/export/edited.jsonl").text.splitlines()))
    assert [row["completions"][row["best"]] for row in edited] == [
        row["labeler_edit"] for row in map(json.loads, exported) if "labeler_edit" in row
    ]
    for name in ("label_studio", "argilla"):  # they hold the picks alone, one task an item
        tasks = json.loads(site.admin.get(f"/admin/export/{name}.json").text)
        assert len(tasks) == len({prompt for (_, prompt), want in said.items() if want})
    site.store.close()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"place 0": "2"}, "two have the place 2"),
        ({"place 0": "3", "place 2": ""}, "no completion is the best"),
        ({"place 3": ""}, "the ranking must name each of 4 completions once"),
        ({"place 3": "5"}, "there is no such place"),
        ({"place 3": "0"}, "there is no such place"),
        ({"place 3": "\u0663"}, "there is no such place"),
        ({"place x": "1"}, "there is no such place"),
        ({"strength": "0"}, "there is no such strength"),
        ({"strength": ""}, "there is no such strength"),
        ({"seen": "nothing"}, "the form does not say what was seen"),
        ({"action": "pick 1"}, "the ranking must name"),
        ({"comment": "not asked for"}, "no comment was asked for"),
    ],
)
def test_half_a_ranking_is_turned_away_and_nothing_is_written(
    site: Site, changes: dict[str, str], said: str
) -> None:
    site.store.settle(Asked("ranking", strength=True))
    whole = {"place 0": "3", "place 1": "2", "place 2": "1", "place 3": "4", "strength": "1"}
    form = site.form(site.ann, action="save", **whole)
    answer = post(site.ann, "/label", form | changes)
    assert answer.status_code == 400 and answer.text.startswith(said)
    assert list(site.store.events()) == []
    assert post(site.ann, "/label", form).headers["location"] == "/"
    (event,) = site.store.events()
    assert event["position"] == 2 and len(event["ranking"]) == 4


def test_the_best_and_the_worst_are_chosen_from_lists(site: Site) -> None:
    site.store.settle(Asked("best_and_worst"))
    texts = re.findall(r'id="text-\d">([^<]*)<', site.ann.get("/").text)
    form = site.form(site.ann, action="save", **{"place 0": "", "place 1": "4", "place 2": ""})
    assert post(site.ann, "/label", form | {"place 3": ""}).status_code == 400
    assert post(site.ann, "/label", form | {"place 3": "1"}).status_code == 303
    (row,) = site.store.picks()
    assert row["completions"][row["best"]] == f" {texts[3]}"
    assert row["completions"][row["worst"]] == f" {texts[1]}"


@pytest.mark.parametrize("count", [19, 300])
def test_an_item_of_many_completions_can_be_answered(tmp_path: Path, count: int) -> None:
    site = Site(tmp_path, count=0)
    site.store.settle(Asked("best", strength=True, comment=True, edit=True))
    site.store.add_items([{"prompt": "Hi.", "completions": [f" {k}." for k in range(count)]}])
    texts = re.findall(r'id="text-\d+">([^<]*)<', site.ann.get("/").text)
    places = {f"place {k}": "1" if k == count - 1 else "" for k in range(count)}
    form = site.form(site.ann, action="save", strength="2", comment="Long.", edited="", **places)
    form |= {"reason": "other", "seen": "all"}
    assert post(site.ann, "/label", form).status_code == 303
    (row,) = site.store.picks()
    assert row["completions"][row["best"]] == f" {texts[-1]}" and row["labeler_comment"] == "Long."
    site.store.close()


def test_a_chat_is_shown_with_its_turns_and_its_raw_text(tmp_path: Path) -> None:
    site = Site(tmp_path, count=0)
    turns = [("system", "Be *kind*."), ("user", "A *b*?"), ("assistant", "*C*."), ("user", "D?")]
    site.store.add_items(
        [
            {
                "prompt": [{"role": role, "content": content} for role, content in turns],
                "completions": ["**One**", "Two"],
            }
        ]
    )
    page = site.ann.get("/").text
    assert re.findall(r'<div class="turn([^"]*)">', page) == [" system", " user", "", " user"]
    assert page.count("<em>") == 1 and "A *b*?" in page  # what the model wrote is rendered
    assert "<strong>One</strong>" in page and ">**One**<" in page
    assert 'id="item" class="raw-shown"' not in page
    assert 'id="item" class="raw-shown"' in site.ann.get("/?raw=1").text
    site.store.close()


def test_a_completion_that_goes_on_with_the_prompts_last_word_shows_that(site: Site) -> None:
    site.store.add_items([{"prompt": "He was an", "completions": ["xious.", " owl."]}])
    while "He was an" not in (page := site.ann.get("/").text):
        assert post(site.ann, "/label", site.form(site.ann)).status_code == 303
    assert sorted(re.findall(r'id="text-\d">([^<]*)<', page)) == ["owl.", "…xious."]


def test_nothing_on_the_page_tells_the_model_the_step_or_a_score(site: Site) -> None:
    for client in (site.ann, site.bob):
        source = client.get("/").text
        for secret in ("secret", "987654", "0.77", "0.123456", "policy", "update", "score"):
            assert secret not in source
        assert not re.search(r"https?://|//[a-z]", source.replace("<!doctype", ""))


def test_every_answer_has_the_headers_that_keep_a_page_to_itself(site: Site) -> None:
    for path in ("/", "/admin", "/static/label.js", "/nowhere", "/admin/export/events.jsonl"):
        answer = site.admin.get(path)
        for name, value in HEADERS.items():
            assert answer.headers[name] == value, path
    joined = post(site.client(), "/invite", {"token": site.store.invite("cleo")})
    cookie = joined.headers["set-cookie"]
    assert "HttpOnly" in cookie and "SameSite=strict" in cookie and "Path=/" in cookie
    assert "Secure" not in cookie
    script = site.ann.get("/static/label.js").text
    assert "innerHTML" not in script and "eval" not in script


def test_every_completion_and_button_has_a_name_for_who_listens(site: Site) -> None:
    page = site.ann.get("/").text
    ids = set(re.findall(r'\bid="([^"]+)"', page))
    for attribute, count in (("aria-labelledby", 4), ("aria-describedby", 4)):
        named = re.findall(rf'{attribute}="([^"]+)"', page)
        assert len(named) == count and set(named) <= ids


@pytest.mark.parametrize("messages", [False, True])
@pytest.mark.parametrize("text", HOSTILE)
def test_text_of_any_kind_is_inert(tmp_path: Path, text: str, messages: bool) -> None:
    """The page has the tags that it has for harmless text, wherever the hostile one stands."""

    def tags(page: str) -> list[str]:
        found = [re.sub(r'value="[^"]*"', "", tag) for tag in re.findall(r"<[^>]*>", page)]
        return [tag for tag in found if "hidden-character" not in tag and tag != "</span>"]

    pages = []
    for name, words in (("hostile", text), ("harmless", "text")):
        site = Site(tmp_path / name, count=0, guidelines=words, title=words)
        prompt = [{"role": "user", "content": words}] if messages else words
        site.store.add_items([{"prompt": prompt, "completions": [f"{words} {k}" for k in "ab"]}])
        page = site.ann.get("/")
        assert page.status_code == site.admin.get("/admin").status_code == 200
        assert not re.search("[\x00\x1b\u202e\u200b\u2066]", page.text)
        pages.append(tags(page.text))
        assert post(site.ann, "/label", site.form(site.ann)).status_code == 303
        site.store.close()
    assert pages[0] == pages[1]


Case = Callable[[Site], Any]


def _raw(path: str, body: bytes, **headers: str) -> Case:
    return lambda s: s.ann.post(
        path,
        content=body,
        headers={"Origin": BASE, "Content-Type": "application/x-www-form-urlencoded"} | headers,
    )


def _label(**changes: Any) -> Case:
    return lambda s: post(s.ann, "/label", s.form(s.ann, **changes))


def _head(name: str, value: str) -> Case:
    return lambda s: post(s.ann, "/label", s.form(s.ann), **{name: value})


def _others_form(s: Site) -> Any:
    return post(s.bob, "/label", s.form(s.bob) | {"form": s.form(s.ann)["form"]})


def _upload(content: bytes, kind: str = "native", **fields: str) -> Case:
    def send(s: Site) -> Any:
        csrf = re.search(r'name="csrf" value="([^"]*)"', s.admin.get("/admin").text)
        assert csrf is not None
        return s.admin.post(
            "/admin/import",
            data={"csrf": csrf[1], "format": kind} | fields,
            files={"file": ("x.jsonl", content)},
            headers={"Origin": BASE},
        )

    return send


BAD: dict[str, tuple[Case, int]] = {
    "foreign origin": (_head("Origin", "http://evil.example"), 403),
    "origin of another port": (_head("Origin", "http://127.0.0.1:9000"), 403),
    "https origin of an http page": (_head("Origin", f"https://{HOST}"), 403),
    "null origin from another site": (_head("Origin", "null"), 403),
    "cross-site fetch": (_head("Sec-Fetch-Site", "cross-site"), 403),
    "same-site fetch": (_head("Sec-Fetch-Site", "same-site"), 403),
    "no origin": (lambda s: s.ann.post("/label", data=s.form(s.ann)), 403),
    "foreign host": (_head("Host", "evil.example"), 421),
    "rebound name with the port": (_head("Host", "evil.example:8000"), 421),
    "host of another port": (_head("Host", "127.0.0.1:9000"), 421),
    "empty host": (_head("Host", ""), 421),
    "foreign host on a page": (lambda s: s.ann.get("/", headers={"Host": "evil.example"}), 421),
    "no form token": (_label(csrf=""), 403),
    "made-up form token": (_label(csrf="0" * 64), 403),
    "form token that is no ascii": (_label(csrf="é"), 403),
    "another session's form token": (
        lambda s: post(s.ann, "/label", s.form(s.ann, csrf=s.form(s.bob)["csrf"])), 403),
    "no session": (lambda s: post(s.client(), "/label", s.form(s.ann)), 401),
    "made-up session": (
        lambda s: post(s.client(), "/label", s.form(s.ann), Cookie="labelling=made-up"), 401),
    "session cookie of SQL": (
        lambda s: post(s.client(), "/label", s.form(s.ann), Cookie="labelling=' OR 1=1 --"), 401),
    "somebody else's form": (_others_form, 403),
    "an admin's form for a labeler": (
        lambda s: post(s.admin, "/label", s.form(s.ann)), 403),
    "form that never was": (_label(form="made-up"), 303),
    "form of SQL": (_label(form="' OR '1'='1"), 303),
    "completion that is not there": (_label(action="pick 4"), 400),
    "negative completion": (_label(action="pick -1"), 400),
    "completion of other digits": (_label(action="pick ٣"), 400),
    "huge completion": (_label(action="pick " + "9" * 400), 400),
    "no action": (_label(action=""), 400),
    "unknown action": (_label(action="delete"), 400),
    "undo as an answer": (_label(action="undo"), 400),
    "reason of one's own": (_label(action="skip", reason="<script>"), 400),
    "oversized body": (_raw("/label", b"a=" + b"x" * 20_000), 413),
    "oversized body of no stated length": (
        lambda s: s.ann.post("/label", content=iter([b"a=", b"x" * 20_000]), headers={
            "Origin": BASE, "Content-Type": "application/x-www-form-urlencoded"}), 413),
    "lying length": (_raw("/label", b"a=1", **{"Content-Length": "-5"}), 400),
    "bytes that are no UTF-8": (_raw("/label", b"action=%ff%fe"), 400),
    "raw bytes": (_raw("/label", b"\xff\x00\x01"), 400),
    "a field twice": (_raw("/label", b"action=tie&action=bad"), 400),
    "thousands of fields": (_raw("/label", b"&".join(b"%d=1" % i for i in range(2_000))), 400),
    "JSON for a form": (_raw("/label", b"{}", **{"Content-Type": "application/json"}), 415),
    "wrong method": (lambda s: s.ann.get("/label"), 405),
    "delete": (lambda s: s.ann.delete("/", headers={"Origin": BASE}), 405),
    "wrong token": (lambda s: s.client().get("/invite/made-up"), 404),
    "wrong token posted": (lambda s: post(s.client(), "/invite", {"token": "made-up"}), 404),
    "empty token": (lambda s: post(s.client(), "/invite", {"token": ""}), 404),
    "token of half characters": (_raw("/invite", b"token=%ed%a0%80"), 400),
    "traversal": (lambda s: s.ann.get("/static/..%2fserver.py"), 404),
    "traversal by dots": (lambda s: s.ann.get("/static/../../store.py"), 404),
    "absolute path": (lambda s: s.ann.get("/static/%2fetc%2fpasswd"), 404),
    "null byte in a path": (lambda s: s.ann.get("/static/label.js%00.css"), 404),
    "export by path": (lambda s: s.admin.get("/admin/export/..%2f..%2flabels.sqlite"), 404),
    "admin page for a labeler": (lambda s: s.ann.get("/admin"), 403),
    "export for a labeler": (lambda s: s.ann.get("/admin/export/comparisons.jsonl"), 403),
    "export for nobody": (lambda s: s.client().get("/admin/export/comparisons.jsonl"), 401),
    "invitation by a labeler": (
        lambda s: post(s.ann, "/admin/invite", s.form(s.ann) | {"name": "eve"}), 403),
    "import by a labeler": (
        lambda s: s.ann.post("/admin/import", files={"x": b"{}"}, headers={"Origin": BASE}), 403),
    "import without a form token": (_upload(b"{}", csrf="no"), 403),
    "import of no JSON": (_upload(b"prompt,completions"), 422),
    "import of no UTF-8": (_upload(b"\xff\xfe{}"), 422),
    "import of other rows": (_upload(b'{"text": "x"}'), 422),
    "import of a pick that is not there": (
        _upload(b'{"prompt": "p", "completions": ["a", "b"], "best": 7}'), 422),
    "import of an unknown format": (_upload(b"{}", "pickle"), 422),
    "import of nested depths": (_upload(b"[" * 100_000), 422),
    "name of control characters": (
        lambda s: post(s.admin, "/admin/invite", {
            "csrf": re.search(r'csrf" value="([^"]*)', s.admin.get("/admin").text)[1],  # type: ignore[index]
            "name": "a\u202eb"}), 400),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_a_hostile_or_broken_request_is_turned_away_and_nothing_is_written(
    site: Site, case: str
) -> None:
    send, status = BAD[case]
    site.form(site.ann), site.form(site.bob)  # leases are no labels: both are out
    tables = ("items", "labellers", "sessions", "leases", "events", "labels")

    def content() -> list[Any]:
        return [site.store.db.execute(f"SELECT * FROM {name}").fetchall() for name in tables]

    before = content()
    answer = send(site)
    assert answer.status_code == status
    if status == 303:
        assert answer.headers["location"] == "/?note=late"
    assert content() == before
    assert "Traceback" not in answer.text and "sqlite" not in answer.text.lower()
    assert len(answer.text) < 500
    assert answer.headers["content-security-policy"] == HEADERS["content-security-policy"]


def test_stale_and_replayed_forms_write_nothing(site: Site) -> None:
    form = site.form(site.ann)
    assert post(site.ann, "/label", form).headers["location"] == "/"
    for action in ("pick 1", "pick 0", "skip"):  # back button, double click, another tab
        again = post(site.ann, "/label", form | {"action": action, "reason": "other"})
        assert again.headers["location"] == "/?note=again"
    assert "answered that item already" in site.ann.get("/?note=again").text
    assert len(list(site.store.events())) == 1
    after = site.form(site.ann)["after"]
    fields = {"csrf": form["csrf"], "after": after}
    assert post(site.ann, "/undo", fields).headers["location"] == "/?note=undone"
    for stale in (after, "", "x", "9" * 30):
        answer = post(site.ann, "/undo", fields | {"after": stale})
        assert answer.headers["location"] == "/?note=nothing"
    assert [e["action"] for e in site.store.events()] == ["pick", "undo"]


def test_signing_out_ends_the_session(site: Site) -> None:
    cookie = site.ann.cookies["labelling"]
    form = site.form(site.ann)
    assert post(site.ann, "/leave", {"csrf": form["csrf"]}).status_code == 303
    answer = post(site.client(), "/label", form, Cookie=f"labelling={cookie}")
    assert answer.status_code == 401


@pytest.mark.parametrize("kind", ["locked", "read-only", "corrupt", "gone"])
def test_a_file_that_goes_bad_is_told_in_a_word_and_the_form_works_again_later(
    tmp_path: Path, kind: str
) -> None:
    site, path = Site(tmp_path, count=3), tmp_path / "labels.sqlite"
    form, connect = site.form(site.ann), site.store._connect

    def hindered() -> sqlite3.Connection:
        if kind == "corrupt":
            raise sqlite3.DatabaseError("database disk image is malformed")
        if kind == "gone":
            raise sqlite3.OperationalError("unable to open database file")
        connection = connect()
        pragma = {"locked": "busy_timeout = 50", "read-only": "query_only = ON"}[kind]
        connection.execute(f"PRAGMA {pragma}")
        return connection

    other = sqlite3.connect(path, isolation_level=None)
    if kind == "locked":
        other.execute("BEGIN IMMEDIATE")
    site.store.close()
    site.store._connect = hindered  # type: ignore[method-assign]
    answer = post(site.ann, "/label", form)
    assert answer.status_code == 503 and answer.headers["retry-after"]
    assert answer.text.startswith("your answer was not saved") and "sqlite" not in answer.text
    if kind == "locked":
        other.execute("ROLLBACK")
    other.close()
    site.store.close()
    with Store(path, Settings(overlap=0.0, repeats=0.0)) as whole:
        assert list(whole.events()) == []
        ann = whole.by_session(site.ann.cookies["labelling"])
        assert ann is not None and whole.record(ann, form["form"], "pick", 0)


@pytest.mark.slow
def test_on_a_full_disk_what_was_acknowledged_is_there_and_the_rest_is_told(
    tmp_path: Path,
) -> None:
    site = Site(tmp_path, count=300, rate=1e6, burst=10**6)
    connect = site.store._connect

    def hindered() -> sqlite3.Connection:
        connection = connect()
        connection.execute("PRAGMA max_page_count = 1")  # no page more than there are
        return connection

    site.store.close()
    site.store._connect = hindered  # type: ignore[method-assign]
    acknowledged = 0
    for _ in range(300):
        page = site.ann.get("/")
        if page.status_code == 503:
            break
        fields = dict(re.findall(r'name="(csrf|form)" value="([^"]*)"', page.text))
        answer = post(site.ann, "/label", fields | {"action": "pick 1"})
        if answer.status_code == 503:
            break
        assert answer.headers["location"] == "/"
        acknowledged += 1
    else:
        raise AssertionError("it never filled")
    site.store.close()
    with Store(tmp_path / "labels.sqlite") as whole:
        assert len(list(whole.events())) == acknowledged > 5


def test_too_many_requests_are_told_to_wait(tmp_path: Path) -> None:
    site = Site(tmp_path, rate=1.0, burst=5)
    answers = [site.ann.get("/") for _ in range(12)]
    assert [a.status_code for a in answers[:3]] == [200] * 3
    assert answers[-1].status_code == 429 and answers[-1].headers["retry-after"]
    assert site.bob.get("/").status_code == 200


def test_an_import_that_is_too_large_is_told_how_to_come_in(tmp_path: Path) -> None:
    answer = _upload(b" " * (1 << 20))(Site(tmp_path, import_limit=1 << 20))
    assert answer.status_code == 413
    assert (
        "the file is larger than 1 MiB: import it in parts, or with preftune label" in answer.text
    )


def test_an_admin_invites_imports_and_exports(site: Site) -> None:
    post(site.ann, "/label", site.form(site.ann))
    csrf = re.search(r'csrf" value="([^"]*)', site.admin.get("/admin").text)[1]  # type: ignore[index]
    page = post(site.admin, "/admin/invite", {"csrf": csrf, "name": "dora"}).text
    link = re.search(rf"{BASE}/invite/[\w-]+", page)
    assert link is not None
    token = link[0].rsplit("/", 1)[1]
    opened = site.client().get(f"/invite/{token}")
    assert opened.status_code == 200 and "Welcome, dora" in opened.text
    out = site.admin.get("/admin/export/comparisons.jsonl")
    (pick,) = [json.loads(line) for line in out.text.splitlines()]
    assert [pick] == list(site.store.picks())
    more = out.content + b'{"prompt": "new", "completions": ["a", "b"]}\n'
    answer = _upload(more)(site)
    assert "1 items and 0 picks were added; 1 were there already" in answer.text
    for name in ("label_studio", "argilla"):
        whole = site.admin.get(f"/admin/export/{name}.json").content
        assert len(json.loads(whole)) == 1
        assert "0 items and 0 picks were added" in _upload(whole, name)(site).text
    assert len(site.admin.get("/admin/export/events.jsonl").text.splitlines()) == 1
    assert urllib.parse.urlsplit(link[0]).netloc == HOST


def admins_form(site: Site, **fields: str) -> dict[str, str]:
    csrf = re.search(r'csrf" value="([^"]*)', site.admin.get("/admin").text)
    assert csrf is not None
    return {"csrf": csrf[1]} | fields


def test_a_name_that_has_a_link_is_asked_about_first(site: Site) -> None:
    form, cookie = site.form(site.ann), site.ann.cookies["labelling"]
    for name in ("ann", "  ann "):
        asked = post(site.admin, "/admin/invite", admins_form(site, name=name))
        assert "ann already has a link" in asked.text and "/invite/" not in asked.text.replace(
            "/admin/invite", ""
        )
        assert post(site.ann, "/label", form).status_code == 303  # she is still signed in
    question = dict(re.findall(r'name="(name|replaces)" value="([^"]+)"', asked.text))
    assert question["name"] == "ann"
    answer = post(site.admin, "/admin/invite", admins_form(site, **question))
    link = re.search(rf"{BASE}/invite/([\w-]+)", answer.text)
    assert link is not None and site.store.by_token(link[1]) is not None
    assert site.store.by_session(cookie) is None
    # The button pressed twice, or the page loaded again: the link that was just made stays.
    again = post(site.admin, "/admin/invite", admins_form(site, **question))
    assert "ann already has a link" in again.text and site.store.by_token(link[1]) is not None
    assert question["replaces"] not in again.text


def test_names_that_look_the_same_are_the_same(site: Site) -> None:
    made = post(site.admin, "/admin/invite", admins_form(site, name="Jose\u0301  Ruiz"))
    assert f"{BASE}/invite/" in made.text
    assert site.store.invitation("Jos\u00e9 Ruiz") is not None
    asked = post(site.admin, "/admin/invite", admins_form(site, name="Jos\u00e9 Ruiz"))
    assert "already has a link" in asked.text


class Locals(logging.Handler):
    """A handler that writes all that a record carries, the local variables of its traceback too."""

    def __init__(self) -> None:
        super().__init__()
        self.text = ""

    def emit(self, record: logging.LogRecord) -> None:
        self.text += logging.Formatter().format(record) + repr(vars(record))
        trace = record.exc_info[2] if record.exc_info else None
        while trace is not None:
            self.text += repr(trace.tb_frame.f_locals)
            trace = trace.tb_next


@pytest.fixture
def logged() -> Iterator[Locals]:
    handler = Locals()
    logging.getLogger().addHandler(handler)
    yield handler
    logging.getLogger().removeHandler(handler)


FAILURES: dict[str, Callable[[str], Exception]] = {
    "locked": lambda _: sqlite3.OperationalError("database is locked"),
    "an error that tells": lambda secret: sqlite3.OperationalError(f"no such row: {secret!r}"),
    "no file": lambda secret: FileNotFoundError(2, "No such file", f"/x/{secret}"),
    "a bug": lambda secret: KeyError(secret),
    "a bug about text": lambda secret: ValueError(f"of {secret}, {secret[:40]}... and {secret}"),
}


@pytest.mark.parametrize("failure", FAILURES)
def test_no_secret_reaches_a_log_when_the_store_fails(
    site: Site,
    failure: str,
    logged: Locals,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    token, form = site.store.invite("dora"), site.form(site.ann)
    secrets = [token, site.ann.cookies["labelling"], form["csrf"]]
    called: list[str] = []

    def failing(name: str, secret: str) -> Callable[..., Any]:
        def call(*_: Any, **__: Any) -> Any:
            called.append(name)
            raise FAILURES[failure](secret) from KeyError(secret)

        return call

    for name, secret in (("by_token", token), ("record", form["csrf"])):
        monkeypatch.setattr(site.store, name, failing(name, secret))
    site.client().get(f"/invite/{token}")
    site.client().get(f"/invite/{token}?again={token}")
    post(site.client(), "/invite", {"token": token})
    post(site.ann, "/label", form)
    monkeypatch.setattr(site.store, "by_session", failing("by_session", secrets[1]))
    answer = site.ann.get("/")
    assert answer.status_code in (500, 503)
    assert len(called) == 5 and len(caplog.records) >= 5  # it was told
    written = [logged.text, caplog.text, *capfd.readouterr(), answer.text]
    for text in written:
        for secret in secrets:
            assert secret[:12] not in text


def test_items_of_megabytes_are_shown_whole(tmp_path: Path) -> None:
    site = Site(tmp_path, count=0)
    texts = ["<b>" * 100_000, "\u00a0\u4f60" * 100_000, "a\u202e" * 9_000]
    site.store.add_items([{"prompt": "p" * 1_000_000, "completions": texts}])
    page = site.ann.get("/").text
    assert "p" * 1_000_000 in page and page.count("&lt;b&gt;") == 100_000
    assert page.count("\u00a0\u4f60") == 100_000 and page.count("\\u202e") == 9_000
    assert post(site.ann, "/label", site.form(site.ann)).status_code == 303
    site.store.close()


def test_an_invite_page_says_what_its_link_opens_and_waits_for_enter(site: Site) -> None:
    said = {
        kind: site.client().get(f"/invite/{site.store.invite(f'new {kind}', kind)}").text
        for kind in ("person", "admin")
    }
    assert all('<button class="large" autofocus>Begin</button>' in page for page in said.values())
    assert "You will see a text or a conversation" in said["person"]
    assert "opens the admin pages" in said["admin"] and "You will see" not in said["admin"]
