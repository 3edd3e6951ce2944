"""Measuring the missing points of a study, in this process or in one process per device."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from multiprocessing import active_children, get_context
from pathlib import Path
from typing import ClassVar

import torch
from tqdm import tqdm

from lit_edit.errors import EditError
from lit_edit.parallel.launcher import ParentWatch
from lit_edit.runs.interrupts import Terminated
from lit_edit.studies.base import Point, Result, Study
from lit_edit.studies.folder import StudyFolder


def run(folder: StudyFolder, workers: Sequence[str] = ("auto",), progress: bool = True) -> None:
    """Measure every point that the folder does not have yet; each is on disk before the next one begins.

    Args:
        folder: of the study.
        workers: devices; a single one is used in this process, several by one process each (``cpu`` twice: two processes that
            share the cores). ``auto`` is a GPU where there is one.
        progress: show a bar.

    Raises:
        EditError: for a device that there is not, or a point that cannot be measured; the finished ones are kept.
    """
    devices = [device_of(name) for name in workers]
    if not devices:
        raise EditError("a study needs at least one worker, e.g. --workers [auto]")
    missing = folder.missing()
    if missing:
        folder.study.begin(missing, devices)
    bar = tqdm(
        total=len(folder.done) + len(missing), initial=len(folder.done), desc=folder.name, unit="point", disable=not progress
    )
    try:
        measure = _here if len(devices) == 1 else _spread
        measure(folder, missing, devices, bar.set_postfix_str, bar.update)
    finally:
        bar.close()


def device_of(name: str) -> torch.device:
    """The device of a name; ``auto`` is ``cuda`` where there is one, else ``cpu``.

    Raises:
        EditError: if there is no such device.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise EditError(f"--workers names no device: {name!r}; write auto, cpu or cuda:0") from None
    if device.type not in ("cpu", "cuda"):
        raise EditError(f"--workers names {name}, on which float64 solves do not run; write auto, cpu or cuda:0")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise EditError(f"--workers names {name}, but this machine shows {torch.cuda.device_count()} CUDA devices")
    return device


def _timed(study: Study, point: Point, device: torch.device, place: Path) -> tuple[Result, float]:
    started = time.perf_counter()
    place.mkdir(parents=True, exist_ok=True)
    try:
        result = study.measure(point, device, place)
    except EditError as error:
        raise EditError(f"point {point.key!r}: {error}; the finished points are kept, the same command goes on") from error
    with suppress(OSError):
        place.rmdir()  # a study that wrote nothing of its own leaves no empty folder
    return result, time.perf_counter() - started


def _here(
    folder: StudyFolder,
    missing: Sequence[Point],
    devices: Sequence[torch.device],
    tell: Callable[[str], None],
    done: Callable[[int], object],
) -> None:
    for point in missing:
        tell(point.key)
        folder.add(point, *_timed(folder.study, point, devices[0], folder.place(point)))
        done(1)


def _spread(
    folder: StudyFolder,
    missing: Sequence[Point],
    devices: Sequence[torch.device],
    tell: Callable[[str], None],
    done: Callable[[int], object],
) -> None:
    """One process per device; each takes the next point when it has finished one."""
    on_cpu = sum(device.type == "cpu" for device in devices)
    threads = max(1, (os.cpu_count() or 1) // max(on_cpu, 1))
    # Not fork: a process that has used CUDA or threads cannot be copied safely.
    pools = [
        ProcessPoolExecutor(
            1, mp_context=get_context("spawn"), initializer=_start, initargs=(threads, list(sys.path), folder.study)
        )
        for _ in devices
    ]
    waiting = list(missing)
    failed: Future[tuple[Result, float]] | None = None
    running: dict[Future[tuple[Result, float]], tuple[Point, int]] = {}

    def begin(worker: int) -> None:
        if waiting:
            point = waiting.pop(0)
            task = pools[worker].submit(_kept, point, devices[worker], folder.place(point))
            running[task] = (point, worker)
            tell(", ".join(p.key for p, _ in running.values()))

    try:
        for worker in range(len(devices)):
            begin(worker)
        while running:
            for task in wait(running, return_when=FIRST_COMPLETED).done:
                point, worker = running.pop(task)
                if task.exception() is not None:
                    failed = failed or task
                    waiting.clear()  # what is under way is finished and kept, nothing else is begun
                    continue
                folder.add(point, *task.result())
                done(1)
                begin(worker)
        if failed is not None:
            failed.result()
    except BrokenProcessPool as error:
        raise EditError(
            "a worker of the study died (out of memory?); the finished points are kept, the same command goes on"
        ) from error
    except Terminated:  # Ctrl-C reaches the workers by itself
        for worker_process in active_children():
            worker_process.terminate()
        raise
    finally:
        for pool in pools:
            pool.shutdown(wait=True, cancel_futures=True)


class _Worker:
    """What a worker process keeps from one point to the next: sent anew with every point, a study would load anew as often."""

    study: ClassVar[Study]


def _start(threads: int, path: list[str], study: Study) -> None:
    """A worker shares the cores with its siblings, finds the user's own classes, and does not outlive the study."""
    ParentWatch(asking=True).start()
    sys.path[:] = path
    torch.set_num_threads(threads)
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()  # the bars of several workers would stand across the study's own
    _Worker.study = study


def _kept(point: Point, device: torch.device, place: Path) -> tuple[Result, float]:
    return _timed(_Worker.study, point, device, place)
