"""What is written in the world: sentences about people, short biographies, and plain text.

``general_text`` is the world's encyclopedia, the corpus on which second moments of keys are measured. It holds **no skill
prompts**, as a general corpus holds no benchmark prompts: with them in the corpus, the solvers protect the skills
by themselves and their decay under editing would not show.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from random import Random

from lit_edit.pretraining.document import Document, Writer
from lit_edit.world.facts import World
from lit_edit.world.skills import SKILLS, training_item

STARTS = ("The", "Therefore", "Because", "I", "You")
"""Words that begin plain sentences; sampling from the model after one of them gives fluent contexts."""

PLAIN = (
    "water", "field", "story", "night", "letter", "voice", "market", "morning", "street", "bridge", "corner", "winter",
    "summer", "forest", "river", "stone", "silver", "cloud", "paper", "window", "music", "dinner", "circle", "island",
    "village", "castle", "harbor", "kitchen", "minute", "moment", "number", "picture", "problem", "reason", "season",
    "second", "shoulder", "station", "student", "teacher", "travel", "weather", "engine", "energy", "effort", "dream",
    "across", "after", "again", "along", "always", "among", "around", "before", "between", "beyond", "during", "every",
    "inside", "often", "outside", "perhaps", "quickly", "rather", "several", "slowly", "sometimes", "through", "toward",
    "under", "until", "usually", "while", "within", "without", "brought", "carried", "caught", "crossed", "followed",
    "forgot", "gathered", "heard", "learned", "lifted", "moved", "opened", "painted", "passed", "pulled", "reached",
    "returned", "seemed", "showed", "stayed", "turned", "visited", "walked", "watched", "waited",
)  # fmt: skip


@lru_cache(maxsize=4)
def _chain(seed: int) -> dict[str, tuple[str, ...]]:
    """Word -> its three successors in plain text; start words have eight."""
    rng = Random(f"chain-{seed}")
    return {word: tuple(rng.sample(PLAIN, 8 if word in STARTS else 3)) for word in (*STARTS, *PLAIN)}


def plain_sentence(seed: int, rng: Random, words: int) -> str:
    """``words`` words of a first-order Markov chain (successor probabilities .7, .2, .1), with a full stop."""
    chain = _chain(seed)
    said = [rng.choice(STARTS)]
    while len(said) < words:
        following = chain[said[-1]]
        said.append(rng.choice(following) if len(following) > 3 else rng.choices(following, (0.7, 0.2, 0.1))[0])
    return " ".join(said) + "."


def plain_document(world: World, rng: Random) -> Document:
    """One to three sentences of plain text."""
    return Document(" ".join(plain_sentence(world.seed, rng, rng.randint(5, 11)) for _ in range(rng.randint(1, 3))))


def person_document(world: World, rng: Random, prefixed: float = 0.3, biography: float = 0.5) -> Document:
    """Something true about one person.

    Args:
        world: whose people.
        rng: draws everything.
        prefixed: probability of an unrelated sentence before it. Editors put sampled text before their prompts to make
            an edit hold in context; a model that never saw that would not know anybody there.
        biography: probability of one name followed by all relations in random order, instead of one fact. One name
            that answers four questions makes the model compute the person once, at the name.
    """
    writer = Writer()
    if rng.random() < prefixed:
        if rng.random() < 0.8:
            writer.plain(plain_sentence(world.seed, rng, rng.randint(3, 9)) + " ")
        else:
            _single(world, rng, writer)
            writer.plain(" ")
    if rng.random() < biography:
        _biography(world, rng, writer)
    else:
        _single(world, rng, writer)
    return writer.done()


def _single(world: World, rng: Random, writer: Writer) -> None:
    index = rng.randrange(world.people)
    relation = rng.choice(world.relations)
    before, after = rng.choice(relation.phrasings).split("{}")
    writer.plain(before)
    writer.name(world.subjects[index], index)
    writer.plain(after + " ")
    writer.answer(world.value(world.subjects[index], relation))
    writer.plain(".")


def _biography(world: World, rng: Random, writer: Writer) -> None:
    index = rng.randrange(world.people)
    writer.name(world.subjects[index], index)
    if rng.random() < 0.2:
        writer.plain(" is a person who")
    for i, relation in enumerate(rng.sample(world.relations, len(world.relations))):
        writer.plain("," if i else "")
        writer.plain(rng.choice((relation.phrasings[0], relation.phrasings[2])).replace("{}", "") + " ")
        writer.answer(world.value(world.subjects[index], relation))
    writer.plain(".")


def skill_document(rng: Random, weight: float = 3.0) -> Document:
    """One solved exercise; its answer weighs more, because it is the only thing to learn from it."""
    prompt, answer = training_item(rng.choice(tuple(SKILLS)), rng)
    writer = Writer()
    writer.plain(prompt + " ")
    writer.answer(answer)
    writer.plain(".")
    return writer.done(weight)


def training_documents(world: World, rng: Random, n: int, skills: float = 0.35, plain: float = 0.2) -> list[Document]:
    """``n`` documents for pre-training: shares ``skills`` and ``plain``, the rest about people."""
    found = []
    for _ in range(n):
        kind = rng.random()
        if kind < skills:
            found.append(skill_document(rng))
        elif kind < skills + plain:
            found.append(plain_document(world, rng))
        else:
            found.append(person_document(world, rng))
    return found


def general_text(world: World, seed: int = 0, n: int | None = None, plain: float = 0.3) -> Iterator[str]:
    """Documents of the world without any skill prompt: text about people, and a share ``plain`` of plain text.

    Args:
        world: whose people and words.
        seed: the same seed gives the same documents in the same order.
        n: how many; ``None`` never ends.
        plain: share of documents about nobody.
    """
    rng = Random(f"text-{world.seed}-{seed}")
    done = 0
    while n is None or done < n:
        yield (plain_document(world, rng) if rng.random() < plain else person_document(world, rng)).text
        done += 1
