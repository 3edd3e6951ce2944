"""One batch of edits into a model of GPT-2-XL's shape with random weights, end to end on the CPU: seconds and peak memory.

    python benchmarks/large.py --counterfact counterfact.json --vocab vocab.json --merges merges.txt --text text.txt --folder xl

The model (48 blocks, width 1600, 50,257 tokens) is drawn and saved, ``lit-edit fit --config models/gpt2-xl`` writes four
requests into it under REVIVE with the journal on, and the exported change is put on the model and taken off again. Every step
is a process of its own, whose peak is what the system counts (``VmHWM``, mapped files included). All of it lies in
``--folder``: 8 GB.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # run as a file, the folder above is not on the path

import torch
from safetensors import safe_open
from torch import nn

from benchmarks.shapes import gpt2_tokenizer, random_model
from lit_edit.prompts import Encoder
from lit_edit.request import EditRequest

Found = dict[str, Any]


def alone(threads: int, work: Callable[..., Found], *given: Any) -> Found:
    """Run a function of a module in a process of its own.

    Args:
        threads: of the CPU.
        work: what to run.
        *given: its arguments.

    Returns:
        What it returned, with ``seconds`` on the wall, ``cpu_seconds`` and ``peak`` bytes of the process.
    """
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(_measured, threads, work, given).result()


def _measured(threads: int, work: Callable[..., Found], given: tuple[Any, ...]) -> Found:
    torch.set_num_threads(threads)
    began, busy = time.perf_counter(), time.process_time()
    found = work(*given)
    return {
        **found,
        "seconds": time.perf_counter() - began,
        "cpu_seconds": time.process_time() - busy,
        "peak": most_resident(),
    }


def most_resident() -> int:
    """Most bytes that this process held, mapped files included.

    Raises:
        RuntimeError: on a system without ``/proc``.
    """
    status = Path("/proc/self/status")
    for line in status.read_text(encoding="utf-8").splitlines() if status.exists() else ():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError("this system does not tell the most memory that a process held")


def build(vocab: Path, merges: Path, folder: Path, changes: dict[str, Any]) -> Found:
    """Draw the model and save it with its tokenizer."""
    model = random_model("gpt2-xl", **changes)
    model.save_pretrained(folder)  # type: ignore[operator]
    gpt2_tokenizer(vocab, merges).save_pretrained(folder)
    return {"parameters": sum(value.numel() for value in model.parameters())}


def fit(arguments: list[str], base: Path) -> Found:
    """A run of ``lit-edit fit``, and whether it left the other weights alone.

    Args:
        arguments: its command line behind the verb.
        base: folder of the unedited model.

    Raises:
        RuntimeError: if the command failed.
    """
    from lit_edit import ContinualEditor
    from lit_edit.__main__ import main as lit_edit

    models: list[ContinualEditor] = []
    plain = ContinualEditor.on_train_end

    def remembered(self: ContinualEditor) -> None:
        models.append(self)
        plain(self)

    ContinualEditor.on_train_end = remembered  # type: ignore[method-assign]
    try:
        if lit_edit(["fit", *arguments]):
            raise RuntimeError("lit-edit fit failed; its message stands above")
    finally:
        ContinualEditor.on_train_end = plain  # type: ignore[method-assign]
    peak = most_resident()
    net = models[0].net
    assert isinstance(net, nn.Module)
    return {"fit_peak": peak, "changed": differing(net, base)}


def undo(run: Path, base: Path, folder: Path) -> Found:
    """Export what a run changed, put it on the base model, ask for the facts, and take it off again.

    Args:
        run: folder of the run.
        base: folder of the unedited model.
        folder: where the export goes.

    Raises:
        RuntimeError: if the export failed.
    """
    import lit_edit
    from lit_edit.__main__ import main as command
    from lit_edit.models.identity import load_pretrained

    if command(["export", str(run), "--to", str(folder), "--format", "delta"]):
        raise RuntimeError("lit-edit export failed; its message stands above")
    model, tokenizer = load_pretrained(str(base), None, torch.float32)
    encoder, requests = Encoder(tokenizer), written(run)
    edit = lit_edit.EditDelta.load(folder)
    before = likelihoods(model, encoder, requests)
    edit.apply(model)
    applied, after = differing(model, base), likelihoods(model, encoder, requests)
    edit.unapply(model)
    return {"applied": applied, "left": differing(model, base), "before": before, "after": after}


def written(run: Path) -> list[EditRequest]:
    """The requests that a run wrote, as its journal has them."""
    records = (json.loads(line) for line in (run / "journal.jsonl").read_text(encoding="utf-8").splitlines())
    asked = [one for record in records for one in record["requests"] if one["fate"] == "written"]
    return [EditRequest(one["prompt"], one["subject"], one["target"]) for one in asked]


@torch.no_grad()
def likelihoods(model: nn.Module, encoder: Encoder, requests: Sequence[EditRequest]) -> list[float]:
    """Mean log-probability of the tokens of every request's answer, by one plain pass over the whole row each."""
    model.eval()
    found = []
    for request in requests:
        row = encoder.rows(request, ()).rewriting[0]
        told = model(input_ids=torch.tensor([list(row.ids)]), use_cache=False).logits[0].float().log_softmax(-1)
        found.append(sum(float(told[column, label]) for column, label in row.labels) / len(row.labels))
    return found


