"""How much a stream asks for, counted on its own text: rows, tokens and answers of every batch.

Legend: R = rows, S = positions from the subject's last token on, P = positions before it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from lit_edit.anatomy import PACK
from lit_edit.data.loader import spread
from lit_edit.errors import EditError, MalformedRecord
from lit_edit.passes.packing import plant
from lit_edit.passes.target_rows import _begins
from lit_edit.plan.network import Network
from lit_edit.plan.rehearsal import TargetShape
from lit_edit.prompts import EditRows, Encoder, Row
from lit_edit.request import EditRequest
from lit_edit.targets import TargetOptions, together

READ = 4096
"""Requests that are tokenised; of a longer stream whole batches, evenly spread."""


@dataclass(frozen=True)
class Grid:
    """Lines and columns of one forward pass."""

    lines: int
    columns: int
    packed: bool = False
    spots: int = 0
    """Positions whose logits are wanted."""

    @property
    def tokens(self) -> int:
        """Positions, padding included."""
        return self.lines * self.columns


@dataclass(frozen=True)
class BatchWork:
    """What one batch has to run."""

    requests: int
    """Those that can be edited; the others are set aside."""
    parts: tuple[TargetShape, ...]
    """Parts of the target optimisation."""
    posed: tuple[Grid, ...]
    """The pass that every part starts with, whole rows up to the target layer."""
    heads: tuple[Grid, ...]
    """What stands before the subject's last token, each beginning once, through the blocks above the target layer."""
    bare: tuple[Grid, ...]
    """Bare prompts up to their subjects, by key pass."""
    contexts: tuple[Grid, ...]
    """The same behind contexts."""
    rows: tuple[Grid, ...]
    """Answer rows in mini-batches, of editors that take gradients."""
    answers: int
    """Answer tokens of the bare prompts."""
    tokens: int
    """Tokens of the bare rows with their answers."""


@dataclass(frozen=True)
class StreamWork:
    """What the whole stream has to run, as far as it was read."""

    batches: tuple[int, ...]
    """Requests of every batch, as the stream has them."""
    read: tuple[BatchWork, ...]
    """Batches that were tokenised."""
    set_aside: int
    """Requests of these that cannot be edited."""

    @property
    def scale(self) -> float:
        """All requests for every one that was read."""
        return sum(self.batches) / max(sum(batch.requests for batch in self.read) + self.set_aside, 1)

    @property
    def sizes(self) -> list[int]:
        """Requests that every batch writes: as read, or less by the share that was set aside."""
        usable = sum(batch.requests for batch in self.read)
        share = usable / max(usable + self.set_aside, 1)
        if len(self.read) == len(self.batches):
            return [batch.requests for batch in self.read]
        return [round(size * share) for size in self.batches]


