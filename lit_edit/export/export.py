"""A finished run as something that others can load."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from lit_edit.errors import EditError
from lit_edit.export.about import Content, is_place
from lit_edit.export.delta import write_delta
from lit_edit.export.folder import check_target, new_folder
from lit_edit.export.full import write_full
from lit_edit.export.lora import MAX_RANK, TOLERANCE, write_lora
from lit_edit.export.state import open_state
from lit_edit.export.view import Which, weights_of
from lit_edit.report.numbers import count

Format = Literal["full", "delta", "lora"]
"""A whole Hugging Face model; the change alone, exact; the change as a LoRA adapter, approximate."""


@dataclass(frozen=True)
class Exported:
    """What was written.

    Args:
        folder: where.
        batches: batches of the run that the weights stand behind.
        edits: requests written by then.
        notes: what there is to know about it, in sentences.
        upload: the command that would publish it; nothing of this project does.
    """

    folder: Path
    batches: int
    edits: int
    notes: tuple[str, ...]
    upload: str


def export_model(
    run: str | Path,
    to: str | Path,
    format: Format = "full",
    *,
    checkpoint: str | Path | None = None,
    batches: int | None = None,
    weights: Which = "evaluated",
    rank: int | None = None,
    max_rank: int = MAX_RANK,
    tolerance: float = TOLERANCE,
    base_model: str | None = None,
) -> Exported:
    """Write the edited model of a run into a folder, which is there as a whole or not at all.

    Args:
        run: the run folder.
        to: a new or empty folder.
        format: ``full`` is a Hugging Face folder whose logits are those of the edited model, bit for bit; ``delta`` the change
            alone, which :class:`lit_edit.EditDelta` puts on the base model to the same bits; ``lora`` a PEFT adapter close to
            it.
        checkpoint: which state: this checkpoint of the run. Default: the newest that is whole, of a run that has finished.
        batches: which state: the one behind so many batches, replayed from the journal where no checkpoint was written.
        weights: where a guard shows evaluation other weights than the run writes (PRUNE): those that were ``evaluated``, or
            those that were ``written``.
        rank: of every layer of an adapter; default: the smallest that ``tolerance`` allows.
        max_rank: largest rank where none is asked for.
        tolerance: largest relative Frobenius error of a layer's change where no rank is asked for.
        base_model: how whoever loads the export names the base model; default: as the run did.

    Raises:
        EditError: in one sentence, if the run is unfinished, damaged or none, the folder is taken, or the change needs a larger
            rank.
    """
    target = Path(to)
    if format not in get_args(Format):
        raise EditError(f"--format is {format!r}; it is one of {', '.join(get_args(Format))}")
    if format != "lora" and (rank, max_rank, tolerance) != (None, MAX_RANK, TOLERANCE):
        raise EditError(f"--rank, --max-rank and --tolerance belong to --format lora, and --format is {format}")
    if (rank is not None and rank < 1) or max_rank < 1 or not 1e-5 <= tolerance < 1:
        raise EditError(
            f"--rank is {rank}, --max-rank {max_rank} and --tolerance {tolerance:g}; ranks begin at 1, and tolerances lie "
            "between 1e-5 and 1"
        )
    check_target(target)
    state = open_state(run, checkpoint, batches)
    chosen, which = weights_of(state, weights)
    named = str(state.run.config["model"]["pretrained"])
    local = is_place(named) or Path(named).is_dir()
    label = base_model or (Path(named).name if local else named)
    content = Content(state, chosen, which, base_model or named, label)
    with new_folder(target) as half:
        if format == "full":
            told = write_full(half, content)
        elif format == "delta":
            told = write_delta(half, content)
        else:
            told = write_lora(half, content, rank, max_rank, tolerance)
    edits = state.record["edits"]
    behind = f"{count(state.batches, 'batch', 'batches')} ({count(edits, 'edit')})"
    head = f"{state.run.path} behind {behind}, from {state.source}: {told}"
    notes = (*state.passed_over, head, *([which] if which else []))
    upload = f"hf upload YOUR_NAME/{shlex.quote(target.resolve().name)} {shlex.quote(str(target))}"
    return Exported(target, state.batches, edits, notes, upload)
