"""Checking the trainer's inputs, and converting each to one form."""

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedTokenizerBase

from toolkit.data.prompts import TAKEN, Prompts
from toolkit.data.records import Row
from toolkit.errors import InputError
from toolkit.models.actors import POLICY, REFERENCE, REWARD, Actors
from toolkit.scoring.ensembles import RewardEnsemble
from toolkit.scoring.functions import as_scorer
from toolkit.scoring.reward_models import RewardAdapter
from toolkit.scoring.scorer import WeightedSum
from toolkit.training.ppo.algorithms import (
    Algorithm,
    AlgorithmArguments,
    Credit,
    Term,
    kl_loss_of,
)
from toolkit.training.ppo.config import PPOConfig

# What the trainer and the log read of every algorithm's statistics.
NEEDED = ("policy", "ratio")
HOOKS = ("credit", "loss", "uses_value", "group_size", "statistics")  # of every algorithm


def own_algorithm(algorithm: Algorithm, args: PPOConfig) -> Algorithm:
    """Check an algorithm that a caller made, beside the flags.

    Raises:
        InputError: the flags name another one, a batch cannot be divided into its groups, it counts
            too little, or it holds what cannot be noted.
    """
    if isinstance(algorithm, type):
        raise InputError(
            f"algorithm: {algorithm.__name__} is a class (pass an instance of it)", "algorithm"
        )
    name = type(algorithm).__name__
    lacking = [each for each in HOOKS if not hasattr(algorithm, each)]
    if lacking:
        raise InputError(
            f"algorithm: {name} lacks {lacking[0]} (toolkit.training.ppo.algorithms.Algorithm says "
            "what it needs)",
            "algorithm",
        )
    if args.algorithm != PPOConfig.algorithm:
        raise InputError(
            f"algorithm: both {args.algorithm} and an own {name} are given", "algorithm"
        )
    for flag in dataclasses.fields(AlgorithmArguments):
        if getattr(args, flag.name) != flag.default:
            raise InputError(
                f"{flag.name} is not used by an own algorithm (leave it out, and let {name} hold "
                "it)",
                flag.name,
            )
    if args.value_warmup and not algorithm.uses_value:
        raise InputError(
            f"value_warmup: {name} has no value that could warm up (leave it out)", "value_warmup"
        )
    if args.local_batch_size % algorithm.group_size:
        raise InputError(
            f"algorithm: {name} has groups of {algorithm.group_size}, which do not divide the "
            f"batch of {args.local_batch_size}",
            "algorithm",
        )
    missing = [each for each in NEEDED if each not in algorithm.statistics]
    if missing:
        raise InputError(
            f"algorithm: {name}'s statistics lack {missing[0]!r} (policy_loss of "
            "toolkit.maths.losses gives what the log needs)",
            "algorithm",
        )
    identity_of(algorithm)
    return algorithm


def check_credit(found: object) -> Credit:
    """Raise InputError unless an algorithm's ``credit`` returned a Credit."""
    if not isinstance(found, Credit):
        raise InputError(
            f"algorithm: credit returned a {type(found).__name__}, and not a Credit of advantages "
            "and returns"
        )
    return found


def check_term(found: object, algorithm: Algorithm) -> None:
    """Raise InputError unless an algorithm's ``loss`` yielded a Term, with known statistics."""
    if not isinstance(found, Term):
        raise InputError(
            f"algorithm: loss gave a {type(found).__name__} where a Term is due (yield each term)"
        )
    known = {*algorithm.statistics, "max_log_ratio"}
    if unknown := sorted(found.statistics.keys() - known):
        raise InputError(
            f"algorithm: loss counts {unknown[0]}, which its statistics do not name (name it there)"
        )


def name_of(algorithm: Algorithm, args: PPOConfig) -> str:
    """Return the name of an algorithm in messages: its flag's, or an own one's class."""
    kind = type(algorithm)
    return args.algorithm if kind.__module__ == Algorithm.__module__ else kind.__name__


def identity_of(algorithm: Algorithm) -> str:
    """Return what identifies an own algorithm: its class, and all constants in both, as JSON.

    Raises:
        InputError: it holds something else than numbers, texts, and lists, dictionaries and
            dataclasses of them.
    """

    def parts(value: object) -> dict[str, object]:
        if not dataclasses.is_dataclass(value):
            raise TypeError(f"a {type(value).__name__}")
        return {"class": type(value).__qualname__} | vars(value)

    kind = type(algorithm)
    try:
        plain = (bool, int, float, str, tuple, list, dict)
        constants = {
            name: value
            for one in reversed(kind.__mro__)
            for name, value in vars(one).items()
            if not name.startswith("_") and isinstance(value, plain)
        }
        held = json.dumps(constants | vars(algorithm), sort_keys=True, default=parts)
    except TypeError as error:
        raise InputError(
            f"algorithm: {kind.__name__} holds what a run cannot note ({error}): let it hold "
            "numbers and texts alone",
            "algorithm",
        ) from None
    return f"{kind.__module__}:{kind.__qualname__} {held}"


