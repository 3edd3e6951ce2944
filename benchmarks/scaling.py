"""One batch over one and several processes on one machine, in one run: who gains what, and what is sent for it.

    python benchmarks/scaling.py --processes 2 --json scaling.json

All processes are started once and use one thread each. In every round the first one does a batch alone, while the others wait,
and then all do it together, so that both are measured under the same conditions. The model has GPT-2-small's shape and random
weights; nobody stops early.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # run as a file, the folder above is not on the path

import torch
import torch.distributed as dist
from torch import Tensor

from benchmarks import requests, steps
from benchmarks.settings import Settings
from benchmarks.small import ground_of
from benchmarks.stopwatch import wall
from lit_edit.moments import collect
from lit_edit.parallel.process_ranks import ProcessRanks
from lit_edit.parallel.ranks import Ranks
from lit_edit.report.environment import environment
from lit_edit.workbench import Workbench

PHASES = ("targets", "keys and solves", "second moments")


class Counted(ProcessRanks):
    """Ranks that count the bytes which each of them receives."""

    received = 0

    def _rows(self, mine: Tensor, shares: Sequence[Sequence[int]]) -> Tensor:
        rows = super()._rows(mine, shares)
        self.received += rows.numel() * rows.element_size() - mine.numel() * mine.element_size()
        return rows

    def overwrite(self, tensors: Sequence[Tensor]) -> None:
        """See :meth:`lit_edit.parallel.ranks.Ranks.overwrite`."""
        super().overwrite(tensors)
        self.received += sum(part.numel() * part.element_size() for part in tensors)


def batch(ground: steps.Ground, rows: Sequence[Any], ranks: Ranks, documents: Sequence[Sequence[int]]) -> dict[str, float]:
    """Seconds of every phase of a batch."""
    editor, guard = ground.editor(), ground.guard()
    bench = Workbench(
        anatomy=ground.anatomy,
        layers=ground.layers,
        guards=[guard],
        master=lambda layer: ground.originals[layer],
        original=lambda layer: ground.originals[layer],
        options=ground.options,
        pad=ground.pad,
        ranks=ranks,
    )
    found: dict[str, float] = {}

    def timed(phase: str, work: Callable[[], Any]) -> Any:
        ranks.agree()
        started = time.perf_counter()
        result = work()
        ranks.agree()
        found[phase] = time.perf_counter() - started
        return result

    aimed = timed("targets", lambda: editor.aim(bench, rows))
    timed("keys and solves", lambda: editor.change(bench, rows, aimed))
    bench.clear()
    tokens = sum(len(document) for document in documents)
    timed("second moments", lambda: collect(ground.anatomy, documents, ground.layers, tokens, ranks=ranks))
    return found


def worker(rank: int, args: argparse.Namespace, port: int, answer: Any) -> None:
    """One process: everything is made from seeds, so all hold the same."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=args.processes)
    settings = Settings(wall, args.quick, args.seed, None, None, None)
    ground = ground_of(settings)
    rows = requests.drawn(args.batch, ground.anatomy.vocabulary, ground.options.contexts, args.seed)
    generator = torch.Generator().manual_seed(args.seed)
    documents = torch.randint(ground.anatomy.vocabulary, (args.documents, 128), generator=generator).tolist()
    together = Counted(torch.device("cpu"))
    rounds: list[dict[str, dict[str, float]]] = []
    received = 0
    for number in range(args.rounds + 1):
        alone = batch(ground, rows, Ranks(), documents) if rank == 0 else {}
        together.agree()
        before = together.received
        all_of_us = batch(ground, rows, together, documents)
        received = together.received - before
        if number:  # the first round warms up
            rounds.append({"alone": alone, "together": all_of_us})
        if rank == 0:
            print(f"round {number} of {args.rounds}", file=sys.stderr, flush=True)
    if rank == 0:
        answer.put({"rounds": rounds, "received": received})
    dist.destroy_process_group()


def main(given: list[str] | None = None) -> dict[str, Any]:
    """Measure, print a table, write the JSON, and return it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--batch", type=int, default=16, help="requests")
    parser.add_argument("--documents", type=int, default=24, help="documents of 128 tokens for the second moments")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--quick", action="store_true", help="tiny sizes, to see that everything runs")
    parser.add_argument("--json", type=Path, required=True)
    args = parser.parse_args(given)
    context = torch.multiprocessing.get_context("spawn")
    answer = context.SimpleQueue()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
    started = [context.Process(target=worker, args=(rank, args, port, answer)) for rank in range(args.processes)]
    for process in started:
        process.start()
    for process in started:
        process.join()
    if any(process.exitcode for process in started):
        raise SystemExit("a process failed; its own words stand above")
    found = answer.get()
    table = {
        phase: {
            "alone": statistics.median(one["alone"][phase] for one in found["rounds"]),
            "together": statistics.median(one["together"][phase] for one in found["rounds"]),
            "speed_up": statistics.median(one["alone"][phase] / one["together"][phase] for one in found["rounds"]),
        }
        for phase in PHASES
    }
    print(f"{'':18} {'1 process':>12} {args.processes:>3} processes {'speed-up':>9} {'efficiency':>11}")
    for phase, one in table.items():
        share = one["speed_up"] / args.processes
        print(f"{phase:18} {one['alone']:10.2f} s {one['together']:11.2f} s {one['speed_up']:9.2f} {share:11.0%}")
    print(f"received by each process for a batch of {args.batch}: {found['received'] / 2**20:.1f} MiB")
    written = {
        "processes": args.processes,
        "batch": args.batch,
        "documents": args.documents,
        "quick": args.quick,
        "seed": args.seed,
        "environment": environment(torch.device("cpu")),
        "load_before": load,
        "table": table,
        **found,
    }
    args.json.write_text(json.dumps(written, indent=1) + "\n", encoding="utf-8")
    return written


if __name__ == "__main__":
    main()
