"""Gather the content of the report on runs from the files that the recipes wrote."""

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from toolkit.arguments.layouts import LayoutArguments
from toolkit.data.comparisons import recipe_reader
from toolkit.data.files import read_object
from toolkit.data.records import Row, from_row, to_row
from toolkit.data.tables import read_table
from toolkit.errors import InputError
from toolkit.evaluation.result import Evaluation
from toolkit.evaluation.reward_results import Analysis, RewardReport
from toolkit.evaluation.samples import SampleRow, read_sample_rows
from toolkit.evaluation.tables import Fact
from toolkit.evaluation.trained_prompts import notes as trained_notes
from toolkit.maths.agreement import krippendorff_alpha
from toolkit.record import RUN_FILE, RunRecord
from toolkit.scoring.accuracy import RewardMetrics, Verdict, judge
from toolkit.scoring.trust import read_trusts
from toolkit.training.log_rows import LoggedUpdate, read_log, read_timings

TOLERANCE = 0.1  # allowed distance of the KL over the last fifth of a run, relative to its target


@dataclass
class PPORun:
    """A PPO run as read from its folder.

    Attributes:
        folder: ppo.py's output_dir.
        log: the updates, at least one.
        kl, scores: means over the last fifth of the updates, KL in nats per completion.
        kl_target: target of the last update in nats; None under a fixed coefficient.
        kl_held: whether ``kl`` is within ``TOLERANCE`` of the target; None without a target.
        episodes: number of episodes.
        seconds, peak_mb: duration and memory in MiB; None if not recorded.
        identity: run.json; empty if there is none.
    """

    folder: str
    log: list[LoggedUpdate]
    kl: float | None
    kl_target: float | None
    kl_held: bool | None
    scores: float | None
    episodes: int
    seconds: float | None
    peak_mb: float | None
    identity: Row

    def row(self) -> Row:
        """Return the run for report.json, with the log's rows unchanged."""
        return to_row(self) | {"log": [update.row for update in self.log]}


@dataclass
class RewardRun:
    """A reward model as read from its folder.

    Attributes:
        folder: reward.py's output_dir.
        metrics: metrics on held-out comparisons.
        verdict: the verdict on these metrics.
        history: the training log, one row per logged step: step, loss, accuracy.
        analysis: the result of reward_report.py; None if it was not run.
        identity: run.json.
    """

    folder: str
    metrics: RewardMetrics
    verdict: Verdict
    history: list[Row]
    analysis: Analysis | None
    identity: Row

    @property
    def trusted(self) -> bool:
        """Whether the model has learned what people pick."""
        return self.verdict.answer == "yes"

    def row(self) -> Row:
        """Return the reward model for report.json."""
        found = {} if self.analysis is None else to_row(self.analysis)
        return {
            "folder": self.folder,
            "metrics": to_row(self.metrics),
            "trusted": self.trusted,
            "answer": self.verdict.answer,
            "verdict": self.verdict.sentence,
            "history": self.history,
            "baselines": found.get("baselines", {}),
            "people": found.get("people", {}),
            "length_bias": found.get("length_bias", {}),
            "identity": self.identity,
        }


@dataclass
class DataSheet:
    """A description of comparisons.

    Attributes:
        source: the file.
        comparisons, prompts: their numbers.
        labellers: number of labels by name, the busiest labeler first.
        completions: number of comparisons by K.
        positions: picks at each position, for the most frequent K.
        words: median number of words per completion.
        agreement: share of pairs of labels on one item that are equal; None without a pair.
        alpha: Krippendorff's alpha; None if it is undefined.
        items_twice: number of items with labels of several people.
    """

    source: str
    comparisons: int
    prompts: int
    labellers: dict[str, int]
    completions: dict[str, int]
    positions: list[int]
    words: int
    agreement: float | None
    alpha: float | None
    items_twice: int


