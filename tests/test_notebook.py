"""The notebook: it is what the script makes of the page, and its cells run in order."""

import base64
import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent
NOTEBOOK = ROOT / "docs" / "quickstart.ipynb"

# Few samples and updates. What is learned from so little is not to be trusted, and not looked at.
SMALLER = {
    "--limit 240": "--limit 24",
    "--eval_rows 50": "--eval_rows 6 --normalize_samples 32 --num_train_epochs 1 "
    "--check_reload false",
    "--total_episodes 640": "--total_episodes 24 --allow_untrusted_reward",
    "--per_device_train_batch_size 64": "--per_device_train_batch_size 8",
    "--kl_coef_samples 1024": "--kl_coef 0.1",
    "--limit 64": "--limit 8",
}


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("notebook_maker", ROOT / "docs" / "notebook.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def sources(cells: list[dict[str, Any]], kind: str) -> list[str]:
    return ["".join(cell["source"]) for cell in cells if cell["cell_type"] == kind]


def test_the_notebook_is_made_of_the_page_as_it_stands(script: ModuleType) -> None:
    written = json.loads(NOTEBOOK.read_text(encoding="utf-8"))
    made = script.cells_of(script.PAGE.read_text(encoding="utf-8"))
    again = "run python docs/notebook.py (with --no_run, if only texts have changed)"
    for kind in ("code", "markdown"):
        assert sources(written["cells"], kind) == sources(made, kind), again


def test_its_format_is_that_of_notebooks_and_its_pictures_are_inside() -> None:
    # https://nbformat.readthedocs.io/en/latest/format_description.html
    written = json.loads(NOTEBOOK.read_text(encoding="utf-8"))
    assert (written["nbformat"], written["nbformat_minor"]) == (4, 5)
    cells = written["cells"]
    assert len({cell["id"] for cell in cells}) == len(cells)
    assert all(re.fullmatch(r"[\w-]{1,64}", cell["id"]) for cell in cells)

    code = [cell for cell in cells if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in code] == list(range(1, len(code) + 1))
    for cell in cells:
        expected = {"cell_type", "id", "metadata", "source"}
        if cell["cell_type"] == "code":
            expected |= {"execution_count", "outputs"}
        assert set(cell) == expected

    outputs = [output for cell in code for output in cell["outputs"]]
    pictures = [o["data"]["image/png"] for o in outputs if o["output_type"] == "display_data"]
    assert len(pictures) == 3
    assert all(base64.b64decode(p).startswith(b"\x89PNG") for p in pictures)
    assert NOTEBOOK.stat().st_size < 500_000
    printed = "".join("".join(o.get("text", "")) for o in outputs)
    assert "240 rows of 4 completions" in printed and "Traceback" not in printed
    assert str(ROOT) not in printed


# In a process of its own: recipes that other tests have imported keep paths of the folder then.
RUN = """
import json, runpy, sys
from pathlib import Path
script, cells, folder = sys.argv[1:]
found = json.loads(Path(cells).read_text())
runpy.run_path(script)["run_cells"](found, Path(folder))
Path(cells).write_text(json.dumps(found))
"""


@pytest.mark.slow
def test_its_cells_run_in_order(script: ModuleType, tmp_path: Path) -> None:
    cells = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
    unused = set(SMALLER)

    def smaller(source: str) -> str:
        for words, instead in SMALLER.items():
            if words in source:
                unused.discard(words)
                source = source.replace(words, instead)
        return source

    for cell in cells:
        cell["source"] = [smaller("".join(cell["source"]))]
    assert not unused  # the page has other numbers: change SMALLER
    (tmp_path / "cells.json").write_text(json.dumps(cells))
    words = [str(script.__file__), str(tmp_path / "cells.json"), str(tmp_path)]
    done = subprocess.run(
        [sys.executable, "-c", RUN, *words],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    cells = json.loads((tmp_path / "cells.json").read_text())
    assert (tmp_path / "outputs" / "report" / "report.html").is_file()
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    assert "24 rows of 4 completions" in "".join(code[1]["outputs"][0]["text"])
    assert sum(o["output_type"] == "display_data" for c in code for o in c["outputs"]) == 3
    assert "We went to the market." in "".join(code[-1]["outputs"][0]["text"])
