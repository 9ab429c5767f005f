"""The page in a browser, with the real server: two people, and everything that browsers do."""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from toolkit.labeling.store import Settings, Store

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
CHROMIUM = shutil.which("chromium")
pytestmark = [
    pytest.mark.slow,  # drives a browser
    pytest.mark.skipif(CHROMIUM is None, reason="Debian's chromium is not installed"),
]
ITEMS = 40
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-sync",
    "--disable-background-networking",
    "--disable-component-update",
]
PICTURES = os.environ.get("PICTURES")  # a folder, to look at what the page looks like


@pytest.fixture
def site(root: Path, tmp_path: Path) -> Iterator[tuple[Path, dict[str, str]]]:
    """The recipe's server on 40 items of which both people see all; links by name."""
    path, samples = tmp_path / "labels.sqlite", tmp_path / "samples.jsonl"
    texts = [
        "We loved it.",
        "It was closed, and nobody told us why.",
        "The tea was cold.",
        "The owner welcomed us, showed us the garden and would not let us pay.",
    ]
    samples.write_text(
        "".join(
            json.dumps(
                {
                    "prompt": f"On day {i} I went to the cafe by the lake.",
                    "completions": [f" {t} ({i})" for t in texts],
                }
            )
            + "\n"
            for i in range(ITEMS)
        )
    )
    # A script presses keys faster than people do.
    words = [sys.executable, "recipes/label.py", "--serve", "--store", str(path), "--samples",
             str(samples), "--port", "0", "--invite", "ann,bob", "--overlap", "1", "--repeats",
             "0", "--gold_share", "0",
             "--requests_per_second", "1000"]  # fmt: skip
    env = os.environ | {"PYTHONPATH": str(root), "PYTHONUNBUFFERED": "1"}
    server = subprocess.Popen(words, cwd=root, env=env, text=True, stdout=subprocess.PIPE)
    links: dict[str, str] = {}
    assert server.stdout is not None
    for line in server.stdout:
        if found := re.match(r"(?:invite link for (\w+)|(admin) link): (\S+)", line):
            links[found[1] or found[2]] = found[3]
        if "admin" in links:
            break
    yield path, links
    server.terminate()
    assert server.wait(timeout=20) in (0, -15)
    server.stdout.close()


class Browser:
    """One person's browser, and what they chose: by prompt, the completion's text or an action."""

    def __init__(self, browser: Any, link: str, **options: Any) -> None:
        self.context = browser.new_context(**options)
        self.page = self.context.new_page()
        self.problems: list[str] = []
        self.page.on("pageerror", lambda error: self.problems.append(str(error)))
        self.page.on("console", self.heard)
        self.page.goto(link)
        self.page.keyboard.press("Tab")
        self.page.get_by_role("button", name="Begin").click()
        self.chosen: dict[str, str] = {}

    def heard(self, message: Any) -> None:
        if message.type == "error":
            self.problems.append(message.text)

    @property
    def prompt(self) -> str:
        return self.page.locator(".prompt").inner_text()

    def texts(self) -> list[str]:
        return self.page.locator("article .text").all_inner_texts()

    def form(self) -> str:
        return self.page.locator("#answer input[name=form]").get_attribute("value") or ""

    def press(self, key: str) -> str:
        """Press a key and wait for the next page; notes the choice, returns the prompt."""
        prompt, texts = self.prompt, self.texts()
        with self.page.expect_navigation():
            self.page.keyboard.press(key)
        said = {"s": "skip", "t": "tie", "b": "bad"}
        self.chosen[prompt] = said.get(key) or texts[int(key) - 1]
        return prompt

    def undo(self) -> None:
        with self.page.expect_navigation():
            self.page.keyboard.press("u")
        del self.chosen[self.prompt]

    def done(self) -> bool:
        return "You have labeled everything" in self.page.inner_text("main")

    def picture(self, name: str) -> None:
        if PICTURES:
            self.page.screenshot(path=Path(PICTURES) / f"{name}.png", full_page=True)


