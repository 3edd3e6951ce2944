"""The GPT-2-small-shaped model: batches of 10 and of 100, guard and drift, second moments, evaluation."""

from __future__ import annotations

import random
from collections.abc import Sequence
from functools import partial

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

from benchmarks import requests, scoring, steps
from benchmarks.settings import Found, Settings, median, spread
from benchmarks.stopwatch import peak_mib, seconds_of
from lit_edit.algebra.drift import examine
from lit_edit.anatomy import Anatomy
from lit_edit.moments import SecondMoment, collect
from lit_edit.passes.forward import reading, run_until
from lit_edit.prompts import EditRows, Encoder, right_pad
from lit_edit.request import EditRequest
from lit_edit.targets import TargetOptions

LOOKS_PER_FULL_LOOK = 10
"""Default cadence of :class:`lit_edit.callbacks.SpectralDrift`: a look after every batch, each tenth a full one."""


def model_of(settings: Settings) -> nn.Module:
    """Random weights, as GPT-2 initialises them."""
    torch.manual_seed(settings.seed)
    quick = {"n_embd": 64, "n_layer": 9, "n_head": 4, "vocab_size": 2000} if settings.quick else {}
    return AutoModelForCausalLM.from_config(AutoConfig.for_model("gpt2", **quick)).eval().requires_grad_(False)


def ground_of(settings: Settings) -> steps.Ground:
    """Layers 3-7, 20 steps, five contexts; nobody stops early, so that both sides do the same number of steps."""
    options = TargetOptions(steps=settings.size(20, 4), stop_loss=0.0)
    return steps.Ground.prepare(model_of(settings), range(3, 8), options, 15000.0, settings.seed)


def requests_of(settings: Settings, ground: steps.Ground, count: int) -> list[EditRows]:
    """From the files if there are any, else drawn at random."""
    if settings.counterfact is None or settings.vocab is None or settings.merges is None:
        return requests.drawn(count, ground.anatomy.vocabulary, ground.options.contexts, settings.seed)
    encoder = requests.gpt2_encoder(settings.vocab, settings.merges)
    words = ("The", "Therefore", "Because", "I", "You")
    templates = tuple(f"{word} would have been here before it was a city. {{}}" for word in words)  # 11 tokens, as sampled
    return requests.counterfact(settings.counterfact, encoder, count, templates)


