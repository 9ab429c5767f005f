"""The page in a browser, with the real server: two people, and everything that browsers do."""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
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
# Scrolls by half a screen at a time to the end, and waits for each to be shown.
SCROLL = """async () => {
  while (document.querySelector("[name=seen]")?.value === "") {
    const before = scrollY;
    scrollBy(0, innerHeight / 2);
    await new Promise((shown) => requestAnimationFrame(() => requestAnimationFrame(shown)));
    if (scrollY === before) break;
  }
}"""
PICTURES = os.environ.get("PICTURES")  # a folder, to look at what the page looks like


@pytest.fixture
def site(root: Path, tmp_path: Path) -> Iterator[tuple[Path, dict[str, str]]]:
    """The recipe's server on 40 items of which both people see all; links by name."""
    texts = [
        "We loved it.",
        "It was closed, and nobody told us why.",
        "The tea was cold.",
        "The owner welcomed us, showed us the garden and would not let us pay.",
    ]
    rows = [
        {
            "prompt": f"On day {i} I went to the cafe by the lake.",
            "completions": [f" {t} ({i})" for t in texts],
        }
        for i in range(ITEMS)
    ]
    with serving(root, tmp_path, rows) as found:
        yield found


@contextmanager
def serving(
    root: Path, folder: Path, rows: list[dict[str, Any]], *flags: str
) -> Iterator[tuple[Path, dict[str, str]]]:
    """The recipe's server on these items, each of them for ann and bob; the store, and links."""
    path, samples = folder / "labels.sqlite", folder / "samples.jsonl"
    samples.write_text("".join(json.dumps(row) + "\n" for row in rows))
    # A script presses keys faster than people do.
    words = [sys.executable, "recipes/label.py", "--serve", "--store", str(path), "--samples",
             str(samples), "--port", "0", "--invite", "ann,bob", "--overlap", "1", "--repeats",
             "0", "--gold_share", "0",
             "--requests_per_second", "1000", *flags]  # fmt: skip
    env = os.environ | {"PYTHONPATH": str(root), "PYTHONUNBUFFERED": "1"}
    server = subprocess.Popen(words, cwd=root, env=env, text=True, stdout=subprocess.PIPE)
    links: dict[str, str] = {}
    assert server.stdout is not None
    for line in server.stdout:
        if found := re.match(r"(?:invite link for (\w+)|(admin) link): (\S+)", line):
            links[found[1] or found[2]] = found[3]
        if "admin" in links:
            break
    try:
        yield path, links
    finally:
        server.terminate()
        ended = server.wait(timeout=20)
        server.stdout.close()
    assert ended in (0, -15)


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

    def read(self) -> None:
        """Scroll through the page as a reader does, so that all of each answer is on the screen."""
        self.page.evaluate(SCROLL)

    def press(self, key: str) -> str:
        """Press a key and wait for the next page; notes the choice, returns the prompt."""
        prompt, texts = self.prompt, self.texts()
        if key != "s":
            self.read()
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
  found.violations.map((one) =>
    `${location.pathname}: ${one.id} (${one.impact}): ${one.help}: ${one.nodes[0].html}`))"""
EVERY_RULE = {"rules": {"target-size": {"enabled": True}}}  # which is off unless asked for
CONTRAST = {"runOnly": {"type": "rule", "values": ["color-contrast"]}}


def kept_out(page: Any) -> list[str]:
    """What keeps people out of a page, wide and narrow, in the light and in the dark.

    At 320 pixels (a wide screen at 400 %) the page must not scroll sideways (WCAG 2.2, 1.4.10).
    """
    axe = pytest.importorskip("axe_playwright_python.base", reason="axe is not installed")
    page.evaluate(axe.AXE_SCRIPT)
    found: list[str] = []
    for width, height in ((320, 640), (1280, 800)):
        page.set_viewport_size({"width": width, "height": height})
        if (across := page.evaluate("document.documentElement.scrollWidth")) > width:
            found.append(f"{width}: {page.url} is {across} pixels wide")
        for scheme in ("dark", "light"):
            page.emulate_media(color_scheme=scheme)
            rules = EVERY_RULE if (width == 320) == (scheme == "dark") else CONTRAST
            found += [f"{width} {scheme}: {line}" for line in page.evaluate(AXE, rules)]
    return found


def test_a_page_that_asks_for_all_keeps_nobody_out(root: Path, tmp_path: Path) -> None:
    row = {"prompt": CHAT, "completions": [LONG, "Pour **slowly**.", "- boil\n- pour", "No."]}
    flags = ("--ask", "ranking,strength,comment,edit")
    with serving(root, tmp_path, [row], *flags) as (_, links), playwright.sync_playwright() as p:
        chromium = p.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        ann = Browser(chromium, links["ann"])
        found = kept_out(ann.page)
        ann.page.evaluate("for (const one of document.querySelectorAll('details')) one.open = true")
        found += kept_out(ann.page)
        ann.picture("axe-asks-for-all")
        chromium.close()
    assert found == []


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


LONG = """# How to brew

