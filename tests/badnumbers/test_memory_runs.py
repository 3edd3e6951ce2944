"""Memory that runs out in the middle of a run: halved where that helps, else one sentence and the last good checkpoint."""

import re

import pytest
import torch
from memory import ERRORS, tight
from methods import IN_ORDER, METHODS, editor, fit, stages
from poison import Leaky, Poison, Watch, injected
from stream import facts

from lit_edit.callbacks import StreamCheckpoint
from lit_edit.corpus import TextCorpus
from lit_edit.errors import OutOfMemory
from lit_edit.guards import REVIVE
from lit_edit.options.parser import told_as_error
from lit_edit.runs.checkpoint_io import SafetensorsCheckpointIO

SAID = {
    "targets": "the targets of (one request|2 requests at once)",
    "keys": "the keys of one prompt",
    "values": "the keys of one prompt",
    "inputs": "the gradients of one request",
    "gradients": "the (gradients|loss) of one request",
    "loss": "the (gradients|loss) of one request",
    "solve": "the solve of (layer 0|a batch of 2 requests)",
    "guard": "the guard Leaky at layer 0",
    "guard state": "the guard Leaky at layer 0",
}
SENTENCE = r"^memory does not suffice for {} \(.+\); .+ helps?$"

CASES = [(method, "solve") for method in METHODS] + [
    (method, stage)
    for method in ("MEMIT", "ROME", "UltraEdit", "FTL")
    for stage in stages(method)
    if stage not in ("solve", "singular", "budget")
]


def checkpoints(folder):
    return StreamCheckpoint(str(folder / "checkpoints"), save_last=True, every_n_train_steps=1)


@pytest.mark.parametrize(("method", "stage"), CASES)
def test_the_run_ends_with_the_batch_undone_and_the_last_checkpoint_whole(tiny, tmp_path, method, stage):
    error = ERRORS["cpu" if CASES.index((method, stage)) % 2 else "cuda"]
    poison = Poison({2: (stage, error)})
    module, watch = editor(tiny, method, (Leaky(poison),)), Watch(poison)
    what = SAID.get(stage, r".+ of (layer \d|a batch of 2 requests)")
    if method in IN_ORDER:
        what = rf"({what}|the solve of one request)"
    with injected(poison, module), pytest.raises(OutOfMemory, match=SENTENCE.format(what)):
        fit(module, tmp_path, facts(8), (watch, checkpoints(tmp_path)))
    assert poison.fired and module.journal.count == 2 and module.batches == 2 and module.whole
    saved = SafetensorsCheckpointIO().load_checkpoint(str(tmp_path / "checkpoints" / "last.ckpt"))
    assert saved["lit_edit"]["batches"] == 2
    kept = {name: value for name, value in module.state_dict().items() if name in saved["state_dict"]}
    assert set(kept) == set(saved["state_dict"]) and all(torch.equal(kept[name], saved["state_dict"][name]) for name in kept)
    assert all(torch.equal(module.anatomy.weight(layer), module.master(layer)) for layer in module.layers)


@pytest.mark.parametrize("method", ["DeltaEdit", "LyapLock", "UltraEdit"])
def test_the_run_goes_on_from_there_as_if_nothing_had_happened(tiny, tmp_path, method):
    poison = Poison({2: ("guard", ERRORS["cuda"])})
    module, watch = editor(tiny, method, (Leaky(poison),)), Watch(poison)
    with injected(poison, module), pytest.raises(OutOfMemory):
        fit(module, tmp_path, facts(8), (watch, checkpoints(tmp_path)))
    resumed, whole = (editor(tiny, method, (Leaky(Poison({})),)) for _ in range(2))
    fit(resumed, tmp_path, facts(8), ckpt_path=str(tmp_path / "checkpoints" / "last.ckpt"))
    fit(whole, tmp_path / "whole", facts(8))
    assert [record["rejected"] for record in resumed.journal.records()] == [None] * 4
    assert all(torch.equal(resumed.master(layer), whole.master(layer)) for layer in whole.layers)


