"""Makes docs/quickstart.ipynb of the page docs/getting-started.md, with outputs and pictures.

    python docs/notebook.py                       (about 4 minutes)
    python docs/notebook.py --no_run

The page's text becomes cells of text, and its blocks that are marked to run become cells of code,
in which a command is called in the notebook's own process. The cells are then run in a folder of
their own, and what they print and show is kept. With --no_run the outputs of the present notebook
stay, and it is an error if a cell of code has changed.
"""

import argparse
import base64
import contextlib
import hashlib
import io
import json
import os
import re
import shlex
import sys
import tempfile
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

DOCS = Path(__file__).parent
ROOT = DOCS.parent
PAGE, NOTEBOOK = DOCS / "getting-started.md", DOCS / "quickstart.ipynb"
LAST = "## What you may meet"  # the page's first section that is not in the notebook
BLOCK = re.compile(r"^```(\w+) run\n(.*?)^```\n", re.M | re.S)
# What the notebook does without: pictures of the page, and the sentence that names the notebook.
LEFT_OUT = (r"^!\[.*\]\(pictures/.*\)$\n*", r" The same steps\n.*\(quickstart\.ipynb\)\.$")
Cell = dict[str, Any]

INTRO = """> This notebook is made from [getting-started.md](getting-started.md) by `python
> docs/notebook.py`. It needs an environment in which the toolkit is installed, and downloads
> nothing."""
PREFTUNE = '''import shlex

from toolkit.cli import call, recipe


def preftune(line):
    """Run a command of preftune in this process, so that libraries are loaded only once."""
    name, *words = shlex.split(line)
    call(recipe(name.replace("-", "_")).main, words)
'''
PICTURES = """from IPython.display import Image, display

for name in ("learning_curves", "frontier_lexicon", "win_rates"):
    display(Image(f"outputs/report/{name}.png"))
"""


def cells_of(page: str) -> list[Cell]:
    """Make the cells of a page, without outputs."""
    told = page.partition(LAST)[0]
    title, _, told = told.partition("\n\n")
    cells = [_text(f"{title}\n\n{INTRO}"), _code(PREFTUNE)]
    end = 0
    for block in BLOCK.finditer(told):
        cells.append(_text(told[end : block.start()]))
        language, body = block.groups()
        cells.append(_code(body if language == "python" else in_python(body)))
        if "preftune report " in body:
            cells.append(_code(PICTURES))
        end = block.end()
    cells.append(_text(told[end:].rstrip() + "\n\nMore: [getting-started.md](getting-started.md)."))
    cells = [cell for cell in cells if "".join(cell["source"]).strip()]
    for place, cell in enumerate(cells):
        digest = hashlib.sha256(f"{place} {''.join(cell['source'])}".encode()).hexdigest()
        cell["id"] = digest[:12]
    return cells


def in_python(block: str) -> str:
    """Write a block of shell commands as calls; those that it may have are preftune and head."""
    calls = []
    for line in block.replace("\\\n", " ").splitlines():
        command = " ".join(shlex.join(shlex.split(line)).split())
        if command.startswith("preftune "):
            calls.append(f"preftune({_wrapped(command.removeprefix('preftune '))})")
        elif found := re.fullmatch(r"head -n 1 (\S+)", command):
            calls.append(f'with open("{found[1]}") as file:\n    print(file.readline())')
        elif command:
            raise SystemExit(f"{PAGE.name}: a cell cannot run {command!r} (write preftune or head)")
    return "\n".join(calls)


def _wrapped(command: str) -> str:
    """Write a command as a string of Python, over several lines if it is long."""
    if len(command) < 80:
        return json.dumps(command)
    parts = re.sub(r" (--)", r"\n\1", command).split("\n")
    return '"""\n    ' + "\n    ".join(parts) + '\n"""'


