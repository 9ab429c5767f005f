"""Preview a KL target and horizon in a simulation, before a run takes a day.

    preftune preview-kl --kl_target 6 --kl_horizon 10000 --batch_size 256

The simulated policy follows the KL-regularized optimum of a reward of standard deviation 1 with a
delay. You should see KL and coefficient over the updates, whether the KL settles within 5 % of its
target in the last fifth, and how far it overshoots. This simulates the controller, not learning.
"""

from toolkit.cli import run

import dataclasses
from dataclasses import dataclass
from typing import Annotated

from toolkit.arguments.kl import KLArguments
from toolkit.errors import check_range
from toolkit.flags import Count, Positive, Range, flag, other_default
from toolkit.next_step import Step, fresh, say_next
from toolkit.terminal import say


@dataclass
class PreviewArguments(KLArguments):
    kl_coef: Positive = other_default(0.15, KLArguments, "kl_coef")  # a controller cannot change 0
    batch_size: Count = flag(64, "Episodes per update.")
    total_episodes: Count = flag(20_000, "Episodes of the whole run.")
    lag: Annotated[float, Range(low=1)] = flag(10.0, "Delay of the simulated policy in updates.")
    stiffness: Positive = flag(1.0, "Resistance of the simulated policy; above 1 it moves less.")

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range("kl_horizon", self.kl_horizon, low=self.batch_size)


def main(args: PreviewArguments) -> None:
    from toolkit.maths.kl_controllers import controller_of, preview_kl
    from toolkit.maths.schedules import num_updates

    kl_coef = float(args.kl_coef)  # a number here, for nothing can be sampled
    controller = controller_of(
        args.kl_controller, kl_coef, args.kl_target, args.kl_horizon, args.kl_k_beta
    )
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
            "the KL does not settle in this run (use a shorter kl_horizon; if the KL swings, use a "
            "longer one, or a kl_coef near the last one)"
        )
    say_next(ppo_of(args))


def ppo_of(args: PreviewArguments) -> Step:
    """The PPO run that was previewed, as far as this recipe knows it."""
    shared = [f for f in dataclasses.fields(KLArguments)]
    told = {f.name: getattr(args, f.name) for f in shared if getattr(args, f.name) != f.default}
    batch = args.batch_size
    sizes = {"per_device_train_batch_size": batch}
    if batch % 64 == 0:  # PPO's own passes, several of them if need be
        sizes = {"gradient_accumulation_steps": batch // 64} if batch > 64 else {}
    flags = {
        "model_name_or_path": "MODEL",
        "prompts": "PROMPTS.jsonl",
        "reward_adapter": "REWARD/adapter",
        **told,
        **sizes,
        "total_episodes": args.total_episodes,
        "output_dir": fresh("outputs/ppo"),
    }
    return Step("ppo", flags)


if __name__ == "__main__":
    run(main)
