"""Replays recorded MEMIT runs."""

from __future__ import annotations

from lit_edit.editors import MEMIT
from lit_edit.verify import family
from lit_edit.verify.recording import Check, Recording
from lit_edit.verify.sequence import Method
from lit_edit.verify.table import Row


def method(recording: Recording) -> Method | None:
    """The recorded sequence, ``None`` where there is none."""
    return Method.of(recording, "MEMIT", lambda said: MEMIT(lam=said["mom2_update_weight"]))


def run(recording: Recording) -> list[Row]:
    """Rows of MEMIT: residuals and deltas from recorded inputs, then the model's part."""
    return family.run(recording, "MEMIT", method(recording))


CHECK = Check("MEMIT", ("MEMIT.safetensors",), run)