@pytest.mark.parametrize("method", [name for name in METHODS if name not in IN_ORDER])
def test_a_device_that_is_too_small_for_a_batch_gives_the_same_weights(tiny, tmp_path, method):
    rows = facts(8)
    whole, parts = editor(tiny, method), editor(tiny, method)
    fit(whole, tmp_path / "whole", rows, batch_size=4)
    parts.configure_model()
    with tight(parts.net, 40) as sizes:
        fit(parts, tmp_path / "parts", rows, batch_size=4)
    assert min(sizes) < 0, "or nothing was too small"
    for layer in whole.layers:
        change = whole.master(layer) - whole.original(layer)
        apart = float((parts.master(layer) - whole.master(layer)).norm() / change.norm())
        assert apart < 1e-3, "more than rounding"


# ------------------------------------------------------------------------------------------------ before and around


def test_second_moments_and_spectra_that_find_no_room_end_the_run_before_anything_is_written(tiny, tmp_path, monkeypatch):
    (tmp_path / "text").write_text("Ada Lovelace was born in Rome.\n\nMarie Curie was born in Paris.", encoding="utf-8")
    fresh = {"corpus": TextCorpus([str(tmp_path / "text")]), "moment_tokens": 20, "cache_dir": str(tmp_path / "cache")}

    def ends(what, **options):
        module = editor(tiny, "MEMIT", (REVIVE(),), **fresh)
        module.configure_model()
        with pytest.raises(OutOfMemory, match=SENTENCE.format(what)), tight(module.net, options.pop("tokens", 10**6)):
            fit(module, tmp_path, facts(2), (checkpoints(tmp_path),))
        assert module.journal.count == 0 and not list(tmp_path.rglob("*.ckpt"))
        assert all(torch.equal(module.anatomy.weight(layer), module.original(layer)) for layer in module.layers)

    ends("the keys of one document", tokens=0)
    # In this order: what was computed is in the cache from then on.
    prepared = {"eigh": "the singular values of a matrix of .+", "cholesky_ex": "what is prepared from the original model"}
    for name, what in prepared.items():
        with monkeypatch.context() as patch:
            patch.setattr(torch.linalg, name, lambda *_: (_ for _ in ()).throw(ERRORS["cpu"]()))
            ends(what)


def test_a_step_that_finds_no_room_is_taken_back(tiny, tmp_path, monkeypatch):
    step = torch.optim.SGD.step

    def fails(optimizer, closure):
        step(optimizer, closure)
        if module.batches == 2:
            raise ERRORS["cuda"]()

    module = editor(tiny, "MEMIT")
    monkeypatch.setattr(torch.optim.SGD, "step", fails)
    with pytest.raises(OutOfMemory, match=SENTENCE.format("applying a batch to the weights")):
        fit(module, tmp_path, facts(8), (checkpoints(tmp_path),))
    saved = SafetensorsCheckpointIO().load_checkpoint(str(tmp_path / "checkpoints" / "last.ckpt"))
    assert saved["lit_edit"]["batches"] == module.journal.count == 2
    for layer in module.layers:
        assert torch.equal(module.master(layer), saved["state_dict"][f"masters.layer_{layer}"])


def test_an_evaluation_that_finds_no_room_names_a_setting(tiny, tmp_path):
    module = editor(tiny, "MEMIT")
    module.configure_model()
    trainer = fit(module, tmp_path, facts(4))
    trainer.limit_val_batches = 1.0
    with tight(module.net, 0), pytest.raises(OutOfMemory, match=SENTENCE.format("the score of one text")):
        trainer.validate(module, datamodule=trainer.datamodule, verbose=False)
    module.scorer.requests = lambda *_: (_ for _ in ()).throw(ERRORS["cpu"]())  # a probe of a user's own
    with pytest.raises(OutOfMemory, match=SENTENCE.format("the evaluation")) as told:
        trainer.validate(module, datamodule=trainer.datamodule, verbose=False)
    assert "--data.scored_at_once" in str(told.value)


@pytest.mark.parametrize("error", ERRORS)
def test_whatever_else_finds_no_room_is_told_in_a_sentence(error):
    try:
        try:
            raise ERRORS[error]()
        except Exception as first:
            raise RuntimeError("a callback failed") from first
    except RuntimeError as second:
        assert re.match(SENTENCE.format("the run"), str(told_as_error(second)))
    assert told_as_error(RuntimeError("a callback failed")) is None