def check_actors(model: object, algorithm: Algorithm, args: PPOConfig) -> Actors:
    """Check the roles, and switch on what the configuration needs of their passes.

    Raises:
        InputError: the model is not roles, they were built for another precision, lack a role that
            the algorithm needs, or have nothing to train.
    """
    if not isinstance(model, Actors):
        raise InputError(
            f"model is a {type(model).__name__}, not Roles on one base (build Roles; the "
            "PPOTrainer of toolkit.trl_compat takes separate models, as TRL 1.12's did)"
        )
    autocast = torch.bfloat16 if args.bf16 else None
    if model.autocast_dtype != autocast:
        raise InputError(f"bf16 is {args.bf16}, but the roles were built with the opposite", "bf16")
    if algorithm.uses_value and not model.has_value:
        raise ValueError("the roles have no value: build them with value='adapter' or 'trunk'")
    if not algorithm.uses_value and model.has_value:
        raise InputError(
            f"algorithm: {name_of(algorithm, args)} has no value, but the roles do (build them "
            "without one)",
            "algorithm",
        )
    if (args.reference_ema is not None) != model.moves_reference:
        raise InputError(
            f"reference_ema is {args.reference_ema}, but the roles' reference "
            f"{'moves' if model.moves_reference else 'stays'} (build Roles with "
            "reference='moving' for one that follows the policy)",
            "reference_ema",
        )
    if args.train_last_ranks != model.last_ranks:
        raise InputError(
            f"train_last_ranks is {args.train_last_ranks}, but the roles were built with "
            f"last_ranks {model.last_ranks}",
            "train_last_ranks",
        )
    if tuple(args.value_hidden or ()) != model.value_hidden:
        raise InputError(
            f"value_hidden is {args.value_hidden}, but the value head was built with "
            f"{list(model.value_hidden) or 'none'}",
            "value_hidden",
        )
    model.entropy_gradient = args.entropy_coef > 0
    model.full_kl = kl_loss_of(args) == "full"
    if model.full_kl and model.logit_rule(POLICY) != model.logit_rule(REFERENCE):
        raise InputError(
            "kl_loss: full needs a reference that makes its logits as the policy does (pass k2)",
            "kl_loss",
        )
    if not model.trainable():
        raise InputError("nothing to train: every parameter is frozen")
    if args.gradient_checkpointing:
        # It is a dictionary here, because TrainingArguments has parsed the JSON.
        options = args.activation_checkpointing_kwargs
        model.use_checkpointing(options if isinstance(options, dict) else None)
    return model


def as_rewards(reward_model: object, weights: list[float] | None, actors: Actors) -> WeightedSum:
    """Return the scorers: from one, a function, a classifier, None, or a list of these.

    None and a classifier stand for the reward model among the actors.

    Raises:
        InputError: there is none, the weights do not fit, or there are two ``RewardEnsemble``s.
    """
    listed: list[Any] = (
        list(reward_model) if isinstance(reward_model, list | tuple) else [reward_model]
    )
    unfit = next((part for part in listed if part is not None and not callable(part)), None)
    if unfit is not None:
        raise InputError(f"reward_model: {unfit!r:.60} is neither a model nor a function")

    parts = [
        RewardAdapter() if part is None or isinstance(part, nn.Module) else as_scorer(part)
        for part in listed
    ]
    uses_adapter = any(isinstance(part, RewardAdapter) for part in parts)
    if not parts or (uses_adapter and not actors.has_reward):
        raise InputError("PPO needs a reward (pass a reward adapter, or a reward function)")

    several = [part for part in parts if isinstance(part, RewardEnsemble)]
    if several and uses_adapter:
        raise InputError(
            "reward_model: a RewardEnsemble uses the place of the roles' reward adapter (give the "
            "ensemble that adapter, too)"
        )
    if len(several) > 1:
        raise InputError("reward_model: there are two RewardEnsembles (make one of all adapters)")

    weights = [1.0] * len(parts) if weights is None else list(weights)
    if len(weights) != len(parts):
        raise InputError(
            f"{len(weights)} reward_weights for {len(parts)} rewards", "reward_weights"
        )
    return WeightedSum(parts, weights)


