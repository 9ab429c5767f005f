"""Run the online loop round by round; a phase that is done is not repeated.

    round r: sample the policies -> label, up to l(n) picks -> retrain the reward model -> PPO
    OUT/round-000/prompts-00.jsonl   the prompts of this round
                  samples-00.jsonl   items to label; -01 and so on if ties left too few picks
                  comparisons.jsonl  all picks so far, the reward model's data
                  reward/, ppo.json  the results of training
    OUT/round-000/policy             its policy, if later rounds sample from it (snapshots)
    OUT/ppo/                         one PPO run over all rounds; with restart_policy each round has
                                     its own in OUT/round-000/ppo/
    OUT/rounds.jsonl                 one row per round

Some items are for validation: two samples of the reference and two of the policy. The picks show
whether people like what the policy has learned, which the reward model's own score cannot show.
arXiv 1909.08593 collected labels online. Its code was never published, so this follows accounts of
it, in rounds, which its authors recommend.
"""

import dataclasses
import json
import math
import shutil
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from toolkit.data.files import atomic_directory, read_jsonl, read_object, write_json, write_jsonl
from toolkit.data.outputs import claim_output, hold_folder
from toolkit.data.records import Row
from toolkit.errors import InputError
from toolkit.labeling.labelers import ScriptedLabeler
from toolkit.labeling.store import Store
from toolkit.models.toolkit_json import adapter_digest
from toolkit.pipeline.alarm import alarm_of, scores_of, win_rate
from toolkit.pipeline.arguments import OnlineArguments
from toolkit.pipeline.picks import items_for, label_until, usable_picks
from toolkit.pipeline.samples import POLICY, REFERENCE, draw_prompts, mixed, with_sides
from toolkit.pipeline.schedule import Plan
from toolkit.pipeline.snapshots import elo_above, elo_sentence
from toolkit.terminal import say, wrapped

MOST_BATCHES = 20  # batches of samples in one round; more means that something is wrong


class LoopEnded(Exception):
    """The loop ended as intended; ``code`` is the exit code: 0 if requested, 1 for an alarm."""

    def __init__(self, message: str, code: int) -> None:
        super().__init__(message)
        self.code = code


# Flags that may change when a loop continues. Of the policy adapter its weights count.
FREE = {
    "output_dir",
    "wait",
    "poll_seconds",
    "on_alarm",
    "allow_untrusted_reward",
    "policy_adapter",
}
# Flags that are recorded only where they were changed, because older loops have no record of them.
NOTED_IF_CHANGED: Row = {"restart_policy": False, "snapshots": 1}
START = "start"  # the name of what the policy started from, in ``models``


def claim(args: OnlineArguments, settings: Row) -> Path:
    """Claim the loop's folder: a new one, or that of a loop with the same settings.

    Raises:
        InputError: the folder holds something else, a loop with other settings, or a running loop.
    """
    out = Path(args.output_dir)
    own = {k: v for k, v in dataclasses.asdict(args).items() if k not in FREE}
    own = {k: v for k, v in own.items() if k not in NOTED_IF_CHANGED or v != NOTED_IF_CHANGED[k]}
    if args.policy_adapter is not None:
        own["policy_adapter"] = adapter_digest(args.policy_adapter)
    settings = json.loads(json.dumps(own | settings))  # in the form that reading gives

    hold_folder(out, "output_dir")
    if not (out / "online.json").is_file():
        claim_output(out, False, "output_dir")
        write_json(out / "online.json", settings)

    then = read_object(out / "online.json", "--output_dir")
    changes = [
        f"{name} was {then.get(name)!r} and is {settings.get(name)!r}"
        for name in sorted(set(then) | set(settings))
        if then.get(name) != settings.get(name)
    ]
    if changes:
        raise InputError(
            f"{out}: the loop began with other settings: {changes[0]} (use the old settings, or "
            "another output_dir)",
            details=changes[1:],
        )
    return out


class Completing(Protocol):
    """The settings by which completions are sampled and end, in sampling or in PPO."""

    response_length: int
    stop_token: str | None
    truncate_token: str | None
    truncate_after: int


def check_alike(sampling: Completing, config: Completing) -> None:
    """Raise InputError unless sampling and PPO make completions in the same way."""
    for name in ("response_length", "stop_token", "truncate_token", "truncate_after"):
        one, other = getattr(sampling, name), getattr(config, name)
        if one != other:
            raise InputError(f"{name}: {one!r} in sample_config, but {other!r} in ppo_config", name)


