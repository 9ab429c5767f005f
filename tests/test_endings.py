"""Signals and broken pipes: one line or none, the right exit code, nothing left half done."""

import contextlib
import errno
import os
import signal
import subprocess
import sys
import time
import types
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from tqdm import tqdm

from toolkit import cli, endings
from toolkit.cli import RECIPES
from toolkit.errors import InputError

SIGNALS = [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)]
ROOT = RECIPES.parent
ENV = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
Lines = Callable[..., subprocess.Popen]


@pytest.fixture
def recipe(tmp_path: Path) -> Lines:
    """Starts a script as if it were one of recipes/: a light one, without torch."""
    (tmp_path / "recipes").mkdir()
    (tmp_path / "toolkit").mkdir()
    (tmp_path / "toolkit" / "cli.py").touch()

    def start(text: str, folder: str = "recipes", **options: Any) -> subprocess.Popen:
        (tmp_path / folder).mkdir(exist_ok=True)
        script = tmp_path / folder / "light.py"
        script.write_text("import toolkit, os, signal, sys, time\n" + text)
        streams: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        return subprocess.Popen(
            [sys.executable, str(script)], text=True, **({"env": ENV} | streams | options)
        )

    return start


def ended(process: subprocess.Popen) -> tuple[int, str, str]:
    out, err = process.communicate(timeout=60)
    return process.returncode, out, err


def in_a_child(work: Callable[[], Any], folder: Path) -> tuple[int, str]:
    """How a forked process that did this ended, and what it said on standard error."""
    child = os.fork()
    if not child:
        code = 99
        try:
            for name, number in (("stdout", 1), ("stderr", 2)):
                os.dup2(os.open(folder / name, os.O_WRONLY | os.O_CREAT), number)
            sys.stdout = sys.__stdout__ = os.fdopen(1, "w")
            sys.stderr = sys.__stderr__ = os.fdopen(2, "w")
            signal.signal(signal.SIGINT, signal.default_int_handler)
            work()
        except SystemExit as leaving:
            code = int(leaving.code or 0)
        finally:
            sys.stderr.flush()
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), (folder / "stderr").read_text()


@pytest.mark.parametrize(("signum", "code"), SIGNALS)
def test_a_signal_while_a_recipe_is_imported_is_one_line(
    recipe: Lines, signum: int, code: int
) -> None:
    said = ended(recipe(f"os.kill(os.getpid(), {signum:d})\ntime.sleep(60)\n"))
    assert said == (code, "", "interrupted\n")


def test_who_imports_the_toolkit_keeps_his_handlers_and_streams(recipe: Lines) -> None:
    lines = (
        "assert signal.getsignal(signal.SIGINT) is signal.default_int_handler\n"
        "assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL\n"
        "assert sys.stdout is sys.__stdout__ and sys.stderr is sys.__stderr__\n"
    )
    assert ended(recipe(lines, "scripts"))[0] == 0


def test_what_nohup_ignores_stays_ignored(recipe: Lines) -> None:
    lines = (
        "from toolkit import endings\nwith endings.heard():\n"
        "    os.kill(os.getpid(), signal.SIGHUP)\nprint('on')\n"
    )
    process = recipe(lines, preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN))
    assert ended(process) == (0, "on\n", "")


def test_forked_processes_die_of_a_signal_as_ever(recipe: Lines) -> None:
    lines = (
        "from toolkit import endings\nwith endings.heard():\n"
        "    child = os.fork()\n"
        "    if not child:\n        os.kill(os.getpid(), signal.SIGTERM)\n        time.sleep(60)\n"
        "    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))\n"
    )
    assert ended(recipe(lines)) == (0, "-15\n", "")


@pytest.mark.parametrize(("signum", "code"), SIGNALS)
def test_the_first_signal_cleans_up_and_the_second_ends_at_once(
    recipe: Lines, tmp_path: Path, signum: int, code: int
) -> None:
    lines = (
        "from toolkit import endings\n"
        "try:\n    with endings.heard():\n"
        "        try:\n            print('ready', flush=True)\n            time.sleep(60)\n"
        "        finally:\n            print('cleans', flush=True)\n"
        "            time.sleep(SLEEP)\n            print('clean', flush=True)\n"
        "except endings.Stopped as stop:\n    sys.exit(stop.code)\n"
    )
    for again in (False, True):
        process = recipe(lines.replace("SLEEP", "60" if again else "0"))
        assert process.stdout.readline() == "ready\n"
        process.send_signal(signum)
        assert process.stdout.readline() == "cleans\n"
        if again:
            process.send_signal(signum)
        else:  # by the same reader, which may have both lines already
            assert process.stdout.readline() == "clean\n"
        assert ended(process) == (code, "", "interrupted\n" if again else "")


