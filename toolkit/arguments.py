"""What the recipes can be told: dataclasses, the one place of defaults, help and range checks."""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from peft import LoraConfig
from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from toolkit.data.chat import ChatArguments
from toolkit.data.comparisons import Comparisons, open_comparisons, read_rows, split_by_prompt
from toolkit.data.encoding import LONG_ROWS, Encoder
from toolkit.data.files import require_file
from toolkit.data.prompts import PROMPTS_HELP, Prompts, read_prompts
from toolkit.errors import InputError, check_choice, check_range
from toolkit.labeling.backup import backup
from toolkit.labeling.judge import HTTPJudge
from toolkit.labeling.labellers import JudgePicker, Picker, ScorePicker
from toolkit.labeling.quality import quality
from toolkit.labeling.scripted import Lexicon
from toolkit.labeling.server import (
    Pages,
    PageSettings,
    host_names,
    is_loopback,
    listen,
    serve,
)
from toolkit.labeling.store import Refused, Settings, Store, person_name
from toolkit.models.adapters import (
    check_adapter,
    check_for_trl,
    count_beside_lora,
    lora_config,
)
from toolkit.models.base_config import check_base, check_context, context_length, load_config
from toolkit.models.families import LANGUAGE_HEADS
from toolkit.models.loading import load_base, load_tokenizer, way_to_load
from toolkit.models.memory import MemoryPlan, plan_memory
from toolkit.models.other_base import TextRewardModel
from toolkit.models.reading import Reading, reading_of, said
from toolkit.models.reload import verify_reload
from toolkit.scoring.functions import RewardFunction, load_function
from toolkit.training.ppo_config import PPOConfig
from toolkit.training.rollouts import SamplingRule, sampling_rule
from toolkit.training.trust import check_trust

ADMIN = " admin"  # no name that anybody could type or import
PRECISIONS = ("4bit", "bf16", "fp32")
DEMO_MODEL = "data/model"
DEMO_PROMPTS = "data/prompts.jsonl"

# Help texts of options that both a scorer and PPO's rewards have.
REWARD_END_TOKEN = (
    "What closes a text before a reward model scores it: auto for what it was trained with "
    "(toolkit.json; TRL's models: the end token), none, eos, or a token."
)
UNTRUSTED_REWARD = "Go on with a reward model that is known to be at chance, or below it."


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
class FunctionArguments:
    """A function that says how good a completion is: exactly one of these."""

    lexicon: str | None = field(
        default=None,
        metadata={"help": "Word-valence file (word TAB valence ...); the score is their sum."},
    )
    reward_function: str | None = field(
        default=None,
        metadata={"help": "module:function, called with prompts and completions, -> scores."},
    )

    @property
    def given(self) -> bool:
        """Whether there is one."""
        return any(getattr(self, name) is not None for name in self._scorers())

    def _scorers(self) -> list[str]:
        """The flags that name one."""
        return [f.name for f in dataclasses.fields(self) if f.default is None]

    def function(self) -> RewardFunction:
        """The function.

        Raises:
            InputError: none of them or more than one, or the one does not load.
        """
        names = self._scorers()
        given = [name for name in names if getattr(self, name) is not None]
        if len(given) != 1:
            raise InputError(
                f"{' and '.join(given) or 'no scorer'} given: give exactly one of "
                f"{', '.join(f'--{name}' for name in names)}"
            )
        if self.lexicon is not None:
            return Lexicon(self.lexicon)
        return load_function(self.reward_function or "")


@dataclass
class JudgeArguments:
    """A language model behind an OpenAI-compatible endpoint, as a labeller."""

    # How it is asked, which may differ when a run goes on: no label depends on it.
    FREE = ("judge_max_tokens", "judge_timeout", "judge_patience")

    judge_url: str | None = field(
        default=None, metadata={"help": "Its address, as http://localhost:8000/v1."}
    )
    judge_model: str | None = field(default=None, metadata={"help": "The model's name there."})
    judge_key_variable: str = field(
        default="OPENAI_API_KEY", metadata={"help": "Environment variable that holds the key."}
    )
    judge_prices: list[float] = field(
        default_factory=lambda: [0.0, 0.0],
        metadata={"help": "Per million tokens of requests, and of answers: to count the cost."},
    )
    judge_max_tokens: int = field(
        default=8,
        metadata={"help": "Of an answer, one letter; a model that thinks needs thousands."},
    )
    judge_timeout: float = field(
        default=60.0, metadata={"help": "Seconds for one request, from its start to its end."}
    )
    judge_patience: int = field(
        default=20,
        metadata={"help": "End after so many answers in a row that are no letter. Their items are "
                  "asked again by the next call."},
    )  # fmt: skip

    def __post_init__(self) -> None:
        check_range("judge_max_tokens", self.judge_max_tokens, low=1)
        check_range("judge_timeout", self.judge_timeout, above=0, high=86_400)
        check_range("judge_patience", self.judge_patience, low=1)
        if (self.judge_url is None) != (self.judge_model is None):
            raise InputError("judge_url and judge_model: give both or neither", "judge_url")
        if len(self.judge_prices) != 2:
            raise InputError(f"judge_prices: {len(self.judge_prices)} numbers, not 2")

    def load(self) -> HTTPJudge | None:
        """The judge; None where none was given."""
        if self.judge_url is None or self.judge_model is None:
            return None
        return HTTPJudge(
            self.judge_url, self.judge_model, self.judge_key_variable,
            max_tokens=self.judge_max_tokens, timeout=self.judge_timeout,
            patience=self.judge_patience, input_price=self.judge_prices[0],
            output_price=self.judge_prices[1],
        )  # fmt: skip


