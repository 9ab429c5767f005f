"""Two people answer all that can be asked, by keyboard alone; the export is exactly what they did.

A script is each person: it draws what to say, presses the keys for it, and notes what it meant by
the text that the page showed. Nothing of the store or of the page's script is used for the notes.
"""

import json
import os
import random
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests.labeling.test_page_in_browser import CHROMIUM, FLAGS, playwright, serving
from toolkit.labeling.pages import REASONS
from toolkit.labeling.store import Store

pytestmark = [
    pytest.mark.slow,  # drives a browser
    pytest.mark.skipif(CHROMIUM is None, reason="Debian's chromium is not installed"),
]
# KEYBOARD_ITEMS=40 asks for as many as people label in an hour; that takes a minute or more.
ITEMS = {"ranking": int(os.environ.get("KEYBOARD_ITEMS", "8")), "best_and_worst": 3}
MARGINS = {"j": 0.333333, "k": 0.666667, "l": 1.0}  # Llama 2, arXiv 2307.09288, table 27

# What a person may write: each letter that is a key of the page, and what is not ASCII.
COMMENTS = [
    "1234 tbsunmrcejkl?",
    "Grüße, „genau so“ – 日本語 🙂",
    "Two lines:\n\n- the second",
    "U",
]
EDITS = ['Nothing <b>else</b> & no "more".', "\n\n| a | b |\n|---|---|\n| 1 | 2 |", " Ende. 🙂"]


def rows_of(count: int) -> list[dict[str, Any]]:
    """Items whose answers are told apart by a number in each: of two, three and four answers."""
    ways = ["Pour **slowly**", "# Boil\n\n- once\n- twice\n\n", "```\nwait()\n```\n", "Do `not`"]
    return [
        {
            "prompt": [{"role": "user", "content": f"Question {i}?"}],
            "completions": [f"{way} No. {i}-{k}" for k, way in enumerate(ways[: 4 - i % 5 % 3])],
            "id": f"row {i}",
        }
        for i in range(count)
    ]


