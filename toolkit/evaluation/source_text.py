"""The text that a prompt asks to sum up, its first sentences, and a column of people's texts.

``sources_of`` takes the text from a column of the prompts' rows, or from the prompt, without what
``--prompt_form`` puts around it. ``lead`` cuts its first sentences off.
"""

import re
from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

from toolkit.data.prompts import Prompts, kept_as
from toolkit.data.records import Prompt
from toolkit.data.text import printable
from toolkit.errors import InputError
from toolkit.models.base_config import check_context

# Marks that end a sentence, with closing quotes and brackets, before a blank; or a line end.
END = re.compile(r"[.!?]+[\"'”’)\]]*(?=\s|$)|\n")
# Words with a full stop that end no sentence: titles, a name's initials, "U.S." and "a.m.".
ABBREVIATED = re.compile(
    r"(?:^|[\s(\"'])(?:Mr|Mrs|Ms|Dr|Prof|Gen|Gov|Sen|Rep|St|vs|[A-HJ-Z]|(?:[A-Za-z]\.)+[A-Za-z])\.$"
)


def sentences_of(text: str) -> list[str]:
    """Split a text into sentences, without blanks around them.

    A sentence ends at . ! or ? before a blank, or with its line. This is a rule for English, and it
    cuts "No. 5" in two.
    """
    found, begun = [], 0
    for match in END.finditer(text):
        part = text[begun : match.end()]
        if match.group() == "." and ABBREVIATED.search(part):
            continue
        found.append(part.strip())
        begun = match.end()
    found.append(text[begun:].strip())
    return [sentence for sentence in found if sentence]


def lead(text: str, k: int) -> str:
    """Return the first k sentences of a text, or all if there are fewer, joined by spaces."""
    return " ".join(sentences_of(text)[:k])


def sources_of(
    prompts: Prompts,
    tokenizer: PreTrainedTokenizerBase,
    column: str | None = None,
    form: str | None = None,
) -> list[str]:
    """Return the text that each prompt asks to sum up.

    Args:
        prompts: the prompts with their columns.
        tokenizer: of their token ids.
        column: the column that has it; None for the prompt itself, or its last message.
        form: what is around the text in each prompt, with {prompt} in its place; \\n stands for a
            new line.

    Raises:
        InputError: a row has no such column, or a prompt is not in the form.
    """
    if column is not None:
        return column_texts(prompts, column, "source_column")

    shown = [prompts.shown(i, tokenizer) for i in range(len(prompts))]
    if form is None:
        return [_asked(prompt) for prompt in shown]
    return [_within(prompt, form, prompts.places.get(i)) for i, prompt in enumerate(shown)]


def column_texts(prompts: Prompts, column: str, what: str) -> list[str]:
    """Return a column of the prompts' rows as texts; an assistant's only message is its content.

    Args:
        prompts: the prompts with their columns.
        column: the column's name.
        what: the argument that named it, for messages.

    Raises:
        InputError: there is no such column, or a row has no text in it.
    """
    if kept_as(column) not in prompts.columns:
        names = ", ".join(sorted(prompts.columns)) or "none beside the prompt"
        raise InputError(f"{what}: the prompts have no column {column!r} (they have {names})", what)

    texts = []
    for i, value in enumerate(prompts.columns[kept_as(column)]):
        answer = isinstance(value, list) and len(value) == 1 and isinstance(value[0], dict)
        text = value[0].get("content") if answer else value
        if not isinstance(text, str) or not text.strip():
            raise InputError(
                f"{what}: {prompts.place(i)}: {column} is {value!r:.40}, but must be a text (leave "
                "out the rows without one)",
                what,
            )
        texts.append(text.strip())
    return texts


def continues(prompt: Prompt, text: str) -> str:
    """Return a text as a completion of a prompt: after text without a blank, it begins with one.

    >>> continues("He came. TL;DR:", "He came."), continues([{"role": "user"}], "He came.")
    (' He came.', 'He came.')
    """
    return f" {text}" if isinstance(prompt, str) and not prompt[-1:].isspace() else text


def check_fits(
    name: str, base: str, revision: str, prompts: Sequence[list[int]], ids: Sequence[list[int]]
) -> None:
    """Raise InputError unless each prompt with its text fits the base's context.

    Args:
        name: the contender whose texts they are.
        base, revision: the base.
        prompts, ids: token ids of prompts and texts.
    """
    longest = max(len(p) + len(i) for p, i in zip(prompts, ids, strict=True))
    try:
        check_context(base, longest, revision)
    except InputError as error:
        raise InputError(f"contenders: {name}: {error}") from None


def _asked(prompt: Prompt) -> str:
    """A prompt's text: of messages, the last one's."""
    return prompt if isinstance(prompt, str) else str(prompt[-1].get("content") or "")


def _within(prompt: Prompt, form: str, place: str | None) -> str:
    """Return what stands in place of {prompt} (``data.prompt_form.in_form`` puts it there).

    Args:
        prompt: in the form.
        form: what is around the text.
        place: where the prompt was read, for messages; None if that is not known.
    """
    form = form.replace("\\n", "\n")
    if not isinstance(prompt, str):
        form = form.strip()
    before, _, after = form.partition("{prompt}")
    text = _asked(prompt)
    fits = len(text) >= len(before) + len(after)
    if not (fits and text.startswith(before) and text.endswith(after)):
        raise InputError(
            f"prompt_form: {f'{place}: ' if place else ''}the prompt {printable(text)!r:.60} is "
            f"not in the form {form!r}, so its "
            "text is not known (put the prompts into it by preftune split, leave prompt_form out, "
            "or name the text's column by --source_column)",
            "prompt_form",
        )
    return text[len(before) : len(text) - len(after)]
