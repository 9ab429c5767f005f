"""Measure the CPU seconds that commands take before they work: help texts, typos, light commands.

    python benchmarks/start_up.py
    python benchmarks/start_up.py --against ../earlier-checkout

Every command runs in a process of its own, --repeats times in turns with the other checkout's, and
the least of its user and system seconds counts. Bytecode is written by a first run that does not.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def commands(folder: Path) -> dict[str, list[str]]:
    """Names, and the words of command lines: a recipe and its arguments.

    Args:
        folder: holds their inputs, and gets their outputs.
    """
    rows = [
        {"prompt": f"p{i}", "completions": [" a", " b", " c", " d"], "best": i % 4}
        | {"models": ["A", "B", "C", "D"]}
        for i in range(200)
    ]
    picks = folder / "picks.jsonl"
    picks.write_text("".join(json.dumps(row) + "\n" for row in rows))
    theirs = folder / "theirs.yaml"
    theirs.write_text("kl_coef: 0.1\nresponse_length: 16\n")

    found = {
        f"{path.stem} --help": [path.stem, "--help"] for path in (ROOT / "recipes").glob("*.py")
    }
    found = dict(sorted(found.items()))
    found["ppo --kl_targett 3 (a typo)"] = ["ppo", "--kl_targett", "3"]
    found["convert --inputt x (a typo)"] = ["convert", "--inputt", "x"]
    out = [f"--output={folder}/out.jsonl", "--overwrite"]
    found["convert, 200 rows"] = ["convert", f"--input={picks}", *out]
    out = [f"--output={folder}/ratings.json", "--overwrite"]
    found["ratings, 200 rows"] = ["ratings", f"--comparisons={picks}", *out]
    out = [f"--output={folder}/ppo.yaml", "--overwrite"]
    found["trl_config"] = ["trl_config", f"--input={theirs}", *out]
    found["preview_kl"] = ["preview_kl", "--kl_horizon", "640"]
    found["label --serve, to its link"] = ["label", "--serve", f"--samples={picks}", "--port=0"]
    found["label --serve, to its link"] += [f"--store={folder}/store.sqlite", "--invite=me"]
    return found


def cpu_seconds(checkout: Path, words: list[str], folder: Path) -> float:
    """User and system seconds of one run; a page that serves is stopped once it prints its link."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    process = subprocess.Popen(
        [sys.executable, str(checkout / "recipes" / f"{words[0]}.py"), *words[1:]],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(checkout), "PYTHONUNBUFFERED": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert process.stdout is not None
    for line in process.stdout:
        if "--serve" in words and "http://" in line:
            process.terminate()
    process.wait()
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--against", type=Path, help="Another checkout, measured in turns.")
    parser.add_argument("--repeats", type=int, default=3, help="Runs of each command. (default: 3)")
    args = parser.parse_args()

    checkouts = [ROOT] if args.against is None else [args.against.resolve(), ROOT]
    print(f"| command | {' | '.join(str(c.name) for c in checkouts)} |")
    print("|---|" + "---|" * len(checkouts))
    with tempfile.TemporaryDirectory() as name:
        for title, words in commands(Path(name)).items():
            seconds: list[list[float]] = [[] for _ in checkouts]
            for repeat in range(args.repeats + 1):
                for checkout, times in zip(checkouts, seconds, strict=True):
                    spent = cpu_seconds(checkout, words, Path(name))
                    if repeat:
                        times.append(spent)
            print(f"| {title} | {' | '.join(f'{min(t):.2f}' for t in seconds)} |", flush=True)


if __name__ == "__main__":
    main()
