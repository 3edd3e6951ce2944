"""Where the model keeps its parts, and whether they do what they are taken for."""

from __future__ import annotations

import torch
from torch import Tensor

from lit_edit.doctor.case import Case, Check
from lit_edit.doctor.finding import Outcome, note, off, ok
from lit_edit.models.decoder import in_features, is_projection, is_transposed, norm_factors, out_features, stored_weight
from lit_edit.passes.forward import at_least_float32, reading, run_until
from lit_edit.passes.trial import difference

_NOTHING = "Nothing has to be set: no edit depends on it."


def model_class(case: Case) -> Outcome:
    """What it is, and whether it was saved as that."""
    name, kind = type(case.model).__name__, str(case.text_config.model_type)
    saved = list(getattr(case.model.config, "architectures", None) or [name])
    if name not in saved:
        advice = f"Make sure that it has the head you want: a {saved[0]} may have been trained for something else."
        return note(f"{name} ({kind}), saved as {', '.join(saved)}", advice, name=name, type=kind, saved_as=saved)
    return ok(f"{name} ({kind})", name=name, type=kind, saved_as=saved)


def blocks(case: Case) -> Outcome:
    """How many there are, and whether all have the same down-projection."""
    anatomy = case.anatomy
    wanted = tuple(stored_weight(anatomy.down(0)).shape)
    plain = []
    for layer, block in enumerate(anatomy.blocks):
        try:
            down = block.get_submodule(anatomy.down_name)
        except AttributeError:
            continue
        if is_projection(down) and tuple(stored_weight(down).shape) == wanted:
            plain.append(layer)
    count, where = len(anatomy.blocks), anatomy.blocks_name
    if len(plain) < count:
        found = f"{count} at {where}, but only {spans(plain)} have the {anatomy.down_name} of block 0"
        others = sorted(set(case.layers) - set(plain))
        advice = f"Choose --model.layers among {spans(plain)}"
        if not others:
            return note(found, f"{advice}.", count=count, path=where, with_down_projection=plain)
        return off(found, f"{advice}; {spans(others)} cannot be edited.", count=count, path=where, with_down_projection=plain)
    return ok(f"{count} at {where}, all alike", count=count, path=where, with_down_projection=plain)


def spans(layers: list[int]) -> str:
    """Numbers with runs drawn together.

    >>> spans([0, 1, 2, 5])
    'layers 0 to 2, 5'
    """
    parts: list[list[int]] = []
    for layer in layers:
        if parts and layer == parts[-1][-1] + 1:
            parts[-1] = [parts[-1][0], layer]
        else:
            parts.append([layer])
    return "layers " + ", ".join(" to ".join(map(str, part)) for part in parts) if parts else "no layers"


def down_projection(case: Case) -> Outcome:
    r"""Whether :math:`W k + b` is what comes out of it, ``W`` being the view that edits are written into."""
    anatomy = case.anatomy
    layer = case.layers[0]
    module = anatomy.down(layer)
    seen: list[Tensor] = []
    # Copied at once: some families add to the output in place.
    with reading(module, lambda x: seen.append(x.clone()), lambda x: seen.append(x.clone())):
        run_until(anatomy, module, case.inputs(case.rows[0]))
    keys_NI, outputs_NO = (at_least_float32(x.flatten(0, -2)) for x in seen)
    bias = getattr(module, "bias", None)
    expected_NO = keys_NI @ at_least_float32(anatomy.weight(layer)).T + (0 if bias is None else at_least_float32(bias))
    apart = difference(expected_NO, outputs_NO)
    kind = type(module).__name__
    stored = "[in, out], read transposed" if is_transposed(module) else "[out, in]"
    shape = f"[{out_features(module)}, {in_features(module)}]"
    found = f"{anatomy.down_name}: {kind} stored as {stored}; W is {shape}"
    values = {"path": anatomy.down_name, "class": kind, "d_out": out_features(module), "d_in": in_features(module)}
    if not apart <= max(case.allowed, 1e-3):
        advice = "A change of the weight would not do what is computed for it; replace the module by a plain Linear."
        return off(f"{found}, but its output is not W k + b (off by {apart:.2g})", advice, **values, difference=apart)
    return ok(found, **values, difference=apart)


