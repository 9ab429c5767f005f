"""What the page asks of people, and what an answer holds besides its pick."""

from dataclasses import dataclass, replace
from typing import Literal, cast, get_args

from toolkit.data.records import Row, to_row
from toolkit.errors import InputError
from toolkit.labeling.store.labels import Refused

Order = Literal["best", "best_and_worst", "ranking"]
ORDERS: tuple[Order, ...] = get_args(Order)
EXTRAS = ("strength", "comment", "edit")
MOST_RANKED = 8  # completions that a person can put in order

# How much better the best is than the next one, and the margin of a reward model's loss that each
# stands for: the smaller ones of Llama 2 (arXiv 2307.09288), whose fourth step, unsure, is a tie.
STRENGTHS = {1: "slightly better", 2: "clearly better", 3: "much better"}
MARGINS = {1: 0.333333, 2: 0.666667, 3: 1.0}

Seen = Literal["all", "enough"]
SEEN: tuple[Seen, ...] = get_args(Seen)
LONGEST_COMMENT = 4_000  # characters
LONGEST_EDIT = 40_000


@dataclass(frozen=True)
class Asked:
    """What the page asks of people for each item.

    Attributes:
        order: the best completion; the best and the worst; or all of them from best to worst.
        strength: how much better the best is than the next one.
        comment: a comment, which may be left out.
        edit: a better answer of the labeler's own, which may be left out.
    """

    order: Order = "best"
    strength: bool = False
    comment: bool = False
    edit: bool = False

    @classmethod
    def of(cls, text: str) -> "Asked":
        """Read the words of ``--ask``, which are separated by commas: "ranking,strength".

        Raises:
            InputError: a word is unknown, or two say what to put in order.
        """
        words = [word.strip() for word in text.split(",") if word.strip()]
        for word in words:
            if word not in (*ORDERS, *EXTRAS):
                raise InputError(
                    f"ask: {word!r:.40}, but must be one of {', '.join(ORDERS)}, and any of "
                    f"{', '.join(EXTRAS)}, separated by commas",
                    "ask",
                )
        orders = [cast(Order, word) for word in dict.fromkeys(words) if word in ORDERS]
        if len(orders) > 1:
            raise InputError(f"ask: {' and '.join(orders)}, but a page asks for one of them", "ask")
        return cls(
            orders[0] if orders else "best",
            strength="strength" in words,
            comment="comment" in words,
            edit="edit" in words,
        )

    def __str__(self) -> str:
        extras = [
            name
            for name, asked in zip(EXTRAS, (self.strength, self.comment, self.edit), strict=True)
            if asked
        ]
        return ",".join([self.order, *extras])

    @property
    def at_once(self) -> bool:
        """Whether a pick is the whole answer, so that one key sends it."""
        return self == Asked()


@dataclass(frozen=True)
class Details:
    """What an answer holds besides its pick; None for what was not said.

    Attributes:
        ranking: all completions, from best to worst.
        worst: the worst completion.
        strength: how much better the best is than the next one, a key of ``STRENGTHS``.
        comment: the labeler's comment.
        edited: a better answer that the labeler wrote.
        seen: "all" if all of each completion was on the screen or was opened, "enough" if the
            labeler said that they had seen enough; None if the page did not tell (without script).
    """

    ranking: list[int] | None = None
    worst: int | None = None
    strength: int | None = None
    comment: str | None = None
    edited: str | None = None
    seen: Seen | None = None

    def check(self, asked: Asked, action: str, position: int | None, count: int) -> None:
        """Raise Refused unless this is a whole answer to what was asked, and nothing more.

        Completions are meant by their position on the page.

        Args:
            asked: what the page asks for.
            action: pick, tie, bad or skip.
            position: the picked completion's; None unless the action is pick.
            count: number of completions.
        """
        picked = action == "pick"

        if picked and asked.order == "ranking":
            ranking = self.ranking or []
            if sorted(ranking) != list(range(count)) or ranking[0] != position:
                raise Refused(f"the ranking must name each of {count} completions once", 400)
        elif self.ranking is not None:
            raise Refused("no ranking was asked for", 400)

        if picked and asked.order == "best_and_worst":
            if self.worst not in range(count) or self.worst == position:
                raise Refused("the worst completion must be named, and differ from the best", 400)
        elif self.worst is not None:
            raise Refused("no worst completion was asked for", 400)

        if picked and asked.strength:
            if self.strength not in STRENGTHS:
                raise Refused("it must be said how much better the best completion is", 400)
        elif self.strength is not None:
            raise Refused("no strength was asked for", 400)

        if self.comment is not None and not asked.comment:
            raise Refused("no comment was asked for", 400)
        if self.edited is not None and not asked.edit:
            raise Refused("no edited answer was asked for", 400)
        if len(self.comment or "") > LONGEST_COMMENT or len(self.edited or "") > LONGEST_EDIT:
            raise Refused(
                f"a comment may have {LONGEST_COMMENT:,} characters, and an edited answer "
                f"{LONGEST_EDIT:,}",
                400,
            )

    def by_index(self, order: list[int]) -> "Details":
        """Return the same with indices in place of positions; ``order[position]`` is an index."""
        return replace(
            self,
            ranking=None if self.ranking is None else [order[p] for p in self.ranking],
            worst=None if self.worst is None else order[self.worst],
        )


def fields_of(details: Row) -> Row:
    """Return the fields that stored details add to an exported comparison.

    >>> fields_of({"ranking": [1, 0], "strength": 3, "comment": "Short.", "seen": "all"})
    {'ranking': [1, 0], 'labeler_comment': 'Short.', 'margin': 1.0}
    """
    made = {field: details[name] for name, field in NAMES.items() if name in details}
    return made | ({"margin": MARGINS[details["strength"]]} if "strength" in details else {})


def details_of(row: Row) -> Row:
    """Return the details of a pick that was made elsewhere: ``fields_of`` makes its fields again.

    >>> details_of({"best": 1, "ranking": [1, 0], "margin": 0.5, "source": "web"})
    {'ranking': [1, 0], 'margin': 0.5}
    """
    return {name: row[field] for name, field in NAMES.items() if row.get(field) is not None}


# What a detail is called in a row. Only a pick from elsewhere has a margin, and no strength.
NAMES = {
    "ranking": "ranking",
    "worst": "worst",
    "comment": "labeler_comment",
    "edited": "labeler_edit",
    "margin": "margin",
}
BESIDE_PICK = tuple(NAMES.values())


def as_following(edited: str, picked: str) -> str:
    """Return an edited answer as it follows the prompt: it begins as the completion does.

    The page shows a completion without its first space, and with an ellipsis where it goes on with
    the prompt's last word; the labeler began with what was shown.

    >>> as_following("The tea was hot.", " The tea was cold.")
    ' The tea was hot.'
    """
    if edited.startswith("\u2026") and not picked.startswith("\u2026"):
        return edited.removeprefix("\u2026")
    return f" {edited}" if picked.startswith(" ") and not edited[:1].isspace() else edited


def stored(details: Details) -> Row:
    """Return details as the store's JSON object, without what was not said."""
    return to_row(details)
