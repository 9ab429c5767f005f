"""Find the base on the Hub: its id and commit, a check of its files, and its license."""

import hashlib
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import yaml
from huggingface_hub import ModelInfo, try_to_load_from_cache
from huggingface_hub.errors import HFValidationError
from huggingface_hub.hf_api import RepoSibling
from huggingface_hub.utils import validate_repo_id
from huggingface_hub.utils.sha import git_hash

from toolkit.data.links import inside, open_inside, shown
from toolkit.errors import InputError
from toolkit.hub.connection import HubError
from toolkit.models.base_config import base_fingerprint, check_base, load_config
from toolkit.models.experts import expert_parameters
from toolkit.models.families import Family, empty_model, family_of

# Placeholders for a dry run's card if the real values are not known; a real run is refused.
UNKNOWN_ID, UNKNOWN_SHA = "base-model-id/is-missing", "0" * 40
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "tokenizer.model",
    "spiece.model",
    "sentencepiece.bpe.model",
    "chat_template.jinja",
    "chat_template.json",
)
LICENSE_FIELDS = ("license", "license_name", "license_link")
AskHub = Callable[[str, str | None], ModelInfo]  # repository and revision; raises HubError


@dataclass
class Base:
    """The base of an adapter, on this machine and on the Hub.

    Attributes:
        files: the folder that it is loaded from.
        repo_id, sha: its id and commit on the Hub.
        license: the license fields of the card.
        problems: reasons against publishing an adapter on it, one line each.
        known: the Hub's facts on each file of that commit, by name; None if it was not asked.
    """

    files: Path
    repo_id: str = UNKNOWN_ID
    sha: str = UNKNOWN_SHA
    license: dict[str, str] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    known: dict[str, RepoSibling] | None = field(default=None, compare=False, repr=False)

    @cached_property
    def family(self) -> Family:
        """The model family of the base."""
        return family_of(load_config(str(self.files)), str(self.files))

    @cached_property
    def has_experts(self) -> bool:
        """Whether it has experts whose weights are not linear layers."""
        return bool(expert_parameters(empty_model(load_config(str(self.files)))))

    def has(self, path: Path) -> bool:
        """Whether the base's commit on the Hub has this file, with the same name and content."""
        sibling = (self.known or {}).get(path.name)
        return sibling is not None and _same(path, sibling)


def check_tokenizer(folder: Path) -> None:
    """Raise InputError if a tokenizer file to upload lies outside the folder."""
    for name in TOKENIZER_FILES:
        inside(folder, name)


def check_repo_id(repo_id: str | None, argument: str) -> str:
    """Return the id if it is OWNER/NAME, else raise InputError."""
    try:
        validate_repo_id(repo_id or "")
    except HFValidationError:
        repo_id = None
    if repo_id is None or repo_id.count("/") != 1:
        raise InputError(f"{argument}: must be OWNER/NAME as on the Hub", argument)
    return repo_id


def find_base(
    name: str,
    ask: AskHub,
    base_model_id: str | None = None,
    revision: str | None = None,
    fingerprint: str | None = None,
    license: str | None = None,
) -> Base:
    """Look up the base on the Hub; obstacles become ``problems``, not errors.

    Args:
        name: the base of the training: a folder or a Hub id.
        ask: returns the model info with the files' hashes for (id, revision); raises HubError.
        base_model_id: the Hub id of a base that is a folder.
        revision: branch, tag or commit; for a Hub id by default the one cached on this machine.
        fingerprint: fingerprint of the base in training, if it was a folder.
        license: license of a base whose card does not name one.

    Raises:
        InputError: the base is not on this machine, or is not the one of the training; or a file of
            its tokenizer links out of its folder.
    """
    if not name:
        raise InputError("model_name_or_path: the adapter names no base (pass one)")

    if Path(name).is_dir():
        check_base(name)
        if fingerprint is not None and fingerprint != base_fingerprint(name):
            raise InputError(
                f"model_name_or_path: {name}: is not the base that the adapter was trained on: its "
                "config or weights differ (pass the folder of the right base)",
                "model_name_or_path",
            )
        base = Base(Path(name).resolve())
        check_tokenizer(base.files)
        if base_model_id is None:
            base.problems.append(
                "base_model_id: the base is a local folder (pass the Hub id of the same model)"
            )
        else:
            base.repo_id = check_repo_id(base_model_id, "base_model_id")
            _look_up(base, ask, revision or "main")
    else:
        base = _cached(name, revision or "main", base_model_id)
        _look_up(base, ask, base.sha)

    base.license = _license(base, license)
    return base