def after_mlp(case: Case) -> Outcome:
    r"""Whether a norm between MLP and residual stream is :math:`g \odot x / \mathrm{rms}(x)`, as changes are pulled back."""
    anatomy = case.anatomy
    if anatomy.after_mlp_name is None:
        return ok("none: the MLP's output is added as it is", name=None)
    layer = case.layers[0]
    norm = anatomy.blocks[layer].get_submodule(anatomy.after_mlp_name)
    seen: list[Tensor] = []
    with reading(norm, seen.append, seen.append):
        run_until(anatomy, norm, case.inputs(case.rows[0]))
    before_ND, after_ND = (at_least_float32(x.flatten(0, -2)) for x in seen)
    gain_1D, rms_N1 = norm_factors(norm, seen[0].flatten(0, -2))
    apart = difference(gain_1D * before_ND / rms_N1, after_ND)
    found = f"{anatomy.after_mlp_name} ({type(norm).__name__})"
    if not apart <= max(case.allowed, 1e-2):
        advice = "Changes are pulled back through it as if it were one, and will miss what they aim at."
        return off(f"{found}, which is no RMS norm (off by {apart:.2g})", advice, name=anatomy.after_mlp_name, difference=apart)
    return ok(f"{found}: changes are pulled back through it", name=anatomy.after_mlp_name, difference=apart)


def final_norm(case: Case) -> Outcome:
    """Whether the head reads what it gives."""
    anatomy = case.anatomy
    norm = anatomy.final_norm
    if norm is None:
        return note("none under a known name", _NOTHING, name=None)
    name = next(path for path, module in case.model.named_modules() if module is norm)
    seen: list[Tensor] = []
    with reading(norm, None, seen.append), reading(anatomy.head, seen.append, None):
        case.logits(case.rows[0])
    found = f"{name} ({type(norm).__name__})"
    if len(seen) != 2 or not torch.equal(*seen):
        return note(f"{found}, but the head reads something else", _NOTHING, name=name)
    return ok(found, name=name)


def head(case: Case) -> Outcome:
    """Where logits are made, and whether with the embeddings' weight."""
    anatomy = case.anatomy
    module = anatomy.head
    name = next(path for path, found in case.model.named_modules() if found is module)
    embeddings = case.model.get_input_embeddings()  # type: ignore[operator]
    tied = stored_weight(module).data_ptr() == embeddings.weight.data_ptr()
    said = getattr(case.text_config, "tie_word_embeddings", None)
    found = f"{name} ({type(module).__name__}), {'tied to the embeddings' if tied else 'a weight of its own'}"
    if said is not None and bool(said) != tied:
        advice = "Saved and loaded again, head or embeddings may come out different; make tie_word_embeddings say what is so."
        return note(f"{found}, though the configuration says tie_word_embeddings = {said}", advice, name=name, tied=tied)
    return ok(found, name=name, tied=tied)


def logits(case: Case) -> Outcome:
    """What happens between the head and the logits: nothing, a scale, or a soft cap; measured, not read."""
    seen: list[Tensor] = []
    with reading(case.anatomy.head, None, seen.append):
        out_TV = case.logits(case.rows[0])
    raw_TV = at_least_float32(seen[0][0])
    if torch.equal(raw_TV, out_TV):
        return ok("as the head gives them", soft_cap=None, scale=1.0)
    allowed = max(case.allowed, 1e-3)
    cap = getattr(case.text_config, "final_logit_softcapping", None)
    if cap and difference(cap * torch.tanh(raw_TV / cap), out_TV) <= allowed:
        return ok(f"soft-capped at {cap:g}", soft_cap=float(cap), scale=1.0)
    scale = float((raw_TV * out_TV).sum() / raw_TV.square().sum())
    if difference(scale * raw_TV, out_TV) <= allowed:
        return ok(f"the head's times {scale:.4g}", soft_cap=None, scale=scale)
    advice = "Nothing has to be set: they are always taken from the model's own forward pass."
    return note("changed behind the head in a way of the model's own", advice, soft_cap=None, scale=None)


NAME = "parts"
CHECKS = (
    Check("class", model_class),
    Check("blocks", blocks),
    Check("down-projection", down_projection),
    Check("norm behind MLP", after_mlp),
    Check("final norm", final_norm),
    Check("head", head),
    Check("logits", logits),
)