def test_two_people_label_by_keyboard_and_the_export_is_what_they_chose(
    site: tuple[Path, dict[str, str]],
) -> None:
    path, links = site
    with playwright.sync_playwright() as started:
        chromium = started.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        ann = Browser(chromium, links["ann"], viewport={"width": 1280, "height": 800})
        bob = Browser(chromium, links["bob"], viewport={"width": 390, "height": 844})
        for person, width in ((ann, "wide"), (bob, "narrow")):
            for scheme in ("light", "dark"):
                person.page.emulate_media(color_scheme=scheme)
                person.picture(f"{width}-{scheme}")
        label_as_ann(ann)
        label_as_bob(bob)
        admin = Browser(chromium, links["admin"], viewport={"width": 1280, "height": 800})
        admin.page.get_by_role("link", name="Export and train").click()
        with admin.page.expect_download() as download:
            admin.page.get_by_role("button", name="Picks as comparisons").click()
        admin.picture("admin-light")
        admin.page.emulate_media(color_scheme="dark")
        admin.picture("admin-dark")
        content = Path(download.value.path()).read_text(encoding="utf-8")
        assert ann.problems == bob.problems == admin.problems == []
        chromium.close()
    with Store(path, Settings()) as store:
        assert content.splitlines() == [
            json.dumps(row, ensure_ascii=False) for row in store.picks()
        ]
        found: dict[str, dict[str, str]] = {"ann": {}, "bob": {}}
        names = dict(store.db.execute("SELECT id, name FROM labellers").fetchall())
        for row in store.db.execute(
            "SELECT l.labeller, l.action, l.choice, i.prompt, i.completions FROM labels l "
            "JOIN items i ON i.id = l.item"
        ):
            prompt, texts = json.loads(row["prompt"]), json.loads(row["completions"])
            said = row["action"] if row["choice"] is None else texts[row["choice"]].strip()
            found[names[row["labeller"]]][prompt] = said
    assert found["ann"] == {p: c.strip() for p, c in ann.chosen.items()}
    assert found["bob"] == {p: c.strip() for p, c in bob.chosen.items()}
    assert len(found["ann"]) == len(found["bob"]) == ITEMS


def label_as_ann(ann: Browser) -> None:
    """Keys, undo, reload, the back button, a double click and a second tab."""
    for n in range(6):
        ann.press(str(n % 4 + 1))
    ann.undo()
    ann.press("3")
    ann.undo()
    ann.undo()  # two back
    ann.press("2")
    ann.press("1")
    form = ann.form()
    ann.page.reload()
    assert ann.form() == form  # the same item is asked
    ann.page.keyboard.press("?")
    assert ann.page.locator("#help").get_attribute("open") is not None
    ann.picture("wide-light-help")
    ann.page.keyboard.press("Control+1")  # a browser's own key picks nothing
    assert ann.form() == form
    before = ann.press("4")
    ann.page.go_back()  # an old page may come up; its form has spoken
    if ann.prompt == before:
        with ann.page.expect_navigation():
            ann.page.keyboard.press("1")
        assert "answered that item already" in ann.page.inner_text("main")
        ann.picture("wide-light-note")
    prompt, texts = ann.prompt, ann.texts()
    with ann.page.expect_navigation():
        ann.page.get_by_role("button", name="Pick 2").dblclick()
    ann.chosen[prompt] = texts[1]
    tab = ann.context.new_page()  # both tabs show one item; the second answer does not count
    tab.goto(ann.page.url)
    prompt = ann.press("2")
    tab.keyboard.press("3")
    tab.wait_for_url("**/?note=again")
    tab.close()
    ann.page.reload()
    ann.page.get_by_label("Reason").focus()
    form = ann.form()
    ann.page.keyboard.press("t")  # typed into the list of reasons
    assert ann.form() == form
    ann.page.get_by_role("button", name="Equally good").focus()
    prompt = ann.prompt
    with ann.page.expect_navigation():
        ann.page.keyboard.press("Enter")
    ann.chosen[prompt] = "tie"
    while not ann.done():
        ann.press("1234"[len(ann.chosen) % 4])
    ann.picture("wide-light-done")
    ann.undo()
    ann.press("4")
    assert ann.done()


