"""Small inputs, made once, and for each stage the words that run it on them in some seconds."""

import atexit
import functools
import json
import shutil
import tempfile
import threading
from collections.abc import Callable
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from benchmarks.faulty.room import LEXICON, MODEL, ROOT, Room, Wrong

BASE = ("--model_name_or_path", MODEL, "--precision", "fp32")
CUT = ("--response_length", 8)
TRAIN = ("--use_cpu", "--max_steps", 3, "--eval_rows", 8, "--per_device_train_batch_size", 4)
PROMPTS = ROOT / "data" / "prompts.jsonl"
TIMES = (
    "seconds",
    "peak_mb",
    "written",
    "git",
    "runtime",
    "per_second",
    "step_time",
    "arguments",
    "settings",
)
_making = threading.Lock()


@dataclass(frozen=True)
class Stage:
    """A recipe on the kit's inputs.

    Attributes:
        recipe: its name.
        words: of its command line, given the kit's folder.
        output: what it writes, in the folder that it works in.
        again: words that it may ask for, where it was killed and something is there.
        code: how it ends.
    """

    recipe: str
    words: Callable[[Path], tuple[object, ...]]
    output: str
    again: tuple[str, ...] = ("--overwrite",)  # one of these, the first that it names
    code: int = 0


STAGES = {
    "sample": Stage(
        "sample",
        lambda kit: (*BASE, *CUT, "--prompts", PROMPTS, "--limit", 60, "--output", "out.jsonl"),
        "out.jsonl",
    ),
    "best_of_n": Stage(
        "best_of_n",
        lambda kit: (
            *BASE,
            *CUT,
            "--prompts",
            PROMPTS,
            "--limit",
            24,
            "--n",
            4,
            "--reward_adapter",
            kit / "reward" / "adapter",
            "--output",
            "out.jsonl",
        ),
        "out.jsonl",
    ),
    "label by a lexicon": Stage(
        "label",
        lambda kit: (
            "--samples",
            kit / "samples.jsonl",
            "--lexicon",
            LEXICON,
            "--output",
            "out.jsonl",
        ),
        "out.jsonl",
    ),
    "label into a store": Stage(
        "label",
        lambda kit: (
            "--samples",
            kit / "samples.jsonl",
            "--lexicon",
            LEXICON,
            "--store",
            "labels.sqlite",
            "--output",
            "out.jsonl",
        ),
        "out.jsonl",
    ),
    "label by a judge": Stage(
        "label",
        lambda kit: (
            "--samples",
            kit / "samples.jsonl",
            "--judge_url",
            judge(),
            "--judge_model",
            "judge",
            "--store",
            "labels.sqlite",
            "--output",
            "out.jsonl",
        ),
        "out.jsonl",
    ),
    "convert": Stage(
        "convert",
        lambda kit: ("--input", kit / "picks.jsonl", "--to", "pairs", "--output", "out.parquet"),
        "out.parquet",
    ),
    "ratings": Stage(
        "ratings",
        lambda kit: ("--comparisons", kit / "picks.jsonl", "--scores", "out.jsonl"),
        "out.jsonl",
    ),
    "reward": Stage(
        "reward",
        lambda kit: (
            *BASE,
            *CUT,
            *TRAIN,
            "--comparisons",
            kit / "picks.jsonl",
            "--folds",
            0,
            "--normalize_samples",
            8,
            "--check_reload",
            "false",
            "--output_dir",
            "out",
        ),
        "out",
    ),
    "sft": Stage(
        "sft",
        lambda kit: (*BASE, *TRAIN, "--comparisons", kit / "picks.jsonl", "--output_dir", "out"),
        "out",
    ),
    "dpo": Stage(
        "preference",
        lambda kit: (*BASE, *TRAIN, "--comparisons", kit / "picks.jsonl", "--output_dir", "out"),
        "out",
    ),
    "kto": Stage(
        "preference",
        lambda kit: (
            *BASE,
            *TRAIN,
            "--method",
            "kto",
            "--comparisons",
            kit / "picks.jsonl",
            "--output_dir",
            "out",
        ),
        "out",
    ),
    "rloo": Stage(
        "rloo",
        lambda kit: (
            *BASE,
            *CUT,
            "--use_cpu",
            "--max_steps",
            2,
            "--prompts",
            PROMPTS,
            "--lexicon",
            LEXICON,
            "--per_device_train_batch_size",
            8,
            "--output_dir",
            "out",
        ),
        "out",
    ),
    "ppo": Stage(
        "ppo",
        lambda kit: (
            *BASE,
            *CUT,
            "--use_cpu",
            "--lexicon",
            LEXICON,
            "--prompts",
            PROMPTS,
            "--total_episodes",
            96,
            "--per_device_train_batch_size",
            16,
            "--save_steps",
            1,
            "--kl_horizon",
            80,
            "--output_dir",
            "out",
        ),
        "out",
        ("--resume auto", "--overwrite"),
    ),
    "merge": Stage(
        "merge",
        lambda kit: (
            "--adapter",
            kit / "sft" / "adapter",
            "--dtype",
            "fp32",
            "--output_dir",
            "out",
        ),
        "out",
    ),
    "evaluate": Stage(
        "evaluate",
        lambda kit: (
            *BASE,
            *CUT,
            "--prompts",
            PROMPTS,
            "--limit",
            24,
            "--lexicon",
            LEXICON,
            "--contenders",
            f"sft={kit / 'sft' / 'adapter'}",
            "best2=best_of_2",
            "--frontier_prompts",
            4,
            "--frontier_samples",
            16,
            "--output_dir",
            "out",
        ),
        "out",
    ),
    "reward_report": Stage(
        "reward_report",
        lambda kit: (
            "--run",
            kit / "reward",
            "--label_fractions",
            "0.5",
            "--lexicon",
            LEXICON,
            "--output_dir",
            "out",
        ),
        "out",
    ),
    "report": Stage(
        "report",
        lambda kit: (
            "--rewards",
            kit / "reward",
            "--trainings",
            kit / "sft",
            "--comparisons",
            kit / "picks.jsonl",
            "--output_dir",
            "out",
        ),
        "out",
    ),
    "publish (dry run)": Stage(
        "publish",
        lambda kit: (
            "--adapter",
            kit / "sft" / "adapter",
            "--repo_id",
            "ci/policy",
            "--base_model_id",
            "ci/base",
            "--license",
            "apache-2.0",
            "--output_dir",
            "out",
            "--dry_run",
        ),
        "out",
        (),
        2,
    ),
    "compare": Stage(
        "compare", lambda kit: ("--configs", kit / "configs", "--output_dir", "out"), "out", ()
    ),
    "sweep": Stage(
        "sweep",
        lambda kit: (
            "--kl_targets",
            1,
            2,
            "--ppo_config",
            kit / "ppo.yaml",
            "--evaluate_config",
            kit / "configs" / "evaluate.yaml",
            "--total_episodes",
            32,
            "--output_dir",
            "out",
        ),
        "out",
        (),
    ),
}


