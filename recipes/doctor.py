"""Show what a PPO run would do and need, and check this machine, before a model is loaded.

    preftune doctor --config demo:ppo.yaml
    preftune doctor --model_name_or_path your-org/your-model --gpu 24GB

The arguments are those of preftune ppo. You should see versions and devices, each role with its
adapter and head, the model's peculiarities, what is trained, and the memory plan by phase. With
--gpu the plan is made for a card that need not be here; of the model only config.json is read. At
the end come the settings that fit and a command to paste. Before it come the canaries, which are
small checks for library errors that once gave wrong results in silence. A model that cannot be used
is refused first. The exit code is 1 if a canary fails, or if the memory is too small by a counted
plan.
"""

from toolkit.cli import run

import importlib.metadata
import os
import platform
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from toolkit.arguments.live import PPOPromptArguments
from toolkit.arguments.lora import LoraArguments
from toolkit.arguments.model import ModelArguments
from toolkit.errors import InputError
from toolkit.flags import Count, Flags, flag
from toolkit.next_step import Step, again, fresh, is_demo, reward_beside, say_last, say_next
from toolkit.scoring.arguments import RewardArguments
from toolkit.terminal import say
from toolkit.training.ppo.config import PPOConfig

PACKAGES = ("torch", "transformers", "trl", "peft", "bitsandbytes", "accelerate", "datasets")


@dataclass
class DoctorArguments(Flags):
    gpu: str | None = flag(
        None,
        "Plan for this card instead of this machine: its memory (24GB), or its name (4090, "
        "a100-80gb).",
    )
    prompt_length: Count = flag(64, "Tokens per prompt in the memory plan.")
    canaries: bool = flag(True, "Run the canaries, small checks of the libraries.")


@dataclass
class PlannedConfig(PPOConfig):
    """PPOConfig for a card that need not be here: without one, transformers would refuse bf16."""

    def __post_init__(self) -> None:
        wanted = self.bf16
        if wanted:
            self.bf16 = False
        super().__post_init__()
        if wanted:
            self.bf16 = True


