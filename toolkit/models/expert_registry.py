"""A registry of experts: adapters on one base, each with prompts of the task that it learned.

It is a JSON Lines file with a row for each expert:

    {"name": "hotel", "adapter": "outputs/hotel/adapter", "digest": "16 digits of a SHA-256",
     "library": [{"prompt": "On Monday we visited the hotel by the lake."}, ...]}

The library is what the prompts of a new task are compared with (``maths.retrieval``). The digest is
the adapter's, so that a retrained adapter is noticed. All experts have one base, one start and one
way of reading, because otherwise their changes have no sum (``adapter_arithmetic``).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from toolkit.data.files import read_jsonl, require_file, write_jsonl
from toolkit.data.records import Row
from toolkit.errors import InputError
from toolkit.models.adapter_arithmetic import LoraFile, check_related
from toolkit.models.toolkit_json import adapter_digest

FIELDS = {"name": str, "adapter": str, "digest": str, "library": list}


@dataclass(frozen=True)
class Expert:
    """An expert of a registry.

    Attributes:
        name: its name.
        adapter: its adapter's folder.
        digest: of the adapter's weights when it was added.
        library: rows with ``prompt``, and what a chat template is told besides.
    """

    name: str
    adapter: str
    digest: str
    library: list[Row]

    @classmethod
    def of(cls, name: str, adapter: str, library: list[Row]) -> "Expert":
        """Make an expert of an adapter that is there now."""
        return cls(name, adapter, adapter_digest(adapter), library)


def read_registry(path: str | Path, replaced: str | None = None) -> list[Expert]:
    """Read a registry, and check that its adapters are there and unchanged.

    Args:
        path: the JSON Lines file.
        replaced: name of an expert that is about to be replaced, whose old adapter may be gone, or
            another one by now.

    Raises:
        InputError: there is no such file, a row is broken (file:line), two experts have the same
            name, an adapter is gone, has changed, or is unlike the first one.
    """
    require_file(path, "--registry")
    experts: list[Expert] = []
    for line, row in read_jsonl(path, "--registry"):
        place = f"{path}:{line}"
        for field, kind in FIELDS.items():
            if not isinstance(row.get(field), kind) or not row[field]:
                raise InputError(
                    f"{place}: {field}: {row.get(field)!r:.40}, but must be "
                    f"{'text' if kind is str else 'a list of rows with a prompt'} (add the expert "
                    "again by preftune experts add)"
                )
        if not all(isinstance(one, dict) and one.get("prompt") for one in row["library"]):
            raise InputError(f"{place}: library: a row has no prompt (add the expert again)")
        if row["name"] in {expert.name for expert in experts}:
            raise InputError(f"{place}: name: a second {row['name']!r} (delete one of the rows)")

        adapter = Path(row["adapter"])
        if row["name"] == replaced:
            experts.append(Expert(**{field: row[field] for field in FIELDS}))
            continue
        if not (adapter / "adapter_model.safetensors").is_file():
            raise InputError(
                f"{place}: adapter: {adapter} is not the folder of an adapter (paths start in the "
                "folder in which you run the command; delete the row, or correct the path)"
            )
        if adapter_digest(adapter) != row["digest"]:
            raise InputError(
                f"{place}: adapter: {adapter} has changed since {row['name']} was added (add it "
                "again with --overwrite)"
            )
        experts.append(Expert(**{field: row[field] for field in FIELDS}))
    if not experts:
        raise InputError(f"--registry: {path} holds no expert (preftune experts add adds one)")
    if kept := [expert for expert in experts if expert.name != replaced]:
        check_experts(kept)
    return experts


def with_expert(experts: Sequence[Expert], new: Expert, overwrite: bool) -> list[Expert]:
    """Return the experts with one more, or with another in place of the one of that name.

    Raises:
        InputError: there is one of that name and ``overwrite`` is off, or the new one has another
            base, start or way of reading than the others.
    """
    others = [expert for expert in experts if expert.name != new.name]
    if len(others) < len(experts) and not overwrite:
        raise InputError(
            f"name: there is an expert {new.name} (--overwrite replaces it; or give another name)",
            "name",
        )
    check_experts([*others, new])
    return [new if expert.name == new.name else expert for expert in experts] + (
        [new] if len(others) == len(experts) else []
    )


def check_experts(experts: Sequence[Expert]) -> None:
    """Raise InputError unless these are policies with one base, start and way of reading."""
    files = [LoraFile.read(expert.adapter, f"expert {expert.name}") for expert in experts]
    for expert, file in zip(experts, files, strict=True):
        if file.score is not None:
            raise InputError(
                f"expert {expert.name}: {expert.adapter} is a reward adapter, but experts write "
                "(give a policy's adapter)"
            )
    check_related(files, "experts")


def write_registry(path: str | Path, experts: Sequence[Expert]) -> None:
    """Write a registry atomically."""
    write_jsonl(path, [dict(vars(expert)) for expert in experts])
