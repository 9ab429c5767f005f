"""The base model and its tokenizer: 4-bit, bf16 or fp32; safetensors only."""

import copy
import hashlib
import json
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import bitsandbytes as bnb
import torch
from bitsandbytes.functional import _convert_weight_packed_for_cpu_inverse as unpacked_for_cpu
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BitsAndBytesConfig,
    GenerationConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import is_protobuf_available, is_sentencepiece_available
from trl.trainer.reward_trainer import suppress_seqcls_warning

from toolkit.errors import InputError
from toolkit.maths.normalization import head_init_std
from toolkit.maths.precision import autocast_device
from toolkit.models.experts import (
    expert_parameters,
    experts_in_4bit,
    quantise_experts,
    share_in_4bit,
)
from toolkit.models.families import HEADS, check_precision, family_of
from toolkit.models.finite_weights import check_weights_of
from toolkit.models.peft_wrappers import head_weights
from toolkit.models.quantized import DTYPES, Quantized, check_quantized
from toolkit.models.trunk_head import with_score_head


class Fp32Head(nn.Linear):
    """A linear head that computes in fp32 whatever the trunk's type, autocast or not.

    RewardTrainer's own head is cast to bf16 on a quantised base, and its scores fall on a coarse
    grid. The state dict is that of ``nn.Linear``, so plain peft loads it.
    """

    def forward(self, hidden: Tensor) -> Tensor:
        with torch.autocast(autocast_device(hidden.device), enabled=False):
            return nn.functional.linear(hidden.float(), self.weight.float(), self.bias)


def check_base(name: str) -> None:
    """Raise InputError if ``name`` is neither a folder with a model nor the shape of a Hub id."""
    path = Path(name)
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise InputError(f"{name}: no config.json (give the folder of a saved model)")
        if not list(path.glob("*.safetensors")):
            raise InputError(f"{name}: no *.safetensors (pickled weights are not loaded)")
    elif name.count("/") > 1 or name.startswith((".", "/", "~")):
        raise InputError(f"model_name_or_path: {name}: no such folder", "model_name_or_path")


def load_tokenizer(
    name: str, revision: str = "main", trust_remote_code: bool = False, base: str | None = None
) -> PreTrainedTokenizerBase:
    """The tokenizer, with a pad token, which is not the end-of-text token where that can be.

    It is given attributes, with which tokenizer, embedding, pad and end ids are compared once:

        embedding_rows   of the model, by its config; None where that is not known. A pad token
                         beyond them is replaced; end ids beyond them are left out
        end_token_ids    what closes a completion: the tokenizer's end token, those that
                         generation_config.json lists, and the chat template's end of turn
        turn_end_id      the last of these; None without a template

    Args:
        name: Hub id or folder with the tokenizer's files.
        revision: branch, tag or commit.
        trust_remote_code: run code that the repository ships.
        base: the model that reads the tokens, where that is another than ``name``.

    Raises:
        InputError: there is none at ``name``, or it needs a package that is not installed.
    """
    if base is None:
        check_base(name)
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            name, revision=revision, trust_remote_code=trust_remote_code
        )
    except Exception as error:  # a broken file comes as KeyError, AttributeError or plain Exception
        raise InputError(f"{name}: no tokenizer loaded: {_why_none(name, error)}") from None
    if not tokenizer.vocab_size:
        raise InputError(f"{name}: the tokenizer has no vocabulary (is tokenizer.json there?)")
    rows = vocabulary_size(base or name, revision)
    tokenizer.embedding_rows = rows
    tokenizer.beside_base = base not in (None, name)  # to be saved with what is trained on it
    tokenizer.stock_pad_token_id = tokenizer.pad_token_id  # as TRL finds it
    outside = tokenizer.pad_token_id is not None and tokenizer.pad_token_id >= (rows or 1 << 60)
    if outside:
        print(
            f"note: {tokenizer.pad_token} is token {tokenizer.pad_token_id}, but the embedding has "
            f"{rows} rows: another token pads (padding is told by the mask alone)"
        )
    note_ends(tokenizer, base or name, revision)
    if tokenizer.pad_token is None or tokenizer.pad_token == tokenizer.eos_token or outside:
        named = tokenizer.pad_token or tokenizer.eos_token
        tokenizer.pad_token = _padding(tokenizer)
        if not named:
            print(
                f"note: the tokenizer has neither pad nor end token: {tokenizer.pad_token!r} pads "
                "(padding is told by the mask alone)"
            )
    return tokenizer


