"""Two nodes, each of one process, over loopback: the same numbers, and one that is lost."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
import torch
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils.launch import prepare_multi_gpu_env
from safetensors.torch import load_file

from toolkit.training.log_rows import read_rows

pytestmark = pytest.mark.slow  # starts processes

WORDS = ["--lexicon", "data/lexicon.txt", "--value", "trunk", "--response_length", "8",
         "--learning_rate", "1e-3", "--limit", "60", "--num_mini_batches", "2", "--lora_r", "4",
         "--num_ppo_epochs", "1", "--per_device_train_batch_size", "16", "--save_steps", "2",
         "--total_episodes", "256"]  # fmt: skip
UPDATES = 8  # of 32 episodes


def free_port() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])


@contextmanager
def two_nodes(
    root: Path, first: list[str], second: list[str]
) -> Iterator[list[subprocess.Popen[str]]]:
    """Start a launcher for each of both nodes with these words; nothing is left running."""
    port = free_port()
    nodes = []
    env = os.environ | {"ACCELERATE_USE_CPU": "true", "PYTHONPATH": str(root)}
    try:
        for rank, words in enumerate((first, second)):
            command = [sys.executable, "-m", "torch.distributed.run", "--nnodes", "2"]
            command += ["--nproc_per_node", "1", "--node_rank", str(rank)]
            command += ["--master_addr", "127.0.0.1", "--master_port", port, "recipes/ppo.py"]
            pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
            nodes.append(subprocess.Popen([*command, *words], cwd=root, env=env, **pipes))
        yield nodes
    finally:
        for node in nodes:
            lose(node)
            node.communicate()


def family(pid: int) -> list[int]:
    """The process and all that it started, as Linux tells."""
    found = [pid]
    for parent in found:  # it grows meanwhile
        for task in Path(f"/proc/{parent}/task").glob("*/children"):
            found += [int(child) for child in task.read_text().split()]
    return found


def lose(node: subprocess.Popen[str]) -> None:
    """End a node as a power cut does: its launcher and what that started, which outlives it."""
    for pid in family(node.pid) if node.poll() is None else ():
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def finished(nodes: list[subprocess.Popen[str]]) -> list[str]:
    said = [node.communicate(timeout=240)[0] for node in nodes]
    assert [node.returncode for node in nodes] == [0, 0], said
    return said


@pytest.fixture(scope="module")
def undisturbed(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run on two nodes, which do not share it."""
    folder = tmp_path_factory.mktemp("nodes")
    first, second = (["--output_dir", str(folder / name)] for name in ("run", "elsewhere"))
    with two_nodes(root, WORDS + first, WORDS + second) as nodes:
        said = finished(nodes)
    assert "policy adapter" in said[0] and "policy adapter" not in said[1]
    assert not (folder / "elsewhere").exists()  # the second node writes nothing
    return folder / "run"


def weights(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / f"checkpoint-{UPDATES:06d}" / "weights.safetensors")


def check_equal_runs(one: Path, other: Path) -> None:
    """The same log and the same weights, to the last bit."""
    assert (one / "log.jsonl").read_text() == (other / "log.jsonl").read_text()
    mine, theirs = weights(one), weights(other)
    assert mine.keys() == theirs.keys()
    assert all(torch.equal(mine[name], theirs[name]) for name in mine)


def test_two_nodes_make_the_numbers_of_two_processes_on_one(
    tmp_path: Path, undisturbed: Path, forked: Callable[..., list]
) -> None:
    words = [*WORDS, "--output_dir", str(tmp_path / "run")]
    for process in forked(words, words):
        said = process.wait()
        assert process.returncode == 0, said
    check_equal_runs(tmp_path / "run", undisturbed)
    moved = [t.abs().max().item() for name, t in weights(undisturbed).items() if "lora_B" in name]
    assert max(moved) > 5e-4


