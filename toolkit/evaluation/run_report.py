"""What a report on runs says: gathered from what the recipes left behind, as plain data."""

import math
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from toolkit.data.files import read_jsonl, read_object
from toolkit.errors import InputError
from toolkit.evaluation.compare import read_sample_rows
from toolkit.evaluation.tables import Fact
from toolkit.evaluation.trained_prompts import notes as trained_notes
from toolkit.maths.agreement import krippendorff_alpha
from toolkit.scoring.accuracy import judge
from toolkit.training.journal import read_rows

Row = dict[str, Any]
TOLERANCE = 0.1  # of the KL's mean over the last fifth of a run, relative to its target


def read_ppo_run(folder: str | Path) -> Row:
    """A PPO run: its log, its seconds and memory, and what it was made of.

    Raises:
        InputError: no log.jsonl with a row in it.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise InputError(f"--runs: {folder}: no such folder")
    rows = read_rows(folder / "log.jsonl")
    if not rows:
        raise InputError(f"--runs: {folder}: no log.jsonl with an update in it (ppo.py writes it)")
    timings = read_rows(folder / "timings.jsonl")
    target = rows[-1].get("objective/kl_target")
    kl = last_fifth(rows, "objective/kl")
    return {
        "folder": str(folder), "log": rows, "kl": kl, "kl_target": target,
        "kl_held": None if target is None else abs(kl / target - 1) <= TOLERANCE,
        "scores": last_fifth(rows, "objective/scores"), "episodes": rows[-1]["episode"],
        "seconds": math.fsum(t["seconds"] for t in timings) if timings else None,
        "peak_mb": max((t["peak_mb"] for t in timings), default=None),
        "identity": _object(folder / "run.json"),
    }  # fmt: skip


def read_reward_run(folder: str | Path) -> Row:
    """A reward model: its metrics, training history, verdict, and the report on it if there is one.

    Raises:
        InputError: not a folder that reward.py wrote.
    """
    folder = Path(folder)
    identity = read_object(folder / "run.json", "--rewards")
    if "metrics" not in identity or "accuracy" not in identity["metrics"]:
        raise InputError(f"--rewards: {folder}/run.json: no metrics in it (reward.py writes it)")
    found_out = judge(identity["metrics"])
    found = _object(folder / "report" / "reward_report.json").get("analysis", {})
    return {
        "folder": str(folder), "metrics": identity["metrics"],
        "trusted": found_out.answer == "yes", "answer": found_out.answer,
        "verdict": found_out.sentence, "history": identity.get("history", []),
        "baselines": found.get("baselines", {}), "people": found.get("people", {}),
        "length_bias": found.get("length_bias", {}), "identity": identity,
    }  # fmt: skip


def _object(path: Path) -> Row:
    return read_object(path, "report") if path.is_file() else {}


def last_fifth(rows: Sequence[Row], name: str) -> float:
    """Mean of a column over the last fifth of a run's updates (at least one)."""
    tail = rows[-max(1, math.ceil(len(rows) / 5)) :]
    return sum(row[name] for row in tail) / len(tail)


