"""One batch on its way into a model: order, refusal, deferred guards, views, and state that is taken back."""

import pytest
import torch
from lightning.pytorch.callbacks import Callback
from stream import editor, stream, trainer
from tiny import save_tiny
from torch import nn

from lit_edit.batch.state import restore, snapshot
from lit_edit.delta import Delta
from lit_edit.editors import MEMIT
from lit_edit.guards import PRUNE, RECT, REVIVE, Guard, NormCap
from lit_edit.guards.prune import restrain
from lit_edit.store import fingerprint
from lit_edit.targets import TargetOptions
from lit_edit.workbench import Rejected


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("llama")
    save_tiny(folder, "llama")
    return str(folder)


class InOrder(MEMIT):
    """MEMIT one request at a time."""

    in_order = True
    bad = -1
    calls = 0

    def solve(self, layer, keys, residuals, weight, avoid=None):
        assert len(keys) == 1
        delta = super().solve(layer, keys, residuals, weight, avoid)
        self.calls += 1
        if (self.calls - 1) // 2 == self.bad and layer == 1:
            delta.left.fill_(float("nan"))
        return delta


def ready(model, tmp_path, method, guards=(), **options):
    module = editor(model, tmp_path / "cache", editor=method, guards=list(guards), **options)
    module.configure_model()
    module.prepare()
    requests = stream_of(tmp_path)
    rows = [module.editor.rows(module.encoder, request, module.templates) for request in requests]
    return module, rows


def stream_of(tmp_path):
    data = stream(tmp_path, 6, batch_size=6)
    data.setup("fit")
    return data.requests


def applied(module, rows):
    """The change of one batch, and the bench."""
    bench = module.workbench()
    aimed = module.editor.aim(bench, rows)
    module.editor.change(bench, rows, aimed)
    bench.finish()
    return bench


def test_requests_in_order_are_batches_of_one(model, tmp_path):
    together, rows = ready(model, tmp_path, InOrder(lam=10.0, history=True))
    bench = applied(together, rows)
    assert len(bench.losses) == len(rows)
    alone, _ = ready(model, tmp_path, InOrder(lam=10.0, history=True))
    for row in rows:
        one = applied(alone, [row])
        for layer, change in one.changes.items():
            alone.master(layer).data += change
        one.clear()
    for layer in alone.layers:
        torch.testing.assert_close(bench.weight(layer), alone.master(layer).data, rtol=0, atol=1e-5)


def test_a_request_that_cannot_be_written_is_refused_alone(model, tmp_path):
    bad, rows = ready(model, tmp_path, InOrder(lam=10.0, history=True))
    bad.editor.bad = 2
    bench = applied(bad, rows)
    assert [row.request.case_id for row, _ in bench.refused] == ["2"]
    assert "not finite" in bench.refused[0][1]
    good, _ = ready(model, tmp_path, InOrder(lam=10.0, history=True))
    without = applied(good, [row for index, row in enumerate(rows) if index != 2])
    for layer in bad.layers:
        assert torch.equal(bench.weight(layer), without.weight(layer))
        assert torch.equal(bad.anatomy.weight(layer), bench.weight(layer)), "the model shows what was found"
        assert len(bad.editor.remembered(layer)) == 5
    bench.clear()
    for layer in bad.layers:
        assert torch.equal(bad.anatomy.weight(layer), bad.original(layer))


def test_the_stream_names_a_refused_request_and_goes_on(model, tmp_path):
    method = InOrder(lam=10.0, history=True)
    method.bad = 2
    module = editor(model, tmp_path / "cache", editor=method, guards=[])
    fit = trainer(tmp_path, [])
    fit.fit(module, datamodule=stream(tmp_path, 6, batch_size=3))
    assert module.edits == 5 and module.position == 6
    records = module.journal.records()
    assert [record["cases"] for record in records] == [["0", "1"], ["3", "4", "5"]]
    assert "could not be written" in records[0]["set_aside"][0]["reason"]


class Counting(Guard):
    """Counts its calls in a buffer."""

    def __init__(self):
        super().__init__()
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64))

    def forward(self, layer, delta, weight):
        self.calls = self.calls + 1
        return delta


def test_state_of_editor_and_guards_belongs_to_written_batches_only(model, tmp_path):
    class Rejecting(MEMIT):
        batches = 0

        def change(self, bench, rows, aimed):
            super().change(bench, rows, aimed)
            type(self).batches += 1
            if self.batches == 2:
                raise Rejected("on purpose")

    guard = Counting()
    module = editor(model, tmp_path / "cache", editor=Rejecting(lam=10.0, history=True), guards=[guard])
    trainer(tmp_path, []).fit(module, datamodule=stream(tmp_path, 6, batch_size=2))
    assert [record["rejected"] for record in module.journal.records()] == [None, "on purpose", None]
    assert int(guard.calls) == 4, "two layers, two batches"
    assert len(module.editor.remembered(0)) == 4


def test_a_snapshot_costs_nothing_and_restores_every_buffer():
    module = nn.Sequential(Counting(), nn.Sequential(Counting()))
    before = snapshot([module])
    assert all(value is part._buffers[name] for part, name, value in before)
    for part in (module[0], module[1][0]):
        part(0, None, None)
    assert int(module[1][0].calls) == 1
    restore(before)
    assert int(module[0].calls) == int(module[1][0].calls) == 0


