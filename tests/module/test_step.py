"""The step: a run is a plain sequential loop, a batch is all or nothing, evaluation leaves no trace."""

import json
import random
from types import SimpleNamespace

import pytest
import torch
from lightning.pytorch.callbacks import Callback
from stream import editor, stream, trainer
from tiny import save_tiny

from lit_edit.batch.records import RecordScores
from lit_edit.callbacks import ImmediateScores
from lit_edit.editors import MEMIT
from lit_edit.errors import EditError
from lit_edit.keys import KeyPass
from lit_edit.spectrum import triple_drift
from lit_edit.statistics.preparation import second_moments
from lit_edit.store import fingerprint
from lit_edit.targets import TargetOptions, optimise


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("llama")
    save_tiny(folder, "llama")
    return str(folder)


def run(model, tmp_path, module=None, callbacks=(), count=8, **options):
    module = module or editor(model, tmp_path / "cache")
    data = stream(tmp_path, count)
    fit = trainer(tmp_path, callbacks, **options)
    fit.fit(module, datamodule=data)
    return module, data, fit


@pytest.mark.parametrize("guarded", [True, False])
def test_a_run_equals_a_plain_sequential_loop_bit_for_bit(model, tmp_path, guarded):
    options = {} if guarded else {"guards": []}
    module, data, _ = run(model, tmp_path, editor(model, tmp_path / "cache", **options))

    plain = editor(model, tmp_path / "other-cache", **options)
    plain.configure_model()
    plain.prepare()
    layers = plain.layers
    for at in range(0, len(data.requests), 2):
        rows = [plain.encoder.rows(request, plain.templates) for request in data.requests[at : at + 2]]
        z = optimise(plain.anatomy, rows, layers[-1], plain.targets, plain.encoder.pad).values_ND
        reader = KeyPass(plain.anatomy, rows, plain.encoder.pad)
        keys = {}
        for index, layer in enumerate(layers):
            keys[layer] = reader.keys(layer)
            residuals = (z - reader.values(layers[-1])) / (len(layers) - index)
            weight = plain.anatomy.weight(layer)
            delta = plain.editor.solve(layer, keys[layer], residuals, weight)
            for guard in plain.guards:
                delta = guard(layer, delta, weight)
            weight += delta.dense().float()
        for layer in layers:
            plain.editor.remember(layer, keys[layer], plain.anatomy.weight(layer))
    for layer in layers:
        assert not torch.equal(module.master(layer), module.original(layer))
        assert torch.equal(module.master(layer), plain.anatomy.weight(layer))
        assert torch.equal(module.anatomy.weight(layer), plain.anatomy.weight(layer))


def test_protected_triples_do_not_move_over_a_stream(model, tmp_path):
    module, _, _ = run(model, tmp_path)
    for layer in module.layers:
        rank = module.guards[0].protected(layer).rank
        assert rank >= 1
        assert triple_drift(module.spectra[layer], module.master(layer).detach(), rank) < 1e-4
    free, _, _ = run(
        model,
        tmp_path / "free" if (tmp_path / "free").mkdir() is None else tmp_path,
        editor(model, tmp_path / "cache", guards=[]),
    )
    moved = [triple_drift(free.spectra[layer], free.master(layer).detach(), 1) for layer in free.layers]
    assert min(moved) > 1e-3, "without the guard the same stream has to move them, or the test shows nothing"


class _Spoil(MEMIT):
    """Gives NaN for one batch."""

    calls = 0
    bad_call = 1
    poison = float("nan")

    def solve(self, layer, keys, residuals, weight, avoid=None):
        delta = super().solve(layer, keys, residuals, weight, avoid)
        self.calls += 1
        if (self.calls - 1) // 2 == self.bad_call and layer == 1:
            delta.left.mul_(self.poison)
        return delta


class _Weights(Callback):
    def __init__(self):
        self.after = []

    def on_train_batch_end(self, trainer, pl_module, *_):
        self.after.append(fingerprint({str(layer): pl_module.anatomy.weight(layer).clone() for layer in pl_module.layers}))


@pytest.mark.parametrize(
    ("poison", "max_change", "reason"), [(float("nan"), None, "not finite"), (1e6, 10.0, "over the budget")]
)
def test_a_bad_batch_is_undone_recorded_and_the_stream_goes_on(model, tmp_path, poison, max_change, reason):
    spoiled = _Spoil(lam=10.0, history=True)
    spoiled.poison = poison
    weights = _Weights()
    module, _, _ = run(model, tmp_path, editor(model, tmp_path / "cache", editor=spoiled, max_change=max_change), [weights])
    assert weights.after[0] == weights.after[1], "the rejected batch left a trace in the weights"
    assert len({weights.after[0], weights.after[2], weights.after[3]}) == 3
    records = [json.loads(line) for line in (tmp_path / "journal.jsonl").read_text().splitlines()]
    assert [record["rejected"] is None for record in records] == [True, False, True, True]
    assert reason in records[1]["rejected"]
    assert module.edits == 6 and module.position == 8
    assert len(spoiled.earlier["0"]) == 6, "keys of a rejected batch must not be remembered"


def test_an_error_inside_the_walk_leaves_the_model_whole(model, tmp_path):
    class Broken(MEMIT):
        def solve(self, layer, keys, residuals, weight, avoid=None):
            if layer == 1:
                raise RuntimeError("broken on purpose")
            return super().solve(layer, keys, residuals, weight, avoid)

    module = editor(model, tmp_path / "cache", editor=Broken(lam=10.0))
    with pytest.raises(RuntimeError, match="on purpose"):
        run(model, tmp_path, module)
    for layer in module.layers:
        assert torch.equal(module.anatomy.weight(layer), module.original(layer))


