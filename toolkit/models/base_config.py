"""A base's folder, config and fingerprint, checked before its weights are loaded."""

import hashlib
import json
from pathlib import Path

from transformers import AutoConfig, PreTrainedConfig

from toolkit.errors import InputError


def check_base(name: str, weights: bool = True) -> None:
    """Raise InputError if ``name`` is neither a folder with a model nor like a Hub id.

    Args:
        name: the folder or id.
        weights: whether a folder must hold weights, and not only a config.
    """
    path = Path(name)
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise InputError(f"{name} has no config.json (give the folder of a saved model)")
        if weights and not has_weights(name):
            raise InputError(f"{name} has no *.safetensors (pickled weights are not loaded)")
    elif name.count("/") > 1 or name.startswith((".", "/", "~")):
        raise InputError(f"model_name_or_path: {name}: no such folder", "model_name_or_path")


def has_weights(name: str) -> bool:
    """Whether this folder has weights."""
    return any(Path(name).glob("*.safetensors"))


def load_config(
    name: str, revision: str = "main", trust_remote_code: bool = False
) -> PreTrainedConfig:
    """Load the model's config.

    Raises:
        InputError: there is no config, or transformers does not know its type.
    """
    try:
        return AutoConfig.from_pretrained(
            name, revision=revision, trust_remote_code=trust_remote_code
        )
    except (OSError, ValueError, KeyError) as error:
        raise InputError(f"{name}: the config cannot be loaded: {first_line(error)}") from None


def context_length(name: str, revision: str = "main") -> int | None:
    """Return the largest context in tokens, by the model's config; None if it does not say.

    Beyond it, a model with rotary positions would write nonsense and one with learned positions
    would crash. No weights are read.
    """
    config = load_config(name, revision).get_text_config()
    return getattr(config, "max_position_embeddings", None)


def vocabulary_size(name: str, revision: str = "main") -> int | None:
    """Return the rows of the model's embedding, by its config; None if that cannot be read."""
    try:
        config = AutoConfig.from_pretrained(name, revision=revision).get_text_config()
    except (
        OSError,
        ValueError,
    ):  # a config with its own code, or no network: the weights will show it
        return None
    return getattr(config, "vocab_size", None)


def is_tied(name: str, revision: str = "main") -> bool:
    """Whether the model's embedding is also its output head, by its config."""
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
    """Hash a local model's config and weights, to tell one base from another.

    The size and the first and last 64 KiB of each safetensors file are hashed, so a large model
    takes no longer than a small one. Returns None for a model that is not a local folder.
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
    """Return the first line of an exception's message."""
    return str(error).strip().split("\n")[0]
