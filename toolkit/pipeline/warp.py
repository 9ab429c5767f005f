"""WARP: train several policies from one start, merge them, go back towards the start, repeat.

    OUT/iteration-1/run-1/, run-2/     PPO runs from one start, each with a moving reference
    OUT/iteration-1/merged/            SLERP of what they changed, with the same share each
    OUT/iteration-2/start/             eta of the way from the start to the merged policy
    ...
    OUT/adapter/                       the last merged policy

Source: arXiv 2406.16768, algorithm 1. Its policies are whole models; here they are LoRA adapters,
and each step is exact. From the second iteration on, a run keeps the start's ranks as they are and
trains new ones beside them (``add_ranks``), so that what it changed is an adapter by itself. With M
runs of rank r, the policy's rank grows by M r in each iteration. The runs of an iteration differ in
their seed, and so in the order of their prompts and in what they sample.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from toolkit.arguments.common import OverwriteArguments, SeedArguments
from toolkit.data.leftovers import scratch_folder
from toolkit.data.outputs import claim_output
from toolkit.embedded import embedded
from toolkit.errors import InputError
from toolkit.flags import Count, CountOrZero, Finite, Positive, Range, Seed, flag
from toolkit.pipeline.stages import Stage
from toolkit.training.methods import METHODS

# What WARP tells each PPO run itself.
OWN = (
    "seed",
    "policy_adapter",
    "reference_ema",
    "train_last_ranks",
    "resume",
    "stop_at_update",
    "online",
)


@dataclass
class WarpArguments(SeedArguments, OverwriteArguments):
    """The iterations and their merges."""

    ppo_config: str = flag(embedded("ppo.yaml"), "YAML file with settings for preftune ppo.")
    policy_adapter: str | None = flag(
        None, "Adapter that the first iteration starts from. By default the base alone."
    )
    iterations: Count = flag(2, "How often policies are trained and merged.")
    runs: Count = flag(2, "PPO runs in each iteration, which differ in their seed.")
    anchor: Annotated[float, Range(above=0, high=1)] = flag(
        0.01,
        "After each update a run's reference moves this share of the way to its policy (mu). The "
        "KL in a run's log is measured against that reference, and the KL from the start is not "
        "measured while training; preftune evaluate measures it.",
    )
    eta: Annotated[float, Range(above=0, high=1)] = flag(
        0.3, "How far along the way from its start to the merged policy the next iteration starts."
    )
    output_dir: str = flag("outputs/warp", "Folder for the runs, and for the merged policy.")


@dataclass
class LinkArguments(OverwriteArguments):
    """A stage that merges the runs of an iteration, or adds ranks to a start."""

    adapters: list[str] = flag([], "Adapters of the runs; none to add ranks to the start alone.")
    start: str | None = flag(None, "Adapter that they were trained from.")
    scale: Finite = flag(1.0, "Eta: how far from the start.")
    new_ranks: CountOrZero = flag(0, "Ranks to add for the next runs.")
    new_scale: Positive = flag(1.0, "alpha / r of the new ranks.")
    seed: Seed = flag(0, "Seed of the new ranks.")
    output_dir: str = flag("start", "Folder to write.")


def link(args: LinkArguments) -> None:
    """Merge the runs by SLERP around their start, and add ranks for the next runs."""
    from toolkit.models.adapter_arithmetic import add_ranks, merge_adapters

    out = claim_output(args.output_dir, args.overwrite, "output_dir", whole=True)
    new = args.new_ranks, args.new_scale, args.seed
    if not args.adapters:
        add_ranks(str(args.start), out, *new)
    else:
        with scratch_folder() as scratch:
            merged = scratch / "merged" if args.new_ranks else out
            outcome = merge_adapters(
                args.adapters, merged, "slerp", None, args.scale, args.start, "runs", chained=True
            )
            print(outcome.sentence())
            if args.new_ranks:
                add_ranks(merged, out, *new, chained=True)


def warp_stages(
    args: WarpArguments, train: Callable[..., object], rank: int, alpha: int
) -> list[Stage]:
    """Return all stages in their order; the last one writes OUT/adapter.

    Args:
        args: WARP's flags.
        train: preftune ppo.
        rank, alpha: of the adapters that the runs train.
    """
    out, stages = Path(args.output_dir), []
    new = ["--new_ranks", str(rank), "--new_scale", str(alpha / rank)]
    start: Path | None = None
    if args.policy_adapter is not None:
        start = out / "iteration-1" / "start"
        told = ["--start", args.policy_adapter, *new, "--seed", str(_seed(args, 1, 0))]
        stages.append(_link("start1", "Add ranks to the start", told, start))

    for number in range(1, args.iterations + 1):
        folder = out / f"iteration-{number}"
        policies = []
        for run in range(1, args.runs + 1):
            place = folder / f"run-{run}"
            words = ["--config", args.ppo_config, "--reference_ema", str(args.anchor)]
            words += ["--seed", str(_seed(args, number, run)), "--output_dir", str(place)]
            if start is not None:
                words += ["--policy_adapter", str(start), "--train_last_ranks", str(rank)]
            policies.append(place / METHODS["ppo"].adapter)
            title = f"Iteration {number} of {args.iterations}, PPO run {run} of {args.runs}"
            name = f"iteration{number}-run{run}"
            stages.append(Stage(name, title, train, words, [policies[-1]], resumes=True))

        told = ["--adapters", *map(str, policies)]
        told += [] if start is None else ["--start", str(start)]
        last = number == args.iterations
        merged = out / "adapter" if last else folder / "merged"
        stages.append(_link(f"merged{number}", "Merge the runs", told, merged))
        if not last:
            start = out / f"iteration-{number + 1}" / "start"
            told += ["--scale", str(args.eta), *new, "--seed", str(_seed(args, number + 1, 0))]
            title = "Go back towards the start, and add ranks"
            stages.append(_link(f"start{number + 1}", title, told, start))
    return stages


def _link(name: str, title: str, words: list[str], out: Path) -> Stage:
    return Stage(name, title, link, [*words, "--output_dir", str(out)], [out / "toolkit.json"])


def _seed(args: WarpArguments, iteration: int, run: int) -> int:
    return (args.seed + 1000 * iteration + run) % 2**32


def check_config(told: dict[str, object], path: str) -> None:
    """Raise InputError if the PPO config says what WARP itself tells each run.

    Args:
        told: the settings that differ from their defaults.
        path: the config's.
    """
    odd = [name for name in OWN if name in told]
    if odd:
        raise InputError(
            f"ppo_config: {path}: leave out {odd[0]}, which WARP sets for each run itself",
            "ppo_config",
        )
    if told.get("save_strategy") == "no":
        raise InputError(
            f"ppo_config: {path}: save_strategy must be steps, so that a killed run can go on",
            "ppo_config",
        )
