"""What a cap on the logits costs: the chunked output head with and without it, in turns.

    python benchmarks/capped_head.py
    python benchmarks/capped_head.py --hidden 2304 --vocabulary 256000    (Gemma 2 2B; needs 5 GB)

Log-probs and their gradient (``maths.distributions.head_logprobs``) of some hundred tokens, of
logits that reach beyond the cap. You should see medians of both and their ratio, in fp32 and under
bf16 autocast. It takes a minute.
"""

import argparse
import statistics
import time
from contextlib import nullcontext

import torch

from toolkit.maths.distributions import head_logprobs


def seconds(
    hidden: torch.Tensor, weight: torch.Tensor, ids: torch.Tensor, cap: float | None
) -> float:
    start = time.perf_counter()
    logprobs, _ = head_logprobs(hidden, weight, None, ids, 0.7, cap=cap)
    logprobs.sum().backward()
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--hidden", type=int, default=1024)
    parser.add_argument("--vocabulary", type=int, default=64_000)
    parser.add_argument("--tokens", type=int, default=384)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    hidden = torch.randn(1, args.tokens, args.hidden, requires_grad=True)
    weight = torch.randn(args.vocabulary, args.hidden) * 20 / args.hidden**0.5
    ids = torch.randint(0, args.vocabulary, (1, args.tokens))
    print(f"{args.tokens} tokens, d = {args.hidden}, V = {args.vocabulary}, {args.threads} thread")
    for name, context in (
        ("fp32", nullcontext),
        ("bf16", lambda: torch.autocast("cpu", torch.bfloat16)),
    ):
        times: dict[float | None, list[float]] = {None: [], 30.0: []}
        for _ in range(args.rounds + 1):
            for cap, found in times.items():
                with context():
                    found.append(seconds(hidden, weight, ids, cap))
        plain, capped = (statistics.median(found[1:]) for found in times.values())
        print(f"{name}: {plain:.3f} s without a cap, {capped:.3f} with one: {capped / plain:.3f}")


if __name__ == "__main__":
    main()
