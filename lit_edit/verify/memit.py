"""Replays recorded MEMIT runs."""

from __future__ import annotations

from lit_edit.editors import MEMIT
from lit_edit.verify import family
from lit_edit.verify.recording import Check, Recording
from lit_edit.verify.table import Row, Tally


def method(recording: Recording) -> family.Method | None:
    """The recorded sequence, ``None`` where there is none."""
    return family.Method.of(recording, "MEMIT", lambda lam: MEMIT(lam=lam))


def run(recording: Recording) -> list[Row]:
    """Rows of MEMIT: residuals and deltas from recorded inputs, then the whole sequence through the model."""
    tally = Tally(recording, "MEMIT")
    found = method(recording)
    if found is None:
        tally.note("all", "not recorded here")
        return tally.rows()
    editor, exact = found.editor()
    family.residuals(found, tally)
    family.closed_form(found, tally, editor, "[recorded K, R, C]", "delta", exact)
    family.replay(found, tally, found.editor()[0])
    return tally.rows()


CHECK = Check("MEMIT", ("MEMIT.safetensors",), run)
