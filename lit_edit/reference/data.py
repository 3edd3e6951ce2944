"""The data module of the reference model: facts, templates and general text from a folder of the user's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from fnmatch import fnmatch
from pathlib import Path
from random import Random
from typing import Any

from torch import Tensor
from torch.utils.data import DataLoader

from lit_edit.errors import EditError
from lit_edit.pretraining.measures import Item
from lit_edit.pretraining.module import PretrainingData
from lit_edit.pretraining.rows import pack
from lit_edit.reference.documents import Library, Shares
from lit_edit.reference.facts import Fact, Knowledge, Template
from lit_edit.reference.passages import Passages
from lit_edit.reference.tokenizer import build_tokenizer
from lit_edit.world.skills import SKILLS, held_out


class FactsData(PretrainingData):
    """True facts in CounterFact's words, general text and a few exercises, put together while training.

    Args:
        folder: where the files are.
        facts: the file of facts, below ``folder`` (:mod:`lit_edit.reference.facts` has the schema).
        templates: the file of templates.
        text: patterns of the files of general text.
        never: patterns of files that are not trained on, whatever ``text`` says.
        relations: relations to learn, by their identifiers; ``null`` takes all that CounterFact has templates of.
        held_out_text: a file of general text on which perplexity is measured; ``null`` leaves that out.
        questions: facts of each relation that the report asks for; ``null`` asks for all.
        edited: learn only facts that CounterFact has an edit of.
        held_out: of this share of the pairs of a fact and a template training sees nothing.
        vocabulary: tokens of the tokenizer, at most.
        tokenizer_characters: of the general text, this many characters are read to find them.
        seed: seed of the order and the wording of the text.
        batches: length of the only epoch, in optimiser steps.
        documents: documents per batch.
        row_length: tokens per row; several documents share a row and do not see each other.
        shares: what the documents are made of.
        text_weight: weight of a token of general text in the loss, where the object of a fact weighs 1.
        hidden: share of the documents with restricted attention to names.

    Raises:
        EditError: if an argument is out of range.
    """

    def __init__(
        self,
        folder: str,
        facts: str = "facts/true_facts.jsonl",
        templates: str = "facts/relation_templates.json",
        text: Sequence[str] = ("corpus/*.txt",),
        never: Sequence[str] = ("corpus/wikitext2_*",),
        relations: Sequence[str] | None = None,
        held_out_text: str | None = "corpus/wikitext2_valid.txt",
        questions: int | None = 100,
        edited: bool = True,
        held_out: float = 0.1,
        vocabulary: int = 8192,
        tokenizer_characters: int = 6_000_000,
        seed: int = 0,
        batches: int = 5000,
        documents: int = 320,
        row_length: int = 96,
        shares: Shares = Shares(),  # noqa: B008 (frozen)
        text_weight: float = 0.05,
        hidden: float = 0.85,
    ) -> None:
        super().__init__(seed, batches, row_length)
        for name, share in (("held_out", held_out), ("hidden", hidden)):
            if not 0 <= share < 1:
                raise EditError(f"--data.{name} is {share:g}; it is a share, from 0 to below 1")
        least = {"vocabulary": (vocabulary, 300), "documents": (documents, 1), "row_length": (row_length, 32)}
        for name, (value, smallest) in least.items():
            if value < smallest:
                raise EditError(f"--data.{name} is {value}; it must be at least {smallest}")
        self.folder, self.facts, self.templates = Path(folder), facts, templates
        self.text, self.never = tuple(text), tuple(never)
        self.relations = None if relations is None else tuple(relations)
        self.edited, self.held_out, self.vocabulary, self.characters = edited, held_out, vocabulary, tokenizer_characters
        self.documents, self.shares, self.text_weight, self.hidden = documents, shares, text_weight, hidden
        self.held_out_text, self.questions = held_out_text, questions
        self.library: Library | None = None

    @property
    def knowledge(self) -> Knowledge:
        """The facts, once the data are set up."""
        assert self.library is not None
        return self.library.knowledge

    def files(self) -> list[Path]:
        """The files of general text, sorted by name."""
        found = sorted({path for pattern in self.text for path in self.folder.glob(pattern)})
        return [p for p in found if not any(fnmatch(p.relative_to(self.folder).as_posix(), no) for no in self.never)]

    def held_out_path(self) -> Path | None:
        """The text on which perplexity is measured."""
        return None if self.held_out_text is None else self.folder / self.held_out_text

    def settings(self) -> dict[str, Any]:
        """The options, but for the folder, as plain data."""
        names = (
            "facts", "templates", "text", "never", "held_out_text", "relations", "edited", "held_out", "vocabulary",
            "characters", "seed", "batches", "documents", "row_length", "text_weight", "hidden",
        )  # fmt: skip
        return {name: getattr(self, name) for name in names} | {"shares": asdict(self.shares)}

    def read(self) -> Knowledge:
        """The facts alone.

        Raises:
            EditError: if they cannot be read.
        """
        facts, templates = self.folder / self.facts, self.folder / self.templates
        return Knowledge.read(facts, templates, self.relations, self.edited, self.held_out)

    def read_library(self) -> Library:
        """Facts and text, without the tokenizer.

        Raises:
            EditError: if a file cannot be read or used.
        """
        if not self.folder.is_dir():
            raise EditError(f"there is no folder {self.folder} with facts and text; name one with --data.folder")
        files = self.files()
        if not files:
            raise EditError(f"no file in {self.folder} is among --data.text {', '.join(self.text)}; general text is needed")
        held_out = self.held_out_path()
        if held_out is not None and (not held_out.is_file() or held_out in files):
            wrong = "is trained on; name it in --data.never" if held_out in files else "is no file; null leaves perplexity out"
            raise EditError(f"--data.held_out_text {held_out} {wrong}")
        # Three characters to a token at the least, and what is too long is cut to the row.
        return Library(self.read(), Passages(files), self.shares, 4 * self.row_length, self.text_weight, self.seed)

    def setup(self, stage: str | None = None) -> None:
        """Read everything and train the tokenizer, once.

        Raises:
            EditError: if a file cannot be read or used.
        """
        if self.library is not None:
            return
        self.library = self.read_library()
        size = self.vocabulary
        self.tokenizer = build_tokenizer(self.knowledge, self.library.passages, size, self.characters, self.seed)

    def make(self, i: int) -> dict[str, Tensor]:
        """See :meth:`lit_edit.pretraining.module.PretrainingData.make`."""
        assert self.library is not None
        rng = Random(f"pack-{self.seed}-{i}")
        documents = self.library.documents(i, self.documents, i / self.batches)
        return pack(documents, self.tokenizer, self.row_length, self.hidden, rng)

    def val_dataloader(self) -> DataLoader[list[Item]]:
        """Three sets of ``(prompt, answer)`` items: facts in words that training has, in words held out, exercises."""
        rng = Random("validation")
        seen: list[Item] = []
        unseen: list[Item] = []
        asked: list[tuple[Fact, Template]] = [
            (f, t) for f in self.knowledge.facts for t in self.knowledge.templates[f.relation]
        ]
        for fact, template in rng.sample(asked, min(8000, len(asked))):
            side = unseen if self.knowledge.is_held_out(fact, template) else seen
            side.append((template.asked(fact.subject)[0], fact.object))
        exercises = [item for name in SKILLS for item in held_out(name, 50)]
        sets: Any = [seen[:400], unseen[:400] or seen[:1], exercises]
        return DataLoader(sets, batch_size=None)
