"""--report_to: what cannot be used here is one line with its cure, before a model is loaded."""

import re
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
from transformers import TrainerCallback, TrainingArguments
from transformers.integrations import integration_utils
from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK

from toolkit.cli import parse
from toolkit.errors import InputError
from toolkit.training.baselines.config import (
    PreferenceConfig,
    RLOOBaselineConfig,
    SFTBaselineConfig,
)
from toolkit.training.log_rows import ShownSample
from toolkit.training.ppo.config import PPOConfig
from toolkit.training.reward.config import BestOfKConfig
from toolkit.training.trackers import EXTRA, KNOWN, as_markdown, check_trackers, send_samples
from toolkit.trl_compat import PPOConfig as TheirPPOConfig

CONFIGS = [
    PPOConfig,
    TheirPPOConfig,
    BestOfKConfig,
    SFTBaselineConfig,
    PreferenceConfig,
    RLOOBaselineConfig,
]


REALLY_FOUND = {
    looked_for: getattr(integration_utils, f"is_{looked_for}_available")
    for looked_for, _ in KNOWN.values()
}


@pytest.fixture(autouse=True)
def nothing_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever this machine has: no tracker is found, but where a test puts one."""
    for looked_for, _ in KNOWN.values():
        monkeypatch.setattr(integration_utils, f"is_{looked_for}_available", lambda: False)


@pytest.mark.parametrize("config", CONFIGS)
def test_every_recipe_names_the_extra_that_brings_the_tracker(config: Any) -> None:
    with pytest.raises(InputError) as caught:
        config(report_to="wandb", use_cpu=True)
    assert str(caught.value) == (
        'report_to: wandb is not installed (pip install "preference-toolkit[trackers]" brings '
        "tensorboard and wandb)"
    )


def test_a_list_in_a_file_is_told_with_its_line(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text("seed: 1\nreport_to: [tensorboard]\n")
    with pytest.raises(InputError, match=r"c\.yaml:2: report_to: tensorboard is not installed"):
        parse(PPOConfig, argv=["--config", str(path), "--use_cpu"])


def test_a_tracker_that_the_extra_lacks_is_named_as_pip_has_it() -> None:
    with pytest.raises(
        InputError,
        match=r"^report_to: comet_ml is not installed \(pip install "
        r'comet-ml; pip install "preference-toolkit\[trackers\]" brings .* alone',
    ):
        check_trackers("comet_ml")


@pytest.mark.parametrize(
    ("name", "hint"), [("WandB", "did you mean wandb"), ("wandb,tensorboard", ""), (None, "")]
)
def test_an_unknown_tracker_is_refused_with_those_there_are(name: Any, hint: str) -> None:
    with pytest.raises(InputError, match=re.escape(f"{name!r} is not a tracker ({hint}")) as caught:
        check_trackers([name])
    assert all(known in str(caught.value) for known in INTEGRATION_TO_CALLBACK)


@pytest.mark.parametrize("config", CONFIGS)
@pytest.mark.parametrize("value", ["none", "all", [], ["none"], ["all"]])
def test_none_all_and_an_empty_list_are_what_they_are_in_transformers(
    config: Any, value: Any, tmp_path: Path
) -> None:
    theirs = TrainingArguments(output_dir=str(tmp_path), report_to=value, use_cpu=True)
    assert config(report_to=value, use_cpu=True).report_to == theirs.report_to


def test_the_table_knows_the_trackers_that_transformers_knows() -> None:
    assert set(KNOWN) == set(INTEGRATION_TO_CALLBACK)


def test_the_extra_brings_what_the_message_says(root: Path) -> None:
    extras = tomllib.loads((root / "pyproject.toml").read_text())["project"][
        "optional-dependencies"
    ]
    names = sorted(re.split("[<>=]", line)[0] for line in extras["trackers"])
    assert names == sorted(EXTRA)
    assert not set(names) & {re.split("[<>=]", line)[0] for line in extras["dev"]}


def put(name: str, code: str | None, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Put a module of this name on the path, or a bare folder, for transformers to find."""
    if code is None:
        (folder / name).mkdir()
    else:
        (folder / f"{name}.py").write_text(code)
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.setattr(integration_utils, f"is_{name}_available", REALLY_FOUND[name])


@pytest.mark.parametrize(
    ("code", "message"),
    [("", None), (None, "trackio is not installed"),
     ("import no_such_module", "trackio does not start: ModuleNotFoundError: No")],
    ids=["installed", "a folder that a tracker left", "installed by halves"],
)  # fmt: skip
def test_what_is_found_must_be_a_tracker_that_starts(
    code: str | None, message: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put("trackio", code, tmp_path, monkeypatch)
    if message is None:
        check_trackers(["trackio"])
        return
    with pytest.raises(InputError, match=re.escape(message)):
        check_trackers(["trackio"])


class Recorder:
    """Stands for a tracker's module or writer: it notes what it is given."""

    def __init__(self) -> None:
        self.given: list[Any] = []

    def add_text(self, tag: str, text: str, step: int) -> None:
        self.given.append((tag, text, step))

    def log(self, values: dict[str, Any], step: int | None = None) -> None:
        self.given.append((values, step))

    def Table(self, columns: list[str], data: list[list[Any]]) -> Any:  # noqa: N802
        return columns, data


def test_samples_reach_the_trackers_that_can_show_them() -> None:
    board = object.__new__(integration_utils.TensorBoardCallback)
    closed = object.__new__(integration_utils.TensorBoardCallback)
    wandb = object.__new__(integration_utils.WandbCallback)
    trackio = object.__new__(integration_utils.TrackioCallback)
    board.tb_writer, closed.tb_writer = Recorder(), None
    wandb._wandb, trackio._trackio = Recorder(), Recorder()
    samples = [ShownSample(7, 1.5, "The owl", " hoots."), ShownSample(7, None, "It", " \x1b[1m")]
    send_samples([TrainerCallback(), board, closed, wandb, trackio], 7, samples)

    table = (
        ["update", "score", "prompt", "completion"],
        [[7, 1.5, "The owl", " hoots."], [7, None, "It", " \\x1b[1m"]],
    )
    assert wandb._wandb.given == [({"samples": table, "train/global_step": 7}, None)]
    assert trackio._trackio.given == [({"samples": table}, 6)]
    ((tag, text, step),) = board.tb_writer.given
    assert (tag, step) == ("samples", 7) and "score +1.50" in text


def test_a_sample_is_code_in_markdown_however_it_looks() -> None:
    text = as_markdown([ShownSample(1, 0.0, "# Title\n<script>", "\n- ![x](http://evil.example)")])
    head, blank, *lines = text.split("\n")
    assert (head, blank) == ("score +0.00", "")
    assert lines and all(line.startswith("    ") for line in lines)
