"""A run that was killed ends as if it had not been; a checkpoint that is broken is not believed."""

import json
import os
import random
import resource
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from toolkit.errors import InputError, Interrupted
from toolkit.models.adapters import lora_config
from toolkit.models.loading import load_base
from toolkit.models.roles import Roles
from toolkit.scoring.guests import as_guest
from toolkit.training.ppo.checkpoints import (
    FILES,
    checkpoints,
    clear_run,
    newest_good,
    problem_of,
)

pytestmark = pytest.mark.slow  # trains, stops and goes on

Make = Callable[..., Any]


def ending(folder: Path) -> dict[str, Any]:
    """All that a run leaves: its log to the byte, and its last checkpoint's tensors."""
    last = checkpoints(folder)[0][1]
    tensors = load_file(last / FILES[0]) | load_file(last / FILES[1])
    state = json.loads((last / FILES[3]).read_text())
    return {"log": (folder / "log.jsonl").read_bytes(), "tensors": tensors, "state": state}


def assert_same_ending(one: Path, other: Path) -> None:
    a, b = ending(one), ending(other)
    assert a["log"] == b["log"]
    assert a["state"] == b["state"]
    assert a["tensors"].keys() == b["tensors"].keys()
    for name, tensor in a["tensors"].items():
        assert torch.equal(tensor, b["tensors"][name]), name


def in_a_child(work: Callable[[], Any]) -> int:
    """Run it in a forked process; its number."""
    child = os.fork()
    if child:
        return child
    try:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        work()
        os._exit(0)
    except BaseException as error:
        print(f"child: {type(error).__name__}: {error}", flush=True)
        os._exit(1)


A2C = {
    "value": "trunk",
    "value_hidden": [6, 5],
    "entropy_coef": 0.01,
    "kl_in": "loss",
    "num_ppo_epochs": 1,
    "lam": 1.0,
    "whiten_rewards": False,
    "whiten_advantages": False,
}


@pytest.mark.parametrize(
    "kind", [{"value": "trunk"}, {"value": "adapter"}, A2C], ids=["trunk", "adapter", "a2c"]
)
def test_a_run_taken_up_again_ends_to_the_last_bit_as_one_that_was_not(
    new_trainer: Make, tmp_path: Path, kind: dict[str, Any]
) -> None:
    options = kind | {
        "total_episodes": 48,
        "save_steps": 2,
        "eval_prompts": 5,
        "eval_every": 2,
        "num_mini_batches": 2,
    }
    new_trainer("whole", **options).train()

    class Stop(Exception):
        pass

    broken = new_trainer("broken", **options)
    finish = broken.finish

    def finish_three(update: int, *args: Any) -> None:
        finish(update, *args)
        if update == 3:  # after the checkpoint of update 2
            raise Stop

    broken.finish = finish_three
    with pytest.raises(Stop):
        broken.train()
    random.seed(99), torch.manual_seed(99)  # a new process starts from other states
    again = new_trainer("broken", resume="auto", **options)
    rows = again.train()
    assert [row["update"] for row in rows] == [1, 2, 3, 4, 5, 6]
    assert_same_ending(tmp_path / "whole", tmp_path / "broken")


def following(demo_model: str, **told: Any) -> Roles:
    """Roles with a reference that follows the policy."""
    lora = lora_config(4, 8, "all-linear", "CAUSAL_LM")
    torch.manual_seed(0)
    return Roles(load_base(demo_model, "fp32"), lora, "trunk", reference="moving", **told)


def test_a_run_whose_reference_follows_is_taken_up_again_to_the_last_bit(
    new_trainer: Make, demo_model: str, tmp_path: Path
) -> None:
    options = {"total_episodes": 32, "save_steps": 2, "reference_ema": 0.2}
    rows = new_trainer("whole", model=following(demo_model), **options).train()
    first = new_trainer("broken", model=following(demo_model), stop_at_update=2, **options)
    first.train()
    again = new_trainer("broken", model=following(demo_model), resume="auto", **options)
    moved = [p.clone() for n, p in again.model.changing() if ".reference." in n]
    again.train()
    assert_same_ending(tmp_path / "whole", tmp_path / "broken")
    after = [p for n, p in again.model.changing() if ".reference." in n]
    assert any(not torch.equal(p, q) for p, q in zip(moved, after, strict=True))
    assert rows[-1]["objective/kl"] > 0

    stays = new_trainer("stays", total_episodes=32).train()
    for first_row in (stays[0], rows[0]):
        assert first_row["objective/kl"] == pytest.approx(0.0, abs=1e-4)
    assert stays[1]["objective/kl"] > 1.2 * rows[1]["objective/kl"]

    # With a share of 1 the reference is the policy of the update before.
    rows = new_trainer("at once", model=following(demo_model), **options | {"reference_ema": 1.0})
    assert [row["objective/kl"] for row in rows.train()] == pytest.approx([0.0] * 4, abs=1e-4)


