"""What the replays of all editors of the MEMIT family share: targets, then layer after layer keys, residuals, delta, write.

Legend: N = requests, I = d_in, O = d_out; recorded matrices have requests as columns, the library has them as rows.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lit_edit.delta import Delta
from lit_edit.editors import LocateThenEdit
from lit_edit.errors import EditError
from lit_edit.guards import Guard
from lit_edit.keys import KeyPass
from lit_edit.targets import Step, StopRule, TargetOptions, optimise
from lit_edit.verify import moments
from lit_edit.verify.recording import Recording, TensorFile
from lit_edit.verify.table import CLOSED_FORM, THROUGH_MODEL, Row, Tally, Tolerance, tolerance

_LOSSES = ("total", "nll", "kl", "decay", "probability")


@dataclass(frozen=True)
class Method:
    """One recorded sequence and everything needed to replay it."""

    name: str
    recording: Recording
    file: TensorFile
    layers: tuple[int, ...]
    options: TargetOptions
    make: Callable[[dict[str, Any]], LocateThenEdit]
    """The editor, given the recorded hyper-parameters."""
    stop: Callable[[], StopRule] | None = None
    """What ends an optimisation early, made anew for every batch."""
    guards: Callable[[], list[Guard]] = list
    """Guards, made anew for every replay."""

    @classmethod
    def of(
        cls, recording: Recording, name: str, make: Callable[[dict[str, Any]], LocateThenEdit], **extra: Any
    ) -> Method | None:
        """Read layers and hyper-parameters; ``None`` where the method was not recorded.

        Args:
            recording: the folder.
            name: stem of the file and key of the hyper-parameters.
            make: the editor, given the recorded hyper-parameters.
            extra: ``stop`` and ``guards``.
        """
        file = recording.tensors(name)
        if file is None:
            return None
        said = recording.options(name)
        try:
            options = TargetOptions(
                steps=said["v_num_grad_steps"],
                lr=said["v_lr"],
                clamp=said["clamp_norm_factor"],
                weight_decay=said["v_weight_decay"],
                kl_factor=said["kl_factor"],
            )
            layers = recording.anatomy.check_layers(set(said["layers"]))  # DeltaEdit names its last one twice
        except (KeyError, TypeError, ValueError) as error:
            raise EditError(f"{recording.folder / 'meta.json'} is incomplete: hyper_parameters/{name} lacks {error}") from error
        return cls(name, recording, file, layers, options, make, **extra)

    def editor(self) -> tuple[LocateThenEdit, bool]:
        """A fresh editor prepared on the original weights, and whether the recorded second moments went into it."""
        editor = self.make(self.recording.options(self.name))
        found, were_recorded = moments.recorded(self.recording, self.layers)
        for layer in self.layers:
            editor.allocate(layer, self.recording.anatomy.d_model, self.recording.anatomy.d_inner)
            editor.prepare(layer, self.recording.original[layer], found[layer])
        return editor, were_recorded

    def prepared_guards(self) -> list[Guard]:
        """Fresh guards prepared on the original weights."""
        guards = self.guards()
        for guard in guards:
            for layer in self.layers:
                guard.prepare(layer, self.recording.original[layer], None)
        return guards

    @property
    def obstacle(self) -> str | None:
        """Why the model's part cannot be replayed by this library, ``None`` if it can."""
        said, last = self.recording.options(self.name), len(self.recording.anatomy.blocks) - 1
        if said.get("fact_token", "subject_last") != "subject_last":
            return f"keys read at {said['fact_token']}, not covered"
        if max(said.get("v_loss_layer", last), self.layers[-1]) != last:
            return f"loss read at block {said['v_loss_layer']} instead of the last, not covered"
        return None

    @property
    def batches(self) -> range:
        """Indices of the batches that were edited."""
        return range(len(self.recording.batches))


