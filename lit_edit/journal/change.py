"""What one batch did to one weight, as tensors from which the weight behind the batch follows bit for bit.

Legend: O = d_out, I = d_in, R = rank, P = patched numbers.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from lit_edit.delta import Delta
from lit_edit.errors import EditError
from lit_edit.journal.product import EXPONENTS, Part, product, split

FACTORS = ("left", "left_low", "left_exponent", "right", "right_low", "right_exponent", "patch_at", "patch_weight")
"""Names of the tensors of thin factors with their patch."""
_LARGEST_INT = 2**31 - 1


def encode(before: Tensor, after: Tensor, thin: Delta | None) -> dict[str, Tensor]:
    """The smallest of three forms; :func:`apply` gives ``after`` back from each, to the last bit.

    * nothing, where the bits are the same;
    * thin factors (five bytes a number) and a patch of eight bytes for every number of the weight that ``before`` plus their
      :func:`~lit_edit.journal.product.product` does not hit exactly. Those are few: what was written had been rounded once
      from factors of 53 bits, and the weight it was added to is usually far larger than the change;
    * the weight behind the batch, float32, where there are no factors or the patch would be as large.

    The factors may have been scaled on their way into the weight (a learning rate, clipped gradients); the scale is found by
    least squares, and the patch sees to the rest.

    Args:
        before: the weight, ``[d_out, d_in]`` float32.
        after: the weight behind the batch.
        thin: the change that the batch asked for, if it has thin factors.
    """
    if not bool(_differ(before, after).any()):
        return {}
    dense = 4 * after.numel()
    if thin is not None and thin.is_finite() and 5 * thin.factors[0].shape[1] * sum(after.shape) < dense:
        found = _patched(before, after, thin)
        if 8 * found["patch_at"].numel() > dense // 8:
            scaled = _patched(before, after, _scaled(thin, before, after))
            found = min(found, scaled, key=size)
        if size(found) < dense:
            return {name: value.cpu() for name, value in found.items()}
    return {"weight": after.detach().cpu().clone()}


def apply(before: Tensor, stored: Mapping[str, Tensor]) -> Tensor:
    """The weight behind the batch, ``[d_out, d_in]`` float32.

    Args:
        before: the weight before it.
        stored: what :func:`encode` returned.

    Raises:
        EditError: if the tensors are of another form than any that :func:`encode` returns for this weight.
    """
    if not stored:
        return before
    rows, columns = before.shape
    if set(stored) == {"weight"}:
        check(stored["weight"], "weight", torch.float32, (rows, columns))
        return stored["weight"].to(before.device)
    check_factors(stored, rows, columns)
    parts = [
        Part(*(stored[f"{name}{what}"].to(before.device) for what in ("", "_low", "_exponent"))) for name in ("left", "right")
    ]
    after = before + product(*parts)
    after.view(-1)[stored["patch_at"].to(before.device).long()] = stored["patch_weight"].to(before.device)
    return after


def check_factors(stored: Mapping[str, Tensor], rows: int, columns: int) -> None:
    """Refuse tensors that are no thin factors with a patch for a weight ``[rows, columns]``.

    Raises:
        EditError: with what was found; the file is named by whoever read it.
    """
    numbers = rows * columns
    if set(stored) != set(FACTORS):
        raise EditError(f"holds {', '.join(sorted(stored))} for one layer; it is either a weight or {', '.join(FACTORS)}")
    rank = stored["left"].shape[-1] if stored["left"].dim() == 2 else -1
    for name, shape in (("left", (rows, rank)), ("right", (rank, columns))):
        check(stored[name], name, torch.int32, shape)
        check(stored[f"{name}_low"], f"{name}_low", torch.int8, shape)
        exponent = stored[f"{name}_exponent"]
        check(exponent, f"{name}_exponent", torch.int16, (rows if name == "left" else columns,))
        if exponent.numel() and not (EXPONENTS[0] <= int(exponent.min()) and int(exponent.max()) <= EXPONENTS[1]):
            raise EditError(f"holds an exponent in {name} beyond {EXPONENTS[1]}")
    at, weight = stored["patch_at"], stored["patch_weight"]
    check(at, "patch_at", torch.int32 if numbers <= _LARGEST_INT else torch.int64, (at.numel(),))
    check(weight, "patch_weight", torch.float32, (at.numel(),))
    if at.numel() and not (int(at.min()) >= 0 and int(at.max()) < numbers):
        raise EditError(f"patches a number outside the {numbers} of the weight")


def _patched(before: Tensor, after: Tensor, thin: Delta) -> dict[str, Tensor]:
    left, right = split(thin)
    wrong = _differ(before + product(left, right), after).view(-1).nonzero().view(-1)
    return {
        "left": left.high,
        "left_low": left.low,
        "left_exponent": left.exponent,
        "right": right.high.contiguous(),
        "right_low": right.low.contiguous(),
        "right_exponent": right.exponent,
        "patch_at": wrong.to(torch.int32 if before.numel() <= _LARGEST_INT else torch.int64),
        "patch_weight": after.reshape(-1)[wrong],
    }


def _scaled(thin: Delta, before: Tensor, after: Tensor) -> Delta:
    """The change times the number that brings it closest to what was added."""
    left, right = (factor.double() for factor in thin.factors)
    wanted = ((after.double() - before.double()) @ right.T * left).sum()
    square = ((left.T @ left) * (right @ right.T)).sum()
    scale = wanted / square
    return Delta.low_rank(left * scale, right) if bool(torch.isfinite(scale)) else thin


def _differ(one: Tensor, other: Tensor) -> Tensor:
    """Where the bits of two float32 tensors differ; 0 and -0 do."""
    return one.contiguous().view(torch.int32) != other.contiguous().view(torch.int32)


def size(stored: Mapping[str, Tensor]) -> int:
    """Bytes of tensors."""
    return sum(value.numel() * value.element_size() for value in stored.values())


def check(value: Tensor, name: str, dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    """Refuse a stored tensor of another form.

    Raises:
        EditError: with what was found; the file is named by whoever read it.
    """
    if value.dtype != dtype or tuple(value.shape) != shape:
        found = f"{str(value.dtype).removeprefix('torch.')} {list(value.shape)}"
        raise EditError(f"holds {name} as {found} instead of {str(dtype).removeprefix('torch.')} {list(shape)}")
