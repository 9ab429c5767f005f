"""Show what a PPO run would do and need, and check this machine, before a model is loaded.

    preftune doctor --config demo:ppo.yaml

The arguments are those of preftune ppo. You should see versions and devices, each role with its
adapter and head, the model's peculiarities, what is trained, and the memory plan by phase with a
way to fit if it does not. Then come the canaries, which are small checks for library errors that
once gave wrong results in silence. A model that cannot be used is refused first. The exit code is 1
if a canary fails, or if the memory is too small by a counted plan.
"""

from toolkit.cli import run

import importlib.metadata
import os
import platform
from dataclasses import dataclass

from toolkit.arguments.lora import LoraArguments
from toolkit.arguments.model import ModelArguments
from toolkit.arguments.prompts import PromptArguments
from toolkit.errors import InputError
from toolkit.flags import Count, Flags, flag
from toolkit.next_step import again, fresh, is_demo, reward_beside, say_last, say_next
from toolkit.scoring.arguments import RewardArguments
from toolkit.terminal import say
from toolkit.training.ppo.config import PPOConfig

PACKAGES = ("torch", "transformers", "trl", "peft", "bitsandbytes", "accelerate", "datasets")


@dataclass
class DoctorArguments(Flags):
    prompt_length: Count = flag(64, "Tokens per prompt in the memory plan.")
    canaries: bool = flag(True, "Run the canaries, small checks of the libraries.")


def main(
    doctor: DoctorArguments,
    model_args: ModelArguments,
    lora: LoraArguments,
    rewards: RewardArguments,
    args: PromptArguments,
    config: PPOConfig,
) -> int:
    import torch

    from toolkit.models.from_arguments import check_model
    from toolkit.models.library_checks import LIBRARY_CHECKS
    from toolkit.models.memory import MIB, available_memory, what_fits
    from toolkit.training.from_arguments import memory_planner

    # Can the model be used at all?
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
    value = f"{values[config.value_role]} (fp32), trained" if config.value_role else "none"
    scorers = [
        rewards.reward_adapter and "adapter, frozen, with its head",
        rewards.reward_model,
        rewards.lexicon,
        rewards.reward_function,
    ]
    print(f"\nbase        {name} in {model_args.precision}, loaded once")
    print(f"policy      adapter r={lora.lora_r} on {lora.lora_target_modules}, trained")
    print(f"reference   {frozen if args.reference == 'policy_adapter' else 'no adapter'}")
    print(f"value       {value}")
    print(f"reward      {' + '.join(s for s in scorers if s) or 'none given'}")

    for note in notes:
        say(f"note        {note}", indent=12)

    # The memory plan.
    suffices = True
    longest = args.prompt_tokens or doctor.prompt_length
    micro = config.per_device_train_batch_size
    print(
        f"\nmemory for prompts of {longest} tokens, {config.response_length} new tokens, "
        f"{micro} in a pass:"
    )
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
        print(f"the memory plan failed: {' '.join(str(error).split()):.160}")
    else:
        print("\n".join(chosen.lines()))
        print(f"{chosen.facts['trained']} of {chosen.facts['base']} are trained")
        if "in 4 bits" in chosen.facts:
            print(f"with the experts, {chosen.facts['in 4 bits']} are in 4 bits")
        say(verdict)
        if rewards.reward_model is not None:
            say(
                f"The reward model {rewards.reward_model} is loaded beside this. Its memory is not "
                "counted here."
            )
        suffices = fits or not chosen.counted

    # The canaries.
    sound = True
    for title, canary in LIBRARY_CHECKS.items() if doctor.canaries else ():
        problem = canary()
        sound &= problem is None
        print(
            f"{'ok  ' if problem is None else 'FAIL'}  {title}{f': {problem}' if problem else ''}"
        )
    # What comes next: the run that was asked about, with what it still lacks.
    if not (suffices and sound):
        say_last("Mend what is said above, then run the same command again.")
        return 1
    lacking = {}
    if not rewards.specs():
        lacking["reward_adapter"] = reward_beside(config.folder, name) or "REWARD/adapter"
    if args.prompts is None and not is_demo(model_args):
        lacking["prompts"] = "PROMPTS.jsonl"
    if not args.overwrite and config.resume is None and config.folder.exists():
        lacking["output_dir"] = fresh(config.folder)
    say_next(again("ppo", "prompt_length", "canaries", "no_canaries", **lacking))
    return 0


if __name__ == "__main__":
    run(main)
