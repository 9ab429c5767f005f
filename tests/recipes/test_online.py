"""The online loop: rounds that build on each other, and end the same wherever they were killed."""

import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.models.conftest import saved
from toolkit.cli import call, recipe
from toolkit.data.files import read_jsonl, write_json, write_jsonl
from toolkit.errors import InputError
from toolkit.labeling.labelers import ScriptedLabeler
from toolkit.labeling.store import Store
from toolkit.models.adapters import lora_config
from toolkit.models.loading import load_base
from toolkit.models.roles import Roles
from toolkit.models.toolkit_json import adapter_digest
from toolkit.pipeline import online as online_loop
from toolkit.scoring.functions import Lexicon
from toolkit.scoring.picker import ScorePicker
from toolkit.training.ppo.trainer import PPOTrainer

online = recipe("online")
reward = recipe("reward")

Make = Callable[..., Any]
RULE = 'response_length: 12\ntruncate_token: "."\ntruncate_after: 4\n'
CONFIGS = {
    "sample": RULE,
    "reward": RULE + "eval_rows: 8\nnormalize_samples: 32\nuse_cpu: true\ndisable_tqdm: true\n"
    "check_reload: false\nper_device_train_batch_size: 8\nlearning_rate: 1.0e-3\n",
    "ppo": RULE + "total_episodes: 64\nper_device_train_batch_size: 16\nkl_target: 2\n"
    "kl_horizon: 160\nuse_cpu: true\nsave_steps: 1\nlimit: 64\ndisable_tqdm: true\n"
    "max_score_drop: 100\n",
}


def rows(path: Path) -> list[dict[str, Any]]:
    return [row for _, row in read_jsonl(path)]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory, root: Path) -> list[str]:
    """The words of a tiny loop: two rounds, 24 and then 39 labels, two updates each."""
    folder = tmp_path_factory.mktemp("configs")
    words = ["--rounds", "2", "--initial_labels", "24", "--total_labels", "44",
             "--precision", "fp32", "--model_name_or_path", str(root / "data/model")]  # fmt: skip
    for name, text in CONFIGS.items():
        prompts = "" if name == "reward" else f"prompts: {root / 'data/prompts.jsonl'}\n"
        (folder / f"{name}.yaml").write_text(text + prompts)
        words += [f"--{name}_config", str(folder / f"{name}.yaml")]
    return words


@pytest.fixture(scope="module")
def words(base: list[str], root: Path) -> list[str]:
    return [*base, "--lexicon", str(root / "data/lexicon.txt")]


@pytest.fixture(scope="module")
def whole(
    words: list[str],
    tmp_path_factory: pytest.TempPathFactory,
    followed: Callable[..., dict[str, Any]],
) -> Path:
    out = tmp_path_factory.mktemp("online") / "whole"
    found = followed(online.main, [*words, "--output_dir", str(out)])
    assert (found["recipe"], found["adapter"]) == ("evaluate", str(out / "ppo/adapters/policy"))
    assert found["reward_adapter"] == str(out / "round-001" / "reward" / "adapter")
    assert found["precision"] == "fp32" and found["response_length"] == 12
    return out


def test_each_round_labels_what_is_due_and_goes_on_with_one_run(whole: Path) -> None:
    record = rows(whole / "rounds.jsonl")
    assert [row["round"] for row in record] == [0, 1, 2]
    assert [row["labels_wanted"] for row in record[:2]] == [24, 39]
    for row in record[:2]:  # the last validation item may lie behind a few others
        assert row["labels_wanted"] <= row["labels"] <= row["labels_wanted"] + 5
    assert [row["episodes"] for row in record] == [0, 32, 64]
    log = rows(whole / "ppo" / "log.jsonl")
    assert [row["update"] for row in log] == [1, 2, 3, 4]
    assert log[0]["lr"] > log[1]["lr"] > log[2]["lr"] > log[3]["lr"] > 0  # one schedule
    assert log[2]["objective/kl_coef"] < log[1]["objective/kl_coef"]  # one controller
    digests = [row["reward"] for row in log]
    assert digests[0] == digests[1] != digests[2] == digests[3]


