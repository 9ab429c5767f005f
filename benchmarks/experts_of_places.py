"""Experts for places: is the right one found, and what do merged ones know of new places?

    python benchmarks/experts_of_places.py --output_dir outputs/experts

The generator of toolkit/data/demo_text.py writes reviews of 12 places. Of each of 8 places an SFT
expert learns (preftune sft --text), and one adapter learns from all 8. The openings of an expert's
reviews are its library. 32 new openings of each place vote (preftune experts find). Measured are
the nats of held-out reviews of each place under the base, the expert that was found, the mean of
all 8, the mean of the 3 with the most votes, and the one adapter: of whole reviews, which begin
with the name of the place, and of what follows the opening. Errors are those of the mean difference
from the base, by review. The base has read reviews of all 12 places.
"""

import argparse
import time
from pathlib import Path

import torch

from toolkit.cli import call, recipe
from toolkit.data.demo_text import PLACES, reviews
from toolkit.data.files import write_json, write_jsonl
from toolkit.data.plain_text import learned_ids
from toolkit.maths.statistics import mean_and_error
from toolkit.models.actors import REFERENCE
from toolkit.models.adapter_arithmetic import merge_adapters
from toolkit.models.expert_registry import read_registry
from toolkit.models.loading import load_base, load_tokenizer
from toolkit.models.roles import Roles

SEEN, UNSEEN = list(PLACES)[:8], list(PLACES)[8:]
SEED = 1000  # of the reviews; the embedded model learned those of seeds 0 and 1
MODEL = "data/model"


def of_place(place: str, count: int, seed: int) -> list[tuple[str, str]]:
    """(opening, rest) of the first reviews of a place that the generator makes."""
    found: list[tuple[str, str]] = []
    for opening, rest in reviews(40 * count, seed):
        if f" {place}" in opening and len(found) < count:
            found.append((opening, rest))
    return found


def learn(name: str, texts: list[tuple[str, str]], out: Path, args: argparse.Namespace) -> str:
    """Train an SFT adapter on texts; return its folder."""
    rows = [{"text": f"{opening} {rest}"} for opening, rest in texts]
    write_jsonl(out / f"{name}.jsonl", rows)
    folder = out / name
    told = {
        "text": out / f"{name}.jsonl",
        "output_dir": folder,
        "model_name_or_path": MODEL,
        "precision": "fp32",
        "learning_rate": args.learning_rate,
        "num_train_epochs": args.epochs,
        "per_device_train_batch_size": 32,
        "eval_rows": 20,
        "stop_token": "eos",
        "seed": args.seed,
        "overwrite": "true",
    }
    call(recipe("sft").main, [word for k, v in told.items() for word in (f"--{k}", str(v))])
    return str(folder / "adapter")


