"""What makes a row good: prompt, completions and pick, field by field.

    {"prompt": "I met my aunt at the cafe."}
    {"prompt": "...", "completions": [" The tea was cold.", " We loved it.", ...]}
    {"prompt": "...", "completions": [...], "best": 1}

The native comparison, field by field (K may differ from row to row):

    prompt       text, or messages: [{"role": "user", "content": "..."}, ...]
    completions  list of K >= 2 texts, as they follow the prompt (a leading space included)
    best         index of the pick, from 0
    ranking      optional: indices from best to worst, all or the first few
    worst        optional: index of the worst, if those between are not ranked
    scores       optional: K numbers, the higher the better (targets of scalar losses)
    margin       optional: by how much the best leads, in the scorer's units, >= 0
    labeler      optional: who picked
    labeler_comment, labeler_edit  optional: what they wrote, and a better answer of their own
    source       optional: where it came from, text or an object; other fields are kept unchanged
    tools        optional: a list of tools for the chat template, or the JSON text of one
    chat_template_kwargs  optional: an object of further arguments for the chat template

``best``, ``worst`` and ``ranking`` may come as whole floats or as text (pandas writes 1.0 where a
value is missing elsewhere in the column); they are read as integers.
"""

import json
import re
from typing import TypeGuard

from toolkit.arguments.chat import problem_of_kwargs
from toolkit.data.records import Row

MESSAGES_AS_TEXT = re.compile(r"\s*\[\s*\{\s*['\"](role|content)['\"]\s*:")
ROLES = ("system", "developer", "user", "assistant", "tool")
OTHER_FORMATS = re.compile(
    r"chosen|rejected|rank|responses|(?i:(sample|completion|response|answer)([_ ]?\d+|[_ ][a-z]))"
)
MOST_WITH_WORST = 12  # completions of a row with a worst: the loss adds up 2^(K - 2) subsets


def problems_of(row: Row, wants: str) -> list[str]:
    """List what is wrong with a row, each as field, value and remedy; empty for a good row.

    Args:
        row: as read.
        wants: "prompt"; "completions" (with prompt); "best" (with both); "scores" instead;
            "demonstration" (a prompt and one completion or more).
    """
    problems = _problems_of_prompt(row.get("prompt")) + _problems_of_template(row)
    if wants == "prompt":
        return problems

    completions = row.get("completions")
    if not isinstance(completions, list) or not all(isinstance(c, str) for c in completions):
        found = "missing" if completions is None else f"{completions!r:.40}"
        other = sorted(name for name in row if OTHER_FORMATS.fullmatch(str(name)))
        cure = (
            f" ({', '.join(other)}: another format, which preftune convert reads)" if other else ""
        )
        return [*problems, f"completions: {found}, but must be a list of strings{cure}"]
    for k, completion in enumerate(completions):
        if problem := _problem_of_text(completion):
            problems.append(f"completions[{k}]: {problem}")
    if wants == "demonstration" and completions:
        return problems
    if len(completions) < 2:
        problems.append(f"completions: only {len(completions)}, but a choice needs at least 2")
    elif wants in ("best", "scores"):
        if len(set(completions)) == 1:
            problems.append(
                f"completions: all {len(completions)} are {completions[0]!r:.40}, so a pick says "
                "nothing (delete the row)"
            )
        problems += _problems_of_label(row, len(completions), wants)
    return problems


def _problems_of_prompt(prompt: object) -> list[str]:
    if isinstance(prompt, str):
        problem = _problem_of_text(prompt)
        if MESSAGES_AS_TEXT.match(prompt):
            problem = (
                "messages written as text (read them with preftune convert, or save the rows as "
            )
            problem += "JSON Lines)"
        return [f"prompt: {problem}"] if problem else []
    if not isinstance(prompt, list) or not prompt:
        found = "missing" if prompt is None else f"{prompt!r:.40}"
        return [f"prompt: {found}, but must be text or a list of messages"]
    if problem := problem_of_messages(prompt, "prompt"):
        return [problem]
    if prompt[-1]["role"] == "assistant":
        return ["prompt: its last message is the assistant's (move it to completions)"]
    return []


def problem_of_messages(messages: list[object], name: str) -> str | None:
    """Return what is wrong with the first bad message of a list; None if all are good."""
    for i, message in enumerate(messages):
        here = f"{name}[{i}]"
        if not isinstance(message, dict):
            return f'{here}: {message!r:.40}, but must be {{"role": ..., "content": text}}'

        content = message.get("content")
        if not content and message.get("tool_calls"):
            return (
                f"{here}.content: {'null' if content is None else 'empty'} beside tool_calls, but "
                "must be text (write the call as text, or delete the row)"
            )
        if isinstance(content, list):
            return f"{here}.content: a list of parts, but must be text (join its text parts)"
        if not isinstance(content, str):
            return f'{here}: {message!r:.40}, but must be {{"role": ..., "content": text}}'

        if message.get("role") not in ROLES:
            return f"{here}.role: {message.get('role')!r:.40}, but must be one of {ROLES}"
        if problem := _problem_of_text(content):
            return f"{here}.content: {problem}"
    return None


