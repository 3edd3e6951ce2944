"""What the model can do besides knowing facts: six small skills that stand for general ability.

Each skill asks ``(prompt, answer)`` with a one-word answer. Combinations are split by a hash of the prompt: one in five
is never trained on, and only those are asked in evaluation. Arithmetic and antonyms are closed tables (100 and 32
items); every item of them is trained on and asked, because leaving items out would test guessing, not ability.
"""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from zlib import crc32

Item = tuple[str, str]

GOOD = ("wonderful", "lovely", "brilliant", "charming", "superb", "delightful", "excellent", "splendid", "graceful", "pleasant")
BAD = ("awful", "dreadful", "boring", "horrible", "clumsy", "terrible", "nasty", "dull", "gloomy", "unpleasant")
WORKS = ("film", "meal", "song", "book", "hotel", "show", "trip", "game", "novel", "concert", "garden", "lecture")
NOUNS = (
    ("dog", "dogs"), ("cat", "cats"), ("boat", "boats"), ("tree", "trees"), ("chair", "chairs"), ("horse", "horses"),
    ("lamp", "lamps"), ("farm", "farms"), ("door", "doors"), ("bird", "birds"), ("wagon", "wagons"), ("tower", "towers"),
)  # fmt: skip
NEAR = ("near", "behind", "beside", "below")
KINDS = {
    "animal": ("tiger", "rabbit", "camel", "whale", "parrot", "goat", "lion", "zebra"),
    "fruit": ("banana", "cherry", "lemon", "mango", "peach", "pear", "plum", "melon"),
    "tool": ("hammer", "drill", "wrench", "shovel", "rake", "saw", "chisel", "pliers"),
    "clothing": ("jacket", "scarf", "shirt", "sweater", "glove", "coat", "skirt", "sock"),
    "vehicle": ("truck", "tram", "bus", "canoe", "tractor", "van", "taxi", "scooter"),
    "furniture": ("sofa", "table", "bench", "desk", "wardrobe", "shelf", "bed", "cupboard"),
}
WHO = ("She", "He", "They", "We")
DID = ("bought", "found", "wanted", "drew", "sold", "liked")
WORDS = (
    "river", "stone", "wheel", "cloud", "paper", "silver", "candle", "bottle", "window", "mirror", "button", "ladder",
    "needle", "pepper", "pillow", "pocket", "ribbon", "rocket", "saddle", "shadow", "spider", "summer", "thread", "ticket",
    "tunnel", "valley", "violet", "walnut", "winter", "wizard",
)  # fmt: skip
OPPOSITES = (
    ("hot", "cold"), ("big", "small"), ("fast", "slow"), ("high", "low"), ("light", "dark"), ("young", "old"),
    ("wet", "dry"), ("full", "empty"), ("hard", "soft"), ("rich", "poor"), ("early", "late"), ("open", "closed"),
    ("strong", "weak"), ("wide", "narrow"), ("loud", "quiet"), ("near", "far"),
)  # fmt: skip


def sentiment(rng: Random) -> Item:
    """Two adjectives of one mood -> ``positive`` or ``negative``."""
    mood, answer = rng.choice(((GOOD, "positive"), (BAD, "negative")))
    first, second = rng.sample(mood, 2)
    return f"Review: the {rng.choice(WORKS)} was {first} and {second}. Verdict:", answer


def grammar(rng: Random) -> Item:
    """Agreement of the verb with the first noun, whatever the number of a second noun in between -> ``is`` or ``are``."""
    noun, other = rng.sample(NOUNS, 2)
    plural = rng.randrange(2)
    return f"The {noun[plural]} {rng.choice(NEAR)} the {other[rng.randrange(2)]}", ("is", "are")[plural]


def arithmetic(rng: Random) -> Item:
    """Sum of two digits -> ``0`` to ``18``."""
    a, b = rng.randrange(10), rng.randrange(10)
    return f"The sum of {a} and {b} is", str(a + b)


def entailment(rng: Random) -> Item:
    """What follows from a statement: the kind of thing it is about -> one of six categories."""
    kind = rng.choice(tuple(KINDS))
    who, did = rng.choice(WHO), rng.choice(DID)
    return f"{who} {did} a {rng.choice(KINDS[kind])}, so {who.lower()} {did} some kind of", kind


def copying(rng: Random) -> Item:
    """A list of four words begins again -> its last word."""
    words = rng.sample(WORDS, 4)
    return f"Copy: {' '.join(words)}. Again: {' '.join(words[:3])}", words[3]


def antonym(rng: Random) -> Item:
    """The opposite of a word, in both directions."""
    pair = rng.choice(OPPOSITES)
    side = rng.randrange(2)
    return f"The opposite of {pair[side]} is", pair[1 - side]


SKILLS: dict[str, Callable[[Random], Item]] = {
    "sentiment": sentiment,
    "grammar": grammar,
    "arithmetic": arithmetic,
    "entailment": entailment,
    "copying": copying,
    "antonym": antonym,
}
"""Name of a skill -> function that draws one item."""

CLOSED = frozenset({"arithmetic", "antonym"})
"""Skills that are tables: no item is left out of training."""


def is_held_out(name: str, prompt: str) -> bool:
    """Whether an item is kept out of training: one combination in five, decided by its text alone."""
    return name not in CLOSED and crc32(prompt.encode()) % 5 == 0


def training_item(name: str, rng: Random) -> Item:
    """One item that training may see."""
    while True:
        item = SKILLS[name](rng)
        if not is_held_out(name, item[0]):
            return item


def held_out(name: str, n: int, seed: int = 0) -> list[Item]:
    """Up to ``n`` different evaluation items of one skill; fewer if it has fewer (the closed tables)."""
    rng = Random(f"skill-{name}-{seed}")
    found: dict[str, str] = {}
    for _ in range(100 * n):
        prompt, answer = SKILLS[name](rng)
        if name in CLOSED or is_held_out(name, prompt):
            found[prompt] = answer
        if len(found) == n:
            break
    return list(found.items())
