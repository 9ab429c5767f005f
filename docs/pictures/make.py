"""Makes the pictures of the README: the flow, the labeling page and the report.

    python docs/pictures/make.py                  (or: make pictures)
    python docs/pictures/make.py --only flow
    python docs/pictures/make.py --demo outputs/demo

The flow is drawn here, as SVG. The others are the real pages in Chromium: the labeling page served
on this machine, with completions of the embedded model and with a chat, and the upper part of the
report that `make demo` leaves (--demo; where there is none, the demo is run first, 5 minutes). It
needs chromium and playwright, and no network. You should see the path of each picture and its size.
"""

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from playwright.sync_api import Page

PICTURES = Path(__file__).parent
ROOT = PICTURES.parent.parent
LARGEST = 250_000  # bytes
NAMES = ("flow", "label-page", "label-chat", "report")

# The item of the page for chats.
CHAT = [
    {"role": "system", "content": "You are a barista."},
    {"role": "user", "content": "How do I brew filter coffee?"},
]
ANSWERS = [
    "## Filter coffee\n\nUse **30 g** of coffee for half a liter of water.\n\n"
    "| step | until | water |\n|---|---|---|\n| bloom | 0:45 | 60 g |\n| pour | 2:30 | 500 g |\n\n"
    "```python\nfor pour in (45, 105):\n    time.sleep(pour)\n```\n\n"
    + "Grind finer if it tastes sour, and coarser if it tastes bitter.\n\n"
    * 9,
    "1. Boil the water.\n2. Put *medium* ground coffee into the filter.\n3. Pour slowly.\n\n"
    "See [the guide](https://coffee.example/guide).",
]

# What stands in the boxes: a title, lines, and the command.
STEPS = (
    ("1 Sample", ("The model writes", "four answers", "to each prompt."), "sample"),
    ("2 Pick", ("People pick the", "best on a page;", "scripts may help."), "label"),
    ("3 Learn", ("A reward model", "learns to score as", "people pick."), "reward"),
    ("4 Tune", ("PPO raises scores;", "a KL penalty holds", "the model close."), "ppo"),
    ("5 Check", ("Compare on new", "prompts, report,", "then publish."), "evaluate"),
)
ROLES = (
    ("policy", "LoRA adapter", "trains", "train"),
    ("value", "LoRA adapter + head", "trains", "train"),
    ("reward", "LoRA adapter + head", "from step 3, frozen", "frozen"),
    ("reference", "adapters turned off", "is the base itself", "frozen"),
)
STYLE = """
    text { font-family: system-ui, -apple-system, "Segoe UI", "DejaVu Sans", sans-serif;
      font-size: 13px; fill: #24292f; }
    .title { font-size: 15px; font-weight: 700; }
    .code { font-family: ui-monospace, "DejaVu Sans Mono", monospace; font-size: 12px;
      fill: #1f5fbf; }
    .soft { fill: #57606a; }
    .loop { fill: #8a4600; font-weight: 600; }
    .step { fill: #eef4fd; stroke: #1f5fbf; stroke-width: 1.5; }
    .base { fill: #f3f3f1; stroke: #8c959f; stroke-width: 1.5; }
    .train { fill: #e5f5ea; stroke: #1a7f37; stroke-width: 1.5; }
    .frozen { fill: #fff; stroke: #8c959f; stroke-width: 1.5; }
    .arrow { fill: none; stroke: #57606a; stroke-width: 2; }
    .back { fill: none; stroke: #b35c00; stroke-width: 2; }
"""


