"""The change of one layer as tensors: factors of the run's batches where they pay, and else a difference number by number.

Legend: O = d_out, I = d_in, R = rank.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lit_edit.delta import Delta
from lit_edit.errors import EditError
from lit_edit.journal import files
from lit_edit.journal.book import Book
from lit_edit.journal.change import FACTORS, apply, check, check_factors, encode, size
from lit_edit.spectrum import gram_svd

DENSE = ("xor",)
"""Name of the tensor of a dense change."""
NAMES: Mapping[str, tuple[str, ...]] = {"none": (), "factors": FACTORS, "dense": DENSE}
"""Names of the tensors of a step, by the form of the layer's change."""
MOST_STEPS = 1024
"""Steps of one layer; with more, factors cost little less than the dense change, and a file gets very many tensors."""

Step = Mapping[str, Tensor]


@dataclass(frozen=True)
class Change:
    """What turns an unedited weight into the edited one, bit for bit.

    Args:
        form: ``none``, ``factors`` (one step for every batch that changed the weight, as :mod:`lit_edit.journal.change` keeps
            it) or ``dense`` (one step: which bits differ, number by number).
        steps: tensors by name, in the order in which they are applied.
    """

    form: str
    steps: tuple[Step, ...]

    @property
    def rank(self) -> int | None:
        """An upper bound of the rank of the change: the sum over the steps; ``None`` for a dense one."""
        return None if self.form == "dense" else sum(step["left"].shape[1] for step in self.steps)

    @property
    def bytes(self) -> int:
        """Of all tensors."""
        return sum(size(step) for step in self.steps)

    def apply(self, before: Tensor) -> Tensor:
        """The edited weight, ``[d_out, d_in]`` float32; the same bits on every machine.

        Args:
            before: the unedited weight, float32.

        Raises:
            EditError: see :meth:`check`.
        """
        self.check(*before.shape)
        now = before
        for step in self.steps:
            now = _flipped(now, step["xor"].to(now.device)) if self.form == "dense" else apply(now, step)
        return now

    def check(self, rows: int, columns: int) -> None:
        """Refuse tensors that no weight ``[rows, columns]`` can have been given.

        Raises:
            EditError: with what was found.
        """
        for step in self.steps:
            if set(step) != set(NAMES[self.form]):
                raise EditError(f"holds {', '.join(sorted(step))} for a step; it has to be {', '.join(NAMES[self.form])}")
            if self.form == "dense":
                check(step["xor"], "xor", torch.int32, (rows, columns))
            else:
                check_factors(step, rows, columns)


def smallest(before: Tensor, after: Tensor, steps: Sequence[Step] | None) -> Change:
    """The smaller of the forms, each of which gives ``after`` back to the last bit.

    The rule: factors, if those of all steps with their patches take fewer bytes than the dense change, which takes four for
    each number of the weight. The dense change holds which bits differ, and not a float32 difference: added to the weight, that
    would miss the last bit of many numbers where changes are as large as weights.

    Args:
        before: the unedited weight, ``[d_out, d_in]`` float32.
        after: the edited one.
        steps: factors that lead from one to the other, if the journal has them; ``None`` has one step made from the singular
            value decomposition of the whole change, see :func:`thin`.
    """
    if _same(before, after):
        return Change("none", ())
    whole = Change("dense", ({"xor": _bits(before) ^ _bits(after)},))
    factors = Change("factors", tuple(steps) if steps is not None else ())
    if steps is None:
        step = encode(before, after, thin(before, after))
        if "left" not in step:
            return whole
        factors = Change("factors", (step,))
    return factors if len(factors.steps) <= MOST_STEPS and factors.bytes < whole.bytes else whole


def thin(before: Tensor, after: Tensor) -> Delta:
    r"""The change of a weight without what rounding it has added, as float64 factors ``U diag(sigma)`` and ``V^T``.

    .. math:: \sigma_i > 2^{-24}\, \mathrm{rms}(W)\, (\sqrt{d_{out}} + \sqrt{d_{in}})

    The right side bounds the spectral norm of one rounding of ``W`` to float32: independent errors of standard deviation
    :math:`2^{-24}\,\mathrm{rms}(W)/\sqrt 3` make a matrix of norm at most that, divided by :math:`\sqrt 3`.

    Args:
        before: ``[d_out, d_in]`` float32.
        after: the same weight behind its edits.
    """
    floor = 2.0**-24 * float(after.double().square().mean().sqrt()) * sum(side**0.5 for side in after.shape)
    left, sigma, right = gram_svd(after.double() - before.double(), lambda found: int((found > floor).sum()))
    return Delta.low_rank(left * sigma, right.T)


def recorded(book: Book, batches: int, original: Mapping[int, Tensor]) -> dict[int, list[Step] | None]:
    """The factors that a journal keeps of the first batches, by layer; ``None`` for a layer that is better off without.

    Such is a layer of which a change had no thin factors, or whose factors were folded, or are together larger than the weight.

    Args:
        book: the journal.
        batches: how many.
        original: the unedited weights, ``[d_out, d_in]`` float32.

    Raises:
        EditError: if a file is missing or damaged.
    """
    found: dict[int, list[Step] | None] = {layer: [] for layer in original}
    if book.base is not None:
        return dict.fromkeys(original)
    for number, record in enumerate(book.records[:batches]):
        if record["factors"] is None:
            continue
        if all(steps is None for steps in found.values()):
            break
        for layer, step in files.read(book.run, number, record["factors"]).items():
            steps = found.get(layer)
            if not step or steps is None:
                continue
            steps.append(step)
            if "left" not in step or sum(map(size, steps)) >= 4 * original[layer].numel():
                found[layer] = None
    return found


def changes(
    book: Book, batches: int, original: Mapping[int, Tensor], written: Mapping[int, Tensor], shown: Mapping[int, Tensor]
) -> dict[int, Change]:
    """What leads from the unedited weights to those that are exported, by layer.

    Args:
        book: the journal of the run.
        batches: batches behind which the weights stand.
        original: unedited weights, ``[d_out, d_in]`` float32.
        written: the masters behind these batches.
        shown: what is exported; where it is not ``written`` (PRUNE's view), one more step leads there.
    """
    kept = recorded(book, batches, original)
    made = {}
    for layer, before in original.items():
        steps = kept[layer]
        if steps is not None and not _same(Change("factors", tuple(steps)).apply(before), written[layer]):
            steps = None  # --journal.factors false in a part of the run
        if steps is not None and not _same(written[layer], shown[layer]):
            view = encode(written[layer], shown[layer], thin(written[layer], shown[layer]))
            steps = [*steps, view] if "left" in view else None
        made[layer] = smallest(before, shown[layer], steps)
    return made


def _same(one: Tensor, other: Tensor) -> bool:
    return torch.equal(_bits(one), _bits(other))


def _bits(weight: Tensor) -> Tensor:
    return weight.contiguous().view(torch.int32)


def _flipped(weight: Tensor, xor: Tensor) -> Tensor:
    return (_bits(weight) ^ xor).view(torch.float32)
