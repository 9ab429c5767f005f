"""The flags of the KL penalty's controller."""

from dataclasses import dataclass
from typing import ClassVar, Literal

from toolkit.flags import Flags, NotNegative, Positive, flag

KLController = Literal["adaptive", "adaptive_paper", "fixed"]


@dataclass
class KLArguments(Flags):
    """How the KL penalty's coefficient moves."""

    HELP_GROUP: ClassVar[str] = "KL penalty"

    kl_controller: KLController = flag(
        "adaptive",
        "How the KL coefficient moves: adaptive (kl_horizon), adaptive_paper (kl_k_beta) or fixed.",
    )
    kl_coef: NotNegative = flag(
        0.15, "KL coefficient (the starting value if the controller adapts)."
    )
    kl_target: Positive = flag(6.0, "Target KL of an adaptive controller, in nats per completion.")
    kl_horizon: Positive = flag(
        10_000, "Episodes over which adaptive corrects; 10 x the batch is the paper's K = 0.1."
    )
    kl_k_beta: Positive = flag(0.1, "Gain K of adaptive_paper, applied at each update.")
