"""Online data collection in rounds: how many labels when, from which samples, and an alarm.

    round r: sample the policy -> label, up to l(n) picks -> retrain the reward model -> PPO
    OUT/round-000/prompts-00.jsonl   the prompts of this round
                  samples-00.jsonl   what is labelled; -01 and so on where ties left too few picks
                  comparisons.jsonl  all picks so far, the reward model's data
                  reward/, ppo.json  what came of them
    OUT/ppo/                         one run of all rounds
    OUT/rounds.jsonl                 a row for each round

Part of these items are for validation: two samples of the reference and two of the policy. Which
side a pick came from tells whether people like what the policy has learned to do, as the reward
model's own score can not. arXiv 1909.08593 collected labels online; its code was never published,
so this follows accounts of it, in rounds, which its authors recommend.
"""

import dataclasses
import hashlib
import json
import math
import shutil
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

from toolkit.arguments.common import SeedArguments
from toolkit.data.files import read_jsonl, read_object, write_json, write_jsonl
from toolkit.data.outputs import claim_output, hold_folder
from toolkit.errors import InputError, check_range
from toolkit.flags import Count, NotNegative, Positive, Range, Share, flag
from toolkit.labeling.labellers import ScriptedLabeller
from toolkit.labeling.store import Store
from toolkit.maths.schedules import num_updates
from toolkit.maths.statistics import wilson_interval
from toolkit.scoring.functions import load_function
from toolkit.scoring.guests import as_guest

Row = dict[str, Any]
Schedule = Callable[[float, float, float, float], float]
REFERENCE, POLICY = "reference", "policy"
MOST_BATCHES = 20  # of one round: so many without enough picks, and something is wrong


class LoopEnded(Exception):
    """The loop ended in order; ``code`` is the exit code: 0 if asked for, 1 for an alarm."""

    def __init__(self, message: str, code: int) -> None:
        super().__init__(message)
        self.code = code


def quadratic(n: float, episodes: float, initial: float, total: float) -> float:
    """l(n) = N0 + (N - N0) (1 - (1 - n/N_episodes)^2): most labels early, none at the end.

    A RECALLED form of the schedule in arXiv 1909.08593, not verified against the paper's text;
    known is that there is such an l(n), the labels required after n episodes, and PPO waits.
    """
    return initial + (total - initial) * (1 - (1 - n / episodes) ** 2)


def linear(n: float, episodes: float, initial: float, total: float) -> float:
    """l(n) = N0 + (N - N0) n/N_episodes."""
    return initial + (total - initial) * n / episodes


def all_at_once(n: float, episodes: float, initial: float, total: float) -> float:
    """l(n) = N: everything is labelled before the first episode (offline)."""
    return total


SCHEDULES: dict[str, Schedule] = {
    "quadratic": quadratic, "linear": linear, "all_at_once": all_at_once,
}  # fmt: skip


def schedule_of(name: str) -> Schedule:
    """A schedule by its name, or the function ``module:function(n, episodes, initial, total)``.

    Raises:
        InputError: neither.
    """
    if name in SCHEDULES:
        return SCHEDULES[name]
    if ":" not in name:
        raise InputError(
            f"schedule is {name!r}, but must be {', '.join(SCHEDULES)} or module:function",
            "schedule",
        )
    return load_function(name, "schedule")  # any function; checked when it is used


def wanted_labels(schedule: Schedule, starts: list[int], initial: int, total: int) -> list[int]:
    """Labels that are wanted when each round's PPO starts, and at the end.

    Args:
        schedule: l(n).
        starts: episodes n at which the rounds start, and those of the whole run.
        initial, total: N0 and N.

    Raises:
        InputError: a schedule that falls, or does not give numbers from 1 on.
    """
    wanted: list[int] = []
    for n in starts:
        with as_guest("schedule", "schedule"):
            value = schedule(n, starts[-1], initial, total)
        if not isinstance(value, int | float) or not math.isfinite(value) or value < 1:
            raise InputError(f"schedule: {value!r} labels at {n} episodes", "schedule")
        wanted.append(math.ceil(value - 1e-9))
    if wanted != sorted(wanted):
        raise InputError(f"schedule: labels can not become fewer: {wanted}", "schedule")
    return wanted


