"""What the baselines share: TRL's trainers on the comparisons, tokens and adapters of PPO.

    method              trainer                              learns from
    sft                 trl.SFTTrainer                       the picks, or plain text
    dpo (ipo, ...)      trl.DPOTrainer                       the pick against each other completion
    kto                 trl.KTOTrainer                       each completion, wanted or not
    orpo, cpo           trl.experimental                     the pick against each other completion
    rloo                trl.RLOOTrainer                      fresh samples and their rewards

TRL makes its own tokens of text: it appends an end-of-text token and tokenises prompts otherwise
than PPO does. So the trainers get token ids, and the methods of theirs that would make them are
passed over; RLOO samples by PPO's own loop. Private names that are overridden, seen in TRL 1.16.0:
``_prepare_dataset`` (DPO, KTO), ``tokenize_row`` (ORPO, CPO), ``_tokenize_prompts``,
``_generate_single_turn`` and ``_get_per_token_logps_and_entropies`` (RLOO). Adapters stay fp32, and
the reference is the base with the adapter off: no trainer here holds a second base.
"""

import dataclasses
import gc
import hashlib
import importlib
import importlib.metadata
import resource
import shutil
import tempfile
import warnings
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import MISSING, dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pyarrow
import torch
from datasets import Dataset
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor
from tqdm.auto import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase, Trainer, TrainingArguments
from trl import (
    DPOConfig,
    DPOTrainer,
    KTOConfig,
    KTOTrainer,
    RLOOConfig,
    RLOOTrainer,
    SFTConfig,
    SFTTrainer,
)

from toolkit.data.comparisons import Comparisons, split_by_prompt
from toolkit.data.encoding import Encoder
from toolkit.data.files import atomic_directory, write_json, write_jsonl
from toolkit.data.prompts import Prompts
from toolkit.data.sources import Placed, read_table
from toolkit.data.text import decode_pair
from toolkit.errors import BadRows, InputError, check_choice, check_range, check_seed
from toolkit.maths.sequences import pad, position_ids
from toolkit.models.adapters import absolute_if_local, write_facts
from toolkit.models.generation import Sampled, step_of
from toolkit.models.reload import TOLERANCE
from toolkit.models.roles import Roles
from toolkit.training.guards import RunStopped
from toolkit.training.rewards import RewardFunction, call_reward_function, function_name
from toolkit.training.rollouts import SamplingRule, sampling_rule

Row = dict[str, Any]
METHODS = ("dpo", "kto", "orpo", "cpo")
LOSSES = {
    "dpo": ("sigmoid", "hinge", "ipo", "exo_pair", "nca_pair", "robust", "bco_pair", "sppo_hard",
            "aot", "aot_unpaired", "apo_zero", "apo_down", "discopop", "sft", "sigmoid_norm"),
    "kto": ("kto", "apo_zero_unpaired"),
    "orpo": ("orpo",),
    "cpo": ("sigmoid", "hinge", "ipo", "simpo"),
}  # fmt: skip
# Fields of TRL's and transformers' that would be ignored, or that would undo what stands above.
NOT_USED = {
    "chat_template_path", "dataset_text_field", "dataset_kwargs", "dataset_num_proc", "eos_token",
    "pad_token", "padding_free", "packing", "eval_packing", "completion_only_loss",
    "assistant_only_loss", "truncation_mode", "model_init_kwargs", "push_to_hub", "hub_model_id",
    "hub_token", "resume_from_checkpoint", "sync_ref_model", "precompute_ref_log_probs",
    "label_smoothing_factor", "train_sampling_strategy", "shuffle_dataset", "use_vllm", "top_p",
    "top_k", "min_p", "repetition_penalty", "generation_kwargs", "mask_truncated_completions",
    "use_transformers_continuous_batching", "use_transformers_paged", "cache_implementation",
    "chat_template_kwargs", "log_completions", "use_liger_kernel", "remove_unused_columns",
}  # fmt: skip
IDS = pyarrow.list_(pyarrow.int32())
SFT_SCHEMA = pyarrow.schema({"input_ids": IDS, "labels": IDS})
PAIR_SCHEMA = pyarrow.schema({"prompt_ids": IDS, "chosen_ids": IDS, "rejected_ids": IDS})
KTO_SCHEMA = pyarrow.schema({"prompt_ids": IDS, "completion_ids": IDS, "label": pyarrow.bool_()})