def test_a_rounds_worthless_reward_model_ends_the_loop_unless_it_is_allowed(
    whole: Path, words: list[str], tmp_path: Path
) -> None:
    out = tmp_path / "again"
    shutil.copytree(whole, out)
    shutil.rmtree(out / "round-002")  # as if the loop had been killed at the end of round 1
    (out / "round-001" / "ppo.json").unlink()
    chance = {
        "accuracy": 0.25,
        "accuracy_low": 0.19,
        "accuracy_high": 0.32,
        "p": 0.53,
        "chance": 0.25,
        "comparisons": 200,
    }
    write_json(out / "round-001" / "reward" / "adapter" / "metrics.json", chance)
    words = [*words, "--output_dir", str(out)]
    with pytest.raises(InputError, match=r"round-001/\S+: Cannot be distinguished from chance"):
        call(online.main, words)

    assert call(online.main, [*words, "--allow_untrusted_reward"]) == 0
    found = json.loads((out / "ppo" / "run.json").read_text())["reward_verdicts"]
    assert [row["allowed"] for row in found] == [False, False, True]  # two of the first loop
    record = rows(out / "rounds.jsonl")
    assert {row["reward_verdict"] for row in record[:2]} <= {"yes", "no", "not decided"}


def test_reward_models_are_trained_on_all_picks_so_far(whole: Path) -> None:
    first, second = (rows(whole / f"round-00{n}" / "comparisons.jsonl") for n in (0, 1))
    assert second[: len(first)] == first
    assert {row["source"]["round"] for row in second[len(first) :]} >= {1}
    for n, picks in ((0, first), (1, second)):
        run = json.loads((whole / f"round-00{n}" / "reward" / "run.json").read_text())
        assert run["data"]["rows"] == len(picks)


def test_items_say_where_they_came_from_and_are_the_present_policys(whole: Path) -> None:
    source = rows(whole / "round-000" / "samples-00.jsonl")[0]["source"]
    assert "adapter" not in source and source["update"] == 0 and source["temperature"] == 0.7
    items = rows(whole / "round-001" / "samples-00.jsonl")
    tuned = json.loads((whole / "round-000" / "ppo.json").read_text())
    for row in items:
        assert row["source"]["adapter"] == tuned["policy"] and row["source"]["update"] == 2
    assert sum("sides" in row for row in items) == 3  # a tenth of 44 labels over two rounds
    last = rows(whole / "round-002" / "samples-00.jsonl")
    assert len(last) == 3 and all("sides" in row for row in last)


def test_a_loop_that_is_done_does_nothing_more(
    whole: Path, words: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = {p: p.stat().st_mtime for p in whole.rglob("*") if p.is_file() and p.suffix != ""}
    monkeypatch.setattr("toolkit.models.from_arguments.load_base", None)
    assert call(online.main, [*words, "--output_dir", str(whole)]) == 0
    after = {p: p.stat().st_mtime for p in before if p.exists()}
    changed = {p.name for p in before if after.get(p) != before[p]}
    assert changed <= {"rounds.jsonl", "labels.sqlite", "labels.sqlite-wal", "labels.sqlite-shm"}


# Killed


def die(*args: Any, **kwargs: Any) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def at_call(number: int, function: Callable[..., Any]) -> Callable[..., Any]:
    """The function; killed at its call of this number."""
    calls = [0]

    def counted(*args: Any, **kwargs: Any) -> Any:
        calls[0] += 1
        if calls[0] == number:
            die()
        return function(*args, **kwargs)

    return counted


def moments(monkeypatch: pytest.MonkeyPatch) -> dict[str, Callable[[], None]]:
    """Ways to die, each once in a loop that goes on in between."""
    patch = monkeypatch.setattr

    def after_save(trainer: Any, *args: Any, **kwargs: Any) -> None:
        PPOTrainer_save(trainer, *args, **kwargs)
        die()

    PPOTrainer_save = PPOTrainer.save_model
    return {
        "sample": lambda: patch(online_loop, "with_sides", die),
        "label": lambda: patch(Store, "record", at_call(9, Store.record)),
        "label, at its end": lambda: patch(online_loop, "win_rate", die),
        "reward": lambda: patch("toolkit.training.reward.trainer.normalize", die),
        "reward, saved": lambda: patch(reward, "write_run", die),
        "ppo": lambda: patch(PPOTrainer, "optimize", at_call(2, PPOTrainer.optimize)),
        "ppo, saved": lambda: patch(PPOTrainer, "save_model", after_save),
        "sample, the policy": lambda: patch(online_loop, "with_sides", die),
        "label, again": lambda: patch(Store, "record", at_call(5, Store.record)),
        "ppo, another reward model": lambda: patch(
            PPOTrainer, "optimize", at_call(1, PPOTrainer.optimize)
        ),
        "ppo, its checkpoint made": lambda: patch(
            PPOTrainer, "optimize", at_call(2, PPOTrainer.optimize)
        ),
    }


def in_a_child(work: Callable[[], Any]) -> int:
    """How a forked process that did this ended, as waitstatus_to_exitcode has it."""
    child = os.fork()
    if not child:
        try:
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, 1), os.dup2(null, 2)
            work()
            os._exit(0)
        except BaseException:
            os._exit(1)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def assert_same(one: Path, other: Path) -> None:
    names = {p.relative_to(one) for p in one.rglob("*") if p.is_file()}
    assert names == {p.relative_to(other) for p in other.rglob("*") if p.is_file()}
    for name in sorted(names):
        a, b = one / name, other / name
        if a.suffix == ".safetensors":
            tensors, others = load_file(a), load_file(b)
            assert tensors.keys() == others.keys()
            assert all(torch.equal(t, others[key]) for key, t in tensors.items()), name
        elif a.name in ("timings.jsonl", "run.json") or a.suffix.startswith(".sqlite"):
            continue  # wall-clock time
        else:
            assert a.read_bytes() == b.read_bytes(), name


