"""The gate: a clean process runs the card's lines on the packed files and must get our numbers.

The process has no network, no token and no home folder. In its Hub cache the two repositories'
names lead to the package and to the base's files.
"""

import gc
import json
import math
import os
import re
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

import torch
from accelerate import PartialState
from safetensors.torch import load_file
from torch import Tensor

from toolkit.data.files import read_object
from toolkit.data.leftovers import scratch_folder
from toolkit.data.links import inside, open_inside
from toolkit.data.secrets import scrub
from toolkit.errors import InputError
from toolkit.hub.adapter_source import VALUE_HEAD, Kind, TrainedAdapter
from toolkit.hub.base_on_hub import TOKENIZER_FILES, Base, problem_of
from toolkit.hub.loading_snippet import Names, ids_line, probe_lines
from toolkit.hub.secret_scan import find_secrets, words_of
from toolkit.models.actors import REFERENCE
from toolkit.models.loading import ValueHead, load_base, load_tokenizer
from toolkit.models.reload import TOLERANCE
from toolkit.models.roles import Roles

PROBES = (
    "We went to the market. It was great.",
    "The answer to the first question is no, because nobody had asked.",
    "On Monday, 3 of 10 people said: I was not sure what to think of it!",
)
MARK = "toolkit-probe: "
# Variables that the clean process inherits: paths of programs and libraries, and thread counts.
KEPT = ("PATH", "LANG", "LC_ALL", "LD_LIBRARY_PATH", "OMP_NUM_THREADS", "TMPDIR")


@dataclass
class Probes:
    """Each probe text's token ids and numbers: log-probs, one score, or values.

    Attributes:
        without: the numbers with the adapter off (and the head on); empty if not measured.
    """

    ids: list[list[int]]
    numbers: list[list[float]]
    without: list[list[float]] = field(default_factory=list)


@torch.no_grad()
def measure(adapter: TrainedAdapter, base: Path) -> Probes:
    """Compute the probes with the training code, from the adapter's own folder."""
    tokenizer = load_tokenizer(str(adapter.tokenizer_home(base)), base=str(base))
    rows = adapter.rows(tokenizer, PROBES, adapter.chat(base))

    model = load_base(str(base), adapter.precision)
    if adapter.kind == "reward":
        roles = Roles(model, reward_adapter=adapter.folder)
    else:
        value, head = None, {}
        if adapter.kind == "value":  # the head sits on the value's own adapter
            value, head = "trunk", load_file(adapter.folder / VALUE_HEAD)
        roles = Roles(
            model,
            value=value,
            policy_adapter=adapter.folder,
            value_hidden=ValueHead.widths_of(head),
        )
        if roles.value_head is not None:
            roles.value_head.load_state_dict(head)

    numbers, without = [], []
    for row in rows:
        ids = torch.tensor([row], device=roles.device)
        mask = torch.ones_like(ids, dtype=torch.bool)
        numbers.append(_flat(_numbers(roles, adapter.kind, ids, mask)))
        without.append(_flat(_without(roles, adapter.kind, ids, mask)))

    del roles, model
    gc.collect()
    return Probes(rows, numbers, without)


def _numbers(roles: Roles, kind: Kind, ids: Tensor, mask: Tensor) -> Tensor:
    """Compute log-probs (1, T - 1), a score (1,) or values (1, T) of ids (1, T)."""
    if kind == "reward":
        return roles.scores(ids, mask)
    if kind == "policy":
        return roles.policy_outputs(ids, mask, ids[:, 1:], temperature=1.0).logprobs
    # Roles gives the value before each token, so add a token to get the value after the last.
    more = torch.cat([ids, ids[:, -1:]], dim=1)
    return roles.values(more, torch.ones_like(more, dtype=torch.bool), ids.shape[1])


def _without(roles: Roles, kind: Kind, ids: Tensor, mask: Tensor) -> Tensor:
    """Compute the same numbers with the adapter off and the head on."""
    if kind == "policy":
        return roles.reference_logprobs(ids, mask, ids[:, 1:], 1.0)
    states = roles.trunk(REFERENCE, ids.shape[1], input_ids=ids, use_cache=False)
    if kind == "reward":
        return roles.gain * roles.read_scores(states[:, -1]) + roles.bias
    return roles.read_values(states)