def _padding(tokenizer: Any) -> str:
    """A token that can pad, of a tokenizer that names none which can.

    One that no text ends in, where there is one: rows that do would be refused. Else the token of
    the byte 0, as byte-level and SentencePiece vocabularies write it; at last the first token.
    """
    eos = tokenizer.eos_token_id
    unknown = None if tokenizer.unk_token == tokenizer.eos_token else tokenizer.unk_token_id
    special = [i for i, token in tokenizer.added_tokens_decoder.items() if token.special]
    zero = [tokenizer.get_vocab().get(token) for token in ("<0x00>", "\u0100")]
    first, rows = min(tokenizer.get_vocab().values()), tokenizer.embedding_rows or len(tokenizer)
    found = [unknown, eos, *tokenizer.end_token_ids, tokenizer.bos_token_id, *special, *zero, first]
    return next(
        token
        for i in found
        if i is not None and i < rows and (token := tokenizer.convert_ids_to_tokens(i)) is not None
    )


def _why_none(name: str, error: Exception) -> str:
    """Why transformers made no tokenizer, and what helps, where that is known."""
    text = str(error)
    if "mistral-common" in text:
        return "its tekken.json needs mistral-common, which is not installed (pip install it)"
    if "backend tokenizer" in text:
        return "no tokenizer.json or tokenizer.model (give --tokenizer_name_or_path)"
    if "tiktoken" in text:  # tried last with every tokenizer.model, and what is said to be missing
        lacking = [
            package
            for package, there in (
                ("sentencepiece", is_sentencepiece_available()),
                ("protobuf", is_protobuf_available()),
            )
            if not there and not (Path(name) / "tiktoken.model").is_file()
        ]
        needed = " ".join(lacking) or "tiktoken"
        return f"its vocabulary file needs what is not installed: pip install {needed}"
    if "custom code" in text:
        return "it is code that the repository ships (--trust_remote_code runs it)"
    known = isinstance(error, (OSError, ValueError)) and text.strip()
    return _first_line(error) if known else f"its files are broken ({error!r:.80})"


def note_ends(tokenizer: Any, name: str, revision: str = "main") -> None:
    """Set ``end_token_ids`` and ``turn_end_id`` of a tokenizer, for the model at ``name``."""
    tokenizer.turn_end_id = _turn_end(tokenizer)
    found = [tokenizer.eos_token_id, *_listed_ends(name, revision), tokenizer.turn_end_id]
    rows = tokenizer.embedding_rows or len(tokenizer)
    ends = [i for i in dict.fromkeys(found) if i is not None]
    beyond = [i for i in ends if i >= rows]
    if beyond:
        print(f"note: end tokens {beyond} are beyond the embedding's {rows} rows, and never come")
    tokenizer.end_token_ids = tuple(i for i in ends if i < rows)


def _listed_ends(name: str, revision: str) -> list[int]:
    """The end tokens of generation_config.json, or of config.json where there is none."""
    try:
        listed = GenerationConfig.from_pretrained(name, revision=revision).eos_token_id
    except (OSError, ValueError):
        try:
            config = AutoConfig.from_pretrained(name, revision=revision).get_text_config()
        except (OSError, ValueError):
            return []
        listed = getattr(config, "eos_token_id", None)
    return [] if listed is None else list(listed) if isinstance(listed, list) else [listed]


def _turn_end(tokenizer: Any) -> int | None:
    """The special token with which the chat template closes an assistant's turn."""
    if not tokenizer.chat_template:
        return None
    answer = "ANSWER"
    dialogue = [{"role": "user", "content": "a"}, {"role": "assistant", "content": answer}]
    try:
        text = tokenizer.apply_chat_template(dialogue, tokenize=False)
    except Exception:  # a template is a program; one that refuses this is told of when it is used
        return None
    behind = tokenizer(text.rpartition(answer)[2], add_special_tokens=False)["input_ids"]
    added = tokenizer.added_tokens_decoder
    special = {*tokenizer.all_special_ids, *(i for i, token in added.items() if token.special)}
    named = {i for i, token in added.items() if str(token).strip()}  # "\n\n" is no end
    return next((i for known in (special, named) for i in behind if i in known), None)


def load_config(name: str, revision: str = "main", trust_remote_code: bool = False) -> Any:
    """The model's config.

    Raises:
        InputError: there is none, or transformers does not know its type.
    """
    try:
        return AutoConfig.from_pretrained(
            name, revision=revision, trust_remote_code=trust_remote_code
        )
    except (OSError, ValueError, KeyError) as error:
        raise InputError(f"{name}: config not loaded: {_first_line(error)}") from None


def context_length(name: str, revision: str = "main") -> int | None:
    """The most tokens that the model was made for, by its config; None where it does not say.

    A model with rotary positions would run on beyond it and write nonsense; one with learned
    positions would crash. Reads no weights.
    """
    config = load_config(name, revision).get_text_config()
    return getattr(config, "max_position_embeddings", None)