def _cached(name: str, revision: str, base_model_id: str | None) -> Base:
    """Find a base that was loaded by its Hub id; the cached commit is the one that was used."""
    if name.startswith(("/", ".", "~")) or name.count("/") > 1:
        raise InputError(
            f"model_name_or_path: {name}: no such folder (pass the base's new folder)",
            "model_name_or_path",
        )
    if base_model_id not in (None, name):
        raise InputError(
            f"base_model_id: {base_model_id}, but the adapter was trained on {name}",
            "base_model_id",
        )
    check_repo_id(name, "model_name_or_path")

    config = try_to_load_from_cache(name, "config.json", revision=revision)
    if not isinstance(config, str):
        raise InputError(
            f"model_name_or_path: {name} at {revision} is not in the Hub's cache on this machine "
            f"(download it: hf download {name} --revision {revision})",
            "model_name_or_path",
        )
    files = Path(config).parent  # models--OWNER--NAME/snapshots/COMMIT
    check_base(str(files))
    check_tokenizer(files)
    return Base(files, name, files.name)


def _look_up(base: Base, ask: AskHub, revision: str) -> None:
    """Fill in the commit, and compare the files with those of the Hub."""
    if re.fullmatch("[0-9a-f]{40}", revision):
        base.sha = revision
    try:
        info = ask(base.repo_id, revision)
    except HubError as error:
        base.problems.append(f"base {base.repo_id}: not verified on the Hub: {error}")
        return

    base.sha = str(info.sha)
    base.known = {sibling.rfilename: sibling for sibling in info.siblings or []}
    weights = [path for path in sorted(base.files.glob("*.safetensors")) if path.is_file()]
    for path in [base.files / "config.json", *weights]:
        problem = problem_of(base, path)
        base.problems += [problem] if problem else []

    data = info.card_data.to_dict() if info.card_data else {}
    base.license = {k: str(data[k]) for k in LICENSE_FIELDS if data.get(k)}


def problem_of(base: Base, path: Path) -> str | None:
    """Return how this file differs from the base's on the Hub; None if equal or not known.

    Args:
        base: the base as found on the Hub.
        path: the file, or a copy of the same name.
    """
    if base.known is None or base.has(path):
        return None
    if path.name not in base.known:
        return (
            f"base {base.repo_id}: has no {shown(path.name)}, but the local base has (is it this "
            "id?)"
        )
    return (
        f"base {base.repo_id}: its {path.name} differs from the local one (pass the id and "
        "--base_revision from which this base was downloaded)"
    )


def _same(path: Path, known: RepoSibling) -> bool:
    if known.lfs is not None:
        with open(path, "rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest() == known.lfs.sha256
    return git_hash(path.read_bytes()) == known.blob_id


def _license(base: Base, given: str | None) -> dict[str, str]:
    """Return the base's license from its card on the Hub or README.md, else the argument."""
    said = base.license or _front_matter(base.files / "README.md")
    value = said.get("license") or given
    if value is None:
        base.problems.append("license: neither the Hub nor the base names one (pass --license)")
    elif given not in (None, value):
        base.problems.append(f"license: {given}, but the base has {value!r:.60} (leave it out)")
    elif not re.fullmatch(r"[a-z0-9][a-z0-9.+-]*", value):
        base.problems.append(f"license: {value!r:.60} is not a short name such as apache-2.0")
    else:
        return said or {"license": value}
    return {}


def _front_matter(path: Path) -> dict[str, str]:
    """Return the license fields of a model card, if there is one."""
    stream = open_inside(path.parent, path.name)
    if stream is None:
        return {}
    with stream:
        text = stream.read(1 << 20).decode("utf-8", "replace")

    parts = re.split(r"^---\s*$", text, flags=re.M)
    try:
        data = yaml.safe_load(parts[1]) if len(parts) > 2 and not parts[0].strip() else {}
    except yaml.YAMLError:
        return {}

    if not isinstance(data, dict) or not data.get("license"):
        return {}
    return {k: str(data[k]) for k in LICENSE_FIELDS if data.get(k)}
