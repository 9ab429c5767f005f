"""What a base says of itself before its weights are loaded: its folder, config and fingerprint."""

import hashlib
import json
from pathlib import Path

from transformers import AutoConfig, PreTrainedConfig

from toolkit.errors import InputError


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


def load_config(
    name: str, revision: str = "main", trust_remote_code: bool = False
) -> PreTrainedConfig:
    """The model's config.

    Raises:
        InputError: there is none, or transformers does not know its type.
    """
    try:
        return AutoConfig.from_pretrained(
            name, revision=revision, trust_remote_code=trust_remote_code
        )
    except (OSError, ValueError, KeyError) as error:
        raise InputError(f"{name}: config not loaded: {first_line(error)}") from None


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
    except (OSError, ValueError):  # a config in code of its own, or no network: the weights tell
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


def first_line(error: Exception) -> str:
    """The first line of what an exception says."""
    return str(error).strip().split("\n")[0]
