"""Write and read samples.jsonl: every contender's completion of every prompt."""

import errno
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from toolkit.data.chat import Chat, Messages, named
from toolkit.data.files import read_jsonl, write_jsonl
from toolkit.data.prompts import Prompts, given_prompts
from toolkit.data.records import Row, to_row
from toolkit.data.tokens import vocabulary_digest
from toolkit.errors import InputError
from toolkit.evaluation.contenders import Contender, Outputs
from toolkit.evaluation.judges import Scores
from toolkit.evaluation.result import ContenderResult, Written
from toolkit.maths.statistics import mean_and_error

NAME = "samples.jsonl"


@dataclass(frozen=True, kw_only=True)
class SampleRow:
    """One prompt, and each contender's completion of it.

    The ids are stored because they cannot be derived from the text: a policy may write a word in
    other tokens than the tokenizer would, and a prompt may be a longer text that was cut.

    Attributes:
        prompt: text or messages.
        prompt_ids: the prompt's token ids.
        row: the other fields of the prompt's row, which judges see again with ``--samples``
            (``Prompts.asked``).
        completions: texts by contender; so are log_ratios (nats, only for the base's tokens),
            tokens (number sampled) and ids.
        scores: scores by judge and contender.
        kls: by steered contender, the exact KL along the completion, in nats (``Outputs``).
    """

    prompt: str | Messages
    prompt_ids: list[int] | None
    row: Row | None = None
    completions: dict[str, str]
    scores: dict[str, dict[str, float]]
    log_ratios: dict[str, float]
    tokens: dict[str, int]
    ids: dict[str, list[int]]
    kls: dict[str, float] | None = None


def sample_rows(
    prompts: Prompts,
    tokenizer: PreTrainedTokenizerBase,
    outputs: dict[str, Outputs],
    scores: dict[str, Scores],
) -> list[SampleRow]:
    """Make one row per prompt: every contender's text, scores, log-ratio, token count and ids.

    Args:
        prompts: the prompts with their rows' other fields.
        tokenizer: the tokenizer of the ids.
        outputs, scores: the contenders' completions and scores.
    """
    rows = []
    for i, question in enumerate(prompts.asked(tokenizer)):
        fields = {name: value for name, value in question.items() if name != "prompt"}
        rows.append(
            SampleRow(
                prompt=question["prompt"],
                prompt_ids=prompts[i],
                row=fields or None,
                completions={name: o.texts[i] for name, o in outputs.items()},
                scores={j: {name: s[i] for name, s in of.items()} for j, of in scores.items()},
                log_ratios={
                    name: o.log_ratios[i] for name, o in outputs.items() if o.log_ratios is not None
                },
                tokens={name: o.tokens[i] for name, o in outputs.items()},
                ids={name: o.ids[i] for name, o in outputs.items() if o.ids is not None},
                kls={name: o.kls[i] for name, o in outputs.items() if o.kls is not None} or None,
            )
        )
    return rows


def write_samples(folder: Path, rows: Sequence[SampleRow]) -> None:
    """Write ``samples.jsonl`` into a folder, atomically."""
    write_jsonl(folder / NAME, map(to_row, rows))


def read_sample_rows(path: Path, names: Sequence[str], count: int) -> list[SampleRow]:
    """Read the rows of a samples.jsonl, each with a text of every contender.

    Raises:
        InputError: there are not ``count`` rows, or a row is malformed (file:line).
    """
    rows = []
    for number, row in read_jsonl(path, "--samples"):
        _check(row, names, f"{path}:{number}")
        rows.append(
            SampleRow(
                prompt=row["prompt"],
                prompt_ids=row.get("prompt_ids"),
                row=row.get("row"),
                completions=row["completions"],
                scores=row["scores"],
                log_ratios=row["log_ratios"],
                tokens=row["tokens"],
                ids=row.get("ids") or {},
                kls=row.get("kls"),
            )
        )

    if len(rows) != count:
        raise InputError(
            f"{path}: {len(rows)} rows, but evaluation.json beside it has {count} prompts "
            "(evaluate again)"
        )

    return rows