def load_picker(
    judge_args: JudgeArguments, scorer_args: FunctionArguments
) -> tuple[str, Picker] | None:
    """A scripted labeller's name and picker; None where neither a judge nor a scorer was given.

    Raises:
        InputError: both, or more than one scorer, or one that does not load.
    """
    judge = judge_args.load()
    if judge is None and not scorer_args.given:
        return None
    if judge is not None and scorer_args.given:
        raise InputError("judge_url and a scorer given: one labeller at a time", "judge_url")
    if judge is not None:
        return judge.model, JudgePicker(judge)
    return scorer_args.reward_function or "lexicon", ScorePicker(scorer_args.function())


@dataclass
class StoreArguments:
    """The store of labels and the page that people label on."""

    store: str | None = field(
        default=None,
        metadata={"help": "SQLite file of items and labels (outputs/labels.sqlite with --serve)."},
    )
    serve: bool = field(default=False, metadata={"help": "Open the labelling page; Ctrl-C ends."})
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

    def make_backup(self, overwrite: bool) -> None:
        """Copy the store to ``backup``, and say so."""
        assert self.path is not None and self.backup is not None
        copy = backup(self.path, self.backup, overwrite)
        print(f"{copy}: a copy of {self.path}, {copy.stat().st_size:,} bytes")

    def open(self, filled: bool = True) -> Store:
        """The store, with the gold items in it.

        Args:
            filled: there are items to put in; without any a new store is a mistyped path.

        Raises:
            InputError: a file that is no store, or a gold or guidelines file with mistakes.
        """
        if not filled and not Path(self.path or "").is_file():
            raise InputError(f"store: {self.path}: no such file, and no --samples to fill one")
        gold = [] if self.gold is None else read_rows(self.gold, "best", "--gold")
        self.text()
        assert self.path is not None
        store = Store(
            self.path,
            Settings(self.overlap, self.repeats, self.gold_share, 60 * self.lease_minutes),
        )
        store.add_items(gold, gold=True)
        return store

    def text(self) -> str | None:
        """The guidelines."""
        if self.guidelines is None:
            return None
        try:
            return require_file(self.guidelines, "--guidelines").read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            raise InputError(
                f"{self.guidelines}: not UTF-8 at byte {error.start} (save it as UTF-8)"
            ) from None

    def run(self, store: Store) -> None:
        """Print the links and serve the page until Ctrl-C.

        Raises:
            InputError: a name that a script or the like has, before any link is made; or an address
                that can not be had; or somebody else is making links at this moment.
        """
        for name in self.names:
            if (kind := store.kind_of(name)) not in (None, "person"):
                raise InputError(f"invite: {name!r} is a {kind}: take another name", "invite")
        listening = listen(self.host, self.port)
        hosts = host_names(listening, self.public_host)
        address = f"{'https' if self.https else 'http'}://{(self.public_host or hosts)[0]}"
        settings = PageSettings(
            hosts, https=self.https, rate=self.requests_per_second,
            burst=int(3 * self.requests_per_second) + 1,
            guidelines=self.text() or PageSettings.guidelines,
        )  # fmt: skip
        try:
            self._print_links(store, address)
        except Refused as problem:
            raise InputError(f"invite: {problem} (another process is inviting, too)") from None
        print("open your link in a browser; Ctrl-C ends this, and keeps all labels", flush=True)
        serve(Pages(store, settings, quality).app(), listening)

    def _print_links(self, store: Store, address: str) -> None:
        for name in self.names:
            known = store.invitation(name)
            if known is not None and not self.reinvite:
                print(f"{name} has a link already (--reinvite makes a new one and ends the old)")
            else:
                token = store.invite(name, replaces=known)
                print(f"invite link for {name}: {address}/invite/{token}")
        admin = store.invite(ADMIN, "admin", end_sessions=False, replaces=store.invitation(ADMIN))
        print(f"admin link: {address}/invite/{admin}")