def _flat(numbers: Tensor) -> list[float]:
    return numbers.float().flatten().tolist()


def _gaps(some: list[list[float]], others: list[list[float]]) -> list[float]:
    pairs = zip(some, others, strict=True)
    return [abs(a - b) for x, y in pairs for a, b in zip(x, y, strict=True)]


def run_lines(
    kind: Kind,
    lines: str,
    package: Path,
    base: Path,
    names: Names,
    ends_with: str = "",
    prefix: list[int] | None = None,
    chat: bool = False,
) -> Probes:
    """Run the card's lines, and after them the probes, in a clean process.

    Args:
        kind: the adapter's kind.
        lines: the card's Python.
        package, base: folders that stand for the repositories.
        names: names of the repositories.
        ends_with, prefix: how the card's lines encode a text (``ids_line``).
        chat: whether the probes are messages, which the lines render.

    Raises:
        InputError: the lines fail.
    """
    with scratch_folder() as folder:
        scratch, cache = str(folder), folder / "hub"
        _pretend(cache, names.repo_id, "f" * 40, package)
        _pretend(cache, names.base_id, names.sha, base)
        script = folder / "card.py"
        ids = ids_line("text", ends_with, prefix)
        probe = (
            f"{probe_lines(kind, ids)}\nimport json as _json\n\n"
            f"_texts = [{'chat(t)' if chat else 't'} for t in {list(PROBES)!r}]\n"
            f"_ids = [{ids}[0].tolist() for text in _texts]\n"
            f"print({MARK!r} + _json.dumps([_ids, [_numbers(t) for t in _texts]]))\n"
        )
        script.write_text(lines + probe, encoding="utf-8")

        here = {name: os.environ[name] for name in KEPT if name in os.environ}
        here |= {
            "HOME": scratch,
            "HF_HOME": scratch,
            "HF_HUB_CACHE": str(cache),
            "HF_HUB_OFFLINE": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
        }
        if PartialState().device.type == "cpu":
            here["CUDA_VISIBLE_DEVICES"] = ""
        elif "CUDA_VISIBLE_DEVICES" in os.environ:
            here["CUDA_VISIBLE_DEVICES"] = os.environ["CUDA_VISIBLE_DEVICES"]

        child = subprocess.run(
            [sys.executable, "-I", str(script)],
            cwd=scratch,
            env=here,
            capture_output=True,
            text=True,
            stdin=subprocess.DEVNULL,
            check=False,
        )

    if child.returncode:
        said = child.stderr.strip().splitlines() or ["no message"]
        errors = [line for line in said if re.match(r"[\w.]+(Error|Exception)\b", line)]
        last = (errors or said)[-1]
        raise InputError(f"gate: the card's lines fail in a clean process: {scrub(last)[:300]}")
    answer = [line for line in child.stdout.splitlines() if line.startswith(MARK)][-1]
    return Probes(*json.loads(answer.removeprefix(MARK)))


def _pretend(cache: Path, repo_id: str, sha: str, files: Path) -> None:
    """Fill ``cache`` as if these files had been downloaded from that repository."""
    root = cache / f"models--{repo_id.replace('/', '--')}"
    (root / "refs").mkdir(parents=True)
    (root / "refs" / "main").write_text(sha)
    (root / "snapshots" / sha).mkdir(parents=True)
    for file in files.iterdir():
        if file.is_file():
            (root / "snapshots" / sha / file.name).symlink_to(file.resolve())


