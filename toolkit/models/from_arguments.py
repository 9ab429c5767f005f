"""Checking and loading what a recipe's flags name: base, tokenizer and adapter."""

from pathlib import Path
from typing import Literal

from peft import LoraConfig
from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from toolkit.arguments.lora import LoraArguments, StartedLoraArguments
from toolkit.arguments.model import ModelArguments
from toolkit.arguments.prompts import DEMO_PROMPTS, PromptArguments
from toolkit.embedded import is_embedded_model
from toolkit.errors import InputError
from toolkit.models.adapter_config import read_config
from toolkit.models.adapters import check_adapter, check_copyable, check_for_trl, lora_config
from toolkit.models.base_config import check_context, context_length
from toolkit.models.families import LANGUAGE_HEADS
from toolkit.models.loading import check_base, load_base, load_config, load_tokenizer, way_to_load
from toolkit.models.reload import verify_reload


def check_model(args: ModelArguments, weights: bool = True) -> list[str]:
    """Check the model's config; return a line for each difference from a plain language model.

    Args:
        args: the base.
        weights: whether a folder must hold weights, and not only a config.

    Raises:
        InputError: there is no model, or it cannot be used in this precision.
    """
    check_base(args.model_name_or_path, weights)
    way = way_to_load(
        args.model_name_or_path, args.precision, "cpu", args.model_revision, args.trust_remote_code
    )
    return way.notes


def tokenizer_of(args: ModelArguments, adapter: str | None = None) -> PreTrainedTokenizerBase:
    """Load the tokenizer: the one that was named, the adapter's, or the base's.

    Args:
        args: the base.
        adapter: a policy adapter's folder, which may hold a tokenizer.
    """
    check_model(args)
    base, named = args.model_name_or_path, args.tokenizer_name_or_path
    if named is None and adapter and (Path(adapter) / "tokenizer_config.json").is_file():
        named = adapter

    if named is None or named == base:
        return load_tokenizer(base, args.model_revision, args.trust_remote_code)
    found = load_tokenizer(named, "main", args.trust_remote_code, base)
    print(f"tokenizer: from {named}, with {len(found)} tokens")
    return found


def base_of(args: ModelArguments, score_head: bool = False, seed: int = 0) -> PreTrainedModel:
    """Load the base (``load_base``)."""
    return load_base(
        args.model_name_or_path,
        args.precision,
        args.model_revision,
        args.trust_remote_code,
        score_head,
        seed,
        bool(args.plain_scales),
    )


def config_of(args: ModelArguments) -> PreTrainedConfig:
    """Load the model's config (``load_config``)."""
    return load_config(args.model_name_or_path, args.model_revision, args.trust_remote_code)


def prompts_or_demo(args: ModelArguments, given: str | None, demo: str = DEMO_PROMPTS) -> str:
    """Return the given prompts, or the demo's, which fit only the embedded model.

    Raises:
        InputError: no prompts were given for another model.
    """
    if given is not None:
        return given

    if not is_embedded_model(args.model_name_or_path):
        raise InputError(
            f"prompts: none were given, and {demo} fits only the embedded model (choose the "
            f"prompts that {args.model_name_or_path} continues with --prompts)",
            "prompts",
        )
    return demo


def check_length(args: ModelArguments, prompts: list[list[int]], response_length: int) -> None:
    """Raise InputError if the longest prompt and its completion would not fit the context."""
    longest = max(len(prompt) for prompt in prompts)
    if not args.trust_remote_code:
        check_context(args.model_name_or_path, longest + response_length, args.model_revision)


def longest_text(args: ModelArguments, max_length: int | None) -> int:
    """Return ``max_length`` in tokens, or the model's context if that is shorter."""
    context = None
    if not args.trust_remote_code:
        context = context_length(args.model_name_or_path, args.model_revision)
    return min(max_length or 1 << 30, context or 1 << 30)


def verify_scores(
    args: ModelArguments, folder: str | Path, rows: list[list[int]], scores: list[float]
) -> None:
    """Raise InputError unless a clean process computes these scores (``verify_reload``)."""
    difference = verify_reload(
        folder,
        args.model_name_or_path,
        args.precision,
        rows,
        scores,
        args.model_revision,
        args.trust_remote_code,
    )
    print(f"reloaded with plain peft in a clean process: scores differ by {difference:.2g}")


def lora_of(args: LoraArguments, task_type: str) -> LoraConfig:
    """Configure LoRA for "CAUSAL_LM" or "SEQ_CLS" (``lora_config``)."""
    return lora_config(args.lora_r, args.lora_alpha, args.lora_target_modules, task_type)


def check_lora_for_trl(args: LoraArguments, head: bool = True) -> None:
    """Raise InputError if TRL's trainers would refuse LoRA on the output head."""
    names = {name.strip().rpartition(".")[2] for name in args.lora_target_modules.split(",")}
    if head and names & set(LANGUAGE_HEADS):
        raise InputError(
            "lora_target_modules: TRL's trainers refuse LoRA on the output head (leave it out; "
            "preftune ppo trains it)",
            "lora_target_modules",
        )


def check_start(
    policy_adapter: str | None,
    args: ModelArguments,
    lora: LoraArguments,
    copied: bool = False,
    head: bool = True,
) -> None:
    """Raise InputError unless the adapter to start from fits the base and TRL's trainers.

    Args:
        policy_adapter: a folder, if the policy starts from an adapter.
        args: the base.
        lora: the adapter to train if none is given.
        copied, head: as for ``check_for_trl``.
    """
    if policy_adapter is None:
        check_lora_for_trl(lora, head)
        return

    base, what = args.model_name_or_path, "--policy_adapter"
    check_adapter(policy_adapter, base, "CAUSAL_LM", what, args.precision)
    check_for_trl(policy_adapter, base, what, copied, head)


def check_reward_start(
    lora: StartedLoraArguments, args: ModelArguments, what: str = "--start_adapter"
) -> None:
    """Check the adapter that a reward model starts from, and take rank, scale and layers from it.

    Args:
        lora: its flags become those of the adapter; without ``start_adapter`` nothing happens.
        args: the base.
        what: the argument that named the adapter.

    Raises:
        InputError: the adapter does not fit the base, cannot be copied exactly, or a flag
            contradicts it.
    """
    folder = lora.start_adapter
    if folder is None:
        return
    check_adapter(folder, args.model_name_or_path, "CAUSAL_LM", what, args.precision)
    check_copyable(folder, what)

    config = read_config(folder, what)
    targets = config.get("target_modules") or []
    own: dict[str, object] = {
        "lora_r": config.get("r", 8),
        "lora_alpha": config.get("lora_alpha", 8),
        "lora_target_modules": targets if isinstance(targets, str) else ",".join(sorted(targets)),
    }
    for name, value in own.items():
        given = getattr(lora, name)
        if name in lora.given_defaults and _named(given) != _named(value):
            raise InputError(
                f"{name} is {given}, but {folder}, of which the reward model starts as a copy, has "
                f"{value} (leave {name} out)",
                name,
            )
        setattr(lora, name, value)


def _named(value: object) -> object:
    """The layers that a text names, in any order; another value as it is."""
    if not isinstance(value, str):
        return value
    return sorted(name.strip() for name in value.split(",") if name.strip())


def reference_role(args: PromptArguments) -> Literal["policy_adapter", "base"]:
    """Return the reference by its name in ``Roles``."""
    return args.reference if args.policy_adapter is not None else "base"
