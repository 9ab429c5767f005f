"""What a PPO run would take and do, before anything is loaded; and whether this machine is sound.

    python recipes/doctor.py --config recipes/configs/demo/ppo.yaml

Takes the arguments of ppo.py. You should see versions and devices, the roles and which adapter and
head each has, what is unlike a plain language model in this one, what trains, the memory plan by
phase with what would fit if it does not, and the canaries: small checks of the libraries below that
once gave wrong results in silence. A model that cannot be used is refused before anything else. The
exit code is 1 if a canary fails or the memory does not suffice by a plan that was counted.
"""

from toolkit.cli import run

import importlib.metadata
import os
import platform
from dataclasses import dataclass

import torch

from toolkit.arguments.lora import LoraArguments
from toolkit.arguments.model import ModelArguments
from toolkit.arguments.prompts import PromptArguments
from toolkit.errors import InputError
from toolkit.flags import Count, Flags, flag
from toolkit.models.from_arguments import check_model
from toolkit.models.library_checks import LIBRARY_CHECKS
from toolkit.models.memory import MIB, available_memory, what_fits
from toolkit.scoring.arguments import RewardArguments
from toolkit.terminal import say
from toolkit.training.from_arguments import memory_planner
from toolkit.training.ppo.config import PPOConfig

PACKAGES = ("torch", "transformers", "trl", "peft", "bitsandbytes", "accelerate", "datasets")


@dataclass
class DoctorArguments(Flags):
    prompt_length: Count = flag(64, "Tokens of a prompt, for the plan.")
    canaries: bool = flag(True, "Run the canaries, too.")


def main(
    doctor: DoctorArguments,
    model_args: ModelArguments,
    lora: LoraArguments,
    rewards: RewardArguments,
    args: PromptArguments,
    config: PPOConfig,
) -> int:
    # Whether the model can be used at all.
    name = model_args.model_name_or_path
    notes = check_model(model_args)

    # The machine.
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in PACKAGES)
    say(f"python {platform.python_version()}, {versions}")
    device = "cuda" if torch.cuda.is_available() and not config.use_cpu else "cpu"
    room, where = available_memory(device)
    print(f"device: {where}, {room / MIB:,.0f} MiB free, {os.cpu_count()} cores")

    # The roles.
    frozen = "a frozen copy of the policy's first adapter" if args.policy_adapter else "no adapter"
    values = {"trunk": "head on the policy's trunk", "adapter": "adapter of its own, head"}
    value = f"{values[config.value_role]} (fp32): trains" if config.value_role else "none"
    scorers = [
        rewards.reward_adapter and "adapter, frozen, with its head",
        rewards.reward_model,
        rewards.lexicon,
        rewards.reward_function,
    ]
    print(f"\nbase        {name} in {model_args.precision}, held once")
    print(f"policy      adapter r={lora.lora_r} on {lora.lora_target_modules}: trains")
    print(f"reference   {frozen if args.reference == 'policy_adapter' else 'no adapter'}")
    print(f"value       {value}")
    print(f"reward      {' + '.join(s for s in scorers if s) or 'none given'}")

    for note in notes:
        say(f"note        {note}", indent=12)

    # The memory plan.
    suffices = True
    longest = args.prompt_tokens or doctor.prompt_length
    micro = config.per_device_train_batch_size
    print(f"\nprompts of {longest} tokens, {config.response_length} new, {micro} in a pass:")
    try:
        plan = memory_planner(
            model_args, lora, args, config, rewards.reward_adapter, longest, device
        )
        chosen = plan(micro, bool(config.gradient_checkpointing))
        fits = chosen.peak < room
        verdict = "this fits" if fits else f"this does not fit; {what_fits(plan, micro, room)}"
    except InputError:
        raise
    except Exception as error:
        print(f"no memory plan can be made: {' '.join(str(error).split()):.160}")
    else:
        print("\n".join(chosen.lines()))
        print(f"{chosen.facts['trained']} of {chosen.facts['base']} train")
        if "in 4 bits" in chosen.facts:
            print(f"with its experts {chosen.facts['in 4 bits']} are in 4 bits")
        say(verdict)
        suffices = fits or not chosen.counted

    # The canaries.
    sound = True
    for title, canary in LIBRARY_CHECKS.items() if doctor.canaries else ():
        problem = canary()
        sound &= problem is None
        print(
            f"{'ok  ' if problem is None else 'FAIL'}  {title}{f': {problem}' if problem else ''}"
        )
    return 0 if suffices and sound else 1


if __name__ == "__main__":
    run(main)
