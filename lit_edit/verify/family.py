"""What the replays of all editors of the MEMIT family share: residuals, deltas from recorded inputs, then the model's part.

Recorded matrices have requests as columns, the library has them as rows.
"""

from __future__ import annotations

from collections.abc import Callable, Collection

from lit_edit.verify.recording import Recording
from lit_edit.verify.sequence import Method, solved
from lit_edit.verify.table import CLOSED_FORM, THROUGH_MODEL, Row, Tally, Tolerance, tolerance
from lit_edit.verify.walk import read, replay


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