@torch.no_grad()
def solved(method: Method, editor: LocateThenEdit) -> Iterator[tuple[int, int, Delta, Tensor]]:
    """``(batch, layer, delta, weight)`` of the closed form on recorded keys and residuals; ends where they end.

    The delta is the editor's own; the weight is that after the batch: the original plus all deltas so far, each cut by the
    guards and added in float32.
    """
    guards = method.prepared_guards()
    weights = {layer: method.recording.original[layer] for layer in method.layers}
    o, i = method.recording.anatomy.d_model, method.recording.anatomy.d_inner
    for batch in method.batches:
        n = len(method.recording.batches[batch])
        names = [f"batch{batch}/layer{layer}/{what}" for layer in method.layers for what in ("keys", "resid")]
        if any(name not in method.file for name in names):
            return
        for layer in method.layers:
            keys = method.file.matrix(f"batch{batch}/layer{layer}/keys", i, n).T
            residuals = method.file.matrix(f"batch{batch}/layer{layer}/resid", o, n).T
            delta = editor.solve(layer, keys, residuals, weights[layer])
            weights[layer] = weights[layer] + guarded(guards, layer, delta, weights[layer]).dense().float()
            yield batch, layer, delta, weights[layer]
            editor.remember(layer, keys, weights[layer])


def guarded(guards: Sequence[Guard], layer: int, delta: Delta, weight: Tensor, deferred: bool = True) -> Delta:
    """What guards leave of a delta; without ``deferred`` only those that act while a batch is still being solved."""
    for guard in guards:
        if deferred or not guard.deferred:
            delta = guard(layer, delta, weight)
    return delta


def closed_form(
    method: Method,
    tally: Tally,
    label: str,
    delta_key: str,
    limit: Tolerance | None = None,
    only: Collection[int] | None = None,
) -> None:
    """Deltas, their norms and the weights they lead to, recomputed from recorded keys, residuals and second moments.

    Args:
        method: the recorded sequence.
        tally: where comparisons go.
        label: what the table says about the inputs.
        delta_key: which difference of ``meta.json`` the deltas are held to.
        limit: what they are held to instead, where something else bounds the agreement.
        only: layers to compare; ``None`` for all.
    """
    editor, exact_moments = method.editor()
    rec, name = method.recording, method.name
    allowed = limit or tolerance(rec, name, delta_key, CLOSED_FORM)
    written = tolerance(rec, name, "W_after_vs_prev_plus_delta", CLOSED_FORM)
    if not exact_moments:
        allowed = written = Tolerance(THROUGH_MODEL, "second moments collected anew")
    # A weight is as far off as the deltas that it is a sum of.
    written = written if written.value >= allowed.value else Tolerance(allowed.value, allowed.origin)
    for batch, layer, delta, weight in solved(method, editor):
        if only is not None and layer not in only:
            continue
        at = f"batch{batch}/layer{layer}"
        tally.tensor(method.file, f"{at}/delta", f"delta {label}", delta.dense(), allowed)
        tally.tensor(method.file, f"{at}/delta_fro", f"delta_fro {label}", delta.norm(), allowed)
        tally.tensor(method.file, f"{at}/W_after", f"W_after {label}", weight, written)
        tally.tensor(method.file, f"{at}/W_after_fro", f"W_after_fro {label}", weight.double().norm(), written)


def run(
    recording: Recording, name: str, method: Method | None, more: Callable[[Method, Tally], None] | None = None
) -> list[Row]:
    """Rows of a method that is replayed like MEMIT: residuals and deltas from recorded inputs, then the model's part.

    Args:
        recording: the folder.
        name: of the method in the table.
        method: the recorded sequence, ``None`` where there is none.
        more: further comparisons.
    """
    tally = Tally(recording, name)
    if method is None:
        tally.note("all", "not recorded here")
        return tally.rows()
    residuals(method, tally)
    closed_form(method, tally, "[recorded K, R, C]", "delta")
    read(method, tally)
    replay(method, tally)
    if more is not None:
        more(method, tally)
    return tally.rows()


