"""Replays recorded EMMET runs."""

from __future__ import annotations

from lit_edit.editors import EMMET
from lit_edit.verify import family
from lit_edit.verify.recording import Check, Recording
from lit_edit.verify.sequence import Method
from lit_edit.verify.table import Row


def method(recording: Recording) -> Method | None:
    """The recorded sequence, ``None`` where there is none."""
    return Method.of(
        recording,
        "EMMET",
        lambda said: EMMET(said["mom2_update_weight"], said["emmet_lambda"], said.get("update_norm_lambda", 0.0)),
    )


def run(recording: Recording) -> list[Row]:
    """Rows of EMMET: residuals and deltas from recorded inputs, then the model's part."""
    return family.run(recording, "EMMET", method(recording))


CHECK = Check("EMMET", ("EMMET.safetensors",), run)
