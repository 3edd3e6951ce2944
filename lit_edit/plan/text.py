"""A plan as text for a terminal."""

from __future__ import annotations

from collections.abc import Sequence

from lit_edit.plan.result import Cached, Part, Plan, Work


def told(plan: Plan) -> str:
    """All of a plan: model and stream, memory by part and phase, disk, time, caches, and the verdict."""
    sections = [_what(plan), _memory(plan), _disk(plan), _work(plan)]
    if plan.cached:
        sections.append("\n".join(_cached(one) for one in plan.cached))
    if plan.notes:
        sections.append("\n".join(f"Note: {note}." for note in plan.notes))
    sections.append(_verdict(plan))
    return "\n\n".join(sections)


def size(count: int) -> str:
    """Bytes as a person reads them.

    >>> size(512), size(3 * 2**20), size(5 * 2**29)
    ('512 B', '3.0 MiB', '2.50 GiB')
    """
    if count < 2**20:
        return f"{count} B" if count < 2**10 else f"{count / 2**10:.0f} KiB"
    return f"{count / 2**20:.1f} MiB" if count < 2**30 else f"{count / 2**30:.2f} GiB"


def duration(seconds: float) -> str:
    """Seconds as a person reads them.

    >>> duration(0.5), duration(90), duration(7300)
    ('0.5 s', '1 min 30 s', '2 h 1 min')
    """
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def _what(plan: Plan) -> str:
    model, stream = plan.model, plan.stream
    guards = f" + {' + '.join(model['guards'])}" if model["guards"] else ""
    ranks = f", {stream['ranks']} ranks ({stream['strategy']})" if stream["ranks"] > 1 else ""
    steps = f", {stream['steps']} steps each" if stream["steps"] else ""
    aside = f" ({stream['set_aside']} set aside)" if stream["set_aside"] else ""
    size = f"{model['parameters']:,} parameters in {model['dtype']}, {model['blocks']} blocks"
    return (
        f"{model['pretrained']}: {model['family']}, {size}\n"
        f"{model['editor']}{guards} on layers {model['layers']}, weights of {model['d_out']} x {model['d_in']}\n"
        f"{stream['edits']:,} edits{aside} in {stream['batches']} batches of {stream['batch_size']}{steps}, "
        f"on {stream['device']}{ranks}"
    )


def _memory(plan: Plan) -> str:
    memory = plan.memory
    lines = [f"Memory, at the largest moment ({memory.largest.name}):", *_parts(memory.largest.parts)]
    peaks = ", ".join(f"{phase.name} {size(phase.bytes)}" for phase in memory.phases)
    several = f" for each of {memory.ranks_here} processes" if memory.ranks_here > 1 else ""
    lines += [f"  {'together':<28}{size(memory.largest.bytes):>12}{several}; there are {size(memory.available)}"]
    return "\n".join([*lines, f"  Peaks by phase: {peaks}"])


def _parts(parts: Sequence[Part]) -> list[str]:
    return [f"  {part.name:<28}{size(part.bytes):>12}{'  ' + part.note if part.note else ''}" for part in parts]


def _disk(plan: Plan) -> str:
    disk = plan.disk
    lines = ["Disk:", *_parts(disk.parts), f"  {'together':<28}{size(disk.bytes):>12}; {size(disk.free)} are free"]
    return "\n".join([*lines, f"  Every batch adds {size(disk.per_batch)} to the journal."])


def _work(plan: Plan) -> str:
    lines = ["Time:" if plan.seconds is not None else "Operations (--calibrate true tells the time):"]
    lines += [f"  {work.phase:<28}{_count(work.operations):>12}{_time(work)}" for work in plan.work]
    total = f"  {'together':<28}{_count(sum(work.operations for work in plan.work)):>12}"
    if plan.seconds is not None and plan.rates is not None:
        rates = plan.rates
        total += f"{duration(plan.seconds):>16}"
        lines += [
            total,
            f"  At {_count(rates.model)}/s in the model's dtype and {_count(rates.double)}/s in float64, measured now.",
        ]
    else:
        lines.append(total)
    return "\n".join(lines)


def _time(work: Work) -> str:
    return "" if work.seconds is None else f"{duration(work.seconds):>16}"


def _count(operations: float) -> str:
    for power, name in ((15, "PFLOP"), (12, "TFLOP"), (9, "GFLOP")):
        if operations >= 10**power:
            return f"{operations / 10**power:.2f} {name}"
    return f"{operations / 10**6:.2f} MFLOP"


def _cached(one: Cached) -> str:
    if one.layers is None:
        return f"Cached {one.name}: not known; {one.note}."
    there = [layer for layer, is_there in one.layers.items() if is_there]
    missing = [layer for layer, is_there in one.layers.items() if not is_there]
    if not missing:
        return f"Cached {one.name}: all {len(there)} layers."
    return f"Cached {one.name}: {f'layers {there}' if there else 'none'}; layers {missing} will be computed."


def _verdict(plan: Plan) -> str:
    if plan.fits:
        return "It fits."
    lacking = [name for name, fits in (("memory", plan.memory.fits), ("disk", plan.disk.fits)) if not fits]
    advice = [f"  {one}" for one in plan.advice]
    return "\n".join([f"It does not fit: too little {' and '.join(lacking)}. What would, one of:", *advice])
