"""The trackers of ``--report_to``: whether they work here, and the samples that are sent to them.

transformers sends them the measures. It has no way to send texts, so that is done here.
"""

import difflib
import importlib.util
import warnings
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from toolkit.data.text import printable
from toolkit.errors import InputError
from toolkit.training.log_rows import ShownSample

if TYPE_CHECKING:
    from transformers import TrainerCallback

# The tracker's name -> its name in transformers' checks, and its name for pip (None: no package).
KNOWN: dict[str, tuple[str, str | None]] = {
    "azure_ml": ("azureml", "azureml-sdk"),
    "clearml": ("clearml", "clearml"),
    "codecarbon": ("codecarbon", "codecarbon"),
    "comet_ml": ("comet", "comet-ml"),
    "dagshub": ("dagshub", "dagshub mlflow"),
    "dvclive": ("dvclive", "dvclive"),
    "flyte": ("flytekit", "flytekit"),
    "kubeflow": ("kubeflow", None),
    "mlflow": ("mlflow", "mlflow"),
    "neptune": ("neptune", "neptune"),
    "swanlab": ("swanlab", "swanlab"),
    "tensorboard": ("tensorboard", "tensorboard"),
    "trackio": ("trackio", "trackio"),
    "wandb": ("wandb", "wandb"),
}
EXTRA = ("tensorboard", "wandb")  # pyproject.toml's extra `trackers`
INSTALL = 'pip install "preference-toolkit[trackers]"'


def check_trackers(report_to: str | list[str] | None) -> None:
    """Raise InputError unless transformers knows every tracker, and it is installed and works.

    "none", an empty list and "all" (every tracker that is installed) are left to transformers.

    Args:
        report_to: a name or a list of names, as for ``TrainingArguments``.
    """
    names = report_to if isinstance(report_to, list) else [report_to]
    if names in ([], ["none"], ["all"]):
        return

    for name in names:
        problem = _problem(name)
        if problem is not None:
            raise InputError(f"report_to: {problem}", "report_to")


def _problem(name: str | None) -> str | None:
    """Return what is wrong with a tracker and how to mend it; None if nothing is."""
    if name not in KNOWN:
        close = difflib.get_close_matches(str(name).lower(), KNOWN, n=1)
        hint = f"did you mean {close[0]}? " if close else ""
        return f"{name!r} is not a tracker ({hint}choose none, all, {', '.join(KNOWN)})"

    from transformers.integrations import integration_utils as trackers  # imports peft

    looked_for, package = KNOWN[name]
    found = getattr(trackers, f"is_{looked_for}_available")()
    if package is None:
        return None if found else f"{name} works only in a Kubeflow TrainJob"
    if not found or _is_bare_folder(name):
        if name in EXTRA:
            return f"{name} is not installed ({INSTALL} brings {' and '.join(EXTRA)})"
        return (
            f"{name} is not installed (pip install {package}; {INSTALL} brings "
            f"{' and '.join(EXTRA)} alone)"
        )

    # Make the tracker's callback, as the trainer will, because that imports what it needs.
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            trackers.INTEGRATION_TO_CALLBACK[name]()
    except Exception as error:  # a tracker that cannot work may raise anything
        return f"{name} does not start: {type(error).__name__}: {' '.join(str(error).split())}"
    return None


def _is_bare_folder(name: str) -> bool:
    """Whether this is a folder without code, such as trackers leave in the working folder."""
    spec = importlib.util.find_spec(name)
    return spec is not None and spec.origin is None


def send_samples(
    callbacks: Iterable["TrainerCallback"], update: int, samples: Sequence[ShownSample]
) -> None:
    """Send samples to tensorboard, wandb and trackio; other trackers get none.

    tensorboard shows them as text, the other two as a table "samples", one for each update.
    """
    from transformers.integrations.integration_utils import (
        TensorBoardCallback,
        TrackioCallback,
        WandbCallback,
    )

    header = ["update", "score", "prompt", "completion"]
    rows = [[s.update, s.score, printable(s.prompt), printable(s.completion)] for s in samples]
    for callback in callbacks:
        if isinstance(callback, TensorBoardCallback) and callback.tb_writer is not None:
            callback.tb_writer.add_text("samples", as_markdown(samples), update)
        elif isinstance(callback, WandbCallback):
            table = callback._wandb.Table(columns=header, data=rows)
            callback._wandb.log({"samples": table, "train/global_step": update})
        elif isinstance(callback, TrackioCallback):
            table = callback._trackio.Table(columns=header, data=rows)
            # It counts its calls as steps, from 0; this one belongs to the update's own.
            callback._trackio.log({"samples": table}, step=update - 1)


def as_markdown(samples: Sequence[ShownSample]) -> str:
    """Write samples as Markdown in which their texts are code, so that none of it is obeyed."""
    parts = []
    for sample in samples:
        score = "none" if sample.score is None else f"{sample.score:+.2f}"
        text = printable(f"{sample.prompt} >>> {sample.completion}").splitlines()
        parts.append("\n".join([f"score {score}", "", *(f"    {line}" for line in text)]))
    return "\n\n".join(parts)
