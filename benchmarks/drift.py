"""One look of SpectralDrift: seconds by iteration and by full decomposition, and the share of a step that they are.

    python benchmarks/drift.py                                   # Llama-3-8B's 4096 x 14336, one thread
    python benchmarks/drift.py --device cuda --shapes 4096x14336 1600x6400

The original weight is random (a flat spectrum, the hardest for an iteration; ``--head`` adds a head of large singular values),
the change is random of rank ``--rank`` and as large, relative to the weight, as ``--size``. Share of a step: floating-point
operations of the look, over those of one batch of edits as counted for Llama-3-8B with 25 optimisation steps: 0.33 million
passes of one prompt row through one block per 100 edits, 7.9 GFLOP each. A step has ``--layers`` looks.
"""

from __future__ import annotations

import argparse
import time

import torch
from torch import Tensor

from lit_edit.algebra import leading
from lit_edit.algebra.drift import examine
from lit_edit.spectrum import Spectrum, decompose, energy_rank

_EDIT = 0.33e6 * 7.9e9 / 100  # operations of one edit


def weights(rows: int, columns: int, rank: int, size: float, head: float, device: torch.device) -> tuple[Tensor, Tensor]:
    """The original weight and the edited one, float32."""
    seeded = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=seeded).to(device)

    original = normal(rows, columns) / columns**0.5
    if head:
        count = min(rows, columns) // 8
        left, right = torch.linalg.qr(normal(rows, count)).Q, torch.linalg.qr(normal(columns, count)).Q
        original += left * (head * torch.arange(1, count + 1, device=device) ** -0.7) @ right.T
    change = normal(rows, rank) @ normal(rank, columns)
    return original, original + change * (size * original.norm() / change.norm())


def timed(
    original: Spectrum, first: Tensor, now: Tensor, tau: float, full: bool, rounds: int
) -> tuple[float, dict[str, float]]:
    """Median seconds of a look, and what it found."""
    # On the CPU, time of this process: what else the machine does must not count.
    clock = time.perf_counter if first.is_cuda else time.process_time
    seconds = []
    for _ in range(rounds):
        if first.is_cuda:
            torch.cuda.synchronize()
        started = clock()
        found = examine(original, first, now, tau, full)
        if first.is_cuda:
            torch.cuda.synchronize()
        seconds.append(clock() - started)
    return sorted(seconds)[len(seconds) // 2], found.measures


def operations(rows: int, columns: int, rank: int, full: bool, space: int) -> float:
    """Floating-point operations of one look, leading terms.

    Args:
        rows: d_out.
        columns: d_in.
        rank: dominant directions.
        full: whether all singular values are found.
        space: dimensions of the Krylov space.
    """
    side, both = min(rows, columns), rows * columns
    contact = 4 * both * rank  # the change on the dominant directions of both sides
    if full:  # two Gram matrices (one of them by halves), one with vectors, one without, all vectors of the longer side
        return contact + 3 * side * both + (9 + 4 / 3) * side**3 + 2 * side * both
    krylov = 2 * side**2 * space + 4 * side * space**2 + 2 * 9 * space**3
    return contact + side * both + krylov + side**3 / 3 + 2 * both * rank + 200 * 4 * both


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", nargs="+", default=["4096x14336"], help="d_out x d_in")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads")
    parser.add_argument("--tau", type=float, default=0.1)
    parser.add_argument("--rank", type=int, default=500, help="rank of the change")
    parser.add_argument("--size", type=float, default=0.5, help="norm of the change over that of the weight")
    parser.add_argument("--head", type=float, default=0.0, help="largest singular value added")
    parser.add_argument("--layers", type=int, default=5, help="edited layers")
    parser.add_argument("--full-every", type=int, default=10, help="looks between two full ones")
    parser.add_argument("--rounds", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    device = torch.device(args.device)

    print(f"torch {torch.__version__}, {args.device}, {torch.get_num_threads()} threads")
    print("seconds of one look at one layer (on a CPU: processor time); share of a step of 100 / 10 / 1 edits")
    print(f"{'shape':>12} {'k':>4} {'space':>5} {'full':>8} {'iterative':>9} {'difference':>10}   share")
    for shape in args.shapes:
        rows, columns = (int(part) for part in shape.lower().split("x"))
        first, now = weights(rows, columns, args.rank, args.size, args.head, device)
        original = decompose(first)
        if device.type == "cuda":
            timed(original, first, now, args.tau, False, 1)  # the first call also loads the libraries
        rank, space = energy_rank(original.sigma, args.tau), 0
        krylov = leading._krylov

        def watched(*given, krylov=krylov):  # type: ignore[no-untyped-def]
            nonlocal space
            for ritz in krylov(*given):
                space = max(space, len(ritz.values))
                yield ritz

        leading._krylov = watched
        try:
            quick, few = timed(original, first, now, args.tau, False, args.rounds)
        finally:
            leading._krylov = krylov
        slow, all_of_them = timed(original, first, now, args.tau, True, args.rounds)
        difference = max(abs(value - all_of_them[name]) / max(1.0, abs(value)) for name, value in few.items())
        each = operations(rows, columns, rank, False, space) + operations(rows, columns, rank, True, 0) / args.full_every
        shares = " / ".join(f"{100 * args.layers * each / (_EDIT * edits):.2f} %" for edits in (100, 10, 1))
        print(f"{shape:>12} {rank:4} {space:5} {slow:8.2f} {quick:9.2f} {difference:10.1e}   {shares}")


if __name__ == "__main__":
    main()
