"""The flag that opens a page on a run while it trains."""

from dataclasses import dataclass
from importlib.util import find_spec
from typing import ClassVar

from toolkit.arguments.prompts import PromptArguments
from toolkit.errors import InputError
from toolkit.flags import Flags, flag

WEB_SERVER = ("starlette", "uvicorn")  # what the page needs of the extra `label`


@dataclass
class LiveArguments(Flags):
    """Whether to open a page on the run."""

    HELP_GROUP: ClassVar[str] = "output, saving and resuming"

    live: bool = flag(
        False,
        "Serve a page on this machine that shows the run while it trains, and print its address. A "
        "process of its own serves it until the run ends; preftune watch opens it again.",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.live:
            check_web_server("live")


@dataclass
class PPOPromptArguments(PromptArguments, LiveArguments):
    """PPO's prompts, and whether to open a page on the run."""


def check_web_server(name: str) -> None:
    """Raise InputError if a package is missing that serves the page; ``name`` is the argument."""
    missing = [package for package in WEB_SERVER if not find_spec(package)]
    if missing:
        raise InputError(
            f"{name}: the page needs {', '.join(missing)} (pip install "
            '"preference-toolkit[label]")',
            name,
        )