def main(
    doctor: DoctorArguments,
    model_args: ModelArguments,
    lora: LoraArguments,
    rewards: RewardArguments,
    args: PPOPromptArguments,
    config: PlannedConfig,
) -> int:
    import torch

    from toolkit.models import cards
    from toolkit.models.base_config import has_weights
    from toolkit.models.from_arguments import check_model
    from toolkit.models.library_checks import LIBRARY_CHECKS
    from toolkit.models.memory_fit import what_would_fit
    from toolkit.training.chosen import choose_passes, passes_of, recorded_settings
    from toolkit.training.from_arguments import memory_planner

    # Can the model be used at all?
    name = model_args.model_name_or_path
    notes = check_model(model_args, weights=False)
    if Path(name).is_dir() and not has_weights(name):
        notes.append("the folder has no weights: by its config alone, nothing is said of them")

    # The machine.
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in PACKAGES)
    say(f"python {platform.python_version()}, {versions}")
    if doctor.gpu is not None and config.use_cpu:
        raise InputError("gpu: a card is planned for, but use_cpu is true (leave out one)", "gpu")
    planned = None if doctor.gpu is None else cards.room_of(doctor.gpu)
    here = torch.cuda.is_available() and not config.use_cpu
    device = "cuda" if here or planned is not None else "cpu"
    room = planned or cards.free_room(device)
    say(f"device: {room.line()}" + ("" if planned else f"; {os.cpu_count()} cores"))

    # What is chosen for a card, if it was not given.
    longest = args.prompt_tokens or doctor.prompt_length
    count = len(rewards.reward_adapters)
    planner = partial(memory_planner, model_args, lora, args, config, count, longest, device)
    whole = planned or (cards.whole_room() if here else None)
    recorded = recorded_settings(config)
    chosen = choose_passes(config, model_args, planner, whole, recorded=recorded)
    now, batch = passes_of(config, model_args), config.local_batch_size
    if whole is not None and not whole.bf16:
        notes.append(f"{whole.where} computes in bf16 by imitation, which is slow")

    # The roles.
    frozen = "a frozen copy of the policy's first adapter" if args.policy_adapter else "no adapter"
    values = {"trunk": "head on the policy's trunk", "adapter": "adapter of its own, head"}
    value = f"{values[config.value_role]} (fp32), trained" if config.value_role else "none"
    scorers = [
        *["adapter, frozen, with its head"] * count,
        rewards.reward_model,
        rewards.lexicon,
        rewards.reward_function,
    ]
    print(f"\nbase        {name} in {model_args.precision}, loaded once")
    print(f"policy      adapter r={lora.lora_r} on {lora.lora_target_modules}, trained")
    reference = frozen if args.reference == "policy_adapter" else "no adapter"
    if config.reference_ema is not None:
        reference = "an adapter that follows the policy"
    print(f"reference   {reference}")
    print(f"value       {value}")
    print(f"reward      {' + '.join(s for s in scorers if s) or 'none given'}")

    for note in notes:
        say(f"note        {note}", indent=12)

    # The memory plan.
    suffices, fitting = True, now
    print(
        f"\nmemory for prompts of {longest} tokens, {config.response_length} new tokens, "
        f"{now.micro_batch} of {batch} in a pass:"
    )
    try:
        plan = planner()
        made = plan(now)
        fits, instead = made.peak <= room.usable, None
        verdict = "this fits"
        if not fits:
            advice, instead = what_would_fit(plan, now, batch, room.usable)
            verdict = f"this does not fit; {advice}"
    except InputError:
        raise
    except Exception as error:
        print(f"the memory plan failed: {' '.join(str(error).split()):.160}")
    else:
        print("\n".join(made.lines()))
        print(f"{made.facts['trained']} of {made.facts['base']} are trained")
        if "in 4 bits" in made.facts:
            print(f"with the experts, {made.facts['in 4 bits']} are in 4 bits")
        if chosen is not None:
            say(chosen)
        say(verdict)
        if rewards.reward_model is not None:
            say(
                f"The reward model {rewards.reward_model} is loaded beside this. Its memory is not "
                "counted here."
            )
        suffices, fitting = fits or not made.counted, instead or now

    # The canaries.
    sound = True
    for title, canary in LIBRARY_CHECKS.items() if doctor.canaries else ():
        problem = canary()
        sound &= problem is None
        print(
            f"{'ok  ' if problem is None else 'FAIL'}  {title}{f': {problem}' if problem else ''}"
        )
    # What comes next: the run that was asked about, with what it still lacks.
    if not sound or (not suffices and fitting == now):
        say_last("Mend what is said above, then run the same command again.")
        return 1
    flags: dict[str, object] = {}
    if device == "cuda":
        flags = {**fitting.flags(batch), "bf16": config.bf16}
    elif fitting != now:
        before = now.flags(batch)
        flags = {key: value for key, value in fitting.flags(batch).items() if value != before[key]}
    if flags:
        words = Step("ppo", {key: _word(value) for key, value in flags.items()}).words()
        say(f"settings that fit: {' '.join(words)}")
    if not rewards.specs():
        flags["reward_adapter"] = reward_beside(config.folder, name) or "REWARD/adapter"
    if args.prompts is None and not is_demo(model_args):
        flags["prompts"] = "PROMPTS.jsonl"
    if not args.overwrite and config.resume is None and config.folder.exists():
        flags["output_dir"] = fresh(config.folder)
    told = {key: _word(value) for key, value in flags.items()}
    say_next(again("ppo", "prompt_length", "canaries", "no_canaries", "gpu", **told))
    return 0 if suffices else 1


def _word(value: object) -> object:
    """Write out true and false, which a command line would take for a bare flag or none."""
    return str(value).lower() if isinstance(value, bool) else value


if __name__ == "__main__":
    run(main)