def vocabulary_size(name: str, revision: str = "main") -> int | None:
    """How many rows the model's embedding has, by its config; None where that cannot be read."""
    try:
        config = AutoConfig.from_pretrained(name, revision=revision).get_text_config()
    except (
        OSError,
        ValueError,
    ):  # a config in code of its own, or no network: the weights will tell
        return None
    return getattr(config, "vocab_size", None)


def is_tied(name: str, revision: str = "main") -> bool:
    """Whether the model's embedding is its output head too, by its config."""
    try:
        config = AutoConfig.from_pretrained(name, revision=revision).get_text_config()
    except (OSError, ValueError):
        return False
    return bool(getattr(config, "tie_word_embeddings", False))


def check_context(name: str, tokens: int, revision: str = "main") -> None:
    """Raise InputError if ``tokens`` of prompt and completion do not fit the model's context."""
    context = context_length(name, revision)
    if context is not None and tokens > context:
        raise InputError(
            f"{tokens} tokens of prompt and completion do not fit the context of {name}, which is "
            f"{context} (lower response_length, max_prompt_length or prompt_tokens)"
        )


@dataclass
class Way:
    """How a model is loaded (``way_to_load``).

    Attributes:
        auto: the class of transformers that loads it.
        arguments: of its ``from_pretrained``.
        precision: "4bit", "bf16" or "fp32".
        compute: type of the arithmetic in 4 bits.
        held: how a checkpoint that is saved quantised is taken; None for any other.
        on_trunk: a score head goes on the language model that comes, for want of a classifier.
        notes: what of the model is unlike a plain language model, in a line each.
    """

    auto: Any
    arguments: dict[str, Any]
    precision: str
    compute: torch.dtype
    held: Quantized | None = None
    on_trunk: bool = False
    notes: list[str] = field(default_factory=list)

    def load(self, name: str, **more: Any) -> Any:
        """What ``from_pretrained`` returns."""
        packs = experts_in_4bit() if self._packs_experts else nullcontext()
        with packs:
            return self.auto.from_pretrained(name, **self.arguments, **more)

    def settle(self, model: Any) -> list[str]:
        """Mend what loading in this precision leaves to be mended; returns what is to be said."""
        cure_cpu_repacking(model)
        _keep_from_clipping(model)
        if self.held is not None:
            self.held.settle(model, self.compute)
        said = list(self.notes)
        packed = quantise_experts(model, self.compute) if self._packs_experts else 0
        if packed or (self.precision == "4bit" and expert_parameters(model)):
            said.append(share_in_4bit(model))
        return said

    @property
    def _packs_experts(self) -> bool:
        """Whether experts are put in 4 bits here; a checkpoint in 4 bits is taken as it is."""
        return self.precision == "4bit" and self.held is None


def way_to_load(
    name: str, precision: str, device: Any, revision: str = "main", trust_remote_code: bool = False,
    score_head: bool | str = False,
) -> Way:  # fmt: skip
    """How a model is loaded, by its config alone.

    Args:
        name, precision, revision, trust_remote_code, score_head: as for ``load_base``.
        device: where it goes.

    Raises:
        InputError: a model that cannot be used, or not in this precision (``family_of``,
            ``check_quantized``).
    """
    config = load_config(name, revision, trust_remote_code)
    compute = torch.float32 if torch.device(device).type == "cpu" else torch.bfloat16
    auto: Any = AutoModelForCausalLM
    on_trunk, notes, heads = False, [], list(HEADS)
    remote = trust_remote_code and getattr(config, "auto_map", None)  # its code is not known here
    if not remote and score_head != "own":
        family = family_of(config, name)
        check_precision(family, precision, name)
        auto, notes, heads = family.auto, family.notes(), family.heads
        on_trunk = bool(score_head) and family.classifier == "trunk"
    if score_head and not on_trunk:
        auto, config.num_labels = AutoModelForSequenceClassification, 1
    held = check_quantized(config, precision)
    arguments: dict[str, Any] = {"config": config, "dtype": DTYPES.get(precision, compute)}
    if held is not None:
        arguments = held.arguments(compute)
    elif precision == "4bit":
        arguments["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=compute,
            llm_int8_skip_modules=heads,
        )
    arguments |= {
        "revision": revision, "trust_remote_code": trust_remote_code, "use_safetensors": True,
        "device_map": {"": device},
    }  # fmt: skip
    notes += [] if held is None else [held.note]
    return Way(auto, arguments, precision, compute, held, on_trunk, notes)


