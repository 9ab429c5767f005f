"""Read the adapter to publish: its folder, its kind, and the files beside it.

kind     recognized by                                      files beside it
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
from toolkit.training.methods import METHODS, Method, method_of

Kind = Literal["policy", "reward", "value"]
VALUE_HEAD = "value_head.safetensors"


@dataclass
class TrainedAdapter:
    """An adapter as its training wrote it.

    Attributes:
        folder: the adapter's folder.
        kind: policy, reward or value.
        config: adapter_config.json.
        toolkit_json: toolkit.json; for a value, that of the policy beside it.
        precision: precision of the base in training.
        record: run.json of its training; None if there is none.
        metrics: metrics.json of a reward model; None if reward.py wrote none.
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
        """The base that the adapter names: a folder or a Hub id."""
        return str(self.config.get("base_model_name_or_path") or "")

    @property
    def trained_here(self) -> bool:
        """Whether this toolkit wrote it; other reward models are read as TRL's."""
        return (self.folder / FACTS).is_file()

    @property
    def ends_with(self) -> str:
        """The end token of texts that a reward model reads; "" for none."""
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
        """The chat template that it was trained with; None if it was trained on texts too."""
        if self.toolkit_json.get("trained_on") != "messages":
            return None
        found, home = chat_of(self.toolkit_json), self.tokenizer_home(base)
        if found.template is None and (
            not (home / "tokenizer_config.json").is_file()
            or AutoTokenizer.from_pretrained(str(home)).chat_template is None
        ):
            return None  # its rows were text that a template had rendered before
        return found

    def written_prefix(self, base: Path) -> list[int] | None:
        """Ids to put before a text that is encoded without special tokens; None for other texts.

        Special tokens are left out if the tokenizer would append its end token, or if a chat
        template has written them already (then there are no ids to put before the text).
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
        """The folder of its tokenizer: the adapter's or the base's."""
        return self.folder if (self.folder / "tokenizer_config.json").is_file() else base

    def rows(
        self, tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], chat: Chat | None = None
    ) -> list[list[int]]:
        """Encode texts, or a user's messages, as in training, with the reward model's end token."""
        if chat is not None:
            encoder = Encoder(tokenizer, None, chat=chat)
            rows = [encoder.prompt_ids([{"role": "user", "content": text}]) for text in texts]
            end = token_id(tokenizer, self.ends_with or None, "ends_with")
            return rows if end is None else [[*row, end] for row in rows]
        return text_ids(tokenizer, [text + self.ends_with for text in texts])

    @property
    def method(self) -> Method | None:
        """The training method; None if it was not recorded."""
        if self.kind == "reward":
            return METHODS["reward"]
        if self.kind == "value":
            return METHODS["ppo"]

        if self.record is not None and self.record.method is not None:
            return method_of(self.record.method, self.record.settings)
        return METHODS["ppo"] if self.folder.parent.name in ("adapters", "best") else None

    @property
    def revision(self) -> str | None:
        """The base's branch, tag or commit in training."""
        return self.config.get("revision") or self.setting("model_revision")

    def setting(self, name: str) -> Any:
        """Return a setting of the training; None if it is not known."""
        return None if self.record is None else self.record.settings.get(name)


def read_adapter(path: str | Path, precision: str | None = None) -> TrainedAdapter:
    """Read the adapter in a folder without loading a model.

    Args:
        path: the folder.
        precision: precision of the base in training; None takes it from toolkit.json.

    Raises:
        InputError: there is no complete LoRA adapter, or the base's precision is not known.
    """
    folder = Path(path).resolve()
    if (folder / VALUE_HEAD).is_file() and not (folder / "adapter_config.json").exists():
        raise InputError(
            f"adapter: {path}: holds a value head on the policy's trunk, without an adapter of "
            "its own (publish the policy, or train with --value adapter)",
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
    # The base is compared later, so only the adapter's form is checked here.
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
            f"precision: no file in {path} names the precision of its base (pass --precision 4bit, "
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
    """Read a reward model's metrics; None if there are none, or another tool wrote them."""
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
        raise InputError(f"adapter: {path}: must hold a head with one output, but holds {found}")


@dataclass
class Results:
    """The results of an evaluation for this adapter.

    Attributes:
        prompts: number of prompts.
        judges: judges by name.
        contender: the adapter's own row: kl, kl_error, scores, ...
        pairs: its pairs with other contenders, with itself as ``a``.
    """

    prompts: int
    judges: dict[str, JudgeResult]
    contender: ContenderResult
    pairs: list[Pair]


def read_results(path: str | Path | None, folder: Path, name: str | None = None) -> Results | None:
    """Read the results of the adapter in ``folder``, or of the contender ``name``.

    Without a path there are none, and None is returned.

    Raises:
        InputError: there is no such contender, or the file is malformed.
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
            f"evaluation: {path}: was not written by preftune evaluate ({error})", "evaluation"
        ) from None

    if name is None:
        mine = [c for c in whole.contenders if c.adapter and Path(c.adapter) == folder]
    else:
        mine = [c for c in whole.contenders if c.name == name]
    if len(mine) != 1:
        names = ", ".join(c.name for c in whole.contenders)
        raise InputError(
            f"evaluation: {path}: {len(mine)} contenders have this adapter (choose one with "
            f"--contender, out of {names})",
            "evaluation",
        )

    own = mine[0].name
    pairs = [p if p.a == own else p.turned() for p in whole.pairs if own in (p.a, p.b)]
    return Results(whole.prompts, {j.name: j for j in whole.judges}, mine[0], pairs)
