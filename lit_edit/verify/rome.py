"""Replays recorded ROME and R-ROME runs: single edits of one layer, one after another.

Legend: I = d_in, O = d_out; requests come one at a time.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

import torch
from torch import Tensor

from lit_edit.editors.rome import ROME, added, missing
from lit_edit.errors import EditError
from lit_edit.keys import KeyPass
from lit_edit.prompts import EditRows
from lit_edit.targets import Step, optimise
from lit_edit.verify import moments
from lit_edit.verify.recording import Check, Recording
from lit_edit.verify.sequence import Method
from lit_edit.verify.table import CLOSED_FORM, THROUGH_MODEL, Row, Tally, Tolerance, tolerance
from lit_edit.verify.trajectory import trajectory

_CLOSED = Tolerance(CLOSED_FORM, "closed form")
_MODEL = Tolerance(THROUGH_MODEL, "float32 model")
_FREE = Tolerance(0.1, "float32 inverse, then Adam")
"""Adam divides a gradient by its own size: where one is almost zero, the rounding of the reference's inverse turns its sign,
and a step with it. Which request that meets is chance, and a few percent of its target are then at stake."""

Weights = Literal["recorded", "recorded u", "own"]


def method(recording: Recording, name: str) -> Method | None:
    """A recorded sequence (``ROME`` or ``RROME``), ``None`` where there is none."""

    def make(said: dict[str, Any]) -> ROME:
        averaged = said.get("enable_random_prefix_keys", False) and not said.get("original_implementation", False)
        return ROME(said["mom2_adjustment"], averaged, said.get("enable_prompt_keys", False))

    return Method.of(recording, name, make)


def requests(recording: Recording) -> list[EditRows]:
    """Rows of all requests in the order of editing, with ROME's own list of templates.

    Raises:
        EditError: if that list does not start with the bare prompt.
    """
    templates = recording.meta.get("context_templates", {}).get("rome (flat)", ["{}", *recording.contexts])
    if templates[:1] != ["{}"]:
        raise EditError(f"{recording.folder / 'meta.json'} does not start ROME's context templates with the bare prompt '{{}}'")
    found = (row.request for batch in recording.batches for row in batch)
    return [recording.encoder.rows(request, tuple(templates[1:])) for request in found]


def run(recording: Recording) -> list[Row]:
    """Rows of ROME and R-ROME: from recorded inputs, on recorded weights, and as runs from the original weights."""
    return [row for name in ("ROME", "RROME") for row in _run(recording, name)]


@torch.no_grad()
def _run(recording: Recording, name: str) -> list[Row]:
    tally = Tally(recording, name)
    found = method(recording, name)
    if found is None:
        tally.note("all", "not recorded here")
        return tally.rows()
    replay = _Replay(found, tally)
    replay.closed_form()
    if found.obstacle is None:
        replay.walk("[recorded weights]", "recorded")
        replay.walk("[full replay, recorded u]", "recorded u")
        replay.walk("[full replay]", "own")
    else:
        tally.note("recorded weights, full replay", found.obstacle)
    return tally.rows()


class _Replay:
    """One recorded sequence.

    The reference inverts the second moment explicitly in float32. Of an ill-conditioned one that leaves few digits of ``u``,
    which other hardware does not even round alike. Everything else is therefore also held to what float32 allows with the
    recorded ``u`` put in its place.

    Raises:
        EditError: if several layers were edited.
    """

    def __init__(self, method: Method, tally: Tally) -> None:
        self.method, self.tally = method, tally
        self.recording, self.file = method.recording, method.file
        if len(method.layers) != 1:
            raise EditError(
                f"{self.recording.folder / 'meta.json'} edits layers {list(method.layers)} with {method.name}, not one"
            )
        (self.layer,) = method.layers
        anatomy = self.recording.anatomy
        editor = method.make(self.recording.options(method.name))
        assert isinstance(editor, ROME)
        moment = moments.recorded(self.recording, method.layers)[0][self.layer] if editor.adjust else None
        editor.allocate(self.layer, anatomy.d_model, anatomy.d_inner)
        editor.prepare(self.layer, self.recording.original[self.layer], moment)
        self.editor = editor
        self.inverse_II = torch.eye(anatomy.d_inner) if moment is None else torch.linalg.inv(moment.mean.float())
        self.direction = self._direction()

    def recorded(self) -> Iterator[tuple[str, Tensor, Tensor]]:
        """``(edit{j}, u, v)`` in the order of editing; ends where they end."""
        index = 0
        while (u := self.file.get(f"edit{index}/u")) is not None and (v := self.file.get(f"edit{index}/v")) is not None:
            yield f"edit{index}", u, v
            index += 1

    def closed_form(self) -> None:
        """Weights from recorded factors; factors from recorded keys and outputs, where those are what they were made of."""
        weight = self.recording.original[self.layer].clone()
        written = tolerance(self.recording, self.method.name, "W_rel", CLOSED_FORM)
        for at, u, v in self.recorded():
            weight += torch.outer(v, u)
            self.tally.tensor(self.file, f"{at}/layer{self.layer}/W_after", "W_after [recorded u, v]", weight, written)
            key, output = self.file.get(f"{at}/key"), self.file.get(f"{at}/cur_out")
            deltas = self.file.get(f"{at}/delta_traj")
            if key is None or output is None:
                continue
            if self.editor.same_key or self.editor.prompt_key:
                self._compare(f"{at}/u", "u [recorded key]", self._u(key), self.direction)
                self._compare(f"{at}/u", "u [recorded key], float32 inverse", self._u_float32(key), self.direction)
            if not self.editor.same_key and deltas is not None:
                reached = float(key.double() @ u.double())
                self._compare_v(at, "v [recorded u, key, delta]", deltas[-1].double() / reached, output, reached, _CLOSED)

    def walk(self, label: str, weights: Weights) -> None:
        """Edit after edit through the model: target, key, output, factors, write.

        Args:
            label: what the table says about it.
            weights: ``recorded`` ones before every edit, those that our targets lead to with the recorded ``u``, or our own.
        """
        anatomy, layer, editor = self.recording.anatomy, self.layer, self.editor
        recorded = {at: (u, v) for at, u, v in self.recorded()}
        free = weights == "own"
        allowed = _FREE if free else _MODEL
        self.recording.restore()
        weight = anatomy.weight(layer)
        for index, row in enumerate(requests(self.recording)):
            at = f"edit{index}"
            if at not in recorded:
                break
            u, v = recorded[at]
            seen = editor.read(KeyPass(anatomy, [row], self.recording.encoder.pad), layer)
            targets_ND = self._target(row, added(anatomy, layer, seen.bare_NO), at, "" if free else label)
            wanted = missing(anatomy, layer, seen, targets_ND)
            # An edit does not reach the key at its own layer: it stays tight however far the weights are.
            self._compare(f"{at}/key", f"key {label}", seen.keys_NI[0], _MODEL)
            self._compare(f"{at}/cur_out", f"cur_out {label}", seen.output_NO[0], allowed)
            delta = editor.solve(layer, seen.keys_NI, wanted, weight.clone(), None, seen.toward_NI)
            left, right = delta.factors
            reached = float(seen.keys_NI[0].double() @ u.double())
            on_u = wanted[0].double() / reached
            if weights != "recorded u":
                self._compare(f"{at}/u", f"u {label}", right[0], self.direction)
            if free:
                self._compare_v(at, f"v {label}", left[:, 0], seen.output_NO[0], reached, allowed)
                weight += delta.dense().float()
            else:
                quantity = f"v {label}" if weights == "recorded u" else "v [recorded weights, recorded u]"
                self._compare_v(at, quantity, on_u, seen.output_NO[0], reached, allowed)
                weight += torch.outer(v if weights == "recorded" else on_u.float(), u)
            if weights == "recorded":
                self._compare(f"{at}/u", f"u {label}, float32 inverse", self._u_float32(seen.toward_NI[0]), self.direction)
            else:
                self._compare(f"{at}/layer{layer}/W_after", f"W_after {label}", weight, allowed)
        self.recording.restore()

    def _target(self, row: EditRows, origin_ND: Tensor, at: str, label: str) -> Tensor:
        """The optimised output of the MLP, ``[1, hidden]``; its trajectory is compared under ``label``, if there is one."""
        steps: list[tuple[Tensor, Tensor]] = []

        def see(step: Step) -> None:
            columns = torch.stack([step.total, step.nll, step.kl, step.decay, step.probability], 1)
            steps.append((step.delta_ND[0], columns[0]))

        anatomy, pad = self.recording.anatomy, self.recording.encoder.pad
        found = optimise(anatomy, [row], self.layer, self.method.options, pad, see, origin_ND=origin_ND)
        if label:
            deltas, losses = (torch.stack(part) for part in zip(*steps, strict=True))
            trajectory(self.tally, self.file, at, label, deltas, losses, lambda key: _MODEL)
        return found.values_ND

    def _compare(self, name: str, quantity: str, ours: Tensor, allowed: Tolerance) -> None:
        self.tally.tensor(self.file, name, quantity, ours, allowed)

    def _compare_v(self, at: str, quantity: str, ours_O: Tensor, output_O: Tensor, reached: float, allowed: Tolerance) -> None:
        """Compare with a recorded ``v``, a difference of target and output that carries the rounding of both."""
        recorded = self.file.get(f"{at}/v")
        if recorded is None:
            return
        self.file.compared.add(f"{at}/v")
        scale = max(float(recorded.norm()), float(output_O.norm()) / abs(reached))
        self.tally.add(quantity, float((ours_O.double() - recorded.double()).norm()) / scale, allowed, f"{at}/v")

    def _u(self, key_I: Tensor) -> Tensor:
        """The direction as the library finds it."""
        nothing = torch.zeros(1, self.recording.anatomy.d_model)
        delta = self.editor.solve(self.layer, key_I[None], nothing, self.recording.original[self.layer])
        return delta.factors[1][0]

    def _u_float32(self, key_I: Tensor) -> Tensor:
        """The direction as the reference finds it."""
        u = self.inverse_II @ key_I
        length: Tensor = u.norm()
        return u / length

    def _direction(self) -> Tolerance:
        """What the float32 inverse leaves of ``u``: as ``meta.json`` tells it, else as it comes out here on recorded keys."""
        for name in (self.method.name, "RROME"):
            told = self.recording.difference(name, "u_rel")
            if told is not None:
                return Tolerance(max(5 * told, THROUGH_MODEL), f"5 x meta {name}.u_rel")
        keys = [key for at, _, _ in self.recorded() if (key := self.file.get(f"{at}/key")) is not None]
        lost = max((float((self._u_float32(key) - self._u(key)).norm()) for key in keys), default=0.0)
        return Tolerance(max(5 * lost, THROUGH_MODEL), "5 x float32 inverse here")


CHECK = Check("ROME", ("ROME.safetensors", "RROME.safetensors"), run)
