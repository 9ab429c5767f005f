"""Loading the tokenizer, with its padding and the tokens that close a completion."""

from pathlib import Path

from transformers import AutoConfig, AutoTokenizer, GenerationConfig, PreTrainedTokenizerBase
from transformers.utils import is_protobuf_available, is_sentencepiece_available

from toolkit.errors import InputError
from toolkit.models.base_config import check_base, first_line, vocabulary_size


def load_tokenizer(
    name: str, revision: str = "main", trust_remote_code: bool = False, base: str | None = None
) -> PreTrainedTokenizerBase:
    """Load the tokenizer, with a pad token that differs from the end token if possible.

    It gets attributes that hold once what embedding, padding and end ids allow:

        embedding_rows   rows of the model's embedding, by its config; None if unknown. A pad token
                         beyond them is replaced; end ids beyond them are left out
        end_token_ids    ids that close a completion: the tokenizer's end token, those in
                         generation_config.json, and the chat template's end of turn
        turn_end_id      the last of these; None without a template

    Args:
        name: Hub id or folder with the tokenizer's files.
        revision: branch, tag or commit.
        trust_remote_code: run code that the repository ships.
        base: the model that reads the tokens, if it is not ``name``.

    Raises:
        InputError: there is no tokenizer at ``name``, or it needs a package that is not installed.
    """
    if base is None:
        check_base(name)
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            name, revision=revision, trust_remote_code=trust_remote_code
        )
    except Exception as error:  # broken files raise KeyError, AttributeError or plain Exception
        raise InputError(
            f"{name}: the tokenizer cannot be loaded: {_why_none(name, error)}"
        ) from None
    if not tokenizer.vocab_size:
        raise InputError(f"{name}: the tokenizer has no vocabulary (is tokenizer.json there?)")

    rows = vocabulary_size(base or name, revision)
    tokenizer.embedding_rows = rows
    tokenizer.beside_base = base not in (None, name)  # must be saved with what is trained on it
    tokenizer.stock_pad_token_id = tokenizer.pad_token_id  # as in TRL

    outside = tokenizer.pad_token_id is not None and tokenizer.pad_token_id >= (rows or 1 << 60)
    if outside:
        print(
            f"note: {tokenizer.pad_token} is token {tokenizer.pad_token_id}, but the embedding has "
            f"{rows} rows: another token is used for padding (which only the mask marks)"
        )
    note_ends(tokenizer, base or name, revision)

    if tokenizer.pad_token is None or tokenizer.pad_token == tokenizer.eos_token or outside:
        named = tokenizer.pad_token or tokenizer.eos_token
        tokenizer.pad_token = _padding(tokenizer)
        if not named:
            print(
                f"note: the tokenizer has neither pad nor end token: {tokenizer.pad_token!r} is "
                "used for padding (which only the mask marks)"
            )

    return tokenizer


def _padding(tokenizer: PreTrainedTokenizerBase) -> str:
    """Return a token for padding, for a tokenizer that names none.

    It is a token in which no text ends, if there is one, because rows that end in it are refused.
    Otherwise it is the token of byte 0 (byte-level or SentencePiece), or else the first token.
    """
    eos = tokenizer.eos_token_id
    unknown = None if tokenizer.unk_token == tokenizer.eos_token else tokenizer.unk_token_id
    special = [i for i, token in tokenizer.added_tokens_decoder.items() if token.special]
    vocabulary = tokenizer.get_vocab()
    zero = [vocabulary.get(token) for token in ("<0x00>", "\u0100")]
    first = min(vocabulary.values())

    rows = tokenizer.embedding_rows or len(tokenizer)
    found = [unknown, eos, *tokenizer.end_token_ids, tokenizer.bos_token_id, *special, *zero, first]
    known = (tokenizer.convert_ids_to_tokens(i) for i in found if i is not None and i < rows)
    return next(token for token in known if isinstance(token, str))


def _why_none(name: str, error: Exception) -> str:
    """Explain why transformers made no tokenizer, and how to mend it, if known."""
    text = str(error)
    if "mistral-common" in text:
        return "its tekken.json needs mistral-common, which is not installed (pip install it)"
    if "backend tokenizer" in text:
        return "no tokenizer.json or tokenizer.model (give --tokenizer_name_or_path)"

    if "tiktoken" in text:  # tried last with every tokenizer.model, so its message is shown
        lacking = [
            package
            for package, there in (
                ("sentencepiece", is_sentencepiece_available()),
                ("protobuf", is_protobuf_available()),
            )
            if not there and not (Path(name) / "tiktoken.model").is_file()
        ]
        needed = " ".join(lacking) or "tiktoken"
        return f"its vocabulary file needs a package: pip install {needed}"

    if "custom code" in text:
        return "it is code that the repository ships (--trust_remote_code runs it)"
    known = isinstance(error, (OSError, ValueError)) and text.strip()
    return first_line(error) if known else f"its files are broken ({error!r:.80})"


def note_ends(tokenizer: PreTrainedTokenizerBase, name: str, revision: str = "main") -> None:
    """Set ``end_token_ids`` and ``turn_end_id`` of a tokenizer, for the model at ``name``."""
    tokenizer.turn_end_id = _turn_end(tokenizer)

    found = [tokenizer.eos_token_id, *_listed_ends(name, revision), tokenizer.turn_end_id]
    rows = tokenizer.embedding_rows or len(tokenizer)
    ends = [i for i in dict.fromkeys(found) if i is not None]

    beyond = [i for i in ends if i >= rows]
    if beyond:
        print(f"note: end tokens {beyond} are beyond the embedding's {rows} rows and never occur")
    tokenizer.end_token_ids = tuple(i for i in ends if i < rows)


def _listed_ends(name: str, revision: str) -> list[int]:
    """Return the end tokens of generation_config.json, or else of config.json."""
    try:
        listed = GenerationConfig.from_pretrained(name, revision=revision).eos_token_id
    except (OSError, ValueError):
        try:
            config = AutoConfig.from_pretrained(name, revision=revision).get_text_config()
        except (OSError, ValueError):
            return []
        listed = getattr(config, "eos_token_id", None)

    if listed is None:
        return []
    return list(listed) if isinstance(listed, list) else [listed]


def _turn_end(tokenizer: PreTrainedTokenizerBase) -> int | None:
    """Return the special token with which the chat template closes an assistant's turn."""
    if not tokenizer.chat_template:
        return None
    answer = "ANSWER"
    dialogue = [{"role": "user", "content": "a"}, {"role": "assistant", "content": answer}]
    try:
        text = tokenizer.apply_chat_template(dialogue, tokenize=False)
    except Exception:  # a template is a program; its errors are reported when it is used
        return None
    behind = tokenizer(str(text).rpartition(answer)[2], add_special_tokens=False)["input_ids"]

    added = tokenizer.added_tokens_decoder
    special = {*tokenizer.all_special_ids, *(i for i, token in added.items() if token.special)}
    named = {i for i, token in added.items() if str(token).strip()}  # "\n\n" is not an end
    return next((i for known in (special, named) for i in behind if i in known), None)
