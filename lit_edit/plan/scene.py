"""Everything that a plan is computed from, gathered once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from lit_edit.editors import Editor
from lit_edit.guards.base import Guard
from lit_edit.plan.network import Network
from lit_edit.plan.settings import RunSettings
from lit_edit.plan.state import State, closed_directions, rank_of, state_of
from lit_edit.plan.work import BatchWork, Grid, StreamWork
from lit_edit.prompts import Encoder
from lit_edit.targets import TargetOptions


@dataclass(frozen=True)
class Scene:
    """A run, before it is one.

    Args of a run that matter, the network as shapes, and the stream as counts.
    """

    network: Network
    encoder: Encoder
    editor: Editor
    guards: Sequence[Guard]
    layers: tuple[int, ...]
    targets: TargetOptions
    settings: RunSettings
    device: str
    """``cpu`` or ``cuda``."""
    stream: StreamWork
    state: State
    protected: float
    """Share of the input directions that a null-space editor protects, mean over the layers."""
    moment_tokens: int
    """Tokens for the second moments; 0 where none are needed or they are imported."""
    corpus: Any
    """Where these come from; ``None`` for imported ones."""
    row_tokens: int
    """Tokens of the longest row of the corpus."""
    padding: float
    """Padded tokens for every token of the corpus."""
    wants_spectra: bool
    scoring: tuple[Grid, ...]
    """Forward passes of scoring :attr:`scored` edits."""
    scored: int
    probes: tuple[Grid, ...]
    """Forward passes of all probes."""
    at_once: int
    """Padded tokens of a pass of the evaluation."""
    minibatch: int
    """Requests of a pass of an editor that takes gradients."""
    review: int
    """Most edits that a validation scores."""

    def protecting(self, share: float) -> Scene:
        """The same run with an editor that protects this share of the input directions."""
        d_out, d_in = self.shape
        state = state_of(self.editor, len(self.layers), d_out, d_in, self.stream.sizes, share)
        return replace(self, state=state, protected=share)

    @property
    def editor_protects(self) -> bool:
        """Whether the editor keeps out of directions that the second moments name."""
        return closed_directions(self.editor, self.shape[1], 0) > 0

    @property
    def shape(self) -> tuple[int, int]:
        """``d_out`` and ``d_in`` of the edited weights."""
        return self.network.anatomy.d_model, self.network.anatomy.d_inner

    @property
    def workers(self) -> int:
        """Shares that the work of the model is cut into."""
        return self.settings.ranks if self.settings.strategy == "replicated" else 1

    @property
    def largest(self) -> BatchWork:
        """The batch of the most requests."""
        return max(self.stream.read, key=lambda batch: batch.requests)

    @property
    def rank(self) -> int | None:
        """Rank of the largest batch's change, ``None`` where it is dense."""
        return self.rank_of(self.largest)

    def rank_of(self, batch: BatchWork) -> int | None:
        """Rank of a batch's change, ``None`` where it is dense."""
        return rank_of(self.editor, self.guards, batch.requests, batch.answers, batch.tokens)
