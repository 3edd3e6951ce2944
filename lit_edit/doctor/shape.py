"""What kind of model it is: attention, MLP, sizes, numbers, and which layers to edit."""

from __future__ import annotations

from collections import Counter
from typing import Any

import torch
from torch import nn

from lit_edit.doctor.case import Case, Check
from lit_edit.doctor.finding import Outcome, cannot, note, off, ok
from lit_edit.doctor.parts import spans
from lit_edit.doctor.published import published
from lit_edit.models.decoder import in_features, is_projection, out_features
from lit_edit.passes.trial import CANNOT_RUN

_FEW_POSITIONS = 64
"""Tokens that a prompt, its answer and a sampled context in front of them may take."""


def attention(case: Case) -> Outcome:
    """Heads, and how many of them have keys and values of their own, as counted in the model's cache."""
    config, model = case.text_config, case.model
    count = getattr(config, "num_attention_heads", None)
    try:
        output = model(**case.inputs(case.rows[0]), use_cache=True)
    except CANNOT_RUN:
        output = None  # a kind of cache that the class itself cannot fill
    cache = getattr(output, case.anatomy.cache_argument, None) or getattr(output, "past_key_values", None)
    states = [getattr(part, "keys", None) for part in getattr(cache, "layers", [])]
    found = Counter(state.shape[1] for state in states if isinstance(state, torch.Tensor) and state.dim() == 4)
    if not found or count is None:
        advice = "Nothing has to be set: rows are then run whole, which is slower."
        return note("no attention that keeps keys and values (recurrent or of an unknown kind)", advice, heads=count)
    heads = max(found)
    kind = "MHA" if heads == count else "MQA" if heads == 1 else "GQA"
    shared = "" if heads == count else f", {heads} for keys and values"
    told = [f"{count} heads{shared} ({kind})", str(getattr(config, "_attn_implementation", None) or "attention of its own")]
    kinds = Counter(getattr(config, "layer_types", None) or ())
    window = getattr(config, "sliding_window", None) if getattr(config, "use_sliding_window", True) else None
    if kinds.get("sliding_attention"):
        told.append(f"window of {window} tokens in {kinds['sliding_attention']} of {sum(kinds.values())} blocks")
    elif window and not kinds:
        told.append(f"window of {window} tokens")
    if getattr(config, "attn_logit_softcapping", None):
        told.append(f"scores soft-capped at {config.attn_logit_softcapping:g}")
    values: dict[str, Any] = {"heads": count, "key_value_heads": heads, "kind": kind}
    if len(states) != len(case.anatomy.blocks) or len(found) > 1:
        told.append(f"keys and values kept in {sum(found.values())} of {len(case.anatomy.blocks)} blocks")
        return note(", ".join(told), "Nothing has to be set: what is not alike in all blocks is found out below.", **values)
    return ok(", ".join(told), **values)