@dataclass
class OnlineArguments(SeedArguments):
    """How many rounds, labels when, and by whom."""

    output_dir: str = flag("outputs/online", "Folder of the loop.")
    store: str | None = flag(None, "OUTPUT_DIR/labels.sqlite, or this.")
    sample_config: str | None = flag(None, "YAML for sample.py.")
    reward_config: str | None = flag(None, "YAML for reward.py.")
    ppo_config: str | None = flag(None, "YAML for ppo.py.")
    rounds: Count = flag(5, "Reward models in all (the paper: 20).")
    schedule: str = flag("quadratic", "l(n): quadratic, linear, all_at_once, module:f.")
    initial_labels: Annotated[int, Range(low=2)] = flag(1000, "Picks before the first PPO.")
    total_labels: int = flag(4000, "l(n)'s value at the end.")
    validation: Share = flag(
        0.1, "Share of total_labels, at a constant rate: policy against reference."
    )
    train_on_validation: bool = flag(True, "They train rewards too.")
    wait: bool = flag(False, "Wait for people to label.")
    poll_seconds: Positive = flag(5.0, "Seconds between looks at the store.")
    spare: NotNegative = flag(0.0, "Items beyond those wanted, as a share: to label during PPO.")
    overlap: Share = flag(0.0, "Share of items for two labelers.")
    on_alarm: Literal["stop", "warn"] = flag(
        "warn", "If the score rises and the win rate falls: stop, or warn."
    )
    allow_untrusted_reward: bool = flag(
        False, "Go on with a round's reward model that is at chance, or below it."
    )
    labeler: str | None = flag(None, "The scripted labeler's name.")
    noise: Share = flag(0.0, "Share of its picks made by lot.")

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range("total_labels", self.total_labels, low=self.initial_labels)

    def plan(self, episodes: int | None, batch_size: int) -> "Plan":
        """When each round's PPO ends, and how many labels are wanted before it.

        Raises:
            InputError: more rounds than updates, or a schedule that does not give numbers.
        """
        if episodes is None:
            raise InputError("total_episodes: the loop needs to know when it ends (ppo_config)")
        updates = num_updates(episodes, batch_size)
        check_range("rounds", self.rounds, high=updates)
        stops = [round(updates * (r + 1) / self.rounds) for r in range(self.rounds)]
        starts = [update * batch_size for update in [0, *stops]]
        schedule = schedule_of(self.schedule)
        wanted = wanted_labels(schedule, starts, self.initial_labels, self.total_labels)
        return Plan(stops, batch_size, wanted)


class Plan(NamedTuple):
    """PPO's last update in each round; episodes of an update; picks when each round starts."""

    stops: list[int]
    batch_size: int
    wanted: list[int]


# May differ when a loop goes on.
FREE = {"output_dir", "wait", "poll_seconds", "on_alarm", "allow_untrusted_reward"}


def claim(args: OnlineArguments, settings: Row) -> Path:
    """The loop's folder: new, or that of a loop under the same settings.

    Raises:
        InputError: something else is there, a loop under other settings, or one that is running.
    """
    out = Path(args.output_dir)
    own = {k: v for k, v in dataclasses.asdict(args).items() if k not in FREE}
    settings = json.loads(json.dumps(own | settings))
    hold_folder(out, "output_dir")
    if not (out / "online.json").is_file():
        claim_output(out, False, "output_dir")
        write_json(out / "online.json", settings)
    then = read_object(out / "online.json", "--output_dir")
    changes = [
        f"{name}: was {then.get(name)!r}, is {settings.get(name)!r}"
        for name in sorted(set(then) | set(settings))
        if then.get(name) != settings.get(name)
    ]
    if changes:
        raise InputError(
            f"{out}: begun under other settings, {changes[0]} (go on with the old ones, or take "
            "another output_dir)", details=changes[1:],
        )  # fmt: skip
    return out


def check_alike(sampling: Any, config: Any) -> None:
    """Raise InputError unless people are asked about what PPO will be scored on."""
    for name in ("response_length", "stop_token", "truncate_token", "truncate_after"):
        one, other = getattr(sampling, name), getattr(config, name)
        if one != other:
            raise InputError(f"{name}: {one!r} in sample_config, but {other!r} in ppo_config", name)


# Samples


def draw_prompts(prompts: list[Row], count: int, folder: Path, batch: int) -> list[Row]:
    """The next ``count`` prompts in turn, behind those of all earlier batches and rounds."""
    here = f"{folder.name}/prompts-{batch:02d}.jsonl"
    files = folder.parent.glob("round-*/prompts-*.jsonl")
    earlier = [file for file in files if f"{file.parent.name}/{file.name}" < here]
    used = sum(1 for file in earlier for _ in read_jsonl(file))
    return [prompts[(used + i) % len(prompts)] for i in range(count)]


