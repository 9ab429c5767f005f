"""Whether what ``--report_to`` names can be used here, asked before a model is loaded."""

import difflib
import importlib.util
import warnings

from toolkit.errors import InputError

# The tracker's name -> what transformers calls it when it looks for it, and what pip calls it
# (None: not for pip).
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
    """Raise InputError unless every tracker is one that transformers knows, installed and working.

    "none", an empty list and "all" (every tracker that is installed) are left to transformers.

    Args:
        report_to: as ``TrainingArguments`` takes it: a name, or a list of names.
    """
    names = report_to if isinstance(report_to, list) else [report_to]
    if names in ([], ["none"], ["all"]):
        return

    for name in names:
        problem = _problem(name)
        if problem is not None:
            raise InputError(f"report_to: {problem}", "report_to")


def _problem(name: str | None) -> str | None:
    """What is wrong with a tracker and how to mend it; None if nothing is."""
    if name not in KNOWN:
        close = difflib.get_close_matches(str(name).lower(), KNOWN, n=1)
        hint = f"did you mean {close[0]}? " if close else ""
        return f"{name!r} is no tracker ({hint}there are none, all, {', '.join(KNOWN)})"

    from transformers.integrations import integration_utils as trackers  # imports peft

    looked_for, package = KNOWN[name]
    found = getattr(trackers, f"is_{looked_for}_available")()
    if package is None:
        return None if found else f"{name} works in a Kubeflow TrainJob, and this is none"
    if not found or _is_bare_folder(name):
        if name in EXTRA:
            return f"{name} is not installed ({INSTALL} brings {' and '.join(EXTRA)})"
        return (
            f"{name} is not installed (pip install {package}; {INSTALL} brings "
            f"{' and '.join(EXTRA)} alone)"
        )

    # Make the tracker's callback, as the trainer will: it imports what it needs.
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            trackers.INTEGRATION_TO_CALLBACK[name]()
    except Exception as error:  # whatever a tracker raises where it cannot work
        return f"{name} does not start: {type(error).__name__}: {' '.join(str(error).split())}"
    return None


def _is_bare_folder(name: str) -> bool:
    """Whether this is a folder without code, such as trackers leave in the working folder."""
    spec = importlib.util.find_spec(name)
    return spec is not None and spec.origin is None