def step(settings: Settings, size: int) -> Found:
    """One batch by both ways, alternately.

    The textbook optimises its targets one at a time, with the same work for each, so a sample of them tells the time of all;
    keys and solves are measured whole.
    """
    ground = ground_of(settings)
    batch = requests_of(settings, ground, size)
    guard = ground.guard()
    rounds = settings.size(3 if size < 50 else 2, 1)
    timed = min(settings.size(4, 1), size)
    mine, plain, differences = [], [], []
    found: Found = {}
    for turn in range(rounds):
        # A new editor every time: it would remember the batch, and write nothing when it sees it again.
        watch, changes, targets_ND = steps.ours(ground, batch, ground.editor(), guard, settings.clock)
        mine.append(dict(watch.seconds))
        sample = spread(timed, size, turn, rounds)
        watch, deltas = steps.by_the_book(ground, batch, sample, targets_ND, clock=settings.clock)
        plain.append(dict(watch.seconds))
        differences += [float((changes[at] - deltas[at]).norm() / deltas[at].norm()) for at in ground.layers]
        if turn == 0 and size < 50:
            watch, _ = steps.by_the_book(ground, batch, sample[:2], targets_ND, as_released=True, clock=settings.clock)
            found["ratio_to_as_released"] = _step(watch.seconds) / _step(mine[0])
            found["as_released_seconds"] = dict(watch.seconds)
    ratios = [_step(b) / _step(a) for a, b in zip(mine, plain, strict=True)]
    middle = ratios.index(sorted(ratios)[len(ratios) // 2])
    return found | {
        "ratios": {f"step_ratio_batch{size}": median(ratios)},
        "ratio_by_round": ratios,
        "ours_seconds": mine[middle],
        "textbook_seconds": plain[middle],
        "textbook_targets_timed": timed,
        "ours_edits_per_second": size / _step(mine[middle]),
        "textbook_edits_per_second": size / _step(plain[middle]),
        "largest_difference_of_a_change": max(differences),
        "peak_mib": peak_mib(ground.anatomy.device),
        "data": "random token ids with CounterFact's lengths" if settings.counterfact is None else "CounterFact",
    }


def _step(seconds: dict[str, float]) -> float:
    return sum(seconds[name] for name in steps.STEP)


def guard(settings: Settings) -> Found:
    """REVIVE and SpectralDrift at its default cadence, as a share of a whole step of 100 edits."""
    ground = ground_of(settings)
    batch = requests_of(settings, ground, settings.size(100, 10))
    watch, changes, _ = steps.ours(ground, batch, ground.editor(), ground.guard(), settings.clock)
    looks = {}
    for name, full in (("few", False), ("all", True)):
        looks[name] = sum(seconds_of(settings.clock, partial(_look, ground, at, changes[at], full)) for at in ground.layers)
    drift = looks["few"] + (looks["all"] - looks["few"]) / LOOKS_PER_FULL_LOOK
    whole = watch.total() + drift
    return {
        "ratios": {"guard_drift_share": (watch.total("guard") + drift) / whole},
        "edits": len(batch),
        "step_seconds": dict(watch.seconds),
        "drift_seconds": drift,
        "look_seconds": looks,
    }


def _look(ground: steps.Ground, layer: int, change: Tensor, full: bool) -> None:
    original = ground.originals[layer]
    examine(ground.spectra[layer], original, original + change, 0.1, full)


def moments(settings: Settings) -> Found:
    """Five layers in one pass against one pass for each, which also stops at its layer, over the same documents."""
    anatomy = Anatomy.of(model_of(settings))
    source = random.Random(settings.seed)
    wanted = settings.size(12_000, 600)
    longest = min(anatomy.positions, 1024)
    documents: list[list[int]] = []
    while sum(map(len, documents)) < wanted:
        length = min(longest, max(8, int(source.lognormvariate(5.0, 0.8))))
        documents.append([source.randrange(anatomy.vocabulary) for _ in range(length)])
    tokens = sum(map(len, documents))
    layers = range(3, 8)
    found: dict[int, SecondMoment] = {}
    mine = seconds_of(settings.clock, lambda: found.update(collect(anatomy, documents, list(layers), tokens)))
    watch = settings.watch()
    plain: dict[int, Tensor] = {}
    for at in layers:
        with watch.part("one layer per pass"):
            plain[at] = one_layer(anatomy, documents, at, 3 * longest)
    theirs = watch.total()
    worst = max(float((found[at].mean - plain[at]).norm() / plain[at].norm()) for at in layers)
    return {
        "ratios": {"moments_ratio_5_layers": theirs / mine},
        "tokens": tokens,
        "ours_seconds": mine,
        "one_layer_per_pass_seconds": theirs,
        "largest_difference": worst,
    }


@torch.no_grad()
def one_layer(anatomy: Anatomy, documents: Sequence[Sequence[int]], layer: int, tokens_at_once: int) -> Tensor:
    """Mean second moment of one layer ``[d_in, d_in]``: documents sorted by length and padded, as released."""
    total = torch.zeros(anatomy.d_inner, anatomy.d_inner)
    count = 0
    batch: list[Sequence[int]] = []
    queue = sorted(documents, key=len)
    for index, document in enumerate(queue):
        batch.append(document)
        following = len(queue[index + 1]) if index + 1 < len(queue) else tokens_at_once
        if following * (len(batch) + 1) <= tokens_at_once:
            continue
        inputs = right_pad(batch, 0, anatomy.device)
        seen: list[Tensor] = []
        with reading(anatomy.down(layer), seen.append, None):
            run_until(anatomy, anatomy.down(layer), inputs)
        keys = seen[0][inputs["attention_mask"].bool()]
        total += keys.T @ keys
        count += len(keys)
        batch = []
    return total / count


def evaluation(settings: Settings) -> Found:
    """CounterFact metrics: one record at a time against all records in one call, see :mod:`benchmarks.scoring`."""
    model = model_of(settings)
    encoder = word_encoder(Anatomy.of(model).vocabulary)
    count, timed = settings.size(200, 6), settings.size(6, 2)
    records = [_record(random.Random(settings.seed * 100_003 + index)) for index in range(count)]
    padded = [scoring.padded(encoder, record) for record in records]
    scoring.plain(model, encoder, records[0])  # warms up
    ratios, speeds = [], []
    for turn in range(settings.size(2, 1)):
        sample = spread(timed, count, turn, 2)
        watch = settings.watch()
        with watch.part("plain"):
            for at in sample:
                scoring.plain(model, encoder, records[at])
        with watch.part("ours"):
            scoring.ours(model, encoder, records)
        # What the plain way costs is proportional to the tokens it feeds.
        plain = watch.seconds["plain"] * sum(padded) / sum(padded[at] for at in sample)
        mine = watch.seconds["ours"]
        ratios.append(plain / mine)
        speeds.append((count / mine, count / plain))
    return {
        "ratios": {"evaluation_ratio": median(ratios)},
        "records": count,
        "ours_records_per_second": median([a for a, _ in speeds]),
        "textbook_records_per_second": median([b for _, b in speeds]),
        "textbook_records_timed": timed,
    }


def _record(source: random.Random) -> EditRequest:
    """A record of CounterFact's form and lengths: two paraphrases behind a sentence, ten neighbours that share a prompt."""

    def words(count: int) -> str:
        return " ".join(f"w{source.randrange(1900)}" for _ in range(count))

    subject, relation = words(4), words(3)
    return EditRequest(
        prompt=f"{{}} {relation}",
        subject=subject,
        target_new=words(1),
        target_true=words(1),
        paraphrases=tuple(f"{words(14)} {subject} {words(4)}" for _ in range(2)),
        neighbourhood=tuple((f"{words(4)} {relation}", words(1)) for _ in range(10)),
    )


def word_encoder(vocabulary: int) -> Encoder:
    """A tokenizer for which every word ``w<number>`` is one token."""
    known = {f"w{index}": index for index in range(vocabulary - 1)} | {"<end>": vocabulary - 1}
    backend = Tokenizer(models.WordLevel(known, unk_token="<end>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return Encoder(PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<end>", unk_token="<end>"))
