"""CounterFact metrics: records per second, this library against the plain way, one record at a time, on the same model.

    python benchmarks/scoring.py counterfact.json --vocab vocab.json --merges merges.txt

The plain way is the field's usual evaluation loop: one forward pass per record over all of its (prompt, answer) rows, padded
to the longest, logits at every position, then log-softmax and argmax token by token in Python. This library scores all
records in one call, as at the end of a stream, tokenisation and the trial of :func:`lit_edit.passes.packing.packs_exactly`
included, with a new scorer every time.

What a record costs in the library falls with the number of records that are scored together (``--count``), because they share
prompts and beginnings of prompts; the plain way's cost does not depend on it. So the plain way runs only a sample of the same
records, another one in every round, spread evenly, and its time is scaled to all of them by the padded tokens it feeds: its
cost is proportional to those. Both alternate in one process, half of the sample before and half after the library's turn, so
that a noisy machine disturbs both, and the ratio is formed round by round. The model has GPT-2-small's size and random
weights: only time and equality of the numbers are looked at.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from tokenizers import ByteLevelBPETokenizer
from transformers import AutoModelForCausalLM, GPT2Config, PreTrainedTokenizerFast

from lit_edit.anatomy import Anatomy
from lit_edit.batch.records import asked
from lit_edit.data.counterfact import CounterFact
from lit_edit.prompts import Encoder
from lit_edit.request import EditRequest
from lit_edit.scoring import Scorer


def pairs_of(request: EditRequest) -> Iterator[tuple[str, str]]:
    """Every prompt of a record with every answer that is scored there."""
    for what in asked(request):
        for answer in [*what.wanted, *([] if what.other is None else [what.other])]:
            yield what.prompt, answer


def rows_of(encoder: Encoder, request: EditRequest) -> list[tuple[list[int], int]]:
    """Token ids and first token of the answer for every row of a record."""
    found = [encoder.with_target(*pair) for pair in pairs_of(request)]
    return [(ids, first) for ids, _, first in found]


@torch.no_grad()
def plain(model: torch.nn.Module, encoder: Encoder, request: EditRequest) -> list[tuple[float, bool]]:
    """Mean token NLL of every answer of one record and whether it is the argmax, by one padded forward pass."""
    rows = rows_of(encoder, request)
    longest = max(len(ids) for ids, _ in rows)
    inputs = torch.tensor([ids + [encoder.pad] * (longest - len(ids)) for ids, _ in rows])
    mask = torch.tensor([[1] * len(ids) + [0] * (longest - len(ids)) for ids, _ in rows])
    logits = model(input_ids=inputs, attention_mask=mask).logits
    found = []
    for row, (ids, first) in enumerate(rows):
        total, correct = 0.0, True
        for at in range(first, len(ids)):
            total -= torch.nn.functional.log_softmax(logits[row, at - 1], dim=0)[ids[at]].item()
            correct = correct and logits[row, at - 1].argmax().item() == ids[at]
        found.append((total / (len(ids) - first), correct))
    return found


def ours(model: torch.nn.Module, encoder: Encoder, requests: list[EditRequest]) -> list[list[tuple[float, bool]]]:
    """The same numbers of all records, in one call."""
    pairs = [list(pairs_of(request)) for request in requests]
    scores = Scorer(Anatomy.of(model), encoder).answers([pair for mine in pairs for pair in mine])
    flat = zip(scores.nll.tolist(), scores.correct.tolist(), strict=True)
    return [[next(flat) for _ in mine] for mine in pairs]


def padded(encoder: Encoder, request: EditRequest) -> int:
    """Tokens that the plain way feeds for a record."""
    rows = rows_of(encoder, request)
    return len(rows) * max(len(ids) for ids, _ in rows)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("records", type=Path, help="CounterFact records (JSON list)")
    parser.add_argument("--vocab", required=True, help="vocab.json of GPT-2's tokenizer")
    parser.add_argument("--merges", required=True, help="merges.txt of GPT-2's tokenizer")
    parser.add_argument("--count", type=int, default=500, help="records scored together")
    parser.add_argument("--sample", type=int, default=20, help="records of a round that the plain way scores")
    parser.add_argument("--rounds", type=int, default=4)
    args = parser.parse_args()

    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=ByteLevelBPETokenizer(args.vocab, args.merges)._tokenizer, eos_token="<|endoftext|>"
    )
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(GPT2Config()).eval()
    encoder = Encoder(tokenizer)
    reader = CounterFact()
    records = json.loads(args.records.read_text(encoding="utf-8"))[: args.count]
    requests = [reader.request(record, "", index) for index, record in enumerate(records, start=1)]
    tokens = [padded(encoder, request) for request in requests]

    plain(model, encoder, requests[0])  # warms up
    ours(model, encoder, requests[: args.sample])
    speeds, worst, unlike = [], 0.0, 0
    for turn in range(args.rounds):
        step = len(requests) / args.sample
        sample = [int((number + turn / args.rounds) * step) for number in range(args.sample)]
        half = args.sample // 2
        started = time.perf_counter()
        first = [plain(model, encoder, requests[at]) for at in sample[:half]]
        middle = time.perf_counter()
        second = ours(model, encoder, requests)
        ended = time.perf_counter()
        first += [plain(model, encoder, requests[at]) for at in sample[half:]]
        plainly = middle - started + time.perf_counter() - ended
        for at, mine in zip(sample, first, strict=True):
            worst = max(worst, *(abs(a - b) / abs(a) for (a, _), (b, _) in zip(mine, second[at], strict=True)))
            unlike += sum(a != b for (_, a), (_, b) in zip(mine, second[at], strict=True))
        scaled = plainly * sum(tokens) / sum(tokens[at] for at in sample)
        speeds.append((len(requests) / scaled, len(requests) / (ended - middle)))
        print(f"round {turn + 1}: plain {speeds[-1][0]:.2f}, lit_edit {speeds[-1][1]:.2f} records/s", flush=True)
    ratios = [b / a for a, b in speeds]
    print(f"{len(requests)} records at once, {torch.get_num_threads()} threads, torch {torch.__version__}")
    each = sum(tokens) / len(tokens)
    print(f"plain      {statistics.median(a for a, _ in speeds):8.2f} records/s, {each:.0f} padded tokens each")
    print(f"lit_edit   {statistics.median(b for _, b in speeds):8.2f} records/s")
    print(f"ratio      {statistics.median(ratios):8.2f} ({min(ratios):.2f} to {max(ratios):.2f})")
    print(f"largest relative difference of an NLL {worst:.1e}, different argmax verdicts {unlike}")


if __name__ == "__main__":
    main()