@torch.no_grad()
def losses(roles: Roles, role: str, rows: list[list[int]], begins: list[int]) -> list[float]:
    """Nats of each row from its token ``begins`` on."""
    found = []
    for ids, begin in zip(rows, begins, strict=True):
        tokens = torch.tensor([ids])
        logprobs = roles.logprobs(role, tokens, torch.ones_like(tokens).bool(), tokens[:, 1:], 1.0)
        found.append(-float(logprobs[0, begin - 1 :].double().sum()))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output_dir", type=Path, default=Path("outputs/experts"))
    parser.add_argument("--reviews", type=int, default=400, help="of each place, to learn from")
    parser.add_argument("--held_out", type=int, default=200, help="of each place, to measure on")
    parser.add_argument("--learning_rate", type=float, default=2e-3)
    parser.add_argument("--epochs", type=float, default=2)
    parser.add_argument("--whiten", default="true")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    out: Path = args.output_dir
    started = time.monotonic()

    # Experts, and one adapter for everything.
    registry = out / "experts.jsonl"
    registry.unlink(missing_ok=True)
    learned = {place: of_place(place, args.reviews, SEED + args.seed) for place in SEEN}
    common = ["--registry", str(registry), "--model_name_or_path", MODEL, "--precision", "fp32"]
    experts = recipe("experts").main
    for place, texts in learned.items():
        name = place.replace(" ", "-")
        adapter = learn(name, texts, out, args)
        write_jsonl(out / f"{name}.prompts.jsonl", [{"prompt": opening} for opening, _ in texts])
        prompts = str(out / f"{name}.prompts.jsonl")
        call(experts, ["add", "--name", place, "--adapter", adapter, "--prompts", prompts, *common])
    everything = [text for texts in learned.values() for text in texts]
    one = learn("everything", everything, out, args)

    # The votes of new openings of each place.
    held = {place: of_place(place, args.held_out, SEED + 500 + args.seed) for place in PLACES}
    votes = {}
    for place, texts in held.items():
        asked = out / "asked.jsonl"
        write_jsonl(asked, [{"prompt": opening} for opening, _ in texts[:32]])
        told = ["--prompts", str(asked), "--whiten", args.whiten]
        votes[place] = call(experts, ["find", *told, *common])

    # Held-out reviews under each contender.
    known = read_registry(registry)
    adapters = [expert.adapter for expert in known]
    merge_adapters(adapters, out / "mean-of-8")
    roles = Roles(load_base(MODEL, "fp32"), checked=False)
    tokenizer = load_tokenizer(MODEL)
    for name, folder in {"mean of 8": str(out / "mean-of-8"), "one SFT": one}.items():
        roles.add_policy(name.replace(" ", "_"), folder)
    for expert in known:
        roles.add_policy(f"expert_{known.index(expert)}", expert.adapter)

    results = {}
    for place, texts in held.items():
        vote = votes[place]
        chosen = [i for i in vote.order[:3] if vote.counts[i]]
        top3 = f"top3_{place.replace(' ', '_')}"
        merge_adapters([adapters[i] for i in chosen], out / top3, weights=vote.shares(chosen))
        roles.add_policy(top3, out / top3)
        contenders = {
            "base": REFERENCE,
            "top 1": f"expert_{vote.order[0]}",
            "top 3, by votes": top3,
            "mean of 8": "mean_of_8",
            "one SFT": "one_SFT",
        }
        rows = [learned_ids(tokenizer, f"{o} {r}", tokenizer.eos_token_id) for o, r in texts]
        behind = [len(learned_ids(tokenizer, o)) for o, _ in texts]
        found = {}
        for what, begins in (("whole", [1] * len(rows)), ("rest", behind)):
            before = losses(roles, REFERENCE, rows, begins)
            for name, role in contenders.items():
                after = losses(roles, role, rows, begins)
                change = mean_and_error([a - b for a, b in zip(after, before, strict=True)])
                found[f"{what}: {name}"] = {
                    "nats": sum(after) / len(after),
                    "change": change[0],
                    "error": change[1],
                }
        results[place] = {
            "seen": place in SEEN,
            "votes": {known[i].name: int(vote.counts[i]) for i in vote.order if vote.counts[i]},
            "margin": vote.margin,
            "losses": found,
        }
        print(place, results[place]["votes"])
        for name, one_result in found.items():
            print(f"  {name:24} {one_result['nats']:7.2f} {one_result['change']:+.3f}"
                  f" +- {one_result['error']:.3f}")  # fmt: skip
    right = sum(known[votes[place].order[0]].name == place for place in SEEN)
    print(f"the right expert was found for {right} of {len(SEEN)} places that have one")
    for group in (SEEN, UNSEEN):
        for name in results[group[0]]["losses"]:
            mean = sum(results[place]["losses"][name]["change"] for place in group) / len(group)
            print(f"{'seen' if group is SEEN else 'unseen'}  {name:24} {mean:+.3f}")
    print(f"{time.monotonic() - started:.0f} s")
    write_json(out / "experts.json", results)


if __name__ == "__main__":
    main()
