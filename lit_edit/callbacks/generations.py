"""What the edited model says in its own words."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities.rank_zero import rank_zero_info

from lit_edit.batch.records import RecordScores
from lit_edit.board import place, write_text
from lit_edit.callbacks.watcher import StreamWatcher
from lit_edit.errors import EditError
from lit_edit.metrics import EditScores
from lit_edit.metrics.answers import containment, exact_match, negation_prompt
from lit_edit.metrics.fluency import whole_text
from lit_edit.metrics.references import References
from lit_edit.metrics.text import text_entropy
from lit_edit.passes.generation import generate
from lit_edit.request import EditRequest
from lit_edit.store import append_durably, write_atomically
from lit_edit.strategies import ranks_of


def rotate(written: Sequence[int], asked: Mapping[int, int], items: int, seed: str) -> list[int]:
    """At most ``items`` of the positions written: one of every equal part of them, of those asked least often a random one.

    Args:
        written: positions to choose from, in stream order.
        asked: how often a position was chosen before.
        items: how many to choose.
        seed: of the choice.

    Example:
        >>> first = rotate(range(8), {}, 2, "0")
        >>> again = rotate(range(8), dict.fromkeys(first, 1), 2, "0")
        >>> [at // 4 for at in first], [at // 4 for at in again], set(first) & set(again)
        ([0, 1], [0, 1], set())
    """
    source = random.Random(seed)
    count = min(items, len(written))
    chosen = []
    for part in range(count):
        candidates = written[part * len(written) // count : (part + 1) * len(written) // count]
        least = min(asked.get(at, 0) for at in candidates)
        chosen.append(source.choice([at for at in candidates if asked.get(at, 0) == least]))
    return chosen


class Generations(StreamWatcher):
    """Greedy answers of the edited model to a rotating sample of the edits made so far, and optionally free texts.

    Teacher forcing tells the model all of an answer but its last token; here it speaks for itself. Every
    ``every_n_batches`` batches and at the end of the stream it answers the edit prompts and paraphrases of ``items`` edits,
    evenly spread over the stream and different ones each time. Logged, in full ``edit/so_far/.../generated``:

    - ``efficacy/exact`` and ``efficacy/contains``, ``paraphrase/exact`` and ``paraphrase/contains``: the share of answers that
      equal or hold the new answer as whole words, mean over edits (:mod:`lit_edit.metrics.answers`),
    - ``negation/contains``: how often the new answer comes out after the negated prompt ("It is not true that ..."), where it
      is wrong; low is good,
    - with ``text_tokens``: ``fluency/entropy``, the weighted bi- and tri-gram entropy in bits of texts continued from the
      record's generation prompts (the edit prompt if there are none), sampled among the 5 likeliest tokens, prompt included,
      as in the released ROME code; see :func:`lit_edit.metrics.text.text_entropy`,
    - with ``references`` and ``vocabulary`` besides: ``consistency/tfidf_cosine_<vocabulary>``, the cosine of all texts of an
      edit with the reference texts of its new answer, under a TF-IDF vocabulary fitted on that file, which the name tells;
      see :class:`lit_edit.metrics.Consistency`.

    Everything that was said goes to TensorBoard's Text tab and to ``generations.jsonl`` in the run folder, one line per prompt.

    Args:
        every_n_batches: batches between two looks; 0 turns it off.
        items: edits to a look.
        tokens: most tokens of an answer.
        until: strings that end an answer.
        text_tokens: tokens of a free text, prompt included; 0 writes none. Published numbers use 100.
        references: JSON lines with ``target``, ``text`` and optionally ``relation``; ``None`` scores no consistency.
        vocabulary: text file (documents between blank lines) that the TF-IDF vocabulary is fitted on, or a ``.json`` of it.
        seed: of the choice of edits and of the sampled texts.

    Raises:
        EditError: for a number out of range, ``references`` without ``vocabulary`` or ``text_tokens``, or a file that cannot
            be read.
    """

    def __init__(
        self,
        every_n_batches: int = 10,
        items: int = 8,
        tokens: int = 20,
        until: Sequence[str] = ("\n",),
        text_tokens: int = 0,
        references: str | None = None,
        vocabulary: str | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__(every_n_batches)
        for name, value, least in (("items", items, 1), ("tokens", tokens, 1), ("text_tokens", text_tokens, 0)):
            if value < least:
                raise EditError(f"Generations's {name} is {value}; it must be at least {least}")
        if "" in until:
            raise EditError(f"Generations's until is {list(until)}; an empty string ends every answer before it begins")
        self.references: References | None = None
        if references is not None:
            if vocabulary is None or not text_tokens:
                raise EditError("Generations has references; consistency needs a vocabulary and text_tokens as well")
            self.references = References.load(references, vocabulary)
        self.items, self.tokens, self.until, self.text_tokens, self.seed = items, tokens, tuple(until), text_tokens, seed
        self.forget()

    # ------------------------------------------------------------------------------------------------ memory

    def forget(self) -> None:
        """Nothing was written and nothing asked."""
        self._ranges: list[list[int]] = []  # [first, behind the last] of runs of positions that were written
        self._asked: dict[int, int] = {}
        self._lines = 0

    def record(self, batch: int, positions: Sequence[int]) -> None:
        """Add the positions to what can be asked for."""
        for at in positions:
            if self._ranges and self._ranges[-1][1] == at:
                self._ranges[-1][1] = at + 1
            else:
                self._ranges.append([at, at + 1])

    def memory(self) -> dict[str, Any]:
        """What was written, what was asked how often, and the lines of the file."""
        asked = [list(self._asked), list(self._asked.values())]
        return {"ranges": [list(part) for part in self._ranges], "asked": asked, "lines": self._lines}

    def remember(self, memory: dict[str, Any]) -> None:
        """Take it up."""
        self._ranges = [list(part) for part in memory["ranges"]]
        self._asked = dict(zip(*memory["asked"], strict=True))
        self._lines = int(memory["lines"])

    def begin(self, trainer: L.Trainer) -> None:
        """Cut the file back to what the checkpoint knows, as the journal is; a run of its own begins an empty one."""
        ranks = ranks_of(trainer)
        ranks.first_does(lambda: self._cut(trainer))
        self._lines = ranks.of_first(self._lines)

    def _cut(self, trainer: L.Trainer) -> None:
        path = _path(trainer)
        lines = path.read_bytes().split(b"\n")[:-1] if path.exists() else []  # without an unfinished last line
        if len(lines) < self._lines:
            rank_zero_info(f"{path} holds {len(lines)} of the {self._lines} lines written so far; the run goes on behind them")
            self._lines = len(lines)
        if path.exists():
            write_atomically(path, b"".join(line + b"\n" for line in lines[: self._lines]))

    # ------------------------------------------------------------------------------------------------ the look

    def look(self, trainer: L.Trainer, pl_module: Any, requests: Sequence[EditRequest]) -> dict[str, float]:
        """Ask, judge, write down."""
        written = [at for first, behind in self._ranges for at in range(first, behind)]
        chosen = rotate(written, self._asked, self.items, f"{self.seed}/{pl_module.batches}")
        prompts = [(at, *what) for at in chosen for what in _prompts(requests[at]) if _fits(pl_module, what[1])]
        answers = pl_module.generate([prompt for *_, prompt in prompts], self.tokens, self.until) if prompts else []
        said = [(at, kind, prompt, answer) for (at, kind, prompt), answer in zip(prompts, answers, strict=True)]
        if self.text_tokens:
            said += self._texts(pl_module, [(at, requests[at]) for at in chosen])
        values: dict[int, dict[str, list[float]]] = {at: {} for at in chosen}
        for at, kind, prompt, answer in said:
            for name, value in self._judge(kind, prompt, answer, requests[at].target_new).items():
                values[at].setdefault(f"{name}/generated", []).append(value)
        if self.references is not None:
            for at in chosen:
                theirs = self.references.of(requests[at])
                ours = [whole_text(prompt, text) for where, kind, prompt, text in said if where == at and kind == "fluency"]
                if ours and theirs:
                    cosine = self.references.tfidf.cosine(" ".join(ours), " ".join(theirs))
                    name = f"consistency/tfidf_cosine_{self.references.fitted_on}/generated"
                    values[at].setdefault(name, []).append(cosine)
        self._keep(trainer, pl_module, [(requests[at], *rest) for at, *rest in said])
        for at in chosen:
            self._asked[at] = self._asked.get(at, 0) + 1
        scores = EditScores("so_far")
        scores.update([RecordScores(one) for one in values.values()])
        return {name: float(value) for name, value in scores.compute().items()}

    def _texts(self, pl_module: Any, chosen: Sequence[tuple[int, EditRequest]]) -> list[tuple[int, str, str, str]]:
        starts = [(at, prompt) for at, request in chosen for prompt in request.generation_prompts or (request.text,)]
        starts = [(at, prompt) for at, prompt in starts if _fits(pl_module, prompt)]
        if not starts:
            return []
        texts = generate(
            pl_module.anatomy, pl_module.encoder, [p for _, p in starts], self.text_tokens, top_k=5, seed=self.seed, total=True
        )
        return [(at, "fluency", prompt, text) for (at, prompt), text in zip(starts, texts, strict=True)]

    @staticmethod
    def _judge(kind: str, prompt: str, said: str, wanted: str) -> dict[str, float]:
        if kind == "fluency":
            return {"fluency/entropy": text_entropy(whole_text(prompt, said))}
        found = {f"{kind}/contains": float(containment(said, [wanted]))}
        if kind != "negation":
            found[f"{kind}/exact"] = float(exact_match(said, [wanted]))
        return found

    def _keep(self, trainer: L.Trainer, pl_module: Any, said: Sequence[tuple[EditRequest, str, str, str]]) -> None:
        lines, rows = [], ["| prompt | said | new answer: said? |", "|---|---|---|"]
        for request, kind, prompt, answer in said:
            wanted = None if kind == "fluency" else request.target_new
            line = {"edits": pl_module.edits, "case_id": request.case_id, "kind": kind, "prompt": prompt, "said": answer}
            lines.append(json.dumps({**line, "wanted": wanted}, ensure_ascii=False) + "\n")
            found = "" if wanted is None else f"{wanted}: {'yes' if containment(answer, [wanted]) else 'no'}"
            # Not a column of its own: TensorBoard would break the word, to give the longer texts more room.
            rows.append(f"| **{_cell(kind)}** {_cell(prompt)} | {_cell(answer)} | {_cell(found)} |")
        if not lines:
            return
        content = "".join(lines).encode(errors="backslashreplace")
        pl_module.ranks.first_does(lambda: append_durably(_path(trainer), content))
        self._lines += len(lines)
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger):
                tag, step = place(logger, "generations", trainer.global_step - 1)
                write_text(logger, tag, "\n".join(rows), step)


def _path(trainer: L.Trainer) -> Path:
    return Path(trainer.default_root_dir, "generations.jsonl")


def _prompts(request: EditRequest) -> list[tuple[str, str]]:
    """What an edit is asked: kind and prompt."""
    asked = [("efficacy", request.text), *(("paraphrase", text) for text in request.paraphrases)]
    return [*asked, ("negation", negation_prompt(request))]


def _fits(pl_module: Any, prompt: str) -> bool:
    """Whether the model can read a prompt and has room to answer."""
    fits: bool = 0 < len(pl_module.encoder.encode(prompt)[0]) < pl_module.anatomy.positions
    return fits


def _cell(text: str) -> str:
    """A text in one cell of a Markdown table, as it is: what would be mark-up is escaped."""
    return re.sub(r"([\\`*_{}\[\]<>()#+!|~-])", r"\\\1", " ".join(text.split()))