def fillers(encoder: Encoder, options: TargetOptions) -> tuple[str, ...]:
    """Context templates as long as those that the run will sample, made of a word that is there in any language model."""
    lengths, count = options.context_lengths, options.contexts
    found = []
    for index in range(count):
        text = options.context_starts[index % len(options.context_starts)]
        wanted = lengths[index * len(lengths) // count]
        while len(encoder.encode(text)[0]) < wanted:
            text += f" {'abcdefgh'[index % 8]}"
        found.append(f"{text}. {{}}")
    return tuple(found)


def work_of(
    network: Network, encoder: Encoder, editor_rows: Sequence[Sequence[EditRows]], options: TargetOptions, minibatch: int
) -> list[BatchWork]:
    """What batches have to run.

    Args:
        network: the model.
        encoder: its tokenizer.
        editor_rows: rows of every usable request, batch by batch.
        options: of the target optimisation.
        minibatch: requests of a pass of an editor that takes gradients.
    """
    return [_batch(network, rows, options, minibatch) for rows in editor_rows]


def rows_of(encoder: Encoder, editor: object, requests: Sequence[EditRequest], templates: Sequence[str]) -> list[EditRows]:
    """Rows of the requests that can be edited."""
    found = []
    for request in requests:
        try:
            found.append(editor.rows(encoder, request, templates))  # type: ignore[attr-defined]
        except MalformedRecord:
            continue
    return found


def read_batches(requests: Sequence[EditRequest], size: int) -> list[Sequence[EditRequest]]:
    """Whole batches of a stream, all of them or :data:`READ` requests' worth, evenly spread, first and last included.

    Raises:
        EditError: if there is no request.
    """
    if not requests:
        raise EditError("the edit set holds no request that can be edited; name another with --data.path")
    count = -(-len(requests) // size)
    chosen = spread(count, max(2, READ // size)) if len(requests) > READ else list(range(count))
    return [requests[at * size : (at + 1) * size] for at in chosen]


def _batch(network: Network, rows: Sequence[EditRows], options: TargetOptions, minibatch: int) -> BatchWork:
    anatomy = network.anatomy
    parts = [[rows[at] for at in part] for part in together(anatomy, rows, options)] if rows else []
    at_once = options.requests_at_once
    chunks = [rows[at : at + at_once] for at in range(0, len(rows), at_once)]
    bare, contexts = zip(*(_readings(network, chunk) for chunk in chunks), strict=True) if chunks else ((), ())
    answers = sorted((row.rewriting[0] for row in rows), key=lambda row: len(row.ids), reverse=True)
    mini = [answers[at : at + minibatch] for at in range(0, len(answers), minibatch)]
    return BatchWork(
        requests=len(rows),
        parts=tuple(target_shape(part) for part in parts),
        posed=tuple(grid(network, [row.ids for row in laid_out(part)]) for part in parts),
        heads=tuple(_heads(network, part) for part in parts),
        bare=tuple(bare),
        contexts=tuple(one for one in contexts if one.lines),
        rows=tuple(Grid(len(m), len(m[0].ids), False, sum(len(row.labels) for row in m)) for m in mini),
        answers=sum(len(row.labels) for row in answers),
        tokens=sum(len(row.ids) for row in answers),
    )


def laid_out(requests: Sequence[EditRows]) -> list[Row]:
    """Rows of one part: those with answers, then the KL rows that no other row of their request begins with."""
    rows = [row for request in requests for row in request.rewriting]
    return rows + [request.kl for request in requests if not any(_begins(row, request.kl) for row in request.rewriting)]


def _heads(network: Network, requests: Sequence[EditRows]) -> Grid:
    prefixes = list(dict.fromkeys(row.ids[: row.subject] for row in laid_out(requests) if row.subject))
    return grid(network, prefixes) if prefixes else Grid(0, 0)


def target_shape(requests: Sequence[EditRows]) -> TargetShape:
    """The shape of one part, as :meth:`lit_edit.passes.target_rows.Problem.pose` lays it out."""
    rows = laid_out(requests)
    place = {id(row): at for at, row in enumerate(rows)}
    rewriting = [row for request in requests for row in request.rewriting]
    spots = {(at, column) for at, row in enumerate(rewriting) for column, _ in row.labels}
    for request in requests:
        behind = next((row for row in request.rewriting if _begins(row, request.kl)), request.kl)
        spots.add((place[id(behind)], behind.subject))
    return TargetShape(
        requests=len(requests),
        rows=len(rows),
        rewriting=len(rewriting),
        suffix=max(len(row.ids) - row.subject for row in rows),
        prefix=max(row.subject for row in rows),
        picks=sum(len(row.labels) for row in rewriting),
        spots=len(spots),
    )


def _readings(network: Network, requests: Sequence[EditRows]) -> tuple[Grid, Grid]:
    bare = list(dict.fromkeys(request.reading[0].ids for request in requests))
    others = list(dict.fromkeys(row.ids for request in requests for row in request.reading[1:] if row.ids not in set(bare)))
    return grid(network, bare), grid(network, others) if others else Grid(0, 0)


def grid(network: Network, rows: Sequence[Sequence[int]]) -> Grid:
    """How :func:`lit_edit.passes.layout.lay` lays rows out."""
    longest, size = max(map(len, rows)), min(PACK, network.anatomy.positions)
    if network.anatomy.packs and longest <= size // 2:
        packs = plant(sorted(rows, key=tuple), size)
        columns = max(len(pack.ids) for pack in packs)
        if len(packs) * columns <= 0.9 * len(rows) * longest:
            return Grid(len(packs), columns, True)
    return Grid(len(rows), longest)
