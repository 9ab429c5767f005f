"""The flags that nearly every recipe has."""

from dataclasses import dataclass
from typing import ClassVar

from toolkit.flags import Flags, Seed, flag


@dataclass
class SeedArguments(Flags):
    """The seed of what is drawn at random."""

    seed: Seed = flag(0, "Seed of everything that this recipe draws at random.")


@dataclass
class OverwriteArguments(Flags):
    """What to do with earlier results."""

    overwrite: bool = flag(False, "Replace results that are there already.")


@dataclass
class InvalidRowsArguments(Flags):
    """What to do with bad rows."""

    HELP_GROUP: ClassVar[str] = "prompts and data"

    skip_invalid: bool = flag(False, "Skip bad rows and print how many there are.")
