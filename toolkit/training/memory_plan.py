"""The memory plan of a PPO run, from its flags."""

from collections.abc import Callable

from toolkit.arguments.lora import LoraArguments
from toolkit.arguments.model import ModelArguments
from toolkit.arguments.prompts import PromptArguments
from toolkit.arguments.rewards import RewardArguments
from toolkit.models.adapters import count_beside_lora
from toolkit.models.memory import MemoryPlan, plan_memory
from toolkit.training.ppo_config import PPOConfig


def memory_planner(
    model_args: ModelArguments, lora: LoraArguments, rewards: RewardArguments,
    args: PromptArguments, config: PPOConfig, longest: int, device: str,
) -> Callable[[int, bool], MemoryPlan]:  # fmt: skip
    """The memory plan of a PPO run, as a function of micro-batch and checkpointing."""
    shape = model_args.shape()
    return lambda micro_batch, checkpointing: plan_memory(
        shape, model_args.precision, lora.config("CAUSAL_LM"), config.value, longest,
        config.response_length, micro_batch,
        min(config.local_rollout_forward_batch_size, config.local_batch_size),
        reward=rewards.reward_adapter is not None,
        reference_adapter=args.reference_role == "policy_adapter",
        bf16=config.bf16, checkpointing=checkpointing, device=device,
        beside_lora=0 if args.policy_adapter is None else count_beside_lora(args.policy_adapter),
    )  # fmt: skip
