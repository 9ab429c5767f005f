"""How long it takes to check and tokenize comparisons, and how much memory.

    python benchmarks/read_comparisons.py [--rows 10000 100000] [--model data/model]

Writes synthetic best-of-4 comparisons (or repeats those of --comparisons, prompts numbered), then
checks and tokenizes them in a process of its own for each size. The peak is that of the process;
what importing torch and transformers takes is given beside it. Memory that does not grow with the
file shows as two equal peaks.
"""

import argparse
import itertools
import json
import random
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from toolkit.data.comparisons import open_comparisons
from toolkit.data.demo_text import review
from toolkit.data.encoded_rows import encode_to_disk
from toolkit.data.encoding import Encoder
from toolkit.data.files import read_jsonl, write_jsonl
from toolkit.models.loading import load_tokenizer


def rows(count: int, like: str | None) -> Iterator[dict]:
    if like is not None:
        source = itertools.cycle([row for _, row in read_jsonl(like)])
        for i, row in enumerate(itertools.islice(source, count)):
            yield row | {"prompt": f"{i}. {row['prompt']}"}
        return
    rng = random.Random(0)
    for i in range(count):
        completions = [" " + review(rng)[1] for _ in range(4)]
        yield {"prompt": f"{i}. {review(rng)[0]}", "completions": completions, "best": i % 4}


def peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def measure(path: str, model: str) -> None:
    tokenizer = load_tokenizer(model)
    tokenizer(["warm up"])
    before, started = peak(), time.monotonic()
    source = open_comparisons(path, "best", "--comparisons")
    checked = time.monotonic()
    encoder = Encoder(tokenizer, 512)
    with tempfile.TemporaryDirectory() as folder:
        data = encode_to_disk(encoder, source, Path(folder) / "tokens.arrow", len(source))
        ended = time.monotonic()
        tokens = sum(
            len(ids)
            for row in data.select(range(min(1000, len(data))))
            for ids in row["candidate_ids"]
        )
    print(
        json.dumps(
            {
                "rows": len(source),
                "megabytes": round(Path(path).stat().st_size / 1e6, 1),
                "tokens_a_row": round(tokens / min(1000, len(data))),
                "check_s": round(checked - started, 1),
                "tokenize_s": round(ended - checked, 1),
                "imports_mib": round(before),
                "peak_mib": round(peak()),
            }
        )
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rows", type=int, nargs="+", default=[10_000, 100_000])
    parser.add_argument("--model", default="data/model", help="whose tokenizer")
    parser.add_argument("--comparisons", help="repeat these rows")
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.measure:
        measure(args.measure, args.model)
        return
    for count in args.rows:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "comparisons.jsonl"
            write_jsonl(path, rows(count, args.comparisons))
            words = [sys.executable, __file__, "--measure", str(path), "--model", args.model]
            subprocess.run(words, check=True)


if __name__ == "__main__":
    main()
