"""A loop goes on under its own settings alone, and one at a time."""

import fcntl
import json
from pathlib import Path
from typing import Any

import pytest

from toolkit.data.files import read_jsonl, write_json, write_jsonl
from toolkit.data.locks import letting_go
from toolkit.errors import InputError
from toolkit.evaluation.ratings import contests_between_models, rate
from toolkit.labeling.labelers import ScriptedLabeler
from toolkit.labeling.store import Store
from toolkit.pipeline.arguments import OnlineArguments
from toolkit.pipeline.online import Loop, check_alike, claim
from toolkit.scoring.functions import as_scorer
from toolkit.scoring.picker import ScorePicker


def test_a_loop_goes_on_only_under_its_own_settings(tmp_path: Path) -> None:
    args = OnlineArguments(output_dir=str(tmp_path / "o"))
    assert claim(args, {"ppo": {"lam": 0.9}}) == claim(args, {"ppo": {"lam": 0.9}})
    args.on_alarm = "stop"
    claim(args, {"ppo": {"lam": 0.9}})
    args.noise = 0.1
    with pytest.raises(InputError, match="noise was 0.0 and is 0.1"):
        claim(args, {"ppo": {"lam": 0.9}})
    (tmp_path / "o" / "online.json").unlink()
    (tmp_path / "o" / "mine.txt").write_text(json.dumps(1))
    with pytest.raises(InputError, match="exists"):
        claim(args, {})


def test_a_loop_of_before_goes_on_and_one_that_starts_from_an_adapter_knows_its_weights(
    tmp_path: Path,
) -> None:
    """Flags that are off are not recorded; of an adapter the weights are, and not the path."""
    out = str(tmp_path / "o")
    claim(OnlineArguments(output_dir=out), {})
    held = json.loads((tmp_path / "o" / "online.json").read_text())
    assert not {"policy_adapter", "restart_policy", "snapshots"} & held.keys()
    for more in ({"restart_policy": True}, {"snapshots": 2}):
        with pytest.raises(InputError, match=f"{next(iter(more))} was None and is"):
            claim(OnlineArguments(output_dir=out, **more), {})

    for name, weights in (("a", b"1"), ("moved", b"1"), ("b", b"2")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "adapter_model.safetensors").write_bytes(weights)
    other = str(tmp_path / "p")
    claim(OnlineArguments(output_dir=other, policy_adapter=str(tmp_path / "a")), {})
    claim(OnlineArguments(output_dir=other, policy_adapter=str(tmp_path / "moved")), {})
    with pytest.raises(InputError, match="policy_adapter was '6b86b273ff34fce1' and is"):
        claim(OnlineArguments(output_dir=other, policy_adapter=str(tmp_path / "b")), {})


def lengths(prompts: list[str], completions: list[str]) -> list[float]:
    return [float(len(text)) for text in completions]


class Stages:
    """Stands for the recipes: writes what they would leave, and records what they were asked.

    A completion names its writer, and later writers write more.
    """

    def __init__(self) -> None:
        self.asked: list[tuple[str, dict[str, str]]] = []
        self.policies = 0

    def __call__(self, name: str, words: list[str]) -> None:
        told = {k.removeprefix("--"): v for k, v in zip(words[::2], words[1::2], strict=True)}
        self.asked.append((name, told))
        if name == "sample":
            self._sample(told)
        elif name == "reward":
            figures = dict.fromkeys(("accuracy", "accuracy_low", "accuracy_high"), 0.5)
            write_json(Path(told["output_dir"]) / "run.json", {"metrics": figures})
        else:
            self.policies += 1
            folder = Path(told["output_dir"]) / "adapters" / "policy"
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "adapter_model.safetensors").write_text("x" * self.policies)
            figures = {f"objective/{name}": 1.0 for name in ("kl", "kl_coef")}
            updates = range(1, int(told.get("stop_at_update", 6)) + 1)
            write_jsonl(
                Path(told["output_dir"]) / "log.jsonl",
                [
                    {"update": n, "objective/scores": 10.0 * self.policies + n} | figures
                    for n in updates
                ],
            )

    @staticmethod
    def _sample(told: dict[str, str]) -> None:
        writer = 0
        if "adapter" in told:
            writer = len((Path(told["adapter"]) / "adapter_model.safetensors").read_bytes())
        rows = [
            row
            | {
                "completions": [
                    f"{writer} {told['seed']} {k} " + "z" * (3 * writer + (i + k) % 5)
                    for k in range(int(told["completions"]))
                ]
            }
            for i, (_, row) in enumerate(read_jsonl(told["prompts"]))
        ]
        write_jsonl(told["output"], rows)

    def told(self, name: str) -> list[dict[str, str]]:
        return [told for asked, told in self.asked if asked == name]


