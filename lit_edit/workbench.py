"""Where an editor works on one batch: the model, the weights as they are so far, the guards, and what was found.

Legend: N = requests, O = d_out, I = d_in.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from lit_edit.anatomy import Anatomy
from lit_edit.batch.finite import FiniteReads, finite, new_state, writable
from lit_edit.batch.rejection import guarded, solving, within_budget
from lit_edit.batch.state import restore, snapshot
from lit_edit.delta import Delta, is_finite
from lit_edit.errors import Rejected
from lit_edit.guards.base import Guard
from lit_edit.keys import KeyPass, SharedKeyPass
from lit_edit.micro_batches import enough_memory
from lit_edit.parallel.ranks import Ranks
from lit_edit.passes.gradients import Captured, capture
from lit_edit.prompts import EditRows, Row
from lit_edit.runs.boundary import random_state, set_random_state
from lit_edit.spectrum import Subspace
from lit_edit.targets import Step, TargetOptions, Targets, optimise, tail, together


@dataclass
class Workbench:
    """One batch on its way into a model.

    An editor reads the model, and hands every change of a weight to :meth:`write`: guards cut it, it is checked, and the model
    shows it at once, so that what is read next has seen it. Nothing is final: the trainer takes :attr:`changes` as (negative)
    gradients and calls :meth:`clear`, which leaves the model as it was found.
    """

    anatomy: Anatomy
    layers: tuple[int, ...]
    """Edited blocks, ascending."""
    guards: Sequence[Guard]
    master: Callable[[int], Tensor]
    """The float32 weight ``[d_out, d_in]`` of a layer before this batch."""
    original: Callable[[int], Tensor]
    """The unedited weight ``[d_out, d_in]`` of a layer."""
    options: TargetOptions
    """How target values are optimised."""
    pad: int
    """Token id for padding."""
    max_change: float | None = None
    """Largest change of a layer as a multiple of its original norm; ``None`` for no limit."""
    tell: Callable[[str, int, int], None] = lambda phase, done, total: None
    """Told ``(phase, done, total)``."""
    stateful: Sequence[nn.Module] = ()
    """Editor and guards, whose buffers a refused request takes back."""
    ranks: Ranks = field(default_factory=Ranks)
    """Who shares the work of the batch; every rank is at the same place of it."""

    changes: dict[int, Tensor] = field(default_factory=dict)  # [O, I] float32, what the model shows on top of the master
    refused: list[tuple[EditRows, str]] = field(default_factory=list)
    """Requests applied in order that could not be written, with reasons."""
    losses: list[Targets] = field(default_factory=list)
    """Results of all target optimisations."""
    deltas: dict[int, list[Delta]] = field(default_factory=dict)
    """What was written by layer, as the guards left it; :attr:`changes` is its sum."""
    keys: dict[int, list[Tensor]] = field(default_factory=dict)  # [N, I] each
    """Keys that were written to by layer, of editors that write to keys; see :meth:`wrote_to`."""
    seconds: float = 0.0
    """Time spent on target optimisation."""
    _solved: dict[int, list[Delta]] = field(default_factory=dict)  # before any guard
    _seen: dict[str, list[float]] = field(default_factory=dict)
    _finished: bool = False

    # ------------------------------------------------------------------------------------------------ reading

    def weight(self, layer: int) -> Tensor:
        """The float32 weight of a layer as this batch has left it so far, ``[d_out, d_in]``."""
        change = self.changes.get(layer)
        return self.master(layer) if change is None else self.master(layer) + change

    def avoid(self, layer: int) -> Subspace | None:
        """Directions that a guard wants the solve to stay out of."""
        weight = self.weight(layer)
        spaces = [guard.avoid(layer, weight) for guard in self.guards]
        return next((space for space in spaces if space is not None), None)

    def reader(self, rows: Sequence[EditRows]) -> KeyPass:
        """Reads keys and values of some requests; ranks run a share of them each.

        Raises:
            Rejected: as soon as something that is not finite is read.
        """
        return FiniteReads(SharedKeyPass(self.ranks, self.anatomy, rows, self.pad, self.options.requests_at_once))

    def capture(self, portions: Sequence[Sequence[Row]], answers_only: bool) -> list[tuple[dict[int, Captured], float]]:
        """What the loss of each portion asks of the edited layers, see :func:`lit_edit.passes.gradients.capture`.

        Ranks run a share of the portions each.

        Args:
            portions: rows that go through the model together.
            answers_only: see :func:`lit_edit.passes.gradients.capture`.

        Raises:
            Rejected: if an input or a gradient is not finite.
        """
        done = 0

        def one(rows: Sequence[Row]) -> tuple[dict[int, Captured], float]:
            nonlocal done
            found, loss = capture(self.anatomy, rows, self.layers, self.pad, answers_only)
            done += self.ranks.workers
            self.tell("gradients", min(done, len(portions)), len(portions))
            return {layer: tokens.to(torch.device("cpu")) for layer, tokens in found.items()}, loss

        found = self.ranks.share(portions, lambda mine: [one(rows) for rows in mine])
        for part, _ in found:
            for layer, tokens in part.items():
                finite(f"the inputs of layer {layer}", tokens.inputs_TI)
                finite(f"the gradients of layer {layer}", tokens.gradients_TO)
        return [({layer: tokens.to(self.anatomy.device) for layer, tokens in part.items()}, loss) for part, loss in found]

    @contextmanager
    def original_model(self) -> Iterator[None]:
        """The model shows its unedited weights inside the block."""
        try:
            for layer in self.layers:
                self._show(layer, self.original(layer))
            yield
        finally:
            for layer in self.layers:
                self._show(layer, self.weight(layer))

    def optimise(
        self, rows: Sequence[EditRows], layer: int | None = None, origin_ND: Tensor | None = None, **extra: Any
    ) -> Targets:
        """Target values of some requests on the model as it is; see :func:`lit_edit.targets.optimise`.

        Ranks optimise a share of the requests each, so ``stop`` and ``confine`` may not look from one request to another.

        Args:
            rows: rows of every request.
            layer: block whose output is changed; default: the last edited one.
            origin_ND: see there.
            extra: further arguments of :func:`lit_edit.targets.optimise`.

        Raises:
            Rejected: if a target value is not finite.
        """
        started = time.perf_counter()
        where = self.layers[-1] if layer is None else layer
        parts = together(self.anatomy, rows, self.options)
        dealt = self.ranks.deal(parts, [tail(rows[part[0]]) for part in parts])
        mine = self.ranks.filled(dealt)
        passes = 0
        how_many = "one request" if len(rows) == 1 else f"{len(rows)} requests at once"

        def count(step: Step) -> None:
            nonlocal passes
            passes += 1
            self.tell("targets", passes, len(mine) * self.options.steps)

        def own() -> tuple[Tensor, ...]:
            with enough_memory(f"the targets of {how_many}"):  # said here, so that the other ranks hear it
                found = optimise(
                    self.anatomy, rows, where, self.options, self.pad, on_step=count, origin_ND=origin_ND, parts=mine, **extra
                )
            return tuple(getattr(found, name) for name in Targets.__dataclass_fields__)

        shares = [[at for part in own_parts for at in part] for own_parts in dealt]
        found = Targets(*self.ranks.share_rows(shares, own))
        self.losses.append(found)
        self.seconds += time.perf_counter() - started
        finite(f"the target values of layer {where}", found.values_ND)
        return found

    # ------------------------------------------------------------------------------------------------ writing

    @torch.no_grad()
    def write(self, layer: int, delta: Delta) -> None:
        """Change a weight by what the guards leave of ``delta``.

        Raises:
            Rejected: if the change, or what a guard leaves of it, is not finite.
        """
        self._finished = False
        writable(f"the change solved for layer {layer}", delta)
        self._solved.setdefault(layer, []).append(delta)
        delta = guarded(self.guards, layer, delta, self.weight(layer), self.note, deferred=False)
        self._of_first(delta)
        dense = delta.dense().float()
        self.deltas.setdefault(layer, []).append(delta)
        before = self.changes.get(layer)
        self.changes[layer] = dense if before is None else before + dense
        self._change(layer)

    def wrote_to(self, layer: int, keys_NI: Tensor) -> None:
        """Keep the keys ``[n, d_in]`` of requests that a layer now answers, for callbacks that follow them."""
        self.keys.setdefault(layer, []).append(keys_NI)

    def note(self, name: str, value: float) -> None:
        """Keep a number for the logs; several of one name are averaged."""
        self._seen.setdefault(name, []).append(value)

    @torch.no_grad()
    def finish(self) -> None:
        """Let deferred guards act, and check what came out.

        What is written is then ``guard_n(... guard_1(delta))`` over *all* guards, with the deferred ones in their place.
        Nothing happens where nothing was written since the last time.

        Raises:
            Rejected: if what a guard leaves is not finite, or a change is over the budget.
        """
        if self._finished:
            return
        if any(guard.deferred for guard in self.guards):
            self._seen = {name: seen for name, seen in self._seen.items() if not name.startswith("guard/")}
            for layer, deltas in self._solved.items():
                # One solve keeps its thin form; the sum of several is what the batch asks of the layer.
                first, *rest = deltas
                solved = Delta.from_dense(sum((delta.dense() for delta in rest), first.dense())) if rest else first
                cut = guarded(self.guards, layer, solved, self.master(layer), self.note)
                self._of_first(cut)
                self.changes[layer], self.deltas[layer] = cut.dense().float(), [cut]
                self._change(layer)
        for layer, change in self.changes.items():
            norm = within_budget(layer, change, self.original(layer), self.max_change)
            self._seen[f"delta/norm/layer_{layer}"] = [norm]  # of the whole change, however often it was added to
        self._finished = True

    def each(self, rows: Sequence[EditRows], edit: Callable[[list[EditRows]], None]) -> None:
        """Apply requests one after another, each on the model that the one before has left; a bad one is refused alone.

        Args:
            rows: rows of every request, in stream order.
            edit: solves for one request and writes it.
        """
        for index, row in enumerate(rows):
            self.tell("requests", index + 1, len(rows))
            state = snapshot(self.stateful)
            changes, solved = dict(self.changes), {layer: list(deltas) for layer, deltas in self._solved.items()}
            deltas = {layer: list(parts) for layer, parts in self.deltas.items()}
            keys = {layer: list(parts) for layer, parts in self.keys.items()}
            losses, seen = list(self.losses), {name: list(values) for name, values in self._seen.items()}
            random = random_state()
            try:
                with self.ranks.together(), solving("the solve of one request"):
                    edit([row])
                    new_state(self.stateful, state)
            except Rejected as reason:
                self.refused.append((row, str(reason)))
                restore(state)
                set_random_state(random)
                self.changes, self._solved, self.losses, self._seen = changes, solved, losses, seen
                self.deltas, self.keys = deltas, keys
                for layer in self.layers:
                    self._show(layer, self.weight(layer))

    @torch.no_grad()
    def clear(self) -> None:
        """Show the weights from before this batch again."""
        for layer in self.layers:
            self._show(layer, self.master(layer))

    def thin(self) -> dict[int, Delta]:
        """The changes of :attr:`changes` as thin factors; without the layers whose change has none."""
        found = {}
        for layer, parts in self.deltas.items():
            if all(part.is_low_rank for part in parts):
                lefts, rights = zip(*(part.factors for part in parts), strict=True)
                found[layer] = Delta.low_rank(torch.cat(lefts, dim=1), torch.cat(rights, dim=0))
        return found

    @property
    def scalars(self) -> dict[str, float]:
        """What was noted, averaged by name."""
        return {name: sum(values) / len(values) for name, values in self._seen.items()}

    def _of_first(self, delta: Delta) -> None:
        """The first rank's numbers on every rank: the same solve may round otherwise on another device."""
        self.ranks.overwrite([part for part in (delta.left, delta.right, delta.full) if part is not None])

    def _change(self, layer: int) -> None:
        """Show what a layer's weight has become, if that is a weight."""
        self._show(layer, self.weight(layer))
        if not is_finite(self.anatomy.shown(layer)):  # a sum of finite changes, or a cast of it, may overflow
            dtype = str(self.anatomy.dtype).removeprefix("torch.")
            raise Rejected(f"the weight of layer {layer} with its change is not finite in {dtype}")

    def _show(self, layer: int, weight: Tensor) -> None:
        with torch.no_grad():
            self.anatomy.show(layer, weight)
