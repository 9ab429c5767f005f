"""How messages become text: a chat template and its arguments."""

import difflib
import json
import os
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jinja2
import jinja2.meta
from jinja2.nodes import Call, Const, Name, Node, Template

from toolkit.arguments.chat import read_kwargs
from toolkit.data.records import Messages, Row
from toolkit.errors import InputError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# HH's layout (arXiv 2204.05862, appendix), for bases that were not trained with a template.
PLAIN_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '\n\n' + {'user': 'Human', 'assistant': 'Assistant', 'system': 'System', 'tool': 'Tool', "
    "'developer': 'System'}"
    "[message['role']] + ': ' + message['content'] }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '\n\nAssistant:' }}{% endif %}"
)
RENDERED = re.compile(r"\s*(<\|[^|<>]{1,40}\|>|<s>|<bos>|<start_of_turn>|\[INST\]|Human: )")
GENERATION = re.compile(r"{%-?\s*(end)?generation\s*-?%}")  # a tag that only transformers knows


@dataclass(frozen=True)
class Chat:
    """How messages become text.

    Attributes:
        template: Jinja; None for the tokenizer's own.
        kwargs: arguments for the template; a row's own override them.
    """

    template: str | None = None
    kwargs: Row = field(default_factory=dict)
    _looked: list[bool] = field(default_factory=list, compare=False, repr=False)

    @property
    def plain(self) -> bool:
        """Whether the template is "Human: ... Assistant: ..."."""
        return self.template == PLAIN_TEMPLATE

    @property
    def name(self) -> str | None:
        """The template as toolkit.json stores it: "plain", or the template itself."""
        return "plain" if self.plain else self.template

    def told(self, row: Row | None) -> Row:
        """The template's arguments for a row, besides messages and tools."""
        given = (row or {}).get("chat_template_kwargs")
        if isinstance(given, str):  # Parquet and the like keep objects as text
            given = json.loads(given)
        # Tables put a null where only other rows have a value.
        return self.kwargs | {k: value for k, value in (given or {}).items() if value is not None}

    def render(
        self,
        tokenizer: "PreTrainedTokenizerBase",
        messages: Messages,
        row: Row | None = None,
        ask: bool = False,
    ) -> str:
        """Render messages as text.

        Args:
            tokenizer: its template is used if this Chat has none.
            messages: roles and contents.
            row: its ``tools`` (a list, or its JSON) and ``chat_template_kwargs`` go to it, as in
                TRL (trl 1.16 reward_trainer.py:702-704).
            ask: whether to end where the assistant begins.

        Raises:
            InputError: the template refuses them, or returns an empty text.
        """
        tools = (row or {}).get("tools")
        try:
            text = tokenizer.apply_chat_template(
                messages,
                chat_template=self.template,
                tokenize=False,
                add_generation_prompt=ask,
                tools=json.loads(tools) if isinstance(tools, str) else tools or None,
                **self.told(row),
            )
        except Exception as error:  # a template is a program
            raise InputError(
                f"chat_template refuses {messages!r:.80}: {type(error).__name__}: {error}",
                "chat_template",
            ) from None
        if not isinstance(text, str) or not text.strip():
            raise InputError(f"chat_template returns no text for {messages!r:.80}", "chat_template")
        return text

    def notes(
        self, tokenizer: "PreTrainedTokenizerBase", messages: Messages, row: Row | None = None
    ) -> list[str]:
        """Check the template on the first messages of a run; return a line for each problem.

        Later calls return nothing: one object serves all files of a run.
        """
        if self._looked:
            return []
        self._looked.append(True)
        lines = [
            self._unread(tokenizer, row),
            self._without_start(tokenizer, messages, row),
            self._of_the_day(tokenizer, messages, row),
        ]
        return [line for line in lines if line is not None]

    def _unread(self, tokenizer: "PreTrainedTokenizerBase", row: Row | None) -> str | None:
        """Return a warning about arguments that the template never reads."""
        told = self.told(row)
        try:
            tree = self._tree(tokenizer, row)
        except (ValueError, jinja2.TemplateError):  # rendering reports the error
            return None
        read = jinja2.meta.find_undeclared_variables(tree)
        unread = sorted(set(told) - read)
        if not unread:
            return None
        close = difflib.get_close_matches(unread[0], read, n=1)
        cure = (
            f"did you mean {close[0]}?"
            if close
            else "leave it out, or use a name that the template reads"
        )
        return (
            f"warning: chat_template_kwargs: the template never reads {', '.join(unread)} ({cure})"
        )

    def _tree(self, tokenizer: "PreTrainedTokenizerBase", row: Row | None) -> Template:
        """Parse the template that a row is rendered with."""
        source = tokenizer.get_chat_template(self.template, (row or {}).get("tools") or None)
        environment = jinja2.Environment(extensions=["jinja2.ext.loopcontrols"])
        return environment.parse(GENERATION.sub("", source))

    def _without_start(
        self, tokenizer: "PreTrainedTokenizerBase", messages: Messages, row: Row | None
    ) -> str | None:
        """Return a warning if the template omits the assistant's start when asked for it."""
        answer = "ANSWER"
        try:
            asked = self.render(tokenizer, messages, row, ask=True)
            if asked != self.render(tokenizer, messages, row):
                return None
            dialogue = [*messages, {"role": "assistant", "content": answer}]
            whole = self.render(tokenizer, dialogue, row)
        except InputError:  # this template cannot render such a dialogue
            return None
        # Some templates close the last turn differently if another follows.
        common = len(os.path.commonprefix([asked, whole]))
        start = whole[common:].partition(answer)[0]
        if answer not in whole[common:] or not start.strip():
            return None
        return (
            f"warning: chat_template: before the assistant's text the template writes {start!r}, "
            "but not when it is asked to begin the assistant's turn, so the model continues the "
            "user's turn (end a copy of the template with {% if add_generation_prompt %}{{ "
            f"{start!r} }}}}{{% endif %}} and pass that file as --chat_template)"
        )

    def _of_the_day(
        self, tokenizer: "PreTrainedTokenizerBase", messages: Messages, row: Row | None
    ) -> str | None:
        """Return a warning if the template writes today's date (SmolLM3's and Llama 3.2's do)."""
        try:
            calls = self._tree(tokenizer, row).find_all(Call)
            text = self.render(tokenizer, messages, row, ask=True)
        except (ValueError, jinja2.TemplateError, InputError):  # reported when it is used
            return None

        # Templates ask strftime_now (transformers) for the date in a format of theirs.
        asked = [call.args for call in calls if _name_of(call.node) == "strftime_now"]
        formats = [each.value for args in asked for each in args if isinstance(each, Const)]
        if not any(datetime.now().strftime(each) in text for each in formats):
            return None
        return (
            "warning: chat_template: it writes today's date into the text, so the same prompts "
            "differ in a stage that runs on another day, and PPO cannot be resumed on another day "
            "(pass a copy of the template with a fixed date as --chat_template, or fix the date by "
            "--chat_template_kwargs if the template reads one, as Llama 3.2's does: "
            '\'{"date_string": "26 Jul 2024"}\')'
        )