def read_ppo_run(folder: str | Path) -> PPORun:
    """Read a PPO run: its log, duration, memory and run.json.

    Raises:
        InputError: log.jsonl is missing, empty or malformed.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise InputError(f"--runs: {folder}: no such folder")
    log = read_log(folder / "log.jsonl")
    if not log:
        raise InputError(
            f"--runs: {folder}: log.jsonl is missing or empty (preftune ppo writes it)"
        )
    timings = read_timings(folder / "timings.jsonl")
    record = folder / RUN_FILE

    kl, target = last_fifth(log, lambda update: update.kl), log[-1].kl_target
    held = None if target is None or kl is None else abs(kl / target - 1) <= TOLERANCE
    return PPORun(
        folder=str(folder),
        log=log,
        kl=kl,
        kl_target=target,
        kl_held=held,
        scores=last_fifth(log, lambda update: update.scores),
        episodes=log[-1].episode,
        seconds=math.fsum(t.seconds for t in timings) if timings else None,
        peak_mb=max((t.peak_mb for t in timings), default=None),
        identity=RunRecord.read(record).as_json() if record.is_file() else {},
    )


def read_reward_run(folder: str | Path) -> RewardRun:
    """Read a reward model's metrics and training history, and its report if there is one.

    Raises:
        InputError: the folder was not written by reward.py.
    """
    folder = Path(folder)
    path, report = folder / RUN_FILE, folder / "report" / "reward_report.json"
    identity = RunRecord.read(path, "--rewards").as_json()
    if "accuracy" not in (identity.get("metrics") or {}):
        raise InputError(f"--rewards: {path}: holds no metrics (preftune reward writes them)")
    metrics = from_row(RewardMetrics, identity["metrics"], f"{path}: metrics")

    return RewardRun(
        folder=str(folder),
        metrics=metrics,
        verdict=judge(metrics),
        history=identity.get("history", []),
        analysis=RewardReport.read(report, "--rewards").analysis if report.is_file() else None,
        identity=identity,
    )


def _object(path: Path) -> Row:
    return read_object(path, "report") if path.is_file() else {}


def last_fifth(
    log: Sequence[LoggedUpdate], value_of: Callable[[LoggedUpdate], float | None]
) -> float | None:
    """Average the known values over the last fifth of a run's updates (at least one update)."""
    tail = log[-max(1, math.ceil(len(log) / 5)) :]
    known = [value for update in tail if (value := value_of(update)) is not None]
    return sum(known) / len(known) if known else None


