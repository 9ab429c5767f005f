"""Our own layout: prompt, completions and best, or scores in place of best."""

from toolkit.data.dialogues import Dropped
from toolkit.data.layouts.fields import Reading, aligned, best_by_score, score_of, texts_of
from toolkit.data.numbering import is_missing, pick_of
from toolkit.data.records import Row

LABELS = (
    *("best", "ranking", "worst", "scores", "margin", "labeler"),
    *("tools", "chat_template_kwargs"),
)


def from_native(row: Row, reading: Reading) -> Row:
    """Keep a native comparison; without ``best``, the highest of ``scores`` decides."""
    made = {
        name: value
        for name, value in row.items()
        if value is not None and not (name in LABELS and is_missing(value))
    }
    if not isinstance(row.get("completions"), list):
        return made  # the check reports what is wrong
    prompt, completions = texts_of(row.get("prompt"), row["completions"], "completions", reading)
    made |= {"prompt": prompt, "completions": completions}

    known = list(range(len(completions)))
    for name in ("best", "worst"):
        if name in made:
            read = reading.labels if name == "best" else None
            made[name] = pick_of(row[name], name, known, [], completions, reading.first, "", read)
    if isinstance(row.get("ranking"), list):
        made["ranking"] = [
            pick_of(value, "ranking", known, [], completions, reading.first)
            for value in row["ranking"]
        ]
    if not isinstance(row.get("scores"), list):
        return made

    # Answers without a score are left out, unless somebody picked one of them.
    scores = [score_of(value, f"scores[{k}]") for k, value in enumerate(row["scores"])]
    if len(scores) != len(completions):
        return made
    scored = [k for k in known if scores[k] is not None]
    if made.get("best") is not None and made["best"] not in scored:
        raise ValueError(f"scores: completion {made['best']} is the best, but has no score")
    if len(scored) < len(known):
        reading.noted["answers without a score left out"] += len(known) - len(scored)
        if len(scored) < 2:
            raise Dropped("fewer than two scored answers")
        made |= _only(made, scored, len(known))
    made["scores"] = [scores[k] for k in scored]
    return made if "best" in made else made | best_by_score(made["scores"])


def _only(made: Row, kept: list[int], count: int) -> Row:
    """The fields of a native row, for the completions in ``kept`` alone."""
    only: Row = {"completions": [made["completions"][k] for k in kept]} | aligned(made, kept, count)
    if "best" in made:
        only["best"] = kept.index(made["best"])
    if "worst" in made:  # of those that are kept, another may be the worst now
        only["worst"] = kept.index(made["worst"]) if made["worst"] in kept else None
    if "ranking" in made:
        only["ranking"] = [kept.index(k) for k in made["ranking"] if k in kept]
    return only