def with_sides(policy: list[Row], reference: Iterable[Row]) -> list[Row]:
    """The policy's rows, those of the reference's prompts made into validation items.

    Such a row has the reference's two completions, the policy's first two, and ``sides``, which
    says where each came from and is never shown.
    """
    waiting: dict[str, list[list[str]]] = {}
    for row in reference:
        waiting.setdefault(json.dumps(row["prompt"]), []).append(row["completions"])
    rows = []
    for row in policy:
        theirs = waiting.get(json.dumps(row["prompt"]))
        if theirs:
            both = theirs.pop(0)[:2] + row["completions"][:2]
            row = row | {"completions": both, "sides": [REFERENCE] * 2 + [POLICY] * 2}
        rows.append(row)
    return rows


def adapter_digest(folder: Path | None) -> str | None:
    """The first 16 digits of the SHA-256 of an adapter's weights; None for none."""
    if folder is None:
        return None
    return hashlib.sha256((folder / "adapter_model.safetensors").read_bytes()).hexdigest()[:16]


# Labels


def usable_picks(store: Store, validation: bool) -> list[Row]:
    """All picks in the store that train the reward model: validation items', if they join."""
    return [row for row in store.picks() if validation or "sides" not in row]


def unanswered(store: Store, number: int) -> int:
    """Validation items of this round of which nobody has said anything yet."""
    return store.db.execute(
        "SELECT count(*) FROM items i WHERE json_extract(extra, '$.source.round') = ? AND "
        "json_extract(extra, '$.sides') IS NOT NULL AND NOT EXISTS "
        "(SELECT 1 FROM labels l WHERE l.item = i.id)", (number,),
    ).fetchone()[0]  # fmt: skip


def nobody_answered(store: Store) -> bool:
    """Whether there is an item of which nobody has said anything, on somebody's screen or not."""
    query = (
        "SELECT 1 FROM items i WHERE gold IS NULL AND NOT EXISTS "
        "(SELECT 1 FROM labels l WHERE l.item = i.id AND l.turn = 0) LIMIT 1"
    )
    return store.db.execute(query).fetchone() is not None


def items_for(store: Store, missing: int, picks: int) -> int:
    """How many items bring so many picks, by the share of labels so far that were picks."""
    said = store.db.execute("SELECT count(*) FROM labels WHERE turn = 0").fetchone()[0]
    return math.ceil(missing * max(1.0, min(5.0, said / max(1, picks))))


def label_until(
    store: Store,
    number: int,
    wanted: int,
    validation: bool,
    labeller: ScriptedLabeller | None,
    more: Callable[[int], None],
    check: Callable[[], None],
    poll: float = 5.0,
) -> list[Row]:
    """Label until there are ``wanted`` picks and no validation item of the round is left.

    What is said depends on the store alone, so it may be killed and called again.

    Args:
        store: with the round's items.
        number: of the round.
        wanted: picks in all.
        validation: whether those on validation items count.
        labeller: a script, or None to wait for people.
        more: called with a number of items, brings so many new ones into the store.
        check: called now and then; raises to end the wait.
        poll: seconds between looks at the store while people label.

    Returns:
        All usable picks.
    """
    told = -1
    while True:
        picks = usable_picks(store, validation)
        missing, open_items = wanted - len(picks), unanswered(store, number)
        if missing <= 0 and not open_items:
            return picks
        check()
        if labeller is not None:
            none_left = not labeller.work(store, max(missing, 1), progress=False).items
            if none_left and missing <= 0:  # what is open, others hold
                return picks
        else:
            none_left = not nobody_answered(store)
            if told != len(picks):
                told = len(picks)
                print(f"waiting for people: {told} of {wanted} picks, {open_items} validation "
                      "items to go", flush=True)  # fmt: skip
        if none_left and missing > 0:
            more(math.ceil(1.1 * items_for(store, missing, len(picks))) + 2)
        elif labeller is None:
            time.sleep(poll)


def _is_match(row: Row) -> bool:
    """Whether this is a validation item of ours, not a row from elsewhere with such a field."""
    sides, source = row.get("sides"), row.get("source")
    known = isinstance(sides, list) and row["best"] < len(sides)
    return known and isinstance(source, dict) and "round" in source