def residuals(method: Method, tally: Tally) -> None:
    """Recorded residuals against recorded targets and values: ``(z - z_cur) / layers left``."""
    for batch in method.batches:
        z = method.file.get(f"batch{batch}/z")
        for index, layer in enumerate(method.layers):
            now = method.file.get(f"batch{batch}/layer{layer}/z_cur")
            if z is None or now is None or z.T.shape != now.shape:
                continue
            ours = (z.T - now) / (len(method.layers) - index)
            name = f"batch{batch}/layer{layer}/resid"
            tally.tensor(method.file, name, "residuals [recorded z, z_cur]", ours, Tolerance(CLOSED_FORM, "closed form"))


def replay(method: Method, tally: Tally, history: Tolerance | None = None) -> None:
    """The whole sequence through the model, from the original weights; only second moments go in as recorded.

    Args:
        method: the recorded sequence.
        tally: where comparisons go.
        history: what is allowed from the second batch on where the reference's own storage of earlier batches limits
            agreement; ``None`` where every batch is held to the same.
    """
    if method.obstacle is not None:
        tally.note("full replay", method.obstacle)
        return
    editor, exact = method.editor()
    _walk(method, tally, "[full replay]", exact, editor, None, history)


def read(method: Method, tally: Tally, history: Tolerance | None = None) -> None:
    """What the model reads and what the targets become, batch by batch on the weights that the recording had.

    Differences of earlier batches do not add up here, so that trajectories can be held tightly: Adam divides a gradient by
    its own size, which turns any difference of the weights into one of the first step wherever a gradient is almost zero.

    Args:
        method: the recorded sequence.
        tally: where comparisons go.
        history: see :func:`replay`; for weights that could only be recomputed closely.
    """
    if method.obstacle is not None:
        tally.note("recorded weights", method.obstacle)
        return
    editor, exact = method.editor()
    guards = method.prepared_guards()
    before = dict(method.recording.original)
    weights: dict[tuple[int, int], tuple[Tensor, Tensor]] = {}
    for batch, layer, delta, after in solved(method, editor):
        shown = before[layer] + guarded(guards, layer, delta, before[layer], deferred=False).dense().float()
        weights[batch, layer] = shown, after
        before[layer] = after
    _walk(method, tally, "[recorded weights]", exact, None, weights, history)


