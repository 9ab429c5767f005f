"""The flags that nearly every recipe has."""

from dataclasses import dataclass
from typing import ClassVar

from toolkit.flags import Flags, Seed, flag


@dataclass
class SeedArguments(Flags):
    """What is drawn at random."""

    seed: Seed = flag(0, "Seed of everything that this recipe draws at random.")


@dataclass
class OverwriteArguments(Flags):
    """What happens to earlier results."""

    overwrite: bool = flag(False, "Replace what is there already.")


@dataclass
class InvalidRowsArguments(Flags):
    """What happens to bad rows."""

    HELP_GROUP: ClassVar[str] = "prompts and data"

    skip_invalid: bool = flag(False, "Go on without bad rows, and say how many there are.")