def test_a_reference_that_should_follow_and_cannot_is_refused(
    new_trainer: Make, demo_model: str
) -> None:
    with pytest.raises(InputError, match="reference_ema is 0.1, but the roles' reference stays"):
        new_trainer(reference_ema=0.1)
    with pytest.raises(InputError, match="reference_ema is None, but the roles' reference moves"):
        new_trainer(model=following(demo_model))


def test_ranks_that_are_kept_do_not_change_by_a_bit(
    new_trainer: Make, demo_model: str, tmp_path: Path
) -> None:
    first = new_trainer("first")
    first.train()
    start = first.save_model()
    model = following(demo_model, policy_adapter=start, last_ranks=1)
    told = {"reference_ema": 0.1, "train_last_ranks": 1, "max_grad_norm": 1.0}
    later = new_trainer("later", model=model, **told)
    later.train()
    before, after = (
        load_file(folder / "adapter_model.safetensors") for folder in (start, later.save_model())
    )
    for name, weight in before.items():
        kept = (slice(3),) if ".lora_A." in name else (slice(None), slice(3))
        assert torch.equal(weight[kept], after[name][kept]), name
        assert not torch.equal(weight, after[name]), name


def noisy(prompts: list[str], completions: list[str]) -> list[float]:
    return [len(text) + random.random() + torch.rand(1).item() for text in completions]


def test_what_a_reward_function_draws_goes_on_where_it_stopped(
    new_trainer: Make, tmp_path: Path
) -> None:
    options = {"total_episodes": 48, "save_steps": 2, "reward_model": noisy}
    new_trainer("whole", **options).train()
    new_trainer("broken", **options, stop_at_update=3).train()
    for folder in (tmp_path / "broken").glob("checkpoint-000003"):  # as if it had been killed
        shutil.rmtree(folder)
    random.seed(99), torch.manual_seed(99)
    with as_guest("somebody else's"):
        random.random()
    new_trainer("broken", **options, resume="auto").train()
    assert_same_ending(tmp_path / "whole", tmp_path / "broken")


