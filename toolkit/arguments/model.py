"""The flags that say which base model, and how it is loaded."""

from dataclasses import dataclass, field
from pathlib import Path

from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from toolkit.errors import InputError, check_choice
from toolkit.models.loading import (
    check_base,
    check_context,
    context_length,
    load_base,
    load_config,
    load_tokenizer,
    way_to_load,
)
from toolkit.models.reload import verify_reload

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
        embedded = Path(__file__).resolve().parents[2] / DEMO_MODEL
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