@dataclass
class BaselineDefaults:
    """Where all baselines differ from TRL's defaults: no bf16 and no checkpointing unless asked."""

    HELP_FIELDS: ClassVar[tuple[str, ...]] = (
        "beta", "gradient_accumulation_steps", "max_length", "max_steps", "seed", "report_to",
        "lr_scheduler_type", "warmup_steps", "disable_tqdm", "num_generations", "num_iterations",
        "normalize_advantages", "loss_weights", "label_smoothing", "epsilon",
    )  # fmt: skip

    num_train_epochs: float = field(default=1.0, metadata={"help": "Passes over the rows."})
    per_device_eval_batch_size: int = field(default=32, metadata={"help": "Rows, held out."})
    bf16: bool | None = field(default=False, metadata={"help": "Autocast to bf16 (GPU)."})
    activation_checkpointing: bool | None = field(default=False, metadata={"help": "Save memory."})
    gradient_checkpointing: bool = field(default=None, init=False)  # type: ignore[assignment]  # old
    save_strategy: str = field(default="no", metadata={"help": "The adapter is saved at the end."})
    dataloader_pin_memory: bool = field(
        default_factory=torch.cuda.is_available, metadata={"help": "Pin batches (GPU)."}
    )
    trust_remote_code: bool = field(default=False, init=False)  # ModelArguments has it
    logging_steps: float = field(default=10, metadata={"help": "Steps between log lines."})
    logging_first_step: bool = field(default=True, metadata={"help": "Log the first too."})

    def check(self) -> None:
        """Raise InputError for values out of range, and for fields that would be ignored."""
        config: Any = self
        for f in dataclasses.fields(self):
            default = f.default if f.default_factory is MISSING else f.default_factory()
            if f.name in NOT_USED and f.init and getattr(self, f.name) != default:
                raise InputError(f"{f.name} is not used by this recipe (leave it out)", f.name)
        check_seed(config.seed)
        for name in ("num_train_epochs", "learning_rate"):
            check_range(name, getattr(config, name), above=0)
        for name in ("per_device_train_batch_size", "gradient_accumulation_steps",
                     "per_device_eval_batch_size"):  # fmt: skip
            check_range(name, getattr(config, name), low=1)
        check_range("max_length", getattr(config, "max_length", None), low=2)
        check_range("beta", getattr(config, "beta", None), low=0)


@dataclass
class SFTBaselineConfig(BaselineDefaults, SFTConfig):  # type: ignore[misc]  # as TRL itself
    """TRL's SFTConfig."""

    output_dir: str | None = field(default="outputs/sft", metadata={"help": "Folder of the run."})
    learning_rate: float = field(default=2e-4, metadata={"help": "Falls linearly to 0."})
    per_device_train_batch_size: int = field(default=16, metadata={"help": "Rows in a batch."})

    def __post_init__(self) -> None:
        self.check()
        check_choice("loss_type", self.loss_type, ("nll", "dft"))
        self.dataset_kwargs = {"skip_prepare_dataset": True}  # rows come tokenised
        super().__post_init__()


@dataclass
class PreferenceConfig(BaselineDefaults, DPOConfig):  # type: ignore[misc]  # as TRL itself
    """TRL's DPOConfig, which ``for_trl`` turns into the method's own."""

    method: str = field(default="dpo", metadata={"help": "dpo, kto, orpo or cpo."})
    loss_type: str | None = field(  # type: ignore[assignment]  # TRL has a list here
        default=None,
        metadata={"help": "dpo: sigmoid, ipo, hinge, robust, apo_zero, ... (several by commas); "
                  "kto: kto, apo_zero_unpaired; cpo: sigmoid, hinge, ipo, simpo."},
    )  # fmt: skip
    beta: float = field(
        default=0.1,
        metadata={"help": "The pull to the reference (dpo, kto; 1/(2 beta) is ipo's margin); the "
                  "weight of the odds ratio (orpo); a temperature (cpo)."},
    )  # fmt: skip
    rejected: str = field(
        default="all",
        metadata={"help": "The pick stands against all others of its row, or one at random."},
    )
    desirable_weight: float | None = field(
        default=None, metadata={"help": "Of kto's picks; none: both sides weigh the same."}
    )
    undesirable_weight: float = field(default=1.0, metadata={"help": "Of kto's others."})
    cpo_alpha: float = field(default=1.0, metadata={"help": "Weight of cpo's SFT term."})
    simpo_gamma: float = field(default=0.5, metadata={"help": "Target margin of cpo's simpo."})
    output_dir: str | None = field(
        default="outputs/preference", metadata={"help": "Folder of the run."}
    )
    learning_rate: float = field(default=5e-5, metadata={"help": "Falls linearly to 0."})
    per_device_train_batch_size: int = field(
        default=16, metadata={"help": "Pairs (kto: completions) in a batch."}
    )

    def __post_init__(self) -> None:
        self.check()
        check_choice("method", self.method, METHODS)
        check_choice("rejected", self.rejected, ("all", "one"))
        for name in self.losses:
            check_choice("loss_type", name, LOSSES[self.method])
        if len(self.losses) > 1 and self.method != "dpo":
            raise InputError(f"loss_type: {self.method} has one loss at a time", "loss_type")
        for name in ("desirable_weight", "undesirable_weight", "cpo_alpha", "simpo_gamma"):
            check_range(name, getattr(self, name), low=0)
        if self.method == "kto" and self.per_device_train_batch_size < 2:
            raise InputError(
                "per_device_train_batch_size is 1, but kto estimates its KL from the others of a "
                "batch (pass 2 or more)", "per_device_train_batch_size",
            )  # fmt: skip
        self._refuse_what_the_method_lacks()
        loss_type, self.loss_type = self.loss_type, self.losses  # type: ignore[assignment]
        super().__post_init__()
        self.loss_type = loss_type

    @property
    def losses(self) -> list[str]:
        """The losses' names; the method's own if none was given."""
        names = [name.strip() for name in (self.loss_type or "").split(",") if name.strip()]
        return names or [LOSSES[self.method][0]]

    def _refuse_what_the_method_lacks(self) -> None:
        known = {f.name for f in dataclasses.fields(method_classes(self.method)[0])}
        for f in dataclasses.fields(self):
            if f.name in known | {"method", "loss_type", "rejected"} or f.default is MISSING:
                continue
            if getattr(self, f.name) != f.default:
                raise InputError(f"{f.name} is not used by {self.method} (leave it out)", f.name)

    def for_trl(self, desirable_weight: float = 1.0) -> TrainingArguments:
        """The method's own config; ``desirable_weight`` where none was given."""
        cls = method_classes(self.method)[0]
        passed = {f.name for f in dataclasses.fields(self)} - {
            "train_sampling_strategy", "gradient_checkpointing", "loss_type", "trust_remote_code",
        }  # fmt: skip
        values = {
            f.name: getattr(self, f.name)
            for f in dataclasses.fields(cls)
            if f.init and f.name in passed
        }
        if self.method == "dpo":
            values["loss_type"] = self.losses
        elif self.method != "orpo":
            values["loss_type"] = self.losses[0]
        if self.method == "kto" and self.desirable_weight is None:
            values["desirable_weight"] = desirable_weight
        if self.method in ("orpo", "cpo"):
            values["remove_unused_columns"] = False
        return cls(**values)