def _name_of(node: Node) -> str | None:
    """Return the variable that a part of a template is, if it is one."""
    return node.name if isinstance(node, Name) else None


def is_rendered(text: str) -> bool:
    """Whether a text begins as if a chat template had written it."""
    return RENDERED.match(text) is not None


def kind_of(prompt: object) -> str:
    """Return "messages", also for text that a template has rendered, or "text"."""
    return "text" if isinstance(prompt, str) and not is_rendered(prompt) else "messages"


def rendering(chat: Chat, kinds: Collection[str], told: Sequence[Row]) -> Row:
    """Return what toolkit.json records about the texts that an adapter was trained on.

    Args:
        chat: the run's.
        kinds: of prompts: "messages", "text".
        told: the template's arguments, for each row or each kind of rows (``Chat.told``).

    Returns:
        ``trained_on``: one of ``kinds``, or "both"; ``chat_template``: "plain", Jinja, or None for
        the tokenizer's own; ``chat_template_kwargs``: None unless all rows had the same.
    """
    first = next(iter(told), {})
    return {
        "trained_on": next(iter(kinds)) if len(kinds) == 1 else "both",
        "chat_template": chat.name,
        "chat_template_kwargs": first if all(other == first for other in told) else None,
    }


def chat_of(facts: Row) -> Chat:
    """Make the ``Chat`` that these facts of toolkit.json describe."""
    template = facts.get("chat_template")
    return Chat(
        PLAIN_TEMPLATE if template == "plain" else template, facts.get("chat_template_kwargs") or {}
    )


def named(template: str | None) -> str:
    """Name a template for a message."""
    return {None: "the tokenizer's own", PLAIN_TEMPLATE: "plain"}.get(template, "a file")


def read_chat(chat_template: str | None = None, kwargs: Any = None) -> Chat:
    """Make the ``Chat`` for these arguments of a recipe.

    Raises:
        InputError: there is no such template file, or an argument is not allowed.
    """
    return Chat(_read_template(chat_template), read_kwargs(kwargs) or {})


def _read_template(chat_template: str | None) -> str | None:
    if chat_template is None or chat_template == "plain":
        return PLAIN_TEMPLATE if chat_template else None
    try:
        return Path(chat_template).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        raise InputError(
            f"chat_template: {chat_template} is neither plain nor a Jinja file in UTF-8",
            "chat_template",
        ) from None