@dataclass
class Loop:
    """Runs the rounds; each phase leaves a file, and is skipped if the file exists.

    Attributes:
        args: the loop's flags.
        plan: the plan of updates and labels (``OnlineArguments.plan``).
        stage: runs a recipe ("sample", "reward", "ppo") with these words.
        store: holds items and labels.
        labeler: a scripted labeler, or None to wait for people.
        prompts: rows of ``prompt`` (or ``text``), used in turn.
        completions: K.
        source: the items' ``source`` in every round.
        folds: of a cross-validation of each round's reward model; 0 for none, since a round would
            take several times as long.
    """

    args: OnlineArguments
    plan: Plan
    stage: Callable[[str, list[str]], object]
    store: Store
    labeler: ScriptedLabeler | None
    prompts: list[Row]
    completions: int
    source: Row
    folds: int = 0
    started: float = field(default_factory=time.monotonic)

    @property
    def out(self) -> Path:
        """The loop's folder."""
        return Path(self.args.output_dir)

    @property
    def start(self) -> Path | None:
        """The adapter that everything starts from; None for the base."""
        named = self.args.policy_adapter
        return None if named is None else Path(named)

    def ppo_folder(self, number: int) -> Path:
        """The folder of the PPO run in a round."""
        return (self.folder(number) if self.args.restart_policy else self.out) / "ppo"

    def policy(self, rounds: int) -> Path | None:
        """The policy after so many rounds: an adapter's folder, or None for the base."""
        if not rounds:
            return self.start
        kept = self.folder(rounds - 1) / POLICY
        return kept if kept.is_dir() else self.ppo_folder(rounds - 1) / "adapters" / POLICY

    def run(self) -> list[Row]:
        """Run all rounds and a last validation of the policy, and return ``rounds.jsonl``.

        Raises:
            LoopEnded: there is a file STOP, or an alarm with ``on_alarm`` "stop".
            InputError: the samples give too few picks.
        """
        for number in range(len(self.plan.stops) + 1):
            self.sample(number)
            self.label(number)
            if not (
                self.folder(number) / "reward" / "run.json"
            ).is_file():  # this phase is not done
                self.heed(self.report()[number]["alarm"])
            if number < len(self.plan.stops):
                self.train_reward(number)
                self.tune(number)
            say(summary(self.report()[number]))
        return self.report()

    def sample(self, number: int) -> None:
        """Phase 1: sample enough items for the missing picks."""
        # At the end only validation items are needed, since no reward model is trained any more.
        picks = len(usable_picks(self.store, self.args.train_on_validation))
        last = number == len(self.plan.stops)
        missing = 0 if last else max(0, self.plan.wanted[number] - picks)

        # Validation at a constant rate; before the first PPO the policy is the reference.
        share = self.args.validation / self.args.rounds
        sides = math.ceil(share * self.args.total_labels) if number else 0

        count = math.ceil(items_for(self.store, missing, picks) * (1 + self.args.spare))
        count = max(count, sides) if self.args.train_on_validation else count + sides
        self.sample_batch(number, 0, count, sides)

    def label(self, number: int) -> None:
        """Phase 2: label until there are enough picks."""
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
                    f"{self.store.path}: {batch} batches of samples gave fewer than {wanted} picks "
                    "(check whether the labeler calls all of them equal)"
                )
            path = self.sample_batch(number, batch, count, 0)
            self.store.add_items(row for _, row in read_jsonl(path))

        picks = label_until(
            self.store,
            number,
            wanted,
            self.args.train_on_validation,
            self.labeler,
            more,
            self.check,
            self.args.poll_seconds,
        )
        if self.labeler is not None and (doubt := self.labeler.picker.doubt()):
            print(f"warning: {doubt}", file=sys.stderr, flush=True)

        # Write the comparisons last, because that file marks the phase as done.
        rates = {"labels": len(picks), "win_rate": win_rate(self.store.picks(), number)}
        write_json(folder / "validation.json", rates)
        write_jsonl(folder / "comparisons.jsonl", picks)

    def train_reward(self, number: int) -> None:
        """Phase 3: train a new reward model on all picks."""
        folder = self.folder(number)
        if (folder / "reward" / "run.json").is_file():
            return
        shutil.rmtree(folder / "reward", ignore_errors=True)  # left by a killed run
        self.say(number, "train the reward model")
        self._run_stage(
            "reward",
            comparisons=folder / "comparisons.jsonl",
            output_dir=folder / "reward",
            folds=self.folds,
            **self._flag("start_adapter", self.start),
        )

    def tune(self, number: int) -> None:
        """Phase 4: continue PPO against the new reward model, or begin it anew."""
        folder = self.folder(number)
        until = self.plan.stops[number]
        if (folder / "ppo.json").is_file():
            return
        self.say(number, f"PPO up to update {until} of {self.plan.stops[-1]}")
        goes_on: Row = {"online": "true", "stop_at_update": until}
        self._run_stage(
            "ppo",
            reward_adapter=folder / "reward" / "adapter",
            output_dir=self.ppo_folder(number),
            resume="auto",
            **({} if self.args.restart_policy else goes_on),
            **self._flag("policy_adapter", self.start),
            **({"allow_untrusted_reward": "true"} if self.args.allow_untrusted_reward else {}),
        )

        # The next round's PPO will overwrite this policy, which later rounds sample from.
        made = self.ppo_folder(number) / "adapters" / POLICY
        if self.args.snapshots > 1 and not self.args.restart_policy:
            with atomic_directory(folder / POLICY) as aside:
                shutil.copytree(made, aside, dirs_exist_ok=True)
        write_json(folder / "ppo.json", {"update": until, "policy": adapter_digest(made)})

    def sample_batch(self, number: int, batch: int, count: int, sides: int) -> Path:
        """Write a file of items to label; the first ``sides`` prompts are for validation."""
        folder = self.folder(number)
        path = folder / f"samples-{batch:02d}.jsonl"
        if path.is_file():
            return path

        # Write the prompts before sampling, so that a killed loop continues with the same ones.
        chosen_path = folder / f"prompts-{batch:02d}.jsonl"
        if not chosen_path.is_file():
            write_jsonl(chosen_path, draw_prompts(self.prompts, count, folder, batch))
        chosen = [row for _, row in read_jsonl(chosen_path)]
        self.say(number, f"sample {len(chosen)} prompts, {sides} of them for validation")

        adapter = self.policy(number)
        seed = (self.args.seed + 1000 * number + 2 * batch) % 2**32
        k = 2 if number == len(self.plan.stops) else self.completions
        several = self.args.snapshots > 1
        # With snapshots, only the validation items are the newest policy's alone.
        alone = chosen[:sides] if several else chosen
        rows = self._completions(alone, k, adapter, seed, folder)
        reference = self._completions(chosen[:sides], 2, self.start, seed + 1, folder)
        rows = with_sides(rows, reference)
        if several:
            names = {REFERENCE: START, POLICY: self._name(number)}
            rows = [
                row | {"models": [names[s] for s in row.get("sides", [POLICY] * k)]} for row in rows
            ]
            rows += self._mixture(number, chosen[sides:], seed, folder)

        update = self.plan.stops[number - 1] if number else 0
        source: Row = {"round": number, "update": update, "seed": seed} | self.source
        if adapter is not None:
            source["adapter"] = adapter_digest(adapter)
        write_jsonl(path, [row | {"source": source} for row in rows])
        return path

    def _mixture(self, number: int, prompts: list[Row], seed: int, folder: Path) -> list[Row]:
        """Sample rows whose completions come from the newest policies, the very newest first.

        Each gives as many as the others, and the newer ones what cannot be shared evenly.
        """
        count = min(self.args.snapshots, number + 1)
        least, more = divmod(self.completions, count)
        parts = []
        for place in range(count):
            wanted = least + (place < more)
            drawn = max(2, wanted)  # preftune sample writes no rows of one completion
            policy = self.policy(number - place)
            rows = self._completions(prompts, drawn, policy, (seed + 50 * place) % 2**32, folder)
            parts.append([row | {"completions": row["completions"][:wanted]} for row in rows])
        return mixed(parts, [self._name(number - place) for place in range(count)])

    @staticmethod
    def _name(rounds: int) -> str:
        """The name of the policy after so many rounds, in ``models``."""
        return f"round-{rounds - 1:03d}" if rounds else START

    @staticmethod
    def _flag(name: str, value: Path | None) -> Row:
        return {} if value is None else {name: value}

    def _completions(
        self, prompts: list[Row], count: int, adapter: Path | None, seed: int, folder: Path
    ) -> list[Row]:
        """Sample ``count`` completions of each prompt from an adapter, or from the base alone."""
        if not prompts:
            return []
        asked = folder / ".asked.jsonl"
        answered = folder / ".answered.jsonl"
        write_jsonl(asked, prompts)
        self._run_stage(
            "sample",
            prompts=asked,
            output=answered,
            limit=len(prompts),
            completions=count,
            seed=seed,
            **self._flag("adapter", adapter),
        )
        rows = [row for _, row in read_jsonl(answered)]
        asked.unlink()
        answered.unlink()
        return rows

    def _run_stage(self, name: str, **options: object) -> None:
        """Run a recipe with these options on its command line."""
        self.stage(name, [word for k, v in options.items() for word in (f"--{k}", str(v))])

    def report(self) -> list[Row]:
        """Write ``rounds.jsonl`` from the files that the phases left, and return its rows."""
        rows: list[Row] = []
        before: Row | None = None  # the last win rate that has trials
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
            # A policy that begins anew is the reference again, as it is before the first round.
            if found["win_rate"]["trials"] and not self.args.restart_policy:
                before = found["win_rate"]

            if self.args.snapshots > 1:
                picks = (pick for _, pick in read_jsonl(folder / "comparisons.jsonl"))
                row["elo"] = elo_above(picks, START)

            # The results of the later phases, if they are done.
            if number < len(self.plan.stops):
                row["labels_wanted"] = self.plan.wanted[number]
            if (folder / "reward" / "run.json").is_file():
                metrics = read_object(folder / "reward" / "run.json", "run")["metrics"]
                names = ("accuracy", "accuracy_low", "accuracy_high")
                row |= {f"reward_{name}": metrics[name] for name in names}
                row["reward_verdict"] = metrics.get("verdict")
            if (folder / "ppo.json").is_file():
                row |= self._scores(number, first)
                row |= read_object(folder / "ppo.json", "ppo")
                row["update"] = first
            rows.append(row)
        write_jsonl(self.out / "rounds.jsonl", rows)
        return rows

    def _scores(self, number: int, first: int) -> Row:
        """Return PPO's scores and KL in a round that begins after ``first`` updates in all."""
        path = self.ppo_folder(number) / "log.jsonl"
        torn: list[str] = []  # a cut last line, if PPO was killed
        log = [row for _, row in read_jsonl(path, on_bad=torn.append)] if path.is_file() else []
        before = first if self.args.restart_policy else 0  # which are in other rounds' logs
        return scores_of(log, first + 1 - before, self.plan.stops[number] - before)

    def heed(self, alarm: str | None) -> None:
        """Print an alarm; end the loop if ``on_alarm`` is "stop"."""
        if alarm is None:
            return
        loud = "\n".join(["!" * 78, wrapped(f"ALARM: {alarm}", 78), "!" * 78])
        print(f"\n{loud}", file=sys.stderr, flush=True)
        if self.args.on_alarm == "stop":
            raise LoopEnded(f"{alarm} (to continue, pass --on_alarm warn)", 1)

    def check(self) -> None:
        """Raise LoopEnded if there is a file STOP."""
        if (self.out / "STOP").exists():
            raise LoopEnded(f"there is a file {self.out / 'STOP'} (delete it to continue)", 0)

    def folder(self, number: int) -> Path:
        """Return the round's folder."""
        return self.out / f"round-{number:03d}"

    def batches(self, number: int) -> list[Path]:
        """Return the round's files of items, in order."""
        return sorted(self.folder(number).glob("samples-*.jsonl"))

    def say(self, number: int, what: str) -> None:
        """Check for a file STOP, then announce a phase."""
        self.check()
        seconds = time.monotonic() - self.started
        where = (
            "the end"
            if number == len(self.plan.stops)
            else f"round {number + 1}/{len(self.plan.stops)}"
        )
        print(f"\n[{where}] {what} ({seconds:.0f} s so far)", flush=True)


def summary(row: Row) -> str:
    """Return a readable line for a row of ``rounds.jsonl``."""
    parts = [f"round {row['round']}: {row['labels']} labels"]
    if row["win_rate"]["trials"]:
        w = row["win_rate"]
        interval = f"[{w['low']:.0%}, {w['high']:.0%}]"
        parts.append(f"policy preferred in {w['rate']:.0%} of {w['trials']} {interval}")
    if row.get("elo"):
        parts.append(elo_sentence(row["elo"]))
    if "reward_accuracy" in row:
        verdict = row.get("reward_verdict")
        doubt = "" if verdict in ("yes", None) else f" (better than chance: {verdict})"
        parts.append(f"reward accuracy {row['reward_accuracy']:.1%}{doubt}")
    if "proxy_end" in row:
        parts.append(f"score {row['proxy_start']:.2f} -> {row['proxy_end']:.2f}")
        parts.append(f"KL {row['kl']:.2f}")
    return "; ".join(parts) + ("; ALARM" if row["alarm"] else "")