def label_as_bob(bob: Browser) -> None:
    """Skips with a reason, all bad, and the rest by keys, on a phone in the dark."""
    box = bob.page.locator("article").nth(0).bounding_box()
    below = bob.page.locator("article").nth(1).bounding_box()
    assert box["x"] == below["x"] and below["y"] >= box["y"] + box["height"]  # stacked
    width = bob.page.evaluate("document.documentElement.scrollWidth")
    assert width <= 390
    bob.page.get_by_label("Reason").select_option("broken")
    bob.page.get_by_role("heading", name="The text").click()
    bob.press("s")
    bob.press("b")
    while not bob.done():
        bob.press("4321"[len(bob.chosen) % 4])


# The rules of axe-core, which the package brings: those that a page breaks, one line for each.
AXE = """(options) => axe.run({resultTypes: ["violations"], ...options}).then((found) =>
  found.violations.filter((one) => ["serious", "critical"].includes(one.impact)).map((one) =>
    `${location.pathname}: ${one.id} (${one.impact}): ${one.help}: ${one.nodes[0].html}`))"""
CONTRAST = {"runOnly": {"type": "rule", "values": ["color-contrast"]}}


def kept_out(page: Any) -> list[str]:
    """What keeps people out of a page, wide and narrow, in the light and in the dark."""
    axe = pytest.importorskip("axe_playwright_python.base", reason="axe is not installed")
    page.evaluate(axe.AXE_SCRIPT)
    found: list[str] = []
    for width, height in ((390, 844), (1280, 800)):
        page.set_viewport_size({"width": width, "height": height})
        for scheme in ("dark", "light"):
            page.emulate_media(color_scheme=scheme)
            every_rule = (width == 390) == (scheme == "dark")  # colors matter to one rule only
            told = page.evaluate(AXE, {} if every_rule else CONTRAST)
            found += [f"{width} {scheme}: {line}" for line in told]
    return found


def test_no_page_keeps_people_out_by_the_rules_of_axe(site: tuple[Path, dict[str, str]]) -> None:
    path, links = site
    base = links["admin"].split("/invite/")[0]
    with playwright.sync_playwright() as started:
        chromium = started.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        visitor = chromium.new_page()

        # A contrast that is too low must be found, or the rules did not run.
        visitor.set_content('<p style="color: #ccc; background: #fff">Hardly to be read</p>')
        assert any("color-contrast" in line for line in kept_out(visitor))

        found: list[str] = []
        for address in (links["bob"], base):  # the page behind a link, and that without one
            visitor.goto(address)
            found += kept_out(visitor)
        ann = Browser(chromium, links["ann"])
        found += kept_out(ann.page)
        ann.press("1")
        ann.press("s")
        bob = Browser(chromium, links["bob"])
        bob.press("t")

        with Store(path) as store, store.writing() as db:
            item = db.execute("SELECT item FROM events WHERE action = 'pick'").fetchone()[0]
            labeler = db.execute("SELECT id FROM labellers WHERE name = 'ann'").fetchone()[0]
            db.execute("UPDATE items SET wanted = taken")  # nothing is left to do
        admin = Browser(chromium, links["admin"])
        pages = ("", "/items?show=all", f"/items/{item}", f"/labelers/{labeler}", "/export")
        for name in pages:
            admin.page.goto(f"{base}/admin{name}")
            found += kept_out(admin.page)
            admin.picture(f"admin{re.sub('[^a-z]', '-', name)}")
        bob.press("1")
        assert bob.done()
        found += kept_out(bob.page)
        chromium.close()
    assert found == []


def test_it_works_without_javascript(site: tuple[Path, dict[str, str]]) -> None:
    path, links = site
    with playwright.sync_playwright() as started:
        chromium = started.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        ann = Browser(chromium, links["ann"], java_script_enabled=False)
        prompt, texts = ann.prompt, ann.texts()
        ann.page.get_by_role("button", name="Pick 3").click()
        assert ann.prompt != prompt
        chromium.close()
    with Store(path) as store:
        (pick,) = store.picks()
    assert pick["prompt"] == prompt
    assert pick["completions"][pick["best"]].strip() == texts[2].strip()
