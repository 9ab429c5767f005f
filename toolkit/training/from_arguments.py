"""From a recipe's flags: the sampling rule in token ids, and the memory plan."""

from transformers import PreTrainedTokenizerBase

from toolkit.arguments.lora import LoraArguments
from toolkit.arguments.model import ModelArguments
from toolkit.arguments.prompts import PromptArguments
from toolkit.arguments.sampling import CompletionArguments
from toolkit.models.adapters import count_beside_lora
from toolkit.models.from_arguments import config_of, lora_of, reference_role
from toolkit.models.memory import MemoryPlan, plan_memory
from toolkit.models.memory_fit import Passes, Planner
from toolkit.models.sampling import SamplingRule, sampling_rule
from toolkit.training.ppo.algorithms import kl_loss_of
from toolkit.training.ppo.config import PPOConfig


def rule_of(
    args: CompletionArguments, tokenizer: PreTrainedTokenizerBase, penalty: float = -1.0
) -> SamplingRule:
    """Make the sampling rule in token ids; ``penalty`` is for a missing truncation token."""
    return sampling_rule(
        tokenizer,
        args.response_length,
        args.temperature,
        args.stop_token,
        args.truncate_token,
        args.truncate_after,
        penalty,
    )


def memory_planner(
    model_args: ModelArguments,
    lora: LoraArguments,
    args: PromptArguments,
    config: PPOConfig,
    rewards: int,
    longest: int,
    device: str,
    text_length: int | None = None,
) -> Planner:
    """Return a function that plans a PPO run's memory from the sizes of its passes.

    Args:
        model_args, lora, args, config: the run.
        rewards: number of reward adapters on the same base.
        longest: tokens of the longest prompt.
        device: "cuda" or "cpu".
        text_length: tokens of the longest row of the pretraining mix; by default the most that the
            flags allow.
    """
    shape = config_of(model_args)
    start = args.policy_adapter
    if text_length is None and config.ptx_coef:
        text_length = config.text_length(longest)
    beside_lora = 0 if start is None else count_beside_lora(start)

    def plan(passes: Passes) -> MemoryPlan:
        return plan_memory(
            shape,
            passes.precision,
            lora_of(lora, "CAUSAL_LM"),
            config.value_role,
            longest,
            config.response_length,
            passes.micro_batch,
            passes.rollout_batch,
            reward=rewards,
            reference_adapter=config.reference_ema is not None
            or reference_role(args) == "policy_adapter",
            bf16=config.bf16,
            checkpointing=passes.checkpointing,
            device=device,
            beside_lora=beside_lora,
            plain_scales=passes.plain_scales,
            unpack_base=passes.unpack_base,
            text_length=text_length,
            value_hidden=config.value_hidden or (),
            entropy_gradient=config.entropy_coef > 0,
            full_kl=kl_loss_of(config) == "full",
        )

    return plan
