"""Runs of the command line that die by SIGKILL where they are told to; one process imports everything and forks the runs.

As a program it reads one JSON request a line: ``{"arguments", "folder", "said", "at", "after"}``. The run works in ``folder``
and prints into ``said``; it is killed at the ``at``-th place where something is about to be written or applied, or at the n-th of a
name (``at`` is ``[name, n]``), half-way through the write if it is one, or ``after`` seconds. With ``signal`` it gets another
signal at that place, and with ``environment`` more variables. The answer is ``{"code", "seconds", "place", "count"}``: how the run ended
(-9 if it was killed), the last place it passed and how many it had passed.
"""

from __future__ import annotations

import io
import json
import mmap
import os
import signal
import struct
import sys
import time
from pathlib import Path

PLACES = 256


class Counter:
    """Counts the places a run passes, in memory that outlives it, and kills it at one of them."""

    def __init__(self, at: int | list | None, number: int = signal.SIGKILL) -> None:
        self.at, self.number, self.memory = at, number, mmap.mmap(-1, 4 + PLACES)
        self.trace: list[str] | None = None
        self.seen = 0

    @property
    def count(self) -> int:
        return struct.unpack_from("i", self.memory, 0)[0]

    @property
    def place(self) -> str:
        return bytes(self.memory[4:]).rstrip(b"\0").decode()

    def passes(self, place: str) -> bool:
        """Note a place; whether the run has to die here."""
        count = self.count + 1
        name = place.encode()[: PLACES - 1]
        self.memory[4:] = name + b"\0" * (PLACES - len(name))
        struct.pack_into("i", self.memory, 0, count)
        if self.trace is not None:
            self.trace.append(place)
        if isinstance(self.at, list):
            self.seen += place == self.at[0]
            return place == self.at[0] and self.seen == self.at[1]
        return count == self.at

    def here(self, place: str) -> None:
        if self.passes(place):
            self.die()

    def die(self) -> None:
        """Die on the spot, or obey another signal."""
        os.kill(os.getpid(), self.number)
        if self.number == signal.SIGKILL:
            time.sleep(60)


def kind(path: str) -> str | None:
    """What a file is to a run; ``None`` for one that other threads write or nobody needs."""
    name = Path(path).name
    for ending, what in (
        (".ckpt", "checkpoint"),
        ("metrics.csv", "csv"),
        ("summary.json", "summary"),
        ("config.yaml", "config"),
    ):
        if ending in name:
            return what
    if "journal" in path:
        return "journal" if "journal.jsonl" in name else "factors"
    return "cache" if "/cache/" in path or path.startswith("cache/") else None