def test_killed_in_every_phase_it_ends_to_the_last_bit_the_same(
    whole: Path, words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "killed"

    def go() -> None:
        call(online.main, [*words, "--output_dir", str(out)])

    for name, arm in moments(monkeypatch).items():

        def work(arm: Callable[[], None] = arm) -> None:
            arm()
            go()

        assert in_a_child(work) == -signal.SIGKILL, name
    assert in_a_child(go) == 0
    assert_same(whole, out)


def test_anew_from_an_adapter_with_snapshots_it_ends_the_same_wherever_it_was_killed(
    words: list[str], demo_model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    start = saved(demo_model, tmp_path / "sft", scale=0.05)
    short = CONFIGS["ppo"].replace("total_episodes: 64", "total_episodes: 32")
    prompts = Path(demo_model).parent / "prompts.jsonl"
    (tmp_path / "ppo.yaml").write_text(f"{short}prompts: {prompts}\n")
    words = [*words, "--policy_adapter", str(start), "--restart_policy", "--snapshots", "2",
             "--validation", "0", "--ppo_config", str(tmp_path / "ppo.yaml")]  # fmt: skip
    whole, out = tmp_path / "whole", tmp_path / "killed"

    def go(folder: Path = out) -> None:
        call(online.main, [*words, "--output_dir", str(folder)])

    go(whole)
    for number in (0, 1):
        folder = whole / f"round-00{number}"
        facts = json.loads((folder / "reward/adapter/toolkit.json").read_text())
        assert facts["start"] == adapter_digest(start)
        log = rows(folder / "ppo" / "log.jsonl")
        assert [row["update"] for row in log] == [1, 2]  # all of them, in each round
        assert abs(log[0]["objective/kl"]) < 1e-3  # from the start, which is the reference
    written = rows(whole / "round-001" / "samples-00.jsonl")
    assert {tuple(row["models"]) for row in written} == {("round-000",) * 2 + ("start",) * 2}

    phases = moments(monkeypatch)
    patch = monkeypatch.setattr
    phases["sample, several"] = lambda: patch(online_loop, "mixed", die)
    for name in ("ppo", "sample, several"):

        def work(arm: Callable[[], None] = phases[name]) -> None:
            arm()
            go()

        assert in_a_child(work) == -signal.SIGKILL, name
    assert in_a_child(go) == 0
    assert_same(whole, out)


# Ended, alarmed, waited for


@pytest.fixture
def begun(whole: Path, tmp_path: Path) -> Path:
    """A loop that is about to train its second reward model."""
    out = tmp_path / "begun"
    shutil.copytree(whole, out)
    shutil.rmtree(out / "round-002")
    shutil.rmtree(out / "round-001" / "reward")
    (out / "round-001" / "ppo.json").unlink()
    return out


def test_a_file_ends_the_loop_in_order(
    begun: Path,
    words: list[str],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("toolkit.models.from_arguments.load_base", None)
    (begun / "STOP").touch()
    with open(begun / "ppo" / "log.jsonl", "a") as log:
        log.write('{"update": 5, "epis')  # PPO was killed while it wrote
    assert call(online.main, [*words, "--output_dir", str(begun)]) == 0
    assert "ended: there is a file" in capsys.readouterr().out


def test_an_alarm_is_loud_recorded_and_stops_the_loop_if_asked(
    begun: Path,
    words: list[str],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("toolkit.models.from_arguments.load_base", None)
    log = rows(begun / "ppo" / "log.jsonl")
    for row in log:
        row["objective/scores"] = float(row["update"])
    write_jsonl(begun / "ppo" / "log.jsonl", log)
    verdict = {"wins": 1, "trials": 40, "rate": 0.025, "low": 0.0, "high": 0.13}
    write_json(begun / "round-001" / "validation.json", {"labels": 39, "win_rate": verdict})
    words = [*words, "--output_dir", str(begun)]
    assert call(online.main, [*words, "--on_alarm", "stop"]) == 1
    shown = capsys.readouterr()
    assert "ALARM: the reward model's score rose from 1.00 to 2.00" in shown.err
    assert rows(begun / "rounds.jsonl")[1]["alarm"] is not None
    (begun / "STOP").touch()
    assert call(online.main, words) == 0  # it warns, and would go on
    assert "ALARM" in capsys.readouterr().err


def test_people_on_the_page_are_waited_for(
    base: list[str],
    root: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Another process has the store open and labels now and then."""
    out = tmp_path / "waited"
    person = ScriptedLabeler("ann", ScorePicker(Lexicon(root / "data/lexicon.txt")))

    def some_labels(seconds: float) -> None:
        def label() -> None:
            with Store(out / "labels.sqlite") as store:
                person.work(store, 10, progress=False)

        assert in_a_child(label) == 0

    def no_more(loop: Any, number: int) -> None:
        raise online_loop.LoopEnded("enough seen", 0)

    monkeypatch.setattr(online_loop.time, "sleep", some_labels)
    monkeypatch.setattr(online_loop.Loop, "train_reward", no_more)
    assert call(online.main, [*base, "--wait", "--output_dir", str(out)]) == 0
    picks = rows(out / "round-000" / "comparisons.jsonl")
    assert len(picks) >= 24 and {row["labeler"] for row in picks} == {"ann"}
    assert "waiting for people: " in capsys.readouterr().out


# Mistakes


def test_two_loops_do_not_share_a_store(
    words: list[str], root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("toolkit.models.from_arguments.load_base", None)
    monkeypatch.chdir(root)
    more = ["--output_dir", str(tmp_path / "o"), "--store", str(tmp_path / "labels.sqlite")]
    with open(tmp_path / ".lock-labels.sqlite", "w") as held:  # as another loop holds it
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(InputError, match="store: .* is being written by another run"):
            call(online.main, [*words, *more])
    assert not (tmp_path / "labels.sqlite").exists()


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--wait"], "labeler: give exactly one"),
        (["--schedule", "cubic"], "schedule is 'cubic'"),
        (["--rounds", "9"], "rounds is 9, but must be at most 4"),
        (["--initial_labels", "5"], "eval_rows is 8, but must be below"),
        (["--ppo_config", "no.yaml"], "no.yaml: no such file"),
        (["--sample_config", "POLICY"], "truncate_token: None in sample_config, but '.'"),
        (["--sample_config", "THINKING"], "chat_template_kwargs differs in sample_"),
        (["--ppo_config", "LEXICON"], "must name no reward"),
        (["--ppo_config", "STARTED"], "ppo_config: leave out policy_adapter"),
        (["--snapshots", "5"], "snapshots is 5, but a row has 4 completions"),
        (["--policy_adapter", "nowhere"], "--policy_adapter: nowhere has no adapter_config.json"),
        (["--model_name_or_path", "./no"], "./no: no such folder"),
        (["--sample_config", "PROMPTS"], "broken.jsonl:1: prompt: missing"),
        (["--noise", "2"], "noise is 2, but must be at most 1"),
        (["--sample_confg", "x"], "unknown argument --sample_confg .did you mean --sample_config"),
    ],
)
def test_a_mistake_is_one_line_before_any_model_is_loaded(
    words: list[str],
    root: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    more: list[str],
    message: str,
) -> None:
    monkeypatch.setattr("toolkit.models.from_arguments.load_base", None)
    monkeypatch.chdir(root)
    (tmp_path / "policy.yaml").write_text("response_length: 12\n")
    (tmp_path / "lexicon.yaml").write_text(CONFIGS["ppo"] + "lexicon: data/lexicon.txt\n")
    (tmp_path / "started.yaml").write_text(CONFIGS["ppo"] + "policy_adapter: a\n")
    (tmp_path / "thinking.yaml").write_text(RULE + "chat_template_kwargs: {think: false}\n")
    (tmp_path / "broken.jsonl").write_text('{"ask": "?"}\n')
    (tmp_path / "prompts.yaml").write_text(RULE + f"prompts: {tmp_path / 'broken.jsonl'}\n")
    files = {
        "PROMPTS": tmp_path / "prompts.yaml",
        "POLICY": tmp_path / "policy.yaml",
        "THINKING": tmp_path / "thinking.yaml",
        "LEXICON": tmp_path / "lexicon.yaml",
        "STARTED": tmp_path / "started.yaml",
    }
    more = [str(files.get(word, word)) for word in more]
    with pytest.raises(InputError, match=message) as caught:
        call(online.main, [*words, "--output_dir", str(tmp_path / "o"), *more])
    assert "\n" not in str(caught.value) and not (tmp_path / "o").exists()


def test_other_settings_are_refused(whole: Path, words: list[str]) -> None:
    with pytest.raises(InputError, match="noise was 0.0 and is 0.5"):
        call(online.main, [*words, "--output_dir", str(whole), "--noise", "0.5"])


def test_the_recipe_shows_its_help(root: Path) -> None:
    done = subprocess.run(
        [sys.executable, "recipes/online.py", "--help"],
        cwd=root,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0
    assert all(
        flag in done.stdout for flag in ("--schedule", "--wait", "--judge_url", "--on_alarm")
    )


# What PPO gets for it


def test_a_run_that_stops_on_the_way_ends_as_one_that_does_not(
    new_trainer: Make, tmp_path: Path
) -> None:
    options = {"total_episodes": 48, "save_steps": 100, "eval_prompts": 4, "eval_every": 2}
    new_trainer("whole", **options).train()
    halted = new_trainer("parts", stop_at_update=3, **options).train()
    assert [row["update"] for row in halted] == [1, 2, 3]
    new_trainer("parts", resume="auto", stop_at_update=9, **options).train()
    for name in ("log.jsonl", "checkpoint-000006/state.json"):
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "parts" / name).read_bytes()
    one, other = (
        load_file(tmp_path / n / "checkpoint-000006" / "weights.safetensors")
        for n in ("whole", "parts")
    )
    assert all(torch.equal(tensor, other[name]) for name, tensor in one.items())


def test_only_an_online_run_takes_another_reward_model_and_forgets_its_scores(
    whole: Path, new_trainer: Make, demo_model: str
) -> None:
    def trainer(number: int, **more: Any) -> Any:
        torch.manual_seed(0)
        adapter = whole / f"round-00{number}" / "reward" / "adapter"
        lora = lora_config(4, 8, "all-linear", "CAUSAL_LM")
        roles = Roles(load_base(demo_model, "fp32"), lora, "trunk", reward_adapter=adapter)
        return new_trainer(model=roles, reward_model=None, total_episodes=32, save_steps=1, **more)

    trainer(0, stop_at_update=2, online=True).train()
    with pytest.raises(InputError, match="made under other settings"):
        trainer(0, resume="auto").train()
    second = trainer(1, resume="auto", online=True)
    scale = second.model.gain, second.model.bias
    seen: list[float] = []
    collapsed = second.guards.collapsed

    def watch(mean: float, std: float) -> str | None:
        seen.append(second.guards.best)
        return collapsed(mean, std)

    second.guards.collapsed = watch
    second.train()
    assert seen[0] != seen[0] and seen[1] == seen[1]  # nothing is known at first
    assert (second.model.gain, second.model.bias) == scale