def _text(source: str) -> Cell:
    lines = source
    for left_out in LEFT_OUT:
        lines = re.sub(left_out, "", lines, flags=re.M)
    lines = lines.strip()
    return {"cell_type": "markdown", "metadata": {}, "source": lines.splitlines(keepends=True)}


def _code(source: str) -> Cell:
    return {
        "cell_type": "code",
        "metadata": {},
        "execution_count": None,
        "outputs": [],
        "source": source.strip().splitlines(keepends=True),
    }


def run_cells(cells: list[Cell], folder: Path, smaller: Callable[[str], str] = str) -> None:
    """Run the cells of code in order in a folder, and keep what they print and show.

    Args:
        cells: of ``cells_of``.
        folder: the working folder.
        smaller: changes a cell's source before it is run.
    """
    names: dict[str, Any] = {"__name__": "__main__"}
    count = 0
    for cell in cells:
        if cell["cell_type"] != "code":
            continue
        count += 1
        printed, pictures = io.StringIO(), list[bytes]()
        source = "".join(cell["source"])
        stand_in = _as_in_jupyter(pictures) if "IPython" in source else contextlib.nullcontext()
        with stand_in, contextlib.chdir(folder), contextlib.redirect_stdout(printed):
            exec(smaller(source), names)
        cell["execution_count"] = count
        cell["outputs"] = [*_stream(printed.getvalue()), *map(_picture, pictures)]


def _stream(text: str) -> list[Cell]:
    """What was printed, without this machine's paths."""
    text = text.replace(f"{ROOT}/", "").strip()
    if not text:
        return []
    lines = [line.rstrip() + "\n" for line in text.splitlines()]
    return [{"output_type": "stream", "name": "stdout", "text": lines}]


def _picture(content: bytes) -> Cell:
    encoded = base64.b64encode(content).decode("ascii")
    data = {"image/png": encoded, "text/plain": ["<a picture>"]}
    return {"output_type": "display_data", "data": data, "metadata": {}}


@contextlib.contextmanager
def _as_in_jupyter(pictures: list[bytes]) -> Iterator[None]:
    """Stand in for the two names of IPython that the cells use, and keep what they show."""
    stand_in = types.ModuleType("IPython.display")
    vars(stand_in).update(Image=lambda path: Path(path).read_bytes(), display=pictures.append)
    before = {name: sys.modules.get(name) for name in ("IPython", "IPython.display")}
    sys.modules["IPython"] = types.ModuleType("IPython")
    sys.modules["IPython.display"] = stand_in
    try:
        yield
    finally:
        for name, module in before.items():
            if module is None:
                del sys.modules[name]
            else:
                sys.modules[name] = module


def notebook(cells: list[Cell]) -> str:
    """The notebook's file, in the format 4.5."""
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    metadata = {"kernelspec": kernel, "language_info": {"name": "python"}}
    whole = {"cells": cells, "metadata": metadata, "nbformat": 4, "nbformat_minor": 5}
    return json.dumps(whole, indent=1, ensure_ascii=False) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--no_run", action="store_true", help="Keep the present outputs.")
    args = parser.parse_args()

    cells = cells_of(PAGE.read_text(encoding="utf-8"))
    if args.no_run:
        old = [c for c in json.loads(NOTEBOOK.read_text())["cells"] if c["cell_type"] == "code"]
        new = [c for c in cells if c["cell_type"] == "code"]
        if [c["source"] for c in old] != [c["source"] for c in new]:
            raise SystemExit("a cell of code has changed: leave out --no_run")
        for ours, theirs in zip(new, old, strict=True):
            ours["outputs"], ours["execution_count"] = theirs["outputs"], theirs["execution_count"]
    else:
        os.environ["COLUMNS"] = "100"
        with tempfile.TemporaryDirectory() as folder:
            run_cells(cells, Path(folder))
    NOTEBOOK.write_text(notebook(cells), encoding="utf-8")
    print(f"{NOTEBOOK.relative_to(ROOT)}: {len(cells)} cells, {NOTEBOOK.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
