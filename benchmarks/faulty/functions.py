"""Users' functions and modules that do what they should not."""

from functools import partial
from pathlib import Path

from benchmarks.faulty.room import REFUSED, ROOT, Fault, Room, Wrong

# What a function does before it gives the number of letters of each completion.
HARMLESS = {
    "edits its lists": "prompts.clear(); completions[:] = ['x'] * len(completions)",
    "goes to another folder": "os.chdir('/')",
    "goes to a folder and deletes it": "os.mkdir('g'); os.chdir('g'); os.rmdir('../g')",
    "changes torch's dtype": "torch.set_default_dtype(torch.float64)",
    "changes torch's device": "torch.set_default_device('meta')",
    "changes the number of threads": "torch.set_num_threads(2)",
    "seeds everything": "random.seed(1); numpy.random.seed(1); torch.manual_seed(1)",
    "turns gradients off": "torch.set_grad_enabled(False)",
    "turns numpy's errors on": "numpy.seterr(all='raise')",
    "ignores Ctrl-C": "import signal; signal.signal(signal.SIGINT, signal.SIG_IGN)",
    "closes standard output": "sys.stdout = open(os.devnull, 'w')",
    "forks, and the child ends": "os.fork() or os._exit(0)",
    "starts a process": "subprocess.run(['true'])",
    "warns": "import warnings; warnings.warn('hm')",
}
HARMFUL = {
    "sys.exit(0)": "sys.exit(0)",
    "exit()": "exit()",
    "raise SystemExit": "raise SystemExit",
    "sys.exit of a text": "sys.exit('bye')",
    "an exception": "1 / 0",
    "one that is no Exception": "raise type('Odd', (BaseException,), {})",
    "a fork that comes back": "os.fork()",
    "out of memory": "raise MemoryError",
    "endless recursion": "(lambda f: f(f))(lambda f: f(f))",
    "an exception with a key": "raise RuntimeError('key=' + os.environ['MY_API_KEY'])",
    "an address with a password": "raise RuntimeError('https://ann:hunter2-hunter2@host')",
    "too few scores": "completions.pop(); return [1.0] * len(completions)",
    "a score of infinity": "return [float('inf')] * len(completions)",
    "a score of nan": "return [float('nan')] * len(completions)",
    "scores of text": "return ['good'] * len(completions)",
    "a dictionary": "return {k: 1.0 for k in completions}",
    "None": "return None",
}
SECRET = "hunter2-hunter2"
IMPORTS = "import os, random, subprocess, sys\nimport numpy\nimport torch\n\n\n"
RUNS: dict[str, list[object]] = {
    "label": ["label", "--samples", "s.jsonl", "--output", "out.jsonl"],
    "label, into a store": [
        "label",
        "--samples",
        "s.jsonl",
        "--store",
        "l.sqlite",
        "--output",
        "out.jsonl",
    ],
    "ppo": [
        "ppo",
        "--total_episodes",
        32,
        "--per_device_train_batch_size",
        16,
        "--response_length",
        4,
        "--precision",
        "fp32",
        "--save_strategy",
        "no",
        "--output_dir",
        "out",
    ],
}
SAMPLES = "".join(
    f'{{"prompt": "p{i}", "completions": ["{"a" * (i % 3 + 1)}", "{"b" * (i % 4 + 2)}"]}}\n'
    for i in range(12)
)


def _module(room: Room, line: str, at_import: str = "") -> None:
    """mine.py, whose function ``score`` runs this line first."""
    room.write(
        "mine.py",
        f"""{IMPORTS}{at_import}
def score(prompts, completions):
    scores = [float(len(c)) for c in completions]
    {line}
    return scores
""",
    )
    room.write("s.jsonl", SAMPLES)
    if not (room.folder / "data").exists():
        (room.folder / "data").symlink_to(ROOT / "data")


def _result(room: Room, run: str) -> bytes:
    return (room.folder / ("out/log.jsonl" if run == "ppo" else "out.jsonl")).read_bytes()


def harmless(room: Room, run: str, line: str) -> str:
    """The same result as without the line."""
    plain = Room(room.folder / "plain")
    plain.folder.mkdir()
    for place, done in ((plain, "pass"), (room, line)):
        _module(place, done)
        name, *words = RUNS[run]
        place.recipe(str(name), *words, "--reward_function", "mine:score").done()
    if _result(room, run) != _result(plain, run):
        raise Wrong("another result than without it")
    return "put back, the same result"


def harmful(room: Room, run: str, line: str) -> str:
    """One line, and no result."""
    _module(room, line)
    name, *words = RUNS[run]
    ended = room.recipe(str(name), *words, "--reward_function", "mine:score", MY_API_KEY=SECRET)
    said = [row for row in ended.err.splitlines() if row.startswith("error: ")]
    of_forks = [row for row in said if "a fork of it returned" in row]
    ended.expect(ended.code == 2 and len(said) - len(of_forks) == 1, "not one line, or no code 2")
    ended.expect(SECRET not in ended.err + ended.out, "a secret was shown")
    for path in ("out.jsonl", "out/adapters"):
        ended.expect(not (room.folder / path).exists(), f"{path} was written")
    return REFUSED


def at_import(room: Room, run: str, line: str) -> str:
    _module(room, "pass", at_import=f"{line}\n\n")
    name, *words = RUNS[run]
    ended = room.recipe(str(name), *words, "--reward_function", "mine:score", MY_API_KEY=SECRET)
    ended.expect(SECRET not in ended.err + ended.out, "a secret was shown")
    left = [name for name in room.files() if Path(name).suffix not in (".pyc", ".py", ".sqlite")]
    ended.expect(left == ["s.jsonl"], f"it left {left}")
    ended.expect(ended.code == 2 and ended.err.startswith("error: "), "not one line and code 2")
    return REFUSED


AT_IMPORT = (
    "sys.exit(0)",
    "exit()",
    "raise SystemExit",
    "an exception",
    "an exception with a key",
    "a fork that comes back",
)
KIND = "users' functions"
FAULTS = [
    *(
        Fault(KIND, f"{run}: {what}", partial(harmless, run=run, line=line))
        for run in RUNS
        for what, line in HARMLESS.items()
    ),
    *(
        Fault(KIND, f"{run}: {what}", partial(harmful, run=run, line=line))
        for run in RUNS
        for what, line in HARMFUL.items()
        if (run, what) != ("ppo", "a score of nan")
    ),  # which PPO may leave out
    *(
        Fault(KIND, f"{run}: {what} at import", partial(at_import, run=run, line=HARMFUL[what]))
        for run in ("label", "ppo")
        for what in AT_IMPORT
    ),
]