def win_rate(picks: Iterable[Row], number: int | None = None) -> Row:
    """How often people picked the policy's side over the reference's, with Wilson's interval.

    Args:
        picks: those with ``sides`` count.
        number: only of this round; None for all.
    """
    sides = [
        row["sides"][row["best"]]
        for row in picks
        if _is_match(row) and number in (None, row["source"]["round"])
    ]
    wins, trials = sides.count(POLICY), len(sides)
    low, high = wilson_interval(wins, trials)
    rate = wins / trials if trials else None
    return {"wins": wins, "trials": trials, "rate": rate, "low": low, "high": high}


# The record


def scores_of(log: list[Row], first: int, last: int) -> Row:
    """What PPO's log says of updates first to last: the score's rise, the KL.

    Start and end are means over the first and the last quarter of these updates.
    """
    rows = [row for row in log if first <= row["update"] <= last]
    rows = [row for row in rows if row["objective/scores"] is not None]
    if not rows:
        return {}
    quarter = max(1, len(rows) // 4)

    def mean(part: list[Row], name: str) -> float:
        return math.fsum(row[name] for row in part) / len(part)

    return {
        "proxy_start": mean(rows[:quarter], "objective/scores"),
        "proxy_end": mean(rows[-quarter:], "objective/scores"),
        "kl": mean(rows[-quarter:], "objective/kl"),
        "kl_coef": rows[-1]["objective/kl_coef"],
    }


def alarm_of(before: Row | None, proxy: Row, now: Row) -> str | None:
    """Why people and the reward model seem to disagree, or None.

    The rule: over a round the proxy score rose, and the upper end of the new win rate's 95 %
    interval lies below the previous estimate (0.5 at the start, where policy is reference). With
    few validation items only a large fall is seen.

    Args:
        before: the previous ``win_rate``; None, or one without trials, for 0.5.
        proxy: of the round between (``scores_of``).
        now: the win rate after it.
    """
    previous = 0.5 if before is None or before["rate"] is None else before["rate"]
    if not proxy or not now["trials"] or proxy["proxy_end"] <= proxy["proxy_start"]:
        return None
    if now["high"] >= previous:
        return None
    return (
        f"the reward model's score rose from {proxy['proxy_start']:.2f} to "
        f"{proxy['proxy_end']:.2f}, but people pick the policy over the reference in "
        f"{now['rate']:.0%} of {now['trials']} [{now['low']:.0%}, {now['high']:.0%}], "
        f"after {previous:.0%} before"
    )


@dataclass
class Loop:
    """The rounds, one after another; a phase leaves a file, and is passed over if that is there.

    Attributes:
        args: of the loop.
        plan: what is due when (``OnlineArguments.plan``).
        stage: runs the recipe of that name ("sample", "reward", "ppo") with these words.
        store: of items and labels.
        labeller: a script, or None to wait for people.
        prompts: rows of ``prompt`` (or ``text``), gone through in turn.
        completions: K.
        source: what the items' ``source`` says in every round.
    """

    args: OnlineArguments
    plan: Plan
    stage: Callable[[str, list[str]], Any]
    store: Store
    labeller: ScriptedLabeller | None
    prompts: list[Row]
    completions: int
    source: Row
    started: float = field(default_factory=time.monotonic)

    @property
    def out(self) -> Path:
        """The folder of it all."""
        return Path(self.args.output_dir)

    def run(self) -> list[Row]:
        """All rounds, and a last look at the policy by validation items alone; ``rounds.jsonl``.

        Raises:
            LoopEnded: there is a file STOP, or an alarm with ``on_alarm`` "stop".
            InputError: samples that nobody can tell apart.
        """
        for number in range(len(self.plan.stops) + 1):
            self.sample(number)
            self.label(number)
            if not (self.folder(number) / "reward" / "run.json").is_file():  # not yet gone past it
                self.heed(self.report()[number]["alarm"])
            if number < len(self.plan.stops):
                self.train_reward(number)
                self.tune(number)
            print(summary(self.report()[number]))
        return self.report()

    def sample(self, number: int) -> None:
        """Phase 1: as many items as should bring the picks that are missing."""
        picks = len(usable_picks(self.store, self.args.train_on_validation))
        last = number == len(self.plan.stops)
        missing = 0 if last else max(0, self.plan.wanted[number] - picks)
        share = self.args.validation / self.args.rounds
        sides = math.ceil(share * self.args.total_labels) if number else 0
        count = math.ceil(items_for(self.store, missing, picks) * (1 + self.args.spare))
        count = max(count, sides) if self.args.train_on_validation else count + sides
        self.sample_batch(number, 0, count, sides)

    def label(self, number: int) -> None:
        """Phase 2: picks, from the store, until there are enough."""
        folder = self.folder(number)
        if (folder / "comparisons.jsonl").is_file():
            return
        for path in self.batches(number):
            self.store.add_items(row for _, row in read_jsonl(path))
        wanted = 0 if number == len(self.plan.stops) else self.plan.wanted[number]
        self.say(number, f"label until there are {wanted} picks" if wanted else "label")

        def more(count: int) -> None:
            batch = len(self.batches(number))
            if batch == MOST_BATCHES:
                raise InputError(
                    f"{self.store.path}: {batch} batches of samples and still too few picks of "
                    f"{wanted} (does the labeller find them all alike?)"
                )
            path = self.sample_batch(number, batch, count, 0)
            self.store.add_items(row for _, row in read_jsonl(path))

        picks = label_until(
            self.store, number, wanted, self.args.train_on_validation, self.labeller, more,
            self.check, self.args.poll_seconds,
        )  # fmt: skip
        if self.labeller is not None and (doubt := self.labeller.picker.doubt()):
            print(f"warning: {doubt}", file=sys.stderr, flush=True)
        rates = {"labels": len(picks), "win_rate": win_rate(self.store.picks(), number)}
        write_json(folder / "validation.json", rates)
        write_jsonl(folder / "comparisons.jsonl", picks)

    def train_reward(self, number: int) -> None:
        """Phase 3: the reward model, from the base, on all picks."""
        folder = self.folder(number)
        if (folder / "reward" / "run.json").is_file():
            return
        shutil.rmtree(folder / "reward", ignore_errors=True)  # of one that was killed
        self.say(number, "train the reward model")
        self.stage("reward", ["--comparisons", str(folder / "comparisons.jsonl"),
                              "--output_dir", str(folder / "reward")])  # fmt: skip

    def tune(self, number: int) -> None:
        """Phase 4: PPO goes on against it."""
        folder, until = self.folder(number), self.plan.stops[number]
        if (folder / "ppo.json").is_file():
            return
        self.say(number, f"PPO up to update {until} of {self.plan.stops[-1]}")
        self.stage("ppo", [
            "--reward_adapter", str(folder / "reward" / "adapter"), "--output_dir",
            str(self.out / "ppo"), "--resume", "auto", "--online", "true",
            "--stop_at_update", str(until),
            *(["--allow_untrusted_reward", "true"] if self.args.allow_untrusted_reward else []),
        ])  # fmt: skip
        policy = adapter_digest(self.out / "ppo" / "adapters" / POLICY)
        write_json(folder / "ppo.json", {"update": until, "policy": policy})

    def sample_batch(self, number: int, batch: int, count: int, sides: int) -> Path:
        """A file of items to be labelled, the first ``sides`` prompts' for validation."""
        folder = self.folder(number)
        path = folder / f"samples-{batch:02d}.jsonl"
        if path.is_file():
            return path
        chosen_path = folder / f"prompts-{batch:02d}.jsonl"
        if not chosen_path.is_file():
            write_jsonl(chosen_path, draw_prompts(self.prompts, count, folder, batch))
        chosen = [row for _, row in read_jsonl(chosen_path)]
        self.say(number, f"sample {len(chosen)} prompts, {sides} of them for validation")
        adapter = self.out / "ppo" / "adapters" / POLICY if number else None
        seed = (self.args.seed + 1000 * number + 2 * batch) % 2**32
        k = 2 if number == len(self.plan.stops) else self.completions
        rows = self._completions(chosen, k, adapter, seed, folder)
        reference = self._completions(chosen[:sides], 2, None, seed + 1, folder)
        update = self.plan.stops[number - 1] if number else 0
        source: Row = {"round": number, "update": update, "seed": seed} | self.source
        if adapter is not None:
            source["adapter"] = adapter_digest(adapter)
        write_jsonl(path, [row | {"source": source} for row in with_sides(rows, reference)])
        return path

    def _completions(
        self, prompts: list[Row], count: int, adapter: Path | None, seed: int, folder: Path
    ) -> list[Row]:
        if not prompts:
            return []
        asked, answered = folder / ".asked.jsonl", folder / ".answered.jsonl"
        write_jsonl(asked, prompts)
        self.stage("sample", [
            "--prompts", str(asked), "--output", str(answered), "--limit", str(len(prompts)),
            "--completions", str(count), "--seed", str(seed),
            *([] if adapter is None else ["--adapter", str(adapter)]),
        ])  # fmt: skip
        rows = [row for _, row in read_jsonl(answered)]
        asked.unlink()
        answered.unlink()
        return rows

    def report(self) -> list[Row]:
        """``rounds.jsonl``, made anew from what the phases left."""
        path = self.out / "ppo" / "log.jsonl"
        torn: list[str] = []  # a last line, where PPO was killed
        log = [row for _, row in read_jsonl(path, on_bad=torn.append)] if path.is_file() else []
        rows: list[Row] = []
        before: Row | None = None
        for number in range(len(self.plan.stops) + 1):
            folder = self.folder(number)
            if not (folder / "comparisons.jsonl").is_file():
                break
            found = read_object(folder / "validation.json", "validation")
            first = self.plan.stops[number - 1] if number else 0
            row: Row = {
                "round": number,
                "update": first,
                "episodes": first * self.plan.batch_size,
            } | found
            row["alarm"] = alarm_of(before, rows[-1], found["win_rate"]) if rows else None
            before = found["win_rate"] if found["win_rate"]["trials"] else before
            if number < len(self.plan.stops):
                row["labels_wanted"] = self.plan.wanted[number]
            if (folder / "reward" / "run.json").is_file():
                metrics = read_object(folder / "reward" / "run.json", "run")["metrics"]
                names = ("accuracy", "accuracy_low", "accuracy_high")
                row |= {f"reward_{name}": metrics[name] for name in names}
                row["reward_verdict"] = metrics.get("verdict")
            if (folder / "ppo.json").is_file():
                row |= scores_of(log, first + 1, self.plan.stops[number])
                row |= read_object(folder / "ppo.json", "ppo")
                row["update"] = first
            rows.append(row)
        write_jsonl(self.out / "rounds.jsonl", rows)
        return rows

    def heed(self, alarm: str | None) -> None:
        """Say an alarm loudly; end the loop if that was asked for."""
        if alarm is None:
            return
        print(f"\n{'!' * 78}\nALARM: {alarm}\n{'!' * 78}", file=sys.stderr, flush=True)
        if self.args.on_alarm == "stop":
            raise LoopEnded(f"{alarm} (--on_alarm warn goes on)", 1)

    def check(self) -> None:
        """Raise LoopEnded if there is a file STOP."""
        if (self.out / "STOP").exists():
            raise LoopEnded(f"there is a file {self.out / 'STOP'} (delete it to go on)", 0)

    def folder(self, number: int) -> Path:
        """The round's."""
        return self.out / f"round-{number:03d}"

    def batches(self, number: int) -> list[Path]:
        """The round's files of items, in order."""
        return sorted(self.folder(number).glob("samples-*.jsonl"))

    def say(self, number: int, what: str) -> None:
        """A phase starts, unless it shall not."""
        self.check()
        seconds = time.monotonic() - self.started
        where = (
            "the end"
            if number == len(self.plan.stops)
            else f"round {number + 1}/{len(self.plan.stops)}"
        )
        print(f"\n[{where}] {what} ({seconds:.0f} s so far)", flush=True)


def summary(row: Row) -> str:
    """A row of ``rounds.jsonl``, for people."""
    parts = [f"round {row['round']}: {row['labels']} labels"]
    if row["win_rate"]["trials"]:
        w = row["win_rate"]
        interval = f"[{w['low']:.0%}, {w['high']:.0%}]"
        parts.append(f"policy preferred in {w['rate']:.0%} of {w['trials']} {interval}")
    if "reward_accuracy" in row:
        verdict = row.get("reward_verdict")
        doubt = "" if verdict in ("yes", None) else f" (better than chance: {verdict})"
        parts.append(f"reward accuracy {row['reward_accuracy']:.1%}{doubt}")
    if "proxy_end" in row:
        parts.append(f"score {row['proxy_start']:.2f} -> {row['proxy_end']:.2f}")
        parts.append(f"KL {row['kl']:.2f}")
    return "; ".join(parts) + ("; ALARM" if row["alarm"] else "")