def mlp(case: Case) -> Outcome:
    """What fills the down-projection's input: one projection, or one and its gate."""
    anatomy = case.anatomy
    parent, _, own = anatomy.down_name.rpartition(".")
    block = anatomy.blocks[0]
    inside: nn.Module = block.get_submodule(parent) if parent else block
    width = in_features(anatomy.down(0))
    ways = [
        (path, out_features(module) // width)
        for path, module in inside.named_modules()
        if is_projection(module) and path != own and "att" not in path.lower() and out_features(module) in (width, 2 * width)
    ]
    names = ", ".join(path for path, _ in ways)
    config = case.text_config
    activations = ("hidden_act", "hidden_activation", "activation_function", "activation", "ffn_act")
    activation = next((getattr(config, key) for key in activations if getattr(config, key, None)), None)
    values = {"width": width, "projections": [path for path, _ in ways], "activation": activation}
    total = sum(times for _, times in ways)
    if total not in (1, 2):
        found = f"{width} wide, filled in a way that is not recognised ({names or 'no projection of that width'})"
        return note(found, "Nothing has to be set: keys are read at the down-projection itself.", gated=None, **values)
    act = f", {activation}" if activation else ""
    return ok(f"{'gated' if total == 2 else 'plain'} ({names}), {width} wide{act}", gated=total == 2, **values)


def vocabulary(case: Case) -> Outcome:
    """Whether every token id of the tokenizer has an embedding."""
    rows = case.anatomy.vocabulary
    ids = case.tokenizer.get_vocab().values()
    largest = max(ids, default=-1)
    values = {"embeddings": rows, "tokens": len(ids), "largest_id": largest}
    found = f"{rows} embeddings, {len(ids)} tokens"
    if largest >= rows:
        more = sum(token >= rows for token in ids)
        advice = (
            f"Text with one of the {more} tokens beyond the last embedding fails; call model.resize_token_embeddings"
            f"({largest + 1}) and train them, or take the tokenizer that belongs to the model."
        )
        return off(f"{found} with ids up to {largest}", advice, **values)
    if 2 * largest < rows:
        advice = "More than half of the embeddings belong to no token; make sure that the tokenizer is this model's own."
        return note(f"{found} with ids up to {largest}", advice, **values)
    return ok(found, **values)


def positions(case: Case) -> Outcome:
    """Longest row, and whether prompts with contexts fit into it."""
    config, most = case.text_config, case.anatomy.positions
    names = ("max_position_embeddings", "n_positions", "max_seq_len")
    named = next((name for name in names if getattr(config, name, None)), None)
    if named is None:
        advice = "Longer rows are refused; if the model takes fewer, set max_position_embeddings in its configuration."
        return note(f"{most} assumed, for the configuration gives none", advice, positions=most, named=None)
    if most < _FEW_POSITIONS:
        advice = "Prompts with their contexts may not fit and are then set aside; lower --model.targets.context_tokens."
        return note(f"{most} ({named})", advice, positions=most, named=named)
    return ok(f"{most} ({named})", positions=most, named=named)


def dtype(case: Case) -> Outcome:
    """In which dtypes the parameters are."""
    counts = Counter(str(parameter.dtype).removeprefix("torch.") for parameter in case.model.parameters())
    names = dict(counts.most_common())
    edited = str(case.anatomy.dtype).removeprefix("torch.")
    if len(names) > 1:
        told = ", ".join(f"{count} in {name}" for name, count in names.items())
        return note(f"mixed: {told}", "Loaded with --dtype, all are alike.", dtypes=names, edited=edited)
    return ok(edited, dtypes=names, edited=edited)


def size(case: Case) -> Outcome:
    """Parameters, and the memory that loading and editing take; whether the device has as much left."""
    anatomy, model = case.anatomy, case.model
    parameters = sum(parameter.numel() for parameter in model.parameters())
    held = sum(t.numel() * t.element_size() for t in [*model.parameters(), *model.buffers()])
    # A master, the original and a gradient of every edited matrix, float32.
    more = 3 * 4 * anatomy.d_model * anatomy.d_inner * len(case.layers)
    found = f"{_count(parameters)} parameters: {_bytes(held)} to load, {_bytes(more)} more to edit {len(case.layers)} layer(s)"
    values = {"parameters": parameters, "bytes": held, "bytes_to_edit": more}
    free = _free(anatomy.device)
    if free is not None and free < more:
        advice = "Load it with --dtype bfloat16, name fewer --layers, or take a larger device."
        return off(f"{found}; {anatomy.device} has {_bytes(free)} left", advice, **values, bytes_free=free)
    return ok(found, **values, bytes_free=free)


def _free(device: torch.device) -> int | None:
    """Bytes of device memory that nobody uses; ``None`` where that is not told apart from the machine's memory."""
    return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else None


def _count(number: float) -> str:
    for unit, size_of in (("B", 1e9), ("M", 1e6), ("k", 1e3)):
        if number >= size_of:
            return f"{number / size_of:.3g} {unit}"
    return f"{number:.0f}"


def _bytes(number: float) -> str:
    return f"{number / 2**30:.2f} GiB" if number >= 2**28 else f"{number / 2**20:.{1 if number < 2**23 else 0}f} MiB"


def layers(case: Case) -> Outcome:
    """Which layers would be edited, by whose choice, and whether a change there can reach an answer."""
    anatomy = case.anatomy
    chosen, proposed = case.layers, anatomy.proposed_layers()
    known = published(str(case.text_config.model_type), len(anatomy.blocks), anatomy.d_model, anatomy.d_inner)
    values = {"layers": list(chosen), "proposed": list(proposed), "published": None if known is None else list(known.layers)}
    last = len(anatomy.blocks) - 1
    who = "chosen" if case.wanted is not None else "proposed by the depth"
    told = f"{spans(list(chosen)).removeprefix('layers ')}, {who}"
    if chosen[-1] == last:
        advice = (
            "Behind the last block no attention carries a change from the subject to the answer, so targets cannot be "
            f"optimised there; name lower ones with --model.layers, such as {list(proposed) if proposed[-1] < last else [0]}."
        )
        if last == 0:
            return cannot(f"{told}; the model has a single block", "Editing needs a block above the edited ones.", **values)
        return off(f"{told}: the last one is the last block", advice, **values)
    if known is None:
        return ok(f"{told}; none published for this shape", **values)
    if tuple(chosen) != known.layers:
        theirs = f"{spans(list(known.layers)).removeprefix('layers ')} for {known.model} ({known.source})"
        return note(f"{told}; published: {theirs}", f"To reproduce that, set --model.layers {list(known.layers)}.", **values)
    return ok(f"{told}, as published for {known.model} ({known.source})", **values)


NAME = "shape"
CHECKS = (
    Check("attention", attention),
    Check("MLP", mlp),
    Check("vocabulary", vocabulary),
    Check("positions", positions),
    Check("dtype", dtype),
    Check("memory", size),
    Check("layers", layers),
)
