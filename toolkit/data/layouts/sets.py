"""Sets of answers with a rank or a score for each: OASST's, UltraFeedback's, Nectar's."""

from toolkit.data.dialogues import HH_TURN, Dropped, hh_messages, prompt_of
from toolkit.data.layouts.fields import (
    Reading,
    aligned,
    best_by_score,
    by_rank,
    score_of,
    texts_of,
)
from toolkit.data.numbering import pick_of
from toolkit.data.records import Row

SCORES = ("overall_score", "fine-grained_score", "score")


def from_ranked(row: Row, reading: Reading) -> Row:
    """Convert ranked replies; a reply without a rank is left out, since nobody compared it."""
    replies = row.get("responses") or row.get("replies") or row["completions"]
    if len(row["rank"]) != len(replies):
        raise ValueError(f"rank: {len(row['rank'])} given for {len(replies)} replies")
    ranks = [score_of(rank, f"rank[{k}]") for k, rank in enumerate(row["rank"])]
    named = [k for k, rank in enumerate(ranks) if rank is not None]
    if len(named) < 2:
        raise Dropped("fewer than two ranked replies")
    if len(named) < len(ranks):
        reading.noted["replies without a rank left out"] += len(ranks) - len(named)
    prompt, texts = texts_of(prompt_of(row), [replies[k] for k in named], "responses", reading)
    made = {"prompt": prompt, "completions": texts} | aligned(row, named, len(replies))
    return made | by_rank([rank for rank in ranks if rank is not None])


def check_rank(row: Row, first: int | None) -> None:
    """Raise ValueError if a row's ``rank`` and its ``best`` name two completions as the best.

    Args:
        row: any row; one whose rank or best cannot be read is passed, as other checks name it.
        first: number of the first completion in ``best``; None for 0.
    """
    ranks, texts = row.get("rank"), row.get("completions")
    of_others = row.get("responses") or row.get("replies")
    if of_others or not isinstance(ranks, list) or not isinstance(texts, list):
        return
    try:
        best = pick_of(row.get("best"), "best", list(range(len(texts))), [], texts, first)
        places = [score_of(rank, "rank") for rank in ranks]
    except ValueError:
        return

    named = [place for place in places if place is not None]
    if named and len(places) == len(texts) and places[best] != min(named):
        raise ValueError(
            f"best: {row['best']!r:.40}, but by rank the best is completion "
            f"{places.index(min(named)) + (first or 0)} (delete the one that is wrong)"
        )


def from_scored(row: Row, reading: Reading) -> Row:
    """Convert scored completions: the highest score is the best; a tie at the top is dropped.

    An answer without a score is left out. So is an answer to which UltraFeedback gives 10 overall
    but a mean of 2 or less in its finer ratings: by a mistake, its ratings of 1 became 10
    (github.com/OpenBMB/UltraFeedback, issue 8).
    """
    answers = row["completions"]
    name = next((n for n in SCORES if any(n in answer for answer in answers)), None)
    if name is None:
        raise ValueError(f"completions[0]: must have {' or '.join(SCORES)}")

    scores, kept = [], []
    for k, answer in enumerate(answers):
        score = score_of(answer.get(name), f"completions[{k}].{name}")
        finer = None
        if name == "overall_score" and score == 10:
            finer = score_of(
                answer.get("fine-grained_score"), f"completions[{k}].fine-grained_score"
            )
        if score is None:
            reading.noted["answers without a score left out"] += 1
        elif finer is not None and finer <= 2:
            reading.noted["answers of overall_score 10, fine-grained_score 2 or less left out"] += 1
        else:
            scores.append(score)
            kept.append(k)
    if len(kept) < 2:
        raise Dropped("fewer than two scored answers")

    texts = [_answer_text(answers[k]) for k in kept]
    prompt, texts = texts_of(prompt_of(row), texts, "completions", reading)
    made = {"prompt": prompt, "completions": texts} | best_by_score(scores)
    made |= aligned(row, kept, len(answers))
    if all("model" in answers[k] for k in kept):
        made["models"] = [answers[k]["model"] for k in kept]
    return made


def _answer_text(answer: Row) -> object:
    return next((answer[n] for n in ("response", "text", "content") if answer.get(n)), None)


def from_nectar(row: Row, reading: Reading) -> Row:
    """Convert Nectar's answers, each with a rank of which 1 is the best.

    The prompt's turns ("Human: ..., Assistant: ...") become messages. A tie for the first rank is
    dropped; a tie below it leaves the best, and no ranking.

    Source: the card of berkeley-nest/Nectar.
    """
    answers = row["answers"]
    ranks = [score_of(answer.get("rank"), f"answers[{k}].rank") for k, answer in enumerate(answers)]
    kept = [k for k, rank in enumerate(ranks) if rank is not None]
    if len(kept) < 2:
        raise Dropped("fewer than two ranked answers")
    if len(kept) < len(answers):
        reading.noted["answers without a rank left out"] += len(answers) - len(kept)

    made: Row = {
        "prompt": asked(row.get("prompt")),
        "completions": [answers[k]["answer"] for k in kept],
    }
    order = best_by_score([-rank for rank in ranks if rank is not None])
    made |= {name: order[name] for name in ("best", "ranking") if name in order}
    if all("model" in answers[k] for k in kept):
        made["models"] = [answers[k]["model"] for k in kept]
    if isinstance(row.get("source"), list):  # the data sets that the prompt comes from
        made["source"] = ", ".join(map(str, row["source"]))
    return made


def asked(prompt: object) -> object:
    """Return the messages in HH's dialogue text that ends where the assistant is to answer."""
    if not isinstance(prompt, str) or not HH_TURN.match(prompt):
        return prompt
    messages = hh_messages(prompt)
    return messages[:-1] if messages[-1] == {"role": "assistant", "content": ""} else messages