def method_classes(method: str) -> tuple[Any, Any]:
    """TRL's config and trainer of a method.

    Raises:
        InputError: this TRL has none: ORPO and CPO live in ``trl.experimental``, which may drop
            them in any release.
    """
    if method in ("dpo", "kto"):
        return {"dpo": (DPOConfig, DPOTrainer), "kto": (KTOConfig, KTOTrainer)}[method]
    name = method.upper()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # TRLExperimentalWarning: that is what the guard is for
            module = importlib.import_module(f"trl.experimental.{method}")
        return getattr(module, f"{name}Config"), getattr(module, f"{name}Trainer")
    except (ImportError, AttributeError) as error:
        raise InputError(
            f"method: TRL {importlib.metadata.version('trl')} has no {name} (pip install "
            f"'trl>=1.16,<1.17', which has it, or take another method): {error}", "method",
        ) from None  # fmt: skip


@dataclass
class RLOOBaselineConfig(BaselineDefaults, RLOOConfig):  # type: ignore[misc]  # as TRL itself
    """TRL's RLOOConfig, with PPO's words for how completions come about."""

    response_length: int = field(default=24, metadata={"help": "Tokens sampled per completion."})
    temperature: float = field(default=0.7, metadata={"help": "Of sampling and of all log-probs."})
    stop_token: str | None = field(
        default=None, metadata={"help": "End completions at this token; 'eos' for the tokenizer's."}
    )
    truncate_token: str | None = field(
        default=None,
        metadata={"help": "Score only what stands up to this token (say a full stop)."},
    )
    truncate_after: int = field(
        default=16, metadata={"help": "First index at which truncate_token counts."}
    )
    penalty_reward_value: float = field(
        default=-1.0, metadata={"help": "Score of a completion without truncate_token there."}
    )
    num_generations: int = field(default=4, metadata={"help": "Completions of each prompt."})
    num_generations_eval: int = field(default=1, init=False)
    disable_dropout: bool = field(
        default=True, metadata={"help": "Or the ratio is not 1 before the first step."}
    )
    max_completion_length: int | None = field(default=None, init=False)  # response_length
    reward_weights: list[float] | None = field(default=None, init=False)  # RewardArguments has it
    output_dir: str | None = field(default="outputs/rloo", metadata={"help": "Folder of the run."})
    learning_rate: float = field(default=5e-5, metadata={"help": "Falls linearly to 0."})
    per_device_train_batch_size: int = field(
        default=64,
        metadata={"help": "Completions in one pass, num_generations of a prompt."},
    )

    def __post_init__(self) -> None:
        self.check()
        for name in ("temperature", "epsilon"):
            check_range(name, getattr(self, name), above=0)
        check_range("response_length", self.response_length, low=1)
        check_range("truncate_after", self.truncate_after, low=0)
        check_range("penalty_reward_value", self.penalty_reward_value)
        check_range("num_generations", self.num_generations, low=2)
        self.max_completion_length = self.response_length
        super().__post_init__()

    def rule(self, tokenizer: PreTrainedTokenizerBase) -> SamplingRule:
        """The sampling in token ids."""
        return sampling_rule(
            tokenizer, self.response_length, self.temperature, self.stop_token,
            self.truncate_token, self.truncate_after, self.penalty_reward_value,
        )  # fmt: skip


@dataclass
class BaselineData:
    """One run's rows.

    Attributes:
        train, held_out: what the trainer takes, in files that go with this object.
        probes: token ids of a few held-out texts, to know the saved adapter by.
        facts: counts, for the log.
    """

    train: Dataset
    held_out: Dataset
    probes: list[list[int]]
    facts: Row