def differing(model: nn.Module, base: Path) -> list[str]:
    """Names of parameters whose bits are not those of the saved model."""
    found = []
    with safe_open(base / "model.safetensors", framework="pt") as file:
        known = set(file.keys())
        for name, value in model.named_parameters():
            if name in known and not torch.equal(value.detach(), file.get_tensor(name)):
                found.append(name)
    return found


def command_line(model: Path, run: Path, counterfact: Path, text: Path, tokens: int) -> list[str]:
    """``lit-edit fit`` with the preset of GPT-2-XL, REVIVE and the journal, on four requests.

    Args:
        model: folder of the model.
        run: folder of the run.
        counterfact: CounterFact records.
        text: what second moments are taken from.
        tokens: how much of it; above 6,400, or a second moment is singular.
    """
    return [
        *("--config", "models/gpt2-xl", "--model.pretrained", str(model), "--model.guards", "guards/revive"),
        *(
            "--model.corpus",
            "TextCorpus",
            "--model.corpus.paths",
            json.dumps([str(text)]),
            "--model.moment_tokens",
            str(tokens),
        ),
        *("--model.cache_dir", str(run.parent / "cache"), "--run_dir", str(run)),
        *("--data.path", str(counterfact), "--data.limit", "4", "--data.batch_size", "4"),
        *("--baseline", "false", "--drift.figures", "false"),
        *("--trainer.accelerator", "cpu", "--trainer.enable_progress_bar", "false"),
    ]


def main(given: list[str] | None = None) -> dict[str, Found]:
    """Run all steps, print a line for each, and return what they found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, told in (
        ("counterfact", "CounterFact records (JSON list)"),
        ("vocab", "vocab.json of GPT-2's tokenizer"),
        ("merges", "merges.txt of GPT-2's tokenizer"),
        ("text", "plain text for the second moments"),
        ("folder", "where model, cache and run are put"),
    ):
        parser.add_argument(f"--{name}", type=Path, required=True, help=told)
    parser.add_argument("--tokens", type=int, default=8192, help="of the text")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="CPU threads (default: as torch chooses)")
    parser.add_argument("--blocks", type=int, default=48, help="fewer than 48 for a trial; the preset edits up to block 17")
    args = parser.parse_args(given)
    model, run = args.folder / "model", args.folder / "run"
    found: dict[str, Found] = {}
    if not (model / "model.safetensors").exists():
        found["build"] = alone(args.threads, build, args.vocab, args.merges, model, {"n_layer": args.blocks})
        _show("build", found["build"])
    found["fit"] = alone(args.threads, fit, command_line(model, run, args.counterfact, args.text, args.tokens), model)
    _show("fit", found["fit"])
    found["undo"] = alone(args.threads, undo, run, model, args.folder / "delta")
    _show("undo", found["undo"])
    return found


def _show(name: str, found: Found) -> None:
    peak, seconds, busy = found.get("fit_peak", found["peak"]), found["seconds"], found["cpu_seconds"]
    print(f"{name:6} {peak / 1e9:6.2f} GB {seconds:8.0f} s ({busy:.0f} s of the processor)", flush=True)


if __name__ == "__main__":
    main()