def as_prompts(
    dataset: Any, tokenizer: PreTrainedTokenizerBase | None = None, name: str = "train_dataset"
) -> Prompts:
    """Convert lists of ids, or a dataset with ``input_ids``, to prompts; other columns are kept.

    Padded rows are read by their ``attention_mask``. Rows without one are read as in TRL 1.12,
    which treated every pad token as padding: pad tokens at the ends are left out.

    Args:
        dataset: lists of ids, ``Prompts``, or a dataset whose rows have ``input_ids``.
        tokenizer: for its pad token.
        name: the dataset's name in messages.

    Raises:
        InputError: there are no prompts, or one is empty.
    """
    if isinstance(dataset, Prompts):
        prompts = dataset
    elif dataset is None or (hasattr(dataset, "__len__") and not len(dataset)):
        raise InputError(f"{name} has no prompts")
    elif isinstance(dataset, Mapping) or not hasattr(dataset, "__len__"):
        raise InputError(
            f"{name} is a {type(dataset).__name__}, but prompts are counted and shuffled: pass one "
            "split, a Dataset with input_ids"
        )
    elif isinstance(dataset[0], Mapping):
        rows = list(dataset)
        columns = [n for n in rows[0] if n not in ("input_ids", "attention_mask", *TAKEN)]
        ids = [_unpadded(row, tokenizer, f"{name}: row {i}") for i, row in enumerate(rows)]
        prompts = Prompts(ids, {column: [row[column] for row in rows] for column in columns})
    else:
        prompts = Prompts([[int(i) for i in row] for row in dataset])
    if not len(prompts) or not all(prompts):
        raise InputError(f"{name} has no prompts, or one without tokens")
    return prompts


def _unpadded(row: Row, tokenizer: PreTrainedTokenizerBase | None, place: str) -> list[int]:
    """Return the real tokens of a row's ``input_ids``."""
    if row.get("input_ids") is None:
        raise InputError(f"{place} has no input_ids (tokenize the prompts first)")
    if isinstance(row["input_ids"], Mapping):
        raise InputError(
            f"{place}: its input_ids are a dictionary, but must be a list of ids (since "
            "transformers 5, apply_chat_template returns a dictionary: pass return_dict=False)"
        )
    ids = [int(i) for i in row["input_ids"]]
    if row.get("attention_mask") is not None:
        mask = [int(i) for i in row["attention_mask"]]
        if len(mask) != len(ids):
            raise InputError(
                f"{place} has {len(ids)} input_ids, but an attention_mask of {len(mask)}"
            )
        return [i for i, real in zip(ids, mask, strict=True) if real]
    pad = None if tokenizer is None else tokenizer.pad_token_id
    if tokenizer is None or pad is None or pad == tokenizer.unk_token_id:
        return ids
    start, stop = 0, len(ids)
    while start < stop and ids[start] == pad:
        start += 1
    while stop > start and ids[stop - 1] == pad and pad != tokenizer.eos_token_id:
        stop -= 1
    return ids[start:stop]


def as_eval_prompts(
    dataset: Any, tokenizer: PreTrainedTokenizerBase
) -> tuple[Prompts | None, dict[str, Prompts]]:
    """Return all held-out prompts; and those of each dataset by name, if there are several."""
    if dataset is None or (isinstance(dataset, Mapping) and not dataset):
        return None, {}
    if not isinstance(dataset, Mapping):
        return as_prompts(dataset, tokenizer, "eval_dataset"), {}
    parts = {
        str(name): as_prompts(part, tokenizer, f"eval_dataset {name}")
        for name, part in dataset.items()
    }
    names = sorted({column for part in parts.values() for column in part.columns})
    columns = {
        column: [
            value
            for part in parts.values()
            for value in part.columns.get(column, [None] * len(part))
        ]
        for column in names
    }

    whole = Prompts([ids for part in parts.values() for ids in part], columns)
    start = 0
    for part in parts.values():
        whole.given |= {start + i: given for i, given in part.given.items()}
        whole.chat = part.chat if part.messages else whole.chat
        start += len(part)

    return whole, parts


def digest_of(model: Actors, reward: bool) -> str:
    """Hash the reward model (adapter, head, gain and bias), or everything else that is frozen."""
    digest = hashlib.sha256(repr((model.gain, model.bias) if reward else None).encode())
    for name, parameter in model.named_parameters():
        of_reward = f".{REWARD}." in name or name.startswith("reward")
        frozen = model.is_frozen_adapter(name, parameter)
        if of_reward == reward and (of_reward or frozen):
            digest.update(name.encode())
            digest.update(parameter.detach().float().cpu().numpy().tobytes())
    return digest.hexdigest()[:16]


def hash_of(value: object) -> str:
    """Return the first 16 digits of the SHA-256 of a value's JSON."""
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()[:16]
