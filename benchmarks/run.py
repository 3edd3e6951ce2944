"""The benchmark suite: this library against the plain textbook implementation, on one machine in one run.

    python benchmarks/run.py cpu --json cpu.json
    python benchmarks/run.py gpu --json gpu.json
    python benchmarks/run.py cpu --only batch10 solve_llama --json part.json

What is measured and how is told in ``docs/speed.md``. Everything is made up from seeds; ``--counterfact`` with GPT-2's
``--vocab`` and ``--merges`` edits published records instead. On a machine that others use as well, ``--clock process`` counts
processor time.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import sys
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # run as a file, the folder above is not on the path

import torch

from benchmarks import gpu, small, solves
from benchmarks.settings import Found, Settings
from benchmarks.stopwatch import process, wall
from lit_edit.report.environment import environment

RATIOS = (
    "step_ratio_batch10",
    "step_ratio_batch100",
    "solve_ratio_14336",
    "moments_ratio_5_layers",
    "evaluation_ratio",
    "late_early_batch_ratio",
    "guard_drift_share",
)
"""What stands at the top of the JSON of a whole cpu suite."""

Part = Callable[[Settings, dict[str, Found]], Found]


def cpu_parts() -> dict[str, Part]:
    """Name and measurement, in the order they run; later ones may use what earlier ones have found."""
    alone: dict[str, Callable[[Settings], Found]] = {
        "batch10": partial(small.step, size=10),
        "batch100": partial(small.step, size=100),
        "guard": small.guard,
        "moments": small.moments,
        "evaluation": small.evaluation,
        "solve_gpt2_xl": partial(solves.layer, name="gpt2-xl"),
        "solve_gpt_j": partial(solves.layer, name="gpt-j"),
        "solve_llama": partial(solves.layer, name="llama-3-8b"),
    }
    parts: dict[str, Part] = {name: partial(_alone, measure) for name, measure in alone.items()}
    return {**parts, "stream": _stream}


def gpu_parts() -> dict[str, Part]:
    """As :func:`cpu_parts`."""
    return {mode: partial(_alone, partial(gpu.batch, mode=mode)) for mode in gpu.MODES}


def _alone(measure: Callable[[Settings], Found], settings: Settings, found: dict[str, Found]) -> Found:
    return measure(settings)


def _stream(settings: Settings, found: dict[str, Found]) -> Found:
    known = found.get("batch100") or small.step(settings, 100)
    return solves.stream(settings, known["ours_seconds"])


def main(given: list[str] | None = None) -> dict[str, Any]:
    """Measure, print a table, write the JSON, and return it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("suite", choices=("cpu", "gpu"))
    parser.add_argument("--json", type=Path, required=True, help="where to write everything that was measured")
    parser.add_argument("--only", nargs="+", help="parts to run")
    parser.add_argument("--quick", action="store_true", help="tiny sizes, to see that everything runs")
    parser.add_argument("--threads", type=int, help="CPU threads (default: as torch chooses)")
    parser.add_argument("--clock", choices=("wall", "process"), default="wall")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--counterfact", type=Path, help="CounterFact records (JSON list)")
    parser.add_argument("--vocab", type=Path, help="vocab.json of GPT-2's tokenizer")
    parser.add_argument("--merges", type=Path, help="merges.txt of GPT-2's tokenizer")
    args = parser.parse_args(given)
    parts = cpu_parts() if args.suite == "cpu" else gpu_parts()
    unknown = sorted(set(args.only or ()) - set(parts))
    if unknown:
        parser.error(f"--only names {unknown[0]}; the parts of the {args.suite} suite are {', '.join(parts)}")
    if args.counterfact and not (args.vocab and args.merges):
        parser.error("--counterfact needs GPT-2's --vocab and --merges")
    if args.threads:
        torch.set_num_threads(args.threads)
    clock = wall if args.clock == "wall" else process
    settings = Settings(clock, args.quick, args.seed, args.counterfact, args.vocab, args.merges)
    device = torch.device("cuda" if args.suite == "gpu" and torch.cuda.is_available() else "cpu")

    found: dict[str, Found] = {}
    written: dict[str, Any] = {
        "suite": args.suite,
        "quick": args.quick,
        "clock": args.clock,
        "seed": args.seed,
        "environment": environment(device),
        "load": {"start": _load()},
    }
    for name, measure in parts.items():
        if args.only and name not in args.only:
            continue
        started = wall()
        found[name] = measure(settings, found)
        found[name]["took_seconds"] = wall() - started
        written |= found[name]["ratios"]
        _show(name, found[name])
        gc.collect()
        written["load"]["end"] = _load()
        # After every part: a run that is cut short leaves what it has.
        args.json.write_text(json.dumps({**written, "parts": found}, indent=1) + "\n", encoding="utf-8")
    print("\n" + "\n".join(f"{name:24} {written[name]:8.3f}" for name in RATIOS if name in written))
    return {**written, "parts": found}


def _load() -> float | None:
    """Processes that wanted the processor in the last minute, where the system tells: above the cores, times are too long."""
    return os.getloadavg()[0] if hasattr(os, "getloadavg") else None


def _show(name: str, found: Found) -> None:
    """One line per part, and one per way of doing it."""
    print(f"{name} ({found['took_seconds']:.0f} s)")
    for key, value in found.items():
        if isinstance(value, float | int) and key != "took_seconds":
            print(f"    {key:34} {value:.4g}")
        elif isinstance(value, dict) and all(isinstance(part, float | int) for part in value.values()):
            line = ", ".join(f"{part} {seconds:.3g}" for part, seconds in value.items())
            print(f"    {key:34} {line}")
        elif key == "profile":
            print(value)
    sys.stdout.flush()


if __name__ == "__main__":
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*share a key but not an answer.*")  # drawn subjects may be equal
        main()
