"""The adapter that is to be published: its folder, its kind, and what is written beside it.

kind     told by                                            found beside it
policy   task_type CAUSAL_LM                                run.json, one folder up or two (ppo.py)
reward   task_type SEQ_CLS                                  metrics.json in it, run.json one up
value    task_type CAUSAL_LM and value_head.safetensors     the policy's toolkit.json, in ../policy
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from safetensors import SafetensorError, safe_open
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from toolkit.arguments.model import PRECISIONS
from toolkit.data.chat import Chat, chat_of
from toolkit.data.encoding import Encoder
from toolkit.data.files import read_object
from toolkit.data.links import inside
from toolkit.data.records import from_row
from toolkit.data.tokens import special_prefix, text_ids, token_id
from toolkit.errors import InputError, check_choice
from toolkit.evaluation.result import ContenderResult, Evaluation, JudgeResult, Pair
from toolkit.hub.base_on_hub import check_tokenizer
from toolkit.models.adapters import check_adapter
from toolkit.models.finite_weights import check_file
from toolkit.models.reading import reading_of
from toolkit.models.toolkit_json import FACTS, read_facts
from toolkit.record import Json, RunRecord, record_beside
from toolkit.scoring.accuracy import RewardMetrics
from toolkit.training.methods import METHODS, Method

Kind = Literal["policy", "reward", "value"]
VALUE_HEAD = "value_head.safetensors"


@dataclass
class TrainedAdapter:
    """An adapter as its training left it.

    Attributes:
        folder: where it lies.
        kind: what it is for.
        config: adapter_config.json.
        toolkit_json: toolkit.json; of a value, that of the policy beside it.
        precision: how the base was held in training.
        record: run.json of its training; None where there is none.
        metrics: metrics.json of a reward model; None where there is none of reward.py.
    """

    folder: Path
    kind: Kind
    config: Json
    toolkit_json: Json
    precision: str
    record: RunRecord | None = None
    metrics: RewardMetrics | None = None

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
            return str(self.toolkit_json.get("ends_with") or "")
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
        if self.toolkit_json.get("trained_on") != "messages":
            return None
        found, home = chat_of(self.toolkit_json), self.tokenizer_home(base)
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
    def method(self) -> Method | None:
        """How it was trained; None where that is not recorded."""
        if self.kind == "reward":
            return METHODS["reward"]
        if self.kind == "value":
            return METHODS["ppo"]

        if self.record is not None and self.record.method is not None:
            return METHODS.get(self.record.method)
        return METHODS["ppo"] if self.folder.parent.name in ("adapters", "best") else None

    @property
    def revision(self) -> str | None:
        """The base's branch, tag or commit that training was told."""
        return self.config.get("revision") or self.setting("model_revision")

    def setting(self, name: str) -> Any:
        """What the training was told, or its default; None where that is not known."""
        return None if self.record is None else self.record.settings.get(name)


def read_adapter(path: str | Path, precision: str | None = None) -> TrainedAdapter:
    """The adapter in this folder, looked at without loading a model.

    Args:
        path: the folder.
        precision: how its base was held; None takes toolkit.json's word.

    Raises:
        InputError: there is no whole LoRA adapter, or nothing says how its base was held.
    """
    folder = Path(path).resolve()
    if (folder / VALUE_HEAD).is_file() and not (folder / "adapter_config.json").exists():
        raise InputError(
            f"adapter: {path}: a value head on the policy's trunk, without an adapter of its "
            "own (publish the policy, or train with --value adapter)",
            "adapter",
        )
    config_path = folder / "adapter_config.json"
    if not config_path.is_file():
        raise InputError(f"adapter: {path}: no adapter_config.json (give an adapter's folder)")

    for name in ("adapter_config.json", FACTS, VALUE_HEAD, "adapter_model.safetensors"):
        inside(folder, name)
    check_tokenizer(folder)
    config = read_object(config_path, "adapter")
    task = "SEQ_CLS" if config.get("task_type") == "SEQ_CLS" else "CAUSAL_LM"
    # Held against the base that it names, so only its form is checked here.
    check_adapter(folder, str(config.get("base_model_name_or_path") or ""), task, "adapter")

    kind: Kind = "reward" if task == "SEQ_CLS" else "policy"
    described_in = folder
    if kind == "policy" and (folder / VALUE_HEAD).is_file():
        kind = "value"
        _check_head(folder / VALUE_HEAD)
        if not (folder / FACTS).is_file():
            described_in = folder.parent / "policy"
    toolkit_json = read_facts(described_in)

    held = precision or toolkit_json.get("precision")
    if held is None:
        raise InputError(
            f"precision: nothing in {path} says how its base was held (pass --precision 4bit, "
            "bf16 or fp32)",
            "precision",
        )
    check_choice("precision", held, PRECISIONS)

    adapter = TrainedAdapter(folder, kind, config, toolkit_json, held)
    written = record_beside(folder, levels=1 if kind == "reward" else 2)
    if written is not None:
        adapter.record = RunRecord.read(written)
    if kind == "reward":
        adapter.metrics = _metrics(folder / "metrics.json")
    return adapter


def _metrics(path: Path) -> RewardMetrics | None:
    """The figures of a reward model; None where nobody measured, or another tool did."""
    if not path.is_file():
        return None
    row = read_object(path, "adapter")
    try:
        return from_row(RewardMetrics, row, str(path))
    except InputError:
        return None


def _check_head(path: Path) -> None:
    """Raise InputError unless the file holds a value head: weight (1, H) and bias."""
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
    judges: dict[str, JudgeResult]
    contender: ContenderResult
    pairs: list[Pair]


def read_results(path: str | Path | None, folder: Path, name: str | None = None) -> Results | None:
    """The contender whose adapter lies in ``folder``, or the one of this name; None without a path.

    Raises:
        InputError: no such contender, or a file of another form.
    """
    if path is None:
        return None
    path = Path(path)
    path = path / "evaluation.json" if path.is_dir() else path
    row = read_object(path, "evaluation")
    try:
        whole = from_row(Evaluation, row, "evaluation.json")
    except InputError as error:
        raise InputError(
            f"evaluation: {path}: not what an evaluation writes ({error})", "evaluation"
        ) from None

    if name is None:
        mine = [c for c in whole.contenders if c.adapter and Path(c.adapter) == folder]
    else:
        mine = [c for c in whole.contenders if c.name == name]
    if len(mine) != 1:
        names = ", ".join(c.name for c in whole.contenders)
        raise InputError(
            f"evaluation: {path}: {len(mine)} contenders with this adapter (name one by "
            f"--contender, of {names})",
            "evaluation",
        )

    own = mine[0].name
    pairs = [p if p.a == own else p.turned() for p in whole.pairs if own in (p.a, p.b)]
    return Results(whole.prompts, {j.name: j for j in whole.judges}, mine[0], pairs)