class Torn:
    """A file that writes only the first half of what it is given when its turn has come."""

    def __init__(self, file, counter: Counter, what: str) -> None:
        self._file, self._counter, self._what = file, counter, what

    def _fatal(self, content) -> None:
        if self._counter.passes(f"{self._what}: half written"):
            if self._counter.number == signal.SIGKILL:
                self._file.write(content[: len(content) // 2])
                self._file.flush()
            self._counter.die()

    def write(self, content):
        self._fatal(content)
        return self._file.write(content)

    def writelines(self, parts):
        parts = [bytes(part) if not isinstance(part, str) else part for part in parts]
        if parts:
            self._fatal(type(parts[0])().join(parts))
        return self._file.writelines(parts)

    def __getattr__(self, name):
        return getattr(self._file, name)

    def __iter__(self):
        return iter(self._file)

    def __enter__(self):
        self._file.__enter__()
        return self

    def __exit__(self, *error):
        return self._file.__exit__(*error)


def arm(counter: Counter) -> None:
    """Let the counter see every write, rename, link, flush and removal, and the steps of a batch."""
    from lit_edit.module import ContinualEditor
    from lit_edit.workbench import Workbench

    real = {name: getattr(os, name) for name in ("replace", "link", "fsync", "unlink", "fdopen", "open")}
    names: dict[int, str] = {}

    def opened(path, *args, **kwargs):
        handle = real["open"](path, *args, **kwargs)
        if isinstance(path, str | os.PathLike):
            names[handle] = os.fspath(path)
        return handle

    def fdopen(handle, *args, **kwargs):
        file, what = real["fdopen"](handle, *args, **kwargs), kind(names.get(handle, ""))
        return file if what is None else Torn(file, counter, what)

    def fsync(handle):
        path = names.get(handle, "")
        what = "folder" if os.path.isdir(path) else kind(path)
        counter.here(f"{what or 'file'}: written, before it is flushed")
        real["fsync"](handle)

    def moving(name, told):
        def act(source, *args, **kwargs):
            what = kind(os.fspath(args[0] if args else source))
            if what is not None:
                counter.here(f"{what}: {told}")
            return real[name](source, *args, **kwargs)

        return act

    plain = io.open

    def anew(path, mode="r", *args, **kwargs):
        file = plain(path, mode, *args, **kwargs)
        what = kind(os.fspath(path)) if isinstance(path, str | os.PathLike) and set(mode) & set("wax+") else None
        if what is None:
            return file
        names[file.fileno()] = os.fspath(path)
        return Torn(file, counter, what)

    os.open, os.fdopen, os.fsync, io.open = opened, fdopen, fsync, anew
    os.replace = moving("replace", "flushed, before it is renamed")
    os.link = moving("link", "before it has its other name")
    os.unlink = moving("unlink", "before it is removed")

    def before(owner, name, told):
        method = getattr(owner, name)

        def step(self, *args, **kwargs):
            counter.here(told)
            return method(self, *args, **kwargs)

        setattr(owner, name, step)

    before(ContinualEditor, "training_step", "batch: before its targets")
    before(Workbench, "write", "walk: before a layer is written")
    before(Workbench, "finish", "walk: before the weights are put back")
    before(ContinualEditor, "optimizer_step", "batch: before its walk")
    before(ContinualEditor, "_hand_over", "batch: before its step")
    before(ContinualEditor, "_record", "batch: applied, before the journal has it")
    before(ContinualEditor, "_commit", "batch: in the journal, before it is committed")
    before(ContinualEditor, "on_validation_start", "validation: before it")
    before(ContinualEditor, "on_validation_epoch_end", "validation: before its numbers")
    before(ContinualEditor, "settle", "batch: logged")


def keep_weights(path: str) -> None:
    """Write down what this process holds at the end: masters, shown weights, state of editor and guards."""
    from safetensors.torch import save_file

    from lit_edit.module import ContinualEditor

    end = ContinualEditor.on_train_end

    def on_train_end(self):
        end(self)
        held = {name: value for name, value in self.state_dict().items() if name.startswith(("masters.", "editor.", "guards."))}
        held |= {f"shown.{layer}": self.anatomy.shown(layer) for layer in self.layers}
        save_file({name: value.detach().contiguous().clone() for name, value in held.items()}, path)

    ContinualEditor.on_train_end = on_train_end


def child(request: dict, counter: Counter) -> None:
    said = os.open(request["said"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
    for stream in (1, 2):
        os.dup2(said, stream)
    os.chdir(request["folder"])
    os.environ.update(request.get("environment", {}))
    code = 70
    try:
        if request.get("trace"):
            counter.trace = []
        arm(counter)
        if request.get("dump"):
            keep_weights(request["dump"])
        from lit_edit.__main__ import main

        code = main(request["arguments"])
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else 1
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        if counter.trace is not None:
            Path(request["trace"]).write_text("\n".join(counter.trace))
        os._exit(code)


def serve() -> None:
    import torch.utils.tensorboard
    import transformers.models.gpt2.modeling_gpt2  # noqa: F401

    import lit_edit.cli  # noqa: F401

    torch.set_num_threads(1)
    sys.argv = ["lit-edit"]
    print("ready", flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        counter, started = Counter(request.get("at"), request.get("signal", signal.SIGKILL)), time.monotonic()
        number = os.fork()
        if not number:
            child(request, counter)
        after, status = request.get("after"), None
        while status is None:
            ended, found = os.waitpid(number, os.WNOHANG if after is not None else 0)
            if ended:
                status = found
            elif time.monotonic() - started >= after:
                os.kill(number, signal.SIGKILL)
                after = None
            else:
                time.sleep(0.002)
        answer = {
            "code": os.waitstatus_to_exitcode(status),
            "seconds": time.monotonic() - started,
            "place": counter.place,
            "count": counter.count,
        }
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    serve()
