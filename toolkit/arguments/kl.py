"""The flags of the KL penalty's controller."""

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from toolkit.flags import Flags, Positive, Range, flag

KLController = Literal["adaptive", "adaptive_paper", "adaptive_pi", "fixed"]


@dataclass
class KLArguments(Flags):
    """How the KL penalty's coefficient moves."""

    HELP_GROUP: ClassVar[str] = "KL penalty"

    kl_controller: KLController = flag(
        "adaptive",
        "How the KL coefficient moves: adaptive (kl_horizon), adaptive_paper (kl_k_beta), "
        "adaptive_pi (kl_horizon; it waits until the KL first reaches its target, and then answers "
        "faster) or fixed.",
    )
    kl_coef: Annotated[float | str, Range(low=0, words=("auto",))] = flag(
        0.15,
        "KL coefficient (the starting value if the controller adapts), or auto: the one at which "
        "the best policy would have kl_target, estimated from samples before training.",
    )
    kl_target: Positive = flag(6.0, "Target KL of an adaptive controller, in nats per completion.")
    kl_horizon: Positive = flag(
        10_000, "Episodes over which adaptive corrects; 10 x the batch is the paper's K = 0.1."
    )
    kl_k_beta: Positive = flag(0.1, "Gain K of adaptive_paper, applied at each update.")
