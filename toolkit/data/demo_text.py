"""A seeded generator of short English reviews: the text that the embedded demo model learns.

Each review opens with a neutral sentence (the demo's prompts), continues with pleasant, unpleasant
or plain sentences about one place, and often ends with a verdict. The opening does not reveal how
pleasant a review is, so a policy that learns to write pleasant endings has really changed what it
says.
"""

import random
from collections.abc import Iterator

PEOPLE = [
    "my sister", "my brother", "my mother", "my father", "my old friend", "my neighbour",
    "my two sons", "my daughter", "my aunt", "my cousin", "a friend from work", "our teacher",
]  # fmt: skip
TIMES = [
    "On Monday", "On Friday", "Last week", "Yesterday", "This morning", "Last Sunday",
    "In the spring", "After work", "On a rainy day", "Two days ago", "Last winter", "At noon",
    "One evening", "During the holidays", "On Saturday", "Before lunch",
]  # fmt: skip
WHERE = [
    "near the station", "on the main street", "by the river", "behind the church",
    "next to the school", "in the old town", "across from the park", "at the corner",
    "near the bridge", "on the second floor", "close to our home", "by the lake",
]  # fmt: skip
# place: (things in the singular, things in the plural, the staff)
PLACES: dict[str, tuple[list[str], list[str], list[str]]] = {
    "bakery": (["bread", "apple cake", "coffee"], ["rolls", "pies"], ["baker", "girl at the till"]),
    "cafe": (["coffee", "tea", "lemon cake"], ["sandwiches", "cups"], ["waiter", "owner"]),
    "restaurant": (["soup", "fish", "rice", "dessert"], ["noodles", "vegetables"],
                   ["waiter", "cook"]),
    "hotel": (["room", "bed", "breakfast"], ["towels", "stairs"], ["manager", "porter"]),
    "museum": (["tour", "great hall", "map"], ["paintings", "old ships"], ["guide", "guard"]),
    "bookshop": (["reading corner", "poetry shelf"], ["novels", "picture books"],
                 ["owner", "clerk"]),
    "cinema": (["film", "sound", "screen"], ["seats", "snacks"], ["usher", "clerk"]),
    "market": (["cheese stall", "honey", "music"], ["apples", "flowers"], ["farmer", "seller"]),
    "garden": (["path", "pond", "rose bed"], ["benches", "trees"], ["gardener", "guide"]),
    "barber shop": (["haircut", "chair", "mirror"], ["towels", "magazines"],
                    ["barber", "assistant"]),
    "library": (["reading room", "children's corner"], ["desks", "computers"],
                ["librarian", "clerk"]),
    "swimming pool": (["water", "changing room"], ["showers", "lockers"], ["trainer", "guard"]),
}  # fmt: skip
GOOD = ["wonderful", "lovely", "excellent", "great", "delightful", "perfect", "beautiful",
        "charming", "amazing", "nice", "good", "fine", "fantastic", "superb"]  # fmt: skip
BAD = ["terrible", "awful", "horrible", "bad", "poor", "disgusting", "dreadful", "ugly",
       "disappointing", "broken", "dirty", "nasty", "boring", "dull"]  # fmt: skip
PLAIN = ["small", "large", "old", "new", "plain", "wide", "blue", "simple", "grey", "round"]
GOOD_STAFF = ["friendly", "kind", "helpful", "polite", "cheerful", "patient", "generous", "warm"]
BAD_STAFF = ["rude", "unfriendly", "careless", "impatient", "grumpy", "lazy", "angry", "cruel"]
GOOD_DEED = [
    "smiled at us",
    "helped us at once",
    "thanked us kindly",
    "made us laugh",
    "gave us a free gift",
    "welcomed us happily",
]
BAD_DEED = [
    "shouted at us",
    "ignored us",
    "insulted my friend",
    "lied about the price",
    "lost our coats",
    "complained about us",
]
GOOD_FELT = ["loved", "enjoyed", "liked", "adored", "admired"]
BAD_FELT = ["hated", "disliked", "regretted", "could not stand", "despised"]
GOOD_MOOD = ["happy", "pleased", "delighted", "glad", "grateful", "relaxed"]
BAD_MOOD = ["sad", "upset", "annoyed", "furious", "disappointed", "miserable"]
# Words that take no "very" ("very perfect" is not English).
ABSOLUTE = {
    "wonderful", "excellent", "delightful", "perfect", "amazing", "fantastic", "superb", "terrible",
    "awful", "horrible", "dreadful", "disgusting", "broken", "delighted", "furious", "miserable",
}  # fmt: skip
VERY = ["", "", "", "very", "really", "so", "quite"]

