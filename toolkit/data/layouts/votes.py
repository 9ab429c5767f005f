"""Two answers and a vote between them: SHP, Chatbot Arena, SafeRLHF, OpenAI's summaries."""

from toolkit.data.dialogues import Dropped, from_dialogues, prompt_of
from toolkit.data.layouts.columns import from_columns
from toolkit.data.layouts.fields import EQUAL, Reading, score_of
from toolkit.data.numbering import as_index
from toolkit.data.records import Row
from toolkit.errors import InputError

WINNERS = {"model_a": 0, "model_b": 1}
TIES = ("tie", "tie (bothbad)")
SAFE_RLHF = ("better_response_id", "safer_response_id")


def from_shp(row: Row, reading: Reading) -> Row:
    """Convert SHP's two comments: ``labels`` is 1 if A was preferred, and 0 if B was.

    Source: the card of stanfordnlp/SHP.
    """
    label = as_index(row["labels"])
    if label not in (0, 1):
        raise ValueError(f"labels: {row['labels']!r:.40}, but must be 1 (A) or 0 (B)")
    texts = _two(row["human_ref_A"], row["human_ref_B"])
    made: Row = {"prompt": row["history"], "completions": texts, "best": 1 - label}

    scores = [score_of(row.get(name), name) for name in ("score_A", "score_B")]
    if scores[0] is None or scores[1] is None:
        return made
    if scores[label] > scores[1 - label]:  # type: ignore[operator]
        raise ValueError(
            f"labels: {label} prefers {'BA'[label]}, but score_A is {scores[0]:g} and score_B "
            f"{scores[1]:g} (correct one of them)"
        )
    return made | {"scores": scores}


def from_arena(row: Row, reading: Reading) -> Row:
    """Convert two conversations of Chatbot Arena and the vote between them.

    A tie is dropped. So are conversations of several turns, in which the models' earlier answers
    differ, so that there is no one prompt.

    Source: the card of lmsys/chatbot_arena_conversations.
    """
    winner = row["winner"]
    if winner in TIES:
        raise Dropped(f"a {winner}")
    if winner not in WINNERS:
        raise ValueError(f"winner: {winner!r:.40}, but must be one of {(*WINNERS, *TIES)}")
    names = ["conversation_a", "conversation_b"]
    if row[names[0]] == row[names[1]]:
        raise Dropped(EQUAL)
    prompt, texts, _ = from_dialogues(None, [row[name] for name in names], names)
    made: Row = {"prompt": prompt, "completions": texts, "best": WINNERS[winner]}
    if isinstance(row.get("judge"), str):
        made["labeler"] = row["judge"]
    if row.get("model_a") and row.get("model_b"):
        made["models"] = [row["model_a"], row["model_b"]]
    return made


def from_safe_rlhf(row: Row, reading: Reading) -> Row:
    """Convert SafeRLHF's two responses, by the one of its two labels that was named.

    Source: the card of PKU-Alignment/PKU-SafeRLHF.
    """
    if "best" not in row:
        row = row | {"best": next(row[name] for name in SAFE_RLHF if name in row)}
    _two(row["response_0"], row["response_1"])
    return from_columns(row, reading)


def check_safe_rlhf(row: Row, place: str, first: int | None, completions: list[str]) -> None:
    """Refuse a file with both of SafeRLHF's labels if nobody said which one is meant.

    Raises:
        InputError: it has both, and --columns names none as ``best``.
    """
    if "best" not in row and all(name in row for name in SAFE_RLHF):
        raise InputError(
            f"{place}: SafeRLHF's rows have two labels (pass --columns best=better_response_id for "
            "the more helpful response, or --columns best=safer_response_id for the safer one)",
            "columns",
        )


def from_summaries(row: Row, reading: Reading) -> Row:
    """Convert OpenAI's comparisons of two summaries.

    The prompt is written as the paper's models read it: of a Reddit post subreddit, title and post,
    then "TL;DR:"; of a news article "Article:", the article, then "TL;DR:".

    Source: the card of openai/summarize_from_feedback, and openai/summarize-from-feedback
    summarize_from_feedback/tasks.py.
    """
    choice = as_index(row["choice"])
    summaries = row["summaries"]
    if choice is None or not 0 <= choice < len(summaries):
        raise ValueError(
            f"choice: {row['choice']!r:.40}, but must be the index of one of "
            f"{len(summaries)} summaries"
        )
    texts = [summary["text"] for summary in summaries]
    if len(set(texts)) == 1:
        raise Dropped(EQUAL)
    made: Row = {"prompt": summary_prompt(row["info"]), "completions": texts, "best": choice}
    if isinstance(row.get("worker"), str):
        made["labeler"] = row["worker"]
    if all(summary.get("policy") for summary in summaries):
        made["models"] = [summary["policy"] for summary in summaries]
    if row["info"].get("id"):
        made["id"] = row["info"]["id"]
    return made


def summary_prompt(info: Row) -> str:
    """Return the text that a summary of a post or of an article follows.

    >>> summary_prompt({"subreddit": "tea", "title": "Cold", "post": "It was cold."})
    'SUBREDDIT: r/tea\\n\\nTITLE: Cold\\n\\nPOST: It was cold.\\n\\nTL;DR:'
    """
    if info.get("post"):
        parts = [f"POST: {info['post']}"]
        if info.get("title"):
            parts = [f"TITLE: {info['title']}", *parts]
        if info.get("subreddit"):
            parts = [f"SUBREDDIT: r/{info['subreddit']}", *parts]
    elif info.get("article"):
        parts = [f"Article:\n\n{info['article']}"]
    else:
        raise ValueError("info: holds neither a post nor an article")
    return "\n\n".join([*parts, "TL;DR:"])


def voted_prompt(row: Row) -> object:
    """Return the prompt alone of a row of SHP, of Chatbot Arena, or of summaries."""
    if "history" in row:
        return row["history"]
    if "info" in row:
        return summary_prompt(row["info"])
    return row["conversation_a"][:1] if "conversation_a" in row else prompt_of(row)


def _two(first: object, second: object) -> list[object]:
    if first == second:
        raise Dropped(EQUAL)
    return [first, second]
