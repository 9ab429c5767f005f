"""What is to be published: the adapter's folder, its kind, and what is written beside it.

kind     told by                                            found beside it
policy   task_type CAUSAL_LM                                run.json, one folder up or two (ppo.py)
reward   task_type SEQ_CLS                                  metrics.json in it, run.json one up
value    task_type CAUSAL_LM and value_head.safetensors     the policy's toolkit.json, in ../policy
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from toolkit.data.chat import Chat, chat_of
from toolkit.data.encoding import Encoder
from toolkit.data.files import read_object
from toolkit.data.inside import inside
from toolkit.data.text import special_prefix, text_ids, token_id
from toolkit.errors import InputError, check_choice
from toolkit.hub.base import check_tokenizer
from toolkit.models.adapters import check_adapter
from toolkit.models.finite_weights import check_file
from toolkit.models.reading import reading_of
from toolkit.models.toolkit_json import FACTS, read_facts

Facts = dict[str, Any]
VALUE_HEAD = "value_head.safetensors"
PRECISIONS = ("4bit", "bf16", "fp32")


@dataclass
class Source:
    """An adapter as its training left it.

    Attributes:
        folder: where it lies.
        kind: "policy", "reward" or "value".
        config: adapter_config.json.
        facts: toolkit.json; of a value, that of the policy beside it.
        precision: how the base was held in training.
        run: run.json of its training; empty where there is none.
        metrics: metrics.json; empty where there is none.
    """

    folder: Path
    kind: str
    config: Facts
    facts: Facts
    precision: str
    run: Facts = field(default_factory=dict)
    metrics: Facts = field(default_factory=dict)

    @property
    def base_name(self) -> str:
        """The base that the adapter names: a folder, or an id on the Hub."""
        return str(self.config.get("base_model_name_or_path") or "")

    @property
    def trained_here(self) -> bool:
        """Whether this project wrote it; another tool's reward model is read as TRL's."""
        return (self.folder / FACTS).is_file()

    @property
    def ends_with(self) -> str:
        """The text of the token that closes what a reward model reads; "" for nothing."""
        if self.kind != "reward":
            return ""
        if self.trained_here:
            return str(self.facts.get("ends_with") or "")
        home = self.tokenizer_home(Path(self.base_name))
        if not (home / "tokenizer_config.json").is_file():
            return ""
        tokenizer = AutoTokenizer.from_pretrained(str(home))
        reading = reading_of(self.folder, tokenizer)
        if reading.ends_with is None or reading.ends_with == reading.padding:
            return ""
        return str(tokenizer.convert_ids_to_tokens(reading.ends_with))

    def chat(self, base: Path) -> Chat | None:
        """How it was trained to read messages; None where it knows text, or text as well."""
        if self.facts.get("trained_on") != "messages":
            return None
        found, home = chat_of(self.facts), self.tokenizer_home(base)
        if found.template is None and (
            not (home / "tokenizer_config.json").is_file()
            or AutoTokenizer.from_pretrained(str(home)).chat_template is None
        ):
            return None  # its rows were text already, which some template had rendered
        return found

    def written_prefix(self, base: Path) -> list[int] | None:
        """What stands before a text that the tokenizer is not to put its special tokens around.

        That is one of a tokenizer that appends its end token; nothing before a text in which a chat
        template has put them. None for any other.
        """
        chat = self.chat(base)
        if chat is not None and not chat.plain:
            return []
        home = self.tokenizer_home(base)
        if not (home / "tokenizer_config.json").is_file():
            return None
        tokenizer = AutoTokenizer.from_pretrained(str(home))
        prefix = special_prefix(tokenizer)
        (inner,) = tokenizer(["a"], add_special_tokens=False)["input_ids"]
        return None if tokenizer(["a"])["input_ids"][0] == prefix + inner else prefix

    def tokenizer_home(self, base: Path) -> Path:
        """Where its tokenizer's files lie: beside the adapter, or with the base."""
        return self.folder if (self.folder / "tokenizer_config.json").is_file() else base

    def rows(
        self, tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], chat: Chat | None = None
    ) -> list[list[int]]:
        """Token ids of texts, or of a user's messages, as training had them.

        They are closed as a reward model wants them.
        """
        if chat is not None:
            encoder = Encoder(tokenizer, None, chat=chat)
            rows = [encoder.prompt_ids([{"role": "user", "content": text}]) for text in texts]
            end = token_id(tokenizer, self.ends_with or None, "ends_with")
            return rows if end is None else [[*row, end] for row in rows]
        return text_ids(tokenizer, [text + self.ends_with for text in texts])

    @property
    def method(self) -> str | None:
        """How a policy was trained: ppo, rloo, sft, or preference.py's dpo, kto, orpo or cpo."""
        settings = self.run.get("settings", {})
        for name, telling in (("ppo", "kl_controller"), ("rloo", "num_generations")):
            if telling in settings:
                return name
        if settings:
            return str(settings.get("method", "sft"))
        return "ppo" if self.folder.parent.name in ("adapters", "best") else None

    @property
    def revision(self) -> str | None:
        """The base's branch, tag or commit that training was told."""
        return self.config.get("revision") or self.setting("model_revision")

    def setting(self, name: str) -> Any:
        """What the training was told, or its default; None where that is not known."""
        return self.run.get("settings", {}).get(name)


