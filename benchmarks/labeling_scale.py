"""How quick the labeling page stays: a store of many items and labels, and each page's time.

    python benchmarks/labeling_scale.py --items 100000 --labels 200000

Fills a store (directly, in one transaction), opens it as label.py does, and asks each page and each
export through the application, without a network between. Medians of several, after one to warm up.
"""

import argparse
import json
import random
import re
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from starlette.testclient import TestClient  # noqa: E402

from toolkit.labeling.admin_pages import AdminPages  # noqa: E402
from toolkit.labeling.guard import PageSettings  # noqa: E402
from toolkit.labeling.store import Settings, Store  # noqa: E402

SETTINGS = Settings(overlap=1.0)


def fill(store: Store, items: int, labels: int, people: int, left: int) -> None:
    """Items of which all but ``left`` have two labels, by people in turn."""
    store.add_items(
        {
            "prompt": f"On day {i} I went to the cafe by the lake with my aunt.",
            "completions": [f" {word} and so on, for a sentence or two ({i})." for word in "abcd"],
        }
        for i in range(items)
    )
    names = [store.script(f"person {n}") for n in range(people)]
    db, rng, now = store.db, random.Random(0), time.time()
    chosen = [row[0] for row in db.execute("SELECT id FROM items ORDER BY place")]
    events, held = [], []
    for n in range(labels):
        item = chosen[n // 2 % (items - left)]
        who = names[(n // 2 + n % 2) % people].id
        choice, event = rng.choice((1, 1, 1, 0, 2, 3)), n + 1
        at = now - (labels - n) * 0.5
        events.append((event, f"f{n}", item, who, 0, "pick", choice, rng.randrange(4), 9.0, at))
        held.append((item, who, 0, event, "pick", choice))
    db.execute("BEGIN")
    db.executemany(
        "INSERT INTO events (id, form, item, labeller, turn, action, choice, position, seconds, at)"
        " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        events,
    )
    db.executemany("INSERT OR IGNORE INTO labels VALUES (?, ?, ?, ?, ?, ?)", held)
    db.execute("UPDATE items SET taken = (SELECT count(*) FROM labels l WHERE l.item = items.id)")
    db.execute("COMMIT")


def measure(items: int, labels: int, folder: Path) -> dict[str, float]:
    """Seconds by what was asked."""
    path = folder / "labels.sqlite"
    with Store(path, SETTINGS) as store:
        fill(store, items, labels, people=12, left=items // 20)
        token, admin_token = store.invite("ann"), store.invite("admin", "admin")
    found: dict[str, float] = {"file, MB": round(path.stat().st_size / 1e6, 1)}
    start = time.perf_counter()
    store = Store(path, SETTINGS)
    found["opening, with its checks"] = time.perf_counter() - start
    host = "127.0.0.1:1"
    app = AdminPages(store, PageSettings(hosts=(host,), rate=1e6, burst=10**6)).app()
    origin = {"Origin": f"http://{host}"}
    people = []
    for secret in (token, admin_token):
        client = TestClient(app, f"http://{host}", follow_redirects=False)
        client.post("/invite", data={"token": secret}, headers=origin)
        people.append(client)
    ann, admin = people

    def timed(name: str, times: int, ask: Any) -> None:
        seconds = []
        for _ in range(times + 1):
            start = time.perf_counter()
            answer = ask()
            seconds.append(time.perf_counter() - start)
            assert answer.status_code in (200, 303), (name, answer.status_code)
        found[name] = statistics.median(seconds[1:])

    def label() -> Any:
        page = ann.get("/").text
        fields = dict(re.findall(r'name="(csrf|form)" value="([^"]*)"', page))
        return ann.post("/label", data=fields | {"action": "pick 1"}, headers=origin)

    timed("a page of an item", 30, lambda: ann.get("/"))
    timed("a page, an answer", 30, label)
    timed("the admin page", 5, lambda: admin.get("/admin"))
    for show in ("disputed", "skipped", "gold", "all"):
        timed(f"the list {show}", 5, lambda show=show: admin.get(f"/admin/items?show={show}"))
    disputed = admin.get("/admin/items").text
    item = re.search(r"/admin/items/\d+", disputed)
    labeler = re.search(r"/admin/labelers/\d+", admin.get("/admin").text)
    assert item is not None and labeler is not None
    timed("an item with all that was said", 5, lambda: admin.get(item[0]))
    timed("a labeler's page", 5, lambda: admin.get(labeler[0]))
    for name in ("comparisons.jsonl", "events.jsonl", "label_studio.json", "argilla.json"):
        timed(f"export of {name}", 1, lambda name=name: admin.get(f"/admin/export/{name}"))
    store.close()
    return {name: round(value, 4) for name, value in found.items()}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--items", type=int, default=100_000)
    parser.add_argument("--labels", type=int, default=200_000)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        print(json.dumps(measure(args.items, args.labels, Path(folder)), indent=2))


if __name__ == "__main__":
    main()
