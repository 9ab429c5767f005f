"""The admin's pages: who may open them, that they change nothing, and what they hand out."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.labeling.test_pages import HOSTILE, Site, post
from toolkit.data.files import write_jsonl
from toolkit.labeling import admin_pages
from toolkit.labeling.exchange import EXPORTS
from toolkit.labeling.guard import HEADERS, PageSettings
from toolkit.labeling.store import Settings, Store

PATHS = [
    "/admin", "/admin/items", "/admin/items?show=skipped", "/admin/items?show=gold",
    "/admin/items?show=all&page=2", "/admin/items/1", "/admin/labelers/1", "/admin/export",
    "/admin/export/comparisons.jsonl", "/admin/export/events.jsonl",
    "/admin/export/label_studio.json", "/admin/export/argilla.json",
]  # fmt: skip


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """A site with a pick and a skip by ann, which the tests only read."""
    site = Site(tmp_path_factory.mktemp("site"), rate=1e6, burst=10**6)
    post(site.ann, "/label", site.form(site.ann))
    post(site.ann, "/label", site.form(site.ann, action="skip", reason="broken"))
    yield site
    site.store.close()


@pytest.mark.parametrize("path", PATHS)
def test_a_page_is_for_an_admin_and_opening_it_changes_nothing(site: Site, path: str) -> None:
    tables = ("items", "labellers", "sessions", "leases", "events", "labels")

    def content() -> list[Any]:
        return [site.store.db.execute(f"SELECT * FROM {name}").fetchall() for name in tables]

    before = content()
    answer = site.admin.get(path)
    assert answer.status_code == 200
    assert HEADERS.items() <= dict(answer.headers).items()
    assert site.ann.get(path).status_code == 403
    assert site.client().get(path).status_code == 401
    for send in (site.admin.post, site.admin.put, site.admin.delete):
        headers = {"Origin": "http://127.0.0.1:8000"}
        assert send(path, headers=headers).status_code == 405
    assert content() == before


@pytest.mark.parametrize(
    "path",
    [
        "/admin/items/99", "/admin/items/-1", "/admin/items/x", "/admin/items/1e3",
        "/admin/items/" + "9" * 5000, "/admin/items/%D9%A3", "/admin/items/1%00",
        "/admin/items?show=x", "/admin/items?show=all&page=-1", "/admin/items?page=" + "9" * 99,
        "/admin/labelers/99", "/admin/labelers/x", "/admin/labelers/3",  # 3 is the admin
        "/admin/items/1%20OR%201=1", "/admin/export/nothing.json",
    ],
)  # fmt: skip
def test_an_address_that_names_nothing_is_not_found(site: Site, path: str) -> None:
    answer = site.admin.get(path)
    assert answer.status_code == 404 and len(answer.text) < 80


def test_an_item_shows_what_was_said_of_it(site: Site) -> None:
    (pick,) = site.store.picks()
    line = re.search(r'href="(/admin/items/\d+)"', site.admin.get("/admin/items?show=all").text)
    assert line is not None
    pages = [site.admin.get(f"/admin/items/{n}").text for n in range(1, 7)]
    (picked,) = [page for page in pages if "Picked by" in page]
    number = pick["best"] + 1
    assert re.search(rf"Completion {number}.*?</h3>.*?Picked by\s+ann", picked, re.DOTALL)
    assert f"completion {number} <small>(number 2 on their page)</small>" in picked
    (skipped,) = [page for page in pages if "broken" in page]
    assert re.search(r"<td>skipped</td>\s*<td>broken</td>", skipped)
    assert "secret-model" in skipped  # the admin sees where a text is from


def test_text_of_any_kind_is_inert(tmp_path: Path) -> None:
    """The pages have the tags that they have for harmless text, wherever the hostile one stands."""

    def tags(page: str) -> list[str]:
        assert not re.search("[\x00\x1b\u202e\u200b\u2066]", page)
        found = [re.sub(r'value="[^"]*"', "", tag) for tag in re.findall(r"<[^>]*>", page)]
        return [tag for tag in found if "hidden-character" not in tag and tag != "</span>"]

    found = []
    for kind in ("hostile", "harmless"):
        site = Site(tmp_path / kind, count=0, rate=1e6, burst=10**6)
        picks = []
        for n, text in enumerate(HOSTILE):
            words = text if kind == "hostile" else f"text {n}"
            for prompt in (words, [{"role": words, "content": words}]):
                row = {"prompt": prompt, "completions": [f"{words} {k}" for k in "ab"], "best": 0}
                picks.append(row | {"labeler": words, words[:50]: words, "more": {"in": words}})
        assert site.store.add_picks(picks) == (2 * len(HOSTILE), 0)

        ids = [row[0] for row in site.store.db.execute("SELECT id FROM labellers WHERE id > 3")]
        paths = [f"/admin/labelers/{labeler}" for labeler in ids]
        paths += [f"/admin/items/{item}" for item in range(1, 2 * len(HOSTILE) + 1)]
        pages = [site.admin.get(path) for path in [*paths, "/admin/items?show=all"]]
        assert {page.status_code for page in pages} == {200} and len(pages) == 61
        found.append([tags(page.text) for page in pages])
        found[-1].append(sorted(tags(site.admin.get("/admin").text)))  # by name
        site.store.close()
    assert found[0] == found[1]


def test_a_download_is_what_the_command_writes(site: Site, tmp_path: Path) -> None:
    write_jsonl(tmp_path / "picks.jsonl", site.store.picks())
    answer = site.admin.get("/admin/export/comparisons.jsonl")
    assert answer.content == (tmp_path / "picks.jsonl").read_bytes()
    assert answer.headers["content-length"] == str(len(answer.content))
    assert 'filename="comparisons.jsonl"' in answer.headers["content-disposition"]
    assert len(answer.content) > 100
    assert all("sqlite" in path.name for path in site.store.path.parent.iterdir())  # no leftovers


def test_of_a_download_that_cannot_be_made_whole_no_byte_is_sent(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    def half(store: Any) -> Iterator[bytes]:
        yield b'{"prompt": "the first of many"}\n' * 1000
        raise OSError(28, "No space left on device")

    monkeypatch.setitem(EXPORTS, "comparisons.jsonl", half)
    answer = site.admin.get("/admin/export/comparisons.jsonl")
    assert answer.status_code == 503 and answer.headers["retry-after"]
    assert "was not made" in answer.text and "first of many" not in answer.text


def test_a_large_download_comes_in_pieces(tmp_path: Path) -> None:
    site = Site(tmp_path, count=0)
    row = {"prompt": "p" * 300_000, "completions": ["a", "b"], "best": 1, "labeler": "ann"}
    site.store.add_picks([row])
    answer = site.admin.get("/admin/export/comparisons.jsonl")
    assert len(answer.content) > 4 * admin_pages.PIECE
    assert json.loads(answer.text) == row


def test_the_lines_that_train_are_shown_when_there_are_picks(tmp_path: Path) -> None:
    with Store(tmp_path / "labels.sqlite", Settings()) as store:
        store.add_items([{"prompt": "p", "completions": ["a", "b"]}])
        lines = ["cd /a", "preftune label --store '/x & <y>' --output z", "preftune reward MODEL"]
        pages = admin_pages.AdminPages(store, PageSettings(hosts=("h",)), lambda said: lines)
        shown = pages.page("export.html", who="w", picks=1, edited=0, commands=lines).body.decode()
        assert "--store &#39;/x &amp; &lt;y&gt;&#39; --output z\npreftune" in shown
        assert "in place of MODEL" in shown
        none = pages.page("export.html", who="w", picks=0, edited=0, commands=lines).body.decode()
        assert "no picks to train on yet" in none and "preftune reward" not in none


def test_a_labelers_page_is_found_from_the_first_page(site: Site) -> None:
    found = re.search(r'href="(/admin/labelers/\d+)">ann<', site.admin.get("/admin").text)
    assert found is not None
    page = site.admin.get(found[1]).text
    assert "<h1>ann</h1>" in page
    assert re.search(r"broken</th><td class=\"n\">1</td>", page)