def test_deferred_guards_cut_what_is_written_but_not_what_later_layers_see(model, tmp_path):
    class Seen(MEMIT):
        keys: dict  # by layer

        def solve(self, layer, keys, residuals, weight, avoid=None):
            self.keys[layer] = keys
            return super().solve(layer, keys, residuals, weight, avoid)

    found = {}
    for name, guards in {
        "none": [],
        "at once": [RECT(keep=0.1)],
        "deferred": [RECT(keep=0.1, defer=True)],
        "chain": [RECT(keep=0.1, defer=True), REVIVE(tau=0.3)],
    }.items():
        method = Seen(lam=10.0)
        method.keys = {}
        module, rows = ready(model, tmp_path, method, guards)
        bench = applied(module, rows)
        found[name] = method.keys[1], dict(bench.changes), module, bench
    torch.testing.assert_close(found["deferred"][0], found["none"][0], rtol=0, atol=0)
    assert not torch.equal(found["at once"][0], found["none"][0])
    for layer in (0, 1):
        written = found["deferred"][1][layer]
        assert abs(float(written.count_nonzero()) / written.numel() - 0.1) < 0.01
        # The order written holds although one of them waits: what REVIVE protects, RECT does not bring back.
        protected = found["chain"][2].guards[1].protected(layer)
        change = found["chain"][1][layer].double()
        assert float((change @ protected.right.double()).norm()) < 1e-5 * float(change.norm())
        assert f"guard/RECT/removed_share/layer_{layer}" in found["chain"][3].scalars


class _Weights(Callback):
    """What evaluation sees, and what is there before and after it."""

    def __init__(self):
        self.inside, self.outside = [], []

    def on_validation_batch_start(self, trainer, pl_module, *_):
        self.inside.append({layer: pl_module.anatomy.weight(layer).clone() for layer in pl_module.layers})

    def on_train_batch_start(self, trainer, pl_module, *_):
        self.outside.append(
            all(torch.equal(pl_module.anatomy.weight(layer), pl_module.master(layer)) for layer in pl_module.layers)
        )


def test_a_view_is_evaluated_and_never_fed_back(model, tmp_path):
    """PRUNE as published: the stream is that of no guard at all, evaluation sees restrained singular values."""

    def edited(*guards):  # edits large enough to outgrow the original singular values
        targets = TargetOptions(steps=8, contexts=1, context_tokens=4, clamp=4.0)
        return editor(model, tmp_path / "cache", editor=MEMIT(lam=0.01), guards=list(guards), targets=targets)

    plain = edited()
    trainer(tmp_path / "plain", []).fit(plain, datamodule=stream(tmp_path, 8))
    watch = _Weights()
    module = edited(PRUNE("log1_2", "view"))
    guard = module.guards[0]
    fit = trainer(tmp_path / "pruned", [watch])
    fit.fit(module, datamodule=stream(tmp_path, 8))
    assert all(watch.outside)
    for layer in module.layers:
        assert torch.equal(module.master(layer), plain.master(layer))
        assert torch.equal(module.anatomy.weight(layer), plain.anatomy.weight(layer))
        original = module.original(layer).double()
        change = torch.linalg.svdvals(plain.master(layer).double() - original)
        most = float(torch.linalg.svdvals(original)[0])
        assert float(change[0]) > most, "or there is nothing to restrain"
        seen = torch.linalg.svdvals(watch.inside[-1][layer].double() - original)
        torch.testing.assert_close(seen, restrain(change, most, "log1_2").sort(descending=True).values, rtol=1e-4, atol=1e-5)
    # A module that only evaluates prepares the guard by itself.
    fresh = edited(PRUNE("log1_2", "view"))
    fresh.configure_model()
    fresh.load_state_dict(module.state_dict())
    with fresh.evaluated_model():
        assert torch.equal(fresh.anatomy.weight(0), watch.inside[-1][0])
    assert torch.equal(fresh.anatomy.weight(0), fresh.master(0))
    assert guard.mode == "view"


def test_evaluation_without_a_view_copies_nothing(model, tmp_path):
    module = editor(model, tmp_path / "cache", guards=[REVIVE()])
    module.configure_model()
    before = fingerprint({"w": module.anatomy.weight(0)})
    with module.evaluated_model():
        assert fingerprint({"w": module.anatomy.weight(0)}) == before


def test_several_writes_to_a_layer_add_up_and_the_budget_counts_their_sum(model, tmp_path):
    module, _ = ready(model, tmp_path, MEMIT(lam=10.0), [NormCap(per_batch=1e6)], max_change=0.5)
    size = float(module.original(0).norm())
    small = Delta.from_dense(0.2 * module.original(0).double())
    bench = module.workbench()
    for _ in range(2):
        bench.write(0, small)
    bench.finish()
    torch.testing.assert_close(bench.weight(0), 1.4 * module.original(0), rtol=1e-6, atol=1e-7)
    assert bench.scalars["delta/norm/layer_0"] == pytest.approx(0.4 * size, rel=1e-5)
    bench.write(0, small)
    with pytest.raises(Rejected, match=r"over the budget of 0\.5"):
        bench.finish()
    bench.clear()
    assert torch.equal(module.anatomy.weight(0), module.original(0))