@dataclass
class Person:
    """One labeler with a keyboard.

    Attributes:
        rows: the items, as they were given to the page.
        picks: what the export of picks must hold, by item: in the order in which they were made.
        edits: what the export of edited answers must hold, by item.
        acts: the events that must be stored, each with its item: picks, ties, what was taken back.
    """

    name: str
    page: Any
    order: str
    rows: list[dict[str, Any]]
    rng: random.Random
    picks: dict[int, dict[str, Any]] = field(default_factory=dict)
    edits: dict[int, dict[str, Any]] = field(default_factory=dict)
    acts: list[tuple[int, dict[str, Any]]] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    def begin(self, link: str) -> None:
        """Open the invite link and press Enter, as the page offers."""
        self.page.on("pageerror", lambda error: self.problems.append(str(error)))
        self.page.goto(link)
        self.page.locator("button:focus").wait_for()
        self.press("Enter")

    def press(self, *keys: str, goes: bool = True) -> None:
        """Press keys; the last one leads to another page if ``goes``."""
        for key in keys[:-1]:
            self.page.keyboard.press(key)
        if not goes:
            self.page.keyboard.press(keys[-1])
            return
        with self.page.expect_navigation():
            self.page.keyboard.press(keys[-1])

    def write(self, key: str, text: str, replace: bool) -> None:
        """Go to a field by its key, and write into it, behind what is there or in its place."""
        self.press(key, "Control+a" if replace else "Control+End", goes=False)
        self.page.keyboard.insert_text(text)

    def done(self) -> bool:
        return "You have labeled everything" in self.page.inner_text("main")

    def item(self) -> int:
        """The item on the screen, by its question."""
        (found,) = re.findall(r"Question (\d+)\?", self.page.inner_text(".prompt"))
        return int(found)

    def shown(self) -> list[int]:
        """Which completion stands at each position, told by the numbers in the texts."""
        texts = self.page.locator("article .rendered").all_inner_texts()
        return [int(re.findall(r"No\. \d+-(\d+)", text)[0]) for text in texts]

    def see_all(self) -> str:
        """Press M until all was on the screen, or N at once; return which of the two it was."""
        seen = self.page.locator("[name=seen]")
        if self.rng.random() < 0.1:
            self.press("n", goes=False)
        for _ in range(20):
            if (said := seen.input_value()) != "":
                return str(said)
            self.press("m", goes=False)
        raise AssertionError("M does not come to an end")

    def answer(self) -> None:
        """Answer the item on the screen: each of eight in a row in a way of its own."""
        item, turn = self.item(), len({item for item, _ in self.acts}) % 8
        if turn == 2:
            self.skip(item)
        elif turn in (4, 6):
            self.refuse(item, "tie" if turn == 4 else "bad")
        else:
            self.pick(item)
        if turn in (1, 4):  # it is taken back, stands there again, and is changed
            self.press("u")
            assert self.item() == item
            self.picks.pop(item, None)
            self.edits.pop(item, None)
            self.acts.append((item, {"action": "undo"}))
            self.pick(item, again=True)

    def skip(self, item: int) -> None:
        """Skip, for a reason that is chosen in the list by the arrow keys."""
        down = self.rng.randrange(len(REASONS))
        while self.page.evaluate("document.activeElement.id") != "reason":
            self.press("Tab", goes=False)
        for _ in range(down):
            self.press("ArrowDown", goes=False)
        self.press("Escape", "s")
        self.acts.append((item, {"action": "skip", "reason": list(REASONS)[down]}))

    def refuse(self, item: int, action: str) -> None:
        """Say that no answer is the best, sometimes with a comment and a better answer."""
        act: dict[str, Any] = {"action": action, "seen": self.see_all()}
        if self.rng.random() < 0.5:
            act["comment"] = self.rng.choice(COMMENTS)
            self.write("c", act["comment"], replace=True)
            self.press("Escape", goes=False)
        if self.rng.random() < 0.5:
            act["edited"] = self.rng.choice(EDITS).strip()
            self.write("e", act["edited"], replace=True)
            self.press("Escape", goes=False)
            self.note_edit(item, act["edited"])
        self.press(action[0])
        self.acts.append((item, act))

    def pick(self, item: int, again: bool = False) -> None:
        """Put the answers in order, say how strongly, and perhaps write."""
        row, shown = self.rows[item], self.shown()
        seen = self.see_all()
        self.clear()
        order = self.choose(len(shown))
        strength = self.rng.choice("jkl")
        if self.rng.random() < 0.3:  # another strength first
            self.press(self.rng.choice("jkl"), goes=False)
        self.press(strength, goes=False)

        comment = self.rng.choice(COMMENTS) if self.rng.random() < 0.5 else ""
        best = str(row["completions"][shown[order[0]]])
        edited = ""
        if comment or again:
            self.write("c", comment, replace=True)
            if not comment:
                self.press("Delete", goes=False)
            self.press("Escape", goes=False)
        if again:  # what was written before is there, and goes
            self.press("e", "Control+a", "Delete", "Escape", goes=False)
        if self.rng.random() < 0.4:
            more, whole = self.rng.choice(EDITS), self.rng.random() < 0.3
            self.write("e", more, replace=whole)
            edited = (more if whole else best + more).strip()
        typing = bool(edited) and self.rng.random() < 0.5
        if typing:
            self.press("Control+Enter")
        elif edited:
            self.press("Escape", "Enter")
        else:
            self.press("Enter")

        pick = {
            **row,
            "best": shown[order[0]],
            "labeler": self.name,
            "margin": MARGINS[strength],
            **({"labeler_comment": comment} if comment else {}),
            **({"labeler_edit": edited} if edited else {}),
        }
        if self.order == "ranking":
            pick["ranking"] = [shown[position] for position in order]
        else:
            pick["worst"] = shown[order[-1]]
        self.picks[item] = pick
        if edited:
            self.note_edit(item, edited)
        self.acts.append((item, {"action": "pick", "choice": pick["best"], "seen": seen}))

    def clear(self) -> None:
        """Take out what an answer that was taken back had chosen."""
        for _ in range(8):
            chosen = self.page.locator(".choose[aria-pressed=true]")
            if chosen.count() == 0:
                return
            name = chosen.last.inner_text()
            self.press(name.removeprefix("Choose "), goes=False)
        raise AssertionError("what was chosen cannot be taken out")

    def choose(self, count: int) -> list[int]:
        """Press numbers for an order that is drawn, sometimes after a wrong one; return it."""
        order = self.rng.sample(range(count), count)
        keys = [str(position + 1) for position in order]
        if self.order == "best_and_worst":
            keys = [keys[0], keys[-1]]
        if count > 2 and self.rng.random() < 0.3:  # a slip, which the same number takes out
            slip = str(self.rng.randrange(count) + 1)
            self.press(slip, slip, goes=False)
        if self.rng.random() < 0.5 and (self.order == "ranking" or count == 2):
            keys.pop()  # the last one follows by itself
        self.press(*keys, goes=False)
        return order

    def note_edit(self, item: int, text: str) -> None:
        row = self.rows[item]
        completions = [*row["completions"], text]
        best = len(completions) - 1
        self.edits[item] = {**row, "completions": completions, "best": best, "labeler": self.name}


