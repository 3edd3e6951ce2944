"""Ranks of one run, forked by a process that has imported everything.

As a program it reads one JSON request a line. ``{"ranks", "arguments", "folder", "said"}`` runs the command line on so many ranks, as
torchrun would start them; rank ``of`` is killed (or gets another ``signal``) at a place as ``tests/crash/killing.py`` names them.
``{"ranks", "call": "module:function", "given"}`` calls ``function(ranks, given)`` on every rank. The answer is
``{"codes", "seconds", "found"}``: how every rank ended (null where it had to be killed after ``limit`` seconds), when, and what
it returned.
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import socket
import sys
import time
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1] / "crash")]


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def become(rank: int, size: int, port: int) -> None:
    """Make this process a rank, as a launcher's environment would."""
    from lightning.fabric.utilities import rank_zero as fabric
    from lightning.pytorch.utilities import rank_zero as pytorch

    told = {"LOCAL_RANK": rank, "NODE_RANK": 0, "WORLD_SIZE": size, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    os.environ.update({name: str(value) for name, value in told.items()})
    fabric.rank_zero_only.rank = pytorch.rank_zero_only.rank = rank  # set when Lightning was imported, before the fork


def called(request: dict[str, Any], rank: int, kept: int) -> None:
    """Call a function on this rank and write down what it returned."""
    from datetime import timedelta

    import torch
    import torch.distributed as dist

    from lit_edit.parallel.process_ranks import ProcessRanks

    code = 70
    try:
        module, name = request["call"].split(":")
        dist.init_process_group(
            "gloo", rank=rank, world_size=request["ranks"], timeout=timedelta(seconds=request.get("timeout", 60))
        )
        found = getattr(importlib.import_module(module), name)(ProcessRanks(torch.device("cpu")), request.get("given"))
        os.write(kept, json.dumps(found).encode())
        code = 0
    except BaseException:
        import traceback

        os.write(kept, json.dumps(traceback.format_exc()).encode())
    finally:
        os._exit(code)


def several(request: dict[str, Any]) -> dict[str, Any]:
    from killing import Counter, child

    size, port, numbers, pipes = request["ranks"], free_port(), [], []
    for rank in range(size):
        counter = Counter(request.get("at") if rank == request.get("of") else None, request.get("signal", signal.SIGKILL))
        reads, writes = os.pipe()
        number = os.fork()
        if not number:
            become(rank, size, port)
            if "call" in request:
                called(request, rank, writes)
            child(
                {**request, "said": f"{request['said']}-{rank}", "dump": request.get("dump") and f"{request['dump']}-{rank}"},
                counter,
            )
        os.close(writes)
        numbers.append(number)
        pipes.append(reads)
    codes, seconds, started = [None] * size, [0.0] * size, time.monotonic()
    while None in codes and time.monotonic() - started < request.get("limit", 120):
        for rank, number in enumerate(numbers):
            if codes[rank] is None:
                ended, status = os.waitpid(number, os.WNOHANG)
                if ended:
                    codes[rank], seconds[rank] = os.waitstatus_to_exitcode(status), time.monotonic() - started
        time.sleep(0.005)
    for rank, number in enumerate(numbers):
        if codes[rank] is None:
            os.kill(number, signal.SIGKILL)
            os.waitpid(number, 0)
    found = []
    for reads in pipes:
        with os.fdopen(reads, "rb") as pipe:
            text = pipe.read()
        found.append(json.loads(text) if text else None)
    return {"codes": codes, "seconds": seconds, "found": found}


def serve() -> None:
    import torch
    import torch.utils.tensorboard
    import transformers.models.gpt2.modeling_gpt2  # noqa: F401

    import lit_edit.cli  # noqa: F401

    torch.set_num_threads(1)
    sys.argv = ["lit-edit"]
    print("ready", flush=True)
    for line in sys.stdin:
        print(json.dumps(several(json.loads(line))), flush=True)


if __name__ == "__main__":
    serve()
