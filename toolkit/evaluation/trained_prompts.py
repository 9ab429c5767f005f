"""Find out which evaluation prompts the contenders were trained on."""

import json
from collections.abc import Sequence
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from toolkit.arguments.layouts import ColumnArguments, LayoutArguments
from toolkit.data.chat import Messages, read_chat
from toolkit.data.comparisons import open_comparisons, split_by_prompt
from toolkit.data.prompts import Prompts, read_prompts
from toolkit.errors import InputError
from toolkit.evaluation.contenders import Contender
from toolkit.evaluation.result import ContenderResult, SeenPrompts
from toolkit.record import RunRecord, record_beside


class _Unknown(Exception):
    """The prompts of a training are not known; the message says why."""


def trained_on(
    contenders: Sequence[Contender], prompts: Prompts, tokenizer: PreTrainedTokenizerBase
) -> dict[str, SeenPrompts]:
    """Count for each contender how many of these prompts it was trained on.

    The training data is read again from the files that run.json names: the prompts of ppo.py and
    rloo.py, the comparisons that sft.py and preference.py did not hold out, and the same for the
    adapter that the run started from. Prompts are compared by their text or messages.
    """
    asked = [_key(prompts.shown(i, tokenizer)) for i in range(len(prompts))]
    by_name = {c.name: c for c in contenders}
    known: dict[Path, set[str]] = {}
    found: dict[str, SeenPrompts] = {}

    for c in contenders:
        writer = by_name.get(c.source, c) if c.kind == "best_of_n" and c.source else c
        count: int | None = 0
        note: str | None = None
        try:
            if writer.kind not in ("reference", "best_of_n"):
                sources = writer.trained or [writer.source]
                seen = set().union(*(_of_adapter(Path(s), tokenizer, known) for s in sources))
                count = sum(key in seen for key in asked)
        except _Unknown as error:
            count, note = None, str(error)
        found[c.name] = SeenPrompts(trained_prompts=count, trained_prompts_note=note)
    return found


def notes(contenders: Sequence[ContenderResult], prompts: int) -> dict[str, str]:
    """Return a sentence for each contender whose prompts were not, or may not be, all held out.

    Args:
        contenders: the contenders of ``evaluation.json``.
        prompts: number of evaluation prompts.
    """
    said: dict[str, str] = {}
    for c in contenders:
        name = c.name.rpartition("@")[0] if c.kind == "checkpoint" else c.name
        if c.trained_prompts:
            said[name] = (
                f"it was trained on {c.trained_prompts} of the {prompts} prompts, so these are not "
                "held out"
            )
        elif c.trained_prompts_note:
            said[name] = (
                f"it could not be checked which prompts it was trained on: {c.trained_prompts_note}"
            )
    return said


def print_notes(contenders: Sequence[ContenderResult], prompts: int) -> None:
    """Print each of the ``notes`` on a line."""
    for name, sentence in notes(contenders, prompts).items():
        print(f"note: {name}: {sentence}")


def _key(prompt: str | Messages) -> str:
    """Return a key for a prompt; blanks around a text do not count."""
    if isinstance(prompt, str):
        return prompt.strip()
    return json.dumps([[m.get("role"), m.get("content")] for m in prompt], ensure_ascii=False)


def _of_adapter(
    source: Path, tokenizer: PreTrainedTokenizerBase, known: dict[Path, set[str]]
) -> set[str]:
    """Return the prompts that an adapter or checkpoint, and its starting adapter, saw."""
    if not source.is_dir():
        raise _Unknown(f"{source} is a whole model")

    path = record_beside(source)
    if path is None:
        raise _Unknown(f"there is no run.json beside {source}")
    if path in known:
        return known[path]

    known[path] = set()  # in case a run names itself as its start
    record = RunRecord.read(path)
    if not record.settings:
        raise _Unknown(f"{path} does not name them")

    try:
        seen = _of_run(record, tokenizer)
        if record.settings.get("policy_adapter") is not None:
            seen |= _of_adapter(Path(record.settings["policy_adapter"]), tokenizer, known)
    except _Unknown:
        del known[path]
        raise
    known[path] = seen
    return seen


def _of_run(record: RunRecord, tokenizer: PreTrainedTokenizerBase) -> set[str]:
    """Read again the prompts that one run was trained on."""
    settings = record.settings
    if settings.get("text") is not None:
        raise _Unknown(f"it was trained on {settings['text']}, text without prompts")
    try:
        if settings.get("prompts") is not None:
            return _of_prompts(record, tokenizer)
        if settings.get("comparisons") is not None:
            return _of_comparisons(record)
    except (InputError, OSError) as error:
        raise _Unknown(" ".join(str(error).split())) from None
    raise _Unknown("its run.json names no prompts")


def _of_prompts(record: RunRecord, tokenizer: PreTrainedTokenizerBase) -> set[str]:
    settings = record.settings
    found, _ = read_prompts(
        settings["prompts"],
        tokenizer,
        settings.get("max_prompt_length") or 1 << 30,
        settings.get("prompt_tokens"),
        settings.get("limit"),
        chat=read_chat(settings.get("chat_template"), settings.get("chat_template_kwargs")),
        skip_invalid=bool(settings.get("skip_invalid")),
        columns=ColumnArguments(
            columns=settings.get("columns") or [], as_messages=bool(settings.get("as_messages"))
        ),
    )
    then = (record.data or {}).get("prompts")
    if then is not None and then != len(found):
        raise _Unknown(
            f"{settings['prompts']} has changed ({len(found)} prompts, {then} in training)"
        )
    return {_key(found.shown(i, tokenizer)) for i in range(len(found))}


def _of_comparisons(record: RunRecord) -> set[str]:
    settings = record.settings
    demonstrations = settings.get("demonstrations")  # of sft, in place of comparisons
    source = demonstrations or settings["comparisons"]
    found = open_comparisons(
        source,
        "demonstration" if demonstrations else "best",
        "--comparisons",
        bool(settings.get("skip_invalid")),
        LayoutArguments(
            columns=settings.get("columns") or [],
            as_messages=bool(settings.get("as_messages")),
            first=settings.get("first"),
        ),
    )
    then = (record.data or {}).get("digest")
    if then is not None and then != found.digest:
        raise _Unknown(f"{source} has changed since")
    eval_rows = settings.get("eval_rows") or max(1, min(200, len(found) // 5))
    trained, _ = split_by_prompt(
        found.order, eval_rows, record.seed or 0, settings.get("train_fraction") or 1.0
    )
    return {_key(row["prompt"]) for _, row in found.where(trained)}
