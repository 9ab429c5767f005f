"""What a KL horizon does, before one burns a day: a sketch of the control loop.

    python recipes/preview_kl.py --kl_target 6 --kl_horizon 10000 --batch_size 256

Simulates a policy that follows the KL-regularised optimum of a reward of standard deviation 1, with
a delay, and prints KL and coefficient over the updates, whether the KL settles within 5 % of its
target in the last fifth, and how far it overshoots. A sketch of the controller, not of learning.
"""

from toolkit.cli import run

from dataclasses import dataclass, field

from toolkit.errors import check_choice, check_range
from toolkit.maths.kl import AdaptiveKLController, FixedKLController, preview_kl
from toolkit.maths.schedules import num_updates


@dataclass
class PreviewArguments:
    kl_controller: str = field(default="adaptive", metadata={"help": "adaptive, adaptive_paper or "
                                                             "fixed."})  # fmt: skip
    kl_coef: float = field(default=0.15, metadata={"help": "Where it starts."})
    kl_target: float = field(default=6.0, metadata={"help": "Nats per completion."})
    kl_horizon: float = field(default=10_000, metadata={"help": "Episodes."})
    kl_k_beta: float = field(default=0.1, metadata={"help": "K of the paper's form."})
    batch_size: int = field(default=64, metadata={"help": "Episodes in an update."})
    total_episodes: int = field(default=20_000, metadata={"help": "Episodes in all."})
    lag: float = field(default=10.0, metadata={"help": "Updates in which the policy follows."})
    stiffness: float = field(default=1.0, metadata={"help": "Above 1: it moves less far."})

    def __post_init__(self) -> None:
        check_choice("kl_controller", self.kl_controller, ("adaptive", "adaptive_paper", "fixed"))
        for name in ("kl_coef", "kl_target", "kl_horizon", "kl_k_beta", "stiffness"):
            check_range(name, getattr(self, name), above=0)
        for name in ("batch_size", "total_episodes", "lag"):
            check_range(name, getattr(self, name), low=1)
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
        print(
            "it does not settle in this run: a shorter kl_horizon moves the coefficient faster; if "
            "it swings, a longer one, or a kl_coef nearer to where it ends"
        )


if __name__ == "__main__":
    run(main)