def flow() -> str:
    """The flow as SVG, 800 wide; on a light card of its own, so that it is read on any page."""
    width, box, gap, left = 800, 138, 20, 15
    parts: list[str] = []

    def text(x: float, y: float, words: str, kind: str = "", anchor: str = "middle") -> None:
        place = f'x="{x:g}" y="{y:g}" text-anchor="{anchor}"'
        parts.append(f'<text {place} class="{kind}">{escape(words)}</text>')

    def rectangle(x: float, y: float, w: float, h: float, kind: str) -> None:
        parts.append(
            f'<rect x="{x:g}" y="{y:g}" width="{w:g}" height="{h:g}" rx="8" class="{kind}"/>'
        )

    def line(points: str, kind: str) -> None:
        parts.append(f'<path d="{points}" class="{kind}" marker-end="url(#{kind})"/>')

    # The five steps, from left to right.
    centers = []
    for i, (title, lines, command) in enumerate(STEPS):
        x = left + i * (box + gap)
        centers.append(x + box / 2)
        rectangle(x, 62, box, 122, "step")
        text(centers[i], 85, title, "title")
        for j, words in enumerate(lines):
            text(centers[i], 109 + 18 * j, words)
        text(centers[i], 173, f"preftune {command}", "code")
        if i:
            line(f"M{x - gap} 123 H{x - 3}", "arrow")

    # The way back from the tuned policy to fresh samples.
    line(f"M{centers[3]:g} 62 V34 H{centers[0]:g} V58", "back")
    middle = (centers[0] + centers[3]) / 2
    text(middle, 25, "online: sample the tuned model, ask for fresh picks, go on", "loop")

    # One base below, and the four roles that it plays.
    rectangle(left, 216, width - 2 * left, 142, "base")
    text(width / 2, 240, "One base model in memory, in 4-bit and frozen, plays four roles", "title")
    role = 178
    for i, (name, what, state, kind) in enumerate(ROLES):
        x = left + 14 + i * (role + 10)
        rectangle(x, 256, role, 86, kind)
        text(x + role / 2, 279, name, "title")
        text(x + role / 2, 302, what)
        text(x + role / 2, 325, state, "soft")
    line(f"M{centers[3]:g} 216 V188", "arrow")

    markers = "".join(
        f'<marker id="{kind}" markerWidth="8" markerHeight="8" refX="6" refY="4" orient="auto">'
        f'<path d="M0 0 L8 4 L0 8 z" fill="{color}"/></marker>'
        for kind, color in (("arrow", "#57606a"), ("back", "#b35c00"))
    )
    height = 372
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" '
        f'height="{height}" role="img" aria-labelledby="t">\n'
        '<title id="t">Five steps: sample, pick, learn, tune, check and publish. The tuned '
        "model can be sampled again. One base model plays policy, value, reward and "
        f"reference.</title>\n<style>{STYLE}</style>\n<defs>{markers}</defs>\n"
        f'<rect x="1" y="1" width="{width - 2}" height="{height - 2}" rx="12" fill="#fff" '
        'stroke="#d0d7de"/>\n' + "\n".join(parts) + "\n</svg>\n"
    )


def label_page(samples: Path, picture: Path) -> None:
    """The page that a person labels on, with the embedded model's completions."""
    with (
        tempfile.TemporaryDirectory() as folder,
        served(samples, Path(folder)) as link,
        page(900, 900) as tab,
    ):
        tab.goto(link)
        tab.get_by_role("button", name="Begin").click()
        shoot(tab, picture, "#told + .others")


def chat_page(picture: Path) -> None:
    """The upper part of the page for answers of a chat, of which a long one is folded."""
    with tempfile.TemporaryDirectory() as folder:
        samples = Path(folder) / "samples.jsonl"
        samples.write_text(json.dumps({"prompt": CHAT, "completions": ANSWERS}) + "\n")
        ask = ("--ask", "ranking,strength,comment,edit")
        with served(samples, Path(folder), *ask) as link, page(900, 760) as tab:
            tab.goto(link)
            tab.get_by_role("button", name="Begin").click()
            tab.locator(".folded").wait_for()
            tab.evaluate("document.querySelector('.guidelines').open = false")
            tab.keyboard.press("1")
            shoot(tab, picture, ".completions")


def report_page(report: Path, picture: Path) -> None:
    """The report down to its first figure."""
    with page(900, 1400) as tab:
        tab.goto(report.resolve().as_uri())
        shoot(tab, picture, "img")