def lines(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


def of(rows: list[dict[str, Any]], labeler: str) -> Iterator[dict[str, Any]]:
    return (row for row in rows if row["labeler"] == labeler)


def downloaded(admin: Any, button: str) -> list[dict[str, Any]]:
    with admin.expect_download() as download:
        admin.get_by_role("button", name=button).click()
    return lines(Path(download.value.path()).read_text(encoding="utf-8"))


@pytest.mark.parametrize("order", ITEMS)
def test_the_export_is_exactly_what_two_people_did_by_keyboard(
    root: Path, tmp_path: Path, order: str
) -> None:
    rows = rows_of(ITEMS[order])
    flags = ("--ask", f"{order},strength,comment,edit")
    with serving(root, tmp_path, rows, *flags) as (path, links), playwright.sync_playwright() as p:
        chromium = p.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        people = [
            Person(name, chromium.new_context(viewport=size).new_page(), order, rows, rng)
            for name, size, rng in (
                ("ann", {"width": 1280, "height": 800}, random.Random(1)),
                ("bob", {"width": 390, "height": 844}, random.Random(2)),
            )
        ]
        for person in people:
            person.begin(links[person.name])
        while not all(person.done() for person in people):
            for person in people:
                if not person.done():
                    person.answer()

        admin = chromium.new_context().new_page()
        admin.goto(links["admin"])
        admin.locator("button:focus").wait_for()
        admin.keyboard.press("Enter")
        admin.get_by_role("link", name="Export and train").click()
        picks = downloaded(admin, "Picks as comparisons")
        edits = downloaded(admin, "Edited answers")
        events = downloaded(admin, "All answers")
        chromium.close()
        with Store(path) as store:
            digests = dict(store.db.execute("SELECT digest, prompt FROM items").fetchall())

    question = {
        digest: int(re.findall(r"\d+", json.loads(prompt)[0]["content"])[0])
        for digest, prompt in digests.items()
    }
    for person in people:
        assert person.problems == []
        assert [*of(picks, person.name)] == [*person.picks.values()]
        assert [*of(edits, person.name)] == [*person.edits.values()]
        stored = [(question[event["item"]], event) for event in of(events, person.name)]
        assert [(item, {k: event.get(k) for k in act}) for (item, event), (_, act) in
                zip(stored, person.acts, strict=True)] == person.acts  # fmt: skip

    # Everything that can be done was done.
    assert len(picks) >= ITEMS[order] and edits
    if order == "ranking":
        done = {act["action"] for person in people for _, act in person.acts}
        assert done == {"pick", "tie", "bad", "skip", "undo"}
