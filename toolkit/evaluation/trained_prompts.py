"""Find out which evaluation prompts the contenders were trained on."""

import json
from collections.abc import Sequence
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from toolkit.arguments.comparisons import RewardDataArguments
from toolkit.arguments.layouts import ColumnArguments
from toolkit.data.chat import Messages, read_chat
from toolkit.data.from_arguments import split_comparisons, split_demonstrations
from toolkit.data.prompts import Prompts, read_prompts
from toolkit.data.records import Row
from toolkit.errors import InputError
from toolkit.evaluation.contenders import GIVEN, Contender
from toolkit.evaluation.result import ContenderResult, SeenPrompts
from toolkit.record import RunRecord, record_beside
from toolkit.training.reward.losses import LOSSES


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
            if writer.kind not in ("reference", "best_of_n", *GIVEN):
                sources = writer.trained or [writer.source]
                seen = set().union(*(_of_adapter(Path(s), tokenizer, known) for s in sources))
                count = sum(key in seen for key in asked)
        except _Unknown as error:
            count, note = None, str(error)
        found[c.name] = SeenPrompts(trained_prompts=count, trained_prompts_note=note)
    return found


def prompts_of_reward(
    adapter: Path, rows: Sequence[Row], tokenizer: PreTrainedTokenizerBase
) -> tuple[list[bool], str | None]:
    """Find out which comparisons have prompts that a reward adapter was trained on.

    Args:
        adapter: its folder.
        rows: comparisons.
        tokenizer: of its base.

    Returns:
        for each row whether its prompt was trained on; and why that is not known, or None.
    """
    try:
        seen = _of_adapter(adapter, tokenizer, {})
    except _Unknown as error:
        return [False] * len(rows), str(error)
    return [_key(row["prompt"]) in seen for row in rows], None


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
        for name in ("policy_adapter", "start_adapter"):
            if record.settings.get(name) is not None:
                seen |= _of_adapter(Path(record.settings[name]), tokenizer, known)
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
    settings, data = record.settings, record.data or {}
    given = RewardDataArguments(
        comparisons=settings["comparisons"],
        skip_invalid=bool(settings.get("skip_invalid")),
        eval_rows=settings.get("eval_rows"),
        train_fraction=settings.get("train_fraction") or 1.0,
        columns=settings.get("columns") or [],
        first=settings.get("first"),
        as_messages=bool(settings.get("as_messages")),
        eval_comparisons=settings.get("eval_comparisons"),
        half=settings.get("half"),
        folds=0,  # the adapter was trained on the same rows with or without a cross-validation
    )
    if settings.get("demonstrations") is not None:  # of sft, in place of comparisons
        shown, trained, _ = split_demonstrations(
            settings["demonstrations"], given, record.seed or 0
        )
        if data.get("digest") not in (None, shown.digest):
            raise _Unknown(f"{shown.source} has changed since")
        return {_key(row["prompt"]) for _, row in shown.where(trained)}

    loss = LOSSES.get(settings.get("loss_type", ""))
    wants = "best" if loss is None else loss.wants
    if settings.get("rewards") == "scores":  # of ilql
        wants = "scores"
    splits = split_comparisons(given, wants, record.seed or 0)
    for name, found in (("digest", splits.comparisons), ("held_out_digest", splits.held_out)):
        then = data.get(name)
        if found is not None and then is not None and then != found.digest:
            raise _Unknown(f"{found.source} has changed since")
    trained, _ = splits.folds[0]
    return {_key(row["prompt"]) for _, row in splits.comparisons.where(trained)}
