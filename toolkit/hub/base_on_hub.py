"""The base's name on the Hub: its id and commit, proof that they are this base, its license."""

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

# Put into a dry run's card where the true ones are not known; a real run is refused.
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
    """The base of an adapter, here and on the Hub.

    Attributes:
        files: the folder that it is loaded from.
        repo_id, sha: what it is called on the Hub.
        license: the card's fields for it.
        problems: why the adapter cannot be published on it, a line each.
        known: what the Hub says of each file of that commit, by name; None if it was not asked.
    """

    files: Path
    repo_id: str = UNKNOWN_ID
    sha: str = UNKNOWN_SHA
    license: dict[str, str] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    known: dict[str, RepoSibling] | None = field(default=None, compare=False, repr=False)

    @cached_property
    def family(self) -> Family:
        """How models of its type are held."""
        return family_of(load_config(str(self.files)), str(self.files))

    @cached_property
    def has_experts(self) -> bool:
        """Whether it is a mixture of experts whose weights are no linear layers."""
        return bool(expert_parameters(empty_model(load_config(str(self.files)))))

    def has(self, path: Path) -> bool:
        """Whether this very file, by name and content, is in the base's commit on the Hub."""
        sibling = (self.known or {}).get(path.name)
        return sibling is not None and _same(path, sibling)


def check_tokenizer(folder: Path) -> None:
    """Raise InputError if one of the tokenizer's files that would be sent is not in the folder."""
    for name in TOKENIZER_FILES:
        inside(folder, name)


def check_repo_id(repo_id: str | None, argument: str) -> str:
    """The id, if it is OWNER/NAME; InputError otherwise."""
    try:
        validate_repo_id(repo_id or "")
    except HFValidationError:
        repo_id = None
    if repo_id is None or repo_id.count("/") != 1:
        raise InputError(f"{argument}: give it as OWNER/NAME, as it is on the Hub", argument)
    return repo_id


def find_base(
    name: str,
    ask: AskHub,
    base_model_id: str | None = None,
    revision: str | None = None,
    fingerprint: str | None = None,
    license: str | None = None,
) -> Base:
    """Look up the base on the Hub; what is in the way becomes a problem, not an error.

    Args:
        name: the base that training used: a folder or a Hub id.
        ask: (id, revision) to the Hub's model info with the files' hashes; raises HubError.
        base_model_id: of a folder, what it is on the Hub.
        revision: branch, tag or commit; of a Hub id by default the one that is cached here.
        fingerprint: of the base at training time, where that was a folder.
        license: for a base whose card does not say.

    Raises:
        InputError: the base is not on this machine, or not the one that was trained on; or a file
            of its tokenizer is a link out of its folder.
    """
    if not name:
        raise InputError("model_name_or_path: the adapter names no base (pass it)")

    if Path(name).is_dir():
        check_base(name)
        if fingerprint is not None and fingerprint != base_fingerprint(name):
            raise InputError(
                f"model_name_or_path: {name}: not the base that the adapter was trained on (its "
                "config or weights have changed; pass the folder of the one that was)",
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
    """A base that was loaded by its Hub id: the commit in the cache is the one that was used."""
    if name.startswith(("/", ".", "~")) or name.count("/") > 1:
        raise InputError(
            f"model_name_or_path: {name}: no such folder (pass the base's, if it was moved)",
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
    """Why this file is not the base's on the Hub, in a line; None if it is, or nobody knows.

    Args:
        base: looked up.
        path: the file, or a copy of it under its name.
    """
    if base.known is None or base.has(path):
        return None
    if path.name not in base.known:
        return (
            f"base {base.repo_id}: has no {shown(path.name)}, as the local base has (is it this "
            "id?)"
        )
    return (
        f"base {base.repo_id}: its {path.name} is another than the local one (give the id and "
        "--base_revision that this base was downloaded from)"
    )


def _same(path: Path, known: RepoSibling) -> bool:
    if known.lfs is not None:
        with open(path, "rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest() == known.lfs.sha256
    return git_hash(path.read_bytes()) == known.blob_id


def _license(base: Base, given: str | None) -> dict[str, str]:
    """The base's, by its card on the Hub or its README.md here; the argument where neither says."""
    said = base.license or _front_matter(base.files / "README.md")
    value = said.get("license") or given
    if value is None:
        base.problems.append("license: neither the Hub nor the base says (pass --license)")
    elif given not in (None, value):
        base.problems.append(f"license: {given}, but the base says {value!r:.60} (leave it out)")
    elif not re.fullmatch(r"[a-z0-9][a-z0-9.+-]*", value):
        base.problems.append(f"license: {value!r:.60} is no license's short name, as apache-2.0")
    else:
        return said or {"license": value}
    return {}


def _front_matter(path: Path) -> dict[str, str]:
    """The license fields of a model card, if it is there."""
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
