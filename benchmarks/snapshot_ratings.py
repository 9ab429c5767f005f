"""Are Elo ratings of a loop's policies right, if the labeler is careless now and then?

    preftune online --config demo:online.yaml --noise 0.2 --snapshots 4 --output_dir outputs/noisy
    preftune sample --prompts demo:prompts.heldout.jsonl --completions 16 --truncate_token . \
        --truncate_after 12 --output outputs/snapshots.jsonl --models start=base \
        round-000=outputs/noisy/round-000/policy round-001=outputs/noisy/round-001/policy \
        round-002=outputs/noisy/round-002/policy
    python benchmarks/snapshot_ratings.py outputs/snapshots.jsonl outputs/pairs.jsonl --noise 0.2

The rows name each text's writer by ``models``. A scripted labeler (a word list, and a pick at
random for a share of the pairs) compares two texts at a time, and ``maths.choices.fit_choices``
rates the writers. The truth is known: the share of all pairs of texts in which the word list
prefers each writer, and from it the log-odds that this labeler's picks have. Printed are both for
each pair of writers, in one fit of all pairs and for each pair alone; and how often they are within
two errors of each other when prompts, texts and carelessness are drawn again. The picks are written
as comparisons, which ``preftune ratings --reward_model`` reads.
"""

import argparse
import itertools
import math
import random

import torch

from toolkit.data.files import read_jsonl, write_jsonl
from toolkit.embedded import embedded
from toolkit.labeling.labelers import ScriptedLabeler
from toolkit.maths.choices import Strengths, fit_choices
from toolkit.maths.ratings import ELO_SCALE
from toolkit.scoring.functions import Lexicon
from toolkit.scoring.picker import ScorePicker, pick_best
from toolkit.scoring.scorer import Completions

Pick = tuple[int, int, int]  # two writers by number, and whether the first or the second was picked
Rated = tuple[float, float]  # points, and their standard error


def true_points(pairs: list[tuple[float, float]], noise: float) -> tuple[float, float, float]:
    """Return the second writer's points over the first, with noise and without, and ties' share.

    Args:
        pairs: scores of a text of the first and one of the second.
        noise: share of picks that fall on either text at random; other ties are dropped.
    """
    first = sum(a > b for a, b in pairs) / len(pairs)
    second = sum(a < b for a, b in pairs) / len(pairs)
    careless = (noise / 2 + (1 - noise) * second) / (noise / 2 + (1 - noise) * first)
    return (
        ELO_SCALE * math.log(careless),
        ELO_SCALE * math.log(second / first),
        1 - first - second,
    )