def data_sheet(path: str | Path, layout: LayoutArguments | None = None) -> DataSheet:
    """Describe comparisons: their number, labelers, positions and agreement.

    Args:
        path: comparisons in any layout, optionally with ``labeler``.
        layout: how they are read.

    Raises:
        InputError: the file is missing or empty, or a row is not a comparison (file:line).
    """
    labellers: Counter[str] = Counter()
    sizes: Counter[int] = Counter()
    positions: dict[int, Counter[int]] = defaultdict(Counter)
    said: dict[str, dict[str, int]] = defaultdict(dict)  # item -> who -> what
    prompts = set()
    lengths: list[int] = []

    reader = recipe_reader(layout or LayoutArguments())
    for place, row in reader.rows(read_table(path, "--comparisons")):
        try:
            texts, best = row["completions"], row["best"]
            who = str(row.get("labeler", "not said"))
            prompts.add(repr(row["prompt"]))
            positions[len(texts)][best] += 1
            # Labels of one item may show its completions in different orders.
            said[repr((row["prompt"], sorted(texts)))][who] = sorted(texts).index(texts[best])
        except (KeyError, TypeError, IndexError) as error:
            raise InputError(f"{place}: not a comparison ({error!r})") from None
        labellers[who] += 1
        sizes[len(texts)] += 1
        lengths += [len(text.split()) for text in texts]
    reader.bad.refuse()
    if not labellers:
        raise InputError(f"--comparisons: {path}: holds no rows")

    twice = [list(votes.values()) for votes in said.values() if len(votes) > 1]
    same = [a == b for votes in twice for i, a in enumerate(votes) for b in votes[:i]]
    usual = sizes.most_common(1)[0][0]
    return DataSheet(
        source=str(path),
        comparisons=labellers.total(),
        prompts=len(prompts),
        labellers=dict(labellers.most_common()),
        completions={str(k): n for k, n in sorted(sizes.items())},
        positions=[positions[usual][k] for k in range(usual)],
        words=sorted(lengths)[len(lengths) // 2],
        agreement=sum(same) / len(same) if same else None,
        alpha=_alpha(twice),
        items_twice=len(twice),
    )


def _alpha(items: Sequence[Sequence[int]]) -> float | None:
    """Compute Krippendorff's alpha of items with several labelers' picks; None if undefined."""
    if not items:
        return None
    counts = np.zeros((len(items), 1 + max(map(max, items))), dtype=int)
    for unit, picks in enumerate(items):
        for pick in picks:
            counts[unit, pick] += 1
    value = krippendorff_alpha(counts)
    return value if math.isfinite(value) else None


def read_evaluation(folder: str | Path, samples: int) -> tuple[Evaluation, list[SampleRow]]:
    """Read ``evaluation.json`` and the first rows of ``samples.jsonl``.

    Raises:
        InputError: the folder was not written by evaluate.py.
    """
    folder = Path(folder)
    result = Evaluation.read(folder / "evaluation.json", "--evaluation")
    names = [c.name for c in result.contenders]
    return result, read_sample_rows(folder / "samples.jsonl", names, result.prompts)[:samples]


def overoptimized(result: Evaluation) -> list[str]:
    """Return one sentence for each sign that a policy pleases only its training reward.

    There are two signs: a gap's alarm (``head_to_head.gaps``); and a run's last checkpoint that
    another judge finds worse than an earlier one (p of scores < 0.05, Holm-corrected over the run's
    checkpoints) while the training reward does not.
    """
    found = [
        f"{g.name}: the training reward sees a gain of {g.trained_gain:+.2f} standard deviations, "
        f"but {g.judge} sees {g.gain:+.2f} and does not confirm it"
        for g in result.gaps
        if g.alarm
    ]
    training = result.training_reward
    if training is None:
        return found

    runs: dict[str, list[str]] = defaultdict(list)
    for c in result.contenders:
        if c.kind == "checkpoint":
            runs[c.name.rpartition("@")[0]].append(c.name)

    scores = {c.name: c.scores for c in result.contenders}
    for names in runs.values():
        last, earlier = names[-1], set(names[:-1])
        for p in result.pairs:
            if p.a != last or p.b not in earlier or p.judge == training:
                continue
            if p.difference is None or p.p_scores is None:
                continue
            worse = p.difference < 0 and p.p_scores * len(earlier) < 0.05
            if worse and scores[last][training].gain >= scores[p.b][training].gain:
                found.append(
                    f"{last}: {p.judge} finds it worse than {p.b} (p {p.p_scores:.2g}), but the "
                    "training reward does not (stop earlier, or lower the KL target)"
                )
    return found


def headline_judge(result: Evaluation) -> str:
    """Return the first judge with verdicts that policies were not trained on, else the first."""
    judged = {p.judge for p in result.pairs if p.judged}
    for wanted in (False, True):
        for j in result.judges:
            if j.name in judged and j.training_reward is wanted:
                return j.name
    return result.judges[0].name


def verdicts(
    runs: dict[str, PPORun],
    rewards: dict[str, RewardRun],
    result: Evaluation | None,
    trainings: dict[str, Row] | None = None,
) -> list[Fact]:
    """Return the main results, each with "yes", "no", "not decided" or nothing.

    Contenders (without checkpoints) are compared with the reference under ``headline_judge``.

    Raises:
        InputError: a run.json holds malformed verdicts on reward models.
    """
    facts: list[Fact] = []
    for name, run in runs.items():
        facts += _progress(name, run)
    for name, reward in rewards.items():
        facts.append(_accuracy(name, reward))
    for name, run in runs.items():
        facts += _held_out(name, run)

    everyone = {name: run.identity for name, run in runs.items()} | (trainings or {})
    for name, identity in everyone.items():
        facts += _untrusted(name, identity)

    if result is not None:
        facts += _comparison(result)
    return facts


def _progress(name: str, run: PPORun) -> list[Fact]:
    """Return whether the run finished, and whether it held the KL."""
    facts: list[Fact] = []
    planned = run.identity.get("settings", {}).get("total_episodes")
    if planned is not None and run.episodes < planned:
        facts.append((f"{name}: finished", f"{run.episodes:,} of {planned:,} episodes", "no"))
    if run.kl_held is not None:
        facts.append(
            (
                f"{name}: the KL was held",
                f"{run.kl:.2f} nats over the last fifth, target {run.kl_target:g} nats",
                "yes" if run.kl_held else "no",
            )
        )
    return facts


def _accuracy(name: str, reward: RewardRun) -> Fact:
    m = reward.metrics
    interval = f"[{m.accuracy_low:.1%}, {m.accuracy_high:.1%}]"
    how = "held-out" if m.folds is None else "cross-validated"
    return (
        f"{name}: {how} accuracy",
        f"{m.accuracy:.1%} {interval}, chance {m.chance:.0%}",
        reward.verdict.answer,
    )


def _held_out(name: str, run: PPORun) -> list[Fact]:
    """Return a fact if the run was trained on some of its held-out prompts."""
    data = run.identity.get("data") or {}
    if not data.get("held_out_trained_on"):
        return []
    return [
        (
            f"{name}: its held-out prompts are held out",
            f"it was trained on {data['held_out_trained_on']} of the {data['held_out_prompts']} "
            "prompts of --eval_prompts",
            "no",
        )
    ]


def _untrusted(name: str, identity: Row) -> list[Fact]:
    """Return a fact for each reward model of a run that is not known to have learned anything."""
    facts: list[Fact] = []
    for trust in read_trusts(identity, f"{name}: run.json"):
        if trust.answer == "yes":
            continue
        how = "the run used it anyway (--allow_untrusted_reward): " if trust.allowed else ""
        shown = "" if trust.answer == "not measured" else trust.answer
        title = f"{name}: its reward model can be trusted"
        facts.append((title, f"{how}{trust.model}: {trust.sentence}", shown))
    return facts


def _comparison(result: Evaluation) -> list[Fact]:
    """Return facts on held-out prompts, on who is better, and on over-optimization."""
    facts: list[Fact] = []
    for name, sentence in trained_notes(result.contenders, result.prompts).items():
        not_known = sentence.startswith("it could not")
        title = f"{name}: judged on held-out prompts"
        facts.append((title, sentence, "" if not_known else "no"))

    kl = {c.name: c.kl for c in result.contenders if c.kind != "checkpoint"}
    judge_wanted = headline_judge(result)
    for p in result.pairs:
        if p.b != result.reference or p.judge != judge_wanted or p.a not in kl:
            continue
        surely = p.win_rate > 0.5 and p.p_holm < 0.05
        at = "" if kl[p.a] is None else f", at {kl[p.a]:.2f} nats"
        if p.judge == result.training_reward:
            at += "; this judge is the reward that was trained against"
        facts.append(
            (
                f"{p.a} better than {p.b}, says {p.judge}",
                f"{p.wins} wins, {p.ties} ties, {p.losses} losses: {p.win_rate:.1%} "
                f"[{p.low:.1%}, {p.high:.1%}]{at}",
                "yes" if surely else "no",
            )
        )

    alarms = overoptimized(result)
    found, answer = "; ".join(alarms) or "no sign of over-optimization", "no" if alarms else "yes"
    if result.training_reward is None or len(result.judges) < 2:
        found, answer = (
            "not known, because it needs a judge that policies were not trained on ("
            "preftune evaluate --judges, --training_reward)",
            "",
        )
    facts.append(("free of over-optimization", found, answer))
    return facts
