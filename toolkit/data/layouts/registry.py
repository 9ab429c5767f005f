"""The table of layouts: by which fields each is told, and what its rows are read as.

    comparisons      pairs, native, ranked, scored, nectar, reward_bench, columns, openai, shp,
                     arena, safe_rlhf, summaries, oasst_tree, oasst_messages
    one answer       sharegpt, alpaca, messages, prompt_completion, unpaired
    none of both     stepwise, text, prompt

A reader takes a row and returns a comparison, or a list of them. It raises ``Dropped`` if a valid
row makes none (for example because of a tie), and ValueError if something is wrong with the row.

``best``, ``worst`` and ``ranking`` are integers, or floats and text that spell integers. In
``columns``, a number is the one in the column's name; elsewhere the first completion is 0, unless
``first`` says otherwise. A letter (A is the first completion), the name of a column or the text of
a completion works, too.

docs/comparisons.md has a row of each layout, and what is dropped.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from toolkit.data.dialogues import PROMPTS, prompt_of
from toolkit.data.layouts.columns import (
    COLUMN,
    LETTERED,
    check_pick,
    from_columns,
    from_openai,
    listed,
)
from toolkit.data.layouts.fields import Reading
from toolkit.data.layouts.native import from_native
from toolkit.data.layouts.pairs import from_pairs, from_reward_bench
from toolkit.data.layouts.sets import asked, from_nectar, from_ranked, from_scored
from toolkit.data.layouts.single import (
    from_alpaca,
    from_dialogue,
    from_prompt_completion,
    prompt_of_dialogue,
)
from toolkit.data.layouts.trees import first_message, from_tree, trees_of
from toolkit.data.layouts.votes import (
    SAFE_RLHF,
    check_safe_rlhf,
    from_arena,
    from_safe_rlhf,
    from_shp,
    from_summaries,
    voted_prompt,
)
from toolkit.data.records import Placed, Row
from toolkit.errors import BadRows, InputError

Reader = Callable[[Row, Reading], Row | list[Row]]
ONE_ANSWER = (
    "one answer to each prompt, so nobody picked one (preftune sft --demonstrations FILE learns "
    "the answers, and preftune ppo --prompts FILE answers the prompts anew)"
)


@dataclass(frozen=True)
class Layout:
    """One layout of rows.

    Attributes:
        told_by: whether a row has it.
        fields: what its rows have, for messages.
        comparisons: reads a row as comparisons; None if nobody picked among several answers.
        demonstrations: reads a row as prompts with one answer each, in the form of comparisons;
            None if it has none.
        prompt: reads the prompt alone; None if only a comparison tells what the prompt is.
        holds: what rows without comparisons hold, and how they can be used.
        check: refuses a file once by its first row.
        gather: joins the rows of a file that belong together.
    """

    told_by: Callable[[Row], bool]
    fields: str
    comparisons: Reader | None = None
    demonstrations: Reader | None = None
    prompt: Callable[[Row], object] | None = prompt_of
    holds: str = ""
    check: Callable[[Row, str, int | None, list[str]], None] | None = None
    gather: Callable[[Iterable[Placed], BadRows], Iterator[Placed]] | None = None


def _has(*names: str) -> Callable[[Row], bool]:
    return lambda row: all(name in row for name in names)


def _starts(row: Row, name: str) -> object:
    """The first element of a list in a row; None if there is none."""
    value = row.get(name)
    return value[0] if isinstance(value, list) and value else None


def _is_tree(row: Row) -> bool:
    return "message_tree_id" in row and isinstance(row.get("prompt"), dict)


def _is_reward_bench(row: Row) -> bool:
    return all(isinstance(_starts(row, name), str) for name in ("chosen", "rejected"))


def _is_nectar(row: Row) -> bool:
    answer = _starts(row, "answers")
    return isinstance(answer, dict) and "rank" in answer


def _is_ranked(row: Row) -> bool:
    return "rank" in row and any(n in row for n in ("responses", "replies", "completions"))


def _is_stepwise(row: Row) -> bool:
    return "best" not in row and all(
        isinstance(row.get(n), list) for n in ("completions", "labels")
    )


def _is_scored(row: Row) -> bool:
    answers = row.get("completions")
    return isinstance(_starts(row, "completions"), dict) and not all(
        "role" in answer for answer in answers or ()
    )


def _is_safe_rlhf(row: Row) -> bool:
    return {"response_0", "response_1"} <= set(row) and (
        any(name in row for name in SAFE_RLHF) or "is_response_0_safe" in row
    )


def _has_columns(row: Row) -> bool:
    return any(COLUMN.fullmatch(name) or LETTERED.fullmatch(name) for name in map(str, row))


def _is_openai(row: Row) -> bool:
    return _has_columns(row) and isinstance(_starts(row, "query"), int)


def _has_prompt(row: Row) -> bool:
    return any(row.get(name) not in (None, "") for name in PROMPTS)


# The first layout whose fields a row has is the row's, unless it is ours (``is_ours``).
LAYOUTS: dict[str, Layout] = {
    "reward_bench": Layout(
        _is_reward_bench, "prompt, chosen: [...], rejected: [...]", from_reward_bench
    ),
    "pairs": Layout(_has("chosen", "rejected"), "chosen, rejected", from_pairs, prompt=None),
    "ranked": Layout(_is_ranked, "prompt, responses, rank", from_ranked),
    "stepwise": Layout(
        _is_stepwise,
        "prompt, completions, labels",
        holds="the steps of one answer with a label each, so nobody picked among answers (TRL's "
        "PRMTrainer learns them; preftune ppo --prompts FILE answers the prompts anew)",
    ),
    "scored": Layout(_is_scored, "prompt, completions: [{response, overall_score}]", from_scored),
    "native": Layout(_has("completions"), "prompt, completions, best", from_native),
    "oasst_tree": Layout(
        _is_tree, "message_tree_id, prompt with replies", from_tree, prompt=first_message
    ),
    "oasst_messages": Layout(
        _has("message_tree_id", "parent_id", "role", "text"),
        "message_tree_id, message_id, parent_id, role, text, rank",
        from_tree,
        prompt=first_message,
        gather=trees_of,
    ),
    "nectar": Layout(
        _is_nectar,
        "prompt, answers: [{answer, rank}]",
        from_nectar,
        prompt=lambda row: asked(row.get("prompt")),
    ),
    "summaries": Layout(
        _has("info", "summaries", "choice"),
        "info, summaries, choice",
        from_summaries,
        prompt=voted_prompt,
    ),
    "shp": Layout(
        _has("history", "human_ref_A", "human_ref_B", "labels"),
        "history, human_ref_A, human_ref_B, labels",
        from_shp,
        prompt=voted_prompt,
    ),
    "arena": Layout(
        _has("conversation_a", "conversation_b", "winner"),
        "conversation_a, conversation_b, winner",
        from_arena,
        prompt=voted_prompt,
    ),
    "safe_rlhf": Layout(
        _is_safe_rlhf,
        "prompt, response_0, response_1, better_response_id, safer_response_id",
        from_safe_rlhf,
        check=check_safe_rlhf,
    ),
    "openai": Layout(_is_openai, "query, sample0 and so on, best, as token ids", from_openai),
    "columns": Layout(
        _has_columns, "prompt, a column for each completion, best", from_columns, check=check_pick
    ),
    "sharegpt": Layout(
        _has("conversations"),
        "conversations: [{from, value}]",
        demonstrations=from_dialogue,
        prompt=prompt_of_dialogue,
        holds=ONE_ANSWER,
    ),
    "unpaired": Layout(
        _has("completion", "label"),
        "prompt, completion, label",
        demonstrations=from_prompt_completion,
        holds="a label for each answer, and no pick among several (TRL's KTOTrainer learns the "
        "labels; preftune sft --demonstrations FILE learns the answers with the label true)",
    ),
    "prompt_completion": Layout(
        _has("completion"),
        "prompt, completion",
        demonstrations=from_prompt_completion,
        holds=ONE_ANSWER,
    ),
    "alpaca": Layout(
        _has("instruction", "output"),
        "instruction, input, output",
        demonstrations=from_alpaca,
        holds=ONE_ANSWER,
    ),
    "messages": Layout(
        _has("messages"),
        "messages: [{role, content}]",
        demonstrations=from_dialogue,
        prompt=prompt_of_dialogue,
        holds=ONE_ANSWER,
    ),
    "text": Layout(
        _has("text"),
        "text",
        prompt=None,
        holds="text without prompts (preftune sft --text FILE learns it, and preftune ppo "
        "--prompts FILE --prompt_tokens N continues its first tokens)",
    ),
    "prompt": Layout(
        _has_prompt,
        "prompt",
        holds="prompts without answers (preftune sample --prompts FILE writes answers, which "
        "preftune label lets people compare)",
    ),
}


def is_ours(row: Row) -> bool:
    """Whether a row has completions of our own layout, and is no list of steps.

    Other fields may be left of an earlier file: sample keeps those of a prompt's row, so that a
    pick may stand beside somebody's older ``chosen`` or ``winner``.
    """
    texts = row.get("completions")
    ours = isinstance(texts, list) and bool(texts) and all(isinstance(t, str) for t in texts)
    return ours and not _is_stepwise(row)


def told(row: Row) -> str | None:
    """Return the name of the layout that a row's fields belong to; None if they belong to none."""
    # A rank orders the completions, unless the answers of an earlier file are there, too.
    ranked = "rank" in row and not (row.get("responses") or row.get("replies"))
    if is_ours(row) and "best" in row and not ranked:
        return "native"
    return next((name for name, layout in LAYOUTS.items() if layout.told_by(row)), None)


