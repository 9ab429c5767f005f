"""Score comparisons by a reward adapter, whoever trained it, as PPO would without gain and bias."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from toolkit.data.chat import kind_of
from toolkit.data.encoding import Encoder
from toolkit.data.records import Placed, Row
from toolkit.errors import InputError
from toolkit.models.reading import Reading
from toolkit.models.roles import Roles
from toolkit.training.reward.trainer import score_candidates


@dataclass(frozen=True)
class Encoded:
    """Comparisons whose texts fit the model.

    Attributes:
        rows: the comparisons.
        ids: token ids of each one's candidates, as ``candidate_ids``.
        too_long: number of comparisons that did not fit.
    """

    rows: list[Row]
    ids: list[dict[str, Any]]
    too_long: int

    def scores(self, roles: Roles, pad_id: int, batch_size: int) -> list[list[float]]:
        """Return the adapter's score of each candidate."""
        return score_candidates(roles, self.ids, pad_id, batch_size)


def check_kind(placed: Sequence[Placed], reading: Reading, adapter: str | Path) -> None:
    """Refuse comparisons of text for an adapter that learned from messages, and the reverse.

    Their scores would mean nothing, and no prompt would be known as one that was trained on.

    Raises:
        InputError: a comparison is of the other kind.
    """
    if reading.trained_on == "both":
        return
    for place, row in placed:
        kind = kind_of(row["prompt"])
        if kind != reading.trained_on:
            cure = (
                "pass --as_messages true, which reads a prompt of text as a user's message"
                if kind == "text"
                else "give comparisons of text"
            )
            raise InputError(
                f"{place}: its prompt is {kind}, but {adapter} was trained on "
                f"{reading.trained_on}, so its scores would mean nothing ({cure})",
                "comparisons",
            )


def encode_as_read(
    placed: Sequence[Placed],
    encoder: Encoder,
    reading: Reading,
    tokenizer: PreTrainedTokenizerBase,
) -> Encoded:
    """Encode comparisons as the reward model read its texts in training.

    Args:
        placed: comparisons with their places.
        encoder: the rule for long rows.
        reading: of the adapter.
        tokenizer: of its base.
    """
    if not reading.whole:
        ids = list(encoder.encode(iter(placed), reading.ends_with))
        rows = [placed[each["row"]][1] for each in ids]
        return Encoded(rows, ids, len(placed) - len(rows))

    # Another tool's adapter, which saw prompt and completion as one text.
    rows, ids = [], []
    for _, row in placed:
        count = len(row["completions"])
        columns = {
            name: [value] * count
            for name, value in row.items()
            if name in ("tools", "chat_template_kwargs")
        }
        texts = reading.text_rows(tokenizer, [row["prompt"]] * count, row["completions"], columns)
        longest = encoder.max_length
        if longest is None or all(len(text) <= longest for text in texts):
            rows.append(row)
            ids.append({"candidate_ids": texts})
    return Encoded(rows, ids, len(placed) - len(rows))
