"""Every editor under a chain of guards on every model family that the library knows."""

import pytest
import torch
from stream import editor, facts
from tiny import FAMILIES, save_tiny

import lit_edit.editors as editors
from lit_edit.guards import RECT, REVIVE, SPHERE
from lit_edit.request import EditRequest

METHODS = {
    "MEMIT": lambda: editors.MEMIT(10.0, history=True),
    "AlphaEdit": lambda: editors.AlphaEdit(1e3, 1.0),
    "NSE": lambda: editors.NSE(10.0, 0.0, 1e9, 0.8),
    "DeltaEdit": lambda: editors.DeltaEdit(1e3, 1.0, warmup=1),
    "ROME": lambda: editors.ROME(same_key=True),
    "UltraEdit": lambda: editors.UltraEdit(1e-3),
    "FT": lambda: editors.FT(steps=2),
}


@pytest.fixture(scope="module", params=FAMILIES)
def model(request, tmp_path_factory):
    return save_tiny(tmp_path_factory.mktemp(request.param), request.param)


@pytest.mark.parametrize("name", METHODS)
def test_a_batch_is_written_and_the_protected_subspace_left_alone(name, model):
    guard = REVIVE(mode="constrain")
    module = editor(
        str(model),
        model / "cache",
        editor=METHODS[name](),
        guards=[RECT(), SPHERE(), guard],
        layers=[1] if name == "ROME" else [0, 1],
    )
    module.configure_model()
    module.prepare()
    requests = [EditRequest(fact["prompt"], fact["subject"], fact["target"]) for fact in facts(3)]
    rows = [module.editor.rows(module.encoder, request, module.templates) for request in requests]
    bench = module.workbench()
    module.editor.change(bench, rows, module.editor.aim(bench, rows))
    bench.finish()
    assert set(bench.changes) == set(module.layers) and not bench.refused
    for layer, change in bench.changes.items():
        assert torch.isfinite(change).all() and float(change.norm()) > 0
        touched = change.double() @ guard.protected(layer).right.double()
        assert float(touched.norm()) < 1e-4 * float(change.norm())
    bench.clear()
    for layer in module.layers:
        assert torch.equal(module.anatomy.weight(layer), module.original(layer))
