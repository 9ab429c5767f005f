"""What a KL horizon does, before one burns a day: a sketch of the control loop.

    python recipes/preview_kl.py --kl_target 6 --kl_horizon 10000 --batch_size 256

Simulates a policy that follows the KL-regularized optimum of a reward of standard deviation 1, with
a delay, and prints KL and coefficient over the updates, whether the KL settles within 5 % of its
target in the last fifth, and how far it overshoots. A sketch of the controller, not of learning.
"""

from toolkit.cli import run

from dataclasses import dataclass
from typing import Annotated

from toolkit.arguments.kl import KLArguments
from toolkit.errors import check_range
from toolkit.flags import Count, Positive, Range, flag, other_default
from toolkit.maths.kl import AdaptiveKLController, FixedKLController, preview_kl
from toolkit.maths.schedules import num_updates
from toolkit.terminal import say


@dataclass
class PreviewArguments(KLArguments):
    kl_coef: Positive = other_default(0.15, KLArguments, "kl_coef")  # a controller moves no 0
    batch_size: Count = flag(64, "Episodes in an update.")
    total_episodes: Count = flag(20_000, "Episodes in all.")
    lag: Annotated[float, Range(low=1)] = flag(10.0, "Updates in which the policy follows.")
    stiffness: Positive = flag(1.0, "Above 1: it moves less far.")

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range("kl_horizon", self.kl_horizon, low=self.batch_size)


def main(args: PreviewArguments) -> None:
    controller = FixedKLController(args.kl_coef)
    if args.kl_controller != "fixed":
        k_beta = args.kl_k_beta if args.kl_controller == "adaptive_paper" else None
        controller = AdaptiveKLController(args.kl_coef, args.kl_target, args.kl_horizon, k_beta)
    updates = num_updates(args.total_episodes, args.batch_size)
    path = preview_kl(controller, updates, args.batch_size, args.stiffness, args.lag)

    highest = max(kl for kl, _ in path)
    print(f"{'update':>8}{'KL':>8}{'kl_coef':>10}")
    for update in sorted({round(i * (updates - 1) / 19) for i in range(20)}):
        kl, coefficient = path[update]
        bar = "#" * round(40 * kl / max(highest, args.kl_target))
        print(f"{update + 1:8}{kl:8.2f}{coefficient:10.4f}  {bar}")
    last = [kl for kl, _ in path[-max(1, updates // 5) :]]
    mean = sum(last) / len(last)
    settled = all(abs(kl / args.kl_target - 1) < 0.05 for kl in last)
    print(f"last fifth: KL {mean:.2f} (target {args.kl_target:g}), highest {highest:.2f}")
    if args.kl_controller != "fixed" and not settled:
        say(
            "it does not settle in this run: a shorter kl_horizon moves the coefficient faster; if "
            "it swings, a longer one, or a kl_coef nearer to where it ends"
        )


if __name__ == "__main__":
    run(main)
