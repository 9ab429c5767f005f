"""The flags that keep a score from being won by length."""

from dataclasses import dataclass
from typing import ClassVar

from toolkit.flags import Finite, Flags, flag


@dataclass
class LengthArguments(Flags):
    """What a completion's length costs or is worth."""

    HELP_GROUP: ClassVar[str] = "rewards and labelers"

    length_penalty: Finite = flag(
        0.0,
        "Subtract this from the score for each token of the completion that the scorer sees (after "
        "truncation, without an end token), in units of the score after gain, bias and weights.",
    )
    regress_length: bool = flag(
        False,
        "Take out of each score what its length predicts: the slope of the scores over those "
        "tokens, fitted on samples of the untuned model (best-of-n: on its own samples), times the "
        "tokens above their mean.",
    )