def kit() -> Path:
    """The folder of inputs, made when it is first asked for; it goes when the process ends."""
    with _making:
        return _kit()


@functools.cache
def _kit() -> Path:
    folder = Path(tempfile.mkdtemp(prefix="faults-kit-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    room = Room(folder)
    room.recipe(
        "sample", *BASE, *CUT, "--prompts", PROMPTS, "--limit", 120, "--output", "samples.jsonl"
    ).done()
    room.recipe(
        "label", "--samples", "samples.jsonl", "--lexicon", LEXICON, "--output", "picks.jsonl"
    ).done()
    for name in ("reward", "sft"):
        words = [w if w != "out" else name for w in STAGES[name].words(folder)]
        room.recipe(name, *words).done()

    def config(name: str, **settings: Any) -> None:
        room.write(name, json.dumps(settings))  # JSON is YAML

    base = {"model_name_or_path": str(MODEL), "precision": "fp32"}
    train = {"use_cpu": True, "max_steps": 2, "eval_rows": 8, "per_device_train_batch_size": 4}
    samples, picks = "out/samples.jsonl", "out/picks.jsonl"
    config(
        "configs/sample.yaml",
        **base,
        response_length=8,
        prompts=str(PROMPTS),
        limit=40,
        output=samples,
    )
    config("configs/label.yaml", samples=samples, lexicon=str(LEXICON), output=picks)
    config("configs/sft.yaml", **base, **train, comparisons=picks, output_dir="out/sft")
    config("configs/dpo.yaml", **base, **train, comparisons=picks, output_dir="out/dpo")
    config(
        "configs/evaluate.yaml",
        **base,
        response_length=8,
        prompts=str(PROMPTS),
        limit=16,
        lexicon=str(LEXICON),
        output_dir="out/evaluation",
        contenders=["best2=best_of_2"],
    )
    config(
        "ppo.yaml",
        **base,
        response_length=8,
        use_cpu=True,
        prompts=str(PROMPTS),
        lexicon=str(LEXICON),
        per_device_train_batch_size=16,
        kl_horizon=80,
    )
    return folder


def results(folder: Path) -> dict[str, Any]:
    """What a stage wrote, by path: bytes, but of JSON the values other than times."""
    found = {}
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        name = str(path.relative_to(folder))
        if name in ("stdout", "stderr") or name.startswith("tmp/") or ".sqlite" in name:
            continue
        if path.name in ("timings.jsonl",) or path.suffix in (".html", ".png"):
            found[name] = "there"  # seconds are in it
        elif path.suffix in (".json", ".jsonl"):
            text = path.read_text("utf-8").replace(str(folder), "ROOM")
            lines = text.splitlines() if path.suffix == ".jsonl" else [text]
            found[name] = [_untimed(json.loads(line)) for line in lines]
        else:
            found[name] = path.read_bytes()
    return found


def _untimed(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _untimed(v) for k, v in value.items() if not any(t in k for t in TIMES)}
    return [_untimed(v) for v in value] if isinstance(value, list) else value


def difference(one: Any, other: Any, place: str = "") -> str:
    """Where two such values first differ, and how; "" if they are the same."""
    if isinstance(one, dict) and isinstance(other, dict):
        keys: list[Any] = sorted({*one, *other})
        pairs = [(f"{place}/{k}", one.get(k, "absent"), other.get(k, "absent")) for k in keys]
    elif isinstance(one, list) and isinstance(other, list) and len(one) == len(other):
        pairs = [(f"{place}/{i}", *pair) for i, pair in enumerate(zip(one, other, strict=True))]
    else:
        return "" if one == other else f"{place}: {one!r:.200} and {other!r:.200}"
    return next(filter(None, (difference(a, b, where) for where, a, b in pairs)), "")


def expect_tidy(room: Room) -> None:
    """Raise Wrong if anything unfinished, a lock or a scratch folder is left in the room."""
    for path in room.folder.rglob("*"):
        if path.name.startswith("torchinductor_"):  # torch's cache, one for all of a user's runs
            continue
        if path.name.startswith(".") or path.parent.name == "tmp":
            raise Wrong(f"left behind: {path.relative_to(room.folder)}")


@functools.cache
def judge() -> str:
    """The address of an HTTP judge who likes the longest completion."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Judge)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return f"http://127.0.0.1:{server.server_port}/v1"


class _Judge(BaseHTTPRequestHandler):
    def do_POST(self) -> None:  # noqa: N802 (http.server's name)
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        text = asked["messages"][-1]["content"]
        letter = "ABCD"[len(text) % 2]
        body = json.dumps({"choices": [{"message": {"content": letter}}]}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        pass