def complete(encoder: Encoder, rows: Iterable[Placed], stop_id: int | None) -> Iterator[Row]:
    """Prompts and completions as token ids, as PPO starts from and samples them.

    >>> next(complete(encoder, rows, stop_id=None))
    {'prompt_ids': [1, 306, 5446], 'completion_ids': [[29889, 13], [727]], 'best': 1}

    Prompts are those of ``read_prompts``. Nothing is appended unless ``stop_id`` is given.

    Args:
        encoder: the rule for long rows; counts them. A row is as long as its longest completion.
        rows: comparisons, with their places.
        stop_id: completions end with this token.
    """
    for _, row in rows:
        prompt = encoder.prompt_ids(row["prompt"])
        completions = completion_ids(encoder, row, prompt)
        if stop_id is not None:
            completions = [c if c[-1] == stop_id else [*c, stop_id] for c in completions]
        room = (encoder.max_length or 1 << 30) - max(map(len, completions))
        if len(prompt) > room:
            keep = int(prompt[:1] == [encoder.tokenizer.bos_token_id])
            if encoder.long_rows == "drop" or room <= keep:
                encoder.dropped += 1
                continue
            encoder.truncated += 1
            prompt = prompt[:keep] + prompt[len(prompt) - (room - keep) :]
        encoder.rows += 1
        yield {"prompt_ids": prompt, "completion_ids": completions, "best": row["best"]}


def completion_ids(encoder: Encoder, row: Row, prompt: list[int]) -> list[list[int]]:
    """Token ids of a row's completions, such that behind ``prompt`` they read as the text does.

    They are cut off the tokens of the whole, where that begins as the prompt does. It does not
    where a token runs across the border, which sampling never does: then ``_alone``.
    """
    chat = not isinstance(row["prompt"], str)
    text = encoder.prompt_text(row["prompt"])
    spaced = chat and encoder.plain  # "Assistant: ..."
    completions = [f" {c.lstrip(' ')}" if spaced else c for c in row["completions"]]
    wholes = encoder.ids([text + c for c in completions], chat)
    return [
        whole[len(prompt) :]
        if whole[: len(prompt)] == prompt and len(whole) > len(prompt)
        else _alone(encoder.tokenizer, prompt, completion)
        for completion, whole in zip(completions, wholes, strict=True)
    ]


def _alone(tokenizer: PreTrainedTokenizerBase, prompt: list[int], completion: str) -> list[int]:
    """A completion tokenised by itself: as it is, without its first space, or behind a newline.

    SentencePiece puts a space before a text, so the first that reads right behind the prompt is
    taken.
    """

    def ids(text: str) -> list[int]:
        return tokenizer(text, add_special_tokens=False)["input_ids"]

    anchored = ids(f"\n{completion}")[len(ids("\n")) :]
    tries = [ids(completion), ids(completion.removeprefix(" ")), anchored]
    right = (t for t in tries if t and decode_pair(tokenizer, prompt, t)[1] == completion)
    return next(right, tries[0])


def sft_rows(rows: Iterable[Row]) -> Iterator[Row]:
    """The pick behind its prompt; -100 where nothing is learned."""
    for row in rows:
        prompt, picked = row["prompt_ids"], row["completion_ids"][row["best"]]
        yield {"input_ids": prompt + picked, "labels": [-100] * len(prompt) + picked}


def others(row: Row, number: int, rejected: str, seed: int) -> list[list[int]]:
    """The completions that are not the pick, nor equal to it; one at random if so told."""
    picked = row["completion_ids"][row["best"]]
    left = [c for k, c in enumerate(row["completion_ids"]) if k != row["best"] and c != picked]
    if rejected == "one" and left:
        return [left[np.random.default_rng([seed, number]).integers(len(left))]]
    return left


def pair_rows(rows: Iterable[Row], rejected: str, seed: int) -> Iterator[Row]:
    """The pick against each other completion: K - 1 pairs of a row of K."""
    for number, row in enumerate(rows):
        chosen = {
            "prompt_ids": row["prompt_ids"],
            "chosen_ids": row["completion_ids"][row["best"]],
        }
        yield from (chosen | {"rejected_ids": c} for c in others(row, number, rejected, seed))


def kto_rows(rows: Iterable[Row], rejected: str, seed: int) -> Iterator[Row]:
    """Each completion by itself; True for the pick."""
    for number, row in enumerate(rows):
        prompt, left = row["prompt_ids"], others(row, number, rejected, seed)
        if left:
            picked = row["completion_ids"][row["best"]]
            yield {"prompt_ids": prompt, "completion_ids": picked, "label": True}
        yield from ({"prompt_ids": prompt, "completion_ids": c, "label": False} for c in left)


