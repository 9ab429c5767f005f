"""What the recipes can be told: dataclasses, the one place of defaults, help and range checks."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from peft import LoraConfig
from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from toolkit.data.chat import ChatArguments
from toolkit.data.comparisons import Comparisons, open_comparisons, split_by_prompt
from toolkit.data.encoding import LONG_ROWS, Encoder
from toolkit.data.prompts import PROMPTS_HELP, Prompts, read_prompts
from toolkit.errors import InputError, check_choice, check_range
from toolkit.labeling.addresses import is_loopback
from toolkit.labeling.store import Settings, person_name
from toolkit.models.adapters import (
    check_adapter,
    check_for_trl,
    count_beside_lora,
    lora_config,
)
from toolkit.models.families import LANGUAGE_HEADS
from toolkit.models.loading import (
    check_base,
    check_context,
    context_length,
    load_base,
    load_config,
    load_tokenizer,
    way_to_load,
)
from toolkit.models.memory import MemoryPlan, plan_memory
from toolkit.models.reload import verify_reload
from toolkit.models.sampling import SamplingRule, sampling_rule
from toolkit.scoring.arguments import RewardArguments
from toolkit.training.ppo.config import PPOConfig

PRECISIONS = ("4bit", "bf16", "fp32")
DEMO_MODEL = "data/model"
DEMO_PROMPTS = "data/prompts.jsonl"


@dataclass
class ModelArguments:
    """Which base model, and how it is loaded. Field names are those of TRL's ModelConfig."""

    model_name_or_path: str = field(
        default=DEMO_MODEL, metadata={"help": "Hub id or folder of the base model."}
    )
    model_revision: str = field(
        default="main", metadata={"help": "Branch, tag or commit on the Hub."}
    )
    precision: str = field(
        default="4bit",
        metadata={"help": "How the base is held: 4bit (NF4, double quantised), bf16 or fp32."},
    )
    tokenizer_name_or_path: str | None = field(
        default=None,
        metadata={"help": "Tokenizer, where it is not the model's own: of an adapter that was "
                  "trained with new tokens, say. By default the policy adapter's, if it has one."},
    )  # fmt: skip
    trust_remote_code: bool = field(
        default=False, metadata={"help": "Run Python code that the model's repository ships."}
    )

    def __post_init__(self) -> None:
        check_choice("precision", self.precision, PRECISIONS)

    def check(self) -> list[str]:
        """What of the model is unlike a plain language model, in a line each, by its config.

        Raises:
            InputError: there is none, it cannot be used, or not in this precision.
        """
        check_base(self.model_name_or_path)
        way = way_to_load(
            self.model_name_or_path, self.precision, "cpu", self.model_revision,
            self.trust_remote_code,
        )  # fmt: skip
        return way.notes

    def tokenizer(self, adapter: str | None = None) -> PreTrainedTokenizerBase:
        """The tokenizer (``load_tokenizer``): the one that was named, the adapter's, or the base's.

        Args:
            adapter: a policy adapter's folder; peft too takes the tokenizer that lies in it.
        """
        self.check()
        base, named = self.model_name_or_path, self.tokenizer_name_or_path
        if named is None and adapter and (Path(adapter) / "tokenizer_config.json").is_file():
            named = adapter
        if named is None or named == base:
            return load_tokenizer(base, self.model_revision, self.trust_remote_code)
        found = load_tokenizer(named, "main", self.trust_remote_code, base)
        print(f"tokenizer: that of {named}, with {len(found)} tokens")
        return found

    def prompts(self, given: str | None, demo: str = DEMO_PROMPTS) -> str:
        """The prompts that were given, or the demo's, which go with the embedded model alone.

        Raises:
            InputError: none were given for another model.
        """
        if given is not None:
            return given
        folder = Path(self.model_name_or_path).resolve()
        embedded = Path(__file__).resolve().parents[1] / DEMO_MODEL
        if folder not in (embedded, Path(DEMO_MODEL).resolve()):
            raise InputError(
                f"prompts: none were given, and {demo} is made for the embedded model (say which "
                f"prompts {self.model_name_or_path} is to continue: --prompts)", "prompts",
            )  # fmt: skip
        return demo

    def check_context(self, prompts: list[list[int]], response_length: int) -> None:
        """Raise InputError if the longest prompt and its completion would not fit."""
        longest = max(len(prompt) for prompt in prompts)
        if not self.trust_remote_code:
            check_context(self.model_name_or_path, longest + response_length, self.model_revision)

    def longest(self, max_length: int | None) -> int:
        """``max_length``, or the model's context where that is shorter."""
        context = None
        if not self.trust_remote_code:
            context = context_length(self.model_name_or_path, self.model_revision)
        return min(max_length or 1 << 30, context or 1 << 30)

    def shape(self) -> PreTrainedConfig:
        """The model's config (``load_config``)."""
        return load_config(self.model_name_or_path, self.model_revision, self.trust_remote_code)

    def base(self, score_head: bool = False, seed: int = 0) -> PreTrainedModel:
        """The base itself (``load_base``)."""
        return load_base(
            self.model_name_or_path, self.precision, self.model_revision, self.trust_remote_code,
            score_head, seed,
        )  # fmt: skip

    def verify_reload(self, folder: str | Path, rows: list[list[int]], scores: list[float]) -> None:
        """Raise InputError unless a clean process gets these scores (``models.reload``)."""
        difference = verify_reload(
            folder, self.model_name_or_path, self.precision, rows, scores, self.model_revision,
            self.trust_remote_code,
        )  # fmt: skip
        print(f"reloaded by plain peft in a clean process: scores differ by {difference:.2g}")