def read_source(adapter: str | Path, precision: str | None = None) -> Source:
    """The adapter in this folder, looked at without loading a model.

    Args:
        adapter: the folder.
        precision: how its base was held; None takes toolkit.json's word.

    Raises:
        InputError: there is no whole LoRA adapter, or nothing says how its base was held.
    """
    folder = Path(adapter).resolve()
    if (folder / VALUE_HEAD).is_file() and not (folder / "adapter_config.json").exists():
        raise InputError(
            f"adapter: {adapter}: a value head on the policy's trunk, without an adapter of its "
            "own (publish the policy, or train with --value adapter)", "adapter",
        )  # fmt: skip
    config_path = folder / "adapter_config.json"
    if not config_path.is_file():
        raise InputError(f"adapter: {adapter}: no adapter_config.json (give an adapter's folder)")
    for name in ("adapter_config.json", FACTS, VALUE_HEAD, "adapter_model.safetensors"):
        inside(folder, name)
    check_tokenizer(folder)
    config = read_object(config_path, "adapter")
    task = "SEQ_CLS" if config.get("task_type") == "SEQ_CLS" else "CAUSAL_LM"
    # Held against the base that it names, so only its form is checked here.
    check_adapter(folder, str(config.get("base_model_name_or_path") or ""), task, "adapter")
    kind = "reward" if task == "SEQ_CLS" else "policy"
    beside = folder
    if kind == "policy" and (folder / VALUE_HEAD).is_file():
        kind = "value"
        _check_head(folder / VALUE_HEAD)
        if not (folder / FACTS).is_file():
            beside = folder.parent / "policy"
    facts = read_facts(beside)
    held = precision or facts.get("precision")
    if held is None:
        raise InputError(
            f"precision: nothing in {adapter} says how its base was held (pass --precision 4bit, "
            "bf16 or fp32)", "precision",
        )  # fmt: skip
    check_choice("precision", held, PRECISIONS)
    source = Source(folder, kind, config, facts, held)
    source.run = _read_if_there(folder.parent / "run.json")
    if kind != "reward" and not source.run:
        source.run = _read_if_there(folder.parent.parent / "run.json")
    source.metrics = _read_if_there(folder / "metrics.json")
    return source


def _read_if_there(path: Path) -> Facts:
    return read_object(path, "run") if path.is_file() else {}


def _check_head(path: Path) -> None:
    check_file(path, "adapter")
    try:
        with safe_open(path, framework="pt") as weights:
            found = {key: weights.get_slice(key).get_shape() for key in weights.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise InputError(f"adapter: {path}: not readable: {error}") from None
    if set(found) != {"weight", "bias"} or len(found["weight"]) != 2 or found["weight"][0] != 1:
        raise InputError(f"adapter: {path}: no head with one output in it, but {found}")


@dataclass
class Results:
    """What an evaluation says of this adapter.

    Attributes:
        prompts: on how many.
        judges: by name.
        contender: its own row: kl, kl_error, scores, ...
        pairs: the comparisons that it is in, with itself as ``a``.
    """

    prompts: int
    judges: dict[str, Facts]
    contender: Facts
    pairs: list[Facts]


def read_results(path: str | Path | None, folder: Path, name: str | None = None) -> Results | None:
    """The contender whose adapter lies in ``folder``, or the one of this name; None without a path.

    Raises:
        InputError: no such contender, or a file of another form.
    """
    if path is None:
        return None
    path = Path(path)
    path = path / "evaluation.json" if path.is_dir() else path
    whole = read_object(path, "evaluation")
    try:
        rows: list[Facts] = whole["contenders"]
        if name is None:
            mine = [row for row in rows if row["adapter"] and Path(row["adapter"]) == folder]
        else:
            mine = [row for row in rows if row["name"] == name]
        if len(mine) != 1:
            names = ", ".join(str(row["name"]) for row in rows)
            raise InputError(
                f"evaluation: {path}: {len(mine)} contenders with this adapter (name one by "
                f"--contender, of {names})", "evaluation",
            )  # fmt: skip
        row = mine[0]
        own = row["name"]
        pairs = [p if p["a"] == own else _turned(p) for p in whole["pairs"] if own in
                 (p["a"], p["b"])]  # fmt: skip
        for pair in pairs:
            _numbers(pair, "wins", "ties", "losses", "win_rate", "low", "high")
        for score in row["scores"].values():
            _numbers(score, "mean", "error", *(["gain"] if score.get("gain") is not None else []))
        _numbers(row, *(name for name in ("kl", "kl_error") if row.get(name) is not None))
        judges = {judge["name"]: judge for judge in whole["judges"]}
        return Results(int(whole["prompts"]), judges, row, pairs)
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(
            f"evaluation: {path}: not what an evaluation writes ({type(error).__name__}: {error})",
            "evaluation",
        ) from None


def _turned(pair: Facts) -> Facts:
    """The same comparison, seen from ``b``."""
    return pair | {
        "a": pair["b"], "b": pair["a"], "wins": pair["losses"], "losses": pair["wins"],
        "win_rate": 1 - pair["win_rate"], "low": 1 - pair["high"], "high": 1 - pair["low"],
    }  # fmt: skip


def _numbers(row: Facts, *names: str) -> None:
    for name in names:
        value = row[name]
        if (
            isinstance(value, bool)
            or not isinstance(value, int | float)
            or not math.isfinite(value)
        ):
            raise TypeError(f"{name} is {value!r}")