def check_probes(ours: Probes, theirs: Probes, precision: str) -> str:
    """Compare the clean process's numbers with ours.

    Returns:
        A sentence with the largest difference and the allowed difference.

    Raises:
        InputError: the tokens or the numbers differ.
    """
    if ours.ids != theirs.ids:
        raise InputError("gate: the packed tokenizer makes other tokens than the base's")
    numbers = [x for probes in (ours, theirs) for row in probes.numbers for x in row]
    if not all(map(math.isfinite, numbers)):
        raise InputError("gate: some numbers are NaN or infinite (the weights are broken)")

    exact = precision == "fp32" or (precision == "4bit" and PartialState().device.type == "cpu")
    size = max(abs(x) for row in ours.numbers for x in row)
    allowed = TOLERANCE["exact" if exact else "rounded"] * max(1.0, size)
    difference = max(_gaps(ours.numbers, theirs.numbers))
    if not difference <= allowed:
        raise InputError(
            f"gate: loaded by the card's lines, its numbers differ from training's by up to "
            f"{difference:.3g} (allowed {allowed:.3g}): these are not the files that were trained"
        )

    effect = ""
    if ours.without:
        moved = max(_gaps(ours.numbers, ours.without))
        effect = f"; the adapter itself moves them by {moved:.2g}"
        if moved == 0:
            raise InputError("gate: the adapter changes no number at all (was it ever trained?)")
        # Even if rounding errors are large, an adapter that was not loaded must not pass.
        off = sum(_gaps(theirs.numbers, ours.without))
        if not sum(_gaps(theirs.numbers, ours.numbers)) < off:
            raise InputError(
                "gate: loaded by the card's lines it is nearer to the base without the adapter "
                "than with it: the adapter was not loaded"
            )
    return (
        f"gate: loaded in a clean process by the card's lines, the numbers differ by "
        f"{difference:.2g} (allowed {allowed:.2g}{effect})"
    )


def pass_gate(
    adapter: TrainedAdapter, base: Base, repo_id: str, card: str, package: Path
) -> list[str]:
    """Scan the packed files, run the card's Python on them, and print the largest difference.

    Args:
        adapter: the adapter.
        base: its base on the Hub.
        repo_id: the repository that it goes to.
        card: README.md's text.
        package: the folder with the files.

    Returns:
        The problems, one line each.
    """
    if repo_id == base.repo_id:
        return [f"repo_id: {repo_id} is the base itself (choose another name)"]
    if "quantization_config" in read_object(base.files / "config.json", "base"):
        return [
            f"base {base.repo_id}: its checkpoint is saved quantized, and no loading lines for it "
            "exist (train on the checkpoint that it was made from)"
        ]

    problems = []
    if adapter.tokenizer_home(base.files) == base.files:
        for path in sorted(package.iterdir()):
            if path.name in TOKENIZER_FILES and _is_copy(path, base.files):
                problem = problem_of(base, path)
                problems += [problem] if problem else []
    local = [adapter.folder, base.files, package.resolve()]
    problems += find_secrets(package, local, *publicly_known(base, package))

    names = Names(repo_id, base.repo_id, base.sha)
    try:
        ours = measure(adapter, base.files)
        theirs = run_lines(
            adapter.kind,
            python_of(card),
            package,
            base.files,
            names,
            adapter.ends_with,
            adapter.written_prefix(base.files),
            adapter.chat(base.files) is not None,
        )
        print(check_probes(ours, theirs, adapter.precision))
    except InputError as error:
        problems.append(str(error))
    return problems


def _is_copy(path: Path, folder: Path) -> bool:
    """Whether the folder has the same file, byte for byte."""
    stream = open_inside(folder, path.name)
    if stream is None:
        return False
    with stream:
        return stream.read() == path.read_bytes()


def publicly_known(base: Base, folder: Path) -> tuple[set[str], set[str]]:
    """Find the parts of these files that the base's commit on the Hub already shows to everybody.

    Returns:
        The names of files that equal the base's, byte for byte; and the texts in the base's word
        lists, which a tokenizer that was saved again has too ("/root" may be one).
    """
    files = {path.name for path in folder.iterdir() if path.is_file() and base.has(path)}

    words: set[str] = set()
    for name in ("tokenizer.json", "vocab.json"):
        path = inside(base.files, name)
        if path is not None and base.has(base.files / name):
            words |= words_of(path)
    return files, words


def python_of(card: str) -> str:
    """Return the lines of the card's Python blocks, as a reader would copy them."""
    return "\n".join(re.findall(r"^```python\n(.*?)^```", card, flags=re.M | re.S))
