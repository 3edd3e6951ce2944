"""What every editor is: a batch of facts in, a change of some weights out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING

from torch import Tensor, nn

from lit_edit.algebra.second_moment import SecondMoment

if TYPE_CHECKING:
    from lit_edit.prompts import EditRows, Encoder
    from lit_edit.request import EditRequest
    from lit_edit.targets import Targets
    from lit_edit.workbench import Workbench


class Editor(nn.Module, ABC):
    """Base of all editors. A new editor is one file with one class with one formula.

    The trainer calls, per edited layer, :meth:`allocate` and :meth:`prepare` once, then for every batch :meth:`aim` and
    :meth:`change`. State lives in buffers, so that a checkpoint holds it exactly, and is replaced, never modified in place, so
    that a batch that is undone takes the old state back; what can be recomputed from the original model is kept out of them.

    Closed-form editors derive from :class:`lit_edit.editors.LocateThenEdit` or :class:`lit_edit.editors.LeastSquaresEditor`
    and give one method each.
    """

    needs_moments: bool = True
    """Whether :meth:`prepare` wants the second moment of the keys."""

    needs_contexts: bool = True
    """Whether :meth:`rows` wants context templates."""

    runs_sharded: bool = True
    """Whether it works where every rank holds a part of the model: it may run the model, but not take parameters out of it."""

    def rows(self, encoder: Encoder, request: EditRequest, contexts: Sequence[str]) -> EditRows:
        """The token rows this editor runs for a request; by default those of the MEMIT family.

        Raises:
            MalformedRecord: if the request cannot be edited; it is set aside with the reason.
        """
        return encoder.rows(request, contexts)

    def allocate(self, layer: int, d_out: int, d_in: int) -> None:
        """Create the buffers of one layer, empty, so that a checkpoint can be loaded into them.

        Args:
            layer: index of the transformer block.
            d_out: rows of the edited weight.
            d_in: columns of the edited weight.
        """

    def prepare(self, layer: int, weight: Tensor, moment: SecondMoment | None) -> None:
        """Set up one layer before the first batch: whatever can be computed anew from the original model.

        Args:
            layer: index of the transformer block.
            weight: the original weight, ``[d_out, d_in]``, float32.
            moment: second moment of the layer's keys; ``None`` where ``needs_moments`` is false.
        """

    def aim(self, bench: Workbench, rows: Sequence[EditRows]) -> Targets | None:
        """What the layers should write, where that is decided for the whole batch before any weight changes.

        Args:
            bench: the model, the weights and the guards; nothing may be written yet, and no state changes.
            rows: rows of every request.
        """
        return None

    @abstractmethod
    def change(self, bench: Workbench, rows: Sequence[EditRows], aimed: Targets | None) -> None:
        """Work out the change of every layer and hand it to :meth:`lit_edit.workbench.Workbench.write`.

        Args:
            bench: the model, the weights and the guards.
            rows: rows of every request.
            aimed: what :meth:`aim` returned.

        Raises:
            Rejected: if the batch must not be written.
        """