@dataclass
class LoraArguments:
    """The adapter that is trained. Field names are those of TRL's ModelConfig."""

    lora_r: int = field(default=16, metadata={"help": "Rank."})
    lora_alpha: int = field(default=32, metadata={"help": "Scale: the update is alpha/r * B A."})
    lora_target_modules: str = field(
        default="all-linear",
        metadata={"help": "Layers with an adapter: all-linear, or names joined by commas."},
    )

    def __post_init__(self) -> None:
        check_range("lora_r", self.lora_r, low=1)
        check_range("lora_alpha", self.lora_alpha, above=0)
        if not self.lora_target_modules.strip(" ,"):
            raise InputError("lora_target_modules is empty", "lora_target_modules")

    def check_for_trl(self, head: bool = True) -> None:
        """Raise InputError if TRL's trainers would refuse LoRA on the output head."""
        names = {name.strip().rpartition(".")[2] for name in self.lora_target_modules.split(",")}
        if head and names & set(LANGUAGE_HEADS):
            raise InputError(
                "lora_target_modules: TRL's trainers refuse LoRA on the output head (leave it out; "
                "ppo.py trains it)", "lora_target_modules",
            )  # fmt: skip

    def config(self, task_type: str) -> LoraConfig:
        """LoRA for "CAUSAL_LM" or "SEQ_CLS" (``lora_config``)."""
        return lora_config(self.lora_r, self.lora_alpha, self.lora_target_modules, task_type)


@dataclass
class SamplingArguments:
    """How completions come about. Field names are those of TRL 1.12's PPOConfig."""

    response_length: int = field(default=24, metadata={"help": "Tokens sampled per completion."})
    temperature: float = field(default=0.7, metadata={"help": "Of the sampling."})
    stop_token: str | None = field(
        default=None,
        metadata={"help": "End completions at this token; eos for all end tokens of model and "
                  "chat template, none for none. By default eos with a chat template, else none."},
    )  # fmt: skip
    truncate_token: str | None = field(
        default=None, metadata={"help": "Cut each completion behind this token (say a full stop)."}
    )
    truncate_after: int = field(
        default=16, metadata={"help": "First index at which truncate_token counts."}
    )
    max_prompt_length: int = field(
        default=256, metadata={"help": "Leave out prompts of more tokens."}
    )
    prompt_tokens: int | None = field(
        default=None,
        metadata={"help": "Cut prompts out of text: its first so many tokens (rows of `text`)."},
    )

    def __post_init__(self) -> None:
        check_range("response_length", self.response_length, low=1)
        check_range("temperature", self.temperature, above=0)
        check_range("truncate_after", self.truncate_after, low=0)
        check_range("max_prompt_length", self.max_prompt_length, low=1)
        check_range("prompt_tokens", self.prompt_tokens, low=1)

    def rule(self, tokenizer: PreTrainedTokenizerBase) -> SamplingRule:
        """The rule in token ids."""
        return sampling_rule(
            tokenizer, self.response_length, self.temperature, self.stop_token,
            self.truncate_token, self.truncate_after,
        )  # fmt: skip