Use **30 g** of coffee, see [the guide](https://example.com/guide).

| step | water |
|------|------:|
| bloom | 60 g |

```python
print("pour")
```

""" + "\n\n".join(f"Paragraph {i} goes on about the taste." for i in range(40))
CHAT = [
    {"role": "system", "content": "Answer in Markdown."},
    {"role": "user", "content": "Hi!"},
    {"role": "assistant", "content": "Hello, *you*."},
    {"role": "user", "content": "How do I brew coffee?"},
]


def test_a_chat_is_ranked_commented_and_edited_and_no_text_is_hidden(
    root: Path, tmp_path: Path
) -> None:
    rows = [
        {
            "prompt": [*CHAT, {"role": "user", "content": f"Number {i}."}],
            "completions": [LONG, f"Pour **slowly** {i}.", f"- boil {i}\n- pour", f"No {i}."],
        }
        for i in range(4)
    ]
    flags = ("--ask", "ranking,strength,comment,edit")
    with serving(root, tmp_path, rows, *flags) as (path, links), playwright.sync_playwright() as p:
        chromium = p.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        ann = Browser(chromium, links["ann"], viewport={"width": 1280, "height": 720})
        page = ann.page
        assert page.locator(".turn").count() == 5 and page.locator(".turn.system").count() == 1
        assert page.locator(".turn em").inner_text() == "you"
        ann.picture("chat")

        # The long answer is folded with a button, and no answer is taken before all was seen.
        form, answers = ann.form(), page.locator("article .rendered").all_inner_texts()
        long = next(k for k, text in enumerate(answers) if text.startswith("How to brew"))
        assert page.locator(".folded").count() == 1
        for key in ("4", "2", "1", "3", "k", "t", "Enter"):  # 3 is there already, and stays
            page.keyboard.press(key)
        assert "You have not seen all of" in page.inner_text("#told")
        assert page.locator("#placed").inner_text().split() == ["4", "2", "1", "3"]
        ann.read()
        assert page.locator("[name=seen]").input_value() == ""
        assert page.inner_text("#told").startswith(f"You have not seen all of {long + 1} yet.")
        page.keyboard.press("m")
        ann.read()
        assert page.locator("[name=seen]").input_value() == "all" and ann.form() == form
        ann.picture("chat-opened")

        # The raw text is one key away, and a code block is copied as it is.
        page.keyboard.press("r")
        assert "# How to brew\n\nUse **30 g**" in page.locator(".raw").nth(1 + long).inner_text()
        page.keyboard.press("r")
        ann.context.grant_permissions(["clipboard-read", "clipboard-write"])
        page.get_by_role("button", name="Copy").click()
        page.get_by_role("button", name="Copied").wait_for()
        assert page.evaluate("navigator.clipboard.readText()") == 'print("pour")\n'

        # A chip is dragged to the front: 3, 4, 2, 1. Then a comment, and an edit of the best.
        drag(page, "3", "4")
        assert page.locator("#placed").inner_text().split() == ["3", "4", "2", "1"]
        page.keyboard.press("c")
        page.keyboard.type("Both 1 and t are typed here.")
        page.keyboard.press("Escape")
        page.keyboard.press("e")
        assert page.locator("[name=edited]").input_value() == raw_of(rows, answers[2])
        page.keyboard.press("Control+End")
        page.keyboard.type(" Enjoy!")
        with page.expect_navigation():
            page.keyboard.press("Control+Enter")
        assert page.inner_text(".last").startswith("Your last answer, after")

        # What was taken back stands there again, and is sent as it was.
        with page.expect_navigation():
            page.keyboard.press("u")
        assert page.locator("#placed").inner_text().split() == ["3", "4", "2", "1"]
        page.keyboard.press("n")
        with page.expect_navigation():
            page.keyboard.press("Enter")

        # A number again takes it out; a skip asks for nothing; "seen enough" is stored.
        for key in ("1", "2", "1", "1", "3", "j", "n"):
            page.keyboard.press(key)
        assert page.locator("#placed").inner_text().split() == ["2", "1", "3", "4"]
        second = page.locator("article .rendered").all_inner_texts()
        with page.expect_navigation():
            page.keyboard.press("Enter")
        with page.expect_navigation():
            page.keyboard.press("s")
        assert ann.problems == []

        # Without script nothing is folded, and places are chosen from lists.
        bob = Browser(chromium, links["bob"], java_script_enabled=False)
        assert bob.page.locator(".folded, .more:visible, .choose:visible").count() == 0
        for n, place in enumerate(("2", "1", "4", "3"), start=1):
            bob.page.get_by_label(f"Place of {n}").select_option(place)
        bob.page.get_by_label("much better").check()
        bob.page.get_by_role("button", name="Save").click()
        assert "before" in bob.page.inner_text(".last")
        chromium.close()

        with Store(path) as store:
            first, enough, of_bob = store.picks()
            (edited,) = store.edited()
            said = {event["labeler"]: event for event in store.events()}
            seen = [event.get("seen") for event in store.events() if event["action"] != "undo"]
    shown = [raw_of(rows, text) for text in answers]
    assert [first["completions"][k] for k in first["ranking"]] == [shown[k] for k in (2, 3, 1, 0)]
    assert (first["margin"], first["labeler_comment"]) == (0.666667, "Both 1 and t are typed here.")
    assert first["labeler_edit"] == shown[2] + " Enjoy!" == edited["completions"][edited["best"]]
    shown = [raw_of(rows, text) for text in second]
    assert [enough["completions"][k] for k in enough["ranking"]] == [shown[k] for k in (1, 0, 2, 3)]
    assert seen == ["all", "enough", "enough", None, None] and said["bob"]["strength"] == 3
    assert sorted(of_bob["ranking"]) == [0, 1, 2, 3] and said["ann"]["action"] == "skip"


def test_the_worst_stays_the_worst_when_the_best_is_taken_out(root: Path, tmp_path: Path) -> None:
    rows = [
        {"prompt": f"Text {count}.", "completions": [f" {k}" for k in range(count)]}
        for count in (3, 2)
    ]
    flags = ("--ask", "best_and_worst")
    with serving(root, tmp_path, rows, *flags) as (path, links), playwright.sync_playwright() as p:
        chromium = p.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        ann = Browser(chromium, links["ann"], viewport={"width": 1280, "height": 800})
        said = {}
        for _ in rows:
            prompt, texts = ann.prompt, ann.texts()
            steps = OF_THREE if prompt == "Text 3." else OF_TWO
            for key, words in steps:
                ann.page.keyboard.press(key)
                places = ann.page.locator("article .place").all_inner_texts()
                assert [place.strip() for place in places] == words, (prompt, key)
            ann.read()
            with ann.page.expect_navigation():
                ann.page.keyboard.press("Enter")
            said[prompt] = tuple(
                f" {texts[words.index(place)].strip()}" for place in ("best", "worst")
            )
        assert ann.problems == []
        chromium.close()
    with Store(path) as store:
        assert said == {
            row["prompt"]: tuple(row["completions"][row[name]] for name in ("best", "worst"))
            for row in store.picks()
        }


# Keys, and what stands at each answer after them.
OF_THREE = [
    ("1", ["best", "", ""]),
    ("3", ["best", "", "worst"]),
    ("1", ["", "", "worst"]),
    ("Enter", ["", "", "worst"]),  # half an answer is not sent
    ("3", ["", "", ""]),
    ("1", ["best", "", ""]),
    ("3", ["best", "", "worst"]),
    ("1", ["", "", "worst"]),
    ("2", ["", "best", "worst"]),
]
OF_TWO = [
    ("1", ["best", "worst"]),  # the worst of two follows
    ("1", ["", ""]),
    ("2", ["worst", "best"]),
    ("1", ["worst", "best"]),
]


def drag(page: Any, chip: str, before: str) -> None:
    """Drag one chip of the order before another, with the mouse."""
    boxes = {}
    for name in (chip, before):
        found = page.locator("#placed").get_by_role("button", name=name, exact=True)
        found.scroll_into_view_if_needed()
        boxes[name] = found.bounding_box()
    page.mouse.move(boxes[chip]["x"] + 10, boxes[chip]["y"] + 10)
    page.mouse.down()
    page.mouse.move(boxes[before]["x"] + 3, boxes[before]["y"] + 10, steps=8)
    page.mouse.up()


def raw_of(rows: list[dict[str, Any]], shown: str) -> str:
    """The answer whose Markdown is shown, told by its letters and digits."""

    def letters(text: str) -> str:
        return "".join(filter(str.isalnum, text.replace("python", "").replace("Copy", "")))

    (found,) = {c for row in rows for c in row["completions"] if letters(c) == letters(shown)}
    return found


HOSTILE = [
    "<script>document.title = 'owned'; alert(1)</script>",
    "<img src=https://evil.example/1.png onerror=alert(1)>",
    "![x](https://evil.example/2.png)",
    "![x](data:image/svg+xml;base64,PHN2ZyBvbmxvYWQ9ImFsZXJ0KDEpIi8+)",
    "[click](javascript:alert(1)) and [this](  JaVaScRiPt:alert(1))",
    "[click](data:text/html,<script>alert(1)</script>)",
    "<https://evil.example/3> and https://evil.example/4",
    "<a href='//evil.example/5' onmouseover=alert(1)>x</a>",
    "<style>body { display: none; background: url(//evil.example/6) }</style>",
    "<link rel=stylesheet href=//evil.example/7><base href=//evil.example/>",
    "<meta http-equiv=refresh content='0;url=//evil.example/8'>",
    "</p></div></article></form><form action=//evil.example/9><button>Pick me</button></form>",
    "<svg/onload=alert(1)><iframe srcdoc='<script>parent.alert(1)</script>'></iframe>",
    "&lt;script&gt;alert(1)&lt;/script&gt; &#60;img src=x onerror=alert(1)&#62;",
    "\u202ekcilc ton od\u202c and \u2066hidden\u2069 \u200bzero &#8238;entity",
    "| a | b |\n|---|---|\n" + "| <b>1</b> | `</td><script>alert(1)</script>` |\n" * 60,
    "|" + "wide|" * 60 + "\n|" + "-|" * 60 + "\n|" + "cell|" * 60,
    "```html\n</code></pre><script>alert(1)</script>\nnever closed",
    '```\\"><img/src=x onerror=alert(1)>\ncode\n```',
    "`\\3c script\\3e` <p style=\"background:url('//evil.example/10')\">\\0000003cb>",
    "[a]: //evil.example/11 'title'\n\n[a] ![a]",
    "> " * 200 + "deep\n\n" + "- " * 100 + "list",
    "# <marquee>\n\n<details open ontoggle=alert(1)><summary>x</summary></details>",
    "{{ 7 * 7 }} {% raw %} ${alert(1)} <!-- --> <![CDATA[ x ]]>",
]


def test_hostile_texts_are_inert(root: Path, tmp_path: Path) -> None:
    """Nothing is fetched, no dialog opens, and no element but ours is on the page."""
    rows = [
        {
            "prompt": [{"role": "user", "content": HOSTILE[i]},
                       {"role": "assistant", "content": HOSTILE[i + 1]},
                       {"role": "user", "content": "Go on."}],
            "completions": HOSTILE[i : i + 4],
        }
        for i in range(0, len(HOSTILE), 4)
    ]  # fmt: skip
    with serving(root, tmp_path, rows) as (path, links), playwright.sync_playwright() as p:
        chromium = p.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        ann = Browser(chromium, links["ann"], viewport={"width": 1280, "height": 900})
        home = links["ann"].split("/invite")[0] + "/"
        asked: list[str] = []
        dialogs: list[str] = []
        ann.page.on("request", lambda request: asked.append(request.url))
        ann.page.on("dialog", lambda dialog: (dialogs.append(dialog.message), dialog.dismiss()))
        shown = ""
        while not ann.done():
            assert ann.page.title() == "Which is best?"
            tags = ann.page.evaluate(
                "[...new Set([...document.querySelectorAll('#item *')]"
                ".map((e) => e.tagName.toLowerCase()))]"
            )
            assert set(tags) <= OURS, set(tags) - OURS
            assert ann.page.locator("#item form, #item [style], #item [onload]").count() == 1
            assert ann.page.evaluate(LOUD) == []
            shown += ann.page.inner_text("#item")
            ann.picture(f"hostile-{len(ann.chosen)}")
            for _ in range(4):
                ann.page.keyboard.press("m")
            ann.page.keyboard.press("n")
            ann.press("1")
        assert ann.problems == [] == dialogs
        assert {url.removeprefix(home).split("?")[0] for url in asked} <= {
            "", "label", "static/label.css", "static/label.js"}  # fmt: skip
        chromium.close()
    for words in (
        "<script>document.title",
        "\\u202ekcilc",
        "(javascript:alert(1))",
        "never closed",
    ):
        assert words in shown


OURS = {
    *("h1", "h2", "h3", "h4", "h5", "h6", "div", "p", "form", "input", "article", "button", "kbd"),
    *(
        "span",
        "label",
        "select",
        "option",
        "a",
        "strong",
        "em",
        "del",
        "ul",
        "ol",
        "li",
        "hr",
        "br",
    ),
    *("blockquote", "pre", "code", "table", "thead", "tbody", "tr", "th", "td"),
}
# Attributes that could act, on any element of the page.
LOUD = """[...document.querySelectorAll('#item *')].flatMap((e) => [...e.attributes])
  .filter((a) => /^on|^src|^href$|^style$/.test(a.name) && a.ownerElement.id !== 'raw')
  .map((a) => a.name + '=' + a.value)"""