def test_a_reward_function_that_seeds_and_changes_all_it_finds_changes_no_run(
    new_trainer: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def plain(prompts: list[str], completions: list[str]) -> list[float]:
        return [float(len(text)) for text in completions]

    def careless(prompts: list[str], completions: list[str]) -> list[float]:
        scores = plain(prompts, completions)
        random.seed(7), torch.manual_seed(7), torch.set_default_dtype(torch.float64)
        os.chdir("/")
        prompts.clear(), completions.clear()
        return scores

    careless.__qualname__ = plain.__qualname__
    monkeypatch.chdir(tmp_path)
    for name, function in (("plain", plain), ("careless", careless)):
        folder = Path(name)  # not a full path
        trainer = new_trainer("run", folder=folder, reward_model=function, total_episodes=32)
        trainer.train()
    one, other = (ending(tmp_path / name / "run") for name in ("plain", "careless"))
    assert one["log"] == other["log"]
    assert one["state"].pop("guests") != other["state"].pop("guests")  # seeded, and its own
    assert one["state"] == other["state"]
    assert all(torch.equal(t, other["tensors"][name]) for name, t in one["tensors"].items())


def test_a_second_trainer_in_the_folder_is_refused(new_trainer: Make, tmp_path: Path) -> None:
    """It is another process's folder until that one's updates are made."""
    options = {"total_episodes": 16, "save_strategy": "no"}
    first = new_trainer("run", **options)
    steps = first.updates(None)
    next(steps)
    second = in_a_child(lambda: new_trainer("run", **options).train())
    assert os.waitstatus_to_exitcode(os.waitpid(second, 0)[1]) == 1
    steps.close()
    assert not (tmp_path / "run" / ".lock").exists()
    third = in_a_child(lambda: new_trainer("run", **options).train())
    assert os.waitpid(third, 0)[1] == 0


def test_killed_at_twenty_moments_a_run_still_ends_the_same(
    new_trainer: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SIGKILL at random moments over 30 updates, every third while a checkpoint is written."""
    options = {"total_episodes": 240, "save_steps": 1, "response_length": 4, "num_ppo_epochs": 2}
    started = time.monotonic()
    assert os.waitpid(in_a_child(lambda: new_trainer("whole", **options).train()), 0)[1] == 0
    an_update = (time.monotonic() - started) / 40
    rng = random.Random(0)
    kills, done = 0, False
    while not done:
        ready, tell = os.pipe()
        in_a_save = kills % 3 == 0

        def work(tell: int = tell, in_a_save: bool = in_a_save) -> None:
            def telling(*args: Any) -> None:
                os.write(tell, b"x")
                save_file(*args)

            if in_a_save:
                monkeypatch.setattr("toolkit.training.ppo.checkpoints.save_file", telling)
            trainer = new_trainer("killed", resume="auto", **options)
            if not in_a_save:
                os.write(tell, b"x")
            trainer.train()

        child = in_a_child(work)
        os.close(tell)
        if kills < 20:
            os.read(ready, 1)  # it trains, or it writes
            time.sleep(rng.uniform(0.0, 0.02 if in_a_save else 2.5 * an_update))
            os.kill(child, signal.SIGKILL)
        os.close(ready)
        status = os.waitpid(child, 0)[1]
        assert status in (0, signal.SIGKILL)
        done = status == 0
        kills += not done
    assert kills == 20
    assert_same_ending(tmp_path / "whole", tmp_path / "killed")


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("saved")


@pytest.mark.parametrize("name", [*FILES, "manifest.json"])
@pytest.mark.parametrize("harm", ["truncated", "one bit flipped", "emptied", "deleted"])
def test_a_broken_file_is_named_and_the_older_checkpoint_taken(
    new_trainer: Make, saved: Path, name: str, harm: str
) -> None:
    if not checkpoints(saved / "run"):
        new_trainer(folder=saved, total_episodes=24, save_steps=1, save_total_limit=3).train()
    newest, older = (path for _, path in checkpoints(saved / "run")[:2])
    content = (newest / name).read_bytes()
    try:
        if harm == "deleted":
            (newest / name).unlink()
        else:
            middle = len(content) // 2
            flipped = content[:middle] + bytes([content[middle] ^ 4]) + content[middle + 1 :]
            harmed = {"truncated": content[:-1], "one bit flipped": flipped, "emptied": b""}[harm]
            (newest / name).write_bytes(harmed)
        path, passed_over = newest_good(saved / "run")
        assert path == older
        assert len(passed_over) == 1 and newest.name in passed_over[0]
        if name != "manifest.json":
            assert name in passed_over[0]
    finally:
        (newest / name).write_bytes(content)
    assert problem_of(newest) is None


def test_a_full_disk_leaves_the_old_checkpoint_whole(new_trainer: Make, tmp_path: Path) -> None:
    """The limit on a file's size fails a write exactly as a full disk does."""
    options = {"total_episodes": 32, "save_steps": 2}

    def work() -> None:
        trainer = new_trainer("run", **options)
        checkpoint = trainer.checkpoint

        def full(update: int) -> Any:
            if update == 4:
                signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
                resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
            return checkpoint(update)

        trainer.checkpoint = full
        try:
            trainer.train()
        except Exception as error:
            os._exit(7 if "File too large" in str(error) else 8)

    assert os.waitstatus_to_exitcode(os.waitpid(in_a_child(work), 0)[1]) == 7
    folder = tmp_path / "run"
    assert [update for update, _ in checkpoints(folder)] == [2]
    assert problem_of(checkpoints(folder)[0][1]) is None
    assert not [p for p in folder.iterdir() if p.name.startswith(".checkpoint")]
    new_trainer("whole", **options).train()
    new_trainer("run", resume="auto", **options).train()
    assert_same_ending(tmp_path / "whole", folder)


def test_other_settings_are_refused_with_each_difference(new_trainer: Make) -> None:
    new_trainer(save_steps=1).train()
    with pytest.raises(InputError, match="made under other settings") as caught:
        new_trainer(learning_rate=2e-3, kl_target=3.0, resume="auto").train()
    text = " ".join([str(caught.value), *caught.value.details])
    assert "kl_target: was 6.0, is 3.0" in text and "learning_rate: was 0.001, is 0.002" in text


def test_what_changes_nothing_learned_may_differ(new_trainer: Make) -> None:
    new_trainer(total_episodes=16, save_steps=1).train()
    rows = new_trainer(
        total_episodes=16,
        save_steps=5,
        sample_every=3,
        per_device_train_batch_size=4,
        gradient_accumulation_steps=2,
        resume="auto",
    ).train()
    assert len(rows) == 2


def test_nothing_to_resume_from_starts_at_the_beginning(
    new_trainer: Make, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = new_trainer(resume="auto").train()
    assert len(rows) == 2 and "no checkpoint to resume" in capsys.readouterr().out


def test_a_named_checkpoint_that_is_broken_is_refused(new_trainer: Make, tmp_path: Path) -> None:
    new_trainer(save_steps=1).train()
    last = checkpoints(tmp_path / "run")[0][1]
    (last / FILES[0]).write_bytes(b"")
    with pytest.raises(InputError, match=f"{FILES[0]} is not what was written"):
        new_trainer(resume=str(last)).train()


def test_only_the_newest_checkpoints_are_kept(new_trainer: Make, tmp_path: Path) -> None:
    new_trainer(total_episodes=40, save_steps=1, save_total_limit=2).train()
    assert [update for update, _ in checkpoints(tmp_path / "run")] == [5, 4]


@pytest.mark.parametrize(
    ("signum", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGHUP, 129)]
)
def test_a_signal_finishes_the_update_saves_and_goes_on_later(
    new_trainer: Make, tmp_path: Path, signum: int, code: int
) -> None:
    options = {"total_episodes": 40, "save_steps": 100}
    new_trainer("whole", **options).train()
    trainer = new_trainer("run", **options)
    optimize = trainer.optimize

    def interrupted(*args: Any) -> Any:
        if trainer.run_log.state.global_step == 1:  # in the midst of the second update
            os.kill(os.getpid(), signum)
        return optimize(*args)

    trainer.optimize = interrupted
    before = signal.getsignal(signum)
    with pytest.raises(Interrupted) as caught:
        trainer.train()
    assert caught.value.code == code
    assert [update for update, _ in checkpoints(tmp_path / "run")] == [2]
    del caught
    assert signal.getsignal(signum) is before
    new_trainer("run", resume="auto", **options).train()
    assert_same_ending(tmp_path / "whole", tmp_path / "run")


def test_a_cut_off_line_of_the_log_is_mended(new_trainer: Make, tmp_path: Path) -> None:
    options = {"total_episodes": 32, "save_steps": 2}
    new_trainer("whole", **options).train()
    first = new_trainer("run", **(options | {"save_steps": 2}))
    first.num_updates = 3  # as if it had been killed in the third
    first.train()
    folder = tmp_path / "run"
    for _, path in checkpoints(folder)[:1]:
        if path.name.endswith("3"):
            for file in path.iterdir():
                file.unlink()
            path.rmdir()
    with open(folder / "log.jsonl", "a") as stream:
        stream.write('{"update": 4, "epis')
    new_trainer("run", resume="auto", **options).train()
    lines = (folder / "log.jsonl").read_text().splitlines()
    assert [json.loads(line)["update"] for line in lines] == [1, 2, 3, 4]


def test_an_old_runs_checkpoints_are_never_taken_for_a_new_ones(
    new_trainer: Make, tmp_path: Path
) -> None:
    new_trainer(total_episodes=40, save_steps=1).train()
    with pytest.raises(InputError, match="has checkpoints of an earlier run"):
        new_trainer(total_episodes=40, save_steps=1).train()
    clear_run(tmp_path / "run")
    assert not list((tmp_path / "run").iterdir())
    assert len(new_trainer(total_episodes=40, save_steps=1).train()) == 5


def test_a_good_checkpoint_is_not_deleted_in_favour_of_a_broken_later_one(
    new_trainer: Make, tmp_path: Path
) -> None:
    options = {"total_episodes": 48, "save_steps": 2, "save_total_limit": 3}
    new_trainer(**options).train()
    for update in (6, 4):
        (tmp_path / "run" / f"checkpoint-{update:06d}" / FILES[0]).write_bytes(b"")
    trainer = new_trainer(**(options | {"save_steps": 1, "save_total_limit": 1, "resume": "auto"}))
    finish = trainer.finish
    left: list[list[int]] = []

    def watch(update: int, *args: Any) -> None:
        finish(update, *args)
        left.append([number for number, _ in checkpoints(tmp_path / "run")])

    trainer.finish = watch
    trainer.train()
    assert left == [[3], [4], [5], [6]]