def test_evaluation_changes_nothing(model, tmp_path):
    module, data, fit = run(model, tmp_path)
    module.net.train()  # a mode that evaluation has to put back
    random.seed(3)
    before = (
        fingerprint(dict(module.net.named_parameters())),
        torch.get_rng_state(),
        random.getstate(),
        module.encoder.tokenizer.padding_side,
    )
    modes = [part.training for part in module.net.modules()]
    scores = module.scorer.requests(data.requests)
    data.probes[0].measure(module.scorer, data.probes[0].items())
    assert len(scores) == 8
    assert fingerprint(dict(module.net.named_parameters())) == before[0]
    assert torch.equal(torch.get_rng_state(), before[1])
    assert random.getstate() == before[2] and module.encoder.tokenizer.padding_side == before[3]
    assert [part.training for part in module.net.modules()] == modes
    fit.validate(module, datamodule=data, verbose=False)
    assert fingerprint(dict(module.net.named_parameters())) == before[0]


def test_a_fit_leaves_the_global_random_state_alone(model, tmp_path):
    torch.manual_seed(5)
    before = torch.get_rng_state()
    run(model, tmp_path)
    assert torch.equal(torch.get_rng_state(), before)


def test_masters_keep_what_bfloat16_would_lose(model, tmp_path):
    module, _, _ = run(model, tmp_path, editor(model, tmp_path / "cache", dtype="bfloat16"))
    for layer in module.layers:
        assert module.master(layer).dtype == torch.float32
        assert module.anatomy.weight(layer).dtype == torch.bfloat16
        assert torch.equal(module.anatomy.weight(layer), module.master(layer).detach().bfloat16())
        assert not torch.equal(module.master(layer).detach(), module.anatomy.weight(layer).float())


def test_moments_come_from_the_original_model_and_from_the_cache_afterwards(model, tmp_path):
    module, _, _ = run(model, tmp_path)
    told = []
    with module.original_model() as anatomy:
        again = second_moments(
            anatomy, module.encoder, module.layers, module.corpus, 600, module.store, lambda *args: told.append(args)
        )
    assert not told, "found in the cache: nothing is computed"
    assert again[0].count == 600
    assert len(list((tmp_path / "cache" / "second-moment").glob("*.safetensors"))) == 2


def test_unusable_requests_are_set_aside_and_counted(model, tmp_path, monkeypatch):
    from lit_edit.errors import MalformedRecord
    from lit_edit.prompts import Encoder

    plain = Encoder.rows

    def rows(self, request, contexts):
        if request.case_id == "2":
            raise MalformedRecord("subject", "leaves no token after tokenisation")
        return plain(self, request, contexts)

    monkeypatch.setattr(Encoder, "rows", rows)
    module, _, _ = run(model, tmp_path)
    records = [json.loads(line) for line in (tmp_path / "journal.jsonl").read_text().splitlines()]
    assert records[1]["cases"] == ["3"] and "leaves no token" in records[1]["set_aside"][0]["reason"]
    assert (module.edits, module.position) == (7, 8)


def test_gradient_clipping_caps_the_joint_change(model, tmp_path):
    module, _, _ = run(model, tmp_path, count=2, gradient_clip_val=0.01)
    change = torch.stack([(module.master(layer) - module.original(layer)).norm() for layer in module.layers]).norm()
    assert float(change) == pytest.approx(0.01, rel=1e-3)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [({"precision": "bf16-true"}, "precision"), ({"accumulate_grad_batches": 2}, "accumulate_grad_batches")],
)
def test_settings_that_would_falsify_the_run_are_refused(model, tmp_path, options, sentence):
    with pytest.raises(EditError, match=sentence):
        run(model, tmp_path, **options)


def test_layers_are_proposed_where_none_were_named(model, tmp_path):
    module = editor(model, tmp_path, layers=None)
    module.configure_model()
    assert module.layers == module.anatomy.proposed_layers()


@pytest.mark.parametrize("field", ["steps", "requests_at_once"])
def test_target_options_are_checked(field):
    with pytest.raises(EditError, match=field):
        TargetOptions(**{field: 0})


def test_answers_are_greedy_whatever_the_checkpoint_says_about_generation(model, tmp_path):
    module = editor(model, tmp_path / "cache")
    module.configure_model()
    request = stream_requests(tmp_path)[0]
    plain = module._answer(request)
    config = module.net.generation_config
    config.repetition_penalty, config.num_beams, config.do_sample, config.temperature = 5.0, 3, True, 2.0
    before = config.to_dict()
    assert module._answer(request) == plain
    assert config.to_dict() == before


def stream_requests(tmp_path):
    data = stream(tmp_path)
    data.setup()
    return data.requests


def test_scores_of_a_second_run_do_not_hold_those_of_the_first(model, tmp_path):
    scores = ImmediateScores()
    for _ in range(2):
        scores.setup(None, None, "fit")
        assert not scores.stream.compute()
        scores.stream.update([RecordScores({"efficacy/success/teacher_forced": [1.0]})])


def test_a_device_without_float64_is_refused(model, tmp_path):
    module = editor(model, tmp_path / "cache")
    module.trainer = SimpleNamespace(strategy=SimpleNamespace(root_device=torch.device("mps")))
    with pytest.raises(EditError, match="accelerator cpu"):
        module.setup("fit")
