"""Ratings of a loop's policies by the picks between their texts."""

from collections.abc import Iterable

from toolkit.data.records import Row


def elo_above(picks: Iterable[Row], start: str) -> Row | None:
    """Rate policies by picks whose ``models`` name each completion's writer.

    A pick is one of all texts that were shown (``maths.choices.fit_choices``). Picks of the same
    prompt count as independent.

    Args:
        picks: comparisons, of which those with ``models`` count.
        start: the policy that has 0 points.

    Returns:
        for each policy ``points`` on Elo's scale above ``start``, and its standard ``error``; None
        if no picks tell (there are none, or one policy never lost or never won).
    """
    import torch

    from toolkit.maths.choices import fit_choices

    rows = [(row["models"], row["best"]) for row in picks if row.get("models")]
    names = sorted({start, *(name for models, _ in rows for name in models)})
    names.sort(key=lambda name: name != start)
    if not rows or len(names) < 2:
        return None
    place = {name: i for i, name in enumerate(names)}
    shown = torch.zeros(len(rows), len(names))
    for i, (models, _) in enumerate(rows):
        for name in models:
            shown[i, place[name]] += 1
    chosen = torch.tensor([place[models[best]] for models, best in rows])
    try:
        points, errors = fit_choices(shown, chosen).above(place[start])
    except ValueError:
        return None
    return {
        name: {"points": points[i], "error": errors[i]}
        for name, i in place.items()
        if name != start
    }


def elo_sentence(elo: Row) -> str:
    """Return the ratings in a line."""
    each = [f"{name} {r['points']:+.0f} ± {r['error']:.0f}" for name, r in elo.items()]
    return f"Elo above the start: {', '.join(each)}"
