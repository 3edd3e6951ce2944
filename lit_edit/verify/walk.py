"""The walk of the MEMIT family through a recorded model, step by step: on the weights that were recorded, or on its own.

Legend: N = requests, D = hidden size; recorded matrices have requests as columns, the library has them as rows.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from lit_edit.editors import LocateThenEdit
from lit_edit.keys import KeyPass
from lit_edit.targets import Step, optimise
from lit_edit.verify.sequence import Method, guarded, solved
from lit_edit.verify.table import THROUGH_MODEL, Tally, Tolerance, tolerance
from lit_edit.verify.trajectory import trajectory


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
