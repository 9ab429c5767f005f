"""``python -m toolkit`` is the console command."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from toolkit.commands import overview


@pytest.mark.slow
def test_the_package_runs_as_the_console_command(root: Path, tmp_path: Path) -> None:
    env = os.environ | {"PYTHONPATH": str(root)}
    line = [sys.executable, "-m", "toolkit"]
    done = subprocess.run(line, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (0, overview() + "\n", "")
