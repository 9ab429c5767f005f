"""Labelers at work over HTTP while the server is killed: is every acknowledged label there, once?

    python benchmarks/labeling_load.py --labels 5000 --labelers 8 --kills 50
    python benchmarks/labeling_load.py --labels 3000 --labelers 100 --kills 0 --silent 2000

Starts the real server as a process of its own, on a store of made-up items; labelers sign in by
invite links and answer as fast as they can, each picking, skipping and taking back by a seeded lot.
At random moments the server is killed with SIGKILL and started anew; a labeler whose connection
breaks tries again, and sends its last form again, as a person would. Afterwards each answer that
was acknowledged (the redirect came) is looked for in the store: lost and doubled ones are counted.
Printed besides: the time from a form's departure to its acknowledgement, while no kill was near.
--silent connections say nothing all the while; the server ends them, and they come again.
"""

import argparse
import contextlib
import http.client
import json
import os
import random
import re
import resource
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import urllib.parse
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from toolkit.labeling.addresses import listen  # noqa: E402
from toolkit.labeling.guard import PageSettings  # noqa: E402
from toolkit.labeling.pages import Pages  # noqa: E402
from toolkit.labeling.serving import serve  # noqa: E402
from toolkit.labeling.store import Settings, Store  # noqa: E402

SETTINGS = Settings(overlap=0.3, repeats=0.05, gold=0.0, lease=30.0)


def run_server(path: str, port: int) -> None:
    settings = PageSettings(hosts=(f"127.0.0.1:{port}",), rate=1e6, burst=10**6)
    serve(Pages(Store(path, SETTINGS), settings).app(), listen("127.0.0.1", port))


class Server:
    """The server's process, killed and started anew on the same port."""

    def __init__(self, path: Path, port: int) -> None:
        self.words = [sys.executable, __file__, "--serve", str(path), "--port", str(port)]
        self.port = port
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        self.process = subprocess.Popen(self.words, env=os.environ | {"PYTHONPATH": str(ROOT)})
        while True:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port)):
                return
            if self.process.poll() is not None:
                raise SystemExit(f"the server ended: {self.process.returncode}")
            time.sleep(0.02)

    def kill(self) -> None:
        assert self.process is not None
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()


class Person(threading.Thread):
    """A labeler in a browser of sorts: pages, forms, a cookie; remembers what was acknowledged."""

    def __init__(self, number: int, port: int, token: str, share: int, kills: "Kills") -> None:
        super().__init__(daemon=True)
        self.rng, self.port, self.token = random.Random(number), port, token
        self.share, self.kills = share, kills
        self.cookie = ""
        self.said: dict[str, str] = {}  # form: the action that was acknowledged
        self.undone: list[str] = []  # events taken back, acknowledged
        self.seconds: list[float] = []
        self.connection: http.client.HTTPConnection | None = None

    def ask(self, method: str, path: str, fields: dict[str, str] | None = None) -> Any:
        """The response, its body read; tries again until the server answers."""
        host = f"127.0.0.1:{self.port}"
        headers = {"Cookie": f"labelling={self.cookie}"} if self.cookie else {}
        body = None
        if fields is not None:
            body = urllib.parse.urlencode(fields)
            headers |= {
                "Origin": f"http://{host}",
                "Content-Type": "application/x-www-form-urlencoded",
            }
        while True:
            try:
                if self.connection is None:
                    self.connection = http.client.HTTPConnection(host, timeout=20)
                self.connection.request(method, path, body, headers)
                response = self.connection.getresponse()
                response.text = response.read().decode()  # type: ignore[attr-defined]
                return response
            except (OSError, http.client.HTTPException):
                if self.connection is not None:
                    self.connection.close()
                self.connection = None
                time.sleep(0.05)

    def run(self) -> None:
        try:
            self.work()
        finally:
            if self.connection is not None:
                self.connection.close()

    def work(self) -> None:
        """Join, then answer until this person's share is done."""
        joined = self.ask("POST", "/invite", {"token": self.token})
        self.cookie = joined.getheader("set-cookie").split("=", 1)[1].split(";")[0]
        while len(self.said) < self.share:
            page = self.ask("GET", "/").text
            found = re.search(r'name="form" value="([^"]+)"', page)
            if found is None:
                return
            csrf = re.search(r'name="csrf" value="([^"]+)"', page)
            after = re.search(r'name="after" value="(\d*)"', page)
            assert csrf is not None and after is not None
            if after[1] and self.rng.random() < 0.05:
                self.ask("POST", "/undo", {"csrf": csrf[1], "after": after[1]})
                self.undone.append(after[1])
                continue
            lot = self.rng.random()
            action = "skip" if lot < 0.05 else "tie" if lot < 0.1 else f"pick {int(4 * lot) % 4}"
            fields = {"csrf": csrf[1], "form": found[1], "action": action, "reason": "other"}
            quiet = self.kills.quiet()
            start = time.perf_counter()
            answer = self.ask("POST", "/label", fields)
            if quiet and self.kills.quiet() == quiet:
                self.seconds.append(time.perf_counter() - start)
            if answer.status == 303 and answer.getheader("location") in ("/", "/?note=again"):
                self.said[found[1]] = action