def run_loop(out: Path, **kwargs: Any) -> tuple[Stages, Loop]:
    args = OnlineArguments(
        output_dir=str(out), rounds=3, initial_labels=12, total_labels=36, **kwargs
    )
    out.mkdir()
    stages = Stages()
    with Store(out / "labels.sqlite") as store:
        labeler = ScriptedLabeler("script", ScorePicker(as_scorer(lengths)), ties="random")
        prompts = [{"prompt": f"Prompt {i}"} for i in range(200)]
        loop = Loop(args, args.plan(384, 64), stages, store, labeler, prompts, 4, {})
        loop.run()
    return stages, loop


def test_one_run_goes_on_through_all_rounds_unless_each_begins_anew(tmp_path: Path) -> None:
    stages, loop = run_loop(tmp_path / "on")
    assert {told["folds"] for told in stages.told("reward")} == {"0"}  # no time for more
    ppo = stages.told("ppo")
    assert [(told["stop_at_update"], told["online"]) for told in ppo] == [
        ("2", "true"), ("4", "true"), ("6", "true"),
    ]  # fmt: skip
    assert {told["output_dir"] for told in ppo} == {str(tmp_path / "on" / "ppo")}
    scored = [(row.get("proxy_start"), row.get("proxy_end")) for row in loop.report()]
    assert scored == [(31.0, 32.0), (33.0, 34.0), (35.0, 36.0), (None, None)]
    assert not any({"policy_adapter", "start_adapter"} & told.keys() for _, told in stages.asked)

    stages, loop = run_loop(tmp_path / "anew", restart_policy=True)
    ppo = stages.told("ppo")
    assert [told["output_dir"] for told in ppo] == [
        str(tmp_path / "anew" / f"round-00{n}" / "ppo") for n in range(3)
    ]
    assert not any({"stop_at_update", "online"} & told.keys() for told in ppo)
    assert loop.plan.stops == [6, 12, 18]  # each round makes all six updates
    assert [row["episodes"] for row in loop.report()] == [0, 384, 768, 1152]
    scored = [(row.get("proxy_start"), row.get("proxy_end")) for row in loop.report()]
    assert scored == [(11.0, 16.0), (21.0, 26.0), (31.0, 36.0), (None, None)]
    sampled = [told.get("adapter") for told in stages.told("sample")]
    assert sampled[-2:] == [str(tmp_path / "anew/round-002/ppo/adapters/policy"), None]


def test_everything_starts_from_the_adapter_that_is_named(tmp_path: Path) -> None:
    start = tmp_path / "sft"
    start.mkdir()
    (start / "adapter_model.safetensors").write_text("x")
    stages, _ = run_loop(tmp_path / "o", policy_adapter=str(start))
    assert {told["start_adapter"] for told in stages.told("reward")} == {str(start)}
    assert {told["policy_adapter"] for told in stages.told("ppo")} == {str(start)}
    first, *_, reference = stages.told("sample")
    assert first["adapter"] == reference["adapter"] == str(start)  # also as validation's reference


@pytest.mark.parametrize("restart", [False, True])
def test_samples_come_from_the_newest_policies_and_ratings_find_the_order(
    tmp_path: Path, restart: bool
) -> None:
    _, loop = run_loop(tmp_path / "o", snapshots=3, restart_policy=restart, validation=0.2)
    rounds = [
        [row for _, row in read_jsonl(tmp_path / "o" / f"round-00{n}" / "samples-00.jsonl")]
        for n in range(4)
    ]
    mixtures = [[row["models"] for row in rows if "sides" not in row] for rows in rounds]
    assert mixtures[0][0] == ["start"] * 4
    assert mixtures[1][0] == ["round-000"] * 2 + ["start"] * 2
    assert mixtures[2][0] == ["round-001"] * 2 + ["round-000", "start"]
    for rows in rounds:
        for row in rows:  # each completion begins with the number of its writer
            wrote = ["start", "round-000", "round-001", "round-002"]
            assert [wrote[int(text[0])] for text in row["completions"]] == row["models"]
    sides = [row for rows in rounds[1:] for row in rows if "sides" in row]
    assert {row["models"][0] for row in sides} == {"start"} and len(sides) > 3
    assert rounds[3][0]["models"] == ["start"] * 2 + ["round-002"] * 2

    picked = read_jsonl(tmp_path / "o" / "round-003" / "comparisons.jsonl")
    contests = contests_between_models((str(place), row) for place, row in picked)
    order = [rating.name for rating in rate(contests, "plackett_luce", resamples=20)]
    assert order.index("round-001") < order.index("round-000") < order.index("start")


def test_people_judge_what_ppo_is_scored_on() -> None:
    class One:
        response_length, stop_token, truncate_after = 24, None, 16
        truncate_token: str | None = "."

    class Other(One):
        truncate_token = None

    check_alike(One, One)
    with pytest.raises(InputError, match="truncate_token: '.' in sample_config, but None in ppo"):
        check_alike(One, Other)


def test_a_loop_that_others_run_is_refused(tmp_path: Path) -> None:
    args = OnlineArguments(output_dir=str(tmp_path))
    with letting_go():
        claim(args, {})  # begun, and to be gone on with
    with open(tmp_path / ".lock", "w") as held:  # as another process holds it
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(InputError, match="is being written by another run"):
            claim(args, {})
