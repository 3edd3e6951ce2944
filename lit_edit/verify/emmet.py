"""Replays recorded EMMET runs."""

from __future__ import annotations

from lit_edit.editors import EMMET
from lit_edit.verify import family
from lit_edit.verify.recording import Check, Recording
from lit_edit.verify.table import Row, Tally


def method(recording: Recording) -> family.Method | None:
    """The recorded sequence, ``None`` where there is none."""
    return family.Method.of(
        recording,
        "EMMET",
        lambda said: EMMET(said["mom2_update_weight"], said["emmet_lambda"], said.get("update_norm_lambda", 0.0)),
    )


def run(recording: Recording) -> list[Row]:
    """Rows of EMMET: residuals and deltas from recorded inputs, then the model's part."""
    tally = Tally(recording, "EMMET")
    found = method(recording)
    if found is None:
        tally.note("all", "not recorded here")
        return tally.rows()
    family.residuals(found, tally)
    family.closed_form(found, tally, "[recorded K, R, C]", "delta")
    family.read(found, tally)
    family.replay(found, tally)
    return tally.rows()


CHECK = Check("EMMET", ("EMMET.safetensors",), run)