def shoot(tab: "Page", picture: Path, last: str) -> None:
    """A picture of a page down to the first element that the selector ``last`` finds."""
    tab.locator(last).first.wait_for()
    tab.wait_for_load_state("networkidle")  # the style sheet, without which all is elsewhere
    found = tab.locator(last).first.bounding_box()
    assert found is not None and tab.viewport_size is not None
    width = tab.viewport_size["width"]
    height = round(found["y"] + found["height"]) + 14
    tab.screenshot(path=picture, clip={"x": 0, "y": 0, "width": width, "height": height})


@contextmanager
def served(samples: Path, folder: Path, *more: str) -> Iterator[str]:
    """The labeling page's server at work, and the link that invites a person."""
    words = [
        sys.executable, "recipes/label.py", "--serve", "--store", str(folder / "labels.sqlite"),
        "--samples", str(samples), "--port", "0", "--invite", "ann", "--repeats", "0",
        *more,
    ]  # fmt: skip
    server = subprocess.Popen(words, cwd=ROOT, env=environment(), text=True, stdout=subprocess.PIPE)
    try:
        assert server.stdout is not None
        links = (re.search(r"invite link for ann: (\S+)", line) for line in server.stdout)
        link = next((found[1] for found in links if found), None)
        if link is None:
            raise SystemExit("the labeling page's server ended before it named a link")
        yield link
    finally:
        server.terminate()
        server.wait(timeout=20)


@contextmanager
def page(width: int, height: int) -> "Iterator[Page]":
    """A tab of Chromium: light, of this size, one picture element a pixel."""
    from playwright.sync_api import sync_playwright

    chromium = shutil.which("chromium")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=chromium, args=["--no-sandbox", "--disable-gpu"]
        )
        size = {"width": width, "height": height}
        yield browser.new_page(viewport=size, color_scheme="light", reduced_motion="reduce")
        browser.close()


def environment() -> dict[str, str]:
    """That of the recipes: this checkout's toolkit, one thread, no network."""
    return os.environ | {
        "PYTHONPATH": str(ROOT),
        "PYTHONUNBUFFERED": "1",
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
    }


def recipe(name: str, *words: str) -> None:
    """Run a recipe to its end."""
    subprocess.run(
        [sys.executable, f"recipes/{name}.py", *words], cwd=ROOT, env=environment(), check=True
    )


def samples_for_the_page(folder: Path) -> Path:
    """Forty prompts with four completions each, always the same."""
    path = folder / "samples.jsonl"
    recipe(
        "sample", "--config", "recipes/configs/demo/sample.yaml", "--limit", "40", "--output",
        str(path),
    )  # fmt: skip
    return path


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", choices=NAMES, help="Make one alone.")
    parser.add_argument(
        "--demo", type=Path, default=ROOT / "outputs/demo", help="The demo's folder."
    )
    parser.add_argument("--output_dir", type=Path, default=PICTURES, help="Where they go.")
    args = parser.parse_args()
    args.output_dir.mkdir(parents=True, exist_ok=True)

    made = []
    if args.only in (None, "flow"):
        made.append(args.output_dir / "flow.svg")
        made[-1].write_text(flow(), encoding="utf-8")
    if args.only in (None, "label-page"):
        made.append(args.output_dir / "label-page.png")
        with tempfile.TemporaryDirectory() as folder:
            label_page(samples_for_the_page(Path(folder)), made[-1])
    if args.only in (None, "label-chat"):
        made.append(args.output_dir / "label-chat.png")
        chat_page(made[-1])
    if args.only in (None, "report"):
        made.append(args.output_dir / "report.png")
        if not (args.demo / "report/report.html").is_file():
            print("no report yet: the demo is run first, which takes about 5 minutes", flush=True)
            recipe("demo")
            args.demo = ROOT / "outputs/demo"
        report_page(args.demo / "report/report.html", made[-1])

    for path in made:
        size = path.stat().st_size
        print(f"{path}: {size:,} bytes")
        if size > LARGEST:
            raise SystemExit(f"{path} is larger than {LARGEST:,} bytes")


if __name__ == "__main__":
    main()
