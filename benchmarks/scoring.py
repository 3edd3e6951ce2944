"""CounterFact metrics: records per second, this library against the plain way, one record at a time, on the same model.

    python benchmarks/scoring.py counterfact.json --vocab vocab.json --merges merges.txt

The plain way is the field's usual evaluation loop: one forward pass per record over all of its (prompt, answer) rows, padded
to the longest, logits and log-softmax at every position, token by token in Python. Rounds alternate, so that a noisy machine
disturbs both; the ratio of medians counts. The model has GPT-2-small's size and random weights: only time and equality of the
numbers are looked at.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path

import torch
from tokenizers import ByteLevelBPETokenizer
from transformers import AutoModelForCausalLM, GPT2Config, PreTrainedTokenizerFast

from lit_edit.anatomy import Anatomy
from lit_edit.data.counterfact import CounterFact
from lit_edit.prompts import Encoder
from lit_edit.records import asked
from lit_edit.request import EditRequest
from lit_edit.scoring import Scorer


@torch.no_grad()
def plain(model: torch.nn.Module, encoder: Encoder, request: EditRequest) -> list[float]:
    """Mean token NLL of every answer of one record, by one padded forward pass."""
    rows = []
    for what in asked(request):
        for answer in [*what.wanted, *([] if what.other is None else [what.other])]:
            ids, _, first = encoder.with_target(what.prompt, answer)
            rows.append((ids, first))
    longest = max(len(ids) for ids, _ in rows)
    inputs = torch.tensor([ids + [encoder.pad] * (longest - len(ids)) for ids, _ in rows])
    mask = torch.tensor([[1] * len(ids) + [0] * (longest - len(ids)) for ids, _ in rows])
    logits = model(input_ids=inputs, attention_mask=mask).logits
    found = []
    for row, (ids, first) in enumerate(rows):
        total = 0.0
        for at in range(first, len(ids)):
            total -= torch.nn.functional.log_softmax(logits[row, at - 1], dim=0)[ids[at]].item()
        found.append(total / (len(ids) - first))
    return found


def ours(scorer: Scorer, requests: list[EditRequest]) -> list[float]:
    """The same numbers in the same order, all records at once."""
    pairs = [
        (what.prompt, answer)
        for request in requests
        for what in asked(request)
        for answer in [*what.wanted, *([] if what.other is None else [what.other])]
    ]
    return scorer.answers(pairs).nll.tolist()


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("records", type=Path, help="CounterFact records (JSON list)")
    parser.add_argument("--vocab", required=True, help="vocab.json of GPT-2's tokenizer")
    parser.add_argument("--merges", required=True, help="merges.txt of GPT-2's tokenizer")
    parser.add_argument("--count", type=int, default=16, help="records per round")
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()

    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=ByteLevelBPETokenizer(args.vocab, args.merges)._tokenizer, eos_token="<|endoftext|>"
    )
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(GPT2Config()).eval()
    encoder = Encoder(tokenizer)
    scorer = Scorer(Anatomy.of(model), encoder)
    reader = CounterFact()
    records = json.loads(args.records.read_text(encoding="utf-8"))[: args.count * (args.rounds + 1)]
    requests = [reader.request(record, "", index) for index, record in enumerate(records, start=1)]

    times: dict[str, list[float]] = {"plain": [], "lit_edit": []}
    worst = 0.0
    for turn in range(args.rounds + 1):
        some = requests[turn * args.count : (turn + 1) * args.count]
        started = time.perf_counter()
        first = [value for request in some for value in plain(model, encoder, request)]
        middle = time.perf_counter()
        second = ours(scorer, some)
        ended = time.perf_counter()
        worst = max(worst, *(abs(a - b) / abs(a) for a, b in zip(first, second, strict=True)))
        if turn:  # the first round warms up
            times["plain"].append(middle - started)
            times["lit_edit"].append(ended - middle)
    speed = {name: args.count / statistics.median(values) for name, values in times.items()}
    print(f"{args.rounds} rounds of {args.count} records, {torch.get_num_threads()} threads, torch {torch.__version__}")
    for name, value in speed.items():
        print(f"{name:10} {value:8.2f} records/s")
    print(f"ratio      {speed['lit_edit'] / speed['plain']:8.2f}   largest relative difference of an NLL {worst:.1e}")


if __name__ == "__main__":
    main()
