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
        "How the coefficient adapts: adaptive (kl_horizon), adaptive_paper (kl_k_beta) or fixed.",
    )
    kl_coef: NotNegative = flag(
        0.15, "KL coefficient (the starting value if the controller adapts)."
    )
    kl_target: Positive = flag(6.0, "Nats per completion at which an adaptive controller aims.")
    kl_horizon: Positive = flag(
        10_000, "Episodes in which it corrects; 10 x the batch is the paper's K = 0.1."
    )
    kl_k_beta: Positive = flag(0.1, "K of the paper's form, per update.")
