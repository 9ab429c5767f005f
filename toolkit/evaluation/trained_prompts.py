"""Which of the prompts that contenders are judged on they were trained on."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from toolkit.data.chat import read_chat
from toolkit.data.comparisons import open_comparisons, split_by_prompt
from toolkit.data.files import read_object
from toolkit.data.prompts import Prompts, read_prompts
from toolkit.errors import InputError
from toolkit.evaluation.contenders import Contender

Row = dict[str, Any]


class _Unknown(Exception):
    """Why it could not be checked."""


def trained_on(
    contenders: Sequence[Contender], prompts: Prompts, tokenizer: PreTrainedTokenizerBase
) -> dict[str, Row]:
    """For each contender, how many of these prompts it was trained on.

    What a contender was trained on is read again as its run.json says: the prompts of ppo.py and
    rloo.py, the comparisons that sft.py and preference.py did not hold out, and the same of the
    adapter that it started from. Prompts are compared by their text or messages, whatever the files
    are called.

    Returns:
        name -> ``trained_prompts``, a number, or None where it could not be checked, and
        ``trained_prompts_note``, which says why not.
    """
    asked = [_key(prompts.shown(i, tokenizer)) for i in range(len(prompts))]
    by_name = {c.name: c for c in contenders}
    known: dict[Path, set[str]] = {}
    found: dict[str, Row] = {}
    for c in contenders:
        writer = by_name.get(c.source, c) if c.kind == "best_of_n" and c.source else c
        count: int | None = 0
        note: str | None = None
        try:
            if writer.kind not in ("reference", "best_of_n"):
                seen = _of_adapter(Path(writer.source), tokenizer, known)
                count = sum(key in seen for key in asked)
        except _Unknown as error:
            count, note = None, str(error)
        found[c.name] = {"trained_prompts": count, "trained_prompts_note": note}
    return found


def notes(contenders: Sequence[Row], prompts: int) -> dict[str, str]:
    """A sentence for each contender whose prompts were not all held out, or may not have been.

    Args:
        contenders: rows of ``evaluation.json``.
        prompts: how many they were judged on.
    """
    said: dict[str, str] = {}
    for c in contenders:
        name = c["name"].rpartition("@")[0] if c["kind"] == "checkpoint" else c["name"]
        if c.get("trained_prompts"):
            said[name] = (
                f"it was trained on {c['trained_prompts']} of the {prompts} prompts, which are not "
                "held out"
            )
        elif c.get("trained_prompts_note"):
            said[name] = (
                "it could not be checked which prompts it was trained on: "
                f"{c['trained_prompts_note']}"
            )
    return said


def print_notes(contenders: Sequence[Row], prompts: int) -> None:
    """Print ``notes``, a line each."""
    for name, sentence in notes(contenders, prompts).items():
        print(f"note: {name}: {sentence}")


def _key(prompt: Any) -> str:
    """Text or messages as something that can be looked up; blanks around text do not count."""
    if isinstance(prompt, str):
        return prompt.strip()
    return json.dumps([[m.get("role"), m.get("content")] for m in prompt], ensure_ascii=False)


def _of_adapter(
    source: Path, tokenizer: PreTrainedTokenizerBase, known: dict[Path, set[str]]
) -> set[str]:
    """The prompts that an adapter or checkpoint was trained on, and what it started from."""
    if not source.is_dir():
        raise _Unknown(f"{source} is a whole model")
    places = [source.resolve(), *source.resolve().parents[:2]]
    path = next((p / "run.json" for p in places if (p / "run.json").is_file()), None)
    if path is None:
        raise _Unknown(f"there is no run.json beside {source}")
    if path in known:
        return known[path]

    known[path] = set()  # of a run that says it started from itself
    facts = read_object(path, "run.json")
    settings = facts.get("settings")
    if not isinstance(settings, dict):
        raise _Unknown(f"{path} does not say")
    try:
        seen = _of_run(settings, facts, tokenizer)
        if settings.get("policy_adapter") is not None:
            seen |= _of_adapter(Path(settings["policy_adapter"]), tokenizer, known)
    except _Unknown:
        del known[path]
        raise
    known[path] = seen
    return seen


def _of_run(settings: Row, facts: Row, tokenizer: PreTrainedTokenizerBase) -> set[str]:
    """The prompts that one run was trained on, read again as it read them."""
    if settings.get("text") is not None:
        raise _Unknown(f"it was trained on {settings['text']}, text without prompts")
    try:
        if settings.get("prompts") is not None:
            return _of_prompts(settings, facts, tokenizer)
        if settings.get("comparisons") is not None:
            return _of_comparisons(settings, facts)
    except (InputError, OSError) as error:
        raise _Unknown(" ".join(str(error).split())) from None
    raise _Unknown("its run.json names no prompts")


def _of_prompts(settings: Row, facts: Row, tokenizer: PreTrainedTokenizerBase) -> set[str]:
    found, _ = read_prompts(
        settings["prompts"], tokenizer, settings.get("max_prompt_length") or 1 << 30,
        settings.get("prompt_tokens"), settings.get("limit"),
        chat=read_chat(settings.get("chat_template"), settings.get("chat_template_kwargs")),
        skip_invalid=bool(settings.get("skip_invalid")),
    )  # fmt: skip
    then = facts.get("data", {}).get("prompts")
    if then is not None and then != len(found):
        raise _Unknown(
            f"{settings['prompts']} has changed ({len(found)} prompts, {then} in training)"
        )
    return {_key(found.shown(i, tokenizer)) for i in range(len(found))}


def _of_comparisons(settings: Row, facts: Row) -> set[str]:
    found = open_comparisons(
        settings["comparisons"], "best", "--comparisons", bool(settings.get("skip_invalid"))
    )
    then = facts.get("data", {}).get("digest")
    if then is not None and then != found.digest:
        raise _Unknown(f"{settings['comparisons']} has changed since")
    eval_rows = settings.get("eval_rows") or max(1, min(200, len(found) // 5))
    trained, _ = split_by_prompt(
        found.order, eval_rows, facts.get("seed") or 0, settings.get("train_fraction") or 1.0
    )
    return {_key(row["prompt"]) for _, row in found.where(trained)}