def test_a_signal_inside_a_finalizer_is_not_lost(recipe: Lines) -> None:
    lines = (
        "from toolkit import endings\n"
        "class Held:\n    def __del__(self):\n        os.kill(os.getpid(), signal.SIGTERM)\n"
        "        time.sleep(0.01)\n"
        "try:\n    with endings.heard():\n        Held()\n        time.sleep(60)\n"
        "except endings.Stopped as stop:\n    sys.exit(stop.code)\n"
    )
    assert ended(recipe(lines)) == (143, "", "")


READERS = ["for i in range(9000):\n    print(i)\n", "print(1)\n", "print(1, flush=True)\n"]


@pytest.mark.parametrize("lines", READERS)
@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_reader_that_leaves_ends_nothing(recipe: Lines, lines: str, unbuffered: str) -> None:
    there, here = os.pipe()
    os.close(there)
    with contextlib.closing(os.fdopen(here, "w")) as pipe:
        text = lines + "sys.stderr.write('finished')\n"
        process = recipe(text, stdout=pipe, env=ENV | {"PYTHONUNBUFFERED": unbuffered})
        assert ended(process) == (0, None, "finished")


def test_without_streams_nothing_is_printed_into_files(recipe: Lines, tmp_path: Path) -> None:
    lines = (
        f"with open({str(tmp_path / 'kept')!r}, 'w') as kept:\n"
        "    print('said'), print('said', file=sys.stderr)\n    os.write(1, b'said')\n"
        "    kept.write('kept')\n"
    )
    process = recipe(lines, stdout=None, stderr=None, preexec_fn=lambda: os.closerange(0, 3))
    assert ended(process)[0] == 0
    assert (tmp_path / "kept").read_text() == "kept"


def test_a_full_disk_below_standard_output_is_told_and_the_work_goes_on(recipe: Lines) -> None:
    with open("/dev/full", "w") as full:
        process = recipe("print('said', flush=True)\nprint('more')\n", stdout=full)
        code, _, said = ended(process)
    assert code == 0
    assert said.startswith("warning: standard output: No space left") and said.count("\n") == 1


def test_a_character_that_the_terminal_lacks_is_printed_as_its_escape(recipe: Lines) -> None:
    process = recipe(
        "print('caf\\xe9 \\u2603')\n", env=ENV | {"PYTHONIOENCODING": "latin-1"}, encoding="latin-1"
    )
    assert ended(process) == (0, "café \\u2603\n", "")


def test_a_line_goes_below_a_bar(recipe: Lines) -> None:
    lines = "from toolkit import endings\nsys.stderr.write('\\r 10%|#')\nendings.say('error: x')\n"
    assert ended(recipe(lines))[2] == "\n 10%|#\nerror: x\n"


# In the recipes themselves


@pytest.mark.parametrize(
    ("name", "line"),
    [  # before the flags are read, and after
        ("ppo", "interrupted\n"),
        ("sample", "interrupted: no file is half-written, and the same command starts again\n"),
    ],
)
def test_ctrl_c_while_a_recipe_imports_torch(name: str, line: str, tmp_path: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, str(RECIPES / f"{name}.py")],
        env=ENV,
        text=True,
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    maps = Path(f"/proc/{process.pid}/maps")
    while "libtorch" not in maps.read_text():
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    assert ended(process) == (130, "", line)


def test_every_recipe_opens_the_door_first() -> None:
    for path in RECIPES.glob("*.py"):
        text = path.read_text(encoding="utf-8")
        first = next(line for line in text.splitlines() if line.startswith(("import", "from ")))
        assert first.startswith("from toolkit.cli import"), path