def _check(row: Row, names: Sequence[str], place: str) -> None:
    """Raise InputError unless the row has each contender's text, and numbers where they belong."""
    texts = row.get("completions")
    whole = isinstance(row.get("prompt"), str | list)
    for name in names:
        if not whole or not isinstance(texts, dict) or not isinstance(texts.get(name), str):
            raise InputError(
                f"{place}: the prompt or the text of {name!r} is missing (evaluate again)"
            )

    for field in ("scores", "log_ratios", "tokens"):
        if not isinstance(row.get(field), dict):
            raise InputError(f"{place}: {field}: missing (evaluate again)")

    numbers: dict[str, object] = {}
    if not isinstance(row.get("kls") or {}, dict):
        raise InputError(f"{place}: kls: not an object (evaluate again)")
    for field in ("log_ratios", "tokens", "kls"):
        numbers |= {f"{field} of {name}": value for name, value in (row.get(field) or {}).items()}
    for judge, of in row["scores"].items():
        by_name = of if isinstance(of, dict) else {"": of}
        numbers |= {f"{judge}'s score of {name}": score for name, score in by_name.items()}
    for name, value in numbers.items():
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise InputError(f"{place}: {name}: {value!r:.40} is not a number (evaluate again)")


@dataclass
class Samples:
    """The samples of an earlier evaluation.

    Attributes:
        contenders: the contenders, the reference first.
        asked: each prompt with its row's other fields.
        outputs: the completions.
        prompt_ids: token ids of each prompt; None if the file lacks them.
        vocabulary: digest of the vocabulary of the ids (``vocabulary_digest``).
        chat: how messages were rendered; None if it was not recorded.
    """

    contenders: list[Contender]
    asked: list[Row]
    outputs: dict[str, Outputs]
    prompt_ids: list[list[int]] | None
    vocabulary: str | None
    chat: Chat | None

    def read_by(
        self, tokenizer: PreTrainedTokenizerBase, chat: Chat
    ) -> tuple[Prompts, dict[str, Outputs]]:
        """Return prompts and completions as a tokenizer's ids: the sampled ids if it has them.

        Args:
            tokenizer: the base's tokenizer.
            chat: this run's chat template and its arguments.

        Raises:
            InputError: the samples were made with another chat template or other arguments.
        """
        if self.chat is not None and chat not in (Chat(), self.chat):
            raise InputError(
                f"chat_template: the prompts of the samples were rendered by "
                f"{named(self.chat.template)} with {json.dumps(self.chat.kwargs)} (leave out "
                "--chat_template and --chat_template_kwargs)",
                "chat_template",
            )
        chat = self.chat or chat
        if self.vocabulary == vocabulary_digest(tokenizer):
            return given_prompts(self.asked, tokenizer, chat, self.prompt_ids), self.outputs

        # The vocabulary differs, so the texts are encoded again.
        texts = {name: replace(o, ids=None) for name, o in self.outputs.items()}
        return given_prompts(self.asked, tokenizer, chat), texts


def read_samples(path: str | Path) -> Samples:
    """Read ``samples.jsonl``, and ``evaluation.json`` beside it.

    Raises:
        InputError: a file is missing or malformed.
    """
    path = Path(path) / NAME if Path(path).is_dir() else Path(path)
    written = _read_written(path)
    rows = read_sample_rows(path, [c.name for c in written.contenders], written.prompts)
    try:
        return Samples(
            [Contender(c.name, c.kind, c.source, c.n) for c in written.contenders],
            [{"prompt": row.prompt} | (row.row or {}) for row in rows],
            {c.name: _outputs(c, rows) for c in written.contenders},
            _ids([row.prompt_ids for row in rows]),
            written.vocabulary,
            written.chat,
        )
    except (KeyError, TypeError, AttributeError) as error:
        raise InputError(
            f"--samples: {path}: was not written by preftune evaluate ({error!r})"
        ) from None


def _outputs(contender: ContenderResult, rows: Sequence[SampleRow]) -> Outputs:
    name = contender.name
    ratios, kls, picking = None, None, 0.0
    if contender.kl is not None:
        ratios = [float(row.log_ratios[name]) for row in rows]
        if all(row.kls and name in row.kls for row in rows):
            kls = [float(row.kls[name]) for row in rows if row.kls]
        picking = contender.kl - mean_and_error(ratios if kls is None else kls)[0]
    return Outputs(
        [row.completions[name] for row in rows],
        _ids([row.ids.get(name) for row in rows]),
        ratios,
        [int(row.tokens[name]) for row in rows],
        picking,
        kls,
    )


def _read_written(path: Path) -> Written:
    facts = path.parent / "evaluation.json"
    if not facts.is_file():
        reason = os.strerror(errno.ENOENT)
        raise InputError(f"--samples: {facts}: {reason} (preftune evaluate writes both)")
    try:
        return Written.read(facts, "--samples")
    except InputError as error:
        raise InputError(
            f"--samples: {path}: was not written by preftune evaluate ({error})"
        ) from None


def _ids(found: Sequence[object]) -> list[list[int]] | None:
    """Return token ids if every row has them, else None."""
    rows = [ids for ids in found if isinstance(ids, list) and all(type(i) is int for i in ids)]
    return rows if len(rows) == len(found) else None