def with_kl_rows(dataset: Dataset, batch_size: int, seed: int) -> Dataset:
    """KTO's rows in a random order, each with another prompt's completion from its batch.

    KTO estimates the KL from such mismatched pairs and wants them in the batch's order. TRL makes
    them of neighbours in the file, which here would share a prompt.
    """

    def rotate(batch: Row) -> Row:
        ids = batch["completion_ids"]
        return {"KL_completion_ids": ids[-1:] + ids[:-1]}

    shuffled = dataset.shuffle(seed=seed)
    return shuffled.map(rotate, batched=True, batch_size=batch_size)


@contextmanager
def _scratch(near: Path) -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(prefix=".tokens-", dir=near))
    try:
        yield folder
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise


def _to_disk(rows: Iterable[Row], schema: pyarrow.Schema, path: Path) -> Dataset:
    """The rows as a dataset that is read from a file; 512 are held in memory at a time."""
    iterator = iter(rows)
    with pyarrow.ipc.new_stream(path, schema) as writer:
        while chunk := list(islice(iterator, 512)):
            writer.write_batch(pyarrow.RecordBatch.from_pylist(chunk, schema=schema))
    return Dataset.from_file(str(path))


Shape = Callable[[Iterable[Row]], Iterator[Row]]


def prepare_completions(
    comparisons: tuple[Comparisons, np.ndarray, np.ndarray],
    encoder: Encoder,
    stop_id: int | None,
    shape: Shape,
    schema: pyarrow.Schema,
    scratch: Path,
) -> BaselineData:
    """Both sides of the split, tokenised and shaped as a trainer takes them.

    Args:
        comparisons: checked rows, and which to train on and to hold out.
        encoder: the rule for long rows; counts them.
        stop_id: completions end with this token; None for nothing behind them.
        shape: ``sft_rows``, ``pair_rows`` or ``kto_rows``.
        schema: of the rows that ``shape`` makes.
        scratch: token ids go into a folder made here, which goes when the data do.

    Raises:
        InputError: no row fits.
    """
    source, *sides = comparisons
    sets, counts = [], []
    with _scratch(scratch) as folder:
        for name, wanted in zip(("train", "held-out"), sides, strict=True):
            before = encoder.rows
            placed = tqdm(
                source.where(wanted), desc="Tokenising", unit="row", total=int(wanted.sum()),
                mininterval=1,
            )  # fmt: skip
            rows = shape(complete(encoder, placed, stop_id))
            sets.append(_to_disk(rows, schema, folder / f"{name}.arrow"))
            counts.append(encoder.rows - before)
            if not len(sets[-1]):
                raise InputError(
                    f"{source.source}: no {name} row fits {encoder.max_length} tokens of prompt "
                    "and completion (raise --max_length, if the model's context allows; or "
                    "--long_rows truncate_prompt)"
                )
    data = BaselineData(sets[0], sets[1], [_text_of(row) for row in islice(sets[1], 8)], {
        "source": source.source, "digest": source.digest, "rows": len(source),
        "invalid_rows_skipped": source.skipped, "train_comparisons": counts[0],
        "held_out_comparisons": counts[1], "train_rows": len(sets[0]),
        "held_out_rows": len(sets[1]), "max_length": encoder.max_length, "stop_id": stop_id,
        "rows_too_long": encoder.dropped, "rows_with_prompt_cut": encoder.truncated,
    })  # fmt: skip
    weakref.finalize(data, shutil.rmtree, folder, ignore_errors=True)
    return data


def _text_of(row: Row) -> list[int]:
    if "input_ids" in row:
        return list(row["input_ids"])
    return [*row["prompt_ids"], *(row.get("chosen_ids") or row["completion_ids"])]