def rated(picks: list[Pick], writers: int) -> tuple[Strengths, dict[tuple[int, int], list[Rated]]]:
    """Fit all picks together; return that, and for each pair its points in it and by itself."""
    shown = torch.zeros(len(picks), writers)
    for row, (a, b, _) in zip(shown, picks, strict=True):
        row[a] = row[b] = 1
    together = fit_choices(shown, torch.tensor([pick[pick[2]] for pick in picks]))

    found = {}
    for pair in itertools.combinations(range(writers), 2):
        points, errors = together.above(pair[0])
        won = sum(pick == (*pair, 1) for pick in picks)
        lost = sum(pick == (*pair, 0) for pick in picks)
        alone = ELO_SCALE * math.log(won / lost), ELO_SCALE * math.sqrt(1 / won + 1 / lost)
        found[pair] = [(points[pair[1]], errors[pair[1]]), alone]
    return together, found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("samples", help="rows with models, from preftune sample")
    parser.add_argument("output", help="JSONL file for the picks")
    parser.add_argument("--lexicon", default=embedded("lexicon.txt"))
    parser.add_argument("--noise", type=float, default=0.2)
    parser.add_argument("--draws", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()

    rows = [row for _, row in read_jsonl(args.samples)]
    names = sorted({n for row in rows for n in row["models"]}, key=lambda n: (n != "start", n))
    writers, pairs = len(names), list(itertools.combinations(range(len(names)), 2))
    scorer = Lexicon(args.lexicon)

    # Each row's texts with their scores, by writer.
    texts = []
    for row in rows:
        scores = scorer(Completions([row["prompt"]] * len(row["models"]), row["completions"]))
        each: list[list[tuple[str, float]]] = [[] for _ in names]
        for name, text, score in zip(
            row["models"], row["completions"], scores.tolist(), strict=True
        ):
            each[names.index(name)].append((text, score))
        texts.append(each)
    means = torch.tensor([[sum(s for _, s in of) / len(of) for of in each] for each in texts])
    level, error = means.mean(dim=0), means.std(dim=0) / math.sqrt(len(rows))
    print(f"{len(rows)} prompts")
    for i, name in enumerate(names):
        print(f"  {name}: {level[i]:.3f} +- {error[i]:.3f} by the word list")

    # The truth, over all pairs of texts. Two equal texts are a tie, and no labeler picks of them.
    truth = {}
    for a, b in pairs:
        met = [
            (mine[1], other[1])
            for each in texts
            for mine, other in itertools.product(each[a], each[b])
            if mine[0] != other[0]
        ]
        truth[a, b], clean, tied = true_points(met, args.noise)
        print(
            f"  {names[b]} over {names[a]}: truly {clean:+.1f} points without noise, "
            f"{truth[a, b]:+.1f} with it; ties {tied:.1%}"
        )

    # One draw by the labeler itself. A text meets one other text only, as far as they go.
    labeler = ScriptedLabeler("lexicon", ScorePicker(scorer), args.noise, seed=args.seed)
    picks: list[Pick] = []
    written = []
    for row, each in zip(rows, texts, strict=True):
        turn = [0] * writers
        for a, b in pairs:
            two = [each[i][turn[i] % len(each[i])][0] for i in (a, b)]
            turn[a], turn[b] = turn[a] + 1, turn[b] + 1
            action, best = labeler.decide(row["prompt"], two)
            if action == "pick" and best is not None:
                picks.append((a, b, best))
                named = {"models": [names[a], names[b]], "best": best}
                written.append({"prompt": row["prompt"], "completions": two} | named)
    write_jsonl(args.output, written)
    together, found = rated(picks, writers)
    print(f"{len(picks)} picks; points above {names[0]}:")
    for name, points, error_of in zip(names, *together.above(0), strict=True):
        print(f"  {name}: {points:.1f} +- {error_of:.1f}")
    for (a, b), ways in found.items():
        said = [f"{p:+.1f} +- {e:.1f} ({(p - truth[a, b]) / e:+.2f} errors)" for p, e in ways]
        print(f"  {names[b]} over {names[a]}: together {said[0]}, alone {said[1]}")

    # Again and again, with prompts, texts and carelessness drawn anew.
    rng = random.Random(args.seed)
    inside = {pair: [0, 0] for pair in pairs}
    order, recovered = level.argsort().tolist(), 0
    for _ in range(args.draws):
        drawn: list[Pick] = []
        for each in rng.choices(texts, k=len(texts)):
            for a, b in pairs:
                mine, other = rng.choice(each[a]), rng.choice(each[b])
                if mine[0] == other[0]:
                    continue
                chosen = pick_best([mine[1], other[1]], "drop", args.noise, rng)
                if chosen is not None:
                    drawn.append((a, b, chosen))
        together, found = rated(drawn, writers)
        recovered += together.values.argsort().tolist() == order
        for pair, ways in found.items():
            for way, (points, of) in enumerate(ways):
                inside[pair][way] += abs(points - truth[pair]) <= 2 * of
    shown = ", ".join(names[i] for i in order)
    print(f"the true order ({shown}) came out in {recovered} of {args.draws} draws")
    for (a, b), (joint, alone) in inside.items():
        share = f"{joint / args.draws:.1%} together, {alone / args.draws:.1%} alone"
        print(f"  {names[b]} over {names[a]}, within two errors: {share}")


if __name__ == "__main__":
    main()