def _problems_of_template(row: Row) -> list[str]:
    """List what is wrong with the chat template's other fields (tools and arguments)."""
    problems = []
    tools, kwargs = row.get("tools"), row.get("chat_template_kwargs")
    if isinstance(tools, str):
        try:
            tools = json.loads(tools)
        except (ValueError, RecursionError):
            tools = row["tools"]
    if tools is not None and not (
        isinstance(tools, list) and all(isinstance(tool, dict) for tool in tools)
    ):
        problems.append(
            f"tools: {tools!r:.40}, but must be a list of objects, or the JSON text of one"
        )
    if kwargs is not None and (problem := problem_of_kwargs(kwargs)):
        problems.append(f"chat_template_kwargs: {problem}")
    return problems


def _problems_of_label(row: Row, k: int, wants: str) -> list[str]:
    problems = []
    best = row.get("best")
    ranking = row.get("ranking")
    scores = row.get("scores")
    margin = row.get("margin")

    if wants == "best" and not _is_index(best):
        found = "missing" if best is None else f"{best!r:.40}"
        cure = " (preftune convert reads letters and column names)" if isinstance(best, str) else ""
        problems.append(f"best: {found}, but must be the index of the pick, 0 to {k - 1}{cure}")
    elif best is not None and not (_is_index(best) and 0 <= best < k):
        cure = "; if labels count from 1, run preftune convert --first 1" if best == k else ""
        problems.append(
            f"best: {best!r:.40}, out of range for {k} completions (count from 0){cure}"
        )

    if ranking is not None:
        if not isinstance(ranking, list) or not ranking or not all(_is_index(i) for i in ranking):
            problems.append(f"ranking: {ranking!r:.40}, but must be a list of indices, best first")
        elif not all(0 <= i < k for i in ranking) or len(set(ranking)) < len(ranking):
            problems.append(
                f"ranking: {ranking!r:.40}, but must name each of 0 to {k - 1} at most once, the "
                "best first (list indices, not the rank of each)"
            )
        elif _is_index(best) and best != ranking[0]:
            problems.append(f"ranking: begins with {ranking[0]}, but best is {best} (correct one)")

    problems += _problems_of_worst(row, k)

    if scores is None and wants == "scores":
        problems.append(f"scores: missing (this loss needs {k} numbers, one a completion)")
    elif scores is not None and not (isinstance(scores, list) and all(map(_is_number, scores))):
        problems.append(f"scores: {scores!r:.40}, but must be a list of finite numbers")
    elif scores is not None and len(scores) != k:
        problems.append(f"scores: {len(scores)} given for {k} completions")

    if margin is not None and not (_is_number(margin) and margin >= 0):
        problems.append(f"margin: {margin!r:.40}, but must be a finite number, 0 or more")
    for name in ("labeler", "labeler_comment", "labeler_edit"):
        if not isinstance(row.get(name, ""), str | None):
            problems.append(f"{name}: {row[name]!r:.40}, but must be a string")
    return problems


def _problems_of_worst(row: Row, k: int) -> list[str]:
    worst, ranking = row.get("worst"), row.get("ranking")
    if worst is None:
        return []
    if not _is_index(worst) or not 0 <= worst < k:
        return [f"worst: {worst!r:.40}, but must be an index, 0 to {k - 1} (count from 0)"]
    if worst == row.get("best"):
        return [f"worst: {worst}, but that is the best as well (correct one)"]
    if k > MOST_WITH_WORST:
        return [
            f"worst: {k} completions, but a worst can be read of at most {MOST_WITH_WORST} "
            "(leave completions or the field out)"
        ]
    if isinstance(ranking, list) and worst in ranking and ranking.index(worst) != k - 1:
        return [f"worst: {worst}, but the ranking does not end with it (correct one)"]
    return []


def _is_index(value: object) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: object) -> TypeGuard[float]:
    if not isinstance(value, int | float) or isinstance(value, bool):
        return False
    return abs(value) < 1e300  # this excludes NaN, infinity and integers too large for a float


def _problem_of_text(text: str) -> str | None:
    if not text or text.isspace():
        return "empty (delete the row or give it text)"
    if not text.isascii():
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as error:
            return f"half a character at {error.start} (a lone surrogate; fix the row's \\u escape)"
    return None