class Kills:
    """When the server was last started."""

    def __init__(self) -> None:
        self.number, self.since = 0, 0.0

    def quiet(self) -> int:
        """Which life of the server this is, once it is a second old; 0 before."""
        return self.number if time.monotonic() - self.since > 1 else 0


class Silent(threading.Thread):
    """So many connections that say nothing; one that was ended comes again."""

    def __init__(self, count: int, port: int) -> None:
        super().__init__(daemon=True)
        self.count, self.port, self.over = count, port, threading.Event()
        if count:
            soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
            resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, max(soft, 2 * count)), hard))

    def run(self) -> None:
        held: list[socket.socket] = []
        while self.count and not self.over.wait(0.1):
            for one in held[:]:
                with contextlib.suppress(BlockingIOError):
                    with contextlib.suppress(ConnectionError):
                        one.recv(1)
                    held.remove(one)
                    one.close()
            with contextlib.suppress(OSError):
                while len(held) < self.count:
                    one = socket.create_connection(("127.0.0.1", self.port), timeout=5)
                    one.setblocking(False)
                    held.append(one)
        for one in held:
            one.close()


def measure(
    labels: int, labelers: int, kills: int, folder: Path, seed: int = 0, silent: int = 0
) -> dict[str, Any]:
    """Run the load; returns counts and latencies in milliseconds."""
    rng, path = random.Random(seed), folder / "labels.sqlite"
    with Store(path, SETTINGS) as store:
        store.add_items(
            {"prompt": f"Text {i}.", "completions": [f" {w} {i}." for w in "abcd"]}
            for i in range(labels)
        )
        tokens = [store.invite(f"person {n}") for n in range(labelers)]
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    server, lives = Server(path, port), Kills()
    server.start()
    lives.number, lives.since = 1, time.monotonic()
    share = -(-labels // labelers)
    people = [Person(n, port, token, share, lives) for n, token in enumerate(tokens)]
    crowd = Silent(silent, port)
    crowd.start()
    began = time.monotonic()
    for person in people:
        person.start()
    marks = sorted(rng.uniform(0.02, 0.95) * labels for _ in range(kills))
    while any(person.is_alive() for person in people):
        said = sum(len(person.said) for person in people)
        if marks and said >= marks[0]:
            marks.pop(0)
            time.sleep(rng.uniform(0, 0.05))
            lives.number, lives.since = 0, time.monotonic()
            server.kill()
            server.start()
            lives.number, lives.since = kills - len(marks) + 1, time.monotonic()
        time.sleep(0.005)
    seconds = time.monotonic() - began
    server.kill()
    crowd.over.set()
    crowd.join()
    return count(path, people) | {
        "labels": sum(len(p.said) for p in people),
        "kills": kills,
        "labelers": labelers,
        "silent": silent,
        "seconds": round(seconds, 1),
    }


def count(path: Path, people: list[Person]) -> dict[str, Any]:
    """What is in the store of what was acknowledged; opening it checks its integrity."""
    with Store(path, SETTINGS) as store:
        rows = store.db.execute("SELECT form, action, position FROM events").fetchall()
    found: dict[str, list[str]] = {}
    for form, action, position in rows:
        said = f"pick {position}" if action == "pick" else action
        found.setdefault(form, []).append(said)
    acknowledged = {form: action for person in people for form, action in person.said.items()}
    undone = [f"undo {event}" for person in people for event in person.undone]
    times = sorted(1000 * s for person in people for s in person.seconds)
    result: dict[str, Any] = {
        "lost": sum(form not in found for form in [*acknowledged, *undone]),
        "doubled": sum(len(actions) > 1 for actions in found.values()),
        "changed": sum(
            found.get(form, [action]) != [action] for form, action in acknowledged.items()
        ),
    }
    if len(times) > 20:
        result |= {
            "median_ms": round(statistics.median(times), 2),
            "p99_ms": round(times[int(0.99 * len(times))], 2),
        }
    return result


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--labels", type=int, default=5000)
    parser.add_argument("--labelers", "--labellers", type=int, default=8)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--silent", type=int, default=0)
    parser.add_argument("--serve", help=argparse.SUPPRESS)
    parser.add_argument("--port", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.serve:
        return run_server(args.serve, args.port)
    with tempfile.TemporaryDirectory() as folder:
        result = measure(args.labels, args.labelers, args.kills, Path(folder), silent=args.silent)
    print(json.dumps(result, indent=2))
    if result["lost"] or result["doubled"] or result["changed"]:
        raise SystemExit("labels were lost, doubled or changed")
    return None


if __name__ == "__main__":
    main()