@pytest.mark.slow
@pytest.mark.parametrize(("signum", "code"), SIGNALS)
@pytest.mark.parametrize("name", ["sft", "evaluate"])
def test_a_signal_in_a_stage_cleans_up_and_is_one_line(
    name: str, signum: int, code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = cli.recipe(name)
    (tmp_path / "c.jsonl").write_text(
        '{"prompt": "We went", "completions": [" in.", " out."], "best": 0}\n'
        '{"prompt": "She went", "completions": [" in.", " out."], "best": 1}\n'
    )
    words = ["--output_dir", str(tmp_path / "out" / name)]
    if name == "sft":
        words += ["--comparisons", str(tmp_path / "c.jsonl"), "--eval_rows", "1", "--use_cpu"]
        words += ["--model_name_or_path", str(ROOT / "data" / "model")]
    else:
        words += [
            "--lexicon",
            str(ROOT / "data" / "lexicon.txt"),
            "--limit",
            "4",
            "--contenders",
            "best_of_2",
            "--prompts",
        ]
        words += [str(ROOT / "data" / "prompts.jsonl")]
        words += ["--model_name_or_path", str(ROOT / "data" / "model")]

    def work() -> None:
        def killed(*args: Any, **kwargs: Any) -> Any:
            os.kill(os.getpid(), signum)
            time.sleep(60)

        worker = {
            "sft": "toolkit.training.baselines.trainers.sft_trainer",
            "evaluate": "toolkit.evaluation.judges.judge_all",
        }
        monkeypatch.setattr(worker[name], killed)
        monkeypatch.setattr("sys.argv", [f"{name}.py", *words])
        cli.run(module.main)

    ended_with, said = in_a_child(work, tmp_path)
    assert ended_with == code, said
    assert said.splitlines()[-1] == f"interrupted: {cli.WHOLE}"
    assert "Traceback" not in said
    assert not [p for p in (tmp_path / "out").rglob("*") if p.name.startswith(".")]


def test_endings_is_light() -> None:
    lines = "import sys, toolkit; print([n for n in ('torch', 'numpy') if n in sys.modules])"
    done = subprocess.run([sys.executable, "-c", lines], env=ENV, capture_output=True, text=True)
    assert done.stdout == "[]\n"
    assert endings.SIGNALS


# What cli.run says


@dataclass
class Toy:
    n: int = 1


def ended_by(
    error: BaseException,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    around: Callable[[], Any] = contextlib.nullcontext,
) -> tuple[Any, str]:
    """Exit code and last line of a recipe that raises this in the midst of a progress bar."""

    def main(toy: Toy) -> None:
        bar = tqdm(total=3)  # held by this frame, which the error holds
        with around():
            bar.update()
            raise error

    monkeypatch.setattr("sys.argv", ["toy.py"])
    with pytest.raises(SystemExit) as caught:
        cli.run(main)
    said = capsys.readouterr().err.splitlines()
    return caught.value.code, next(line for line in reversed(said) if line[:6] != "next: ")


@pytest.mark.slow
def test_an_error_in_the_midst_of_a_bar_has_a_line_of_its_own(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert ended_by(InputError("x"), monkeypatch, capsys) == (2, "error: x")


@pytest.mark.slow
def test_who_interrupts_a_row_of_stages_is_told_that_it_goes_on(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    stop = endings.Stopped(signal.SIGTERM)
    assert ended_by(stop, monkeypatch, capsys, endings.goes_on) == (
        143,
        "interrupted: finished work is kept, and the same command continues",
    )


@pytest.mark.slow
def test_a_full_disk_is_one_line_though_python_names_no_file(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    error = OSError(errno.ENOSPC, "No space left on device")
    code, said = ended_by(error, monkeypatch, capsys)
    assert (code, said) == (
        2,
        "error: a file was not written: No space left on device (make room on the disk)",
    )


def test_a_signal_waits_until_a_line_is_printed_but_not_for_ever(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Raised in the midst of it, it would have the line printed twice."""
    heard: list[int] = []
    handler = endings._Handler(heard.append)
    printing: Any = types.SimpleNamespace(f_code=endings._Stream.write.__code__)
    before = signal.signal(signal.SIGUSR1, handler)
    try:
        handler(signal.SIGUSR1, printing)
        assert heard == []
        end = time.monotonic() + 20
        while not heard and time.monotonic() < end:
            time.sleep(0.01)
        assert heard == [signal.SIGUSR1]  # it came again, and nothing was being printed
        monkeypatch.setattr(endings, "PUT_OFF", 0)  # its reader has stopped reading
        handler(signal.SIGUSR1, printing)
        assert heard == [signal.SIGUSR1] * 2
    finally:
        signal.signal(signal.SIGUSR1, before)