def detect(
    row: Row,
    place: str,
    first: int | None = None,
    completions: list[str] | None = None,
    picked: bool = True,
    named: str | None = None,
) -> str:
    """Return the name of the layout that a row's fields belong to.

    Args:
        row: the first one of a file.
        place: where it is, for messages.
        first: number of the first completion in ``best``, if it was given.
        completions: the columns of the completions, if --columns names them.
        picked: whether the rows must say which completion is the best.
        named: the layout, if somebody named it.

    Raises:
        InputError: the fields belong to no layout, or a table lacks what all of its rows need.
    """
    name = named or ("columns" if completions else told(row))
    if name is None:
        raise unknown(row, place)
    check = LAYOUTS[name].check
    if check is not None and picked:
        check(row, place, first, completions or [])
    return name


def unknown(row: Row, place: str) -> InputError:
    """The error for a file whose fields belong to no layout."""
    return InputError(
        f"{place}: unknown format with the fields {listed(row)} (name the columns, as in --columns "
        "prompt=HEADER completions=HEADER,HEADER best=HEADER; pairs have prompt, chosen and "
        "rejected; rows of JSON have prompt, completions and best, or prompt, responses and rank)",
        "format",
    )


def refusal(name: str, place: str, wanted: str) -> InputError:
    """The error for a file whose layout does not hold what is wanted.

    Args:
        name: of the layout.
        place: of its first row.
        wanted: "comparisons", "demonstrations" or "prompts".
    """
    layout = LAYOUTS[name]
    cure = (
        layout.holds
        or f"comparisons, not {wanted} (preftune sft --comparisons FILE learns the picks)"
    )
    return InputError(f"{place}: the layout {name} ({layout.fields}) has {cure}", "format")
