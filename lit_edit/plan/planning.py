"""A plan of a run: what it will cost, from its configuration and its text alone."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from lit_edit.data import EditStream
from lit_edit.models.identity import read_config, read_tokenizer
from lit_edit.module import ContinualEditor
from lit_edit.options.packaged import model_path
from lit_edit.plan import cached as caches
from lit_edit.plan.advice import advice
from lit_edit.plan.calibration import calibrate as measure
from lit_edit.plan.calibration import timed
from lit_edit.plan.corpora import corpus_rows
from lit_edit.plan.disk import disk_of
from lit_edit.plan.listening import of_edits, of_probes
from lit_edit.plan.machine import available, device_of, resident
from lit_edit.plan.memory import CONTEXT, phases
from lit_edit.plan.network import Network
from lit_edit.plan.operations import operations
from lit_edit.plan.result import Cached, Memory, Plan, Work
from lit_edit.plan.scene import Scene
from lit_edit.plan.settings import RunSettings
from lit_edit.plan.state import PROTECTED, keeps_moment, needs_targets, state_of
from lit_edit.plan.work import StreamWork, fillers, read_batches, rows_of, work_of
from lit_edit.prompts import Encoder
from lit_edit.request import EditRequest
from lit_edit.statistics.preparation import TOKENS_PER_INPUT
from lit_edit.statistics.whole_documents import WholeDocuments

DOCUMENT = 500
"""Tokens that a whole document is taken to have, where all of a corpus is read (an article of Wikipedia, on average)."""


def plan_run(
    model: ContinualEditor,
    stream: EditStream,
    settings: RunSettings = RunSettings(),  # noqa: B008 (frozen)
    calibrate: bool = True,
    hash_weights: bool = False,
) -> Plan:
    """What a run will cost, before anything heavy is loaded.

    The model's ``config.json`` and tokenizer and the edit set are read, and no weight: the network is built of tensors that are
    shapes only, over which the run's own passes are rehearsed. See docs/plan.md for what is counted and how exactly.

    Args:
        model: as given to the trainer; nothing is loaded into it.
        stream: the edits; read here if they are not yet.
        settings: options of the run besides.
        calibrate: time a few products on this device, at most about ten seconds, to turn operations into time.
        hash_weights: read and hash the model's safetensors files, to know what the cache holds already.

    Raises:
        EditError: if model, edit set or layers are not there, or the run's device is not.
    """
    name, config = read_config(model.pretrained, model.revision, model.trust_remote_code, weights=False)
    encoder_of = read_tokenizer(name, model.pretrained, model.revision, model.trust_remote_code)
    stream.setup("fit")
    dtype: torch.dtype = getattr(torch, model.model_dtype)
    network = Network.from_config(config, dtype, model.pretrained)
    return plan_of(network, Encoder(encoder_of, network.anatomy.positions), model, stream, settings, calibrate, hash_weights)


def plan_of(
    network: Network,
    encoder: Encoder,
    model: ContinualEditor,
    stream: EditStream,
    settings: RunSettings = RunSettings(),  # noqa: B008 (frozen)
    calibrate: bool = True,
    hash_weights: bool = False,
) -> Plan:
    """As :func:`plan_run`, of a network that need not lie anywhere: ``Network.from_config(AutoConfig.for_model(...), ...)``.

    Args:
        network: the model as shapes.
        encoder: its tokenizer.
        model: editor, guards, layers and other options.
        stream: the edits, read already.
        settings: options of the run besides.
        calibrate: see :func:`plan_run`.
        hash_weights: see :func:`plan_run`.

    Raises:
        EditError: see :func:`plan_run`.
    """
    notes: list[str] = []
    scene = scene_of(network, encoder, model, stream, settings, notes)
    folder = (model_path(model.pretrained) or Path(model.pretrained).expanduser()) if hash_weights else None
    corpus = scene.corpus if scene.moment_tokens else None
    cache = caches.cached(network, encoder, scene.layers, model.store, corpus, model.moment_tokens, scene.wants_spectra, folder)
    found, share = cache.found, cache.protected(model.store, scene.editor)
    if share is not None:
        scene = scene.protecting(share)
    if scene.editor_protects:
        notes.append(_protects(scene, share))
    memory = memory_of(scene)
    text = sum(len(r.prompt) + len(r.subject) + len(r.target_new) + len(r.source or "") for r in stream.requests)
    disk = disk_of(scene, found, model.store.folder, text / len(stream.requests))
    work: tuple[Work, ...] = operations(scene, found)
    rates = None
    if calibrate:
        part = max((one for batch in scene.stream.read for one in batch.parts), key=lambda p: p.rows * p.suffix, default=None)
        tokens = part.rows * part.suffix if part else scene.at_once
        rates = measure(torch.device(scene.device), network.anatomy.dtype, tokens, *scene.shape)
        work = tuple(timed(one, rates) for one in work)
    said = () if memory.fits and disk.fits else advice(scene, memory, disk, lambda **new: _other(scene, model, stream, new))
    return Plan(_of_model(scene, model), _of_stream(scene, stream), memory, disk, work, rates, found, said, tuple(notes))


def scene_of(
    network: Network,
    encoder: Encoder,
    model: ContinualEditor,
    stream: EditStream,
    settings: RunSettings,
    notes: list[str],
    layers: Sequence[int] | None = None,
    protected: float = PROTECTED,
) -> Scene:
    """Everything that a plan is computed from; what had to be assumed is added to ``notes``.

    Raises:
        EditError: if there is nothing to edit, or a layer does not exist.
    """
    anatomy, editor, guards = network.anatomy, model.editor, model.guard_list()
    wanted = layers if layers is not None else model.wanted_layers
    chosen = anatomy.check_layers(anatomy.proposed_layers() if wanted is None else wanted)
    templates = fillers(encoder, model.targets) if editor.needs_contexts else ()
    read = read_batches(stream.requests, stream.batch_size)
    rows = [rows_of(encoder, editor, batch, templates) for batch in read]
    minibatch = int(getattr(getattr(editor, "options", editor), "minibatch", model.targets.requests_at_once))
    batches = work_of(network, encoder, rows, model.targets, minibatch)
    aside = sum(len(batch) for batch in read) - sum(batch.requests for batch in batches)
    sizes = [min(stream.batch_size, len(stream.requests) - at) for at in range(0, len(stream.requests), stream.batch_size)]
    counted = StreamWork(tuple(sizes), tuple(batches), aside)
    scoring, scored = of_edits(network, encoder, stream.requests, stream.scored_at_once)
    probes = of_probes(network, encoder, stream.probes, stream.probe_batch_size, notes.append)
    moment_tokens = _moment_tokens(model, anatomy.d_inner)
    row_tokens, padding = corpus_rows(model.corpus, anatomy, encoder, moment_tokens)
    _say(notes, network, model, counted)
    return Scene(
        network=network,
        encoder=encoder,
        editor=editor,
        guards=guards,
        layers=chosen,
        targets=model.targets,
        settings=settings,
        device=device_of(settings.device),
        stream=counted,
        state=state_of(editor, len(chosen), anatomy.d_model, anatomy.d_inner, counted.sizes, protected),
        protected=protected,
        moment_tokens=moment_tokens,
        corpus=None if model.moments_from else model.corpus,
        row_tokens=row_tokens,
        padding=padding,
        wants_spectra=bool(settings.drift_every) or any(guard.needs_spectrum for guard in guards),
        scoring=scoring,
        scored=scored,
        probes=probes,
        at_once=8192,
        minibatch=minibatch,
        review=sys.maxsize if stream.review is None else stream.review,
    )


def memory_of(scene: Scene) -> Memory:
    """Memory of the busiest device, against what is there."""
    settings = scene.settings
    runtime = resident() if scene.device == "cpu" else CONTEXT
    here = -(-settings.ranks // max(settings.nodes, 1)) if scene.device == "cpu" else 1
    return Memory(scene.device, phases(scene, runtime), available(scene.device), here)


def _moment_tokens(model: ContinualEditor, d_in: int) -> int:
    if not model.editor.needs_moments or model.moments_from:
        return 0
    if model.moment_tokens is None and isinstance(model.corpus, WholeDocuments):
        return model.corpus.count * DOCUMENT
    return model.moment_tokens or TOKENS_PER_INPUT * d_in


def _say(notes: list[str], network: Network, model: ContinualEditor, counted: StreamWork) -> None:
    """Which assumptions the numbers rest on."""
    if needs_targets(model.editor):
        notes.append("operations of the targets are those of all steps for every request; those that are done early save some")
    if keeps_moment(model.editor):
        notes.append("inverses are those of well-conditioned second moments; others take an eigendecomposition as large")
    if isinstance(model.corpus, WholeDocuments) and model.moment_tokens is None and model.editor.needs_moments:
        notes.append(f"whole documents are taken to have {DOCUMENT} tokens on average")
    if len(counted.read) < len(counted.batches):
        notes.append(f"{len(counted.read)} of {len(counted.batches)} batches were tokenised; the others are taken to be alike")


def _protects(scene: Scene, share: float | None) -> str:
    name = type(scene.editor).__name__
    if share is not None:
        return f"{name} protects {share:.0%} of the input directions, as the second moments in the cache have it"
    return (
        f"{name} is taken to protect {PROTECTED:.0%} of the input directions; how many it will be depends on the second "
        "moments, and --hash true counts them where these are cached"
    )


def _other(scene: Scene, model: ContinualEditor, stream: EditStream, new: dict[str, object]) -> Memory:
    """Memory of the same run with other options."""
    network, layers, settings = scene.network, scene.layers, scene.settings
    if "dtype" in new:
        network = Network.from_config(network.config, new["dtype"], model.pretrained)  # type: ignore[arg-type]
    if "layers" in new:
        layers = tuple(new["layers"])  # type: ignore[arg-type]
    if "ranks" in new:
        settings = replace(settings, ranks=int(new["ranks"]), strategy="sharded")  # type: ignore[call-overload]
    other = scene_of(network, scene.encoder, model, _Same(stream), settings, [], layers, scene.protected)  # type: ignore[arg-type]
    return memory_of(other)


class _Same:
    """A stream without its probes, which other options do not change."""

    def __init__(self, stream: EditStream) -> None:
        self.requests: tuple[EditRequest, ...] = stream.requests
        self.batch_size, self.scored_at_once = stream.batch_size, stream.scored_at_once
        self.probe_batch_size, self.review, self.probes = stream.probe_batch_size, stream.review, list(stream.probes)


def _of_model(scene: Scene, model: ContinualEditor) -> dict[str, object]:
    d_out, d_in = scene.shape
    return {
        "pretrained": model.pretrained,
        "family": scene.network.config.model_type,
        "parameters": scene.network.parameters,
        "dtype": model.model_dtype,
        "blocks": len(scene.network.anatomy.blocks),
        "layers": list(scene.layers),
        "d_out": d_out,
        "d_in": d_in,
        "vocabulary": scene.network.anatomy.vocabulary,
        "editor": type(scene.editor).__name__,
        "guards": [type(guard).__name__ for guard in scene.guards],
    }


def _of_stream(scene: Scene, stream: EditStream) -> dict[str, object]:
    return {
        "edits": sum(scene.stream.sizes),
        "set_aside": len(stream.requests) - sum(scene.stream.sizes),
        "batches": len(scene.stream.batches),
        "batch_size": stream.batch_size,
        "steps": scene.targets.steps if needs_targets(scene.editor) else None,
        "moment_tokens": scene.moment_tokens,
        "ranks": scene.settings.ranks,
        "strategy": scene.settings.strategy,
        "device": scene.device,
    }


__all__ = ["Cached", "plan_of", "plan_run"]
