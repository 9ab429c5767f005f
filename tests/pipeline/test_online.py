"""A loop goes on under its own settings alone, and one at a time."""

import fcntl
import json
from pathlib import Path

import pytest

from toolkit.data.locks import letting_go
from toolkit.errors import InputError
from toolkit.pipeline.arguments import OnlineArguments
from toolkit.pipeline.online import check_alike, claim


def test_a_loop_goes_on_only_under_its_own_settings(tmp_path: Path) -> None:
    args = OnlineArguments(output_dir=str(tmp_path / "o"))
    assert claim(args, {"ppo": {"lam": 0.9}}) == claim(args, {"ppo": {"lam": 0.9}})
    args.on_alarm = "stop"
    claim(args, {"ppo": {"lam": 0.9}})
    args.noise = 0.1
    with pytest.raises(InputError, match="noise was 0.0 and is 0.1"):
        claim(args, {"ppo": {"lam": 0.9}})
    (tmp_path / "o" / "online.json").unlink()
    (tmp_path / "o" / "mine.txt").write_text(json.dumps(1))
    with pytest.raises(InputError, match="exists"):
        claim(args, {})


def test_people_judge_what_ppo_is_scored_on() -> None:
    class One:
        response_length, stop_token, truncate_after = 24, None, 16
        truncate_token: str | None = "."

    class Other(One):
        truncate_token = None

    check_alike(One, One)
    with pytest.raises(InputError, match="truncate_token: '.' in sample_config, but None in ppo"):
        check_alike(One, Other)


def test_a_loop_that_others_run_is_refused(tmp_path: Path) -> None:
    args = OnlineArguments(output_dir=str(tmp_path))
    with letting_go():
        claim(args, {})  # begun, and to be gone on with
    with open(tmp_path / ".lock", "w") as held:  # as another process holds it
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(InputError, match="is being written by another run"):
            claim(args, {})