def _walk(
    method: Method,
    tally: Tally,
    label: str,
    exact_moments: bool,
    editor: LocateThenEdit | None,
    weights: dict[tuple[int, int], tuple[Tensor, Tensor]] | None,
    history: Tolerance | None,
) -> None:
    """Batches in order: targets, then layer after layer keys, values and a write, either solved for or as recorded."""
    rec, file, layers = method.recording, method.file, method.layers
    guards = method.prepared_guards()
    anatomy, pad = rec.anatomy, rec.encoder.pad
    own = f"{method.name}_float32_vs_float64_run"
    rec.restore()
    for batch, requests in enumerate(rec.batches):
        late = history is not None and batch > 0
        mode = label.replace("]", ", batch 0]") if history is not None and batch == 0 else label

        def allowed(key: str, late: bool = late) -> Tolerance:
            if late and history is not None:
                return history
            # The trajectories of a full replay are held to what float32 allows, see read().
            known = exact_moments and (editor is None or not key.startswith("delta_traj"))
            return tolerance(rec, own if known else "", key, THROUGH_MODEL)

        def compare(
            name: str,
            quantity: str,
            ours: Tensor,
            key: str = "",
            mode: str = mode,
            allowed: Callable[[str], Tolerance] = allowed,
        ) -> None:
            tally.tensor(file, name, f"{quantity} {mode}", ours, allowed(key or quantity))

        steps: dict[int, list[tuple[Tensor, Tensor]]] = {}

        def see(step: Step, steps: dict[int, list[tuple[Tensor, Tensor]]] = steps) -> None:
            columns = torch.stack([step.total, step.nll, step.kl, step.decay, step.probability], 1)
            for request, delta, losses in zip(step.requests.tolist(), step.delta_ND, columns, strict=True):
                steps.setdefault(request, []).append((delta, losses))

        if weights is not None and (batch, layers[0]) not in weights:
            break
        stop = None if method.stop is None else method.stop()
        targets = optimise(anatomy, requests, layers[-1], method.options, pad, see, stop=stop)
        for request, seen in steps.items():
            deltas, losses = (torch.stack(part) for part in zip(*seen, strict=True))
            trajectory(tally, file, f"batch{batch}/req{request}", mode, deltas, losses, allowed)
        compare(f"batch{batch}/z", "z", targets.values_ND)
        at_subject = KeyPass(anatomy, requests, pad)
        written: dict[int, Tensor] = {}
        for index, layer in enumerate(layers):
            at = f"batch{batch}/layer{layer}"
            keys, now = at_subject.keys(layer), at_subject.values(layers[-1])
            rest = (targets.values_ND - now) / (len(layers) - index)
            compare(f"{at}/keys", "keys", keys.T)
            compare(f"{at}/z_cur", "z_cur", now.T)
            compare(f"{at}/resid", "residuals", rest.T)
            weight = anatomy.weight(layer)
            if editor is None:
                assert weights is not None
                shown, written[layer] = weights[batch, layer]
                weight.copy_(shown)
                continue
            before = weight.clone()
            delta = editor.solve(layer, keys, rest, before)
            written[layer] = before + guarded(guards, layer, delta, before).dense().float()
            editor.remember(layer, keys, written[layer])
            # Guards that act at the very end are not in what the next layers see.
            weight.copy_(before + guarded(guards, layer, delta, before, deferred=False).dense().float())
            compare(f"{at}/delta", "delta", delta.dense())
            compare(f"{at}/delta_fro", "delta_fro", delta.norm(), "delta")
            compare(f"{at}/W_after", "W_after", written[layer])
            compare(f"{at}/W_after_fro", "W_after_fro", written[layer].double().norm(), "W_after")
        for layer, after in written.items():
            anatomy.weight(layer).copy_(after)
        if any(guard.deferred for guard in guards):
            at_subject = KeyPass(anatomy, requests, pad)
        compare(f"batch{batch}/z_reached", "z_reached", at_subject.values(layers[-1]).T)
    rec.restore()


def trajectory(
    tally: Tally, file: TensorFile, at: str, mode: str, deltas: Tensor, losses: Tensor, allowed: Callable[[str], Tolerance]
) -> None:
    """Optimised changes step by step (a step that is zero on both sides agrees), and the terms of the loss."""
    recorded = file.get(f"{at}/delta_traj")
    if recorded is not None:
        file.compared.add(f"{at}/delta_traj")
        if recorded.shape != deltas.shape:
            tally.add(f"delta_traj, steps between {mode}", float("inf"), allowed(""), f"{at}/delta_traj")
        else:
            last = len(deltas) - 1
            for index, (ours, theirs) in enumerate(zip(deltas, recorded, strict=True)):
                which, key = ("steps between", "")
                if index <= 1:
                    which, key = "steps 0 and 1", "delta_traj_step1"
                elif index == last:
                    which, key = "last step", "delta_traj_last_step"
                error = float((ours.double() - theirs.double()).norm()) / (float(theirs.double().norm()) or 1.0)
                tally.add(f"delta_traj, {which} {mode}", error, allowed(key), f"{at}/delta_traj[{index}]")
    recorded = file.get(f"{at}/loss_traj")
    if recorded is None:
        return
    file.compared.add(f"{at}/loss_traj")
    if recorded.shape != losses.shape:
        tally.add(f"loss_traj, total {mode}", float("inf"), allowed(""), f"{at}/loss_traj")
        return
    # Float32 log-probabilities leave an absolute error in each term, also in one that is almost nothing.
    floor = 1e-3 * float(recorded[:, 0].double().norm())
    for column, term in enumerate(_LOSSES):
        ours, theirs = losses[:, column].double(), recorded[:, column].double()
        error = float((ours - theirs).norm()) / max(float(theirs.norm()), floor if column else 0.0)
        tally.add(f"loss_traj, {term} {mode}", error, allowed(""), f"{at}/loss_traj")