@pytest.mark.parametrize("lost", [0, 1])
def test_a_node_that_is_lost_ends_the_other_and_both_go_on(
    tmp_path: Path, undisturbed: Path, forked: Callable[..., list], lost: int
) -> None:
    """Killed without warning; the other says so within a minute, and a resumed run is the same."""
    out = tmp_path / "run"
    words = [*WORDS, "--output_dir", str(out), "--resume", "auto"]
    nodes = forked(words, words, nodes=True)
    waited = time.monotonic()
    while len(read_rows(out / "log.jsonl")) < 3:
        assert time.monotonic() - waited < 120
        assert all(node.poll() is None for node in nodes), [node.wait() for node in nodes]
        time.sleep(0.02)
    nodes[lost].signal(signal.SIGKILL)

    survivor = nodes[1 - lost]
    said = survivor.wait(60)
    assert survivor.returncode == 1
    assert "stopped: another process of this run has ended" in said
    assert "--resume auto goes on from the last checkpoint" in said
    assert len(read_rows(out / "log.jsonl")) < UPDATES

    other = [*WORDS, "--output_dir", str(tmp_path / "nowhere"), "--resume", "auto"]
    said = [node.wait() for node in forked(words, other, nodes=True)]
    assert f"of {UPDATES}" in said[0] and "resumed from" in said[0], said
    check_equal_runs(out, undisturbed)


def test_a_node_that_no_longer_answers_counts_as_lost_after_a_while(
    tmp_path: Path, forked: Callable[..., list]
) -> None:
    """A stopped process keeps its connections open, as a machine behind a cut cable does."""
    out = tmp_path / "run"
    words = [*WORDS, "--output_dir", str(out), "--ddp_timeout", "5"]
    nodes = forked(words, words, nodes=True)
    waited = time.monotonic()
    while not (out / "log.jsonl").exists():
        assert time.monotonic() - waited < 120
        time.sleep(0.02)
    nodes[1].signal(signal.SIGSTOP)
    said = nodes[0].wait(60)
    assert nodes[0].returncode == 1 and "cannot be reached" in said


def test_a_signal_to_one_node_saves_and_ends_both(root: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    words = [*WORDS, "--output_dir", str(out), "--save_steps", "100", "--total_episodes", "9600"]
    with two_nodes(root, words, words) as nodes:
        waited = time.monotonic()
        while not read_rows(out / "log.jsonl"):
            assert time.monotonic() - waited < 120
            time.sleep(0.02)
        nodes[1].terminate()
        said = [node.communicate(timeout=60)[0] for node in nodes]
    done = len(read_rows(out / "log.jsonl"))
    assert done < 300 and (out / f"checkpoint-{done:06d}" / "manifest.json").is_file()
    for text in said:
        assert f"SIGTERM: saved {out}/checkpoint-{done:06d} (--resume auto continues)" in text
    assert "accelerate launch --num_machines 2 --machine_rank 1 --main_process_ip" in said[1]


def test_a_base_shared_out_between_nodes_gives_the_same_numbers(
    tmp_path: Path, undisturbed: Path, forked: Callable[..., list]
) -> None:
    out = tmp_path / "run"
    words = [*WORDS, "--output_dir", str(out), "--stop_at_update", "2"]
    shared = {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}
    for node in forked(words, words, nodes=True, **shared):
        said = node.wait()
        assert node.returncode == 0, said
    rows, whole = read_rows(out / "log.jsonl"), read_rows(undisturbed / "log.jsonl")
    assert len(rows) == 2
    for row, other in zip(rows, whole, strict=False):
        assert row == pytest.approx(other, abs=1e-4)


def test_a_node_with_other_files_is_refused_by_all(
    tmp_path: Path, forked: Callable[..., list]
) -> None:
    """It would otherwise take part with its own prompts, unnoticed."""
    words = [*WORDS, "--output_dir", str(tmp_path / "run")]
    for node in forked(words, [*words, "--limit", "50"], nodes=True):
        said = node.wait(120)
        assert node.returncode == 2, said
        assert "has other settings or files than process 0: prompts (give every node" in said


@pytest.mark.parametrize("name", ["two_nodes", "fsdp_two_nodes"])
def test_the_launch_files_start_eight_processes_on_each_of_two_machines(
    root: Path, name: str
) -> None:
    """As accelerate reads them; what it then starts is torchrun with these words."""
    words = ["--machine_rank", "1", "--main_process_ip", "10.0.0.1", "recipes/ppo.py"]
    path = str(root / "recipes" / "accelerate" / f"{name}.yaml")
    read = launch_command_parser().parse_args(["--config_file", path, *words])
    launcher, _, _ = _validate_launch_command(read)
    env = prepare_multi_gpu_env(launcher)
    assert (launcher.nnodes, launcher.nproc_per_node, launcher.node_rank) == ("2", "8", 1)
    assert launcher.rdzv_endpoint == "10.0.0.1:29500"
    assert env.get("ACCELERATE_USE_FSDP", "false") == str(name.startswith("fsdp")).lower()
    assert env.get("FSDP_CPU_RAM_EFFICIENT_LOADING", "false") == "false"
