"""What was tried to break it: faults by the hundred, and what happened; see docs/faults.md.

    python benchmarks/faults.py                      all of it (about 8 minutes on two cores)
    python benchmarks/faults.py --only kills page    some kinds, by a part of their name
    python benchmarks/faults.py --write              puts the table into docs/faults.md

Each fault is tried in an empty folder. It counts as wrong if anything was lost or half-written, if
a wrong result was given without a word, or if what was said is not one line. Exit code 1 if any
was.
"""

import argparse
import importlib
import os
import sys
import tempfile
import time
import traceback
from collections import Counter, defaultdict
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
os.environ.update(HF_HUB_OFFLINE="1", OMP_NUM_THREADS="1", ACCELERATE_USE_CPU="true")

from tqdm.auto import tqdm  # noqa: E402

from benchmarks.faulty.room import Fault, Room, Wrong  # noqa: E402

PAGE = ROOT / "docs" / "faults.md"
MARKS = "<!-- measured -->", "<!-- end -->"


def all_faults() -> list[Fault]:
    """Those of every module in benchmarks/faulty, in the order of their names."""
    names = sorted(path.stem for path in (ROOT / "benchmarks" / "faulty").glob("*.py"))
    modules = [importlib.import_module(f"benchmarks.faulty.{name}") for name in names]
    return [fault for module in modules for fault in getattr(module, "FAULTS", [])]


def try_one(fault: Fault) -> tuple[Fault, str, str | None]:
    """The fault, what happened in a few words, and what is wrong with it, if anything."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            return fault, fault.run(Room(Path(folder))), None
        except Wrong as problem:
            return fault, "WRONG", str(problem)
        except Exception:
            return fault, "WRONG", f"the benchmark failed: {traceback.format_exc()}"


def table(results: list[tuple[Fault, str, str | None]]) -> str:
    """A row a kind: how many were tried, and what happened how often."""
    by_kind: dict[str, Counter[str]] = defaultdict(Counter)
    for fault, happened, _ in results:
        by_kind[fault.kind][happened] += 1
    lines = ["| fault | tried | what happened |", "|---|---|---|"]
    for kind, happened in by_kind.items():
        said = "; ".join(f"{words} ({count})" for words, count in happened.most_common())
        lines.append(f"| {kind} | {sum(happened.values())} | {said} |")
    return "\n".join(lines)


def main() -> int:
    """Try them, print the table, and say what went wrong."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--only", nargs="*", help="Parts of the names of kinds.")
    parser.add_argument("--write", action="store_true", help="Put the table into docs/faults.md.")
    parser.add_argument("--at_once", type=int, default=2, help="Faults tried at the same time.")
    options = parser.parse_args()

    faults = [f for f in all_faults() if not options.only or any(o in f.kind for o in options.only)]
    started = time.monotonic()
    with ThreadPoolExecutor(options.at_once) as pool:
        results = list(tqdm(pool.map(try_one, faults), total=len(faults), unit="fault"))

    print(table(results))
    wrong = [(fault, problem) for fault, _, problem in results if problem is not None]
    for fault, problem in wrong:
        print(f"\nWRONG {fault.kind}: {fault.name}: {problem}")
    print(f"\n{len(results)} faults, {len(wrong)} wrong, {time.monotonic() - started:.0f} s")
    if options.write and not wrong:
        before, rest = PAGE.read_text(encoding="utf-8").split(MARKS[0])
        after = rest.split(MARKS[1])[1]
        PAGE.write_text(f"{before}{MARKS[0]}\n{table(results)}\n{MARKS[1]}{after}", "utf-8")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