GOOD_VERDICT = [
    "We will surely come back.", "It was a joy from start to finish.", "I recommend it warmly.",
    "It is the best {place} in town.", "We left with a smile.", "What a pleasant day it was.",
    "I cannot praise it enough.", "It was a great success.",
]  # fmt: skip
BAD_VERDICT = [
    "We will never come back.", "It was a waste of money.", "I warn everyone about it.",
    "It is the worst {place} in town.", "We left in tears.", "What a miserable day it was.",
    "I want my money back after this failure.", "It was a complete disaster.",
]  # fmt: skip
PLAIN_SENTENCES = [
    "We stayed for about an hour.", "It was raining outside.", "There were ten people inside.",
    "We paid at the door.", "The {place} opens at nine.", "We sat near the window.",
    "A clock hung on the wall.", "I wore my blue coat.", "We came by bus.",
    "The walk there took ten minutes.", "They close at six.", "We stood in the middle of the room.",
]  # fmt: skip


def _opening(rng: random.Random, place: str) -> str:
    who, when, where = rng.choice(PEOPLE), rng.choice(TIMES), rng.choice(WHERE)
    return rng.choice(
        [
            f"{when} I went to the {place} {where} with {who}.",
            f"{when} {who} took me to the {place} {where}.",
            f"{when} we visited the {place} {where}.",
            f"{when} I met {who} at the {place} {where}.",
            f"{when} I tried the {rng.choice(PLAIN)} {place} {where}.",
            f"I went to the {place} {where} because {who} had told me about it.",
            f"We found the {rng.choice(PLAIN)} {place} {where} by chance.",
            f"{when} we looked into {_a(rng.choice(PLAIN))} {place} {where}.",
        ]
    )


def _very(rng: random.Random, word: str) -> str:
    manner = rng.choice(VERY)
    return word if word in ABSOLUTE or not manner else f"{manner} {word}"


def _a(words: str) -> str:
    return f"an {words}" if words[0] in "aeiou" else f"a {words}"


def _feeling(rng: random.Random, place: str, pleasant: bool) -> str:
    """One sentence that praises or blames, about one of the place's things or people."""
    things, plurals, staff = PLACES[place]
    thing, many, person = rng.choice(things), rng.choice(plurals), rng.choice(staff)
    adjective, other = rng.sample(GOOD if pleasant else BAD, 2)
    manner = rng.choice(GOOD_STAFF if pleasant else BAD_STAFF)
    deed = rng.choice(GOOD_DEED if pleasant else BAD_DEED)
    felt = rng.choice(GOOD_FELT if pleasant else BAD_FELT)
    mood = rng.choice(GOOD_MOOD if pleasant else BAD_MOOD)
    strongly, somehow = _very(rng, adjective), _very(rng, manner)
    return rng.choice(
        [
            f"The {thing} was {strongly}.",
            f"The {many} were {strongly}.",
            f"The {person} was {somehow} and {deed}.",
            f"The {thing} was {adjective} and the {many} were {other}.",
            f"I {felt} the {thing}.",
            f"We all {felt} the {many}.",
            f"The {person} {deed}.",
            f"We were {_very(rng, mood)} with the {thing}.",
            f"I was {mood} because the {person} was {somehow}.",
            f"It was {_a(adjective)} {place} with {other} {many}.",
            f"The {person} who showed us the {thing} was {manner}.",
        ]
    )


def _plain(rng: random.Random, place: str) -> str:
    things, plurals, staff = PLACES[place]
    return rng.choice(
        [
            rng.choice(PLAIN_SENTENCES).format(place=place),
            rng.choice(PLAIN_SENTENCES).format(place=place),
            f"The {rng.choice(things)} was {rng.choice(PLAIN)}.",
            f"The {rng.choice(plurals)} were {rng.choice(PLAIN)} and {rng.choice(PLAIN)}.",
            f"The {rng.choice(staff)} spoke to us for a while.",
        ]
    )


def review(rng: random.Random) -> tuple[str, str]:
    """Make one review as ``(opening, rest)``; joined by a space they are the text.

    A review's pleasantness p is drawn once; each of its sentences is then plain with probability
    0.25, else pleasant with probability p.
    """
    place = rng.choice(list(PLACES))
    pleasantness = rng.choice([0.1, 0.3, 0.5, 0.7, 0.9])
    sentences = [
        _plain(rng, place)
        if rng.random() < 0.25
        else _feeling(rng, place, rng.random() < pleasantness)
        for _ in range(rng.randint(3, 5))
    ]
    if rng.random() < 0.7:
        verdicts = GOOD_VERDICT if rng.random() < pleasantness else BAD_VERDICT
        sentences.append(rng.choice(verdicts).format(place=place))
    return _opening(rng, place), " ".join(sentences)


def reviews(count: int, seed: int) -> Iterator[tuple[str, str]]:
    """Yield ``count`` reviews; equal seeds give equal text on every machine."""
    rng = random.Random(seed)
    for _ in range(count):
        yield review(rng)