def data_sheet(path: str | Path) -> Row:
    """Comparisons described: how many, by whom, how even, and how far labellers agree.

    Args:
        path: JSONL of ``prompt, completions, best`` and perhaps ``labeler``.

    Returns:
        comparisons, prompts, labellers (name -> labels), completions (K -> comparisons),
        positions (picks of each place, for the commonest K), words (median of a completion),
        agreement (share of pairs of labels on one item that pick the same), alpha, items_twice.
    """
    labellers: Counter[str] = Counter()
    sizes: Counter[int] = Counter()
    positions: dict[int, Counter[int]] = defaultdict(Counter)
    said: dict[str, dict[str, int]] = defaultdict(dict)  # item -> who -> what
    prompts = set()
    lengths: list[int] = []
    for number, row in read_jsonl(path, "--comparisons"):
        try:
            texts, best = row["completions"], row["best"]
            who = str(row.get("labeler", "not said"))
            prompts.add(repr(row["prompt"]))
            positions[len(texts)][best] += 1
            said[repr((row["prompt"], sorted(texts)))][who] = sorted(texts).index(texts[best])
        except (KeyError, TypeError, IndexError) as error:
            raise InputError(f"{path}:{number}: not a comparison ({error!r})") from None
        labellers[who] += 1
        sizes[len(texts)] += 1
        lengths += [len(text.split()) for text in texts]
    if not labellers:
        raise InputError(f"--comparisons: {path}: no row in it")
    twice = [list(votes.values()) for votes in said.values() if len(votes) > 1]
    same = [a == b for votes in twice for i, a in enumerate(votes) for b in votes[:i]]
    usual = sizes.most_common(1)[0][0]
    return {
        "source": str(path), "comparisons": labellers.total(), "prompts": len(prompts),
        "labellers": dict(labellers.most_common()),
        "completions": {str(k): n for k, n in sorted(sizes.items())},
        "positions": [positions[usual][k] for k in range(usual)],
        "words": sorted(lengths)[len(lengths) // 2],
        "agreement": sum(same) / len(same) if same else None, "alpha": _alpha(twice),
        "items_twice": len(twice),
    }  # fmt: skip


def _alpha(items: Sequence[Sequence[int]]) -> float | None:
    """Krippendorff's alpha of items with the picks of several labellers; None if undefined."""
    if not items:
        return None
    counts = np.zeros((len(items), 1 + max(map(max, items))), dtype=int)
    for unit, picks in enumerate(items):
        for pick in picks:
            counts[unit, pick] += 1
    value = krippendorff_alpha(counts)
    return value if math.isfinite(value) else None


def read_evaluation(folder: str | Path, samples: int) -> tuple[Row, list[Row]]:
    """``evaluation.json`` and the first rows of ``samples.jsonl``.

    Raises:
        InputError: not a folder that evaluate.py wrote.
    """
    folder = Path(folder)
    result = read_object(folder / "evaluation.json", "--evaluation")
    if not {"contenders", "pairs", "judges", "reference"} <= set(result):
        raise InputError(f"--evaluation: {folder}: not what evaluate.py wrote")
    names = [c["name"] for c in result["contenders"]]
    rows = read_sample_rows(folder / "samples.jsonl", names, result["prompts"])
    return result, rows[:samples]


def overoptimised(result: Row) -> list[str]:
    """Sentences, one for each sign that a policy pleases its training reward alone.

    A gap's alarm (``compare.gaps``); and, among checkpoints of one run, a last one that another
    judge finds worse than an earlier one (p of scores < 0.05, by Holm over the run's checkpoints)
    although the training reward finds it no worse.
    """
    found = [
        f"{g['name']}: better by {g['trained_gain']:+.2f} standard deviations for the training "
        f"reward, {g['gain']:+.2f} for {g['judge']}, which does not confirm it"
        for g in result["gaps"] if g["alarm"]
    ]  # fmt: skip
    training = next((j["name"] for j in result["judges"] if j["training_reward"]), None)
    gain = {c["name"]: {j: s["gain"] for j, s in c["scores"].items()} for c in result["contenders"]}
    runs: dict[str, list[str]] = defaultdict(list)
    for c in result["contenders"]:
        if c["kind"] == "checkpoint":
            runs[c["name"].rpartition("@")[0]].append(c["name"])
    for names in runs.values():
        last, earlier = names[-1], set(names[:-1])
        for p in result["pairs"]:
            if p["a"] != last or p["b"] not in earlier or "difference" not in p:
                continue
            if p["judge"] == training or training is None:
                continue
            worse = p["difference"] < 0 and p["p_scores"] * len(earlier) < 0.05
            if worse and gain[last][training] >= gain[p["b"]][training]:
                found.append(
                    f"{last}: {p['judge']} finds it worse than {p['b']} (p {p['p_scores']:.2g}), "
                    "the training reward does not: stop earlier, or lower the KL target"
                )
    return found


def _untrusted(name: str, identity: Row) -> list[Fact]:
    """A fact for each reward model of a run that is not known to have learned anything."""
    facts: list[Fact] = []
    for row in identity.get("reward_verdicts") or []:
        if row["answer"] == "yes":
            continue
        how = "trained all the same (--allow_untrusted_reward): " if row["allowed"] else ""
        shown = "" if row["answer"] == "not measured" else row["answer"]
        facts.append((
            f"{name}: its reward model can be trusted", f"{how}{row['model']}: {row['sentence']}",
            shown,
        ))  # fmt: skip
    return facts


def headline_judge(result: Row) -> str:
    """The first judge that policies were not trained on and that judged; else the first of all."""
    judged = {p["judge"] for p in result["pairs"] if p["wins"] + p["ties"] + p["losses"]}
    for wanted in (False, True):
        for j in result["judges"]:
            if j["name"] in judged and j["training_reward"] is wanted:
                return j["name"]
    return result["judges"][0]["name"]


def verdicts(
    runs: dict[str, Row], rewards: dict[str, Row], result: Row | None,
    trainings: dict[str, Row] | None = None,
) -> list[Fact]:  # fmt: skip
    """The headline facts: each with "yes", "no", "not decided" or nothing.

    Contenders (not checkpoints) are shown against the reference under ``headline_judge`` alone.
    """
    facts: list[Fact] = []
    for name, run in runs.items():
        planned = run["identity"].get("settings", {}).get("total_episodes")
        if planned is not None and run["episodes"] < planned:
            facts.append(
                (f"{name}: finished", f"{run['episodes']:,} of {planned:,} episodes", "no")
            )
        if run["kl_held"] is not None:
            facts.append((
                f"{name}: the KL was held",
                f"{run['kl']:.2f} nats over the last fifth, target {run['kl_target']:g}",
                "yes" if run["kl_held"] else "no",
            ))  # fmt: skip
    for name, reward in rewards.items():
        m = reward["metrics"]
        doubted = "not decided" if reward["answer"] == "not decided" else "no"
        facts.append((
            f"{name}: held-out accuracy",
            f"{m['accuracy']:.1%} [{m['accuracy_low']:.1%}, {m['accuracy_high']:.1%}], chance "
            f"{m['chance']:.0%}", "yes" if reward["trusted"] else doubted,
        ))  # fmt: skip
    for name, run in runs.items():
        data = run["identity"].get("data") or {}
        if data.get("held_out_trained_on"):
            facts.append((
                f"{name}: its held-out prompts are held out",
                f"{data['held_out_trained_on']} of {data['held_out_prompts']} of --eval_prompts "
                "are among its prompts", "no",
            ))  # fmt: skip
    everyone = {name: run["identity"] for name, run in runs.items()} | (trainings or {})
    facts += [fact for name, identity in everyone.items() for fact in _untrusted(name, identity)]
    if result is None:
        return facts
    for name, sentence in trained_notes(result["contenders"], result["prompts"]).items():
        facts.append((f"{name}: judged on held-out prompts", sentence,
                      "" if sentence.startswith("it could not") else "no"))  # fmt: skip
    kl = {c["name"]: c["kl"] for c in result["contenders"] if c["kind"] != "checkpoint"}
    judge_wanted = headline_judge(result)
    for p in result["pairs"]:
        if p["b"] == result["reference"] and p["judge"] == judge_wanted and p["a"] in kl:
            surely = p["win_rate"] > 0.5 and p["p_holm"] < 0.05
            at = "" if kl[p["a"]] is None else f", at {kl[p['a']]:.2f} nats"
            facts.append((
                f"{p['a']} better than {p['b']}, says {p['judge']}",
                f"{p['wins']} wins, {p['ties']} ties, {p['losses']} losses: {p['win_rate']:.1%} "
                f"[{p['low']:.1%}, {p['high']:.1%}]{at}", "yes" if surely else "no",
            ))  # fmt: skip
    trained = any(j["training_reward"] for j in result["judges"])
    if trained and len(result["judges"]) > 1:
        alarms = overoptimised(result)
        facts.append(("free of over-optimisation", "; ".join(alarms) or "no sign of it",
                      "no" if alarms else "yes"))  # fmt: skip
    else:
        facts.append((
            "free of over-optimisation",
            "cannot be seen: that takes a judge that policies were not trained on "
            "(evaluate.py --judges, --training_reward)", "",
        ))  # fmt: skip
    return facts