@dataclass
class ScorerArguments(FunctionArguments):
    """Who says how good a completion is: exactly one of these."""

    reward_adapter: str | None = field(
        default=None, metadata={"help": "Folder of a trained reward adapter."}
    )
    reward_end_token: str = field(default="auto", metadata={"help": REWARD_END_TOKEN})
    allow_untrusted_reward: bool = field(default=False, metadata={"help": UNTRUSTED_REWARD})

    def load(self, base_name: str, precision: str | None = None) -> RewardFunction | None:
        """The function, or None for the reward adapter, which is then known to fit the base.

        Raises:
            InputError: none of the three or more than one, the one does not load, or the adapter is
                known to be worthless (``check_trust``).
        """
        if self.reward_adapter is None or self.lexicon or self.reward_function:
            return self.function()
        check_adapter(self.reward_adapter, base_name, "SEQ_CLS", "--reward_adapter", precision)
        check_trust({"reward_adapter": self.reward_adapter}, self.allow_untrusted_reward)
        return None


@dataclass
class RewardArguments:
    """What PPO is rewarded for: one of these, or several, weighed against each other."""

    reward_adapter: str | None = field(
        default=None, metadata={"help": "Folder of a trained reward adapter, on the same base."}
    )
    reward_model: str | None = field(
        default=None,
        metadata={"help": "A reward model on another base: Hub id, folder, or its adapter."},
    )
    lexicon: str | None = field(
        default=None,
        metadata={"help": "Word-valence file (word TAB valence ...); the score is their sum."},
    )
    reward_function: str | None = field(
        default=None,
        metadata={"help": "module:function(prompts, completions, **columns) -> scores; or several, "
                  "joined by commas."},
    )  # fmt: skip
    reward_end_token: str = field(default="auto", metadata={"help": REWARD_END_TOKEN})
    reward_weights: list[float] | None = field(
        default=None,
        metadata={"help": "A weight for each of the above that is given, in this order."},
    )
    allow_untrusted_reward: bool = field(default=False, metadata={"help": UNTRUSTED_REWARD})

    def load(self, base_name: str, precision: str) -> list[RewardFunction | None]:
        """The rewards in the order of the fields; None stands for the reward adapter.

        Raises:
            InputError: none is given, one does not load, or the weights do not fit; or a reward
                model is known to be worthless (``check_trust``).
        """
        functions = [f.strip() for f in (self.reward_function or "").split(",") if f.strip()]
        given = [self.reward_adapter, self.reward_model, self.lexicon, *functions]
        count = sum(item is not None for item in given)
        if count == 0:
            raise InputError(
                "no reward: give --reward_adapter, --reward_model, --lexicon or --reward_function"
            )
        if count > 1 and self.reward_weights is None:
            raise InputError(
                f"{count} rewards and no --reward_weights (their scales differ: give one each)"
            )
        if self.reward_weights is not None and len(self.reward_weights) != count:
            raise InputError(
                f"{len(self.reward_weights)} reward_weights for {count} rewards", "reward_weights"
            )
        parts: list[RewardFunction | None] = []
        if self.reward_adapter is not None:
            check_adapter(self.reward_adapter, base_name, "SEQ_CLS", "--reward_adapter", precision)
            parts.append(None)
        models = {"reward_adapter": self.reward_adapter, "reward_model": self.reward_model}
        self.verdicts = check_trust(models, self.allow_untrusted_reward)
        if self.reward_model is not None:
            model = TextRewardModel(self.reward_model, precision, end_token=self.reward_end_token)
            print(said(model.reading, model.tokenizer, model.__name__))
            parts.append(model)
        if self.lexicon is not None:
            parts.append(Lexicon(self.lexicon))
        return parts + [load_function(name) for name in functions]

    def reading(self, tokenizer: PreTrainedTokenizerBase) -> Reading | None:
        """How the reward adapter reads a text (``reading_of``), which is said; None without one."""
        if self.reward_adapter is None:
            return None
        found = reading_of(self.reward_adapter, tokenizer, self.reward_end_token)
        print(said(found, tokenizer, "reward adapter"))
        return found


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
        shape, model_args.precision, lora.config("CAUSAL_LM"), config.value, longest,
        config.response_length, micro_batch,
        min(config.local_rollout_forward_batch_size, config.local_batch_size),
        reward=rewards.reward_adapter is not None,
        reference_adapter=args.reference_role == "policy_adapter",
        bf16=config.bf16, checkpointing=checkpointing, device=device,
        beside_lora=0 if args.policy_adapter is None else count_beside_lora(args.policy_adapter),
    )  # fmt: skip