@dataclass
class ComparisonArguments(ChatArguments):
    """Which comparisons, and what is done with those that are bad or too long."""

    comparisons: str = field(
        default="outputs/comparisons.jsonl",
        metadata={"help": "JSONL, Parquet, folder or Hub dataset of `prompt, completions, best`."},
    )
    skip_invalid: bool = field(
        default=False, metadata={"help": "Go on without bad rows, and say how many there are."}
    )
    long_rows: str = field(
        default="drop",
        metadata={"help": "Rows over max_length: drop, or truncate_prompt (its start)."},
    )
    eval_rows: int | None = field(
        default=None,
        metadata={"help": "Comparisons held out, by prompt; 200, or a fifth if that is fewer."},
    )
    train_fraction: float = field(
        default=1.0, metadata={"help": "Train on this share of the others."}
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("long_rows", self.long_rows, LONG_ROWS)
        check_range("eval_rows", self.eval_rows, low=1)
        check_range("train_fraction", self.train_fraction, above=0, high=1)

    def open(self, wants: str, seed: int) -> tuple[Comparisons, np.ndarray, np.ndarray]:
        """The source, checked, and which of its rows to train on and to hold out."""
        comparisons = open_comparisons(self.comparisons, wants, "--comparisons", self.skip_invalid)
        eval_rows = self.eval_rows or max(1, min(200, len(comparisons) // 5))
        split = split_by_prompt(comparisons.order, eval_rows, seed, self.train_fraction)
        return comparisons, *split

    def encoder(self, tokenizer: PreTrainedTokenizerBase, max_length: int) -> Encoder:
        """How its rows become token ids."""
        return Encoder(tokenizer, max_length, self.long_rows, self.chat, self.skip_invalid)


@dataclass
class StartArguments:
    """Where fine-tuning on completions starts, and how these end."""

    stop_token: str | None = field(
        default=None,
        metadata={"help": "Texts end with this token; eos for the end token, none for nothing. By "
                  "default eos with a chat template (its end of turn), else none."},
    )  # fmt: skip
    policy_adapter: str | None = field(
        default=None, metadata={"help": "Adapter that the policy starts from (sft.py's, say)."}
    )
    overwrite: bool = field(default=False, metadata={"help": "Replace what is at --output_dir."})

    def check(
        self, base_name: str, precision: str, lora: LoraArguments, copied: bool = False,
        head: bool = True,
    ) -> None:  # fmt: skip
        """Raise InputError unless the adapter, if there is one, fits the base and TRL's trainers.

        Args:
            base_name, precision: of the base.
            lora: the adapter that is trained where none is given.
            copied, head: as for ``check_for_trl``.
        """
        if self.policy_adapter is None:
            return lora.check_for_trl(head)
        what = "--policy_adapter"
        check_adapter(self.policy_adapter, base_name, "CAUSAL_LM", what, precision)
        return check_for_trl(self.policy_adapter, base_name, what, copied, head)


@dataclass
class StoreArguments:
    """The store of labels and the page that people label on."""

    store: str | None = field(
        default=None,
        metadata={"help": "SQLite file of items and labels (outputs/labels.sqlite with --serve)."},
    )
    serve: bool = field(default=False, metadata={"help": "Open the labeling page; Ctrl-C ends."})
    host: str = field(default="127.0.0.1", metadata={"help": "Address of the page."})
    port: int = field(default=8000, metadata={"help": "Its port; 0 for any that is free."})
    public_host: list[str] = field(
        default_factory=list,
        metadata={"help": "Names (host:port) by which a page beyond this machine is reached."},
    )
    https: bool = field(default=False, metadata={"help": "A proxy before the page speaks https."})
    invite: str | None = field(
        default=None, metadata={"help": "Names, by commas: an invite link for each new one."}
    )
    reinvite: bool = field(
        default=False, metadata={"help": "New links for names that have one; the old ones end."}
    )
    backup: str | None = field(
        default=None,
        metadata={"help": "Copy --store to this file and end; also while people label. The copy is "
                  "whole, or not there."},
    )  # fmt: skip
    guidelines: str | None = field(
        default=None, metadata={"help": "Text file of what to look for, shown above the items."}
    )
    gold: str | None = field(
        default=None, metadata={"help": "JSONL of comparisons whose `best` is known: to check by."}
    )
    overlap: float = field(default=0.15, metadata={"help": "Share of items that two people see."})
    repeats: float = field(default=0.05, metadata={"help": "Share of hidden repeats."})
    gold_share: float = field(default=0.05, metadata={"help": "Share of gold items."})
    lease_minutes: float = field(
        default=30.0, metadata={"help": "How long an item waits for who has it on their screen."}
    )
    requests_per_second: float = field(
        default=20.0, metadata={"help": "Of one session, before it is told to wait."}
    )

    def __post_init__(self) -> None:
        check_range("port", self.port, low=0, high=65535)
        for name in ("overlap", "repeats", "gold_share"):
            check_range(name, getattr(self, name), low=0, high=1)
        check_range("repeats + gold_share", self.repeats + self.gold_share, low=0, high=0.9)
        check_range("lease_minutes", self.lease_minutes, above=0, high=60 * 24 * 365)
        check_range("requests_per_second", self.requests_per_second, above=0, high=1e6)
        for name in self.public_host:
            if "/" in name or not name:
                raise InputError(f"public_host: {name!r} is not NAME:PORT", "public_host")
        if self.names and not self.serve:
            raise InputError("invite: a link is of the page, so give --serve too", "invite")
        if self.reinvite and not self.names:
            raise InputError("reinvite: whom? (--invite NAME,NAME)", "reinvite")
        if self.backup is not None and self.serve:
            raise InputError(
                "backup: does nothing but copy the store, also while another process serves it "
                "(leave out --serve)", "backup",
            )  # fmt: skip
        if self.serve and not is_loopback(self.host) and not self.public_host:
            raise InputError(
                f"host: {self.host} can be reached from other machines: say by which names, "
                "--public_host NAME:PORT (and put a proxy with https before it)", "host",
            )  # fmt: skip

    @property
    def names(self) -> list[str]:
        """Whom to invite, each once.

        Raises:
            InputError: what is no name.
        """
        given = [name for name in (self.invite or "").split(",") if name.strip()]
        return list(dict.fromkeys(map(person_name, given)))

    @property
    def path(self) -> str | None:
        """Where the store is; None for no store."""
        return self.store or ("outputs/labels.sqlite" if self.serve else None)

    def needed_by(self, judge_url: str | None) -> None:
        """Raise InputError if something was asked for that works in a store alone."""
        given = {"judge_url": judge_url, "invite": self.invite, "gold": self.gold,
                 "backup": self.backup}  # fmt: skip
        for name, value in given.items():
            if value is not None:
                raise InputError(f"{name} needs a --store", name)

    @property
    def settings(self) -> Settings:
        """How the store hands out items."""
        return Settings(self.overlap, self.repeats, self.gold_share, 60 * self.lease_minutes)


@dataclass
class PromptArguments(ChatArguments):
    """PPO's prompts, and where the policy starts."""

    prompts: str | None = field(
        default=None,
        metadata={"help": f"{PROMPTS_HELP} With the embedded model by default {DEMO_PROMPTS}."},
    )
    eval_prompts: str | None = field(
        default=None, metadata={"help": "Held-out prompts: evaluated every --eval_every updates."}
    )
    eval_limit: int | None = field(default=128, metadata={"help": "Use only so many of these."})
    eval_skip: int = field(default=0, metadata={"help": "Pass over so many of their rows first."})
    max_prompt_length: int = field(default=256, metadata={"help": "Leave out longer prompts."})
    prompt_tokens: int | None = field(
        default=None,
        metadata={"help": "Cut prompts out of text: its first so many tokens (rows of `text`)."},
    )
    limit: int | None = field(default=None, metadata={"help": "Use only so many prompts."})
    policy_adapter: str | None = field(
        default=None, metadata={"help": "Adapter that the policy starts from (fine-tuned, say)."}
    )
    reference: str = field(
        default="policy_adapter",
        metadata={"help": "With --policy_adapter: policy_adapter (a frozen copy of it), or base."},
    )
    skip_invalid: bool = field(
        default=False, metadata={"help": "Go on without bad prompts, and say how many there are."}
    )
    overwrite: bool = field(default=False, metadata={"help": "Replace what is at --output_dir."})

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("reference", self.reference, ("policy_adapter", "base"))
        for name in ("max_prompt_length", "prompt_tokens", "limit", "eval_limit"):
            check_range(name, getattr(self, name), low=1)
        check_range("eval_skip", self.eval_skip, low=0)

    @property
    def reference_role(self) -> str:
        """The reference, as ``Roles`` has it."""
        return self.reference if self.policy_adapter is not None else "base"

    def load(self, tokenizer: PreTrainedTokenizerBase) -> tuple[Prompts, Prompts | None, int]:
        """Prompts, held-out prompts if there are any, and how many were left out by length."""
        prompts, left_out = read_prompts(
            self.prompts or DEMO_PROMPTS, tokenizer, self.max_prompt_length, self.prompt_tokens,
            self.limit, chat=self.chat, skip_invalid=self.skip_invalid,
        )  # fmt: skip
        if self.eval_prompts is None:
            return prompts, None, left_out
        held_out, _ = read_prompts(
            self.eval_prompts, tokenizer, self.max_prompt_length, self.prompt_tokens,
            self.eval_limit, self.eval_skip, "--eval_prompts", self.chat, self.skip_invalid,
        )  # fmt: skip
        return prompts, held_out, left_out

    def held_out_facts(self, prompts: Prompts, held_out: Prompts | None) -> dict[str, int]:
        """For run.json: how many prompts are held out, and how many of these are trained on."""
        seen = {tuple(ids) for ids in prompts}
        again = sum(tuple(ids) in seen for ids in held_out or [])
        count = len(held_out or [])
        if again:
            print(f"note: {again} of the {count} prompts of --eval_prompts are trained on")
        return {"held_out_prompts": count, "held_out_trained_on": again}


def memory_planner(
    model_args: ModelArguments, lora: LoraArguments, rewards: RewardArguments,
    args: PromptArguments, config: PPOConfig, longest: int, device: str,
) -> Callable[[int, bool], MemoryPlan]:  # fmt: skip
    """The memory plan of a PPO run, as a function of micro-batch and checkpointing."""
    shape = model_args.shape()
    return lambda micro_batch, checkpointing: plan_memory(
        shape, model_args.precision, lora.config("CAUSAL_LM"), config.value_role, longest,
        config.response_length, micro_batch,
        min(config.local_rollout_forward_batch_size, config.local_batch_size),
        reward=rewards.reward_adapter is not None,
        reference_adapter=args.reference_role == "policy_adapter",
        bf16=config.bf16, checkpointing=checkpointing, device=device,
        beside_lora=0 if args.policy_adapter is None else count_beside_lora(args.policy_adapter),
    )  # fmt: skip