def load_base(
    name: str,
    precision: str,
    revision: str = "main",
    trust_remote_code: bool = False,
    score_head: bool | str = False,
    seed: int = 0,
) -> PreTrainedModel:
    """The base model, frozen, in eval mode, on this process's device.

    4bit is NF4 with double quantisation, of linear layers and of experts; what is not quantised,
    and the arithmetic, is fp32 on a CPU and bf16 on a GPU.

    Args:
        name: Hub id or folder.
        precision: "4bit", "bf16" or "fp32".
        revision: branch, tag or commit.
        trust_remote_code: run code that the repository ships.
        score_head: a sequence classifier with one output instead of a language model. "new" (or
            True): its head is drawn from N(0, 1 / (d + 1)) by ``seed`` and is fp32; "own": the
            head that was saved with it.
        seed: for that head.

    Raises:
        InputError: no model at ``name``, not one that can be loaded so, or weights that are NaN or
            infinite.
    """
    from accelerate import PartialState

    check_base(name)
    looked_at = check_weights_of(name, revision)
    device = PartialState().device
    way = way_to_load(name, precision, device, revision, trust_remote_code, score_head)
    # A new score head is wanted here; without this transformers reports it as a fault.
    quiet = suppress_seqcls_warning() if score_head else nullcontext()
    try:
        with quiet:
            loaded = way.load(name, output_loading_info=True)
    except (OSError, ValueError, SafetensorError) as error:
        raise InputError(f"{name}: model not loaded: {_first_line(error)}") from None
    except RuntimeError as error:
        if "ignore_mismatched_sizes" not in str(error):
            raise
        raise InputError(f"{name}: config.json and the weights differ in shape") from None
    model, info = loaded
    made_new = score_head and score_head != "own"
    missing = sorted(
        key for key in info["missing_keys"] if not (made_new and key.startswith("score."))
    )
    if missing:  # transformers would fill them at random, and go on
        raise InputError(f"{name}: {len(missing)} weights are missing, {missing[0]} for one")
    if not looked_at:  # the files were not on this machine before
        check_weights_of(name, revision)
    for line in way.settle(model):
        print(line)
    model.requires_grad_(False)
    if score_head == "own" and not hasattr(model, "score"):
        raise InputError(f"{name}: a {type(model).__name__} has no head called score")
    if way.on_trunk:
        width = head_weights(model.get_output_embeddings())[0].shape[1]
        model = with_score_head(model, new_score_head(width, seed).to(device))
    elif made_new:
        model.score = new_score_head(model.score.in_features, seed).to(device)
    return model.eval()


def _keep_from_clipping(model: Any) -> None:
    """Keep Gemma 3n from clipping weights of a frozen base, which it does in training mode.

    In 4 bits it would clip the packed bytes. The clipping modules get a config of their own, so
    that the model's is saved as it was; past its setter, which would refuse None.
    """
    for module in model.modules():
        if hasattr(module, "prediction_coefs"):
            module.config = copy.copy(module.config)
            vars(module.config)["altup_coef_clip"] = None


def new_score_head(hidden_size: int, seed: int) -> Fp32Head:
    """A reward head (1, d) without bias, weights from N(0, 1 / (d + 1)). Source: spec O3."""
    head = Fp32Head(hidden_size, 1, bias=False)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        head.weight.normal_(0.0, head_init_std(hidden_size), generator=generator)
    return head


def cure_cpu_repacking(model: nn.Module) -> None:
    """Keep bitsandbytes from repacking 4-bit weights on CPUs with AVX512_BF16.

    There the first forward pass without gradients in eval mode repacks a ``Linear4bit`` and never
    unpacks it: after one ``generate`` the gradients are wrong (relative error up to 1) and saving
    changes the weights. Seen in bitsandbytes 0.50.2; the canary tests keep watch.

    A layer that was repacked before (a script tried its model, say) is unpacked, as bitsandbytes
    does for saving; its scales were rounded to bf16 by the repacking and stay so.
    """
    for module in model.modules():
        if isinstance(module, bnb.nn.Linear4bit):
            module.support_avx512bf16_for_cpu = False
            weight: Any = module.weight
            state: Any = getattr(weight, "quant_state", None)
            if getattr(state, "packing_format_for_cpu", False):
                weight.data, state = unpacked_for_cpu(weight.data, state)
                if not state.nested:  # which bitsandbytes leaves in the packed order
                    state.absmax = state.absmax.T.reshape(-1).float()
                weight.quant_state = module.quant_state = state


def base_fingerprint(name: str) -> str | None:
    """A short hash of a local model's config and weights, to tell one base from another.

    Of each safetensors file the size and the first and last 64 KiB are hashed, so that a large
    model takes no longer than a small one. None for a model that is not a local folder.
    """
    folder = Path(name)
    if not folder.is_dir():
        return None
    digest = hashlib.sha256()
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    config.pop("transformers_version", None)
    digest.update(json.dumps(config, sort_keys=True).encode())
    for file in sorted(folder.glob("*.safetensors")):
        size = file.stat().st_size
        with open(file, "rb") as stream:
            digest.update(f"{file.name}:{size}".encode())
            digest.update(stream.read(65536))
            stream.seek(max(0, size - 65536))
            digest.update(stream.read(65536))
    return digest.hexdigest()[:16]


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n")[0]