def prepare_text(
    source: str,
    tokenizer: PreTrainedTokenizerBase,
    max_length: int,
    stop_id: int | None,
    eval_rows: int | None,
    seed: int,
    scratch: Path,
) -> BaselineData:
    """Rows of ``text`` for SFT: every token is learned; longer texts end at ``max_length``.

    Equal texts are on one side of the split.

    Args:
        source: what ``read_table`` reads.
        tokenizer: its own special tokens (a BOS, say) are added.
        max_length: tokens.
        stop_id: whole texts end with this token; None for nothing behind them.
        eval_rows: held out; None for 200, or a fifth if that is fewer.
        seed: of the split.
        scratch: as for ``prepare_completions``.

    Raises:
        InputError: a row without text (twenty shown, all counted), or too few rows.
    """
    bad, order, cut = BadRows(), [], 0
    for place, row in read_table(source, "--text", bad.add):
        text = row.get("text")
        if not isinstance(text, str) or not text.strip():
            bad.add(f"{place}: text: {text!r:.40}, but must be text (delete or mend the row)")
            continue
        order.append(int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big"))
    bad.refuse()
    if len(order) < 2:
        raise InputError(f"{source}: {len(order)} rows of text (--text needs two or more)")
    hashes = np.array(order, dtype=np.uint64)
    sides = split_by_prompt(hashes, eval_rows or max(1, min(200, len(order) // 5)), seed)

    def tokenise(wanted: np.ndarray) -> Iterator[Row]:
        nonlocal cut
        for wants, (_, row) in zip(wanted, read_table(source, "--text"), strict=True):
            if wants:
                ids = tokenizer(row["text"], verbose=False)["input_ids"]
                if stop_id is not None and ids[-1] != stop_id:
                    ids = [*ids, stop_id]
                cut += len(ids) > max_length
                yield {"input_ids": ids[:max_length], "labels": ids[:max_length]}

    with _scratch(scratch) as folder:
        train, held_out = (
            _to_disk(tokenise(wanted), SFT_SCHEMA, folder / f"{i}.arrow")
            for i, wanted in enumerate(sides)
        )
    data = BaselineData(train, held_out, [_text_of(row) for row in islice(held_out, 8)], {
        "source": source, "rows": len(order), "train_rows": len(train),
        "held_out_rows": len(held_out), "max_length": max_length, "stop_id": stop_id,
        "rows_cut": cut,
    })  # fmt: skip
    weakref.finalize(data, shutil.rmtree, folder, ignore_errors=True)
    return data


@contextmanager
def fp32_adapters(base: PreTrainedModel) -> Iterator[None]:
    """Within, TRL does not see that the base is quantised, and leaves the adapters as they are.

    It casts every trainable weight of a 4-bit model to bf16 (trl 1.16.0, dpo_trainer.py:726): an
    update smaller than 1/256 of a weight is lost then. A test holds the adapters' type.
    """
    held: Any = base
    quantised = getattr(base, "is_loaded_in_4bit", False)
    if quantised:
        held.is_loaded_in_4bit = False
    try:
        yield
    finally:
        if quantised:
            held.is_loaded_in_4bit = True


def _start(
    base: PreTrainedModel, lora: LoraConfig, policy_adapter: str | None
) -> tuple[Any, LoraConfig | None]:
    """Model and LoRA for TRL, which makes a frozen copy of a given adapter the reference."""
    if policy_adapter is None:
        return base, lora
    return PeftModel.from_pretrained(base, policy_adapter, is_trainable=True), None


def sft_trainer(
    base: PreTrainedModel, config: SFTBaselineConfig, tokenizer: PreTrainedTokenizerBase,
    data: BaselineData, lora: LoraConfig, policy_adapter: str | None = None,
) -> SFTTrainer:  # fmt: skip
    """TRL's SFTTrainer on these rows, from ``policy_adapter`` or a new one."""
    model, peft_config = _start(base, lora, policy_adapter)
    with fp32_adapters(base):
        return SFTTrainer(
            model, config, train_dataset=data.train, eval_dataset=data.held_out,
            processing_class=tokenizer, peft_config=peft_config,
        )  # fmt: skip


def preference_shape(config: PreferenceConfig) -> tuple[Shape, pyarrow.Schema]:
    """How the method wants its rows."""
    if config.method == "kto":
        return lambda rows: kto_rows(rows, config.rejected, config.seed), KTO_SCHEMA
    return lambda rows: pair_rows(rows, config.rejected, config.seed), PAIR_SCHEMA


def preference_trainer(
    base: PreTrainedModel, config: PreferenceConfig, tokenizer: PreTrainedTokenizerBase,
    data: BaselineData, lora: LoraConfig, policy_adapter: str | None = None,
) -> Trainer:  # fmt: skip
    """The method's trainer on these rows (``preference_shape``).

    The reference of DPO and KTO is the base with the adapter off, or a frozen copy of
    ``policy_adapter``; ORPO and CPO have none.
    """
    model, peft_config = _start(base, lora, policy_adapter)
    trainer_class = _takes_ids(method_classes(config.method)[1], config.method)
    sets, weight = (data.train, data.held_out), 1.0
    if config.method == "kto":
        wanted = sum(data.train["label"])
        weight = config.undesirable_weight * (len(data.train) - wanted) / wanted
        sets = tuple(
            with_kl_rows(each, size, config.seed)
            for each, size in zip(sets, (config.per_device_train_batch_size,
                                         config.per_device_eval_batch_size), strict=True)
        )  # fmt: skip
    args = config.for_trl(weight)
    if config.method in ("orpo", "cpo") and peft_config is not None:
        # By itself TRL would first turn what is not quantised to fp32 (prepare_model_for_kbit).
        torch.manual_seed(config.seed)
        model, peft_config = get_peft_model(model, peft_config), None
    with fp32_adapters(base), warnings.catch_warnings():
        # TRL's own deprecation of what it imports; nothing that the user could mend.
        warnings.simplefilter("ignore", FutureWarning)
        return trainer_class(
            model=model, args=args, train_dataset=sets[0], eval_dataset=sets[1],
            processing_class=tokenizer, peft_config=peft_config,
        )  # fmt: skip


def _takes_ids(trainer_class: Any, method: str) -> Any:
    """The trainer with its making of tokens passed over: rows come as token ids."""
    if method in ("dpo", "kto"):

        class TakesIds(trainer_class):
            def _prepare_dataset(self, dataset: Dataset, *args: Any, **kwargs: Any) -> Dataset:
                return dataset

        return TakesIds

    class TakesPairs(trainer_class):
        def tokenize_row(self, feature: Row, model: Any = None) -> Row:
            made: Row = {}
            prompt = feature["prompt_ids"]
            made["prompt_input_ids"], made["prompt_attention_mask"] = prompt, [1] * len(prompt)
            for side in ("chosen", "rejected"):
                ids = feature[f"{side}_ids"]
                made[f"{side}_input_ids"] = prompt + ids
                made[f"{side}_attention_mask"] = [1] * len(prompt + ids)
                made[f"{side}_labels"] = [-100] * len(prompt) + ids
            return made

    return TakesPairs


class VisibleReward:
    """Rewards of sampled tokens: each part scores what the rule shows of a completion, as in PPO.

    Args:
        parts: functions ``fn(prompts, completions, **columns) -> scores``.
        weights: one for each part.
        rule: the truncation, and the penalty of completions that do not meet it.
        tokenizer: the parts read text.
        prompts: the training prompts, then the held-out ones: their rows' further columns go to
            the functions.
    """

    def __init__(
        self, parts: Sequence[RewardFunction], weights: Sequence[float], rule: SamplingRule,
        tokenizer: PreTrainedTokenizerBase, *prompts: Prompts,
    ) -> None:  # fmt: skip
        self.parts, self.weights, self.rule = parts, weights, rule
        self.tokenizer = tokenizer
        self.columns = {
            name: [v for each in prompts for v in each.columns.get(name, [None] * len(each))]
            for name in sorted({name for each in prompts for name in each.columns})
        }
        self.__name__ = "+".join(map(function_name, parts))

    def __call__(
        self, prompts: list[list[int]], completion_ids: list[list[int]], row: list[int],
        **others: Any,
    ) -> list[float]:  # fmt: skip
        """Scores; NaN where a part cannot score a completion, from which TRL learns nothing."""
        ids, mask = pad(completion_ids, self.rule.pad_id)
        visible, valid = self.rule.visible(Sampled(ids, mask, torch.zeros(0)))
        kept = [tokens[keep].tolist() for tokens, keep in zip(ids, visible, strict=True)]
        pairs = [decode_pair(self.tokenizer, p, c) for p, c in zip(prompts, kept, strict=True)]
        texts = [prompt for prompt, _ in pairs], [completion for _, completion in pairs]
        columns = {name: [values[i] for i in row] for name, values in self.columns.items()}
        total = torch.zeros(len(prompts), dtype=torch.float64)
        for part, weight in zip(self.parts, self.weights, strict=True):
            scores = call_reward_function(part, *texts, columns, all_scored=False)
            total += weight * torch.tensor(scores, dtype=torch.float64)
        return torch.where(valid, total, self.rule.penalty).tolist()


class SampledRLOOTrainer(RLOOTrainer):
    """RLOOTrainer whose prompts are token ids and whose completions PPO's sampler draws.

    ``generate`` ends completions at end-of-text, and without an end bans that token; the toolkit
    samples it like any other unless it is the stop token.

    Args:
        rule: the sampling.
        kwargs: RLOOTrainer's.
    """

    def __init__(self, rule: SamplingRule, **kwargs: Any) -> None:
        self.rule = rule
        super().__init__(**kwargs)
        self.noise = torch.Generator().manual_seed(self.args.seed)
        self.eos_token_ids = [] if rule.stop_id is None else [rule.stop_id]  # counted in metrics

    def _tokenize_prompts(self, prompts: list[list[int]]) -> tuple[list[list[int]], None, Row]:
        return prompts, None, {}

    def _generate_single_turn(
        self, prompt_ids: list[list[int]], images: None, multimodal_fields: Row
    ) -> list[list[int]]:
        model: Any = self.accelerator.unwrap_model(self.model_wrapped)
        was_training = model.training
        model.eval()  # in training mode checkpointing would go without the cache
        device = self.accelerator.device
        with self.accelerator.autocast():
            _, sampled = self.rule.sample(step_of(model), prompt_ids, self.noise, device)
        model.train(was_training)
        return [
            ids[keep].tolist()
            for ids, keep in zip(sampled.completion_ids, sampled.mask, strict=True)
        ]

    def _get_per_token_logps_and_entropies(
        self, model: Any, input_ids: Tensor, attention_mask: Tensor, logits_to_keep: int,
        batch_size: int | None = None, compute_entropy: bool = False, **images: Any,
    ) -> tuple[Tensor, Tensor | None, None]:  # fmt: skip
        """With position ids, which TRL leaves out: learned positions go wrong by the padding."""
        logps, entropies = [], []
        for ids, mask in zip(
            *(t.split(batch_size or len(input_ids)) for t in (input_ids, attention_mask)),
            strict=True,
        ):
            labels = ids.masked_fill(mask == 0, -100)
            labels[:, :-logits_to_keep] = -100
            with self.accelerator.autocast():
                outputs = model(
                    input_ids=ids, attention_mask=mask, position_ids=position_ids(mask),
                    labels=labels, fused_lm_head=True,
                )  # fmt: skip
            logps.append(outputs.log_probs[:, -logits_to_keep:])
            entropies.append(outputs.entropy[:, -logits_to_keep:])
        return torch.cat(logps), torch.cat(entropies) if compute_entropy else None, None


def prompt_rows(prompts: Prompts, first: int = 0) -> Dataset:
    """Prompts for ``SampledRLOOTrainer``; ``row`` finds their further columns."""
    rows = range(first, first + len(prompts))
    return Dataset.from_dict({"prompt": list(prompts), "row": list(rows)})


def rloo_trainer(
    base: PreTrainedModel, config: RLOOBaselineConfig, tokenizer: PreTrainedTokenizerBase,
    prompts: Prompts, held_out: Prompts | None, reward: VisibleReward, lora: LoraConfig,
    policy_adapter: str | None = None,
) -> SampledRLOOTrainer:  # fmt: skip
    """TRL's RLOOTrainer on these prompts and this reward."""
    model, peft_config = _start(base, lora, policy_adapter)
    with fp32_adapters(base):
        return SampledRLOOTrainer(
            reward.rule, model=model, args=config, reward_funcs=[reward],
            train_dataset=prompt_rows(prompts),
            eval_dataset=None if held_out is None else prompt_rows(held_out, len(prompts)),
            processing_class=tokenizer, peft_config=peft_config,
        )  # fmt: skip


@torch.no_grad()
def token_logprobs(model: Any, rows: list[list[int]]) -> list[Tensor]:
    """Log-probs of each row's tokens but its first, one row at a time, so nothing is padded."""
    device = next(model.parameters()).device
    found = []
    for row in rows:
        ids = torch.tensor([row], device=device)
        logits = model(input_ids=ids, use_cache=False).logits[:, :-1].float()
        chosen = logits.log_softmax(dim=-1).gather(-1, ids[:, 1:, None])
        found.append(chosen.flatten().cpu())
    return found


@torch.no_grad()
def role_logprobs(roles: Roles, rows: list[list[int]]) -> list[Tensor]:
    """The same by the path that PPO and the evaluation take."""
    found = []
    for row in rows:
        ids = torch.tensor([row], device=roles.device)
        mask = torch.ones_like(ids, dtype=torch.bool)
        found.append(roles.policy_outputs(ids, mask, ids[:, 1:], 1.0).logprobs.flatten().cpu())
    return found


def train_and_save(
    make: Callable[[], Trainer],
    out: Path,
    load: Callable[[], PreTrainedModel],
    name: str,
    precision: str,
    probes: list[list[int]],
) -> tuple[dict[str, float], list[Row]]:
    """Train, evaluate on what is held out, save the adapter, load it again and compare.

    ``out/adapter`` appears when all of it is done: the adapter (plain peft loads it), toolkit.json
    and metrics.json; ``out/log.jsonl`` holds what the trainer logged.

    Args:
        make: gives the trainer, which is let go before the base is loaded a second time.
        out: folder of the run.
        load: gives the base.
        name, precision: of the base.
        probes: token ids of texts whose log-probs must be the same after reloading.

    Returns:
        metrics, and the logged rows with a loss.

    Raises:
        RunStopped: the adapter is not finite.
        InputError: it reloads otherwise than it was.
    """
    trainer = make()
    model: Any = trainer.model
    count = sum(p.numel() for p in model.parameters() if p.requires_grad)
    print(f"trains {count:,} weights of LoRA")
    trainer.train()
    metrics = dict(trainer.evaluate()) if trainer.eval_dataset is not None else {}
    history = list(trainer.state.log_history)
    write_jsonl(out / "log.jsonl", history)
    if not all(bool(p.isfinite().all()) for p in model.parameters() if p.requires_grad):
        raise RunStopped("the adapter is not finite (lower --learning_rate)")
    metrics |= {"peak_memory_mib": _peak_memory(), "steps": trainer.state.global_step}
    with atomic_directory(out / "adapter") as folder:
        expected = token_logprobs(model.eval(), probes)
        model.peft_config["default"].base_model_name_or_path = absolute_if_local(name)
        model.save_pretrained(str(folder), selected_adapters=["default"])
        (folder / "README.md").unlink(missing_ok=True)  # peft's empty template
        write_facts(folder, name, precision=precision)
        del trainer, model
        gc.collect()  # a trainer is part of cycles
        metrics["reload_difference"] = _check_reload(
            Roles(load(), policy_adapter=folder), probes, expected, folder, precision
        )
        write_json(folder / "metrics.json", metrics)
    return metrics, [row for row in history if "loss" in row]


def _check_reload(
    roles: Roles, probes: list[list[int]], expected: list[Tensor], folder: Path, precision: str
) -> float:
    again, before = torch.cat(role_logprobs(roles, probes)), torch.cat(expected)
    difference = (again - before).abs().max().item()
    exact = precision == "fp32" or (precision == "4bit" and roles.device.type == "cpu")
    allowed = TOLERANCE["exact" if exact else "rounded"] * max(1.0, before.abs().max().item())
    if not difference <= allowed:
        raise InputError(
            f"{folder}: reloaded, its log-probs differ by up to {difference:.3g} (allowed "
            f"{allowed:.3g}): the adapter is not what was trained"
        )
    return difference


def _peak_memory() -> float:
    """The process's highest use so far, in MiB: the GPU's if there is one."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
